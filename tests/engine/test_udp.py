from __future__ import annotations

import errno
import selectors
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from edgeagent.io import udpsocket
from edgeagent.io.udp import Udp
from edgeagent.io.udpsocket import BACKLOG_DATAGRAMS_MAX, UdpDrop
from edgeagent.proto.endpoint import Endpoint, Transmit
from tests.engine.conftest import Inside
from tests.netlab import Host, Lab, until

Received = list[tuple[bytes, Endpoint, int]]


@contextmanager
def opened(port: int = 0, *, mtu_by_kernel: bool = False) -> Iterator[Udp]:
    udp = Udp(mtu_by_kernel=mtu_by_kernel)
    udp.open(port)
    try:
        yield udp
    finally:
        udp.close()


def receive(udp: Udp, count: int, timeout_s: float = 5.0) -> Received:
    """At least `count` datagrams."""
    batch: Received = []

    def enough() -> bool:
        for fd in udp.fds:
            batch.extend(udp.receive(fd, 16))
        return len(batch) >= count

    until(enough, timeout_s, f"{count} datagrams")
    return batch


def pair(lab: Lab, *, mtu: int = 1500) -> tuple[Host, Host]:
    net = lab.net("192.0.2.0/24", "2001:db8::/64", mtu=mtu)
    return lab.host("a", net), lab.host("b", net)


def endpoint(host: Host, port: int, version: int) -> Endpoint:
    return Endpoint((host.address, port) if version == 4 else (host.address6, port, 0, 0))


def test_both_versions_share_one_port(lab: Lab, inside: Inside) -> None:
    with inside(lab.host("a")), opened() as udp:
        assert udp.port
        assert len(udp.fds) == 2
        ports = {socket.socket(fileno=socket.dup(fd)) for fd in udp.fds}
        try:
            assert {s.getsockname()[1] for s in ports} == {udp.port}
        finally:
            for s in ports:
                s.close()
        other = Udp()
        with pytest.raises(OSError) as caught:
            other.open(udp.port)
        assert caught.value.errno == errno.EADDRINUSE
        assert other.fds == []


def test_a_port_free_in_only_one_version_is_not_picked(lab: Lab, inside: Inside) -> None:
    with inside(lab.host("a")):
        lab.hosts["a"].run("sh", "-c", "echo 40000 40003 >/proc/sys/net/ipv4/ip_local_port_range")
        with (
            socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as six,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as four,
        ):
            six.bind(("::1", 40000))
            four.bind(("127.0.0.1", 40001))
            for _ in range(8):
                with opened() as udp:
                    assert udp.port in (40002, 40003)


@pytest.mark.parametrize("version", [4, 6])
def test_datagrams_arrive_whole_with_source_and_ecn(lab: Lab, inside: Inside, version: int) -> None:
    a, b = pair(lab)
    with inside(a), opened() as ours, inside(b), opened() as theirs:
        sizes = [1000] * 130 + [10, 1400, 1400, 1, 1, 1]
        sent = [bytes((i & 0xFF,)) * size for i, size in enumerate(sizes)]
        ours.send(
            [Transmit(endpoint(b, theirs.port, version), sent, 2), Transmit(endpoint(b, theirs.port, version), [b"x"])]
        )
        batch = receive(theirs, len(sent) + 1)
        assert [datagram for datagram, _, _ in batch] == [*sent, b"x"]
        assert [ecn for _, _, ecn in batch] == [2] * len(sent) + [0]
        sources = {source for _, source, _ in batch}
        assert {source.addr for source in sources} == {endpoint(a, ours.port, version).addr}
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        (local,) = {source.local for source in sources}
        assert local is not None
        assert socket.inet_ntop(family, local[0]) == (b.address if version == 4 else b.address6)
        assert len({id(source) for _, source, _ in batch}) == 1
        # and the way back, from the very address that was written to
        theirs.send([Transmit(batch[0][1], [b"answer"], 3)])
        ((answer, _, ecn),) = receive(ours, 1)
        assert (answer, ecn) == (b"answer", 3)
        assert not any(ours.drops.values()) and not any(theirs.drops.values())


@pytest.mark.parametrize("version", [4, 6])
def test_a_hop_limit_ends_a_datagram_at_the_first_router(lab: Lab, inside: Inside, version: int) -> None:
    near, far = lab.net("192.0.2.0/24", "2001:db8::/64"), lab.net("198.51.100.0/24", "2001:db8:1::/64")
    lab.router("router", near, far)
    a, b = lab.host("a", near), lab.host("b", far)
    with inside(a), opened() as ours, inside(b), opened() as theirs:
        to = endpoint(b, theirs.port, version)
        ours.send(
            [Transmit(to, [b"dies on the way"], ttl=1), Transmit(to, [b"arrives"], ttl=2), Transmit(to, [b"too"])]
        )
        assert [datagram for datagram, _, _ in receive(theirs, 2)] == [b"arrives", b"too"]


