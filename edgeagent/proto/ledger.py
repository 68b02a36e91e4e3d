"""Who sent each byte: a count for every (uplink, cause), since the start, by day and by month."""

from __future__ import annotations

from array import array
from enum import IntEnum
from typing import Any

from edgeagent.proto.errors import LocalProtocolError
from edgeagent.proto.schema import Fields, List, Row, Text, Uint

UPLINKS_MAX = 8
UPLINK_BYTES_MAX = 64
OTHER = "other"  # what is left of uplinks that had to make room
DAYS_MAX, MONTHS_MAX = 8, 4
SAVE_AFTER_S = 10_800.0  # a power cut loses three hours of counting; flash is spared for it

IPV4_UDP, IPV6_UDP = 28, 48  # headers of a datagram: IP and UDP
IPV4_TCP, IPV6_TCP = 52, 72  # of a segment: IP, TCP and the timestamps that Linux sends (RFC 7323)
TLS_RECORD = 22  # header 5, inner type 1, tag 16 (RFC 8446, section 5.2)
_SEGMENT_BYTES = 1_400

_DAY_S = 86_400


class Cause(IntEnum):
    """Why a byte went over the line."""

    CONTROL = 0  # the hub: MQTT with its pings, TLS, TCP
    KEEPALIVE = 1  # empty packets that keep NAT bindings, and the search for how often
    PROBE = 2  # disco, STUN, MTU probes, requests for ports, latency of relays
    RELAY = 3  # a relay's login and pings, and what its carrier adds to payload
    REKEY = 4  # WireGuard handshakes and cookies
    TELEMETRY = 5  # what the device tells about itself
    UPDATE = 6  # software for the device
    PAYLOAD = 7  # what somebody else wanted to send, with the headers that carry it


CAUSES = len(Cause)
_COUNTS = 2 * CAUSES  # sent by cause, then received by cause
_ROW = List(Uint(), _COUNTS, _COUNTS)
_SAVED = Fields(
    {
        "v": Uint(1, 1),
        # uplink, undated, [day since 1970, counts], [month since year 0, counts]
        "up": List(
            Row(Text(UPLINK_BYTES_MAX), _ROW, List(Row(Uint(), _ROW), DAYS_MAX), List(Row(Uint(), _ROW), MONTHS_MAX)),
            UPLINKS_MAX,
        ),
    }
)


class Line:
    """One row for people: bytes (sent, received) of one cause on one uplink."""

    __slots__ = ("cause", "day", "month", "since_start", "uplink")

    def __init__(
        self, uplink: str, cause: Cause, since_start: tuple[int, int], day: tuple[int, int], month: tuple[int, int]
    ) -> None:
        self.uplink = uplink
        self.cause = cause
        self.since_start = since_start
        self.day = day
        self.month = month


class _Book:
    """The counts of one uplink. `open` is what came since the others were last brought up to date."""

    __slots__ = ("days", "months", "open", "since_start", "undated")

    def __init__(self) -> None:
        self.open = _zeros()
        self.since_start = _zeros()
        self.undated = _zeros()  # while the date was not known
        self.days: dict[int, array[int]] = {}
        self.months: dict[int, array[int]] = {}

    def settle(self, today: int | None) -> None:
        """Bring what is open to where it belongs. Days that lie ahead of `today` were a wrong clock's: they join it."""
        _add(self.since_start, self.open)
        _add(self.undated, self.open)
        self.open = _zeros()
        if today is None:
            return
        for periods, now, size_max in ((self.days, today, DAYS_MAX), (self.months, month_of(today), MONTHS_MAX)):
            current = periods.setdefault(now, _zeros())
            _add(current, self.undated)
            for ahead in [period for period in periods if period > now]:
                _add(current, periods.pop(ahead))
            _prune(periods, size_max)
        self.undated = _zeros()

    def absorb(self, other: _Book) -> None:
        """Add the settled counts of an uplink that makes room."""
        _add(self.since_start, other.since_start)
        _add(self.undated, other.undated)
        for mine, theirs, size_max in (
            (self.days, other.days, DAYS_MAX),
            (self.months, other.months, MONTHS_MAX),
        ):
            for period, counts in theirs.items():
                _add(mine.setdefault(period, _zeros()), counts)
            _prune(mine, size_max)


