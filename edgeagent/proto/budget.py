"""What a metered uplink may cost, and how the agent behaves as that is used up. Pure functions of ledger and settings.

| level     | entered when one of these is reached, of the budget                 | left below |
|-----------|---------------------------------------------------------------------|------------|
| THRIFTY   | day 60 %, month 80 %, or month 10 % ahead of the calendar           | 0.9 of it  |
| EMERGENCY | day 90 %, month 95 %                                                | 0.9 of it  |
| ROAMING   | whatever is used: its modem is in the network of another operator   | with that  |
"""

from __future__ import annotations

import re
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgeagent.proto.ledger import Ledger

DAY_THRIFTY, DAY_EMERGENCY = 0.6, 0.9
MONTH_THRIFTY, MONTH_EMERGENCY = 0.8, 0.95
AHEAD = 0.1  # of the month's budget may be used before its time
EASE = 0.9  # of a threshold that must be undercut to leave a level
RULES_MAX = 16  # in one setting

# Modems, as Linux, udev, OpenWrt and Android call them. Not "pppoe-wan": that is a fixed line.
_AUTO = r"wwan\d+|ww[psx].+|ppp\d+|rmnet.+|usb\d+|[34]g-.+"
_NAME = re.compile(r"[A-Za-z0-9_.*-]{1,15}")
_AMOUNT = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)(B|[kMG]B|[KMG]iB)/(day|month)")
_UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


class Level(IntEnum):
    NORMAL = 0
    THRIFTY = 1
    ROAMING = 2
    EMERGENCY = 3


class Budget:
    """An uplink's settings: whether it is metered, and how many bytes a day and a month may take; 0 is no limit."""

    __slots__ = ("daily_bytes", "metered", "monthly_bytes")

    def __init__(self, *, metered: bool = False, daily_bytes: int = 0, monthly_bytes: int = 0) -> None:
        if daily_bytes < 0 or monthly_bytes < 0:
            raise ValueError("budget: bytes are not below 0")
        self.daily_bytes = daily_bytes
        self.monthly_bytes = monthly_bytes
        self.metered = metered or bool(daily_bytes or monthly_bytes)


_FREE = Budget()


class BudgetRules:
    """Which uplinks are metered, and their budgets, from the texts of two settings. Raises ValueError that says what is
    wanted.

    `metered`: names of interfaces, `*` for any characters; `auto` for what modems are called, and for what a modem was
    found behind whatever it is called; `none`. `budgets`:
    `wwan0=2MB/day,60MB/month,ppp*=500kB/day`; what has a budget is metered. `set_defaults` gives the budget of metered
    uplinks that no rule names.
    """

    __slots__ = ("_auto", "_budgets", "_defaults", "_metered")

    def __init__(self, metered: str = "auto", budgets: str = "") -> None:
        self._metered = read_metered(metered)
        self._auto = "auto" in (name.strip() for name in metered.split(","))
        self._budgets = read_budgets(budgets)
        self._defaults = Budget(metered=True)

    def set_defaults(self, daily_bytes: int, monthly_bytes: int) -> None:
        self._defaults = Budget(metered=True, daily_bytes=daily_bytes, monthly_bytes=monthly_bytes)

    def of(self, uplink: str, *, has_modem: bool = False) -> Budget:
        for name, budget in self._budgets:
            if name.fullmatch(uplink):
                return budget
        return self._defaults if self._metered.fullmatch(uplink) or (has_modem and self._auto) else _FREE


def is_modem(interface: str) -> bool:
    """By its name."""
    return re.fullmatch(_AUTO, interface) is not None


def read_metered(text: str) -> re.Pattern[str]:
    names = [name.strip() for name in text.split(",")]
    if len(names) > RULES_MAX or not all(map(_NAME.fullmatch, names)) or ("none" in names and len(names) > 1):
        raise ValueError(f"at most {RULES_MAX} interface names, comma separated, * for any characters; auto; or none")
    return re.compile("|".join(_AUTO if name == "auto" else _glob(name) for name in names if name != "none") or r"(?!)")


def read_budgets(text: str) -> list[tuple[re.Pattern[str], Budget]]:
    """In the order of the text: the first that fits counts."""
    rules: dict[str, dict[str, int]] = {}
    name = ""
    for item in text.split(",") if text else ():
        before, equals, amount = item.strip().rpartition("=")
        if equals:
            name = before.strip()
            if name in rules or len(rules) >= RULES_MAX:
                raise ValueError(f"at most {RULES_MAX} interfaces, each once")
            rules[name] = {}
        found = _AMOUNT.fullmatch(amount.strip())
        size = round(float(found[1]) * _UNITS[found[2]]) if found else 0
        if not found or not size or not _NAME.fullmatch(name) or found[3] in rules[name]:
            raise ValueError("interface=amount/day,amount/month, such as wwan0=2MB/day,60MB/month (kB, MB, GB, KiB …)")
        rules[name][found[3]] = size
    return [
        (re.compile(_glob(name)), Budget(daily_bytes=sizes.get("day", 0), monthly_bytes=sizes.get("month", 0)))
        for name, sizes in rules.items()
    ]


def _glob(name: str) -> str:
    return ".*".join(map(re.escape, name.split("*")))


class Policy:
    """How to behave on an uplink. Factors widen the intervals of what repeats; they never apply to payload."""

    __slots__ = ("defer_bulk", "keepalive_factor", "on_demand", "probe_factor", "telemetry_factor")

    def __init__(
        self, keepalive_factor: int, probe_factor: int, telemetry_factor: int, *, on_demand: bool, defer_bulk: bool
    ) -> None:
        self.keepalive_factor = keepalive_factor  # of the control connection's pings
        self.probe_factor = probe_factor  # of probes of paths and their MTU
        self.telemetry_factor = telemetry_factor  # of what programs report, which ask for it as they do for
        self.on_demand = on_demand  # no relay session and no UDP binding until there is payload, or a signal
        self.defer_bulk = defer_bulk  # whether updates and logs are to wait for another uplink, or another day


UNMETERED = Policy(1, 1, 1, on_demand=False, defer_bulk=False)
POLICIES = {
    Level.NORMAL: Policy(3, 2, 1, on_demand=True, defer_bulk=False),
    Level.THRIFTY: Policy(4, 4, 4, on_demand=True, defer_bulk=True),
    Level.ROAMING: Policy(6, 6, 4, on_demand=True, defer_bulk=True),
    Level.EMERGENCY: Policy(12, 12, 24, on_demand=True, defer_bulk=True),
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
