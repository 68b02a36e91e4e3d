"""Writes to flash, counted by the day."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgeagent.proto.flashmeter import BUCKET_S, BUCKETS, FlashMeter

H = BUCKET_S


def test_a_day_is_24_hours_and_then_forgotten() -> None:
    meter = FlashMeter()
    assert meter.day(0.0) == (0, 0)
    meter.book(0.0, 100)
    meter.book(H - 1, 10)
    meter.book(5 * H, 1)
    assert (meter.writes, meter.bytes) == (3, 111)
    assert meter.day(5 * H) == meter.day(24 * H - 1) == (3, 111)
    assert meter.day(24 * H) == (1, 1)
    assert meter.day(29 * H) == (0, 0)
    assert (meter.writes, meter.bytes) == (3, 111)


@given(st.lists(st.tuples(st.floats(0, 9 * H), st.integers(0, 9_999)), max_size=200))
def test_it_counts_what_was_written_and_stays_small(steps: list[tuple[float, int]]) -> None:
    meter, now, booked = FlashMeter(), 0.0, []
    for wait, size in steps:
        now += wait
        meter.book(now, size)
        booked.append((now, size))
        recent = [size for at, size in booked if at // H > now // H - BUCKETS]
        assert meter.day(now) == (len(recent), sum(recent))
        assert len(meter._buckets) <= BUCKETS
