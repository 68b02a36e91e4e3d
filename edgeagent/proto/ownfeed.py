"""The device's own feed: published when what it says, or the key it is sealed with, is not what others can read."""

from __future__ import annotations

from typing import Any

from edgeagent.proto.control import FEED_ENDPOINTS_MAX
from edgeagent.proto.devicemap import DeviceMap
from edgeagent.proto.identity import Identity
from edgeagent.proto.outbox import Outbox
from edgeagent.proto.paths import is_usable
from edgeagent.proto.records import UdpAddress

COALESCE_S = 1.0  # addresses come and go in bursts: the first of one is told soon, the rest together
SOON_S = 0.02


class OwnFeed:
    """Drive it: `changed` whenever addresses, keys or the connection may differ; `publish` at `due_at`."""

    __slots__ = (
        "_boot",
        "_identity",
        "_published",
        "_published_at",
        "disco_key",
        "due_at",
        "endpoints",
        "home_relay",
        "inbox",
        "nat",
    )

    def __init__(self, identity: Identity, boot: bytes) -> None:
        self._identity = identity
        self._boot = boot
        self._published: tuple[Any, ...] | None = None  # None: whether the broker retains ours is not known
        self._published_at = float("-inf")
        self.due_at: float | None = None
        self.endpoints: list[UdpAddress] = []
        self.disco_key: bytes | None = None
        self.home_relay: str | None = None
        self.nat: str | None = None
        self.inbox: str | None = None  # the capability of our signal inbox

    def set_endpoints(self, endpoints: list[UdpAddress], device_map: DeviceMap) -> bool:
        """Our own candidates; at most eight that others can use are told. False when they are the same as before."""
        usable = [each for each in endpoints if each[1] and is_usable(each[0], device_map)][:FEED_ENDPOINTS_MAX]
        if usable == self.endpoints:
            return False
        self.endpoints = usable
        return True

    def forget_published(self) -> None:
        """The broker may not hold it any more."""
        self._published = None

    def connection_lost(self, now: float, unsure_s: float) -> None:
        """What was published less than `unsure_s` ago may never have arrived."""
        if now - self._published_at < unsure_s:
            self._published = None

    def changed(self, now: float, device_map: DeviceMap) -> None:
        """Schedule a publication if there is something to say."""
        if self._content(device_map) == self._published:
            self.due_at = None
        elif self.due_at is None:
            self.due_at = max(now + SOON_S, self._published_at + COALESCE_S)

    def publish(self, now: float, device_map: DeviceMap, outbox: Outbox) -> None:
        self.due_at = None
        self._published = self._content(device_map)
        self._published_at = now
        body = {
            "boot": self._boot,
            "nk": self._identity.node_key,
            "ep": [list(endpoint) for endpoint in self.endpoints],
            "dk": self.disco_key,
            "hr": self.home_relay,
            "nat": self.nat,
            "aw": True,
            "cap": self.inbox,
        }
        outbox.write_feed(now, device_map.feed_key, body)

    def leave_relay(self, now: float, device_map: DeviceMap, outbox: Outbox) -> None:
        """The last word of this life: it is at no relay any more. The broker retains it while the device is away."""
        if self.home_relay is not None:
            self.home_relay = None
            self.publish(now, device_map, outbox)

    def _content(self, device_map: DeviceMap) -> tuple[Any, ...]:
        ours = self._identity.node_key, self.disco_key, self.home_relay, self.nat, self.inbox
        return *ours, list(self.endpoints), device_map.feed_key, device_map.feed_generation