def test_a_sticky_source_is_used_and_let_go_when_it_vanishes(lab: Lab, inside: Inside) -> None:
    a, b = pair(lab)
    a.ip("addr add 192.0.2.77/24 dev eth0")
    with inside(a), opened() as ours, inside(b), opened() as theirs:
        to_b = Endpoint((b.address, theirs.port), (socket.inet_aton("192.0.2.77"), 0))
        ours.send([Transmit(to_b, [b"1"])])
        ((_, source, _),) = receive(theirs, 1)
        assert source.addr[0] == "192.0.2.77"
        assert ours.drain_source_failures() == []
        a.ip("addr del 192.0.2.77/24 dev eth0")
        ours.send([Transmit(to_b, [b"2", b"3", b"4"])])
        batch = receive(theirs, 3)
        assert [(datagram, source.addr[0]) for datagram, source, _ in batch] == [
            (b"2", a.address),
            (b"3", a.address),
            (b"4", a.address),
        ]
        assert ours.drain_source_failures() == [to_b]
        assert ours.drain_source_failures() == []


@pytest.mark.parametrize("version", [4, 6])
def test_what_is_longer_than_the_link_is_cut_up_only_where_that_is_wanted(
    lab: Lab, inside: Inside, version: int
) -> None:
    a, b = pair(lab, mtu=1280)
    with inside(a), opened() as ours, inside(b), opened() as theirs:
        to_b = endpoint(b, theirs.port, version)
        sent = [bytes((i,)) * 1400 for i in range(10)]
        ours.send(
            [
                Transmit(to_b, sent[:5], fragment=True),
                Transmit(to_b, [bytes(1401), bytes(1401)]),
                Transmit(to_b, [b"short"]),
                Transmit(to_b, sent[5:], fragment=True),
            ]
        )
        arrived = [datagram for datagram, _, _ in receive(theirs, 11)]
        assert sorted(arrived, key=lambda datagram: datagram[:1]) == [*sent, b"short"]
        assert ours.drops[UdpDrop.TOO_LONG] == 2
        assert ours.drain_too_long() == [(to_b, 1401)] * 2
        assert ours.drain_too_long() == []


@pytest.mark.parametrize("version", [4, 6])
def test_no_icmp_message_changes_what_leaves(lab: Lab, inside: Inside, version: int) -> None:
    """A router that takes less says so, and is not listened to: whoever searches the path's MTU finds it out."""
    near, far = lab.net("192.0.2.0/24", "2001:db8::/64"), lab.net("198.51.100.0/24", "2001:db8:1::/64", mtu=1280)
    lab.router("router", near, far)
    a, b = lab.host("a", near), lab.host("b", far)
    with inside(a), opened() as ours, inside(a), opened(mtu_by_kernel=True) as plain, inside(b), opened() as theirs:
        to_b = endpoint(b, theirs.port, version)

        def told() -> bool:
            ours.send([Transmit(to_b, [bytes(1400)])])
            return "mtu 1280" in a.run("ip", f"-{version}", "route", "get", to_b.addr[0]).stdout

        until(told, 5, "the router's ICMP message")
        assert ours.drops[UdpDrop.TOO_LONG] == 0
        plain.send([Transmit(to_b, [b"kernel" + bytes(1394)])])
        assert receive(theirs, 1)[0][0] == b"kernel" + bytes(1394)
        ours.send([Transmit(to_b, [bytes(1400)]), Transmit(to_b, [b"cut" + bytes(1397)], fragment=True)])
        assert [datagram[:3] for datagram, _, _ in receive(theirs, 1)] == [b"cut"]


def test_the_mtu_is_the_kernels_where_that_is_wanted(lab: Lab, inside: Inside) -> None:
    a, b = pair(lab, mtu=1280)
    with inside(a), opened(mtu_by_kernel=True) as ours, inside(b), opened() as theirs:
        for version in (4, 6):
            sent = [bytes((i,)) * 1400 for i in range(10)]
            ours.send([Transmit(endpoint(b, theirs.port, version), sent)])
            assert sorted(datagram for datagram, _, _ in receive(theirs, 10)) == sent


