"""The search for a path's MTU, on paths that drop in silence whatever is too large for them."""

from __future__ import annotations

import heapq

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgeagent.proto.errors import LocalProtocolError
from edgeagent.proto.path import LADDER_MTUS, MTU_MAX, MTU_MIN
from edgeagent.proto.pmtu import (
    CONFIRM_AFTER_S,
    CONFIRM_PACKETS,
    MTU_BASE,
    PATIENCE_PACKETS,
    PATIENCE_PACKETS_MAX,
    PROBES_MAX,
    RAISE_AFTER_S,
    RETRY_AFTER_S,
    SEARCH_PROBES_MAX,
    STEP,
    PathMtu,
    State,
)


class Path:
    """A path that carries up to `mtu` bytes, answers `rtt_s` later, and loses the probes whose turn is in `lost`."""

    def __init__(
        self,
        mtu: int,
        *,
        ceiling: int = 1_500,
        base: int = MTU_BASE,
        rtt_s: float = 0.05,
        lost: frozenset[int] = frozenset(),
        proven: int = 0,
        known_lost: int = 0,
        sparing: int = 1,
    ) -> None:
        self.mtu = mtu
        self.rtt_s = rtt_s
        self.lost = lost
        self.now = 100.0
        self.search = PathMtu(self.now, ceiling=ceiling, base=base, proven=proven, lost=known_lost, sparing=sparing)
        self.answers: list[tuple[float, int]] = []
        self.probes: list[int] = []
        self.changes = [self.search.mtu]

    def collect(self) -> None:
        for probe in self.search.drain_probes():
            self.probes.append(probe.size)
            if probe.size <= self.mtu and len(self.probes) not in self.lost:
                heapq.heappush(self.answers, (self.now + self.rtt_s, probe.serial))
        if self.search.mtu != self.changes[-1]:
            self.changes.append(self.search.mtu)

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while True:
            self.collect()
            timeout = self.search.poll_timeout()
            times = [at for at in (timeout, self.answers[0][0] if self.answers else None) if at is not None]
            if not times or min(times) > until:
                break
            self.now = max(self.now, min(times))
            if self.answers and self.answers[0][0] <= self.now:
                self.search.probe_confirmed(self.now, heapq.heappop(self.answers)[1])
            else:
                self.search.handle_timeout(self.now)
        self.now = until

    def use(self, seconds: float, size: int | None = None, *, each_s: int = 100, answered: bool = True) -> None:
        """Large packets all the time."""
        for _ in range(int(seconds)):
            self.search.payload_sent(self.now, size or self.search.mtu, each_s)
            if not answered:
                self.search.payload_unanswered(self.now)
            self.run(1.0)


def test_a_path_like_most_is_known_after_two_round_trips() -> None:
    path = Path(1_500)
    assert path.search.mtu == MTU_BASE
    path.run(0.2)
    assert path.search.state is State.COMPLETE
    assert (path.search.mtu, path.probes, path.changes) == (1_500, [1_280, 1_500], [1_280, 1_500])
    path.run(86_400.0)
    assert len(path.probes) == 2  # an idle path costs nothing
    assert path.search.poll_timeout() is None


@pytest.mark.parametrize("ceiling", [1_500, 9_000])
@pytest.mark.parametrize("mtu", [576, 577, 1_000, 1_006, 1_279, 1_280, 1_358, 1_400, 1_420, 1_436, 1_492, 1_500])
def test_any_mtu_is_found_in_bounded_time(mtu: int, ceiling: int) -> None:
    path = Path(mtu, ceiling=ceiling)
    path.run(25.0)
    assert path.search.state is State.COMPLETE
    assert mtu - STEP < path.search.mtu <= mtu
    assert len(path.probes) <= 22


