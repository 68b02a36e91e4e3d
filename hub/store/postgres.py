"""The store on a PostgreSQL server, for hubs that one machine cannot hold: the same tables, the same transactions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine, create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, OperationalError
from sqlalchemy.pool import NullPool

from hub.core.model import HubError
from hub.store import database
from hub.store.sqlite import SqliteTx

LOCK_TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 10

# One writer at a time, as with SQLite: what a transaction reads, nobody changes before it ends.
LOCK = f"SELECT pg_advisory_xact_lock({database.APPLICATION_ID})"
_CHANGES = text("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint")


def open_engine(url: str) -> Engine:
    """An engine for `postgresql://user@host/name`. Raises HubError."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:
        raise HubError("database: no URL. Write postgresql://USER@HOST/NAME") from error
    if parsed.get_backend_name() != "postgresql":
        raise HubError(f"database: {parsed.get_backend_name()} is not known here. Write postgresql://USER@HOST/NAME")
    try:
        return create_engine(
            parsed.set(drivername="postgresql+psycopg"),
            poolclass=NullPool,
            connect_args={
                "connect_timeout": CONNECT_TIMEOUT_S,
                "application_name": "edgehub",
                "options": f"-c lock_timeout={LOCK_TIMEOUT_S * 1000:.0f} -c idle_in_transaction_session_timeout=60s",
            },
        )
    except ModuleNotFoundError as error:
        raise HubError("database: psycopg is not installed. Run: pip install 'edgemesh[postgres]'") from error


class PostgresStore:
    """One connection to the server, made anew when it was lost. Raises HubError without one, or for other tables."""

    def __init__(self, url: str) -> None:
        self._engine = open_engine(url)
        try:
            found = database.revision(self._engine)
        except OperationalError as error:
            self._engine.dispose()
            raise HubError(
                f"database: no connection ({first_line(error)}). Is the server there, and the URL right?"
            ) from error
        if found != database.NEWEST:
            self._engine.dispose()
            raise HubError(
                f"database: it has the form {found}, this program knows {database.NEWEST}. "
                "`edgehub serve` brings an older one up to date"
            )
        self._connection = self._engine.connect()

    @contextmanager
    def write(self) -> Iterator[SqliteTx]:
        with self._connection.begin():
            try:
                self._connection.exec_driver_sql(LOCK)
            except OperationalError as error:
                raise HubError(
                    f"the database is busy ({first_line(error)}): another hub holds it for more than "
                    f"{LOCK_TIMEOUT_S:.0f} s. Try again"
                ) from error
            yield SqliteTx(self._connection)

    @contextmanager
    def read(self) -> Iterator[SqliteTx]:
        with self._connection.begin():
            self._connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            yield SqliteTx(self._connection)

    def changes(self) -> int:
        """A number that changes when anybody has written."""
        with self._connection.begin():
            number: int = self._connection.execute(_CHANGES).scalar_one()
        return number

    def close(self) -> None:
        self._connection.close()
        self._engine.dispose()


def first_line(error: OperationalError) -> str:
    """What the server said, without its hints."""
    return str(error.orig).strip().partition("\n")[0]
