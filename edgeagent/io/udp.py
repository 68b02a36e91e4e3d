"""One UDP port on IPv4 and IPv6, with the kernel's offloads, sticky source addresses and ECN."""

from __future__ import annotations

import errno
import socket
import sys
from collections import deque
from contextlib import suppress
from enum import Enum
from struct import Struct
from typing import TYPE_CHECKING

from edgeagent.proto.endpoint import Endpoint, Transmit

if TYPE_CHECKING:
    from collections.abc import Callable

    Address = tuple[str, int] | tuple[str, int, int, int]
    Ancillary = list[tuple[int, int, bytes]]

BUFFER_BYTES = 7 << 20  # of each socket, each way, as far as the kernel lets us
DATAGRAM_MAX = 65_535
BACKLOG_DATAGRAMS_MAX = 1024  # that wait for a full send buffer
ENDPOINTS_MAX = 4096  # known sources, so that a peer's datagrams share one Endpoint
_SEGMENTS_MAX = 64  # datagrams of one send: UDP_MAX_SEGMENTS of Linux before 6.9
_SEGMENTED_BYTES_MAX = 65_000
_PORT_TRIES_MAX = 100
_ANCILLARY_BYTES = 256

_SOL_UDP, _UDP_SEGMENT, _UDP_GRO = 17, 103, 104
_IP_TOS, _IP_TTL, _IP_PKTINFO, _IP_RECVTOS = 1, 2, 8, 13
_IPV6_RECVPKTINFO, _IPV6_PKTINFO, _IPV6_HOPLIMIT, _IPV6_RECVTCLASS, _IPV6_TCLASS = 49, 50, 52, 66, 67
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = (31, 33) if socket.SOL_SOCKET == 0xFFFF else (32, 33)  # MIPS and its kin first
_PKTINFO4 = Struct("=i4s4s")  # interface, local address, destination of the header
_PKTINFO6 = Struct("=16si")
_INT, _U16 = Struct("=i"), Struct("=H")
_BYTE_ORDER = sys.byteorder
# What sending from an address or interface that is gone comes back as
_SOURCE_GONE = (errno.EINVAL, errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.ENODEV)


class UdpDrop(Enum):
    """Why a datagram was not sent; the value is its name in `status`."""

    NO_SOCKET = "no-socket"  # the port is closed, or the system lacks that IP version
    BACKLOG_FULL = "backlog-full"  # the uplink is slower than the traffic
    TOO_LONG = "datagram-too-long"  # longer than the path takes, and not to be fragmented
    NO_ROUTE = "no-route"  # the kernel has no way to the endpoint
    REFUSED = "send-refused"  # by a firewall or for want of memory


