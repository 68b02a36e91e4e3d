"""Web hooks: told by a real server's word, signed, tried again, and never sent where they must not go."""

from __future__ import annotations

import hmac
import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from hub import operations
from hub.core import events
from hub.core.events import TRIES_MAX, Delivery, Webhook, retry_after_s
from hub.core.model import DeviceState
from hub.io.fetch import FetchError, fetch, is_public
from hub.operations import Doing
from hub.store import hooks
from hub.store.websettings import WebSettings
from hub.web.deliveries import Courier, post, sign
from tests.hub.kit import Dev, Hub, load_crypto
from tests.hub.web.kit import Site


class Receiver:
    """A server that somebody hangs on the other end."""

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.statuses: list[int] = []
        self.heard = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.got.append((dict(self.headers), body))
                status = receiver.statuses.pop(0) if receiver.statuses else 204
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()
                receiver.heard.set()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/hooks/s3cret-path"

    def stop(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.stop()


@pytest.fixture
def near(tmp_path: Path) -> Site:
    """Its hooks may go to private addresses; its application does not run, so nobody delivers but the test."""
    return Site(tmp_path / "hub", WebSettings(private_hooks=True))


def add_hook(site: Site, url: str, *wanted: str) -> dict[str, Any]:
    program = site.program(site.token("olga", "webhooks:write"))
    made = program.post("/api/v1/webhooks", json={"url": url, "events": list(wanted)})
    assert made.status_code == 201, made.text
    site.secrets.append(made.json()["secret"])
    found: dict[str, Any] = made.json()
    return found


def courier(site: Site) -> Courier:
    return Courier(site.app.state.backend)


def hook_of(site: Site) -> Webhook:
    with site.write() as tx:
        [hook] = hooks.all_(tx.connection)
    return hook


def test_what_happens_is_told_and_signed(near: Site, receiver: Receiver) -> None:
    made = add_hook(near, receiver.url, "device.removed")
    device = near.add_device(1)
    near.program(near.token("olga", "devices:write")).delete("/api/v1/devices/box-1")
    assert courier(near).work() is False
    [(headers, body)] = receiver.got
    assert json.loads(body) | {"time": 0} == {
        "event": "device.removed",
        "time": 0,
        "device": device.id,
        "name": "box-1",
    }
    stamp = headers["X-Edgehub-Signature"].split(",")[0].removeprefix("t=")
    expected = hmac.new(made["secret"].encode(), f"{stamp}.".encode() + body, "sha256").hexdigest()
    assert headers["X-Edgehub-Signature"] == f"t={stamp},v1={expected}"
    assert sign(made["secret"], int(stamp), body) == expected
    assert hook_of(near).last_result == "status 204"
    assert courier(near).work() is False and len(receiver.got) == 1


def test_the_running_application_tells_it_soon(tmp_path: Path, receiver: Receiver) -> None:
    site = Site(tmp_path / "hub", WebSettings(private_hooks=True))
    with site.running():
        made = add_hook(site, receiver.url, "device.joined")
        program = site.program(site.token("olga", "webhooks:write"))
        assert program.post(f"/api/v1/webhooks/{made['id']}/test").status_code == 202
        assert receiver.heard.wait(10)
    assert json.loads(receiver.got[0][1])["event"] == "test"


def test_what_the_coordinator_sees_is_told(near: Site, receiver: Receiver) -> None:
    add_hook(near, receiver.url, "device.joined", "device.online", "device.offline", "device.waiting")
    from contextlib import closing

    from hub.database import open_database

    with closing(open_database(near.state)) as store:
        with store.read() as tx:
            network = tx.network()
        hub = Hub(store, load_crypto(), network)
        hub.wall_s = int(time.time())
        device = Dev(hub, 1, hub.token())
        hub.hear(device.join())
        device.read(hub.sent())
        hub.hear(device.birth())
        hub.hear(device.birth())
        hub.hear(device.write("state", {"up": False}))
        waiting = Dev(hub, 2, hub.token(needs_approval=True), name="late")
        hub.hear(waiting.join())
        with store.write() as tx:
            [pending] = tx.devices(state=DeviceState.PENDING)
            operations.approve(Doing(tx, hub.scribe, hub.wall_s, "cli:test"), pending)
    while courier(near).work():
        pass
    said = [(json.loads(body)["event"], json.loads(body)["name"]) for _, body in receiver.got]
    assert said == [
        ("device.joined", "box"),
        ("device.online", "box"),
        ("device.offline", "box"),
        ("device.waiting", "late"),
        ("device.joined", "late"),
    ]


def test_what_fails_is_tried_again_and_then_given_up(near: Site, receiver: Receiver) -> None:
    add_hook(near, receiver.url, "test")
    hook = hook_of(near)
    receiver.statuses = [500] * TRIES_MAX
    with near.write() as tx:
        hooks.emit(tx.connection, "test", 0, {})
    wall_s, waits = 0, []
    for _ in range(TRIES_MAX):
        with near.write() as tx:
            [item] = hooks.take_due(tx.connection, wall_s, 60, 10)
            assert hooks.take_due(tx.connection, wall_s, 60, 10) == []  # another process leaves it alone
        ok, result = post(hook, item, private=True)
        assert (ok, result) == (False, "status 500")
        with near.write() as tx:
            hooks.failed(tx.connection, item, wall_s, result)
        waits.append(retry_after_s(item.tries + 1))
        wall_s += waits[-1]
    assert waits[:4] == [10, 20, 40, 80] and max(waits) <= events.LAST_RETRY_S
    assert hook_of(near).last_result == "given up: status 500"
    with near.write() as tx:
        assert hooks.waiting(tx.connection) == 0


def test_a_redirect_is_not_followed(near: Site, receiver: Receiver) -> None:
    add_hook(near, receiver.url, "test")
    receiver.statuses = [302]
    ok, result = post(hook_of(near), Delivery(1, "h", "test", "{}", 0, 0), private=True)
    assert (ok, result) == (False, "status 302") and len(receiver.got) == 1


def test_private_addresses_are_refused_unless_allowed(near: Site, receiver: Receiver) -> None:
    add_hook(near, receiver.url, "test")
    item = Delivery(1, "h", "test", "{}", 0, 0)
    for url in (receiver.url, receiver.url.replace("http:", "https:")):
        hook = hook_of(near)
        hook.url = url
        ok, result = post(hook, item, private=False)
        assert not ok and "private" in result and "s3cret" not in result
    assert receiver.got == []


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "192.168.1.1",
        "172.16.0.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fd00::1",
        "fe80::1%eth0",
        "ff02::1",
        "::ffff:127.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "2001:db8::1",
    ],
)
def test_addresses_that_are_not_of_the_internet(address: str) -> None:
    assert not is_public(address)


