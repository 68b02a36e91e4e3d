from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from edgeagent.engine.offload import coalesce, split
from edgeagent.io.tun import Tun, TunGone
from tests.engine.conftest import Inside
from tests.engine.packets import ACK, SYN, V4, V6, Segment, checksum_holds, parse, stream
from tests.netlab import Host, Lab, until

PLAIN = bytes(10)
ADDRESS = {4: "10.0.0.2", 6: "fd00::2"}  # the host's; packets from 10.0.0.1 and fd00::1 come by the TUN


@contextmanager
def tun_in(host: Host, inside: Inside, name: str = "tun%d", mtu: int | None = None) -> Iterator[Tun]:
    with inside(host):
        tun = Tun(name, mtu)
        try:
            yield tun
        finally:
            tun.close()


@contextmanager
def ready(host: Host, inside: Inside) -> Iterator[Tun]:
    with tun_in(host, inside) as tun:
        host.ip(f"link set {tun.name} up", f"addr add 10.0.0.2/24 dev {tun.name}")
        host.ip(f"addr add fd00::2/64 dev {tun.name} nodad")
        yield tun


def packets_of(tun: Tun, protocol: int) -> list[bytes]:
    """What is there to be read, of one transport protocol."""
    packets: list[bytes] = []
    while (frame := tun.read()) is not None:
        made = split(frame)
        assert made is not None
        packets += [p for p in made if p[9 if p[0] >> 4 == 4 else 6] == protocol]
    return packets


def test_an_interface_is_made_named_and_removed(lab: Lab, inside: Inside) -> None:
    host = lab.host("a")
    with tun_in(host, inside, "edge%d", mtu=1280) as tun:
        assert tun.name == "edge0"
        assert "mtu 1280" in host.sh("ip link show edge0")
        assert tun.mtu() == 1280
        assert tun.tcp_offload
        with pytest.raises(OSError) as caught:
            Tun("edge0")
        assert caught.value.errno == errno.EBUSY
        with tun_in(host, inside, "edge%d") as second:
            assert second.name == "edge1"
        host.ip("link set edge0 name other0")
        assert tun.current_name() == "other0"
    assert "other0" not in host.sh("ip link")
    tun.close()


@pytest.mark.parametrize("name", ["", "a" * 16, "a/b", "ä"])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(OSError) as caught:
        Tun(name)
    assert caught.value.errno == errno.EINVAL


def test_down_moved_and_gone(lab: Lab, inside: Inside) -> None:
    host, other = lab.host("a"), lab.host("b")
    packet = [PLAIN, Segment(b"x").packet()]
    with tun_in(host, inside, "edge0") as tun:
        assert tun.read() is None
        assert not tun.write(packet)
        host.ip("link set edge0 up")
        assert tun.write(packet)
        host.ip(f"link set edge0 netns {other.namespace}")
        assert not tun.write(packet)
        other.ip("link set edge0 up")
        assert tun.write(packet)
        with pytest.raises(OSError) as caught:
            tun.mtu()
        assert caught.value.errno == errno.ENODEV
        other.ip("link del edge0")
        with pytest.raises(TunGone):
            tun.read()
        with pytest.raises(TunGone):
            tun.write(packet)


