"""An IP network for datagrams: segments, stations on them, routing by longest prefix, and what can go wrong on the way.

A datagram goes hop by hop: a station picks the interface by its routes, the segment carries it to the next hop, and a
`Router` sends it on. Whatever changes a datagram between two segments is a Router that overrides `forward`.
A packet that is longer than a segment takes is lost without a word, or goes on in fragments where it may, of which only
the length is known. A host is told what its own segment does not take, as its kernel would.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Protocol

from edgeagent.proto.endpoint import Endpoint, Transmit, UplinkEndpoint
from tests.sim.world import World

HOPS_MAX = 16
TTL = 64
WAKE_UP_S = 0.0005  # from a datagram's arrival until the program reads it
BATCH_MAX = 64  # datagrams at once

Network = IPv4Network | IPv6Network
Address = tuple[str, int]  # host, port
Batch = list[tuple[bytes, Endpoint, int]]  # datagram, source, ECN field
Receiver = Callable[[Batch], None]


class Conditions:
    """What a segment does to a datagram. Probabilities in [0, 1], times in seconds.

    `jitter_s` is added at random and keeps the order of one sender's datagrams to one receiver; `reorder` of them are
    held back by up to `reorder_s`, and overtaken. A duplicate takes its own way. `mtu` is of IP packets; with
    `fragments` False what is longer is lost even where it might be cut up.
    """

    __slots__ = ("delay_s", "duplicate", "fragments", "jitter_s", "loss", "mtu", "reorder", "reorder_s")

    def __init__(
        self,
        *,
        delay_s: float = 0.020,
        jitter_s: float = 0.0,
        loss: float = 0.0,
        duplicate: float = 0.0,
        reorder: float = 0.0,
        reorder_s: float = 0.200,
        mtu: int = 65_535,
        fragments: bool = True,
    ) -> None:
        self.mtu = mtu
        self.fragments = fragments
        self.delay_s = delay_s
        self.jitter_s = jitter_s
        self.loss = loss
        self.duplicate = duplicate
        self.reorder = reorder
        self.reorder_s = reorder_s


class Datagram:
    """A UDP datagram on its way. `packet_bytes` is the length of its packet, or of the longest fragment."""

    __slots__ = ("destination", "ecn", "fragment", "hops", "packet_bytes", "payload", "source", "ttl")

    def __init__(
        self,
        source: Address,
        destination: Address,
        payload: bytes,
        ecn: int,
        ttl: int | None = None,
        fragment: bool = False,
    ) -> None:
        self.fragment = fragment
        self.packet_bytes = packet_bytes(destination[0], payload)
        self.source = source
        self.destination = destination
        self.payload = payload
        self.ecn = ecn
        self.hops = 0
        self.ttl = TTL if ttl is None else ttl

    def translated(self, *, source: Address | None = None, destination: Address | None = None) -> Datagram:
        """The same with other addresses."""
        to = destination or self.destination
        made = Datagram(source or self.source, to, self.payload, self.ecn, self.ttl, self.fragment)
        made.hops, made.packet_bytes = self.hops, self.packet_bytes
        return made

    def passes(self, conditions: Conditions) -> bool:
        """Whether a segment takes it, in fragments where it must and may."""
        if self.packet_bytes <= conditions.mtu:
            return True
        # RFC 8200, section 4.5: only the source does, and it does not know what comes after its own segment
        may = self.fragment and (":" not in self.destination[0] or self.hops == 0)
        self.packet_bytes = conditions.mtu
        return may and conditions.fragments


def packet_bytes(destination: str, payload: bytes) -> int:
    return len(payload) + (48 if ":" in destination else 28)


class Interface:
    """A station's place on a segment. `address` may change while it is up; None is an interface without one."""

    __slots__ = ("address", "index", "segment", "station", "up")

    def __init__(self, station: Station, segment: Segment, address: str, index: int) -> None:
        self.station = station
        self.segment = segment
        self.address: str | None = address
        self.index = index
        self.up = True


