"""Routers that translate addresses, by what RFC 4787 calls their mapping and their filtering; and what must come out.

The same kinds stand in tests/netlab as real routers. `direct_is_possible` is the oracle of both.
"""

from __future__ import annotations

from enum import Enum

from tests.sim.net import Address, Datagram, Interface, Net, Router, Segment

BINDING_S = 120.0  # RFC 4787, REQ-5, asks for no less
FIRST_PORT, LAST_PORT = 20_000, 60_000
BINDINGS_MAX = 5_000


class Mapping(Enum):
    """On what an external port depends, besides the internal address and port (section 4.1)."""

    ENDPOINT_INDEPENDENT = "eim"
    ADDRESS_DEPENDENT = "adm"
    ADDRESS_AND_PORT_DEPENDENT = "apdm"


class Filtering(Enum):
    """Who may send to an external port: anybody, or whom was sent to (section 5)."""

    ENDPOINT_INDEPENDENT = "eif"
    ADDRESS_DEPENDENT = "adf"
    ADDRESS_AND_PORT_DEPENDENT = "apdf"


class Ports(Enum):
    """How a new external port is chosen."""

    KEPT = "kept"
    RANDOM = "random"
    COUNTED = "counted"


class Kind:
    """One kind of router, by name. `accepts` is one that takes in first packets from outside, as Linux does without
    a rule against it: each makes an entry that the translation of what we send later must not collide with."""

    __slots__ = ("accepts", "filtering", "hairpin", "mapping", "name", "ports", "udp")

    def __init__(
        self,
        name: str,
        mapping: Mapping,
        filtering: Filtering,
        *,
        ports: Ports = Ports.KEPT,
        hairpin: bool = False,
        udp: bool = True,
        accepts: bool = False,
    ) -> None:
        self.name = name
        self.mapping = mapping
        self.filtering = filtering
        self.ports = ports
        self.hairpin = hairpin
        self.udp = udp
        self.accepts = accepts


_EIM, _ADM, _APDM = Mapping.ENDPOINT_INDEPENDENT, Mapping.ADDRESS_DEPENDENT, Mapping.ADDRESS_AND_PORT_DEPENDENT
_EIF, _ADF, _APDF = (
    Filtering.ENDPOINT_INDEPENDENT,
    Filtering.ADDRESS_DEPENDENT,
    Filtering.ADDRESS_AND_PORT_DEPENDENT,
)

FULL = Kind("full", _EIM, _EIF)
ADDRESS = Kind("address", _EIM, _ADF)
PORT = Kind("port", _EIM, _APDF)
SYMMETRIC = Kind("symmetric", _APDM, _APDF, ports=Ports.RANDOM)
BLOCKED = Kind("blocked", _EIM, _APDF, udp=False)
KINDS = (FULL, ADDRESS, PORT, SYMMETRIC, BLOCKED)

# Others than those of the table
COUNTING = Kind("counting", _APDM, _APDF, ports=Ports.COUNTED)  # symmetric, with ports that count up
BY_ADDRESS = Kind("by-address", _ADM, _ADF, ports=Ports.RANDOM)
HAIRPIN = Kind("hairpin", _EIM, _EIF, hairpin=True)
ACCEPTING = Kind("accepting", _EIM, _APDF, accepts=True)
CARRIER = Kind("carrier", _EIM, _APDF, ports=Ports.RANDOM)
CARRIER_HAIRPIN = Kind("carrier-hairpin", _EIM, _EIF, ports=Ports.RANDOM, hairpin=True)
CARRIER_SYMMETRIC = Kind("carrier-symmetric", _APDM, _APDF, ports=Ports.RANDOM)


def direct_is_possible(a: Kind, b: Kind) -> bool:
    """The table of what must come out, as a rule; guessing and luck not counted.

    Each side learns where the other's first packet must go only if one of the two has a mapping that holds for all.
    Who has one and lets in the address, whatever its port, is reached by any; else both mappings must hold.
    """
    if not (a.udp and b.udp):
        return False
    loose = [
        kind.mapping is Mapping.ENDPOINT_INDEPENDENT and kind.filtering is not Filtering.ADDRESS_AND_PORT_DEPENDENT
        for kind in (a, b)
    ]
    return any(loose) or all(kind.mapping is Mapping.ENDPOINT_INDEPENDENT for kind in (a, b))


class Binding:
    """An external port of one internal endpoint, and whom it was used for."""

    __slots__ = ("inside", "peers", "port", "until")

    def __init__(self, inside: Address, port: int, until: float) -> None:
        self.inside = inside
        self.port = port
        self.until = until
        self.peers: dict[Address, float] = {}


