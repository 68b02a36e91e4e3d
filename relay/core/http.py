"""What the relay answers over HTTP: the upgrade, a page for the curious, probes for portals, health, and metrics."""

from __future__ import annotations

import re
from collections.abc import Callable

from edgeagent.proto.crypto import Crypto
from edgeagent.proto.relay_http import (
    ANSWER_HEADER,
    PROBE_HEADER,
    PROBE_PATH,
    RELAY_PATH,
    UPGRADE,
    HeadReader,
    HttpError,
)

METRICS_PATH = "/metrics"
HEALTH_PATH = "/healthz"
_REQUEST_LINE = re.compile(r"([A-Z]{1,16}) (/[\x21-\x7e]{0,1023}) HTTP/1\.[01]")
_NONCE = re.compile(r"[A-Za-z0-9]{1,64}")
_PHRASES = {200: "OK", 204: "No Content", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed"}
_PHRASES[426], _PHRASES[503] = "Upgrade Required", "Service Unavailable"
_PAGE = """\
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Relay</title></head>
<body><p>This is a relay of an edge mesh. It passes sealed packets between devices of its networks, and keeps none.</p>
</body></html>
"""

UPGRADED = f"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {UPGRADE}\r\n\r\n".encode()


class Request:
    """A request without a body. `rest` is what came behind it."""

    __slots__ = ("headers", "method", "path", "rest")

    def __init__(self, method: str, path: str, headers: dict[str, str], rest: bytes) -> None:
        self.method = method
        self.path = path
        self.headers = headers
        self.rest = rest

    @property
    def wants_relay(self) -> bool:
        """Whether it is the upgrade to the relay's protocol."""
        return (
            self.method == "GET"
            and self.path == RELAY_PATH
            and self.headers.get("upgrade", "").lower() == UPGRADE
            and "upgrade" in self.headers.get("connection", "").lower()
        )


class RequestReader:
    """`feed` it bytes until it gives a Request."""

    __slots__ = ("_head",)

    def __init__(self) -> None:
        self._head = HeadReader()

    def feed(self, data: bytes) -> Request | None:
        """None while the request is not whole. Raises HttpError."""
        read = self._head.feed(data)
        if read is None:
            return None
        first, headers, rest = read
        match = _REQUEST_LINE.fullmatch(first)
        if match is None:
            raise HttpError("http: a request line that is none")
        return Request(match[1], match[2], headers, rest)


class Site:
    """Answers to requests that are not the upgrade. `token` opens the metrics to others than the metrics listener."""

    def __init__(self, crypto: Crypto, token: bytes | None, metrics: Callable[[], str]) -> None:
        self._crypto = crypto
        self._token = token
        self._metrics = metrics

    def answer(self, request: Request, *, trusted: bool, draining: bool) -> bytes:
        """The whole answer, after which the connection closes. `trusted` is who came by the metrics listener."""
        path = request.path.partition("?")[0]
        if request.method not in ("GET", "HEAD"):
            return _answer(405, "", {"Allow": "GET, HEAD"})
        body = request.method == "GET"
        if path == RELAY_PATH:
            return _answer(426, "", {"Upgrade": UPGRADE})
        if path == PROBE_PATH:
            nonce = request.headers.get(PROBE_HEADER, "")
            return _answer(204, "", {ANSWER_HEADER: f"answer {nonce}"} if _NONCE.fullmatch(nonce) else {})
        if path == HEALTH_PATH:
            return _answer(503 if draining else 200, "draining\n" if draining else "ok\n", {}, body=body)
        if path == METRICS_PATH and (trusted or self._has_token(request)):
            kind = "text/plain; version=0.0.4; charset=utf-8"
            return _answer(200, self._metrics(), {"Content-Type": kind}, body=body)
        if path == "/":
            return _answer(200, _PAGE, {"Content-Type": "text/html; charset=utf-8"}, body=body)
        return _answer(404, "nothing here\n", {}, body=body)

    def _has_token(self, request: Request) -> bool:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        return (
            self._token is not None
            and scheme.lower() == "bearer"
            and self._crypto.equal(self._crypto.blake2s(given.encode("latin-1")), self._crypto.blake2s(self._token))
        )


def bad_request() -> bytes:
    return _answer(400, "", {})


def _answer(status: int, text: str, headers: dict[str, str], *, body: bool = True) -> bytes:
    content = text.encode()
    lines = {"Content-Type": "text/plain; charset=utf-8", "Cache-Control": "no-store", "Connection": "close", **headers}
    if status == 204:
        del lines["Content-Type"]
    else:
        lines["Content-Length"] = str(len(content))
    fields = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    head = f"HTTP/1.1 {status} {_PHRASES[status]}\r\n{fields}\r\n"
    return head.encode("latin-1") + (content if body else b"")
