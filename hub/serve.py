"""The running hub: one thread, one poll loop between the database, the broker's connection and the broker's process.

What must be said is in the database first, and leaves it when the broker has confirmed it; what comes in is confirmed
to the broker when its effects are in the database. So the hub may be killed between any two instructions.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import resource
import select
import signal
import socket
import time
from collections.abc import Iterable, Iterator
from typing import Any

from sqlalchemy.exc import DBAPIError

from edgeagent import crypto as providers
from hub.core import chores, retention
from hub.core.coordinator import Coordinator
from hub.database import Database, demand_one, open_database
from hub.fetching import Fetching
from hub.intake import BATCH_MAX, hear, work
from hub.io import live
from hub.io.listening import inherited
from hub.io.mqtt import IN_FLIGHT_MAX
from hub.io.poke import Receiver
from hub.io.webchild import WebChild
from hub.moving import bring_up_to_date
from hub.renewal import Renewal
from hub.session import Session
from hub.standby import Standby, lost
from hub.state import State
from hub.store.meta import load_site
from hub.store.postgres import LeadLost, PostgresStore

TICK_S = 1.0
DATES_S = 30.0
REMIND_S = 86_400.0  # of an audit log that is not pruned any more
STATUS_S = 2.0  # at most so often, and only what has changed

log = logging.getLogger("edgehub")


def serve(state: State, *, web: bool = True) -> None:
    """Run until SIGTERM or SIGINT; `web`: with the dashboard and API beside it. Raises HubError."""
    demand_one(state)
    listening = inherited()
    with state.running(), _signals() as signals:
        bring_up_to_date(state)
        child = WebChild(state.directory, listening) if web else None
        try:
            if state.database_url():
                _serve_in_turn(state, signals, child)
            else:
                _serve_one(state, open_database(state), signals, child)
        finally:
            if child is not None:
                child.stop()


def _serve_in_turn(state: State, signals: socket.socket, web: WebChild | None) -> None:
    """Whenever it is this hub's turn among those on one server's database."""
    standby = Standby(state, signals, web)
    while (store := standby.wait()) is not None:
        try:
            _serve_one(state, store, signals, web)
        except (LeadLost, DBAPIError) as error:
            if not (why := lost(error)):
                raise
            log.warning("hub: it does not lead any more (%s)", why)
        else:
            return


def _serve_one(state: State, store: Database, signals: socket.socket, web: WebChild | None) -> None:
    with contextlib.closing(store):
        server = Server(state, store, signals, web)
        try:
            server.run()
        except BaseException:
            server.detach()
            raise
        server.close()


class Server:
    """All that runs. `signals` is readable when the hub shall stop."""

    def __init__(self, state: State, store: Database, signals: socket.socket, web: WebChild | None = None) -> None:
        self._state = state
        self._store = store
        self._signals = signals
        self._web = web
        with store.read() as tx:
            network = tx.network()
            site = load_site(tx.connection)
        self._coordinator = Coordinator(providers.load(), os.urandom, network)
        self._scribe = self._coordinator.scribe
        self._fetching = Fetching(self._scribe.crypto, self._scribe.entropy, network, state.updates)
        self._session = Session(state, store, self._scribe, site, changed=self._note_change)
        self._poke = Receiver(state.poke)
        self._renewal = Renewal(state)
        self._look = True  # there may be rows or jobs that were not looked at
        self._changes = -1
        self._tick_at = self._dates_at = self._status_at = self._remind_at = 0.0
        self._started_s = int(time.time())
        self._status: dict[str, Any] = {}
        self._stopping = False

    def run(self) -> None:
        network = self._scribe.network
        log.info("hub: network %s (%s), process %d", network.id, network.domain, os.getpid())
        _raise_file_limit()
        self._session.start(time.monotonic())
        if self._web is not None:
            self._web.start(time.monotonic())
        gc.collect()
        gc.freeze()  # what is here stays; to look through all of it for garbage would hold answers up for 80 ms
        while not self._stopping:
            self._session.connect_if_due(time.monotonic())
            self._poll()
            now = time.monotonic()
            if now >= self._tick_at:
                self._tick(now)
            if not self._receive(now):
                self._work(now)
            self._session.send(now)

    def close(self) -> None:
        """A clean end, the broker's too."""
        self._renewal.close()
        if self._web is not None:
            self._web.stop()
        self._session.close()
        if self._session.child is not None:
            self._session.child.stop()
        self._poke.close()
        self._write_status(running=False)
        log.info("hub: stopped")

    def detach(self) -> None:
        """An end by an error: the broker goes on, and the next hub adopts it."""
        self._renewal.close()
        self._session.detach()
        self._poke.close()

    def _poll(self) -> None:
        poll = select.poll()
        poll.register(self._signals, select.POLLIN)
        poll.register(self._poke, select.POLLIN)
        session, child = self._session, self._session.child
        if child is not None and child.fileno() >= 0:
            poll.register(child.fileno(), select.POLLIN)
        if self._web is not None and self._web.fileno() >= 0:
            poll.register(self._web.fileno(), select.POLLIN)
        if session.fileno() >= 0:
            poll.register(session.fileno(), select.POLLIN | (select.POLLOUT if session.wants_write() else 0))
        for descriptor, events in poll.poll(self._wait_ms(time.monotonic())):
            if descriptor == self._signals.fileno():
                self._stopping = True
            elif descriptor == self._poke.fileno():
                self._poke.take()
                self._look = True
            elif child is not None and descriptor == child.fileno():
                child.handle_end(time.monotonic())
            elif self._web is not None and descriptor == self._web.fileno():
                self._web.handle_end(time.monotonic())
            elif descriptor == session.fileno():
                if events & select.POLLOUT:
                    session.write()
                if events & ~select.POLLOUT:
                    session.read()

    def _wait_ms(self, now: float) -> int:
        if self._look:
            return 0
        session, child = self._session, self._session.child
        dues = (self._tick_at, session.next_at(), session.done_at(), child.next_at if child is not None else None)
        return max(0, int((min(due for due in dues if due is not None) - now) * 1000) + 1)

    def _tick(self, now: float) -> None:
        self._tick_at = now + TICK_S
        self._session.tick(now)
        if self._session.child is not None:
            self._session.child.tick(now)
        if self._web is not None:
            self._web.tick(now)
        if (changes := self._store.changes()) != self._changes:
            self._changes = changes
            self._look = True
        if now >= self._dates_at:
            with self._store.write() as tx:
                more = chores.look_at_dates(self._scribe, tx, int(time.time()))
            live.announce(self._state.live, tx.changes)
            self._dates_at = now + (TICK_S if more else DATES_S)
            self._look = True
        if now >= self._remind_at:
            self._remind_at = now + REMIND_S
            self._say_what_holds_up()
        self._renewal.tick(now)
        if now >= self._status_at:
            self._status_at = now + STATUS_S
            self._write_status(running=True)

    def _say_what_holds_up(self) -> None:
        with self._store.read() as tx:
            broken = retention.held_up_by(tx, int(time.time()))
        if broken is not None:
            log.warning(
                "hub: the audit log is not pruned any more, and grows: it is broken at row %d: %s. "
                "See `edgehub audit verify`; `edgehub audit accept` when it is known why",
                broken.row.id,
                broken.words(),
            )

    def _receive(self, now: float) -> bool:
        """What came is answered, sent after the commit that all of it has, and acknowledged. Whether there was any."""
        messages = self._session.take_messages(now)
        wrote = False
        while messages or self._is_drop_due(now):
            batch, messages = messages[:BATCH_MAX], messages[BATCH_MAX:]
            wall_s = int(time.time())
            with self._store.write() as tx:
                hear(self._coordinator, tx, now, wall_s, batch)
                tx.drop_outgoing(self._session.take_done())
                self._look = work(self._scribe, tx, wall_s, time.monotonic)
            self._wrote(now, tx.changes)
            self._session.acknowledge(batch)
            fetches, self._coordinator.fetches = self._coordinator.fetches, []
            for device, body in fetches:
                self._session.publish_once(*self._fetching.answer(now, int(time.time()), device, body))
            wrote = True
        return wrote

    def _is_drop_due(self, now: float) -> bool:
        due = self._session.done_at()
        return due is not None and due <= now

    def _work(self, now: float) -> None:
        """What was left to be done, by messages or by commands."""
        if not self._look:
            return
        self._look = False
        self._session.look()
        with self._store.read() as tx:
            waiting = tx.outgoing_depth() < IN_FLIGHT_MAX and bool(tx.jobs(1))
        if waiting:
            with self._store.write() as tx:
                self._look = work(self._scribe, tx, int(time.time()), time.monotonic)
            self._wrote(now, tx.changes)

    def _wrote(self, now: float, changes: Iterable[str]) -> None:
        """After a commit: answers first."""
        self._session.look()
        self._session.send(now)
        live.announce(self._state.live, changes)

    def _note_change(self) -> None:
        self._status_at = 0.0
        self._tick_at = 0.0

    def _write_status(self, *, running: bool) -> None:
        drops = {reason.value: count for reason, count in self._coordinator.drops.items()}
        endpoint, child = self._session.endpoint, self._session.child
        status: dict[str, Any] = {
            "running": running,
            "pid": os.getpid(),
            "since": self._started_s,
            "connected": self._session.connected,
            "broker": f"{endpoint.host}:{endpoint.port}",
            "broker_pid": child.pid if child is not None else None,
            "broker_restarts": child.restarts if child is not None else None,
            "web_pid": (self._web.pid or None) if self._web is not None else None,
            "web_restarts": self._web.restarts if self._web is not None else None,
            "drops": dict(sorted(drops.items())),
        }
        if isinstance(self._store, PostgresStore):
            status["role"] = "leader"
        if status != self._status:
            self._status = status
            self._state.write_status(status)


@contextlib.contextmanager
def _signals() -> Iterator[socket.socket]:
    """A socket that is readable when SIGTERM or SIGINT came."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        previous = signal.set_wakeup_fd(theirs.fileno())
        handlers = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield ours
        finally:
            signal.set_wakeup_fd(previous)
            for number, handler in handlers.items():
                signal.signal(number, handler)


def _raise_file_limit() -> None:
    """A connection is a file to the broker, which inherits the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