class Udp:
    """`open`, then `receive(fd)` whenever one of `fds` is readable, and `send`.

    After `send`, `drain_source_failures` names the endpoints whose sticky source address is gone: their datagrams went
    out from another one. While `blocked_fd` is not None the send buffer is full: `resume` when that is writable, and
    until then ask for no more to be sent. Sockets stay in the network namespace in which `open` was called.

    When `sent` is a list, what the kernel took is put into it for whoever counts, and is theirs to clear.
    """

    __slots__ = (
        "_backlog",
        "_backlog_datagrams",
        "_endpoints",
        "_failures",
        "_segment",
        "_sockets",
        "blocked_fd",
        "drops",
        "mark",
        "port",
        "sent",
    )

    def __init__(self) -> None:
        self.port = 0
        self.mark = 0
        self.drops: dict[UdpDrop, int] = dict.fromkeys(UdpDrop, 0)
        self.blocked_fd: int | None = None
        self.sent: list[tuple[Endpoint, list[bytes]]] | None = None
        self._sockets: dict[int, socket.socket] = {}  # by address family
        self._segment: dict[int, bool] = {}  # by address family: UDP_SEGMENT works
        self._endpoints: dict[tuple[Address, bytes], Endpoint] = {}
        self._failures: list[Endpoint] = []
        self._backlog: deque[Transmit] = deque()
        self._backlog_datagrams = 0

    # Opening

    def open(self, port: int) -> int:
        """Bind both IP versions to `port` (0: the kernel picks one that is free in both) and return it.

        Raises OSError: EADDRINUSE, EACCES, EAFNOSUPPORT where there is neither IP version.
        """
        self.close()
        for attempt in range(_PORT_TRIES_MAX):
            try:
                self._open_both(port)
                return self.port
            except OSError as error:
                self.close()
                if port or error.errno != errno.EADDRINUSE or attempt == _PORT_TRIES_MAX - 1:
                    raise
        raise OSError(errno.EADDRINUSE, "no port is free in both IP versions")

    def _open_both(self, port: int) -> None:
        for family, host in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
            try:
                opened = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            except OSError as error:
                if error.errno != errno.EAFNOSUPPORT:
                    raise
                continue
            self._sockets[family] = opened
            self._set_options(family, opened)
            opened.bind((host, port))
            port = self.port = opened.getsockname()[1]
        if not self._sockets:
            raise OSError(errno.EAFNOSUPPORT, "neither IPv4 nor IPv6")

    def _set_options(self, family: int, opened: socket.socket) -> None:
        for option, forced in ((socket.SO_SNDBUF, _SO_SNDBUFFORCE), (socket.SO_RCVBUF, _SO_RCVBUFFORCE)):
            opened.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
            with suppress(OSError):  # goes beyond net.core.*mem_max, with CAP_NET_ADMIN
                opened.setsockopt(socket.SOL_SOCKET, forced, BUFFER_BYTES)
        if family == socket.AF_INET:
            opened.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
            opened.setsockopt(socket.IPPROTO_IP, _IP_RECVTOS, 1)
        else:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            opened.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
            opened.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVTCLASS, 1)
        if self.mark:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, self.mark)
        try:
            opened.getsockopt(_SOL_UDP, _UDP_SEGMENT)  # Linux 4.18
            self._segment[family] = True
        except OSError:
            self._segment[family] = False
        with suppress(OSError):  # Linux 5.0
            opened.setsockopt(_SOL_UDP, _UDP_GRO, 1)

    def set_mark(self, mark: int) -> None:
        """SO_MARK of all that is sent, now and after later opens; 0 for none. Raises OSError: EPERM."""
        for opened in self._sockets.values():
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        self.mark = mark

    def close(self) -> None:
        """Close both sockets and drop what waits. Harmless when repeated."""
        for opened in self._sockets.values():
            opened.close()
        self._sockets.clear()
        self._segment.clear()
        self.port = 0
        self._drop(UdpDrop.NO_SOCKET, self._backlog_datagrams)
        self._backlog.clear()
        self._backlog_datagrams = 0
        self.blocked_fd = None

    @property
    def fds(self) -> list[int]:
        return [opened.fileno() for opened in self._sockets.values()]

    # Receiving

    def receive(self, fd: int, reads_max: int) -> list[tuple[bytes, Endpoint, int]]:
        """(datagram, source, ECN field) of up to `reads_max` reads; one may hold 64 datagrams of one source."""
        batch: list[tuple[bytes, Endpoint, int]] = []
        receive: Callable[..., tuple[bytes, Ancillary, int, Address]]
        for opened in self._sockets.values():
            if opened.fileno() == fd:
                receive = opened.recvmsg
                break
        else:
            return batch
        for _ in range(reads_max):
            try:
                data, ancillary, _, address = receive(DATAGRAM_MAX, _ANCILLARY_BYTES)
            except BlockingIOError:
                break
            except OSError:  # an ICMP error that some earlier datagram caused; reading it has cleared it
                continue
            segment = ecn = 0
            local = b""
            for level, kind, value in ancillary:
                if level == _SOL_UDP:
                    segment = int.from_bytes(value[:4], _BYTE_ORDER)
                elif kind in (_IP_PKTINFO, _IPV6_PKTINFO):
                    local = value
                elif kind in (_IP_TOS, _IPV6_TCLASS):
                    ecn = int.from_bytes(value, _BYTE_ORDER) & 3
            endpoint = self._endpoints.get((address, local)) or self._remember(address, local)
            if 0 < segment < len(data):
                batch += [(data[at : at + segment], endpoint, ecn) for at in range(0, len(data), segment)]
            else:
                batch.append((data, endpoint, ecn))
        return batch

    def _remember(self, address: Address, pktinfo: bytes) -> Endpoint:
        local = None
        if len(pktinfo) == _PKTINFO4.size:
            interface, source, _ = _PKTINFO4.unpack(pktinfo)
            local = (source, interface)
        elif len(pktinfo) == _PKTINFO6.size:
            local = _PKTINFO6.unpack(pktinfo)
        if len(self._endpoints) >= ENDPOINTS_MAX:
            self._endpoints.clear()
        endpoint = self._endpoints[address, pktinfo] = Endpoint(address, local)
        return endpoint

    # Sending

    def send(self, transmits: list[Transmit]) -> None:
        """Send in order. What a full buffer refuses waits in the backlog; beyond its bound it is dropped."""
        for transmit in transmits:
            if self._backlog or not self._send(transmit):
                self._backlog.append(transmit)
                self._backlog_datagrams += len(transmit.datagrams)
                while self._backlog_datagrams > BACKLOG_DATAGRAMS_MAX:
                    oldest = self._backlog.popleft()
                    self._backlog_datagrams -= len(oldest.datagrams)
                    self._drop(UdpDrop.BACKLOG_FULL, len(oldest.datagrams))

    def resume(self) -> None:
        """`blocked_fd` is writable: send the backlog on."""
        self.blocked_fd = None
        while self._backlog:
            waiting = len(self._backlog[0].datagrams)
            done = self._send(self._backlog[0])
            if not done:
                self._backlog_datagrams -= waiting - len(self._backlog[0].datagrams)
                return
            self._backlog_datagrams -= waiting
            self._backlog.popleft()

    def drain_source_failures(self) -> list[Endpoint]:
        failures, self._failures = self._failures, []
        return failures

    def _send(self, transmit: Transmit) -> bool:
        """False when the buffer is full; the datagrams that were not sent are left in `transmit`."""
        endpoint, datagrams = transmit.endpoint, transmit.datagrams
        family = socket.AF_INET if len(endpoint.addr) == 2 else socket.AF_INET6
        opened = self._sockets.get(family)
        if opened is None:
            self._drop(UdpDrop.NO_SOCKET, len(datagrams))
            return True
        segmented = self._segment[family]
        ancillary = _ancillary(family, endpoint, transmit)
        at, count = 0, len(datagrams)
        while at < count:
            size = len(datagrams[at])
            end = _group_end(datagrams, at) if segmented else at + 1
            group = datagrams[at:end]
            control = [*ancillary, (_SOL_UDP, _UDP_SEGMENT, _U16.pack(size))] if end - at > 1 else ancillary
            try:
                opened.sendmsg(group, control, 0, endpoint.addr)
            except BlockingIOError:
                transmit.endpoint, transmit.datagrams = endpoint, datagrams[at:]
                self.blocked_fd = opened.fileno()
                return False
            except OSError as error:
                if error.errno == errno.EIO and end - at > 1:
                    # udp(7): the device cannot checksum what it would have to segment
                    segmented = self._segment[family] = False
                    continue
                if error.errno in _SOURCE_GONE and endpoint.local is not None:
                    self._failures.append(endpoint)
                    endpoint = endpoint.unpinned()
                    ancillary = _ancillary(family, endpoint, transmit)
                    continue
                if error.errno in (errno.EINVAL, errno.EMSGSIZE) and end - at > 1:
                    segmented = False  # the segments do not fit the path: let each be fragmented or refused alone
                    continue
                self._drop(_reason(error.errno), end - at)
            else:
                if self.sent is not None:
                    self.sent.append((endpoint, group))
            at = end
        return True

    def _drop(self, reason: UdpDrop, datagrams: int) -> None:
        self.drops[reason] += datagrams


