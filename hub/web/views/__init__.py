"""The dashboard's pages. `install` is all that the application calls."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response

from hub.web import look
from hub.web.assets import Assets, NoPages
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
    routes,
    system,
    updates,
)

ROUTERS = tuple(
    part.router
    for part in (
        *(overview, devices, operating, updates, pictures, joining),
        *(policy, routes, names, lock, relays, people, system),
    )
)


def install(app: FastAPI) -> None:
    assets = Assets()
    if assets.missing:
        app.add_middleware(NoPages, why=assets.missing)
        return
    look.install(assets)
    for router in ROUTERS:
        app.include_router(router)

    @app.get("/static/{fingerprint}/{path:path}", include_in_schema=False)
    def static(request: Request, fingerprint: str, path: str) -> Response:
        return assets.answer(request, fingerprint, path)
