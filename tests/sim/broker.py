"""An MQTT 3.1.1 broker: accounts and rules, sessions that outlive connections, QoS 1 queues, retained messages, wills.

It behaves as Mosquitto does, and where brokers differ it does what is worse for us: duplicates, late wills.
"""

from __future__ import annotations

import copy
from collections import OrderedDict, deque
from collections.abc import Callable
from enum import Enum

from edgeagent.proto import topics
from tests.sim.net import Host, Net
from tests.sim.stream import Side, Stream
from tests.sim.world import Action, World

QUEUED_MAX = 1_000
INFLIGHT_MAX = 20
RETAINED_MAX = 1_000_000
CONNECT_TIMEOUT_S = 5.0
HUB_USER = "hub"


class Role(Enum):
    DEVICE = "device"
    CLAIM = "claim"
    HUB = "hub"


class Account:
    __slots__ = ("password", "role")

    def __init__(self, password: str, role: Role) -> None:
        self.password = password
        self.role = role


class Login:
    """What a client presents. `will` is (topic, payload), retained, QoS 1."""

    __slots__ = ("clean", "client_id", "keepalive_s", "password", "username", "will")

    def __init__(
        self,
        client_id: str,
        username: str,
        password: str,
        *,
        clean: bool,
        keepalive_s: float = 60.0,
        will: tuple[str, bytes] | None = None,
    ) -> None:
        self.client_id = client_id
        self.username = username
        self.password = password
        self.clean = clean
        self.keepalive_s = keepalive_s
        self.will = will


class Message:
    __slots__ = ("payload", "qos", "retained", "topic")

    def __init__(self, topic: str, payload: bytes, qos: int, retained: bool) -> None:
        self.topic = topic
        self.payload = payload
        self.qos = qos
        self.retained = retained


class Session:
    """What the broker keeps for a client id: subscriptions, and what the client has not acknowledged."""

    __slots__ = ("clean", "client_id", "connection", "filters", "inflight", "next_mid", "queue", "user")

    def __init__(self, client_id: str, user: str, clean: bool) -> None:
        self.client_id = client_id
        self.user = user
        self.clean = clean
        self.filters: dict[str, int] = {}  # topic filter: QoS
        self.queue: deque[Message] = deque()
        self.inflight: OrderedDict[int, Message] = OrderedDict()
        self.next_mid = 1
        self.connection: Connection | None = None


