"""Connections to relays: TCP, an HTTP proxy if there is one, TLS, the HTTP upgrade; nothing here waits but a look-up.

Certificates are not checked: the relay proves with its key, inside, that it is the one of the signed map, and what it
carries is sealed. So a self-signed certificate will do, and no clock is needed.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
import ssl
from collections import deque
from contextlib import suppress
from enum import Enum
from typing import TYPE_CHECKING, Any

from edgeagent.io.pinnedtls import LOOK_UP_TIMEOUT_S, LookUps, literal_family
from edgeagent.io.proxy import is_through
from edgeagent.proto.names import split_host_port
from edgeagent.proto.relay_http import HttpError, ResponseReader, upgrade_request

if TYPE_CHECKING:
    from collections.abc import Callable
    from selectors import BaseSelector

    from edgeagent.io.pinnedtls import Resolver
    from edgeagent.io.proxy import Proxy

    Steer = Callable[[socket.socket, tuple[Any, ...]], None]

STREAMS_MAX = 8
ADDRESS_TIMEOUT_S = 4.0  # for a look-up where something else is left to be tried, and from there to the relay's answer
CONNECT_TIMEOUT_S = 2.0  # for TCP, where another address is left to be tried
OUT_BYTES_MAX = 524_288  # a client that was told to wait adds nothing; several times of what one writes in a turn
READ_BYTES = 16_384  # a TLS record
READS_PER_TURN_MAX = 8
_SO_BINDTODEVICE = 25
_INTERFACE_BYTES = 16


class Opened:
    """The relay answered the upgrade: stream `number` carries frames."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number


class Data:
    __slots__ = ("data", "number")

    def __init__(self, number: int, data: bytes) -> None:
        self.number = number
        self.data = data


class Flow:
    """The connection takes no more for now, or takes more again."""

    __slots__ = ("blocked", "number")

    def __init__(self, number: int, blocked: bool) -> None:
        self.number = number
        self.blocked = blocked


class Closed:
    """It ended, or could not be made; `reason` for the log."""

    __slots__ = ("number", "reason")

    def __init__(self, number: int, reason: str) -> None:
        self.number = number
        self.reason = reason


Event = Opened | Data | Flow | Closed


class _Stage(Enum):
    RESOLVING = "resolving"
    CONNECTING = "connecting"
    PROXY = "waiting for the proxy"
    HANDSHAKE = "TLS handshake"
    UPGRADE = "waiting for the relay"
    UP = "up"


class _Stream:
    __slots__ = (
        "addresses", "deadline", "host", "hosts", "mask", "number", "out", "reader", "resolver", "sock",
        "stage", "writes",
    )  # fmt: skip

    def __init__(self, number: int, hosts: list[tuple[str, int]]) -> None:
        self.number = number
        self.hosts = hosts  # still to be tried
        self.host = ("", 0)
        self.addresses: list[Any] = []  # of `host`, still to be tried
        self.stage = _Stage.RESOLVING
        self.sock: socket.socket | None = None
        self.resolver: Resolver | None = None
        self.reader: ResponseReader | None = None
        self.writes = False  # TLS waits for room to write, not for something to read
        self.deadline: float | None = None
        self.mask = 0  # what the descriptor is registered for
        self.out = b""


