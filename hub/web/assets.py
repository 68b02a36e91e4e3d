"""Style sheets, scripts, fonts and icons: read once, squeezed once, and served under a name that changes with them.

`/static/FINGERPRINT/PATH` may be kept by a browser for ever. Nothing is looked up in a file system by what a request
says.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from hashlib import blake2s
from pathlib import Path

from markupsafe import Markup, escape
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

FOLDER = Path(__file__).with_name("static")
VENDOR = "vendor"
NEEDED = ("vendor/htmx.js", "vendor/tabler.css", "vendor/inter.woff2")
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}
FOREVER = "public, max-age=31536000, immutable"


@dataclass(frozen=True)
class Asset:
    content: bytes
    squeezed: bytes | None  # gzip; None where that gains nothing
    kind: str


class Assets:
    """All files below a folder that have one of TYPES."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder = folder or FOLDER
        self._files = dict(_read(folder))
        digest = blake2s(digest_size=8)
        for path, asset in sorted(self._files.items()):
            digest.update(path.encode() + b"\0" + asset.content)
        self.fingerprint = digest.hexdigest()
        self._icons: dict[str, Markup] = {}

    @property
    def missing(self) -> str:
        """Why the pages cannot be shown; empty when they can."""
        if all(path in self._files for path in NEEDED):
            return ""
        try:
            return (self._folder / "vendor.why").read_text(encoding="utf-8").strip()
        except OSError:
            return "they were not brought when this hub was installed"

    def url(self, path: str) -> str:
        return f"/static/{self.fingerprint}/{path}"

    def icon(self, name: str) -> Markup:
        """An outline icon to stand in a page; it says nothing to a screen reader, so a word must stand beside it."""
        made = self._icons.get(name)
        if made is None:
            text = self._files[f"{VENDOR}/icons/{name}.svg"].content.decode()
            body = " ".join(text[text.index(">") + 1 : text.rindex("</svg>")].split())
            made = self._icons[name] = Markup(
                '<svg class="icon" viewBox="0 0 24 24" fill="none" stroke="currentColor" stroke-width="1.75" '
                f'stroke-linecap="round" stroke-linejoin="round" aria-hidden="true" focusable="false">{body}</svg>'
            )
        return made

    def weight(self, path: str) -> int:
        """Bytes on the wire."""
        asset = self._files[path]
        return len(asset.squeezed or asset.content)

    def answer(self, request: Request, fingerprint: str, path: str) -> Response:
        asset = self._files.get(path)
        if asset is None:
            return PlainTextResponse("there is no such file", 404)
        # A page from before an upgrade asks for what was; it gets what is, but keeps it for no other page.
        headers = {
            "cache-control": FOREVER if fingerprint == self.fingerprint else "no-store",
            "vary": "accept-encoding",
        }
        content = asset.content
        if asset.squeezed is not None and "gzip" in request.headers.get("accept-encoding", ""):
            content, headers["content-encoding"] = asset.squeezed, "gzip"
        return Response(content, media_type=asset.kind, headers=headers)


class NoPages:
    """Middleware of a hub that has no assets: programs are answered, people are told what to do."""

    def __init__(self, app: ASGIApp, why: str) -> None:
        self._app = app
        self._why = why

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(("/api/", "/healthz", "/metrics", "/live")):
            await self._app(scope, receive, send)
            return
        page = HTMLResponse(_NO_PAGES.format(why=escape(self._why)), 503, {"cache-control": "no-store"})
        await page(scope, receive, send)


_NO_PAGES = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>edgehub has no dashboard</title>
<h1>This hub was installed without its dashboard's files</h1>
<p>Why: {why}.</p>
<p>Devices, <code>edgehub</code> and the API work. For the pages: where it was installed from a checkout, install npm
and run <code>python tools/vendor.py</code>; else install it anew, with npm at hand and
<code>EDGEHUB_ASSETS=require</code>, or from a wheel that has them. Then restart <code>edgehub serve</code>.</p>
</html>
"""


def _read(folder: Path) -> list[tuple[str, Asset]]:
    found = []
    for path in sorted(folder.rglob("*")):
        kind = TYPES.get(path.suffix)
        if kind is None or not path.is_file():
            continue
        content, beside = path.read_bytes(), path.with_name(f"{path.name}.gz")
        squeezed = None
        if path.suffix != ".woff2":
            squeezed = beside.read_bytes() if beside.is_file() else gzip.compress(content, 6, mtime=0)
        found.append((path.relative_to(folder).as_posix(), Asset(content, squeezed, kind)))
    return found
