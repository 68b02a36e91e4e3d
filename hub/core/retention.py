"""How long the audit log keeps its rows, and where its chain begins once older ones were pruned.

The oldest rows go, a batch a transaction, and the same transaction appends a row that tells of it: up to which row, and
that row's hash. The hash of the first row that stays covers that, so the chain is followed from there as it was
from the first row of all. Rows that somebody else took out at the beginning have no such row and break the chain.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from hub.core.audit import START, Entry, first_break, record
from hub.core.model import HubError

if TYPE_CHECKING:
    from hub.core.store import Tx

DAY_S = 86_400
DAYS_MIN, DAYS_MAX = 7, 36_500
ROWS_MIN, ROWS_MAX = 1_000, 1_000_000_000
KEPT_MIN = 100  # the newest stay whatever their date: a clock that is years ahead must not empty the log
BATCH, LEAST = 250, 20  # rows that go in one transaction, some 10 ms of the hub's; it writes one

ACTOR, PRUNED, KEPT = "hub", "audit.prune", "audit.keep"


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
class Beginning:
    """The first row that there must be, and the hash that its own covers; `by`: the row that vouches for it."""

    id: int
    before: bytes
    by: Entry | None


def beginning(tx: Tx) -> Beginning:
    first = next(iter(tx.audit_rows(limit=1)), None)
    if first is not None and first.id > 1 and (pruned := tx.last_audit_of(PRUNED)) is not None:
        with suppress(ValueError, TypeError, KeyError):  # whatever somebody wrote there is no word of ours
            said = json.loads(pruned.detail)
            if said["last"] == first.id - 1:
                return Beginning(first.id, bytes.fromhex(said["hash"]), pruned)
    return Beginning(1, START, None)


def prune(tx: Tx, wall_s: int) -> bool:
    """Take a batch of what is older, or more, than is kept. True: there may be more to take.

    It begins a day late, or with a tenth too many, and not for a few: else every second row would tell of it. Nothing
    goes where the chain is broken: the row that tells of it would vouch for what somebody else left.
    """
    keep = Keep.decode(tx.audit_keep())
    first, last = next(iter(tx.audit_rows(limit=1)), None), tx.last_audit()
    if first is None or last is None:
        return False
    count = last.id - first.id + 1
    is_old = bool(keep.days) and not wall_s - (keep.days + 1) * DAY_S <= first.wall_s <= wall_s + DAY_S
    is_long = bool(keep.rows) and count > keep.rows + keep.rows // 10
    if not (is_old or is_long):
        return False
    batch = tx.audit_rows(limit=min(BATCH, max(0, count - KEPT_MIN)))
    gone = max(_older(batch, wall_s, keep.days), min(len(batch), count - keep.rows) if keep.rows else 0)
    begin = beginning(tx)
    if gone < LEAST or first_break(begin.before, begin.id, batch[:gone])[0] is not None:
        return False
    end = batch[gone - 1]
    detail: dict[str, str | int] = {"first": first.id, "last": end.id, "hash": end.hash.hex(), "until": end.wall_s}
    record(tx, wall_s, ACTOR, PRUNED, "", {**detail, **asdict(keep)})
    tx.drop_audit(end.id)
    return gone == BATCH


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
    """What an export proves together with the database: rows `first` to `last`."""

    first: int
    last: int


def join(exported: Iterable[Entry], begin: Beginning, living: Iterator[Entry]) -> Joined:
    """Follow the rows of an export to where the database's begin, and along those. `living`: the database's rows.

    Raises HubError where they do not fit. Of a first row that is not row 1 nothing tells what stood before it: that is
    for the export before, and what such a row says counts only as far as the database has it too.
    """
    first, before, next_id = 0, START, 1
    for entry in exported:
        if not first:
            first = next_id = entry.id
            before = begin.before if first == begin.id else START
        is_first_of_later = entry.id == first and first not in (1, begin.id)
        if entry.id != next_id or not (is_first_of_later or entry.hash == entry.digest(before)):
            raise HubError(f"export: broken at row {entry.id}: it, or what stood before it, was changed or taken out")
        before, next_id = entry.hash, entry.id + 1
        if entry.id >= begin.id:
            other = next(living, None)
            while other is not None and other.id < entry.id:
                other = next(living, None)
        if entry.id == begin.id - 1 and entry.hash != begin.before:
            raise HubError(
                f"audit log: row {entry.id} of the export is not the one that the database's first row follows: "
                "one of the two was made anew"
            )
        if entry.id >= begin.id and (other is None or other != entry):
            what = "is not in the database: an older backup was restored, or its end was taken out"
            raise HubError(f"audit log: row {entry.id} of the export {what if other is None else 'is another there'}")
    if not first:
        raise HubError("export: there is no row in it")
    if next_id < begin.id:
        raise HubError(
            f"audit log: rows {next_id} to {begin.id - 1} are neither in the export nor in the database. "
            "Add the export that has them"
        )
    return Joined(first, next_id - 1)
