"""The local API against clients that are slow, rude, too many, or somebody else."""

from __future__ import annotations

import errno
import json
import os
import selectors
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeagent.io import localapi
from edgeagent.io.localapi import CLIENTS_MAX, REQUEST_BYTES_MAX, Client, LocalApi
from edgeagent.io.localclient import LocalClient, LocalError, connect


class Server:
    """A LocalApi whose handler echoes: `echo` answers, `wait` keeps the client in `waiting`, `big` answers a lot."""

    def __init__(self, path: str) -> None:
        self.selector = selectors.DefaultSelector()
        self.waiting: list[Client] = []
        self.api = LocalApi(path, self._handle, self.selector)
        self.api.open()

    def _handle(self, now: float, client: Client, verb: str, request: dict[str, Any]) -> None:
        if verb == "wait":
            client.progress(text="wait")
            self.waiting.append(client)
        elif verb == "big":
            client.answer("x" * request["size"])
        else:
            client.answer(request)

    def turn(self, timeout_s: float = 0.0) -> bool:
        ready = self.selector.select(timeout_s)
        for key, _ in ready:
            key.data(time.monotonic(), key.fd)
        return bool(ready)

    def settle(self) -> None:
        while self.turn():
            pass

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(10)
        sock.connect(self.api.path)
        return sock

    def talk(self, data: bytes) -> bytes:
        """What the API says to `data`, and to the end of the sending side after it."""
        with self.connect() as sock:
            self.settle()
            try:
                sock.sendall(data)
                self.settle()
                sock.shutdown(socket.SHUT_WR)
            except OSError:  # it has hung up
                pass
            self.settle()
            said = b""
            try:
                while chunk := sock.recv(65_536):
                    said += chunk
            except ConnectionResetError:
                pass
            return said

    def close(self) -> None:
        self.api.close()
        assert not self.selector.get_map()
        self.selector.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(str(tmp_path / "run" / "agent.sock"))
    yield server
    server.close()


@pytest.fixture(scope="module")
def long_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(str(tmp_path_factory.mktemp("api") / "agent.sock"))
    yield server
    server.close()


def ask(server: Server, request: Any) -> Any:
    return json.loads(server.talk(json.dumps(request).encode() + b"\n"))


def test_request_and_answer(server: Server) -> None:
    assert ask(server, {"do": "echo", "x": 1}) == {"ok": True, "result": {"do": "echo", "x": 1}}
    assert stat.S_IMODE(os.stat(server.api.path).st_mode) == 0o600


def test_a_request_in_pieces(server: Server) -> None:
    with server.connect() as sock:
        for byte in b'{"do":"echo"}\n':
            sock.sendall(bytes([byte]))
            server.settle()
        assert json.loads(sock.recv(4096)) == {"ok": True, "result": {"do": "echo"}}
        assert sock.recv(4096) == b""


def test_progress_then_the_answer(server: Server) -> None:
    with server.connect() as sock:
        sock.sendall(b'{"do":"wait"}\n')
        server.settle()
        assert json.loads(sock.recv(4096)) == {"progress": {"text": "wait"}}
        server.waiting.pop().refuse("refused", "no")
        assert json.loads(sock.recv(4096)) == {"ok": False, "code": "refused", "error": "no"}


def test_a_client_that_leaves_while_it_waits(server: Server) -> None:
    with server.connect() as sock:
        sock.sendall(b'{"do":"wait"}\n')
        server.settle()
    server.settle()
    client = server.waiting.pop()
    assert not client.is_open
    client.answer("to nobody")


@given(data=st.binary(max_size=300))
def test_any_bytes(long_server: Server, data: bytes) -> None:
    for line in long_server.talk(data + b"\n").splitlines():
        assert json.loads(line)["ok"] in (True, False)
    assert ask(long_server, {"do": "echo"})["ok"]


@given(
    request=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["do", "x"]), inner, max_size=2),
        max_leaves=10,
    )
)
def test_any_json(long_server: Server, request: Any) -> None:
    if isinstance(request, dict) and request.get("do") in ("wait", "big"):
        return
    answer = ask(long_server, request)
    sound = isinstance(request, dict) and isinstance(request.get("do"), str)
    assert answer["ok"] is sound
    if not sound:
        assert answer["code"] == "usage"


@pytest.mark.parametrize(
    "line",
    [
        b"[" * 10_000,
        b'{"do":' * 2_000,
        b"9" * 10_000,
        b'{"do": "echo", "x": NaN',
        b"\xff\xfe",
        b"null",
        b'{"do": 5}',
        b'"do"',
        b"",
    ],
)
def test_what_is_no_request(server: Server, line: bytes) -> None:
    before = server.api.malformed
    answer = json.loads(server.talk(line + b"\n"))
    assert answer["code"] == "usage"
    assert server.api.malformed == before + 1


