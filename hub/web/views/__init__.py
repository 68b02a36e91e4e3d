"""The dashboard's pages. `install` is all that the application calls."""

from __future__ import annotations

import functools

from fastapi import FastAPI, Request, Response
from starlette.routing import BaseRoute

from hub.web import look
from hub.web.assets import Assets, NoPages
from hub.web.routes import routes_of
from hub.web.views import (
    devices,
    joining,
    lock,
    names,
    operating,
    overview,
    people,
    pictures,
    policy,
    relays,
    rigs,
    routes,
    system,
    updates,
)

ROUTERS = tuple(
    part.router
    for part in (
        *(overview, devices, operating, updates, rigs, pictures, joining),
        *(policy, routes, names, lock, relays, people, system),
    )
)


@functools.cache
def _routes() -> tuple[BaseRoute, ...]:
    return routes_of(ROUTERS)


def install(app: FastAPI) -> None:
    assets = Assets()
    if assets.missing:
        app.add_middleware(NoPages, why=assets.missing)
        return
    look.install(assets)
    app.router.routes.extend(_routes())

    @app.get("/static/{fingerprint}/{path:path}", include_in_schema=False)
    def static(request: Request, fingerprint: str, path: str) -> Response:
        return assets.answer(request, fingerprint, path)
