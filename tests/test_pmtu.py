"""The search for a path's MTU, on paths that drop in silence whatever is too large for them."""

from __future__ import annotations

import heapq

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeagent.proto.errors import LocalProtocolError
from edgeagent.proto.pmtu import (
    ALARM_SPACING_S,
    CONFIRM_AFTER_S,
    MTU_BASE,
    MTU_MAX,
    MTU_MIN,
    PROBES_MAX,
    RAISE_AFTER_S,
    STEP,
    PathMtu,
    State,
    tunnel_mtu,
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
    ) -> None:
        self.mtu = mtu
        self.rtt_s = rtt_s
        self.lost = lost
        self.now = 100.0
        self.search = PathMtu(self.now, ceiling=ceiling, base=base)
        self.answers: list[tuple[float, int]] = []
        self.probes: list[int] = []
        self.changes: list[int] = []

    def collect(self) -> None:
        for probe in self.search.drain_probes():
            self.probes.append(probe.size)
            if probe.size <= self.mtu and len(self.probes) not in self.lost:
                heapq.heappush(self.answers, (self.now + self.rtt_s, probe.serial))
        before = self.changes[-1] if self.changes else None
        for event in self.search.drain_events():
            assert event.before != event.mtu and before in (None, event.before)
            before = event.mtu
            self.changes.append(event.mtu)
        assert before in (None, self.search.mtu)

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

    def use(self, seconds: float, size: int | None = None) -> None:
        """Large packets all the time."""
        for _ in range(int(seconds)):
            self.search.payload_sent(self.now, size or self.search.mtu)
            self.run(1.0)


def test_a_path_like_most_is_known_after_two_round_trips() -> None:
    path = Path(1_500)
    assert path.search.mtu == MTU_BASE
    path.run(0.2)
    assert path.search.state is State.COMPLETE
    assert (path.search.mtu, path.probes, path.changes) == (1_500, [1_280, 1_500], [1_500])
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
def test_no_probe_is_believed_that_was_not_confirmed(mtu: int, ceiling: int, rtt_s: float, lost: set[int]) -> None:
    path = Path(mtu, ceiling=ceiling, rtt_s=rtt_s, lost=frozenset(lost))
    path.run(600.0)
    assert path.search.mtu <= max(mtu, MTU_MIN)
    if len(lost) < 3 * 3:  # three lost probes of each of three sizes are what ends a search without a result
        assert path.search.state is State.COMPLETE
    if not lost:
        assert path.search.mtu > min(mtu, ceiling) - STEP
    assert all(MTU_MIN <= size <= ceiling for size in path.probes)
    assert len(path.probes) < 60


def test_a_single_loss_changes_nothing() -> None:
    for turn in (1, 2):
        path = Path(1_500, lost=frozenset({turn}))
        path.run(2.0)
        assert path.search.mtu == 1_500 and path.changes == [1_500]


def test_a_slow_path_is_waited_for() -> None:
    path = Path(1_500, rtt_s=2.5)
    path.run(30.0)
    assert path.search.mtu == 1_500
    path = Path(1_280, rtt_s=1.5)
    path.run(60.0)
    assert (path.search.mtu, path.search.state) == (1_280, State.COMPLETE)


def test_payload_that_is_lost_leads_to_the_base_at_once_and_to_the_truth_soon() -> None:
    path = Path(1_500)
    path.run(1.0)
    path.mtu = 1_400
    path.search.payload_lost(path.now)
    assert path.search.mtu == MTU_BASE
    path.run(16.0)
    assert (path.search.mtu, path.search.state) == (1_400, State.COMPLETE)
    assert path.changes[:2] == [1_500, 1_280]


def test_a_false_alarm_costs_two_probes() -> None:
    path = Path(1_500)
    path.run(1.0)
    del path.probes[:]
    path.search.payload_lost(path.now)
    path.search.payload_lost(path.now)
    path.run(1.0)
    assert (path.search.mtu, path.probes) == (1_500, [1_280, 1_500])
    path.search.payload_lost(path.now)
    assert path.search.mtu == 1_500  # not again so soon
    path.run(ALARM_SPACING_S)
    path.search.payload_lost(path.now)
    assert path.search.mtu == 1_280


