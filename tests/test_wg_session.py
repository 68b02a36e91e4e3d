"""Sessions between two machines: handshakes, keys, data, and the order in which a datagram is judged."""

from __future__ import annotations

import pytest

from edgeagent.proto.endpoint import Endpoint
from edgeagent.proto.errors import DropReason, LimitReached, LocalProtocolError
from edgeagent.proto.events import EndpointRoamed, HandshakeCompleted, UnknownPeer
from edgeagent.proto.messages import TRANSPORT_HEADER
from tests.wg_pair import (
    A_ADDR,
    A_IP,
    A_IP6,
    B_ADDR,
    B_IP,
    B_IP6,
    INITIATION,
    RESPONSE,
    TRANSPORT,
    Pair,
    device,
    drops,
    established,
    ipv4,
    ipv6,
    kinds,
)

ELSEWHERE = Endpoint(("203.0.113.9", 4500))


def test_first_packet_waits_for_the_handshake_and_arrives() -> None:
    pair = Pair()
    packet = pair.a_sends()
    assert kinds(pair.collect()) == [INITIATION]
    pair.deliver()
    assert pair.b.drain_packets() == [packet]
    answer = pair.b_sends(b"back")
    pair.deliver()
    assert pair.a.drain_packets() == [answer]
    for dev in (pair.a, pair.b):
        assert [type(event) for event in dev.drain_events()].count(HandshakeCompleted) == 1
        assert drops(dev) == {}
    assert pair.to_b.last_handshake_at == pair.to_a.last_handshake_at == pair.now
    assert pair.to_b.last_handshake_wall_s == pytest.approx(1.8e9)


def test_messages_have_the_sizes_of_the_paper() -> None:
    pair = Pair()
    pair.a_sends(b"x" * 100)
    sizes = []
    for _ in range(3):
        sizes += [len(datagram) for datagram in pair.collect()]
        wire, pair.wire = pair.wire, []
        for receiver, datagram in wire:
            receiver.handle_datagrams(pair.now, [(datagram, A_ADDR if receiver is pair.b else B_ADDR, 0)])
    assert sizes == [148, 92, 16 + 128 + 16]


def test_ipv6_inside() -> None:
    pair = established()
    packet = ipv6(A_IP6, B_IP6)
    assert pair.a.handle_packets(pair.now, [packet]) == []
    pair.deliver()
    assert pair.b.drain_packets() == [packet]


def test_preshared_key_must_be_the_same() -> None:
    pair = Pair()
    pair.to_b.set_preshared_key(b"k" * 32)
    pair.a_sends()
    pair.deliver()
    assert drops(pair.a) == {"response-invalid": 1}
    pair.to_a.set_preshared_key(b"k" * 32)
    pair.advance(6)
    assert len(pair.b.drain_packets()) == 1


def test_both_begin_at_once_and_both_get_through() -> None:
    pair = Pair(b_knows_endpoint=True)
    from_a, from_b = pair.a_sends(b"a"), pair.b_sends(b"b")
    assert kinds(pair.collect()) == [INITIATION, INITIATION]
    pair.deliver()
    assert pair.a.drain_packets() == [from_b]
    assert pair.b.drain_packets() == [from_a]
    pair.a_sends(), pair.b_sends()
    pair.deliver()
    assert len(pair.a.drain_packets()) == len(pair.b.drain_packets()) == 1
    assert drops(pair.a) == drops(pair.b) == {}


def test_lost_response_is_made_good_by_the_next_attempt() -> None:
    pair = Pair()
    packet = pair.a_sends()
    pair.deliver(keep=lambda datagram: datagram[0] != RESPONSE)
    assert pair.b.drain_packets() == []
    pair.advance(5.4)
    assert pair.b.drain_packets() == [packet]


def test_responder_sends_only_after_the_initiator_confirmed() -> None:
    pair = Pair()
    pair.a_sends()
    pair.deliver(keep=lambda datagram: datagram[0] != TRANSPORT)
    assert pair.to_a.keypairs.next is not None
    assert pair.to_a.keypairs.current is None
    pair.b_sends()
    assert kinds(pair.collect()) == [INITIATION], "an unconfirmed key must not be used"


