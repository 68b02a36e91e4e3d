"""Audit rows as lines of JSON, as they are kept elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import IO, Any

from hub.core.audit import Entry
from hub.core.model import HubError

LINE_BYTES_MAX = 64 << 10


def write_line(entry: Entry) -> str:
    row: dict[str, Any] = {
        "id": entry.id,
        "time": entry.wall_s,
        "actor": entry.actor,
        "verb": entry.verb,
        "object": entry.object,
        "detail": entry.details(),
        "hash": entry.hash.hex(),
    }
    if _written(row["detail"]) != entry.detail:  # somebody changed it: the hash is over the text
        row["text"] = entry.detail
    return json.dumps(row, ensure_ascii=False) + "\n"


def read_lines(source: IO[bytes]) -> Iterator[Entry]:
    """What `write_line` wrote. Raises HubError."""
    number = 0
    while line := source.readline(LINE_BYTES_MAX + 1):
        number += 1
        try:
            yield _read(json.loads(line) if len(line) <= LINE_BYTES_MAX else None)
        except (ValueError, TypeError, KeyError, RecursionError):
            raise HubError(f"export: line {number}: no row as `edgehub audit export` writes it") from None


def _read(row: Any) -> Entry:
    number, wall_s = row["id"], row["time"]
    actor, verb, object_, hash_ = (row[name] for name in ("actor", "verb", "object", "hash"))
    if (
        type(number) is not int
        or number < 1
        or type(wall_s) is not int
        or not all(isinstance(it, str) for it in (actor, verb, object_))
    ):
        raise TypeError
    detail = row["text"] if "text" in row else _written(row["detail"])
    if not isinstance(detail, str):
        raise TypeError
    return Entry(number, wall_s, actor, verb, object_, detail, bytes.fromhex(hash_))


def _written(detail: Any) -> str:
    """As hub.core.audit.record writes it."""
    return json.dumps(detail, ensure_ascii=False, sort_keys=True)
