"""The store that lasts: a file of SQLite. One writer at a time, across processes; readers never wait."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy.exc import OperationalError

from hub.core.model import HubBusy, HubError
from hub.store import database
from hub.store.sql import SqlTx


class SqliteStore:
    """One connection to the hub's database file. Raises HubError when the file is missing or of another form."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise HubError(f"{path}: there is no hub here. `edgehub init` makes one")
        self._engine = database.open_engine(path)
        found = database.revision(self._engine)
        if found != database.NEWEST:
            self._engine.dispose()
            raise HubError(
                f"{path}: the database has the form {found}, this program knows {database.NEWEST}. "
                "Restart `edgehub serve`: it brings an older one up to date"
            )
        self._connection = self._engine.connect()

    @contextmanager
    def write(self) -> Iterator[SqlTx]:
        yield from self._transaction("BEGIN IMMEDIATE")

    @contextmanager
    def read(self) -> Iterator[SqlTx]:
        yield from self._transaction("BEGIN")

    def changes(self) -> int:
        """A number that changes when another process has written."""
        version: int = self._connection.exec_driver_sql("PRAGMA data_version").scalar_one()
        self._connection.rollback()
        return version

    def close(self) -> None:
        self._connection.close()
        self._engine.dispose()

    def _transaction(self, begin: str) -> Iterator[SqlTx]:
        with self._connection.begin():
            try:
                self._connection.exec_driver_sql(begin)
            except OperationalError as error:
                raise HubBusy(
                    f"the database is busy ({error.orig}): another `edgehub` holds it for more than "
                    f"{database.BUSY_TIMEOUT_S:.0f} s. Try again"
                ) from error
            yield SqlTx(self._connection)
