"""How long the audit log keeps its rows, and how an export proves those that were pruned.

The oldest rows go, a batch a transaction, and the same transaction appends a row that tells of it: up to which row, and
that row's hash. The hash of the first row that stays covers that, so the chain is followed from there as it was
from the first row of all. Rows that somebody else took out at the beginning have no such row and break the chain.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from hub.core.audit import START, Entry, record
from hub.core.chain import ACCEPTED, ACCEPTS_MAX, PRUNED, Accepts, Beginning, Break, Walk, beginning
from hub.core.model import HubError

if TYPE_CHECKING:
    from hub.core.store import Tx

DAY_S = 86_400
DAYS_MIN, DAYS_MAX = 7, 36_500
ROWS_MIN, ROWS_MAX = 1_000, 1_000_000_000
KEPT_MIN = 100  # the newest stay whatever their date: a clock that is years ahead must not empty the log
BATCH, LEAST = 250, 20  # rows that go in one transaction, some 10 ms of the hub's; it writes one

ACTOR, KEPT = "hub", "audit.keep"


@dataclass(slots=True, frozen=True)
class Keep:
    """What is kept: rows that are younger, and not more of them. 0: without this bound."""

    days: int = 400
    rows: int = 0

    def check(self) -> Keep:
        """Itself. Raises HubError."""
        for name, value, least, most in (
            ("--days", self.days, DAYS_MIN, DAYS_MAX),
            ("--rows", self.rows, ROWS_MIN, ROWS_MAX),
        ):
            if value and not least <= value <= most:
                raise HubError(f"{name} {value}: {least} to {most} expected, or 0 for no such bound")
        return self

    def words(self) -> str:
        bounds = [f"{self.days} days"] if self.days else []
        bounds += [f"{self.rows} rows"] if self.rows else []
        return ", and at most ".join(bounds) or "everything"

    def encode(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, encoded: bytes) -> Keep:
        return cls(**json.loads(encoded)) if encoded else cls()


@dataclass(slots=True, frozen=True)
class _Due:
    """Rows that are to go, the oldest first; `broken`: why they do not."""

    rows: list[Entry]
    broken: Break | None


def prune(tx: Tx, wall_s: int) -> bool:
    """Take a batch of what is older, or more, than is kept. True: there may be more to take.

    It begins a day late, or with a tenth too many, and not for a few: else every second row would tell of it. Nothing
    goes where the chain is broken and nobody accepted that: the row that tells of it would vouch for what somebody
    else left.
    """
    keep = Keep.decode(tx.audit_keep())
    due = _due(tx, wall_s, keep)
    if due is None or due.broken is not None:
        return False
    first, end = due.rows[0], due.rows[-1]
    detail: dict[str, str | int] = {"first": first.id, "last": end.id, "hash": end.hash.hex(), "until": end.wall_s}
    record(tx, wall_s, ACTOR, PRUNED, "", {**detail, **asdict(keep)})
    tx.drop_audit(end.id)
    return len(due.rows) == BATCH


def held_up_by(tx: Tx, wall_s: int) -> Break | None:
    """What keeps `prune` from taking what it would take now."""
    due = _due(tx, wall_s, Keep.decode(tx.audit_keep()))
    return due.broken if due is not None else None


def _due(tx: Tx, wall_s: int, keep: Keep) -> _Due | None:
    first, last = next(iter(tx.audit_rows(limit=1)), None), tx.last_audit()
    if first is None or last is None:
        return None
    accepts, count = Accepts(tx), last.id - first.id + 1
    if keep.rows and count > keep.rows:
        count -= accepts.missing(first.id)
    is_long = bool(keep.rows) and count > keep.rows + keep.rows // 10
    is_old = bool(keep.days) and not wall_s - (keep.days + 1) * DAY_S <= first.wall_s <= wall_s + DAY_S
    if not (is_old or is_long):
        return None
    batch = tx.audit_rows(limit=BATCH + KEPT_MIN)[:-KEPT_MIN][:BATCH]  # rows, not ids: some may be missing
    gone = max(_older(batch, wall_s, keep.days), min(len(batch), count - keep.rows) if keep.rows else 0)
    if gone < LEAST:
        return None
    walk = Walk(beginning(tx), accepts)
    walk.go(batch[:gone])
    return _Due(batch[:gone], walk.broken)


def _older(rows: list[Entry], wall_s: int, days: int) -> int:
    """How many, from the oldest on, are older than that. A row of the future was written by a wrong clock and is as old
    as the one after it; behind one that is young enough nothing goes, whatever the clock said then."""
    older = 0
    for number, row in enumerate(rows if days else (), 1):
        if row.wall_s < wall_s - days * DAY_S:
            older = number
        elif row.wall_s <= wall_s + DAY_S:
            break
    return older


@dataclass(slots=True, frozen=True)
class Joined:
    """What an export proves together with the database: rows `first` to `last`. `instead`: rows of the database whose
    break was accepted, and in whose place the export has others."""

    first: int
    last: int
    instead: tuple[int, ...] = ()


def join(
    exported: Iterable[Entry],
    begin: Beginning,
    living: Iterator[Entry],
    accepts: Accepts,
    accepted: Container[int],
) -> Joined:
    """Follow the rows of an export to where the database's begin, and along those. `living`: the database's rows, which
    a walk went along; `accepted`: the rows at which it met breaks that were accepted.

    Raises HubError where they do not fit. A break in the export is passed when the database has a row that accepts it,
    or the export itself further on. Where one was accepted in the database, the export may have what was there before,
    as far as a row that both have and whose hash covers that. Of a first row that is not row 1 nothing tells what stood
    before it: that is for the export before, and what such a row says counts only as far as the database has it too.
    """
    first, before, next_id = 0, START, 1
    other, is_instead = next(living, None), False
    open_: dict[int, Break] = {}  # not accepted yet, in their order
    instead: dict[int, None] = {}
    for entry in exported:
        if not first:
            first = next_id = entry.id
            before = begin.before if first == begin.id else START
        is_first_of_later = entry.id == first and first not in (1, begin.id)
        if entry.id != next_id or not (is_first_of_later or entry.hash == entry.digest(before)):
            broken = Break(entry, before, next_id)
            if accepts.of(broken) is None:
                open_[entry.id] = broken
                # Behind the beginning the database has the row that accepts it; ids only go up
                if entry.id >= begin.id or entry.id < next_id or len(open_) > ACCEPTS_MAX:
                    raise _broken(open_)
        elif entry.verb == ACCEPTED:
            for number in [number for number, broken in open_.items() if broken.is_accepted_by(entry)]:
                del open_[number]
        before, next_id = entry.hash, entry.id + 1
        if entry.id == begin.id - 1 and entry.hash != begin.before:
            raise HubError(
                f"audit log: row {entry.id} of the export is not the one that the database's first row follows: "
                "one of the two was made anew"
            )
        if entry.id < begin.id:
            continue
        while other is not None and other.id < entry.id:
            other = next(living, None)
        if other is None:
            raise HubError(
                f"audit log: row {entry.id} of the export is not in the database: "
                "an older backup was restored, or its end was taken out"
            )
        if is_instead := other != entry:
            if other.id not in accepted:
                raise HubError(f"audit log: row {entry.id} of the export is another there")
            instead[other.id] = None
    if open_:
        raise _broken(open_)
    if not first:
        raise HubError("export: there is no row in it")
    if next_id < begin.id:
        raise HubError(
            f"audit log: rows {next_id} to {begin.id - 1} are neither in the export nor in the database. "
            "Add the export that has them"
        )
    if is_instead:
        raise HubError(
            f"audit log: row {next_id - 1} of the export is not in the database, where a break was accepted, and "
            "nothing behind it proves it. Add the rows that were written since"
        )
    return Joined(first, next_id - 1, tuple(instead))


def _broken(open_: Mapping[int, Break]) -> HubError:
    broken = next(iter(open_.values()))
    return HubError(f"export: broken at row {broken.row.id}: {broken.words()}")
