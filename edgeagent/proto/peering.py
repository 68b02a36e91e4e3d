"""WireGuard peers for the records in use: made on demand, at most `limits.peers`, the least recently used gives way.

A link is one device that we exchange packets with. It has one WireGuard peer, and for a moment two while the device
changes its node key: the allowed IPs move to the new one as soon as it can carry them, and only then the old one goes.
"""

from __future__ import annotations

from collections.abc import Iterator

from edgeagent.proto.constants import REJECT_AFTER_TIME_S
from edgeagent.proto.control_client import ControlClient
from edgeagent.proto.device import Device
from edgeagent.proto.endpoint import Endpoint
from edgeagent.proto.errors import LimitReached
from edgeagent.proto.pathfinder import Pathfinder
from edgeagent.proto.paths import candidates, from_endpoint, to_endpoint
from edgeagent.proto.peer import Peer
from edgeagent.proto.records import Entry, UdpAddress
from edgeagent.proto.refusals import ControlDrop
from edgeagent.proto.relay_endpoint import RelayEndpoint

IDLE_S = 15 * 60.0  # without a packet either way
SEARCH_S = 30.0  # a link used less long ago is worth a search for a path when its feed comes


class Link:
    """`peer` carries the traffic; `coming` is the same device under its next node key, until it answers."""

    __slots__ = ("boot", "candidates", "coming", "device", "made_at", "name", "peer", "up")

    def __init__(self, now: float, entry: Entry, peer: Peer) -> None:
        self.device = entry.record.device
        self.name = entry.record.name
        self.peer = peer
        self.coming: Peer | None = None
        self.candidates: list[UdpAddress] = []
        self.boot = entry.feed_boot
        self.made_at = now
        self.up = False

    def used_at(self) -> float:
        """When it last carried a packet, or came into being; also a bare handshake counts."""
        peer = self.peer
        return max(self.made_at, peer.last_traffic_at or self.made_at, peer.last_handshake_at or self.made_at)

    def is_live(self, now: float) -> bool:
        """Whether there are keys that can carry a packet."""
        at = self.peer.last_handshake_at
        return at is not None and now - at < REJECT_AFTER_TIME_S


