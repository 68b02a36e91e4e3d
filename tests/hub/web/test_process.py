"""The real processes: a hub with its dashboard beside it, ends of each, and clients that are slow or broken."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn

from hub.setup import Owner, initialise
from hub.state import State
from hub.store import websettings
from hub.store.sqlite import SqliteStore
from hub.web import guard, protocol
from tests.hub.rig import free_port
from tests.hub.web.kit import PASSWORD, Site

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[3]
DEADLINE_S = 120.0  # two processes load much, and a machine may be busy


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE_S} s: {what}"
        time.sleep(0.05)


class Serving:
    """`edgehub serve` with its dashboard."""

    def __init__(self, directory: Path) -> None:
        self.state = State(directory / "hub")
        self.port = free_port()
        broker = f"127.0.0.1:{free_port()}"
        initialise(
            self.state, domain="mesh.test", listen=broker, addresses=["127.0.0.1"], owner=Owner("olga", PASSWORD)
        )
        self.listen(self.port)
        self.log = directory / "serve.log"
        self.process: subprocess.Popen[bytes] | None = None

    def listen(self, port: int) -> None:
        with closing(SqliteStore(self.state.database)) as store, store.write() as tx:
            settings = websettings.load(tx.connection)
            websettings.save(tx.connection, replace(settings, listen=f"127.0.0.1:{port}"))
        self.port = port

    def start(self) -> None:
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "hub", "--state-dir", str(self.state.directory), "serve"]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)
        wait_until(self.answers, f"the dashboard; {self.log}")

    def answers(self) -> bool:
        try:
            return httpx2.get(f"http://127.0.0.1:{self.port}/healthz").status_code == 200
        except httpx2.TransportError:
            return False

    def web_pid(self) -> int:
        return int(self.state.read_status().get("web_pid") or 0)

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            assert self.process.wait() == 0, self.log.read_text()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """One for all, because it takes seconds to start; those that end it come last."""
    made = Serving(tmp_path_factory.mktemp("serving"))
    try:
        yield made
    finally:
        if made.process is not None and made.process.poll() is None:
            made.stop()


@pytest.fixture
def serving(shared: Serving) -> Serving:
    if shared.process is None or shared.process.poll() is not None:
        shared.start()
    wait_until(shared.answers, "the dashboard")
    return shared


def ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_another_port_has_effect_at_once(serving: Serving) -> None:
    before, after = serving.port, free_port()
    command = [sys.executable, "-m", "hub", "--state-dir", str(serving.state.directory), "web", "set"]
    subprocess.run([*command, "--listen", f"127.0.0.1:{after}"], check=True, cwd=ROOT)
    serving.port = after
    wait_until(serving.answers, "the other port")
    serving.port = before
    assert not serving.answers()
    serving.port = after


def test_without_it(tmp_path: Path) -> None:
    serving = Serving(tmp_path)
    with serving.log.open("ab") as log:
        command = [sys.executable, "-m", "hub", "--state-dir", str(serving.state.directory), "serve", "--no-web"]
        serving.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)
    wait_until(lambda: serving.state.read_status().get("connected") is True, "the hub")
    assert serving.state.read_status()["web_pid"] is None and not serving.answers()
    serving.stop()


def test_a_whole_session_leaves_no_secret_in_logs_and_command_lines(serving: Serving) -> None:
    base = f"http://127.0.0.1:{serving.port}"
    with httpx2.Client(base_url=base, headers={"Origin": base}) as client:
        assert client.post("/login", data={"login": "olga", "password": "not the right one"}).status_code == 403
        assert client.post("/login", data={"login": "olga", "password": PASSWORD}).status_code == 303
        cookie = client.cookies["edgehub"]
        csrf = client.get("/").text.partition('name="csrf-token" content="')[2].partition('"')[0]
        body = {"name": "t", "scopes": ["devices:read", "metrics:read"]}
        made = client.post("/api/v1/api-tokens", json=body, headers={"X-CSRF-Token": csrf}).json()
        header = {"Authorization": f"Bearer {made['token']}"}
        assert httpx2.get(f"{base}/api/v1/devices", headers=header).json()["total"] == 0
        assert httpx2.get(f"{base}/login/oidc/callback?code=very-secret-code&state=x").status_code == 404
        assert "edgehub_up 1.0" in httpx2.get(f"{base}/metrics").text
        forwarded = {"X-Forwarded-For": "192.0.2.1"}
        assert httpx2.get(f"{base}/metrics", headers=forwarded).status_code == 401
        assert httpx2.get(f"{base}/metrics", headers={**forwarded, **header}).status_code == 200
    said = serving.log.read_text() + str(serving.state.read_status())
    assert serving.process is not None
    for pid in (serving.process.pid, serving.web_pid()):
        for file in ("cmdline", "environ"):
            said += Path(f"/proc/{pid}/{file}").read_bytes().decode(errors="replace")
    for secret in (PASSWORD, "not the right one", cookie, csrf, made["token"][16:], "very-secret-code"):
        assert secret not in said
    assert Path(f"/proc/{serving.web_pid()}/cmdline").read_bytes().split(b"\0")[1:3] == [b"-m", b"hub.web"]


# slow and broken clients


@pytest.fixture
def port(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The application behind its real server, with time limits that a test can wait for."""
    monkeypatch.setattr(protocol, "HEAD_S", 0.3)
    monkeypatch.setattr(guard, "BODY_S", 0.3)
    config = uvicorn.Config(
        site.app, port=0, http=protocol.PatientProtocol, lifespan="off", log_level="critical", timeout_keep_alive=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_until(lambda: server.started, "the server")
    port: int = server.servers[0].sockets[0].getsockname()[1]
    yield port
    server.should_exit = True
    thread.join()


def closed(peer: socket.socket) -> bytes:
    """What came until the other side closed."""
    peer.settimeout(20)
    got = b""
    try:
        while data := peer.recv(4_096):
            got += data
    except ConnectionError:
        pass
    return got


REQUEST = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:8480\r\n"
POST = b"POST /login HTTP/1.1\r\nHost: 127.0.0.1:8480\r\nOrigin: http://127.0.0.1:8480\r\n"
FORM = b"Content-Type: application/x-www-form-urlencoded\r\n"


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"", b""),
        (b"GET", b""),
        (REQUEST, b""),
        (REQUEST + b"\r\n", b"HTTP/1.1 200"),  # and then nothing: the connection is not kept for ever
        (REQUEST + b"\r\n" + REQUEST, b"HTTP/1.1 200"),  # the second one never ends
        (POST + FORM + b"Content-Length: 100\r\n\r\nlogin=", b""),
        (POST + FORM + b"Transfer-Encoding: chunked\r\n\r\n5\r\nlogin\r\n", b""),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"HTTP/1.1 400"),  # TLS, where none is spoken
        (b"GET / HTTP/1.1\r\n" + b"X: " + b"y" * 100_000 + b"\r\n\r\n", b"HTTP/1.1 400"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"HTTP/1.1 400"),
        (POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n", b"HTTP/1.1 400"),
        (POST + b"Content-Length: -5\r\n\r\n", b"HTTP/1.1 400"),
        (POST + b"Content-Length: 99999999999\r\n\r\n", b"HTTP/1.1 413"),
        (b"\0" * 1_000, b""),
    ],
)
def test_slow_and_broken_clients_are_let_go(port: int, sent: bytes, said: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port)) as peer:
        peer.sendall(sent)
        got = closed(peer)
    assert got.startswith(said), got[:200]
    assert healthy(port)


