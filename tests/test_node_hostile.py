"""What goes wrong on the wire, by accident or on purpose: it is counted, and nothing changes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeagent.proto import topics
from edgeagent.proto.codec import decode
from edgeagent.proto.limits import Limits
from edgeagent.proto.refusals import ControlDrop
from edgeagent.proto.seal import seal_box
from tests.control_kit import CRYPTO, NETWORK, OTHER, entropy_of
from tests.node_kit import Board, World, opened, send


@pytest.fixture
def world() -> World:
    return World()


def fingerprint(board: Board, world: World) -> Any:
    client = board.node.client
    return (
        client.map.stamp,
        client.hub_up,
        [(entry.record.stamp, entry.feed_key, entry.feed_stamp, entry.endpoints) for entry in client.records],
        len(client.records.tombstones),
        client.questions.negatives,
        board.node.peering.links.keys(),
        client.guard.export(),
        board.node.wall.at(world.now),
    )


def hostile(world: World) -> tuple[Board, Board]:
    a, b = world.add(1, "a"), world.add(2, "b")
    world.run(2)
    send(world, a, b)
    world.say_hub_state(up=True)
    world.say_map(a)
    return a, b


HOSTILE_WORLD = World()
HOSTILE = hostile(HOSTILE_WORLD)


def refused(world: World, board: Board, topic: str, payload: bytes) -> ControlDrop:
    """Deliver; exactly one drop must be counted and nothing else may change. Returns why."""
    before, state = dict(board.node.client.drops), fingerprint(board, world)
    board.node.handle_message(world.now, topic, payload)
    assert fingerprint(board, world) == state
    counted = [(reason, count - before[reason]) for reason, count in board.node.client.drops.items()]
    ((reason, times),) = [(reason, times) for reason, times in counted if times]
    assert times == 1
    return reason


COMMAND = {"id": bytes(8), "v": "rekey", "x": 1 << 40, "by": "cli:root", "a": {}}


def samples(world: World, a: Board, b: Board) -> list[tuple[str, bytes]]:
    """Messages that would count if they came now."""
    rec = {"rec": world.record(b), "fk": b.feed_key, "fg": 1}
    return [
        (topics.down(NETWORK, a.id, "rec"), world.down(a, "rec", rec)),
        (topics.down(NETWORK, a.id, "rec"), world.down(a, "rec", {"gone": world.gone(b)})),
        (topics.down(NETWORK, a.id, "time"), world.down(a, "time", {"e": 10_000})),
        (topics.down(NETWORK, a.id, "cmd"), world.down(a, "cmd", COMMAND)),
        (topics.hub_state(NETWORK), world.retained[topics.hub_state(NETWORK)]),
        (topics.feed(NETWORK, b.id), world.retained[topics.feed(NETWORK, b.id)]),
        (topics.down(NETWORK, a.id, "map"), world.retained[topics.down(NETWORK, a.id, "map")]),
    ]


SAMPLES = samples(HOSTILE_WORLD, *HOSTILE)


@given(st.sampled_from(SAMPLES), st.data())
def test_mutated_messages_change_nothing(sample: tuple[str, bytes], data: st.DataObject) -> None:
    a, _ = HOSTILE
    topic, payload = sample
    mutated = bytearray(payload)
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(mutated)))
        kind = data.draw(st.sampled_from(["flip", "cut", "insert"]))
        if kind == "flip" and position < len(mutated):
            mutated[position] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "cut":
            del mutated[position:]
        else:
            mutated[position:position] = data.draw(st.binary(min_size=1, max_size=5))
    if mutated and bytes(mutated) != payload:
        refused(HOSTILE_WORLD, a, topic, bytes(mutated))


@given(st.sampled_from([topic for topic, _ in SAMPLES]) | st.text(max_size=60), st.binary(min_size=1, max_size=200))
def test_random_messages_change_nothing(topic: str, payload: bytes) -> None:
    refused(HOSTILE_WORLD, HOSTILE[0], topic, payload)


def test_each_reason(world: World) -> None:
    a, b = hostile(world)
    stranger = Board(77, "c")
    rec, down = topics.down(NETWORK, a.id, "rec"), world.down
    body = {"rec": world.record(b), "fk": b.feed_key, "fg": 1}
    good = down(a, "rec", body)
    old_map = world.map_object(a)

    def says(topic: str, payload: bytes) -> ControlDrop:
        return refused(world, a, topic, payload)

    assert says(rec, bytes(65_537)) is ControlDrop.TOO_LONG
    assert says(topics.down(NETWORK, a.id, "time"), good) is ControlDrop.BAD_BOX
    assert says(topics.down(NETWORK, b.id, "rec"), good) is ControlDrop.UNKNOWN_TOPIC
    assert says(topics.down("a" * 16, a.id, "rec"), good) is ControlDrop.UNKNOWN_TOPIC
    assert says(topics.down(NETWORK, a.id, "cmd"), good) is ControlDrop.BAD_BOX
    assert says(topics.down(NETWORK, a.id, "log"), good) is ControlDrop.UNKNOWN_TOPIC
    assert says(rec, down(a, "rec", body, device=b.id)) is ControlDrop.WRONG_SUBJECT
    assert says(rec, down(a, "rec", body, network="a" * 16)) is ControlDrop.WRONG_NETWORK
    assert says(topics.feed(NETWORK, stranger.id), b"x") is ControlDrop.UNKNOWN_FEED
    inner: list[tuple[dict[str, Any], ControlDrop]] = [
        ({"rec": world.record(b, network="a" * 16)}, ControlDrop.WRONG_NETWORK),
        ({"rec": world.record(b, not_after=5)}, ControlDrop.EXPIRED),
        ({"rec": world.record(b, not_before=1 << 40, not_after=1 << 41)}, ControlDrop.NOT_YET),
        ({"rec": world.record(b, body={"dk": OTHER.device_key})}, ControlDrop.WRONG_SUBJECT),
        ({"rec": world.record(a)}, ControlDrop.WRONG_SUBJECT),
        ({"rec": b"\x82\x40\x40"}, ControlDrop.BAD_FIELD),
        ({"rec": b"\x81" * 20}, ControlDrop.NOT_CBOR),
        ({"rec": b"\x82\x5b\x00\x00\x00\x01\x00\x00\x00\x00"}, ControlDrop.NOT_CBOR),
        ({"rec": world.gone(b)}, ControlDrop.BAD_SIGNATURE),
    ]
    for change, reason in inner:
        assert says(rec, down(a, "rec", {**body, **change})) is reason
    assert says(rec, down(a, "rec", {"gone": world.record(b)})) is ControlDrop.BAD_SIGNATURE
    a.node.handle_message(world.now, rec, good)
    assert a.node.client.drops[ControlDrop.REPLAYED] == 0
    assert says(rec, good) is ControlDrop.REPLAYED
    world.say_map(a)
    map_topic = topics.down(NETWORK, a.id, "map")
    sealed = seal_box(CRYPTO, entropy_of(1), a.identity.box_key, map_topic, old_map)
    assert says(map_topic, sealed) is ControlDrop.REPLAYED


def test_a_retained_message_that_was_taken_back_says_nothing(world: World) -> None:
    a, _ = hostile(world)
    before, state = dict(a.node.client.drops), fingerprint(a, world)
    for topic, _payload in samples(world, *world.boards.values()):
        a.node.handle_message(world.now, topic, b"")
    assert (dict(a.node.client.drops), fingerprint(a, world)) == (before, state)


@pytest.mark.parametrize("numbered", [False, True])
def test_an_answer_to_another_question_is_refused(world: World, numbered: bool) -> None:
    a, b = hostile(world)
    world.hub_answers = False
    send(world, a, bytes((100, 64, 9, 9)))
    body: dict[str, Any] = {"rec": world.record(b), "fk": b.feed_key, "fg": 1}
    if numbered:
        body["id"] = a.asks[-1]["id"]
    world.say(a, "rec", body)
    assert a.node.client.drops[ControlDrop.BAD_FIELD] == numbered
    assert a.node.client.questions.pending(("a", bytes((100, 64, 9, 9))))


def test_nobody_may_have_anothers_node_key(world: World) -> None:
    a, b = hostile(world)
    c = Board(3, "c")
    for key in (a.identity.node_key, b.identity.node_key):
        c.node_keys = [[OTHER.node_key, 0], [key, 0]]
        world.say_rec(a, c)
        world.crank()
    assert a.node.client.drops[ControlDrop.BAD_FIELD] == 2
    assert [entry.record.name for entry in a.node.client.records] == ["b"]
    packet = send(world, a, b)
    assert b.received[-1] == packet


def test_routes_never_hide_the_network(world: World) -> None:
    a, b = hostile(world)
    c = world.add(3, "c")
    mesh = [[bytes((100, 64, 0, 0)), 10], [bytes((100, 64, 0, 3)), 32], [bytes(4), 0], [bytes(16), 0]]
    b.routes = [*mesh, [bytes((10, 0, 0, 0)), 8]]
    world.say_map(b)
    world.say_rec(a, b)
    packet = send(world, a, c)
    world.run(2)
    assert c.received == [packet]
    packet = send(world, a, bytes((10, 1, 2, 3)))
    assert b.received[-1] == packet


def test_prefixes_beyond_the_limit_are_counted(world: World) -> None:
    a, b = world.add(1, "a", limits=Limits(allowed_ips=4)), world.add(2, "b")
    b.routes = [[bytes((10, n, 0, 0)), 16] for n in range(9)]
    world.run(2)
    packet = send(world, a, b)
    assert b.received == [packet]
    assert a.node.client.drops[ControlDrop.TABLE_FULL] > 0


def test_an_older_record_is_refused_with_all_it_brings(world: World) -> None:
    a, b = hostile(world)
    older, newer = world.record(b), world.record(b)
    world.say(a, "rec", {"rec": newer, "fk": b.feed_key, "fg": 1})
    state = [(entry.record.stamp, entry.feed_key) for entry in a.node.client.records]
    world.say(a, "rec", {"rec": older, "fk": bytes(32), "fg": 9})
    assert [(entry.record.stamp, entry.feed_key) for entry in a.node.client.records] == state
    assert a.node.client.drops[ControlDrop.REPLAYED] == 1


def test_an_older_feed_is_refused(world: World) -> None:
    a, b = hostile(world)
    topic = topics.feed(NETWORK, b.id)
    old = world.retained[topic]
    b.node.handle_addresses(world.now, [(bytes((198, 51, 100, 2)), 4000)])
    world.run(2)
    assert refused(world, a, topic, old) is ControlDrop.REPLAYED


def test_publishes_are_what_the_hub_can_read(world: World) -> None:
    a, b = hostile(world)
    for publish in a.publishes:
        parts = topics.parse(publish.topic)
        assert parts is not None and parts.owner == a.id
        assert len(publish.payload) <= 8192
        if parts.way == "u":
            opened(a, parts.leaf, publish.payload)
        else:
            assert len(decode(publish.payload)) == 2
            assert publish.retain
    assert b.publishes


def test_records_are_refreshed_when_the_broker_lost_our_session(world: World) -> None:
    a, b = hostile(world)
    world.run(700)  # what the last connection said has certainly arrived
    world.disconnect(a)
    world.connect(a)
    assert not [ask for ask in a.asks if "have" in ask]
    world.disconnect(a)
    a.session = None
    world.connect(a)
    have = [ask["have"] for ask in a.asks if "have" in ask]
    assert [[row[0] for row in rows] for rows in have] == [[b.id]]
    assert topics.feed(NETWORK, b.id) in (a.session or {})
    assert topics.down_filter(NETWORK, a.id) in (a.session or {})
