"""The store on a PostgreSQL server, for hubs that one machine cannot hold: the same tables, the same transactions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine, create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, OperationalError
from sqlalchemy.pool import NullPool

from hub.core.model import HubError
from hub.store import database, lead
from hub.store.sql import SqlTx

LOCK_TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 10

# One writer at a time, as with SQLite: what a transaction reads, nobody changes before it ends.
LOCK = f"SELECT pg_advisory_xact_lock({database.APPLICATION_ID})"
# A lost server is noticed within these, not after the kernel's hours.
_KEEPALIVE = {"keepalives_idle": 5, "keepalives_interval": 3, "keepalives_count": 3}
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
                **_KEEPALIVE,
                "options": f"-c lock_timeout={LOCK_TIMEOUT_S * 1000:.0f} -c idle_in_transaction_session_timeout=60s",
            },
        )
    except ModuleNotFoundError as error:
        raise HubError("database: psycopg is not installed. Run: pip install 'edgemesh[postgres]'") from error


class NoConnection(HubError):
    """The server is not there, or does not let us in."""


class LeadLost(Exception):
    """The connection whose session led is gone: another hub may lead by now."""


class PostgresStore:
    """One connection to the server, made anew when it was lost; not so when it led: then LeadLost is raised.

    Raises NoConnection, and HubError for other tables.
    """

    def __init__(self, url: str) -> None:
        self._leads = False
        self._engine = open_engine(url)
        try:
            found = database.revision(self._engine)
        except OperationalError as error:
            self._engine.dispose()
            raise NoConnection(
                f"database: no connection ({first_line(error)}). Is the server there, and the URL right?"
            ) from error
        if found != database.NEWEST:
            self._engine.dispose()
            raise HubError(
                f"database: it has the form {found}, this program knows {database.NEWEST}. "
                "`edgehub serve` brings an older one up to date"
            )
        self._connection = self._engine.connect()

    def take_lead(self, name: str) -> bool:
        """Whether this connection leads from now on, among the hubs on this database. `name`: "HOST PID"."""
        with self._connection.begin():
            lead.call(self._connection, name)
            self._leads = lead.take(self._connection)
        return self._leads

    def end_silent_leader(self, silent_s: float) -> str:
        """See `hub.store.lead.end_silent`."""
        with self._connection.begin():
            return lead.end_silent(self._connection, silent_s)

    def members(self) -> list[lead.Member]:
        """Hubs that serve, the leader first."""
        with self._connection.begin():
            return lead.members(self._connection)

    @contextmanager
    def write(self) -> Iterator[SqlTx]:
        self._demand_lead()
        with self._connection.begin():
            try:
                self._connection.exec_driver_sql(LOCK)
            except OperationalError as error:
                if self._leads and error.connection_invalidated:
                    raise LeadLost(first_line(error)) from error
                raise HubError(
                    f"the database is busy ({first_line(error)}): another hub holds it for more than "
                    f"{LOCK_TIMEOUT_S:.0f} s. Try again"
                ) from error
            yield SqlTx(self._connection)

    @contextmanager
    def read(self) -> Iterator[SqlTx]:
        self._demand_lead()
        with self._connection.begin():
            self._connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            yield SqlTx(self._connection)

    def changes(self) -> int:
        """A number that changes when anybody has written."""
        self._demand_lead()
        with self._connection.begin():
            number: int = self._connection.execute(_CHANGES).scalar_one()
        return number

    def _demand_lead(self) -> None:
        if self._leads and self._connection.invalidated:
            raise LeadLost("the connection to the database was lost")

    def close(self) -> None:
        self._connection.close()
        self._engine.dispose()


def first_line(error: OperationalError) -> str:
    """What the server said, without its hints."""
    return str(error.orig).strip().partition("\n")[0]
