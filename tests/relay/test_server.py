"""The TCP side over sockets that do as they are told: whatever one connection does, it harms itself alone."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import select
import socket
import ssl
from collections import deque
from collections.abc import Iterator
from typing import Any, cast

import pytest

from edgeagent.proto.relay_frames import CHALLENGE, FrameSplitter
from edgeagent.proto.relay_http import upgrade_request
from relay.connection import Call, Connection, Listener, Phase, Place
from relay.core.doorway import Doorway
from relay.core.http import UPGRADED, RequestReader, Site
from relay.server import FAULT_LOG_S, StreamServer
from tests.relay import kit
from tests.relay.kit import drops

IN, OUT, HUP = select.EPOLLIN, select.EPOLLOUT, select.EPOLLHUP
PAGE = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class Sock:
    """`recv` gives what is in `inbox`, `send` takes `room` bytes."""

    def __init__(self) -> None:
        self._pair = socket.socketpair()
        self.inbox: deque[bytes | Exception] = deque()
        self.room = 1 << 30
        self.sent = b""
        self.reads = 0
        self.closed = False

    def fileno(self) -> int:
        return self._pair[0].fileno()

    def recv(self, size: int) -> bytes:
        self.reads += 1
        if not self.inbox:
            raise ssl.SSLWantReadError
        said = self.inbox.popleft()
        if isinstance(said, Exception):
            raise said
        return said

    def send(self, data: memoryview) -> int:
        taken = min(len(data), self.room)
        if not taken:
            raise ssl.SSLWantWriteError
        self.room -= taken
        self.sent += bytes(data[:taken])
        return taken

    def close(self) -> None:
        self.closed = True
        for each in self._pair:
            each.close()


class Epoll:
    """Remembers what is watched."""

    def __init__(self) -> None:
        self.masks: dict[int, int] = {}
        self.full = False

    def register(self, fd: int, mask: int) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.masks[fd] = mask

    def modify(self, fd: int, mask: int) -> None:
        self.masks[fd] = mask

    def unregister(self, fd: int) -> None:
        del self.masks[fd]


class Bench:
    def __init__(self, calls: list[Call] | None = None) -> None:
        self.core = kit.make_core()
        self.epoll = Epoll()
        self.doorway = Doorway(self.core.shared.limits, self.core.shared.drops)
        site = Site(kit.CRYPTO, None, lambda: "")
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.server = StreamServer(self.core, self.doorway, site, cast(Any, self.epoll), tls, calls or [], lambda: 0.5)
        self.socks: list[Sock] = []

    def connect(self) -> tuple[Sock, Connection]:
        """One that has done its TLS handshake."""
        sock = Sock()
        self.socks.append(sock)
        connection = Connection(
            self.server._new_id(), cast(Any, sock), Phase.REQUEST, Listener.TLS, bytes((192, 0, 2, len(self.socks)))
        )
        connection.reader = RequestReader()
        self.doorway.enter(kit.NOW, connection.id, connection.source)
        self.server._add(connection, IN)
        return sock, connection

    def ready(self, sock: Sock, mask: int, *inbox: bytes | Exception) -> None:
        sock.inbox.extend(inbox)
        self.server.ready(kit.NOW, sock.fileno(), mask)
        self.server.flush(kit.NOW)

    def watched(self, sock: Sock) -> int:
        return self.epoll.masks[sock.fileno()]


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.server.close()


def test_bytes_after_an_answer_that_is_not_out_are_not_read(bench: Bench) -> None:
    sock, _ = bench.connect()
    sock.room = 10
    bench.ready(sock, IN, PAGE)
    assert bench.watched(sock) == OUT and bench.server.connections == 1
    bench.ready(sock, IN, b"x")  # an event from before
    assert bench.server.connections == 1 and drops(bench.core) == {}
    sock.room = 1 << 20
    bench.ready(sock, OUT)
    assert sock.closed and sock.sent.startswith(b"HTTP/1.1 200") and sock.sent.endswith(b"</html>\n")


def test_what_is_no_request_is_answered_once(bench: Bench) -> None:
    sock, connection = bench.connect()
    sock.room = 0
    for _ in range(5):
        bench.ready(sock, IN, b"\x00\r\n\r\n")
    assert drops(bench.core) == {"bad-request": 1}
    assert connection.out is not None and bytes(connection.out).count(b"HTTP/1.1 400") == 1
    bench.ready(sock, HUP)
    assert sock.closed


def test_a_stream_that_is_blocked_before_the_core_knows_it_is_blocked_then(bench: Bench) -> None:
    sock, connection = bench.connect()
    sock.room = 5
    bench.ready(sock, IN, upgrade_request("x"))
    assert bench.core.shared.streams[connection.id].queue.blocked
    sock.room = 1 << 20
    bench.ready(sock, OUT)
    assert not bench.core.shared.streams[connection.id].queue.blocked
    assert sock.sent.startswith(UPGRADED)
    [(kind, _)] = FrameSplitter().feed(sock.sent.removeprefix(UPGRADED))
    assert kind == CHALLENGE and bench.watched(sock) == IN


def test_what_is_unsent_is_counted_and_no_more_than_that_is_held(bench: Bench) -> None:
    sock, connection = bench.connect()
    bench.ready(sock, IN, upgrade_request("x"))
    shared, sock.room = bench.core.shared, 4_000
    shared.write_packet(shared.streams[connection.id], bytes(10_000))
    bench.server.flush(kit.NOW)
    assert shared.queued_bytes == 6_000
    sock.room = 2_000
    bench.ready(sock, OUT)
    assert connection.out is not None and shared.queued_bytes == memoryview(connection.out.obj).nbytes == 4_000
    shared.write_packet(shared.streams[connection.id], bytes(700))
    assert shared.queued_bytes == 4_700
    bench.ready(sock, HUP, b"")
    assert sock.closed and shared.queued_bytes == 0


def test_a_read_that_has_to_write_first_waits_for_room(bench: Bench) -> None:
    """A key update of the other end's: what it sends meanwhile would wake the relay without end."""
    sock, connection = bench.connect()
    bench.ready(sock, IN, upgrade_request("x"))
    bench.ready(sock, IN, ssl.SSLWantWriteError())
    assert bench.watched(sock) == OUT
    sock.room = 0
    bench.core.shared.write_control(bench.core.shared.streams[connection.id], b"something of ours")
    bench.server.flush(kit.NOW)
    assert bench.watched(sock) == OUT
    sock.room, reads = 1 << 20, sock.reads
    bench.ready(sock, OUT, ssl.SSLWantWriteError())
    assert sock.reads == reads + 1 and sock.sent.endswith(b"something of ours") and bench.watched(sock) == OUT
    bench.ready(sock, OUT, b"")
    assert sock.closed