@pytest.mark.parametrize("now_carries", [600, 1_000, 1_280, 1_492])
def test_a_path_in_use_that_grows_narrow_is_noticed_without_a_word(now_carries: int) -> None:
    path = Path(1_500)
    path.run(1.0)
    path.use(60.0)
    assert path.changes == [1_500]
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


def test_a_path_that_grows_wide_is_used_after_a_while() -> None:
    path = Path(1_400)
    path.run(20.0)
    path.mtu = 1_500
    path.use(RAISE_AFTER_S + 2 * CONFIRM_AFTER_S)
    assert path.search.mtu == 1_500
    assert path.changes[-1] == 1_500


def test_a_narrow_path_is_not_tried_for_ever() -> None:
    path = Path(1_400)
    path.run(20.0)
    del path.probes[:]
    path.use(6 * 3_600.0)
    larger = [size for size in path.probes if size > 1_400]
    assert len(larger) <= 7
    assert sum(path.probes) < 2.5e6  # of an hour's bulk traffic: a confirmation each 15 s


def test_a_path_that_carries_nothing_is_asked_less_and_less_and_found_when_it_does() -> None:
    path = Path(0)
    path.run(7_200.0)
    assert path.search.mtu == MTU_MIN and path.search.state is State.ERROR
    assert len(path.probes) < 60
    path.mtu = 1_500
    path.run(620.0)
    assert (path.search.mtu, path.search.state) == (1_500, State.COMPLETE)


def test_a_router_s_word_is_a_hint() -> None:
    path = Path(1_500)
    path.run(1.0)
    path.mtu = 1_436
    path.search.packet_too_big(path.now, 1_436)
    path.run(20.0)
    assert path.search.mtu == 1_436  # which a search alone would have missed by a few bytes
    for mtu in (0, 68, 575, 1_300, 576):  # forged, or nonsense
        path.search.packet_too_big(path.now, mtu)
        path.run(0.1)
    assert path.search.mtu == 1_436
    sent = len(path.probes)
    for _ in range(1_000):
        path.search.packet_too_big(path.now, 1_280)
        path.run(0.001)
    assert len(path.probes) - sent <= 1


def test_the_first_link_sets_the_ceiling() -> None:
    path = Path(1_500)
    path.run(1.0)
    path.search.set_ceiling(path.now, 1_400)
    assert path.search.mtu == 1_400
    path.run(30.0)
    assert path.search.mtu == 1_400 and max(path.probes[2:], default=0) <= 1_400
    path.search.set_ceiling(path.now, 1_100)
    assert path.search.mtu == 1_100
    path.search.set_ceiling(path.now, 1_500)
    path.run(5.0)
    assert path.search.mtu == 1_500


def test_a_probe_that_does_not_even_leave_is_lost_at_once() -> None:
    path = Path(1_500)
    search = path.search
    [base] = search.drain_probes()
    search.probe_confirmed(path.now, base.serial)
    [first] = search.drain_probes()
    search.probe_refused(path.now, first.serial)
    [second] = search.drain_probes()
    assert first.size == 1_500 and 1_280 < second.size < 1_500


def test_another_path_starts_anew_and_old_answers_do_not_count() -> None:
    path = Path(1_500)
    path.run(0.07)
    assert [serial for _, serial in path.answers] == [2]
    path.search.restart(path.now)
    path.mtu = 1_300
    path.run(15.0)
    assert 1_300 - STEP < path.search.mtu <= 1_300
    path.search.probe_confirmed(path.now, 2)
    path.search.probe_confirmed(path.now, 10_000)
    assert path.search.mtu <= 1_300


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


def test_what_is_left_inside_the_tunnel() -> None:
    # 1500 less IP, UDP and 32: what wg(8)'s users know as 1440 and 1420
    assert tunnel_mtu(1_500, ipv6=False) == 1_440
    assert tunnel_mtu(1_500, ipv6=True) == 1_420
    assert tunnel_mtu(1_500, ipv6=False, framing=8) == 1_432
