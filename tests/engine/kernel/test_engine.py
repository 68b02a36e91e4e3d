"""What the engine tells the kernel and hears of it, each decision seen."""

from __future__ import annotations

import socket

import pytest

from edgeagent.engine.kernel.engine import POLL_IDLE_S, POLL_S, POLL_WAITING_S, KernelDrop
from edgeagent.engine.kernel.guard import RENEW_S
from edgeagent.engine.kernel.proxies import SPARE_MAX
from edgeagent.proto.endpoint import Endpoint
from edgeagent.proto.errors import DropReason, LocalProtocolError
from edgeagent.proto.events import EndpointRoamed, HandshakeCompleted, HandshakeFailed
from edgeagent.proto.outsourced import DATAGRAMS_MAX, GIVE_UP_S
from edgeagent.proto.relay_endpoint import RelayEndpoint
from tests.engine.kernel.bench import AT, AT_RAW, ELSEWHERE, KEY, OTHER, PACKET, Bench
from tests.policy_kit import PEER4


def test_what_begins_with_a_packet_ends_in_the_kernel(bench: Bench) -> None:
    bench.peer()
    bench.machine.handle_packets(1.0, [PACKET])
    bench.engine.flush(1.0)
    assert bench.port.take() == [("peer", KEY, AT_RAW, [(PEER4, 32)]), ("begin", KEY)]
    assert bench.port.injected == []
    assert bench.engine.poll_timeout() == 1.0 + POLL_WAITING_S
    bench.shake_hands(1.1)
    assert [type(event) for event in bench.device.drain_events()] == [HandshakeCompleted]
    bench.engine.flush(1.1)
    assert bench.port.injected == [PACKET]
    assert bench.port.take() == [("routes", KEY, [(PEER4, 32)])]
    bench.machine.handle_packets(2.0, [PACKET])  # of a socket that has not heard of the route
    bench.engine.flush(2.0)
    assert bench.port.injected == [PACKET, PACKET]
    assert bench.port.take() == []


def test_who_has_no_endpoint_is_not_the_kernels(bench: Bench) -> None:
    peer = bench.peer(None)
    assert [unsent.reason for unsent in bench.device.handle_packets(1.0, [PACKET])] == [DropReason.NO_ENDPOINT]
    bench.engine.flush(1.0)
    assert bench.port.take() == []
    peer.set_endpoint(AT)
    bench.engine.flush(1.0)
    assert bench.port.take() == [("peer", KEY, AT_RAW, [(PEER4, 32)])]


def test_peers_go_and_change(bench: Bench) -> None:
    peer = bench.peer()
    bench.engine.flush(1.0)
    bench.port.take()
    peer.set_endpoint(Endpoint(("2001:db8::7", 7, 0, 0)))
    bench.engine.flush(1.0)
    assert bench.port.take() == [("peer", KEY, (bytes.fromhex("20010db8") + bytes(11) + b"\7", 7, 0), None)]
    other = bench.peer(key=OTHER)  # has the address now
    bench.engine.flush(1.0)
    assert ("peer", KEY, None, []) in bench.port.did and ("peer", OTHER, AT_RAW, [(PEER4, 32)]) in bench.port.take()
    bench.device.remove_peer(1.0, KEY)
    bench.engine.flush(1.0)
    assert bench.port.take() == [("remove", KEY)]
    assert not peer.installed and other.installed


def test_the_kernel_follows_its_peer_and_the_machine_decides(bench: Bench) -> None:
    peer = bench.peer()
    bench.engine.flush(1.0)
    bench.shake_hands(1.0)
    bench.engine.flush(1.0)
    bench.device.drain_events()
    bench.port.take()
    bench.shake_hands(2.0, endpoint=ELSEWHERE)
    assert str(peer.endpoint) == "192.0.2.9:40000"
    assert [type(event) for event in bench.device.drain_events()] == [HandshakeCompleted, EndpointRoamed]
    bench.engine.flush(2.0)
    assert bench.port.take() == []  # it is where the kernel sends already
    peer.set_endpoint(AT)
    bench.engine.flush(2.0)
    assert bench.port.take() == [("peer", KEY, AT_RAW, None)]


