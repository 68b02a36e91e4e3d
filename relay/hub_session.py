"""One hub: joins it with a token, then stays connected; what comes of it are orders for the relay."""

from __future__ import annotations

import hashlib
import logging
import os
import random
import sys
from collections import deque
from selectors import BaseSelector
from typing import Any

from edgeagent.io.keystore import entropy
from edgeagent.io.mqtt import CaSeen, Closed, Connected, Event, MqttLink, Received
from edgeagent.io.pahoclient import Login
from edgeagent.io.pinnedtls import Trust
from edgeagent.proto.crypto import Crypto
from edgeagent.proto.identity import Admission
from edgeagent.proto.join import Joined, Joiner, JoinRefused, JoinWaiting
from edgeagent.proto.outbox import Outbox
from edgeagent.proto.publishing import Publish
from edgeagent.proto.refusals import ControlDrop
from edgeagent.proto.relaymap import RelayInfo
from edgeagent.proto.token import Token
from edgeagent.proto.walltime import WallFloor
from relay.core.registration import EpochsReserved, Gone, MapChanged, ReconnectWanted, Registration, Removed
from relay.hub_store import HubStore

log = logging.getLogger("edgerelay")

REFUSALS_MAX = 2  # of a member's credentials, before a token that is at hand is tried
JOIN_KEEPALIVE_S = 60
_TAG = "tag:"

_REFUSED = {
    "used-up": "the token has been used as often as it may be",
    "expired": "the token has expired",
    "revoked": "the token was revoked",
    "unknown": "the hub knows no such token",
    "denied": "the hub was told to keep this relay out, or has as many relays as it bears",
    "bad-request": "the hub does not take it: is the token one of `edgehub relays invite`?",
    "credentials": "the broker does not accept the token: it may be revoked, expired or used up",
}


class Serve:
    """Passes of this network count from now on; it calls this relay `relay`, in `region`."""

    __slots__ = ("network_key", "region", "relay")

    def __init__(self, network_key: bytes, relay: str, region: str) -> None:
        self.network_key = network_key
        self.relay = relay
        self.region = region


class Leave:
    """This network has put the relay out."""

    __slots__ = ("network",)

    def __init__(self, network: str) -> None:
        self.network = network


class Revoke:
    """A signed `gone`."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data


class Region:
    """The other relays of the region, as the network's newest map has them."""

    __slots__ = ("network", "others")

    def __init__(self, network: str, others: list[RelayInfo]) -> None:
        self.network = network
        self.others = others


Order = Serve | Leave | Revoke | Region


