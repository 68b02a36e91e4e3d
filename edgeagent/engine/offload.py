"""Segmentation and receive offload on bytes: what a TUN with IFF_VNET_HDR hands out and takes.

`split` makes wire-sized IP packets of a super-packet that the kernel left whole; `coalesce` makes super-packets of
decrypted IP packets. Both are pure. Frames begin with a `struct virtio_net_hdr` (virtio 1.2, section 5.1.6) in native
byte order.

Checksums rest on 2^16 ≡ 1 (mod 65535): the one's complement sum of RFC 1071 over any bytes is their value as one big
integer modulo 65535, and a big integer may first be folded at any multiple of 16 bits.
"""

from __future__ import annotations

from itertools import repeat
from struct import Struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

VNET_HEADER_SIZE = 10
FRAME_MAX = VNET_HEADER_SIZE + 65_535
SEGMENTS_MAX = 2048  # of one super-packet; a gso_size that asks for more is a lie

_VNET = Struct("=BBHHHH")  # flags, gso_type, hdr_len, gso_size, csum_start, csum_offset
_NEEDS_NOTHING, _NEEDS_CSUM = 0, 1
_GSO_NONE, _GSO_TCPV4, _GSO_TCPV6, _GSO_UDP_L4, _GSO_ECN = 0, 1, 4, 5, 0x80
_PLAIN = bytes(VNET_HEADER_SIZE)

_TCP, _UDP = 6, 17
_FIN, _PSH, _ACK, _CWR = 0x01, 0x08, 0x10, 0x80
_FLAGS_AT, _CSUM_AT, _UDP_CSUM_AT = 13, 16, 6  # offsets in the transport header
_IP_MAX = 65_535
_DF = 0x40
_UDP_SEGMENTS_MAX = 64  # UDP_MAX_SEGMENTS of Linux before 6.9
_RUN_MAX = 1023  # packets: with the first one's header apart, they are as many buffers as a writev takes
_FOLD_MIN = 256  # bytes; below it the folds cost more than the division that they shorten

_U16 = Struct(">H")
_IPV4 = Struct(">4sH4sH")  # version…total length, id, fragment…protocol, checksum; addresses and options follow
_TCP_FRONT = Struct(">4sI8sH")  # ports, seq, ack…window, checksum; urgent pointer and options follow


# Out of the TUN


def split(frame: bytes) -> list[bytes] | None:
    """The IP packets, checksums complete, of one frame read from the TUN; None where its header lies."""
    if not VNET_HEADER_SIZE <= len(frame) <= FRAME_MAX:
        return None
    flags, kind, _, size, start, offset = _VNET.unpack_from(frame)
    if kind == _GSO_NONE:
        return _finish_checksum(frame, start, offset) if flags & _NEEDS_CSUM else [frame[VNET_HEADER_SIZE:]]
    kind &= ~_GSO_ECN
    if not flags & _NEEDS_CSUM or not _headers_agree(frame, kind, start, offset):
        return None
    transport = VNET_HEADER_SIZE + start
    # hdr_len is not used: on the forward path it may cover the whole first packet
    header_size = 8 if kind == _GSO_UDP_L4 else (frame[transport + 12] >> 4) * 4
    body = transport + header_size
    if header_size < 20 - 12 * (kind == _GSO_UDP_L4) or body >= len(frame) or len(frame) - body > size * SEGMENTS_MAX:
        return None
    payloads = [frame[at : at + size] for at in range(body, len(frame), size)]
    if kind == _GSO_UDP_L4:
        transports = _udp_headers(frame, transport, payloads)
    else:
        transports = _tcp_headers(frame, transport, body, payloads)
    headers = _ip_headers(frame, start, header_size, payloads)
    return [b"".join(parts) for parts in zip(headers, transports, payloads, strict=True)]


def _finish_checksum(frame: bytes, start: int, offset: int) -> list[bytes] | None:
    """CHECKSUM_PARTIAL: the field already holds the sum of the pseudo header."""
    at = VNET_HEADER_SIZE + start + offset
    if start < 20 or at + 2 > len(frame):
        return None
    checksum = -_sum(frame[VNET_HEADER_SIZE + start :]) % 0xFFFF
    if offset == _UDP_CSUM_AT and not checksum:
        checksum = 0xFFFF  # RFC 768: zero would say that there is none
    return [frame[VNET_HEADER_SIZE:at] + _U16.pack(checksum) + frame[at + 2 :]]


