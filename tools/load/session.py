"""One device of a load: an agent's node and broker connection, without an interface, state on disk or packets."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

from edgeagent.context import jitter
from edgeagent.enrolment import Enrolment
from edgeagent.io.mqtt import Closed, Connected, MqttLink, Received
from edgeagent.io.pahoclient import Login
from edgeagent.io.pinnedtls import Trust
from edgeagent.proto.identity import Identity
from edgeagent.proto.limits import Limits
from edgeagent.proto.node import Node
from edgeagent.proto.node_events import MapChanged, ReconnectWanted, Resolved
from edgeagent.proto.tai64n import Tai64nClock
from edgeagent.proto.walltime import WallFloor
from edgeagent.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable
    from selectors import BaseSelector

    from edgeagent.proto.crypto import Crypto
    from edgeagent.proto.identity import Admission
    from edgeagent.proto.node_events import NodeEvent
    from edgeagent.proto.records import Query
    from edgeagent.proto.token import Token

PORT = 51820
TURN_S = 0.5  # between two looks at its timers, once a member: they are about paths, and none leads anywhere here


class Session:
    """Drive it: `on_timeout` at `poll_timeout()`, `settle` after that and after its descriptor was ready.

    It enrols with `token`, then stays a member; `on_event` hears what its node says. Also what an Enrolment needs of a
    context.
    """

    def __init__(
        self,
        now: float,
        selector: BaseSelector,
        crypto: Crypto,
        token: Token,
        host: str,
        address: bytes,
        on_event: Callable[[Session, float, NodeEvent], None],
    ) -> None:
        self.crypto = crypto
        self.entropy = os.urandom
        self.identity = Identity.create(crypto, os.urandom)
        self.wall = WallFloor(now, 0.0)
        self.boot = os.urandom(16)
        self.facts = {"model": "load", "agent": VERSION}
        self.host = host
        self.address = address
        self.link = MqttLink(selector)
        self.node: Node | None = None
        self.refusal = ""
        self.connects = 0
        self.losses = 0  # connections that ended, or could not be made, since it became a member
        self.received = 0  # bytes of messages
        self._on_event = on_event
        self._pin = b""
        self._turned_at = 0.0
        self._enrolment: Enrolment | None = Enrolment(now, self, self.link, token, host)  # type: ignore[arg-type]

    @property
    def device_id(self) -> str:
        return self.identity.device_id

    @property
    def is_up(self) -> bool:
        """A member, and connected."""
        return self.node is not None and self.node.client.connected

    def poll_timeout(self) -> float | None:
        times = [self.link.poll_timeout()]
        if self._enrolment is not None:
            times.append(self._enrolment.poll_timeout())
        if self.node is not None:
            if (due := self.node.poll_timeout()) is not None:
                times.append(max(due, self._turned_at + TURN_S))
            if self.link.is_idle:
                times.append(self.node.next_connect_at)
        return min((at for at in times if at is not None), default=None)

    def on_timeout(self, now: float) -> None:
        due = self.link.poll_timeout()
        if due is not None and due <= now:
            self.link.on_timeout(now)
        if self._enrolment is not None:
            self._enrolment.on_timeout(now)
        if self.node is not None:
            due = self.node.poll_timeout()
            if due is not None and due <= now and self._turned_at + TURN_S <= now:
                self._turned_at = now
                self.node.handle_timeout(now)
            if self.link.is_idle and self.node.next_connect_at is not None and self.node.next_connect_at <= now:
                self._connect(now)

    def settle(self, now: float) -> None:
        while self.link.events:
            event = self.link.events.popleft()
            if self._enrolment is not None:
                self._enrolment.handle(now, event)
            elif self.node is not None:
                self._handle(now, self.node, event)
        if self._enrolment is not None:
            self._enrolment.settle(now)
            self.refusal = self._enrolment.refusal
            if self._enrolment.admission is not None:
                self._become_member(now, self._enrolment.admission)
        if self.node is not None:
            self._drain(now, self.node)

    def lookup(self, now: float, query: Query) -> object:
        """As Node.lookup; what is pending ends in Resolved."""
        assert self.node is not None
        return self.node.lookup(now, query)

    def roam(self, now: float, address: bytes) -> None:
        """It is at another address from now on, and tells its peers."""
        assert self.node is not None
        self.address = address
        self.node.handle_addresses(now, [(address, PORT)])

    def close(self) -> None:
        self.link.close()

    def _handle(self, now: float, node: Node, event: object) -> None:
        if isinstance(event, Received):
            self.received += len(event.topic) + len(event.payload)
            node.handle_message(now, event.topic, event.payload)
        elif isinstance(event, Connected):
            self.connects += 1
            node.handle_connected(now, event.session_present)
        elif isinstance(event, Closed):
            self.losses += 1
            node.handle_disconnected(now)

    def _become_member(self, now: float, admission: Admission) -> None:
        self._enrolment = None
        self.link.close()
        self._pin = hashlib.sha256(admission.ca_der).digest()
        self.node = Node(
            now,
            crypto=self.crypto,
            entropy=self.entropy,
            jitter=jitter,
            tai64n=Tai64nClock(now, self.wall.at(now)),
            limits=Limits("small"),
            identity=self.identity,
            admission=admission,
            wall=self.wall,
            boot=self.boot,
            version=VERSION,
            facts=self.facts,
            saved=None,
        )
        self.node.handle_addresses(now, [(self.address, PORT)])

    def _connect(self, now: float) -> None:
        node = self.node
        assert node is not None
        node.begin_session(now)
        will = node.last_will(now)
        login = Login(
            node.client_id,
            node.username,
            node.password,
            clean=False,
            keepalive_s=node.mqtt_keepalive_s,
            will=(will.topic, will.payload),
        )
        self.link.open(now, node.hosts, login, Trust(self._pin, node.ca_der, self.wall.known))

    def _drain(self, now: float, node: Node) -> None:
        for event in node.drain_events():
            if isinstance(event, ReconnectWanted):
                self.link.close()
                node.handle_disconnected(now)
            elif isinstance(event, MapChanged | Resolved):
                self._on_event(self, now, event)
        if changes := node.drain_subscriptions():
            self.link.subscribe([topic for topic, wanted in changes if wanted])
            self.link.unsubscribe([topic for topic, wanted in changes if not wanted])
        for publish in node.drain_publishes():
            self.link.publish(publish.topic, publish.payload, qos=publish.qos, retain=publish.retain)
        node.drain_transmits()
        node.drain_packets()
