"""A hub that waits beside another one on the same PostgreSQL database, and takes over when that one is gone.

All hubs of a network are one client of the broker: the leader alone is connected, under their common client id. What
devices say while nobody leads waits in the broker's session, and a leader that does not know yet that it is none has
lost both at once: its session at the database, and with the next leader's CONNECT its connection to the broker.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import time
from contextlib import closing
from typing import Any

from sqlalchemy.exc import DBAPIError

from hub.core.model import HubError
from hub.io.webchild import WebChild
from hub.state import State
from hub.store.lead import Member
from hub.store.meta import load_site
from hub.store.postgres import LeadLost, NoConnection, PostgresStore

LOOK_S = 1.0
SILENT_S = 15.0  # a leader says something each second, but may wait for a broker that does not answer
ALONE_S = 5.0  # so long one with a broker of its own waits for its predecessor's session to end

log = logging.getLogger("edgehub")


class Standby:
    """`wait` until this hub leads. The dashboard runs meanwhile; `signals` is readable when the hub shall stop."""

    def __init__(self, state: State, signals: socket.socket, web: WebChild | None) -> None:
        self._state = state
        self._url = state.database_url()
        self._signals = signals
        self._web = web
        self._name = f"{socket.gethostname()[:32]} {os.getpid()}"
        self._started_s = int(time.time())
        self._store: PostgresStore | None = None
        self._was_connected = False
        self._said = ""
        self._status: dict[str, Any] = {}

    def wait(self) -> PostgresStore | None:
        """The database, led by this hub; None when it shall stop. Raises HubError when it can never lead."""
        if self._web is not None:
            self._web.start(time.monotonic())
        give_up_at = time.monotonic() + ALONE_S
        while True:
            if (store := self._try()) is not None:
                log.info("hub: %s leads", self._name)
                self._said, self._status = "", {}
                return store
            if time.monotonic() >= give_up_at:
                self._demand_shared_broker()
                give_up_at = float("inf")
            if self._poll():
                self._close()
                return None

    def _try(self) -> PostgresStore | None:
        try:
            if self._store is None:
                self._store = PostgresStore(self._url)
            self._was_connected = True
            if self._store.take_lead(self._name):
                store, self._store = self._store, None
                return store
            if silent := self._store.end_silent_leader(SILENT_S):
                log.warning("hub: %s led, and was not heard of for %.0f s: its session is ended", silent, SILENT_S)
            self._say(self._store.members())
        except NoConnection as error:
            if not self._was_connected:
                raise
            self._fail(str(error))
        except DBAPIError as error:
            self._fail(str(error.orig).strip().partition("\n")[0])
        return None

    def _fail(self, why: str) -> None:
        self._close()
        self._log(f"hub: no connection to the database ({why})", logging.WARNING)
        self._write_status("")

    def _say(self, members: list[Member]) -> None:
        leader = next((member.name for member in members if member.leads), "")
        self._log(f"hub: {leader or 'another'} leads, {self._name} waits", logging.INFO)
        self._write_status(leader)

    def _log(self, words: str, level: int) -> None:
        if words != self._said:
            self._said = words
            log.log(level, "%s", words)

    def _demand_shared_broker(self) -> None:
        """Several hubs need a broker that all of them reach."""
        if self._store is None:
            return
        with self._store.read() as tx:
            site = load_site(tx.connection)
        if site.external:
            return
        leader = next((member.name for member in self._store.members() if member.leads), "another hub")
        self._close()
        raise HubError(
            f"{leader} serves this network, with a broker of its own, and a second hub would need the same one. "
            "Stop that one first; several at a time need `edgehub init --external-broker`"
        )

    def _poll(self) -> bool:
        """Wait a moment; whether the hub shall stop."""
        poll = select.poll()
        poll.register(self._signals, select.POLLIN)
        if self._web is not None and self._web.fileno() >= 0:
            poll.register(self._web.fileno(), select.POLLIN)
        ready = {descriptor for descriptor, _ in poll.poll(LOOK_S * 1000)}
        if self._web is not None:
            if self._web.fileno() in ready:
                self._web.handle_end(time.monotonic())
            self._web.tick(time.monotonic())
        return self._signals.fileno() in ready

    def _write_status(self, leader: str) -> None:
        status = {
            "running": True,
            "pid": os.getpid(),
            "since": self._started_s,
            "role": "standby",
            "leader": leader,
            "connected": False,
            "web_pid": (self._web.pid or None) if self._web is not None else None,
            "web_restarts": self._web.restarts if self._web is not None else None,
        }
        if status != self._status:
            self._status = status
            self._state.write_status(status)

    def _close(self) -> None:
        if self._store is not None:
            with closing(self._store):
                self._store = None


def lost(error: Exception) -> str:
    """Why a leader leads no more; "" when this is another error."""
    if isinstance(error, LeadLost):
        return str(error)
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return str(error.orig).strip().partition("\n")[0]
    return ""
