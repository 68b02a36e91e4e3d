"""Uplinks: the table of states, which one carries what is bound to none, and when each is probed."""

from __future__ import annotations

from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeagent.proto.errors import LocalProtocolError
from edgeagent.proto.node_events import ActiveUplinkChanged, UplinkChanged
from edgeagent.proto.uplink import (
    HELD_COST_MS,
    HOLD_MAX_S,
    HOLD_MIN_S,
    METERED_COST_MS,
    MOBILE_COST_MS,
    RANK_COST_MS,
    TABLE,
    Input,
    Reason,
    State,
    Uplink,
    UplinkFacts,
    UplinkSetting,
    cost_by_name,
    print_table,
    settings_of,
)
from edgeagent.proto.uplinks import (
    ACTIVE_S,
    FAILED_MAX_S,
    FAILED_MIN_S,
    FAILURES_MAX,
    FORGET_S,
    IDLE_S,
    METERED_FACTOR,
    RETRY_S,
    SETTLE_S,
    STANDBY_S,
    UPLINKS_MAX,
    Uplinks,
)


def facts(
    name: str, index: int, *, up: bool = True, metric: int = 0, host: int = 1, routed: bool = True
) -> UplinkFacts:
    return UplinkFacts(
        name,
        index,
        addresses=[bytes((192, 168, index, host))],
        gateways={4: bytes((192, 168, index, 254))} if routed else {},
        metric=metric,
        is_up=up,
    )


class Bench:
    """Uplinks on a clock of its own; `dead` ones do not answer probes, all others do at once."""

    def __init__(self, settings: dict[str, UplinkSetting] | None = None, *, only_named: bool = False) -> None:
        self.now = 1_000.0
        self.uplinks = Uplinks(settings or {}, only_named=only_named)
        self.dead: set[int] = set()
        self.answers = True  # somebody carries probes out
        self.probes: list[tuple[float, int]] = []
        self.events: list[UplinkChanged | ActiveUplinkChanged] = []

    def links(self, *links: UplinkFacts) -> None:
        self.uplinks.handle_links(self.now, list(links))
        self.settle()

    def settle(self) -> None:
        self.events += self.uplinks.drain_events()
        for index in self.uplinks.drain_probes():
            self.probes.append((self.now, index))
            if self.answers and index in self.dead:
                self.uplinks.unanswered(self.now, index)
            elif self.answers:
                self.uplinks.answered(self.now, index)
            self.settle()

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        for _ in range(10_000):
            at = self.uplinks.poll_timeout()
            if at is None or at > end:
                break
            self.now = max(self.now, at)
            self.uplinks.handle_timeout(self.now)
            self.settle()
        else:
            raise AssertionError("a timer that never ends")
        self.now = end

    @property
    def active(self) -> str | None:
        return None if self.uplinks.active is None else self.uplinks.active.name

    def state(self, name: str) -> State:
        return next(uplink.state for uplink in self.uplinks if uplink.name == name)

    def actives(self) -> list[tuple[str | None, str]]:
        """(name, reason) of each change since the last call."""
        seen = [(event.name, event.reason.value) for event in self.events if isinstance(event, ActiveUplinkChanged)]
        self.events.clear()
        return seen


ETH, WWAN = facts("eth0", 1, metric=100), facts("wwan0", 2, metric=700)


@pytest.fixture
def bench() -> Bench:
    made = Bench()
    made.links(ETH, WWAN)
    made.run(1.0)
    made.actives()
    made.probes.clear()
    return made


# The table


@pytest.mark.parametrize(("state", "put"), list(product(State, Input)), ids=lambda each: each.value)
def test_every_input_in_every_state(state: State, put: Input) -> None:
    uplink = Uplink(0.0, ETH, UplinkSetting())
    uplink.state = state
    if (state, put) in TABLE:
        assert uplink.take(1.0, put) is (TABLE[state, put] is not state)
        assert uplink.state is TABLE[state, put]
    else:
        with pytest.raises(LocalProtocolError, match=f"{put.value} in state {state.value}"):
            uplink.take(1.0, put)
        assert uplink.state is state


def test_only_an_answer_makes_it_alive_and_every_state_can_go_down() -> None:
    assert {put for (_, put), after in TABLE.items() if after is State.ALIVE} == {Input.ANSWERED}
    assert {state for (state, put), after in TABLE.items() if put is Input.DOWN and after is State.DOWN} == set(State)
    assert print_table().count("\n") == len(State)


