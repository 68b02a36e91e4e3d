"""Points of something that goes on, few enough to draw whatever the run's length."""

from __future__ import annotations

POINTS_MAX = 600


class Series:
    """Every point at first; each time there are POINTS_MAX, every other one goes, and half as many are taken."""

    def __init__(self) -> None:
        self._points: list[list[float]] = []
        self._every = 1
        self._seen = 0

    def add(self, at_s: float, value: float) -> None:
        if self._seen % self._every == 0:
            self._points.append([at_s, round(value, 3)])
            if len(self._points) >= POINTS_MAX:
                del self._points[1::2]
                self._every *= 2
        self._seen += 1

    def points(self) -> list[list[float]]:
        """[at_s, value] each."""
        return [list(point) for point in self._points]
