"""The choice of a home: near ones first, no move for a little, and none that failed until its time is over."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeagent.proto.relay_home import FORGIVEN_S, MARGIN_S, MARGIN_SHARE, SHUN_MAX_S, SHUN_S, HomeChoice
from edgeagent.proto.relaymap import RelayInfo

NAMES = ("a", "b", "c", "d")


def relay(name: str) -> RelayInfo:
    return RelayInfo({"id": name, "rg": "r", "k": bytes(32), "h": ["192.0.2.1:443"], "u": 3478, "s": 0, "pin": b""})


def choice(*names: str, **latencies_ms: float) -> HomeChoice:
    made = HomeChoice()
    made.set_relays([relay(name) for name in names])
    for name, ms in latencies_ms.items():
        made.measured(name, ms / 1e3)
    return made


@pytest.mark.parametrize(
    ("latencies_ms", "failed", "home", "best"),
    [
        ({}, "", None, "a"),  # nothing is known: the map's order
        ({"b": 80.0}, "", None, "b"),  # one that answered is nearer than any that did not
        ({"a": 50.0, "b": 20.0, "c": 20.0}, "", None, "b"),
        ({"a": 50.0, "b": 20.0}, "", "a", "b"),
        ({"a": 25.0, "b": 16.0}, "", "a", "a"),  # 9 ms are no reason to move,
        ({"a": 200.0, "b": 165.0}, "", "a", "a"),  # nor is a sixth
        ({"a": 200.0, "b": 150.0}, "", "a", "b"),
        ({"b": 20.0}, "", "a", "a"),  # nobody knows whether it is nearer
        ({"a": 20.0}, "", "a", "a"),
        ({"a": 20.0, "b": 80.0}, "a", "a", "b"),
        ({"a": 20.0, "b": 80.0, "c": 60.0}, "a", "a", "c"),
        ({"a": 20.0}, "ab", None, "c"),
        ({"a": 20.0}, "ab", "a", "c"),
        ({}, "bca", "b", "b"),  # all have failed: the one that failed first
        ({"a": 20.0}, "", "gone", "a"),  # the map has our home no more
    ],
)
def test_the_best(latencies_ms: dict[str, float], failed: str, home: str | None, best: str) -> None:
    made = choice("a", "b", "c", **latencies_ms)
    for at, name in enumerate(failed):
        made.failed(float(at), name)
    assert made.best(float(len(failed)), home) == best


def test_without_relays_there_is_none() -> None:
    made = choice("a")
    made.measured("a", 0.1)
    made.failed(0.0, "a")
    made.set_relays([])
    assert made.best(1.0, "a") is None and made.latency_s("a") is None and made.next_change(1.0) is None
    made.measured("a", 0.1)
    made.failed(0.0, "a")
    assert made.latency_s("a") is None and not made.is_shunned(1.0, "a")


def test_one_that_is_named_twice_is_one() -> None:
    made = HomeChoice()
    made.set_relays([relay("a"), relay("a"), relay("b")])
    made.failed(0.0, "a")
    assert made.best(1.0, None) == "b"
    made.failed(0.0, "b")
    assert made.best(1.0, None) == "a"


def test_measurements_are_smoothed() -> None:
    made = choice("a", a=100.0)
    made.measured("a", 0.020)
    assert made.latency_s("a") == pytest.approx(0.080)
    made.forget()
    made.measured("a", 0.020)
    assert made.latency_s("a") == 0.020


def test_one_that_fails_is_passed_over_until_its_time_is_over() -> None:
    made = choice("a", "b", a=10.0, b=60.0)
    made.failed(100.0, "a")
    assert made.next_change(100.0) == 100.0 + SHUN_S
    assert made.best(100.0 + SHUN_S - 0.001, "b") == "b"
    assert made.best(100.0 + SHUN_S, "b") == "a" and made.next_change(100.0 + SHUN_S) is None


def test_each_time_for_longer_until_it_has_served_for_long() -> None:
    made, now, waits = choice("a"), 0.0, []
    for _ in range(7):
        made.failed(now, "a")
        until = made.next_change(now)
        assert until is not None
        waits.append(until - now)
        now = until + 1.0
    assert waits == [30.0, 60.0, 120.0, 240.0, 480.0, 600.0, 600.0]
    now += FORGIVEN_S
    made.failed(now, "a")
    assert made.next_change(now) == now + SHUN_S


def test_what_is_said_twice_of_one_failure_counts_once() -> None:
    made = choice("a")
    made.failed(0.0, "a")  # suspected,
    made.failed(8.0, "a")  # then down
    assert made.next_change(9.0) == 8.0 + SHUN_S
    made.failed(40.0, "a")
    assert made.next_change(41.0) == 40.0 + 2 * SHUN_S


def test_a_false_alarm_leaves_nothing_behind() -> None:
    made = choice("a", "b", a=10.0, b=60.0)
    made.failed(0.0, "a")
    made.false_alarm("a")
    assert made.best(1.0, "a") == "a" and made.next_change(1.0) is None
    made.failed(2.0, "a")
    assert made.next_change(2.0) == 2.0 + SHUN_S


@pytest.mark.parametrize(("at_least_s", "shunned_s"), [(0.0, 30.0), (70.0, 70.0), (65_595.0, 600.0)])
def test_a_relay_says_how_long_it_is_away_but_not_for_how_long_it_is_out(at_least_s: float, shunned_s: float) -> None:
    made = choice("a")
    made.failed(5.0, "a", at_least_s)
    assert made.next_change(5.0) == 5.0 + shunned_s


def test_another_network_forgives_everything() -> None:
    made = choice("a", "b", a=10.0, b=60.0)
    for now in (0.0, 40.0, 110.0):
        made.failed(now, "a")
    made.forget()
    assert not made.is_shunned(111.0, "a") and made.latency_s("a") is None
    made.failed(200.0, "a")
    assert made.next_change(200.0) == 200.0 + SHUN_S


HAPPENINGS = st.lists(
    st.tuples(
        st.sampled_from(("measured", "failed", "false alarm", "map", "network", "later")),
        st.sampled_from(NAMES),
        st.floats(0.0, 1_000.0),
    ),
    max_size=60,
)


@given(happenings=HAPPENINGS)
def test_whatever_happens_it_stays_bounded_and_a_move_has_a_reason(
    happenings: list[tuple[str, str, float]],
) -> None:
    made, now, home = choice(*NAMES), 0.0, None
    relays = list(NAMES)
    for happening, name, number in happenings:
        if happening == "measured":
            made.measured(name, number / 1e3)
        elif happening == "failed":
            made.failed(now, name, number)
        elif happening == "false alarm":
            made.false_alarm(name)
        elif happening == "map":
            relays = [each for each in NAMES if each != name]
            made.set_relays([relay(each) for each in relays])
        elif happening == "network":
            made.forget()
        else:
            now += number
        for table in (made._latency_s, made._shunned, made._shun_s):
            assert set(table) <= set(relays)
        best = made.best(now, home)
        assert best in relays
        if best != home and home in relays:
            here, there = made.latency_s(home), made.latency_s(best)
            nearer = here is not None and there is not None and there + max(MARGIN_S, MARGIN_SHARE * here) < here
            assert nearer or made.is_shunned(now, home)
        home = best
        assert made.best(now, home) == home, "asked again, it says the same"
        until = made.next_change(now)
        assert until is None or now < until <= now + SHUN_MAX_S
    now += SHUN_MAX_S
    assert not any(made.is_shunned(now, each) for each in NAMES)
