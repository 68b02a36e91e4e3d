"""Joining a network with a token: one question, one answer, and nothing believed before it is verified."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256

from edgeagent.proto import topics
from edgeagent.proto.backoff import Backoff
from edgeagent.proto.crypto import Crypto
from edgeagent.proto.devicemap import open_map
from edgeagent.proto.envelope import read_down, write_up
from edgeagent.proto.identity import Admission, Identity
from edgeagent.proto.keys import Entropy
from edgeagent.proto.publishing import Publish
from edgeagent.proto.refusals import ControlDrop, ControlError
from edgeagent.proto.token import Token
from edgeagent.proto.walltime import WallFloor

RECONNECT_BASE_S, RECONNECT_CAP_S = 1.0, 60.0
ANSWER_BASE_S, ANSWER_CAP_S = 5.0, 60.0
APPROVAL_REPEAT_S = 300.0  # how often to ask again while a person has to approve
REFUSALS_MAX = 5  # a broker that learns a new claim late refuses it for a moment
REFUSED_PAUSE_S = 3600.0  # and after that: about as long, for as long as the device lives


class Joined:
    """The device is in. The shell saves `admission` and the identity, and goes on with a Node."""

    __slots__ = ("admission",)

    def __init__(self, admission: Admission) -> None:
        self.admission = admission


class JoinWaiting:
    """A person must approve; the answer comes later."""

    __slots__ = ()


class JoinRefused:
    """The end: `reason` is one of the protocol's words, or `credentials` when the broker knows no such claim."""

    __slots__ = ("name", "reason")

    def __init__(self, reason: str, name: str) -> None:
        self.reason = reason
        self.name = name


JoinEvent = Joined | JoinWaiting | JoinRefused


