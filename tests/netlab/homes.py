"""A small internet in the lab: a hub, relays, and homes whose routers translate, with a device in each.

    homes = Homes(lab)
    homes.start(relays=2)
    a = homes.join("a", homes.home(Kind.PORT))
    b = homes.join("b", homes.home(Kind.SYMMETRIC))
    homes.first_answer_s(a, b)
    homes.until_direct_s(a, b, 3.0)

What a test may ask is the same as of tests/sim/homes.py; every program is the real one, and the clock runs by itself.
"""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests import tinyproxy
from tests.netlab.flow import Flow
from tests.netlab.host import Host, Net, Port
from tests.netlab.lab import Lab
from tests.netlab.mesh import Device, Mesh
from tests.netlab.nat import CARRIER_PREFIX, Kind, NatRouter, carrier
from tests.netlab.process import LabError, Process, until

INTERNET = "203.0.113.0/24"
HOME = "192.168.1.0/24"  # every home has the same, as in life
SECOND_HOME = "192.168.2.0/24"  # for a device that is in two
SECOND_METRIC = 700
OFFICE = "10.20.0.0/16"
TLS_PORT, UDP_PORT = 443, 3478  # the broker listens at 443 too: some networks let nothing else out
PROXY_PORT = 3128
DRAIN_S = 1  # nobody is there to move when a lab ends
READY_TIMEOUT_S = 30.0
PING_TIMEOUT_S = 10
API_TIMEOUT_S = 5.0
ANSWER_BYTES_MAX = 1 << 20


class Way:
    """How one device reaches another, as `edgeagent peers` says it."""

    __slots__ = ("endpoint", "kind", "latency_ms", "mtu", "path", "uplink")

    def __init__(self, row: dict[str, Any]) -> None:
        self.path: str = row["path"]  # "direct", "relay" or "none"
        self.kind: str | None = row["path_kind"]
        self.endpoint: str | None = row["endpoint"]
        self.latency_ms: float | None = row["latency_ms"]
        self.mtu: int | None = row["path_mtu"]
        self.uplink: str | None = row["path_uplink"]  # where the device has several

    def __str__(self) -> str:
        if self.path == "none":
            return "no path"
        by = f" by {self.uplink}" if self.uplink else ""
        return f"relay {self.relay}{by}" if self.relay else f"direct {self.endpoint}{by}"

    @property
    def relay(self) -> str | None:
        """The relay's id."""
        return (self.endpoint or "").removeprefix("relay:") if self.path == "relay" else None


class Member(Device):
    """A device in a home. `request` asks its agent without starting a program: often enough to see what is brief."""

    def __init__(self, host: Host, router: NatRouter | None, *, udp: bool) -> None:
        super().__init__(host)
        self.router = router
        self.udp = udp  # passes

    def request(self, verb: str, **fields: Any) -> Any:
        """One question to the local API, as docs/agent.md has it; None where no agent runs."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(API_TIMEOUT_S)
            answer = b""
            try:
                sock.connect(str(self.host.directory / "run/edgeagent/agent.sock"))
                sock.sendall(json.dumps({"do": verb, **fields}).encode() + b"\n")
                while chunk := sock.recv(ANSWER_BYTES_MAX):
                    answer += chunk
            except (FileNotFoundError, ConnectionError):
                return None
        said = json.loads(answer.splitlines()[-1]) if answer else {"ok": False, "error": "no answer"}
        if not said["ok"]:
            raise LabError(f"{self.name}: {verb}: {said['error']}")
        return said["result"]

    def ways(self) -> dict[str, Way]:
        """By name of the peer."""
        return {row["name"]: Way(row) for row in self.request("peers") or ()}


class RelayHost:
    """A host on the internet with `edgerelay serve`. `start` it as often as it was ended."""

    def __init__(self, host: Host, region: str) -> None:
        self.host = host
        self.name = host.name
        self.region = region
        self.process: Process | None = None

    def start(self, token: str | None = None) -> None:
        """With a token the first time; it does not wait for the relay to be of use."""
        words: list[str | Path] = ["edgerelay", "serve", "--state-dir", self.host.directory / "edgerelay"]
        words += ["--id", self.name, "--listen", str(TLS_PORT), "--udp", str(UDP_PORT)]
        words += ["--public", f"{self.host.address}:{TLS_PORT}", "--drain", str(DRAIN_S)]
        if token is not None:
            file = self.host.directory / "relay.token"
            file.write_text(token + "\n")
            file.chmod(0o600)
            words += ["--join-file", file]
        self.process = self.host.start(*words)
        self.process.expect("listens")

    def kill(self) -> None:
        """As a power cut would."""
        assert self.process is not None
        self.process.kill()

    def freeze(self) -> None:
        """From now on everything still reaches it, and nothing comes of it."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        self.freeze()
        try:
            yield
        finally:
            self.thaw()

    def _signal(self, number: int) -> None:
        assert self.process is not None
        self.process.signal(number)