def _headers_agree(frame: bytes, kind: int, start: int, offset: int) -> bool:
    """Whether the IP header is of the kind and length that the vnet header says, with room for the next one."""
    ip = VNET_HEADER_SIZE
    if kind == _GSO_UDP_L4:
        protocol, transport_min, csum_at = _UDP, 8, _UDP_CSUM_AT
    elif kind in (_GSO_TCPV4, _GSO_TCPV6):
        protocol, transport_min, csum_at = _TCP, 20, _CSUM_AT
    else:
        return False
    if start < 20 or offset != csum_at or len(frame) < ip + start + transport_min:
        return False
    if frame[ip] >> 4 == 4 and kind != _GSO_TCPV6:
        fragment = _U16.unpack_from(frame, ip + 6)[0] & 0x3FFF
        return (frame[ip] & 15) * 4 == start and frame[ip + 9] == protocol and not fragment
    if frame[ip] >> 4 == 6 and kind != _GSO_TCPV4:
        # behind extension headers only the kernel's word says where the transport header is
        return start > 40 or (start == 40 and frame[ip + 6] == protocol)
    return False


def _ip_headers(frame: bytes, start: int, header_size: int, payloads: list[bytes]) -> Iterable[bytes]:
    ip = VNET_HEADER_SIZE
    size, last = start + header_size + len(payloads[0]), start + header_size + len(payloads[-1])
    if frame[ip] >> 4 == 6:
        full = frame[ip : ip + 4] + _U16.pack(size - 40) + frame[ip + 6 : ip + start]
        shorter = frame[ip : ip + 4] + _U16.pack(last - 40) + frame[ip + 6 : ip + start]
        return [*repeat(full, len(payloads) - 1), shorter]
    front, middle, rest = frame[ip : ip + 2], frame[ip + 6 : ip + 10], frame[ip + 12 : ip + start]
    identification = _U16.unpack_from(frame, ip + 4)[0]
    rest_sum = _sum(front) + _sum(middle) + _sum(rest)
    pack = _IPV4.pack
    full, total = front + _U16.pack(size), rest_sum + size
    headers = [
        pack(full, i & 0xFFFF, middle, -(total + (i & 0xFFFF)) % 0xFFFF) + rest
        for i in range(identification, identification + len(payloads) - 1)
    ]
    i = (identification + len(payloads) - 1) & 0xFFFF
    headers.append(pack(front + _U16.pack(last), i, middle, -(rest_sum + last + i) % 0xFFFF) + rest)
    return headers


def _tcp_headers(frame: bytes, transport: int, body: int, payloads: list[bytes]) -> list[bytes]:
    ports, seq, window, _ = _TCP_FRONT.unpack_from(frame, transport)
    tail = frame[transport + 18 : body]
    addresses = _sum(_addresses(frame, VNET_HEADER_SIZE)) + _TCP
    flags = frame[transport + _FLAGS_AT]
    size, count = len(payloads[0]), len(payloads)

    def run(first: int, end: int, flags: int) -> list[bytes]:
        """Headers of payloads[first:end], which are of one size."""
        length = body - transport + len(payloads[first])
        part = window[:5] + bytes((flags,)) + window[6:]
        base = addresses + length + _sum(ports) + _sum(part) + _sum(tail)
        seqs = [(seq + i * size) & 0xFFFFFFFF for i in range(first, end)]
        pack = _TCP_FRONT.pack
        return [
            pack(ports, s, part, -(base + s + total) % 0xFFFF) + tail
            for s, total in zip(seqs, _sums(payloads[first:end]), strict=True)
        ]

    # RFC 3168, 6.1.2: CWR is for the first segment; FIN and PSH are for the last
    headers: list[bytes] = []
    if flags & _CWR and count > 1:
        headers += run(0, 1, flags & ~(_FIN | _PSH))
        flags &= ~_CWR
    if len(headers) < count - 1:
        headers += run(len(headers), count - 1, flags & ~(_FIN | _PSH))
    return headers + run(count - 1, count, flags)


def _udp_headers(frame: bytes, transport: int, payloads: list[bytes]) -> list[bytes]:
    ports = frame[transport : transport + 4]
    base = _sum(_addresses(frame, VNET_HEADER_SIZE)) + _UDP + _sum(ports)
    headers = []
    for length, total in zip([8 + len(payload) for payload in payloads], _sums(payloads), strict=True):
        checksum = -(base + 2 * length + total) % 0xFFFF or 0xFFFF  # the length counts in the pseudo header too
        headers.append(ports + _U16.pack(length) + _U16.pack(checksum))
    return headers


def _addresses(data: bytes, ip: int) -> bytes:
    return data[ip + 12 : ip + 20] if data[ip] >> 4 == 4 else data[ip + 8 : ip + 40]


def _sum(data: bytes | bytearray) -> int:
    """One's complement sum of `data`, reduced; a last odd byte counts as the high one."""
    value = int.from_bytes(data, "big")
    if len(data) & 1:
        value <<= 8
    return value % 0xFFFF