class Ledger:
    """Drive it: `book` whatever was sent or received, `set_wall` whenever the hub's time came; `lines`, `used` and
    `month_elapsed` to read. When `save_at` has come, make `export` durable.

    Days and months are those of UTC. Until the date is known, what is booked counts to the last day and month that are
    on record, or to none: it is never forgotten, and never taken for less than it may be.
    """

    def __init__(self) -> None:
        self._books: dict[str, _Book] = {}
        self._anchor_s: float | None = None  # wall time at now = 0
        self._day: int | None = None
        self._roll_at = float("inf")  # the next midnight
        self.save_at: float | None = None

    @property
    def books(self) -> int:
        """Uplinks that are on record."""
        return len(self._books)

    def book(self, now: float, uplink: str, cause: Cause, sent: int = 0, received: int = 0) -> None:
        """Bytes on the line, headers included: `udp_bytes`, `tcp_bytes` and `tls_bytes` add them."""
        if now >= self._roll_at:
            self._settle(now)
        book = self._books.get(uplink)
        if book is None:
            book = self._open_book(now, uplink)
        counts = book.open
        counts[cause] += sent
        counts[cause + CAUSES] += received
        if self.save_at is None:
            self.save_at = now + SAVE_AFTER_S

    def set_wall(self, now: float, wall_s: float) -> None:
        """The time is `wall_s` since 1970, whatever was thought before."""
        if wall_s < 0:
            raise LocalProtocolError("ledger: no time before 1970")
        self._settle(now)
        self._anchor_s = wall_s - now
        self._settle(now)

    def lines(self, now: float) -> list[Line]:
        """All that is not zero, by uplink and cause."""
        self._settle(now)
        found = []
        for uplink, book in sorted(self._books.items()):
            day, month = self._current(book)
            for cause in Cause:
                pairs = [(counts[cause], counts[cause + CAUSES]) for counts in (book.since_start, day, month)]
                if any(map(any, pairs)):
                    found.append(Line(uplink, cause, *pairs))
        return found

    @property
    def uplinks(self) -> list[str]:
        """All that have a book."""
        return sorted(self._books)

    def next_day_at(self, now: float) -> float | None:
        """The next midnight; None while the date is not known."""
        if self._anchor_s is None:
            return None
        return ((self._anchor_s + now) // _DAY_S + 1) * _DAY_S - self._anchor_s

    def used(self, now: float, uplink: str) -> tuple[int, int]:
        """Bytes in both directions of this day and of this month."""
        self._settle(now)
        book = self._books.get(uplink)
        if book is None:
            return 0, 0
        day, month = self._current(book)
        return sum(day), sum(month)

    def month_elapsed(self, now: float) -> float | None:
        """How much of the month is over, 0 to 1; None while the date is not known."""
        if self._anchor_s is None:
            return None
        days = (self._anchor_s + now) / _DAY_S
        month = month_of(int(days))
        first, after = first_day(month), first_day(month + 1)
        return (days - first) / (after - first)

    def export(self, now: float) -> dict[str, Any]:
        """What `load` takes; the caller makes it durable. `save_at` is None afterwards."""
        self._settle(now)
        self.save_at = None
        return {
            "v": 1,
            "up": [
                [uplink, book.undated.tolist(), _rows(book.days), _rows(book.months)]
                for uplink, book in self._books.items()
            ],
        }

    def load(self, saved: Any) -> None:
        """Put back what an earlier life exported, before the first booking. Raises ControlError(BAD_FIELD)."""
        fields = _SAVED.check(saved, "ledger")
        if self._books:
            raise LocalProtocolError("ledger: loaded before anything is booked")
        for uplink, undated, days, months in fields["up"]:
            book = self._books[uplink] = _Book()
            book.undated = array("Q", undated)
            book.days = {day: array("Q", counts) for day, counts in days}
            book.months = {month: array("Q", counts) for month, counts in months}

    def _settle(self, now: float) -> None:
        if self._anchor_s is None:
            today = None
        else:
            today = int((self._anchor_s + now) // _DAY_S)
            self._roll_at = (today + 1) * _DAY_S - self._anchor_s
        for book in self._books.values():
            if today is not None and self._day is not None and self._day < today:
                book.settle(self._day)  # booked before midnight: the first booking after it comes here
            book.settle(today)
        self._day = today

    def _current(self, book: _Book) -> tuple[array[int], array[int]]:
        """Day and month, or the last on record and all that may belong there."""
        day, month = _zeros(), _zeros()
        for counts, periods in ((day, book.days), (month, book.months)):
            _add(counts, book.undated)
            if periods:
                _add(counts, periods[max(periods)])
        return day, month

    def _open_book(self, now: float, uplink: str) -> _Book:
        if not uplink.isprintable() or not 1 <= len(uplink.encode()) <= UPLINK_BYTES_MAX:
            raise LocalProtocolError(f"ledger: an uplink's id is printable and has 1 to {UPLINK_BYTES_MAX} bytes")
        if len(self._books) >= UPLINKS_MAX:
            self._settle(now)
            self._make_room()
        book = self._books[uplink] = _Book()
        return book

    def _make_room(self) -> None:
        """The uplinks that were used least become one."""
        least = sorted(
            (uplink for uplink in self._books if uplink != OTHER),
            key=lambda uplink: sum(sum(counts) for counts in self._books[uplink].months.values()),
        )
        other = self._books.pop(OTHER, None) or _Book()
        while len(self._books) > UPLINKS_MAX - 2:
            other.absorb(self._books.pop(least.pop(0)))
        self._books[OTHER] = other


def udp_bytes(payload: int, datagrams: int = 1, *, ipv6: bool = False) -> int:
    """On the line, with the IP header; what is below differs from link to link, and no SIM is billed for it."""
    return payload + datagrams * (IPV6_UDP if ipv6 else IPV4_UDP)


def tcp_bytes(stream: int, segments: int, *, ipv6: bool = False) -> int:
    """Exact where the kernel counts segments (tcp_info: tcpi_segs_out, tcpi_segs_in): acknowledgements included."""
    return stream + segments * (IPV6_TCP if ipv6 else IPV4_TCP)


def tls_bytes(payload: int, records: int = 1, *, ipv6: bool = False) -> tuple[int, int]:
    """An estimate where nobody counts: bytes in the payload's direction, and acknowledgements in the other.

    Each record that is written on its own makes a segment; every second segment of a longer one is acknowledged
    (RFC 9293, section 3.8.6.3). Retransmissions are not known here.
    """
    stream = payload + records * TLS_RECORD
    segments = max(records, -(-stream // _SEGMENT_BYTES))
    return tcp_bytes(stream, segments, ipv6=ipv6), tcp_bytes(0, (segments + 1) // 2, ipv6=ipv6)


def month_of(day: int) -> int:
    """Months since year 0 for a day since 1970 (days counted from March, so that a leap day is the last)."""
    era, rest = divmod(day + 719_468, 146_097)  # 400 years
    year = (rest - rest // 1_460 + rest // 36_524 - rest // 146_096) // 365
    march = (5 * (rest - (365 * year + year // 4 - year // 100)) + 2) // 153
    return 12 * (400 * era + year) + march + 2


def first_day(month: int) -> int:
    """The day since 1970 on which a month since year 0 begins."""
    year, march = divmod(month - 2, 12)
    era, year = divmod(year, 400)
    return era * 146_097 + 365 * year + year // 4 - year // 100 + (153 * march + 2) // 5 - 719_468


def _zeros() -> array[int]:
    return array("Q", bytes(8 * _COUNTS))


def _add(to: array[int], counts: array[int]) -> None:
    for index, count in enumerate(counts):
        if count:
            to[index] += count


def _prune(periods: dict[int, array[int]], size_max: int) -> None:
    for old in sorted(periods)[:-size_max]:
        del periods[old]


def _rows(periods: dict[int, array[int]]) -> list[list[Any]]:
    return [[period, counts.tolist()] for period, counts in sorted(periods.items())]