class Homes:
    """`start` the hub and relays, make homes, `join` devices; then ask how they reach each other."""

    def __init__(self, lab: Lab, internet: str = INTERNET, mesh: type[Mesh] = Mesh) -> None:
        self.lab = lab
        self.internet = lab.net(internet)
        self.mesh = mesh(lab, self.internet, port=TLS_PORT)
        self.relays: list[RelayHost] = []
        self.members: list[Member] = []
        self.routers: list[NatRouter] = []
        self._token = ""
        self._invitations: dict[str, str] = {}  # by region

    # Building

    def start(self, *relays: str, dashboard: socket.socket | None = None) -> None:
        """The hub, and relays of these names in one region, until devices will be told of them all."""
        self.mesh.start_hub(dashboard)
        self._token = self.mesh.token("--uses", "0")
        for name in relays:
            self.add_relay(name)
        self.until_online(*self.relays)

    def add_relay(self, name: str, region: str = "fra", delay_ms: float = 0.0) -> RelayHost:
        """One more relay, so far away from everybody; it does not wait for the hub to know it."""
        if region not in self._invitations:
            self._invitations[region] = self.mesh.invite(region, uses=0)
        host = self.lab.host(name)
        host.attach(self.internet, delay_ms=delay_ms)
        relay = RelayHost(host, region)
        self.relays.append(relay)
        relay.start(self._invitations[region])
        return relay

    def home(self, kind: Kind, outside: Net | None = None, delay_ms: float = 0.0, *, prefix: str = HOME) -> NatRouter:
        """A home on the internet, or on the `inside` of a carrier's router, so far away from it."""
        name = f"{kind.value.replace('_', '-')}-router-{len(self.routers) + 1}"
        router = NatRouter(self.lab, name, self.lab.net(prefix), outside or self.internet, kind, delay_ms)
        self.routers.append(router)
        return router

    def carrier(self, kind: Kind, prefix: str = CARRIER_PREFIX, delay_ms: float = 0.0) -> NatRouter:
        """A carrier's router: the outside of homes is its `inside`."""
        router = carrier(self.lab, f"carrier-{len(self.routers) + 1}", self.internet, kind, prefix, delay_ms)
        self.routers.append(router)
        return router

    def member(self, name: str, router: NatRouter | None) -> Member:
        """A device in the home behind `router`, or on the internet itself; it has not joined."""
        host = self.lab.host(name, router.inside if router else self.internet)
        udp = router is None or router.kind not in (Kind.UDP_BLOCKED, Kind.TCP_443)
        self.members.append(Member(host, router, udp=udp))
        return self.members[-1]

    def add_uplink(self, member: Member, router: NatRouter) -> Port:
        """A second way out for a device, less preferred than the first; the home must have a prefix of its own."""
        port = member.host.attach(router.inside)
        assert router.inside.gateway is not None
        member.host.ip(f"route add default via {router.inside.gateway.v4} dev {port.ifname} metric {SECOND_METRIC}")
        return port

    def office(self) -> tuple[Net, Host]:
        """A network without a router: an HTTP proxy is all that has a foot outside, and lets TLS through."""
        net = self.lab.net(OFFICE)
        host = self.lab.host("proxy", net, self.internet)
        settings = tinyproxy.write_settings(host.directory, PROXY_PORT, [TLS_PORT])
        host.start("tinyproxy", "-d", "-c", settings).expect("Accepting connections")
        return net, host

    def clerk(self, name: str, office: tuple[Net, Host]) -> Member:
        """A device in an office; it has not joined."""
        net, proxy = office
        host = self.lab.host(name, net)
        settings = host.directory / "edgeagent.conf"
        settings.write_text(f"proxy = {proxy.address}:{PROXY_PORT}\n")
        member = Member(host, None, udp=False)
        member.options = ["--config", str(settings)]
        self.members.append(member)
        return member

    def join(self, name: str, router: NatRouter | None) -> Member:
        """A device in the home behind `router`, joined, and ready to be met."""
        member = self.member(name, router)
        self.up(member)
        return member

    def up(self, *members: Member) -> None:
        """Join devices, and wait until each has a relay where others find it."""
        for member in members:
            member.up(self._token)
        for member in members:
            self.until_settled(member)

    # What comes out

    def until_online(self, *relays: RelayHost) -> None:
        """The hub has them in its maps."""
        for relay in relays:
            until(lambda relay=relay: self.mesh.relays().get(relay.name) == "online", READY_TIMEOUT_S, f"{relay.name}")  # type: ignore[misc]

    def until_settled(self, member: Member) -> None:
        """It is told of by a relay, and where UDP passes it knows how its router shows it."""
        if not self.relays:
            return

        def settled() -> bool:
            me = (member.request("status") or {}).get("self", {})
            return me.get("home_relay") is not None and bool(me.get("nat_mapping") or not member.udp)

        until(settled, READY_TIMEOUT_S, f"{member.name} at a relay")

    def first_answer_s(self, a: Member, b: Member) -> float:
        """Seconds from the first packet of `a` for `b` to its answer."""
        trip_ms = a.host.ping(b.address, PING_TIMEOUT_S)
        if trip_ms is None:
            raise LabError(f"{a.name} gets no answer from {b.name} within {PING_TIMEOUT_S} s")
        return trip_ms / 1e3

    def until_direct_s(self, a: Member, b: Member, within_s: float) -> float | None:
        """Seconds until both send past the relay, packets going all the while; None where that did not happen."""
        began = time.monotonic()
        with Flow(a.host, b.address):
            while time.monotonic() - began < within_s:
                if is_direct(a, b) and is_direct(b, a):
                    return time.monotonic() - began
                time.sleep(0.02)
        return None


def way(a: Member, b: Member) -> Way | None:
    """How `a` reaches `b`; None where it does not know it."""
    return a.ways().get(b.name)


def is_direct(a: Member, b: Member) -> bool:
    found = way(a, b)
    return found is not None and found.path == "direct"
