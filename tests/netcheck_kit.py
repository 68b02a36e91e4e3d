"""A network under a virtual clock: a NAT of a kind of tests/sim, STUN servers with two ports, a link, a gateway."""

from __future__ import annotations

import random
from collections.abc import Callable
from heapq import heappop, heappush

from edgeagent.proto import stun
from edgeagent.proto.endpoint import Endpoint, Transmit
from edgeagent.proto.netcheck import Dial, Fetch, Netcheck, Resolve, Socket, Uplink, Wish
from edgeagent.proto.netcheck_facts import TlsOutcome, Way
from edgeagent.proto.netcheck_nat import Role
from edgeagent.proto.paths import from_endpoint, to_endpoint
from edgeagent.proto.portmap_upnp import Job, Outcome, UpnpFailure
from edgeagent.proto.records import UdpAddress
from edgeagent.proto.relay_http import ANSWER_HEADER, Response
from edgeagent.proto.relaymap import RelayInfo
from tests.sim.nat import PORT, Filtering, Kind, Mapping, Ports

OWN, OUTSIDE = bytes((192, 168, 1, 7)), bytes((203, 0, 113, 9))
OWN6 = bytes.fromhex("20010db8000000010000000000000007")
GATEWAY = bytes((192, 168, 1, 1))
SERVERS = (bytes((198, 51, 100, 1)), bytes((198, 51, 100, 2)))
SERVER6 = bytes.fromhex("20010db8000000020000000000000001")
PIN = bytes(range(32))
TIMEOUT_S = 6.0
_HEADERS = {4: 28, 16: 48}


def relay(number: int, *, ports: tuple[int, int] = (3478, 3479), pin: bytes = PIN) -> RelayInfo:
    fields = {"id": f"fra-{number}", "rg": "fra", "k": bytes(32), "h": [f"fra-{number}.example:443"], "pin": pin}
    return RelayInfo({**fields, "u": ports[0], "s": ports[1]})


class Server:
    """STUN at `address` on two ports, and at `other` when it has a second address (RFC 5780)."""

    def __init__(self, address: bytes, *, other: bytes | None = None, ports: tuple[int, int] = (3478, 3479)) -> None:
        self.address = address
        self.other = other
        self.ports = ports
        self.knows_changes = True

    def answer(self, at: UdpAddress, source: UdpAddress, datagram: bytes) -> tuple[UdpAddress, bytes] | None:
        """(from where, what), None for no answer."""
        message = stun.parse(datagram)
        if message.kind != stun.BINDING_REQUEST:
            return None
        change = stun.read_change(message) if self.knows_changes else 0
        attributes = [stun.xor_mapped_address(message.transaction, source)]
        address, port = at
        first, second = self.ports
        other_port = second if port == first else first
        if change & stun.CHANGE_ADDRESS and self.other is None:
            refused = stun.unknown_attributes_error([stun.CHANGE_REQUEST])
            return at, stun.write(stun.BINDING_ERROR, message.transaction, refused, fingerprint=True)
        if self.knows_changes and second:
            attributes.append(stun.plain_address(stun.OTHER_ADDRESS, (self.other or address, other_port)))
        if change & stun.CHANGE_PORT:
            port = other_port
        if change & stun.CHANGE_ADDRESS and self.other is not None:
            address = self.other
        success = stun.write(stun.BINDING_SUCCESS, message.transaction, attributes, fingerprint=True)
        return (address, port), success


