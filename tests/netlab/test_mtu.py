"""Two agents across a router that loses long packets in silence, or a link that takes no more: everything arrives."""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
import time
from typing import Any

import pytest

from tests.netlab import Lab, until
from tests.netlab.homes import Homes, Member
from tests.netlab.host import Host
from tests.netlab.mesh import Device, Mesh
from tests.netlab.nat import Kind
from tests.netlab.sockets import inside, udp_socket

IP_MTU_DISCOVER, IP_PMTUDISC_DONT, IP_PMTUDISC_DO, IP_PMTUDISC_PROBE = 10, 0, 2, 3  # <linux/in.h>
IP_MTU = 14
TRANSFER_BYTES = 1 << 20
AROUND = {4: 28 + 32, 6: 48 + 32}  # outside of a packet of the TUN, by the version of IP
CHANNEL = 8  # of a relay's datagrams
STEP = 16  # a search is not more exact
PORT = 7_000


class Site:
    """A hub and two devices on a net of their own each, joined by one router, which `narrow` makes lose long UDP."""

    def __init__(self, lab: Lab, *, ipv6: bool = False, link_mtu: int = 1_500) -> None:
        """With `ipv6` IPv4 leads to the hub alone."""
        core = lab.net("198.51.100.0/24", "2001:db8:0::/64" if ipv6 else None)
        left = lab.net("192.168.10.0/24", "2001:db8:10::/64" if ipv6 else None)
        right = lab.net("192.168.20.0/24", "2001:db8:20::/64" if ipv6 else None, mtu=link_mtu)
        self.router = lab.router("router", core, left, right)
        self._forbidden = "meta nfproto ipv4 meta l4proto udp drop\n" if ipv6 else ""
        self.narrow(1_500)
        self.mesh = Mesh(lab, core)
        self.mesh.start_hub()
        token = self.mesh.token("--uses", "0")
        self.a, self.b = self.mesh.device("a", left), self.mesh.device("b", right)
        for device in (self.a, self.b):
            device.host.ip("link set eth0 gso_max_segs 1")  # or the router gets, and measures, 64 datagrams in one
            device.up(token)
        until(lambda: self.a.host.ping(self.b.address), 10, "b answers a")
        until(lambda: self.row()["path_state"] == "proven", 10, "a direct path")

    def narrow(self, packet_bytes_max: int) -> None:
        narrow(self.router, packet_bytes_max, self._forbidden)

    def row(self, device: Device | None = None) -> dict[str, Any]:
        """Of the other one, in `edgeagent peers`."""
        (row,) = (device or self.a).ask("peers")
        return row  # type: ignore[no-any-return]

    def wait_for_mtu(self, device: Device, outside: int, family: int) -> int:
        """Until it has found what passes; what it sends is large, whatever its system was told."""
        largest = outside - AROUND[family]
        other = self.b if device is self.a else self.a
        with udp_socket(device.host) as sender:
            sender.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE)

            def found() -> bool:
                sender.sendto(bytes(1_228), (other.address, 9))
                return largest - STEP < int(self.row(device)["path_mtu"]) <= largest

            until(found, 40, f"a path MTU of {largest}")
        return int(self.row(device)["path_mtu"])


