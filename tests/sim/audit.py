"""What crosses the broker, opened with everybody's keys: well-formed, signed, for its reader, never an older stamp."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2s

from edgeagent.proto import topics
from edgeagent.proto.envelope import read_down, read_feed, read_hub_state, read_join, read_up
from edgeagent.proto.identity import Identity
from edgeagent.proto.refusals import ControlDrop, ControlError
from edgeagent.proto.signed import WILL_SEQ, Signed
from tests.sim.hub import SimHub
from tests.sim.tunnel import CRYPTO
from tests.sim.world import World

HUB = "hub"


class Audit:
    """A tap on the broker. `identities` are those of all devices, by device id."""

    def __init__(self, world: World, hub: SimHub, identities: Callable[[str], Identity | None]) -> None:
        self.world = world
        self.hub = hub
        self.identities = identities
        self.by_kind: dict[str, int] = {}
        self.bytes = 0
        self._last: dict[tuple[str, str], tuple[int, int]] = {}  # (writer, of what): the highest stamp
        self._seen: dict[tuple[str, str, tuple[int, int]], bytes] = {}  # with the stamp: a hash of what it was

    def forget(self, writer: str) -> None:
        """A device that lost its cache begins with low epochs again, until the hub tells it better."""
        self._last = {key: stamp for key, stamp in self._last.items() if key[0] != writer}
        self._seen = {key: digest for key, digest in self._seen.items() if key[0] != writer}

    def tap(self, topic: str, payload: bytes) -> None:
        self.bytes += len(payload)
        if not payload:
            return  # a retained message is taken back
        parts = topics.parse(topic)
        if parts is None or parts.network != self.hub.network.id:
            self.world.fail(f"broker: a message on {topic}")
            return
        if parts.way == "s":
            return  # sealed between two devices, under keys of this life
        try:
            signed = self._open(parts, topic, payload)
        except ControlError as error:
            self.world.fail(f"broker: {topic}: {error.reason.value}: {error}")
            return
        if signed is None:
            return
        self.by_kind[signed.kind] = self.by_kind.get(signed.kind, 0) + 1
        # A device counts over all kinds, the hub for each subject and kind
        writer, what = (parts.owner, "") if parts.way in ("u", "p") else (HUB, f"{parts.owner}/{signed.kind}")
        if signed.kind != "join":
            self._check_stamp(writer, what, signed, payload)

    def _check_stamp(self, writer: str, what: str, signed: Signed, payload: bytes) -> None:
        digest = blake2s(signed.raw, digest_size=8).digest()
        repeated = (writer, what, signed.stamp) in self._seen
        if self._seen.setdefault((writer, what, signed.stamp), digest) != digest:
            self.world.fail(f"{writer} wrote two messages {what} with the stamp {signed.stamp}")
        late_will = signed.seq == WILL_SEQ or (signed.kind == "hub" and not signed.body["up"])
        if repeated or late_will:
            return
        last = self._last.get((writer, what), (-1, -1))
        if signed.stamp < last:
            self.world.fail(f"{writer} wrote {signed.kind} {what} {signed.stamp} after {last}")
        self._last[writer, what] = signed.stamp

    def _open(self, parts: topics.Topic, topic: str, payload: bytes) -> Signed | None:
        network = self.hub.network
        if parts.way == "hub":
            return read_hub_state(CRYPTO, network.key, payload, network=network.id)
        if parts.leaf == "join":
            return read_join(CRYPTO, network.box_private, topic, payload, network=network.id, claim=parts.owner)
        if parts.way == "d" and parts.owner.startswith("c-"):
            return self._down(parts.leaf, "admit", topic, payload)
        if parts.way == "d":
            return self._down(parts.owner, parts.leaf, topic, payload)
        identity = self.identities(parts.owner)
        if identity is None:
            return None
        if parts.way == "u":
            return read_up(
                CRYPTO,
                network.box_private,
                identity.device_key,
                topic,
                payload,
                kind=parts.leaf,
                network=network.id,
                device=parts.owner,
            )
        return self._feed(identity, topic, payload)

    def _down(self, device: str, kind: str, topic: str, payload: bytes) -> Signed | None:
        identity = self.identities(device)
        if identity is None:
            return None
        network = self.hub.network
        return read_down(
            CRYPTO, identity.box_private, network.key, topic, payload, kind=kind, network=network.id, device=device
        )

    def _feed(self, identity: Identity, topic: str, payload: bytes) -> Signed | None:
        row = self.hub.device(identity.device_id)
        if row is None or not row.feed_key:
            return None
        network = self.hub.network.id
        try:
            return read_feed(
                CRYPTO, identity.device_key, row.feed_key, topic, payload, network=network, device=identity.device_id
            )
        except ControlError as error:
            if error.reason is ControlDrop.FEED_KEY:
                return None  # the hub has just given it another one
            raise
