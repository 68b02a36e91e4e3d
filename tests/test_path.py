"""Paths: the table of states, what is tried in which order, when traffic moves, and when it comes back."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeagent.proto import disco
from edgeagent.proto.candidates import sort_candidates
from edgeagent.proto.endpoint import Endpoint, Transmit
from edgeagent.proto.errors import DropReason, LocalProtocolError
from edgeagent.proto.messages import TRANSPORT
from edgeagent.proto.node_events import PathChanged
from edgeagent.proto.path import LADDER_MTUS, TABLE, TRANSPORT_OVERHEAD, Input, Path, PathKind, State, print_table
from edgeagent.proto.prober import PATHS_MAX, PROBES_MAX, PUNCH_TTL
from edgeagent.proto.punch import EDM, EIM, SPRAY_PORTS, Budget, Spray, guess_next, mapping_behaviour
from edgeagent.proto.records import UdpAddress
from edgeagent.proto.relay_endpoint import RelayEndpoint
from tests.control_kit import entropy_of
from tests.node_kit import Board, World, send

HERE = bytes((198, 51, 100, 1))


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


def path_of(a: Board, b: Board) -> Path:
    path = a.node.finder.current(b.id)
    assert path is not None
    return path


# The table


@pytest.mark.parametrize(("state", "put"), list(product(State, Input)), ids=lambda each: each.value)
def test_every_input_in_every_state(state: State, put: Input) -> None:
    path = Path(Endpoint(("203.0.113.1", 1)), PathKind.IPV4)
    path.state = state
    if (state, put) in TABLE:
        assert path.take(put) is TABLE[state, put]
    else:
        with pytest.raises(LocalProtocolError, match=f"{put.value} in state {state.value}"):
            path.take(put)
        assert path.state is state


def test_only_a_full_answer_proves() -> None:
    into = {
        (state, put) for (state, put), after in TABLE.items() if after is State.PROVEN and state is not State.PROVEN
    }
    assert {put for _, put in into} == {Input.FULL_PONG}
    waiting = {state for state, put in TABLE if put is Input.PONG} - {State.PROVEN, State.DEAD}
    assert all((state, Input.GAVE_UP) in TABLE for state in waiting), "no row of probes is without an end"
    assert print_table().count("\n") == len(State)


# Choice


def test_hysteresis() -> None:
    paths = {kind: Path(Endpoint(("203.0.113.1", 1)), kind) for kind in PathKind}
    for path in paths.values():
        path.measured(50.0)
    v4, v6, lan, relay = (paths[kind] for kind in (PathKind.IPV4, PathKind.IPV6, PathKind.LAN, PathKind.RELAY))
    assert lan.is_better_than(v6) and lan.is_better_than(v4) and v4.is_better_than(relay)
    assert v6.score_ms < v4.score_ms  # preferred where both are new,
    assert not v6.is_better_than(v4)  # but no reason to move
    v6.latency_ms = 44.0
    assert v6.is_better_than(v4)
    v6.cost_ms = 20.0
    assert not v6.is_better_than(v4)
    assert not relay.is_better_than(v4)


def test_one_long_round_trip_is_soon_forgotten() -> None:
    path = Path(Endpoint(("203.0.113.1", 1)), PathKind.IPV4)
    path.measured(1_000.0)  # nobody knew the router's link-layer address yet
    path.measured(20.0)
    path.measured(20.0)
    assert path.latency_ms is not None and path.latency_ms < 100.0
    path.latency_ms = 20.0
    path.measured(100.0)
    assert path.latency_ms == 40.0


def test_candidates_nearest_first(world: World) -> None:
    device_map = world.add(1, "a").node.map
    own: list[UdpAddress] = [(bytes((192, 168, 1, 5)), 1), (bytes((203, 0, 113, 5)), 1), (bytes((10, 1, 1, 1)), 1)]
    v6 = (bytes.fromhex("2001") + bytes(13) + b"\x01", 9)
    far, lan, private = (bytes((198, 51, 100, 9)), 9), (bytes((192, 168, 1, 9)), 9), (bytes((10, 9, 9, 9)), 9)
    foreign = (bytes((172, 20, 1, 1)), 9)
    found, refused = sort_candidates([far, v6, foreign, private, own[0], lan, lan], own, device_map)
    assert found == [
        (lan, PathKind.LAN),
        (private, PathKind.PRIVATE),
        (v6, PathKind.IPV6),
        (far, PathKind.IPV4),
    ]
    assert refused == 2


def test_a_path_is_proven_in_both_directions_before_it_is_called_direct(world: World) -> None:
    a, b = joined(world)
    for one, other in ((a, b), (b, a)):
        path = path_of(one, other)
        assert path.state is State.PROVEN
        assert path.frame_bytes == one.node.device.mtu + TRANSPORT_OVERHEAD
        (event,) = [event for event in one.events if isinstance(event, PathChanged)]
        assert (event.device, event.name, event.kind) == (other.id, other.name, "lan")
        (row,) = one.node.peers(world.now)
        assert (row["path"], row["path_state"], row["path_mtu"]) == ("direct", "proven", one.node.device.mtu)


def test_long_packets_that_do_not_pass_are_found_out(world: World) -> None:
    world.lose = lambda sender, datagram, to: len(datagram) > 1_100
    a, b = joined(world)
    assert path_of(a, b).state is State.PROVEN
    assert path_of(a, b).frame_bytes == max(mtu - 28 for mtu in LADDER_MTUS if mtu - 28 <= 1_100)
    assert a.node.peers(world.now)[0]["path_mtu"] == 1_000 - 28 - TRANSPORT_OVERHEAD


def test_what_answers_only_short_probes_is_never_trusted(world: World) -> None:
    world.lose = lambda sender, datagram, to: len(datagram) > 400 and datagram[:4] == disco.MAGIC
    a, b = joined(world)
    world.run(10)
    finder = a.node.finder
    assert all(path.state is not State.PROVEN for path in finder.peers[b.id].prober)
    assert send(world, a, b, b"by the word of WireGuard") in b.received


def test_the_first_probe_dies_on_the_way(world: World) -> None:
    a, b = world.add(1, "a"), world.add(2, "b")
    far = (bytes((203, 0, 113, 9)), 5_000)
    b.endpoints = b.listens = [far]
    b.node.handle_addresses(world.now, [far])
    world.run(2)
    a.node.handle_packets(world.now, [])
    send(world, a, b)
    a.node.handle_timeout(world.now)
    punches = [transmit.ttl for transmit in a.node.drain_transmits() if transmit.datagrams[0][:4] == disco.MAGIC]
    assert punches == [PUNCH_TTL]


def test_a_peer_of_an_older_version_is_left_to_wireguard(world: World) -> None:
    a, b = world.add(1, "a"), world.add(2, "b")
    b.node.client.own_feed.disco_key = None
    b.node.client.own_feed.inbox = None
    world.run(2)
    packet = send(world, a, b)
    assert b.received == [packet]
    world.run(60)
    assert a.node.finder.peers == {}
    assert a.node.peers(world.now)[0]["path"] == "direct"
    b.endpoints = b.listens = [(HERE, 4_000)]
    b.node.handle_addresses(world.now, b.endpoints)
    world.run(2)
    assert send(world, a, b, b"there") == b.received[-1]


def test_a_path_is_looked_for_again_when_the_last_one_is_dead(world: World) -> None:
    a, b = joined(world)
    world.lose = lambda sender, datagram, to: datagram[:4] == disco.MAGIC
    for board in (a, b):
        board.node.handle_addresses(world.now, [*board.endpoints, (HERE, 4_000)])  # doubts every path
    for _ in range(60):
        send(world, a, b)
        world.run(0.5)
    assert a.node.finder.current(b.id) is None
    world.run(130)  # until no search is under way
    world.lose = lambda sender, datagram, to: False
    assert send(world, a, b, b"by the word of WireGuard") == b.received[-1]
    world.run(2)
    assert path_of(a, b).state is State.PROVEN


# Relays


def put_at_relay(world: World, board: Board, relay: str | None, take: Callable[[Transmit], None]) -> None:
    """Have `board` be at a relay that is not there: `take` gets what it sends to it."""
    relays = board.node.relays
    relays.home = relay

    def send_by_relay(now: float, endpoint: RelayEndpoint, datagrams: list[bytes], ecn: int) -> bool:
        take(Transmit(endpoint, datagrams, ecn))
        return True

    relays._step = lambda now: None  # type: ignore[method-assign]  # it would find that no map names the relay
    relays.send = send_by_relay  # type: ignore[method-assign]
    board.node.handle_timeout(world.now)


class Relayed:
    """Two boards with a home relay; `direct` says whether datagrams pass between them, `relayed` counts the others."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.direct = False
        self.relayed: list[bytes] = []
        self.passed: list[bytes] = []
        self.a, self.b = world.add(1, "a"), world.add(2, "b")
        world.crank_one = self.crank_one  # type: ignore[method-assign]
        self.waiting: dict[str, list[Transmit]] = {self.a.id: [], self.b.id: []}
        self.at("r1")
        world.run(2)

    def at(self, relay: str | None) -> None:
        """Both are at that relay."""
        for board in (self.a, self.b):
            put_at_relay(self.world, board, relay, self.waiting[board.id].append)
        self.world.crank()

    def crank_one(self, board: Board) -> bool:
        other = self.b if board is self.a else self.a
        transmits, moved = board.node.drain_transmits() + self.waiting[board.id], False
        self.waiting[board.id].clear()
        for transmit in transmits:
            moved = True
            if isinstance(transmit.endpoint, RelayEndpoint):
                self.relayed += transmit.datagrams
                source: Endpoint = RelayEndpoint("r1", board.identity.node_key)
            elif self.direct and transmit.ttl is None:
                self.passed += transmit.datagrams
                source = Endpoint(("192.0.2.1" if board is self.a else "192.0.2.2", 51820))
            else:
                continue
            for datagram in transmit.datagrams:
                other.node.handle_datagrams(self.world.now, [(datagram, source, 0)])
        return World.crank_one(self.world, board) or moved

    def data(self) -> tuple[int, int]:
        """Data packets by relay and past it, since the last call."""
        counts = tuple(
            sum(each[0] == TRANSPORT and len(each) > 32 for each in way) for way in (self.relayed, self.passed)
        )
        self.relayed.clear()
        self.passed.clear()
        return counts[0], counts[1]


