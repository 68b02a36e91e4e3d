"""Statements of the hub's busiest ways: compiled once for an engine, then run on the driver's own cursor.

SQLAlchemy takes 25 to 70 µs to run a statement that SQLite answers in 2, and a question of a device is fifteen of them.
What is prepared here is the same statement in the same transaction, without the machinery: values go to the driver as
they are and rows come back as plain tuples, with booleans for what the driver has no booleans for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from sqlalchemy import Boolean, Connection, Dialect, Executable, Select
from sqlalchemy.exc import DBAPIError

Values = Mapping[str, Any]


class Prepared:
    """`statement` with named parameters (`bindparam`); for INSERT and UPDATE `columns` are those that get values.

    Parameters that need work of SQLAlchemy's (lists for IN, types of its own) cannot be prepared. Errors of the driver
    are raised as SQLAlchemy raises them.
    """

    __slots__ = ("_columns", "_ready", "_statement")

    def __init__(self, statement: Executable, columns: Iterable[str] = ()) -> None:
        self._statement = statement
        self._columns = list(columns)
        self._ready: dict[str, _Ready] = {}

    def all(self, connection: Connection, values: Values | None = None) -> list[Any]:
        """Every row, a tuple each."""
        ready = self._for(connection.dialect)
        cursor = self._execute(connection, ready, ready.take(values or {}))
        rows = cursor.fetchall()  # to the end also where one is wanted: what is open holds back the write-ahead log
        if ready.booleans:
            return [_with_booleans(row, ready.booleans) for row in rows]
        return list(rows)

    def first(self, connection: Connection, values: Values | None = None) -> Any | None:
        """A row, or None."""
        rows = self.all(connection, values)
        return rows[0] if rows else None

    def scalar(self, connection: Connection, values: Values | None = None) -> Any:
        """The first column of the one row that there must be."""
        return self.all(connection, values)[0][0]

    def run(self, connection: Connection, values: Values) -> int:
        """How many rows it was about."""
        ready = self._for(connection.dialect)
        count: int = self._execute(connection, ready, ready.take(values)).rowcount
        return count

    def run_many(self, connection: Connection, many: Sequence[Values]) -> None:
        """The same for each."""
        if many:
            ready = self._for(connection.dialect)
            self._execute(connection, ready, [ready.take(values) for values in many], many=True)

    def _for(self, dialect: Dialect) -> _Ready:
        ready = self._ready.get(dialect.name)
        if ready is None:
            ready = self._ready[dialect.name] = _Ready(self._statement, self._columns, dialect)
        return ready

    def _execute(self, connection: Connection, ready: _Ready, values: Any, *, many: bool = False) -> Any:
        raw: Any = connection.connection.driver_connection
        cursor = raw.cursor()
        try:
            (cursor.executemany if many else cursor.execute)(ready.sql, values)
        except connection.dialect.loaded_dbapi.Error as error:
            _raise(connection, raw, cursor, ready.sql, error)
        return cursor


class _Ready:
    """A statement as one engine's driver takes it."""

    __slots__ = ("_constants", "_order", "booleans", "sql")

    def __init__(self, statement: Executable, columns: list[str], dialect: Dialect) -> None:
        compiled: Any = statement.compile(  # type: ignore[attr-defined]
            dialect=dialect, column_keys=columns or None
        )
        self.sql: str = str(compiled)
        self._constants = {name: value for name, value in compiled.params.items() if value is not None}
        self._order: list[str] | None = compiled.positiontup if compiled.positional else None
        self.booleans: list[int] = []
        if isinstance(statement, Select) and not dialect.supports_native_boolean:
            self.booleans = [
                index for index, column in enumerate(statement.selected_columns) if isinstance(column.type, Boolean)
            ]

    def take(self, values: Values) -> Any:
        if self._constants:
            values = {**self._constants, **values}
        return values if self._order is None else [values[name] for name in self._order]


def _with_booleans(row: Sequence[Any], places: list[int]) -> tuple[Any, ...]:
    values = list(row)
    for place in places:
        values[place] = bool(values[place])
    return tuple(values)


def _raise(connection: Connection, raw: Any, cursor: Any, sql: str, error: Any) -> NoReturn:
    """As `Connection.execute` would: who leads among several hubs is told by a connection that is lost."""
    dialect = connection.dialect
    lost = dialect.is_disconnect(error, raw, cursor)
    if lost and not connection.invalidated:
        connection.invalidate(error)
    raise DBAPIError.instance(
        sql, None, error, dialect.loaded_dbapi.Error, connection_invalidated=lost, dialect=dialect
    ) from error