class Nat:
    """What RFC 4787 says of `kind`, in a few lines; the outside address is OUTSIDE."""

    def __init__(self, kind: Kind, chance: random.Random) -> None:
        self.kind = kind
        self._chance = chance
        self._bindings: dict[tuple[UdpAddress, object], int] = {}
        self._inside: dict[int, UdpAddress] = {}
        self._sent: dict[int, set[UdpAddress]] = {}

    def outward(self, source: UdpAddress, destination: UdpAddress) -> UdpAddress:
        depends: object = None
        if self.kind.mapping is Mapping.ADDRESS_DEPENDENT:
            depends = destination[0]
        elif self.kind.mapping is Mapping.ADDRESS_AND_PORT_DEPENDENT:
            depends = destination
        port = self._bindings.get((source, depends))
        if port is None:
            port = source[1]
            while port in self._inside or (self.kind.ports is not Ports.KEPT and port == source[1]):
                port = self._chance.randint(20_000, 60_000)
            self._bindings[source, depends] = port
            self._inside[port] = source
        self._sent.setdefault(port, set()).add(destination)
        return OUTSIDE, port

    def inward(self, source: UdpAddress, destination: UdpAddress) -> UdpAddress | None:
        inside = self._inside.get(destination[1])
        sent = self._sent.get(destination[1], set())
        if inside is None:
            return None
        if self.kind.filtering is Filtering.ADDRESS_DEPENDENT:
            return inside if source[0] in [address for address, _ in sent] else None
        if self.kind.filtering is Filtering.ADDRESS_AND_PORT_DEPENDENT:
            return inside if source in sent else None
        return inside


