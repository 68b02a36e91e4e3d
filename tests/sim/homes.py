"""A mesh whose devices sit behind routers that translate: homes, carriers, and relays that also serve STUN.

homes = Homes(seed)
a = homes.add_device_at(homes.home("a", nat.PORT))
b = homes.add_device_at(homes.home("b", nat.SYMMETRIC, carrier=homes.carrier("c", nat.CARRIER)))
homes.wait_joined()
"""

from __future__ import annotations

from edgeagent.proto.constants import MTU_DEFAULT
from edgeagent.proto.path import Path, State
from tests.sim.device import SimDevice
from tests.sim.mesh import Mesh
from tests.sim.nat import BINDING_S, Kind, Nat
from tests.sim.net import Conditions, Segment
from tests.sim.relay import SimRelay

RELAY_ADDRESSES = ("192.0.2.11", "192.0.2.12", "192.0.2.13")
INTERNET_HOPS = 6
LAN = Conditions(delay_s=0.0005)


class Homes(Mesh):
    """`relays` in the order of the map. Each home is a segment of its own with the same private addresses as every
    other."""

    def __init__(self, seed: int, *, conditions: Conditions | None = None, relays: int = 1) -> None:
        super().__init__(seed, conditions=conditions)
        self.internet.hops = INTERNET_HOPS
        self.nats: dict[str, Nat] = {}
        self._publics = 0
        self.relays = [
            SimRelay(self.world, self.net, self.internet, self.hub, f"relay-{number + 1}", RELAY_ADDRESSES[number])
            for number in range(relays)
        ]

    @property
    def relay(self) -> SimRelay:
        """The first, or the only one."""
        return self.relays[0]

    @property
    def relayed(self) -> int:
        """Packets that relays have brought to members."""
        return sum(relay.packets for relay in self.relays)

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

    def add_device_at(self, segment: Segment, *, gateway: str = "192.168.1.1", mtu: int = MTU_DEFAULT) -> SimDevice:
        number = len(self.devices) + 1
        host = self.net.host(f"d{number}")
        host.attach(segment, f"192.168.1.{100 + number}", gateway=gateway)
        device = SimDevice(self.world, self.traffic, host, self.broker, self.hub.create_token(), limits=self.limits)
        device.mtu = mtu
        device.relays = {relay.name: relay for relay in self.relays}
        self.devices[device.name] = device
        device.power_on()
        return device

    def pair(self, a: Kind, b: Kind) -> tuple[SimDevice, SimDevice]:
        """Two devices, each in its home, in the mesh and with their mappings known."""
        made = self.add_device_at(self.home("a", a)), self.add_device_at(self.home("b", b))
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
