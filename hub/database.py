"""Where a hub's database is: a file in its state directory, or a server whose URL a file there holds."""

from __future__ import annotations

from pathlib import Path

from hub.core.model import HubError
from hub.state import State
from hub.store.postgres import PostgresStore
from hub.store.sqlite import SqliteStore

Database = SqliteStore | PostgresStore
URL_BYTES_MAX = 4_096


def open_database(state: State) -> Database:
    """Raises HubError when there is no hub, or its database cannot be had."""
    url = state.database_url()
    return PostgresStore(url) if url else SqliteStore(state.database)


def demand_one(state: State) -> None:
    """Raises HubError when no hub is here."""
    if not state.database_url() and not state.database.is_file():
        raise HubError(f"{state.database}: there is no hub here. `edgehub init` makes one")


def demand_none(state: State) -> None:
    """Raises HubError when a hub is here."""
    for place in (state.database, state.server):
        if place.exists():
            raise HubError(f"{place}: there is a hub here already. Choose another --state-dir, or keep this one")


def read_url(file: Path) -> str:
    """A database's URL is read from a file: with a password in it, it has no place in an argument list."""
    try:
        with file.open(encoding="utf-8") as source:
            url = source.read(URL_BYTES_MAX + 1).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise HubError(f"{file}: cannot be read ({getattr(error, 'strerror', None) or 'not text'})") from error
    if not url or len(url) > URL_BYTES_MAX or "\n" in url:
        raise HubError(f"{file}: one line expected, postgresql://USER:PASSWORD@HOST/NAME")
    return url
