"""No byte is lost, none is counted twice, whatever the clock does; and the budget that reads them."""

from __future__ import annotations

import sys
from collections import Counter
from datetime import UTC, date, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeagent.proto.codec import decode, encode
from edgeagent.proto.errors import LocalProtocolError
from edgeagent.proto.ledger import (
    DAYS_MAX,
    MONTHS_MAX,
    OTHER,
    SAVE_AFTER_S,
    UPLINKS_MAX,
    Cause,
    Ledger,
    first_day,
    month_of,
    tcp_bytes,
    tls_bytes,
    udp_bytes,
)
from edgeagent.proto.refusals import ControlError

DAY_S = 86_400.0
NOON = datetime(2026, 3, 31, 12, tzinfo=UTC).timestamp()


def since_start(ledger: Ledger, now: float) -> tuple[int, int]:
    lines = ledger.lines(now)
    return sum(line.since_start[0] for line in lines), sum(line.since_start[1] for line in lines)


def test_each_byte_has_an_uplink_and_a_cause() -> None:
    ledger = Ledger()
    ledger.set_wall(0.0, NOON)
    ledger.book(1.0, "eth0", Cause.CONTROL, sent=100, received=50)
    ledger.book(2.0, "eth0", Cause.CONTROL, sent=1)
    ledger.book(3.0, "wwan0", Cause.PAYLOAD, received=7)
    said = [(line.uplink, line.cause.name, line.since_start, line.day, line.month) for line in ledger.lines(4.0)]
    assert said == [
        ("eth0", "CONTROL", (101, 50), (101, 50), (101, 50)),
        ("wwan0", "PAYLOAD", (0, 7), (0, 7), (0, 7)),
    ]
    assert ledger.used(4.0, "eth0") == (151, 151)
    assert ledger.used(4.0, "eth1") == (0, 0)


def test_days_and_months_end_at_midnight() -> None:
    ledger = Ledger()
    ledger.set_wall(0.0, NOON)
    ledger.book(DAY_S / 2 - 1, "eth0", Cause.PAYLOAD, sent=10)
    assert ledger.used(DAY_S / 2 - 0.5, "eth0") == (10, 10)
    ledger.book(DAY_S / 2, "eth0", Cause.PAYLOAD, sent=3)  # the first of April
    assert ledger.used(DAY_S / 2 + 1, "eth0") == (3, 3)
    ledger.book(DAY_S, "eth0", Cause.PAYLOAD, sent=1)
    assert ledger.used(1.5 * DAY_S, "eth0") == (0, 4)
    rows = ledger.export(1.5 * DAY_S)["up"][0]
    assert [sum(counts) for _, counts in rows[2]] == [10, 4, 0]
    assert [sum(counts) for _, counts in rows[3]] == [10, 4]


def test_what_was_booked_before_the_date_was_known_counts_to_the_day_on_which_it_is() -> None:
    ledger = Ledger()
    ledger.book(0.0, "wwan0", Cause.CONTROL, sent=500)
    assert ledger.used(1.0, "wwan0") == (500, 500) and ledger.month_elapsed(1.0) is None
    saved = decode(encode(ledger.export(2.0)))
    again = Ledger()
    again.load(saved)
    again.book(3.0, "wwan0", Cause.CONTROL, sent=5)
    assert again.used(3.0, "wwan0") == (505, 505)
    again.set_wall(4.0, NOON)
    assert again.used(4.0, "wwan0") == (505, 505)
    assert again.used(4.0 + DAY_S, "wwan0") == (0, 0)
    assert since_start(again, 5.0) == (5, 0)


def test_a_start_without_a_clock_goes_on_with_the_last_day_on_record() -> None:
    ledger = Ledger()
    ledger.set_wall(0.0, NOON)
    ledger.book(1.0, "wwan0", Cause.CONTROL, sent=900)
    again = Ledger()
    again.load(ledger.export(2.0))
    again.book(0.0, "wwan0", Cause.CONTROL, sent=50)
    assert again.used(1.0, "wwan0") == (950, 950)  # it may be the same day
    again.set_wall(2.0, NOON + 2 * DAY_S)
    assert again.used(3.0, "wwan0") == (50, 50)  # it was another, and April


