"""Token buckets for handshake messages, one a source (WireGuard paper, section 5.3)."""

from __future__ import annotations

from collections import OrderedDict

from edgeagent.proto.constants import HANDSHAKES_PER_SOURCE_BURST, HANDSHAKES_PER_SOURCE_PER_S


class RateLimiter:
    """Allows each source a burst and then a rate. A source is an IPv4 address or an IPv6 /64.

    At most `sources_max` are remembered; the one that was quiet longest is forgotten first.
    """

    def __init__(
        self,
        sources_max: int,
        per_s: float = HANDSHAKES_PER_SOURCE_PER_S,
        burst: float = HANDSHAKES_PER_SOURCE_BURST,
    ) -> None:
        self._sources_max = sources_max
        self._per_s = per_s
        self._burst = burst
        self.gave_way = 0  # sources forgotten because others needed the room
        self._buckets: OrderedDict[bytes, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def allow(self, now: float, address: bytes) -> bool:
        """Take one token from the bucket of `address` (4 or 16 B), if there is one."""
        source = address if len(address) == 4 else address[:8]
        tokens, since = self._buckets.pop(source, (self._burst, now))
        tokens = min(self._burst, tokens + (now - since) * self._per_s)
        allowed = tokens >= 1.0
        if len(self._buckets) >= self._sources_max:
            self._buckets.popitem(last=False)
            self.gave_way += 1
        self._buckets[source] = (tokens - 1.0 if allowed else tokens, now)
        return allowed