class Connection:
    """A client's end and the broker's. The client's owner gives the callbacks; all come from the heap, in order.

    on_connected(session_present), on_closed(refused), on_message(topic, payload, mid or None), on_acked(mid).
    A message is acknowledged before it is handed over, unless `acks_late`: then its receiver calls `ack`.
    """

    def __init__(
        self,
        broker: Broker,
        host: Host,
        login: Login,
        *,
        on_connected: Callable[[bool], None],
        on_closed: Callable[[bool], None],
        on_message: Callable[[str, bytes, int | None], None],
        on_acked: Callable[[int], None],
        acks_late: bool = False,
    ) -> None:
        self.broker = broker
        self.login = login
        self.is_up = False  # the client got its CONNACK
        self.session: Session | None = None  # the broker's side
        self.account: Account | None = None
        self._on_connected = on_connected
        self._on_closed = on_closed
        self._on_message = on_message
        self._on_acked = on_acked
        self._acks_late = acks_late
        self._next_mid = 1
        self._over = False
        self.stream = Stream(broker.net, host, broker.address_for(host), login.keepalive_s, self._lost)
        self._connect()

    # The client's side

    @property
    def source(self) -> str | None:
        """The client's own address of this connection."""
        return self.stream.source

    def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool) -> int:
        """The message id."""
        mid, self._next_mid = self._next_mid, self._next_mid + 1
        self.stream.send(Side.CLIENT, lambda: self.broker.on_publish(self, mid, topic, payload, qos, retain))
        return mid

    def subscribe(self, topic_filter: str, qos: int = 1) -> None:
        self.stream.send(Side.CLIENT, lambda: self.broker.on_subscribe(self, topic_filter, qos))

    def unsubscribe(self, topic_filter: str) -> None:
        self.stream.send(Side.CLIENT, lambda: self.broker.on_unsubscribe(self, topic_filter))

    def call_broker(self, action: Action) -> None:
        """Something else that the client tells the broker, such as a change of accounts."""
        self.stream.send(Side.CLIENT, action)

    def call_client(self, action: Action) -> None:
        """The broker's answer to it."""
        self.stream.send(Side.SERVER, lambda: None if self._over else action())

    def ack(self, mid: int) -> None:
        """PUBACK for a message that came with QoS 1."""
        self.stream.send(Side.CLIENT, lambda: self.broker.on_puback(self, mid))

    def close(self, *, politely: bool) -> None:
        """With DISCONNECT there is no Last Will; without, the broker still sees the connection end."""
        if self._over:
            return
        self._over = True
        self.is_up = False
        if politely:
            self.stream.send(Side.CLIENT, lambda: self.broker.on_disconnect(self))
        self.stream.close(Side.CLIENT)

    def die(self) -> None:
        """The client's power is gone: the broker hears nothing, not even an end."""
        self._over = True
        self.is_up = False
        self.stream.die(Side.CLIENT)

    def _connect(self) -> None:
        """TCP, TLS, CONNECT: six ways through the network."""
        world = self.broker.world
        self.broker.tries.append(world.now)
        way = self.stream.way()
        if way is None:
            world.after(CONNECT_TIMEOUT_S, lambda: self._failed(False))
        elif not self.broker.is_up:
            world.after(2 * way.delay_s, lambda: self._failed(False))
        else:
            generation = self.broker.generation
            world.after(5 * way.delay_s, lambda: self._arrive(generation))

    def _arrive(self, generation: int) -> None:
        broker = self.broker
        if self._over:
            return
        if self.stream.way() is None or not broker.is_up or broker.generation != generation:
            self.broker.world.after(CONNECT_TIMEOUT_S, lambda: self._failed(False))
        else:
            broker.on_connect(self)

    def connack(self, session_present: bool) -> None:
        def arrived() -> None:
            if not self._over:
                self.is_up = True
                self._on_connected(session_present)

        self.stream.send(Side.SERVER, arrived)

    def refuse(self) -> None:
        self.stream.send(Side.SERVER, lambda: self._failed(True))

    def acked(self, mid: int) -> None:
        self.stream.send(Side.SERVER, lambda: None if self._over else self._on_acked(mid))

    def deliver(self, mid: int | None, message: Message) -> None:
        """A PUBLISH on its way to the client. It acknowledges what has arrived, then acts: a cut between loses it."""

        def arrived() -> None:
            if self._over:
                return
            if mid is not None and not self._acks_late:
                self.ack(mid)
            self._on_message(message.topic, message.payload, mid)

        self.stream.send(Side.SERVER, arrived)

    def _failed(self, refused: bool) -> None:
        if not self._over:
            self._over = True
            self.is_up = False
            self.stream.die(Side.CLIENT)
            self.stream.die(Side.SERVER)
            self._on_closed(refused)

    def _lost(self, side: Side) -> None:
        if side is Side.SERVER:
            self.broker.on_lost(self)
        elif not self._over:
            self._over = True
            self.is_up = False
            self._on_closed(False)


