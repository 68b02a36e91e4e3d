"""Nodes whose sessions a kernel makes, among others that make their own: who is met, where, and for how long."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edgeagent.proto.node_events import PeerGone, PeerUp, Removed
from tests.control_kit import WALL_S
from tests.engine.kernel.twin import Driven, drive, park
from tests.node_kit import Board, World, ipv6, send


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    park(made)


def two(world: World, *, both: bool = False) -> tuple[Board, Board, Driven]:
    a, b = world.add(1, "a"), world.add(2, "b")
    driven = drive(world, a)
    if both:
        drive(world, b)
    world.run(2)
    return a, b, driven


def names(board: Board, kind: type[PeerUp] | type[PeerGone]) -> list[str]:
    return [event.name for event in board.events if isinstance(event, kind)]


@pytest.mark.parametrize("both", [False, True])
def test_the_first_packet_finds_its_peer(world: World, both: bool) -> None:
    a, b, driven = two(world, both=both)
    packet = send(world, a, b)
    world.run(0.2)
    assert b.received == [packet]
    assert driven.port.routes[b.v4] == driven.port.routes[b.v6] == b.identity.node_key
    assert len(a.asks) == 1
    reply = send(world, b, a)
    world.run(0.2)
    assert a.received == [reply]
    sixth = ipv6(a.v6, b.v6)
    a.node.handle_packets(world.now, [sixth])
    world.crank()
    assert b.received[-1] == sixth
    world.run(2)
    assert names(a, PeerUp) == ["b"] and names(b, PeerUp) == ["a"]


@pytest.mark.parametrize("both", [False, True])
def test_a_stranger_is_asked_about_and_let_in(world: World, both: bool) -> None:
    """The hub's word comes late, so the kernel has thrown the first initiation away."""
    a, b, driven = two(world, both=both)
    world.known.discard(b.id)
    packet = send(world, b, a)
    world.known.add(b.id)
    world.run(8)
    assert a.received == [packet]
    assert b.identity.node_key in driven.port.device.peers
    assert names(a, PeerUp) == ["b"]
    answer = send(world, a, b)
    world.run(0.5)
    assert b.received == [answer]


def test_keys_are_renewed_and_silence_ends(world: World) -> None:
    a, b, driven = two(world)
    send(world, a, b)
    world.run(1)
    link = next(iter(driven.inner.peering))
    first = link.peer.last_handshake_at
    for _ in range(26):
        world.run(5)
        send(world, a, b)
        send(world, b, a)
    assert len(b.received) == len(a.received) + 1 == 27
    last = link.peer.last_handshake_at
    assert first is not None and last is not None and last > first + 100
    world.lose = lambda sender, datagram, to: True
    for _ in range(40):
        world.run(8)
        if names(a, PeerGone):
            break
        send(world, a, b)
    assert names(a, PeerGone) == ["b"]
    assert driven.port.device.peers == {} and driven.port.routes == {}
    world.lose = lambda sender, datagram, to: False
    world.run(5)
    packet = send(world, a, b)
    world.run(10)
    assert b.received[-1] == packet


def test_who_moves_is_followed(world: World) -> None:
    a, b, driven = two(world)
    send(world, a, b)
    world.run(1)
    b.endpoints = b.listens = [(bytes((198, 51, 100, 9)), 4000)]
    b.node.handle_addresses(world.now, b.endpoints)
    world.crank()
    world.run(3)
    packet = send(world, a, b)
    world.run(1)
    assert b.received[-1] == packet
    (peer,) = driven.port.device.peers.values()
    assert str(peer.endpoint) == "198.51.100.9:4000"
    assert str(next(iter(driven.inner.peering)).peer.endpoint) == "198.51.100.9:4000"


def test_who_started_again_is_met_again(world: World) -> None:
    a, b, _ = two(world)
    send(world, a, b)
    world.run(1)
    b.saved = b.node.snapshot(world.now)
    world.start(b)  # with no sessions
    b.session = None
    world.connect(b)
    world.run(3)
    packet = send(world, a, b)
    world.run(3)
    assert b.received[-1] == packet


@pytest.mark.parametrize("ours", [False, True])
def test_another_node_key_takes_the_addresses_over(world: World, ours: bool) -> None:
    """Packets each second all the while, and none is lost for longer than a look at the kernel takes."""
    a, b, driven = two(world)
    renewing, other = (a, b) if ours else (b, a)
    renewing.settings = {"node_key_life_s": 3000, "node_key_grace_s": 60}
    renewing.node_keys[0][1] = int(WALL_S + world.now) + 3000
    world.say_map(renewing)
    send(world, a, b)
    first, lost = renewing.identity.node_key, 0
    for number in range(2_100):
        world.run(1)
        packet = send(world, renewing, other, number.to_bytes(4, "big"))
        send(world, other, renewing)
        lost += packet not in other.received[-3:]
    assert renewing.identity.node_key != first
    assert lost <= 3
    if ours:
        assert driven.port.device.public_key == renewing.identity.node_key
    else:
        assert list(driven.port.device.peers) == [renewing.identity.node_key]
        assert driven.port.routes[b.v4] == renewing.identity.node_key
    packet = send(world, other, renewing)
    assert renewing.received[-1] == packet


def test_who_is_removed_is_gone_at_once(world: World) -> None:
    a, b, driven = two(world)
    send(world, a, b)
    world.run(1)
    world.say(a, "rec", {"gone": world.gone(b)})
    assert driven.port.device.peers == {} and driven.port.routes == {}
    world.say(a, "rec", {"gone": world.gone(a)})
    assert any(isinstance(event, Removed) for event in a.events)


def test_a_policy_is_the_filters(world: World) -> None:
    a, b, driven = two(world)
    b.tags = ["tag:web"]
    a.policy = {"v": 2, "u": "", "in": [[["tag:web"], ["me"], [[6, 80, 80]]]], "out": [[["*"], [[0, 0, 65535]]]]}
    world.say_map(a)
    send(world, a, b)
    world.run(1)
    web = {("in4", b.v4 + a.v4), ("in6", b.v6 + a.v6)}
    assert web <= driven.port.elements.keys() and "\n    drop\n" in driven.port.filter
    b.tags = []
    world.say_rec(a, b)
    world.run(0.1)
    assert not web & driven.port.elements.keys() and ("out4", b.v4) in driven.port.elements
