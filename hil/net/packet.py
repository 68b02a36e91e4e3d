"""What a router reads and changes of Ethernet, ARP (RFC 826), IPv4 (RFC 791), UDP, TCP and ICMP echo."""

from __future__ import annotations

import struct

IPV4, ARP = 0x0800, 0x0806
ICMP, TCP, UDP = 1, 6, 17
BROADCAST = b"\xff" * 6
_CHECKSUM_AT = {TCP: 16, UDP: 6, ICMP: 2}


def ethernet(destination: bytes, source: bytes, kind: int, payload: bytes) -> bytes:
    return destination + source + struct.pack(">H", kind) + payload


def kind_of(frame: bytes) -> int:
    return int.from_bytes(frame[12:14], "big")


def arp_asked(frame: bytes) -> tuple[bytes, bytes, bytes] | None:
    """(MAC and IPv4 address of who asks, address that is asked for) of an ARP request."""
    if kind_of(frame) != ARP or len(frame) < 42 or frame[14:22] != b"\0\x01\x08\0\x06\x04\0\x01":
        return None
    return frame[22:28], frame[28:32], frame[38:42]


def arp_answer(mac: bytes, address: bytes, to_mac: bytes, to_address: bytes) -> bytes:
    body = b"\0\x01\x08\0\x06\x04\0\x02" + mac + address + to_mac + to_address
    return ethernet(to_mac, mac, ARP, body)


class Packet:
    """An IPv4 packet. For one that `ports` finds none in, both are None: NATs carry it no further."""

    __slots__ = ("at", "data", "protocol")

    def __init__(self, data: bytes) -> None:
        """Raises ValueError for what is none."""
        head = (data[0] & 15) * 4 if data else 0
        length = int.from_bytes(data[2:4], "big")
        if len(data) < 20 or data[0] >> 4 != 4 or head < 20 or not head <= length <= len(data):
            raise ValueError("no IPv4 packet")
        self.data = bytearray(data[:length])
        self.at = head  # where the transport header begins
        self.protocol = data[9]

    @property
    def source(self) -> bytes:
        return bytes(self.data[12:16])

    @property
    def destination(self) -> bytes:
        return bytes(self.data[16:20])

    @property
    def fragment(self) -> bool:
        return bool(int.from_bytes(self.data[6:8], "big") & 0x3FFF)

    def ports(self) -> tuple[int, int] | None:
        """(source, destination); of ICMP echo the identifier, for both."""
        if self.fragment or len(self.data) < self.at + 8:
            return None
        if self.protocol in (TCP, UDP):
            source, destination = struct.unpack_from(">HH", self.data, self.at)
            return source, destination
        if self.protocol == ICMP and self.data[self.at] in (0, 8):
            (identifier,) = struct.unpack_from(">H", self.data, self.at + 4)
            return identifier, identifier
        return None

    def translate(
        self, *, source: tuple[bytes, int] | None = None, destination: tuple[bytes, int] | None = None
    ) -> None:
        """Put other ends into it; checksums are changed by the difference (RFC 1624)."""
        before = bytes(self.data[12:20])
        before_ports = bytes(self.data[self.at : self.at + 6])
        for address_at, port_at, new in ((12, 0, source), (16, 2, destination)):
            if new is not None:
                self.data[address_at : address_at + 4] = new[0]
                where = self.at + (4 if self.protocol == ICMP else port_at)
                struct.pack_into(">H", self.data, where, new[1])
        addresses = bytes(self.data[12:20])
        ports = bytes(self.data[self.at : self.at + 6])
        self._mend(10, before, addresses, False)
        at = self.at + _CHECKSUM_AT[self.protocol]
        if self.protocol == ICMP:
            self._mend(at, before_ports[4:6], ports[4:6], False)
        else:
            self._mend(at, before + before_ports[:4], addresses + ports[:4], self.protocol == UDP)

    def hop(self) -> bool:
        """One router further; False where its time to live is over."""
        if self.data[8] <= 1:
            return False
        old = bytes(self.data[8:10])
        self.data[8] -= 1
        self._mend(10, old, bytes(self.data[8:10]), False)
        return True

    def _mend(self, at: int, old: bytes, new: bytes, zero_is_none: bool) -> None:
        if at + 2 > len(self.data):
            return
        (checksum,) = struct.unpack_from(">H", self.data, at)
        if zero_is_none and checksum == 0:
            return
        total = ~checksum & 0xFFFF
        for offset in range(0, len(old), 2):
            total += (~int.from_bytes(old[offset : offset + 2], "big") & 0xFFFF) + int.from_bytes(
                new[offset : offset + 2], "big"
            )
        while total >> 16:
            total = (total & 0xFFFF) + (total >> 16)
        mended = ~total & 0xFFFF
        struct.pack_into(">H", self.data, at, 0xFFFF if zero_is_none and mended == 0 else mended)


def checksum(data: bytes) -> int:
    """RFC 1071."""
    total = 0
    for at in range(0, len(data), 2):
        total += int.from_bytes(data[at : at + 2].ljust(2, b"\0"), "big")
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def udp_packet(source: tuple[bytes, int], destination: tuple[bytes, int], payload: bytes) -> bytes:
    """An IPv4 packet with a datagram in it, without the datagram's own checksum, which IPv4 leaves open."""
    datagram = struct.pack(">HHHH", source[1], destination[1], 8 + len(payload), 0) + payload
    head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(datagram), 0, 0, 64, UDP, 0, source[0], destination[0])
    return head[:10] + struct.pack(">H", checksum(head)) + head[12:] + datagram