class Broker:
    """`accounts` are set by the hub's operations. `stop`, `start` and `restart` are outages; `kick` ends a session.

    `duplicate` is the share of QoS 1 messages that are sent twice within a connection; `will_delay_s` holds wills of
    devices back; `wills_on_takeover` says whether a connection that another of its client id replaces leaves its will.
    """

    def __init__(
        self,
        world: World,
        net: Net,
        host: Host,
        network: str,
        *,
        duplicate: float = 0.0,
        will_delay_s: float = 0.0,
        wills_on_takeover: bool = True,
        queued_max: int = QUEUED_MAX,
    ) -> None:
        self.world = world
        self.net = net
        self.host = host
        self.network = network
        self.duplicate = duplicate
        self.will_delay_s = will_delay_s
        self.wills_on_takeover = wills_on_takeover
        self.queued_max = queued_max
        self.is_up = True
        self.generation = 0
        self.accounts: dict[str, Account] = {}
        self.retained: dict[str, bytes] = {}
        self.sessions: dict[str, Session] = {}
        self.tries: list[float] = []  # when clients began to connect
        self.connects: list[float] = []  # when logins came, accepted or not
        self.dropped = 0  # messages that a full queue lost
        self.forbidden: list[str] = []  # what the rules stopped
        self.published = 0
        self.taps: list[Callable[[str, bytes], None]] = []  # told of everything that is published
        self._exact: dict[str, dict[str, Session]] = {}  # topic: client id: session
        self._below: dict[str, dict[str, Session]] = {}  # filter that ends with /#: client id: session
        self._wild: dict[str, dict[str, Session]] = {}  # any other filter with a wildcard: client id: session
        self._saved: tuple[dict[str, bytes], dict[str, Session]] = ({}, {})
        self._chance = world.stream("broker")

    def address_for(self, client: Host) -> str:
        """The first of the broker's addresses that the client has a route to."""
        addresses = self.host.addresses()
        return next((address for address in addresses if client.route(address) is not None), addresses[0])

    # The hub's operations on accounts

    def admit(self, user: str, password: str, role: Role) -> None:
        """Make an account, or give it a new password."""
        self.accounts[user] = Account(password, role)

    def change_password(self, user: str, password: str) -> None:
        """A connection that is there stays."""
        if user in self.accounts:
            self.accounts[user].password = password

    def revoke(self, user: str) -> None:
        """Delete an account and end its session."""
        self.accounts.pop(user, None)
        for session in [session for session in self.sessions.values() if session.user == user]:
            if session.connection is not None:
                self._end(session.connection)
            self._forget(session)

    def kick(self, user: str) -> None:
        """End the connections of a user; its session stays."""
        for session in list(self.sessions.values()):
            if session.user == user and session.connection is not None:
                self._end(session.connection)

    # Outages

    def stop(self) -> None:
        """The process dies: connections end, sessions and retained messages are as they were. No will is published."""
        self.is_up = False
        self.generation += 1
        for session in list(self.sessions.values()):
            connection, session.connection = session.connection, None
            if connection is not None:
                connection.session = None
                connection.stream.close(Side.SERVER)
            if session.clean:
                self._forget(session)
        self.world.note("broker: stopped")

    def save(self) -> None:
        """What a broker writes to its disk now and then."""
        sessions = {}
        for name, session in self.sessions.items():
            if not session.clean:
                kept = Session(session.client_id, session.user, False)
                kept.filters = dict(session.filters)
                kept.queue = copy.copy(session.queue)
                kept.inflight = copy.copy(session.inflight)
                kept.next_mid = session.next_mid
                sessions[name] = kept
        self._saved = dict(self.retained), sessions

    def start(self, *, state: str = "kept") -> None:
        """`state`: 'kept' (all of it), 'saved' (as of the last `save`), or 'lost' (no sessions, nothing retained)."""
        if self.is_up:
            return
        if state == "saved":
            self.retained, self.sessions = self._saved
            self.save()
        elif state == "lost":
            self.retained, self.sessions = {}, {}
        for table in (self._exact, self._below, self._wild):
            table.clear()
        for session in self.sessions.values():
            for topic_filter in session.filters:
                self._index(topic_filter)[session.client_id] = session
        self.is_up = True
        self.world.note(f"broker: started, state {state}")

    def restart(self, *, down_s: float, state: str = "kept") -> None:
        self.stop()
        self.world.after(down_s, lambda: self.start(state=state))

    # Packets from clients, when they arrive

    def on_connect(self, connection: Connection) -> None:
        login = connection.login
        self.connects.append(self.world.now)
        account = self.accounts.get(login.username)
        if account is None or account.password != login.password:
            self.world.note(f"broker: refused {login.username}")
            connection.refuse()
            return
        session = self.sessions.get(login.client_id)
        if session is not None and session.connection is not None:
            self._end(session.connection, will=self.wills_on_takeover)
            session = self.sessions.get(login.client_id)
        if session is not None and (login.clean or session.user != login.username):
            self._forget(session)
            session = None
        present = session is not None
        if session is None:
            session = self.sessions[login.client_id] = Session(login.client_id, login.username, login.clean)
        session.connection = connection
        connection.session = session
        connection.account = account
        self.world.note(f"broker: {login.client_id} connected, session {'present' if present else 'new'}")
        connection.connack(present)
        for mid, message in session.inflight.items():
            if message.qos:
                connection.deliver(mid, message)
        self._drain(session)

    def on_publish(self, connection: Connection, mid: int, topic: str, payload: bytes, qos: int, retain: bool) -> None:
        if connection.session is None or connection.account is None:
            return
        if qos:
            connection.acked(mid)
        if not may_publish(self.network, connection.account.role, connection.login, topic):
            self.forbidden.append(f"{connection.login.username} publish {topic}")
            return
        self.publish(topic, payload, qos=qos, retain=retain)

    def on_subscribe(self, connection: Connection, topic_filter: str, qos: int) -> None:
        session = connection.session
        if session is None or connection.account is None:
            return
        if not may_subscribe(self.network, connection.account.role, connection.login, topic_filter):
            self.forbidden.append(f"{connection.login.username} subscribe {topic_filter}")
            return
        session.filters[topic_filter] = qos
        self._index(topic_filter)[session.client_id] = session
        if is_wild(topic_filter):
            found = [topic for topic in self.retained if matches(topic_filter, topic)]
        else:
            found = [topic_filter] if topic_filter in self.retained else []
        for topic in found:
            self._queue(session, Message(topic, self.retained[topic], qos, True))

    def on_unsubscribe(self, connection: Connection, topic_filter: str) -> None:
        session = connection.session
        if session is not None and session.filters.pop(topic_filter, None) is not None:
            self._index(topic_filter).pop(session.client_id, None)

    def on_puback(self, connection: Connection, mid: int) -> None:
        session = connection.session
        if session is not None:
            session.inflight.pop(mid, None)
            self._drain(session)

    def on_disconnect(self, connection: Connection) -> None:
        connection.login.will = None
        self._end(connection)

    def on_lost(self, connection: Connection) -> None:
        if connection.session is not None:
            self._end(connection)

    # Inside

    def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool) -> None:
        self.published += 1
        for tap in self.taps:
            tap(topic, payload)
        if retain:
            if payload:
                self.retained[topic] = payload
                assert len(self.retained) <= RETAINED_MAX
            else:
                self.retained.pop(topic, None)
        for topic_filter, sessions in self._matching(topic):
            for session in sessions:
                self._queue(session, Message(topic, payload, min(qos, session.filters[topic_filter]), False))

    def _matching(self, topic: str) -> list[tuple[str, list[Session]]]:
        """Filters that somebody subscribed to, and who did."""
        found = [(topic, list(self._exact.get(topic, {}).values()))]
        above = topic
        while above:
            above = above.rpartition("/")[0]
            found.append((f"{above}/#", list(self._below.get(f"{above}/#", {}).values())))
        found += [(wild, list(sessions.values())) for wild, sessions in self._wild.items() if matches(wild, topic)]
        return found

    def queued(self) -> int:
        """The longest queue of any session."""
        return max((len(session.queue) for session in self.sessions.values()), default=0)

    def _queue(self, session: Session, message: Message) -> None:
        connection = session.connection
        if message.qos == 0:
            if connection is not None:
                connection.deliver(None, message)
            return
        if len(session.queue) >= self.queued_max:
            self.dropped += 1
            return
        session.queue.append(message)
        self._drain(session)

    def _drain(self, session: Session) -> None:
        connection = session.connection
        while connection is not None and session.queue and len(session.inflight) < INFLIGHT_MAX:
            message = session.queue.popleft()
            mid = session.next_mid
            session.next_mid = mid % 65_535 + 1
            session.inflight[mid] = message
            connection.deliver(mid, message)
            if self.duplicate and self._chance.random() < self.duplicate:
                connection.deliver(mid, message)

    def _end(self, connection: Connection, *, will: bool = True) -> None:
        """The broker ends a connection, or has seen it end."""
        session, connection.session = connection.session, None
        if session is None:
            return
        session.connection = None
        connection.stream.close(Side.SERVER)
        if session.clean:
            self._forget(session)
        left = connection.login.will
        self.world.note(f"broker: {connection.login.client_id} gone, {'will' if left and will else 'no will'}")
        if left is not None and will:
            topic, payload = left
            generation = self.generation
            late_s = 0.0 if connection.login.username == HUB_USER else self.will_delay_s
            self.world.after(late_s, lambda: self._publish_will(generation, topic, payload))

    def _publish_will(self, generation: int, topic: str, payload: bytes) -> None:
        if self.generation == generation:
            self.publish(topic, payload, qos=1, retain=True)

    def _forget(self, session: Session) -> None:
        for topic_filter in session.filters:
            self._index(topic_filter).pop(session.client_id, None)
        self.sessions.pop(session.client_id, None)

    def _index(self, topic_filter: str) -> dict[str, Session]:
        if not is_wild(topic_filter):
            table = self._exact
        elif topic_filter.endswith("/#") and not is_wild(topic_filter[:-2]):
            table = self._below
        else:
            table = self._wild
        return table.setdefault(topic_filter, {})