def test_by_relay_at_once_then_direct_then_both_then_by_relay(world: World) -> None:
    pair = Relayed(world)
    a, b = pair.a, pair.b
    packet = send(world, a, b)
    assert b.received == [packet]
    assert path_of(a, b).is_relay
    assert a.node.peers(world.now)[0]["path"] == "relay"
    assert str(a.node.peering.links[b.id].peer.endpoint) == "relay:r1"
    pair.direct = True
    for _ in range(40):
        send(world, a, b)
        send(world, b, a)
        world.run(0.1)
    assert path_of(a, b).state is path_of(b, a).state is State.PROVEN
    pair.data()
    send(world, a, b)
    assert pair.data() == (0, 1)
    pair.direct = False
    received = len(b.received)
    sent = 0
    doubled = 0
    for _ in range(80):
        sent += 1
        send(world, a, b)
        doubled += path_of(a, b).state is State.DOUBTFUL and pair.data()[0] > 0
        world.run(0.1)
    assert doubled > 5
    assert path_of(a, b).is_relay
    assert len(b.received) - received >= sent - 16  # 1.3 s until the silence means something
    pair.direct = True
    for _ in range(100):
        send(world, a, b)
        world.run(0.1)
    assert path_of(a, b).state is State.PROVEN


def test_a_path_that_rested_is_doubted_before_it_is_used_again(world: World) -> None:
    pair = Relayed(world)
    pair.direct = True
    a, b = pair.a, pair.b
    for _ in range(30):
        send(world, a, b)
        world.run(0.1)
    assert path_of(a, b).state is State.PROVEN
    world.run(60)
    replayed = b.node.device.drops[DropReason.REPLAYED]
    send(world, a, b)
    assert b.node.device.drops[DropReason.REPLAYED] == replayed + 1, "what came twice was dropped"
    world.run(60)
    pair.data()
    pair.direct = False  # the NATs have forgotten
    received = len(b.received)
    for _ in range(10):
        send(world, a, b)
        world.run(0.1)
    assert len(b.received) - received == 10
    assert pair.data()[0] >= 10


