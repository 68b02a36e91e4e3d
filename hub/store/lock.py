"""The tables of the network lock."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Connection, and_, case, delete, exists, func, insert, not_, or_, select

from edgeagent.proto.lock import Statement
from hub.core.model import DeviceState, Kind, LockSignature
from hub.store.prepared import Prepared
from hub.store.schema import device, lock_signature, lock_statement, node_signature

ENDING_S = 30 * 86_400
_STATEMENTS = Prepared(select(lock_statement.c.raw).order_by(lock_statement.c.sequence))
_SHOWN = and_(
    device.c.kind == Kind.DEVICE.value, device.c.state.in_((DeviceState.ACTIVE.value, DeviceState.EXPIRED.value))
)


def statements(connection: Connection) -> list[bytes]:
    return [raw for (raw,) in _STATEMENTS.all(connection)]


def add_statement(connection: Connection, sequence: int, raw: bytes) -> None:
    connection.execute(insert(lock_statement), {"sequence": sequence, "raw": raw})


def signatures(connection: Connection, devices: list[str]) -> list[LockSignature]:
    query = select(lock_signature).where(lock_signature.c.device.in_(devices))
    rows = connection.execute(query.order_by(lock_signature.c.device, lock_signature.c.by))
    return [LockSignature(*row) for row in rows]


def save_signature(connection: Connection, new: LockSignature) -> None:
    drop_signature(connection, new.device, new.by)
    values = {"device": new.device, "by": new.by, "not_after": new.not_after, "sequence": new.sequence}
    connection.execute(insert(lock_signature), {**values, "signature": new.signature})


def drop_signature(connection: Connection, device_id: str, by: bytes) -> None:
    connection.execute(delete(lock_signature).where(lock_signature.c.device == device_id, lock_signature.c.by == by))


def node_signatures(connection: Connection, device_id: str) -> dict[bytes, tuple[int, bytes]]:
    rows = connection.execute(select(node_signature).where(node_signature.c.device == device_id))
    return {row.key: (row.not_after, row.signature) for row in rows}


def signed_node_keys(connection: Connection, devices: list[str], wall_s: int) -> set[bytes]:
    query = select(node_signature.c.key).where(node_signature.c.device.in_(devices))
    return set(connection.execute(query.where(node_signature.c.not_after >= wall_s)).scalars())


def save_node_signature(connection: Connection, key: bytes, device_id: str, not_after: int, signature: bytes) -> None:
    drop_node_signature(connection, key)
    values = {"key": key, "device": device_id, "not_after": not_after, "signature": signature}
    connection.execute(insert(node_signature), values)


def drop_node_signature(connection: Connection, key: bytes) -> None:
    connection.execute(delete(node_signature).where(node_signature.c.key == key))


# Of the fleet as a whole, as `hub.core.lock.standing` says it of single devices


def counts(connection: Connection, statement: Statement, wall_s: int) -> tuple[int, int, int]:
    """(devices, those of them that others refuse under the lock, those whose last signature ends within ENDING_S)."""
    lacking = case((not_(_is_reached(statement, wall_s)), 1), else_=0)
    holds = and_(_is_signed(statement, wall_s), not_(_is_signed(statement, wall_s + ENDING_S)))
    row = connection.execute(
        select(func.count(), func.coalesce(func.sum(lacking), 0), func.coalesce(func.sum(case((holds, 1), else_=0)), 0))
        .select_from(device)
        .where(_SHOWN)
    ).one()
    return int(row[0]), int(row[1]), int(row[2])


def pending(connection: Connection, statement: Statement, wall_s: int, limit: int) -> list[str]:
    """Ids of those that others refuse, the latest to join first."""
    query = select(device.c.id).where(_SHOWN, not_(_is_reached(statement, wall_s)))
    return list(connection.execute(query.order_by(device.c.created_s.desc(), device.c.id).limit(limit)).scalars())


def _is_reached(statement: Statement, wall_s: int) -> ColumnElement[bool]:
    own = exists().where(node_signature.c.key == device.c.node_key, node_signature.c.not_after >= wall_s)
    return and_(_is_signed(statement, wall_s), own)


def _is_signed(statement: Statement, wall_s: int) -> ColumnElement[bool]:
    row = lock_signature.c
    void = [and_(row.device == each, row.sequence <= until) for each, until in statement.revoked.items()]
    return exists().where(
        row.device == device.c.id,
        row.by.in_(statement.keys),
        or_(row.not_after == 0, row.not_after >= wall_s),
        *([not_(or_(*void))] if void else []),
    )