# Choice


def test_the_cheapest_then_the_metric() -> None:
    for links, best in (
        ((facts("wwan0", 1, metric=1), facts("eth0", 2, metric=9)), "eth0"),
        ((facts("eth0", 1, metric=9), facts("eth1", 2, metric=1)), "eth1"),
        ((facts("wlan0", 1), facts("ppp0", 2), facts("eth0", 3)), "eth0"),
    ):
        bench = Bench()
        bench.links(*links)
        assert bench.active == best
        assert bench.actives() == [(best, "first")]
    bench = Bench({"eth0": UplinkSetting(is_metered=True), "eth1": UplinkSetting(cost_ms=1e6)})
    bench.links(facts("eth0", 1), facts("wwan0", 2), facts("eth1", 3))
    assert [way.name for way in bench.uplinks.ways(bench.now)] == ["wwan0", "eth0", "eth1"]
    assert [way.cost_ms for way in bench.uplinks.ways(bench.now)] == [
        MOBILE_COST_MS,
        METERED_COST_MS + RANK_COST_MS,
        1e6 + 2 * RANK_COST_MS,
    ]


def test_what_is_set_in_an_order_is_used_in_that_order_and_nothing_else() -> None:
    bench = Bench(settings_of(["wwan0", "eth0"], ["eth0", "usb0"]), only_named=True)
    bench.links(facts("eth0", 1), facts("wwan0", 2), facts("eth1", 3))
    assert bench.active == "wwan0"
    assert [(way.name, way.cost_ms) for way in bench.uplinks.ways(bench.now)] == [
        ("wwan0", 0.0),
        ("eth0", METERED_COST_MS + RANK_COST_MS),
    ]
    bench.links(facts("eth0", 1), facts("eth1", 3))
    bench.run(FORGET_S)
    assert bench.uplinks.bound == [("eth0", 1)]  # or the kernel might send by the other one
    bench.links(facts("eth0", 1))
    assert bench.uplinks.bound == []
    assert cost_by_name("wwan0") == cost_by_name("ppp1") == cost_by_name("wws1") > cost_by_name("wlp2s0") > 0.0
    assert cost_by_name("eth0") == cost_by_name("pppoe-wan") == 0.0


def test_an_order_counts_more_than_what_is_metered() -> None:
    bench = Bench(settings_of(["wwan0", "eth0", "usb0", "wlan0"], ["wwan0", "usb0"]), only_named=True)
    bench.links(facts("wlan0", 1), facts("eth0", 2), facts("wwan0", 3), facts("usb0", 4))
    assert [way.name for way in bench.uplinks.ways(bench.now)] == ["wwan0", "eth0", "usb0", "wlan0"]
    assert bench.active == "wwan0"


def test_down_moves_at_once_and_back_only_after_a_while(bench: Bench) -> None:
    bench.links(facts("eth0", 1, up=False), WWAN)
    assert bench.actives() == [("wwan0", "lost")]
    assert bench.state("eth0") is State.DOWN
    assert [way.name for way in bench.uplinks.ways(bench.now)] == ["wwan0"]
    bench.links(ETH, WWAN)
    assert [(way.name, way.cost_ms) for way in bench.uplinks.ways(bench.now)] == [
        ("eth0", HELD_COST_MS),
        ("wwan0", MOBILE_COST_MS + RANK_COST_MS),
    ]
    bench.run(HOLD_MIN_S - 0.1)
    assert bench.state("eth0") is State.ALIVE and bench.active == "wwan0"
    bench.run(0.2)
    assert bench.actives() == [("eth0", "better")]


@pytest.mark.parametrize(
    "lost", [facts("eth0", 1, up=False), facts("eth0", 1, routed=False), None], ids=["link", "route", "interface"]
)
def test_whatever_an_uplink_lacks_it_is_down(bench: Bench, lost: UplinkFacts | None) -> None:
    bench.links(*([] if lost is None else [lost]), WWAN)
    assert bench.state("eth0") is State.DOWN
    assert bench.active == "wwan0"
    reasons = {event.reason for event in bench.events if isinstance(event, UplinkChanged)}
    assert reasons == {Reason.GONE if lost is None else Reason.LINK}
    assert bench.uplinks.bound == [("eth0", 1), ("wwan0", 2)]  # it may come back
    bench.links(WWAN)
    bench.run(FORGET_S)
    assert bench.uplinks.bound == []
    bench.links()
    assert bench.uplinks.ways(bench.now) == []
    assert bench.active is None


