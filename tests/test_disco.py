"""Disco frames: form, sealing, and everything that a stranger, an old recording or a bad peer may send."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeagent.proto import disco, stun
from edgeagent.proto.disco import (
    CORRESPONDENTS_MAX,
    ENDPOINTS_MAX,
    FRAME_BYTES_MAX,
    PING_BYTES,
    CallMe,
    DiscoDrop,
    DiscoKeys,
    Kind,
    Ping,
    Pong,
    classify,
)
from edgeagent.proto.endpoint import Endpoint
from edgeagent.proto.path import State
from edgeagent.proto.pathtable import CALL_BURST, PING_BURST
from edgeagent.proto.prober import PATHS_MAX, PROBE_LIFE_S
from edgeagent.proto.records import UdpAddress
from tests.control_kit import CRYPTO, NETWORK, entropy_of
from tests.node_kit import Board, World, send

ADDRESSES = st.tuples(
    st.one_of(st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16)), st.integers(1, 65_535)
)
ELSEWHERE = Endpoint(("198.51.100.66", 666))
TRANSACTION = bytes(range(12))


@pytest.fixture
def world() -> World:
    return World()


def joined(world: World) -> tuple[Board, Board]:
    a, b = world.add(1, "a"), world.add(2, "b")
    world.run(2)
    send(world, a, b)
    send(world, b, a)
    world.run(2)
    return a, b


def drops(board: Board) -> dict[str, int]:
    return {reason.value: count for reason, count in board.node.finder.drops.items() if count}


def sealed(writer: Board, reader: Board, message: bytes) -> bytes:
    finder = writer.node.finder
    return finder.keys.seal(finder.peers[reader.id].them, message)


def give(world: World, board: Board, frame: bytes, source: Endpoint = ELSEWHERE) -> list[bytes]:
    """What the board sends in answer."""
    board.node.handle_datagrams(world.now, [(frame, source, 0)])
    transmits = board.node.drain_transmits()
    return [datagram for transmit in transmits for datagram in transmit.datagrams if transmit.endpoint == source]


# Form


@given(
    st.binary(min_size=12, max_size=12),
    st.binary(min_size=32, max_size=32),
    st.integers(0, 2_000),
    st.floats(-1e9, 1e9),
)
def test_pings(transaction: bytes, key: bytes, size: int, cost_ms: float) -> None:
    message = disco.read(disco.write_ping(transaction, key, size, cost_ms))
    assert isinstance(message, Ping)
    assert (message.transaction, message.node_key) == (transaction, key)
    assert message.cost_ms == max(0, min(int(cost_ms), disco.COST_MAX_MS))


@pytest.mark.parametrize("size", range(40, 50))
def test_pings_of_earlier_versions_say_nothing_of_cost(size: int) -> None:
    whole = disco.write_ping(TRANSACTION, bytes(range(32)), cost_ms=258)
    message = disco.read(whole[:size])
    if size < 45:
        assert message is None
    else:
        assert isinstance(message, Ping) and message.cost_ms == (258 if size >= 47 else 0)


@given(st.binary(min_size=12, max_size=12), st.none() | ADDRESSES, st.integers(0, 2_000))
def test_pongs(transaction: bytes, observed: UdpAddress | None, size: int) -> None:
    message = disco.read(disco.write_pong(transaction, observed, size))
    assert isinstance(message, Pong)
    assert (message.transaction, message.observed) == (transaction, observed)


@given(st.lists(ADDRESSES, max_size=40))
def test_calls(endpoints: list[UdpAddress]) -> None:
    message = disco.read(disco.write_call_me(endpoints))
    assert isinstance(message, CallMe)
    assert message.endpoints == endpoints[:ENDPOINTS_MAX]


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(plain: bytes) -> None:
    message = disco.read(plain)
    if isinstance(message, CallMe):
        assert len(message.endpoints) <= ENDPOINTS_MAX
        assert disco.write_call_me(message.endpoints) == plain


@pytest.mark.parametrize("count", [17, 255])
def test_a_call_with_too_many_endpoints_is_no_call(count: int) -> None:
    assert disco.read(bytes((disco.CALL_ME, count)) + b"\x04\x01\x02\x03\x04\x00\x01" * count) is None
    # 10,000 endpoints need a count that the field does not have
    assert disco.read(bytes((disco.CALL_ME, 16)) + b"\x04\x01\x02\x03\x04\x00\x01" * 10_000) is None


def test_what_shares_the_port_is_told_apart() -> None:
    keys = DiscoKeys(CRYPTO, entropy_of(1))
    reader = keys.meet(DiscoKeys(CRYPTO, entropy_of(2)).public)
    assert reader is not None
    frame = keys.seal(reader, disco.write_ping(TRANSACTION, bytes(32)))
    assert len(frame) == PING_BYTES
    assert classify(frame) is Kind.DISCO
    for kind in (1, 2, 3, 4):
        assert classify(bytes((kind, 0, 0, 0)) + bytes(28)) is Kind.WIREGUARD
    assert classify(stun.write_request(TRANSACTION)) is Kind.STUN
    assert classify(bytes((0xE5,)) + bytes(40)) is Kind.RELAY
    for other in (b"", b"\x01", b"\x05\0\0\0", b"\0\0\0\0", b"\xd1\x5c\x0e\x02" + bytes(80), b"GET / HTTP/1.1"):
        assert classify(other) is Kind.UNKNOWN


@given(st.binary(max_size=80))
def test_every_datagram_is_one_thing(datagram: bytes) -> None:
    assert classify(datagram) in Kind


def test_a_key_that_shares_nothing_is_refused() -> None:
    keys = DiscoKeys(CRYPTO, entropy_of(1))
    assert keys.meet(bytes(32)) is None
    assert keys.meet(keys.public) is None


# What comes from outside


def test_a_stranger_gets_no_answer(world: World) -> None:
    a, b = joined(world)
    stranger = DiscoKeys(CRYPTO, entropy_of(9))
    reader = stranger.meet(b.node.finder.public_key)
    assert reader is not None
    ping = disco.write_ping(TRANSACTION, a.identity.node_key)
    assert give(world, b, stranger.seal(reader, ping)) == []
    assert drops(b) == {"disco-unknown-sender": 1}
    forged = sealed(a, b, ping)
    assert give(world, b, forged[:-1] + bytes((forged[-1] ^ 1,))) == []
    assert give(world, b, forged[:40]) == []
    assert give(world, b, forged + bytes(FRAME_BYTES_MAX)) == []
    assert give(world, b, b"\x16\x03\x01nothing of ours") == []
    assert drops(b) == {
        "disco-unknown-sender": 1,
        "disco-sealed-wrong": 1,
        "disco-malformed": 2,
        "disco-not-ours": 1,
    }


def test_the_answer_is_as_long_as_the_question_and_comes_once(world: World) -> None:
    a, b = joined(world)
    for size in (PING_BYTES, 800, 1_312):
        frame = sealed(a, b, disco.write_ping(TRANSACTION, a.identity.node_key, size))
        answers = [answer for answer in give(world, b, frame) if len(answer) == size]
        assert len(answers) >= 1
        assert sum(map(len, give(world, b, frame))) == 0  # a recording
    assert b.node.finder.drops[DiscoDrop.REPLAYED] == 3


def test_a_recording_is_one_also_when_the_sender_was_forgotten_meanwhile(world: World) -> None:
    a, b = joined(world)
    finder, entry = b.node.finder, b.node.client.records.get(a.id)
    assert entry is not None
    frame = sealed(a, b, disco.write_ping(TRANSACTION, a.identity.node_key))
    assert len(give(world, b, frame)) >= 1
    finder.forget(a.id)
    assert give(world, b, frame) == []
    finder.know(world.now, entry)
    assert give(world, b, frame) == []
    assert drops(b) == {"disco-unknown-sender": 1, "disco-replayed": 1}
    assert len(give(world, b, sealed(a, b, disco.write_ping(TRANSACTION, a.identity.node_key)))) >= 1


def test_so_many_are_remembered_and_those_that_are_heard_stay() -> None:
    keys = DiscoKeys(CRYPTO, entropy_of(1))
    others = [DiscoKeys(CRYPTO, entropy_of(100 + number)) for number in range(CORRESPONDENTS_MAX + 1)]
    met = [keys.meet(other.public) for other in others[:-1]]
    us, first = others[0].meet(keys.public), met[0]
    assert us is not None and first is not None
    assert isinstance(keys.open(first, others[0].seal(us, disco.write_call_me([]))), CallMe)
    assert keys.meet(others[-1].public) is not None
    assert keys.meet(others[0].public) is first
    assert keys.meet(others[1].public) is not met[1], "it was the one that was silent the longest"
    assert len(keys._met) == CORRESPONDENTS_MAX


def test_a_ping_must_name_its_senders_node_key(world: World) -> None:
    a, b = joined(world)
    assert give(world, b, sealed(a, b, disco.write_ping(TRANSACTION, bytes(32)))) == []
    assert drops(b) == {"disco-node-key": 1}


def test_forged_pongs(world: World) -> None:
    a, b = joined(world)
    paths = a.node.finder.peers[b.id]
    path = paths.current
    assert path is not None and path.state is State.PROVEN
    give(world, a, sealed(b, a, disco.write_pong(TRANSACTION, None, PING_BYTES)), path.endpoint)
    assert drops(a) == {"disco-transaction": 1}
    paths.prober.ping(world.now, path.endpoint, PING_BYTES)
    (transaction,) = paths.prober._probes  # what an eavesdropper inside the peer would know
    pong = disco.write_pong(transaction, None, PING_BYTES)
    give(world, a, sealed(b, a, pong), ELSEWHERE)
    assert drops(a) == {"disco-transaction": 1, "disco-pong-source": 1}
    longer = disco.write_pong(transaction, None, PING_BYTES + 1)
    give(world, a, sealed(b, a, longer), path.endpoint)
    assert drops(a) == {"disco-transaction": 2, "disco-pong-source": 1}
    world.now += PROBE_LIFE_S + 1
    give(world, a, sealed(b, a, pong), path.endpoint)
    assert drops(a) == {"disco-transaction": 3, "disco-pong-source": 1}


def test_a_flood_of_calls_is_bounded(world: World) -> None:
    a, b = joined(world)
    for round_number in range(625):  # 10,000 endpoints
        endpoints = [(bytes((203, 1, round_number % 256, n)), 1_000 + round_number) for n in range(ENDPOINTS_MAX)]
        b.node.handle_datagrams(world.now, [(sealed(a, b, disco.write_call_me(endpoints)), ELSEWHERE, 0)])
    prober = b.node.finder.peers[a.id].prober
    assert len(prober.direct) == PATHS_MAX
    assert b.node.finder.drops[DiscoDrop.FLOOD] == 625 - CALL_BURST
    assert b.node.finder.drops[DiscoDrop.PATHS_FULL] > 0
    b.node.handle_timeout(world.now)
    sent = sum(len(transmit.datagrams) for transmit in b.node.drain_transmits())
    assert sent <= 2 * PATHS_MAX
    assert b.node.finder.peers[a.id].current is not None, "the path in use was not pushed out"


def test_a_flood_of_pings_is_bounded(world: World) -> None:
    a, b = joined(world)
    answered = 0
    for _ in range(1_000):
        frame = sealed(a, b, disco.write_ping(TRANSACTION, a.identity.node_key))
        answered += bool(give(world, b, frame, Endpoint(("192.0.2.1", 51820))))
    assert answered <= PING_BURST
    assert b.node.finder.drops[DiscoDrop.FLOOD] >= 1_000 - PING_BURST


def test_endpoints_that_are_nobodys_are_not_probed(world: World) -> None:
    a, b = joined(world)
    b.node.drain_transmits()
    bad: list[UdpAddress] = [
        (bytes((127, 0, 0, 1)), 53),
        (bytes((10, 0, 0, 1)), 53),
        (bytes((192, 168, 0, 1)), 53),
        (bytes((172, 16, 9, 9)), 53),
        (bytes((169, 254, 1, 1)), 53),
        (bytes((224, 0, 0, 251)), 5353),
        (bytes((255, 255, 255, 255)), 9),
        (bytes((0, 0, 0, 0)), 9),
        (b.v4, 51820),
        (b.v6, 51820),
        (bytes(15) + b"\x01", 53),
        (bytes.fromhex("fe80") + bytes(13) + b"\x01", 53),
        (bytes.fromhex("fc00") + bytes(13) + b"\x01", 53),
        (bytes.fromhex("ff02") + bytes(13) + b"\x01", 53),
    ]
    before = len(b.node.finder.peers[a.id].prober.direct)
    b.node.handle_datagrams(world.now, [(sealed(a, b, disco.write_call_me(bad)), ELSEWHERE, 0)])
    assert b.node.finder.drops[DiscoDrop.CANDIDATE] >= len(bad)
    assert len(b.node.finder.peers[a.id].prober.direct) == before


def test_the_signal_inbox(world: World) -> None:
    a, b = joined(world)
    entry = a.node.client.records.get(b.id)
    assert entry is not None and entry.inbox == b.node.whereabouts.inbox.capability
    topic = f"em1/{NETWORK}/{b.id}/s/{entry.inbox}"
    assert topic in (b.session or {})
    call = sealed(a, b, disco.write_call_me([(bytes((203, 0, 113, 200)), 4_000)]))
    b.node.handle_message(world.now, topic, call)
    assert any(path.endpoint.addr[0] == "203.0.113.200" for path in b.node.finder.peers[a.id].prober)
    b.node.handle_message(world.now, topic, sealed(a, b, disco.write_ping(TRANSACTION, a.identity.node_key)))
    assert drops(b) == {"disco-by-signal": 1}
    b.node.handle_message(world.now, topic[:-4] + "abcd", call)
    assert drops(b) == {"disco-by-signal": 1, "disco-stale-inbox": 1}
    b.node.handle_message(world.now, topic, b"")
    assert b.node.finder.drops[DiscoDrop.MALFORMED] == 1


def test_the_inbox_changes_when_somebody_who_knew_it_was_removed(world: World) -> None:
    _, b = joined(world)
    before = b.node.whereabouts.inbox.capability
    b.feed_key, b.feed_generation = bytes([9]) * 32, 2
    world.say_map(b)
    world.run(2)
    assert b.node.whereabouts.inbox.capability != before
    assert sum("/s/" in topic for topic in b.session or {}) == 2


@given(st.binary(max_size=120), st.booleans())
def test_any_datagram_is_survived(tail: bytes, ours: bool) -> None:
    board = _BOARD
    frame = (disco.MAGIC if ours else b"") + tail
    board.node.handle_datagrams(1_000.0, [(frame, ELSEWHERE, 0)])
    assert all(transmit.endpoint != ELSEWHERE for transmit in board.node.drain_transmits())


_BOARD = World().add(1, "a")