class Nat(Router):
    """`connect` gives it an inside and an outside; what comes from within leaves with its outside address."""

    def __init__(self, net: Net, name: str, kind: Kind, *, binding_s: float = BINDING_S) -> None:
        super().__init__(net, name)
        self.kind = kind
        self.binding_s = binding_s
        self.refused = 0
        self._wan: Interface | None = None
        self._chance = net.world.stream(f"nat/{name}")
        self._next_port = FIRST_PORT + self._chance.randrange(1_000)
        self._bindings: dict[tuple[Address, object], Binding] = {}
        self._by_port: dict[int, Binding] = {}
        self._accepted: dict[tuple[int, Address], float] = {}  # (our port, from where): entries of what came in unasked
        net.stations[name] = self

    def connect(self, lan: Segment, lan_address: str, wan: Segment, wan_address: str, gateway: str | None) -> None:
        self.attach(lan, lan_address)
        self._wan = self.attach(wan, wan_address, gateway=gateway)

    @property
    def wan_address(self) -> str:
        assert self._wan is not None and self._wan.address is not None
        return self._wan.address

    def rebind(self) -> None:
        """All mappings are lost, and the next ones are others."""
        self._bindings.clear()
        self._by_port.clear()
        self._next_port += self._chance.randrange(100, 1_000)
        self.kind = Kind(
            self.kind.name,
            self.kind.mapping,
            self.kind.filtering,
            ports=Ports.RANDOM,
            hairpin=self.kind.hairpin,
            udp=self.kind.udp,
        )

    def move(self, wan_address: str) -> None:
        """The network outside gives it another address."""
        assert self._wan is not None
        self.set_address(self._wan, wan_address)

    def receive(self, interface: Interface, datagram: Datagram) -> None:
        to_us = interface is self._wan and datagram.destination[0] == self.wan_address
        if not to_us and not self.passes_on(datagram):
            return
        if not self.kind.udp:
            self.net.lost += 1
            return
        if interface is self._wan:
            onward = self._inward(datagram)
        elif datagram.destination[0] == self.wan_address:
            onward = self._inward(self._outward(datagram)) if self.kind.hairpin else None
        else:
            onward = self._outward(datagram)
        if onward is None:
            self.refused += 1
            self.net.lost += 1
        else:
            self.send(onward)

    def _outward(self, datagram: Datagram) -> Datagram:
        peer, now = datagram.destination, self.net.world.now
        binding = self._binding(datagram.source, peer)
        binding.until = now + self.binding_s
        binding.peers[peer] = now + self.binding_s
        return datagram.translated(source=(self.wan_address, binding.port))

    def _inward(self, datagram: Datagram) -> Datagram | None:
        peer, port, now = datagram.source, datagram.destination[1], self.net.world.now
        binding = self._by_port.get(port)
        if binding is None or binding.until < now or not self._lets_in(binding, peer):
            if self.kind.accepts:
                self._accepted[port, peer] = now + self.binding_s
            return None
        return datagram.translated(destination=binding.inside)

    def _lets_in(self, binding: Binding, peer: Address) -> bool:
        now, filtering = self.net.world.now, self.kind.filtering
        if filtering is Filtering.ENDPOINT_INDEPENDENT:
            return True
        if filtering is Filtering.ADDRESS_DEPENDENT:
            return any(until >= now and known[0] == peer[0] for known, until in binding.peers.items())
        return binding.peers.get(peer, -1.0) >= now

    def _binding(self, inside: Address, peer: Address) -> Binding:
        now = self.net.world.now
        depends: object = None
        if self.kind.mapping is Mapping.ADDRESS_DEPENDENT:
            depends = peer[0]
        elif self.kind.mapping is Mapping.ADDRESS_AND_PORT_DEPENDENT:
            depends = peer
        # An entry of the peer's first packet holds our port for that peer: what we send to it gets another one
        kept = self._bindings.get((inside, None))
        port = inside[1] if kept is None else kept.port
        if self._accepted.get((port, peer), -1.0) >= now:
            depends = peer
        key = (inside, depends)
        binding = self._bindings.get(key)
        if binding is None or binding.until < now:
            if len(self._bindings) >= BINDINGS_MAX:
                self.net.world.fail(f"{self.name}: {BINDINGS_MAX} bindings")
            free = self._new_port(inside[1], kept=depends is None)
            binding = self._bindings[key] = self._by_port[free] = Binding(inside, free, now)
        return binding

    def _new_port(self, wanted: int, *, kept: bool) -> int:
        now = self.net.world.now

        def is_free(port: int) -> bool:
            return port not in self._by_port or self._by_port[port].until < now

        if self.kind.ports is Ports.KEPT and kept and is_free(wanted):
            return wanted
        if self.kind.ports is Ports.COUNTED:
            self._next_port += 1
            return self._next_port
        while not is_free(port := self._chance.randint(FIRST_PORT, LAST_PORT)):
            pass
        return port