class RelayStreams:
    """`open`, `write` and `close` streams by number; their descriptors are registered in `selector` with `ready` as the
    data, to be called as `key.data(now, key.fd)`; `on_timeout` at `poll_timeout()`. After any of these drain `events`.

    `steer`, if it is set, sees each socket with the address that it is about to be connected to; `avoid` tells of an
    address (4 or 16 B) whether it is one that nothing is to connect to. Whoever counts what connections take asks for
    `sockets`, and sets `on_closing` to hear of one before it is closed.
    """

    def __init__(
        self, selector: BaseSelector, proxy: Proxy | None = None, avoid: Callable[[bytes], bool] = lambda address: False
    ) -> None:
        self._selector = selector
        self._proxy = proxy
        self._avoid = avoid
        self._streams: dict[int, _Stream] = {}
        self._by_fd: dict[int, _Stream] = {}
        self._pending: dict[int, None] = {}  # streams whose TLS holds more than a turn reads
        self._look_ups = LookUps()  # its client gives up after ten seconds: an answer may come for the next try
        self._context: ssl.SSLContext | None = None
        self.events: deque[Event] = deque()
        self.steer: Steer | None = None
        self.on_closing: Callable[[socket.socket], None] | None = None

    def open(self, now: float, number: int, hosts: list[str]) -> None:
        """Begin to connect to the first of `hosts` that answers; the outcome is an event."""
        self.close(number)
        if len(self._streams) >= STREAMS_MAX:
            self.events.append(Closed(number, "too many connections to relays"))
            return
        targets = [split_host_port(host) for host in hosts]
        stream = self._streams[number] = _Stream(number, targets)
        self._try_host(now, stream, "no host")

    def write(self, now: float, number: int, data: bytes) -> None:
        """All of it goes, sooner or later; Flow tells when later."""
        stream = self._streams.get(number)
        if stream is None or stream.stage is not _Stage.UP:
            return
        was_blocked = bool(stream.out)
        stream.out += data
        if not self._push(stream):
            return
        if len(stream.out) > OUT_BYTES_MAX:
            self._end(stream, "the relay does not read")
        elif bool(stream.out) != was_blocked:
            self.events.append(Flow(number, bool(stream.out)))

    def close(self, number: int) -> None:
        """Without an event. Harmless when there is none."""
        stream = self._streams.pop(number, None)
        if stream is not None:
            self._pending.pop(number, None)
            self._drop_socket(stream)
            self._give_up_look_up(stream)

    def close_all(self) -> None:
        for number in list(self._streams):
            self.close(number)

    def sockets(self) -> list[socket.socket]:
        """Of connections that are there or being made."""
        return [each.sock for each in self._streams.values() if each.sock is not None]

    def number_of(self, sock: socket.socket) -> int | None:
        """The stream that one of them is of."""
        return next((each.number for each in self._by_fd.values() if each.sock is sock), None)

    def as_routed(self) -> list[int]:
        """Those that are up and would be made from the same address of ours now, as the routes are."""
        return [each.number for each in self._streams.values() if each.stage is _Stage.UP and _is_as_routed(each.sock)]

    def poll_timeout(self) -> float | None:
        if self._pending:
            return 0.0
        return min((each.deadline for each in self._streams.values() if each.deadline is not None), default=None)

    def on_timeout(self, now: float) -> None:
        for number in list(self._pending):
            self._read(self._streams[number])
        for stream in list(self._streams.values()):
            if stream.deadline is not None and stream.deadline <= now:
                self._failed(now, stream, f"no answer from {stream.host[0]} ({stream.stage.value})")

    def ready(self, now: float, fd: int) -> None:
        stream = self._by_fd.get(fd)
        if stream is None:
            return
        try:
            self._advance(now, stream)
        except (OSError, HttpError, ValueError) as error:
            self._failed(now, stream, f"{stream.host[0]}: {getattr(error, 'strerror', None) or error}")
        if self._streams.get(stream.number) is stream:
            self._watch(stream)

    # Getting there

    def _advance(self, now: float, stream: _Stream) -> None:
        if stream.stage is _Stage.RESOLVING:
            self._resolved(now, stream)
        elif stream.stage is _Stage.CONNECTING:
            self._connected(now, stream)
        elif stream.stage is _Stage.PROXY:
            self._read_proxy(stream)
        elif stream.stage is _Stage.HANDSHAKE:
            self._shake(stream)
        elif stream.stage is _Stage.UPGRADE:
            stream.writes = False
            self._read_upgrade(stream)
        else:
            stream.writes = False
            was_blocked = bool(stream.out)
            if self._push(stream):
                if was_blocked and not stream.out:
                    self.events.append(Flow(stream.number, False))
                self._read(stream)

    def _try_host(self, now: float, stream: _Stream, why: str) -> None:
        if not stream.hosts:
            self._end(stream, why)
            return
        stream.host = stream.hosts.pop(0)
        host, port = self._target(stream)
        family = literal_family(host)
        if family is not None:
            stream.addresses = [(family, (host, port))]
            self._try_address(now, stream, why)
            return
        stream.stage = _Stage.RESOLVING
        more = stream.hosts or self._look_ups.known(host, port)
        stream.deadline = now + (ADDRESS_TIMEOUT_S if more else LOOK_UP_TIMEOUT_S)
        try:
            stream.resolver = self._look_ups.begin(now, host, port)
        except OSError as error:
            self._failed(now, stream, f"{host}: {error.strerror}")
            return
        self._watch(stream)

    def _resolved(self, now: float, stream: _Stream) -> None:
        resolver = stream.resolver
        if resolver is None or not resolver.done:
            return
        self._unwatch(stream)
        stream.resolver = None
        stream.addresses, error = self._look_ups.end(*self._target(stream), resolver)
        if not stream.addresses:  # it may still be where it was
            stream.addresses = self._look_ups.known(*self._target(stream))
        self._try_address(now, stream, error)

    def _target(self, stream: _Stream) -> tuple[str, int]:
        """Host and port that TCP leads to."""
        return stream.host if self._proxy is None else (self._proxy.host, self._proxy.port)

    def _give_up_look_up(self, stream: _Stream) -> None:
        resolver, stream.resolver = stream.resolver, None
        if resolver is not None:
            self._look_ups.give_up(*self._target(stream), resolver)

    def _try_address(self, now: float, stream: _Stream, why: str) -> None:
        if not stream.addresses:
            self._try_host(now, stream, why)
            return
        family, address = stream.addresses.pop(0)
        code = errno.EHOSTUNREACH
        try:
            if not self._avoid(socket.inet_pton(family, address[0].partition("%")[0])):
                code = self._connect(stream, family, address)
        except OSError as error:  # no such family here, or no such device any more
            code = error.errno or errno.EIO
        if code not in (0, errno.EINPROGRESS):
            self._failed(now, stream, f"{stream.host[0]}: {os.strerror(code)}")
            return
        stream.stage = _Stage.CONNECTING
        more = stream.addresses or stream.hosts
        stream.deadline = now + (CONNECT_TIMEOUT_S if more else ADDRESS_TIMEOUT_S)
        self._watch(stream)

    def _connect(self, stream: _Stream, family: int, address: Any) -> int:
        stream.sock = sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.steer is not None:
            self.steer(sock, address)
        return sock.connect_ex(address)

    def _connected(self, now: float, stream: _Stream) -> None:
        sock = stream.sock
        assert sock is not None
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))
        stream.deadline = now + ADDRESS_TIMEOUT_S
        if self._proxy is None:
            self._begin_tls(stream)
        else:
            stream.reader = self._proxy.ask(sock, *stream.host)
            stream.stage = _Stage.PROXY

    def _read_proxy(self, stream: _Stream) -> None:
        assert stream.sock is not None and stream.reader is not None
        if is_through(stream.sock, stream.reader):
            self._begin_tls(stream)

    def _begin_tls(self, stream: _Stream) -> None:
        assert stream.sock is not None
        if self._context is None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            self._context.check_hostname = False
            self._context.verify_mode = ssl.CERT_NONE
            self._context.minimum_version = ssl.TLSVersion.TLSv1_2
        host: Any = stream.host[0].encode("ascii") if literal_family(stream.host[0]) is None else None
        self._unwatch(stream)
        stream.sock = self._context.wrap_socket(stream.sock, do_handshake_on_connect=False, server_hostname=host)
        stream.stage = _Stage.HANDSHAKE
        self._shake(stream)

    def _shake(self, stream: _Stream) -> None:
        tls = stream.sock
        assert isinstance(tls, ssl.SSLSocket)
        stream.writes = False
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            return
        except ssl.SSLWantWriteError:
            stream.writes = True
            return
        stream.stage = _Stage.UPGRADE
        stream.reader = ResponseReader()
        host, port = stream.host
        name = f"[{host}]" if ":" in host else host
        tls.send(upgrade_request(name if port == 443 else f"{name}:{port}"))

    def _read_upgrade(self, stream: _Stream) -> None:
        assert stream.sock is not None and stream.reader is not None
        try:
            data = stream.sock.recv(READ_BYTES)
        except ssl.SSLWantReadError:
            return
        except ssl.SSLWantWriteError:
            stream.writes = True
            return
        if not data:
            raise OSError(errno.ECONNRESET, "closed")
        response = stream.reader.feed(data)
        if response is None:
            return
        if not response.upgraded:
            raise OSError(errno.ECONNREFUSED, f"no relay: HTTP status {response.status}")
        stream.reader = None
        stream.stage = _Stage.UP
        stream.deadline = None
        self.events.append(Opened(stream.number))
        if response.rest:
            self.events.append(Data(stream.number, response.rest))
        self._read(stream)

    # While it is up

    def _read(self, stream: _Stream) -> None:
        assert stream.sock is not None
        self._pending.pop(stream.number, None)
        try:
            for _ in range(READS_PER_TURN_MAX):
                data = stream.sock.recv(READ_BYTES)
                if not data:
                    self._end(stream, "closed by the relay")
                    return
                self.events.append(Data(stream.number, data))
        except ssl.SSLWantReadError:
            return
        except ssl.SSLWantWriteError:
            # A key update has to be answered first. What is there to be read would wake us for nothing until then
            stream.writes = True
            self._watch(stream)
            return
        except OSError as error:
            self._end(stream, str(error.strerror or error))
            return
        # What OpenSSL has decrypted already, no selector reports
        if isinstance(stream.sock, ssl.SSLSocket) and stream.sock.pending():
            self._pending[stream.number] = None

    def _push(self, stream: _Stream) -> bool:
        """False when that was the end of it."""
        assert stream.sock is not None
        try:
            while stream.out:
                stream.out = stream.out[stream.sock.send(stream.out) :]
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            pass
        except OSError as error:
            self._end(stream, str(error.strerror or error))
            return False
        self._watch(stream)
        return True

    # Ends

    def _failed(self, now: float, stream: _Stream, why: str) -> None:
        """This address does not work; an earlier connection that breaks is over."""
        was_up, was_resolving = stream.stage is _Stage.UP, stream.resolver is not None
        self._drop_socket(stream)
        self._give_up_look_up(stream)
        if was_resolving:  # it may still be where it was
            stream.addresses = self._look_ups.known(*self._target(stream))
        if was_up:
            self._end(stream, why)
        else:
            self._try_address(now, stream, why)

    def _end(self, stream: _Stream, why: str) -> None:
        if self._streams.get(stream.number) is stream:
            self.close(stream.number)
            self.events.append(Closed(stream.number, why))

    def _drop_socket(self, stream: _Stream) -> None:
        if stream.sock is not None and self.on_closing is not None:
            self.on_closing(stream.sock)
        self._unwatch(stream)
        stream.reader = None
        stream.writes = False
        if stream.sock is not None:
            stream.sock.close()
            stream.sock = None

    def _watch(self, stream: _Stream) -> None:
        if stream.stage is _Stage.RESOLVING and stream.resolver is not None:
            fd, mask = stream.resolver.wake.fileno(), selectors.EVENT_READ
        elif stream.sock is not None:
            fd, mask = stream.sock.fileno(), selectors.EVENT_READ
            if stream.stage is _Stage.CONNECTING or stream.writes:
                mask = selectors.EVENT_WRITE
            elif stream.out:
                mask |= selectors.EVENT_WRITE
        else:
            return
        if self._by_fd.get(fd) is stream:
            if mask != stream.mask:
                self._selector.modify(fd, mask, self.ready)
        else:
            self._selector.register(fd, mask, self.ready)
            self._by_fd[fd] = stream
        stream.mask = mask

    def _unwatch(self, stream: _Stream) -> None:
        for fd in [fd for fd, each in self._by_fd.items() if each is stream]:
            del self._by_fd[fd]
            self._selector.unregister(fd)


def _is_as_routed(sock: socket.socket | None) -> bool:
    """To connect a UDP socket asks the kernel for its way, and sends nothing."""
    if sock is None:
        return False
    try:
        with socket.socket(sock.family, socket.SOCK_DGRAM) as asking:
            device = sock.getsockopt(socket.SOL_SOCKET, _SO_BINDTODEVICE, _INTERFACE_BYTES)
            if device.strip(b"\0"):
                asking.setsockopt(socket.SOL_SOCKET, _SO_BINDTODEVICE, device)
            with suppress(OSError):  # what is marked is routed apart, and only who may mark has done so
                asking.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, sock.getsockopt(socket.SOL_SOCKET, socket.SO_MARK))
            asking.connect(sock.getpeername())
            return bool(asking.getsockname()[0] == sock.getsockname()[0])
    except OSError:  # no way at all, or the address is gone
        return False
