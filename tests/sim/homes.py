"""A mesh whose devices sit behind routers that translate: homes, carriers, a relay that always works, STUN servers.

homes = Homes(seed)
a = homes.add_device_at(homes.home("a", nat.PORT))
b = homes.add_device_at(homes.home("b", nat.SYMMETRIC, carrier=homes.carrier("c", nat.CARRIER)))
homes.wait_joined()
"""

from __future__ import annotations

from functools import partial

from edgeagent.proto import stun
from edgeagent.proto.endpoint import Endpoint, Transmit
from edgeagent.proto.identity import Admission
from edgeagent.proto.node import Node
from edgeagent.proto.node_events import MappingDoubted, NodeEvent
from edgeagent.proto.path import Path, State
from edgeagent.proto.records import UdpAddress
from edgeagent.proto.relay_endpoint import RelayEndpoint
from tests.sim.device import UDP_PORT, SimDevice
from tests.sim.mesh import Mesh
from tests.sim.nat import BINDING_S, Kind, Nat
from tests.sim.net import Batch, Conditions, Host, Net, Segment
from tests.sim.world import World

RELAY = "relay-1"
RELAY_WAY_S = 0.025  # from a member to the relay, or back: over TCP, past whatever stops UDP
STUN_PORT = 3_478
STUN_SERVERS = ("192.0.2.11", "192.0.2.12")
STUN_EVERY_S = 20.0
INTERNET_HOPS = 6
LAN = Conditions(delay_s=0.0005)


