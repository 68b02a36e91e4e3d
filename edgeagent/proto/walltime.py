"""Wall time on a device without a clock: a floor that goes on with uptime, and that only the hub raises."""

from __future__ import annotations


class WallFloor:
    """`floor_s` is the latest wall time that is certain at `now`: the greater of build time and last persisted stamp.

    `known` says whether the hub's time came since; until then `at` may lie any time behind the truth, never before it.
    `likely` is for people and for what may be tried in vain: nobody signed it, so nothing expires by it, nothing is
    stamped with it, and it is not kept.
    """

    __slots__ = ("_anchor_s", "_hint_s", "known")

    def __init__(self, now: float, floor_s: float) -> None:
        self._anchor_s = floor_s - now
        self._hint_s: float | None = None
        self.known = False

    def at(self, now: float) -> float:
        """Seconds since 1970."""
        return self._anchor_s + now

    def restore(self, now: float, wall_s: float) -> None:
        """A stamp that an earlier life kept: certain, and no sign that the hub was heard."""
        self._anchor_s = max(self._anchor_s, wall_s - now)

    def raise_to(self, now: float, wall_s: float) -> bool:
        """The hub's signed time. Nothing lowers what is known; True when it was raised."""
        self.known = True
        if wall_s <= self.at(now):
            return False
        self._anchor_s = wall_s - now
        return True

    def hint(self, now: float, wall_s: float) -> None:
        """What a mobile network said; the last one counts."""
        self._hint_s = wall_s - now

    def likely(self, now: float) -> float:
        """Seconds since 1970: the floor, and above it the hint, as long as the hub has told nothing."""
        if self.known or self._hint_s is None:
            return self.at(now)
        return max(self._anchor_s, self._hint_s) + now