def _group_end(datagrams: list[bytes], at: int) -> int:
    """Where the longest group ends that one UDP_SEGMENT send can take: equal sizes, and one shorter at the end."""
    size = len(datagrams[at])
    end = at + max(1, min(_SEGMENTS_MAX, _SEGMENTED_BYTES_MAX // size if size else 1, len(datagrams) - at))
    for i in range(at + 1, end):
        if len(datagrams[i]) != size:
            return i + 1 if len(datagrams[i]) < size else i
    return end


def _ancillary(family: int, endpoint: Endpoint, transmit: Transmit) -> Ancillary:
    ancillary: Ancillary = []
    ecn, ttl = transmit.ecn, transmit.ttl
    if family == socket.AF_INET:
        if endpoint.local is not None:
            source, interface = endpoint.local
            ancillary.append((socket.IPPROTO_IP, _IP_PKTINFO, _PKTINFO4.pack(interface, source, b"")))
        if ecn:
            ancillary.append((socket.IPPROTO_IP, _IP_TOS, _INT.pack(ecn)))
        if ttl is not None:
            ancillary.append((socket.IPPROTO_IP, _IP_TTL, _INT.pack(ttl)))
    else:
        if endpoint.local is not None:
            ancillary.append((socket.IPPROTO_IPV6, _IPV6_PKTINFO, _PKTINFO6.pack(*endpoint.local)))
        if ecn:
            ancillary.append((socket.IPPROTO_IPV6, _IPV6_TCLASS, _INT.pack(ecn)))
        if ttl is not None:
            ancillary.append((socket.IPPROTO_IPV6, _IPV6_HOPLIMIT, _INT.pack(ttl)))
    return ancillary


def _reason(number: int | None) -> UdpDrop:
    if number == errno.EMSGSIZE:
        return UdpDrop.TOO_LONG
    if number in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENODEV, errno.EADDRNOTAVAIL, errno.EINVAL):
        return UdpDrop.NO_ROUTE
    return UdpDrop.REFUSED
