"""Rigs and their runs."""

from __future__ import annotations

import json
import zlib
from dataclasses import fields
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, Select, delete, func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert  # SQLite has taken its ON CONFLICT from there

from hub.core.rigs import STRIP_RUNS, Rig, Run, Verdict
from hub.store.schema import person, rig, rig_page, rig_run

_FIELDS = [field.name for field in fields(Run)]
_RIG: Select[Any] = select(rig, func.coalesce(person.c.login, "").label("login")).outerjoin(
    person, person.c.id == rig.c.person
)
_RUN: Select[Any] = select(*(rig_run.c[name] for name in _FIELDS if name != "seconds"), rig_run.c.took_ms)


class Figures(NamedTuple):
    """What one run measured."""

    number: int
    rows: list[dict[str, Any]]


def all_(connection: Connection) -> list[Rig]:
    """By name; admission keeps them few."""
    return [Rig(**row._mapping) for row in connection.execute(_RIG.order_by(rig.c.name))]


def find(connection: Connection, name: str) -> Rig | None:
    row = connection.execute(_RIG.where(rig.c.name == name)).first()
    return None if row is None else Rig(**row._mapping)


def count(connection: Connection) -> int:
    number: int = connection.execute(select(func.count()).select_from(rig)).scalar_one()
    return number


def add(connection: Connection, new: Rig) -> None:
    connection.execute(insert(rig), {name: getattr(new, name) for name in rig.c.keys()})  # noqa: SIM118


def save(connection: Connection, changed: Rig) -> None:
    connection.execute(update(rig).where(rig.c.name == changed.name).values(runs=changed.runs))


def drop(connection: Connection, name: str) -> None:
    """With its runs and their pages."""
    for table in (rig_page, rig_run):
        connection.execute(delete(table).where(table.c.rig == name))
    connection.execute(delete(rig).where(rig.c.name == name))


def add_run(connection: Connection, new: Run, detail: dict[str, Any], figures: list[dict[str, Any]]) -> None:
    values = {name: getattr(new, name) for name in _FIELDS if name != "seconds"}
    values |= {"verdict": new.verdict.value, "took_ms": round(new.seconds * 1000)}
    connection.execute(insert(rig_run), {**values, "detail": _pack(detail), "figures": _pack(figures)})


def run(connection: Connection, name: str, number: int) -> Run | None:
    return _first(connection, rig_run.c.rig == name, rig_run.c.number == number)


def run_of_id(connection: Connection, name: str, run_id: str) -> Run | None:
    return _first(connection, rig_run.c.rig == name, rig_run.c.id == run_id)


def detail(connection: Connection, name: str, number: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(host, versions, steps and guests; figures) of a run that there is."""
    query = select(rig_run.c.detail, rig_run.c.figures).where(rig_run.c.rig == name, rig_run.c.number == number)
    row = connection.execute(query).one()
    return _unpack(row.detail), _unpack(row.figures)


def runs(connection: Connection, name: str, *, before: int = 0, suite: str = "", limit: int = 50) -> list[Run]:
    """The newest first, those before number `before`; 0: all."""
    query = _RUN.where(rig_run.c.rig == name)
    if before:
        query = query.where(rig_run.c.number < before)
    if suite:
        query = query.where(rig_run.c.suite == suite)
    return [_to_run(row) for row in connection.execute(query.order_by(rig_run.c.number.desc()).limit(limit))]


def run_count(connection: Connection, name: str, suite: str = "") -> int:
    query = select(func.count()).select_from(rig_run).where(rig_run.c.rig == name)
    if suite:
        query = query.where(rig_run.c.suite == suite)
    number: int = connection.execute(query).scalar_one()
    return number


def suites(connection: Connection, name: str) -> list[str]:
    query = select(rig_run.c.suite).where(rig_run.c.rig == name).distinct().order_by(rig_run.c.suite)
    return list(connection.execute(query).scalars())


def newest(connection: Connection) -> dict[str, list[Run]]:
    """Of each rig the last STRIP_RUNS runs, the oldest first."""
    query = _RUN.join(rig, rig.c.name == rig_run.c.rig).where(rig_run.c.number > rig.c.runs - STRIP_RUNS)
    found: dict[str, list[Run]] = {}
    for row in connection.execute(query.order_by(rig_run.c.rig, rig_run.c.number)):
        found.setdefault(row.rig, []).append(_to_run(row))
    return found


def figures(connection: Connection, name: str, suite: str, limit: int, *, up_to: int = 0) -> list[Figures]:
    """Of the newest runs of a suite (up to number `up_to`; 0: all), the oldest first."""
    query = select(rig_run.c.number, rig_run.c.figures).where(rig_run.c.rig == name, rig_run.c.suite == suite)
    if up_to:
        query = query.where(rig_run.c.number <= up_to)
    rows = connection.execute(query.order_by(rig_run.c.number.desc()).limit(limit)).all()
    return [Figures(row.number, _unpack(row.figures)) for row in reversed(rows)]


def save_page(connection: Connection, name: str, number: int, page: bytes) -> None:
    """`page`: gzipped HTML, in the place of one that was there."""
    statement = upsert(rig_page).values(rig=name, number=number, page=page)
    connection.execute(
        statement.on_conflict_do_update(index_elements=["rig", "number"], set_={"page": statement.excluded.page})
    )


def page(connection: Connection, name: str, number: int) -> bytes | None:
    query = select(rig_page.c.page).where(rig_page.c.rig == name, rig_page.c.number == number)
    found = connection.execute(query).scalar()
    return None if found is None else bytes(found)


def pages(connection: Connection, name: str) -> set[int]:
    """Numbers of the runs that have one."""
    return set(connection.execute(select(rig_page.c.number).where(rig_page.c.rig == name)).scalars())


def trim(connection: Connection, name: str, first_run: int, first_page: int) -> None:
    """Forget runs and pages with lower numbers."""
    connection.execute(delete(rig_page).where(rig_page.c.rig == name, rig_page.c.number < first_page))
    connection.execute(delete(rig_run).where(rig_run.c.rig == name, rig_run.c.number < first_run))


def _first(connection: Connection, *where: Any) -> Run | None:
    row = connection.execute(_RUN.where(*where)).first()
    return None if row is None else _to_run(row)


def _to_run(row: Row[Any]) -> Run:
    values: dict[str, Any] = dict(row._mapping)
    seconds = values.pop("took_ms") / 1000
    return Run(**{**values, "seconds": seconds, "verdict": Verdict(values["verdict"])})


def _pack(value: Any) -> bytes:
    return zlib.compress(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())


def _unpack(data: bytes) -> Any:
    return json.loads(zlib.decompress(data))
