"""Two WireGuard interfaces in a lab, each of an implementation of choice, configured by wg(8)."""

from __future__ import annotations

import os
from base64 import b64encode

from edgeagent import crypto
from edgeagent.proto.keys import generate_private_key
from tests.netlab import Host, Lab, Process, until

EDGE, GO = "edge-wireguard", "wireguard-go"
READY_S = 10.0


class End:
    """An interface `wg0` in `host` with a key of its own, tunnel addresses 10.9.0.N and fd09::N, and port 51820."""

    def __init__(self, host: Host, implementation: str, number: int, port: int = 51820) -> None:
        self.host = host
        self.number = number
        self.port = port
        private = generate_private_key(os.urandom)
        self.private_key = b64encode(private).decode()
        self.public_key = b64encode(crypto.load("pure").x25519_base(private)).decode()
        self.process = self.start(implementation)
        self.set("listen-port", str(port), "private-key", "/dev/stdin", input=self.private_key)
        host.ip(f"addr add 10.9.0.{number}/24 dev wg0", f"addr add fd09::{number}/64 dev wg0 nodad")

    @property
    def socket(self) -> str:
        return str(self.host.directory / "run/wireguard/wg0.sock")

    def start(self, implementation: str) -> Process:
        process = self.host.start(implementation, "-f", "wg0", env={"LOG_LEVEL": "verbose"})
        until(lambda: os.path.exists(self.socket) or not process.running, READY_S, "the interface's socket")
        return process

    def up(self) -> None:
        self.host.ip("link set wg0 up")

    def set(self, *words: str, input: str | None = None) -> None:
        self.host.run("wg", "set", "wg0", *words, input=input)

    def add(self, other: End, *words: str) -> None:
        """Make `other` a peer, with its tunnel addresses."""
        ips = f"10.9.0.{other.number}/32,fd09::{other.number}/128"
        self.set("peer", other.public_key, "allowed-ips", ips, *words)

    def shows(self, what: str) -> dict[str, str]:
        """`wg show wg0 WHAT`, by peer."""
        lines = self.host.run("wg", "show", "wg0", what).stdout.splitlines()
        return dict(line.split("\t", 1) for line in lines)

    def handshake_at(self, other: End) -> int:
        return int(self.shows("latest-handshakes")[other.public_key])

    def endpoint_of(self, other: End) -> str:
        return self.shows("endpoints")[other.public_key]

    def reaches(self, other: End) -> bool:
        """Whether one echo in each IP version comes back at once."""
        return all(self.host.ping(f"{prefix}{other.number}") is not None for prefix in ("10.9.0.", "fd09::"))


def two_hosts(lab: Lab) -> tuple[Host, Host]:
    net = lab.net("192.0.2.0/24", "2001:db8::/64")
    return lab.host("a", net), lab.host("b", net)


def two_ends(lab: Lab, ours: str = EDGE, theirs: str = GO) -> tuple[End, End]:
    a, b = two_hosts(lab)
    return End(a, ours, 1), End(b, theirs, 2)


def outer(end: End, version: int = 4) -> str:
    """Where `end` is reached."""
    return f"{end.host.address}:{end.port}" if version == 4 else f"[{end.host.address6}]:{end.port}"


def connected(lab: Lab, ours: str = EDGE, theirs: str = GO) -> tuple[End, End]:
    """Two ends that have shaken hands; the first knew where the second is."""
    a, b = two_ends(lab, ours, theirs)
    a.add(b, "endpoint", outer(b))
    b.add(a)
    a.up()
    b.up()
    until(lambda: a.reaches(b), READY_S, "a tunnel")
    return a, b