def test_a_relayed_peer_is_a_port_on_loopback(bench: Bench) -> None:
    relayed = RelayEndpoint("r1", OTHER)
    peer = bench.peer(relayed)
    bench.engine.flush(1.0)
    ((_, _, address, _),) = bench.port.take()
    host, port, _ = address
    assert host == socket.inet_aton("127.0.0.1")
    bench.port.udp.sendto(b"sealed", ("127.0.0.1", port))
    for key, _ in bench.selector.select(2.0):
        key.data(1.0, key.fd)
    assert [(each.endpoint, each.datagrams) for each in bench.machine.carried] == [(relayed, [b"sealed"])]
    bench.machine.handle_datagrams(1.0, [(b"\4\0\0\0" + bytes(28), relayed, 0)])
    bench.engine.flush(1.0)
    assert bench.port.udp.recvfrom(100) == (b"\4\0\0\0" + bytes(28), ("127.0.0.1", port))
    bench.shake_hands(2.0)  # the kernel heard it there
    assert peer.endpoint is relayed
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.sendto(b"not the kernel", ("127.0.0.1", port))
    assert bench.selector.select(0.05) == []


def test_a_proxy_that_is_gone_is_nobodys_address(bench: Bench) -> None:
    relayed = RelayEndpoint("r1", OTHER)
    peer = bench.peer(relayed)
    bench.engine.flush(1.0)
    bench.shake_hands(1.0)
    bench.engine.bind(0)
    bench.shake_hands(2.0)  # heard before that, and not read yet
    assert peer.endpoint is relayed and peer.rx_bytes == 2 * 92
    bench.port.take()
    bench.engine.flush(2.0)
    ((_, _, address, _),) = [did for did in bench.port.take() if did[0] == "peer"]
    bench.shake_hands(3.0, endpoint=address)
    assert peer.endpoint is relayed


def test_a_shut_port_is_not_read(bench: Bench) -> None:
    bench.peer()
    bench.engine.flush(1.0)
    bench.engine.unbind()
    reads = bench.port.reads
    bench.engine.flush(100.0)
    timeout = bench.engine.poll_timeout()
    assert bench.port.reads == reads and timeout == 100.0 + RENEW_S  # that is the filter's
    bench.engine.bind(0)
    bench.engine.flush(101.0)
    assert bench.port.reads == reads + 1


def test_proxies_are_bounded(bench: Bench) -> None:
    relayed = RelayEndpoint("r1", KEY)
    bench.peer(relayed)
    bench.engine.flush(1.0)
    for number in range(3 * SPARE_MAX):
        stranger = RelayEndpoint("r1", bytes([number + 10]) * 32)
        bench.machine.handle_datagrams(1.0, [(b"\2\0\0\0" + bytes(88), stranger, 0)])
        bench.engine.flush(1.0)
    table = bench.engine.tables()["kernel_proxies"]
    assert table == {"used": 4 + SPARE_MAX, "ceiling": 4 + SPARE_MAX}
    ((_, _, address, _),) = [did for did in bench.port.take() if did[0] == "peer"]
    bench.machine.handle_datagrams(1.0, [(b"\4\0\0\0" + bytes(28), relayed, 0)])
    bench.port.udp.settimeout(0.0)
    with pytest.raises(BlockingIOError):
        while bench.port.udp.recvfrom(100)[1] != ("127.0.0.1", address[1]):
            pass
    bench.engine.flush(1.0)
    assert bench.port.udp.recvfrom(100)[1] == ("127.0.0.1", address[1])  # the peer has kept its own