def is_wild(topic_filter: str) -> bool:
    return "+" in topic_filter or "#" in topic_filter


def matches(topic_filter: str, topic: str) -> bool:
    """MQTT 3.1.1, section 4.7."""
    wanted, given = topic_filter.split("/"), topic.split("/")
    for place, part in enumerate(wanted):
        if part == "#":
            return True
        if place >= len(given) or part not in ("+", given[place]):
            return False
    return len(wanted) == len(given)


def may_publish(network: str, role: Role, login: Login, topic: str) -> bool:
    """docs/protocol.md, Topics."""
    if role is Role.HUB:
        return True
    own = f"em1/{network}/{login.username}"
    if role is Role.CLAIM:
        return topic == topics.join(network, login.username)
    return matches(f"{own}/u/+", topic) or topic == f"{own}/p" or matches(f"em1/{network}/+/s/+", topic)


def may_subscribe(network: str, role: Role, login: Login, topic_filter: str) -> bool:
    """docs/protocol.md, Topics: of feeds only named ones, never all."""
    if role is Role.HUB:
        return True
    own = f"em1/{network}/{login.username}"
    if role is Role.CLAIM:
        return topic_filter == topics.admit(network, login.username, login.client_id)
    if topic_filter.startswith((f"{own}/d/", f"{own}/s/")):
        return True
    return not is_wild(topic_filter) and (
        matches(f"em1/{network}/+/p", topic_filter) or topic_filter == topics.hub_state(network)
    )
