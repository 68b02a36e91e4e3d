"""What this device's network lets through: the machine of `edgeagent netcheck`, which asks everything at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeagent.proto.endpoint import Transmit
from edgeagent.proto.errors import LocalProtocolError, RemoteProtocolError
from edgeagent.proto.names import split_host_port
from edgeagent.proto.natpmp import SERVER_PORT
from edgeagent.proto.netcheck_facts import NatFacts, PortmapFacts, RelayFacts, TlsOutcome, Way
from edgeagent.proto.netcheck_mtu import MtuSearch
from edgeagent.proto.netcheck_nat import NatProbe, Role
from edgeagent.proto.netcheck_portmap import GatewayProbe
from edgeagent.proto.paths import from_endpoint, to_endpoint
from edgeagent.proto.portmap_upnp import Done, Job, Outcome, Want

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgeagent.proto.endpoint import Endpoint
    from edgeagent.proto.relay_http import Response
    from edgeagent.proto.relaymap import RelayInfo

RELAYS_MAX = 16
HOSTS_MAX = 2  # of each relay; the first address of each IP version counts
FETCHES_MAX = 4  # probes for a captive portal
GATEWAYS_MAX = 4
HTTP_PORT = 80
_NONCE_SIZE = 12

Socket = tuple[Role, int]  # and the length of the addresses it speaks to
Address = tuple[bytes, bytes | None]  # of a relay, and our own towards it: None where no route leads there


class Resolve:
    """Look up `host`; `resolved` or `not_resolved` with `ticket` is the answer."""

    __slots__ = ("host", "ticket")

    def __init__(self, host: str, ticket: int) -> None:
        self.host = host
        self.ticket = ticket


class Dial:
    """Connect to the way's address and TLS port and send the probe with its nonce inside; `dialled` is the answer."""

    __slots__ = ("way",)

    def __init__(self, way: Way) -> None:
        self.way = way


class Fetch:
    """The same without TLS, at port 80; `fetched` is the answer."""

    __slots__ = ("way",)

    def __init__(self, way: Way) -> None:
        self.way = way


Wish = Resolve | Dial | Fetch | Job


class Uplink:
    """Where a gateway may open ports: `own` is our address (4 or 16 B) on `interface`."""

    __slots__ = ("gateway", "interface", "own")

    def __init__(self, interface: str, gateway: bytes, own: bytes) -> None:
        self.interface = interface
        self.gateway = gateway
        self.own = own


