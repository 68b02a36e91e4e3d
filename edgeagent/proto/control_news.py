"""What the control plane of a device has learned, for the node to act on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeagent.proto.records import Entry, Query

if TYPE_CHECKING:
    from typing import Any


class RecordCame:
    """A record is new, or another than before; `introduced`: the hub tells of it because its device asked for us."""

    __slots__ = ("entry", "introduced")

    def __init__(self, entry: Entry, *, introduced: bool = False) -> None:
        self.entry = entry
        self.introduced = introduced


class RecordLost:
    """A record was removed by the hub (`gone`), refused by the network's lock (`locked`), or gave way to others."""

    __slots__ = ("entry", "gone", "locked")

    def __init__(self, entry: Entry, *, gone: bool, locked: bool = False) -> None:
        self.entry = entry
        self.gone = gone
        self.locked = locked


class FeedCame:
    """A peer said something new about itself."""

    __slots__ = ("entry",)

    def __init__(self, entry: Entry) -> None:
        self.entry = entry


class Answered:
    """The end of a question; `entry` is None for no."""

    __slots__ = ("entry", "query")

    def __init__(self, query: Query, entry: Entry | None) -> None:
        self.query = query
        self.entry = entry


class RoutersTold:
    """Who routes an address that was asked for: device ids, the preferred first."""

    __slots__ = ("address", "via")

    def __init__(self, address: bytes, via: list[str]) -> None:
        self.address = address
        self.via = via


class MapCame:
    """The map in use is another."""

    __slots__ = ()


class LockChanged:
    """Another statement of the network's lock is held: to be kept before it has effects."""

    __slots__ = ()


class EpochBehind:
    """The hub has seen later epochs of ours: the connection must be made anew."""

    __slots__ = ()


class CommandCame:
    """The hub wants something done; `body` as control.py has it of `cmd`."""

    __slots__ = ("body",)

    def __init__(self, body: dict[str, Any]) -> None:
        self.body = body


class PartCame:
    """A part of a file of updates; `body` as control.py has it of `part`."""

    __slots__ = ("body",)

    def __init__(self, body: dict[str, Any]) -> None:
        self.body = body


class CutOff:
    """The hub has removed this device."""

    __slots__ = ()


News = (
    RecordCame
    | RecordLost
    | FeedCame
    | Answered
    | RoutersTold
    | MapCame
    | LockChanged
    | EpochBehind
    | CommandCame
    | PartCame
    | CutOff
)
