"""Token buckets and deficit round robin, beside naive twins; the queue that drops its head; the doorway."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeagent.proto.sendqueue import SendQueue
from relay.core.buckets import QUANTUM_BYTES, FairShare, TokenBucket
from relay.core.doorway import Doorway
from relay.core.limits import Rate, RelayLimits
from relay.core.reasons import RelayDrop


@given(st.lists(st.tuples(st.floats(0, 0.5), st.integers(1, 9_000), st.integers(1, 20)), max_size=200))
def test_a_bucket_never_gives_more_than_burst_and_rate(takes: list[tuple[float, int, int]]) -> None:
    rate = Rate(50_000, 300)
    now, given_bytes, given_packets = 100.0, 0, 0
    bucket = TokenBucket(now, rate)
    for wait_s, size, packets in takes:
        now += wait_s
        if bucket.take(now, size, packets):
            given_bytes += size
            given_packets += packets
        passed = now - 100.0
        assert given_bytes <= max(50_000 * 0.25, 2 * 9_216) + 50_000 * passed + 1
        assert given_packets <= 300 * 0.25 + 300 * passed + 1
        if bucket.ready_at(size) > now + 0.001:
            assert not bucket.take(now, size, 0)


def test_a_rate_that_is_none() -> None:
    with pytest.raises(ValueError, match="at least 1 byte"):
        Rate(0, 1)
    with pytest.raises(ValueError, match=r"limits\.nonsense: no such limit"):
        RelayLimits(nonsense=1)
    with pytest.raises(ValueError, match=r"limits\.members: at least 1"):
        RelayLimits(members=0)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 9_000)), min_size=1, max_size=120))
def test_deficit_round_robin_beside_its_twin(offers: list[tuple[str, int]]) -> None:
    """All wait at first; then enough for everything comes at once: the order must be the textbook's."""
    share: FairShare[tuple[str, int]] = FairShare(0.0, 1_000_000, 1 << 40)
    share.offer(0.0, "first", 20_000, ("first", 0))  # uses up the burst, 20 kB
    queues: dict[str, deque[tuple[str, int]]] = {}
    for n, (network, size) in enumerate(offers):
        at_once, dropped = share.offer(0.0, network, size, (network, n))
        assert not at_once and not dropped
        queues.setdefault(network, deque()).append((network, n))
    sizes = [size for _, size in offers]
    expected: list[tuple[str, int]] = []
    deficit = dict.fromkeys(queues, 0)
    turn = deque(queues)
    while turn:  # Shreedhar and Varghese, figure 2, with the quantum added when a queue's turn is over
        network = turn.popleft()
        while queues[network] and sizes[queues[network][0][1]] <= deficit[network]:
            item = queues[network].popleft()
            deficit[network] -= sizes[item[1]]
            expected.append(item)
        if queues[network]:
            deficit[network] += QUANTUM_BYTES
            turn.append(network)
    released: list[tuple[str, int]] = []
    now = 0.0
    while (ready_at := share.ready_at()) is not None:
        assert ready_at > now
        now = ready_at
        released += share.release(now)
    assert released == expected
    assert now == pytest.approx(sum(sizes) / 1_000_000, abs=0.01 + 0.0001 * len(sizes))
    assert share.offer(now + 1, "a", 9_000, ("a", 0)) == (True, 0)


def test_a_waiting_network_is_bounded_and_loses_its_oldest() -> None:
    share: FairShare[int] = FairShare(0.0, 10_000, 5_000)
    assert share.offer(0.0, "a", 18_000, -1) == (True, 0)
    dropped = sum(share.offer(0.0, "a", 1_000, n)[1] for n in range(20))
    assert dropped == 15
    assert share.offer(0.0, "b", 6_000, 99) == (False, 1)  # larger than its queue may be
    released = []
    while (ready_at := share.ready_at()) is not None:
        released += share.release(ready_at)
    assert released == [15, 16, 17, 18, 19]


@given(st.lists(st.one_of(st.integers(1, 400), st.sampled_from(("block", "take", "control"))), max_size=150))
def test_a_queue_keeps_the_newest_within_both_bounds(steps: list[int | str]) -> None:
    queue = SendQueue(1_000, packets_max=5, controls_max=3)
    waiting: list[bytes] = []
    controls: list[bytes] = []
    for n, step in enumerate(steps):
        if step == "block":
            queue.blocked = True
        elif step == "take":
            assert queue.take() == b"".join(controls + waiting)
            assert not queue
            waiting, controls, queue.blocked = [], [], False
        elif step == "control":
            assert queue.push_control(b"c") == (len(controls) < 3)
            controls = [*controls, b"c"][:3]
        elif isinstance(step, int):
            packet = bytes((n & 255,)) * step
            waiting.append(packet)
            expected = 0
            while sum(map(len, waiting)) > 1_000 or (queue.blocked and len(waiting) > 5):
                del waiting[0]
                expected += 1
            assert queue.push_packet(packet) == expected
        assert queue.bytes == sum(map(len, waiting)) and len(queue) == len(waiting)


def test_the_doorway_is_bounded_in_number_source_and_time() -> None:
    drops = dict.fromkeys(RelayDrop, 0)
    doorway = Doorway(RelayLimits(doorway=10, doorway_per_source=3, login_timeout_s=5), drops)
    source = bytes((192, 0, 2, 1))
    assert [doorway.enter(0.0, n, source) for n in range(4)] == [None, None, None, 3]
    v6 = bytes.fromhex("20010db800000001")
    assert [doorway.enter(1.0, 10 + n, v6 + bytes(7) + bytes((n,))) for n in range(4)] == [None, None, None, 13]
    assert [doorway.enter(2.0, 20 + n, bytes((10, 0, 0, n))) for n in range(5)] == [None] * 4 + [0]
    assert len(doorway) == 10
    doorway.leave(1)
    doorway.leave(1)
    assert doorway.enter(2.0, 30, source) is None  # two of that source have left
    assert doorway.poll_timeout() == 5.0
    assert doorway.expired(4.9) == [] and doorway.expired(5.0) == [2]
    assert sorted(doorway.expired(100.0)) == [10, 11, 12, 20, 21, 22, 23, 24, 30]
    assert len(doorway) == 0 and doorway.poll_timeout() is None and doorway._of_source == {}
    assert {reason: count for reason, count in drops.items() if count} == {
        RelayDrop.DOOR_SOURCE: 2,
        RelayDrop.DOOR_FULL: 1,
        RelayDrop.DOOR_SLOW: 10,
    }
