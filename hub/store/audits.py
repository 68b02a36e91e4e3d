"""The audit log's table."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select

from hub.core.audit import Entry
from hub.store.schema import audit


def last(connection: Connection) -> Entry | None:
    row = connection.execute(select(audit).order_by(audit.c.id.desc()).limit(1)).first()
    return None if row is None else _to_entry(row)


def of(connection: Connection, verb: str, *, limit: int) -> list[Entry]:
    """The newest first."""
    query = select(audit).where(audit.c.verb == verb).order_by(audit.c.id.desc()).limit(limit)
    return [_to_entry(row) for row in connection.execute(query)]


def add(connection: Connection, entry: Entry) -> None:
    values = {"id": entry.id, "wall_s": entry.wall_s, "actor": entry.actor, "verb": entry.verb}
    connection.execute(insert(audit), {**values, "object": entry.object, "detail": entry.detail, "hash": entry.hash})


def rows(connection: Connection, *, after: int = 0, limit: int = 100) -> list[Entry]:
    """In their order, those after `after`."""
    query = select(audit).where(audit.c.id > after).order_by(audit.c.id).limit(limit)
    return [_to_entry(row) for row in connection.execute(query)]


def newest(
    connection: Connection, *, before: int = 0, limit: int = 100, actor: str = "", verb: str = "", object_: str = ""
) -> list[Entry]:
    """The newest first, those before `before` (0: all). `verb` may be a beginning, as in `device.`"""
    query = select(audit)
    if before:
        query = query.where(audit.c.id < before)
    if actor:
        query = query.where(audit.c.actor == actor)
    if verb:
        query = query.where(audit.c.verb.startswith(verb, autoescape=True))
    if object_:
        query = query.where(audit.c.object == object_)
    return [_to_entry(row) for row in connection.execute(query.order_by(audit.c.id.desc()).limit(limit))]


def drop(connection: Connection, up_to: int) -> None:
    """Those up to this id."""
    connection.execute(delete(audit).where(audit.c.id <= up_to))


def _to_entry(row: Row[Any]) -> Entry:
    # SQLite keeps text, too, where somebody put it into the column: a hash that fits nothing
    hash_ = row.hash if isinstance(row.hash, bytes) else str(row.hash).encode()
    return Entry(row.id, row.wall_s, row.actor, row.verb, row.object, row.detail, hash_)
