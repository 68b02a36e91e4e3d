"""A power strip with an HTTP interface, for simulated boards: POST /outlet/NAME/on, …/off; GET /outlet/NAME."""

from __future__ import annotations

import hmac
import json
import re
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Protocol

_PATH = re.compile(r"/outlet/([a-z0-9-]{1,32})(?:/(on|off))?")


class Outlet(Protocol):
    """What is plugged in: a board."""

    def on(self) -> None: ...
    def off(self) -> None: ...

    @property
    def is_on(self) -> bool: ...


class Pdu:
    """Listens at a port of this host's loopback until `close`. Who asks has to send `authorization`."""

    def __init__(self, outlets: Mapping[str, Outlet], authorization: str) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(False)

            def do_POST(self) -> None:
                self._answer(True)

            def _answer(self, change: bool) -> None:
                told = self.headers.get("Authorization", "")
                match = _PATH.fullmatch(self.path)
                if not hmac.compare_digest(told.encode(), authorization.encode()):
                    self.send_error(401)
                elif match is None or match[1] not in outlets or change != bool(match[2]):
                    self.send_error(404)
                else:
                    outlet = outlets[match[1]]
                    if change:
                        (outlet.on if match[2] == "on" else outlet.off)()
                    body = json.dumps({"outlet": match[1], "on": outlet.is_on}).encode()
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Nothing: what is on a rig's standard output is the rig's."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="pdu", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5.0)