@pytest.mark.parametrize("version", [4, 6])
def test_udp_from_the_kernel(lab: Lab, inside: Inside, version: int) -> None:
    """Partial checksums, and where the kernel knows USO whole batches, become the datagrams that were sent."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    to = (socket.inet_ntop(family, (V4 if version == 4 else V6)[0]), 9)
    with ready(lab.host("a"), inside) as tun, socket.socket(family, socket.SOCK_DGRAM) as sender:
        data = os.urandom(5500)
        sender.sendto(data[:1000], to)
        sender.sendmsg([data[1000:]], [(17, 103, struct.pack("=H", 1000))], 0, to)
        packets = packets_of(tun, 17)
        assert b"".join(parse(packet).payload for packet in packets) == data
        assert [len(parse(packet).payload) for packet in packets] == [1000] * 5 + [500]
        assert all(checksum_holds(packet) for packet in packets)


class Connection:
    """A TCP connection that comes in by the TUN, its far side played packet by packet; `next` is its next segment."""

    def __init__(self, connection: socket.socket, following: Segment) -> None:
        self.connection = connection
        self.next = following

    def received(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            data += self.connection.recv(size - len(data))
        return data


@contextmanager
def connected(tun: Tun, version: int) -> Iterator[Connection]:
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with socket.create_server((ADDRESS[version], 6000), family=family) as listener:
        listener.settimeout(5)
        first = Segment(b"", seq=0xFFFFF000, ack=0, flags=SYN, version=version, window=0xFFFF)
        answer = until(lambda: packets_of(tun, 6) if tun.write([PLAIN, first.packet()]) else [], 5, "SYN ACK")[0]
        packets_of(tun, 6)  # what a repeated SYN was answered with
        following = replace(first, seq=0xFFFFF001, ack=(parse(answer).seq + 1) & 0xFFFFFFFF, flags=ACK)
        tun.write([PLAIN, following.packet()])
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(5)
            yield Connection(connection, following)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("size", [1001, 1400])
def test_the_kernel_takes_coalesced_tcp(lab: Lab, inside: Inside, version: int, verify: bool, size: int) -> None:
    data = os.urandom(30 * size + 7)
    with ready(lab.host("a"), inside) as tun, connected(tun, version) as tcp:
        packets = stream(tcp.next, [size] * 30 + [7], data)
        frames = coalesce(packets, udp=False, verify=verify)
        assert len(frames) == 1
        assert tun.write(frames[0])
        assert tcp.received(len(data)) == data


def test_the_kernel_refuses_a_merged_packet_with_a_wrong_checksum(lab: Lab, inside: Inside) -> None:
    data = os.urandom(4000)
    with ready(lab.host("a"), inside) as tun, connected(tun, 4) as tcp:
        packets = stream(tcp.next, [1000] * 4, data)
        bad = packets[2][:-1] + bytes((packets[2][-1] ^ 1,))
        (frame,) = coalesce([*packets[:2], bad, packets[3]], udp=False, verify=False)
        assert tun.write(frame)
        (frame,) = coalesce(packets, udp=False, verify=False)
        assert tun.write(frame)
        assert tcp.received(4000) == data
        errors = lab.hosts["a"].sh("grep ^Tcp: /proc/net/snmp | tail -1").split()[-1]
        assert int(errors) == 1


@pytest.mark.parametrize("version", [4, 6])
def test_the_kernel_takes_coalesced_udp(lab: Lab, inside: Inside, version: int) -> None:
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with ready(lab.host("a"), inside) as tun, socket.socket(family, socket.SOCK_DGRAM) as receiver:
        if not tun.udp_offload:
            pytest.skip("this kernel knows no USO on a TUN (Linux 6.2)")
        receiver.bind((ADDRESS[version], 6000))
        receiver.settimeout(5)
        data = os.urandom(20_100)
        packets = stream(Segment(b"", udp=True, version=version), [1000] * 20 + [100], data)
        frames = coalesce(packets, udp=True, verify=False)
        assert len(frames) == 1
        assert tun.write(frames[0])
        assert [receiver.recv(2000) for _ in packets] == [parse(packet).payload for packet in packets]


@pytest.mark.parametrize("version", [4, 6])
def test_tcp_from_the_kernel_is_split(lab: Lab, inside: Inside, version: int) -> None:
    with ready(lab.host("a"), inside) as tun, connected(tun, version) as tcp:
        data = os.urandom(20_000)
        tcp.connection.sendall(data)
        received = b""
        while len(received) < len(data):
            for packet in until(lambda: packets_of(tun, 6), 5, "segments"):
                assert checksum_holds(packet)
                assert len(packet) <= 1500
                received += parse(packet).payload
            tun.write([PLAIN, replace(tcp.next, ack=(tcp.next.ack + len(received)) & 0xFFFFFFFF).packet()])
        assert received == data
