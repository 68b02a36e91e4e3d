"""ICMP errors that the tunnel writes back to its own host (RFC 792, RFC 1122 section 3.2.2, RFC 4443)."""

from __future__ import annotations

_ICMP, _ICMPV6 = 1, 58
_V4_DESTINATION_UNREACHABLE, _V4_HOST_UNREACHABLE, _V4_PROHIBITED = 3, 1, 13
_V6_DESTINATION_UNREACHABLE, _V6_ADDRESS_UNREACHABLE, _V6_PROHIBITED = 1, 3, 1
_V4_QUOTE_MAX = 576 - 20 - 8  # RFC 1812, section 4.3.2.3
_V6_QUOTE_MAX = 1280 - 40 - 8  # RFC 4443, section 2.4 (c)


def unreachable(packet: bytes, *, prohibited: bool = False) -> bytes | None:
    """A 'host unreachable' (or 'administratively prohibited') for `packet`, or None where none may be sent.

    It claims to come from the packet's destination, because the host's reverse path check would refuse its own address
    on the way in, and any other one would need a route.
    """
    if len(packet) >= 20 and packet[0] >> 4 == 4:
        code = _V4_PROHIBITED if prohibited else _V4_HOST_UNREACHABLE
        return error_v4(packet, _V4_DESTINATION_UNREACHABLE, code)
    if len(packet) >= 40 and packet[0] >> 4 == 6:
        code = _V6_PROHIBITED if prohibited else _V6_ADDRESS_UNREACHABLE
        return error_v6(packet, _V6_DESTINATION_UNREACHABLE, code)
    return None


def checksum(data: bytes) -> int:
    """Internet checksum (RFC 1071) of any number of bytes.

    2^16 ≡ 1 modulo 65535, so one long division does what a loop over words would.
    """
    if len(data) & 1:
        data += b"\0"
    rest = int.from_bytes(data, "big") % 0xFFFF
    if rest == 0 and any(data):
        rest = 0xFFFF
    return ~rest & 0xFFFF


def error_v4(packet: bytes, kind: int, code: int, rest: bytes = bytes(4)) -> bytes | None:
    """An error of any type about a packet of at least 20 bytes, or None where none may be sent; `rest` is its own."""
    header_size = (packet[0] & 15) * 4
    source, destination = packet[12:16], packet[16:20]
    first_fragment = not int.from_bytes(packet[6:8], "big") & 0x1FFF
    # RFC 1122, 3.2.2: never about an error, a later fragment, a broadcast or multicast, or from no single host
    if header_size < 20 or not first_fragment or destination[0] >= 224 or source[0] in (0, 127) or source[0] >= 224:
        return None
    if packet[9] == _ICMP and (len(packet) <= header_size or packet[header_size] not in (0, 8, 13, 14)):
        return None
    body = bytes((kind, code, 0, 0)) + rest + packet[:_V4_QUOTE_MAX]
    body = body[:2] + checksum(body).to_bytes(2, "big") + body[4:]
    header = bytes((0x45, 0xC0)) + (20 + len(body)).to_bytes(2, "big") + bytes((0, 0, 0, 0, 64, _ICMP, 0, 0))
    header += destination + source
    return header[:10] + checksum(header).to_bytes(2, "big") + header[12:] + body


def error_v6(packet: bytes, kind: int, code: int, rest: bytes = bytes(4)) -> bytes | None:
    """The same for IPv6 and 40 bytes."""
    source, destination = packet[8:24], packet[24:40]
    if destination[0] == 0xFF or source[0] == 0xFF or not any(source):
        return None
    if packet[6] == _ICMPV6 and (len(packet) <= 40 or packet[40] < 128):
        return None
    body = bytes((kind, code, 0, 0)) + rest + packet[:_V6_QUOTE_MAX]
    pseudo = destination + source + len(body).to_bytes(4, "big") + bytes((0, 0, 0, _ICMPV6))
    body = body[:2] + checksum(pseudo + body).to_bytes(2, "big") + body[4:]
    return bytes((0x60, 0, 0, 0)) + len(body).to_bytes(2, "big") + bytes((_ICMPV6, 64)) + destination + source + body