class Segment:
    """One subnet: whoever is attached reaches every other address on it in one hop."""

    def __init__(self, net: Net, name: str, prefixes: list[Network], conditions: Conditions) -> None:
        self.net = net
        self.name = name
        self.prefixes = prefixes
        self.conditions = conditions
        self.hops = 0  # routers inside it that nobody sees
        self.pair_conditions: dict[tuple[str, str], Conditions] = {}  # (from, to) station names
        self.by_address: dict[str, Interface] = {}
        self._chance = net.world.stream(f"segment/{name}")
        self._last_arrival: dict[tuple[int, int], float] = {}

    def carry(self, sender: Interface, datagram: Datagram, next_hop: str) -> None:
        """Bring `datagram` to whoever has `next_hop` when it arrives."""
        receiver = self.by_address.get(next_hop)
        if receiver is None or not self.joined(sender, receiver):
            self.net.lost += 1
            return
        conditions = self.between(sender, receiver)
        if not datagram.passes(conditions):
            self.net.lost += 1
            return
        chance = self._chance
        copies = 1
        if conditions.loss and chance.random() < conditions.loss:
            self.net.lost += 1
            copies = 0
        if conditions.duplicate and chance.random() < conditions.duplicate:
            copies += 1
        world = self.net.world
        for _ in range(copies):
            at = world.now + conditions.delay_s + chance.random() * conditions.jitter_s
            if conditions.reorder and chance.random() < conditions.reorder:
                at += chance.random() * conditions.reorder_s
            else:
                way = (id(sender), id(receiver))
                at = max(at, self._last_arrival.get(way, 0.0))
                self._last_arrival[way] = at
            world.at(at, lambda: self._arrive(sender, datagram, next_hop))

    def joined(self, sender: Interface, receiver: Interface) -> bool:
        """Whether anything passes at this moment."""
        return sender.up and receiver.up and not self.net.is_cut(sender.station, receiver.station)

    def between(self, sender: Interface, receiver: Interface) -> Conditions:
        return self.pair_conditions.get((sender.station.name, receiver.station.name), self.conditions)

    def _arrive(self, sender: Interface, datagram: Datagram, next_hop: str) -> None:
        receiver = self.by_address.get(next_hop)
        if receiver is None or not self.joined(sender, receiver):
            self.net.lost += 1
            return
        if datagram.ttl <= self.hops:
            self.net.lost += 1
            return
        datagram.ttl -= self.hops
        self.net.carried += 1
        receiver.station.receive(receiver, datagram)


class Station:
    """Anything with addresses. Routes are (prefix, gateway or None for on-link, interface); the longest prefix wins."""

    def __init__(self, net: Net, name: str) -> None:
        self.net = net
        self.name = name
        self.interfaces: list[Interface] = []
        self.routes: list[tuple[Network, str | None, Interface]] = []
        self._route_cache: dict[str, tuple[Interface, str] | None] = {}

    def attach(self, segment: Segment, *addresses: str, gateway: str | None = None) -> Interface:
        """One interface for each address; the first is the one that the gateway's family is routed by."""
        first: Interface | None = None
        for address in addresses:
            interface = Interface(self, segment, address, len(self.interfaces) + 1)
            self.interfaces.append(interface)
            segment.by_address[address] = interface
            version = ip_address(address).version
            for prefix in segment.prefixes:
                if prefix.version == version:
                    self.add_route(prefix, None, interface)
            if gateway is not None and ip_address(gateway).version == version:
                self.add_route(ip_network("0.0.0.0/0" if version == 4 else "::/0"), gateway, interface)
            first = first or interface
        assert first is not None
        return first

    def add_route(self, prefix: Network, gateway: str | None, interface: Interface) -> None:
        self.routes.append((prefix, gateway, interface))
        self.routes.sort(key=lambda route: -route[0].prefixlen)
        self.forget_routes()

    def detach(self) -> None:
        """Leave every segment."""
        for interface in self.interfaces:
            if interface.address is not None:
                del interface.segment.by_address[interface.address]
            interface.address = None
            interface.up = False
        self.interfaces.clear()
        self.routes.clear()
        self.forget_routes()
        self.net.changed()

    def set_address(self, interface: Interface, address: str) -> None:
        """A new address of the same family, on the same segment: what a DHCP server or an LTE network does."""
        segment = interface.segment
        if interface.address is not None:
            del segment.by_address[interface.address]
        interface.address = address
        segment.by_address[address] = interface
        self.forget_routes()
        self.net.changed()

    def set_link(self, interface: Interface, up: bool) -> None:
        """The cable is pulled, or put in again: routes through it are gone meanwhile."""
        interface.up = up
        self.forget_routes()
        self.net.changed()

    def addresses(self) -> list[str]:
        return [interface.address for interface in self.interfaces if interface.address is not None and interface.up]

    def route(self, destination: str) -> tuple[Interface, str] | None:
        """(interface, next hop) for an address, or None."""
        if destination not in self._route_cache:
            self._route_cache[destination] = self._find_route(destination)
        return self._route_cache[destination]

    def send(self, datagram: Datagram) -> bool:
        """False where there is no route."""
        route = self.route(datagram.destination[0])
        if route is None:
            self.net.lost += 1
            return False
        interface, next_hop = route
        interface.segment.carry(interface, datagram, next_hop)
        return True

    def receive(self, interface: Interface, datagram: Datagram) -> None:
        raise NotImplementedError

    def forget_routes(self) -> None:
        self._route_cache.clear()

    def _find_route(self, destination: str, by: Interface | None = None) -> tuple[Interface, str] | None:
        address = ip_address(destination)
        for prefix, gateway, interface in self.routes:
            if not interface.up or (by is not None and interface is not by):
                continue
            if address.version == prefix.version and address in prefix:
                return interface, gateway or destination
        return None


