"""Three levels that rise with what is used, fall with room to spare, and do not flap."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeagent.proto.budget import EASE, POLICIES, UNMETERED, Budget, Level, assess, level_of, policy
from edgeagent.proto.ledger import Cause, Ledger

DAY_S = 86_400.0
FIRST_OF_MAY = 1_777_593_600.0
SIM = Budget(daily_bytes=1_000, monthly_bytes=20_000)
USED = st.integers(0, 2_500)
ELAPSED = st.none() | st.floats(0, 1)


def test_a_day_on_a_sim() -> None:
    ledger, level = Ledger(), Level.NORMAL
    ledger.set_wall(0.0, FIRST_OF_MAY)
    levels = []
    for hour in range(36):
        now = hour * 3_600.0
        ledger.book(now, "wwan0", Cause.PAYLOAD, sent=25, received=25)
        level = assess(now, ledger, "wwan0", SIM, level)
        levels.append(level)
    assert [levels.index(Level.THRIFTY), levels.index(Level.EMERGENCY)] == [11, 17]
    assert levels[24:] == [Level.NORMAL] * 11 + [Level.THRIFTY]


@pytest.mark.parametrize(
    ("day", "month", "elapsed", "level"),
    [
        (0, 0, None, Level.NORMAL),
        (599, 0, 0.5, Level.NORMAL),
        (600, 0, 0.5, Level.THRIFTY),
        (900, 0, 0.5, Level.EMERGENCY),
        (0, 15_999, 0.9, Level.NORMAL),
        (0, 16_000, 0.9, Level.THRIFTY),
        (0, 19_000, 0.9, Level.EMERGENCY),
        (0, 8_000, 0.5, Level.NORMAL),
        (0, 8_000, 0.29, Level.THRIFTY),  # 40 % when 29 % of the month are over
        (0, 8_000, None, Level.NORMAL),
        (10**9, 10**9, 0.0, Level.EMERGENCY),
    ],
)
def test_levels(day: int, month: int, elapsed: float | None, level: Level) -> None:
    assert level_of(SIM, day, month, elapsed, Level.NORMAL) is level


@given(USED, st.integers(0, 50_000), ELAPSED, st.sampled_from(Level))
def test_a_level_is_stable_and_remembers_only_within_the_band(
    day: int, month: int, elapsed: float | None, before: Level
) -> None:
    level = level_of(SIM, day, month, elapsed, before)
    assert level_of(SIM, day, month, elapsed, level) is level
    fresh = level_of(SIM, day, month, elapsed, Level.NORMAL)
    assert fresh <= level <= max(fresh, before)
    if level is not fresh:  # it is kept only because the threshold is near
        assert level_of(SIM, int(day / EASE) + 1, int(month / EASE) + 1, elapsed, Level.NORMAL) >= level


@given(USED, USED, st.integers(0, 50_000), ELAPSED, st.sampled_from(Level))
def test_more_use_never_lowers_a_level(a: int, b: int, month: int, elapsed: float | None, before: Level) -> None:
    assert level_of(SIM, min(a, b), month, elapsed, before) <= level_of(SIM, max(a, b), month, elapsed, before)


@given(st.integers(580, 620), st.integers(580, 620))
def test_what_swings_about_a_threshold_does_not_flap(a: int, b: int) -> None:
    level, changes = Level.NORMAL, 0
    for used in (a, b) * 10:
        new = level_of(SIM, used, 0, 0.5, level)
        changes += new is not level
        level = new
    assert changes <= 1


def test_policies_widen_from_level_to_level() -> None:
    rows = [UNMETERED, *(POLICIES[level] for level in Level)]
    for before, after in pairwise(rows):
        for name in ("keepalive_factor", "probe_factor", "telemetry_factor", "on_demand", "defer_bulk"):
            assert getattr(before, name) <= getattr(after, name)
    assert not UNMETERED.on_demand and POLICIES[Level.NORMAL].on_demand
    assert policy(Budget(), Level.EMERGENCY) is UNMETERED
    assert policy(Budget(metered=True), Level.NORMAL) is POLICIES[Level.NORMAL]
    assert Budget(daily_bytes=1).metered and Budget(monthly_bytes=1).metered and not Budget().metered
    assert level_of(Budget(metered=True), 10**12, 10**12, 0.5, Level.NORMAL) is Level.NORMAL
    with pytest.raises(ValueError, match="budget"):
        Budget(daily_bytes=-1)
