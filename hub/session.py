"""The hub's conversation with its broker, across connections: outgoing rows go out, confirmations and messages come in.

Rows are sent in their order, each again after a lost connection, until the broker has confirmed them: a message by its
PUBACK, an account by the plugin's answer.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterator

from edgeagent.proto import topics
from hub.core.credential import make_credential
from hub.core.model import Op, Outgoing
from hub.core.nats import HUB
from hub.core.scribe import Scribe
from hub.database import Database
from hub.io import accounts as broker_accounts
from hub.io.accounts import Accounts, Dynsec, Listed, PasswordFile
from hub.io.mosquitto import Files, MosquittoChild
from hub.io.mqtt import IN_FLIGHT_MAX, Confirmed, Connected, Disconnected, Endpoint, MqttLink, Received
from hub.io.pki import der_to_pem
from hub.natsaccounts import NatsAccounts, hosts
from hub.state import State
from hub.store.meta import Site, load_has_plugin, save_has_plugin

RECONNECT_FIRST_S, RECONNECT_LAST_S = 0.05, 15.0
ANSWER_TIMEOUT_S = 30.0  # for the broker to answer about an account
PROBE_TIMEOUT_S = 10.0  # for the broker to list its accounts, and so to show that it has the plugin
GOODBYE_S = 2.0
DONE_MAX, DONE_S = 32, 0.1  # confirmed rows go with the next transaction; for so many, or after so long, one is made

log = logging.getLogger("edgehub")


class Session:
    """Call `connect_if_due`, poll `fileno()`, call `read` and `write` when it is ready and `tick` each second, then
    `take_messages`, `send`, and drop the rows that `take_done` names, at `done_at` at the latest. Call `look` when rows
    may have been written. `changed` is called when the connection changes.
    """

    def __init__(
        self, state: State, store: Database, scribe: Scribe, site: Site, *, changed: Callable[[], None]
    ) -> None:
        self._state = state
        self._store = store
        self._scribe = scribe
        self._site = site
        self._changed = changed
        self._network = scribe.network
        self._files = PasswordFile(state.external, self._network.id, site.user)
        self._accounts: Accounts = Dynsec(self._network.id)
        self._nats: NatsAccounts | None = None
        if scribe.nats is not None:
            self._accounts = self._nats = NatsAccounts(store, scribe.nats, site, der_to_pem(self._network.ca_der))
        self.child = None if site.external else self._make_child()
        with store.read() as tx:
            self._has_plugin = not site.external or load_has_plugin(tx.connection)
        self._endpoints = _endpoints(site, scribe)
        self.connected = False
        self._link: MqttLink | None = None
        self._backoff_s = RECONNECT_FIRST_S
        self._connect_at = 0.0
        self._presence = self._goodbye = b""
        self._compare_next = (
            self._nats is None
        )  # the broker may know other accounts than the database: compare before sending
        self._comparing_until: float | None = None
        self._sent = 0  # the last row that went out on this connection
        self._mids: dict[int, int] = {}  # message id: row
        self._asked: dict[int, float] = {}  # row about an account: when the answer must have come
        self._done: list[int] = []
        self._done_at = 0.0
        self._look = True  # there may be rows that were not sent

    @property
    def endpoint(self) -> Endpoint:
        """The broker's, or of several the one whose turn it is."""
        return self._endpoints[0]

    def start(self, now: float) -> None:
        """Start or adopt the broker. Raises HubError."""
        if self.child is not None:
            self._compare_next = self.child.start(now)
        elif self._nats is None:
            self._files.write(())

    def close(self) -> None:
        """A clean end: say so to the devices."""
        link = self._link
        if link is None:
            return
        if self.connected:
            link.publish(topics.hub_state(self._network.id), self._goodbye, retain=True)
            deadline = time.monotonic() + GOODBYE_S
            while link.fileno() >= 0 and link.wants_write() and time.monotonic() < deadline:
                link.write()
        link.close()
        self._link = None
        self.connected = False

    def detach(self) -> None:
        """An end by an error: what the broker holds for this hub waits for the next one."""
        if self._link is not None:
            self._link.drop()
            self._link = None
        self.connected = False
        if self.child is not None:
            self.child.detach()

    # what the poll loop needs

    def fileno(self) -> int:
        return -1 if self._link is None else self._link.fileno()

    def wants_write(self) -> bool:
        return self._link is not None and self._link.wants_write()

    def read(self) -> None:
        if self._link is not None:
            self._link.read()

    def write(self) -> None:
        if self._link is not None:
            self._link.write()

    def next_at(self) -> float | None:
        """When `connect_if_due` wants to be called."""
        waits = self._link is None and (self.child is None or self.child.pid)
        return self._connect_at if waits else None

    def connect_if_due(self, now: float) -> None:
        due = self.next_at()
        if due is None or now < due:
            return
        with self._store.write() as tx:
            self._presence, self._goodbye = self._scribe.hub_states(tx, int(time.time()))
        link = MqttLink(self.endpoint)
        try:
            link.open(topics.hub_state(self._network.id), self._goodbye)
        except OSError as error:
            self._connect_later(now, str(error))
        else:
            self._link = link

    def tick(self, now: float) -> None:
        if self._link is not None:
            self._link.tick()
        if self._nats is not None:
            for row in self._nats.tick(now):
                if self._asked.pop(row, None) is not None:
                    self._note_done(now, row)
        if self._asked and min(self._asked.values()) < now:
            self._give_up(now, "it does not answer about an account")
        if self._comparing_until is not None and self._comparing_until < now:
            if self._has_plugin:
                self._give_up(now, "it does not list its accounts")
            else:
                self._go_without_plugin()

    # in

    def take_messages(self, now: float) -> list[Received]:
        """What devices wrote; each is to be acknowledged when its effects are stored."""
        messages: list[Received] = []
        for event in self._link.drain_events() if self._link is not None else ():
            if isinstance(event, Connected):
                self._handle_connected(now)
                if self._nats is not None and event.session_present:
                    self._nats.hold(now)
            elif isinstance(event, Disconnected):
                self._handle_disconnected(now, event.why)
            elif isinstance(event, Confirmed):
                if (row := self._mids.pop(event.mid, None)) is not None:
                    self._note_done(now, row)
            elif event.topic == broker_accounts.RESPONSE_TOPIC:
                self.acknowledge([event])
                self._handle_answer(now, event.payload)
            else:
                messages.append(event)
        return messages if self._nats is None else self._nats.in_order(now, messages)

    def acknowledge(self, messages: list[Received]) -> None:
        if self._link is not None and self.connected:
            for message in messages:
                self._link.acknowledge(message)

    def done_at(self) -> float | None:
        """When rows that the broker has confirmed are to be dropped, if nothing else is written before."""
        if not self._done:
            return None
        return 0.0 if len(self._done) >= DONE_MAX else self._done_at

    def take_done(self) -> list[int]:
        """Rows that the broker has confirmed."""
        done, self._done = self._done, []
        return done

    # out

    def look(self) -> None:
        """Something was written: there may be rows to be sent."""
        self._look = True

    def send(self, now: float) -> None:
        """As many rows as the broker may leave unconfirmed. What is read here is committed."""
        room = IN_FLIGHT_MAX - len(self._mids) - len(self._asked)
        if self._link is None or not self.connected or self._comparing_until is not None:
            return
        if not self._look or room <= 0:
            return
        with self._store.read() as tx:
            rows = tx.outgoing(after=self._sent, limit=room)
        self._look = len(rows) == room
        about_accounts: list[Outgoing] = []
        for row in rows:
            self._sent = row.id
            if row.op is Op.PUBLISH:
                self._mids[self._link.publish(row.target, row.payload, retain=row.retain)] = row.id
            elif self._nats is not None and row.op is not Op.REVOKE:
                self._note_done(now, row.id)  # what the hub has signed lets it in, and nobody else is to be told
            elif self._accounts is self._files:
                about_accounts.append(row)
            else:
                self._asked[row.id] = now + ANSWER_TIMEOUT_S if self._nats is None else math.inf
                self._control(self._accounts.send(row))
        if about_accounts:
            self._files.write(self._known_accounts())
            for row in about_accounts:
                self._note_done(now, row.id)

    def publish_once(self, topic: str, payload: bytes) -> None:
        """Past the outbox: lost where there is no connection."""
        if self._link is not None and self.connected:
            self._link.publish_once(topic, payload)

    def _control(self, commands: list[bytes]) -> None:
        if self._link is not None:
            for command in commands:
                self._link.publish(broker_accounts.CONTROL_TOPIC, command)

    def _note_done(self, now: float, row: int) -> None:
        if not self._done:
            self._done_at = now + DONE_S
        self._done.append(row)

    # the connection

    def _handle_connected(self, now: float) -> None:
        assert self._link is not None
        log.info("broker: connected to %s port %d", self.endpoint.host, self.endpoint.port)
        self.connected = True
        self._backoff_s = RECONNECT_FIRST_S
        answers = () if self._nats is not None else (broker_accounts.RESPONSE_TOPIC,)
        self._link.subscribe(topics.hub_filter(self._network.id), *answers)
        self._link.publish(topics.hub_state(self._network.id), self._presence, retain=True)
        if self.child is None:
            self._control(self._accounts.make_roles())
        if self._compare_next:
            self._comparing_until = now + PROBE_TIMEOUT_S
            self._control(self._accounts.list_users())
        self._changed()

    def _handle_disconnected(self, now: float, why: str) -> None:
        was_connected, self.connected = self.connected, False
        self._link = None
        self._comparing_until = None
        self._sent = 0
        self._look = True
        self._mids.clear()
        self._asked.clear()
        self._accounts.reset()
        if was_connected:
            log.warning("broker: connection lost (%s)", why)
        elif why.startswith("refused") and self.child is not None and self.child.pid:
            self._restart_child(now, f"it does not know this hub ({why})")
        self._connect_later(now, why)
        self._changed()

    def _connect_later(self, now: float, why: str) -> None:
        self._connect_at = now + self._backoff_s
        self._endpoints = [*self._endpoints[1:], self._endpoints[0]]
        if self._backoff_s >= 1.0:
            log.warning("broker: no connection (%s), next try in %.0f s", why, self._backoff_s)
        self._backoff_s = min(2 * self._backoff_s, RECONNECT_LAST_S)

    def _give_up(self, now: float, why: str) -> None:
        if self._link is not None:
            self._link.close()
        self._handle_disconnected(now, why)

    # accounts

    def _handle_answer(self, now: float, payload: bytes) -> None:
        events, follow_ups = self._accounts.handle_response(payload)
        self._control(follow_ups)
        for event in events:
            if isinstance(event, Listed):
                self._compare(now, event.users)
                continue
            self._asked.pop(event.row, None)
            self._note_done(now, event.row)
            if event.error:
                log.error("broker: an account was not changed (%s)", event.error)
                self._compare_next = True

    def _compare(self, now: float, listed: frozenset[str]) -> None:
        """Bring the accounts of a broker that ran without this hub in step with the database."""
        self._comparing_until = None
        self._compare_next = False
        if not self._has_plugin:
            # From now on one that is slow to answer is not taken for one without, to which accounts go by files.
            self._has_plugin = True
            with self._store.write() as tx:
                save_has_plugin(tx.connection)
        known = {user for user, _ in self._known_accounts()}
        with self._store.read() as tx:
            in_flight = tx.accounts_in_flight()
            # Strangers of a broker that others use too are theirs.
            strangers = [
                user
                for user in sorted(listed - known - in_flight)
                if self.child is not None or tx.device(user) is not None or tx.token(user) is not None
            ]
        for user in strangers:
            log.warning("broker: account %s is nobody's and is ended", user)
            self._control([broker_accounts.delete_user(user)])
        missing = known - listed - in_flight
        if missing and self.child is not None:
            self._restart_child(now, f"it lacks {len(missing)} accounts")
        elif missing:
            log.error("broker: it lacks %d accounts; those devices must join again", len(missing))

    def _go_without_plugin(self) -> None:
        """A broker that somebody else runs and that lists no accounts gets them by files."""
        log.warning("broker: it has no dynamic security plugin; copy the files in %s to it", self._state.external)
        self._comparing_until = None
        self._compare_next = False
        self._accounts = self._files
        self._files.write(self._known_accounts())

    def _restart_child(self, now: float, why: str) -> None:
        if self.child is not None:
            self.child.restart(now, why)
            self._compare_next = False  # it starts with what the database knows

    def _known_accounts(self) -> Iterator[tuple[str, str]]:
        after = ""
        with self._store.read() as tx:
            while page := tx.accounts(after=after):
                yield from page
                after = page[-1][0]

    def _make_child(self) -> MosquittoChild:
        site = self._site

        def accounts() -> bytes:
            credential = make_credential(os.urandom, site.password)
            return broker_accounts.document(self._network.id, site.user, credential, self._known_accounts())

        files = Files(
            certificate_pem=site.server_cert_pem,
            key_pem=site.server_key_pem,
            access_list=broker_accounts.access_list(self._network.id, site.user),
            accounts=accounts,
        )
        return MosquittoChild(self._state.broker, site.listen_host, site.listen_port, files)


def _endpoints(site: Site, scribe: Scribe) -> list[Endpoint]:
    network = scribe.network
    places = [(site.listen_host, site.listen_port)]
    user, password = site.user, site.password
    if site.external:
        places = list(hosts(site.external))
    elif site.listen_host in ("", "0.0.0.0"):
        places = [("127.0.0.1", site.listen_port)]
    elif site.listen_host == "::":
        places = [("::1", site.listen_port)]
    if scribe.nats is not None:
        user, password = HUB, scribe.nats.hub_password()
    ca_pem = der_to_pem(network.ca_der)
    return [Endpoint(host, port, ca_pem, user, password, site.client_id) for host, port in places]
