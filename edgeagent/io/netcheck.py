"""The sockets of `edgeagent netcheck`, which are its own: UDP, name resolution, TLS and plain HTTP around Netcheck."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import ssl
import time
from collections import deque
from contextlib import suppress
from selectors import EVENT_READ, EVENT_WRITE, DefaultSelector
from typing import TYPE_CHECKING

from edgeagent.io.pinnedtls import RESOLVERS_MAX, Resolver, Trust, literal_family, wrap
from edgeagent.io.upnp import UpnpWorker
from edgeagent.proto.endpoint import Endpoint, Transmit
from edgeagent.proto.netcheck import HTTP_PORT, Dial, Fetch, Netcheck, Resolve
from edgeagent.proto.netcheck_facts import TlsOutcome, Way
from edgeagent.proto.netcheck_nat import Role
from edgeagent.proto.portmap_upnp import Job
from edgeagent.proto.relay_http import HttpError, ResponseReader, probe_request

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgeagent.proto.netcheck import Address, Socket, Uplink, Wish
    from edgeagent.proto.relaymap import RelayInfo

READS_PER_TURN_MAX = 32
DATAGRAM_BYTES = 9_216
RESPONSE_BYTES = 4_096
_FAMILIES = {4: socket.AF_INET, 16: socket.AF_INET6}
_ANY = {4: "0.0.0.0", 16: "::"}
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _IPV6_DONTFRAG = 10, 23, 62
_PMTUDISC_PROBE = 3  # DF set, and what the kernel believes of the path not heeded


def check_network(
    relays: list[RelayInfo], uplinks: list[Uplink], timeout_s: float, on_progress: Callable[[list[str]], None]
) -> Netcheck:
    """Run it to its end; `on_progress` hears what is still waited for. Raises OSError where no socket can be made."""
    shell = _Shell(relays, uplinks, timeout_s)
    try:
        shell.run(on_progress)
    finally:
        shell.close()
    return shell.check


class _Shell:
    def __init__(self, relays: list[RelayInfo], uplinks: list[Uplink], timeout_s: float) -> None:
        self._selector = DefaultSelector()
        self._udp: dict[Socket, socket.socket] = {}
        self._asking: list[socket.socket] = []
        self._scopes: list[int] = []  # of their interfaces
        self._connections: set[_Connection] = set()
        self._resolvers: set[Resolver] = set()
        self._to_resolve: deque[Resolve] = deque()  # until another look-up has ended
        self._worker = UpnpWorker()
        self._selector.register(self._worker.wake, EVENT_READ, self._upnp_ended)
        for size in _FAMILIES:
            for role in Role:
                self._open_udp(role, size)
        asked = [(uplink, port) for uplink in uplinks if (port := self._open_asking(uplink))]
        self.check = Netcheck(
            time.monotonic(),
            relays,
            entropy=os.urandom,
            timeout_s=timeout_s,
            ports={at: opened.getsockname()[1] for at, opened in self._udp.items()},
            uplinks=asked,
        )

    def run(self, on_progress: Callable[[list[str]], None]) -> None:
        check = self.check
        self._push()
        while (due := check.poll_timeout()) is not None:
            on_progress(check.under_way())
            for key, _ in self._selector.select(max(0.0, due - time.monotonic())):
                key.data(time.monotonic(), key.fd)
            check.handle_timeout(time.monotonic())
            self._push()
        check.close()
        self._push()

    def close(self) -> None:
        for connection in list(self._connections):
            self._drop(connection)
        for opened in (*self._udp.values(), *self._asking):
            opened.close()
        for resolver in self._resolvers:
            resolver.close()
        self._selector.close()
        self._worker.close()

    # UDP

    def _open_udp(self, role: Role, size: int) -> None:
        """One of a kind that is missing is one that is not asked by."""
        with suppress(OSError):
            opened = socket.socket(_FAMILIES[size], socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            self._udp[role, size] = opened
            if size == 16:
                opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if role is Role.MTU and size == 4:
                opened.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)
            elif role is Role.MTU:
                opened.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE)
                opened.setsockopt(socket.IPPROTO_IPV6, _IPV6_DONTFRAG, 1)
            opened.bind((_ANY[size], 0))
            at = (role, size)
            self._selector.register(opened, EVENT_READ, lambda now, _fd: self._receive(now, at))

    def _receive(self, now: float, at: Socket) -> None:
        for datagram, source in _read(self._udp[at]):
            self.check.handle_datagram(now, at, datagram, source)

    def _open_asking(self, uplink: Uplink) -> int:
        """Returns its port, 0 when the address cannot be bound."""
        opened = socket.socket(_FAMILIES[len(uplink.own)], socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            scope = socket.if_nametoindex(uplink.interface)
            opened.bind((_text(uplink.own), 0))
        except OSError:
            opened.close()
            return 0
        number = len(self._asking)
        self._asking.append(opened)
        self._scopes.append(scope)
        self._selector.register(opened, EVENT_READ, lambda now, _fd: self._hear(now, number))
        return int(opened.getsockname()[1])

    def _hear(self, now: float, number: int) -> None:
        for datagram, source in _read(self._asking[number]):
            self.check.handle_answer(now, number, datagram, source)

    def _push(self) -> None:
        """Do what the check wants, and what it wants then."""
        while True:
            wishes, transmits, asks = self.check.drain_wishes(), self.check.drain_transmits(), self.check.drain_asks()
            if not (wishes or transmits or asks):
                return
            for wish in wishes:
                self._grant(wish)
            for role, transmit in transmits:
                self._send(role, transmit)
            for number, endpoint, datagram in asks:
                # Gateways of IPv6 mostly have link-local addresses, which mean something with their interface only
                at = endpoint.addr if len(endpoint.addr) == 2 else (*endpoint.addr[:3], self._scopes[number])
                with suppress(OSError):  # it is asked again
                    self._asking[number].sendto(datagram, at)

    def _send(self, at: Socket, transmit: Transmit) -> None:
        try:
            for datagram in transmit.datagrams:
                self._udp[at].sendto(datagram, transmit.endpoint.addr)
        except OSError as error:  # any other way to fail looks like a loss
            if error.errno == errno.EMSGSIZE:
                self.check.too_long(time.monotonic(), transmit)

    # What takes longer

    def _grant(self, wish: Wish) -> None:
        if isinstance(wish, Resolve):
            self._to_resolve.append(wish)
            self._resolve_next()
        elif isinstance(wish, Job):
            self._worker.start(wish)
        else:
            self._connect(wish)

    def _upnp_ended(self, now: float, _fd: int) -> None:
        outcome = self._worker.result()
        if outcome is not None:
            self.check.upnp_ended(now, outcome)

    def _resolve_next(self) -> None:
        while self._to_resolve and len(self._resolvers) < RESOLVERS_MAX:
            wish = self._to_resolve.popleft()
            family = literal_family(wish.host)
            if family is None:
                self._resolve(wish)
            else:
                found = [_address(family, (wish.host, HTTP_PORT))]
                self.check.resolved(time.monotonic(), wish.ticket, found)

    def _resolve(self, wish: Resolve) -> None:
        try:
            resolver = Resolver(wish.host, HTTP_PORT)
        except OSError as error:
            self.check.not_resolved(time.monotonic(), wish.ticket, f"{wish.host}: {error.strerror}")
            return
        self._resolvers.add(resolver)

        def ended(now: float, _fd: int) -> None:
            self._selector.unregister(resolver.wake)
            self._resolvers.discard(resolver)
            resolver.close()
            if resolver.error:
                self.check.not_resolved(now, wish.ticket, resolver.error)
            else:
                self.check.resolved(now, wish.ticket, [_address(*found) for found in resolver.addresses])
            self._resolve_next()

        self._selector.register(resolver.wake, EVENT_READ, ended)

    def _connect(self, wish: Dial | Fetch) -> None:
        connection = _Connection(wish.way, tls=isinstance(wish, Dial))
        self._connections.add(connection)
        if connection.begin(time.monotonic()):
            self._watch(connection)
        else:
            self._ended(time.monotonic(), connection)

    def _watch(self, connection: _Connection) -> None:
        def ready(now: float, _fd: int) -> None:
            self._selector.unregister(connection.sock)
            if connection.ready(now):
                self._watch(connection)
            else:
                self._ended(now, connection)

        self._selector.register(connection.sock, connection.mask, ready)

    def _ended(self, now: float, connection: _Connection) -> None:
        self._connections.discard(connection)
        connection.sock.close()
        if connection.tls:
            self.check.dialled(now, connection.way, connection.outcome)
        else:
            self.check.fetched(now, connection.way, connection.outcome.response)

    def _drop(self, connection: _Connection) -> None:
        self._connections.discard(connection)
        self._selector.unregister(connection.sock)
        connection.sock.close()


class _Connection:
    """TCP, TLS where that is wanted, a probe inside, and its answer. `ready` when `sock` is what `mask` says."""

    def __init__(self, way: Way, *, tls: bool) -> None:
        self.way = way
        self.tls = tls
        self.outcome = TlsOutcome()
        self.mask = EVENT_WRITE
        self.sock = socket.socket(_FAMILIES[way.size], socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._began = 0.0
        self._connected = self._shaken = False
        self._out = probe_request(way.host if ":" not in way.host else f"[{way.host}]", way.nonce)
        self._reader = ResponseReader()

    def begin(self, now: float) -> bool:
        """False when it has ended already."""
        self._began = now
        code = self.sock.connect_ex((_text(self.way.address), self.way.tls_port if self.tls else HTTP_PORT))
        if code not in (0, errno.EINPROGRESS):
            self.outcome.error = os.strerror(code)
            return False
        return True

    def ready(self, now: float) -> bool:
        """False when it has ended: `outcome` says how."""
        try:
            return self._go_on(now)
        except (ssl.SSLWantReadError, BlockingIOError):
            self.mask = EVENT_READ
        except ssl.SSLWantWriteError:
            self.mask = EVENT_WRITE
        except HttpError as error:
            self.outcome.error = str(error)
            return False
        except OSError as error:
            self.outcome.error = f"{'TLS: ' if self._connected else ''}{error.strerror or error}"
            return False
        return True

    def _go_on(self, now: float) -> bool:
        if not self._connected:
            code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, os.strerror(code))
            self._connected = True
            self.outcome.connect_s = now - self._began
            if self.tls:
                # Unverified: what it is worth is told by its certificate's hash, and by the relay's own key later on
                self.sock = wrap(self.sock, self.way.host, Trust(b"", None, False))
        if isinstance(self.sock, ssl.SSLSocket) and not self._shaken:
            self.sock.do_handshake()
            self._shaken = True
            self.outcome.handshake_s = time.monotonic() - self._began - (self.outcome.connect_s or 0.0)
            self.outcome.certificate = hashlib.sha256(self.sock.getpeercert(binary_form=True) or b"").digest()
        while self._out:
            self._out = self._out[self.sock.send(self._out) :]
        for _ in range(READS_PER_TURN_MAX):
            data = self.sock.recv(RESPONSE_BYTES)
            if not data:
                raise OSError(errno.ECONNRESET, "closed without an answer")
            self.outcome.response = self._reader.feed(data)
            if self.outcome.response is not None:
                return False
        return True


def _read(opened: socket.socket) -> list[tuple[bytes, Endpoint]]:
    found = []
    for _ in range(READS_PER_TURN_MAX):
        try:
            datagram, source = opened.recvfrom(DATAGRAM_BYTES)
        except BlockingIOError:
            break
        except OSError:  # an ICMP error that some earlier datagram caused
            continue
        found.append((datagram, Endpoint(source)))
    return found


def _address(family: int, sockaddr: tuple[str, int]) -> Address:
    """With our own address towards it, as the routes are now: connecting a UDP socket sends nothing."""
    packed = socket.inet_pton(family, sockaddr[0].partition("%")[0])
    with socket.socket(family, socket.SOCK_DGRAM) as asking:
        try:
            asking.connect(sockaddr)
            return packed, socket.inet_pton(family, asking.getsockname()[0].partition("%")[0])
        except OSError:
            return packed, None


def _text(address: bytes) -> str:
    return socket.inet_ntop(_FAMILIES[len(address)], address)
