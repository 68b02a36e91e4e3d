"""Home routers' translation by the terms of RFC 4787: mapping, filtering, ports, hairpin, life of bindings."""

from __future__ import annotations

import random
from typing import NamedTuple

from hil.net.packet import ICMP, UDP, Packet

FIRST_PORT, LAST_PORT = 20_000, 60_000
BINDINGS_MAX = 4_096
TCP_BINDING_S = 7_200.0


class Kind(NamedTuple):
    """`mapping` and `filtering` are "endpoint", "address" or "port" (-independent, -dependent, and-port-dependent)."""

    mapping: str
    filtering: str
    random_ports: bool = False
    hairpin: bool = False
    udp: bool = True
    binding_s: float = 120.0  # of UDP; RFC 4787, REQ-5, asks for no less


KINDS = {
    "full": Kind("endpoint", "endpoint"),
    "address": Kind("endpoint", "address"),
    "port": Kind("endpoint", "port"),
    "symmetric": Kind("port", "port", random_ports=True),
    "blocked": Kind("endpoint", "port", udp=False),
    "hairpin": Kind("endpoint", "endpoint", hairpin=True),
    "short": Kind("endpoint", "port", binding_s=30.0),
}

End = tuple[bytes, int]


class _Binding:
    __slots__ = ("inside", "key", "peers", "port", "protocol", "until")

    def __init__(self, key: tuple[object, ...], protocol: int, inside: End, port: int, until: float) -> None:
        self.protocol = protocol
        self.key = key
        self.inside = inside
        self.port = port
        self.until = until
        self.peers: dict[End, float] = {}


class Nat:
    """Changes packets in place; one that goes no further is counted in `refused`."""

    def __init__(self, kind: Kind, outside: bytes, chance: random.Random) -> None:
        self.kind = kind
        self.outside = outside
        self.refused = 0
        self._chance = chance
        self._bindings: dict[tuple[object, ...], _Binding] = {}
        self._by_port: dict[tuple[int, int], _Binding] = {}

    def rebind(self) -> None:
        """All bindings are lost, as when the router starts anew; new ones get other ports."""
        self._bindings.clear()
        self._by_port.clear()
        self.kind = self.kind._replace(random_ports=True)

    def outward(self, now: float, packet: Packet) -> bool:
        """Put the outside address into what comes from within."""
        ports = packet.ports()
        if ports is None or (packet.protocol == UDP and not self.kind.udp):
            self.refused += 1
            return False
        peer = packet.destination, ports[1]
        binding = self._binding(now, packet.protocol, (packet.source, ports[0]), peer)
        if binding is None:
            self.refused += 1
            return False
        binding.until = binding.peers[peer] = now + self._life(packet.protocol)
        if len(binding.peers) > BINDINGS_MAX:
            del binding.peers[next(iter(binding.peers))]
        packet.translate(source=(self.outside, binding.port))
        return True

    def inward(self, now: float, packet: Packet) -> bool:
        """Put the address within into what comes from outside, where it may come in."""
        ports = packet.ports()
        binding = None if ports is None else self._by_port.get((packet.protocol, ports[1]))
        if ports is None or binding is None or binding.until < now or not self._lets_in(now, binding, packet, ports[0]):
            self.refused += 1
            return False
        packet.translate(destination=binding.inside)
        return True

    def _lets_in(self, now: float, binding: _Binding, packet: Packet, port: int) -> bool:
        filtering = self.kind.filtering if packet.protocol == UDP else "port"
        if packet.protocol == ICMP:
            filtering = "address"  # an answer to an echo has only an identifier, which is ours
        if filtering == "endpoint":
            return self.kind.udp
        if filtering == "address":
            return any(peer[0] == packet.source and until >= now for peer, until in binding.peers.items())
        return binding.peers.get((packet.source, port), -1.0) >= now

    def _binding(self, now: float, protocol: int, inside: End, peer: End) -> _Binding | None:
        depends = {"endpoint": (), "address": (peer[0],), "port": peer}[self.kind.mapping]
        key = (protocol, inside, *depends)
        binding = self._bindings.get(key)
        if binding is not None and binding.until >= now:
            return binding
        if binding is not None:
            self._forget(binding)
        if len(self._bindings) >= BINDINGS_MAX:
            self._forget(next(iter(self._bindings.values())))
        port = self._port(protocol, inside[1])
        if port is None:
            return None
        made = _Binding(key, protocol, inside, port, now)
        self._bindings[key] = self._by_port[protocol, port] = made
        return made

    def _forget(self, binding: _Binding) -> None:
        del self._bindings[binding.key]
        del self._by_port[binding.protocol, binding.port]

    def _port(self, protocol: int, wish: int) -> int | None:
        if not self.kind.random_ports and (protocol, wish) not in self._by_port:
            return wish
        for _ in range(64):
            port = self._chance.randrange(FIRST_PORT, LAST_PORT)
            if (protocol, port) not in self._by_port:
                return port
        return None

    def _life(self, protocol: int) -> float:
        return self.kind.binding_s if protocol == UDP else TCP_BINDING_S