class Router(Station):
    """Sends on what is not for itself."""

    def receive(self, interface: Interface, datagram: Datagram) -> None:
        if datagram.destination[0] in self.addresses():
            self.net.lost += 1
            return
        if not self.passes_on(datagram):
            return
        onward = self.forward(interface, datagram)
        if onward is not None:
            self.send(onward)

    def passes_on(self, datagram: Datagram) -> bool:
        """One hop more; False where that was its last."""
        datagram.hops += 1
        datagram.ttl -= 1
        if datagram.hops > HOPS_MAX or datagram.ttl <= 0:
            self.net.lost += 1
            return False
        return True

    def forward(self, interface: Interface, datagram: Datagram) -> Datagram | None:
        """What leaves for what came in at `interface`; None where it ends here."""
        return datagram


class Host(Station):
    """A station with UDP ports; `uplinks` are the indexes of interfaces that have sockets of their own."""

    def __init__(self, net: Net, name: str) -> None:
        super().__init__(net, name)
        self._up = True
        self.uplinks: list[int] = []
        self._ports: dict[int, Receiver] = {}
        self._too_long: list[tuple[Endpoint, int]] = []
        self._batches: dict[int, Batch] = {}

    @property
    def up(self) -> bool:
        """Whether it has power."""
        return self._up

    @up.setter
    def up(self, up: bool) -> None:
        self._up = up
        self.net.changed()

    def bind(self, port: int, receiver: Receiver) -> None:
        """What comes in for `port` goes to `receiver`, as the UDP socket of the agent hands it over."""
        self._ports[port] = receiver

    def unbind(self, port: int) -> None:
        self._ports.pop(port, None)

    def transmit(self, port: int, transmits: list[Transmit]) -> list[Endpoint]:
        """Send from `port`, as the agent's UDP shell does. Returns the endpoints whose pinned source is gone."""
        failures = []
        for transmit in transmits:
            endpoint = transmit.endpoint
            for datagram in transmit.datagrams:
                if not self._send_to(port, endpoint, datagram, transmit) and endpoint.local is not None:
                    failures.append(endpoint)
                    if endpoint != endpoint.unpinned():
                        endpoint = endpoint.unpinned()
                        self._send_to(port, endpoint, datagram, transmit)
        return failures

    def drain_too_long(self) -> list[tuple[Endpoint, int]]:
        """(endpoint, length) of the datagrams that its own segment does not take, and that may not be cut up."""
        too_long, self._too_long = self._too_long, []
        return too_long

    def _send_to(self, port: int, endpoint: Endpoint, payload: bytes, like: Transmit) -> bool:
        """False where the kernel would refuse: a source that is gone, or no route."""
        destination = endpoint.addr[0]
        if endpoint.uplink:
            by = next((each for each in self.interfaces if each.index == endpoint.uplink), None)
            route = None if by is None else self._find_route(destination, by)
        else:
            route = self.route(destination)
        if route is None:
            return False
        source = route[0].address
        if endpoint.local is not None and any(endpoint.local[0]):
            source = str(ip_address(endpoint.local[0]))
            if source not in self.addresses():
                return False
        if source is None:
            return False
        datagram = Datagram((source, port), (destination, endpoint.addr[1]), payload, like.ecn, like.ttl, like.fragment)
        interface, next_hop = route
        if not like.fragment and datagram.packet_bytes > interface.segment.conditions.mtu:
            self._too_long.append((endpoint, len(payload)))
            return True
        interface.segment.carry(interface, datagram, next_hop)
        return True

    def receive(self, interface: Interface, datagram: Datagram) -> None:
        receiver = self._ports.get(datagram.destination[1])
        if not self.up or receiver is None:
            self.net.lost += 1
            return
        address, source_port = datagram.source
        addr = (address, source_port, 0, 0) if ":" in address else (address, source_port)
        local = (ip_address(datagram.destination[0]).packed, interface.index)
        batch = self._batches.get(port := datagram.destination[1])
        if batch is None:
            batch = self._batches[port] = []
            self.net.world.after(self.net.wake_up_s, lambda: self._wake_up(port))
        kind = UplinkEndpoint if interface.index in self.uplinks else Endpoint
        batch.append((datagram.payload, kind(addr, local), datagram.ecn))

    def _wake_up(self, port: int) -> None:
        """The program reads all that has come in meanwhile."""
        batch = self._batches.pop(port, [])
        receiver = self._ports.get(port)
        if receiver is not None and self.up:
            for start in range(0, len(batch), BATCH_MAX):
                receiver(batch[start : start + BATCH_MAX])


