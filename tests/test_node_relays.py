"""What a node makes of relays and of STUN: what it tells of itself, and where its traffic goes at once."""

from __future__ import annotations

from typing import Any

import pytest

from edgeagent.proto import stun
from edgeagent.proto.endpoint import Transmit
from edgeagent.proto.node_events import PathChanged, RelayNamesChanged
from edgeagent.proto.paths import to_endpoint
from edgeagent.proto.punch import EDM, EIM
from edgeagent.proto.records import UdpAddress
from edgeagent.proto.relay_endpoint import RelayEndpoint
from tests.control_kit import CRYPTO
from tests.node_kit import Board, World, send
from tests.test_path import Relayed, path_of, put_at_relay

OUTSIDE = (bytes((203, 0, 113, 7)), 5_000)
SERVERS: list[UdpAddress] = [(bytes((198, 51, 100, 1)), 3478), (bytes((198, 51, 100, 2)), 3478)]


def relay(name: str, *hosts: str) -> dict[str, Any]:
    key = CRYPTO.x25519_base(CRYPTO.blake2s(name.encode()))
    return {"id": name, "rg": "here", "k": key, "h": list(hosts), "u": 3478, "s": 0, "pin": bytes(32)}


class Servers:
    """Two STUN servers, beside relays that nobody can log in to; `seen` is what each of them says."""

    def __init__(self, world: World, board: Board, *seen: UdpAddress) -> None:
        self.asked = 0
        self._world = world
        self._board = board
        self._waiting: list[tuple[bytes, UdpAddress]] = []
        world.lose = self._take
        self.say(*seen)

    def say(self, *seen: UdpAddress) -> None:
        """From now on, and now."""
        self._seen = dict(zip(SERVERS, seen, strict=True))
        node = self._board.node
        node.outside.forget(self._world.now)
        node.outside.doubt(self._world.now)
        node.handle_timeout(self._world.now)
        self._world.crank()
        for datagram, server in self._waiting:
            transaction = stun.parse(datagram).transaction
            attribute = stun.xor_mapped_address(transaction, self._seen[server])
            answer = stun.write(stun.BINDING_SUCCESS, transaction, [attribute], fingerprint=True)
            node.handle_datagrams(self._world.now, [(answer, to_endpoint(server), 0)])
        self._waiting.clear()
        self._world.crank()

    def _take(self, sender: Board, datagram: bytes, to: UdpAddress) -> bool:
        if stun.looks_like_stun(datagram) and to in SERVERS:
            self.asked += 1
            self._waiting.append((datagram, to))
            return True
        return False


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def board(world: World) -> Board:
    board = world.add(1, "a")
    world.say_map(board, rl=[relay(f"r{n}", f"198.51.100.{n}:443") for n in (1, 2)], ps=[])
    return board


def told(board: Board) -> list[str]:
    endpoints: list[str] = board.node.status(0.0)["self"]["endpoints"]  # type: ignore[index]
    return endpoints


def test_where_servers_see_us_is_told(world: World, board: Board) -> None:
    Servers(world, board, OUTSIDE, OUTSIDE)
    assert told(board) == ["192.0.2.1:51820", "203.0.113.7:5000"] and board.node.finder.shared.nat == EIM


def test_a_nat_that_maps_by_destination(world: World, board: Board) -> None:
    Servers(world, board, OUTSIDE, (OUTSIDE[0], 5_001))
    assert board.node.finder.shared.nat == EDM and len(told(board)) == 3


@pytest.mark.parametrize(
    "address",
    [
        (bytes((127, 0, 0, 1)), 51_820),
        (bytes(4), 51_820),
        (bytes((224, 0, 0, 1)), 51_820),
        (bytes((255, 255, 255, 255)), 51_820),
        (bytes((100, 64, 0, 1)), 51_820),  # inside the mesh
        (bytes(15) + b"\x01", 51_820),
        (b"\xfe\x80" + bytes(13) + b"\x07", 51_820),
    ],
    ids=lambda address: str(to_endpoint(address)),
)
def test_a_server_that_lies_of_our_address_is_not_believed(world: World, board: Board, address: UdpAddress) -> None:
    servers = Servers(world, board, address, OUTSIDE)
    assert board.node.finder.shared.mapped == [OUTSIDE] and told(board) == ["192.0.2.1:51820", "203.0.113.7:5000"]
    servers.say(address, address)
    assert board.node.finder.shared.mapped == [] and told(board) == ["192.0.2.1:51820"]


def test_a_relay_beside_us_says_nothing_of_our_nat(world: World, board: Board) -> None:
    own = board.endpoints[0]
    servers = Servers(world, board, own, OUTSIDE)
    assert board.node.finder.shared.mapped == [OUTSIDE] and board.node.finder.shared.nat != EDM
    servers.say(own, own)
    assert board.node.finder.shared.nat == EIM, "where there is no NAT, that is known too"


def test_relays_names_are_looked_up_again_on_another_network(world: World, board: Board) -> None:
    board.events.clear()
    board.node.handle_addresses(world.now, [(bytes((192, 0, 2, 44)), 51_820)])
    world.crank()
    assert not any(isinstance(event, RelayNamesChanged) for event in board.events), "there are no names"
    world.say_map(board, rl=[relay("r1", "relay.example:443")], ps=[])
    board.events.clear()
    for number, looked_up in ((44, 0), (45, 1)):
        board.node.handle_addresses(world.now, [(bytes((192, 0, 2, number)), 51_820)])
        world.crank()
        assert sum(isinstance(event, RelayNamesChanged) for event in board.events) == looked_up


def test_a_relay_inside_the_mesh_is_not_sent_to(world: World, board: Board) -> None:
    """Its datagrams would go into the tunnel, and by the tunnel to the relay."""
    world.say_map(board, rl=[relay("r1", "100.64.0.9:443"), relay("r2", "relay.example:443")], ps=[])
    board.node.handle_relay_addresses(world.now, "r2", [(bytes((100, 64, 0, 10)), 3478)])
    assert board.node.relays.udp_servers() == []
    board.node.handle_relay_addresses(world.now, "r2", [(bytes((100, 64, 0, 10)), 3478), SERVERS[1]])
    assert [name for name, _, _ in board.node.relays.udp_servers()] == ["r2"]


def test_traffic_follows_a_new_home_without_another_input(world: World) -> None:
    pair = Relayed(world)
    send(world, pair.a, pair.b)
    board = pair.a
    lost: list[Transmit] = []
    put_at_relay(world, board, None, lost.append)
    board.node.drain_events()
    put_at_relay(world, board, "r2", lost.append)
    assert any(isinstance(event, PathChanged) for event in board.node.drain_events())


def test_a_peer_that_moved_is_not_answered_where_it_was(world: World) -> None:
    """What comes by the old relay still comes; what goes there would go with the relay."""
    pair = Relayed(world)
    a, b = pair.a, pair.b
    for _ in range(3):
        send(world, a, b)
        send(world, b, a)
    pair.at("r2")
    world.run(3)
    for _ in range(5):
        send(world, a, b)
        send(world, b, a)  # the wires of this world say that it comes by r1
        world.run(1)
        for board, other in ((a, b), (b, a)):
            assert str(path_of(board, other).endpoint) == "relay:r2"
            key = other.identity.node_key
            assert board.node.peering.links[other.id].peer.endpoint == RelayEndpoint("r2", key)
