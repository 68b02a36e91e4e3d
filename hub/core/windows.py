"""Maintenance windows: times of the week, in a named time zone, at which a fleet may be changed. Pure.

    mon-fri 01:00-05:00, sat 22:00-06:00        in Europe/Berlin

A window that ends before it begins ends on the next day. What a zone's clock shows is what counts, summer or winter: on
the day that has no 02:30 a window from 02:30 to 03:30 has half an hour.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from hub.core.model import HubError

WINDOWS_MAX = 14
ZONE_BYTES_MAX = 64
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY_MIN, _WEEK_MIN = 24 * 60, 7 * 24 * 60
_WINDOW = re.compile(r"(?:([a-z]{3})(?:-([a-z]{3}))?\s+)?(\d{1,2}):(\d\d)\s*-\s*(\d{1,2}):(\d\d)")
_EXAMPLE = "Write for example: mon-fri 01:00-05:00, sat 22:00-06:00"


@dataclass(slots=True, frozen=True)
class Window:
    """From `begin` on, a minute of the week that starts on Monday, for `length` minutes."""

    begin: int
    length: int


@dataclass(slots=True, frozen=True)
class Windows:
    """All of them; none means always. `text` is as somebody wrote it."""

    text: str = ""
    zone: str = "UTC"
    spans: tuple[Window, ...] = ()

    def is_open(self, wall_s: int) -> bool:
        if not self.spans:
            return True
        local = datetime.fromtimestamp(wall_s, UTC).astimezone(ZoneInfo(self.zone))
        minute = local.weekday() * _DAY_MIN + local.hour * 60 + local.minute
        return any((minute - span.begin) % _WEEK_MIN < span.length for span in self.spans)

    def __str__(self) -> str:
        return f"{self.text} ({self.zone})" if self.spans else "always"


def read(text: str, zone: str = "UTC") -> Windows:
    """Raises HubError, which names the part that is wrong."""
    words = [part.strip() for part in text.lower().split(",") if part.strip()]
    if not words:
        return Windows()
    if len(words) > WINDOWS_MAX:
        raise HubError(f"windows: {len(words)} of them; at most {WINDOWS_MAX} expected. Use fewer, longer ones")
    _check_zone(zone)
    spans = tuple(span for word in words for span in _spans(word))
    return Windows(", ".join(words), zone, spans)


def _check_zone(zone: str) -> None:
    try:
        if len(zone.encode()) > ZONE_BYTES_MAX:
            raise ValueError
        ZoneInfo(zone)
    except (ValueError, OSError, KeyError):  # ZoneInfoNotFoundError is a KeyError
        raise HubError(
            f"time zone {zone[:ZONE_BYTES_MAX]!r}: there is none of this name here. Write for example Europe/Berlin"
        ) from None


def _spans(word: str) -> list[Window]:
    found = _WINDOW.fullmatch(word)
    if found is None:
        raise HubError(f"windows: {word[:40]!r} cannot be read. {_EXAMPLE}")
    first, last, *times = found.groups()
    for day in (first, last):
        if day is not None and day not in DAYS:
            raise HubError(f"windows: {day!r} is no day; mon, tue, wed, thu, fri, sat and sun are. {_EXAMPLE}")
    begin_h, begin_min, end_h, end_min = map(int, times)
    begin, end = begin_h * 60 + begin_min, end_h * 60 + end_min
    if begin >= _DAY_MIN or end > _DAY_MIN or begin_min > 59 or end_min > 59 or begin == end:
        raise HubError(f"windows: {word[:40]!r} is no span of a day; 00:00-24:00 is the longest. {_EXAMPLE}")
    length = (end - begin) % _DAY_MIN or _DAY_MIN
    at = DAYS.index(first) if first is not None else 0
    days = 7 if first is None else (DAYS.index(last or first) - at) % 7 + 1
    return [Window(((at + day) % 7) * _DAY_MIN + begin, length) for day in range(days)]
