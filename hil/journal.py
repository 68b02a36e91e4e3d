"""What happens to guests, noted where it happens (power, console, the hub's list) and read by whoever reports.

One list a process: a guest knows no report, and a report no guest.
"""

from __future__ import annotations

import time
from collections import deque
from enum import Enum
from typing import NamedTuple

EVENTS_MAX = 4_096  # kept; above it the oldest go
GUESTS_MAX = 256


class Kind(Enum):
    """How an event is drawn, and which count."""

    ON = "on"  # the power came
    OFF = "off"  # the power went
    GOOD = "good"  # what was waited for: online, reached
    BAD = "bad"  # stuck, died
    RETRY = "retry"  # a boot is tried again; counted
    NOTE = "note"


class Event(NamedTuple):
    at: float  # monotonic
    guest: str
    what: str
    kind: Kind


_events: deque[Event] = deque(maxlen=EVENTS_MAX)
_about: dict[str, dict[str, str]] = {}


def note(guest: str, what: str, kind: Kind = Kind.NOTE) -> None:
    """Something happens to `guest` now. `what`: a few words, for people."""
    _events.append(Event(time.monotonic(), guest, what, kind))


def describe(guest: str, **about: str) -> None:
    """What `guest` is, by name: machine, board, …"""
    if guest in _about or len(_about) < GUESTS_MAX:
        _about.setdefault(guest, {}).update(about)


def since(began: float) -> list[Event]:
    """In their order, those from `began` (monotonic) on."""
    return [event for event in list(_events) if event.at >= began]


def about(guest: str) -> dict[str, str]:
    return dict(_about.get(guest, {}))
