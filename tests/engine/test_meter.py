"""What sockets really sent and received is what is booked, under the uplink that it went by."""

from __future__ import annotations

import selectors
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from struct import Struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeagent.engine.pure import PureEngine
from edgeagent.io import tcpinfo
from edgeagent.io.netlink import Netlink
from edgeagent.io.tun import Tun
from edgeagent.io.udp import Udp
from edgeagent.meter import CONNECTIONS_MAX, Meter
from edgeagent.proto.causes import Carried, Direction
from edgeagent.proto.endpoint import Endpoint, Transmit
from edgeagent.proto.ledger import OTHER, Cause, Ledger
from edgeagent.uplinknames import HOSTS_MAX, UplinkNames
from tests.engine.conftest import Inside
from tests.engine.test_pure import Recorder
from tests.netlab import Lab, until

DATA = b"\4\0\0\0" + bytes(96)
KEEPALIVE = b"\4\0\0\0" + bytes(28)


class Names(UplinkNames):
    """Where every socket is on one uplink."""

    def of_socket(self, sock: socket.socket) -> str:
        return "eth0"


def total(ledger: Ledger, uplink: str | None = None) -> dict[Cause, tuple[int, int]]:
    return {line.cause: line.since_start for line in ledger.lines(9.0) if uplink in (None, line.uplink)}


# Datagrams


def test_datagrams_are_booked_by_uplink_and_cause_both_ways() -> None:
    ledger, names = Ledger(), UplinkNames()
    meter = Meter(ledger, names)
    names._by_index.update({3: "eth0", 4: "wwan0"})
    lan, lte = Endpoint(("192.0.2.1", 1), (bytes(4), 3)), Endpoint(("2001:db8::1", 1, 0, 0), (bytes(16), 4))
    again = Endpoint(("192.0.2.2", 1), (bytes(4), 3))
    meter.received(1.0, [(DATA, lan, 0), (DATA, lan, 0), (KEEPALIVE, lte, 0), (DATA, again, 0), (DATA, lte, 0)])
    kept = [DATA, DATA]
    meter.sent(1.0, [(lan, kept), (again, [KEEPALIVE]), (lte, [KEEPALIVE, DATA])])
    assert kept == [DATA, DATA]
    assert total(ledger, "eth0") == {Cause.PAYLOAD: (256, 384), Cause.KEEPALIVE: (60, 0)}
    assert total(ledger, "wwan0") == {Cause.PAYLOAD: (148, 148), Cause.KEEPALIVE: (80, 80)}


def test_what_an_engine_carried_by_itself_is_booked_as_if_it_had_been_seen() -> None:
    ledger, names = Ledger(), UplinkNames()
    meter = Meter(ledger, names)
    names._by_index[3] = "eth0"
    lan = Endpoint(("192.0.2.1", 1), (bytes(4), 3))
    meter.carried(1.0, Direction.SENT, lan, 2 * len(DATA) + len(KEEPALIVE), 3, 1, relayed=False)
    assert total(ledger) == {Cause.PAYLOAD: (256, 0), Cause.KEEPALIVE: (60, 0)}
    meter.carried(2.0, Direction.RECEIVED, lan, 8 + len(DATA), 1, 0, relayed=True)
    assert total(ledger)[Cause.RELAY] == (0, 8) and total(ledger)[Cause.PAYLOAD] == (256, 128)
    before = total(ledger)
    meter.carried(3.0, Direction.SENT, lan, len(KEEPALIVE), 1, 1, relayed=True)  # it went before the relay was the way
    assert total(ledger)[Cause.KEEPALIVE] == (120, 0) and total(ledger)[Cause.PAYLOAD] == before[Cause.PAYLOAD]


@pytest.mark.netlab
def test_the_engine_tells_of_what_came_and_of_what_the_kernel_took(lab: Lab, inside: Inside) -> None:
    net = lab.net("192.0.2.0/24")
    host, other = lab.host("a", net), lab.host("b", net)
    with inside(other), closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as far:
        far.bind((other.address, 0))
        with inside(host):
            ledger, names, selector = Ledger(), UplinkNames(), selectors.DefaultSelector()
            udp, machine = Udp(), Recorder()
            tun = Tun("edge0", 1400)
            engine = PureEngine(machine, tun, udp, selector)
            engine.count_with(Meter(ledger, names))
            port = engine.bind(0)
            far.sendto(KEEPALIVE, (host.address, port))
            far_end = Endpoint(far.getsockname())
            machine.transmits = [
                Transmit(far_end, [DATA, DATA, DATA]),
                Transmit(far_end, [bytes(70_000)]),  # no datagram can be so long
                Transmit(Endpoint(("198.51.100.1", 9)), [DATA]),  # no route
                Transmit(Endpoint(far_end.addr, (b"\xc6\x33\x64\x02", 99)), [DATA]),  # a source that is gone
            ]
            engine.flush(1.0)

            def came() -> bool:
                for key, _ in selector.select(0):
                    key.data(1.0, key.fd)
                return bool(machine.datagrams)

            until(came, 5, "the datagram")
            engine.flush(1.0)
            assert total(ledger) == total(ledger, "eth0")
            assert total(ledger) == {Cause.PAYLOAD: (4 * 128, 0), Cause.KEEPALIVE: (0, 60)}
            engine.close()
            tun.close()
            selector.close()
            names.close()


