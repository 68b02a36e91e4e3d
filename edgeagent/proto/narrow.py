"""Packets for paths that take less than the TUN does: told to TCP, told to their senders, or cut up.

In this order: the MSS of a SYN is lowered, in both directions; what is larger than the path and may not be cut up, or
has a sender that can do better, is answered; the rest goes in fragments. IPv6 up to 1280 bytes is cut up too: no host
sends less (RFC 8200, section 5), and fragments outside would need routers that make them, or say what passes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeagent.proto.errors import DropReason
from edgeagent.proto.icmp_too_big import IPV6_MTU_MIN, fragments, fragments_v6, too_big
from edgeagent.proto.mss import V6_EXTENSIONS, clamp_mss
from edgeagent.proto.punch import Budget

if TYPE_CHECKING:
    from edgeagent.proto.peer import Shared

ANSWERS_MAX, ANSWERS_PER_S = 64, 32.0  # 'too big' to our own host; each flow wants one, and repeats what it lost


class NarrowPaths:
    """`fit` what goes to a peer whose path is narrow, `clamp` what came from one. Checksums must be complete.

    Answers go to the packets for the TUN; what is lost is counted.
    """

    __slots__ = ("_answers", "_shared")

    def __init__(self, now: float, shared: Shared) -> None:
        self._shared = shared
        self._answers = Budget(now, ANSWERS_MAX, ANSWERS_PER_S)

    def fit(self, now: float, packets: list[bytes], mtu: int) -> list[bytes]:
        """What of `packets` can be sent along a path that takes `mtu`, in order."""
        fitting: list[bytes] = []
        for packet in packets:
            if len(packet) <= mtu:
                fitting.append(clamp_mss(packet, mtu) if _may_be_syn(packet) else packet)
            else:
                fitting += self._cut(now, packet, mtu)
        return fitting

    def clamp(self, packet: bytes, mtu: int) -> bytes:
        """`packet` out of the tunnel, from a peer that can be answered with packets of `mtu`."""
        return clamp_mss(packet, mtu) if _may_be_syn(packet) else packet

    def _cut(self, now: float, packet: bytes, mtu: int) -> list[bytes]:
        if packet[0] >> 4 == 6 and len(packet) <= IPV6_MTU_MIN:
            pieces = fragments_v6(packet, mtu, self._shared.entropy(4))
        else:
            pieces = fragments(packet, mtu)
        if not pieces:
            self._shared.drops[DropReason.PACKET_TOO_BIG] += 1
            answer = too_big(packet, mtu)
            if answer is not None and self._answers.take(now):
                self._shared.packets.append(answer)
        return pieces


def _may_be_syn(packet: bytes) -> bool:
    """One look that tells nearly all packets without extensions from a SYN."""
    if packet[0] == 0x45:
        return packet[9] == 6 and len(packet) >= 40 and packet[33] & 2 != 0
    if packet[0] >> 4 == 6 and packet[6] == 6:
        return len(packet) >= 60 and packet[53] & 2 != 0
    return packet[0] >> 4 == 4 or packet[6] in V6_EXTENSIONS
