"""How commands reach the hub's database, beside the running hub."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

from edgeagent import crypto as providers
from hub.core.scribe import Scribe
from hub.io import poke
from hub.state import DEFAULT, State
from hub.store.sqlite import SqliteStore, SqliteTx

_state = State(DEFAULT)


def use_state(state: State) -> None:
    """What --state-dir named."""
    global _state
    _state = state


def current_state() -> State:
    return _state


@contextmanager
def open_store() -> Iterator[SqliteStore]:
    """Raises HubError when there is no hub."""
    with closing(SqliteStore(_state.database)) as store:
        yield store


@contextmanager
def change() -> Iterator[tuple[SqliteTx, Scribe, int]]:
    """One write transaction (with a scribe and the wall time); afterwards the running hub is told."""
    with open_store() as store:
        with store.write() as tx:
            yield tx, Scribe(providers.load(), os.urandom, tx.network()), int(time.time())
        poke.send(_state.poke)
