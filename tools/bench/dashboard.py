"""The dashboard over 10,000 devices: the web process that `edgehub serve` runs, asked over loopback by one client."""

from __future__ import annotations

import gzip
import http.cookiejar
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from hub.setup import Owner, initialise
from hub.state import State
from hub.store import websettings
from hub.store.sqlite import SqliteStore
from tests.hub.rig import free_port
from tools.bench.figures import Figure, bench
from tools.bench.fleet import populate
from tools.bench.hub import rss_mib

DEVICES = 10_000
TIMES = 9
PAGE_MS_MAX, TABLE_MS_MAX, LOAD_KB_MAX = 300.0, 100.0, 400.0
READY_S = 30.0
PASSWORD = "correct horse battery staple"
NO_PEER = "no other hub is installed here"
PAGES = (
    ("overview", "/", PAGE_MS_MAX),
    ("devices", "/devices", PAGE_MS_MAX),
    ("devices filtered by name and state", "/devices?q=name:d99+state:active", TABLE_MS_MAX),
    ("devices filtered by tag", "/devices?q=tag:camera", TABLE_MS_MAX),
)


@bench
def dashboard(say: Callable[[str], None]) -> Iterator[Figure]:
    """Pages of a network of 10,000 devices, and what a browser loads the first time."""
    with tempfile.TemporaryDirectory(prefix="edgemesh-dash-") as folder:
        state = State(Path(folder, "hub"))
        say(f"{DEVICES:,} devices")
        initialise(
            state, domain="mesh.test", listen="127.0.0.1:8883", addresses=["127.0.0.1"], owner=Owner("olga", PASSWORD)
        )
        populate(SqliteStore(state.database), DEVICES)
        port = free_port()
        with closing(SqliteStore(state.database)) as store, store.write() as tx:
            websettings.save(tx.connection, websettings.WebSettings(listen=f"127.0.0.1:{port}"))
        web = subprocess.Popen([sys.executable, "-m", "hub.web", str(state.directory)], stdin=subprocess.PIPE)
        try:
            browser = Browser(f"http://127.0.0.1:{port}")
            browser.wait()
            browser.sign_in()
            for name, path, most in PAGES:
                say(name)
                browser.get(path)
                took = [browser.timed_ms(path) for _ in range(TIMES)]
                yield Figure(f"{name}, median of {TIMES}", statistics.median(took), "ms", peer=NO_PEER, at_most=most)
            yield Figure("first load, gzip", browser.first_load_kb("/"), "KB", peer=NO_PEER, at_most=LOAD_KB_MAX)
            yield Figure("web process, RSS", rss_mib(web.pid), "MiB", peer=NO_PEER)
        finally:
            web.terminate()
            web.wait(15)


class Browser:
    def __init__(self, origin: str) -> None:
        self._origin = origin
        self._opener = urllib.request.build_opener(
            urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()), urllib.request.ProxyHandler({})
        )

    def wait(self) -> None:
        deadline = time.monotonic() + READY_S
        while True:
            try:
                self.get("/login")
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def sign_in(self) -> None:
        form = urllib.parse.urlencode({"login": "olga", "password": PASSWORD}).encode()
        request = urllib.request.Request(self._origin + "/login", form, {"Origin": self._origin})
        with self._opener.open(request) as answer:
            if answer.url.endswith("/login"):
                raise RuntimeError("the dashboard does not let the owner in")

    def get(self, path: str, *, packed: bool = False) -> bytes:
        headers = {"Accept-Encoding": "gzip"} if packed else {}
        with self._opener.open(urllib.request.Request(self._origin + path, headers=headers)) as answer:
            body: bytes = answer.read()
            if packed and answer.headers.get("Content-Encoding") != "gzip":
                return gzip.compress(body) if path.endswith((".html", "/")) else body
            return body

    def timed_ms(self, path: str) -> float:
        began = time.perf_counter()
        self.get(path)
        return (time.perf_counter() - began) * 1000

    def first_load_kb(self, path: str) -> float:
        """The page and all scripts, styles and pictures that it names."""
        page = self.get(path).decode()
        files = set(re.findall(r'(?:src|href)="(/static/[^"]+)"', page))
        return sum(len(self.get(file, packed=True)) for file in (path, *sorted(files))) / 1000
