"""The audit log's chain as a database has it: where it begins, where it breaks, and which breaks were accepted.

A row breaks the chain whose id or hash does not follow from the row before it. Somebody who has looked into that may
accept it: a row is appended that names the break in full, so the row with its hash and its content, the hash before it
and the id that was expected there. That row counts while all of this is so, while it stands behind the break, and while
it fits the row before itself. Behind an accepted break the chain goes on from the hash that the row has. What stood
before is covered no longer by that hash but by the row that accepts, so a later change of it is seen as before.

Who can write the database can append such a row as well as make the whole chain anew. It is the louder way: whoever
follows the chain is told of each break that was accepted, and by whom.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from hub.core.audit import START, TEXT_MAX, Entry, cut, first_break, record
from hub.core.model import HubError

if TYPE_CHECKING:
    from hub.core.store import Tx

PRUNED, ACCEPTED = "audit.prune", "audit.accept"
ACCEPTS_MAX = 256  # rows that accept: the newest are looked at, older ones count no more


@dataclass(slots=True, frozen=True)
class Beginning:
    """The first row that there must be, and the hash that its own covers; `by`: the row that vouches for it."""

    id: int
    before: bytes
    by: Entry | None


def beginning(tx: Tx) -> Beginning:
    """Behind what was pruned last. Rows that are missing there as well, or without such a word, break the chain."""
    first = next(iter(tx.audit_rows(limit=1)), None)
    if first is not None and first.id > 1:
        for pruned in tx.audit_of(PRUNED, limit=1):
            said = pruned.details()
            with suppress(ValueError, KeyError):  # whatever somebody wrote there is no word of ours
                last, before = int(said["last"]), bytes.fromhex(str(said["hash"]))
                if 0 < last < first.id:
                    return Beginning(last + 1, before, pruned)
    return Beginning(1, START, None)


@dataclass(slots=True, frozen=True)
class Break:
    """A row that does not fit the one before it, whose hash is `before`; `expected` is the id behind that one's."""

    row: Entry
    before: bytes
    expected: int

    def detail(self) -> dict[str, str | int]:
        """All of it, as the row that accepts it says it."""
        return {
            "row": self.row.id,
            "expected": self.expected,
            "hash": self.row.hash.hex(),
            "before": self.before.hex(),
            "content": self.row.digest(b"").hex(),
        }

    def is_accepted_by(self, entry: Entry) -> bool:
        """Whether that row means this break. Whether the row itself fits is for the caller to see."""
        if entry.verb != ACCEPTED or entry.id <= self.row.id:
            return False
        said = entry.details()
        return all(said.get(name) == value for name, value in self.detail().items())

    def words(self) -> str:
        """How it is broken, after "row N: "."""
        if self.expected >= self.row.id:
            return "it, or what stood before it, was changed or taken out"
        if self.expected == self.row.id - 1:
            return f"row {self.expected} before it is not there"
        return f"rows {self.expected} to {self.row.id - 1} before it are not there"


@dataclass(slots=True, frozen=True)
class Accepted:
    broken: Break
    by: Entry

    @property
    def why(self) -> str:
        return reason_of(self.by)


class Accepts:
    """The rows of a database that accept breaks, as they are during one transaction. Read when first asked for."""

    def __init__(self, tx: Tx) -> None:
        self._tx = tx

    @cached_property
    def rows(self) -> list[Entry]:
        """The newest first."""
        return self._tx.audit_of(ACCEPTED, limit=ACCEPTS_MAX)

    @cached_property
    def _by_row(self) -> dict[int, list[Entry]]:
        found: defaultdict[int, list[Entry]] = defaultdict(list)
        for entry in self.rows:
            if (number := row_of(entry)) is not None:
                found[number].append(entry)
        return found

    def of(self, broken: Break) -> Entry | None:
        """The row that accepts this break, if one does that counts."""
        for entry in self._by_row.get(broken.row.id, ()):
            if broken.is_accepted_by(entry) and self.fits(entry):
                return entry
        return None

    def fits(self, entry: Entry) -> bool:
        """Whether a row fits the one before it, which is there."""
        before, *behind = self._tx.audit_rows(after=entry.id - 2, limit=2)
        return behind == [entry] and first_break(before.hash, before.id + 1, behind)[0] is None

    def missing(self, first: int) -> int:
        """How many rows are missing behind row `first` at breaks that somebody accepted."""
        gaps: dict[int, int] = {}
        for number, entries in self._by_row.items():
            for entry in entries if number > first else ():
                expected = entry.details().get("expected")
                if type(expected) is int and first < expected < number and self._is_gap(expected, number):
                    gaps[number] = max(gaps.get(number, 0), number - expected)
        return sum(gaps.values())

    def _is_gap(self, first: int, behind: int) -> bool:
        found = self._tx.audit_rows(after=first - 1, limit=1)
        return bool(found) and found[0].id == behind


class Walk:
    """Along the chain, past breaks that were accepted, to the first that was not: `broken`."""

    def __init__(self, begin: Beginning, accepts: Accepts) -> None:
        self._accepts = accepts
        self.before, self.next_id = begin.before, begin.id
        self.accepted: list[Accepted] = []  # as many as there are rows that accept, at most
        self.broken: Break | None = None

    def go(self, rows: Iterable[Entry]) -> bool:
        """Those that come next, in their order; False when the chain is broken."""
        rest = iter(rows)
        while self.broken is None:
            wrong, self.before, self.next_id = first_break(self.before, self.next_id, rest)
            if wrong is None:
                return True
            broken = Break(wrong, self.before, self.next_id)
            if (by := self._accepts.of(broken)) is None:
                self.broken = broken
            else:
                self.accepted.append(Accepted(broken, by))
                self.before, self.next_id = wrong.hash, wrong.id + 1
        return False


def accept(tx: Tx, wall_s: int, actor: str, broken: Break, why: str) -> Entry:
    """Append the row that says so. Raises HubError.

    Nothing is followed from the beginning on here, that takes too long for a transaction that others wait for: `broken`
    was found by a walk, and is held against the rows as they are now.
    """
    reason, number = check_reason(why), broken.row.id
    if not _is_still(tx, broken):
        raise HubError(f"audit log: row {number}, or what stands before it, was changed meanwhile. Look at it again")
    if (by := Accepts(tx).of(broken)) is not None:
        raise HubError(f"audit log: the break at row {number} was accepted meanwhile, by {cut(by.actor)}")
    return record(tx, wall_s, actor, ACCEPTED, f"row:{number}", {**broken.detail(), "why": reason})


def check_reason(text: str) -> str:
    """Without blanks around it. Raises HubError."""
    if not 0 < len(text.strip()) <= TEXT_MAX:
        raise HubError(f"--why: {len(text)} characters, 1 to {TEXT_MAX} expected that say what was found out")
    return text.strip()


def row_of(entry: Entry) -> int | None:
    """Whose break a row accepts."""
    number = entry.details().get("row")
    return number if type(number) is int else None


def reason_of(entry: Entry) -> str:
    return str(cut(str(entry.details().get("why", ""))))


def _is_still(tx: Tx, broken: Break) -> bool:
    begin, rows = beginning(tx), tx.audit_rows(after=max(0, broken.expected - 2), limit=2)
    if rows and rows[0].id == broken.expected - 1:
        is_before = rows.pop(0).hash == broken.before
    else:
        is_before = (begin.id, begin.before) == (broken.expected, broken.before)
    return is_before and rows[:1] == [broken.row]
