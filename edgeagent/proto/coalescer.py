"""Many deadlines, few wake-ups: what may be done early is done when something else has to be done anyway."""

from __future__ import annotations

from collections.abc import Hashable

from edgeagent.proto.errors import LimitReached, LocalProtocolError

DEADLINES_MAX = 1_024


class TimerCoalescer:
    """Drive it: `arm` what has to happen, sleep until `poll_timeout()`, then do what `take` gives, and arm it again.

    `take` may also be called whenever the device (or its radio) is awake for another reason: what is due soon goes with
    it. Waiting for the first of the last moments, and then taking all whose time has begun, is the least number of
    wake-ups that there can be. What was taken together and is armed alike stays together; so with half of their
    interval as slack, deadlines that repeat alike become one, and each was early once.
    """

    __slots__ = ("_windows",)

    def __init__(self) -> None:
        self._windows: dict[Hashable, tuple[float, float]] = {}

    def __len__(self) -> int:
        return len(self._windows)

    def arm(self, key: Hashable, at: float, slack_s: float) -> None:
        """`key` is to be taken at `at` at the latest, and up to `slack_s` earlier. Replaces what was armed before."""
        if slack_s < 0:
            raise LocalProtocolError(f"slack: not below 0, got {slack_s}")
        if key not in self._windows and len(self._windows) >= DEADLINES_MAX:
            raise LimitReached(f"at most {DEADLINES_MAX} deadlines")
        self._windows[key] = (at - slack_s, at)

    def disarm(self, key: Hashable) -> None:
        """Nothing happens when it is not armed."""
        self._windows.pop(key, None)

    def poll_timeout(self) -> float | None:
        return min((at for _, at in self._windows.values()), default=None)

    def first_begin(self) -> float | None:
        """Before that `take` gives nothing."""
        return min((begins for begins, _ in self._windows.values()), default=None)

    def take(self, now: float) -> list[Hashable]:
        """All that may be done now, the most urgent first. They are no longer armed."""
        due = sorted((at, number) for number, (begins, at) in enumerate(self._windows.values()) if begins <= now)
        keys = list(self._windows)
        taken = [keys[number] for _, number in due]
        for key in taken:
            del self._windows[key]
        return taken
