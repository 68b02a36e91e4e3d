"""TAI64N stamps that never go back, also on boards without a clock (WireGuard paper, section 5.1).

A responder refuses every initiation whose stamp is not newer than the last one it saw from that key, for ever. So a
device that boots in 1970 must still stamp beyond everything it ever stamped, without writing flash at each handshake:
it reserves a block of time ahead, and after a start it goes on beyond the block.
"""

from __future__ import annotations

from collections.abc import Callable

_TAI_BASE = 1 << 62
_TAI_LEAP_S = 10
_NS = 1_000_000_000
# The paper advises against giving away a precise clock; wireguard implementations round to 2^24 ns (16.8 ms).
_STEP_NS = 1 << 24
RESERVE_NS = 6 * 3600 * _NS
_RESERVE_SLOW_NS = 1024 * _STEP_NS


class Tai64nClock:
    """Stamps from a wall clock that may be wrong and may jump.

    Inputs: `set_wall(now, wall_s)` whenever better time is known, `stamp(now)`. Every stamp is greater than all before
    it and than `floor_ns`, which is what `persist` was last given in an earlier life. `persist(ns)` is called before a
    stamp beyond the last reservation is handed out; the caller makes it durable before it returns.
    """

    def __init__(
        self, now: float, wall_s: float, floor_ns: int = 0, persist: Callable[[int], None] | None = None
    ) -> None:
        self._anchor_s = wall_s - now
        self._last_ns = floor_ns
        self._reserved_ns = floor_ns
        self._persist = persist

    def set_wall(self, now: float, wall_s: float) -> None:
        """Better wall time, in seconds since 1970. It may lie before the old one: stamps still only grow."""
        self._anchor_s = wall_s - now

    def wall(self, now: float) -> float:
        """Wall time as it is believed now, seconds since 1970."""
        return self._anchor_s + now

    def stamp(self, now: float) -> bytes:
        """The next stamp, 12 B: seconds (8 B, big-endian, TAI) ‖ nanoseconds (4 B)."""
        wall_ns = int(self.wall(now) * _NS)
        ns = max(wall_ns, self._last_ns + _STEP_NS)
        ns += -ns % _STEP_NS
        if ns >= self._reserved_ns:
            # While the clock is behind the stamps, only steps are used up, and a short block lasts as long.
            self._reserved_ns = max(wall_ns + RESERVE_NS, ns + _RESERVE_SLOW_NS)
            if self._persist is not None:
                self._persist(self._reserved_ns)
        self._last_ns = ns
        seconds, nanoseconds = divmod(ns, _NS)
        return (_TAI_BASE + _TAI_LEAP_S + seconds).to_bytes(8, "big") + nanoseconds.to_bytes(4, "big")
