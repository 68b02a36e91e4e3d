"""What a check of the network finds out, and the words for it (RFC 4787)."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from edgeagent.proto.relay_http import is_probe_answer

if TYPE_CHECKING:
    from edgeagent.proto.records import UdpAddress
    from edgeagent.proto.relay_http import Response


class Mapping(Enum):
    """On what the outside address and port of one inside address and port depend (RFC 4787, section 4.1)."""

    NO_NAT = "no-nat"
    ENDPOINT_INDEPENDENT = "endpoint-independent"
    ADDRESS_DEPENDENT = "address-dependent"
    ADDRESS_AND_PORT_DEPENDENT = "address-and-port-dependent"
    NOT_BY_PORT = "endpoint-independent-or-address-dependent"  # one server cannot tell
    DEPENDENT = "address-dependent-or-address-and-port-dependent"  # servers with one port each cannot tell
    UNKNOWN = "unknown"


class Filtering(Enum):
    """Who may send to an outside port: anybody, or whom was sent to (section 5)."""

    ENDPOINT_INDEPENDENT = "endpoint-independent"
    ADDRESS_DEPENDENT = "address-dependent"
    ADDRESS_AND_PORT_DEPENDENT = "address-and-port-dependent"
    NOT_BY_PORT = "endpoint-independent-or-address-dependent"  # no server answered from a second address
    UNKNOWN = "unknown"


class TlsOutcome:
    """What came of one connection: times in s, the certificate's SHA-256, the answer to a probe inside; or `error`."""

    __slots__ = ("certificate", "connect_s", "error", "handshake_s", "response")

    def __init__(self) -> None:
        self.connect_s: float | None = None
        self.handshake_s: float | None = None
        self.certificate = b""
        self.response: Response | None = None
        self.error = ""


class Way:
    """One address of one relay. Times in s; `latencies` are round trips of STUN, `local` our address towards it."""

    __slots__ = (
        "address",
        "host",
        "latencies",
        "local",
        "mapped",
        "mtu",
        "mtu_exact",
        "nonce",
        "other_address",
        "second_mapped",
        "stun_port",
        "tls",
        "tls_port",
        "udp_port",
    )

    def __init__(self, host: str, address: bytes, ports: tuple[int, int, int], local: bytes | None, nonce: str) -> None:
        self.host = host
        self.address = address
        self.tls_port, self.udp_port, self.stun_port = ports
        self.local = local
        self.nonce = nonce  # of the probes by HTTP
        self.mapped: UdpAddress | None = None
        self.second_mapped: UdpAddress | None = None  # as its second port sees us
        self.other_address = False  # whether it says that it can answer from another one
        self.latencies: list[float] = []
        self.mtu = 0  # the largest IP packet that reached it, 0 for not known
        self.mtu_exact = False
        self.tls: TlsOutcome | None = None

    @property
    def size(self) -> int:
        """4 or 16."""
        return len(self.address)

    @property
    def by_udp(self) -> bool:
        return self.mapped is not None

    @property
    def by_tls(self) -> bool:
        """The relay itself answered inside, and nobody in its name."""
        tls = self.tls
        return tls is not None and tls.response is not None and is_probe_answer(tls.response, self.nonce)

    @property
    def latency_s(self) -> float | None:
        return min(self.latencies, default=None)


class RelayFacts:
    """One relay: what it is called, and how it was reached. `pin` is its certificate's SHA-256, empty for not known."""

    __slots__ = ("errors", "hosts", "id", "pin", "region", "ways")

    def __init__(self, relay: str, region: str, hosts: list[str], pin: bytes) -> None:
        self.id = relay
        self.region = region
        self.hosts = hosts
        self.pin = pin
        self.ways: list[Way] = []
        self.errors: list[str] = []  # names that could not be looked up

    @property
    def reached(self) -> bool:
        return any(way.by_udp or way.by_tls for way in self.ways)


class NatFacts:
    """How UDP of one IP version fares. What is None could not be told."""

    __slots__ = ("filtering", "hairpin", "local", "mapped", "mapping", "port_kept", "unanswered")

    def __init__(self) -> None:
        self.unanswered = False  # relays were asked, long enough, and none has answered
        self.local: UdpAddress | None = None
        self.mapped: list[UdpAddress] = []
        self.mapping = Mapping.UNKNOWN
        self.filtering = Filtering.UNKNOWN
        self.hairpin: bool | None = None
        self.port_kept: bool | None = None

    @property
    def passes(self) -> bool:
        return bool(self.mapped)


class PortmapFacts:
    """A router that opens ports, by one protocol. `address` (4 or 16 B) is its outside one, None when it `refused`."""

    __slots__ = ("address", "gateway", "interface", "protocol", "refused")

    def __init__(self, interface: str, gateway: bytes, protocol: str, address: bytes | None, refused: str = "") -> None:
        self.interface = interface
        self.gateway = gateway
        self.protocol = protocol  # "pcp", "nat-pmp", "upnp"
        self.address = address
        self.refused = refused


def classify(samples: dict[UdpAddress, UdpAddress]) -> Mapping:
    """Where each server saw one and the same socket: server → mapped address."""
    servers = list(samples)
    by_port: bool | None = None  # whether another port of a server changes the mapping
    by_address: bool | None = None
    for number, one in enumerate(servers):
        for other in servers[:number]:
            differs = samples[one] != samples[other]
            if one[0] == other[0]:
                by_port = by_port or differs
            else:
                by_address = by_address or differs
    if by_port:
        return Mapping.ADDRESS_AND_PORT_DEPENDENT
    if by_address:
        return Mapping.DEPENDENT if by_port is None else Mapping.ADDRESS_DEPENDENT
    if by_address is None:
        return Mapping.UNKNOWN if by_port is None else Mapping.NOT_BY_PORT
    return Mapping.ENDPOINT_INDEPENDENT
