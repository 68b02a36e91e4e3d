"""Members that lie, replay or are away: no other member, and nothing that is saved, is to suffer from it."""

from __future__ import annotations

import pytest

from edgeagent.proto import disco, topics
from edgeagent.proto.endpoint import Endpoint
from edgeagent.proto.messages import INITIATION
from edgeagent.proto.node_events import PeerGone
from edgeagent.proto.path import State
from tests.control_kit import CRYPTO, NETWORK, entropy_of
from tests.node_kit import Board, World, ipv4, send
from tests.sim import nat
from tests.sim.homes import Homes, path_of
from tests.sim.test_nat import talk
from tests.sim.traffic import udp_packet

ATTACKER = Endpoint(("203.0.113.66", 666))


@pytest.fixture
def world() -> World:
    return World()


def joined(world: World, number: int = 2) -> list[Board]:
    """All have spoken to the first one."""
    boards = [world.add(index + 1, "abc"[index]) for index in range(number)]
    world.run(2)
    for board in boards[1:]:
        send(world, boards[0], board)
        send(world, board, boards[0])
    world.run(2)
    return boards


def said(world: World, sender: Board, reader: Board, source: Endpoint) -> None:
    """`sender` sends a packet to `reader`, whose datagrams seem to come from `source`."""
    sender.node.handle_packets(world.now, [ipv4(sender.v4, reader.v4)])
    for transmit in sender.node.drain_transmits():
        for datagram in transmit.datagrams:
            reader.node.handle_datagrams(world.now, [(datagram, source, 0)])


def restarted(world: World, board: Board) -> None:
    board.saved = board.node.snapshot(world.now)
    board.node.handle_disconnected(world.now)
    world.start(board)


def test_source_port_0_costs_nothing_that_is_saved(world: World) -> None:
    a, b = joined(world)
    said(world, b, a, Endpoint(("192.0.2.2", 0)))
    assert a.node.client.records.get(b.id).last_endpoint == b.endpoints[0]  # type: ignore[union-attr]
    a.node.client.records.get(b.id).last_endpoint = (b.endpoints[0][0], 0)  # type: ignore[union-attr]
    epochs = a.node._epochs.reserved
    restarted(world, a)
    assert a.node._epochs.reserved == epochs > 0
    assert len(a.node.client.records) == 0, "what cannot be read is left out by itself"


@pytest.mark.parametrize("has_disco", [True, False])
def test_a_packet_through_the_tunnel_does_not_lead_the_tunnel_into_itself(world: World, has_disco: bool) -> None:
    a, m = joined(world)
    if not has_disco:
        m.node.client.own_feed.disco_key = None
        m.node.client.own_feed.changed(world.now, m.node.map)
        world.run(3)
    said(world, m, a, Endpoint((".".join(map(str, m.v4)), 51_820)))
    endpoint = a.node.peering.links[m.id].peer.endpoint
    assert endpoint is not None and not a.node.map.holds(endpoint.ip_bytes())


def test_a_packet_with_a_members_source_does_not_take_that_members_path_away(world: World) -> None:
    a, v, m = joined(world, 3)
    finder = a.node.finder
    path = finder.current(v.id)
    assert path is not None
    said(world, m, a, Endpoint(path.endpoint.addr))
    world.crank()
    for _ in range(10):
        world.run(1)
        send(world, m, a)
    assert [each.device for each in finder.owners(path.endpoint)] == [v.id]
    world.lose = lambda sender, datagram, to: to in v.listens or sender is v
    for _ in range(60):
        send(world, a, v)
        world.run(1)
    assert path.state is State.DEAD, "that it carries nothing is noticed"


@pytest.mark.parametrize("first", ["a", "v"])
def test_a_member_that_names_anothers_disco_key_takes_nothing_from_it(first: str) -> None:
    homes = Homes(1)
    a, v = (homes.add_device_at(homes.home(name, nat.SYMMETRIC)) for name in "av")
    m = homes.add_device_at(homes.home("m", nat.FULL))
    homes.wait_joined()
    homes.world.run_for(3.0)
    assert m.node is not None and v.node is not None and a.node is not None
    m.node.client.own_feed.disco_key = v.node.finder.public_key
    m.node.client.own_feed.publish(homes.world.now, m.node.map, m.node._outbox)
    m._settle()
    homes.world.run_for(3.0)
    homes.talk(m, a, every_s=1.0)
    homes.world.run_for(5.0)
    assert a.node.finder.peers[m.device_id].them.public == v.node.finder.public_key
    one, two = (a, v) if first == "a" else (v, a)
    sent = []
    for _ in range(30):
        sent.append(homes.traffic.send(one, two))
        homes.world.run_for(1.0)
    assert [homes.traffic.has_arrived(each) for each in sent[3:]] == [True] * 27
    path = path_of(a, v)
    assert path is not None and path.is_relay


