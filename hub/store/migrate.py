"""New databases, and old ones brought up to date. Alembic is loaded where there is something to do: it loads slowly."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError

from hub.core.model import HubError
from hub.store import database, postgres

if TYPE_CHECKING:
    from alembic.config import Config

_MIGRATIONS = Path(__file__).with_name("migrations")


def create_file(path: Path) -> None:
    """An empty database with all tables. Raises FileExistsError; never opens what is there already."""
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA application_id = {database.APPLICATION_ID}")
        connection.execute("PRAGMA journal_mode = WAL")
    migrate(path)


def migrate(path: Path) -> None:
    """Bring the tables to the form that this program knows."""
    _upgrade(database.open_engine(path), "BEGIN IMMEDIATE")


def migrate_server(url: str) -> None:
    """The same on a PostgreSQL server; of several hubs that start at once, one does it. Raises HubError."""
    _upgrade(postgres.open_engine(url), postgres.LOCK)


def _upgrade(engine: Engine, lock: str) -> None:
    try:
        if database.revision(engine) == database.NEWEST:
            return
        from alembic import command

        with engine.connect() as connection:
            connection.exec_driver_sql(lock)
            config = _config()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            connection.commit()
    except OperationalError as error:
        raise HubError(f"database: {postgres.first_line(error)}") from error
    finally:
        engine.dispose()


def _config() -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    return config
