"""What every request passes first: whose host it means, where a write comes from, how long and how slow it may be.

Host names are compared as a whole, so a name that somebody points at this address (DNS rebinding) reaches nothing.
Writes with a cookie must come from a page of ours: browsers say so in Origin or Sec-Fetch-Site.
"""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgeagent.proto.names import split_host_port
from hub.store.websettings import WebSettings
from hub.web.errors import note_refusal, problem

BODY_MAX = 1 << 20
BODY_S = 20.0  # from the headers to the end of the body
SAFE = ("GET", "HEAD", "OPTIONS")

_OF_DEVICES = ("/join/begin", "/join/poll")  # no cookie counts there

HEADERS = {
    # No inline script and style, nothing from elsewhere: what a device says of itself can never run.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "font-src 'self'; connect-src 'self'; manifest-src 'self'; form-action 'self'; frame-ancestors 'none'; "
    "base-uri 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",  # with no-referrer, browsers send `Origin: null` with forms of our own
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
}


def hosts(settings: WebSettings) -> frozenset[str]:
    """What the Host header may be."""
    host, port = split_host_port(settings.listen, "listen")
    names = {"localhost", "127.0.0.1", "[::1]"}
    if host not in ("0.0.0.0", "::"):
        names.add(f"[{host}]" if ":" in host else host)
    known = {f"{name}:{port}" for name in names}
    if port == (443 if settings.cert else 80):
        known |= names  # browsers leave the scheme's own port out
    if settings.url:
        known.add(urlsplit(settings.url).netloc)
    return frozenset(known)


class Guard:
    """ASGI middleware around everything."""

    def __init__(self, app: ASGIApp, settings: WebSettings) -> None:
        self._app = app
        self._hosts = hosts(settings)
        self._https = settings.url.startswith("https:")
        schemes = ("https", "http") if self._https or settings.cert else ("http",)
        self._origins = frozenset(f"{scheme}://{host}" for scheme in schemes for host in self._hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        send = self._with_headers(scope, send)
        refusal = self._refusal(request)
        if refusal:
            await note_refusal(request, "", refusal)
            said = "This hub does not answer under this name, or the request came from another site."
            await problem(request, 403, refusal, said)(scope, receive, send)
            return
        length = request.headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > BODY_MAX:
            await problem(request, 413, "too-large", f"At most {BODY_MAX} bytes.")(scope, receive, send)
            return
        await self._app(scope, _Bounded(receive), send)

    def _refusal(self, request: Request) -> str:
        if request.headers.get("host", "").lower() not in self._hosts or len(request.headers.getlist("host")) != 1:
            return "host"
        if request.method in SAFE or _has_token(request) or request.url.path in _OF_DEVICES:
            return ""
        origin = request.headers.get("origin")
        if origin is None:  # old browsers, and programs: a browser that sends neither does not send the cookie along
            return "" if request.headers.get("sec-fetch-site") == "same-origin" else "origin-missing"
        return "" if origin.lower() in self._origins else "origin"

    def _with_headers(self, scope: Scope, send: Send) -> Send:
        static = scope["path"].startswith("/static/")

        async def send_(message: Message) -> None:
            if message["type"] == "http.response.start":
                scope["app"].state.metrics.count(message["status"])
                headers: list[tuple[bytes, bytes]] = message.setdefault("headers", [])
                said = {
                    name.lower() for name, _ in headers
                }  # an endpoint may have a policy of its own: two would both hold
                headers += [
                    (name.encode(), value.encode()) for name, value in HEADERS.items() if name.encode() not in said
                ]
                if self._https:
                    headers.append((b"strict-transport-security", b"max-age=31536000"))
                if not static and not any(name.lower() == b"cache-control" for name, _ in headers):
                    headers.append((b"cache-control", b"no-store"))
            await send(message)

        return send_


def _has_token(request: Request) -> bool:
    """No page of another site can send an API token; names and passwords in a link's URL make a browser send others."""
    return request.headers.get("authorization", "").lower().startswith("bearer ")


class _Bounded:
    """A request's body: not longer than BODY_MAX whatever was announced, and not slower than BODY_S."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._deadline = asyncio.get_running_loop().time() + BODY_S
        self._size = 0
        self._whole = False

    async def __call__(self) -> Message:
        if self._whole:
            return await self._receive()
        async with asyncio.timeout_at(self._deadline):
            message: dict[str, Any] = dict(await self._receive())
        self._size += len(message.get("body", b""))
        if self._size > BODY_MAX:
            return {"type": "http.disconnect"}
        self._whole = not message.get("more_body", False)
        return message
