"""A relay's side of the control plane: tells one hub what it is and how many members it has, and hears what it must.

It joins as a device does (edgeagent/proto/join.py). From then on this machine speaks for it; it asks for nobody, has no
feed, and reads of `rec` only who was cut off.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgeagent.proto import topics
from edgeagent.proto.backoff import Backoff
from edgeagent.proto.crypto import Crypto
from edgeagent.proto.devicemap import DeviceMap
from edgeagent.proto.envelope import read_down, read_hub_state
from edgeagent.proto.identity import Admission, Identity
from edgeagent.proto.outbox import Outbox
from edgeagent.proto.publishing import Publish
from edgeagent.proto.records import open_gone
from edgeagent.proto.refusals import ControlDrop, ControlError
from edgeagent.proto.signed import SeqGuard, Signed
from edgeagent.proto.walltime import WallFloor

STABLE_S = 60.0  # a connection that lasted so long was a good one
WORD_SPACING_S = 60.0  # between two words on itself within one connection
MEMBERS_SHARE = 10  # a tenth more or fewer members is worth a word


class MapChanged:
    """The hub's map is new: keep the admission."""

    __slots__ = ("map",)

    def __init__(self, device_map: DeviceMap) -> None:
        self.map = device_map


class Gone:
    """A device was cut off; `data` is the signed word of it, for the core."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data


class Removed:
    """The hub has put this relay out."""

    __slots__ = ()


class EpochsReserved:
    """Keep `reserved` before anything is signed."""

    __slots__ = ("reserved",)

    def __init__(self, reserved: int) -> None:
        self.reserved = reserved


class ReconnectWanted:
    """The hub has seen a later epoch than ours: connect anew, with one behind it."""

    __slots__ = ()


RegistrationEvent = MapChanged | Gone | Removed | EpochsReserved | ReconnectWanted


class Registration:
    """One relay at one hub. To connect, at `next_connect_at`: `begin_session`, drain events, then MQTT CONNECT with
    `last_will` and a persistent session. Report what happens by the handle methods, and what the relay is by `tell`;
    after any of them drain events, subscriptions and publishes, and sleep until `poll_timeout()`.

    `tell` takes the fields of `RELAY_FIELDS`; members alone are told of when they are a tenth more or fewer.
    """

    def __init__(
        self,
        now: float,
        *,
        crypto: Crypto,
        jitter: Callable[[], float],
        identity: Identity,
        admission: Admission,
        outbox: Outbox,
        wall: WallFloor,
        boot: bytes,
        version: str,
        facts: dict[str, str],
    ) -> None:
        self._crypto = crypto
        self._identity = identity
        self._admission = admission
        self._network = admission.network
        self._outbox = outbox
        self._wall = wall
        self._boot = boot
        self._version = version
        self._facts = facts
        self._backoff = Backoff(jitter, 1.0, 300.0)
        self._guard = SeqGuard(8)  # the hub's (epoch, seq) by kind
        self._hub_box_wall_s = -1
        self._connected_at: float | None = None
        self._events: list[RegistrationEvent] = []
        self._subscriptions: list[str] = []
        self._word: tuple[dict[str, Any], int] | None = None  # fields and members now
        self._told: tuple[dict[str, Any], int] | None = None  # and as the hub was told in this connection
        self._told_at = 0.0
        self.map = admission.open_map(crypto, identity.device_id)
        self.hub_up: bool | None = None  # None: not known
        self.removed = False
        self.drops: dict[ControlDrop, int] = {}
        self.next_connect_at: float | None = now
        self._apply_map()

    @property
    def connected(self) -> bool:
        return self._connected_at is not None

    @property
    def keepalive_s(self) -> int:
        return self.map.setting("mqtt_keepalive_s", 300, 10, 3_600)

    # The connection

    def begin_session(self) -> None:
        """Before each connection: a new epoch."""
        epochs = self._outbox.epochs
        if epochs.begin():
            self._events.append(EpochsReserved(epochs.reserved))

    def last_will(self, now: float) -> Publish:
        return self._outbox.last_will(now)

    def handle_connected(self, now: float) -> None:
        self._connected_at = now
        self.next_connect_at = None
        self.hub_up = None
        down = topics.down_filter(self._network, self._identity.device_id)
        self._subscriptions += [down, topics.hub_state(self._network)]
        body = {
            "boot": self._boot,
            "ver": self._version,
            "map": list(self.map.stamp),
            "nk": self._identity.node_key,
            "facts": self._facts,
        }
        self._outbox.write(now, "birth", body)
        self._outbox.write(now, "state", {"up": True}, retain=True)
        self._told = None
        self._tell_if_due(now)

    def handle_disconnected(self, now: float) -> None:
        """The connection ended, or could not be made."""
        if self._connected_at is not None and now - self._connected_at >= STABLE_S:
            self._backoff.reset()
        self._connected_at = None
        self._subscriptions.clear()
        self._outbox.clear()
        self.next_connect_at = None if self.removed else now + self._backoff.wait_s()

    def farewell(self, now: float) -> None:
        """The connection is about to be closed on purpose."""
        if self.connected:
            self._outbox.write(now, "state", {"up": False}, retain=True)

    # What the relay is

    def tell(self, now: float, fields: dict[str, Any], members: int) -> None:
        self._word = (fields, members)
        self._tell_if_due(now)

    def handle_timeout(self, now: float) -> None:
        self._tell_if_due(now)

    def poll_timeout(self) -> float | None:
        if not self.connected or not self._is_news():
            return None
        return self._told_at + WORD_SPACING_S

    def _is_news(self) -> bool:
        if self._word is None or self._told is None:
            return self._word is not None
        (fields, members), (told, told_members) = self._word, self._told
        return fields != told or abs(members - told_members) > told_members // MEMBERS_SHARE

    def _tell_if_due(self, now: float) -> None:
        if not self.connected or self._word is None or not self._is_news():
            return
        if self._told is None or now >= self._told_at + WORD_SPACING_S:
            fields, members = self._told = self._word
            self._told_at = now
            self._outbox.write(now, "relay", {**fields, "m": members})

    # Messages

    def handle_message(self, now: float, topic: str, payload: bytes) -> None:
        try:
            self._read(now, topic, payload)
        except ControlError as error:
            self.drops[error.reason] = self.drops.get(error.reason, 0) + 1

    def drain_events(self) -> list[RegistrationEvent]:
        events, self._events = self._events, []
        return events

    def drain_subscriptions(self) -> list[str]:
        subscriptions, self._subscriptions = self._subscriptions, []
        return subscriptions

    def drain_publishes(self) -> list[Publish]:
        return self._outbox.drain()

    def _read(self, now: float, topic: str, payload: bytes) -> None:
        parts = topics.parse(topic)
        if parts is None or parts.network != self._network:
            raise ControlError(ControlDrop.UNKNOWN_TOPIC, "topic: not one that this relay reads")
        if not payload:
            return  # what the broker retained on this topic was taken back
        if parts.way == "hub":
            self._read_hub_state(now, payload)
        elif parts.way == "d" and parts.owner == self._identity.device_id and parts.leaf in _READERS:
            _READERS[parts.leaf](self, now, self._open(parts.leaf, topic, payload))
        else:
            raise ControlError(ControlDrop.UNKNOWN_TOPIC, "topic: not one that this relay reads")

    def _open(self, kind: str, topic: str, payload: bytes) -> Signed:
        return read_down(
            self._crypto,
            self._identity.box_private,
            self._admission.network_key,
            topic,
            payload,
            kind=kind,
            network=self._network,
            device=self._identity.device_id,
        )

    def _newer(self, now: float, signed: Signed) -> None:
        signed.check_dates(self._wall.at(now))
        if not self._guard.accept(signed.kind, *signed.stamp):
            raise ControlError(ControlDrop.REPLAYED, f"{signed.kind}.q: not newer than the last one")
        self._wall.raise_to(now, signed.wall_s)

    def _read_hub_state(self, now: float, payload: bytes) -> None:
        state = read_hub_state(self._crypto, self._admission.network_key, payload, network=self._network)
        if self._guard.last("hub") != state.stamp:  # retained: each subscription brings it again
            self._newer(now, state)
        self.hub_up = state.body["up"]
        self._use_hub_box_key(state.body["bx"], state.wall_s)

    def _read_map(self, now: float, signed: Signed) -> None:
        if signed.stamp == self.map.stamp:
            return  # retained: each subscription brings it again
        device_map = DeviceMap(signed)
        if signed.stamp < self.map.stamp:
            raise ControlError(ControlDrop.REPLAYED, "map.q: older than the map in use")
        signed.check_dates(self._wall.at(now))
        self._wall.raise_to(now, signed.wall_s)
        self.map = device_map
        self._admission.map_object = device_map.raw
        self._admission.hosts = device_map.hosts
        self._apply_map()
        self._events.append(MapChanged(device_map))

    def _read_time(self, now: float, signed: Signed) -> None:
        self._newer(now, signed)
        epoch = signed.body.get("e")
        if epoch is not None and self._outbox.epochs.behind(epoch):
            self._backoff.reset()
            self._events.append(ReconnectWanted())

    def _read_rec(self, now: float, signed: Signed) -> None:
        data = signed.body.get("gone")
        if data is None:
            raise ControlError(ControlDrop.WRONG_KIND, "rec: of a device; a relay asks for none")
        gone = open_gone(self._crypto, self._admission.network_key, data, network=self._network)
        self._newer(now, signed)
        if gone.subject == self._identity.device_id:
            self.removed = True
            self._events.append(Removed())
        else:
            self._events.append(Gone(data))

    def _apply_map(self) -> None:
        self._use_hub_box_key(self.map.hub_box_key, self.map.wall_s)
        self._backoff.base_s = self.map.setting("reconnect_min_s", 1, 1, 3_600)
        self._backoff.cap_s = max(self._backoff.base_s, self.map.setting("reconnect_max_s", 300, 5, 86_400))

    def _use_hub_box_key(self, key: bytes, wall_s: int) -> None:
        """The hub says its box key in two places: what it said last counts."""
        if wall_s >= self._hub_box_wall_s:
            self._hub_box_wall_s = wall_s
            self._outbox.hub_box_key = key


_READERS: dict[str, Callable[[Registration, float, Signed], None]] = {
    "map": Registration._read_map,
    "rec": Registration._read_rec,
    "time": Registration._read_time,
}
