"""What this device tells others of where it is: its addresses and mappings, its home relay, the name of its inbox."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeagent.proto.control import FEED_ENDPOINTS_MAX
from edgeagent.proto.disco import DiscoDrop, key_id, peek_sender
from edgeagent.proto.inbox import Inbox
from edgeagent.proto.paths import is_usable

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgeagent.proto.control_client import ControlClient
    from edgeagent.proto.crypto import Crypto
    from edgeagent.proto.keys import Entropy
    from edgeagent.proto.pathfinder import Pathfinder
    from edgeagent.proto.peering import Peering
    from edgeagent.proto.records import Entry, UdpAddress

OPENED_TOLD_MAX = 2  # of what routers opened for us,
MAPPED_TOLD_MAX = 3  # and of what servers saw of us, in the feed


class Whereabouts:
    """Drive it by the handle methods; what is new goes into our own feed, and to the paths of all peers."""

    def __init__(
        self,
        now: float,
        *,
        crypto: Crypto,
        client: ControlClient,
        finder: Pathfinder,
        peering: Peering,
        network: str,
        device: str,
        entropy: Entropy,
        introduced: Callable[[float, Entry], None],
    ) -> None:
        self._crypto = crypto
        self._introduced = introduced
        self._client = client
        self._finder = finder
        self._peering = peering
        self._own: list[UdpAddress] = []
        self._feed_generation = client.map.feed_generation
        self.inbox = Inbox(now, network, device, entropy)
        client.own_feed.disco_key = finder.public_key
        client.own_feed.inbox = self.inbox.capability

    def handle_addresses(self, now: float, endpoints: list[UdpAddress]) -> bool:
        """False when we are where we were."""
        moved = endpoints != self._own
        self._own = endpoints
        if self._tell_endpoints(now):
            self._client.network_changed(now)
            self._peering.own_address_changed(now)
        return moved

    def handle_mappings(self, now: float, mapped: list[UdpAddress], uplink: int) -> None:
        self._finder.handle_mappings(now, mapped, uplink)
        self.tell_mappings(now)

    def handle_opened(self, now: float, opened: list[UdpAddress]) -> None:
        """Outside addresses and ports that routers have opened for us are others."""
        self._finder.shared.opened = opened
        self._tell_endpoints(now)

    def tell_mappings(self, now: float) -> None:
        """After what servers see of us has changed, or by which uplinks."""
        self._client.own_feed.nat = self._finder.shared.nat
        self._tell_endpoints(now)
        self._client.own_feed.changed(now, self._client.map)

    def handle_home_relay(self, now: float, relay: str | None) -> None:
        self._finder.home_relay = relay
        self._client.own_feed.home_relay = relay
        self._client.own_feed.changed(now, self._client.map)
        for link in self._peering:
            entry = self._client.records.get(link.device)
            if entry is not None:
                self._finder.know(now, entry)

    def handle_connected(self, now: float) -> None:
        """Before what the client has to say on a new connection."""
        self.inbox.connected(now)
        self._client.own_feed.inbox = self.inbox.capability

    def handle_map(self, now: float) -> None:
        """Another map is in use."""
        device_map = self._client.map
        self._finder.shared.device_map = device_map
        if device_map.feed_generation != self._feed_generation:  # somebody was removed who knew our inbox
            self._feed_generation = device_map.feed_generation
            self.inbox.rotate(now)
            self._client.own_feed.inbox = self.inbox.capability
            self._client.own_feed.changed(now, device_map)

    def take_signal(self, now: float, topic: str, payload: bytes) -> bool:
        """False for a topic that is no inbox of ours."""
        mine = self.inbox.take(topic)
        if mine:
            self._remember(now, payload)
            self._finder.handle_frame(now, payload, None)
        elif mine is False:
            self._finder.drops[DiscoDrop.STALE_INBOX] += 1
        return mine is not None

    def _remember(self, now: float, frame: bytes) -> None:
        """Who calls may be somebody whose record is held, and whose paths were let go of: there is no introduction."""
        sender = peek_sender(frame)
        if sender is not None and not self._finder.knows(sender):
            for entry in self._client.records:
                if entry.disco_key is not None and key_id(self._crypto, entry.disco_key) == sender:
                    self._introduced(now, entry)
                    return

    def _tell_endpoints(self, now: float) -> bool:
        """Put our own addresses, and where servers see us, into the feed. False when nothing changed."""
        client, shared = self._client, self._finder.shared
        outside = list(dict.fromkeys([*shared.opened[:OPENED_TOLD_MAX], *shared.mapped[:MAPPED_TOLD_MAX]]))
        told = list(dict.fromkeys([*self._own[: FEED_ENDPOINTS_MAX - len(outside)], *outside]))
        own = [endpoint for endpoint in self._own if is_usable(endpoint[0], client.map)]
        self._finder.handle_own(now, own)
        if not client.own_feed.set_endpoints(told, client.map):
            return False
        client.own_feed.changed(now, client.map)
        return True
