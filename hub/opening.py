"""How commands reach the hub's database, beside the running hub."""

from __future__ import annotations

import os
import pwd
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

from edgeagent import crypto as providers
from hub.core.scribe import Scribe
from hub.database import Database, open_database
from hub.io import live, poke
from hub.operations import Doing
from hub.output import print_error
from hub.state import DEFAULT, State
from hub.store.sql import SqlTx

BROKER_TIMEOUT_S = 3.0

_state = State(DEFAULT)


def use_state(state: State) -> None:
    """What --state-dir named."""
    global _state
    _state = state


def current_state() -> State:
    return _state


@contextmanager
def open_store() -> Iterator[Database]:
    """Raises HubError when there is no hub."""
    with closing(open_database(_state)) as store:
        yield store


def actor() -> str:
    """Who gives a command, for the audit log."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        name = str(os.getuid())
    return f"cli:{name}"


@contextmanager
def doing() -> Iterator[Doing]:
    """As `change`, for what `hub.operations` does."""
    with change() as (tx, scribe, wall_s):
        yield Doing(tx, scribe, wall_s, actor())


@contextmanager
def change() -> Iterator[tuple[SqlTx, Scribe, int]]:
    """One write transaction (with a scribe and the wall time); afterwards the running hub is told."""
    with open_store() as store:
        with store.write() as tx:
            yield tx, Scribe(providers.load(), os.urandom, tx.network()), int(time.time())
        poke.send(_state.poke)
        live.announce(_state.live, tx.changes)


def wait_for_broker(user: str) -> None:
    """Let the running hub tell the broker about an account, so that what is printed next holds; say so if it cannot."""
    if not _state.is_running():
        print_error("the hub is not running: this has effect when it is started with `edgehub serve`")
        return
    deadline = time.monotonic() + BROKER_TIMEOUT_S
    with open_store() as store:
        while True:
            with store.read() as tx:
                if user not in tx.accounts_in_flight():
                    return
            if time.monotonic() >= deadline:
                print_error("the broker was not told yet: the hub does so when it reaches it. See `edgehub status`")
                return
            time.sleep(0.01)