class Netcheck:
    """Drive it: do what `drain_wishes` and `drain_transmits` say and report how it went, `handle_timeout` at
    `poll_timeout()`; after any input drain both, until `finished`. Then `close`, and drain transmits once more.

    `ports` are those that the UDP sockets are bound to, as far as there are any; what Role.MTU sends may not be
    fragmented. With each uplink comes the port from which its gateway is asked.
    """

    def __init__(
        self,
        now: float,
        relays: list[RelayInfo],
        *,
        entropy: Callable[[int], bytes],
        timeout_s: float,
        ports: dict[Socket, int],
        uplinks: list[tuple[Uplink, int]],
    ) -> None:
        self._entropy = entropy
        self._ends_at = now + timeout_s
        self._over = False
        self.relays = [
            RelayFacts(relay.id, relay.region, relay.hosts, relay.certificate_sha256) for relay in relays[:RELAYS_MAX]
        ]
        self.pages: list[tuple[Way, Response | None]] = []
        self._udp_ports = [(relay.udp_port, relay.stun_port) for relay in relays[:RELAYS_MAX]]
        self._nats = {
            size: NatProbe(entropy, {role: port for (role, length), port in ports.items() if length == size})
            for size in (4, 16)
            if (Role.MAPPING, size) in ports
        }
        self._mtu: list[tuple[Way, MtuSearch]] = []
        self._gateways = [
            GatewayProbe(now, uplink.interface, uplink.gateway, uplink.own, port, entropy)
            for uplink, port in uplinks[:GATEWAYS_MAX]
        ]
        self._upnp: list[PortmapFacts] = []
        self._wishes: list[Wish] = []
        self._hosts: list[tuple[RelayFacts, str, tuple[int, int, int]]] = []  # by ticket
        self._resolving: set[int] = set()
        self._dialling: list[Way] = []
        self._fetching: list[Way] = []
        self._looking: list[Job] = []
        self._begin()

    # What others are to do

    def drain_wishes(self) -> list[Wish]:
        wishes, self._wishes = self._wishes, []
        return wishes

    def drain_transmits(self) -> list[tuple[Socket, Transmit]]:
        transmits: list[tuple[Socket, Transmit]] = []
        for size, nat in self._nats.items():
            transmits += [((role, size), transmit) for role, transmit in nat.drain_transmits()]
        for way, search in self._mtu:
            transmits += [((Role.MTU, way.size), transmit) for transmit in search.drain_transmits()]
        return transmits

    def drain_asks(self) -> list[tuple[int, Endpoint, bytes]]:
        """(number of the uplink, where to, datagram) for gateways."""
        return [
            (number, to_endpoint((probe.gateway, SERVER_PORT)), datagram)
            for number, probe in enumerate(self._gateways)
            for datagram in probe.drain_datagrams()
        ]

    # How it went

    def resolved(self, now: float, ticket: int, addresses: list[Address]) -> None:
        """The addresses of a host, those to be tried first in front."""
        if ticket not in self._resolving:
            return
        self._resolving.discard(ticket)
        self._take_addresses(now, ticket, addresses)

    def not_resolved(self, now: float, ticket: int, why: str) -> None:
        if ticket in self._resolving:
            self._resolving.discard(ticket)
            self._hosts[ticket][0].errors.append(why)

    def handle_datagram(self, now: float, socket: Socket, datagram: bytes, source: Endpoint) -> None:
        """What came in on a UDP socket."""
        role, size = socket
        if role is not Role.MTU:
            nat = self._nats[size]
            nat.handle_datagram(now, role, datagram, source)
            while nat.timed:
                self._begin_mtu(now, nat.timed.pop(0))
            return
        at = from_endpoint(source)
        for way, search in self._mtu:
            if (way.address, way.udp_port) == at and search.handle(now, datagram, source):
                break

    def handle_answer(self, now: float, number: int, datagram: bytes, source: Endpoint) -> None:
        """What came in where the gateway of this uplink was asked from."""
        self._gateways[number].handle_datagram(now, from_endpoint(source), datagram)

    def too_long(self, now: float, transmit: Transmit) -> None:
        """The own system refuses a request of the MTU search for its length."""
        for datagram in transmit.datagrams:
            for _, search in self._mtu:
                search.refused(now, datagram[8:20])  # a transaction

    def dialled(self, now: float, way: Way, outcome: TlsOutcome) -> None:
        if way in self._dialling:
            self._dialling.remove(way)
            way.tls = outcome

    def fetched(self, now: float, way: Way, response: Response | None) -> None:
        """None: nobody answers there."""
        if way in self._fetching:
            self._fetching.remove(way)
            self.pages.append((way, response))

    def upnp_ended(self, now: float, outcome: Outcome) -> None:
        """Of the job that was given."""
        if not self._looking:
            raise LocalProtocolError("netcheck: no job was under way")
        job = self._looking.pop(0)
        if isinstance(outcome, Done):
            self._upnp.append(PortmapFacts(job.uplink, job.gateway, "upnp", outcome.address))
        if self._looking:
            self._wishes.append(self._looking[0])

    def handle_timeout(self, now: float) -> None:
        for nat in self._nats.values():
            nat.handle_timeout(now)
        for _, search in self._mtu:
            search.handle_timeout(now)
        for probe in self._gateways:
            probe.handle_timeout(now)
        self._over = self._over or now >= self._ends_at

    def poll_timeout(self) -> float | None:
        """None once it is finished."""
        if self.finished:
            return None
        due = [nat.poll_timeout() for nat in self._nats.values()]
        due += [search.poll_timeout() for _, search in self._mtu]
        due += [probe.poll_timeout() for probe in self._gateways]
        return min([self._ends_at, *(at for at in due if at is not None)])

    @property
    def finished(self) -> bool:
        return self._over or not self.under_way()

    def under_way(self) -> list[str]:
        """What is still waited for, in a word each."""
        parts = {
            "names": self._resolving,
            "udp": any(nat.under_way for nat in self._nats.values()),
            "mtu": any(not search.done for _, search in self._mtu),
            "tls": self._dialling,
            "http": self._fetching,
            "port mapping": any(not probe.done for probe in self._gateways) or self._waits_for_upnp(),
        }
        return [name for name, busy in parts.items() if busy]

    def _waits_for_upnp(self) -> bool:
        """It takes its time, and is what is left where nothing better answers."""
        return bool(self._looking) and not any(fact.address is not None for fact in self.portmaps())

    def close(self) -> None:
        """Give back what gateways have opened, and take stock."""
        self._over = True
        for way, search in self._mtu:
            way.mtu, way.mtu_exact = search.low, search.exact
        for probe in self._gateways:
            probe.close()

    # What was found

    def nat(self, size: int) -> NatFacts:
        nat = self._nats.get(size)
        return NatFacts() if nat is None else nat.facts()

    def portmaps(self) -> list[PortmapFacts]:
        return [fact for probe in self._gateways for fact in probe.facts()] + self._upnp

    def local(self, size: int) -> bytes | None:
        """Our address towards relays of an IP version, None where no route leads to any."""
        for relay in self.relays:
            for way in relay.ways:
                if way.size == size and way.local is not None:
                    return way.local
        return None

    # Beginning

    def _begin(self) -> None:
        for relay, (udp_port, stun_port) in zip(self.relays, self._udp_ports, strict=True):
            for text in relay.hosts[:HOSTS_MAX]:
                try:
                    host, port = split_host_port(text)
                except RemoteProtocolError as error:
                    relay.errors.append(str(error))
                    continue
                ticket = len(self._hosts)
                self._hosts.append((relay, host, (port, udp_port, stun_port)))
                self._resolving.add(ticket)
                self._wishes.append(Resolve(host, ticket))
        # One at a time: the package behind it blocks
        self._looking = [
            Job(Want.LOOK, (probe.interface, probe.gateway, probe.own, 0))
            for probe in self._gateways
            if len(probe.own) == 4
        ]
        self._wishes += self._looking[:1]

    def _take_addresses(self, now: float, ticket: int, addresses: list[Address]) -> None:
        relay, host, ports = self._hosts[ticket]
        for address, local in addresses:
            if any(way.size == len(address) for way in relay.ways):
                continue
            way = Way(host, address, ports, local, self._entropy(_NONCE_SIZE).hex())
            relay.ways.append(way)
            if local is None:
                continue
            nat = self._nats.get(way.size)
            if nat is not None:
                nat.add(now, way)
            self._dialling.append(way)
            self._wishes.append(Dial(way))
            if len(relay.ways) == 1 and len(self._fetching) + len(self.pages) < FETCHES_MAX:
                self._fetching.append(way)
                self._wishes.append(Fetch(way))

    def _begin_mtu(self, now: float, way: Way) -> None:
        rtt_s = way.latency_s or 0.0
        server = to_endpoint((way.address, way.udp_port))
        self._mtu.append((way, MtuSearch(now, server, self._entropy, ipv6=way.size == 16, rtt_s=rtt_s)))