def test_a_brake_and_a_key_update_do_not_undo_each_other(bench: Bench) -> None:
    sock, connection = bench.connect()
    bench.ready(sock, IN, upgrade_request("x"))
    bench.core.shared.brakes[connection.id] = kit.NOW + 1
    bench.ready(sock, IN, ssl.SSLWantWriteError())
    assert bench.watched(sock) == OUT
    bench.ready(sock, OUT)
    assert bench.watched(sock) == 0
    bench.server.handle_timeout(kit.NOW + 1)
    assert bench.watched(sock) == IN


def test_a_bug_costs_the_connection_that_finds_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise AssertionError("never so")

    well, _ = bench.connect()
    bench.ready(well, IN, upgrade_request("x"))
    monkeypatch.setattr(bench.core, "stream_opened", broken)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            sock, _ = bench.connect()
            bench.ready(sock, IN, upgrade_request("x"))
            assert sock.closed
    assert drops(bench.core) == {"own-fault": 3} and not well.closed and bench.server.connections == 1
    assert len(caplog.records) == 1 and "never so" in caplog.text
    sock, _ = bench.connect()
    sock.inbox.append(upgrade_request("x"))
    with caplog.at_level(logging.ERROR):
        bench.server.ready(kit.NOW + FAULT_LOG_S, sock.fileno(), IN)
    assert len(caplog.records) == 2


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EAFNOSUPPORT])
def test_a_call_without_a_socket_is_made_later(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    call = Call(bytes(32), [Place("fra-2", "2001:db8::1", 443)])
    bench = Bench([call])
    with monkeypatch.context() as patched:
        patched.setattr(socket, "socket", none)
        bench.server.handle_timeout(kit.NOW)
    assert call.conn is None and call.again_at == kit.NOW + 3.5 and bench.server.poll_timeout() == call.again_at
    bench.epoll.full = True
    call.places = [Place("fra-2", "127.0.0.1", 443)]
    bench.server.handle_timeout(kit.NOW + 3.5)
    assert call.conn is None and bench.server.connections == 0
    bench.server.close()


def test_each_call_is_at_the_next_place_and_a_link_that_is_there_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two networks that share a relay one may say that it is elsewhere."""
    tried: list[str] = []

    class Dialled(Sock):
        def setblocking(self, flag: bool) -> None:
            pass

        def setsockopt(self, *_: int) -> None:
            pass

        def connect_ex(self, address: tuple[str, int]) -> int:
            tried.append(address[0])
            return 0 if address[0] == "192.0.2.3" else errno.ENETUNREACH

    key, places = bytes(32), [Place("a", f"192.0.2.{n}", 443) for n in range(1, 4)]
    bench = Bench([Call(key, places)])
    socks = [Dialled() for _ in places]
    monkeypatch.setattr(socket, "socket", lambda *_: socks.pop())
    for n in range(3):
        bench.server.handle_timeout(kit.NOW + 5 * n)
    assert tried == [place.host for place in places] and bench.server.connections == 1
    bench.server._listeners[-1] = cast(Any, None)  # it has not stopped listening
    bench.server.set_calls([Call(key, places[:1])])
    bench.server.handle_timeout(kit.NOW + 15)
    assert len(tried) == 3 and bench.server.connections == 1
    bench.server.set_calls([])
    assert bench.server.connections == 0


class Shaken(Sock, ssl.SSLSocket):  # type: ignore[misc]
    """TLS whose handshake is done, with a certificate of the other side's."""

    certificate = b"DER"

    def do_handshake(self, block: bool = False) -> None:
        pass

    def getpeercert(self, binary_form: bool = False) -> Any:
        return self.certificate


@pytest.mark.parametrize(("pin", "goes_on"), [(b"", True), (hashlib.sha256(b"DER").digest(), True), (bytes(32), False)])
def test_a_sibling_shows_the_certificate_that_the_map_names(bench: Bench, pin: bytes, goes_on: bool) -> None:
    sock = Shaken()
    connection = Connection(bench.server._new_id(), sock, Phase.HANDSHAKE, Listener.TLS, b"")
    connection.call = Call(bytes(32), [Place("fra-2", "192.0.2.1", 443, pin)])
    bench.server._add(connection, OUT)
    bench.ready(sock, OUT)
    assert sock.sent == (upgrade_request("192.0.2.1") if goes_on else b"") and sock.closed is not goes_on
    assert drops(bench.core) == ({} if goes_on else {"tls-failed": 1})
