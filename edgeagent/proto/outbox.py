"""What a device writes: stamped, signed, sealed for the hub or under its feed key, and queued for the broker."""

from __future__ import annotations

from collections import deque
from typing import Any

from edgeagent.proto import topics
from edgeagent.proto.crypto import Crypto
from edgeagent.proto.envelope import write_feed, write_up
from edgeagent.proto.epochs import Epochs
from edgeagent.proto.identity import Identity
from edgeagent.proto.keys import Entropy
from edgeagent.proto.publishing import Publish
from edgeagent.proto.signed import WILL_SEQ
from edgeagent.proto.walltime import WallFloor

PUBLISHES_MAX = 128


class Outbox:
    """`hub_box_key` is whom messages are sealed for, set before the first. At most PUBLISHES_MAX wait to be drained."""

    def __init__(
        self,
        *,
        crypto: Crypto,
        entropy: Entropy,
        identity: Identity,
        network: str,
        wall: WallFloor,
        epochs: Epochs,
    ) -> None:
        self._crypto = crypto
        self._entropy = entropy
        self._identity = identity
        self._network = network
        self._wall = wall
        self._publishes: deque[Publish] = deque()
        self.epochs = epochs
        self.hub_box_key = b""
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._publishes)

    def write(self, now: float, verb: str, body: dict[str, Any], *, retain: bool = False) -> int:
        """A message to the hub. Returns its bytes, topic included."""
        message = self._message(now, verb, body, self.epochs.next(), retain=retain)
        self._put(message)
        return len(message.topic) + len(message.payload)

    def last_will(self, now: float) -> Publish:
        """`state` of a session that ends without a word: newer than all of it, older than the next one."""
        return self._message(now, "state", {"up": False}, (self.epochs.epoch, WILL_SEQ), retain=True)

    def write_feed(self, now: float, feed_key: bytes, body: dict[str, Any]) -> None:
        """The device's own feed, retained."""
        device = self._identity.device_id
        topic = topics.feed(self._network, device)
        epoch, seq = self.epochs.next()
        data = write_feed(
            self._crypto,
            self._entropy,
            self._identity.device_seed,
            feed_key,
            topic,
            network=self._network,
            device=device,
            epoch=epoch,
            seq=seq,
            wall_s=int(self._wall.at(now)),
            body=body,
        )
        self._put(Publish(topic, data, retain=True))

    def write_signal(self, device: str, capability: str, frame: bytes) -> None:
        """A sealed frame for another device's inbox; nobody keeps it."""
        self._put(Publish(topics.signal(self._network, device, capability), frame, qos=0))

    def clear(self) -> None:
        """The connection is gone, and with it what nobody took; what matters is written again after the next one."""
        self._publishes.clear()

    def drain(self) -> list[Publish]:
        publishes = list(self._publishes)
        self._publishes.clear()
        return publishes

    def _message(self, now: float, verb: str, body: dict[str, Any], stamp: tuple[int, int], *, retain: bool) -> Publish:
        device = self._identity.device_id
        topic = topics.up(self._network, device, verb)
        epoch, seq = stamp
        data = write_up(
            self._crypto,
            self._entropy,
            self._identity.device_seed,
            self.hub_box_key,
            topic,
            kind=verb,
            network=self._network,
            device=device,
            epoch=epoch,
            seq=seq,
            wall_s=int(self._wall.at(now)),
            body=body,
        )
        return Publish(topic, data, retain=retain)

    def _put(self, publish: Publish) -> None:
        if len(self._publishes) >= PUBLISHES_MAX:
            self._publishes.popleft()
            self.dropped += 1
        self._publishes.append(publish)
