"""Rollouts and their devices in SQL, on the connection of a transaction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from sqlalchemy import Connection, Row, Select, bindparam, delete, func, insert, select, update

from hub.core.model import DeviceState
from hub.core.rollout import (
    WANTING,
    Progress,
    Rollout,
    RolloutDevice,
    RolloutKind,
    RolloutState,
    decode_plan,
)
from hub.store.meta import load_update_root, save_update_root
from hub.store.schema import device, rollout, rollout_device

_FIELDS = [field.name for field in fields(Rollout)]
_ROW_FIELDS = [field.name for field in fields(RolloutDevice)]
_OVER = (RolloutState.DONE.value, RolloutState.ABORTED.value)
_ALL = select(rollout)
_ROWS = select(*(rollout_device.c[name] for name in _ROW_FIELDS))
_SAVE = (
    update(rollout_device)
    .where(rollout_device.c.rollout == bindparam("b_rollout"), rollout_device.c.device == bindparam("b_device"))
    .values({name: bindparam(name) for name in (*_ROW_FIELDS[2:], "holder")})
)
_WANTED = _ROWS.where(rollout_device.c.holder == bindparam("device"))
_held = rollout_device.alias("held")
_IS_FREE = (
    rollout_device.c.device == device.c.id,
    device.c.state == DeviceState.ACTIVE.value,
    device.c.online,
    ~select(_held.c.device).where(_held.c.holder == device.c.id).exists(),
)


class SqlRollouts:
    """See `hub.core.rollout_rows.RolloutRows`."""

    def __init__(self, connection: Connection, note: Callable[[str], None], next_: Callable[[str], int]) -> None:
        self._connection = connection
        self._note = note
        self._next = next_

    def next_id(self) -> int:
        return self._next("rollouts")

    def add(self, new: Rollout) -> None:
        self._note("rollouts")
        self._connection.execute(insert(rollout), _values(new))

    def save(self, changed: Rollout) -> None:
        self._note("rollouts")
        self._connection.execute(update(rollout).where(rollout.c.id == changed.id).values(_values(changed)))

    def get(self, rollout_id: int) -> Rollout | None:
        return next(iter(self._some(_ALL.where(rollout.c.id == rollout_id))), None)

    def newest(self, limit: int = 100) -> list[Rollout]:
        return self._some(_ALL.order_by(rollout.c.id.desc()).limit(limit))

    def under_way(self) -> list[Rollout]:
        return self._some(_ALL.where(rollout.c.state.not_in(_OVER)).order_by(rollout.c.id))

    def beyond(self, count: int) -> list[int]:
        over = select(rollout.c.id).where(rollout.c.state.in_(_OVER)).order_by(rollout.c.id.desc())
        return list(self._connection.execute(over.offset(count).limit(1_000)).scalars())

    def drop(self, rollout_id: int) -> None:
        self._connection.execute(delete(rollout_device).where(rollout_device.c.rollout == rollout_id))
        self._connection.execute(delete(rollout).where(rollout.c.id == rollout_id))

    def add_devices(self, rows: list[RolloutDevice]) -> None:
        if rows:
            self._connection.execute(insert(rollout_device), [_row_values(row) for row in rows])

    def save_device(self, row: RolloutDevice) -> None:
        self._note("rollouts")
        self._note(f"device {row.device}")
        self._connection.execute(_SAVE, {**_row_values(row), "b_rollout": row.rollout, "b_device": row.device})

    def device(self, rollout_id: int, device_id: str) -> RolloutDevice | None:
        where = (rollout_device.c.rollout == rollout_id, rollout_device.c.device == device_id)
        return next(iter(self._rows(_ROWS.where(*where))), None)

    def devices(
        self, rollout_id: int, *, state: Progress | None = None, after: int = -1, limit: int = 100
    ) -> list[RolloutDevice]:
        query = _ROWS.where(rollout_device.c.rollout == rollout_id, rollout_device.c.rank > after)
        if state is not None:
            query = query.where(rollout_device.c.state == state.value)
        return self._rows(query.order_by(rollout_device.c.rank).limit(limit))

    def of_device(self, device_id: str, limit: int = 10) -> list[RolloutDevice]:
        query = _ROWS.where(rollout_device.c.device == device_id).order_by(rollout_device.c.rollout.desc())
        return self._rows(query.limit(limit))

    def wanted(self, device_id: str) -> RolloutDevice | None:
        row = self._connection.execute(_WANTED, {"device": device_id}).first()
        return None if row is None else _to_row(row)

    def candidates(self, rollout_id: int, limit: int) -> list[RolloutDevice]:
        where = (rollout_device.c.rollout == rollout_id, rollout_device.c.state == Progress.PENDING.value)
        return self._rows(_ROWS.where(*where, *_IS_FREE).order_by(rollout_device.c.rank).limit(limit))

    def late(self, rollout_id: int, wall_s: int, limit: int) -> list[RolloutDevice]:
        return self._rows(self._due(rollout_id, wall_s).where(rollout_device.c.holder.is_not(None)).limit(limit))

    def retries_due(self, rollout_id: int, wall_s: int, limit: int) -> list[RolloutDevice]:
        is_retry = rollout_device.c.state == Progress.RETRY.value
        return self._rows(self._due(rollout_id, wall_s).where(is_retry, *_IS_FREE).limit(limit))

    def counts(self, rollout_id: int) -> list[tuple[int, Progress, bool, bool, int]]:
        columns = (rollout_device.c.group, rollout_device.c.state, device.c.online, device.c.state.label("life"))
        query = select(*columns, func.count().label("number")).where(
            rollout_device.c.rollout == rollout_id, device.c.id == rollout_device.c.device
        )
        return [
            (row.group, Progress(row.state), bool(row.online), row.life == DeviceState.ACTIVE.value, row.number)
            for row in self._connection.execute(query.group_by(*columns))
        ]

    def update_root(self) -> tuple[int, bytes] | None:
        return load_update_root(self._connection)

    def save_update_root(self, version: int, digest: bytes) -> None:
        save_update_root(self._connection, version, digest)

    @staticmethod
    def _due(rollout_id: int, wall_s: int) -> Select[Any]:
        due = rollout_device.c.due_s
        query = _ROWS.where(rollout_device.c.rollout == rollout_id, due > 0, due <= wall_s)
        return query.order_by(due, rollout_device.c.rank)

    def _some(self, query: Select[Any]) -> list[Rollout]:
        return [_to_rollout(row) for row in self._connection.execute(query)]

    def _rows(self, query: Select[Any]) -> list[RolloutDevice]:
        return [_to_row(row) for row in self._connection.execute(query)]


def _values(item: Rollout) -> dict[str, Any]:
    values = {name: getattr(item, name) for name in _FIELDS}
    return {**values, "kind": item.kind.value, "state": item.state.value, "plan": item.plan.encode()}


def _to_rollout(row: Row[Any]) -> Rollout:
    values: dict[str, Any] = dict(row._mapping)
    values["kind"], values["state"] = RolloutKind(values["kind"]), RolloutState(values["state"])
    values["plan"] = decode_plan(values["plan"])
    return Rollout(**values)


def _row_values(row: RolloutDevice) -> dict[str, Any]:
    values = {name: getattr(row, name) for name in _ROW_FIELDS}
    return {**values, "state": row.state.value, "holder": row.device if row.state in WANTING else None}


def _to_row(row: Row[Any]) -> RolloutDevice:
    values: dict[str, Any] = dict(row._mapping)
    return RolloutDevice(**{**values, "state": Progress(values["state"])})
