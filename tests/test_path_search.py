"""The MTU of a path: searched along the current one while there is traffic, and told to its WireGuard peer."""

from __future__ import annotations

import pytest

from edgeagent.proto.constants import MTU_MAX
from edgeagent.proto.disco import MAGIC
from edgeagent.proto.endpoint import Endpoint
from edgeagent.proto.path import INNER_MTU_UNKNOWN, LADDER_MTUS, MTU_MIN, TRANSPORT_OVERHEAD, Path, PathKind, State
from edgeagent.proto.path_search import PathSearch
from edgeagent.proto.pmtu import PROBES_MAX, RETRY_AFTER_S, STEP
from edgeagent.proto.relay_endpoint import RelayEndpoint
from tests.node_kit import Board, World, send
from tests.test_path import joined, path_of

FULL = 1_280 + TRANSPORT_OVERHEAD  # the boards' TUN takes 1280
LARGE = bytes(1_252)


@pytest.fixture
def world() -> World:
    return World()


def peer_mtu(a: Board, b: Board) -> tuple[int, bool]:
    peer = a.node.peering.links[b.id].peer
    return peer.mtu, peer.fragment


def takes(world: World, datagram_bytes: int) -> None:
    world.lose = lambda sender, datagram, to: len(datagram) > datagram_bytes


def disco_on(world: World) -> int:
    return sum(datagram[:4] == MAGIC for datagram in world.wire)


def talk(world: World, a: Board, b: Board, seconds: float, payload: bytes = LARGE) -> None:
    for _ in range(int(seconds * 10)):
        send(world, a, b, payload)
        world.run(0.1)


# A path and its search, by hand


def test_frames_and_packets() -> None:
    for endpoint, kind, overhead in (
        (Endpoint(("192.0.2.1", 1)), PathKind.IPV4, 28),
        (Endpoint(("2001:db8::1", 1, 0, 0)), PathKind.IPV6, 48),
        (RelayEndpoint("r1", bytes(32)), PathKind.RELAY, 56),
    ):
        path = Path(endpoint, kind)
        assert path.overhead == overhead
        path.frame_bytes = 1_000
        search = PathSearch(path, 1_452)
        assert search.poll_timeout() is None and search.drain() == []
        search.sent(1.0, 100, 1)
        assert search.drain() == [(1, 1_452)]
        search.answered(1.1, 1, 1_452)
        assert path.frame_bytes == 1_452 and search.poll_timeout() is None


def test_a_search_begins_with_the_first_payload_and_not_above_what_was_lost() -> None:
    path = Path(Endpoint(("192.0.2.1", 1)), PathKind.IPV4)
    path.frame_bytes = 1_252
    search = PathSearch(path, 1_452, 1_452)
    search.answered(1.0, 0, 1_300)  # a longer ping of the same row
    assert path.frame_bytes == 1_300
    search.sent(1.0, 100, 1)
    ((serial, size),) = search.drain()
    assert 1_300 < size < 1_452
    search.answered(1.1, 0, 1_400)  # and a late one
    assert path.frame_bytes == 1_400
    search.answered(1.1, serial, size)
    assert path.frame_bytes == max(1_400, size)


def test_along_a_relay_nothing_is_known_until_something_is_answered() -> None:
    path = Path(RelayEndpoint("r1", bytes(32)), PathKind.RELAY)
    search = PathSearch(path, 1_452)
    search.sent(1.0, 1_312, 1)
    ((serial, size),) = search.drain()
    assert (path.frame_bytes, size) == (0, INNER_MTU_UNKNOWN + TRANSPORT_OVERHEAD)
    search.answered(1.1, serial, size)
    assert path.frame_bytes == size


def test_a_relay_s_way_that_takes_nothing_is_unknown_again_and_asked_again() -> None:
    path = Path(RelayEndpoint("r1", bytes(32)), PathKind.RELAY)
    search = PathSearch(path, 1_452)
    search.sent(0.0, 1_312, 1)
    now = 0.0
    sizes = []
    while (at := search.poll_timeout()) is not None:
        sizes += [size for _, size in search.drain()]
        now = at
        search.handle_timeout(now)
    assert search.failed and path.frame_bytes == 0
    assert sizes.count(MTU_MIN - 56) == PROBES_MAX + 1
    search.sent(now + 1.0, 1_312, 1)
    assert search.poll_timeout() is None
    search.sent(now + RETRY_AFTER_S, 1_312, 1)
    assert search.poll_timeout() is not None


# In a node


def test_what_is_not_known_yet() -> None:
    world = World()
    a, b = world.add(1, "a"), world.add(2, "b")
    world.run(2)
    world.lose = lambda sender, datagram, to: len(datagram) > 400 and datagram[:4] == MAGIC
    send(world, a, b)
    assert peer_mtu(a, b) == (1_280, True)
    world.run(1)
    assert a.node.peers(world.now)[0]["path_mtu"] is None