def test_every_mtu_there_is() -> None:
    found = {}
    for mtu in range(MTU_MIN, 1_501):
        path = Path(mtu)
        path.run(16.0)
        assert path.search.state is State.COMPLETE
        found[mtu] = path.search.mtu
    assert all(mtu - STEP < used <= mtu for mtu, used in found.items())
    assert all(found[mtu] == mtu for mtu in (576, 1_006, 1_280, 1_400, 1_420, 1_440, 1_472, 1_480, 1_492, 1_500))


@given(
    st.integers(MTU_MIN, 9_000),
    st.sampled_from([1_280, 1_500, 9_000]),
    st.sampled_from([0.001, 0.3, 1.5]),
    st.sets(st.integers(1, 40)),
)
@example(576, 1_280, 0.001, {6, 7, 8, 9})
def test_no_probe_is_believed_that_was_not_confirmed(mtu: int, ceiling: int, rtt_s: float, lost: set[int]) -> None:
    path = Path(mtu, ceiling=ceiling, rtt_s=rtt_s, lost=frozenset(lost))
    path.run(600.0)
    assert path.search.mtu <= max(mtu, MTU_MIN)
    if len(lost) < 4:  # of the smallest size, one of the ladder and three of its own are what ends a search in vain
        assert path.search.state is State.COMPLETE
    if not lost:
        assert path.search.mtu > min(mtu, ceiling) - STEP
    assert all(MTU_MIN <= size <= ceiling for size in path.probes)
    assert len(path.probes) < 60


def test_a_single_loss_changes_nothing() -> None:
    for turn in (1, 2):
        path = Path(1_500, lost=frozenset({turn}))
        path.run(2.0)
        assert path.search.mtu == 1_500 and path.changes == [1_280, 1_500]


def test_a_slow_path_is_waited_for() -> None:
    path = Path(1_500, rtt_s=2.5)
    path.run(30.0)
    assert path.search.mtu == 1_500
    path = Path(1_280, rtt_s=1.5)
    path.run(60.0)
    assert (path.search.mtu, path.search.state) == (1_280, State.COMPLETE)


def test_a_fall_by_chance_costs_a_few_bytes() -> None:
    path = Path(1_500)
    path.run(1.0)
    del path.probes[:]
    path.lost = frozenset({1, 2})
    path.search.payload_sent(path.now, 1_500, PATIENCE_PACKETS)
    path.search.payload_unanswered(path.now)
    path.run(3.0)
    assert path.probes[:9] == [1_500, 1_500, *LADDER_MTUS] and len(path.probes) < 13
    assert path.search.state is State.COMPLETE and path.search.mtu > 1_500 - STEP


def test_where_probes_cost_money_the_size_in_use_is_confirmed_less_often() -> None:
    counts = []
    for sparing in (1, 4):
        path = Path(1_500, sparing=sparing)
        path.run(1.0)
        del path.probes[:]
        path.use(1_200.0, each_s=100)
        counts.append(len(path.probes))
    assert counts[0] >= 3 * counts[1] > 0


@pytest.mark.parametrize("becomes", [1_460, 1_459, 1_400, 1_100, 999, 576])
def test_what_is_left_is_known_as_soon_as_the_size_in_use_is_lost(becomes: int) -> None:
    path = Path(1_500)
    path.run(1.0)
    path.mtu = becomes
    path.search.payload_sent(path.now, 1_500, PATIENCE_PACKETS)
    path.search.payload_unanswered(path.now)
    path.run(SEARCH_PROBES_MAX - 0.01)
    assert path.search.mtu == 1_500
    path.run(0.02)
    assert path.search.mtu == max(size for size in LADDER_MTUS if size <= becomes)
    path.run(10.0)
    assert becomes - STEP < path.search.mtu <= becomes


def test_a_few_large_packets_are_no_reason_for_doubt_nor_are_small_ones() -> None:
    path = Path(1_500)
    path.run(1.0)
    for size, count in ((1_500, PATIENCE_PACKETS - 1), (MTU_MIN - 1, 100)):
        path.search.payload_sent(path.now, size, count)
        path.search.payload_unanswered(path.now)
    path.run(10.0)
    assert len(path.probes) == 2