def test_a_request_without_end(server: Server) -> None:
    answer = json.loads(server.talk(b"x" * (3 * REQUEST_BYTES_MAX)))
    assert answer["code"] == "usage" and str(REQUEST_BYTES_MAX) in answer["error"]


def test_too_many_clients(server: Server) -> None:
    clients = [server.connect() for _ in range(CLIENTS_MAX)]
    server.settle()
    assert server.talk(b'{"do":"echo"}\n') == b""
    assert server.api.refused == 1
    for client in clients:
        client.close()
    server.settle()
    assert ask(server, {"do": "echo"})["ok"]


def test_without_descriptors_who_knocks_waits_and_nobody_spins(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*args: Any) -> Any:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with server.connect() as sock:
        with monkeypatch.context() as patch:
            patch.setattr(socket.socket, "accept", none_left)
            assert server.turn() and not server.turn()
        due = server.api.poll_timeout()
        assert due is not None
        server.api.on_timeout(due)
        sock.sendall(b'{"do": "echo"}\n')
        server.settle()
        assert json.loads(sock.recv(65_536))["ok"]
    with server.connect(), monkeypatch.context() as patch:
        patch.setattr(socket.socket, "accept", none_left)
        server.turn()
    server.api.stop_listening()  # also while nobody is listened to


def test_a_client_that_says_nothing(server: Server) -> None:
    with server.connect() as sock:
        server.settle()
        due = server.api.poll_timeout()
        assert due is not None and due <= time.monotonic() + localapi.TRANSFER_TIMEOUT_S
        sock.sendall(b"{")
        server.settle()
        assert server.api.poll_timeout() == due  # a byte now and then buys no time
        server.api.on_timeout(due)
        assert sock.recv(1) == b""
    assert server.api.poll_timeout() is None


def test_a_client_that_does_not_read(server: Server) -> None:
    with server.connect() as sock:
        sock.sendall(b'{"do":"big","size":900000}\n')
        server.settle()
        due = server.api.poll_timeout()
        assert due is not None and due <= time.monotonic() + localapi.TRANSFER_TIMEOUT_S
        server.api.on_timeout(due)
        server.settle()
    with server.connect() as sock:
        sock.sendall(b'{"do":"big","size":5000000}\n')
        server.settle()
        assert server.api.poll_timeout() is None  # more than may be kept for it


def test_a_large_answer_to_a_client_that_reads(server: Server) -> None:
    with server.connect() as sock:
        sock.sendall(b'{"do":"big","size":900000}\n')
        server.settle()
        said = b""
        while True:
            chunk = sock.recv(65_536)
            said += chunk
            if not chunk:
                break
            server.settle()
    assert len(json.loads(said)["result"]) == 900_000


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user takes root")
def test_another_user_is_turned_away(server: Server) -> None:
    os.chmod(server.api.path, 0o666)
    for parent in Path(server.api.path).parents:  # pytest's own directories are for root alone
        if not parent.stat().st_mode & 0o001:
            os.chmod(parent, 0o711)
    child = os.fork()
    if child == 0:
        said = b"nothing"
        try:
            os.setuid(65_534)
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(10)
            sock.connect(server.api.path)
            said = sock.recv(1)
        finally:  # whatever happens, the child must not go on as a second test runner
            os._exit(0 if said == b"" else 1)
    server.turn(10.0)
    assert os.waitpid(child, 0)[1] == 0
    assert server.api.refused == 1


def test_a_dead_daemons_socket_is_replaced_and_a_living_ones_is_not(tmp_path: Path) -> None:
    path = str(tmp_path / "agent.sock")
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(path)
    dead.close()
    server = Server(path)
    with pytest.raises(FileExistsError):
        Server(path)
    server.close()
    assert not os.path.exists(path)


def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    path.write_text("precious")
    with pytest.raises(FileExistsError):
        Server(str(path))
    assert path.read_text() == "precious"


@given(
    lines=st.lists(
        st.sampled_from([b"5", b"null", b"[]", b"{}", b'{"progress":{}}', b'{"progress":1}', b'{"ok":true}'])
        | st.binary(max_size=40).map(lambda data: data.replace(b"\n", b"")),
        max_size=5,
    )
)
def test_the_command_bears_any_answer(lines: list[bytes]) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(b"".join(line + b"\n" for line in lines))
        theirs.shutdown(socket.SHUT_WR)
        try:
            LocalClient(ours, 10.0).ask({"do": "echo"})
        except LocalError as error:
            assert error.code in ("closed", "failed")


def test_nobody_there(tmp_path: Path) -> None:
    assert connect(str(tmp_path / "none.sock"), 1.0) is None