def test_a_flapping_uplink_is_held_longer_each_time(bench: Bench) -> None:
    held = []
    for _ in range(8):
        bench.links(facts("eth0", 1, up=False), WWAN)
        bench.run(2.0)
        bench.links(ETH, WWAN)
        began = bench.now
        while bench.active != "eth0":
            bench.run(1.0)
        held.append(bench.now - began)
    assert held == sorted(held) and held[0] == HOLD_MIN_S and held[-1] == HOLD_MAX_S
    bench.run(3_600.0)
    bench.links(facts("eth0", 1, up=False), WWAN)
    bench.links(ETH, WWAN)
    bench.run(HOLD_MIN_S + 1.0)
    assert bench.active == "eth0"


def test_an_uplink_that_answers_nobody_fails_and_comes_back(bench: Bench) -> None:
    bench.uplinks.used(bench.now)
    bench.dead = {1}
    bench.run(ACTIVE_S + FAILURES_MAX * RETRY_S)
    assert bench.state("eth0") is State.FAILED
    assert bench.actives() == [("wwan0", "lost")]
    assert [way.name for way in bench.uplinks.ways(bench.now)] == ["wwan0"]
    bench.run(10 * FAILED_MAX_S)
    probed = [at for at, index in bench.probes if index == 1]
    gaps = [round(after - before) for before, after in pairwise(probed)]
    assert gaps[2:8] == [FAILED_MIN_S * 2**n for n in range(5)] + [FAILED_MAX_S]
    bench.dead = set()
    bench.run(FAILED_MAX_S)
    assert bench.state("eth0") is State.ALIVE
    bench.run(HOLD_MIN_S)
    assert bench.actives() == [("eth0", "better")]


def test_when_none_is_answered_it_is_not_the_uplinks_fault(bench: Bench) -> None:
    bench.uplinks.used(bench.now)
    bench.dead = {1, 2}
    bench.run(600.0)
    assert {bench.state("eth0"), bench.state("wwan0")} == {State.DOUBTFUL}
    assert bench.active == "eth0" and bench.actives() == []
    assert len(bench.uplinks.ways(bench.now)) == 2
    bench.dead = {1}  # the servers are back, and now it shows
    bench.run(2 * FAILED_MAX_S)
    assert bench.state("eth0") is State.FAILED and bench.active == "wwan0"


def test_a_failed_one_is_kept_when_the_other_goes_down(bench: Bench) -> None:
    bench.dead = {1}
    bench.run(2 * IDLE_S)
    assert bench.active == "wwan0"
    bench.links(ETH, facts("wwan0", 2, up=False))
    assert bench.active == "eth0" and bench.state("eth0") is State.FAILED
    bench.links(ETH, WWAN)
    assert bench.active == "wwan0"


def test_pongs_count_though_nobody_asked(bench: Bench) -> None:
    bench.dead = {1}
    bench.run(IDLE_S)
    assert bench.state("eth0") is State.DOUBTFUL
    bench.uplinks.answered(bench.now, 1)
    assert bench.state("eth0") is State.ALIVE
    bench.uplinks.answered(bench.now, 99)
    bench.uplinks.unanswered(bench.now, 99)
    bench.links(facts("eth0", 1, up=False), WWAN)
    bench.uplinks.answered(bench.now, 1)
    bench.uplinks.unanswered(bench.now, 1)
    assert bench.state("eth0") is State.DOWN


def test_an_address_change_is_a_new_beginning(bench: Bench) -> None:
    bench.links(facts("eth0", 1, host=2), WWAN)
    assert [(event.state, event.reason) for event in bench.events if isinstance(event, UplinkChanged)] == [
        (State.UNTESTED, Reason.MOVED)
    ]
    assert bench.active == "eth0"
    bench.run(0.0)
    assert bench.state("eth0") is State.ALIVE
    bench.links(facts("eth0", 7, host=2), WWAN)  # a USB modem has come back under another number
    assert ("eth0", 7) in bench.uplinks.bound