def test_replayed_transport_data_is_dropped_and_reordered_is_not() -> None:
    pair = established()
    for i in range(5):
        pair.a_sends(b"%d" % i)
    datagrams = pair.collect()
    pair.wire = [(pair.b, datagram) for datagram in (*reversed(datagrams), *datagrams)]
    pair.deliver()
    assert len(pair.b.drain_packets()) == 5
    assert drops(pair.b) == {"replayed": 5}


def test_replayed_initiation_gets_no_answer() -> None:
    pair = Pair()
    pair.a_sends()
    (initiation,) = pair.collect()
    pair.deliver()
    pair.now += 1
    pair.b.handle_datagrams(pair.now, [(initiation, ELSEWHERE, 0)])
    assert pair.b.drain_transmits() == []
    assert drops(pair.b) == {"initiation-replayed": 1}
    assert pair.to_a.endpoint == A_ADDR


def test_initiations_closer_than_20_ms_are_a_flood() -> None:
    pair = established()
    for step in (0.5, 0.001):
        pair.now += step
        assert pair.to_b.begin_handshake(pair.now, anew=True) is (step == 0.5)
    pair.deliver()
    # Another board with the same key does not keep to our spacing
    twin = device(9, now=pair.now, wall_s=1.9e9)
    twin.set_private_key(pair.now, pair.a.private_key)
    peer = twin.add_peer(pair.now, pair.b.public_key)
    peer.set_endpoint(B_ADDR)
    peer.begin_handshake(pair.now)
    pair.b.handle_datagrams(pair.now, [(d, A_ADDR, 0) for t in twin.drain_transmits() for d in t.datagrams])
    assert drops(pair.b) == {"initiation-flood": 1}
    assert pair.b.drain_transmits() == []


def test_stranger_is_reported_and_not_answered() -> None:
    pair = Pair()
    pair.b.remove_peer(pair.now, pair.a.public_key)
    pair.a_sends()
    pair.deliver()
    (event,) = pair.b.drain_events()
    assert isinstance(event, UnknownPeer)
    assert event.static_public == pair.a.public_key
    assert drops(pair.b) == {"unknown-peer": 1}
    peer = pair.b.add_peer(pair.now, event.static_public)
    pair.b.allowed_ips.insert(A_IP, 32, peer)
    pair.b.handle_datagrams(pair.now, [(event.datagram, event.endpoint, 0)])
    pair.deliver()
    assert len(pair.b.drain_packets()) == 1


def test_endpoint_roams_only_when_authenticated() -> None:
    pair = established()
    pair.b.drain_events()
    pair.a_sends()
    (good,) = pair.collect()
    forged = good[:-1] + bytes((good[-1] ^ 1,))
    pair.b.handle_datagrams(pair.now, [(forged, ELSEWHERE, 0)])
    assert pair.to_a.endpoint == A_ADDR
    pair.b.handle_datagrams(pair.now, [(good, ELSEWHERE, 0)])
    assert pair.to_a.endpoint == ELSEWHERE
    (event,) = pair.b.drain_events()
    assert isinstance(event, EndpointRoamed)
    pair.b.handle_datagrams(pair.now, [(good, A_ADDR, 0)])
    assert pair.to_a.endpoint == ELSEWHERE, "a replay must not move the endpoint"
    assert drops(pair.b) == {"authentication": 1, "replayed": 1}


def test_what_a_peer_sends_to_an_address_that_is_kept_is_dropped() -> None:
    pair = established()
    name_server = bytes((100, 100, 100, 100))
    pair.a.allowed_ips.insert(name_server, 32, pair.to_b)
    pair.b.keep(name_server)
    assert pair.a.handle_packets(pair.now, [ipv4(A_IP, name_server), ipv4(A_IP, B_IP)]) == []
    pair.deliver()
    assert pair.b.drain_packets() == [ipv4(A_IP, B_IP)]
    assert drops(pair.b) == {"inner-destination": 1}
    pair.b.keep(b"")
    assert pair.a.handle_packets(pair.now, [ipv4(A_IP, name_server)]) == []
    pair.deliver()
    assert pair.b.drain_packets() == [ipv4(A_IP, name_server)]


