"""The relay's conversation with its hubs, in a thread of its own: packets of members never wait for a hub or a broker.

```
            ┌─────────────── thread ───────────────┐
 hubs ◀MQTT▶│ HubSession, one a network · Neighbours│──orders, wake-up descriptor──▶ main loop: RelayCore
            └───────────────▲──────────────────────┘
                            └── what the relay is, how many members (set whole, read whole)
```
"""

from __future__ import annotations

import logging
import os
import selectors
import threading
import time
from collections import deque
from contextlib import suppress
from typing import Any

from edgeagent.proto.crypto import Crypto
from edgeagent.proto.token import Token
from relay.hub_session import HubSession, Leave, Region, Revoke, Serve
from relay.hub_store import HubStore
from relay.neighbours import Neighbourhood, Neighbours

log = logging.getLogger("edgerelay")

FAREWELL_S = 1.0  # for brokers to take the last messages
LOOK_S = 5.0  # how often members are counted for hubs
ORDERS_MAX = 20_000  # that the main loop has not taken: beyond it the thread waits
ORDERS_PER_TURN = 64  # that the main loop takes at once: a removal is a signature to be checked
FAULT_PAUSE_S = 1.0  # after a bug, which may well be there in the next turn too

Order = Serve | Leave | Revoke | Neighbourhood


class RegistrarDied(Exception):
    """The thread has ended on its own. Removals would not be heard any more: better a relay that begins anew."""


class RegistrationState:
    """How it stands with one hub, for metrics and `status`."""

    __slots__ = ("drops", "network", "region", "relay", "state")

    def __init__(self, session: HubSession) -> None:
        self.network = session.network
        self.relay = session.name
        self.region = session.region
        self.state = session.state
        self.drops = {reason.value: count for reason, count in session.drops.items()}


class Registrar:
    """`open`, `tell`, `start`; whenever `fileno()` is readable do what `take` lists; `count`, and `tell` again; `stop`.

    What an earlier run learned is there to be taken after `open`, so that its networks are served before any hub is
    reached.
    `tokens` are by network id, `crypto` is nobody else's. `open` raises StateError.
    """

    def __init__(
        self,
        *,
        directory: str,
        networks: list[str],
        tokens: dict[str, Token],
        crypto: Crypto,
        host: str,
        relay_key: bytes,
        version: str,
    ) -> None:
        self._directory = directory
        self._networks = networks
        self._tokens = tokens
        self._crypto = crypto
        self._host = host
        self._relay_key = relay_key
        self._version = version
        self._selector = selectors.DefaultSelector()
        self._sessions: list[HubSession] = []
        self._neighbours = Neighbours(relay_key, self._selector)
        self._orders: deque[Order] = deque()
        self._ready = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)  # for the main loop
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)  # for the thread
        self._selector.register(self._wake, selectors.EVENT_READ, self._woken)
        self._stopping = False
        self._fields: dict[str, Any] | None = None
        self._members: dict[str, int] = {}
        self._look_at = 0.0
        self._thread = threading.Thread(target=self._run, name="registrar", daemon=True)

    # The main loop's side

    def open(self) -> None:
        now, wall_s = time.monotonic(), time.time()
        for network in self._networks:
            store = HubStore(os.path.join(self._directory, network), network, self._crypto)
            self._sessions.append(
                HubSession(
                    now,
                    wall_s,
                    network=network,
                    store=store,
                    crypto=self._crypto,
                    selector=self._selector,
                    token=self._tokens.get(network),
                    host=self._host,
                    relay_key=self._relay_key,
                    version=self._version,
                )
            )
        self._collect(now)

    def start(self) -> None:
        self._thread.start()

    def fileno(self) -> int:
        return self._ready

    def take(self) -> list[Order]:
        """The next of what hubs want, in order; `fileno()` stays readable while there is more."""
        with suppress(BlockingIOError):
            os.eventfd_read(self._ready)
        orders: list[Order] = []
        while self._orders and len(orders) < ORDERS_PER_TURN:
            orders.append(self._orders.popleft())
        if self._orders:
            os.eventfd_write(self._ready, 1)
        return orders

    def tell(self, fields: dict[str, Any]) -> None:
        """What the relay is (RELAY_FIELDS without the region), when it is known or has changed."""
        self._fields = fields
        self._look_at = 0.0
        os.eventfd_write(self._wake, 1)

    def count(self, members: dict[str, int]) -> None:
        """Members by network; looked at every few seconds."""
        self._members = members

    def states(self) -> list[RegistrationState]:
        return [RegistrationState(session) for session in self._sessions]

    def check(self) -> None:
        """After `start`: raises RegistrarDied."""
        if not self._stopping and not self._thread.is_alive():
            raise RegistrarDied("the thread that hears hubs has ended")

    def stop(self) -> None:
        """Say good-bye, and end the thread."""
        self._stopping = True
        os.eventfd_write(self._wake, 1)
        if self._thread.is_alive():
            self._thread.join(2 * FAREWELL_S)

    def close(self) -> None:
        """After `stop`, or instead of `start`."""
        if self._thread.is_alive():
            return  # it is in a name look-up, and ends with the process
        self._neighbours.close()
        for session in self._sessions:
            session.close()
        self._selector.close()
        os.close(self._ready)
        os.close(self._wake)

    # The thread's side

    def _run(self) -> None:
        while not self._stopping:
            # A bug, or a message that finds one, is not to end the thread: no removal would be heard any more
            try:
                self._turn(self._due())
            except Exception:
                log.exception("registrar: all goes on in a moment")
                time.sleep(FAULT_PAUSE_S)
        now = time.monotonic()
        for session in self._sessions:
            session.farewell(now)
        deadline = now + FAREWELL_S
        while any(session.unsent for session in self._sessions) and time.monotonic() < deadline:
            self._turn(deadline)

    def _turn(self, due: float) -> None:
        """Wait until `due` or until something is there, and see to it."""
        try:
            for key, _ in self._selector.select(max(0.0, due - time.monotonic())):
                key.data(time.monotonic(), key.fd)
        except Exception:
            log.exception("registrar: all connections begin anew")
            for session in self._sessions:
                session.reset(time.monotonic())
        now = time.monotonic()
        for session in self._sessions:
            try:
                session.step(now)
            except Exception:
                log.exception("network %s: the connection begins anew", session.network)
                session.reset(now)
        self._neighbours.on_timeout(now)
        if self._fields is not None and now >= self._look_at:
            self._look_at = now + LOOK_S
            for session in self._sessions:
                session.tell(now, self._fields, self._members.get(session.network, 0))
        self._collect(now)

    def _due(self) -> float:
        times = [session.poll_timeout() for session in self._sessions]
        times += [self._look_at, self._neighbours.poll_timeout()]
        return min(at for at in times if at is not None)

    def _collect(self, now: float) -> None:
        """Pass orders on; what maps say of the region is put together first."""
        before = len(self._orders)
        for session in self._sessions:
            while session.orders and len(self._orders) < ORDERS_MAX:
                order = session.orders.popleft()
                if isinstance(order, Region):
                    self._neighbours.set(now, order.network, order.others)
                else:
                    self._orders.append(order)
        found = self._neighbours.take()
        if found is not None:
            self._orders.append(found)
        if len(self._orders) != before:
            os.eventfd_write(self._ready, 1)

    def _woken(self, now: float, fd: int) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(fd)
