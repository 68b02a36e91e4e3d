"""Binding lifetimes learnt from NATs of the test's own, in virtual time; and what is kept of them."""

from __future__ import annotations

import heapq

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeagent.proto.codec import decode, encode
from edgeagent.proto.errors import LimitReached, LocalProtocolError
from edgeagent.proto.keepalive import (
    INTERVAL_MAX_S,
    INTERVAL_MIN_S,
    PRECISION,
    SAFETY,
    BindingSearch,
    Close,
    Exchange,
    Knock,
    Phase,
    interval_s,
)
from edgeagent.proto.keepalive_learner import (
    DEFAULT_INTERVAL_S,
    NATS_MAX,
    UPLINKS_MAX,
    IntervalChanged,
    KeepaliveLearner,
)
from edgeagent.proto.refusals import ControlError


class Nat:
    """Forgets a binding after `lifetime_s` of silence from inside, one without traffic both ways after `young_s`."""

    def __init__(self, lifetime_s: float, young_s: float | None = None) -> None:
        self.lifetime_s = lifetime_s
        self.young_s = lifetime_s if young_s is None else young_s
        self.bindings: dict[int, tuple[float, float]] = {}  # socket → first and last packet from inside
        self.packets = 0
        self.sockets_max = 0
        self.server_answers = True
        self.knocks_pass = True
        self.lose: set[int] = set()  # these packets, by number

    def exchange(self, now: float, trial: int) -> bool:
        self.packets += 2
        first, _ = self.bindings.get(trial, (now, now))
        self.bindings[trial] = (first, now)
        self.sockets_max = max(self.sockets_max, len(self.bindings))
        return self.server_answers and self.packets not in self.lose

    def knock(self, now: float, trial: int) -> bool:
        self.packets += 2
        first, last = self.bindings[trial]
        lifetime_s = self.lifetime_s if last - first > 2 else self.young_s
        return self.knocks_pass and now - last < lifetime_s and self.packets not in self.lose


class World:
    """A search on its own, and a server that answers after 50 ms."""

    def __init__(self, nat: Nat) -> None:
        self.nat = nat
        self.now = 50.0
        self.search: BindingSearch = BindingSearch(self.now, lambda: 0.5)
        self.answers: list[tuple[float, int, bool]] = []
        self.silences: list[float] = []

    @property
    def phase(self) -> Phase:
        return self.search.phase

    def settle(self) -> None:
        for wish in self.search.drain_wishes():
            if isinstance(wish, Exchange):
                if self.nat.exchange(self.now, wish.trial):
                    heapq.heappush(self.answers, (self.now + 0.05, wish.trial, False))
            elif isinstance(wish, Knock):
                if self.nat.knock(self.now, wish.trial):
                    heapq.heappush(self.answers, (self.now + 0.05, wish.trial, True))
            else:
                assert isinstance(wish, Close)
                del self.nat.bindings[wish.trial]

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while self.search.phase is not Phase.DONE:
            self.settle()
            at = self.search.poll_timeout()
            if self.answers and (at is None or self.answers[0][0] <= at):
                if self.answers[0][0] > until:
                    break
                self.now, trial, knock = heapq.heappop(self.answers)
                (self.search.knocked if knock else self.search.answered)(self.now, trial)
                continue
            if at is None or at > until:
                break
            self.now = max(self.now, at)
            self.search.handle_timeout(self.now)
        self.settle()
        if self.search.phase is not Phase.DONE:
            self.now = until


@pytest.mark.parametrize("lifetime_s", [10, 12, 15, 20, 28, 30.5, 45, 60, 90, 120, 150, 180, 240, 300, 600, 900, 3_600])
def test_a_lifetime_is_found(lifetime_s: float) -> None:
    world = World(Nat(lifetime_s))
    world.run(12 * 3_600.0)
    assert world.phase is Phase.DONE
    interval = interval_s(world.search.survived_s)
    if lifetime_s > INTERVAL_MIN_S / SAFETY:
        assert interval < lifetime_s
        assert world.search.survived_s < lifetime_s
    assert interval >= min(lifetime_s / PRECISION * SAFETY, INTERVAL_MAX_S) - 0.01 or interval == INTERVAL_MIN_S
    assert world.nat.bindings == {} and world.nat.sockets_max == 1
    assert world.nat.packets < 200  # of about 100 B