def test_addresses_of_the_internet() -> None:
    assert is_public("9.9.9.9") and is_public("2620:fe::fe") and is_public("::ffff:9.9.9.9")


def test_a_name_with_one_private_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(*_: Any, **__: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 443)) for address in ("9.9.9.9", "10.0.0.1")]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(FetchError, match="private"):
        fetch("GET", "https://rebinding.test/")


@pytest.mark.parametrize(
    "url",
    [
        "ftp://x.test/",
        "https://",
        "https://user:pass@x.test/",
        "javascript:alert(1)",
        "https://x.test/ y",
        "https://x.test\\@evil.test/",
        "http://x.test\r\nHost: y/",
        "https://x.test/" + "a" * 1_000,
    ],
)
def test_addresses_that_are_no_hooks(near: Site, url: str) -> None:
    program = near.program(near.token("olga", "webhooks:write"))
    assert program.post("/api/v1/webhooks", json={"url": url, "events": ["test"]}).status_code in (400, 422)


def test_events_that_are_none(near: Site) -> None:
    program = near.program(near.token("olga", "webhooks:write"))
    for wanted in ([], ["device.exploded"]):
        answer = program.post("/api/v1/webhooks", json={"url": "https://x.test/", "events": wanted})
        assert answer.status_code == 400


def test_a_slow_server_and_a_long_answer() -> None:
    def serve(server: socket.socket, long: bool) -> None:
        peer, _ = server.accept()
        with peer:
            peer.recv(4_096)
            peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n")
            try:
                while True:
                    peer.sendall(b"x" * (65_536 if long else 1))
                    stop.wait(0 if long else 0.05)
                    if stop.is_set() and not long:
                        return
            except OSError:
                return

    for long, said in ((True, "more than"), (False, "took too long")):
        stop = threading.Event()
        with socket.create_server(("127.0.0.1", 0)) as server:
            thread = threading.Thread(target=serve, args=(server, long))
            thread.start()
            url = f"http://127.0.0.1:{server.getsockname()[1]}/"
            with pytest.raises(FetchError, match=said):
                fetch("GET", url, private=True, answer_max=10_000 if long else 1 << 20, timeout_s=0.5)
            stop.set()
            thread.join()


def test_hooks_are_few_and_the_outbox_is_bounded(near: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "DELIVERIES_MAX", 3)
    told_of = add_hook(near, "https://x.test/", "test")["id"]
    with near.write() as tx:
        told = [hooks.emit(tx.connection, "test", 0, {}) for _ in range(5)]
    assert told == [1, 1, 1, 0, 0]
    program = near.program(near.token("olga", "webhooks:write", "webhooks:read"))
    for number in range(events.HOOKS_MAX - 1):
        body = {"url": f"https://x.test/{number}", "events": ["test"]}
        assert program.post("/api/v1/webhooks", json=body).status_code == 201
    assert program.post("/api/v1/webhooks", json=body).status_code == 400
    [first, *_] = program.get("/api/v1/webhooks").json()
    assert "secret" not in first
    assert program.delete(f"/api/v1/webhooks/{told_of}").status_code == 204
    with near.write() as tx:
        assert hooks.waiting(tx.connection) == 0
