"""`edgeflash batch --hub` against the hub's real dashboard: a token for each unit, and only with the scope."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn

from edgeagent import crypto
from edgeagent.proto.token import Token
from hub.store.websettings import WebSettings
from tests.flash.kit import cat
from tests.flash.test_batch import run
from tests.flash.test_image import joins_with
from tests.hub.rig import free_port
from tests.hub.web.kit import Site
from tests.hub.web.test_process import wait_until


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def site(tmp_path: Path, port: int) -> Iterator[Site]:
    """Behind its real server."""
    site = Site(tmp_path / "hub", WebSettings(listen=f"127.0.0.1:{port}"))
    server = uvicorn.Server(uvicorn.Config(site.app, port=port, lifespan="off", log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_until(lambda: server.started, "the server")
    yield site
    server.should_exit = True
    thread.join()


def test_the_hub_makes_a_token_for_each_unit(
    tmp_path: Path, site: Site, port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    secret, out = site.token("olga", "tokens:write"), tmp_path / "out"
    (tmp_path / "api").write_text(secret + "\n")
    more = ["--hub", f"http://127.0.0.1:{port}", "--api-token-file", str(tmp_path / "api"), "--out", str(out)]
    assert run(tmp_path, "name,tags\nu1,camera\nu2,\n", *more) == 0
    tokens = [
        Token.decode(crypto.load(), joins_with(tmp_path, cat(out / f"{name}.img", "/var/lib/edgeagent/token")))
        for name in ("u1", "u2")
    ]
    assert [token.tags for token in tokens] == [["tag:camera"], []] and [token.uses for token in tokens] == [1, 1]
    with site.write() as tx:
        known = {token.claim: token for token in tx.tokens(after="", limit=10)}
    assert {token.claim for token in tokens} <= set(known)
    shown = capsys.readouterr()
    assert secret not in shown.out + shown.err + (out / "report.json").read_text()
    (tmp_path / "api").write_text(site.token("olga", "tokens:read"))
    assert run(tmp_path, "name\nu3\n", *more) == 1
    assert "scope" in capsys.readouterr().err