def test_a_binding_is_made_to_look_like_one_in_use() -> None:
    world = World(Nat(180.0, young_s=30.0))  # as Linux does
    world.run(4 * 3_600.0)
    assert 180 / PRECISION < world.search.survived_s < 180


@given(st.floats(5, 1_500), st.sets(st.integers(1, 120).map(lambda n: 2 * n), max_size=12))
def test_what_is_learnt_is_never_too_long(lifetime_s: float, lost: set[int]) -> None:
    world = World(Nat(lifetime_s))
    world.nat.lose = lost
    world.run(10 * 86_400.0)
    assert world.phase is Phase.DONE
    assert world.search.survived_s < lifetime_s
    assert INTERVAL_MIN_S <= interval_s(world.search.survived_s) <= INTERVAL_MAX_S


def test_a_server_that_is_away_teaches_nothing() -> None:
    world = World(Nat(120.0))
    world.run(70.0)  # some way into the second trial
    world.nat.server_answers = world.nat.knocks_pass = False
    world.run(86_400.0)
    assert world.search.too_long_s is None
    assert world.nat.packets < 120
    world.nat.server_answers = world.nat.knocks_pass = True
    world.run(86_400.0)
    assert world.phase is Phase.DONE
    assert 120 / PRECISION < world.search.survived_s < 120


def test_knocks_that_never_come_in_teach_nothing() -> None:
    world = World(Nat(120.0))
    world.nat.knocks_pass = False
    world.run(86_400.0)
    assert (world.phase, world.search.survived_s, world.search.too_long_s) == (Phase.PAUSED, 0.0, None)
    assert world.nat.bindings == {}


def test_a_nat_that_changes_its_mind_is_taken_at_its_worst() -> None:
    class Moody(Nat):
        def knock(self, now: float, trial: int) -> bool:
            self.lifetime_s = 300.0 if trial % 3 else 40.0
            return super().knock(now, trial)

    world = World(Moody(300.0))
    world.run(10 * 86_400.0)
    assert world.phase is Phase.DONE
    assert world.search.survived_s < 300.0


def test_answers_to_another_trial_are_nobody_s() -> None:
    search = BindingSearch(0.0, lambda: 0.5, 7)
    [wish] = search.drain_wishes()
    assert isinstance(wish, Exchange) and wish.trial == 7
    phases = []
    for said, trial in (
        (search.answered, 6),
        (search.knocked, 7),
        (search.answered, 7),
        (search.answered, 7),
        (search.knocked, 7),
        (search.answered, 7),  # late, and no answer to the exchange that is to come
    ):
        said(0.1, trial)
        phases.append(search.phase.value)
    assert phases == ["opening", "opening", "proving", "proving", "warming", "warming"]
    search.stop()
    assert isinstance(search.drain_wishes()[-1], Close)
    assert search.poll_timeout() is None


def learn(learner: KeepaliveLearner, now: float, nat: Nat, seconds: float) -> float:
    """Play the server for all searches of `learner`."""
    until = now + seconds
    while True:
        for uplink, wish in learner.drain_wishes():
            if isinstance(wish, Exchange) and nat.exchange(now, wish.trial):
                learner.answered(now, uplink, wish.trial)
            elif isinstance(wish, Knock) and nat.knock(now, wish.trial):
                learner.knocked(now, uplink, wish.trial)
        at = learner.poll_timeout()
        if at is None or at > until:
            return until
        now = max(now, at)
        learner.handle_timeout(now)


def test_an_uplink_gets_its_interval_and_keeps_it() -> None:
    learner = KeepaliveLearner(lambda: 0.5)
    assert learner.interval_s("wan0") == DEFAULT_INTERVAL_S
    learner.set_nat(0.0, "wan0", "home")
    now = learn(learner, 0.0, Nat(180.0), 6 * 3_600.0)
    [event] = learner.drain_events()
    assert isinstance(event, IntervalChanged) and event.uplink == "wan0"
    assert 180 / PRECISION * SAFETY - 1 < event.interval_s < 180
    assert learner.interval_s("wan0") == event.interval_s
    dirty = learner.dirty
    saved = decode(encode(learner.export()))
    assert dirty and not learner.dirty

    other = KeepaliveLearner(lambda: 0.5)
    other.load(saved)
    other.set_nat(now, "wan0", "home")
    assert other.interval_s("wan0") == event.interval_s
    assert other.poll_timeout() is None and other.drain_wishes() == []
    [told] = other.drain_events()
    assert told.interval_s == event.interval_s


