"""TCP is told not to send segments that the tunnel cannot carry (RFC 4459, section 3.2): the MSS of a SYN is lowered.

Works where ICMP is blocked, and for IPv6 below 1280 bytes, where a host does not heed 'packet too big' any more.
"""

from __future__ import annotations

_TCP, _SYN = 6, 0x02
_IPV4_HEADER, _IPV6_HEADER, _TCP_HEADER = 20, 40, 20
_END, _NOP, _MSS = 0, 1, 2
_FRAGMENT = 44
_V6_EXTENSIONS = (0, 43, 60)  # hop-by-hop, routing, destination options: next header, then length in eights less one
V6_EXTENSIONS = (*_V6_EXTENSIONS, _FRAGMENT)  # what a TCP header may be behind
_V6_EXTENSIONS_MAX = 8


def clamp_mss(packet: bytes, mtu: int, *, checksummed: bool = True) -> bytes:
    """`packet`, or a copy with a lower MSS when it is a TCP SYN that allows for more than fits into `mtu`.

    `checksummed` False: the packet came with a checksum still to be completed (virtio's NEEDS_CSUM), which covers the
    pseudo-header only; then there is nothing to update. What is malformed is left as it is: others judge it.
    """
    version = packet[0] >> 4 if packet else 0
    if version == 4:
        tcp = _tcp_in_v4(packet)
        mss = mtu - _IPV4_HEADER - _TCP_HEADER
    elif version == 6:
        tcp = _tcp_in_v6(packet)
        mss = mtu - _IPV6_HEADER - _TCP_HEADER
    else:
        return packet
    if tcp == 0 or len(packet) < tcp + _TCP_HEADER or not packet[tcp + 13] & _SYN:
        return packet
    at = _mss_option(packet, tcp)
    if at == 0 or mss < 1:
        return packet
    before = int.from_bytes(packet[at : at + 2], "big")
    if before <= mss:
        return packet
    clamped = bytearray(packet)
    clamped[at : at + 2] = mss.to_bytes(2, "big")
    if checksummed:
        checksum = int.from_bytes(packet[tcp + 16 : tcp + 18], "big")
        # An option at an odd place has its bytes in two words, and so counts the other way round
        swapped = (at - tcp) & 1
        clamped[tcp + 16 : tcp + 18] = _updated(checksum, _word(before, swapped), _word(mss, swapped)).to_bytes(
            2, "big"
        )
    return bytes(clamped)


def _tcp_in_v4(packet: bytes) -> int:
    """Where the TCP header begins, 0 when there is none."""
    if len(packet) < _IPV4_HEADER or packet[9] != _TCP or (packet[6] & 0x1F or packet[7]):
        return 0
    size = (packet[0] & 15) * 4
    return size if size >= _IPV4_HEADER else 0


def _tcp_in_v6(packet: bytes) -> int:
    if len(packet) < _IPV6_HEADER:
        return 0
    kind, at = packet[6], _IPV6_HEADER
    for _ in range(_V6_EXTENSIONS_MAX):
        if kind == _TCP:
            return at
        if len(packet) < at + 8:
            return 0
        if kind in _V6_EXTENSIONS:
            kind, at = packet[at], at + 8 + 8 * packet[at + 1]
        elif kind == _FRAGMENT and not (packet[at + 2] or packet[at + 3] & 0xF8):
            kind, at = packet[at], at + 8
        else:
            return 0
    return 0


def _mss_option(packet: bytes, tcp: int) -> int:
    """Where the value of the MSS option is, 0 when there is none (RFC 9293, section 3.2)."""
    at = tcp + _TCP_HEADER
    end = min(tcp + (packet[tcp + 12] >> 4) * 4, len(packet))
    while at < end:  # at most 40 bytes
        kind = packet[at]
        if kind == _END:
            return 0
        if kind == _NOP:
            at += 1
            continue
        if at + 2 > end or packet[at + 1] < 2 or at + packet[at + 1] > end:
            return 0
        if kind == _MSS:
            return at + 2 if packet[at + 1] == 4 else 0
        at += packet[at + 1]
    return 0


def _word(value: int, swapped: int) -> int:
    return (value & 0xFF) << 8 | value >> 8 if swapped else value


def _updated(checksum: int, before: int, after: int) -> int:
    """RFC 1624, equation 3."""
    total = (~checksum & 0xFFFF) + (~before & 0xFFFF) + after
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
