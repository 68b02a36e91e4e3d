"""Connections that have not logged in: bounded in number, in number per source, and in time."""

from __future__ import annotations

from collections import OrderedDict

from edgeagent.proto.ratelimiter import RateLimiter
from relay.core.limits import RelayLimits
from relay.core.reasons import RelayDrop

_IPV6_PREFIX_BYTES = 8  # a /64 is one household


class Doorway:
    """`enter` each new connection, `leave` when it has logged in or is gone. Both `enter` and `expired` may name others
    that are to be closed; those have left.
    """

    def __init__(self, limits: RelayLimits, drops: dict[RelayDrop, int]) -> None:
        self._limits = limits
        self._drops = drops
        self._waiting: OrderedDict[int, tuple[float, bytes]] = OrderedDict()  # connection → since when, source
        self._of_source: dict[bytes, int] = {}
        # Each connection costs a TLS handshake
        per_s = limits.logins_per_source_per_s
        self._rate = RateLimiter(limits.doorway, float(per_s), 2.0 * per_s)

    def __len__(self) -> int:
        return len(self._waiting)

    def enter(self, now: float, conn: int, address: bytes) -> int | None:
        """A connection that must go: this one, if its source has or makes too many; the oldest of all; or None."""
        source = address if len(address) == 4 else address[:_IPV6_PREFIX_BYTES]
        if self._of_source.get(source, 0) >= self._limits.doorway_per_source or not self._rate.allow(now, address):
            self._drops[RelayDrop.DOOR_SOURCE] += 1
            return conn
        oldest = None
        if len(self._waiting) >= self._limits.doorway:
            self._drops[RelayDrop.DOOR_FULL] += 1
            oldest = next(iter(self._waiting))
            self.leave(oldest)
        self._waiting[conn] = (now, source)
        self._of_source[source] = self._of_source.get(source, 0) + 1
        return oldest

    def leave(self, conn: int) -> None:
        """Harmless for one that is not there."""
        found = self._waiting.pop(conn, None)
        if found is None:
            return
        left = self._of_source[found[1]] - 1
        if left:
            self._of_source[found[1]] = left
        else:
            del self._of_source[found[1]]

    def expired(self, now: float) -> list[int]:
        """Those that took too long."""
        late = []
        for conn, (since, _) in self._waiting.items():
            if now - since < self._limits.login_timeout_s:
                break
            late.append(conn)
        for conn in late:
            self._drops[RelayDrop.DOOR_SLOW] += 1
            self.leave(conn)
        return late

    def poll_timeout(self) -> float | None:
        for since, _ in self._waiting.values():
            return since + self._limits.login_timeout_s
        return None
