"""Explicit congestion notification through the tunnel (RFC 6040). ECN fields: 0 Not-ECT, 1 ECT(1), 2 ECT(0), 3 CE."""

from __future__ import annotations

NOT_ECT, ECT_1, ECT_0, CE = range(4)


def inner_ecn(packet: bytes) -> int:
    """The ECN field of an IPv4 or IPv6 packet; the tunnel's ingress copies it outside (RFC 6040, section 4.1)."""
    return packet[1] & 3 if packet[0] >> 4 == 4 else (packet[1] >> 4) & 3


def decapsulate(packet: bytes, outer: int) -> bytes | None:
    """The packet with its ECN field as RFC 6040, section 4.2 has it, or None where it must be dropped."""
    inner = inner_ecn(packet)
    if outer in (NOT_ECT, inner) or inner == CE:
        return packet
    if inner == NOT_ECT:
        return None if outer == CE else packet
    if outer == ECT_0:  # inner is ECT(1), which says more
        return packet
    return _with_ecn(packet, outer)


def _with_ecn(packet: bytes, ecn: int) -> bytes:
    changed = bytearray(packet)
    if packet[0] >> 4 == 6:
        changed[1] = (changed[1] & 0xCF) | ecn << 4
        return bytes(changed)
    before = changed[1]
    changed[1] = (before & 0xFC) | ecn
    # RFC 1624, equation 3: only the low byte of the first word has changed
    total = (~int.from_bytes(packet[10:12], "big") & 0xFFFF) + (~before & 0xFFFF) + changed[1]
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    changed[10:12] = (~total & 0xFFFF).to_bytes(2, "big")
    return bytes(changed)