def test_source_is_checked_after_roaming_and_before_delivery() -> None:
    pair = established()
    pair.a.allowed_ips.insert(bytes(4), 0, pair.to_b)
    assert pair.a.handle_packets(pair.now, [ipv4(bytes((10, 9, 9, 9)), B_IP)]) == []
    (datagram,) = pair.collect()
    pair.b.handle_datagrams(pair.now, [(datagram, ELSEWHERE, 0)])
    assert pair.b.drain_packets() == []
    assert drops(pair.b) == {"inner-source": 1}
    assert pair.to_a.endpoint == ELSEWHERE


@pytest.mark.parametrize(
    "inner",
    [
        b"\x45" + bytes(10),
        b"\x45\0\0\x13" + bytes(16),  # total length below a header
        b"\x45\0\xff\xff" + bytes(16),  # longer than what came
        b"\x60\0\0\0\0\x40" + bytes(34),  # longer than what came
        b"\x60" + bytes(20),
        b"\x70" + bytes(60),
        b"\x00" * 40,
    ],
)
def test_inner_packets_that_lie_are_dropped(inner: bytes) -> None:
    pair = established()
    pair.to_b.send(pair.now, [inner])
    pair.deliver()
    assert pair.b.drain_packets() == []
    assert drops(pair.b) == {"inner-malformed": 1}


