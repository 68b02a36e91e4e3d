"""The port mapper against miniupnpd on a router of the lab: what it says is open is open."""

from __future__ import annotations

import contextlib
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from os import urandom
from random import random

import pytest

from edgeagent.proto.portmap import MappingGained, MappingLost, PortMapper
from tests.netlab import Host, Lab, until
from tests.netlab.nat import Kind, NatRouter
from tests.netlab.process import Process
from tests.netlab.sockets import receive, udp_socket

PORT = 41_641

# It keeps its rules in tables that must be there. `uuid` is UPnP's, which is off.
RULES = """
table inet filter {
  chain forward { type filter hook forward priority 0; jump miniupnpd; }
  chain miniupnpd { }
  chain prerouting { type nat hook prerouting priority -100; jump prerouting_miniupnpd; }
  chain postrouting { type nat hook postrouting priority 100; jump postrouting_miniupnpd; }
  chain prerouting_miniupnpd { }
  chain postrouting_miniupnpd { }
}
"""
CONFIG = """
ext_ifname=wan
listening_ip=lan
enable_natpmp=yes
enable_upnp=no
ipv6_disable=yes
uuid=00000000-0000-0000-0000-000000000001
allow 1024-65535 0.0.0.0/0 1024-65535
deny 0-65535 0.0.0.0/0 0-65535
"""


class Home:
    """A device behind a router that runs miniupnpd, a stranger outside, and the mapper with real sockets."""

    def __init__(self, lab: Lab, stack: contextlib.ExitStack) -> None:
        # Not a documentation prefix: miniupnpd would not map to one.
        internet, inside = lab.net("11.0.0.0/24"), lab.net("192.168.1.0/24")
        self.router = NatRouter(lab, "router", inside, internet, Kind.PORT)
        self.device = lab.host("device", inside)
        self.stranger = lab.host("stranger", internet)
        self.gateway = inside.ports[0].v4
        self.asking = stack.enter_context(udp_socket(self.device))
        self.announced = stack.enter_context(udp_socket(self.device, "", 5350))
        group = socket.inet_aton("224.0.0.1") + socket.inet_aton(self.device.address)
        self.announced.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
        self.inside = stack.enter_context(udp_socket(self.device, "", PORT))
        self.mapper = PortMapper(urandom, random)
        self.events: list[MappingGained | MappingLost] = []
        self.ahead_s = 0.0

    def now(self) -> float:
        return time.monotonic() + self.ahead_s

    def start_server(self) -> Process:
        self.router.host.run("nft", "-f", "-", input=RULES)
        config = self.router.host.directory / "miniupnpd.conf"
        config.write_text(CONFIG)
        process = self.router.host.start("miniupnpd", "-d", "-f", config)
        process.expect("Listening for NAT-PMP/PCP")
        return process

    def set_gateway(self) -> None:
        self.mapper.set_gateway(self.now(), "eth0", packed(self.gateway), packed(self.device.address), PORT)
        self.flush()

    def pump_until(self, done: Callable[[], bool], what: str) -> None:
        def step() -> bool:
            for source in (self.asking, self.announced):
                while (heard := receive(source, 0.0)) is not None:
                    data, (address, port) = heard
                    self.mapper.handle_datagram(self.now(), "eth0", (packed(address), port), data)
            self.mapper.handle_timeout(self.now())
            self.flush()
            return done()

        until(step, 10.0, what)

    def flush(self) -> None:
        for ask in self.mapper.drain_asks():
            self.asking.sendto(ask.datagram, (str(ip_address(ask.gateway)), 5351))
        self.events += self.mapper.drain_events()

    def is_open(self, address: bytes, port: int) -> bool:
        with udp_socket(self.stranger) as stranger:  # a new one each time: the router remembers those that came in
            stranger.sendto(b"stranger", (str(ip_address(address)), port))
            heard = receive(self.inside, 0.2)
        return heard is not None and heard[0] == b"stranger"


@pytest.fixture
def home(lab: Lab) -> Iterator[Home]:
    if shutil.which("miniupnpd") is None:
        pytest.skip("needs miniupnpd: apt-get install miniupnpd-nftables")
    with contextlib.ExitStack() as stack:
        yield Home(lab, stack)


def packed(address: str) -> bytes:
    return ip_address(address).packed


@pytest.mark.parametrize("protocol", ["pcp", "nat-pmp"])
def test_a_port_is_opened_kept_and_closed(home: Home, protocol: str) -> None:
    server = home.start_server()
    assert not home.is_open(packed(home.router.address), PORT)
    if protocol == "nat-pmp":
        only_natpmp(home.router.host)
    home.set_gateway()
    home.pump_until(lambda: bool(home.events), "a mapping")
    gained = home.events[0]
    assert isinstance(gained, MappingGained)
    assert (gained.protocol, gained.address, gained.port) == (protocol, packed(home.router.address), PORT)
    assert home.is_open(gained.address, gained.port)
    [(_, mapping)] = home.mapper.mappings()
    first_end = mapping.ends_at

    # A server that starts anew says so; nothing else would have us ask before half of the lifetime is over.
    server.stop()
    home.ahead_s = 10.0  # two starts within two seconds could not be told apart (RFC 6887, section 8.5)
    home.router.host.run("nft", "delete table inet filter")
    assert not home.is_open(gained.address, gained.port)
    server = home.start_server()
    home.pump_until(lambda: home.mapper.mappings()[0][1].ends_at > first_end, "another grant after the restart")
    assert home.is_open(gained.address, gained.port)
    assert len(home.events) == 1

    home.mapper.close(home.now())
    home.flush()
    assert isinstance(home.events[-1], MappingLost)
    until(lambda: not home.is_open(gained.address, gained.port), 5.0, "the end of the mapping")
    server.stop()


def only_natpmp(router: Host) -> None:
    """Make the router one of those that leave a request of PCP's version unanswered."""
    version_2 = 'iifname "lan" udp dport 5351 @th,64,8 2 drop'
    router.run(
        "nft", "-f", "-", input=f"table ip old {{ chain in {{ type filter hook input priority -1; {version_2}; }}\n }}"
    )
