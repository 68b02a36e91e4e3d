"""A hub's database made, brought to another engine, and begun again."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import BinaryIO

from sqlalchemy import delete

from hub.core import actions, audit
from hub.core.model import HubError, Op
from hub.database import demand_none, open_database
from hub.opening import actor
from hub.state import State
from hub.store import transfer
from hub.store.meta import load_network, save_network
from hub.store.migrate import create_file, migrate, migrate_server
from hub.store.postgres import PostgresStore
from hub.store.schema import outgoing, session
from hub.store.sql import SqlTx
from hub.store.sqlite import SqliteStore


def bring_up_to_date(state: State) -> None:
    """The tables of the hub that is here. Raises HubError."""
    url = state.database_url()
    if url:
        migrate_server(url)
    else:
        migrate(state.database)


@contextlib.contextmanager
def new_database(state: State, url: str = "") -> Iterator[SqlTx]:
    """A transaction in an empty database with all tables; it becomes the hub's when the block ends. `url`: on a server.

    Raises HubError when a hub is here, or a network there.
    """
    demand_none(state)
    state.make()
    if url:
        migrate_server(url)
        with contextlib.closing(PostgresStore(url)) as server, server.write() as tx:
            if not transfer.is_empty(tx.connection):
                raise HubError(
                    "database: there is a network in it already. `edgehub attach` runs one more hub on it; "
                    "for a new network give it a database of its own"
                )
            yield tx
        state.save_server(url)
        return
    with state.new_file(state.database) as new:
        create_file(new)
        with contextlib.closing(SqliteStore(new)) as store, store.write() as tx:
            yield tx
        os.link(new, state.database)  # fails when somebody else was faster


def attach(state: State, url: str) -> str:
    """From now on this state directory is of the network in that database; its id. Raises HubError."""
    demand_none(state)
    migrate_server(url)
    with contextlib.closing(PostgresStore(url)) as server, server.read() as tx:
        if transfer.is_empty(tx.connection):
            raise HubError("database: there is no network in it. `edgehub init --database-file` makes one")
        network = tx.network().id
    state.make()
    state.save_server(url)
    return network


def export(state: State, out: BinaryIO) -> int:
    """All rows as of one moment, while the hub runs; how many. Raises HubError."""
    with contextlib.closing(open_database(state)) as store, store.read() as tx:
        return transfer.export(tx.connection, out, int(time.time()))


def take_over(state: State, source: BinaryIO, url: str = "") -> tuple[int, int]:
    """A new hub here of what another has exported, which must not run again: (rows, its epoch). Raises HubError."""
    with new_database(state, url) as tx:
        rows = transfer.load(tx.connection, source)
        return rows, begin_again(tx, 0, "import")


def begin_again(tx: SqlTx, epoch_before: int, how: str) -> int:
    """Of a hub that is somewhere else, or somewhen else, than it was: devices take its word over all before it.

    `how` is the audit row's verb. Returns the new epoch. Wall time counts, too: the same state brought back twice must
    not give the same epoch twice.
    """
    network = load_network(tx.connection)
    epoch = max(network.epoch + 1, epoch_before + 1, int(time.time()))
    save_network(tx.connection, replace(network, epoch=epoch))
    tx.connection.execute(delete(outgoing).where(outgoing.c.op == Op.PUBLISH.value))
    actions.start_again(tx, int(time.time()))
    tx.connection.execute(delete(session))  # some may have been ended since
    audit.record(tx, int(time.time()), actor(), how, "", {"epoch": epoch})
    return epoch