def test_a_captured_initiation_is_worthless_also_when_its_peer_was_let_go(world: World) -> None:
    a, b = world.add(1, "a"), world.add(2, "b")
    world.run(2)
    send(world, b, a)
    send(world, a, b)
    captured = next(datagram for datagram in world.wire if datagram[0] == INITIATION)
    world.run(17 * 60)
    assert a.node.peering.links == {}
    b.listens = []
    world.disconnect(b)
    a.node.drain_transmits()
    a.node.handle_datagrams(world.now, [(captured, ATTACKER, 0)])
    answers = [each for each in a.node.drain_transmits() if each.endpoint.addr == ATTACKER.addr]
    assert answers == []


def test_a_node_key_that_only_the_record_tells_of_is_one_that_pings_may_name(world: World) -> None:
    a, b = joined(world)
    b.node.identity.make_next(entropy_of(77))
    key = b.node.identity.next_key
    b.node_keys.append([key, 0])
    world.say_rec(a, b)
    world.crank()
    world.disconnect(a)
    b.node._switch_key(world.now)
    b.node._settle(world.now)
    world.crank()
    for _ in range(90):
        send(world, b, a)
        send(world, a, b)
        world.run(1)
    path = b.node.finder.current(a.id)
    assert path is not None and path.state is State.PROVEN


@pytest.mark.parametrize("each_s", [1.0, 4.0, 30.0])
def test_who_is_away_is_given_up_also_under_steady_traffic(world: World, each_s: float) -> None:
    a, b = joined(world)
    world.run(200)
    world.lose = lambda sender, datagram, to: True
    world.disconnect(b)
    began = world.now
    while not any(isinstance(event, PeerGone) for event in a.events):
        send(world, a, b)
        world.run(each_s)
        assert world.now - began < 130.0


def test_of_two_keys_the_right_one_is_found_again(world: World) -> None:
    a, b = world.add(1, "a"), world.add(2, "b")
    world.run(2)
    b.node_keys.append([CRYPTO.x25519_base(bytes([9]) * 32), 0])
    send(world, a, b)
    send(world, b, a)
    world.run(202)
    world.lose = lambda sender, datagram, to: True
    send(world, a, b)
    world.run(120)
    world.lose = lambda sender, datagram, to: False
    before, began = len(b.received), world.now
    while len(b.received) == before:
        send(world, a, b)
        world.run(2)
        assert world.now - began < 300.0


def test_feeds_of_an_earlier_life_are_let_go_of(world: World) -> None:
    a, b = joined(world)
    world.disconnect(a)
    world.disconnect(b)
    world.run(1_000)
    restarted(world, a)
    world.connect(a)
    world.run(5)
    world.connect(b)
    world.run(5)
    b.endpoints = b.listens = [(bytes((192, 0, 2, 100)), 51_820)]
    b.node.handle_addresses(world.now, b.endpoints)
    world.run(5)
    assert b.id not in a.node.client.feeds and a.session is not None
    assert topics.feed(NETWORK, b.id) not in a.session


def test_who_calls_after_a_long_silence_is_remembered() -> None:
    """Packets have to come from both sides here, no relay forwards any, and the hub introduces nobody twice."""
    homes = Homes(1)
    homes.relay.forwards = False
    a, b = homes.pair(nat.PORT, nat.PORT)
    talk(homes, a, b, 20.0)
    homes.world.run_for(20 * 60.0)
    assert a.node is not None and a.node.peering.links == {}
    assert homes.first_answer(a, b) < 3.0


def test_a_peer_that_is_off_is_not_asked_without_end() -> None:
    homes = Homes(1)
    a, b = homes.pair(nat.SYMMETRIC, nat.SYMMETRIC)
    homes.first_answer(a, b)
    homes.world.run_for(20 * 60.0)
    assert b.node is not None and a.node is not None
    packet = udp_packet(a.inner_addresses[0], b.inner_addresses[0], b"anybody there?")  # type: ignore[index]
    b.node.farewell(b.now)
    b._settle()
    b.cut_power()
    homes.world.run_for(20 * 60.0)
    sent: list[bytes] = []
    transmit = a.node.device.drain_transmits

    def counted() -> list[object]:
        transmits = transmit()
        sent.extend(each.datagrams[0] for each in transmits if each.datagrams[0][0] == INITIATION)
        return transmits  # type: ignore[return-value]

    a.node.device.drain_transmits = counted  # type: ignore[method-assign, assignment]
    a.from_tun([packet])
    homes.world.run_for(300.0)
    assert 1 <= len(sent) < 30
    assert disco.MAGIC not in {datagram[:4] for datagram in sent}
