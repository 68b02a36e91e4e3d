"""Where WireGuard and disco meet: the endpoint of each link's peer follows the path that disco has chosen for it.

A peer without a disco key in its feed is WireGuard's alone: initiations go to all its candidates, its packets say where
it is. The others keep WireGuard's roaming as a hint: what is heard from elsewhere is probed at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeagent.proto.disco import DiscoDrop, Kind, classify
from edgeagent.proto.endpoint import Endpoint, Transmit
from edgeagent.proto.messages import INITIATION, TRANSPORT, TRANSPORT_SIZE_MIN
from edgeagent.proto.node_events import PathChanged
from edgeagent.proto.path import key_of
from edgeagent.proto.pathfinder import INTRODUCED_MAX, INTRODUCED_S, Pathfinder
from edgeagent.proto.relay_endpoint import RelayEndpoint

if TYPE_CHECKING:
    from edgeagent.proto.control_client import ControlClient
    from edgeagent.proto.device import Device
    from edgeagent.proto.established import Traffic
    from edgeagent.proto.outside import Outside
    from edgeagent.proto.pathtable import PeerPaths
    from edgeagent.proto.peer import Peer
    from edgeagent.proto.peering import Link, Peering
    from edgeagent.proto.records import Entry
    from edgeagent.proto.relays import Relays
    from edgeagent.proto.ways import WayOut

Batch = list[tuple[bytes, Endpoint, int]]

ASK_AGAIN_S = (0.35, 0.35, 0.7, 1.4)  # a wake-up takes a message through the broker and a login at the relay

COPIES_MAX = 3  # of what goes to a peer whose way is in doubt
_DATA = bytes((TRANSPORT, 0, 0, 0))


class LinkPaths:
    """Drive it by what comes in; `carry` after any input turns the device's transmits into the node's."""

    def __init__(
        self,
        device: Device,
        client: ControlClient,
        peering: Peering,
        finder: Pathfinder,
        relays: Relays,
        outside: Outside,
    ) -> None:
        self._device = device
        self._client = client
        self._peering = peering
        self._finder = finder
        self._relays = relays
        self._outside = outside
        self._introduced: dict[str, float] = {}  # devices without a link, that may be about to call
        # Links to devices that sleep: how often they were asked, and when again; None: often enough
        self._asleep: dict[str, tuple[Link, int, float | None]] = {}

    # Datagrams

    def split(self, now: float, batch: Batch) -> Batch:
        """What of `batch` is WireGuard's, also what came inside a relay's datagrams; the rest is taken in here."""
        wireguard = self._sort(now, batch)
        relayed = self._relays.drain_packets(now)
        return wireguard + self._sort(now, relayed) if relayed else wireguard

    def _sort(self, now: float, batch: Batch) -> Batch:
        wireguard: Batch = []
        for item in batch:
            datagram, source, ecn = item
            if datagram[:4] == _DATA:  # the shortest way for nearly all of them
                wireguard.append(item)
                continue
            kind = classify(datagram)
            if kind is Kind.WIREGUARD:
                wireguard.append(item)
            elif kind is Kind.DISCO:
                self._finder.handle_frame(now, datagram, source)
            elif kind is Kind.UNKNOWN or isinstance(source, RelayEndpoint):
                self._finder.drops[DiscoDrop.NOT_OURS] += 1
            elif kind is Kind.RELAY:
                self._relays.handle_datagram(now, datagram, source, ecn)
            else:
                self._outside.handle_datagram(now, datagram, source)
        return wireguard

    def received(self, now: float, batch: Batch) -> None:
        """After the device took `batch`: the ways that authentic traffic came on are alive."""
        before: Endpoint | None = None
        for datagram, source, _ in batch:
            if source is before:
                continue
            before = source
            for paths in self._finder.owners(source):
                link = self._peering.links.get(paths.device)
                if link is None or link.peer.rx_bytes == paths.rx_bytes:
                    continue
                paths.rx_bytes = link.peer.rx_bytes
                # The peer's endpoint is the source of what was authenticated last
                if link.peer.endpoint is not None and key_of(link.peer.endpoint) == key_of(source):
                    self._finder.heard(now, paths, source, is_data=len(datagram) > TRANSPORT_SIZE_MIN)
                    if source.is_relay:
                        self._relays.stay_awake(now)

    def roamed(self, now: float, link: Link, peer: Peer, source: Endpoint) -> None:
        """WireGuard has authenticated `peer` at another endpoint than the one in use."""
        paths = self._finder.peers.get(link.device)
        if paths is None:
            return
        paths.rx_bytes = link.peer.rx_bytes
        self._finder.roamed(now, link.device, source)
        current, heard_at = paths.current, peer.endpoint
        if current is None or heard_at is None:
            return
        # By a relay, where it was heard is where we are, or were; it may be at another by now
        if key_of(heard_at) != current.key or (current.is_relay and heard_at != current.endpoint):
            peer.set_endpoint(current.endpoint)

    # What the hub and feeds say

    def introduced(self, now: float, entry: Entry) -> None:
        """A device asked for us: read its feed, so that both sides begin to punch at once."""
        device = entry.record.device
        if device in self._peering.links:
            self._finder.introduce(now, device)
        elif len(self._introduced) < INTRODUCED_MAX and not self._client.feeds.is_full:
            self._introduced[device] = now
            self._client.feeds.use(device)
            if entry.disco_key is not None:  # the feed that comes now may be the one that is known
                self._finder.know(now, entry)
                self._finder.introduce(now, device)

    def feed_came(self, now: float, entry: Entry) -> None:
        """Of a device without a link."""
        device = entry.record.device
        if device in self._introduced and device not in self._peering.links:
            self._finder.know(now, entry)
            self._finder.introduce(now, device)

    # Whoever sleeps

    def not_at_relay(self, now: float, node_key: bytes) -> None:
        """A relay does not have the member of that key: it sleeps, and is being woken through the broker. Whatever was
        sent to it is lost, so it is asked again soon, a few times; then as WireGuard does until that gives up."""
        self._finder.not_at_relay(now, node_key)
        self._asleep = {device: row for device, row in self._asleep.items() if self._sleeps(now, device, row[0])}
        for link in self._peering.links.values():
            if link.peer.public_key == node_key and self._sleeps(now, link.device, link):
                self._asleep.setdefault(link.device, (link, 0, now + ASK_AGAIN_S[0]))

    def _sleeps(self, now: float, device: str, link: Link) -> bool:
        """Whether something waits for it still."""
        return self._peering.links.get(device) is link and bool(link.peer.staged) and not link.is_live(now)

    def handle_timeout(self, now: float) -> None:
        for device, (link, count, at) in list(self._asleep.items()):
            if at is None or now < at:
                continue
            if not self._sleeps(now, device, link):
                del self._asleep[device]
                continue
            count += 1
            self._asleep[device] = (link, count, now + ASK_AGAIN_S[count] if count < len(ASK_AGAIN_S) else None)
            link.peer.begin_handshake(now, anew=True)
            self._device.touched(link.peer)

    def poll_timeout(self) -> float | None:
        return min((at for _, _, at in self._asleep.values() if at is not None), default=None)

    def sweep(self, now: float) -> None:
        """Let go of those that were announced and never came."""
        for device, at in list(self._introduced.items()):
            linked = device in self._peering.links
            if linked or now - at >= INTRODUCED_S:
                del self._introduced[device]
                if not linked:
                    self._finder.forget(device)
                    self._client.feeds.leave(device)

    @property
    def waiting(self) -> bool:
        """Whether `sweep` has something to look after."""
        return bool(self._introduced)

    def forget(self, device: str) -> None:
        """The device was removed."""
        if self._introduced.pop(device, None) is not None:
            self._client.feeds.leave(device)
        self._finder.forget(device)

    # Choice

    def apply(self, now: float) -> list[PathChanged]:
        """Let the peers follow what disco has chosen."""
        events = []
        for device in self._finder.drain_answered():
            link = self._peering.links.get(device)
            if link is not None and link.peer.staged and not link.is_live(now):
                # Whoever slept when the last initiation went out is there now
                link.peer.begin_handshake(now, anew=True)
                self._device.touched(link.peer)
        for device, moved in self._finder.drain_changed():
            link, path = self._peering.links.get(device), self._finder.current(device)
            if link is None:
                continue
            mtu, fragment = self._finder.inner_mtu(device)
            for peer in (link.peer, link.coming):
                if peer is None:
                    continue
                peer.set_path_mtu(mtu, fragment=fragment)
                peer.chosen = path is not None and not path.is_relay
                if path is None or not moved:
                    continue
                unknown = peer.endpoint is None
                if peer.endpoint is None or key_of(peer.endpoint) != path.key or path.is_relay:
                    peer.set_endpoint(path.endpoint)
                if peer.staged and (unknown or not link.is_live(now)):
                    peer.begin_handshake(now, anew=True)
                    self._device.touched(peer)
            if path is not None and moved:
                if isinstance(path.endpoint, RelayEndpoint):
                    self._relays.hurry(now, path.endpoint.relay)
                events.append(PathChanged(device, link.name, path.kind.value, path.endpoint, path.latency_ms))
        return events

    def handle_uplinks(self, now: float, uplinks: list[WayOut], *, several: bool) -> list[PathChanged]:
        """Our uplinks are others: nothing stays bound to one that is down. Peers that lost their path this way hear
        from us at once by the new one, so that they do not go on sending to the old."""
        self._finder.handle_uplinks(now, uplinks, several=several)
        for link in self._peering:
            for peer in (link.peer, link.coming):
                if peer is not None and peer.endpoint is not None and not self._finder.is_open(peer.endpoint):
                    peer.set_endpoint(Endpoint(peer.endpoint.addr))
        events = self.apply(now)
        for event in events:
            link = self._peering.links[event.device]
            if link.is_live(now) and self._finder.peers[event.device].is_wanted(now):
                link.peer.send_keepalive(now)
                self._device.touched(link.peer)
        return events

    # Transmits

    def carry(self, now: float, transmits: list[Transmit]) -> list[Transmit]:
        """Add copies: of initiations to every candidate while none is known to work, of all else while in doubt."""
        copies = []
        for transmit in transmits:
            first = transmit.datagrams[0]
            for paths in self._sent_to(transmit.endpoint):
                if transmit.endpoint.is_relay:
                    self._keep_to_home(paths, transmit)
                # A keepalive wants no answer, so it starts no search and no doubt
                is_data = len(first) > TRANSPORT_SIZE_MIN or first[0] != TRANSPORT
                if is_data:
                    largest = max(map(len, transmit.datagrams))
                    also = self._finder.sent(now, paths, largest, len(transmit.datagrams))
                    paths.keep(now, transmit.datagrams, transmit.ecn)
                else:
                    also = paths.copies
                # What fits the way in doubt need not fit another one
                copies += [Transmit(endpoint, transmit.datagrams, transmit.ecn, fragment=True) for endpoint in also]
            if first[0] == INITIATION:
                copies += self._fan_out(now, transmit)
        return transmits + copies

    def carried(self, now: float, reports: list[Traffic]) -> None:
        """An engine moved packets of peers by itself: what sending and receiving them here would have led to."""
        for traffic in reports:
            endpoint = traffic.peer.endpoint
            if traffic.last_data_sent_at is None or endpoint is None:
                continue
            for paths in self._sent_to(endpoint):
                if endpoint.is_relay:
                    self._keep_to_home(paths, Transmit(endpoint, []))
                self._finder.sent(traffic.first_data_sent_at or now, paths, traffic.largest, traffic.count)
            if isinstance(endpoint, RelayEndpoint):
                self._relays.carried(now, endpoint)
        heard: Batch = []
        for traffic in reports:
            like = _DATA if traffic.last_data_received_at is None else _DATA.ljust(TRANSPORT_SIZE_MIN + 1)
            heard += [(like, source, 0) for source in traffic.heard]
        self.received(now, heard)
        for traffic in reports:
            endpoint = traffic.peer.endpoint
            for paths in [] if endpoint is None or endpoint.is_relay else self._sent_to(endpoint):
                self._finder.unanswered(now, paths, traffic.unanswered_since, traffic.last_data_sent_at)

    def ways(self, peer: Peer) -> list[Endpoint]:
        """Where its packets go, and then who gets copies."""
        if peer.endpoint is None:
            return []
        link = self._peering.link_of(peer)
        paths = None if link is None else self._finder.peers.get(link.device)
        return [peer.endpoint] if paths is None else [peer.endpoint, *paths.copies[:COPIES_MAX]]

    def quiet_s(self, peer: Peer) -> float | None:
        """So long what goes to it may stay without an answer by its first way; None where that is not to be noticed."""
        link = self._peering.link_of(peer)
        paths = None if link is None else self._finder.peers.get(link.device)
        current = None if paths is None else paths.current
        if paths is None or current is None or peer.endpoint is None or key_of(peer.endpoint) != current.key:
            return None
        return paths.quiet_s

    def _sent_to(self, endpoint: Endpoint) -> list[PeerPaths]:
        """Whose traffic goes there."""
        owners = self._finder.owners(endpoint)
        if not owners and self._finder.pathless:
            owners = self._pathless(endpoint)
        return owners if len(owners) < 2 else self._whose(owners, endpoint)

    def _keep_to_home(self, paths: PeerPaths, transmit: Transmit) -> None:
        """By which relay a peer is reached, its feed tells, and not by which it was heard: there packets may come late,
        and when both sides took it for the place to answer to, neither would leave it again. Only while that relay does
        not serve us and the other one does, WireGuard has its way."""
        heard, home = transmit.endpoint, None if paths.current is None else paths.current.endpoint
        link = self._peering.links.get(paths.device)
        if link is None or not isinstance(heard, RelayEndpoint) or not isinstance(home, RelayEndpoint):
            return
        serves = self._relays.serves
        as_heard = heard.relay != home.relay and serves(heard.relay) and not serves(home.relay)
        for peer in (link.peer, link.coming):
            if peer is not None:
                peer.relay = None if as_heard else home
                if not as_heard and peer.endpoint is heard:
                    peer.set_endpoint(home)
        if not as_heard:
            transmit.endpoint = home

    def _whose(self, owners: list[PeerPaths], endpoint: Endpoint) -> list[PeerPaths]:
        """Of several with one way, those that this endpoint is of; all where that cannot be told."""
        links = self._peering.links
        found = [each for each in owners if each.device in links and links[each.device].peer.endpoint is endpoint]
        return found or list(owners)

    def _pathless(self, endpoint: Endpoint) -> list[PeerPaths]:
        """Whose traffic goes there without a path: it is a reason to look for one."""
        for device, paths in self._finder.pathless.items():
            link = self._peering.links.get(device)
            if link is not None and link.peer.endpoint is endpoint:
                return [paths]
        return []

    def _fan_out(self, now: float, transmit: Transmit) -> list[Transmit]:
        """The answer to one of the copies tells WireGuard which endpoint works."""
        for link in self._peering.links.values():
            peer = link.peer if link.peer.endpoint is transmit.endpoint else link.coming
            if peer is None or peer.endpoint is not transmit.endpoint:
                continue
            again = peer.timers.attempts > 0
            if again or (not link.is_live(now) and self._finder.current(link.device) is None):
                sent_to = key_of(transmit.endpoint)
                endpoints = [way for candidate in link.candidates for way in self._finder.ways_to(candidate)]
                return [
                    Transmit(endpoint, transmit.datagrams, transmit.ecn)
                    for endpoint in endpoints
                    if key_of(endpoint) != sent_to
                ]
        return []
