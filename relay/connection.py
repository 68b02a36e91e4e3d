"""One TCP connection of a relay, the TLS it speaks, and the calls that a relay makes to its siblings."""

from __future__ import annotations

import hashlib
import socket
import ssl
from contextlib import suppress
from enum import Enum

from edgeagent.proto.relay_http import ResponseReader
from relay.core.http import RequestReader

UNSENT_BYTES = 65_536  # in the kernel; beyond it a stream counts as blocked and its queue drops the oldest
UNACKNOWLEDGED_MS = 60_000  # after which the kernel gives a connection up: its member has gone without a word
_TCP_NOTSENT_LOWAT = 25


class Listener(Enum):
    TLS = "tls"  # members, and everybody
    PLAIN = "plain"  # pages and probes in the clear
    METRICS = "metrics"  # metrics without a token


class Phase(Enum):
    CONNECTING = "connecting"  # our own call
    HANDSHAKE = "handshake"
    REQUEST = "request"
    RESPONSE = "response"  # of the sibling that we called
    RELAY = "relay"


class Place:
    """What one network says of a sibling: its id there, where it is, and the SHA-256 of its certificate (b"": any)."""

    __slots__ = ("host", "pin", "port", "sibling")

    def __init__(self, sibling: str, host: str, port: int, pin: bytes = b"") -> None:
        self.sibling = sibling
        self.host = host
        self.port = port
        self.pin = pin

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Place) and self._all == other._all

    def __hash__(self) -> int:
        return hash(self._all)

    @property
    def _all(self) -> tuple[str, str, int, bytes]:
        return self.sibling, self.host, self.port, self.pin


class Call:
    """A sibling that this relay is to keep a link to. Of two relays the one with the lesser key calls.

    Each try is at the next of `places`: what one network says of a relay does not keep it from another.
    """

    __slots__ = ("again_at", "conn", "key", "place", "places", "tries")

    def __init__(self, key: bytes, places: list[Place]) -> None:
        self.key = key
        self.places = places
        self.place = places[0]
        self.tries = 0
        self.conn: int | None = None
        self.again_at = 0.0

    def begin(self) -> Place:
        """One more try."""
        self.place = self.places[self.tries % len(self.places)]
        self.tries += 1
        return self.place


class Connection:
    __slots__ = (
        "blocked",
        "call",
        "closing",
        "deadline",
        "fd",
        "id",
        "inside",
        "listener",
        "mask",
        "out",
        "phase",
        "reader",
        "sock",
        "source",
        "stalled",
    )

    def __init__(self, number: int, sock: socket.socket, phase: Phase, listener: Listener, source: bytes) -> None:
        self.id = number
        self.sock = sock
        self.fd = sock.fileno()
        self.phase = phase
        self.listener = listener
        self.source = source
        self.mask = 0
        self.out: memoryview | None = None  # of a write that the kernel did not take whole
        self.reader: RequestReader | ResponseReader | None = None
        self.call: Call | None = None
        self.deadline: float | None = None  # of a call, until the link is up
        self.inside = False  # logged in
        self.closing = False  # as soon as `out` is out
        self.blocked = False  # the kernel did not take `out` whole, and the core knows
        self.stalled = False  # TLS has something to write before it reads on, as after a key update


def server_context(certificate: str, key: str) -> ssl.SSLContext:
    """TLS 1.2 and newer. Raises OSError and ssl.SSLError for files that do not serve."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0  # members stay for long; a ticket each would cost memory and a record
    context.set_alpn_protocols(["http/1.1"])
    context.load_cert_chain(certificate, key)
    return context


def certificate_pin(path: str) -> bytes:
    """SHA-256 of the server's own certificate, the first of the chain. Raises OSError and ValueError."""
    with open(path, encoding="ascii", errors="replace") as file:
        first, end, _ = file.read().partition("-----END CERTIFICATE-----")
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(first[first.find("-----BEGIN") :] + end)).digest()


def client_context() -> ssl.SSLContext:
    """For calls to siblings, who prove who they are by their relay keys: TLS is only the way there."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def tune(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS)
    with suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, UNSENT_BYTES)


def packed(host: str) -> bytes:
    """4 or 16 B; an IPv4 address in IPv6 form as IPv4."""
    plain = host.partition("%")[0].removeprefix("::ffff:")
    return socket.inet_pton(socket.AF_INET6 if ":" in plain else socket.AF_INET, plain)