def test_what_there_is_no_room_for_is_counted(bench: Bench) -> None:
    relayed = RelayEndpoint("r1", OTHER)
    sealed = b"\4\0\0\0" + bytes(28)
    bench.machine.handle_datagrams(1.0, [(sealed, relayed, 0)] * (DATAGRAMS_MAX + 3))
    assert bench.engine.drops[KernelDrop.PROXY] == 3
    bench.device.handle_datagrams(1.0, [])
    bench.engine.flush(1.0)
    before = bench.engine.drops[KernelDrop.PROXY]
    bench.engine.bind(0)
    assert bench.engine.drops[KernelDrop.PROXY] == before  # it never goes back
    bench.engine.unbind()
    bench.machine.handle_datagrams(1.0, [(sealed, relayed, 0)])
    bench.engine.flush(1.0)
    assert bench.engine.drops[KernelDrop.PROXY] == before + 1


def test_silence_is_told_and_ends(bench: Bench) -> None:
    peer = bench.peer()
    bench.machine.handle_packets(0.0, [PACKET])
    bench.engine.flush(0.0)
    bench.engine.sync(GIVE_UP_S - 1.0)
    assert bench.device.drain_events() == []
    bench.engine.sync(GIVE_UP_S)
    assert [type(event) for event in bench.device.drain_events()] == [HandshakeFailed]
    assert not peer.staged and bench.device.drops[DropReason.STAGED_EXPIRED] == 1


def test_what_the_kernel_counts_is_traffic(bench: Bench) -> None:
    peer = bench.peer()
    bench.engine.flush(1.0)
    bench.shake_hands(1.0)
    found = bench.port.figures[KEY]
    seen = [(peer.last_traffic_at, peer.timers._unanswered_since)]  # a handshake is none
    for now, received, sent in ((2.0, 0, 32), (3.0, 0, 3_000), (4.0, 1_500, 0)):  # nor is a keepalive
        found.rx_bytes += received
        found.tx_bytes += sent
        bench.engine.sync(now)
        seen.append((peer.last_traffic_at, peer.timers._unanswered_since))
    assert seen == [(None, None), (None, None), (3.0, 2.0), (4.0, None)]
    assert (peer.rx_bytes, peer.tx_bytes) == (92 + 1_500, 148 + 3_032)


def test_who_lost_its_keys_is_begun_with_anew(bench: Bench) -> None:
    peer = bench.peer()
    bench.engine.flush(1.0)
    bench.shake_hands(1.0)
    bench.engine.flush(1.0)
    bench.port.take()
    assert peer.begin_handshake(2.0, anew=True)
    bench.engine.flush(2.0)
    assert [did[0] for did in bench.port.take()] == ["remove", "peer", "begin"]
    bench.machine.handle_packets(2.0, [PACKET])
    bench.engine.flush(2.0)
    assert bench.port.injected == []  # it waits here until there are keys
    bench.shake_hands(2.1)
    bench.engine.flush(2.1)
    assert bench.port.injected == [PACKET]
    assert peer.rx_bytes == 92 + 92  # counted on over the kernel's own zero
    peer.begin_handshake(2.5, anew=True)
    bench.engine.flush(2.5)
    peer.begin_handshake(2.6, anew=True)
    bench.engine.flush(2.6)
    assert [did[0] for did in bench.port.take()].count("remove") == 0  # not again within a second of the last


def test_it_is_read_as_often_as_there_is_something(bench: Bench) -> None:
    bench.peer()
    bench.engine.flush(100.0)
    assert bench.engine.poll_timeout() == 100.0 + POLL_S
    bench.engine.flush(101.0)
    bench.engine.flush(200.0)
    assert bench.engine.poll_timeout() == 200.0 + POLL_IDLE_S


def test_sessions_are_given_away_before_there_are_peers(bench: Bench) -> None:
    bench.peer()
    with pytest.raises(LocalProtocolError, match="peers already"):
        bench.device.outsource()
