"""Commands, their output and telemetry in SQL. Each function works on the connection of a transaction."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

from sqlalchemy import Connection, Row, Select, bindparam, delete, func, insert, select, update

from hub.core.model import Command, CommandState
from hub.store.prepared import Prepared
from hub.store.schema import command, command_output, telemetry

_FIELDS = [field.name for field in fields(Command)]
_ALL = select(command)
_OPEN = Prepared(
    select(*(command.c[name] for name in _FIELDS))
    .where(command.c.device == bindparam("value"), command.c.due_s > 0)
    .order_by(command.c.seq)
)


def add(connection: Connection, new: Command) -> None:
    connection.execute(insert(command), _values(new))


def save(connection: Connection, changed: Command) -> None:
    connection.execute(update(command).where(command.c.id == changed.id).values(_values(changed)))


def find(connection: Connection, command_id: str) -> Command | None:
    row = connection.execute(_ALL.where(command.c.id == command_id)).first()
    return None if row is None else _to_command(row)


def of_device(connection: Connection, device_id: str, limit: int) -> list[Command]:
    query = _ALL.where(command.c.device == device_id).order_by(command.c.seq.desc()).limit(limit)
    return _some(connection, query)


def open_of_device(connection: Connection, device_id: str) -> list[Command]:
    rows = _OPEN.all(connection, {"value": device_id})
    return [_make_command(dict(zip(_FIELDS, row, strict=True))) for row in rows]


def due(connection: Connection, wall_s: int, limit: int) -> list[Command]:
    query = _ALL.where(command.c.due_s > 0, command.c.due_s <= wall_s).order_by(command.c.seq).limit(limit)
    return _some(connection, query)


def finished(connection: Connection, before_s: int, limit: int) -> list[str]:
    over = select(command.c.id).where(command.c.finished_s > 0, command.c.finished_s < before_s)
    return list(connection.execute(over.order_by(command.c.seq).limit(limit)).scalars())


def beyond(connection: Connection, device_id: str, count: int, verb: str) -> list[str]:
    over = select(command.c.id).where(command.c.device == device_id, command.c.due_s == 0)
    if verb:
        over = over.where(command.c.verb == verb)
    return list(connection.execute(over.order_by(command.c.seq.desc()).offset(count).limit(1_000)).scalars())


def drop(connection: Connection, ids: list[str]) -> None:
    if ids:
        connection.execute(delete(command_output).where(command_output.c.command.in_(ids)))
        connection.execute(delete(command).where(command.c.id.in_(ids)))


def save_output(connection: Connection, command_id: str, number: int, data: bytes) -> None:
    this = (command_output.c.command == command_id, command_output.c.number == number)
    if connection.execute(update(command_output).where(*this).values(data=data)).rowcount == 0:
        connection.execute(insert(command_output).values(command=command_id, number=number, data=data))


def output(connection: Connection, command_id: str) -> list[tuple[int, bytes]]:
    parts = select(command_output.c.number, command_output.c.data).where(command_output.c.command == command_id)
    return [(number, data) for number, data in connection.execute(parts.order_by(command_output.c.number))]


def output_bytes(connection: Connection, command_id: str) -> int:
    size = select(func.coalesce(func.sum(func.length(command_output.c.data)), 0))
    found: int = connection.execute(size.where(command_output.c.command == command_id)).scalar_one()
    return found


def save_telemetry(connection: Connection, device_id: str, wall_s: int, sample: bytes) -> None:
    changed = update(telemetry).where(telemetry.c.device == device_id).values(wall_s=wall_s, sample=sample)
    if connection.execute(changed).rowcount == 0:
        connection.execute(insert(telemetry).values(device=device_id, wall_s=wall_s, sample=sample))


def recent_telemetry(connection: Connection, since_s: int, limit: int) -> list[tuple[str, bytes]]:
    """(device, sample) of those that were watched since then, the newest first."""
    query = select(telemetry.c.device, telemetry.c.sample).where(telemetry.c.wall_s >= since_s)
    rows = connection.execute(query.order_by(telemetry.c.wall_s.desc()).limit(limit))
    return [(row.device, row.sample) for row in rows]


def load_telemetry(connection: Connection, device_id: str) -> tuple[int, bytes] | None:
    row = connection.execute(
        select(telemetry.c.wall_s, telemetry.c.sample).where(telemetry.c.device == device_id)
    ).first()
    return None if row is None else (row.wall_s, row.sample)


def _some(connection: Connection, query: Select[Any]) -> list[Command]:
    return [_to_command(row) for row in connection.execute(query)]


def _values(item: Command) -> dict[str, Any]:
    values = {name: getattr(item, name) for name in _FIELDS}
    values["args"] = json.dumps(item.args)
    values["state"] = item.state.value
    return values


def _to_command(row: Row[Any]) -> Command:
    return _make_command(dict(row._mapping))


def _make_command(values: dict[str, Any]) -> Command:
    values["args"] = json.loads(values["args"])
    values["state"] = CommandState(values["state"])
    return Command(**values)
