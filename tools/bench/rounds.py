"""Values measured by turns: medians over rounds, and the median of each round's quotient.

Machines drift within minutes, so only what was measured in one round is divided: a ratio is the median over rounds, not
the quotient of two medians.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence


class Rounds:
    """What has been measured so far, by gauge and contender: one value a round, or none when it failed there."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, str], dict[int, float]] = {}

    def add(self, number: int, contender: str, values: Mapping[str, float | None]) -> None:
        """What `contender` had in round `number`, by gauge."""
        for gauge, value in values.items():
            if value is not None and math.isfinite(value):
                self._values.setdefault((gauge, contender), {})[number] = value

    def values(self, gauge: str, contender: str) -> list[float]:
        return list(self._values.get((gauge, contender), {}).values())

    def median(self, gauge: str, contender: str) -> float | None:
        listed = self.values(gauge, contender)
        return statistics.median(listed) if listed else None

    def ratio(self, gauge: str, contender: str, reference: str) -> float | None:
        """The median, over rounds in which both have a value, of contender's by reference's."""
        mine, its = (self._values.get((gauge, who), {}) for who in (contender, reference))
        quotients = [mine[number] / its[number] for number in mine if its.get(number)]
        return statistics.median(quotients) if quotients else None


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile: the smallest value that so many per cent of all do not exceed."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(len(ranked) * percent / 100) - 1)]
