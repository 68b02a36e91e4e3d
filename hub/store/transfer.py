"""A hub's whole database as lines of JSON, to take it from one engine to another: no device has to join again.

The first line says what it is, each further one is a row (`t` its table; bytes as {"b": base64}), the last one counts
the rows and has the SHA-256 of all lines before it. Secrets are in it, as they are in the database.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from typing import IO, Any

from sqlalchemy import Connection, Table, delete, insert, select
from sqlalchemy.exc import StatementError

from hub.core.model import HubError
from hub.store import database
from hub.store.schema import metadata

FORMAT = 1
LINE_BYTES_MAX = 4 << 20
_CHUNK = 500  # rows inserted at a time


def export(connection: Connection, out: IO[bytes], wall_s: int) -> int:
    """Write all rows of a read transaction's moment; how many there were."""
    digest = hashlib.sha256()

    def put(value: dict[str, Any]) -> None:
        line = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
        digest.update(line)
        out.write(line)

    put({"edgehub": FORMAT, "form": database.NEWEST, "written_s": wall_s})
    rows = 0
    for table in metadata.sorted_tables:
        found = connection.execute(_ordered(table), execution_options={"yield_per": _CHUNK})
        for row in found:
            put({"t": table.name, "r": {name: _pack(value) for name, value in row._mapping.items()}})
            rows += 1
    out.write(json.dumps({"end": rows, "sha256": digest.hexdigest()}).encode() + b"\n")
    return rows


def load(connection: Connection, source: IO[bytes]) -> int:
    """Insert all rows into tables of the newest form, in the place of what is there; how many.

    Raises HubError, and then nothing of the transaction may be kept. Rows that the database numbers get new numbers, in
    the order of the old ones.
    """
    tables = metadata.tables
    digest, rows = hashlib.sha256(), 0
    waiting: list[dict[str, Any]] = []
    current: Table | None = None
    lines = _lines(source)
    line, head = next(lines, (b"", {}))
    if head.get("edgehub") != FORMAT:
        raise HubError("import: not an export of a hub")
    if head.get("form") != database.NEWEST:
        raise HubError(
            f"import: it has the form {head.get('form')}, this program knows {database.NEWEST}. "
            "Export it again with the same version of edgehub"
        )
    digest.update(line)
    for each in reversed(metadata.sorted_tables):
        connection.execute(delete(each))  # what migrations have put there
    for line, value in lines:
        if "end" in value:
            _flush(connection, current, waiting)
            if value["end"] != rows or value.get("sha256") != digest.hexdigest():
                raise HubError("import: the file is damaged: what its last line says is not what came before")
            if next(lines, None) is not None:
                raise HubError("import: the file goes on after its end")
            return rows
        digest.update(line)
        table = tables.get(value.get("t", ""))
        row = value.get("r")
        if table is None or not isinstance(row, dict) or set(row) != set(table.c.keys()):
            raise HubError(f"import: line {rows + 2}: no row of a table that this program knows")
        if table is not current or len(waiting) == _CHUNK:
            _flush(connection, current, waiting)
            current = table
        waiting.append({name: _unpack(item, rows + 2) for name, item in row.items() if name != _numbered(table)})
        rows += 1  # noqa: SIM113  # the last line is none
    raise HubError("import: the file is cut off")


def is_empty(connection: Connection) -> bool:
    """Whether no hub has written here: there is no network."""
    return connection.execute(select(metadata.tables["meta"]).limit(1)).first() is None


def _ordered(table: Table) -> Any:
    return select(table).order_by(*table.primary_key.columns)


def _numbered(table: Table) -> str | None:
    """The column that the database counts itself."""
    return "id" if table.dialect_options["sqlite"]["autoincrement"] else None


def _flush(connection: Connection, table: Table | None, rows: list[dict[str, Any]]) -> None:
    if table is not None and rows:
        try:
            connection.execute(insert(table), rows)
        except StatementError as error:
            raise HubError(f"import: rows of {table.name} contradict each other or what came before") from error
    rows.clear()


def _lines(source: IO[bytes]) -> Iterator[tuple[bytes, dict[str, Any]]]:
    number = 0
    while line := source.readline(LINE_BYTES_MAX + 1):
        number += 1
        try:
            value = json.loads(line) if len(line) <= LINE_BYTES_MAX else None
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise HubError(f"import: line {number}: not JSON as an export has it")
        yield line, value


def _pack(value: Any) -> Any:
    return {"b": base64.b64encode(value).decode()} if isinstance(value, bytes | memoryview) else value


def _unpack(value: Any, line: int) -> Any:
    if isinstance(value, dict):
        try:
            return base64.b64decode(value["b"], validate=True)
        except (KeyError, TypeError, ValueError):
            raise HubError(f"import: line {line}: bytes that are none") from None
    return value