def test_another_nat_is_learnt_and_the_first_remembered() -> None:
    learner = KeepaliveLearner(lambda: 0.5)
    learner.set_nat(0.0, "wan0", "home")
    now = learn(learner, 0.0, Nat(180.0), 6 * 3_600.0)
    home = learner.interval_s("wan0")
    learner.set_nat(now, "wan0", "hotel")
    assert learner.interval_s("wan0") == DEFAULT_INTERVAL_S
    now = learn(learner, now, Nat(50.0), 6 * 3_600.0)
    assert 50 / PRECISION * SAFETY - 1 < learner.interval_s("wan0") < 50
    learner.set_nat(now, "wan0", "home")
    assert learner.interval_s("wan0") == home and learner.poll_timeout() is None


def test_a_nat_worse_than_the_default_is_acted_upon_before_the_search_is_over() -> None:
    learner = KeepaliveLearner(lambda: 0.5)
    learner.set_nat(0.0, "wan0", "sim")
    learn(learner, 0.0, Nat(13.0), 60.0)
    assert learner.interval_s("wan0") == INTERVAL_MIN_S
    assert learner.poll_timeout() is not None


def test_a_binding_in_use_that_is_lost_is_believed_at_once_and_learnt_anew() -> None:
    learner = KeepaliveLearner(lambda: 0.5)
    learner.set_nat(0.0, "wan0", "home")
    now = learn(learner, 0.0, Nat(300.0), 6 * 3_600.0)
    learner.binding_lost(now, "wan0", 1_000.0)  # it was silent for longer than it should have been: no news
    assert learner.interval_s("wan0") > 200
    learner.binding_lost(now, "wan0", 100.0)
    assert learner.interval_s("wan0") == pytest.approx(50 * SAFETY)
    now = learn(learner, now, Nat(90.0), 6 * 3_600.0)
    assert 90 / PRECISION * SAFETY - 1 < learner.interval_s("wan0") < 90
    learner.binding_lost(now, "wan1", 5.0)
    assert learner.interval_s("wan1") == DEFAULT_INTERVAL_S


def test_a_metered_uplink_opens_no_second_socket() -> None:
    learner = KeepaliveLearner(lambda: 0.5)
    learner.set_nat(0.0, "wwan0", "sim", learn=False)
    assert learner.drain_wishes() == [] and learner.poll_timeout() is None
    learner.set_nat(0.0, "wwan0", "sim")
    assert [wish.trial for _, wish in learner.drain_wishes()] == [0]
    learner.set_nat(1.0, "wwan0", "sim", learn=False)
    assert [type(wish) for _, wish in learner.drain_wishes()] == [Close]
    learner.set_nat(2.0, "wwan0", "sim")
    assert [wish.trial for _, wish in learner.drain_wishes()] == [1]
    learner.answered(2.0, "wwan0", 0)
    learner.remove_uplink("wwan0")
    assert [type(wish) for _, wish in learner.drain_wishes()] == [Close]


def test_tables_are_bounded() -> None:
    learner = KeepaliveLearner(lambda: 0.5)
    for number in range(NATS_MAX + 5):
        learner.set_nat(0.0, "wan0", f"nat{number}")
        learner.binding_lost(0.0, "wan0", 40.0)
    rows = learner.export()["nats"]
    assert [row[1] for row in rows] == [f"nat{number}" for number in range(5, NATS_MAX + 5)]
    for number in range(1, UPLINKS_MAX):
        learner.set_nat(0.0, f"wan{number}", "x")
    with pytest.raises(LimitReached):
        learner.set_nat(0.0, "one-more", "x")
    for bad in ("", "a" * 65, "a\nb"):
        with pytest.raises(LocalProtocolError):
            learner.set_nat(0.0, "wan0", bad)


@pytest.mark.parametrize(
    "saved",
    [
        None,
        {},
        {"v": 2, "nats": []},
        {"v": 1, "nats": [["a", "b", -1, 0]]},
        {"v": 1, "nats": [["a", "b", 10_000, 0]]},
        {"v": 1, "nats": [["a", "b", 10, 2]]},
        {"v": 1, "nats": [["a" * 65, "b", 10, 0]]},
        {"v": 1, "nats": [["a", "b", 10, 0]] * (NATS_MAX + 1)},
    ],
)
def test_what_was_damaged_is_refused(saved: object) -> None:
    learner = KeepaliveLearner(lambda: 0.5)
    with pytest.raises(ControlError):
        learner.load(saved)
    assert learner.export()["nats"] == []
