from __future__ import annotations

import selectors
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from edgeagent.engine.pure import SHORTER_MAX, TUN_FRAMES_MAX, UDP_READS_MAX, EngineDrop, PureEngine
from edgeagent.io import udpsocket
from edgeagent.io.tun import Tun, TunGone
from edgeagent.io.udp import Udp
from edgeagent.io.udpsocket import UdpDrop
from edgeagent.proto.endpoint import Endpoint, Transmit
from tests.engine.conftest import Inside
from tests.engine.packets import Segment, parse
from tests.netlab import Host, Lab, until


class Recorder:
    """A machine that keeps what it is given and hands out what the test puts in."""

    def __init__(self) -> None:
        self.datagrams: list[list[bytes]] = []
        self.packets: list[list[bytes]] = []
        self.failed: list[Endpoint] = []
        self.too_long: list[tuple[Endpoint, int]] = []
        self.transmits: list[Transmit] = []
        self.outgoing: list[bytes] = []

    def handle_datagrams(self, now: float, batch: list[tuple[bytes, Endpoint, int]]) -> None:
        self.datagrams.append([datagram for datagram, _, _ in batch])

    def handle_packets(self, now: float, packets: list[bytes]) -> None:
        self.packets.append(packets)

    def transmit_failed(self, now: float, endpoint: Endpoint) -> None:
        self.failed.append(endpoint)

    def transmit_too_long(self, now: float, endpoint: Endpoint, datagram_bytes: int) -> None:
        self.too_long.append((endpoint, datagram_bytes))
        self.transmits.append(Transmit(endpoint, [bytes(datagram_bytes - 1)]))

    def drain_transmits(self) -> list[Transmit]:
        drained, self.transmits = self.transmits, []
        return drained

    def drain_packets(self) -> list[bytes]:
        drained, self.outgoing = self.outgoing, []
        return drained


class Rig:
    """An engine in a lab host, with a TUN that routes 10.0.0.0/24 and fd00::/64, and a selector cranked by hand."""

    def __init__(self, host: Host) -> None:
        self.machine = Recorder()
        self.selector = selectors.DefaultSelector()
        self.tun = Tun("edge0", 1400)
        host.ip("link set edge0 up", "addr add 10.0.0.2/24 dev edge0", "addr add fd00::2/64 dev edge0 nodad")
        self.udp = Udp()
        self.engine = PureEngine(self.machine, self.tun, self.udp, self.selector)

    def turn(self) -> bool:
        """One turn of an owner's loop; whether anything was ready."""
        ready = self.selector.select(0)
        for key, _ in ready:
            key.data(1.0, key.fd)
        self.engine.flush(1.0)
        return bool(ready)

    def close(self) -> None:
        self.engine.close()
        self.tun.close()
        self.selector.close()


@contextmanager
def rig_in(host: Host, inside: Inside) -> Iterator[Rig]:
    with inside(host):
        rig = Rig(host)
        try:
            yield rig
        finally:
            rig.close()


def quiet(rig: Rig) -> None:
    """Let pass what the kernel sends on its own when an interface comes up."""
    while rig.turn():
        pass
    rig.machine.packets.clear()


def udp_payloads(packets: list[bytes]) -> list[bytes]:
    return [parse(packet).payload for packet in packets if packet[0] == 0x45 and packet[9] == 17]


def test_packets_go_to_the_machine_in_bounded_batches(lab: Lab, inside: Inside) -> None:
    with rig_in(lab.host("a"), inside) as rig, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        quiet(rig)
        for i in range(2 * TUN_FRAMES_MAX):
            sender.sendto(bytes((i,)), ("10.0.0.1", 9))
        rig.turn()
        assert udp_payloads(rig.machine.packets[0]) == [bytes((i,)) for i in range(TUN_FRAMES_MAX)]
        rig.turn()
        assert len(rig.machine.packets) == 2
        assert not rig.turn()


def test_packets_come_from_the_machine(lab: Lab, inside: Inside) -> None:
    with rig_in(lab.host("a"), inside) as rig, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("10.0.0.2", 6000))
        receiver.settimeout(5)
        rig.machine.outgoing = [Segment(b"hello", udp=True).packet(), Segment(b"again", udp=True).packet()]
        rig.turn()
        assert [receiver.recv(100), receiver.recv(100)] == [b"hello", b"again"]


def test_what_does_not_leave_is_replaced_by_something_shorter_at_once(lab: Lab, inside: Inside) -> None:
    host = lab.host("a", lab.net("192.0.2.0/24", mtu=1_400))
    to_b = Endpoint(("192.0.2.2", 9))
    with rig_in(host, inside) as rig:
        with inside(host):
            rig.engine.bind(0)
        rig.machine.transmits = [Transmit(to_b, [bytes(1_376)] * 2)]
        rig.turn()
        assert rig.machine.too_long == [(to_b, size) for size in (1_376, 1_375, 1_374, 1_373)]
        rig.machine.too_long.clear()
        rig.machine.transmits = [Transmit(to_b, [bytes(1_450)])]
        rig.engine.flush(1.0)
        assert len(rig.machine.too_long) == SHORTER_MAX, "and not for ever"


