"""Routes of routers, to be made once a process."""

from __future__ import annotations

from fastapi import APIRouter, FastAPI
from starlette.routing import BaseRoute


def routes_of(routers: tuple[APIRouter, ...]) -> tuple[BaseRoute, ...]:
    """For any number of applications, if kept: what an endpoint takes is read when it is asked first, which is slow."""
    bare = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    for router in routers:
        bare.include_router(router)
    return tuple(bare.router.routes)