def test_the_relay_goes_and_comes_back(world: World) -> None:
    pair = Relayed(world)
    a, b = pair.a, pair.b
    send(world, a, b)
    assert path_of(a, b).is_relay
    pair.at(None)
    world.run(2)
    assert a.node.finder.current(b.id) is None
    pair.at("r2")
    world.run(2)
    assert send(world, a, b, b"by another") == b.received[-1]


# Ports that nobody named


def test_mapping_behaviour_and_guesses() -> None:
    assert mapping_behaviour([]) is None
    assert mapping_behaviour([(HERE, 5)]) is None
    assert mapping_behaviour([(HERE, 5), (HERE, 5)]) == EIM
    assert mapping_behaviour([(HERE, 5), (HERE, 6)]) == EDM
    assert guess_next([(HERE, 5_000), (HERE, 5_002)])[:2] == [(HERE, 5_004), (HERE, 5_006)]
    assert guess_next([(HERE, 5_000), (HERE, 4_999)])[0] == (HERE, 4_998)
    assert guess_next([(HERE, 5_000), (HERE, 9_000)]) == []
    assert guess_next([(HERE, 65_534), (HERE, 65_535)]) == []
    assert guess_next([(HERE, 5_000)]) == []


def test_sprays_stay_inside_their_budget() -> None:
    spray = Spray(0.0, HERE, entropy_of(1))
    ports = []
    while spray.next_at is not None:
        ports += [port for _, port in spray.take_due(spray.next_at)]
    assert len(ports) == len(set(ports)) <= SPRAY_PORTS
    assert len(ports) > 250 and min(ports) >= 1_024
    budget = Budget(0.0, 1_024, 1_024 / 3_600.0)
    assert [budget.take(0.0, SPRAY_PORTS) for _ in range(5)] == [True] * 4 + [False]
    assert not budget.take(800.0, SPRAY_PORTS)
    assert budget.take(901.0, SPRAY_PORTS)


