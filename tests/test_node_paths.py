"""Roaming, candidates, feeds and their keys, restarts: two nodes stay together without the hub."""

from __future__ import annotations

import pytest

from edgeagent.proto import topics
from edgeagent.proto.messages import INITIATION
from edgeagent.proto.node_events import PeerGone
from edgeagent.proto.paths import candidates
from edgeagent.proto.records import UdpAddress
from edgeagent.proto.refusals import ControlDrop
from tests.control_kit import NETWORK
from tests.node_kit import Board, World, send


@pytest.fixture
def world() -> World:
    return World()


def joined(world: World) -> tuple[Board, Board]:
    a, b = world.add(1, "a"), world.add(2, "b")
    world.run(2)
    send(world, a, b)
    send(world, b, a)
    return a, b


def initiations(world: World) -> int:
    return sum(datagram[0] == INITIATION for datagram in world.wire)


def move(world: World, board: Board, *endpoints: UdpAddress) -> None:
    board.endpoints = board.listens = list(endpoints)
    board.node.handle_addresses(world.now, board.endpoints)
    world.crank()


def test_a_peer_that_moves_is_followed_by_its_packets(world: World) -> None:
    a, b = joined(world)
    move(world, b, (bytes((198, 51, 100, 2)), 4000))
    packet = send(world, a, b)
    assert b.received[-1] == packet
    assert str(a.node.peering.links[b.id].peer.endpoint) == "198.51.100.2:4000"
    assert initiations(world) == 1


def test_a_peer_that_moves_while_nobody_talks_is_found_by_its_feed(world: World) -> None:
    a, b = joined(world)
    world.run(400)  # keys are too old
    move(world, b, (bytes((198, 51, 100, 2)), 4000))
    world.run(2)
    packet = send(world, a, b)
    assert b.received[-1] == packet
    assert len(a.asks) == 1


def test_both_move_with_the_hub_down(world: World) -> None:
    a, b = joined(world)
    world.hub_answers = False
    move(world, a, (bytes((198, 51, 100, 1)), 4000))
    move(world, b, (bytes((198, 51, 100, 2)), 4000))
    world.run(2)
    packet = send(world, a, b)
    world.run(30)
    assert packet in b.received
    assert len(a.asks) == 1


def test_initiations_go_to_every_candidate_and_the_answer_decides(world: World) -> None:
    a, b = world.add(1, "a"), world.add(2, "b")
    works = (bytes((203, 0, 113, 9)), 5000)
    dead: list[UdpAddress] = [(bytes((10, 0, 0, n)), 5000) for n in range(1, 8)]
    b.endpoints = [*dead[:2], works, *dead[2:]]
    b.listens = [works]
    b.node.handle_addresses(world.now, b.endpoints)
    world.run(2)
    packet = send(world, a, b)
    assert b.received == [packet]
    assert str(a.node.peering.links[b.id].peer.endpoint) == "203.0.113.9:5000"
    assert initiations(world) == 4
    world.run(125)
    send(world, a, b)  # the key is renewed on the path that works, and only there
    assert initiations(world) == 5


def test_a_lost_path_is_searched_among_candidates(world: World) -> None:
    a, b = world.add(1, "a"), world.add(2, "b")
    first, second = (bytes((203, 0, 113, 9)), 5000), (bytes((203, 0, 113, 10)), 5000)
    b.endpoints = b.listens = [first, second]
    b.node.handle_addresses(world.now, b.endpoints)
    world.run(2)
    send(world, a, b)
    assert str(a.node.peering.links[b.id].peer.endpoint).startswith("203.0.113.9")
    b.listens = [second]
    packet = send(world, a, b)
    assert packet not in b.received[1:]
    world.run(25)  # 15 s of silence, one initiation to the old place, one to all
    packet = send(world, a, b, b"again")
    assert b.received[-1] == packet
    assert str(a.node.peering.links[b.id].peer.endpoint).startswith("203.0.113.10")


def test_a_peer_that_starts_again_is_met_at_once(world: World) -> None:
    a, b = joined(world)
    b.saved = b.node.snapshot(world.now)
    world.start(b)
    world.connect(b)
    world.run(2)  # its feed says another boot id
    packet = send(world, a, b)
    assert b.received[-1] == packet


def test_after_a_start_the_retained_feed_counts_though_its_stamp_is_saved(world: World) -> None:
    a, b = joined(world)
    stamp = a.node.client.records.get(b.id).feed_stamp  # type: ignore[union-attr]
    a.saved = a.node.snapshot(world.now)
    world.start(a)
    world.connect(a)
    send(world, a, b)
    world.run(2)
    entry = a.node.client.records.get(b.id)
    assert entry is not None and entry.feed_stamp == stamp  # b has said nothing new
    assert entry.disco_key == b.node.finder.public_key
    assert a.node.finder.current(b.id) is not None


