"""Ways that are not one UDP address: relays, copies to a second one, carriers; and what does not leave."""

from __future__ import annotations

import errno
import socket
import struct
import time
from collections.abc import Iterator

import pytest

from edgeagent.engine.fast.binding import PumpDrop
from edgeagent.io import udpsocket
from edgeagent.io.tun import Tun, TunGone
from edgeagent.proto.endpoint import Endpoint, Transmit
from tests.engine.conftest import Inside
from tests.engine.packets import Segment
from tests.engine.twins import Member, Node, addressed, plain, report, settle, super_frame
from tests.netlab import Host, Lab, until

SESSION, CHANNEL = 0x01020304, 0x0506
HEAD = struct.pack(">BBHI", 0xE5, 0, CHANNEL, SESSION)


def packet(source: Node, to: Node, payload: bytes) -> bytes:
    return addressed(Segment(payload, udp=True).packet(), source, to)


def greet(a: Node, b: Node) -> None:
    for source, to in ((a, b), (b, a)) * 2:
        source.inject([plain(packet(source, to, b"hello"))])
        settle(a, b)
    report(a, b)
    a.taken(), b.taken()


@pytest.fixture
def port() -> Iterator[socket.socket]:
    """Somebody else's, where things may be sent to."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        opened.bind(("127.0.0.1", 0))
        opened.settimeout(2)
        yield opened


@pytest.fixture
def pair() -> Iterator[tuple[Node, Node]]:
    a, b = Node("fast", 1), Node("pure", 2)
    a.meet(b)
    b.meet(a)
    greet(a, b)
    yield a, b
    a.close()
    b.close()


def endpoint_of(port: socket.socket) -> Endpoint:
    return Endpoint(port.getsockname())


class TestRelay:
    @pytest.fixture
    def relayed(self, pair: tuple[Node, Node], port: socket.socket) -> tuple[Node, Node, Member]:
        a, b = pair
        member = Member(("relay", 1))
        a.machine.relays[member] = (endpoint_of(port), SESSION, CHANNEL)
        a.machine.sessions = [(endpoint_of(port), SESSION)]
        a.peer(b).set_endpoint(member)
        a.engine.flush(a.now)
        return a, b, member

    def test_a_header_goes_before_each_datagram(self, relayed: tuple[Node, Node, Member], port: socket.socket) -> None:
        a, b, _ = relayed
        packets = [packet(a, b, bytes(size)) for size in (10, 10, 900, 900, 11)]
        before = a.peer(b).tx_bytes
        a.inject(map(plain, packets))
        settle(a)
        for _ in packets:
            datagram = port.recv(3000)
            assert datagram[:8] == HEAD
            port.sendto(datagram[8:], ("127.0.0.1", b.port))
        settle(b)
        assert b.taken() == packets
        report(a)
        sizes = [32 + (38 + 15) // 16 * 16] * 2 + [32 + (928 + 15) // 16 * 16] * 2 + [32 + 48]
        assert a.peer(b).tx_bytes - before == sum(sizes), "without the relay's header, as `wg show` counts"

    def test_what_comes_by_it_is_taken_and_answered_there(
        self, relayed: tuple[Node, Node, Member], port: socket.socket
    ) -> None:
        a, b, member = relayed
        a.peer(b).set_endpoint(b.endpoint)
        b.peer(a).set_endpoint(endpoint_of(port))
        b.inject([plain(packet(b, a, b"by a relay"))])
        settle(a, b)
        datagram = port.recv(3000)
        for head, source in (
            (HEAD, "stranger"),
            (HEAD[:4] + bytes(4), "relay"),
            (HEAD[:2] + b"\0\1" + HEAD[4:], "relay"),
        ):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
                (stranger if source == "stranger" else port).sendto(head + datagram, ("127.0.0.1", a.port))
                settle(a)
        assert a.taken() == [], "another source, session, or a channel that is the relay's own"
        assert a.dropped() == {"malformed": 3}, "they went up"
        port.sendto(HEAD + datagram, ("127.0.0.1", a.port))
        settle(a)
        report(a)
        assert a.taken() == [packet(b, a, b"by a relay")]
        assert a.peer(b).endpoint is member

    def test_copies_go_by_the_second_way_too(self, pair: tuple[Node, Node], port: socket.socket) -> None:
        a, b = pair
        member = Member(("relay", 1))
        a.machine.relays[member] = (endpoint_of(port), SESSION, CHANNEL)
        a.machine.copies[b.device.public_key] = [member]
        packets = [packet(a, b, bytes((i,)) * 700) for i in range(5)]
        a.inject(map(plain, packets))
        settle(a, b)
        assert b.taken() == packets
        for _ in packets:
            datagram = port.recv(3000)
            assert datagram[:8] == HEAD
            port.sendto(datagram[8:], ("127.0.0.1", b.port))
        settle(b)
        assert b.taken() == []
        assert b.dropped() == {"replayed": 5}, "the same datagrams"

    def test_a_carrier_gets_what_is_sealed_and_brings_what_is_to_be_opened(self, pair: tuple[Node, Node]) -> None:
        a, b = pair
        member = Member(("relay", 1))
        a.peer(b).set_endpoint(member)
        b.peer(a).set_endpoint(member)
        packets = [addressed(Segment(bytes((i,)), udp=True, tos=i % 4).packet(), a, b) for i in range(8)]
        a.inject(map(plain, packets))
        settle(a, b)
        assert sum(len(each.datagrams) for each in a.machine.carried) == 8
        for transmit in a.machine.carried:
            assert transmit.endpoint is member
            b.machine.handle_datagrams(b.now, [(each, member, transmit.ecn) for each in transmit.datagrams])
        settle(b)
        assert b.taken() == packets
        b.inject(map(plain, (packet(b, a, bytes((i,))) for i in range(8))))
        settle(b)
        before = a.peer(b).rx_bytes
        for transmit in b.machine.carried:
            a.machine.handle_datagrams(a.now, [(each, member, transmit.ecn) for each in transmit.datagrams])
        settle(a)
        report(a)
        assert a.taken() == [packet(b, a, bytes((i,))) for i in range(8)]
        assert a.peer(b).rx_bytes - before == 8 * (32 + 32)

    def test_what_an_owner_sends_by_no_way_is_refused(self, pair: tuple[Node, Node]) -> None:
        a, _ = pair
        a.fast._send(a.now, [Transmit(Member(("relay", 1)), [b"x"])])
        settle(a)
        assert a.engine.drops[PumpDrop.RECORD] == 1  # type: ignore[index]


def test_a_source_that_is_gone_is_let_go_and_nothing_is_lost(pair: tuple[Node, Node]) -> None:
    a, b = pair
    pinned = Endpoint(("127.0.0.1", b.port), (socket.inet_aton("192.0.2.99"), 0))
    a.peer(b).set_endpoint(pinned)
    packets = [packet(a, b, bytes((i,))) for i in range(3)]
    a.inject(map(plain, packets))
    settle(a, b)
    assert b.taken() == packets
    assert a.machine.failed == [pinned]
    assert a.peer(b).endpoint == pinned.unpinned()
    assert not a.dropped()


def in_lab(host: Host, inside: Inside, engine: str, number: int, **options: object) -> Node:
    with inside(host):
        return Node(engine, number, host=host.address, **options)  # type: ignore[arg-type]


def test_what_is_too_long_for_the_link_is_told_and_may_be_fragmented(lab: Lab, inside: Inside) -> None:
    net = lab.net("192.0.2.0/24", mtu=1_400)
    a, b = in_lab(lab.host("a", net), inside, "fast", 1), in_lab(lab.host("b", net), inside, "pure", 2)
    a.meet(b)
    b.meet(a)
    for _ in range(20):
        greet_slowly(a, b)
        if a.peer(b).keypairs.current is not None:
            break
    long = packet(a, b, bytes(1340))
    a.peer(b).set_path_mtu(9000, fragment=False)
    a.engine.flush(a.now)
    a.inject([plain(long)] * 3)
    settle(a)
    assert a.machine.too_long == [(a.peer(b).endpoint, 1400 + 32 - 24)], "once a report"
    assert a.dropped()["datagram-too-long"] == 3
    a.peer(b).set_path_mtu(9000, fragment=True)
    a.inject([plain(long)])

    def arrived() -> bool:
        settle(a, b)
        return b.taken() == [long]

    until(arrived, 5, "the packet in fragments")
    a.close()
    b.close()


def greet_slowly(a: Node, b: Node) -> None:
    a.inject([plain(packet(a, b, b"hello"))])
    end = time.monotonic() + 0.3
    while time.monotonic() < end:
        settle(a, b)
    report(a, b)
    a.taken(), b.taken()


@pytest.mark.parametrize("whole", [False, True], ids=["packets", "super-packets"])
def test_a_full_send_buffer_holds_the_tun_back_and_loses_nothing(
    lab: Lab, inside: Inside, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    net = lab.net("192.0.2.0/24")
    hosts = lab.host("a", net), lab.host("b", net)
    monkeypatch.setattr(udpsocket, "BUFFER_BYTES", 8192)
    hosts[0].run("tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "4mbit", "burst", "4kb", "limit", "4mb")
    a = in_lab(hosts[0], inside, "fast", 1)
    monkeypatch.undo()
    b = in_lab(hosts[1], inside, "pure", 2)
    a.meet(b)
    b.meet(a)
    greet_slowly(a, b)
    greet_slowly(a, b)
    if whole:
        a.inject([plain(addressed(Segment(b"").packet(), a, b))])
        a.inject(super_frame(a, b, bytes((i,)) * 40_000, 1000) for i in range(5))
    else:
        a.inject(plain(packet(a, b, bytes((i,)) * 1000)) for i in range(200))
    out: list[bytes] = []
    began = time.monotonic()

    def arrived() -> bool:
        a.turn()
        b.turn()
        out.extend(b.taken())
        return sum(len(each) > 100 for each in out) == 200

    until(arrived, 10, "all of them")
    payloads = [each[40:] if whole else each[28:] for each in out if len(each) > 100]
    assert payloads == [bytes((i // 40 if whole else i,)) * 1000 for i in range(200)]
    assert time.monotonic() - began > 0.3, "the link was full for all that time"
    assert not a.dropped()
    a.close()
    b.close()


def test_the_removal_of_a_tun_is_noticed(lab: Lab, inside: Inside) -> None:
    host = lab.host("a")
    with inside(host):
        tun = Tun("edge0", 1400)
        host.ip("link set edge0 up", "addr add 10.0.0.1/24 dev edge0")
        a = Node("fast", 1, tun=tun, threaded=True)
        host.ip("link del edge0")
    with pytest.raises(TunGone):
        until(lambda: a.turn() and False, 5, "TunGone")
    a.close()
    tun.close()


def test_threads_and_real_tuns(lab: Lab, inside: Inside) -> None:
    """As agents have it: a ping's worth of traffic by sockets of the kernel's."""
    net = lab.net("192.0.2.0/24")
    nodes, tuns, sockets = [], [], []
    for number, host in enumerate((lab.host("a", net), lab.host("b", net)), 1):
        with inside(host):
            tuns.append(Tun("edge0", 1400))
            host.ip("link set edge0 up", f"addr add 10.0.0.{number}/24 dev edge0")
            nodes.append(Node("fast", number, tun=tuns[-1], threaded=True, host=host.address))
            opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            opened.bind((f"10.0.0.{number}", 6000))
            opened.setblocking(False)
            sockets.append(opened)
    a, b = nodes
    a.meet(b)
    b.meet(a)
    received = [0, 0]
    for i in range(300):
        sockets[0].sendto(i.to_bytes(4, "big") * 100, ("10.0.0.2", 6000))
        sockets[1].sendto(i.to_bytes(4, "big") * 100, ("10.0.0.1", 6000))

        def both() -> bool:
            for number, node in enumerate(nodes):
                node.turn()
                try:
                    while sockets[number].recv(2000):
                        received[number] += 1
                except OSError as error:
                    assert error.errno == errno.EAGAIN
            return min(received) > i  # noqa: B023

        until(both, 10, f"datagram {i} on both sides, {received}")
    assert max(node.machine.packets_seen for node in nodes) < 100, "the rest went by itself"
    for node in nodes:
        node.close()
    for tun in tuns:
        tun.close()
    for opened in sockets:
        opened.close()