class Peering:
    """`links` by device id. After any method the device's outputs are the caller's to drain."""

    def __init__(self, device: Device, client: ControlClient, finder: Pathfinder, peers_max: int) -> None:
        self._device = device
        self._client = client
        self._finder = finder
        self._peers_max = peers_max
        self.links: dict[str, Link] = {}
        self._evicted: list[Link] = []
        self.gave_way = 0  # links let go of because others needed the room
        self._moving: dict[str, Link] = {}  # those with a key that is coming

    def __iter__(self) -> Iterator[Link]:
        return iter(list(self.links.values()))

    def link_of(self, peer: Peer) -> Link | None:
        for link in self.links.values():
            if link.peer is peer or link.coming is peer:
                return link
        return None

    def take_evicted(self) -> list[Link]:
        """Links that gave way to others since the last call."""
        evicted, self._evicted = self._evicted, []
        return evicted

    # Making

    def connect(self, now: float, entry: Entry) -> Link:
        """The link to the device of `entry`, which we want to send to."""
        link = self.links.get(entry.record.device)
        if link is None:
            link = self._make(now, entry, entry.node_key())
        self._choose_endpoint(link, entry)
        return link

    def accept(self, now: float, entry: Entry, static_public: bytes) -> Link | None:
        """The link to the device of `entry`, which has begun a handshake under a key of its record that no peer has.

        None when the handshake is one that a device would not begin: under a key older than the one in use.
        """
        link = self.links.get(entry.record.device)
        if link is None:
            link = self._make(now, entry, static_public)
            link.candidates = self._candidates(entry)
            return link
        if static_public == link.peer.public_key:
            return link  # another initiation under it came at the same time, and brought the peer
        if link.is_live(now) and entry.record.key_end(static_public) < entry.record.key_end(link.peer.public_key):
            return None  # a replay: with the old key's peer, its last TAI64N was forgotten
        self._bring(now, link, entry, static_public)
        self._finder.know(now, entry)
        # Who signs a handshake with a new key sends nothing more under the old one
        self._complete_move(now, link)
        return self.links[link.device]

    def _make(self, now: float, entry: Entry, key: bytes) -> Link:
        self._make_room(now, None)
        link = Link(now, entry, self._add_peer(now, entry, key))
        self.links[link.device] = link
        self._give_addresses(link.peer, entry)
        self._client.feeds.use(link.device)
        self._finder.know(now, entry)
        self._finder.introduce(now, link.device)
        self._set_way(link.peer, link.device)
        return link

    def _bring(self, now: float, link: Link, entry: Entry, key: bytes) -> None:
        """Put a peer for another key of the same device beside the one in use, or in its place if there is no room."""
        if link.coming is not None and link.coming.public_key == key:
            return
        self._drop_coming(now, link)
        if self._make_room(now, link):
            link.coming = self._add_peer(now, entry, key)
            self._set_way(link.coming, link.device)
            self._moving[link.device] = link
        else:
            self.remove(now, link.device)
            again = self._make(now, entry, key)
            again.peer.set_endpoint(link.peer.endpoint)

    def _make_room(self, now: float, keep: Link | None) -> bool:
        """Let go of a key that is only coming, or of the link that was used least recently, but not of `keep`."""
        if len(self._device.peers) < self._peers_max:
            return True
        for link in self.links.values():
            if link.coming is not None and link is not keep:
                self._drop_coming(now, link)
                return True
        oldest = min((link for link in self.links.values() if link is not keep), key=Link.used_at, default=None)
        if oldest is None:
            return False
        self.gave_way += 1
        self._evicted.append(oldest)
        self.remove(now, oldest.device)
        return True

    def _give_addresses(self, peer: Peer, entry: Entry) -> None:
        """Make the peer's allowed IPs what its record says; an address that a later record gave away is left there."""
        wanted: dict[tuple[bytes, int], None] = {}
        for address, length in entry.record.prefixes():
            holder = self._client.records.holder(address) if length == 8 * len(address) else None
            if holder in (None, entry.record.device):
                wanted[address, length] = None
        allowed = self._device.allowed_ips
        for address, length in list(allowed.of_peer(peer)):
            if (address, length) not in wanted:
                allowed.remove(address, length, peer)
        try:
            for address, length in wanted:
                allowed.insert(address, length, peer)
        except LimitReached:
            self._client.count(ControlDrop.TABLE_FULL)  # what came first, its own addresses, is in

    # What comes to be known

    def record_came(self, now: float, entry: Entry) -> None:
        """A record changed: its addresses may be others, and a key that it no longer has is cut off at once."""
        link = self.links.get(entry.record.device)
        if link is None:
            return
        link.name = entry.record.name
        self._finder.know(now, entry)  # its pings name the keys of the record
        if link.coming is not None and not entry.record.has_node_key(link.coming.public_key):
            self._drop_coming(now, link)
        if not entry.record.has_node_key(link.peer.public_key):
            self._begin_move(now, link, entry)
            self._complete_move(now, link)
        link = self.links[link.device]
        self._give_addresses(link.peer, entry)
        for peer in (link.peer, link.coming):
            if peer is not None:
                peer.record = entry.record
                self._device.record_changed(now, peer)

    def feed_came(self, now: float, entry: Entry) -> None:
        """The device moved, started again, or changed its key."""
        link = self.links.get(entry.record.device)
        if link is None:
            return
        restarted = link.boot not in (b"", entry.feed_boot)
        link.boot = entry.feed_boot
        self._finder.know(now, entry)
        if not link.is_live(now) and now - link.used_at() < SEARCH_S:
            self._finder.introduce(now, link.device)
        self._choose_endpoint(link, entry)
        if entry.node_key() != link.peer.public_key:
            self._begin_move(now, link, entry)
        elif restarted or (link.peer.staged and not link.is_live(now)):
            link.peer.begin_handshake(now, anew=True)
            self._device.touched(link.peer)

    def _begin_move(self, now: float, link: Link, entry: Entry) -> None:
        self._bring(now, link, entry, entry.node_key())
        link = self.links[link.device]
        self._finder.know(now, entry)
        peer = link.coming or link.peer
        peer.set_endpoint(self._endpoint_for(link))
        peer.begin_handshake(now)
        self._device.touched(peer)

    def _complete_move(self, now: float, link: Link) -> None:
        new, old = link.coming, link.peer
        if new is None:
            return
        link.coming = None
        del self._moving[link.device]
        link.peer = new
        if new.endpoint is None:
            new.set_endpoint(old.endpoint)
        for address, length in list(self._device.allowed_ips.of_peer(old)):
            self._device.allowed_ips.insert(address, length, new)
        for packet in old.staged:
            new.stage(packet)
        self._remove_peer(now, link.device, old)

    def complete_moves(self, now: float) -> None:
        """After datagrams: a coming key that answered a handshake may be sent data under before it is confirmed."""
        for link in list(self._moving.values()):
            if link.coming is not None and link.coming.keypairs.next is not None:
                self._complete_move(now, link)

    def handshake_completed(self, now: float, peer: Peer) -> Link | None:
        """Returns the link if it came up by this."""
        link = self.link_of(peer)
        if link is None:
            return None
        if peer is link.coming:
            self._complete_move(now, link)
            link.peer.send_staged(now)
            self._device.touched(link.peer)
        came_up = not link.up
        link.up = True
        self.heard(link)
        return link if came_up else None

    def handshake_failed(self, now: float, peer: Peer) -> Link | None:
        """No answer for 90 s. Returns the link if it is gone by this; the next packet begins anew."""
        link = self.link_of(peer)
        if link is None:
            return None
        if peer is link.coming:
            self._drop_coming(now, link)
            return None
        entry = self._client.records.get(link.device)
        if entry is not None:
            entry.key_failed(peer.public_key)
            self._client.refresh(now, entry)
        self.remove(now, link.device)
        return link

    def heard(self, link: Link) -> None:
        """A packet of the peer was authenticated: remember where it came from, for the next start."""
        entry = self._client.records.get(link.device)
        endpoint = link.peer.endpoint
        if entry is not None and endpoint is not None and not isinstance(endpoint, RelayEndpoint):
            entry.last_endpoint = from_endpoint(endpoint)

    # Endpoints

    def _choose_endpoint(self, link: Link, entry: Entry) -> None:
        link.candidates = self._candidates(entry)
        if link.peer.endpoint is None:
            link.peer.set_endpoint(self._endpoint_for(link))

    def _candidates(self, entry: Entry) -> list[UdpAddress]:
        own = self._client.own_feed.endpoints
        return candidates(entry.endpoints, entry.last_endpoint, own, self._client.map)

    def _endpoint_for(self, link: Link) -> Endpoint | None:
        path = self._finder.current(link.device)
        if path is not None:
            return path.endpoint
        if link.peer.endpoint is not None:
            return link.peer.endpoint.unpinned()
        if not link.candidates:
            return None
        return (self._finder.ways_to(link.candidates[0]) or [to_endpoint(link.candidates[0])])[0]

    def _set_way(self, peer: Peer, device: str) -> None:
        """What is known already of the path; its changes come by LinkPaths."""
        mtu, fragment = self._finder.inner_mtu(device)
        peer.set_path_mtu(mtu, fragment=fragment)
        path = self._finder.current(device)
        peer.chosen = path is not None and not path.is_relay

    # Our own changes

    def own_address_changed(self, now: float) -> None:
        """Let the peers in use hear from our new address; they follow it."""
        for link in self.links.values():
            if link.peer.endpoint is not None:
                link.peer.set_endpoint(link.peer.endpoint.unpinned())
            if link.is_live(now):
                link.peer.send_keepalive(now)
                self._device.touched(link.peer)

    def own_key_changed(self, now: float) -> None:
        """Begin sessions under the new key before traffic has to wait for them."""
        for link in self.links.values():
            if link.is_live(now):
                link.peer.begin_handshake(now)
                self._device.touched(link.peer)

    # Ends

    def sweep(self, now: float, wall_s: float) -> list[tuple[Link, str]]:
        """Let go of what is idle or whose record ended, keep the records in use from being forgotten."""
        gone = []
        for link in self:
            entry = self._client.records.get(link.device)
            if entry is None or entry.record.not_after < wall_s:
                gone.append((link, "expired"))
            elif now - link.used_at() >= IDLE_S:
                gone.append((link, "idle"))
            else:
                self._client.records.touch(link.device)
                self._client.feeds.touch(link.device)
        for link, _ in gone:
            self.remove(now, link.device)
        return gone

    def remove(self, now: float, device: str) -> Link | None:
        """Cut a device off at once."""
        link = self.links.pop(device, None)
        if link is not None:
            self._drop_coming(now, link)
            self._remove_peer(now, device, link.peer)
            self._client.feeds.leave(device)
            self._finder.forget(device)
        return link

    def _drop_coming(self, now: float, link: Link) -> None:
        if link.coming is not None:
            self._remove_peer(now, link.device, link.coming)
            link.coming = None
            del self._moving[link.device]

    def _add_peer(self, now: float, entry: Entry, key: bytes) -> Peer:
        peer = self._device.add_peer(now, key)
        peer.remember(entry.timestamps.pop(key, b""))
        peer.record = entry.record
        return peer

    def _remove_peer(self, now: float, device: str, peer: Peer) -> None:
        """Its last timestamp stays with the record, as long as that has the key."""
        entry = self._client.records.get(device)
        if entry is not None:
            entry.timestamps = {key: at for key, at in entry.timestamps.items() if entry.record.has_node_key(key)}
            if entry.record.has_node_key(peer.public_key):
                entry.timestamps[peer.public_key] = peer.latest_timestamp
        self._device.remove_peer(now, peer.public_key)
