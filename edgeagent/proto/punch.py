"""Against NATs whose mapping depends on the destination: guess the next port, or try many, inside a budget.

One ping is 125 B on the wire. A spray of 256 to one address finds a single mapping among 64,512 ports in 0.4 % of all
cases, where a NAT counts its ports up the guess finds it nearly always; so guesses come first, and sprays are few.
"""

from __future__ import annotations

from edgeagent.proto.keys import Entropy
from edgeagent.proto.records import UdpAddress

GUESSES = 8  # ports after the last one seen
STEP_MAX = 16  # between two mappings that still count as counted up
SPRAY_PORTS = 256
SPRAY_BURST = 32
SPRAY_BURST_EVERY_S = 0.1
SPRAYS_PER_PEER_MAX = 4  # until it moves
SPRAYED_MAX = 1_024  # probes for all peers together,
SPRAYED_PER_S = 1_024 / 3_600.0  # and so many again within an hour
PORT_MIN, PORT_MAX = 1_024, 65_535

EIM, EDM = "eim", "edm"  # endpoint-independent, endpoint-dependent mapping (RFC 4787, section 4.1), as the feed says it


def mapping_behaviour(mapped: list[UdpAddress]) -> str | None:
    """From what several servers saw of one socket, in the order they were asked; None: one server is not enough."""
    by_size = [[each for each in mapped if len(each[0]) == size] for size in (4, 16)]
    if any(len(dict.fromkeys(seen)) > 1 for seen in by_size):
        return EDM
    return EIM if any(len(seen) > 1 for seen in by_size) else None


def guess_next(mapped: list[UdpAddress]) -> list[UdpAddress]:
    """Where the next mapping of a NAT will be that counts its ports up or down; none where it does not count."""
    seen = [each for each in mapped if len(each[0]) == 4]
    if len(seen) < 2 or seen[-1][0] != seen[-2][0]:
        return []
    address, last = seen[-1]
    step = last - seen[-2][1]
    if not 1 <= abs(step) <= STEP_MAX:
        return []
    ports = [last + step * number for number in range(1, GUESSES + 1)]
    return [(address, port) for port in ports if PORT_MIN <= port <= PORT_MAX]


class Budget:
    """Tokens: at most `size`, and `per_s` more each second."""

    __slots__ = ("_left", "_per_s", "_since", "_size")

    def __init__(self, now: float, size: float, per_s: float) -> None:
        self._size = size
        self._per_s = per_s
        self._left = size
        self._since = now

    def take(self, now: float, tokens: float = 1.0) -> bool:
        """False, and nothing is taken, where there are not so many."""
        self._left = min(self._size, self._left + (now - self._since) * self._per_s)
        self._since = now
        if self._left < tokens:
            return False
        self._left -= tokens
        return True

    def refill(self) -> None:
        self._left = self._size


class Spray:
    """Ports of one address that are still to be tried."""

    __slots__ = ("_ports", "address", "next_at")

    def __init__(self, now: float, address: bytes, entropy: Entropy) -> None:
        drawn = entropy(2 * SPRAY_PORTS)
        span = PORT_MAX - PORT_MIN + 1
        ports = (int.from_bytes(drawn[at : at + 2], "big") % span + PORT_MIN for at in range(0, len(drawn), 2))
        self._ports = list(dict.fromkeys(ports))
        self.address = address
        self.next_at: float | None = now

    def take_due(self, now: float) -> list[UdpAddress]:
        """The next burst."""
        burst, self._ports = self._ports[:SPRAY_BURST], self._ports[SPRAY_BURST:]
        self.next_at = now + SPRAY_BURST_EVERY_S if self._ports else None
        return [(self.address, port) for port in burst]
