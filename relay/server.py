"""The relay's TCP side: TLS, the HTTP upgrade, members' streams and calls to siblings, on one epoll.

Non-blocking TLS sockets under epoll, not asyncio: measured at 15 KiB and 1.6 CPU seconds per GB against 38 KiB and 2.5.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import select
import socket
import ssl
from collections.abc import Callable

from edgeagent.proto.relay_http import HttpError, ResponseReader, upgrade_request
from relay.connection import Call, Connection, Listener, Phase, client_context, packed, tune
from relay.core.doorway import Doorway
from relay.core.http import UPGRADED, RequestReader, Site, bad_request
from relay.core.members import StreamState
from relay.core.reasons import RelayDrop
from relay.core.relay import RelayCore

log = logging.getLogger("edgerelay")

READ_BYTES = 16_384  # a TLS record: a read of less would leave some where epoll does not see it
READS_MAX = 4  # of one connection in one wake-up
ACCEPTS_MAX = 64  # of one listener in one wake-up
FLUSH_BYTES = 65_536  # read before what it led to is written
BACKLOG = 1_024
CALL_TIMEOUT_S = 10.0
NO_DESCRIPTORS_PAUSE_S = 1.0
FAULT_LOG_S = 10.0  # between two bugs that the log tells of; all are counted
_IN, _OUT, _GONE = select.EPOLLIN, select.EPOLLOUT, select.EPOLLERR | select.EPOLLHUP


class StreamServer:
    """`listen`, `ready` for each event, `flush` after any input to the core, `handle_timeout`."""

    def __init__(
        self,
        core: RelayCore,
        doorway: Doorway,
        site: Site,
        epoll: select.epoll,
        server_tls: ssl.SSLContext,
        calls: list[Call],
        jitter: Callable[[], float],
    ) -> None:
        self._core = core
        self._doorway = doorway
        self._site = site
        self._epoll = epoll
        self._server_tls = server_tls
        self._client_tls = client_context()
        self._calls = calls
        self._jitter = jitter
        self._listeners: dict[int, tuple[Listener, socket.socket]] = {}
        self._connections: dict[int, Connection] = {}  # by file descriptor
        self._by_id: dict[int, Connection] = {}
        self._last_id = 0
        self._brakes: dict[int, float] = {}  # connection → when it is read again
        self._accept_again_at: float | None = None
        self._unflushed_bytes = 0
        self._fault_at = -FAULT_LOG_S

    def listen(self, listener: Listener, host: str, port: int) -> int:
        """Returns the port. `host` empty: every address of both IP versions. Raises OSError."""
        if host:
            opened = socket.create_server(
                (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=BACKLOG
            )
        elif socket.has_dualstack_ipv6():
            opened = socket.create_server(("", port), family=socket.AF_INET6, backlog=BACKLOG, dualstack_ipv6=True)
        else:
            opened = socket.create_server(("", port), backlog=BACKLOG)
        opened.setblocking(False)
        self._listeners[opened.fileno()] = (listener, opened)
        self._epoll.register(opened.fileno(), _IN)
        return int(opened.getsockname()[1])

    def set_calls(self, calls: list[Call]) -> None:
        """Keep links to these siblings and no others. A link that is there stays, whatever its place is now."""
        if not self._listeners:
            return
        known = {call.key: call for call in self._calls}
        self._calls = []
        for call in calls:
            kept = known.pop(call.key, call)
            kept.places = call.places
            self._calls.append(kept)
        for call in known.values():
            if call.conn is not None:
                self._close(self._by_id[call.conn])

    def stop_listening(self) -> None:
        """Nobody new, but for metrics."""
        for fd, (listener, opened) in list(self._listeners.items()):
            if listener is not Listener.METRICS:
                self._epoll.unregister(fd)
                opened.close()
                del self._listeners[fd]
        self._calls = []

    def close(self) -> None:
        for connection in list(self._by_id.values()):
            self._close(connection)
        for fd, (_, opened) in self._listeners.items():
            self._epoll.unregister(fd)
            opened.close()
        self._listeners.clear()

    @property
    def connections(self) -> int:
        return len(self._by_id)

    # Events

    def ready(self, now: float, fd: int, mask: int) -> None:
        listening = self._listeners.get(fd)
        if listening is not None:
            self._accept(now, *listening)
            return
        connection = self._connections.get(fd)
        if connection is None:
            return  # closed earlier in this wake-up
        try:
            self._advance(now, connection, mask)
        except ssl.SSLError:
            failed = RelayDrop.TLS_FAILED if connection.phase is Phase.HANDSHAKE else RelayDrop.CONNECTION_LOST
            self._core.shared.drop(failed)
            self._close(connection)
        except OSError:
            self._core.shared.drop(RelayDrop.CONNECTION_LOST)
            self._close(connection)
        except Exception:  # noqa: BLE001  a bug that one connection finds is not to end all others
            self.count_fault(now, "a connection is closed")
            self._close(connection)
        if self._unflushed_bytes >= FLUSH_BYTES:
            self.flush(now)

    def count_fault(self, now: float, outcome: str) -> None:
        """While an exception is handled that is a bug: it is counted, and now and then logged."""
        self._core.shared.drop(RelayDrop.OWN_FAULT)
        if now - self._fault_at >= FAULT_LOG_S:
            self._fault_at = now
            log.exception("a bug: %s", outcome)

    def _advance(self, now: float, connection: Connection, mask: int) -> None:
        if connection.closing and mask & _GONE:
            self._close(connection)
            return
        resumed = connection.stalled and bool(mask & _OUT)
        if resumed:
            connection.stalled = False
        if mask & _OUT and connection.out is not None:
            self._resume(connection)
        if connection.id not in self._by_id:
            return
        if mask & (_IN | _GONE) or resumed or connection.phase in (Phase.CONNECTING, Phase.HANDSHAKE):
            self._read(now, connection)

    def flush(self, now: float) -> None:
        """Carry out what the core wants of its streams."""
        self._unflushed_bytes = 0
        core = self._core
        while True:
            writes, closes = core.drain_writes(), core.drain_closes()
            if not writes and not closes:
                break
            for number, data in writes:
                connection = self._by_id.get(number)
                if connection is not None:
                    self._write(connection, data)
            for number in closes:
                connection = self._by_id.get(number)
                if connection is not None:
                    self._close(connection)
        for number, until in core.drain_brakes().items():
            connection = self._by_id.get(number)
            if connection is not None:
                self._brakes[number] = until
                self._watch(connection)

    def handle_timeout(self, now: float) -> None:
        for number in self._doorway.expired(now):
            self._close(self._by_id[number])
        for number, until in list(self._brakes.items()):
            if now >= until:
                del self._brakes[number]
                self._watch(self._by_id[number])
        if self._accept_again_at is not None and now >= self._accept_again_at:
            self._accept_again_at = None
            for fd in self._listeners:
                self._epoll.modify(fd, _IN)
        for call in self._calls:
            if call.conn is None and now >= call.again_at:
                self._call(now, call)
            elif call.conn is not None:
                self._check_call(now, self._by_id[call.conn])

    def poll_timeout(self) -> float | None:
        due = [*self._brakes.values()]
        due += [at for at in (self._doorway.poll_timeout(), self._accept_again_at) if at is not None]
        for call in self._calls:
            if call.conn is None:
                due.append(call.again_at)
            elif (deadline := self._by_id[call.conn].deadline) is not None:
                due.append(deadline)
        return min(due) if due else None

    def _check_call(self, now: float, connection: Connection) -> None:
        if connection.deadline is None or now < connection.deadline:
            return
        stream = self._core.shared.streams.get(connection.id)
        if stream is not None and stream.state is StreamState.SIBLING:
            connection.deadline = None
        else:
            self._close(connection)

    # Coming in

    def _accept(self, now: float, listener: Listener, opened: socket.socket) -> None:
        for _ in range(ACCEPTS_MAX):
            try:
                sock, address = opened.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    log.warning("no descriptors or memory for another connection; accepting again in a second")
                    self._accept_again_at = now + NO_DESCRIPTORS_PAUSE_S
                    for fd in self._listeners:
                        self._epoll.modify(fd, 0)
                    return
                continue  # the other end has gone already
            try:
                sock.setblocking(False)
                tune(sock)
                self._enter(now, listener, sock, packed(address[0]))
            except OSError:  # the other end has gone already, or the kernel watches no more descriptors
                self._core.shared.drop(RelayDrop.CONNECTION_LOST)
                sock.close()

    def _enter(self, now: float, listener: Listener, sock: socket.socket, source: bytes) -> None:
        number = self._new_id()
        goes = self._doorway.enter(now, number, source)
        if goes == number:
            sock.close()
            return
        if goes is not None:
            self._close(self._by_id[goes])
        phase = Phase.REQUEST
        if listener is Listener.TLS:
            try:
                sock = self._server_tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
            except OSError:
                self._doorway.leave(number)
                raise
            phase = Phase.HANDSHAKE
        connection = Connection(number, sock, phase, listener, source)
        connection.reader = RequestReader()
        try:
            self._add(connection, _IN)
        except OSError:
            self._doorway.leave(number)
            sock.close()
            raise

    def _read(self, now: float, connection: Connection) -> None:
        if connection.phase is Phase.CONNECTING:
            self._connected(connection)
        if connection.phase is Phase.HANDSHAKE and not self._shake_hands(connection):
            return
        chunks: list[bytes] = []
        ended = False
        for _ in range(READS_MAX):
            try:
                chunk = connection.sock.recv(READ_BYTES)
            except (ssl.SSLWantReadError, BlockingIOError):
                break
            except ssl.SSLWantWriteError:
                connection.stalled = True
                break
            if not chunk:
                ended = True
                break
            chunks.append(chunk)
        if chunks:
            self._received(now, connection, chunks[0] if len(chunks) == 1 else b"".join(chunks))
        if connection.id not in self._by_id:
            return
        if ended:
            self._close(connection)
        else:
            self._watch(connection)

    def _shake_hands(self, connection: Connection) -> bool:
        """True when TLS is there."""
        assert isinstance(connection.sock, ssl.SSLSocket)
        connection.stalled = False
        try:
            connection.sock.do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as want:
            connection.stalled = isinstance(want, ssl.SSLWantWriteError)
            self._watch(connection)
            return False
        if connection.call is None:
            connection.phase = Phase.REQUEST
        else:
            pin = connection.call.place.pin
            certificate = connection.sock.getpeercert(binary_form=True) or b""
            if pin and hashlib.sha256(certificate).digest() != pin:
                raise ssl.SSLError("not the certificate that the map names")
            connection.phase = Phase.RESPONSE
            self._write(connection, upgrade_request(connection.call.place.host))
        return True

    def _received(self, now: float, connection: Connection, data: bytes) -> None:
        if connection.closing:
            return  # it has its answer
        if connection.phase is Phase.RELAY:
            self._core.stream_received(now, connection.id, data)
            self._unflushed_bytes += len(data)
            if not connection.inside:
                self._leave_doorway(connection)
        elif connection.phase is Phase.RESPONSE:
            self._on_response(now, connection, data)
        else:
            self._on_request(now, connection, data)

    def _on_request(self, now: float, connection: Connection, data: bytes) -> None:
        assert isinstance(connection.reader, RequestReader)
        try:
            request = connection.reader.feed(data)
        except HttpError:
            self._core.shared.drop(RelayDrop.BAD_REQUEST)
            self._answer(connection, bad_request())
            return
        if request is None:
            return
        connection.reader = None
        if request.wants_relay and connection.listener is Listener.TLS:
            connection.phase = Phase.RELAY
            self._write(connection, UPGRADED)
            if connection.id not in self._by_id:
                return
            self._core.stream_opened(now, connection.id, connection.source)
            self._tell_blocked(connection)
            if request.rest:
                self._core.stream_received(now, connection.id, request.rest)
            self._unflushed_bytes = FLUSH_BYTES
            return
        trusted = connection.listener is Listener.METRICS
        self._answer(connection, self._site.answer(request, trusted=trusted, draining=self._core.shared.draining))

    def _answer(self, connection: Connection, data: bytes) -> None:
        """And close; the doorway bounds how long that may take. Nothing more is read meanwhile."""
        connection.closing = True
        self._write(connection, data)

    def _leave_doorway(self, connection: Connection) -> None:
        stream = self._core.shared.streams.get(connection.id)
        if stream is not None and (stream.member is not None or stream.sibling):
            connection.inside = True
            self._doorway.leave(connection.id)

    # Calling siblings

    def _call(self, now: float, call: Call) -> None:
        call.again_at = now + 2.0 + 3.0 * self._jitter()
        place = call.begin()
        try:  # no descriptors, or a host without IPv6: there will be another try
            sock = socket.socket(socket.AF_INET6 if ":" in place.host else socket.AF_INET, socket.SOCK_STREAM)
        except OSError as error:
            log.debug("sibling %s: %s", place.sibling, error)
            return
        try:
            sock.setblocking(False)
            tune(sock)
            code = sock.connect_ex((place.host, place.port))
            if code not in (0, errno.EINPROGRESS):
                raise OSError(code, os.strerror(code))
            connection = Connection(self._new_id(), sock, Phase.CONNECTING, Listener.TLS, b"")
            connection.call = call
            connection.deadline = now + CALL_TIMEOUT_S
            self._add(connection, _OUT)
        except OSError as error:
            log.debug("sibling %s: %s", place.sibling, error)
            sock.close()
            return
        call.conn = connection.id

    def _connected(self, connection: Connection) -> None:
        code = connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, "connect")
        assert connection.call is not None
        # A wrapped socket has the same descriptor
        connection.sock = self._client_tls.wrap_socket(
            connection.sock, server_hostname=connection.call.place.host, do_handshake_on_connect=False
        )
        connection.phase = Phase.HANDSHAKE
        connection.reader = ResponseReader()

    def _on_response(self, now: float, connection: Connection, data: bytes) -> None:
        assert isinstance(connection.reader, ResponseReader) and connection.call is not None
        try:
            response = connection.reader.feed(data)
        except HttpError:
            self._close(connection)
            return
        if response is None:
            return
        if not response.upgraded:
            self._close(connection)
            return
        connection.reader = None
        connection.phase = Phase.RELAY
        connection.inside = True
        self._core.stream_called(now, connection.id, connection.call.place.sibling, connection.call.key)
        self._tell_blocked(connection)
        self._core.stream_received(now, connection.id, response.rest)
        self._unflushed_bytes = FLUSH_BYTES

    # Going out

    def _write(self, connection: Connection, data: bytes) -> None:
        """All of it, or as much as goes: the rest waits, and the core hears that the stream is blocked."""
        if connection.out is not None:  # answers of ours beside the core's; never more than a few hundred bytes
            data = bytes(connection.out) + data
        connection.out = memoryview(data)
        try:
            self._resume(connection)
        except OSError:
            self._core.shared.drop(RelayDrop.CONNECTION_LOST)
            self._close(connection)

    def _resume(self, connection: Connection) -> None:
        view = connection.out
        try:
            while view:
                view = view[connection.sock.send(view) :]
        except (ssl.SSLWantWriteError, BlockingIOError):
            pass
        if view:
            # A small rest is not to hold the whole buffer
            whole = memoryview(view.obj).nbytes
            connection.out = view if 2 * len(view) > whole else memoryview(bytes(view))
            connection.blocked = True
            self._tell_blocked(connection)
            self._watch(connection)
            return
        connection.out = None
        if connection.closing:
            self._close(connection)
            return
        if connection.blocked:
            connection.blocked = False
            self._core.stream_writable(connection.id)
        self._watch(connection)

    def _tell_blocked(self, connection: Connection) -> None:
        """The core hears of a stream that is blocked as soon as it knows the stream."""
        if connection.out is not None:
            self._core.stream_blocked(connection.id, len(connection.out))

    # The table

    def _new_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def _add(self, connection: Connection, mask: int) -> None:
        self._epoll.register(connection.fd, mask)
        self._connections[connection.fd] = connection
        self._by_id[connection.id] = connection
        connection.mask = mask

    def _watch(self, connection: Connection) -> None:
        """For what it waits for. One that is stalled has something to read, which would wake us for nothing."""
        mask = _OUT if connection.out is not None or connection.stalled else 0
        if not (connection.stalled or connection.closing or connection.id in self._brakes):
            mask |= _IN
        if mask != connection.mask:
            connection.mask = mask
            self._epoll.modify(connection.fd, mask)

    def _close(self, connection: Connection) -> None:
        if self._by_id.pop(connection.id, None) is None:
            return
        del self._connections[connection.fd]
        self._epoll.unregister(connection.fd)
        connection.sock.close()
        self._doorway.leave(connection.id)
        self._brakes.pop(connection.id, None)
        self._core.stream_closed(connection.id)
        if connection.call is not None:
            connection.call.conn = None