class HubSession:
    """Drive it: `step` after its link's descriptor was ready, and at `poll_timeout()`; `tell` what the relay is. Then
    drain `orders`. `state` says in a word or two where it stands.

    `token` may be None when the store holds an admission.
    """

    def __init__(
        self,
        now: float,
        wall_s: float,
        *,
        network: str,
        store: HubStore,
        crypto: Crypto,
        selector: BaseSelector,
        token: Token | None,
        host: str,
        relay_key: bytes,
        version: str,
    ) -> None:
        self.network = network
        self.orders: deque[Order] = deque()
        self.state = "starting"
        self.name = ""
        self.region = ""
        self._store = store
        self._crypto = crypto
        self._token = token
        self._host = host
        self._relay_key = relay_key
        self._version = version
        self._link = MqttLink(selector)
        self._wall = WallFloor(now, wall_s)
        self._boot = entropy(16)
        self._facts = _facts(version)
        self._word: tuple[dict[str, Any], int] | None = None
        self._joiner: Joiner | None = None
        self._registration: Registration | None = None
        self._pin = b""
        self._ca: bytes | None = None
        self._refusals = 0
        self._token_tried = False
        self._identity = store.identity
        if store.admission is not None:
            self._register(now, store.admission)
        elif token is not None:
            self._begin_join(now, token)

    # Driving

    def poll_timeout(self) -> float | None:
        times = [self._link.poll_timeout(), self._store.poll_timeout()]
        for machine in (self._joiner, self._registration):
            if machine is not None:
                times.append(machine.poll_timeout())
        times.append(self._next_connect_at() if self._link.is_idle else None)
        return min((at for at in times if at is not None), default=None)

    def step(self, now: float) -> None:
        due = self._link.poll_timeout()
        if due is not None and due <= now:
            self._link.on_timeout(now)
        while self._link.events:
            self._handle(now, self._link.events.popleft())
        for machine in (self._joiner, self._registration):
            if machine is not None and (due := machine.poll_timeout()) is not None and due <= now:
                machine.handle_timeout(now)
        self._settle(now)
        self._store.save_if_due(now)
        due = self._next_connect_at()
        if self._link.is_idle and due is not None and due <= now:
            self._connect(now)

    def tell(self, now: float, fields: dict[str, Any], members: int) -> None:
        """What the relay is: the fields of `RELAY_FIELDS` without its region, which the network gives it."""
        self._word = (fields, members)
        if self._registration is not None:
            self._registration.tell(now, {**fields, "rg": self.region}, members)
        self._settle(now)

    def farewell(self, now: float) -> None:
        """Publish that the relay goes, and keep what it knows."""
        if self._registration is not None:
            self._registration.farewell(now)
        self._settle(now)
        self._store.save(now)

    @property
    def drops(self) -> dict[ControlDrop, int]:
        """What of the hub's messages was refused, since the last join or start."""
        machine = self._joiner or self._registration
        return machine.drops.copy() if machine is not None else {}

    @property
    def unsent(self) -> bool:
        """Whether the broker has not confirmed all that was said."""
        return self._link.is_up and self._link.unacknowledged > 0

    def reset(self, now: float) -> None:
        """Something went wrong that should not: begin the connection anew."""
        self._link.events.clear()
        self._link.close()
        self._handle(now, Closed("an error", refused=False))

    def close(self) -> None:
        self._link.close()
        self._store.close()

    # Where it stands

    def _begin_join(self, now: float, token: Token) -> None:
        self._token_tried = True
        self.state = "joining"
        self._joiner = Joiner(
            now,
            crypto=self._crypto,
            entropy=entropy,
            jitter=random.random,
            token=token,
            identity=self._identity,
            host=self._host,
            boot=self._boot,
            facts=self._facts,
            wall=self._wall,
        )

    def _register(self, now: float, admission: Admission) -> None:
        self._joiner = None
        self._pin = hashlib.sha256(admission.ca_der).digest()
        self._ca = admission.ca_der
        self._admission = admission
        outbox = Outbox(
            crypto=self._crypto,
            entropy=entropy,
            identity=self._identity,
            network=self.network,
            wall=self._wall,
            epochs=self._store.epochs,
        )
        self._registration = Registration(
            now,
            crypto=self._crypto,
            jitter=random.random,
            identity=self._identity,
            admission=admission,
            outbox=outbox,
            wall=self._wall,
            boot=self._boot,
            version=self._version,
            facts=self._facts,
        )
        self.state = "not connected"
        self._take_map(now)
        self.orders += [Revoke(data) for data in self._store.gone]

    def _take_map(self, now: float) -> None:
        assert self._registration is not None
        device_map = self._registration.map
        name = device_map.name
        region = device_map.tags[0].removeprefix(_TAG) if device_map.tags else ""
        if (name, region) != (self.name, self.region):
            self.name, self.region = name, region
            log.info("network %s calls this relay %s, in region %s", self.network, name, region)
            self.orders.append(Serve(self._admission.network_key, name, region))
        others = [relay for relay in device_map.relays if relay.region == region and relay.key != self._relay_key]
        self.orders.append(Region(self.network, others))
        if self._word is not None:
            self.tell(now, *self._word)

    def _next_connect_at(self) -> float | None:
        machine = self._joiner or self._registration
        return machine.next_connect_at if machine is not None else None

    # Connections

    def _connect(self, now: float) -> None:
        if self._joiner is not None:
            joiner = self._joiner
            login = Login(joiner.client_id, joiner.username, joiner.password, clean=True, keepalive_s=JOIN_KEEPALIVE_S)
            pin, ca = joiner.ca_sha256, self._ca
            self._link.open(now, joiner.hosts, login, Trust(pin, ca, self._wall.known))
            return
        registration = self._registration
        assert registration is not None
        registration.begin_session()
        self._settle(now)  # the epoch is on disk before anything is signed in it
        will = registration.last_will(now)
        client_id, password = self._identity.broker_login(self._admission.network, registration.map)
        login = Login(
            client_id,
            self._identity.device_id,
            password,
            clean=False,
            keepalive_s=registration.keepalive_s,
            will=(will.topic, will.payload),
        )
        self._link.open(now, self._admission.hosts, login, Trust(self._pin, self._ca, self._wall.known))

    def _handle(self, now: float, event: Event) -> None:
        if isinstance(event, CaSeen):
            self._ca = event.ca
        elif isinstance(event, Received):
            machine = self._joiner or self._registration
            if machine is not None:
                machine.handle_message(now, event.topic, event.payload)
        elif isinstance(event, Connected):
            self._handle_connected(now, event)
        else:
            self._handle_closed(now, event)
        self._settle(now)

    def _handle_connected(self, now: float, event: Connected) -> None:
        log.info("network %s: connected to %s", self.network, event.broker)
        self._refusals = 0
        if self._joiner is not None:
            self._link.subscribe(self._joiner.subscriptions)
            self._joiner.handle_connected(now)
        elif self._registration is not None:
            self.state = "registered"
            self._registration.handle_connected(now)

    def _handle_closed(self, now: float, event: Closed) -> None:
        log.warning("network %s: no connection: %s", self.network, event.reason)
        if self._joiner is not None:
            if event.refused:
                self._joiner.handle_refused(now)
            else:
                self._joiner.handle_disconnected(now)
        elif self._registration is not None:
            self._registration.handle_disconnected(now)
            self._refusals += event.refused
            if not self._registration.removed:
                self.state = "refused by the broker" if event.refused else "not connected"
            # A hub that was restored from a backup, or that put this relay out while it was away, knows it no more
            if self._refusals >= REFUSALS_MAX and self._token is not None and not self._token_tried:
                self._begin_join(now, self._token)

    # Outputs of the machines

    def _settle(self, now: float) -> None:
        if self._joiner is not None:
            self._settle_join(now, self._joiner)
        registration = self._registration
        if registration is None or self._joiner is not None:
            return
        for event in registration.drain_events():
            if isinstance(event, EpochsReserved):
                self._store.keep_epochs(now)
            elif isinstance(event, MapChanged):
                self._store.keep_admission(self._admission)
                self._take_map(now)
            elif isinstance(event, Gone):
                self._store.keep_gone(now, event.data)
                self.orders.append(Revoke(event.data))
            elif isinstance(event, ReconnectWanted):
                self._link.close()
                registration.handle_disconnected(now)
            elif isinstance(event, Removed):
                self._handle_removed(now)
                return
        self._link.subscribe(registration.drain_subscriptions())
        self._publish(registration.drain_publishes())

    def _settle_join(self, now: float, joiner: Joiner) -> None:
        self._publish(joiner.drain_publishes())
        for event in joiner.drain_events():
            if isinstance(event, Joined):
                log.info("network %s: joined", self.network)
                self._store.keep_admission(event.admission)
                self._link.close()
                self._register(now, event.admission)
            elif isinstance(event, JoinWaiting):
                self.state = "waiting for approval"
            elif isinstance(event, JoinRefused):
                self._handle_join_refused(now, event.reason, is_final=joiner.done)

    def _handle_join_refused(self, now: float, reason: str, *, is_final: bool) -> None:
        log.error("network %s: not joined: %s", self.network, _REFUSED.get(reason, reason))
        self.state = f"refused: {reason}"
        if is_final:
            self._link.close()
            self._joiner = None
            if self._registration is not None:  # go on as before, it may be known again
                self._registration.handle_disconnected(now)

    def _handle_removed(self, now: float) -> None:
        log.error("network %s has put this relay out: it serves it no longer", self.network)
        self.state = "removed"
        self._link.close()
        assert self._registration is not None
        self._registration.handle_disconnected(now)
        self._registration = None
        self._store.forget_admission()
        self.orders.append(Leave(self.network))
        self.orders.append(Region(self.network, []))

    def _publish(self, publishes: list[Publish]) -> None:
        for publish in publishes:
            self._link.publish(publish.topic, publish.payload, qos=publish.qos, retain=publish.retain)


def _facts(version: str) -> dict[str, str]:
    """What the operator may want to know of this host; `relay` tells the hub what it is that joins."""
    system = os.uname()
    python = "{}.{}.{}".format(*sys.version_info[:3])
    found = {"relay": version, "arch": system.machine, "kernel": system.release, "python": python}
    return {name: text[:128] for name, text in found.items()}