def test_a_full_path_wants_no_search_until_there_is_much_to_send(world: World) -> None:
    a, b = joined(world)
    assert peer_mtu(a, b) == (1_280, False)
    talk(world, a, b, 5.0, b"small")
    assert path_of(a, b).search is None
    pings = disco_on(world)
    talk(world, a, b, 20.0)
    assert path_of(a, b).search is not None
    assert 0 < disco_on(world) - pings < 30
    pings = disco_on(world)
    world.run(3_600)
    assert disco_on(world) - pings < 4  # one look at what carried traffic, for a minute after it


@pytest.mark.parametrize("datagram_bytes", [600, 820, 1_000, 1_252, 1_300])
def test_a_narrow_path_is_searched_when_there_is_large_traffic(world: World, datagram_bytes: int) -> None:
    takes(world, datagram_bytes)
    a, b = joined(world)
    path = path_of(a, b)
    proven = path.frame_bytes
    assert path.state is State.PROVEN and proven == max(mtu - 28 for mtu in LADDER_MTUS if mtu - 28 <= datagram_bytes)
    talk(world, a, b, 5.0, b"small")
    assert path.frame_bytes == proven
    talk(world, a, b, 20.0)
    assert datagram_bytes - STEP < path.frame_bytes <= datagram_bytes
    assert peer_mtu(a, b) == (path.frame_bytes - TRANSPORT_OVERHEAD, False)
    (row,) = a.node.peers(world.now)
    assert row["path_mtu"] == path.frame_bytes - TRANSPORT_OVERHEAD
    packet = send(world, a, b, LARGE)
    assert packet not in b.received and sum(len(piece) - 20 for piece in b.received[-3:]) >= len(LARGE)


def test_a_hole_under_traffic_and_its_end(world: World) -> None:
    a, b = joined(world)
    talk(world, a, b, 3.0)
    takes(world, 1_200)
    for _ in range(8):
        send(world, a, b, LARGE)
        world.run(0.5)
    assert path_of(a, b).state is State.PROVEN
    assert path_of(a, b).frame_bytes <= 1_200
    world.lose = lambda sender, datagram, to: False
    talk(world, a, b, 660.0)
    assert path_of(a, b).frame_bytes == FULL


def test_a_path_that_takes_nothing_but_the_smallest_probes_is_given_up(world: World) -> None:
    a, b = joined(world)
    talk(world, a, b, 3.0)
    takes(world, 400)
    for _ in range(60):
        send(world, a, b, LARGE)
        world.run(0.5)
    assert all(path.state is not State.PROVEN for path in a.node.finder.peers[b.id].prober)


def test_what_does_not_leave_is_replaced_by_what_does(world: World) -> None:
    a, b = joined(world)
    talk(world, a, b, 3.0)
    path = path_of(a, b)
    takes(world, 1_100)
    for _ in range(20):
        world.wire.clear()
        a.node.transmit_too_long(world.now, path.endpoint, path.frame_bytes)
        world.crank()
        tried = [len(datagram) for datagram in world.wire if datagram[:4] == MAGIC and len(datagram) > 1_100]
        if not tried:
            break
        a.node.transmit_too_long(world.now, path.endpoint, max(tried))
    a.node.transmit_too_long(world.now, Endpoint(("203.0.113.77", 1)), 500)  # nobody's
    assert path.frame_bytes <= 1_100 and path.state is State.PROVEN


def test_a_proof_that_does_not_leave_goes_on_with_shorter_ones_at_once() -> None:
    world = World()
    a, b = world.add(1, "a"), world.add(2, "b")
    world.run(2)
    takes(world, 1_100)
    send(world, a, b)
    for _ in range(2):  # a small one, and the first of full size
        a.node.handle_timeout(world.now)
        world.crank()
    (path,) = a.node.finder.peers[b.id].prober
    assert (path.state, path.attempts) == (State.ANSWERED, 1)
    a.node.transmit_too_long(world.now, path.endpoint, FULL)
    a.node.handle_timeout(world.now)
    world.crank()
    assert (path.state.value, path.frame_bytes) == ("proven", 1_000 - 28)


def test_a_new_node_key_goes_by_the_same_path(world: World) -> None:
    takes(world, 1_000)
    a, b = joined(world)
    talk(world, a, b, 20.0)
    known = peer_mtu(a, b)
    assert known[0] < 1_000
    b.node_keys = [[bytes([9]) * 32, 0]]
    world.say_rec(a, b)
    a.node.handle_timeout(world.now)
    assert a.node.peering.links[b.id].peer.public_key == bytes([9]) * 32
    assert peer_mtu(a, b) == known


def test_without_disco_it_is_as_wireguard_has_it() -> None:
    world = World()
    a, b = world.add(1, "a"), world.add(2, "b")
    b.node.client.own_feed.disco_key = None
    world.run(2)
    send(world, a, b, LARGE)
    peer = a.node.peering.links[b.id].peer
    assert (peer.path_mtu, peer.fragment) == (MTU_MAX, True)
    assert a.node.peers(world.now)[0]["path_mtu"] is None
