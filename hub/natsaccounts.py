"""Accounts at NATS nodes, in the place of those that other brokers keep: see hub.core.nats.

Who comes in needs nothing but what the hub has signed for it. Who is cut off is told to the nodes, all of them in one
message, and again until every one has taken it; what a hub before this one had not told, the first message does.
"""

from __future__ import annotations

import logging
import time

from edgeagent import crypto as providers
from edgeagent.proto.names import is_device_id
from hub.core.model import DeviceState, Outgoing
from hub.core.nats import HUB, REVOKED_MAX, Authority
from hub.database import Database
from hub.io.accounts import Done, Listed
from hub.io.mqtt import Received
from hub.io.natsclaims import Manager, Telling
from hub.store import nats
from hub.store.meta import Site, take_account_time

SPACING_S = 1.1  # accounts are dated in whole seconds
RETRY_S = 5.0
HELD_MAX = 1_000  # messages; those of QoS 0 count for nothing to what a node leaves unacknowledged
HOLD_S = 3.5  # a little longer than nodes wait for an acknowledgement (`ack_wait: 2s` in docs/scale.md)

log = logging.getLogger("edgehub.broker")


class NatsAccounts:
    """`send` each row that ends an account, `tick` every second: it returns the rows that have had their effect."""

    def __init__(self, store: Database, authority: Authority, site: Site, ca_pem: str) -> None:
        self._store = store
        self._authority = authority
        claims, seed = authority.manager()
        self._manager = Manager(
            hosts(site.nats), ca_pem, claims, seed, hosts(site.external), HUB, authority.hub_password()
        )
        self._telling: Telling | None = None
        self._waiting: dict[int, str] = {}  # rows that the next message is about: their users
        self._told: dict[int, str] = {}  # rows that the message under way is about
        self._wanted = True
        self._known = -1  # nodes that the last message has reached
        self._next_at = 0.0
        self._hold_until: float | None = None
        self._held: list[Received] = []

    def hold(self, now: float) -> None:
        """A session goes on that was another connection's."""
        self._hold_until = now + HOLD_S

    def in_order(self, now: float, messages: list[Received]) -> list[Received]:
        """What that connection did not acknowledge NATS delivers again, but behind what is new; and what is older
        than the newest of its device is dropped. So for a moment all wait, and those go first."""
        if self._hold_until is None:
            return messages
        self._held += messages
        if now < self._hold_until and len(self._held) < HELD_MAX:
            return []
        held, self._held, self._hold_until = self._held, [], None
        return sorted(held, key=lambda message: not message.again)

    def make_roles(self) -> list[bytes]:
        return []

    def list_users(self) -> list[bytes]:
        return []

    def send(self, row: Outgoing) -> list[bytes]:
        self._waiting[row.id] = row.target
        self._wanted = True
        return []

    def handle_response(self, payload: bytes) -> tuple[list[Done | Listed], list[bytes]]:
        return [], []

    def reset(self) -> None:
        """The connection is gone: rows and messages will come again."""
        self._held, self._hold_until = [], None
        self._waiting.clear()
        self._told.clear()

    @property
    def is_quiet(self) -> bool:
        """Nothing is being told at the moment."""
        return self._telling is None or self._telling.is_over()

    def tick(self, now: float) -> list[int]:
        done: list[int] = []
        if self._telling is not None and self.is_quiet:
            telling, self._telling = self._telling, None
            if telling.error:
                log.warning("nats: nodes were not told who is cut off (%s), next try in %.0f s", telling.error, RETRY_S)
                self._waiting |= self._told
                self._wanted, self._next_at = True, now + RETRY_S
            else:
                done = sorted(self._told)
                if telling.told < len(self._manager.nodes):
                    # One that is back asks the others only by chance: in NATS 2.9 it may be answered by itself.
                    self._wanted, self._next_at = True, now + RETRY_S
                if telling.told != self._known or done:
                    self._known = telling.told
                    log.info("nats: %d of %d nodes know who is cut off", telling.told, len(self._manager.nodes))
            self._told = {}
        if self._telling is None and self._wanted and now >= self._next_at:
            self._begin(now)
        return done

    def _begin(self, now: float) -> None:
        self._wanted, self._next_at = False, now + SPACING_S
        self._told, self._waiting = self._waiting, {}
        with self._store.write() as tx:
            told_s = take_account_time(tx.connection, int(time.time()))
            cut_off = nats.cut_off(tx.connection, REVOKED_MAX + 1)
            gone = [tx.device(user) for user in self._told.values() if is_device_id(user)]
        if len(cut_off) > REVOKED_MAX:
            log.error("nats: more than %d are cut off; nodes let the first of them in again", REVOKED_MAX)
        account = self._authority.account_claims(told_s, cut_off[:REVOKED_MAX])
        sessions = frozenset(
            self._authority.session_id(device) for device in gone if device and device.state is DeviceState.REMOVED
        )
        self._telling = Telling(providers.load(), self._manager, account, sessions)


def hosts(text: str) -> tuple[tuple[str, int], ...]:
    """`host:port`, several with commas between."""
    found = (each.rpartition(":") for each in text.split(",") if each)
    return tuple((host.strip("[]"), int(port)) for host, _, port in found)
