"""What the network may send that is not from a friend: floods, forgeries, noise. Silence, bounds and counted drops."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from edgeagent.proto.endpoint import Endpoint
from edgeagent.proto.messages import COOKIE_REPLY
from tests.wg_pair import A_ADDR, B_ADDR, CRYPTO, INITIATION, Pair, device, drops, established, kinds


def strangers_initiations(target: bytes, count: int) -> list[bytes]:
    """Well-formed initiations of keys that the target does not know."""
    made = []
    for seed in range(count):
        stranger = device(1000 + seed)
        peer = stranger.add_peer(0.0, target)
        peer.set_endpoint(B_ADDR)
        peer.begin_handshake(0.0)
        (transmit,) = stranger.drain_transmits()
        made += transmit.datagrams
    return made


@settings(max_examples=200)
@given(st.lists(st.binary(max_size=200), max_size=20))
def test_noise_is_dropped_in_silence(datagrams: list[bytes]) -> None:
    pair = established()
    pair.b.handle_datagrams(pair.now, [(datagram, A_ADDR, 0) for datagram in datagrams])
    assert pair.b.drain_transmits() == []
    assert pair.b.drain_packets() == []
    assert sum(pair.b.drops.values()) == len(datagrams)


@settings(max_examples=150)
@given(kind=st.integers(0, 255), size=st.sampled_from([0, 4, 31, 32, 64, 92, 148, 149]), seed=st.integers(0, 1 << 32))
def test_messages_of_the_right_shape_are_dropped_in_silence(kind: int, size: int, seed: int) -> None:
    pair = established()
    datagram = (bytes((kind, 0, 0, 0)) + random.Random(seed).randbytes(size))[:size]
    pair.b.handle_datagrams(pair.now, [(datagram, A_ADDR, 0)])
    assert pair.b.drain_transmits() == []
    assert sum(pair.b.drops.values()) == 1


@settings(max_examples=150)
@given(st.data())
def test_one_flipped_bit_anywhere_is_noticed(data: st.DataObject) -> None:
    pair = Pair()
    pair.a_sends()
    stage = data.draw(st.sampled_from(["initiation", "response", "transport"]))
    pair.collect()
    if stage != "initiation":
        pair.b.handle_datagrams(pair.now, [(pair.wire.pop()[1], A_ADDR, 0)])
        pair.collect()
    if stage == "transport":
        pair.a.handle_datagrams(pair.now, [(pair.wire.pop()[1], B_ADDR, 0)])
        pair.collect()
    receiver, good = pair.wire.pop()
    # mac2 is not part of what is authenticated while there is no load
    size = len(good) - (16 if stage != "transport" else 0)
    bit = data.draw(st.integers(0, size * 8 - 1))
    bad = bytearray(good)
    bad[bit // 8] ^= 1 << bit % 8
    receiver.drain_events()
    receiver.handle_datagrams(pair.now, [(bytes(bad), Endpoint(("203.0.113.9", 1)), 0)])
    assert receiver.drain_packets() == []
    assert receiver.drain_transmits() == []
    assert receiver.drain_events() == []
    assert sum(receiver.drops.values()) == 1
    receiver.handle_datagrams(pair.now, [(good, A_ADDR if receiver is pair.b else B_ADDR, 0)])
    pair.deliver()
    assert len(pair.b.drain_packets()) == 1, "a forgery must not end a handshake or a session"


def test_handshake_flood_is_answered_with_cookies_and_an_honest_peer_gets_through() -> None:
    pair = Pair(handshake_queue=64, handshakes_per_call=16)
    flood = strangers_initiations(pair.b.public_key, 40)
    source = Endpoint(("203.0.113.66", 4444))
    pair.b.handle_datagrams(pair.now, [(datagram, source, 0) for datagram in flood])
    while pair.b.poll_timeout() == 0.0:
        pair.b.handle_timeout(pair.now)
    replies = [d for t in pair.b.drain_transmits() for d in t.datagrams]
    assert set(kinds(replies)) == {COOKIE_REPLY}
    assert sum(map(len, replies)) < sum(map(len, flood)), "no amplification"
    assert drops(pair.b)["cookie-demanded"] == len(replies) == 40

    pair.a_sends()
    pair.deliver()
    assert pair.b.drain_packets() == [], "the first initiation only earns a cookie"
    pair.b.handle_datagrams(pair.now + 5.1, [(datagram, source, 0) for datagram in flood])
    pair.b.drain_transmits()
    pair.advance(5.4)
    assert len(pair.b.drain_packets()) == 1, "the second one carries it as mac2"


def test_cookie_holder_is_held_to_a_rate_under_load() -> None:
    pair = Pair(handshake_queue=64, handshakes_per_call=64)
    flood = strangers_initiations(pair.b.public_key, 10)
    pair.b.handle_datagrams(pair.now, [(datagram, B_ADDR, 0) for datagram in flood])
    pair.b.drain_transmits()
    pair.a_sends()
    pair.deliver()  # earns the cookie
    for _ in range(30):
        pair.now += 0.021
        pair.b.handle_datagrams(pair.now, [(datagram, B_ADDR, 0) for datagram in flood])
        pair.b.drain_transmits()
        pair.to_b.begin_handshake(pair.now, again=True)
        pair.deliver()
    assert drops(pair.b)["handshake-rate"] > 5


def test_handshake_queue_is_bounded() -> None:
    pair = Pair(handshake_queue=16, handshakes_per_call=1)
    flood = strangers_initiations(pair.b.public_key, 1) * 50
    pair.b.handle_datagrams(pair.now, [(datagram, A_ADDR, 0) for datagram in flood])
    assert drops(pair.b)["handshake-queue-full"] == 50 - 16
    assert pair.b.poll_timeout() == 0.0, "the rest wants another call soon"
    assert pair.b.responder.queue.peak == 16


def test_a_full_handshake_queue_lets_the_oldest_go() -> None:
    pair = Pair(handshake_queue=16, handshakes_per_call=16)
    flood = strangers_initiations(pair.b.public_key, 1) * 15
    pair.a_sends()
    (own,) = [datagram for transmit in pair.a.drain_transmits() for datagram in transmit.datagrams]
    batch = [(datagram, A_ADDR, 0) for datagram in (*flood, *flood, own)]
    pair.b.handle_datagrams(pair.now, batch)
    replies = [d for t in pair.b.drain_transmits() for d in t.datagrams]
    assert drops(pair.b)["handshake-queue-full"] == 15
    assert own[4:8] in [reply[4:8] for reply in replies], "who came last is answered"


def test_cookie_of_another_source_does_not_count() -> None:
    pair = Pair(handshake_queue=16)
    flood = strangers_initiations(pair.b.public_key, 3)
    pair.b.handle_datagrams(pair.now, [(datagram, A_ADDR, 0) for datagram in flood])
    pair.b.drain_transmits()
    pair.a_sends()
    pair.deliver()
    pair.now += 0.5
    pair.b.handle_datagrams(pair.now, [(datagram, A_ADDR, 0) for datagram in flood])
    pair.b.drain_transmits()
    pair.to_b.begin_handshake(pair.now, anew=True)
    (initiation,) = [d for d in pair.collect() if d[0] == INITIATION]
    assert any(initiation[-16:]), "it carries a mac2"
    pair.wire.clear()
    pair.b.handle_datagrams(pair.now, [(initiation, Endpoint(("203.0.113.7", 51820)), 0)])
    (transmit,) = pair.b.drain_transmits()
    assert kinds(transmit.datagrams) == [COOKIE_REPLY]


def test_forged_cookie_reply_is_dropped() -> None:
    pair = Pair()
    pair.a_sends()
    (initiation,) = pair.collect()
    index = initiation[4:8]
    forged = bytes((3, 0, 0, 0)) + index + bytes(56)
    pair.a.handle_datagrams(pair.now, [(forged, B_ADDR, 0), (forged[:4] + bytes(60), B_ADDR, 0)])
    assert drops(pair.a) == {"cookie-reply-invalid": 1, "cookie-reply-unexpected": 1}
    pair.deliver()
    assert len(pair.b.drain_packets()) == 1


def test_events_nobody_drains_are_bounded() -> None:
    pair = Pair(events=8, handshake_queue=1000, handshakes_per_call=1000)
    for datagram in strangers_initiations(pair.b.public_key, 20):
        pair.now += 2
        pair.b.handle_datagrams(pair.now, [(datagram, A_ADDR, 0)])
    assert len(pair.b.drain_events()) == 8


def test_wire_shows_nothing_secret() -> None:
    pair = Pair()
    packet = pair.a_sends(b"a very secret payload")
    seen = b"".join(pair.collect())
    while pair.wire:
        receiver, datagram = pair.wire.pop(0)
        receiver.handle_datagrams(pair.now, [(datagram, A_ADDR if receiver is pair.b else B_ADDR, 0)])
        seen += b"".join(pair.collect())
    assert packet[20:] not in seen
    assert pair.a.public_key not in seen, "identity hiding: the static key is sealed"
    assert CRYPTO.x25519_base(pair.a.private_key or b"") == pair.a.public_key