def test_without_anybody_who_probes_the_better_one_is_taken_after_a_while() -> None:
    bench = Bench()
    bench.answers = False
    bench.links(WWAN)
    bench.run(60.0)
    bench.links(WWAN, ETH)
    bench.run(SETTLE_S - 0.1)
    assert bench.active == "wwan0"
    bench.run(0.1)
    assert bench.actives() == [("wwan0", "first"), ("eth0", "better")]
    assert {bench.state("eth0"), bench.state("wwan0")} == {State.UNTESTED}


# Probes


def test_a_single_uplink_is_never_probed() -> None:
    bench = Bench()
    bench.links(ETH, facts("wwan0", 2, up=False))
    bench.uplinks.used(bench.now)
    bench.run(86_400.0)
    assert bench.probes == [] and bench.uplinks.bound == []


def test_probes_by_traffic_and_price() -> None:
    def per_day(settings: dict[str, UplinkSetting], *, busy: bool) -> dict[int, int]:
        bench = Bench(settings)
        bench.links(ETH, WWAN)
        bench.run(1.0)
        bench.probes.clear()
        for _ in range(24 * 360):
            if busy:
                bench.uplinks.used(bench.now)
            bench.run(10.0)
        return {index: sum(1 for _, probed in bench.probes if probed == index) for index in (1, 2)}

    day_s = 86_400.0
    metered = {"wwan0": UplinkSetting(is_metered=True)}
    assert per_day({}, busy=False) == {1: day_s / IDLE_S, 2: day_s / IDLE_S}
    assert per_day(metered, busy=False) == {1: day_s / IDLE_S, 2: day_s / IDLE_S / METERED_FACTOR}
    busy = per_day(metered, busy=True)
    assert busy[1] == pytest.approx(day_s / ACTIVE_S, abs=2)
    assert busy[2] == pytest.approx(day_s / STANDBY_S / METERED_FACTOR, abs=2)


def test_traffic_asks_at_once_for_what_was_not_probed_for_long(bench: Bench) -> None:
    bench.run(IDLE_S / 2)
    bench.probes.clear()
    bench.uplinks.used(bench.now)
    bench.run(STANDBY_S)
    assert {index for _, index in bench.probes} == {1, 2}


# Bounds


def test_at_most_eight(bench: Bench) -> None:
    many = [facts(f"eth{number}", number + 1) for number in range(UPLINKS_MAX + 3)]
    bench.links(*many)
    assert len(list(bench.uplinks)) == UPLINKS_MAX == len(bench.uplinks.bound)
    assert bench.uplinks.ignored == 3 and len(bench.uplinks.rows(bench.now)) == UPLINKS_MAX
    bench.links(many[-1])  # those that are down give way
    assert bench.active == many[-1].name


LINKS = st.lists(
    st.builds(
        facts,
        st.sampled_from(["eth0", "eth1", "wwan0", "wlan0", "ppp0"]),
        st.integers(1, 6),
        up=st.booleans(),
        metric=st.integers(0, 3),
        host=st.integers(1, 3),
        routed=st.booleans(),
    ),
    max_size=6,
)


@given(
    st.lists(
        st.tuples(st.sampled_from(["links", "answered", "unanswered", "used", "wait"]), st.integers(0, 400), LINKS)
    )
)
def test_whatever_comes_the_active_one_is_up(actions: list[tuple[str, int, list[UplinkFacts]]]) -> None:
    bench = Bench({"wlan0": UplinkSetting(is_metered=True)})
    bench.answers = False
    for action, number, links in actions:
        if action == "links":
            bench.links(*links)
        elif action in ("answered", "unanswered"):
            getattr(bench.uplinks, action)(bench.now, number % 7)
        elif action == "used":
            bench.uplinks.used(bench.now)
        else:
            bench.run(float(number))
        bench.settle()
        up = [uplink for uplink in bench.uplinks if uplink.state is not State.DOWN]
        active = bench.uplinks.active
        assert (active in up) if up else active is None
        if active is not None and active.state is State.FAILED:
            assert not any(uplink.state is State.ALIVE for uplink in up)
        assert {way.name for way in bench.uplinks.ways(bench.now)} == {each.name for each in up if each.is_usable}
