"""IP packets built and checked the slow way, word by word: the oracle for `edgeagent.engine.offload`."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

FIN, SYN, PSH, ACK, ECE, CWR = 1, 2, 8, 16, 64, 128
NEEDS_CSUM = 1
TCPV4, TCPV6, UDP_L4 = 1, 4, 5
V4 = (bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2)))
V6 = (bytes.fromhex("fd00" + "00" * 13 + "01"), bytes.fromhex("fd00" + "00" * 13 + "02"))


def naive_checksum(data: bytes) -> int:
    """RFC 1071, section 4.1."""
    if len(data) % 2:
        data += b"\0"
    total = 0
    for (word,) in struct.iter_unpack(">H", data):
        total += word
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@dataclass(frozen=True)
class Segment:
    """A TCP segment, or with `udp` a datagram."""

    payload: bytes
    seq: int = 1000
    flags: int = ACK
    ack: int = 77
    window: int = 502
    options: bytes = b""
    urgent: int = 0
    ports: tuple[int, int] = (5000, 6000)
    version: int = 4
    tos: int = 0
    ttl: int = 64
    df: bool = True
    identification: int = 7
    udp: bool = False
    bad_checksum: bool = False
    extension: bytes = b""  # IPv6 extension headers, the first being hop-by-hop

    def transport(self, *, checksum: int = 0) -> bytes:
        if self.udp:
            return struct.pack(">HHHH", *self.ports, 8 + len(self.payload), checksum)
        offset = (20 + len(self.options)) // 4 << 4
        fixed = struct.pack(
            ">HHIIBBHHH", *self.ports, self.seq, self.ack, offset, self.flags, self.window, checksum, self.urgent
        )
        return fixed + self.options

    @property
    def protocol(self) -> int:
        return 17 if self.udp else 6

    def pseudo_header(self) -> bytes:
        source, destination = V4 if self.version == 4 else V6
        length = len(self.transport()) + len(self.payload)
        return source + destination + struct.pack(">II", length, self.protocol)

    def packet(self) -> bytes:
        checksum = naive_checksum(self.pseudo_header() + self.transport() + self.payload)
        if self.udp and not checksum:
            checksum = 0xFFFF
        return self._with_checksum(checksum ^ (0x5A5A if self.bad_checksum else 0))

    def _with_checksum(self, checksum: int) -> bytes:
        body = self.transport(checksum=checksum) + self.payload
        if self.version == 6:
            first = 0x60000000 | self.tos << 20
            following = 0 if self.extension else self.protocol
            length = len(self.extension) + len(body)
            return (
                struct.pack(">IHBB", first, length & 0xFFFF, following, self.ttl)
                + V6[0]
                + V6[1]
                + self.extension
                + body
            )
        fragment = 0x4000 if self.df else 0
        total = (20 + len(body)) & 0xFFFF
        header = struct.pack(
            ">BBHHHBBH", 0x45, self.tos, total, self.identification, fragment, self.ttl, self.protocol, 0
        )
        header += V4[0] + V4[1]
        return header[:10] + naive_checksum(header).to_bytes(2, "big") + header[12:] + body

    def super_frame(self, gso_size: int, *, ecn: bool = False) -> bytes:
        """The frame in which a kernel hands out this segment, to be split at `gso_size`."""
        partial = ~naive_checksum(self.pseudo_header()) & 0xFFFF
        packet = self._with_checksum(partial)
        start = (20 if self.version == 4 else 40) + len(self.extension)
        kind = UDP_L4 if self.udp else TCPV4 if self.version == 4 else TCPV6
        header_size = start + len(self.transport())
        return (
            vnet(NEEDS_CSUM, kind | (0x80 if ecn else 0), header_size, gso_size, start, 6 if self.udp else 16) + packet
        )


def vnet(flags: int, kind: int, header_size: int, gso_size: int, start: int, offset: int) -> bytes:
    return struct.pack("=BBHHHH", flags, kind, header_size, gso_size, start, offset)


def stream(first: Segment, sizes: list[int], data: bytes) -> list[bytes]:
    """Packets of one flow that carry `data` in pieces of `sizes`."""
    packets, at = [], 0
    for i, size in enumerate(sizes):
        piece = replace(
            first,
            payload=data[at : at + size],
            seq=(first.seq + at) & 0xFFFFFFFF,
            identification=(first.identification + i) & 0xFFFF,
        )
        packets.append(piece.packet())
        at += size
    return packets


@dataclass(frozen=True)
class Parsed:
    ip_header: bytes
    transport: bytes
    payload: bytes
    protocol: int

    @property
    def seq(self) -> int:
        return int.from_bytes(self.transport[4:8], "big")

    @property
    def flags(self) -> int:
        return self.transport[13]


def parse(packet: bytes) -> Parsed:
    """Take a packet apart; AssertionError unless its lengths and its IPv4 header checksum are right."""
    if packet[0] >> 4 == 4:
        size, protocol = (packet[0] & 15) * 4, packet[9]
        assert int.from_bytes(packet[2:4], "big") == len(packet)
        assert naive_checksum(packet[:size]) == 0
    else:
        size, protocol = 40, packet[6]
        assert int.from_bytes(packet[4:6], "big") == len(packet) - 40
        if protocol == 0:
            protocol, size = packet[40], 48 + packet[41] * 8
    header_size = 8 if protocol == 17 else (packet[size + 12] >> 4) * 4
    if protocol == 17:
        assert int.from_bytes(packet[size + 4 : size + 6], "big") == len(packet) - size
    return Parsed(packet[:size], packet[size : size + header_size], packet[size + header_size :], protocol)


def checksum_holds(packet: bytes) -> bool:
    parsed = parse(packet)
    addresses = parsed.ip_header[12:20] if packet[0] >> 4 == 4 else parsed.ip_header[8:40]
    length = len(parsed.transport) + len(parsed.payload)
    pseudo = addresses + struct.pack(">II", length, parsed.protocol)
    return naive_checksum(pseudo + parsed.transport + parsed.payload) == 0
