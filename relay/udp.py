"""The relay's UDP ports: trains of datagrams in and out, by the kernel's GRO and GSO where it has them."""

from __future__ import annotations

import errno
import socket
import sys
from collections import deque
from contextlib import suppress
from struct import Struct

from edgeagent.proto.endpoint import Endpoint
from relay.core.shared import SEGMENTS_MAX, TRAIN_BYTES_MAX, Train

Address = tuple[str, int] | tuple[str, int, int, int]
Ancillary = list[tuple[int, int, bytes]]

BUFFER_BYTES = 8 << 20  # of each socket, each way, as far as the kernel lets us
READS_MAX = 32  # of one wake-up
BACKLOG_TRAINS_MAX = 256  # that wait for a full send buffer; the oldest give way
ENDPOINTS_MAX = 16_384  # known sources, so that a session's trains share one Endpoint
_DATAGRAM_MAX = 65_535
_ANCILLARY_BYTES = 256

_SOL_UDP, _UDP_SEGMENT, _UDP_GRO = 17, 103, 104
_IP_TOS, _IP_PKTINFO, _IP_RECVTOS = 1, 8, 13
_IPV6_RECVPKTINFO, _IPV6_PKTINFO, _IPV6_RECVTCLASS, _IPV6_TCLASS = 49, 50, 66, 67
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _PMTUDISC_DONT = 10, 23, 0
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_PKTINFO4 = Struct("=i4s4s")  # interface, local address, destination of the header
_PKTINFO6 = Struct("=16si")
_INT, _U16 = Struct("=i"), Struct("=H")


