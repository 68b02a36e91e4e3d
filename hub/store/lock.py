"""The tables of the network lock."""

from __future__ import annotations

from sqlalchemy import Connection, delete, insert, select

from hub.core.model import LockSignature
from hub.store.schema import lock_signature, lock_statement, node_signature


def statements(connection: Connection) -> list[bytes]:
    return list(connection.execute(select(lock_statement.c.raw).order_by(lock_statement.c.sequence)).scalars())


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