def test_traffic_that_wants_no_answer_is_doubted_less_and_less() -> None:
    path = Path(1_500)
    path.run(1.0)
    del path.probes[:]
    path.use(3_600.0, each_s=1, answered=False)
    assert 3_600 / 50 < len(path.probes) < 3_600 / CONFIRM_PACKETS + 10
    assert path.search.mtu == 1_500
    path.mtu = 1_400
    path.use(PATIENCE_PACKETS_MAX + PROBES_MAX, each_s=1, answered=False)
    assert path.search.mtu <= 1_400, "and is found out all the same"


@pytest.mark.parametrize("now_carries", [600, 1_000, 1_280, 1_492])
def test_a_path_in_use_that_grows_narrow_is_noticed_without_a_word(now_carries: int) -> None:
    path = Path(1_500)
    path.run(1.0)
    path.use(60.0)
    assert path.changes == [1_280, 1_500]
    path.mtu = now_carries
    path.use(CONFIRM_AFTER_S + PROBES_MAX + 1)
    assert path.search.mtu <= max(MTU_BASE, now_carries)
    path.use(30.0)
    assert now_carries - STEP < path.search.mtu <= now_carries
    assert path.search.state is State.COMPLETE


def test_small_packets_do_not_call_for_a_look() -> None:
    path = Path(1_500)
    path.run(1.0)
    path.use(600.0, size=100)
    assert len(path.probes) == 2


def test_a_little_payload_does_not_either() -> None:
    path = Path(1_500)
    path.run(1.0)
    path.use(600.0, size=1_400, each_s=0)
    for _ in range(60):
        path.search.payload_sent(path.now, 1_400)
        path.run(60.0)
    assert len(path.probes) - 2 <= 60 / CONFIRM_PACKETS + 1


def test_a_path_that_grows_wide_is_used_after_a_while() -> None:
    path = Path(1_400)
    path.run(20.0)
    path.mtu = 1_500
    path.use(RAISE_AFTER_S + 2 * CONFIRM_AFTER_S)
    assert path.search.mtu == 1_500
    assert path.changes[-1] == 1_500


def test_traffic_that_wants_no_answer_finds_it_too() -> None:
    path = Path(1_400)
    path.run(20.0)
    path.mtu = 1_500
    path.use(RAISE_AFTER_S + 10.0, answered=False)
    assert path.search.mtu == 1_500


def test_a_narrow_path_is_not_tried_for_ever() -> None:
    path = Path(1_400)
    path.run(20.0)
    del path.probes[:]
    path.use(6 * 3_600.0)
    larger = [size for size in path.probes if size > 1_400]
    assert len(larger) <= 7
    assert sum(path.probes) < 2.5e6  # of an hour's bulk traffic: a confirmation each 15 s


def test_a_path_that_carries_nothing_is_asked_again_only_by_payload_and_less_and_less() -> None:
    path = Path(0)
    path.run(7_200.0)
    assert (path.search.mtu, path.search.state, len(path.probes)) == (MTU_MIN, State.FAILED, 2 * PROBES_MAX + 3)
    path.use(7_200.0, size=1_280)
    assert 4 * PROBES_MAX < len(path.probes) < 60 * PROBES_MAX
    path.mtu = 1_500
    path.use(620.0, size=1_280)
    assert (path.search.mtu, path.search.state) == (1_500, State.COMPLETE)
    path.mtu = 0
    path.use(60.0, size=1_280)
    path.mtu = 1_500
    path.use(RETRY_AFTER_S + 10.0, size=1_280)
    assert path.search.mtu == 1_500


def test_a_size_that_does_not_even_leave_is_lost_at_once() -> None:
    path = Path(1_500)
    search = path.search
    [base] = search.drain_probes()
    search.probe_confirmed(path.now, base.serial)
    [first] = search.drain_probes()
    search.refused(path.now, first.size)
    [second] = search.drain_probes()
    assert first.size == 1_500 and 1_280 < second.size < 1_500
    search.refused(path.now, 1_490)  # of another datagram: too large as well
    search.refused(path.now, 1_500)
    assert search.drain_probes() == []


