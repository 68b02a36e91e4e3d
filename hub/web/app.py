"""The application: the guard around it, the routers in it, and what starts and ends with it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncIterator

import anyio.to_thread
from fastapi import APIRouter, FastAPI, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.routing import BaseRoute

from hub.database import open_database
from hub.io.live import Listener
from hub.state import State
from hub.store import websettings
from hub.web import api, claims, errors, live, metrics, oidc, passkeys, signin, views
from hub.web.backend import CONNECTIONS_MAX, Backend
from hub.web.deliveries import Courier
from hub.web.guard import Guard
from hub.web.routes import routes_of
from hub.web.sealed import Sealer
from hub.web.throttle import LockedBuckets


def make_app(state: State, settings: websettings.WebSettings | None = None) -> FastAPI:
    """Everything that people's browsers and programs reach. `settings`: those of the database where not given."""
    if settings is None:
        with contextlib.closing(open_database(state)) as store, store.read() as tx:
            settings = websettings.load(tx.connection)
    backend = Backend(state, settings)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = CONNECTIONS_MAX
        courier = Courier(backend)
        courier.start()
        broadcaster = live.Broadcaster(
            Listener(state.live), {"settings": lambda: app.state.on_settings(), "webhooks": courier.hurry}
        )
        broadcaster.start()
        app.state.broadcaster = broadcaster
        app.state.live_mark = lambda: broadcaster.mark
        try:
            yield
        finally:
            broadcaster.stop()
            await run_in_threadpool(courier.stop)
            backend.close()

    app = FastAPI(title="edgehub", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.backend = backend
    app.state.sealer = Sealer(backend.secret("cookies"))
    app.state.provider = oidc.Provider()
    app.state.claim_begins = LockedBuckets(claims.BEGIN_PER_S, claims.BEGIN_BURST)
    app.state.claim_polls = LockedBuckets(claims.POLL_PER_S, claims.POLL_BURST)
    app.state.metrics = metrics.Metrics(backend)
    app.state.tries = signin.Tries()
    app.state.live_mark = lambda: ""  # nothing is broadcast before it has started
    app.state.on_settings = lambda: None  # the process that runs this may want to know that its settings changed
    errors.install(app)
    app.add_middleware(Guard, settings=settings)
    app.router.routes.extend(_routes())
    views.install(app)
    return app


# No endpoint is made for one application: FastAPI remembers thousands of them, and whatever they know.
router = APIRouter()


@router.get("/healthz", include_in_schema=False)
def health(request: Request) -> Response:
    """For a reverse proxy or a supervisor: this process answers, and reaches its database."""
    with request.app.state.backend.read() as tx:
        tx.last_audit()
    return Response("ok\n", media_type="text/plain")


@functools.cache
def _routes() -> tuple[BaseRoute, ...]:
    return routes_of(
        (
            signin.router,
            claims.device_router,
            claims.page_router,
            oidc.router,
            passkeys.signin_router,
            live.router,
            metrics.router,
            api.router,
            router,
        )
    )