def test_without_segmentation_datagrams_go_one_by_one(
    lab: Lab, inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An option that no kernel has stands for UDP_SEGMENT and UDP_GRO on a kernel that lacks them."""
    a, b = pair(lab)
    monkeypatch.setattr(udpsocket, "_UDP_SEGMENT", 250)
    monkeypatch.setattr(udpsocket, "_UDP_GRO", 251)
    with inside(a), opened() as ours, inside(b), opened() as theirs:
        sent = [bytes((i,)) * 500 for i in range(100)]
        ours.send([Transmit(endpoint(b, theirs.port, 4), sent)])
        assert [datagram for datagram, _, _ in receive(theirs, 100)] == sent


def test_a_device_that_cannot_segment_switches_it_off(lab: Lab, inside: Inside) -> None:
    a, b = pair(lab)

    class OldKernel(socket.socket):
        """Answers a segmented send as udp(7) says it of kernels before 6.11 and a device without checksums."""

        def sendmsg(self, buffers, ancdata=(), flags=0, address=None):  # type: ignore[no-untyped-def]
            if any(level == 17 for level, _, _ in ancdata):
                raise OSError(errno.EIO, "Input/output error")
            return super().sendmsg(buffers, ancdata, flags, address)

    with inside(a), opened() as ours, inside(b), opened() as theirs:
        old = ours._general[socket.AF_INET]
        old._socket = OldKernel(fileno=old._socket.detach())
        sent = [bytes((i,)) * 500 for i in range(70)]
        ours.send([Transmit(endpoint(b, theirs.port, 4), sent)])
        assert [datagram for datagram, _, _ in receive(theirs, 70)] == sent
        assert [each._segments for each in ours._general.values()] == [False, True]


def test_the_mark_is_on_what_is_sent(lab: Lab, inside: Inside) -> None:
    a, b = pair(lab)
    a.sh("nft add table inet t; nft add chain inet t out '{ type filter hook output priority 0; }'")
    a.sh("nft add rule inet t out meta mark != 42 udp dport 7 drop")
    with inside(a), opened() as ours, inside(b), opened(7) as theirs:
        to_b = endpoint(b, 7, 4)
        ours.send([Transmit(to_b, [b"unmarked"])])
        assert ours.drops[UdpDrop.REFUSED] == 1
        ours.set_mark(42)
        ours.send([Transmit(to_b, [b"marked"])])
        assert receive(theirs, 1)[0][0] == b"marked"
        with inside(a):
            ours.open(ours.port)
        ours.send([Transmit(to_b, [b"still"])])
        assert receive(theirs, 1)[0][0] == b"still"


def test_a_full_buffer_makes_datagrams_wait_and_then_drops_the_oldest(
    lab: Lab, inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = pair(lab)
    monkeypatch.setattr(udpsocket, "BUFFER_BYTES", 8192)
    a.run("tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "2mbit", "burst", "4kb", "limit", "1mb")
    with inside(a), opened() as ours:
        monkeypatch.undo()
        with inside(b), opened() as theirs:
            to_b = endpoint(b, theirs.port, 4)
            count = BACKLOG_DATAGRAMS_MAX // 8
            sent = [i.to_bytes(2, "big") * 250 for i in range(count)]
            for at in range(0, count, 4):
                ours.send([Transmit(to_b, sent[at : at + 4])])
            (blocked,) = ours.blocked_fds
            assert blocked in ours.fds
            selector = selectors.DefaultSelector()
            selector.register(blocked, selectors.EVENT_WRITE)

            def drained() -> bool:
                if selector.select(0):
                    ours.resume()
                return not ours.blocked_fds

            until(drained, 10, "the backlog's end")
            selector.close()
            assert [datagram for datagram, _, _ in receive(theirs, count)] == sent
            assert not any(ours.drops.values())

            for _ in range(BACKLOG_DATAGRAMS_MAX // 2):
                ours.send([Transmit(to_b, [bytes(1200)] * 4)])
            assert ours.drops[UdpDrop.BACKLOG_FULL] >= BACKLOG_DATAGRAMS_MAX // 2
            full = ours._general[socket.AF_INET]
            waiting = full.waiting
            assert waiting == sum(len(transmit.datagrams) for transmit in full._backlog) <= BACKLOG_DATAGRAMS_MAX
    assert ours.drops[UdpDrop.NO_SOCKET] == waiting


def test_drops_are_counted_by_reason(lab: Lab, inside: Inside) -> None:
    host = lab.host("a")  # no network at all
    with inside(host):
        udp = Udp()
        nowhere = Endpoint(("192.0.2.9", 9))
        udp.send([Transmit(nowhere, [b"x", b"y"])])
        assert udp.drops[UdpDrop.NO_SOCKET] == 2
        with opened() as udp:
            udp.send([Transmit(nowhere, [b"x", b"y"])])
            assert udp.drops[UdpDrop.NO_ROUTE] == 2
            udp.send([Transmit(Endpoint(("127.0.0.1", udp.port)), [bytes(65_508)])])
            assert udp.drops[UdpDrop.TOO_LONG] == 1


def test_sockets_stay_where_they_were_opened(lab: Lab, inside: Inside) -> None:
    a, b = pair(lab)
    with inside(a), opened() as ours:
        pass_through = endpoint(b, 7, 4)
        with inside(b), opened(7) as theirs:
            ours.send([Transmit(pass_through, [b"from a"])])
            assert receive(theirs, 1)[0][1].addr[0] == a.address
