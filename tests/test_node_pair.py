"""Two real nodes, a small signed hub, and wires cranked by hand."""

from __future__ import annotations

import json

import pytest

from edgeagent.proto import topics
from edgeagent.proto.control_client import Answer
from edgeagent.proto.limits import Limits
from edgeagent.proto.node_events import CacheDirty, PeerGone, PeerUp, Removed, Resolved
from edgeagent.proto.refusals import ControlDrop
from tests.control_kit import NETWORK
from tests.node_kit import World, icmp_errors, ipv6, send


@pytest.fixture
def world() -> World:
    return World()


def test_the_first_packet_finds_its_peer(world: World) -> None:
    a, b = world.add(1, "a"), world.add(2, "b")
    world.run(2)  # feeds are published
    packet = send(world, a, b)
    assert b.received == [packet]
    assert len(a.asks) == 1
    reply = send(world, b, a)
    assert a.received == [reply]
    assert b.asks == []  # one lookup told both sides
    sixth = ipv6(a.v6, b.v6)
    a.node.handle_packets(world.now, [sixth])
    world.crank()
    assert b.received[-1] == sixth
    assert len(a.asks) == 1
    assert [event.name for event in a.events if isinstance(event, PeerUp)] == ["b"]
    assert [event.name for event in b.events if isinstance(event, PeerUp)] == ["a"]
    assert topics.feed(NETWORK, b.id) in (a.session or {})
    assert topics.feed(NETWORK, a.id) in (b.session or {})


def test_packets_wait_for_the_feed(world: World) -> None:
    a, b = world.add(1, "a"), world.add(2, "b", online=False)
    packet = send(world, a, b)
    assert b.received == []
    world.run(3)
    world.connect(b)
    world.run(2)
    assert b.received == [packet]


def test_one_question_however_many_packets(world: World) -> None:
    a, b = world.add(1, "a", limits=Limits(unresolved_packets=4)), world.add(2, "b")
    world.run(2)
    world.hub_answers = False
    packets = [send(world, a, b, bytes([n])) for n in range(10)]
    assert len(a.asks) == 1
    assert a.node.client.drops[ControlDrop.UNRESOLVED_FULL] == 6
    world.hub_answers = True
    world.run(9)  # asked again
    assert len(a.asks) > 1
    assert b.received == packets[6:]


def test_unknown_is_unreachable_and_remembered(world: World) -> None:
    a = world.add(1, "a")
    world.run(2)
    nobody = bytes((100, 64, 9, 9))
    send(world, a, nobody)
    assert len(icmp_errors(a)) == 1
    assert icmp_errors(a)[0][20:22] == bytes((3, 1))
    send(world, a, nobody)
    assert len(icmp_errors(a)) == 2
    assert len(a.asks) == 1
    assert a.node.client.drops[ControlDrop.UNREACHABLE] == 2
    world.run(31)
    send(world, a, nobody)
    assert len(a.asks) == 2


def test_another_policy_is_a_reason_to_ask_again(world: World) -> None:
    a = world.add(1, "a")
    world.run(2)
    nobody = bytes((100, 64, 9, 9))
    send(world, a, nobody)
    world.say_map(a)
    world.run(1)
    send(world, a, nobody)
    assert len(a.asks) == 1, "a map that says the same of it is none"
    a.policy = {"v": 2, "u": "", "in": [], "out": [[["*"], [[0, 0, 65535]]]]}
    world.say_map(a)
    world.run(1)
    send(world, a, nobody)
    assert len(a.asks) == 2


def test_a_silent_hub_is_unreachable_after_a_while(world: World) -> None:
    a, b = world.add(1, "a"), world.add(2, "b")
    world.run(2)
    world.hub_answers = False
    send(world, a, b)
    assert icmp_errors(a) == []
    world.run(11)
    assert len(icmp_errors(a)) == 1
    assert a.node.client.drops[ControlDrop.UNRESOLVED_EXPIRED] == 1
    world.run(60)
    assert len(a.asks) == 3  # attempts are counted
    assert a.node.client.lookup(world.now, ("a", b.v4)) is Answer.PENDING  # and then anew


