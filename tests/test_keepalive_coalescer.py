"""Wake-ups: never late, never earlier than allowed, and as few as there can be."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeagent.proto.coalescer import DEADLINES_MAX, TimerCoalescer
from edgeagent.proto.errors import LimitReached, LocalProtocolError

HOUR_S = 3_600.0


def wake_ups(intervals: list[float], slack: float, *, seed: int = 1) -> int:
    """In an hour, of timers that repeat, begun at random moments; `slack` as a part of the interval."""
    random = Random(seed)
    timers = TimerCoalescer()
    for number, interval in enumerate(intervals):
        timers.arm(number, random.random() * interval, slack * interval)
    last = dict.fromkeys(range(len(intervals)), 0.0)
    count = 0
    while (now := timers.poll_timeout()) is not None and now < HOUR_S:
        count += 1
        taken = timers.take(now)
        assert taken
        for key in taken:
            assert isinstance(key, int)
            assert now - last[key] <= intervals[key] + 1e-9
            last[key] = now
            timers.arm(key, now + intervals[key], slack * intervals[key])
    return count


def test_figure_ten_peers() -> None:
    alike, mixed = [102.0] * 10, [102.0] * 6 + [85.0] * 2 + [127.5] * 2
    figures = {
        "25 s each, as WireGuard's PersistentKeepalive": wake_ups([25.0] * 10, 0.0),
        "102 s each, learnt": wake_ups(alike, 0.0),
        "102 s each, with half of it as slack": wake_ups(alike, 0.5),
        "85, 102 and 127.5 s, with half as slack": wake_ups(mixed, 0.5),
    }
    print(figures)
    assert list(figures.values()) == [1_440, 354, 36, 43]


def test_what_is_awake_takes_what_is_due_soon() -> None:
    timers = TimerCoalescer()
    timers.arm("a", 100.0, 20.0)
    timers.arm("b", 90.0, 5.0)
    timers.arm("c", 300.0, 10.0)
    assert timers.first_begin() == 80.0
    assert timers.take(50.0) == []
    assert timers.take(86.0) == ["b", "a"]
    assert (timers.first_begin(), timers.poll_timeout()) == (290.0, 300.0)
    timers.arm("c", 400.0, 0.0)
    assert timers.take(300.0) == [] and len(timers) == 1
    timers.disarm("c")
    timers.disarm("c")
    assert timers.poll_timeout() is None


def test_bounds() -> None:
    timers = TimerCoalescer()
    with pytest.raises(LocalProtocolError):
        timers.arm("a", 1.0, -0.1)
    for number in range(DEADLINES_MAX):
        timers.arm(number, 1.0, 0.0)
    timers.arm(0, 2.0, 0.0)
    with pytest.raises(LimitReached):
        timers.arm("one more", 1.0, 0.0)


windows = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 8)), max_size=9)


@given(windows)
def test_no_plan_wakes_up_less_often(windows: list[tuple[int, int]]) -> None:
    timers = TimerCoalescer()
    for number, (at, slack) in enumerate(windows):
        timers.arm(number, at, slack)
    count = 0
    while (now := timers.poll_timeout()) is not None:
        count += 1
        for key in timers.take(now):
            assert isinstance(key, int)
            at, slack = windows[key]
            assert at - slack <= now <= at
    assert count == fewest(frozenset(windows))


def fewest(windows: frozenset[tuple[int, int]]) -> int:
    """By trying: whoever ends first must be met, at any moment of its window."""
    if not windows:
        return 0
    at, slack = min(windows)
    rests = (frozenset(w for w in windows if not w[0] - w[1] <= moment <= w[0]) for moment in range(at - slack, at + 1))
    return 1 + min(fewest(rest) for rest in set(rests))
