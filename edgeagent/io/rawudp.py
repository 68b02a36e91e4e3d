"""Beside a UDP port that the kernel's WireGuard holds: what comes there and is not WireGuard's, and sending from it.

A raw socket gets a copy of each UDP packet for this host, and a filter of the kernel (classic BPF) keeps those for the
port; of WireGuard's messages it lets through initiations only, for strangers may send them. See raw(7), bpf(4).
"""

from __future__ import annotations

import array
import socket
from contextlib import suppress
from struct import Struct, pack
from typing import TYPE_CHECKING

from edgeagent.io.udpsocket import DATAGRAM_MAX, SOURCE_GONE, TOO_LONG_MAX, UdpDrop, UdpSocket, reason_of

if TYPE_CHECKING:
    from edgeagent.io.udpsocket import Address, UdpShared
    from edgeagent.proto.endpoint import Endpoint, Transmit

UDP_HEADER = Struct("!HHHH")  # source port, destination port, length, checksum
READS_MORE = 16  # for each of another socket's, which may hold 64 datagrams
_ANCILLARY_BYTES = 256
_EARLY_MAX = 1024
_SO_ATTACH_FILTER, _IPV6_CHECKSUM, _CHECKSUM_AT = 26, 7, 6
_IP_PKTINFO, _IPV6_PKTINFO = 8, 50
# linux/filter.h
_LD_W_IND, _LD_H_IND, _LD_W_ABS, _LD_H_ABS, _LDX_MSH = 0x40, 0x48, 0x20, 0x28, 0xB1
_JEQ, _RET = 0x15, 0x06
_PASS = 0xFFFF_FFFF
_UNASKED = (2, 3, 4)  # WireGuard's response, cookie reply and transport data
Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, operand


def port_filter(family: int, port: int) -> list[Instruction]:
    """Passes what is for `port` and begins with none of the messages that only the owner of a session wants. A raw
    socket of IPv4 sees the IP header, one of IPv6 does not."""
    four = family == socket.AF_INET
    tests = [kind << 24 for kind in _UNASKED]  # the first four bytes in network order; three are zero
    code: list[Instruction] = [(_LDX_MSH, 0, 0, 0)] if four else []  # X = length of the IP header
    code.append((_LD_H_IND if four else _LD_H_ABS, 0, 0, 2))
    code.append((_JEQ, 0, 2 + len(tests), port))
    code.append((_LD_W_IND if four else _LD_W_ABS, 0, 0, UDP_HEADER.size))  # shorter ones end here, unpassed
    for number, operand in enumerate(tests):
        code.append((_JEQ, len(tests) - number, 0, operand))
    code += [(_RET, 0, 0, _PASS), (_RET, 0, 0, 0)]
    return code


class RawSocket(UdpSocket):
    """As a UdpSocket bound to `port`, which somebody else has bound. Raises OSError: EPERM without CAP_NET_RAW."""

    __slots__ = ("_port",)

    def __init__(self, shared: UdpShared, family: int, port: int, uplink: tuple[str, int] | None = None) -> None:
        self._port = port
        super().__init__(shared, family, port, uplink)

    @property
    def port(self) -> int:
        return self._port

    def _open(self, port: int) -> socket.socket:
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        opened = socket.socket(self.family, kind, socket.IPPROTO_UDP)
        try:
            code = array.array("B", b"".join(pack("=HBBI", *each) for each in port_filter(self.family, port)))
            address, size = code.buffer_info()
            opened.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, pack("@HP", size // 8, address))
            if self.family == socket.AF_INET6:
                opened.setsockopt(socket.IPPROTO_IPV6, _IPV6_CHECKSUM, _CHECKSUM_AT)
            with suppress(BlockingIOError):  # what came before the filter was there
                for _ in range(_EARLY_MAX):
                    opened.recv(1)
        except OSError:
            opened.close()
            raise
        return opened

    def _bind(self, port: int) -> None:
        """It has no port of its own."""

    def receive(self, reads_max: int) -> list[tuple[bytes, Endpoint, int]]:
        batch: list[tuple[bytes, Endpoint, int]] = []
        four = self.family == socket.AF_INET
        for _ in range(reads_max * READS_MORE):
            try:
                data, ancillary, _, address = self._socket.recvmsg(DATAGRAM_MAX, _ANCILLARY_BYTES)
            except BlockingIOError:
                break
            except OSError:
                continue
            at = (data[0] & 15) * 4 if four and data else 0
            if len(data) < at + UDP_HEADER.size:
                self._shared.drop(UdpDrop.MALFORMED, [data])
                continue
            source, port, length, _ = UDP_HEADER.unpack_from(data, at)
            if port != self._port:
                continue  # of the port before; the filter let it in before it was this one's
            if not UDP_HEADER.size <= length <= len(data) - at or not source:
                self._shared.drop(UdpDrop.MALFORMED, [data])
                continue
            ecn = data[1] & 3 if four else 0
            local = b""
            for _, kind, value in ancillary:
                if kind in (_IP_PKTINFO, _IPV6_PKTINFO):
                    local = value
            whole: Address = (address[0], source, *address[2:])
            endpoint = self._shared.endpoints.get((whole, local)) or self._remember(whole, local)
            batch.append((data[at + UDP_HEADER.size : at + length], endpoint, ecn))
        return batch

    def _send(self, transmit: Transmit) -> bool:
        """False when the buffer is full; the datagrams that were not sent are left in `transmit`."""
        shared, endpoint = self._shared, transmit.endpoint
        if transmit.fragment is not self._fragments and not shared.mtu_by_kernel:
            self._let_fragment(transmit.fragment)
        ancillary = self._ancillary(endpoint, transmit)
        for at, datagram in enumerate(transmit.datagrams):
            # Without a checksum over IPv4 (RFC 768: it is optional): the source is not known before the route is. All
            # that goes by here is sealed. Over IPv6 the kernel fills it in.
            length = min(UDP_HEADER.size + len(datagram), DATAGRAM_MAX)  # of longer ones the kernel says that they are
            header = UDP_HEADER.pack(self._port, endpoint.addr[1], length, 0)
            while True:
                host = (endpoint.addr[0], 0, *endpoint.addr[2:])
                try:
                    self._socket.sendmsg([header, datagram], ancillary, 0, host)
                except BlockingIOError:
                    transmit.endpoint, transmit.datagrams = endpoint, transmit.datagrams[at:]
                    self.is_blocked = True
                    return False
                except OSError as error:
                    if error.errno in SOURCE_GONE and endpoint.local is not None:
                        shared.failures.append(endpoint)
                        if endpoint != endpoint.unpinned():
                            endpoint = endpoint.unpinned()
                            ancillary = self._ancillary(endpoint, transmit)
                            continue
                    reason = reason_of(error.errno)
                    shared.drop(reason, [datagram])
                    if reason is UdpDrop.TOO_LONG and not transmit.fragment and len(shared.too_long) < TOO_LONG_MAX:
                        shared.too_long.append((endpoint, len(datagram)))
                else:
                    if shared.sent is not None:
                        shared.sent.append((endpoint, [datagram]))
                break
        return True
