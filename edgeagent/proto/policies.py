"""How the agent is to behave on each of its uplinks now: budgets held against the ledger, and what follows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeagent.proto.budget import Level, assess, policy

if TYPE_CHECKING:
    from edgeagent.proto.budget import Budget, BudgetRules, Policy
    from edgeagent.proto.ledger import Ledger

KNOWN_MAX = 64  # uplinks whose budget is looked up once


class LevelChanged:
    """An uplink's budget is used up to another level; `day` and `month` are the parts used, None without a budget."""

    __slots__ = ("before", "day", "level", "month", "uplink")

    def __init__(self, uplink: str, before: Level, level: Level, day: float | None, month: float | None) -> None:
        self.uplink = uplink
        self.before = before
        self.level = level
        self.day = day
        self.month = month


class Policies:
    """Drive it: `assess` now and then while bytes are booked, and at midnight; `set_modems` when one is found, or
    roams; then drain events. Whoever repeats something asks `of(uplink)` how often.
    """

    __slots__ = ("_budgets", "_events", "_ledger", "_levels", "_modems", "_rules")

    def __init__(self, ledger: Ledger, rules: BudgetRules) -> None:
        self._ledger = ledger
        self._rules = rules
        self._budgets: dict[str, Budget] = {}  # as the rules said
        self._levels: dict[str, Level] = {}  # of metered uplinks that are not at NORMAL, by what is used
        self._modems: dict[str, bool] = {}  # whether it roams, by uplink
        self._events: list[LevelChanged] = []

    def of(self, uplink: str) -> Policy:
        return policy(self.budget(uplink), self.level(uplink))

    def level(self, uplink: str) -> Level:
        level = self._levels.get(uplink, Level.NORMAL)
        roams = self._modems.get(uplink, False) and self.budget(uplink).metered
        return max(level, Level.ROAMING) if roams else level

    def budget(self, uplink: str) -> Budget:
        known = self._budgets.get(uplink)
        if known is None:
            if len(self._budgets) >= KNOWN_MAX:
                self._budgets.clear()
            known = self._budgets[uplink] = self._rules.of(uplink, has_modem=uplink in self._modems)
        return known

    def set_defaults(self, now: float, daily_bytes: int, monthly_bytes: int) -> None:
        """The hub's budgets for metered uplinks that have none of their own; 0 is no limit."""
        self._rules.set_defaults(daily_bytes, monthly_bytes)
        self._budgets.clear()
        self.assess(now)

    def set_modems(self, now: float, modems: dict[str, bool]) -> None:
        """The uplinks that belong to modems, and whether each roams."""
        before = {uplink: self.level(uplink) for uplink in {*modems, *self._modems}}
        self._modems = dict(modems)
        self._budgets.clear()
        for uplink, level in before.items():
            if self.level(uplink) is not level:
                self._events.append(LevelChanged(uplink, level, self.level(uplink), *self.used(now, uplink)))
        self.assess(now)

    def assess(self, now: float) -> None:
        uplinks = self._ledger.uplinks
        for gone in [uplink for uplink in self._levels if uplink not in uplinks]:  # it gave way to others
            del self._levels[gone]
        for uplink in uplinks:
            shown = self.level(uplink)
            before = self._levels.get(uplink, Level.NORMAL)
            level = assess(now, self._ledger, uplink, self.budget(uplink), before)
            if level is before:
                continue
            self._levels[uplink] = level
            if level is Level.NORMAL:
                del self._levels[uplink]
            if self.level(uplink) is not shown:
                self._events.append(LevelChanged(uplink, shown, self.level(uplink), *self.used(now, uplink)))

    def used(self, now: float, uplink: str) -> tuple[float | None, float | None]:
        """What part of the day's budget, and of the month's, is used; None where there is none."""
        budget = self.budget(uplink)
        day, month = self._ledger.used(now, uplink)
        return (
            day / budget.daily_bytes if budget.daily_bytes else None,
            month / budget.monthly_bytes if budget.monthly_bytes else None,
        )

    def drain_events(self) -> list[LevelChanged]:
        events, self._events = self._events, []
        return events