def test_offline_is_unreachable_at_once(world: World) -> None:
    a, b = world.add(1, "a", online=False), world.add(2, "b")
    send(world, a, b)
    world.run(1.5)
    assert len(icmp_errors(a)) == 1
    world.run(10)
    world.connect(a)
    world.run(2)
    packet = send(world, a, b)
    assert b.received == [packet]


def test_the_hub_says_it_is_down(world: World) -> None:
    a, b = world.add(1, "a"), world.add(2, "b")
    world.run(2)
    world.say_hub_state(up=False)
    assert a.node.status(world.now)["hub"]["hub_up"] is False  # type: ignore[index]
    send(world, a, b)
    assert a.asks == []
    world.run(1.5)
    assert len(icmp_errors(a)) == 1
    world.say_hub_state(up=True)
    assert len(a.asks) == 1


def test_multicast_is_nobodys(world: World) -> None:
    a = world.add(1, "a")
    for destination in (bytes((224, 0, 0, 251)), bytes((255, 255, 255, 255))):
        send(world, a, destination)
    a.node.handle_packets(world.now, [ipv6(a.v6, bytes.fromhex("ff02" + "00" * 13 + "02")), b"", b"junk" * 9])
    world.crank()
    assert a.asks == []
    assert a.received == []


def test_lookup_by_name(world: World) -> None:
    a, b = world.add(1, "a"), world.add(2, "b")
    assert a.node.lookup(world.now, ("h", "b")) is Answer.PENDING
    world.crank()
    resolved = [event for event in a.events if isinstance(event, Resolved)]
    assert [(event.query, event.record and event.record.device) for event in resolved] == [(("h", "b"), b.id)]
    record = a.node.lookup(world.now, ("h", "b"))
    assert not isinstance(record, Answer)
    assert record.addresses == [b.v4, b.v6]
    assert a.node.lookup(world.now, ("h", "nobody")) is Answer.PENDING
    world.crank()
    assert a.node.lookup(world.now, ("h", "nobody")) is Answer.NO


def test_removal_is_at_once_and_for_ever(world: World) -> None:
    a, b = world.add(1, "a"), world.add(2, "b")
    world.run(2)
    old_record = world.record(b)
    send(world, a, b)
    world.known.discard(b.id)
    world.say(a, "rec", {"gone": world.gone(b)})
    assert a.node.peering.links == {}
    assert len(a.node.client.records) == 0
    assert [event.reason for event in a.events if isinstance(event, PeerGone)] == ["removed"]
    assert any(isinstance(event, CacheDirty) and event.urgent for event in a.events)
    assert topics.feed(NETWORK, b.id) not in (a.session or {})
    world.say(a, "rec", {"rec": old_record, "fk": b.feed_key, "fg": 1})
    assert a.node.client.drops[ControlDrop.TOMBSTONED] == 1
    assert len(a.node.client.records) == 0
    before = len(a.received)
    send(world, b, a)
    assert len(a.received) == before  # b still has its session, a has none
    send(world, a, b)
    assert len(icmp_errors(a)) == 1
    # a tombstone survives a restart
    a.saved = a.node.snapshot(world.now)
    world.start(a)
    world.connect(a)
    world.say(a, "rec", {"rec": old_record, "fk": b.feed_key, "fg": 1})
    assert a.node.client.drops[ControlDrop.TOMBSTONED] == 1
    # and a newer record counts again
    world.say_rec(a, b)
    assert len(a.node.client.records) == 1


def test_our_own_removal(world: World) -> None:
    a, b = world.add(1, "a"), world.add(2, "b")
    world.run(2)
    send(world, a, b)
    world.say(a, "rec", {"gone": world.gone(a)})
    assert any(isinstance(event, Removed) for event in a.events)
    assert a.node.removed
    assert a.node.device.peers == {}
    send(world, a, b)
    assert len(b.received) == 1
    assert len(icmp_errors(a)) == 1
    world.run(5)
    send(world, b, a)
    world.run(20)
    assert a.node.device.peers == {}


def test_a_stranger_is_asked_for(world: World) -> None:
    a, b = world.add(1, "a"), world.add(2, "b")
    world.run(2)
    send(world, a, b)
    world.run(1000)  # b has let go of a
    assert b.node.peering.links == {}
    b.node.client.records.remove(a.id)
    packet = send(world, a, b)
    assert b.received[-1] == packet
    assert [ask.get("k") for ask in b.asks] == [a.identity.node_key]


