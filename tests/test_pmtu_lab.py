"""Path MTU against the kernel: the search over real routers, and answers that a host believes."""

from __future__ import annotations

import contextlib
import errno
import socket
import time
from collections.abc import Iterator

import pytest

from edgeagent.io.tun import Tun
from edgeagent.proto.icmp import checksum
from edgeagent.proto.icmp_too_big import fragments, too_big
from edgeagent.proto.pmtu import STEP, PathMtu, State
from tests.netlab import Host, Lab, until
from tests.netlab.nat import NatRouter
from tests.netlab.sockets import inside, udp_socket

# Of <linux/in.h> and <linux/in6.h>
IP_MTU_DISCOVER, IP_MTU, IP_PMTUDISC_WANT, IP_PMTUDISC_DO, IP_PMTUDISC_PROBE = 10, 14, 1, 2, 3
IPV6_MTU_DISCOVER, IPV6_MTU = 23, 24
HASTE = 20.0  # the search's seconds in one of ours: a round trip in the lab takes less than a millisecond
VNET_HEADER = bytes(10)


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as opened:
        yield opened


def found(client: socket.socket, server: socket.socket, to: tuple[str, int]) -> int:
    """What the search finds between two sockets; each probe that arrives is confirmed."""
    client.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE)
    server.setblocking(False)
    search = PathMtu(0.0, ceiling=1_500)
    began = time.monotonic()

    def step() -> bool:
        now = (time.monotonic() - began) * HASTE
        with contextlib.suppress(BlockingIOError):
            search.probe_confirmed(now, int.from_bytes(server.recv(2_048)[:4], "big"))
        search.handle_timeout(now)
        for probe in search.drain_probes():
            try:
                client.sendto(probe.serial.to_bytes(4, "big") + bytes(probe.size - 32), to)
            except OSError as error:
                assert error.errno == errno.EMSGSIZE
                search.refused(now, probe.size)
        return search.state is State.COMPLETE

    until(step, 10.0, "the end of the search")
    return search.mtu


@pytest.mark.parametrize("mtu", [1_500, 1_420, 1_000])
def test_a_router_that_drops_in_silence(lab: Lab, stack: contextlib.ExitStack, mtu: int) -> None:
    internet, home = lab.net("198.51.100.0/24"), lab.net("192.168.1.0/24")
    router = NatRouter(lab, "router", home, internet)
    router.impair(packet_bytes_max=mtu)
    host, server = lab.host("host", home), lab.host("server", internet)
    client = stack.enter_context(udp_socket(host))
    listening = stack.enter_context(udp_socket(server, "", 7_000))
    assert mtu - STEP < found(client, listening, (server.address, 7_000)) <= mtu


def test_links_that_say_so_and_links_that_are_ours(lab: Lab, stack: contextlib.ExitStack) -> None:
    narrow, home = lab.net("198.51.100.0/24", mtu=1_400), lab.net("192.168.1.0/24")
    lab.router("router", home, narrow)
    host, server = lab.host("host", home), lab.host("server", narrow)
    listening = stack.enter_context(udp_socket(server, "", 7_000))
    client = stack.enter_context(udp_socket(host))
    assert found(client, listening, (server.address, 7_000)) == 1_400
    host.ip("link set eth0 mtu 1300")
    assert 1_300 - STEP < found(client, listening, (server.address, 7_000)) <= 1_300


class Tunnel:
    """A host with a TUN, behind which everything is too large for the way on."""

    def __init__(self, lab: Lab, stack: contextlib.ExitStack) -> None:
        self.host: Host = lab.host("host")
        with inside(self.host):
            self.tun = Tun("edge0", 1_500)
        stack.callback(self.tun.close)
        self.host.ip(
            "addr add 100.64.0.1/10 dev edge0", "addr add fd00::1/64 dev edge0 nodad", "link set edge0 txqueuelen 50 up"
        )

    def read(self, size_min: int) -> bytes:
        """The next packet of that size; the kernel has something to say of its own on a new interface."""

        def wanted() -> bytes:
            frame = self.tun.read()
            return frame[10:] if frame is not None and len(frame) - 10 >= size_min else b""

        return until(wanted, 2.0, "a packet")


def test_the_kernel_believes_fragmentation_needed(lab: Lab, stack: contextlib.ExitStack) -> None:
    tunnel = Tunnel(lab, stack)
    client = stack.enter_context(udp_socket(tunnel.host))
    client.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
    client.connect(("100.64.0.2", 9))
    client.send(bytes(1_300))
    answer = too_big(tunnel.read(1_328), 1_000)
    assert answer is not None and tunnel.tun.write([VNET_HEADER, answer])
    until(lambda: client.getsockopt(socket.IPPROTO_IP, IP_MTU) == 1_000, 2.0, "a path MTU of 1000")
    with pytest.raises(OSError) as raised:
        client.send(bytes(1_300))
    assert raised.value.errno == errno.EMSGSIZE


def test_the_kernel_believes_packet_too_big(lab: Lab, stack: contextlib.ExitStack) -> None:
    tunnel = Tunnel(lab, stack)
    client = stack.enter_context(udp_socket(tunnel.host, "", 0, socket.AF_INET6))
    client.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, IP_PMTUDISC_WANT)
    client.connect(("fd00::2", 9))
    client.send(bytes(1_400))
    answer = too_big(tunnel.read(1_448), 1_000)
    assert answer is not None and tunnel.tun.write([VNET_HEADER, answer])
    until(lambda: client.getsockopt(socket.IPPROTO_IPV6, IPV6_MTU) == 1_280, 2.0, "a path MTU of 1280")
    with pytest.raises(OSError, match="too long"):
        client.send(bytes(1_400))  # told once
    client.send(bytes(1_400))  # fragmented by its sender from now on, into what no answer can make smaller
    piece = tunnel.read(1_200)
    assert len(piece) <= 1_280 and too_big(piece, 1_000) is None


def test_the_kernel_joins_our_fragments(lab: Lab, stack: contextlib.ExitStack) -> None:
    tunnel = Tunnel(lab, stack)
    sender = stack.enter_context(udp_socket(tunnel.host))
    sender.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, 0)  # IP_PMTUDISC_DONT: may be fragmented
    data = bytes(at % 251 for at in range(1_400))
    sender.sendto(data, ("100.64.0.2", 7_000))
    packet = with_checksum(tunnel.read(1_428))
    assert too_big(packet, 600) is None
    # Back to the host with source and destination exchanged, which leaves the checksums as they are
    back = packet[:12] + packet[16:20] + packet[12:16] + packet[20:]
    listening = stack.enter_context(udp_socket(tunnel.host, "100.64.0.1", 7_000))
    pieces = fragments(back, 600)
    assert len(pieces) == 3
    for piece in reversed(pieces):
        assert tunnel.tun.write([VNET_HEADER, piece])
    listening.settimeout(2.0)
    assert listening.recv(2_048) == data


def with_checksum(packet: bytes) -> bytes:
    """The kernel left the UDP checksum to us, as TUN_F_CSUM allows it to."""
    udp = packet[20:26] + b"\0\0" + packet[28:]
    pseudo = packet[12:20] + bytes((0, 17)) + len(udp).to_bytes(2, "big")
    return packet[:26] + checksum(pseudo + udp).to_bytes(2, "big") + packet[28:]
