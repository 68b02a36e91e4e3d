"""The audit log: who did what to what, each row bound to the one before by its hash.

A row's hash is BLAKE2s-256 over the hash before it and the row's canonical JSON, so a row that was changed, taken out
or put in between breaks the chain there (hub.core.chain). Who can write the database can write a new chain: keep
exports elsewhere to notice that.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2s
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hub.core.store import Tx

TEXT_MAX = 256  # characters of one value
DETAIL_MAX = 16  # values of a row
START = bytes(32)  # what the first row's hash covers as the hash before


@dataclass(slots=True, frozen=True)
class Entry:
    """One row. `id` counts up by one."""

    id: int
    wall_s: int
    actor: str  # "user:ada", "token:ID of user:ada", "cli:root", "address:192.0.2.7" of somebody who has not signed in
    verb: str  # "device.rename"
    object: str  # "device:d-…"; empty for none
    detail: str  # JSON object
    hash: bytes  # 32 B

    def digest(self, before: bytes) -> bytes:
        """What `hash` must be after a row whose hash is `before`."""
        fields = [self.id, self.wall_s, self.actor, self.verb, self.object, self.detail]
        return blake2s(before + json.dumps(fields, ensure_ascii=False).encode()).digest()

    def details(self) -> dict[str, str | int]:
        """What `detail` says; where somebody wrote there what no `record` writes: {"detail": that text}."""
        try:
            found = json.loads(self.detail)
            json.dumps(found, ensure_ascii=False).encode()  # no half of a character, which nobody can print
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict) or not all(isinstance(value, str | int) for value in found.values()):
            return {"detail": self.detail}
        return found


def record(
    tx: Tx, wall_s: int, actor: str, verb: str, object_: str = "", detail: Mapping[str, str | int] | None = None
) -> Entry:
    """Append a row inside the transaction of the change that it tells of. Never put a secret into `detail`."""
    last = tx.last_audit()
    kept = {name: cut(value) for name, value in list((detail or {}).items())[:DETAIL_MAX]}
    text = json.dumps(kept, ensure_ascii=False, sort_keys=True)
    number = last.id + 1 if last is not None else 1
    entry = Entry(number, wall_s, str(cut(actor)), verb, str(cut(object_)), text, b"")
    entry = Entry(*_fields(entry), entry.digest(last.hash if last is not None else START))
    tx.add_audit(entry)
    return entry


def first_break(before: bytes, expected_id: int, entries: Iterable[Entry]) -> tuple[Entry | None, bytes, int]:
    """Follow the chain: (the first row that does not fit or None, the last hash, the id that must come next).

    Of an iterator it takes no row behind the one that does not fit.
    """
    for entry in entries:
        if entry.id != expected_id or entry.hash != entry.digest(before):
            return entry, before, expected_id
        before, expected_id = entry.hash, entry.id + 1
    return None, before, expected_id


def _fields(entry: Entry) -> tuple[int, int, str, str, str, str]:
    return entry.id, entry.wall_s, entry.actor, entry.verb, entry.object, entry.detail


def cut(value: str | int) -> str | int:
    """Text without line ends and other controls, of bounded length: it is shown in terminals and pages."""
    if isinstance(value, int):
        return value
    clean = "".join(char if char.isprintable() else "�" for char in value[: TEXT_MAX + 1])
    return clean if len(clean) <= TEXT_MAX else clean[: TEXT_MAX - 1] + "…"