def test_padding_to_sixteen_never_past_the_mtu_and_trimmed_again() -> None:
    pair = established()
    for size in (20, 21, 36, 1408, 1409, 1419, 1420):
        packet = ipv4(A_IP, B_IP, b"p" * (size - 20))
        pair.a.handle_packets(pair.now, [packet])
        (datagram,) = pair.collect()
        assert len(datagram) == 32 + min(1420, (size + 15) // 16 * 16)
        pair.deliver()
        assert pair.b.drain_packets() == [packet]


def test_allowed_ips_choose_the_peer_and_nobody_else_gets_the_packet() -> None:
    pair = established()
    stray = ipv4(A_IP, bytes((10, 0, 0, 3)))
    (unsent,) = pair.a.handle_packets(pair.now, [stray])
    assert (unsent.reason, unsent.peer, unsent.packet) == (DropReason.NO_PEER, None, stray)
    assert pair.a.drain_transmits() == []
    pair.a.refuse(unsent)
    (answer,) = pair.a.drain_packets()
    assert answer[9] == 1 and answer[20:22] == bytes((3, 1)) and answer[28:] == stray
    assert drops(pair.a) == {"no-peer": 1}


def test_peer_without_endpoint_and_things_that_are_not_ip() -> None:
    pair = Pair(a_knows_endpoint=False)
    unsent = pair.a.handle_packets(pair.now, [ipv6(A_IP6, B_IP6), b"", b"\x45", b"\x90" * 60])
    assert sorted(u.reason.value for u in unsent) == ["no-endpoint", "not-ip", "not-ip", "not-ip"]
    for item in unsent:
        pair.a.refuse(item)
    (answer,) = pair.a.drain_packets()
    assert answer[6] == 58 and answer[40:42] == bytes((1, 3))


def test_ecn_goes_through_the_tunnel() -> None:
    pair = established()
    pair.a.handle_packets(pair.now, [ipv4(A_IP, B_IP, tos=0x02), ipv4(A_IP, B_IP, tos=0x01), ipv6(A_IP6, B_IP6)])
    transmits = pair.a.drain_transmits()
    assert [(t.ecn, len(t.datagrams)) for t in transmits] == [(2, 1), (1, 1), (0, 1)]
    pair.b.handle_datagrams(pair.now, [(transmits[0].datagrams[0], A_ADDR, 3), (transmits[2].datagrams[0], A_ADDR, 3)])
    (packet,) = pair.b.drain_packets()
    assert packet == ipv4(A_IP, B_IP, tos=0x03), "CE outside marks an ECT packet, and the header checksum follows"
    assert drops(pair.b) == {"inner-ecn": 1}


def test_staged_packets_are_bounded_and_the_oldest_goes() -> None:
    pair = Pair(staged_packets=4)
    sent = [pair.a_sends(b"%d" % i) for i in range(6)]
    pair.deliver()
    assert pair.b.drain_packets() == sent[2:]
    assert drops(pair.a) == {"staged-full": 2}


def test_removed_peer_is_cut_off_at_once() -> None:
    pair = established()
    pair.a_sends()
    pair.collect()
    pair.b.remove_peer(pair.now, pair.a.public_key)
    pair.deliver()
    assert pair.b.drain_packets() == []
    assert drops(pair.b) == {"unknown-index": 1}
    assert list(pair.b.allowed_ips.of_peer(pair.to_a)) == []
    pair.b.remove_peer(pair.now, pair.a.public_key)


def test_new_private_key_renews_sessions_and_takes_old_data_in() -> None:
    pair = established()
    pair.a_sends()
    pair.collect()
    pair.b.set_private_key(pair.now, b"\x07" * 32)
    pair.deliver()
    assert len(pair.b.drain_packets()) == 1, "what was under way still comes in"
    pair.b_sends()
    assert kinds(pair.collect()) == [INITIATION]
    pair.deliver()
    assert drops(pair.a) == {"unknown-peer": 1}


def test_misuse_is_our_own_error() -> None:
    dev = device(5, peers=1)
    with pytest.raises(LocalProtocolError, match="own"):
        dev.add_peer(0.0, dev.public_key)
    with pytest.raises(LocalProtocolError, match="32 bytes"):
        dev.add_peer(0.0, b"short")
    dev.add_peer(0.0, b"\x01" * 32)
    with pytest.raises(LimitReached, match=r"limits\.peers"):
        dev.add_peer(0.0, b"\x02" * 32)
    dev.remove_all_peers(0.0)
    assert dev.peers == {}


def test_without_a_private_key_the_device_is_silent() -> None:
    pair = Pair()
    pair.b.set_private_key(pair.now, None)
    pair.a_sends()
    pair.deliver()
    assert drops(pair.b) == {"no-private-key": 1}


def test_low_order_peer_key_never_gets_a_handshake() -> None:
    dev = device(5)
    peer = dev.add_peer(0.0, bytes(32))
    peer.set_endpoint(A_ADDR)
    assert peer.begin_handshake(0.0) is False
    assert dev.drain_transmits() == []


def test_sticky_source_is_kept_and_let_go() -> None:
    pair = established()
    sticky = Endpoint(A_ADDR.addr, (bytes((198, 51, 100, 2)), 3))
    pair.a_sends()
    (datagram,) = pair.collect()
    pair.b.drain_events()
    pair.b.handle_datagrams(pair.now, [(datagram, sticky, 0)])
    pair.wire.clear()
    assert pair.b.drain_events() == [], "the same remote by another way is not roaming"
    pair.b_sends()
    (transmit,) = pair.b.drain_transmits()
    assert transmit.endpoint.local == sticky.local
    pair.b.transmit_failed(pair.now, transmit.endpoint)
    pair.b_sends()
    (transmit,) = pair.b.drain_transmits()
    assert transmit.endpoint == Endpoint(A_ADDR.addr)


def test_counters_are_whole_datagrams() -> None:
    pair = established()
    assert pair.to_b.tx_bytes == pair.to_a.rx_bytes == 148 + 32 + 32
    assert pair.to_b.rx_bytes == pair.to_a.tx_bytes == 92


def test_counter_at_its_end_is_refused_and_never_wraps() -> None:
    pair = established()
    keypair = pair.to_b.keypairs.current
    assert keypair is not None
    keypair.send_counter = (1 << 64) - (1 << 13) - 1
    pair.a_sends()
    assert pair.collect() == [], "the handshake was a moment ago; the packet waits"
    pair.advance(0.1)
    last = TRANSPORT_HEADER.pack(TRANSPORT, keypair.remote_index, (1 << 64) - 1) + bytes(32)
    pair.b.handle_datagrams(pair.now, [(last, A_ADDR, 0)])
    assert drops(pair.b) == {"key-expired": 1}
