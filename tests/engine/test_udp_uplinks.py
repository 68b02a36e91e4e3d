"""Several uplinks: a socket of its own for each, on one port; what one cannot take holds up no other."""

from __future__ import annotations

import errno
import selectors
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from edgeagent.engine.pure import LOOK_AGAIN_S, PureEngine
from edgeagent.io import udpsocket
from edgeagent.io.tun import Tun
from edgeagent.io.udp import Udp
from edgeagent.io.udpsocket import UdpDrop
from edgeagent.proto.endpoint import Endpoint, Transmit, UplinkEndpoint
from tests.engine.conftest import Inside
from tests.engine.packets import parse
from tests.engine.test_pure import Recorder
from tests.engine.test_udp import opened, receive
from tests.netlab import Host, Lab, until

FAR4, FAR6 = "203.0.113.9", "2001:db8:f::9"


class Site:
    """A device with two uplinks, and at the far end of each a host that is the same address to it."""

    def __init__(self, lab: Lab) -> None:
        nets = lab.net("192.0.2.0/24", "2001:db8:1::/64"), lab.net("198.51.100.0/24", "2001:db8:2::/64")
        self.far = [lab.host("b", nets[0]), lab.host("c", nets[1])]
        self.a = lab.host("a", *nets)
        for far in self.far:
            far.ip(f"addr add {FAR4}/32 dev lo", f"addr add {FAR6}/128 dev lo nodad")
        for number, far in enumerate(self.far):
            way = f"via {far.address} dev eth{number} metric {100 * (number + 1)}"
            self.a.ip(f"route add default {way}")
            self.a.ip(f"-6 route add default via {far.address6} dev eth{number} metric {100 * (number + 1)}")

    def uplinks(self) -> list[tuple[str, int]]:
        """(name, interface index), as the kernel of the device has them; to be called inside it."""
        return [(name, socket.if_nametoindex(name)) for name in ("eth0", "eth1")]


@contextmanager
def site_in(lab: Lab, inside: Inside) -> Iterator[tuple[Site, Udp, list[Udp], list[int]]]:
    """The site, the device's sockets, those of its two far ends, and the interface indexes of its uplinks."""
    site = Site(lab)
    with inside(site.far[0]), opened(7) as b, inside(site.far[1]), opened(7) as c, inside(site.a), opened() as ours:
        uplinks = site.uplinks()
        assert ours.set_uplinks(uplinks) == []
        yield site, ours, [b, c], [index for _, index in uplinks]


def far(version: int) -> Endpoint:
    return Endpoint((FAR4, 7) if version == 4 else (FAR6, 7, 0, 0))


@pytest.mark.parametrize("version", [4, 6])
def test_each_uplink_has_its_socket_and_both_ways_go_by_it(lab: Lab, inside: Inside, version: int) -> None:
    with site_in(lab, inside) as (site, ours, theirs, indexes):
        assert len(ours.fds) == 6
        for number, index in enumerate(indexes):
            ours.send([Transmit(UplinkEndpoint.by(index, far(version)), [b"out", b"put"])])
            batch = receive(theirs[number], 2)
            assert [datagram for datagram, _, _ in batch] == [b"out", b"put"]
            source = batch[0][1]
            port = site.a.ports[number]
            assert source.addr[:2] == ((port.v4 if version == 4 else port.v6), ours.port)
            theirs[number].send([Transmit(source, [b"back"])])
            ((back, heard, _),) = receive(ours, 1)
            assert back == b"back"
            assert isinstance(heard, UplinkEndpoint) and heard.uplink == index
            assert heard.local is not None and any(heard.local[0])
            ours.send([Transmit(heard, [b"again"])])  # and by the source that was written to
            assert receive(theirs[number], 1)[0][0] == b"again"
        assert not any(ours.drops.values()) and ours.drain_source_failures() == []


def test_what_is_bound_to_no_uplink_goes_as_the_kernel_routes_it(lab: Lab, inside: Inside) -> None:
    with site_in(lab, inside) as (_, ours, theirs, _):
        ours.send([Transmit(far(4), [b"by the default route"])])
        assert receive(theirs[0], 1)[0][0] == b"by the default route"


def test_sockets_come_and_go_with_the_uplinks(lab: Lab, inside: Inside) -> None:
    with site_in(lab, inside) as (site, ours, theirs, indexes), inside(site.a):
        two = site.uplinks()
        assert ours.set_uplinks([]) == []
        assert len(ours.fds) == 2
        ours.send([Transmit(UplinkEndpoint.by(indexes[1], far(4)), [b"still"])])  # one that was made before
        ((_, source, _),) = receive(theirs[1], 1)
        theirs[1].send([Transmit(source, [b"back"])])
        ((_, heard, _),) = receive(ours, 1)
        assert type(heard) is Endpoint
        assert ours.set_uplinks(two) == []
        kept = ours.fds
        assert len(kept) == 6 and ours.set_uplinks(two) == [] and ours.fds == kept


