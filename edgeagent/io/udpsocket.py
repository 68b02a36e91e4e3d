"""One UDP socket of a port, with the kernel's offloads, sticky source addresses, ECN, and a backlog of its own."""

from __future__ import annotations

import errno
import socket
import sys
from collections import deque
from contextlib import suppress
from enum import Enum
from struct import Struct
from typing import TYPE_CHECKING

from edgeagent.proto.endpoint import Endpoint, UplinkEndpoint

if TYPE_CHECKING:
    from edgeagent.proto.endpoint import Transmit

    Address = tuple[str, int] | tuple[str, int, int, int]
    Ancillary = list[tuple[int, int, bytes]]

BUFFER_BYTES = 7 << 20  # of each socket, each way, as far as the kernel lets us
DATAGRAM_MAX = 65_535
BACKLOG_DATAGRAMS_MAX = 1024  # that wait for a full send buffer, of each socket
ENDPOINTS_MAX = 4096  # known sources, so that a peer's datagrams share one Endpoint
TOO_LONG_MAX = 64  # not yet drained
_SEGMENTS_MAX = 64  # datagrams of one send: UDP_MAX_SEGMENTS of Linux before 6.9
_SEGMENTED_BYTES_MAX = 65_000
_ANCILLARY_BYTES = 256

_SOL_UDP, _UDP_SEGMENT, _UDP_GRO = 17, 103, 104
_IP_TOS, _IP_TTL, _IP_PKTINFO, _IP_MTU_DISCOVER, _IP_RECVTOS = 1, 2, 8, 10, 13
_IPV6_RECVPKTINFO, _IPV6_PKTINFO, _IPV6_HOPLIMIT, _IPV6_RECVTCLASS, _IPV6_TCLASS = 49, 50, 52, 66, 67
_IPV6_MTU_DISCOVER, _IPV6_DONTFRAG = 23, 62
_PMTUDISC_DONT, _PMTUDISC_PROBE = 0, 3
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = (31, 33) if socket.SOL_SOCKET == 0xFFFF else (32, 33)  # MIPS and its kin first
_PKTINFO4 = Struct("=i4s4s")  # interface, local address, destination of the header
_PKTINFO6 = Struct("=16si")
_INT, _U16 = Struct("=i"), Struct("=H")
_BYTE_ORDER = sys.byteorder
# What sending from an address or interface that is gone comes back as
SOURCE_GONE = (errno.EINVAL, errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.ENODEV)


class UdpDrop(Enum):
    """Why a datagram was neither sent nor taken; the value is its name in `status`."""

    NO_SOCKET = "no-socket"  # the port is closed, or the system lacks that IP version
    BACKLOG_FULL = "backlog-full"  # the uplink is slower than the traffic
    TOO_LONG = "datagram-too-long"  # longer than the path takes, and not to be fragmented
    NO_ROUTE = "no-route"  # the kernel has no way to the endpoint
    REFUSED = "send-refused"  # by a firewall or for want of memory
    MALFORMED = "udp-malformed"  # what came beside the kernel's WireGuard, and its UDP header contradicts its length


class UdpShared:
    """What the sockets of one port have in common: settings, known sources, and what became of what was to be sent.

    When `sent` is a list, what the kernel took is put into it, for whoever counts.
    """

    __slots__ = ("drops", "endpoints", "failures", "mark", "mtu_by_kernel", "sent", "too_long")

    def __init__(self, mtu_by_kernel: bool) -> None:
        self.mtu_by_kernel = mtu_by_kernel
        self.mark = 0
        self.drops: dict[UdpDrop, int] = dict.fromkeys(UdpDrop, 0)
        self.endpoints: dict[tuple[Address, bytes], Endpoint] = {}
        self.failures: list[Endpoint] = []
        self.too_long: list[tuple[Endpoint, int]] = []
        self.sent: list[tuple[Endpoint, list[bytes]]] | None = None

    def drop(self, reason: UdpDrop, datagrams: list[bytes]) -> None:
        self.drops[reason] += len(datagrams)


