"""Which flow an IP packet belongs to, read from its headers within bounds (RFC 791, 8200, 792, 4443, 9293).

The pump reads the same of packets that it carries by itself (engine/fast/tables.c); `carried` says which those are.
"""

from __future__ import annotations

TCP, UDP, SCTP, ICMP, ICMPV6 = 6, 17, 132, 1, 58
FIN, SYN, RST, ACK = 1, 2, 4, 16  # of TCP

# What a packet is to a flow
(
    PLAIN,  # one of its packets; those of protocols without ports are told apart by their addresses
    ECHO_REQUEST,
    ECHO_REPLY,
    ICMP_ERROR,  # about another packet, which it quotes
    ICMP_OTHER,
    LATER_FRAGMENT,  # its ports are in the first one
) = range(6)

EXTENSIONS_MAX = 8  # headers of IPv6 before the transport's
_HOP_BY_HOP, _ROUTING, _FRAGMENT, _AUTHENTICATION, _DESTINATION = 0, 43, 44, 51, 60
_EXTENSIONS = (_HOP_BY_HOP, _ROUTING, _FRAGMENT, _AUTHENTICATION, _DESTINATION)
_HEADER_BYTES_MIN = {TCP: 20, UDP: 8, SCTP: 12, ICMP: 8, ICMPV6: 8}
_QUOTED_BYTES_MIN = 8  # of what an ICMP error quotes behind the IP header (RFC 792)
_V4_ERRORS = (3, 11, 12)  # not redirects and source quench: nobody is to steer this host
_V6_ERRORS = (1, 2, 3, 4)


class Head:
    """Addresses are 4 or 16 B. A port is 0 where there is none; an echo's identifier stands for the port of who asks.

    `fragment` names the datagram of a packet that is a part of one. `flags` are TCP's. `at` is where the transport's
    header begins. `extended`: IPv6 with headers in between.
    """

    __slots__ = ("at", "destination_port", "extended", "flags", "fragment", "kind", "protocol", "source",
                 "source_port", "target")  # fmt: skip

    def __init__(self, source: bytes, target: bytes, protocol: int, at: int) -> None:
        self.source = source
        self.target = target
        self.protocol = protocol
        self.at = at
        self.kind = PLAIN
        self.source_port = 0
        self.destination_port = 0
        self.flags = 0
        self.fragment = b""
        self.extended = False

    @property
    def carried(self) -> bool:
        """Whether the pump knows flows of such packets."""
        return self.kind in (PLAIN, ECHO_REQUEST, ECHO_REPLY) and not self.fragment and not self.extended

    @property
    def begins(self) -> bool:
        """Whether it asks for a connection: never a packet of one that the other side has begun."""
        return self.flags & (SYN | ACK) == SYN


def read(packet: bytes, *, quoted: bool = False) -> Head | None:
    """None for headers that are cut short, lie, or are too deep. `quoted`: the beginning of a packet will do."""
    version = packet[0] >> 4 if packet else 0
    if version == 4:
        head, offset = _read_v4(packet)
    elif version == 6:
        head, offset = _read_v6(packet)
    else:
        return None
    if head is None:
        return None
    protocol, at = head.protocol, head.at
    if protocol == (ICMPV6 if version == 4 else ICMP):
        return head  # the other version's: nothing that we could read in
    least = _HEADER_BYTES_MIN.get(protocol, 0)
    if offset:
        head.kind = LATER_FRAGMENT
        return head if offset >= least else None  # it would overwrite ports or flags (RFC 1858, RFC 3128)
    if len(packet) - at < (min(least, _QUOTED_BYTES_MIN) if quoted else least):
        return None
    if protocol in (TCP, UDP, SCTP):
        head.source_port = packet[at] << 8 | packet[at + 1]
        head.destination_port = packet[at + 2] << 8 | packet[at + 3]
        if protocol == TCP and not quoted:
            head.flags = packet[at + 13]
    elif protocol in (ICMP, ICMPV6):
        _read_icmp(head, packet[at], packet[at + 4] << 8 | packet[at + 5])
    return head


def _read_v4(packet: bytes) -> tuple[Head | None, int]:
    """(head, offset of a fragment)"""
    at = (packet[0] & 15) * 4
    if at < 20 or len(packet) < at:
        return None, 0
    head = Head(packet[12:16], packet[16:20], packet[9], at)
    word = packet[6] << 8 | packet[7]
    if word & 0x3FFF:
        head.fragment = packet[9:10] + packet[4:6] + packet[12:20]
    return head, (word & 0x1FFF) * 8


def _read_v6(packet: bytes) -> tuple[Head | None, int]:
    size = len(packet)
    if size < 40:
        return None, 0
    kind, at, offset = packet[6], 40, 0
    head = Head(packet[8:24], packet[24:40], kind, at)
    for _ in range(EXTENSIONS_MAX):
        if kind not in _EXTENSIONS or offset:
            break
        if size < at + 8:
            return None, 0
        head.extended = True
        if kind == _FRAGMENT:
            word = packet[at + 2] << 8 | packet[at + 3]
            if word & 0xFFF9:  # else it is whole (RFC 6946)
                if head.fragment:
                    return None, 0
                offset = word & 0xFFF8
                head.fragment = packet[at : at + 1] + packet[at + 4 : at + 8] + packet[8:40]
            length = 8
        else:
            length = 4 * packet[at + 1] + 8 if kind == _AUTHENTICATION else 8 * packet[at + 1] + 8
        kind, at = packet[at], at + length
    else:
        if kind in _EXTENSIONS and not offset:
            return None, 0
    if at > size:
        return None, 0
    head.protocol, head.at = kind, at
    return head, offset


def _read_icmp(head: Head, kind: int, identifier: int) -> None:
    asks, answers, errors = (8, 0, _V4_ERRORS) if head.protocol == ICMP else (128, 129, _V6_ERRORS)
    if kind == asks:
        head.kind, head.source_port = ECHO_REQUEST, identifier
    elif kind == answers:
        head.kind, head.destination_port = ECHO_REPLY, identifier
    else:
        head.kind = ICMP_ERROR if kind in errors else ICMP_OTHER
