"""What becomes of a packet that is larger than the way to its peer: fragments, or an answer that says how much passes.

IPv4 is fragmented where it may be (RFC 1812, section 4.2.2.7), else answered with 'fragmentation needed' (RFC 1191);
IPv6 is answered with 'packet too big' (RFC 8201). But no IPv6 host heeds an answer that says less than 1280 bytes:
a packet that is no larger gets none, and is cut up as its sender would do it.
"""

from __future__ import annotations

from edgeagent.proto.icmp import checksum, error_v4, error_v6

IPV6_MTU_MIN = 1_280
FRAGMENTS_MAX = 128  # of 65,535 bytes into what fits 576

_FRAGMENTATION_NEEDED = 3, 4
_PACKET_TOO_BIG = 2, 0
_HEADER_V6, _FRAGMENT_HEADER = 40, 8
_HOP_BY_HOP, _ROUTING, _FRAGMENT = 0, 43, 44  # next header
_EXTENSIONS_MAX = 8
_PAYLOAD_MAX = 65_535  # of all fragments together
_DONT_FRAGMENT, _MORE_FRAGMENTS, _OFFSET = 0x4000, 0x2000, 0x1FFF
_HEADER, _HEADER_MAX = 20, 60
_COPIED = 0x80  # the bit of an option's kind that puts it into every fragment (RFC 791, section 3.1)


def too_big(packet: bytes, mtu: int) -> bytes | None:
    """The answer to `packet` that says that only `mtu` bytes pass; None where none may be sent, or none would help."""
    if len(packet) >= _HEADER and packet[0] >> 4 == 4:
        if not int.from_bytes(packet[6:8], "big") & _DONT_FRAGMENT:
            return None
        return error_v4(packet, *_FRAGMENTATION_NEEDED, mtu.to_bytes(4, "big"))
    if len(packet) > IPV6_MTU_MIN and packet[0] >> 4 == 6:
        return error_v6(packet, *_PACKET_TOO_BIG, max(mtu, IPV6_MTU_MIN).to_bytes(4, "big"))
    return None


def fragments(packet: bytes, mtu: int) -> list[bytes]:
    """`packet` in pieces of at most `mtu` bytes; none when it is not IPv4, is malformed, or may not be cut.

    A checksum that was left to the network card (virtio's NEEDS_CSUM) must have been completed before.
    """
    size = (packet[0] & 15) * 4 if packet and packet[0] >> 4 == 4 else 0
    if size < _HEADER or len(packet) < size or int.from_bytes(packet[2:4], "big") != len(packet):
        return []
    flags = int.from_bytes(packet[6:8], "big")
    room = (mtu - size) & ~7
    offset, more = flags & _OFFSET, flags & _MORE_FRAGMENTS
    if flags & _DONT_FRAGMENT or room < 8 or len(packet) > size + min(room * FRAGMENTS_MAX, _PAYLOAD_MAX - 8 * offset):
        return []
    first, later = packet[:size], _later_header(packet[:size])
    made = []
    for at in range(size, len(packet), room):
        piece = packet[at : at + room]
        last = at + room >= len(packet)
        header = first if at == size else later
        made.append(_fragment(header, piece, offset | (more if last else _MORE_FRAGMENTS)))
        offset += room // 8
    return made


def fragments_v6(packet: bytes, mtu: int, identification: bytes) -> list[bytes]:
    """The same for IPv6 (RFC 8200, section 4.5), whatever its size; a fragment is cut up further under its own
    identification, all else under the one given, of 4 bytes."""
    if len(packet) < _HEADER_V6 or packet[0] >> 4 != 6 or int.from_bytes(packet[4:6], "big") != len(packet) - 40:
        return []
    link, kind, at = 6, packet[6], _HEADER_V6  # where it says what comes next, what that is, and where
    for _ in range(_EXTENSIONS_MAX):
        if kind not in (_HOP_BY_HOP, _ROUTING):
            break
        if len(packet) < at + 8:
            return []
        link, kind, at = at, packet[at], at + 8 + 8 * packet[at + 1]
    start, offset, more = at, 0, 0
    if kind == _FRAGMENT:
        start = at + _FRAGMENT_HEADER
        if len(packet) < start:
            return []
        kind, identification = packet[at], packet[at + 4 : start]
        word = int.from_bytes(packet[at + 2 : at + 4], "big")
        offset, more = word & 0xFFF8, word & 1
    room = (mtu - at - _FRAGMENT_HEADER) & ~7
    if room < 8 or not start < len(packet) <= start + _PAYLOAD_MAX - offset:
        return []
    front = packet[:link] + bytes((_FRAGMENT,)) + packet[link + 1 : at]
    made = []
    for first in range(start, len(packet), room):
        piece = packet[first : first + room]
        word = offset + first - start | (more if first + room >= len(packet) else 1)
        length = at - _HEADER_V6 + _FRAGMENT_HEADER + len(piece)
        header = front[:4] + length.to_bytes(2, "big") + front[6:]
        made.append(header + bytes((kind, 0)) + word.to_bytes(2, "big") + identification + piece)
    return made


def _fragment(header: bytes, piece: bytes, flags: int) -> bytes:
    total = len(header) + len(piece)
    header = (
        header[:2]
        + total.to_bytes(2, "big")
        + header[4:6]
        + flags.to_bytes(2, "big")
        + header[8:10]
        + b"\0\0"
        + header[12:]
    )
    return header[:10] + checksum(header).to_bytes(2, "big") + header[12:] + piece


def _later_header(header: bytes) -> bytes:
    """The header of all fragments but the first: with only those options that each carries."""
    options, kept, at = header[_HEADER:], b"", 0
    while at < len(options) and options[at] != 0:
        length = 1 if options[at] == 1 else options[at + 1] if at + 1 < len(options) else 0
        if length < 1 or at + length > len(options):
            break
        if options[at] & _COPIED:
            kept += options[at : at + length]
        at += length
    kept += bytes(-len(kept) % 4)
    return bytes((0x40 | (_HEADER + len(kept)) // 4,)) + header[1:_HEADER] + kept