@pytest.mark.parametrize(("link", "base_passes"), [(1_400, True), (1_280, True), (1_000, False), (576, False)])
def test_the_first_link_shrinks_under_way(link: int, base_passes: bool) -> None:
    path = Path(1_500)
    path.run(1.0)
    path.use(5.0)
    path.mtu = link
    search = path.search
    search.refused(path.now, 1_500)
    assert search.mtu == MTU_BASE
    for _ in range(200):
        probes = search.drain_probes()
        for probe in probes:
            if probe.size > link:
                search.refused(path.now, probe.size)
            else:
                search.probe_confirmed(path.now, probe.serial)
        if not probes:
            break
    assert search.state is State.COMPLETE and link - STEP < search.mtu <= link
    assert (search.mtu >= MTU_BASE) == base_passes


def test_a_link_that_takes_nothing_is_given_up() -> None:
    path = Path(1_500)
    path.run(1.0)
    for size in (1_500, 1_280, MTU_MIN, MTU_MIN, 100):
        path.search.refused(path.now, size)
    assert path.search.state is State.FAILED and path.search.poll_timeout() is None


def test_what_is_proven_already_is_not_asked_again() -> None:
    path = Path(1_500, proven=1_500)
    assert (path.search.state, path.search.mtu, path.search.poll_timeout()) == (State.COMPLETE, 1_500, None)
    path = Path(1_000, proven=848, known_lost=1_500)
    assert path.search.mtu == 848
    path.run(30.0)
    assert 1_000 - STEP < path.search.mtu <= 1_000
    assert path.search.state is State.COMPLETE and 1_500 not in path.probes and min(path.probes) > 848


def test_after_a_doubt_old_answers_do_not_count_and_nothing_is_lost_by_it() -> None:
    path = Path(1_500)
    path.run(0.07)
    assert [serial for _, serial in path.answers] == [2]
    path.search.resume(path.now)
    path.search.probe_confirmed(path.now, 2)
    path.search.probe_confirmed(path.now, 10_000)
    assert path.search.mtu == 1_280
    path.run(1.0)
    assert path.search.mtu == 1_500
    path.mtu = 1_300
    path.search.payload_sent(path.now, 1_500, 100)
    path.search.payload_unanswered(path.now)
    path.run(0.5)
    path.search.resume(path.now)  # it was dead, and is not: that the probe was not answered tells nothing
    path.run(30.0)
    assert (path.search.mtu, path.search.state) == (1_500, State.COMPLETE)
    path.search.resume(path.now, 1_200, 1_500)  # but that a shorter one is all that passed does
    path.run(20.0)
    assert 1_300 - STEP < path.search.mtu <= 1_300


@pytest.mark.parametrize("state", [State.BASE, State.ERROR, State.FAILED])
def test_a_doubt_before_anything_is_known(state: State) -> None:
    path = Path(0)
    path.run({State.BASE: 0.5, State.ERROR: 4.0, State.FAILED: 60.0}[state])
    assert path.search.state is state
    path.search.resume(path.now)
    assert path.search.state is state
    path.search.resume(path.now, 1_280)
    path.mtu = 1_500
    path.run(5.0)
    assert (path.search.mtu, path.search.state) == (1_500, State.COMPLETE)


def test_a_search_may_be_left_out() -> None:
    path = Path(1_500, ceiling=1_340, base=1_340)
    path.run(60.0)
    assert (path.probes, path.search.state) == ([1_340], State.COMPLETE)


def test_bounds() -> None:
    assert PathMtu(0.0, ceiling=65_535).poll_timeout() is not None
    with pytest.raises(LocalProtocolError):
        PathMtu(0.0, ceiling=575)
    path = Path(MTU_MAX, ceiling=65_535)
    path.run(60.0)
    assert path.search.mtu == MTU_MAX