def test_datagrams_go_both_ways_in_bounded_batches(lab: Lab, inside: Inside) -> None:
    net = lab.net("192.0.2.0/24")
    a, b = lab.host("a", net), lab.host("b", net)
    with rig_in(a, inside) as ours, rig_in(b, inside) as theirs:
        with inside(a):
            ours.engine.bind(0)
        with inside(b):
            port = theirs.engine.bind(0)
        to_b = Endpoint((b.address, port))
        batches = 2 * UDP_READS_MAX
        ours.machine.transmits = [Transmit(to_b, [bytes((i,)) * 100] * 3) for i in range(batches)]
        ours.turn()
        until(theirs.turn, 5, "datagrams")
        assert theirs.machine.datagrams[0] == [bytes((i,)) * 100 for i in range(UDP_READS_MAX) for _ in range(3)]
        until(lambda: theirs.turn() and sum(map(len, theirs.machine.datagrams)) == 3 * batches, 5, "the rest")
        assert not any(ours.udp.drops.values())


def test_a_port_is_closed_opened_and_changed(lab: Lab, inside: Inside) -> None:
    with rig_in(lab.host("a"), inside) as rig:
        first = rig.engine.bind(0)
        assert rig.engine.bind(first) == first
        second = rig.engine.bind(0)
        assert second != first
        assert len(rig.selector.get_map()) == 3
        with inside(lab.hosts["a"]), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
            taken.bind(("", first))
            with pytest.raises(OSError):
                rig.engine.bind(first)
        assert len(rig.selector.get_map()) == 1
        rig.machine.transmits = [Transmit(Endpoint(("192.0.2.1", 9)), [b"x"])]
        rig.turn()
        assert rig.udp.drops[UdpDrop.NO_SOCKET] == 1


def test_frames_that_are_not_taken_are_counted(lab: Lab, inside: Inside) -> None:
    with rig_in(lab.host("a"), inside) as rig:
        lab.hosts["a"].ip("link set edge0 down")
        rig.machine.outgoing = [Segment(b"x").packet()]
        rig.engine.flush(1.0)
        assert rig.engine.drops == {EngineDrop.VNET_HEADER: 0, EngineDrop.TUN_REFUSED: 1}


def test_a_full_send_buffer_pauses_the_tun(lab: Lab, inside: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    net = lab.net("192.0.2.0/24")
    a, b = lab.host("a", net), lab.host("b", net)
    monkeypatch.setattr(udpsocket, "BUFFER_BYTES", 8192)
    a.run("tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "2mbit", "burst", "4kb", "limit", "1mb")
    with rig_in(a, inside) as rig, inside(a), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        quiet(rig)
        rig.engine.bind(0)
        rig.machine.transmits = [Transmit(Endpoint((b.address, 9)), [bytes(1000)] * 100)]
        rig.engine.flush(1.0)
        assert rig.udp.blocked_fds
        sender.sendto(b"held back", ("10.0.0.1", 9))
        assert rig.tun.fd not in rig.selector.get_map()
        rig.turn()
        assert rig.machine.packets == []
        until(lambda: rig.turn() and not rig.udp.blocked_fds, 5, "room in the buffer")
        until(lambda: rig.turn() or rig.machine.packets, 5, "the packet held back")
        assert udp_payloads(rig.machine.packets[0]) == [b"held back"]
        rig.engine.flush(1.0)
        rig.machine.transmits = [Transmit(Endpoint((b.address, 9)), [bytes(1000)] * 100)]
        rig.engine.flush(1.0)
        assert rig.udp.blocked_fds
        rig.engine.unbind()
        assert list(rig.selector.get_map()) == [rig.tun.fd]


def test_a_failed_source_is_reported(lab: Lab, inside: Inside) -> None:
    net = lab.net("192.0.2.0/24")
    a, b = lab.host("a", net), lab.host("b", net)
    with rig_in(a, inside) as rig, inside(a):
        rig.engine.bind(0)
        pinned = Endpoint((b.address, 9), (socket.inet_aton("192.0.2.99"), 0))
        rig.machine.transmits = [Transmit(pinned, [b"x"])]
        rig.engine.flush(1.0)
        assert rig.machine.failed == [pinned]


def test_the_end_of_the_interface_is_noticed(lab: Lab, inside: Inside) -> None:
    with rig_in(lab.host("a"), inside) as rig:
        quiet(rig)
        lab.hosts["a"].ip("link del edge0")
        with pytest.raises(TunGone):
            until(rig.turn, 5, "TunGone")
