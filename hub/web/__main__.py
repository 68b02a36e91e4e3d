"""`python -m hub.web STATE-DIR [DESCRIPTOR]`: the process that `edgehub serve` runs for browsers and programs.

It ends when its standard input does: then the hub that started it is gone, and the next one starts another. With a
descriptor it answers there, and not at the address in the settings.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
from pathlib import Path

import uvicorn

from edgeagent.proto.names import split_host_port
from hub.core.model import HubError
from hub.database import open_database
from hub.state import State
from hub.store import websettings
from hub.web.app import make_app
from hub.web.protocol import PatientProtocol

CONNECTIONS_MAX = 512  # above it: 503
KEEP_ALIVE_S = 30
HEADER_BYTES_MAX = 32 << 10
STOP_S = 3


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs addresses with their queries, and codes are in them
    try:
        state = State(Path(sys.argv[1]))
        with contextlib.closing(open_database(state)) as store, store.read() as tx:
            settings = websettings.load(tx.connection)
        sockets = [socket.socket(fileno=int(text)) for text in sys.argv[2:3]]
        raise SystemExit(run(state, settings, sockets or None))
    except HubError as error:
        raise SystemExit(f"web: {error}") from None


def run(state: State, settings: websettings.WebSettings, sockets: list[socket.socket] | None) -> int:
    host, port = split_host_port(settings.listen, "listen")
    app = make_app(state, settings)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        ssl_certfile=settings.cert or None,
        ssl_keyfile=settings.key or None,
        http=PatientProtocol,
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,  # addresses carry codes of OIDC; the audit log says what matters
        proxy_headers=False,  # hub.web.errors.client_address knows which proxies to believe
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=STOP_S,
        limit_concurrency=CONNECTIONS_MAX,
        h11_max_incomplete_event_size=HEADER_BYTES_MAX,
        backlog=256,
    )
    server = uvicorn.Server(config)

    def begin_again() -> None:
        """End, if it is about us: the hub starts us anew."""
        with contextlib.closing(open_database(state)) as store, store.read() as tx:
            if websettings.load(tx.connection) != settings:
                server.should_exit = True

    app.state.on_settings = begin_again
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(server, sockets))
    return 0 if server.started else 1


async def _serve(server: uvicorn.Server, sockets: list[socket.socket] | None) -> None:
    def on_input() -> None:
        if not os.read(0, 64):
            asyncio.get_running_loop().remove_reader(0)
            server.should_exit = True

    with contextlib.suppress(PermissionError, OSError):  # /dev/null and files: nobody holds the other end
        asyncio.get_running_loop().add_reader(0, on_input)
    await server.serve(sockets)


if __name__ == "__main__":
    main()