class SimRelay:
    """Forwards between members by node key; all of them are, while it is up."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.members: list[NatDevice] = []
        self.is_up = True
        self.forwards = True  # False: it takes everything and passes nothing on
        self.packets = 0
        self.bytes = 0

    def take(self, sender: NatDevice, transmit: Transmit) -> None:
        endpoint = transmit.endpoint
        assert isinstance(endpoint, RelayEndpoint) and sender.identity is not None
        if not self.is_up or not self.forwards:
            return
        source = RelayEndpoint(RELAY, sender.identity.node_key)
        for member in self.members:
            if member.identity is not None and member.identity.node_key == endpoint.node_key:
                self.packets += len(transmit.datagrams)
                self.bytes += sum(len(datagram) for datagram in transmit.datagrams)
                batch: Batch = [(datagram, source, transmit.ecn) for datagram in transmit.datagrams]
                self.world.after(2 * RELAY_WAY_S, partial(member.from_relay, batch))

    def go_down(self) -> None:
        self.is_up = False
        for member in self.members:
            member.tell_relay(None)

    def come_up(self) -> None:
        self.is_up = True
        for member in self.members:
            member.tell_relay(RELAY)


class RelayedHost(Host):
    """What is for a relay leaves by its own connection."""

    def __init__(self, net: Net, name: str) -> None:
        super().__init__(net, name)
        self.device: NatDevice | None = None
        net.stations[name] = self

    def transmit(self, port: int, transmits: list[Transmit]) -> list[Endpoint]:
        plain = []
        for transmit in transmits:
            if isinstance(transmit.endpoint, RelayEndpoint):
                assert self.device is not None
                self.device.relay.take(self.device, transmit)
            else:
                plain.append(transmit)
        return super().transmit(port, plain)


class NatDevice(SimDevice):
    """A device with a home relay, that asks STUN servers where it is."""

    relay: SimRelay
    has_relay = True
    asks_stun = True

    def tell_relay(self, relay: str | None) -> None:
        if self.node is not None and self.has_relay:
            node, now = self.node, self.now
            self._guarded(lambda: node.handle_home_relay(now, relay))

    def from_relay(self, batch: Batch) -> None:
        self._from_udp(batch)

    def _mesh(self, admission: Admission) -> None:
        super()._mesh(admission)
        assert self.node is not None
        if self.has_relay and self.relay.is_up:
            self.node.handle_home_relay(self.now, RELAY)
        self._mapped: dict[str, UdpAddress] = {}
        self._transactions: dict[bytes, str] = {}
        if self.asks_stun:
            boot = self._boot
            self.world.after(0.01, lambda: self._keep_asking(boot))

    def _node_said(self, node: Node, event: NodeEvent) -> bool:
        if isinstance(event, MappingDoubted) and self.asks_stun:
            self.world.after(0.0, self._ask_stun)
        return super()._node_said(node, event)

    def _keep_asking(self, boot: bytes) -> None:
        if self.is_running and self.asks_stun and boot == self._boot:
            self._ask_stun()
            self.world.after(STUN_EVERY_S, lambda: self._keep_asking(boot))

    def _ask_stun(self) -> None:
        self._transactions.clear()
        for server in STUN_SERVERS:
            transaction = self._entropy(12)
            self._transactions[transaction] = server
            request = Transmit(Endpoint((server, STUN_PORT)), [stun.write_request(transaction)])
            self.host.transmit(UDP_PORT, [request])

    def _from_udp(self, batch: Batch) -> None:
        rest = []
        for item in batch:
            transaction = item[0][8:20] if stun.looks_like_stun(item[0]) else b""
            server = getattr(self, "_transactions", {}).pop(transaction, None)
            if server is None:
                rest.append(item)
            else:
                self._mapped[server] = stun.read_binding(item[0], transaction).mapped
                self._tell_mapped()
        if rest:
            super()._from_udp(rest)

    def _tell_mapped(self) -> None:
        if self.node is not None and len(self._mapped) == len(STUN_SERVERS):
            node, now = self.node, self.now
            mapped = [self._mapped[server] for server in STUN_SERVERS]
            self._guarded(lambda: node.handle_mappings(now, mapped))


class Homes(Mesh):
    """`relay` is one for all. Each home is a segment of its own with the same private addresses as every other."""

    def __init__(self, seed: int, *, conditions: Conditions | None = None) -> None:
        super().__init__(seed, conditions=conditions)
        self.internet.hops = INTERNET_HOPS
        self.relay = SimRelay(self.world)
        self.nats: dict[str, Nat] = {}
        self._publics = 0
        for address in STUN_SERVERS:
            _stun_server(self.net, self.internet, address)

    def home(self, name: str, kind: Kind, *, carrier: Segment | None = None, binding_s: float = BINDING_S) -> Segment:
        """The inside of a router of that kind, on the internet or behind a carrier's."""
        self._publics += 1
        inside = self.net.segment(f"home-{name}", "192.168.1.0/24", conditions=LAN)
        nat = self.nats[name] = Nat(self.net, f"nat-{name}", kind, binding_s=binding_s)
        if carrier is None:
            nat.connect(inside, "192.168.1.1", self.internet, f"203.0.{self._publics}.1", None)
        else:
            nat.connect(inside, "192.168.1.1", carrier, f"100.64.0.{10 + self._publics}", "100.64.0.1")
        return inside

    def carrier(self, name: str, kind: Kind) -> Segment:
        """The inside of a carrier's router."""
        self._publics += 1
        inside = self.net.segment(f"carrier-{name}", "100.64.0.0/16", conditions=LAN)
        nat = self.nats[name] = Nat(self.net, f"nat-{name}", kind)
        nat.connect(inside, "100.64.0.1", self.internet, f"203.0.{self._publics}.1", None)
        return inside

    def add_device_at(
        self, segment: Segment, *, relay: bool = True, asks_stun: bool = True, gateway: str = "192.168.1.1"
    ) -> NatDevice:
        number = len(self.devices) + 1
        host = RelayedHost(self.net, f"d{number}")
        host.attach(segment, f"192.168.1.{100 + number}", gateway=gateway)
        device = NatDevice(self.world, self.traffic, host, self.broker, self.hub.create_token(), limits=self.limits)
        device.relay, device.has_relay, device.asks_stun = self.relay, relay, asks_stun
        host.device = device
        self.relay.members.append(device)
        self.devices[device.name] = device
        device.power_on()
        return device

    def pair(self, a: Kind, b: Kind, *, relay: bool = True) -> tuple[NatDevice, NatDevice]:
        """Two devices, each in its home, in the mesh and with their mappings known."""
        made = self.add_device_at(self.home("a", a), relay=relay), self.add_device_at(self.home("b", b), relay=relay)
        self.wait_joined()
        self.world.run_for(3.0)
        return made

    # What comes out

    def first_answer(self, a: SimDevice, b: SimDevice, within_s: float = 20.0) -> float:
        """Seconds from the first packet of `a` until the answer of `b` is there."""
        began = self.world.now
        asked = self.traffic.send(a, b)
        self.world.wait_for(lambda: self.traffic.has_arrived(asked), within_s, f"{a.name} reaches {b.name}")
        answered = self.traffic.send(b, a)
        self.world.wait_for(lambda: self.traffic.has_arrived(answered), within_s, f"{b.name} answers {a.name}")
        return self.world.now - began

    def until_direct(self, a: SimDevice, b: SimDevice, within_s: float) -> float | None:
        """Seconds until both sides send past the relay; None where that did not happen."""
        began = self.world.now
        while self.world.now - began < within_s:
            if is_direct(a, b) and is_direct(b, a):
                return self.world.now - began
            self.world.run_for(0.05)
        return None


def path_of(a: SimDevice, b: SimDevice) -> Path | None:
    """Where `a` sends what is for `b`."""
    return None if a.node is None else a.node.finder.current(b.device_id)


def is_direct(a: SimDevice, b: SimDevice) -> bool:
    path = path_of(a, b)
    return path is not None and not path.is_relay and path.state is State.PROVEN


def _stun_server(net: Net, internet: Segment, address: str) -> None:
    host = net.host(f"stun-{address}")
    host.attach(internet, address)

    def answer(batch: Batch) -> None:
        for datagram, source, _ in batch:
            request = stun.parse(datagram)
            mapped = stun.xor_mapped_address(request.transaction, (source.ip_bytes(), source.addr[1]))
            reply = stun.write(stun.BINDING_SUCCESS, request.transaction, [mapped], fingerprint=True)
            host.transmit(STUN_PORT, [Transmit(source, [reply])])

    host.bind(STUN_PORT, answer)