class World:
    """Runs one Netcheck to its end. What is not said otherwise works: names, TLS, and no portal."""

    def __init__(self, kind: Kind | None = PORT, *, servers: list[Server] | None = None, seed: int = 1) -> None:
        self.now = 1_000.0
        self.began = self.now
        self.chance = random.Random(seed)
        self.nat = None if kind is None else Nat(kind, self.chance)
        self.udp = kind is None or kind.udp
        self.servers = [Server(address) for address in SERVERS] if servers is None else servers
        self.names: dict[str, list[bytes] | str] = {
            f"fra-{number}.example": [server.address] for number, server in enumerate(self.servers, 1)
        }
        self.timeout_s = TIMEOUT_S
        self.closed: set[UdpAddress] = set()  # ports of servers that nothing reaches
        self.firewall = False  # no NAT, and only answers come in
        self.delay_s = 0.02
        self.loss = 0.0
        self.link_mtu, self.path_mtu = 1_500, 1_500
        self.certificate = PIN
        self.tls_error = ""
        self.portal: Response | None = None
        self.plain = False  # whether relays answer at port 80
        self.upnp: Outcome = UpnpFailure.NO_ROUTER
        self.gateway: Callable[[float, bytes], bytes | None] = lambda now, asked: None
        self.sent_bytes = 0
        self.given_back: list[bytes] = []
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._sent_to: set[tuple[UdpAddress, UdpAddress]] = set()
        self._own: dict[UdpAddress, Socket] = {}

    def run(
        self, relays: list[RelayInfo] | None = None, *, gateway: bool = False, sizes: tuple[int, ...] = (4, 16)
    ) -> Netcheck:
        if relays is None:
            relays = [relay(number) for number in range(1, len(self.servers) + 1)]
        ports: dict[Socket, int] = {}
        for size in sizes:
            for role in Role:
                ports[role, size] = 40_000 + len(ports)
                self._own[{4: OWN, 16: OWN6}[size], ports[role, size]] = (role, size)
        self.check = check = Netcheck(
            self.now,
            relays,
            entropy=self.chance.randbytes,
            timeout_s=self.timeout_s,
            ports=ports,
            uplinks=[(Uplink("eth0", GATEWAY, OWN), 41_000)] if gateway else [],
        )
        self._push()
        while (due := check.poll_timeout()) is not None:
            assert due <= self.began + self.timeout_s + 1e-6
            if self._heap and self._heap[0][0] <= due:
                self.now, _, what = heappop(self._heap)
                what()
            else:
                assert due >= self.now or not self._heap
                self.now = max(self.now, due)
                check.handle_timeout(self.now)
            self._push()
        check.close()
        for _, _, datagram in check.drain_asks():
            self.given_back.append(datagram)
        return check

    def at(self, after_s: float, what: Callable[[], None]) -> None:
        self._count += 1
        heappush(self._heap, (self.now + after_s, self._count, what))

    def _push(self) -> None:
        check = self.check
        while True:
            wishes, transmits, asks = check.drain_wishes(), check.drain_transmits(), check.drain_asks()
            if not (wishes or transmits or asks):
                return
            for wish in wishes:
                self._grant(wish)
            for (role, size), transmit in transmits:
                self._send((role, size), transmit)
            for number, endpoint, datagram in asks:
                assert from_endpoint(endpoint) == (GATEWAY, 5351)
                answer = self.gateway(self.now, datagram)
                if answer is not None:
                    self._hear(number, answer)

    def _hear(self, number: int, answer: bytes) -> None:
        source = to_endpoint((GATEWAY, 5351))
        self.at(0.001, lambda: self.check.handle_answer(self.now, number, answer, source))

    # Names, TLS, HTTP

    def _grant(self, wish: Wish) -> None:
        check = self.check
        if isinstance(wish, Resolve):
            found = self.names.get(wish.host, "no such name")
            if isinstance(found, str):
                self.at(0.01, lambda: check.not_resolved(self.now, wish.ticket, f"{wish.host}: {found}"))
            else:
                own = {4: OWN, 16: OWN6}
                pairs = [(address, own[len(address)]) for address in found]
                self.at(0.01, lambda: check.resolved(self.now, wish.ticket, list(pairs)))
        elif isinstance(wish, Dial):
            self.at(3 * self.delay_s, lambda: check.dialled(self.now, wish.way, self._dial(wish.way)))
        elif isinstance(wish, Fetch):
            self.at(2 * self.delay_s, lambda: check.fetched(self.now, wish.way, self._fetch(wish.way)))
        else:
            assert isinstance(wish, Job)
            self.at(1.0, lambda: check.upnp_ended(self.now, self.upnp))

    def _dial(self, way: Way) -> TlsOutcome:
        outcome = TlsOutcome()
        if self.tls_error:
            outcome.error = self.tls_error
            return outcome
        outcome.connect_s, outcome.handshake_s, outcome.certificate = 0.04, 0.05, self.certificate
        outcome.response = probe_answer(way)
        return outcome

    def _fetch(self, way: Way) -> Response | None:
        return self.portal or (probe_answer(way) if self.plain else None)

    # UDP

    def _send(self, at: Socket, transmit: Transmit) -> None:
        role, size = at
        source = next(address for address, socket in self._own.items() if socket == at)
        [datagram] = transmit.datagrams
        length = len(datagram) + _HEADERS[size]
        if role is Role.MTU and length > self.link_mtu:
            self.check.too_long(self.now, transmit)
            return
        self.sent_bytes += length
        if not self.udp or length > self.path_mtu or self.chance.random() < self.loss:
            return
        destination = from_endpoint(transmit.endpoint)
        if size == 16 or self.nat is None:
            self._sent_to.add((source, destination))
            self._to_server(source, destination, datagram)
            return
        outside = self.nat.outward(source, destination)
        if destination[0] == OUTSIDE:
            inside = self.nat.inward(outside, destination) if self.nat.kind.hairpin else None
            if inside is not None:
                self._deliver(inside, outside, datagram)
            return
        self._to_server(outside, destination, datagram)

    def _to_server(self, source: UdpAddress, destination: UdpAddress, datagram: bytes) -> None:
        for server in self.servers:
            reached = destination[0] in (server.address, server.other) and destination[1] in server.ports
            if reached and destination not in self.closed:
                answer = server.answer(destination, source, datagram)
                if answer is not None:
                    origin, text = answer
                    self.at(self.delay_s, lambda: self._back(origin, source, text))  # noqa: B023  one server is reached

    def _back(self, origin: UdpAddress, destination: UdpAddress, datagram: bytes) -> None:
        if origin in self.closed or self.chance.random() < self.loss:
            return
        if len(origin[0]) == 16 or self.nat is None:
            if not self.firewall or (destination, origin) in self._sent_to:
                self._deliver(destination, origin, datagram)
            return
        inside = self.nat.inward(origin, destination)
        if inside is not None:
            self._deliver(inside, origin, datagram)

    def _deliver(self, inside: UdpAddress, source: UdpAddress, datagram: bytes) -> None:
        endpoint: Endpoint = to_endpoint(source)
        self.at(self.delay_s, lambda: self.check.handle_datagram(self.now, self._own[inside], datagram, endpoint))


def probe_answer(way: Way) -> Response:
    return Response(204, {ANSWER_HEADER: f"answer {way.nonce}"}, b"")