class Way:
    """What lies between a station and an address: who has it, the delay one way in seconds, and the share lost."""

    __slots__ = ("delay_s", "end", "loss")

    def __init__(self, end: Station, delay_s: float, loss: float) -> None:
        self.end = end
        self.delay_s = delay_s
        self.loss = loss


class Watcher(Protocol):
    """Something that depends on what passes."""

    def look(self) -> None: ...


class Net:
    """All segments and stations. `cut` and `heal` make and end partitions; `lost` and `carried` count hops."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.segments: dict[str, Segment] = {}
        self.stations: dict[str, Station] = {}
        self.carried = 0
        self.lost = 0
        self.wake_up_s = WAKE_UP_S
        self._cuts: set[frozenset[str]] = set()
        self._isolated: set[str] = set()
        self.streams: dict[Watcher, None] = {}  # connections, which look again when something changes

    def segment(self, name: str, *prefixes: str, conditions: Conditions | None = None) -> Segment:
        made = Segment(self, name, [ip_network(prefix) for prefix in prefixes], conditions or Conditions())
        self.segments[name] = made
        return made

    def host(self, name: str) -> Host:
        made = Host(self, name)
        self.stations[name] = made
        return made

    def router(self, name: str) -> Router:
        made = Router(self, name)
        self.stations[name] = made
        return made

    def changed(self) -> None:
        """Something passes now that did not, or the other way round."""
        for stream in list(self.streams):
            stream.look()

    # Partitions, between stations of one segment

    def cut(self, a: Station, b: Station) -> None:
        self._cuts.add(frozenset((a.name, b.name)))
        self.changed()

    def mend(self, a: Station, b: Station) -> None:
        self._cuts.discard(frozenset((a.name, b.name)))
        self.changed()

    def isolate(self, station: Station) -> None:
        """Nothing goes in or out."""
        self._isolated.add(station.name)
        self.changed()

    def restore(self, station: Station) -> None:
        self._isolated.discard(station.name)
        self.changed()

    def heal(self) -> None:
        """End all partitions."""
        self._cuts.clear()
        self._isolated.clear()
        self.changed()

    def is_cut(self, a: Station, b: Station) -> bool:
        if self._isolated and (a.name in self._isolated or b.name in self._isolated):
            return True
        return bool(self._cuts) and frozenset((a.name, b.name)) in self._cuts

    def way(self, station: Station, destination: str) -> Way | None:
        """The way to `destination`; None where nothing passes at this moment."""
        delay_s, passes = 0.0, 1.0
        for _ in range(HOPS_MAX):
            route = station.route(destination)
            if route is None:
                return None
            interface, next_hop = route
            receiver = interface.segment.by_address.get(next_hop)
            if receiver is None or not interface.segment.joined(interface, receiver):
                return None
            conditions = interface.segment.between(interface, receiver)
            delay_s += conditions.delay_s
            passes *= 1.0 - conditions.loss
            station = receiver.station
            if next_hop == destination:
                return Way(station, delay_s, 1.0 - passes)
        return None