class Joiner:
    """Drive it: connect at `next_connect_at` as `client_id` with `username` and `password` and a clean session,
    subscribe to `subscriptions`, report what happens by the handle methods, and after any of them drain publishes and
    events and sleep until `poll_timeout()`. After Joined, or a JoinRefused that the hub signed,
    it is `done` and says nothing more.

    `host` is the wished host name, `boot` the boot id (16 B), `facts` at most 16 texts about the device.
    """

    def __init__(
        self,
        now: float,
        *,
        crypto: Crypto,
        entropy: Entropy,
        jitter: Callable[[], float],
        token: Token,
        identity: Identity,
        host: str,
        boot: bytes,
        facts: dict[str, str],
        wall: WallFloor,
    ) -> None:
        self._crypto = crypto
        self._entropy = entropy
        self._token = token
        self._identity = identity
        self._wall = wall
        self._network = token.network_id(crypto)
        self._jitter = jitter
        self._reconnect = Backoff(jitter, RECONNECT_BASE_S, RECONNECT_CAP_S)
        self._repeat = Backoff(jitter, ANSWER_BASE_S, ANSWER_CAP_S)
        self._seq = 0
        self._answered = (-1, -1)  # (epoch, seq) of the last answer
        self._refusals = 0
        self._waiting = False
        self._ask_again_at: float | None = None
        self._publishes: list[Publish] = []
        self._events: list[JoinEvent] = []
        self._body = {
            "claim": token.claim,
            "secret": token.secret,
            "dk": identity.device_key,
            "nk": identity.node_key,
            "bk": identity.box_key,
            "pw": identity.password,
            "host": host,
            "boot": boot,
            "facts": facts,
        }
        self.done = False
        self.next_connect_at: float | None = now
        self.client_id = identity.session_id(token.hub_box_key) if token.broker_pass else identity.device_id
        self.username = token.claim
        self.password = token.password(crypto)
        self.hosts = token.hosts
        self.ca_sha256 = token.ca_sha256
        self.subscriptions = [topics.admit(self._network, token.claim, identity.device_id)]
        self.drops: dict[ControlDrop, int] = {}

    def handle_connected(self, now: float) -> None:
        """The broker took the claim's credentials."""
        self.next_connect_at = None
        self._refusals = 0
        self._repeat.reset()
        self._ask(now)

    def handle_disconnected(self, now: float) -> None:
        """The connection ended, or could not be made."""
        self._ask_again_at = None
        if not self.done:
            self.next_connect_at = now + self._reconnect.wait_s()

    def handle_refused(self, now: float) -> None:
        """The broker refused the claim's credentials.

        Told once, but never the end: nobody signed it, and a device that was shipped cannot be given another token.
        """
        self._refusals += 1
        self.handle_disconnected(now)
        if self._refusals == REFUSALS_MAX:
            self._events.append(JoinRefused("credentials", ""))
        if self._refusals >= REFUSALS_MAX:
            self.next_connect_at = now + REFUSED_PAUSE_S * (0.5 + self._jitter())

    def handle_message(self, now: float, topic: str, payload: bytes) -> None:
        if self.done:
            return
        try:
            self._read(now, topic, payload)
        except ControlError as error:
            self.drops[error.reason] = self.drops.get(error.reason, 0) + 1

    def handle_timeout(self, now: float) -> None:
        if self._ask_again_at is not None and self._ask_again_at <= now:
            self._ask(now)

    def poll_timeout(self) -> float | None:
        return self._ask_again_at

    def drain_publishes(self) -> list[Publish]:
        publishes, self._publishes = self._publishes, []
        return publishes

    def drain_events(self) -> list[JoinEvent]:
        events, self._events = self._events, []
        return events

    def _ask(self, now: float) -> None:
        if self.done:
            return
        self._seq += 1
        topic = topics.join(self._network, self._token.claim)
        payload = write_up(
            self._crypto,
            self._entropy,
            self._identity.device_seed,
            self._token.hub_box_key,
            topic,
            kind="join",
            network=self._network,
            device=self._identity.device_id,
            epoch=0,
            seq=self._seq,
            wall_s=int(self._wall.at(now)),
            body=self._body,
        )
        self._publishes.append(Publish(topic, payload))
        self._ask_again_at = now + (APPROVAL_REPEAT_S if self._waiting else self._repeat.wait_s())

    def _read(self, now: float, topic: str, payload: bytes) -> None:
        if topic != self.subscriptions[0]:
            raise ControlError(ControlDrop.UNKNOWN_TOPIC, "topic: the answer to this device's join expected")
        answer = read_down(
            self._crypto,
            self._identity.box_private,
            self._token.network_key,
            topic,
            payload,
            kind="admit",
            network=self._network,
            device=self._identity.device_id,
        )
        if answer.stamp <= self._answered:
            raise ControlError(ControlDrop.REPLAYED, "admit.q: not newer than the last answer")
        body = answer.body
        admission = self._admission(body["map"], body["ca"]) if "ok" in body else None
        self._answered = answer.stamp
        self._wall.raise_to(now, answer.wall_s)
        if admission is not None:
            self._finish(Joined(admission))
        elif "no" in body:
            self._finish(JoinRefused(body["no"], body["name"]))
        else:
            if not self._waiting:
                self._events.append(JoinWaiting())
            self._waiting = True
            self._ask_again_at = now + APPROVAL_REPEAT_S

    def _admission(self, map_object: bytes, ca_der: bytes) -> Admission:
        if not self._crypto.equal(sha256(ca_der).digest(), self._token.ca_sha256):
            raise ControlError(ControlDrop.BAD_FIELD, "admit.ca: not the certificate that the token pins")
        device_map = open_map(
            self._crypto,
            self._token.network_key,
            map_object,
            network=self._network,
            device=self._identity.device_id,
        )
        return Admission(
            self._crypto,
            network_key=self._token.network_key,
            ca_der=ca_der,
            map_object=map_object,
            hosts=device_map.hosts,
        )

    def _finish(self, event: JoinEvent) -> None:
        self.done = True
        self.next_connect_at = None
        self._ask_again_at = None
        self._events.append(event)
