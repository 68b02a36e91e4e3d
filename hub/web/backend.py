"""What pages and API stand on: the database beside the running hub, and what must happen after a change."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from hashlib import blake2s

from edgeagent import crypto as providers
from hub.core import audit
from hub.core.ratelimit import TokenBuckets
from hub.core.roles import Principal
from hub.core.scribe import Scribe
from hub.database import Database, open_database
from hub.io import live, poke
from hub.operations import Doing
from hub.state import State
from hub.store import websettings
from hub.store.sql import SqlTx

CONNECTIONS_MAX = 8  # to the database; as many requests are worked on at a time
REFUSALS_BURST = 60  # audit rows about those who have not signed in: a flood must not fill the disk
REFUSALS_PER_S = 0.5


class Backend:
    """`app.state.backend`. Thread-safe; each `read` or `write` has a connection of its own."""

    def __init__(
        self, state: State, settings: websettings.WebSettings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.state = state
        self.settings = settings
        self.clock = clock
        self._crypto = providers.load()
        self._idle: queue.LifoQueue[Database | None] = queue.LifoQueue()
        for _ in range(CONNECTIONS_MAX):
            self._idle.put(None)
        self._refusals = TokenBuckets(REFUSALS_PER_S, REFUSALS_BURST, keys_max=1)
        self._unsaid = 0
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def read(self) -> Iterator[SqlTx]:
        with self._store() as store, store.read() as tx:
            yield tx

    @contextlib.contextmanager
    def write(self) -> Iterator[tuple[SqlTx, Scribe, int]]:
        """One write transaction (with a scribe and the wall time); then the running hub and all viewers are told."""
        with self._store() as store:
            with store.write() as tx:
                yield tx, Scribe(self._crypto, os.urandom, tx.network()), int(time.time())
            poke.send(self.state.poke)
            live.announce(self.state.live, tx.changes)

    @contextlib.contextmanager
    def doing(self, who: Principal) -> Iterator[Doing]:
        """A write transaction for what `hub.operations` does."""
        with self.write() as (tx, scribe, wall_s):
            yield Doing(tx, scribe, wall_s, who.actor)

    def note_refusal(self, actor: str, why: str, what: str, address: str, verb: str = "refused") -> None:
        """Audit a request or a password that was refused; of a flood only some, with the number of those before."""
        with self._lock:
            if not self._refusals.allow(self.clock(), ""):
                self._unsaid += 1
                return
            unsaid, self._unsaid = self._unsaid, 0
        detail: dict[str, str | int] = {"why": why, "address": address}
        if unsaid:
            detail["before"] = unsaid
        with self.write() as (tx, _, wall_s):
            audit.record(tx, wall_s, actor, verb, what, detail)

    def secret(self, purpose: str) -> bytes:
        """32 bytes that only this hub knows, the same in all its processes."""
        with self.read() as tx:
            return blake2s(purpose.encode(), key=tx.network().seed, person=b"hub web").digest()

    def close(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                store = self._idle.get_nowait()
                if store is not None:
                    store.close()

    @contextlib.contextmanager
    def _store(self) -> Iterator[Database]:
        store = self._idle.get()
        try:
            if store is None:
                store = open_database(self.state)
            yield store
        except BaseException:
            if store is not None:
                store.close()  # whatever state it is in, the next one begins afresh
                store = None
            raise
        finally:
            self._idle.put(store)