def test_nobody_else_gets_onto_the_port(lab: Lab, inside: Inside) -> None:
    with site_in(lab, inside) as (site, ours, _, _), inside(site.a):
        for device in (None, b"eth0\0"):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as thief:
                thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if device is not None:
                    thief.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device)
                with pytest.raises(OSError) as caught:
                    thief.bind(("", ours.port))
                assert caught.value.errno == errno.EADDRINUSE


def test_an_uplink_that_is_gone(lab: Lab, inside: Inside) -> None:
    with site_in(lab, inside) as (site, ours, theirs, indexes):
        by_second = UplinkEndpoint.by(indexes[1], far(4))
        site.a.ip("link set eth1 down")
        ours.send([Transmit(by_second, [b"1", b"2"])])
        assert ours.drain_source_failures() == [by_second]
        assert ours.drops[UdpDrop.NO_ROUTE] == 2
        site.a.ip("link del eth1")
        with inside(site.a):
            assert ours.set_uplinks([("eth0", indexes[0]), ("eth1", indexes[1])]) == []  # bound while it was there
            ours.set_uplinks([])
            assert ours.set_uplinks([("eth0", indexes[0]), ("eth1", indexes[1])]) == ["eth1"]
        ours.send([Transmit(UplinkEndpoint.by(indexes[0], far(4)), [b"first"])])
        assert receive(theirs[0], 1)[0][0] == b"first"


def slow(host: Host, ifname: str) -> None:
    host.run("tc", "qdisc", "add", "dev", ifname, "root", "tbf", "rate", "1mbit", "burst", "4kb", "limit", "1mb")


def test_a_full_buffer_of_one_holds_up_no_other(lab: Lab, inside: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(udpsocket, "BUFFER_BYTES", 8192)
    with site_in(lab, inside) as (site, ours, theirs, indexes):
        slow(site.a, "eth0")
        first, second = (UplinkEndpoint.by(index, far(4)) for index in indexes)
        assert not ours.send([Transmit(first, [bytes(1000)] * 100), Transmit(second, [b"past it"])])
        assert receive(theirs[1], 1)[0][0] == b"past it"
        assert len(ours.blocked_fds) == 1
        assert ours.send([Transmit(second, [b"and again"])])
        with inside(site.a):
            ours.set_uplinks([])
        assert ours.blocked_fds == set()
        assert ours.drops[UdpDrop.NO_SOCKET] > 0


class Sender(Recorder):
    """Sends what comes from the TUN to `to`, padded."""

    to: Endpoint

    def handle_packets(self, now: float, packets: list[bytes]) -> None:
        super().handle_packets(now, packets)
        for packet in packets:
            if packet[0] == 0x45 and packet[9] == 17:
                self.transmits.append(Transmit(self.to, [parse(packet).payload + bytes(1000)] * 20))


def test_the_engine_pauses_the_tun_only_for_the_uplink_that_carries_the_traffic(
    lab: Lab, inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(lab)
    slow(site.a, "eth0")
    monkeypatch.setattr(udpsocket, "BUFFER_BYTES", 8192)
    with (
        inside(site.far[1]),
        opened(7) as theirs,
        inside(site.a),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as program,
    ):
        machine, selector, tun = Sender(), selectors.DefaultSelector(), Tun("edge0", 1400)
        site.a.ip("link set edge0 up", "addr add 10.0.0.2/24 dev edge0")
        engine = PureEngine(machine, tun, udp := Udp(), selector)
        now = 1.0

        def turn() -> None:
            for key, _ in selector.select(0):
                key.data(now, key.fd)
            engine.flush(now)

        def paused() -> bool:
            return tun.fd not in selector.get_map()

        def soon(wanted: bool) -> None:
            def holds() -> bool:
                turn()
                return paused() is wanted

            until(holds, 5, f"the TUN paused: {wanted}")

        engine.bind(0)
        assert engine.set_uplinks(site.uplinks()) == [] and len(selector.get_map()) == 7
        first, second = (UplinkEndpoint.by(index, far(4)) for _, index in site.uplinks())
        machine.to = first

        def fill() -> bool:
            program.sendto(b"x", ("10.0.0.1", 9))
            turn()
            return paused()

        until(fill, 5, "a full buffer")
        assert udp.blocked_fds and engine.poll_timeout() == now + LOOK_AGAIN_S
        machine.to = second  # a path has failed over
        program.sendto(b"over there", ("10.0.0.1", 9))
        turn()
        assert paused()
        now += LOOK_AGAIN_S
        soon(False)

        def arrives() -> bool:
            turn()
            return b"over there" in [datagram[:10] for fd in theirs.fds for datagram, _, _ in theirs.receive(fd, 16)]

        until(arrives, 5, "what was held back")
        assert not paused() and engine.poll_timeout() is None
        machine.transmits = [Transmit(first, [b"a probe"])]
        turn()
        assert not paused()
        machine.to = first
        program.sendto(b"x", ("10.0.0.1", 9))
        soon(True)
        engine.set_uplinks([])
        assert not paused() and len(selector.get_map()) == 3
        engine.close()
        tun.close()
        selector.close()