class Stream:
    """TCP from `a` to `b` as long as it is open; `received` grows."""

    def __init__(self, a: Device, b: Device) -> None:
        self.received = 0
        self._listening, self._client = connected(a, b, 4)
        self._server, _ = self._listening.accept()
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._send, self._receive)]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        for each in (self._client, self._server):
            each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for each in (self._client, self._server, self._listening):
            each.close()

    def _send(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._client.sendall(bytes(65_536))

    def _receive(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._server.recv(65_536):
                self.received += len(data)


def narrow(router: Host, packet_bytes_max: int, forbidden: str = "") -> None:
    """UDP alone, for what goes to the hub is TCP of the system's, which has this from its provider."""
    rules = f"{forbidden} meta l4proto udp meta length > {packet_bytes_max} drop"
    chain = f"chain forward {{\n type filter hook forward priority -10;\n {rules}\n }}"
    text = f"table inet bad\ndelete table inet bad\ntable inet bad {{\n {chain}\n}}\n"
    router.run("nft", "-f", "-", input=text)


def relayed_mtu(a: Member, b: Member) -> int:
    """What `a` shows of its way to `b` by relay; 0 while it does not know."""
    way = a.ways()[b.name]
    assert way.path == "relay"
    return way.mtu or 0


def address(device: Device, family: int) -> str:
    return next(each for each in device.addresses if (":" in each) == (family == 6))


def connected(a: Device, b: Device, family: int) -> tuple[socket.socket, socket.socket]:
    """(listening at `b`, a connection of `a` to it)"""
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    with inside(b.host):
        listening = socket.create_server((address(b, family), PORT), family=kind)
    with inside(a.host):
        client = socket.socket(kind, socket.SOCK_STREAM)
    client.settimeout(30)
    listening.settimeout(30)
    client.connect((address(b, family), PORT))
    return listening, client


def arrives_whole(a: Device, b: Device, family: int) -> None:
    """1 MiB by TCP."""
    data = bytes(at * 7 % 251 for at in range(TRANSFER_BYTES))
    listening, client = connected(a, b, family)
    with listening, client:
        server, _ = listening.accept()
        with server:
            server.settimeout(30)
            thread = threading.Thread(target=client.sendall, args=(data,))
            thread.start()
            received = bytearray()
            while len(received) < len(data):
                received += server.recv(1 << 16)
            thread.join()
    assert bytes(received) == data


def ping_without_fragments(a: Device, b: Device, packet_bytes: int) -> str:
    """The output of ping; the second request shows what was learnt of the first."""
    command = ["ping", "-n", "-c2", "-i0.2", "-W1", "-M", "do", "-s", str(packet_bytes - 28), b.address]
    result = a.host.run(*command, check=False)
    return result.stdout + result.stderr


def mtu_told_to(a: Device, b: Device, packet_bytes: int) -> int:
    """What the kernel of `a` knows of the way to `b`, after a packet with DF that is too long."""
    with udp_socket(a.host) as sender:
        sender.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
        sender.connect((b.address, PORT))
        for _ in range(20):
            try:
                sender.send(bytes(packet_bytes - 28))
            except OSError as error:
                assert error.errno == errno.EMSGSIZE
                return sender.getsockopt(socket.IPPROTO_IP, IP_MTU)
            time.sleep(0.1)
    raise AssertionError(f"{packet_bytes} bytes are sent as if there were room")


def datagram_passes(a: Device, b: Device, family: int, payload_bytes: int) -> None:
    """Without DF; of IPv6 the first may be lost, for that tells the sender how long fragments may be."""
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    data = bytes(at % 251 for at in range(payload_bytes))
    with udp_socket(a.host, family=kind) as sender, udp_socket(b.host, address(b, family), PORT, kind) as receiver:
        if family == 4:
            sender.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DONT)
        for timeout_s in (0.3, 5.0) if family == 6 else (5.0,):
            receiver.settimeout(timeout_s)
            sender.sendto(data, (address(b, family), PORT))
            with contextlib.suppress(TimeoutError):
                assert receiver.recv(65_535) == data
                return
    raise AssertionError(f"{payload_bytes} bytes from {a.name} by IPv{family} do not arrive")


def check(site: Site, outside: int, family: int) -> None:
    a, b = site.a, site.b
    for inner in (4, 6):
        arrives_whole(a, b, inner)
        arrives_whole(b, a, inner)
    mtu = site.wait_for_mtu(a, outside, family)
    site.wait_for_mtu(b, outside, family)
    assert "2 received" in ping_without_fragments(a, b, mtu)
    assert "0 received" in ping_without_fragments(a, b, mtu + 1)
    assert mtu_told_to(a, b, mtu + 1) == mtu
    for inner in (4, 6):
        for size in (mtu - 100, 1_200, 3_000):
            datagram_passes(a, b, inner, size)
            datagram_passes(b, a, inner, size)
    drops = a.ask("status")["drops"]
    assert drops["packet-too-big"] > 0


@pytest.fixture
def tun_mtu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    mtu = int(request.param)
    monkeypatch.setenv("EDGEAGENT_MTU", str(mtu))
    return mtu


@pytest.mark.matrix
@pytest.mark.parametrize("tun_mtu", [1_280, 1_420], indirect=True)
def test_across_a_router_that_loses_long_packets_in_silence(lab: Lab, tun_mtu: int) -> None:
    site = Site(lab)
    for inner in (4, 6):
        arrives_whole(site.a, site.b, inner)
    # Each searches by itself, and b may still be at it.
    until(lambda: {site.row(device)["path_mtu"] for device in (site.a, site.b)} == {tun_mtu}, 10, "a whole path")
    assert "2 received" in ping_without_fragments(site.a, site.b, tun_mtu)
    assert "packet-too-big" not in site.a.ask("status")["drops"], "a path that takes everything is left alone"
    for outside in (1_280, 1_000):
        site.narrow(outside)
        check(site, outside, 4)


@pytest.mark.parametrize(
    ("tun_mtu", "outside"),
    [(1_280, 1_000), pytest.param(1_420, 1_280, marks=pytest.mark.matrix)],
    indirect=["tun_mtu"],
)
def test_with_a_link_that_takes_no_more(lab: Lab, tun_mtu: int, outside: int) -> None:
    check(Site(lab, link_mtu=outside), outside, 4)


@pytest.mark.matrix
@pytest.mark.parametrize("tun_mtu", [1_420], indirect=True)
def test_over_ipv6(lab: Lab, tun_mtu: int) -> None:
    site = Site(lab, ipv6=True)
    assert str(site.row()["endpoint"]).startswith("[2001:db8:20:")
    site.narrow(1_280)
    check(site, 1_280, 6)


@pytest.mark.matrix
@pytest.mark.parametrize("tun_mtu", [1_420], indirect=True)
def test_a_hole_opens_under_a_stream(lab: Lab, tun_mtu: int) -> None:
    site = Site(lab)
    stream = Stream(site.a, site.b)
    for outside in (1_300, 900):
        until(lambda: stream.received > TRANSFER_BYTES, 20, "a stream")
        site.narrow(outside)
        stream.received = 0
        site.wait_for_mtu(site.a, outside, 4)
    until(lambda: stream.received > TRANSFER_BYTES, 20, "the stream goes on")
    stream.close()


@pytest.mark.parametrize("tun_mtu", [1_420], indirect=True)
def test_by_relay(lab: Lab, tun_mtu: int) -> None:
    homes = Homes(lab)
    homes.start("r1")
    routers = [homes.home(Kind.SYMMETRIC) for _ in range(2)]
    a, b = (homes.join(name, router) for name, router in zip("ab", routers, strict=True))
    for host in (a.host, b.host, homes.relays[0].host):
        host.ip("link set eth0 gso_max_segs 1")
    until(lambda: a.host.ping(b.address), 10, "b answers a")
    narrow(routers[0].host, 1_280)
    for inner in (4, 6):
        arrives_whole(a, b, inner)
        arrives_whole(b, a, inner)
    largest = 1_280 - AROUND[4] - CHANNEL
    for one, other in ((a, b), (b, a)):
        until(lambda one=one, other=other: relayed_mtu(one, other) > largest - STEP, 20, f"a path MTU of {largest}")  # type: ignore[misc]
        assert relayed_mtu(one, other) <= largest
