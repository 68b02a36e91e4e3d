"""One device of the mesh without input or output: a WireGuard device, and the control plane that tells it of its peers.

```
datagrams, packets ──▶ Device ──NO_PEER, UnknownPeer──▶ Node ──lookup──▶ ControlClient ◀── MQTT messages
                          ▲                               │
                          └──────── Peering ◀─────────────┘  records, feeds, removals
```
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from edgeagent.proto import node_status, snapshot
from edgeagent.proto.boundedqueue import BoundedQueue
from edgeagent.proto.constants import MTU_DEFAULT, NAME_SERVER
from edgeagent.proto.control_client import Answer, ControlClient
from edgeagent.proto.control_news import (
    Answered,
    CommandCame,
    EpochBehind,
    FeedCame,
    LockChanged,
    MapCame,
    News,
    PartCame,
    RecordCame,
    RecordLost,
    RoutersTold,
)
from edgeagent.proto.crypto import Crypto
from edgeagent.proto.device import Device
from edgeagent.proto.devicemap import DeviceMap
from edgeagent.proto.endpoint import Endpoint, Transmit
from edgeagent.proto.epochs import Epochs
from edgeagent.proto.events import EndpointRoamed, Event, HandshakeCompleted, HandshakeFailed, UnknownPeer
from edgeagent.proto.identity import Admission, Identity
from edgeagent.proto.keyrenewal import KeyRenewal, Step
from edgeagent.proto.keys import Entropy
from edgeagent.proto.limits import Limits
from edgeagent.proto.linkpaths import LinkPaths
from edgeagent.proto.node_events import (
    AdmissionChanged,
    CacheDirty,
    Commanded,
    IdentityChanged,
    LockPinned,
    MapChanged,
    NodeEvent,
    NodeKeyRenewed,
    PeerGone,
    PeerUp,
    ReconnectWanted,
    Removed,
    Resolved,
    UpdatePart,
)
from edgeagent.proto.outbox import Outbox
from edgeagent.proto.pathfinder import Pathfinder
from edgeagent.proto.peering import Link, Peering
from edgeagent.proto.publishing import Publish
from edgeagent.proto.reach import Reach
from edgeagent.proto.records import Entry, Query, Record, UdpAddress
from edgeagent.proto.refusals import ControlDrop, ControlError
from edgeagent.proto.relay_endpoint import RelayEndpoint
from edgeagent.proto.relay_sessions import StreamWish
from edgeagent.proto.resolver import Resolver
from edgeagent.proto.tai64n import Tai64nClock
from edgeagent.proto.tunnelrules import TunnelRules
from edgeagent.proto.walltime import WallFloor
from edgeagent.proto.whereabouts import Whereabouts

if TYPE_CHECKING:
    from edgeagent.proto.established import Traffic
    from edgeagent.proto.lock import Lock
    from edgeagent.proto.peer import Peer
    from edgeagent.proto.prefixes import Prefix
    from edgeagent.proto.routers import Routers
    from edgeagent.proto.uplinks import Uplinks

SWEEP_S = 30.0
ROUNDS_MAX = 8  # of events that cause events; handshakes that are fed again cause at most one more


class Node:
    """Drive it by the handle methods; after each, in this order: drain events and save what they ask for, then drain
    transmits, packets, publishes, subscriptions, stream wishes and stream writes, then sleep until `poll_timeout()` or
    `next_connect_at`. A stream is a connection to a relay; the number in a StreamWish names it from then on.

    To connect: `begin_session(now)`, drain events, then MQTT CONNECT as `client_id` / `username` / `password` with
    `last_will(now)` and a persistent session; then `handle_connected`. `wall` is shared with nobody; `saved` is an
    earlier `snapshot()`; `lock` what was kept at LockPinned; `boot` is the boot id (16 B); `facts` at most
    16 texts about the device. Raises ControlError when the admission's map is not this device's.
    """

    def __init__(
        self,
        now: float,
        *,
        crypto: Crypto,
        entropy: Entropy,
        jitter: Callable[[], float],
        tai64n: Tai64nClock,
        limits: Limits,
        identity: Identity,
        admission: Admission,
        wall: WallFloor,
        boot: bytes,
        version: str,
        facts: dict[str, str],
        saved: bytes | None,
        mtu: int = MTU_DEFAULT,
        lock: Lock | None = None,
    ) -> None:
        self._crypto = crypto
        self._entropy = entropy
        self._tai64n = tai64n
        self._dirty = False
        self.events: BoundedQueue[NodeEvent] = BoundedQueue(limits.events)
        self._sweep_at: float | None = None
        self.limits = limits
        self.identity = identity
        self.admission = admission
        self.wall = wall
        self.removed = False
        fields, bad_cache = self._read_cache(saved)
        self._epochs = Epochs(fields["e"] if fields is not None else 0)
        self._outbox = Outbox(
            crypto=crypto,
            entropy=entropy,
            identity=identity,
            network=admission.network,
            wall=wall,
            epochs=self._epochs,
        )
        self.client = ControlClient(
            now,
            crypto=crypto,
            jitter=jitter,
            limits=limits,
            identity=identity,
            admission=admission,
            wall=wall,
            outbox=self._outbox,
            boot=boot,
            version=version,
            facts=facts,
            lock=lock,
        )
        if fields is not None:
            snapshot.restore(now, fields, admission.network, self.client, wall)
        if bad_cache:
            self.client.count(ControlDrop.BAD_CACHE)
        self.device = Device(now, crypto=crypto, entropy=entropy, jitter=jitter, tai64n=tai64n, limits=limits, mtu=mtu)
        self.device.set_private_key(now, identity.node_private)
        self.device.keep(NAME_SERVER)
        self.device.avoid(lambda endpoint: self.map.holds(endpoint.ip_bytes()))
        self._rules = TunnelRules(self.device, self.client)
        self.finder = Pathfinder(
            now, crypto=crypto, entropy=entropy, device_map=self.map, node_key=identity.node_key, mtu=mtu
        )
        self.peering = Peering(self.device, self.client, self.finder, limits.peers)
        self.reach = Reach(now, crypto=crypto, entropy=entropy, jitter=jitter, private=identity.node_private)
        self.relays, self.outside = self.reach.relays, self.reach.outside
        self._paths = LinkPaths(self.device, self.client, self.peering, self.finder, self.relays, self.outside)
        self.whereabouts = Whereabouts(
            now,
            crypto=crypto,
            client=self.client,
            finder=self.finder,
            peering=self.peering,
            network=admission.network,
            device=identity.device_id,
            entropy=entropy,
            introduced=self._paths.introduced,
        )
        self.reach.join(self.finder, self._paths, self.whereabouts)
        self.resolver = Resolver(client=self.client, peering=self.peering, device=self.device, limits=limits)
        self.renewal = KeyRenewal(identity, jitter)
        self._set_wall(now)
        self._renew_key(now)
        self.reach.use_map(now, self.map)
        self._rules.follow(now)
        self._rules.meet_clients(now)
        if self.map.routes or any(entry.record.routes for entry in self.client.records):
            self._need_routers()
        self._settle(now)

    # Who we are

    @property
    def routers(self) -> Routers | None:
        """None as long as nobody is known to route for others."""
        return self.peering.routers

    @property
    def map(self) -> DeviceMap:
        return self.client.map

    @property
    def client_id(self) -> str:
        return self.identity.broker_login(self.admission.network, self.map)[0]

    @property
    def username(self) -> str:
        return self.identity.device_id

    @property
    def password(self) -> str:
        return self.identity.broker_login(self.admission.network, self.map)[1]

    @property
    def hosts(self) -> list[str]:
        """Brokers, "host:port"."""
        return self.admission.hosts

    @property
    def ca_der(self) -> bytes:
        return self.admission.ca_der

    @property
    def mqtt_keepalive_s(self) -> int:
        return self.client.keepalive_s

    @property
    def next_connect_at(self) -> float | None:
        """When to connect to a broker; None while connected."""
        return self.client.next_connect_at

    # Inputs: the broker

    def begin_session(self, now: float) -> None:
        """Before each connection: a new epoch."""
        if self._epochs.begin():
            self._mark_dirty(urgent=True)

    def set_facts(self, facts: dict[str, str]) -> None:
        """What the hub is to know of the device (at most 16 texts), from the next birth on."""
        self.client.facts = facts

    def tell_facts(self, now: float) -> None:
        """A birth now, for the sake of the facts in it, where there is a connection."""
        if self.client.connected:
            self.client.write_birth(now)
        self._settle(now)

    def answer(self, now: float, body: dict[str, Any]) -> int:
        """Tell the hub of a command (`answer` in control.py). Returns the bytes of it; 0: there is no connection."""
        if not self.client.connected:
            return 0
        return self._outbox.write(now, "answer", body)

    def tell(self, now: float, verb: str, body: dict[str, Any]) -> int:
        """`fetch` or `report` of updates and settings. Returns the bytes of it; 0: there is no connection."""
        return self._outbox.write(now, verb, body) if self.client.connected else 0

    def renew_key(self, now: float) -> None:
        """Another node key now, whatever the age of the one in use. NodeKeyRenewed tells when it is there."""
        self.renewal.hurry()
        self._renew_key(now)
        self._settle(now)

    def last_will(self, now: float) -> Publish:
        """To be given to the broker with the connection."""
        return self._outbox.last_will(now)

    def handle_connected(self, now: float, session_present: bool) -> None:
        self.whereabouts.handle_connected(now)
        self.relays.broker_reachable = True
        self.client.handle_connected(now, session_present)
        self._renew_key(now)
        self._settle(now)

    def handle_disconnected(self, now: float) -> None:
        """The connection ended, or could not be made."""
        self.relays.broker_reachable = False
        self.client.handle_disconnected(now)
        self._settle(now)

    def handle_message(self, now: float, topic: str, payload: bytes) -> None:
        if not self.whereabouts.take_signal(now, topic, payload):
            self.client.handle_message(now, topic, payload)
        self._set_wall(now)
        self._renew_key(now)
        self._settle(now)

    def farewell(self, now: float, *, returns: bool = False) -> None:
        """Before the connection is closed on purpose: publish and transmit what this leaves, then close. `returns`: the
        agent begins anew at once."""
        self.client.farewell(now, returns=returns)
        self.reach.close(now)

    def advertise(self, now: float, routes: list[Prefix], *, snat: bool) -> None:
        """Offer to route prefixes for others; those of an exit node are among them. Told with a birth."""
        if (routes, snat) != self.client.advertised:
            self.client.advertised = (routes, snat)
            self.tell_facts(now)

    def use_routes(self, now: float, *, accept: bool, exit_name: str) -> None:
        """Whether to use prefixes behind others, and which exit node ("" for none)."""
        if self.routers is not None or exit_name or not accept or self.map.routes:
            self._need_routers().settle_for(accept, exit_name)
        self._settle(now)

    # Inputs: the tunnel

    def handle_datagrams(self, now: float, batch: list[tuple[bytes, Endpoint, int]]) -> None:
        """Datagrams from the UDP sockets: (datagram, source, ECN field of the outer header)."""
        self._take(now, batch)
        self._settle(now)

    def handle_packets(self, now: float, packets: list[bytes]) -> None:
        """IP packets from the TUN."""
        self.reach.used(now)
        self._send(now, packets)
        if self.routers is not None:
            self.routers.used(now)
        self._settle(now)

    def handle_opened(self, now: float, batch: list[tuple[Peer, bytes, int]]) -> None:
        """Packets out of the tunnel that an engine has opened, and knows no flow for."""
        self.device.handle_opened(now, batch)
        self._settle(now)

    def handle_traffic(self, now: float, reports: list[Traffic]) -> None:
        """What an engine moved by itself."""
        if any(traffic.last_data_sent_at is not None for traffic in reports):
            self.reach.used(now)
            if self.routers is not None:
                self.routers.used(now)
        self.device.handle_traffic(now, reports)
        self._paths.carried(now, reports)
        self._settle(now)

    def carry_sealed(self, now: float, transmit: Transmit) -> None:
        """What an engine sealed for a member of a relay that it does not reach by itself."""
        self.reach.send(now, [transmit])
        self._settle(now)

    def handle_addresses(self, now: float, endpoints: list[UdpAddress], kept: Collection[int] = ()) -> None:
        """Where this device may be reached: its own (address of 4 or 16 B, UDP port), the best first. The streams to
        relays that are `kept` leave as before."""
        self.reach.handle_addresses(now, endpoints, kept)
        self._settle(now)

    def handle_open_ports(self, now: float, opened: list[UdpAddress]) -> None:
        """Outside addresses and ports that routers have opened for our UDP port, all that hold at present."""
        self.whereabouts.handle_opened(now, opened)
        self._settle(now)

    def handle_uplinks(self, now: float, uplinks: Uplinks) -> None:
        """After `uplinks.handle_links`: which they are. From now on they are this node's to drive, but for that input.
        `uplinks.bound` are to have sockets of their own; before `handle_addresses`, so that it is known which uplink an
        address is of."""
        self.reach.handle_uplinks(now, uplinks)
        self._settle(now)

    # Inputs: relays

    def handle_relay_addresses(self, now: float, relay: str, addresses: list[UdpAddress]) -> None:
        """Where the UDP port of a relay is whose hosts are names: what RelayNamesChanged asked for."""
        self.reach.handle_relay_addresses(now, relay, addresses)
        self._settle(now)

    def set_price(self, now: float, *, on_demand: bool, sparing: int = 1) -> None:
        """What the uplink costs. `on_demand`: a session at a relay costs too much to be kept, and begins when it is of
        use; `sparing`: so many times rarer than usual are probes that repeat."""
        self.finder.shared.sparing = sparing
        self.relays.set_on_demand(now, on_demand)
        self._settle(now)

    def keep_bindings(self, now: float, interval_s: float, learnt: bool) -> None:
        """A NAT binding in use is to carry something each `interval_s`; whether that is what it takes, or a guess."""
        self.relays.keep_bindings(now, interval_s, learnt)
        self._settle(now)

    def knock(self, now: float, relay: str, challenge: bytes, address: UdpAddress) -> bool:
        """Have a relay send to another socket of ours (relay_trial.py). False where no session there carries that."""
        known = self.relays.sessions.knock(now, relay, challenge, address)
        self._settle(now)
        return known

    def stream_opened(self, now: float, number: int) -> None:
        """The relay answered the HTTP upgrade."""
        self.relays.stream_opened(now, number)
        self._settle(now)

    def handle_stream(self, now: float, number: int, data: bytes) -> None:
        self.relays.handle_stream(now, number, data)
        self._take(now, [])
        self._settle(now)

    def stream_blocked(self, number: int, *, blocked: bool) -> None:
        """A write did not take all; or, later, the connection takes more again."""
        self.relays.sessions.stream_blocked(number, blocked=blocked)

    def stream_closed(self, now: float, number: int) -> None:
        """The connection ended, or could not be made; not for one that a StreamWish has closed."""
        self.relays.stream_closed(now, number)
        self._settle(now)

    def transmit_failed(self, now: float, endpoint: Endpoint) -> None:
        """The kernel would not send from `endpoint.local`: let go of it."""
        self.device.transmit_failed(now, endpoint)
        self.finder.unpin(now, endpoint)
        self._settle(now)

    def transmit_too_long(self, now: float, endpoint: Endpoint, datagram_bytes: int) -> None:
        """The kernel would not send so long a datagram to `endpoint`: the first link takes less."""
        self.finder.refused(now, endpoint, datagram_bytes)
        self._settle(now)

    # Time

    def handle_timeout(self, now: float) -> None:
        self.device.handle_timeout(now)
        self.client.handle_timeout(now)
        self.resolver.handle_timeout(now)
        self.finder.handle_timeout(now)
        self.reach.handle_timeout(now)
        self._paths.handle_timeout(now)
        if self.routers is not None:
            self.routers.handle_timeout(now)
            self._send(now, self.routers.drain_packets())
        if self._sweep_at is not None and self._sweep_at <= now:
            self._sweep_at = None
            self._paths.sweep(now)
            for link, reason in self.peering.sweep(now, self.wall.at(now)):
                self._tell_gone(link, reason)
        self._renew_key(now)
        self._settle(now)

    def poll_timeout(self) -> float | None:
        """When `handle_timeout` is next wanted; None for never. Connecting has its own time, `next_connect_at`."""
        times = [
            self.device.poll_timeout(),
            self.client.poll_timeout(),
            self.resolver.poll_timeout(),
            self.renewal.poll_timeout(),
            self.finder.poll_timeout(),
            self.reach.poll_timeout(),
            self._paths.poll_timeout(),
            None if self.routers is None else self.routers.poll_timeout(),
            self._sweep_at,
        ]
        return min((at for at in times if at is not None), default=None)

    # Outputs

    def drain_transmits(self) -> list[Transmit]:
        return self.reach.drain_transmits()

    def drain_packets(self) -> list[bytes]:
        return self.device.drain_packets() + self.resolver.drain_packets()

    def ways(self, peer: Peer) -> list[Endpoint]:
        """Where an engine sends a peer's packets, and then who gets copies; empty where nowhere."""
        return self._paths.ways(peer)

    def quiet_s(self, peer: Peer) -> float | None:
        """So long what an engine sends to a peer may stay without an answer before it is to say so; None: for ever."""
        return self._paths.quiet_s(peer)

    def relay_sessions(self) -> list[tuple[Endpoint, int]]:
        return self.relays.sessions.by_datagrams()

    def relay_way(self, endpoint: Endpoint) -> tuple[Endpoint, int, int] | None:
        return self.relays.way_to(endpoint) if isinstance(endpoint, RelayEndpoint) else None

    def relay_source(self, address: UdpAddress, session: int, channel: int) -> Endpoint | None:
        return self.relays.sessions.source_of(address, session, channel)

    def drain_publishes(self) -> list[Publish]:
        return self.client.drain_publishes()

    def drain_subscriptions(self) -> list[tuple[str, bool]]:
        """(topic filter, whether to subscribe, else unsubscribe); to be sent before what is published."""
        changes = self.client.drain_subscriptions()
        return changes + self.whereabouts.inbox.drain() if self.client.connected else changes

    def drain_stream_wishes(self) -> list[StreamWish]:
        """Connections to relays that are to be opened, or closed."""
        return self.relays.drain_stream_wishes()

    def drain_stream_writes(self) -> list[tuple[int, bytes]]:
        """(stream, what to write to it); to be drained after the wishes, and none of a stream that is blocked."""
        return self.relays.drain_stream_writes()

    def drain_events(self) -> list[NodeEvent]:
        events = list(self.events)
        self.events.clear()
        return events

    # Questions from people and programs

    def lookup(self, now: float, query: Query) -> Record | Answer:
        """("a", address) | ("h", host name) | ("k", node key). The end of a PENDING one is a Resolved event."""
        found = self.client.lookup(now, query)
        self._settle(now)
        return found.record if isinstance(found, Entry) else found

    def status(self, now: float) -> dict[str, object]:
        """Everything a person may want to know, as JSON could say it."""
        return node_status.status(now, self)

    def peers(self, now: float) -> list[dict[str, object]]:
        return node_status.peers(now, self)

    def snapshot(self, now: float) -> bytes:
        """What `saved` wants at the next start. Secret: it holds feed keys."""
        self._dirty = False
        return snapshot.write(
            now,
            self._crypto,
            self.identity,
            self.admission.network,
            epochs=self._epochs,
            wall=self.wall,
            client=self.client,
        )

    # What the parts tell each other

    def _settle(self, now: float) -> None:
        """Carry news between the control plane and the tunnel until there is no more."""
        for _ in range(ROUNDS_MAX):
            news = self.client.drain_news()
            events = self.device.drain_events()
            for item in news:
                self._take_news(now, item)
            for event in events:
                self._take_event(now, event)
            if not news and not events:
                break
        for link in self.peering.take_evicted():
            self._tell_gone(link, "gave way")
        for _ in range(2):  # what is learnt of relays and mappings moves paths, and that is all it does
            self.events.extend(self._paths.apply(now))
            self.reach.send(now, self._paths.carry(now, self.device.drain_transmits()))
            for device, frame in self.finder.drain_signals():
                self._signal(device, frame)
            if not self.reach.follow(now):
                break
        self.events.extend(self.reach.drain_events())
        if (self.peering.links or self._paths.waiting) and self._sweep_at is None:
            self._sweep_at = now + SWEEP_S

    def _take(self, now: float, batch: list[tuple[bytes, Endpoint, int]]) -> None:
        """Datagrams, and what relays have brought meanwhile."""
        batch = self._paths.split(now, batch)
        if batch:
            self.device.handle_datagrams(now, batch)
            self._paths.received(now, batch)
            self.peering.complete_moves(now)

    def _send(self, now: float, packets: list[bytes]) -> None:
        for unsent in self.device.handle_packets(now, packets):
            if self.removed:
                self.device.refuse(unsent)
            else:
                self.resolver.unsent(now, unsent)

    def _signal(self, device: str, frame: bytes) -> None:
        entry = self.client.records.get(device)
        if self.client.connected and entry is not None and entry.inbox is not None:
            self._outbox.write_signal(device, entry.inbox, frame)

    def _take_news(self, now: float, news: News) -> None:
        if isinstance(news, RecordCame):
            if self.routers is not None or news.entry.record.routes:
                self._need_routers().record_came(now, news.entry)
            self.peering.record_came(now, news.entry)
            if news.introduced:
                self._paths.introduced(now, news.entry)
            self._mark_dirty(urgent=False)
        elif isinstance(news, FeedCame):
            self.peering.feed_came(now, news.entry)
            self._paths.feed_came(now, news.entry)
            self.resolver.ready(now, news.entry)
            self._mark_dirty(urgent=False)
        elif isinstance(news, Answered):
            self.resolver.answered(now, news.query, news.entry)
            self.events.append(Resolved(news.query, None if news.entry is None else news.entry.record))
        elif isinstance(news, RecordLost):
            self._paths.forget(news.entry.record.device)
            link = self.peering.remove(now, news.entry.record.device)
            if self.routers is not None:
                self.routers.record_lost(now, news.entry.record.device)
            if link is not None:
                self._tell_gone(link, "removed" if news.gone else "refused by the lock" if news.locked else "gave way")
            if news.gone or news.locked:
                self.device.forget_flows(news.entry.record.device)
            self._mark_dirty(urgent=news.gone)
        elif isinstance(news, RoutersTold):
            self._need_routers().told(now, news.address, news.via)
        elif isinstance(news, MapCame):
            if self.routers is not None or self.map.routes:
                self._need_routers().map_came()
            self._rules.meet_clients(now)
            self.whereabouts.handle_map(now)
            self.reach.use_map(now, self.map)
            self._rules.follow(now)
            self.events.append(AdmissionChanged())
            self.events.append(MapChanged(self.map))
        elif isinstance(news, LockChanged):
            self.events.append(LockPinned())
            self._mark_dirty(urgent=False)
        elif isinstance(news, EpochBehind):
            self.events.append(ReconnectWanted())
        elif isinstance(news, CommandCame):
            self.events.append(Commanded(news.body))
        elif isinstance(news, PartCame):
            self.events.append(UpdatePart(news.body))
        else:
            self._cut_off(now)

    def _take_event(self, now: float, event: Event) -> None:
        if isinstance(event, HandshakeCompleted):
            link = self.peering.handshake_completed(now, event.peer)
            if link is not None:
                self.events.append(PeerUp(link.device, link.name, link.peer.endpoint))
                self._mark_dirty(urgent=False)
        elif isinstance(event, EndpointRoamed):
            link = self.peering.link_of(event.peer)
            if link is not None and event.peer is link.peer:
                self.peering.heard(link)
            if link is not None:
                self._paths.roamed(now, link, event.peer, event.endpoint)
        elif isinstance(event, HandshakeFailed):
            link = self.peering.handshake_failed(now, event.peer)
            if link is not None:
                self._tell_gone(link, "silent")
        elif isinstance(event, UnknownPeer) and not self.removed:
            self.resolver.stranger(now, event)

    def _need_routers(self) -> Routers:
        if self.peering.routers is None:
            from edgeagent.proto.routers import Routers  # most networks have none: 0.1 MiB

            self.peering.routers = Routers(self.client, self.peering, self.device, self.finder)
        return self.peering.routers

    def _cut_off(self, now: float) -> None:
        self.removed = True
        for link in self.peering:
            self.peering.remove(now, link.device)
            self._tell_gone(link, "removed")
        self.device.remove_all_peers(now)
        self.relays.set_map(now, [], [])
        self.resolver.refuse_all()
        self.events.append(Removed())

    def _renew_key(self, now: float) -> None:
        """Each step of a renewal leads to at most one more: made, then reported."""
        for _ in range(2):
            step = self.renewal.step(now, self.wall.at(now), self.map, reachable=self.client.connected)
            if step is Step.MAKE:
                self.identity.make_next(self._entropy)
                self.events.append(IdentityChanged())
            elif step is Step.REPORT_NEXT or step is Step.REPORT_CURRENT:
                key = self.identity.next_key if step is Step.REPORT_NEXT else None
                self._outbox.write(now, "report", {"nk": key or self.identity.node_key, **self._key_signatures(now)})
            elif step is Step.SWITCH:
                self._switch_key(now)
            if step is None:
                break

    def _key_signatures(self, now: float) -> dict[str, Any]:
        """For a report: what others want of our node keys where the network has a lock. It needs a date to be on it."""
        if self.map.lock is None or not self.wall.known:
            return {}
        from edgeagent.proto import lock

        return {"ls": lock.sign_node_keys(self._crypto, self.identity, self.admission.network, self.wall.at(now))}

    def _switch_key(self, now: float) -> None:
        self.identity.switch()
        self.device.set_private_key(now, self.identity.node_private)
        self.finder.shared.node_key = self.identity.node_key
        self.relays.set_node_key(now, self.identity.node_private)
        self.events.append(IdentityChanged())
        self.events.append(NodeKeyRenewed())
        self.client.own_feed.changed(now, self.map)
        if self.client.connected:
            self.client.write_birth(now)
        self.peering.own_key_changed(now)

    def _set_wall(self, now: float) -> None:
        if self.wall.at(now) > self._tai64n.wall(now):
            self._tai64n.set_wall(now, self.wall.at(now))

    def _tell_gone(self, link: Link, reason: str) -> None:
        self.events.append(PeerGone(link.device, link.name, reason))

    def _mark_dirty(self, *, urgent: bool) -> None:
        """One CacheDirty until the next snapshot, and one more if it becomes urgent."""
        if urgent or not self._dirty:
            self.events.append(CacheDirty(urgent=urgent))
        self._dirty = True

    def _read_cache(self, saved: bytes | None) -> tuple[dict[str, Any] | None, bool]:
        """(what an earlier life saved, whether it was there and bad)."""
        if saved is None:
            return None, False
        try:
            return snapshot.read(self._crypto, self.identity, self.admission.network, saved), False
        except ControlError:
            return None, True
