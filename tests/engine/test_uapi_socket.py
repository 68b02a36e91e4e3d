from __future__ import annotations

import errno
import os
import selectors
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeagent.io.uapi_socket import CLIENTS_MAX, UapiSocket, UapiSocketInUse, listen
from tests.engine.owner import Owner
from tests.netlab import until

PEER = "b85996fecc9c7f1fc6d2572a76eda11d59bcd20be8e543b15ce4bd85a8e75a33"


class Server:
    """A UapiSocket whose loop the test turns."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "wg0.sock"
        self.owner = Owner()
        self.selector = selectors.DefaultSelector()
        self.uapi = UapiSocket(listen("wg0", str(directory)), self.owner, self.selector)
        self.now = 0.0

    def turn(self) -> bool:
        self.now += 1.0
        ready = self.selector.select(0)
        for key, _ in ready:
            key.data(self.now, key.fd)
        return bool(ready)

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(self.path))
        client.setblocking(False)
        self.turn()
        return client

    def answer(self, client: socket.socket, operations: int = 1) -> bytes:
        """What the server says up to the end of so many operations; empty when it has hung up."""
        data = b""

        def whole() -> bool:
            nonlocal data
            self.turn()
            try:
                got = client.recv(65_536)
            except BlockingIOError:
                return False
            data += got
            return not got or data.count(b"errno=0\n\n") == operations

        until(whole, 10, "an answer")
        return data


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path)
    yield made
    made.uapi.close()
    made.selector.close()


def test_a_client_is_answered(server: Server) -> None:
    assert stat.S_IMODE(server.path.stat().st_mode) == 0o700
    with server.connect() as client:
        client.sendall(b"set=1\nlisten_port=7\n\n")
        assert server.answer(client) == b"errno=0\n\n"
        client.sendall(b"get=1\n\n")
        assert server.answer(client) == b"listen_port=7\nerrno=0\n\n"
        client.sendall(b"no=1\n\n")
        assert server.answer(client) == b""


def test_a_slow_reader_holds_nobody_up(server: Server) -> None:
    ips = "".join(f"allowed_ip=10.{i >> 8}.{i & 255}.0/24\n" for i in range(20_000))
    with server.connect() as slow, server.connect() as quick:
        slow.setblocking(True)
        text = f"set=1\npublic_key={PEER}\n{ips}\n".encode()
        for at in range(0, len(text), 16_384):
            slow.sendall(text[at : at + 16_384])
            server.turn()
        slow.setblocking(False)
        assert server.answer(slow) == b"errno=0\n\n"
        slow.sendall(b"get=1\n\n" * 3)
        while server.turn():
            pass
        quick.sendall(b"set=1\nlisten_port=7\n\n")
        assert server.answer(quick) == b"errno=0\n\n"
        told = server.answer(slow, 3)
        assert told.count(b"allowed_ip=") == 60_000


def test_the_client_longest_silent_gives_way(server: Server) -> None:
    clients = [server.connect() for _ in range(CLIENTS_MAX)]
    try:
        clients[0].sendall(b"get=1\n\n")
        assert server.answer(clients[0]) == b"errno=0\n\n"
        clients.append(server.connect())
        assert server.answer(clients[1]) == b""
        for client in (clients[0], clients[-1]):
            client.sendall(b"get=1\n\n")
            assert server.answer(client) == b"errno=0\n\n"
    finally:
        for client in clients:
            client.close()


def test_without_descriptors_who_knocks_waits_and_nobody_spins(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*args: object) -> object:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr(socket.socket, "accept", none_left)
        client = server.connect()
    with client:
        assert not server.turn()
        due = server.uapi.poll_timeout()
        assert due is not None
        server.uapi.on_timeout(due)
        client.sendall(b"get=1\n\n")
        assert server.answer(client) == b"errno=0\n\n"


def test_a_client_that_leaves_halfway_changes_nothing(server: Server) -> None:
    with server.connect() as client:
        client.sendall(b"set=1\nlisten_port=7\n")
        server.turn()
    while server.turn():
        pass
    assert server.owner.listen_port == 0
    assert len(server.selector.get_map()) == 1


def test_the_socket_is_removed_only_while_it_is_ours(server: Server, tmp_path: Path) -> None:
    assert server.uapi.is_listed()
    server.path.unlink()
    assert not server.uapi.is_listed()
    server.path.write_text("somebody else's")
    assert not server.uapi.is_listed()


def test_a_stale_socket_is_replaced_and_a_live_one_is_not(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UapiSocketInUse):
        listen("wg0", str(tmp_path))
    assert server.uapi.is_listed()
    listen("wg1", str(tmp_path)).close()
    listen("wg1", str(tmp_path)).close()