def test_a_clock_that_was_ahead_takes_nothing_away() -> None:
    ledger = Ledger()
    ledger.set_wall(0.0, NOON + 5_000 * DAY_S)
    ledger.book(1.0, "wwan0", Cause.CONTROL, sent=70)
    ledger.set_wall(2.0, NOON)
    ledger.book(3.0, "wwan0", Cause.CONTROL, sent=7)
    assert ledger.used(4.0, "wwan0") == (77, 77)
    assert ledger.used(4.0 + DAY_S, "wwan0") == (0, 0)


def test_saving_is_asked_for_some_time_after_the_first_booking() -> None:
    ledger = Ledger()
    asked = [ledger.save_at]
    for now in (10.0, 500.0):
        ledger.book(now, "a", Cause.PROBE, sent=1)
        asked.append(ledger.save_at)
    ledger.export(4_000.0)
    asked.append(ledger.save_at)
    ledger.book(4_001.0, "a", Cause.PROBE, sent=1)
    asked.append(ledger.save_at)
    assert asked == [None, 10.0 + SAVE_AFTER_S, 10.0 + SAVE_AFTER_S, None, 4_001.0 + SAVE_AFTER_S]


def test_uplinks_that_come_and_go_make_room_and_their_bytes_stay() -> None:
    ledger = Ledger()
    ledger.set_wall(0.0, NOON)
    for number in range(50):
        ledger.book(float(number), f"usb{number}", Cause.PAYLOAD, sent=1_000 - number)
    lines = ledger.lines(60.0)
    assert len({line.uplink for line in lines}) == UPLINKS_MAX
    assert {OTHER, "usb0", "usb49"} <= {line.uplink for line in lines}
    assert since_start(ledger, 61.0) == (sum(range(951, 1_001)), 0)
    again = Ledger()
    again.load(ledger.export(62.0))
    assert sum(again.used(0.0, line.uplink)[1] for line in lines) == sum(range(951, 1_001))


steps = st.lists(
    st.one_of(
        st.tuples(st.just("book"), st.integers(0, 11), st.sampled_from(list(Cause)), st.integers(0, 1 << 40)),
        st.tuples(st.just("wait"), st.floats(0, 40 * DAY_S)),
        st.tuples(st.just("wall"), st.floats(0, 4e9)),
        st.tuples(st.just("restart")),
        st.tuples(st.just("read")),
    ),
    max_size=60,
)


@given(steps)
def test_nothing_is_lost_and_nothing_counted_twice(steps: list[tuple[object, ...]]) -> None:
    ledger, now = Ledger(), 0.0
    booked: Counter[Cause] = Counter()
    for what, *words in steps:
        if what == "book":
            uplink, cause, count = words
            assert isinstance(cause, Cause) and isinstance(count, int)
            before = total_of_month(ledger, now)
            ledger.book(now, f"up{uplink}", cause, sent=count, received=1)
            booked[cause] += count + 1
            assert total_of_month(ledger, now) == before + count + 1
        elif what == "wait":
            assert isinstance(words[0], float)
            now += words[0]
        elif what == "wall":
            assert isinstance(words[0], float)
            ledger.set_wall(now, words[0])
        elif what == "restart":
            before = total_of_month(ledger, now)
            saved = ledger.export(now)
            ledger, now = Ledger(), 0.0
            ledger.load(decode(encode(saved)))
            booked.clear()
            assert total_of_month(ledger, now) == before
        lines = ledger.lines(now)
        for cause in Cause:
            assert sum(sum(line.since_start) for line in lines if line.cause is cause) == booked[cause]
        for _, _, days, months in ledger.export(now)["up"]:
            assert len(days) <= DAYS_MAX and len(months) <= MONTHS_MAX


def total_of_month(ledger: Ledger, now: float) -> int:
    """Of all uplinks; each day is within its month."""
    uplinks = [row[0] for row in ledger.export(now)["up"]]
    assert all(day <= month for day, month in (ledger.used(now, uplink) for uplink in uplinks))
    return sum(ledger.used(now, uplink)[1] for uplink in uplinks)


