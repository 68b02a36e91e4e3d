"""A rig whose devices join a hub that is there: tokens and devices by the hub's real API."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn

from edgeagent import crypto
from edgeagent.proto.token import Token
from flash.hubapi import Hub, Refused
from hil import report_upload
from hil.errors import HilError, NotReached, UploadFailed
from hil.rigs.hubs import RemoteHub
from hub.store.websettings import WebSettings
from tests.hil import report_kit
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


def test_a_hub_that_is_there_gives_tokens_and_lists_devices(tmp_path: Path, site: Site, port: int) -> None:
    secret, file = site.token("olga", "tokens:write", "devices:read"), tmp_path / "api"
    file.write_text(secret + "\n")
    hub = RemoteHub(f"http://127.0.0.1:{port}", file)
    token = Token.decode(crypto.load(), hub.token())
    assert token.uses == 1 and token.not_after > 0
    listed = hub.devices()
    assert all(device["name"] == name for name, device in listed.items())
    file.write_text(site.token("olga", "tokens:read"))
    with pytest.raises(NotReached, match=r"/api/v1/tokens: 403: .*scope") as failed:
        RemoteHub(f"http://127.0.0.1:{port}", file).token()
    assert secret not in str(failed.value)


def test_what_is_no_hub_is_said(tmp_path: Path, port: int) -> None:
    file = tmp_path / "api"
    file.write_text("em_something")
    with pytest.raises(NotReached, match=r"Connection refused. Is the hub's dashboard there"):
        RemoteHub(f"http://127.0.0.1:{port}", file).devices()
    with pytest.raises(HilError, match="over https only"):
        RemoteHub("http://hub.example.org", file)
    with pytest.raises(HilError, match=r"want the address of the dashboard, as https://"):
        RemoteHub("https://olga:secret@hub.example.org", file)
    file.write_text("swordfish")
    with pytest.raises(HilError, match="is no API token") as failed:
        RemoteHub("https://hub.example.org", file)
    assert "swordfish" not in str(failed.value)
    with pytest.raises(HilError, match="No such file"):
        RemoteHub("https://hub.example.org", tmp_path / "none")


def test_a_report_is_told_to_a_hub_once(tmp_path: Path, site: Site, port: int) -> None:
    token, told = site.token("olga", "rigs:write"), report_kit.told()
    first, second = (
        report_upload.upload(told, tmp_path, f"http://127.0.0.1:{port}/", "bench-1", token) for _ in range(2)
    )
    assert (first.number, first.new, second.number, second.new) == (1, True, 1, False)
    assert first.url == f"http://127.0.0.1:{port}/rigs/bench-1/1"
    with pytest.raises(UploadFailed, match=r"403: .*scope"):
        report_upload.upload(told, tmp_path, f"http://127.0.0.1:{port}", "bench-1", site.token("olga", "tokens:read"))


def test_no_redirect_takes_the_token_along(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nor does a proxy get it, of what is not encrypted
    asked = []
    with socket.create_server(("127.0.0.1", port)) as server:

        def answer() -> None:
            other, _ = server.accept()
            with other:
                asked.append(other.recv(65_536))
                other.sendall(
                    f"HTTP/1.1 307 Go\r\nLocation: http://127.0.0.1:{port}/x\r\nContent-Length: 0\r\n\r\n".encode()
                )

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(Refused, match="307: Go"):
            Hub(f"http://127.0.0.1:{port}", "em_secret").create_token([], 60)
        thread.join()
        server.settimeout(0.0)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert len(asked) == 1 and b"Bearer em_secret" in asked[0]
