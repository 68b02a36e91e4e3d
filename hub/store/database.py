"""The database file: opened, copied, checked. SQLite with a write-ahead log, readable by its owner alone."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from sqlalchemy import Engine, create_engine, event, inspect, text
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry, NullPool

from hub.core.model import HubError

APPLICATION_ID = 0x656D3168  # "em1h", at offset 68 of the file: tells a hub's database from any other
BUSY_TIMEOUT_S = 10.0
NEWEST = "0016"  # the form of the tables that this program knows: the last of hub/store/migrations/versions


def open_engine(path: Path) -> Engine:
    """An engine whose transactions the caller begins itself (see `hub.store.sqlite`)."""
    engine = create_engine(
        f"sqlite+pysqlite:///{path}",
        poolclass=NullPool,
        connect_args={"timeout": BUSY_TIMEOUT_S, "check_same_thread": False},
    )
    event.listen(engine, "connect", _on_connect)
    return engine


def revision(engine: Engine) -> str | None:
    """Which form the tables have; None before the first migration."""
    with engine.connect() as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        found: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
        return found


def copy(source: Path, target: Path) -> None:
    """A consistent copy while others read and write. `target` must not exist."""
    os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    with closing(sqlite3.connect(source, timeout=BUSY_TIMEOUT_S)) as old, closing(sqlite3.connect(target)) as new:
        old.backup(new)
        new.execute("PRAGMA journal_mode = DELETE")  # one file, without -wal and -shm beside it


def check(path: Path) -> None:
    """Raise HubError unless this is an undamaged database of a hub."""
    if not path.is_file():
        raise HubError(f"{path}: there is no such file")
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)) as connection:
            found = connection.execute("PRAGMA application_id").fetchone()[0]
            if found != APPLICATION_ID:
                raise HubError(f"{path}: not a backup of a hub")
            verdict = connection.execute("PRAGMA integrity_check").fetchone()[0]
    except sqlite3.DatabaseError as error:
        raise HubError(f"{path}: not a backup of a hub, or damaged ({error})") from error
    if verdict != "ok":
        raise HubError(f"{path}: damaged ({verdict}). Take an older backup")


def _on_connect(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
    connection.isolation_level = None  # the driver begins nothing behind our back
    cursor = connection.cursor()
    for pragma in (
        "journal_mode = WAL",
        "synchronous = FULL",  # a commit is on the disk when it returns: the counter in it must never go back
        "foreign_keys = ON",
        "secure_delete = ON",  # passwords in the outbox are gone when they are gone
        "temp_store = MEMORY",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