class UdpSocket:
    """Made and bound for one IP version, and for one `uplink` by name and interface index if it is not for all.

    `receive` when it is readable. `send` keeps in order what a full buffer refuses; then `is_blocked`, and `resume` is
    wanted when it is writable. Raises OSError from its constructor and from `set_mark`.
    """

    __slots__ = ("_backlog", "_fragments", "_segments", "_shared", "_socket", "family", "fd", "is_blocked", "uplink",
                 "waiting")  # fmt: skip

    def __init__(self, shared: UdpShared, family: int, port: int, uplink: tuple[str, int] | None = None) -> None:
        self._shared = shared
        self._backlog: deque[Transmit] = deque()
        self._fragments: bool | None = None  # None: as the kernel finds the path's MTU
        self._segments = False  # UDP_SEGMENT works
        self.family = family
        self.waiting = 0  # datagrams in the backlog
        self.is_blocked = False
        self.uplink = 0 if uplink is None else uplink[1]
        self._socket = self._open(port)
        self.fd = self._socket.fileno()
        try:
            self._set_options()
            if uplink is not None:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, uplink[0].encode() + b"\0")
                self.share_port(True)
            self._bind(port)
        except OSError:
            self._socket.close()
            raise

    def _open(self, port: int) -> socket.socket:
        return socket.socket(self.family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)

    def _bind(self, port: int) -> None:
        if self.family == socket.AF_INET6:
            self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        self._socket.bind(("0.0.0.0" if self.family == socket.AF_INET else "::", port))

    def _set_options(self) -> None:
        opened = self._socket
        for option, forced in ((socket.SO_SNDBUF, _SO_SNDBUFFORCE), (socket.SO_RCVBUF, _SO_RCVBUFFORCE)):
            opened.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
            with suppress(OSError):  # goes beyond net.core.*mem_max, with CAP_NET_ADMIN
                opened.setsockopt(socket.SOL_SOCKET, forced, BUFFER_BYTES)
        if self.family == socket.AF_INET:
            opened.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
            opened.setsockopt(socket.IPPROTO_IP, _IP_RECVTOS, 1)
        else:
            opened.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
            opened.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVTCLASS, 1)
        if self._shared.mark:
            self.set_mark(self._shared.mark)
        with suppress(OSError):
            opened.getsockopt(_SOL_UDP, _UDP_SEGMENT)  # Linux 4.18
            self._segments = True
        with suppress(OSError):  # Linux 5.0
            opened.setsockopt(_SOL_UDP, _UDP_GRO, 1)
        if not self._shared.mtu_by_kernel:
            self._let_fragment(False)

    def set_mark(self, mark: int) -> None:
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)

    def share_port(self, shared: bool) -> None:
        """Let others be bound to the same port beside this, for as long as it is so."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, shared)

    def close(self) -> None:
        """Drop what waits."""
        self._socket.close()
        for transmit in self._backlog:
            self._shared.drop(UdpDrop.NO_SOCKET, transmit.datagrams)
        self._backlog.clear()
        self.waiting = 0
        self.is_blocked = False

    @property
    def port(self) -> int:
        port: int = self._socket.getsockname()[1]
        return port

    @property
    def segments(self) -> bool:
        """Whether UDP_SEGMENT works."""
        return self._segments

    # Receiving

    def receive(self, reads_max: int) -> list[tuple[bytes, Endpoint, int]]:
        """(datagram, source, ECN field) of up to `reads_max` reads; one may hold 64 datagrams of one source."""
        batch: list[tuple[bytes, Endpoint, int]] = []
        receive, endpoints = self._socket.recvmsg, self._shared.endpoints
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
            endpoint = endpoints.get((address, local)) or self._remember(address, local)
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
        endpoints = self._shared.endpoints
        if len(endpoints) >= ENDPOINTS_MAX:
            endpoints.clear()
        by_uplink = self.uplink and local is not None
        endpoint = endpoints[address, pktinfo] = (UplinkEndpoint if by_uplink else Endpoint)(address, local)
        return endpoint

    # Sending

    def send(self, transmit: Transmit) -> bool:
        """False when it, or a part of it, has to wait for room in the buffer. Beyond its bound the backlog drops."""
        if not self._backlog and self._send(transmit):
            return True
        self._backlog.append(transmit)
        self.waiting += len(transmit.datagrams)
        while self.waiting > BACKLOG_DATAGRAMS_MAX:
            oldest = self._backlog.popleft()
            self.waiting -= len(oldest.datagrams)
            self._shared.drop(UdpDrop.BACKLOG_FULL, oldest.datagrams)
        return False

    def resume(self) -> None:
        """Send the backlog on."""
        self.is_blocked = False
        while self._backlog:
            waiting = len(self._backlog[0].datagrams)
            done = self._send(self._backlog[0])
            if not done:
                self.waiting -= waiting - len(self._backlog[0].datagrams)
                return
            self.waiting -= waiting
            self._backlog.popleft()

    def _send(self, transmit: Transmit) -> bool:
        """False when the buffer is full; the datagrams that were not sent are left in `transmit`."""
        shared, endpoint, datagrams = self._shared, transmit.endpoint, transmit.datagrams
        if transmit.fragment is not self._fragments and not shared.mtu_by_kernel:
            self._let_fragment(transmit.fragment)
        segments = self._segments
        ancillary = self._ancillary(endpoint, transmit)
        at, count = 0, len(datagrams)
        while at < count:
            size = len(datagrams[at])
            end = _group_end(datagrams, at) if segments else at + 1
            group = datagrams[at:end]
            control = [*ancillary, (_SOL_UDP, _UDP_SEGMENT, _U16.pack(size))] if end - at > 1 else ancillary
            try:
                self._socket.sendmsg(group, control, 0, endpoint.addr)
            except BlockingIOError:
                transmit.endpoint, transmit.datagrams = endpoint, datagrams[at:]
                self.is_blocked = True
                return False
            except OSError as error:
                if error.errno == errno.EIO and end - at > 1:
                    # udp(7): the device cannot checksum what it would have to segment
                    segments = self._segments = False
                    continue
                if error.errno in (errno.EINVAL, errno.EMSGSIZE) and end - at > 1:
                    segments = False  # the segments do not fit the path: let each be fragmented or refused alone
                    continue
                if error.errno in SOURCE_GONE and endpoint.local is not None:
                    shared.failures.append(endpoint)
                    if endpoint != endpoint.unpinned():
                        endpoint = endpoint.unpinned()
                        ancillary = self._ancillary(endpoint, transmit)
                        continue
                reason = reason_of(error.errno)
                shared.drop(reason, group)
                if reason is UdpDrop.TOO_LONG and not transmit.fragment and len(shared.too_long) < TOO_LONG_MAX:
                    shared.too_long.append((endpoint, size))
            else:
                if shared.sent is not None:
                    shared.sent.append((endpoint, group))
            at = end
        return True

    def _let_fragment(self, fragments: bool) -> None:
        """Allowed: here and at any router. Else a datagram goes as it is, whatever an ICMP message says: anybody can
        send one (RFC 8899, section 4.6)."""
        self._fragments = fragments
        discover = _PMTUDISC_DONT if fragments else _PMTUDISC_PROBE
        if self.family == socket.AF_INET:
            self._socket.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, discover)
        else:
            self._socket.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, discover)
            self._socket.setsockopt(socket.IPPROTO_IPV6, _IPV6_DONTFRAG, not fragments)

    def _ancillary(self, endpoint: Endpoint, transmit: Transmit) -> Ancillary:
        ancillary: Ancillary = []
        ecn, ttl, local = transmit.ecn, transmit.ttl, endpoint.local
        if self.uplink and local is not None and not any(local[0]):
            local = None  # the socket is the pin
        if self.family == socket.AF_INET:
            if local is not None:
                ancillary.append((socket.IPPROTO_IP, _IP_PKTINFO, _PKTINFO4.pack(local[1], local[0], b"")))
            if ecn:
                ancillary.append((socket.IPPROTO_IP, _IP_TOS, _INT.pack(ecn)))
            if ttl is not None:
                ancillary.append((socket.IPPROTO_IP, _IP_TTL, _INT.pack(ttl)))
        else:
            if local is not None:
                ancillary.append((socket.IPPROTO_IPV6, _IPV6_PKTINFO, _PKTINFO6.pack(*local)))
            if ecn:
                ancillary.append((socket.IPPROTO_IPV6, _IPV6_TCLASS, _INT.pack(ecn)))
            if ttl is not None:
                ancillary.append((socket.IPPROTO_IPV6, _IPV6_HOPLIMIT, _INT.pack(ttl)))
        return ancillary


def _group_end(datagrams: list[bytes], at: int) -> int:
    """Where the longest group ends that one UDP_SEGMENT send can take: equal sizes, and one shorter at the end."""
    size = len(datagrams[at])
    end = at + max(1, min(_SEGMENTS_MAX, _SEGMENTED_BYTES_MAX // size if size else 1, len(datagrams) - at))
    for i in range(at + 1, end):
        if len(datagrams[i]) != size:
            return i + 1 if len(datagrams[i]) < size else i
    return end


def reason_of(number: int | None) -> UdpDrop:
    if number == errno.EMSGSIZE:
        return UdpDrop.TOO_LONG
    if number in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENODEV, errno.EADDRNOTAVAIL, errno.EINVAL):
        return UdpDrop.NO_ROUTE
    return UdpDrop.REFUSED