# Whatever happens

VERBS = ("send", "reply", "pass", "block", "wait", "rest", "move", "map", "relay", "call")
ACTIONS = st.lists(st.tuples(st.sampled_from(VERBS), st.integers(0, 3)), max_size=25)


@settings(max_examples=25, deadline=None)
@given(ACTIONS)
def test_no_order_of_events_breaks_a_path(actions: list[tuple[str, int]]) -> None:
    world = World()
    pair = Relayed(world)
    a, b = pair.a, pair.b
    for action, number in actions:
        if action == "send":
            send(world, a, b)
        elif action == "reply":
            send(world, b, a)
        elif action in ("pass", "block"):
            pair.direct = action == "pass"
        elif action in ("wait", "rest"):
            world.run((0.3 if action == "wait" else 30.0) * (number + 1))
        elif action == "move":
            a.node.handle_addresses(world.now, [(bytes((192, 0, 2, 1)), 51820), (bytes((198, 18, 0, number)), 51820)])
        elif action == "map":
            b.node.whereabouts.handle_mappings(world.now, [(HERE, 5_000), (HERE, 5_000 + number)], 0)
        elif action == "relay":
            pair.at("r1" if number else None)
        else:
            a.node.finder.introduce(world.now, b.id)
        world.crank()
        for board in (a, b):
            for paths in board.node.finder.peers.values():
                assert len(paths.prober.direct) <= PATHS_MAX
                assert len(paths.prober._probes) <= PROBES_MAX
    pair.direct = True
    pair.at("r1")
    world.run(2)
    for _ in range(20):
        send(world, a, b)
        world.run(0.5)
    assert send(world, a, b, b"in the end") == b.received[-1]
