"""How long a path that traffic goes by may be silent before other ways carry a copy.

Silence means something only where the path carried packets both ways a moment ago: a flow in one direction is answered
by a passive keepalive after ten seconds, and by nothing before. How long a pause is usual, each path shows by itself: a
doubt that a probe refutes adds half to the patience, and time without one takes it back.
"""

from __future__ import annotations

QUIET_MIN_S = 0.08  # twice a delayed acknowledgement of TCP, as Linux has it on a quick flow
QUIET_PER_LATENCY = 3.0
QUIET_MAX_S = 0.8  # from here on the usual look at silence is as quick
TALK_S = 1.0  # the path was heard so lately before what is not answered, or that is the beginning of something
CALM_S = 10.0  # without a doubt: a step back
GROWTH = 1.5
STEPS_MAX = 6  # from the least to the most


class Patience:
    """Of one path. `heard` takes note of traffic from there, `refuted` of an answer to what a doubt led to."""

    __slots__ = ("_calm_since", "_heard_at", "_steps")

    def __init__(self, now: float) -> None:
        self._heard_at = now
        self._calm_since = now
        self._steps = 0

    def heard(self, now: float, sparing: int) -> None:
        """`sparing`: so many times longer than usual it remembers, for doubts that were none cost bytes."""
        self._heard_at = now
        if self._steps and now - self._calm_since >= CALM_S * sparing:
            self._steps -= 1
            self._calm_since = now

    def refuted(self, now: float) -> None:
        self._steps = min(self._steps + 1, STEPS_MAX)
        self._calm_since = now

    def is_fresh(self, now: float) -> bool:
        """Whether the path was heard a moment ago."""
        return now - self._heard_at <= TALK_S

    def quiet_s(self, latency_ms: float | None) -> float | None:
        """So long it may be silent; None where that is so long that nothing is gained by a look."""
        quiet_s = max(QUIET_MIN_S, QUIET_PER_LATENCY * (latency_ms or 0.0) / 1e3) * GROWTH**self._steps
        return quiet_s if quiet_s < QUIET_MAX_S else None

    def doubts_at(self, unanswered_since: float, latency_ms: float | None) -> float | None:
        """When traffic that is not answered since then is a reason to doubt; None for never."""
        quiet_s = self.quiet_s(latency_ms)
        if quiet_s is None or unanswered_since - self._heard_at > TALK_S:
            return None
        return unanswered_since + quiet_s