def test_aside() -> None:
    ledger = Ledger()
    meter = Meter(ledger, Names())
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
        sock.bind(("127.0.0.1", 0))
        meter.aside(1.0, sock, Cause.PROBE, sent=[b"12345", b"1"], received=[b"123"])
    assert total(ledger) == {Cause.PROBE: (62, 31)}


# Uplinks


@pytest.mark.netlab
def test_uplinks_are_named_as_the_kernel_chooses_them(lab: Lab, inside: Inside) -> None:
    wan, lan = lab.net("10.9.0.0/24", "2001:db8:1::/64"), lab.net("198.51.100.0/24")
    router = lab.router("r", wan)
    host = lab.host("a", wan, lan)
    with inside(host), closing(UplinkNames()) as names, closing(Netlink()) as netlink:
        index = {name: netlink.link(name).index for name in ("eth0", "eth1")}
        assert names.of_endpoint(Endpoint(("203.0.113.9", 1), (bytes(4), index["eth1"]))) == "eth1"
        assert names.of_endpoint(Endpoint(("fe80::1", 1, 0, index["eth1"]))) == "eth1"
        assert names.of_endpoint(Endpoint(("198.51.100.7", 1))) == "eth1"
        assert names.of_endpoint(Endpoint(("203.0.113.9", 1))) == "eth0"
        assert names.of_endpoint(Endpoint(("2001:db8:1::7", 1, 0, 0))) == "eth0"
        assert names.of_endpoint(Endpoint(("2001:db8:2::7", 1, 0, 0))) == "eth0"
        assert [names.of_host(host) for host in ("198.51.100.3", "hub.test")] == ["eth1", "eth0"]
        assert names.default() == "eth0"
        assert names.of_endpoint(Endpoint(("203.0.113.9", 1), (bytes(4), 4_000))) == OTHER
        with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
            sock.connect(("198.51.100.7", 9))
            assert names.of_socket(sock) == "eth1"
        with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
            assert names.of_socket(sock) == "eth0"  # nowhere yet: by the default route
            sock.setsockopt(socket.SOL_SOCKET, 25, b"eth1\0")
            assert names.of_socket(sock) == "eth1"
        assert names.of_socket(sock) == OTHER  # closed
        for number in range(HOSTS_MAX + 9):
            names.of_endpoint(Endpoint((f"203.0.{number // 256}.{number % 256}", 1)))
        assert len(names._by_host) <= HOSTS_MAX
        host.ip("route del default", "route add default dev eth1")
        assert names.of_endpoint(Endpoint(("203.0.1.8", 1))) == "eth0"  # as remembered
        names.forget()
        assert names.of_endpoint(Endpoint(("203.0.1.8", 1))) == "eth1"
        host.ip("route del default", f"-6 route del default via {router.address6}")
        names.forget()
        assert names.of_endpoint(Endpoint(("203.0.1.8", 1))) == names.default() == OTHER


# TCP


@contextmanager
def connected() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
        with ours, theirs:
            yield ours, theirs


def read(sock: socket.socket, size: int) -> None:
    while size:
        size -= len(sock.recv(size))


def test_a_connection_is_booked_from_its_first_segment_and_only_once() -> None:
    ledger = Ledger()
    meter = Meter(ledger, Names())
    with connected() as (ours, theirs):
        meter.tcp(1.0, ours, Cause.CONTROL)
        assert total(ledger) == {Cause.CONTROL: (2 * 52, 52)}  # SYN, ACK; SYN and ACK
        ours.sendall(bytes(1_000))
        read(theirs, 1_000)
        theirs.sendall(bytes(300))
        read(ours, 300)
        for now in (2.0, 3.0):
            meter.tcp(now, ours, Cause.CONTROL)
        sent, received = total(ledger)[Cause.CONTROL]
        assert 1_000 + 3 * 52 <= sent <= 1_000 + 5 * 52
        assert 300 + 2 * 52 <= received <= 300 + 4 * 52
        meter.tcp(4.0, ours, Cause.CONTROL, closing=True)
        assert total(ledger)[Cause.CONTROL] == (sent + 2 * 52, received + 2 * 52)
        ours.close()
        meter.tcp(5.0, ours, Cause.CONTROL, closing=True)  # who closes it twice
        assert total(ledger)[Cause.CONTROL] == (sent + 2 * 52, received + 2 * 52)


