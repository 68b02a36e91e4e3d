"""What a metered uplink may cost, and how the agent behaves as that is used up. Pure functions of ledger and settings.

| level     | entered when one of these is reached, of the budget                 | left below |
|-----------|---------------------------------------------------------------------|------------|
| THRIFTY   | day 60 %, month 80 %, or month 10 % ahead of the calendar           | 0.9 of it  |
| EMERGENCY | day 90 %, month 95 %                                                | 0.9 of it  |
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgeagent.proto.ledger import Ledger

DAY_THRIFTY, DAY_EMERGENCY = 0.6, 0.9
MONTH_THRIFTY, MONTH_EMERGENCY = 0.8, 0.95
AHEAD = 0.1  # of the month's budget may be used before its time
EASE = 0.9  # of a threshold that must be undercut to leave a level


class Level(IntEnum):
    NORMAL = 0
    THRIFTY = 1
    EMERGENCY = 2


class Budget:
    """An uplink's settings: whether it is metered, and how many bytes a day and a month may take; 0 is no limit."""

    __slots__ = ("daily_bytes", "metered", "monthly_bytes")

    def __init__(self, *, metered: bool = False, daily_bytes: int = 0, monthly_bytes: int = 0) -> None:
        if daily_bytes < 0 or monthly_bytes < 0:
            raise ValueError("budget: bytes are not below 0")
        self.daily_bytes = daily_bytes
        self.monthly_bytes = monthly_bytes
        self.metered = metered or bool(daily_bytes or monthly_bytes)


class Policy:
    """How to behave on an uplink. Factors widen the intervals of what repeats; they never apply to payload."""

    __slots__ = ("defer_bulk", "keepalive_factor", "on_demand", "probe_factor", "telemetry_factor")

    def __init__(
        self, keepalive_factor: int, probe_factor: int, telemetry_factor: int, *, on_demand: bool, defer_bulk: bool
    ) -> None:
        self.keepalive_factor = keepalive_factor  # of the control connection's pings
        self.probe_factor = probe_factor  # of path, relay and MTU probes
        self.telemetry_factor = telemetry_factor
        self.on_demand = on_demand  # no relay session and no UDP binding until there is payload, or a signal
        self.defer_bulk = defer_bulk  # updates and logs wait for another uplink, or another day


UNMETERED = Policy(1, 1, 1, on_demand=False, defer_bulk=False)
POLICIES = {
    Level.NORMAL: Policy(1, 2, 1, on_demand=True, defer_bulk=False),
    Level.THRIFTY: Policy(2, 4, 4, on_demand=True, defer_bulk=True),
    Level.EMERGENCY: Policy(4, 12, 24, on_demand=True, defer_bulk=True),
}


def policy(budget: Budget, level: Level) -> Policy:
    return POLICIES[level] if budget.metered else UNMETERED


def assess(now: float, ledger: Ledger, uplink: str, budget: Budget, before: Level) -> Level:
    """The level now; `before` is what this function said last, or NORMAL."""
    day, month = ledger.used(now, uplink)
    return level_of(budget, day, month, ledger.month_elapsed(now), before)


def level_of(budget: Budget, day_bytes: int, month_bytes: int, month_elapsed: float | None, before: Level) -> Level:
    """`month_elapsed`: 0 to 1, None while the date is not known; then the calendar does not count."""
    day = day_bytes / budget.daily_bytes if budget.daily_bytes else 0.0
    month = month_bytes / budget.monthly_bytes if budget.monthly_bytes else 0.0
    ahead = month / (month_elapsed + AHEAD) if month_elapsed is not None else 0.0
    entered = _level(day, month, ahead, 1.0)
    return max(entered, min(before, _level(day, month, ahead, EASE)))


def _level(day: float, month: float, ahead: float, ease: float) -> Level:
    if day >= DAY_EMERGENCY * ease or month >= MONTH_EMERGENCY * ease:
        return Level.EMERGENCY
    if day >= DAY_THRIFTY * ease or month >= MONTH_THRIFTY * ease or ahead >= ease:
        return Level.THRIFTY
    return Level.NORMAL