class RelayUdp:
    """`open`, then `receive(fd)` when one of `fds` is readable, and `send`. `second_fds` are those of the second port.

    While `blocked_fds` is not empty, `resume` when one of them is writable.
    """

    def __init__(self) -> None:
        self.dropped = 0
        self._sockets: dict[int, socket.socket] = {}  # by file descriptor
        self._of: dict[tuple[int, bool], socket.socket] = {}  # by address family and whether it is the second port
        self._second: set[int] = set()
        self._segment = True
        self._endpoints: dict[tuple[Address, bytes], Endpoint] = {}
        self._backlog: deque[Train] = deque()
        self.blocked_fds: set[int] = set()

    def open(self, host: str, port: int, second_port: int | None) -> None:
        """Bind `host`, or without one every address of both IP versions. Raises OSError."""
        for second, number in ((False, port), (True, second_port)):
            if number is None:
                continue
            for family, address in _wildcards() if not host else [(_family_of(host), host)]:
                try:
                    opened = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
                except OSError as error:
                    if host or error.errno != errno.EAFNOSUPPORT:
                        raise
                    continue
                self._sockets[opened.fileno()] = opened
                self._of[family, second] = opened
                if second:
                    self._second.add(opened.fileno())
                self._set_options(family, opened)
                opened.bind((address, number))
        if not self._sockets:
            raise OSError(errno.EAFNOSUPPORT, "neither IPv4 nor IPv6")

    def _set_options(self, family: int, opened: socket.socket) -> None:
        for option, forced in ((socket.SO_SNDBUF, _SO_SNDBUFFORCE), (socket.SO_RCVBUF, _SO_RCVBUFFORCE)):
            opened.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
            with suppress(OSError):  # goes beyond net.core.*mem_max, with CAP_NET_ADMIN
                opened.setsockopt(socket.SOL_SOCKET, forced, BUFFER_BYTES)
        # A relay is what is left when nothing else works: rather fragments than packets that never arrive
        if family == socket.AF_INET:
            opened.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_DONT)
            opened.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
            opened.setsockopt(socket.IPPROTO_IP, _IP_RECVTOS, 1)
        else:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            opened.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_DONT)
            opened.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
            opened.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVTCLASS, 1)
        try:
            opened.getsockopt(_SOL_UDP, _UDP_SEGMENT)  # Linux 4.18
        except OSError:
            self._segment = False
        with suppress(OSError):  # Linux 5.0
            opened.setsockopt(_SOL_UDP, _UDP_GRO, 1)

    @property
    def fds(self) -> list[int]:
        return list(self._sockets)

    @property
    def second_fds(self) -> frozenset[int]:
        return frozenset(self._second)

    @property
    def port(self) -> int:
        """The port that the first primary socket got."""
        for (_, second), opened in self._of.items():
            if not second:
                return int(opened.getsockname()[1])
        return 0

    def close(self) -> None:
        for opened in self._sockets.values():
            opened.close()
        self._sockets.clear()
        self._of.clear()
        self._backlog.clear()
        self.blocked_fds.clear()

    def receive(self, fd: int) -> list[Train]:
        """What up to READS_MAX reads bring."""
        trains: list[Train] = []
        receive = self._sockets[fd].recvmsg
        for _ in range(READS_MAX):
            try:
                data, ancillary, _, address = receive(_DATAGRAM_MAX, _ANCILLARY_BYTES)
            except BlockingIOError:
                break
            except OSError:  # an ICMP error that some earlier datagram caused; reading it has cleared it
                continue
            segment = ecn = 0
            local = b""
            for level, kind, value in ancillary:
                if level == _SOL_UDP:
                    segment = int.from_bytes(value[:4], sys.byteorder)
                elif kind in (_IP_PKTINFO, _IPV6_PKTINFO):
                    local = value
                elif kind in (_IP_TOS, _IPV6_TCLASS):
                    ecn = int.from_bytes(value, sys.byteorder) & 3
            endpoint = self._endpoints.get((address, local)) or self._remember(address, local)
            trains.append(Train(endpoint, data, segment if 0 < segment < len(data) else len(data), ecn))
        return trains

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

    def send(self, trains: list[Train]) -> None:
        """In order; what a full buffer refuses waits, and beyond a bound the oldest is dropped."""
        for train in trains:
            if self._backlog or not self._send(train):
                self._backlog.append(train)
                if len(self._backlog) > BACKLOG_TRAINS_MAX:
                    self.dropped += len(self._backlog.popleft())

    def resume(self) -> None:
        """There is room again: send on what waited."""
        self.blocked_fds.clear()
        while self._backlog:
            if not self._send(self._backlog[0]):
                return
            self._backlog.popleft()

    def _send(self, train: Train) -> bool:
        """False when the buffer is full; what was sent is cut from the train."""
        endpoint, data, segment = train.endpoint, train.data, train.segment
        family = socket.AF_INET if len(endpoint.addr) == 2 else socket.AF_INET6
        opened = self._of.get((family, train.from_second_port))
        if opened is None:
            self.dropped += len(train)
            return True
        ancillary = _ancillary(family, endpoint, train.ecn)
        at, size = 0, len(data)
        segmented = self._segment
        view = memoryview(data)
        while at < size:
            step = segment * min(SEGMENTS_MAX, TRAIN_BYTES_MAX // segment) if segmented else segment
            piece = view[at : at + max(step, segment)]
            control = [*ancillary, (_SOL_UDP, _UDP_SEGMENT, _U16.pack(segment))] if len(piece) > segment else ancillary
            try:
                opened.sendmsg((piece,), control, 0, endpoint.addr)
            except BlockingIOError:
                train.data = data[at:]
                self.blocked_fds.add(opened.fileno())
                return False
            except OSError as error:
                if len(piece) > segment and error.errno in (errno.EIO, errno.EINVAL, errno.EMSGSIZE):
                    # udp(7): the device cannot checksum what it would segment, or segments do not fit the path
                    self._segment = self._segment and error.errno != errno.EIO
                    segmented = False
                    continue
                self.dropped += max(1, -(-len(piece) // segment))
            at += len(piece)
        return True


def _wildcards() -> list[tuple[socket.AddressFamily, str]]:
    return [(socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")]


def _family_of(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _ancillary(family: int, endpoint: Endpoint, ecn: int) -> Ancillary:
    ancillary: Ancillary = []
    if family == socket.AF_INET:
        if endpoint.local is not None:
            source, interface = endpoint.local
            ancillary.append((socket.IPPROTO_IP, _IP_PKTINFO, _PKTINFO4.pack(interface, source, b"")))
        if ecn:
            ancillary.append((socket.IPPROTO_IP, _IP_TOS, _INT.pack(ecn)))
    else:
        if endpoint.local is not None:
            ancillary.append((socket.IPPROTO_IPV6, _IPV6_PKTINFO, _PKTINFO6.pack(*endpoint.local)))
        if ecn:
            ancillary.append((socket.IPPROTO_IPV6, _IPV6_TCLASS, _INT.pack(ecn)))
    return ancillary