def test_what_was_carried_for_others_is_theirs() -> None:
    ledger, carried = Ledger(), Carried()
    meter = Meter(ledger, Names())
    with connected() as (ours, theirs):
        meter.tcp(1.0, ours, Cause.RELAY, carried)
        for _ in range(10):
            carried.add(Direction.SENT, DATA)
        meter.tcp(2.0, ours, Cause.RELAY, carried)  # it is not on the line yet
        assert total(ledger) == {Cause.PAYLOAD: (1_000, 0), Cause.RELAY: (104, 52)}
        ours.sendall(bytes(1_100))
        read(theirs, 1_100)
        meter.tcp(3.0, ours, Cause.RELAY, carried)
        shares = total(ledger)
        assert shares[Cause.PAYLOAD] == (1_000, 0)
        segments = (shares[Cause.RELAY][0] - 100) / 52
        assert segments == int(segments) and 3 <= segments <= 5


def test_a_descriptor_that_serves_another_connection_is_begun_anew() -> None:
    ledger = Ledger()
    meter = Meter(ledger, Names())
    with connected() as (ours, theirs):
        ours.sendall(bytes(5_000))
        read(theirs, 5_000)
        meter.tcp(1.0, ours, Cause.CONTROL)
        number = ours.fileno()
        ours.close()
        before = total(ledger)[Cause.CONTROL][0]
        with connected() as (other, _):
            assert other.fileno() != number  # the server took it
            moved = socket.socket(fileno=socket.dup(other.fileno()))
            with moved:
                meter._connections[moved.fileno()] = meter._connections.pop(number)
                meter.tcp(2.0, moved, Cause.CONTROL)
                assert total(ledger)[Cause.CONTROL][0] == before + 2 * 52


def test_connections_whose_end_nobody_tells_are_bounded() -> None:
    meter = Meter(Ledger(), Names())
    with connected() as (ours, _):
        copies = [socket.socket(fileno=socket.dup(ours.fileno())) for _ in range(CONNECTIONS_MAX + 5)]
        for copy in copies:
            meter.tcp(1.0, copy, Cause.CONTROL)
        assert len(meter._connections) == CONNECTIONS_MAX
        for copy in copies:
            copy.close()


def test_what_is_no_tcp_connection_is_not_counted() -> None:
    ledger = Ledger()
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
        Meter(ledger, Names()).tcp(1.0, sock, Cause.CONTROL)
    assert ledger.lines(2.0) == []


@given(st.binary(max_size=300))
def test_whatever_a_kernel_gives_is_counts_or_none(info: bytes) -> None:
    counts = tcpinfo.read(info)
    assert (counts is None) == (len(info) < 144)
    if counts is not None:
        assert min(counts.sent, counts.received, counts.segments_out, counts.segments_in) >= 0


@pytest.mark.parametrize(
    ("size", "sent"),
    [
        (232, 5_000),  # Linux 4.19: as the kernel says
        (208, 5_000),
        (192, 4_000 + 3 * 1_400),  # before: what was acknowledged, and what was sent again
        (144, 4_000 + 3 * 1_400),
        (143, None),  # before 4.2: not counted
        (0, None),
    ],
)
def test_kernels_of_all_ages(size: int, sent: int | None) -> None:
    info = bytearray(232)
    info[0] = 1
    u32, u64 = Struct("=I"), Struct("=Q")
    for packer, at, value in (
        (u32, 16, 1_400),
        (u32, 100, 3),
        (u64, 120, 4_000),
        (u64, 128, 700),
        (u32, 136, 11),
        (u32, 140, 12),
        (u64, 200, 5_000),
    ):
        packer.pack_into(info, at, value)
    counts = tcpinfo.read(bytes(info[:size]))
    if sent is None:
        assert counts is None
    else:
        assert counts is not None
        assert (counts.sent, counts.received, counts.segments_out, counts.segments_in) == (sent, 700, 11, 12)
        assert counts.farewell == 2