def test_a_client_that_drips_is_let_go(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as peer:
        ended_by: list[Any] = []

        def drip() -> None:
            try:
                for byte in REQUEST * 100:
                    peer.sendall(bytes([byte]))
                    time.sleep(0.05)
            except OSError as error:
                ended_by.append(error)

        thread = threading.Thread(target=drip)
        thread.start()
        closed(peer)
        peer.close()
        thread.join()
        assert ended_by
    assert healthy(port)


def healthy(port: int) -> bool:
    answer = httpx2.get(f"http://127.0.0.1:{port}/healthz", headers={"Host": "127.0.0.1:8480"})
    return answer.status_code == 200


def test_events_reach_a_browser(serving: Serving) -> None:
    base = f"http://127.0.0.1:{serving.port}"
    with httpx2.Client(base_url=base, headers={"Origin": base}) as client:
        client.post("/login", data={"login": "olga", "password": PASSWORD})
        with client.stream("GET", "/live") as stream:
            lines = stream.iter_lines()
            assert next(lines) == "retry: 3000"
            command = [sys.executable, "-m", "hub", "--state-dir", str(serving.state.directory), "token", "create"]
            subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
            until: Callable[[str], bool] = "event: tokens".__eq__
            assert any(until(line) for line in lines)


def test_it_is_started_again_when_it_dies(serving: Serving) -> None:
    wait_until(lambda: serving.web_pid() > 0, "its process in the status")
    pid = serving.web_pid()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: serving.web_pid() not in (0, pid) and serving.answers(), "another one")
    assert serving.process is not None and serving.process.poll() is None


def test_it_ends_with_the_hub(serving: Serving) -> None:
    wait_until(lambda: serving.web_pid() > 0, "its process in the status")
    pid = serving.web_pid()
    serving.stop()
    assert ended(pid) and not serving.answers()


def test_it_does_not_outlive_a_hub_that_is_killed(serving: Serving) -> None:
    wait_until(lambda: serving.web_pid() > 0, "its process in the status")
    pid = serving.web_pid()
    assert serving.process is not None
    serving.process.kill()
    serving.process.wait()
    wait_until(lambda: ended(pid), "its end")
    serving.start()  # which needs the port
    serving.stop()
