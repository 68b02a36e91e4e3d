"""Waiting times that grow and scatter, so that a fleet does not come back as one."""

from __future__ import annotations

from collections.abc import Callable

GROWTH = 3.0


class Backoff:
    """Decorrelated jitter: each wait is drawn from `base_s` up to three times the one before, at most `cap_s`."""

    __slots__ = ("_jitter", "_last_s", "base_s", "cap_s")

    def __init__(self, jitter: Callable[[], float], base_s: float, cap_s: float) -> None:
        self._jitter = jitter
        self.base_s = base_s
        self.cap_s = cap_s
        self._last_s = 0.0

    def wait_s(self) -> float:
        """How long to wait before the next attempt, in seconds."""
        longest = max(self.base_s, self._last_s) * GROWTH
        self._last_s = min(self.cap_s, self.base_s + self._jitter() * (longest - self.base_s))
        return self._last_s

    def reset(self) -> None:
        """The last attempt lasted: begin at `base_s` again."""
        self._last_s = 0.0