def test_a_stranger_that_the_hub_does_not_know(world: World) -> None:
    a, b = world.add(1, "a"), world.add(2, "b")
    world.run(2)
    send(world, a, b)
    world.run(1000)
    b.node.client.records.remove(a.id)
    world.known.discard(a.id)
    send(world, a, b)
    assert len(b.received) == 1
    assert b.node.peering.links == {}
    assert b.node.client.drops[ControlDrop.STRANGER_REFUSED] == 1
    world.run(6)  # the initiation comes again
    assert len(b.asks) == 1
    assert b.node.client.drops[ControlDrop.STRANGER_REFUSED] == 2


def test_least_recently_used_peers_give_way(world: World) -> None:
    a = world.add(1, "a", limits=Limits(peers=2))
    others = [world.add(2 + n, f"b{n}") for n in range(3)]
    world.run(2)
    for other in others[:2]:
        send(world, a, other)
        world.run(1)
    send(world, a, others[0])
    world.run(1)
    packet = send(world, a, others[2])
    assert others[2].received == [packet]
    assert sorted(a.node.peering.links) == sorted([others[0].id, others[2].id])
    assert [event.name for event in a.events if isinstance(event, PeerGone)] == ["b1"]
    packet = send(world, a, others[1])  # it is known, and comes back without a question
    assert others[1].received[-1] == packet
    assert len(a.asks) == 3


def test_records_and_feeds_are_bounded(world: World) -> None:
    a = world.add(1, "a", limits=Limits(peers=4, records=3, feeds=2, tombstones=2, negatives=2, asks=2))
    others = [world.add(10 + n, f"b{n}") for n in range(6)]
    world.run(2)
    for other in others:
        packet = send(world, a, other)
        assert other.received == [packet]
        world.run(1)
    assert len(a.node.client.records) == 3
    assert len(a.node.client.feeds) <= 2
    assert sum("/p" in topic for topic in a.session or {}) <= 2
    assert len(a.node.peering.links) <= 3
    for other in others:
        world.say(a, "rec", {"gone": world.gone(other)})
    assert len(a.node.client.records.tombstones) == 2
    for n in range(6):
        send(world, a, bytes((100, 64, 9, n + 1)))
    assert a.node.client.questions.negatives == 2


def test_idle_peers_are_let_go(world: World) -> None:
    a, b = world.add(1, "a"), world.add(2, "b")
    world.run(2)
    send(world, a, b)
    world.run(14 * 60)
    assert len(a.node.peering.links) == 1
    world.run(3 * 60)
    assert a.node.peering.links == {}
    assert [event.reason for event in a.events if isinstance(event, PeerGone)] == ["idle"]
    assert topics.feed(NETWORK, b.id) not in (a.session or {})
    wire = len(world.wire)
    world.run(3600)
    assert len(world.wire) == wire  # nothing idle says anything


def test_routes_behind_a_peer(world: World) -> None:
    a, b = world.add(1, "a"), world.add(2, "b")
    b.routes = [[bytes((192, 168, 7, 0)), 24]]
    world.say_map(b)
    world.run(2)
    behind = bytes((192, 168, 7, 9))
    packet = send(world, a, behind)
    assert b.received == [packet]
    send(world, a, bytes((198, 168, 7, 9)))
    assert len(icmp_errors(a)) == 1


def test_status_is_json(world: World) -> None:
    a, b = world.add(1, "a"), world.add(2, "b")
    world.run(2)
    send(world, a, b)
    send(world, a, bytes((100, 64, 9, 9)))
    status = json.loads(json.dumps(a.node.status(world.now)))
    assert status["self"]["addresses"][0] == "100.64.0.1"
    assert status["hub"]["connected"] is True
    assert status["tables"]["records"] == {"used": 1, "ceiling": 256, "gave_way": 0}
    assert status["drops"]["unreachable"] == 1
    (row,) = json.loads(json.dumps(a.node.peers(world.now)))
    assert (row["name"], row["path"], row["endpoint"]) == ("b", "direct", "192.0.2.2:51820")