@given(st.lists(st.tuples(st.floats(0, 3 * DAY_S), st.integers(0, 10_000)), max_size=40))
def test_days_are_those_of_a_slow_twin(bookings: list[tuple[float, int]]) -> None:
    ledger, now = Ledger(), 0.0
    ledger.set_wall(now, NOON)
    days: Counter[date] = Counter()
    for wait_s, count in bookings:
        now += wait_s
        ledger.book(now, "eth0", Cause.REKEY, sent=count)
        days[datetime.fromtimestamp(NOON + now, UTC).date()] += count
    today = datetime.fromtimestamp(NOON + now, UTC).date()
    this_month = sum(count for day, count in days.items() if (day.year, day.month) == (today.year, today.month))
    assert ledger.used(now, "eth0") == (days[today], this_month)


@given(st.dates(date(1970, 1, 1), date(2500, 1, 1)))
def test_the_calendar(day: date) -> None:
    number = (day - date(1970, 1, 1)).days
    assert month_of(number) == 12 * day.year + day.month - 1
    assert first_day(month_of(number)) == (day.replace(day=1) - date(1970, 1, 1)).days


def test_how_much_of_the_month_is_over() -> None:
    ledger = Ledger()
    ledger.set_wall(0.0, datetime(2028, 2, 15, 12, tzinfo=UTC).timestamp())
    assert ledger.month_elapsed(0.0) == pytest.approx(14.5 / 29)


def test_overheads() -> None:
    assert udp_bytes(100) == 128 and udp_bytes(2_000, 2, ipv6=True) == 2_096
    assert tcp_bytes(100, 3) == 256
    # a two-byte MQTT ping: record of 24 bytes in one segment, and its acknowledgement
    assert tls_bytes(2) == (76, 52)
    assert tls_bytes(2, ipv6=True) == (96, 72)
    assert tls_bytes(14_000, 1) == (14_022 + 11 * 52, 6 * 52)


def test_bounds() -> None:
    ledger = Ledger()
    for bad in ("", "a" * 65, "a\nb"):
        with pytest.raises(LocalProtocolError):
            ledger.book(0.0, bad, Cause.PROBE, sent=1)
    with pytest.raises(LocalProtocolError):
        ledger.set_wall(0.0, -1.0)
    ledger.set_wall(0.0, NOON)
    for uplink in range(UPLINKS_MAX):
        for day in range(130):
            ledger.book(
                day * DAY_S, f"an-uplink-with-a-long-name-{uplink}", Cause.PAYLOAD, sent=1 << 50, received=1 << 50
            )
    saved = ledger.export(130 * DAY_S)
    assert len(encode(saved)) < 8_192
    ledger = Ledger()
    ledger.load(saved)
    with pytest.raises(LocalProtocolError):
        ledger.load(saved)


@pytest.mark.parametrize(
    "saved",
    [
        None,
        {},
        {"v": 2, "up": []},
        {"v": 1, "up": [["a", [0] * 15, [], []]]},
        {"v": 1, "up": [["a", [-1] * 16, [], []]]},
        {"v": 1, "up": [["a", [1 << 64] * 16, [], []]]},
        {"v": 1, "up": [["a", [0] * 16, [[1, [0] * 16]] * (DAYS_MAX + 1), []]]},
        {"v": 1, "up": [["a", [0] * 16, [], []]] * (UPLINKS_MAX + 1)},
    ],
)
def test_what_was_damaged_is_refused(saved: object) -> None:
    ledger = Ledger()
    with pytest.raises(ControlError):
        ledger.load(saved)
    assert not ledger.lines(0.0)


def test_booking_is_cheap_in_memory() -> None:
    ledger = Ledger()
    ledger.set_wall(0.0, NOON)
    for day in range(100):
        for uplink in range(UPLINKS_MAX):
            ledger.book(day * DAY_S, f"up{uplink}", Cause.PAYLOAD, sent=1)
    books = ledger._books.values()
    assert (
        sum(sys.getsizeof(counts) for book in books for counts in (*book.days.values(), *book.months.values())) < 24_576
    )


def test_the_next_midnight_is_always_ahead() -> None:
    ledger = Ledger()
    assert ledger.next_day_at(0.0) is None
    ledger.set_wall(0.0, NOON)
    assert ledger.next_day_at(0.0) == DAY_S / 2
    assert ledger.next_day_at(DAY_S / 2 - 0.5) == DAY_S / 2
    assert ledger.next_day_at(DAY_S / 2) == 1.5 * DAY_S
    assert ledger.next_day_at(7.0 * DAY_S) == 7.5 * DAY_S  # though nothing was booked meanwhile