def _sums(payloads: Sequence[bytes]) -> list[int]:
    """`_sum` of each, all but the last of one size; congruent, not reduced."""
    size = len(payloads[0])
    if size < _FOLD_MIN or len(payloads[-1]) != size:
        head = _sums(payloads[:-1]) if len(payloads) > 1 and size >= _FOLD_MIN else [_sum(p) for p in payloads[:-1]]
        return [*head, _sum(payloads[-1])]
    half = (size * 8 // 2 + 15) & ~15
    quarter = (half // 2 + 15) & ~15
    half_mask, quarter_mask = (1 << half) - 1, (1 << quarter) - 1
    odd = 8 * (size & 1)
    from_bytes = int.from_bytes
    return [
        (((y := (x >> half) + (x & half_mask)) >> quarter) + (y & quarter_mask)) << odd
        for x in [from_bytes(payload, "big") for payload in payloads]
    ]


# Into the TUN


class _Run:
    """Packets of one flow that make one frame. `header` is the first one's, with zeros where the others may differ."""

    __slots__ = ("header", "header_size", "ip_size", "next_seq", "open", "packets", "room", "size")

    def __init__(self, packet: bytes, ip_size: int, header_size: int, header: int, next_seq: int) -> None:
        self.packets = [packet]
        self.ip_size = ip_size
        self.header_size = header_size
        self.header = header
        self.next_seq = next_seq
        self.size = len(packet) - header_size
        self.room = _IP_MAX - len(packet)
        self.open = False

    @property
    def carries_checksum(self) -> bool:
        """Whether the kernel will check the merged packet as a whole, and it is no matter of odd offsets."""
        return self.packets[0][9 if self.ip_size == 20 else 6] == _TCP and not self.size & 1


def coalesce(packets: Sequence[bytes], *, udp: bool, verify: bool) -> list[list[bytes]]:
    """Frames for the TUN, as buffers to be gathered, of IP packets with true length fields; in order within a flow.

    TCP segments merge as the kernel's own GRO merges them: same flow, TOS, TTL, ack, window and options, flags ACK or
    ACK|PSH, consecutive sequence numbers, equal sizes but the last, nothing behind a PSH. UDP merges where `udp` is
    true, which takes a TUN with USO. IPv4 merges only with DF: only then is the identification free (RFC 6864).

    Checksums are not lost. With `verify` they are checked here, and a segment with a wrong one goes on alone. Without
    it, a merged TCP checksum is made of the segments' own fields, so that it is right exactly when they all are; the
    kernel checks it where the packet ends here, but not where it is forwarded: a router wants `verify`.
    """
    runs: list[_Run] = []
    latest: dict[bytes, _Run] = {}  # of each flow; an earlier run must not grow, or packets would overtake
    from_bytes = int.from_bytes
    for packet in packets:
        if len(packet) >= 28 and packet[0] == 0x45:
            ip_size, protocol, flow = 20, packet[9], packet[12:24]
        elif len(packet) >= 48 and packet[0] >> 4 == 6:
            ip_size, protocol, flow = 40, packet[6], packet[8:44]
        else:
            runs.append(_Run(packet, 0, 0, 0, 0))
            continue
        if protocol == _TCP and len(packet) >= ip_size + 20:
            header_size = ip_size + ((packet[ip_size + 12] >> 4) << 2)
            seq = from_bytes(packet[ip_size + 4 : ip_size + 8], "big")
        elif protocol == _UDP and udp:
            header_size = ip_size + 8
            seq = 0
        else:
            runs.append(_Run(packet, 0, 0, 0, 0))
            continue
        header = from_bytes(packet[:header_size], "big") & _MASKS[protocol, ip_size, header_size]
        size = len(packet) - header_size
        run = latest.get(flow)
        if (
            run is not None
            and run.open
            and run.header == header
            and run.next_seq == seq
            and 0 < size <= run.size
            and size <= run.room
        ):
            run.packets.append(packet)
            run.room -= size
            if protocol == _TCP:
                run.next_seq = (seq + size) & 0xFFFFFFFF
                run.open = size == run.size and not packet[ip_size + _FLAGS_AT] & _PSH
            else:
                run.open = size == run.size
            continue
        run = _Run(packet, ip_size, header_size, header, (seq + size) & 0xFFFFFFFF if protocol == _TCP else 0)
        run.open = size > 0 and _may_begin(packet, ip_size, protocol)
        run.room = min(run.room, ((_UDP_SEGMENTS_MAX if protocol == _UDP else _RUN_MAX) - 1) * size)
        latest[flow] = run
        runs.append(run)
    frames: list[list[bytes]] = []
    for run in runs:
        if len(run.packets) == 1:
            frames.append([_PLAIN, run.packets[0]])
        elif not verify and run.carries_checksum:
            frames.append(_frame(run, _NEEDS_NOTHING))
        elif _checksums_hold(run):
            frames.append(_frame(run, _NEEDS_CSUM))
        else:
            frames.extend([_PLAIN, packet] for packet in run.packets)
    return frames


def _may_begin(packet: bytes, ip_size: int, protocol: int) -> bool:
    """Whether others may merge behind this packet."""
    if ip_size == 20 and (packet[6] & 0xBF or packet[7] or not packet[6] & _DF or _sum(packet[:20])):
        return False
    if protocol == _UDP:
        return packet[ip_size + 6 : ip_size + 8] != b"\0\0"
    return packet[ip_size + _FLAGS_AT] == _ACK and packet[ip_size + 12] >= 0x50


def _checksums_hold(run: _Run) -> bool:
    """A segment with a wrong checksum must reach its socket as it is, not be sealed under a right one."""
    ip_size = run.ip_size
    addresses = 12 if ip_size == 20 else 8
    first = run.packets[0]
    protocol = first[9 if ip_size == 20 else 6]
    sums = [total % 0xFFFF for total in _sums([packet[addresses:] for packet in run.packets])]
    base = protocol - ip_size
    last = sums.pop()
    return last == -(base + len(run.packets[-1])) % 0xFFFF and sums.count(-(base + len(first)) % 0xFFFF) == len(sums)


def _frame(run: _Run, flags: int) -> list[bytes]:
    """The super-packet: with NEEDS_CSUM the kernel is not to look at the payload again."""
    ip_size, header_size = run.ip_size, run.header_size
    first, last = run.packets[0], run.packets[-1]
    head = bytearray(first[:header_size])
    total = sum([len(packet) for packet in run.packets]) - header_size * (len(run.packets) - 1)
    if ip_size == 20:
        head[2:4] = _U16.pack(total)
        head[10:12] = b"\0\0"
        head[10:12] = _U16.pack(-_sum(head[:20]) % 0xFFFF)
        kind, protocol = _GSO_TCPV4, first[9]
    else:
        head[4:6] = _U16.pack(total - 40)
        kind, protocol = _GSO_TCPV6, first[6]
    if protocol == _UDP:
        kind, csum_at = _GSO_UDP_L4, _UDP_CSUM_AT
        head[ip_size + 4 : ip_size + 6] = _U16.pack(total - ip_size)
    else:
        csum_at = _CSUM_AT
        head[ip_size + _FLAGS_AT] = last[ip_size + _FLAGS_AT]
    pseudo = _sum(_addresses(first, 0)) + protocol
    field = slice(ip_size + csum_at, ip_size + csum_at + 2)
    if flags & _NEEDS_CSUM:
        head[field] = _U16.pack((pseudo + total - ip_size) % 0xFFFF)
        vnet = _VNET.pack(flags, kind, header_size, run.size, ip_size, csum_at)
    else:
        # Of each segment: pseudo header + length + header + payload ≡ 0, and so of the whole: the payloads cancel out.
        head[field] = b"\0\0"
        headers = sum([int.from_bytes(packet[ip_size:header_size], "big") for packet in run.packets])
        others = (len(run.packets) - 1) * (pseudo + header_size - ip_size)
        head[field] = _U16.pack((headers + others - int.from_bytes(head[ip_size:], "big")) % 0xFFFF)
        vnet = _VNET.pack(flags, kind, header_size, run.size, 0, 0)
    return [vnet + head, *[packet[header_size:] for packet in run.packets]]


def _mask(protocol: int, ip_size: int, header_size: int) -> int:
    """Ones over the header bytes that packets of one run share."""
    mask = bytearray(b"\xff" * header_size)
    lengths = (2, 3, 4, 5, 10, 11) if ip_size == 20 else (4, 5)  # and, in IPv4, identification and checksum
    own = (4, 5, 6, 7, 16, 17) if protocol == _TCP else (4, 5, 6, 7)  # sequence and checksum, or length and checksum
    for at in (*lengths, *(ip_size + at for at in own)):
        if at < header_size:
            mask[at] = 0
    if protocol == _TCP and header_size > ip_size + _FLAGS_AT:
        mask[ip_size + _FLAGS_AT] = 0xFF ^ _PSH
    return int.from_bytes(mask, "big")


_MASKS = {
    (protocol, ip_size, ip_size + size): _mask(protocol, ip_size, ip_size + size)
    for protocol, sizes in ((_TCP, range(0, 64, 4)), (_UDP, (8,)))
    for ip_size in (20, 40)
    for size in sizes
}
