"""The versions of the network's policy, in the `policy` table."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select

from hub.core.model import StoredPolicy
from hub.store.prepared import Prepared
from hub.store.schema import policy

_NEWEST = Prepared(select(func.coalesce(func.max(policy.c.version), 0)))


def newest_version(connection: Connection) -> int:
    """0 for none."""
    version: int = _NEWEST.scalar(connection)
    return version


def load_policy(connection: Connection, version: int) -> StoredPolicy | None:
    row = connection.execute(select(policy).where(policy.c.version == version)).first()
    return None if row is None else _to_policy(row)


def load_policies(connection: Connection, limit: int) -> list[StoredPolicy]:
    """The newest first."""
    rows = connection.execute(select(policy).order_by(policy.c.version.desc()).limit(limit))
    return [_to_policy(row) for row in rows]


def save_policy(connection: Connection, new: StoredPolicy) -> None:
    connection.execute(
        insert(policy), {"version": new.version, "text": new.text, "author": new.author, "created_s": new.created_s}
    )


def drop_policies(connection: Connection, up_to: int) -> None:
    connection.execute(delete(policy).where(policy.c.version <= up_to))


def _to_policy(row: Row[Any]) -> StoredPolicy:
    return StoredPolicy(**row._mapping)