def test_cold_start_without_a_hub(world: World) -> None:
    a, b = joined(world)
    for board in (a, b):
        board.saved = board.node.snapshot(world.now)
    world.hub_answers = False
    world.now += 3 * 7 * 86_400
    for board in (a, b):
        world.start(board)
    packet = send(world, a, b)
    assert b.received[-1] == packet
    reply = send(world, b, a)
    assert a.received[-1] == reply


def test_a_silent_peer_is_let_go_and_found_again(world: World) -> None:
    a, b = joined(world)
    world.lose = lambda sender, datagram, to: True
    world.run(400)
    send(world, a, b)
    world.run(100)
    assert a.node.peering.links == {}
    assert [event.reason for event in a.events if isinstance(event, PeerGone)] == ["silent"]
    world.lose = lambda sender, datagram, to: False
    packet = send(world, a, b)
    assert b.received[-1] == packet


def test_a_new_feed_key(world: World) -> None:
    a, b = joined(world)
    b.feed_key, b.feed_generation = bytes([9]) * 32, 2
    world.say_map(b)
    world.run(2)  # b publishes under the new key; a cannot read it and asks
    assert a.node.client.drops[ControlDrop.FEED_KEY] == 1
    assert a.asks[-1]["have"] == [[b.id, *a.node.client.records.get(b.id).record.stamp, 1]]  # type: ignore[union-attr]
    world.say_rec(a, b)
    world.crank()
    move(world, b, (bytes((198, 51, 100, 2)), 4000))
    world.run(2)
    entry = a.node.client.records.get(b.id)
    assert entry is not None and entry.endpoints == [(bytes((198, 51, 100, 2)), 4000)]
    assert a.node.client.drops[ControlDrop.FEED_KEY] == 1


def test_the_new_feed_key_may_come_before_the_feed_or_after(world: World) -> None:
    a, b = joined(world)
    b.feed_key, b.feed_generation = bytes([9]) * 32, 2
    world.say_rec(a, b)  # before: the retained feed is under the old key
    world.crank()
    assert a.node.client.drops[ControlDrop.FEED_KEY] == 1
    b.endpoints = b.listens = [(bytes((198, 51, 100, 2)), 4000)]
    b.node.handle_addresses(world.now, b.endpoints)
    world.say_map(b)
    world.run(2)
    entry = a.node.client.records.get(b.id)
    assert entry is not None and entry.endpoints == b.endpoints


def test_feeds_nobody_asked_for_are_unsubscribed(world: World) -> None:
    a, b = joined(world)
    a.saved = None
    world.start(a)  # it lost its cache; the broker kept the session
    world.connect(a)
    move(world, b, (bytes((198, 51, 100, 2)), 4000))
    world.run(2)
    assert a.node.client.drops[ControlDrop.UNKNOWN_FEED] == 1
    assert topics.feed(NETWORK, b.id) not in (a.session or {})


def test_the_feed_is_published_when_it_says_something_new(world: World) -> None:
    a = world.add(1, "a")
    topic = topics.feed(NETWORK, a.id)

    def published() -> int:
        return sum(publish.topic == topic for publish in a.publishes)

    world.run(2)
    assert published() == 1
    a.node.handle_addresses(world.now, a.endpoints)
    world.run(5)
    assert published() == 1
    for n in range(5):  # a burst is one publication
        a.node.handle_addresses(world.now, [(bytes((198, 51, 100, n + 1)), 1)])
    world.run(2)
    assert published() == 2
    world.run(700)  # so long ago that it has certainly arrived
    world.disconnect(a)
    world.connect(a)  # the broker kept the session, so it keeps the feed
    world.run(2)
    assert published() == 2
    world.disconnect(a)
    a.session = None
    world.connect(a)
    world.run(2)
    assert published() == 3


def test_candidates() -> None:
    device_map = World().add(1, "a").node.map
    own = [(bytes((192, 168, 1, 5)), 1), (bytes((198, 51, 100, 5)), 1)]
    last, near, far = (bytes((203, 0, 113, 1)), 9), (bytes((192, 168, 1, 77)), 9), (bytes((203, 0, 113, 2)), 9)
    v6 = (bytes.fromhex("2001") + bytes(13) + b"\x01", 9)
    mesh = [(bytes((100, 64, 3, 3)), 9), (bytes.fromhex("fd00") + bytes(13) + b"\x01", 9)]
    never = [
        (bytes((127, 0, 0, 1)), 9),
        (bytes((0, 0, 0, 0)), 9),
        (bytes((224, 0, 0, 1)), 9),
        (bytes((255, 255, 255, 255)), 9),
        (bytes(15) + b"\x01", 9),
        (bytes.fromhex("fe80") + bytes(13) + b"\x01", 9),
        (bytes.fromhex("ff02") + bytes(13) + b"\x01", 9),
    ]
    assert candidates([v6, far, *mesh, *never, near, last], last, own, device_map) == [last, near, far, v6]
    assert candidates([far] * 9, None, [], device_map) == [far] * 4
    assert candidates([], mesh[0], own, device_map) == []
