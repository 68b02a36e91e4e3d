"""Paths of a device with two uplinks: each address by each of them, and what happens when one is no more."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeagent.proto import disco
from edgeagent.proto.endpoint import Endpoint, UplinkEndpoint
from edgeagent.proto.messages import TRANSPORT
from edgeagent.proto.path import TABLE, Input, Path, PathKind, State, key_of
from edgeagent.proto.prober import PATHS_MAX
from edgeagent.proto.rechecks import STANDBY_S
from edgeagent.proto.records import UdpAddress
from edgeagent.proto.ways import WayOut, Ways
from tests.node_kit import Board, World, send

PORT = 51_820
OURS = {1: bytes((198, 51, 100, 1)), 2: bytes((203, 0, 113, 1))}  # of the uplinks, by interface index
THEIRS: UdpAddress = (bytes((192, 0, 2, 2)), PORT)
DEAR = 6_000.0


class Pair:
    """`a` has two uplinks, `b` one address. Datagrams pass at once, but not by those of `cut`; `black` holes take
    what is sent by them and give nothing."""

    def __init__(self, world: World, *, cost_2_ms: float = 100.0) -> None:
        self.world = world
        self.cost_2_ms = cost_2_ms
        self.black: set[int] = set()
        self.passed: list[tuple[str, int, bytes]] = []  # (from, uplink, datagram)
        self.a, self.b = world.add(1, "a"), world.add(2, "b")
        world.crank_one = self.crank_one  # type: ignore[method-assign]
        self.a.listens = [(address, PORT) for address in OURS.values()]
        self.a.node.handle_addresses(world.now, self.a.listens)
        self.b.listens = self.b.endpoints = [THEIRS]
        self.b.node.handle_addresses(world.now, self.b.listens)
        self.begin()
        world.run(2)

    def begin(self) -> None:
        self.set_uplinks(1, 2)

    def set_uplinks(self, *usable: int, several: bool = True) -> None:
        costs = {1: 0.0, 2: self.cost_2_ms}
        ways = [WayOut(f"wan{index}", index, [OURS[index]], (4,), costs[index]) for index in usable]
        node = self.a.node
        node.events.extend(node._paths.handle_uplinks(self.world.now, ways, several=several))
        node._settle(self.world.now)
        self.several = several
        self.world.crank()

    def crank_one(self, board: Board) -> bool:
        moved = False
        for transmit in board.node.drain_transmits():
            moved = True
            for datagram in transmit.datagrams:
                if board is self.a:
                    self._carry_out(transmit.endpoint, datagram)
                else:
                    self._carry_in(transmit.endpoint, datagram)
        return World.crank_one(self.world, board) or moved

    def _carry_out(self, endpoint: Endpoint, datagram: bytes) -> None:
        uplink = endpoint.uplink or 1  # the kernel's default route
        self.passed.append(("a", uplink, datagram))
        if uplink not in self.black and (endpoint.ip_bytes(), endpoint.addr[1]) == THEIRS:
            source = Endpoint((f"{'.'.join(map(str, OURS[uplink]))}", PORT), (THEIRS[0], 9))
            self.b.node.handle_datagrams(self.world.now, [(datagram, source, 0)])

    def _carry_in(self, endpoint: Endpoint, datagram: bytes) -> None:
        for uplink, address in OURS.items():
            if (endpoint.ip_bytes(), endpoint.addr[1]) == (address, PORT):
                self.passed.append(("b", uplink, datagram))
                if uplink not in self.black:
                    kind = UplinkEndpoint if self.several else Endpoint
                    source = kind(("192.0.2.2", PORT), (address, uplink))
                    self.a.node.handle_datagrams(self.world.now, [(datagram, source, 0)])

    def data(self, sender: str) -> set[int]:
        """By which uplinks data packets of `sender` went since the last call."""
        seen = {
            uplink
            for who, uplink, datagram in self.passed
            if who == sender and datagram[0] == TRANSPORT and len(datagram) > 32
        }
        self.passed.clear()
        return seen

    def talk(self, seconds: float, *, every_s: float = 0.05) -> None:
        """Both ways."""
        for _ in range(round(seconds / every_s)):
            send(self.world, self.a, self.b)
            send(self.world, self.b, self.a)
            self.world.run(every_s)

    def lost(self, seconds: float, *, every_s: float = 0.05, one_way: bool = False) -> tuple[float, float]:
        """Seconds of packets from `a`, and from `b`, that did not arrive meanwhile."""
        before = len(self.a.received), len(self.b.received)
        sent = round(seconds / every_s)
        for _ in range(sent):
            send(self.world, self.a, self.b)
            if not one_way:
                send(self.world, self.b, self.a)
            self.world.run(every_s)
        came_a, came_b = len(self.a.received) - before[0], len(self.b.received) - before[1]
        return round((sent - came_b) * every_s, 3), 0.0 if one_way else round((sent - came_a) * every_s, 3)

    def paths(self) -> dict[int, State]:
        """At `a`, by uplink."""
        return {path.endpoint.uplink: path.state for path in self.a.node.finder.peers[self.b.id].prober.direct.values()}

    def currents(self) -> tuple[int, bytes]:
        """The uplink by which `a` sends, and the address that `b` sends to."""
        ours, theirs = self.a.node.finder.current(self.b.id), self.b.node.finder.current(self.a.id)
        assert ours is not None and theirs is not None
        return ours.endpoint.uplink, theirs.endpoint.ip_bytes()


@pytest.fixture
def pair() -> Pair:
    made = Pair(World())
    made.talk(2.0)
    return made


def test_the_uplink_is_a_part_of_the_way() -> None:
    plain = Endpoint(("192.0.2.2", PORT), (OURS[1], 1))
    by_1, by_2 = UplinkEndpoint.by(1, plain), UplinkEndpoint.by(2, plain)
    assert by_1.local == (bytes(4), 1) and by_1.unpinned() == by_1
    assert UplinkEndpoint(plain.addr, (OURS[1], 1)).unpinned() == by_1
    assert len({key_of(each) for each in (plain, by_1, by_2)}) == 3
    assert key_of(plain) == key_of(plain.unpinned())
    assert key_of(UplinkEndpoint(plain.addr, (OURS[1], 1))) == key_of(by_1)


@pytest.mark.parametrize("state", list(State), ids=lambda state: state.value)
def test_every_state_ends_with_its_uplink(state: State) -> None:
    path = Path(Endpoint(("203.0.113.1", 1)), PathKind.IPV4)
    path.state = state
    path.lose()
    assert path.state is State.DEAD
    assert {before for before, put in TABLE if put is Input.GONE} == set(State)


def test_each_address_by_each_uplink_that_leads_there(pair: Pair) -> None:
    shared = pair.a.node.finder.shared
    v4, v6 = bytes((192, 168, 1, 1)), bytes.fromhex("20010db8") + bytes(11) + b"\x01"
    ways = Ways([WayOut("eth0", 1, [v4], (4,)), WayOut("wwan0", 2, [bytes((10, 0, 0, 1)), v6], (4, 16))], several=True)

    def to(address: bytes) -> list[tuple[int, PathKind]]:
        return [(endpoint.uplink, kind) for endpoint, kind in ways.to((address, 9), shared)]

    assert to(bytes((8, 8, 8, 8))) == [(1, PathKind.IPV4), (2, PathKind.IPV4)]
    assert to(bytes((192, 168, 1, 9))) == [(1, PathKind.LAN)]
    assert to(bytes((192, 168, 7, 9))) == [(1, PathKind.PRIVATE)]
    assert to(bytes((10, 9, 9, 9))) == [(2, PathKind.PRIVATE)]
    assert to(bytes((172, 16, 0, 1))) == [(0, PathKind.PRIVATE)]  # by none: as the kernel has it
    assert [Ways([], several=True).to((bytes((8, 8, 8, 8)), 9), shared)] == [[]]
    assert to(bytes.fromhex("2a00") + bytes(14)) == [(2, PathKind.IPV6)]
    assert to(v6[:15] + b"\x09") == [(2, PathKind.LAN)]
    assert [endpoint.uplink for endpoint, _ in Ways([], several=False).to((v4, 9), shared)] == [0]


def test_both_are_proven_and_the_cheaper_one_carries_the_traffic_both_ways(pair: Pair) -> None:
    assert pair.paths() == {1: State.PROVEN, 2: State.PROVEN}
    pair.data("a")
    pair.talk(1.0)
    assert pair.currents() == (1, OURS[1])
    assert {uplink for _, uplink, datagram in pair.passed if datagram[0] == TRANSPORT} == {1}


def test_the_other_end_knows_what_an_uplink_costs() -> None:
    pair = Pair(World(), cost_2_ms=-50.0)  # the second is the better one
    pair.talk(2.0)
    assert pair.currents()[0] == 2
    pair = Pair(World(), cost_2_ms=DEAR)
    pair.talk(2.0)
    costs = {path.endpoint.ip_bytes(): path for path in pair.b.node.finder.peers[pair.a.id].prober.direct.values()}
    assert costs[OURS[2]].remote_cost_ms == DEAR and costs[OURS[2]].is_dear
    assert not costs[OURS[1]].is_dear
    assert pair.currents() == (1, OURS[1])


def test_an_uplink_that_goes_down_costs_no_packet(pair: Pair) -> None:
    pair.black = {1}
    pair.set_uplinks(2)
    assert pair.paths() == {2: State.PROVEN}
    assert pair.lost(3.0) == (0.0, 0.0)
    assert pair.currents() == (2, OURS[2])
    pair.black = set()
    pair.set_uplinks(1, 2)
    assert pair.lost(3.0) == (0.0, 0.0)
    assert pair.paths() == {1: State.PROVEN, 2: State.PROVEN}
    assert pair.currents() == (1, OURS[1])


def test_the_other_end_hears_of_it_though_we_send_nothing(pair: Pair) -> None:
    pair.black = {1}
    pair.set_uplinks(2)
    before = len(pair.a.received)
    for _ in range(40):
        send(pair.world, pair.b, pair.a)
        pair.world.run(0.05)
    assert len(pair.a.received) - before == 40


@pytest.mark.parametrize("one_way", [False, True], ids=["both-ways", "one-way"])
def test_a_black_hole_is_found_out_within_a_second(pair: Pair, one_way: bool) -> None:
    pair.black = {1}
    lost = pair.lost(10.0, one_way=one_way)
    assert max(lost) <= 1.0, lost
    assert pair.paths()[1] is State.DEAD
    pair.black = set()
    assert pair.lost(100.0) == (0.0, 0.0)  # it is tried again from time to time
    assert pair.currents()[0] == 1
    assert pair.paths() == {1: State.PROVEN, 2: State.PROVEN}


def test_a_lost_probe_moves_the_traffic_and_loses_nothing(pair: Pair) -> None:
    path = pair.a.node.finder.current(pair.b.id)
    assert path is not None
    path.take(Input.SILENCE)
    pair.data("a")
    assert pair.lost(0.2) == (0.0, 0.0)
    assert pair.lost(5.0) == (0.0, 0.0)
    assert pair.currents() == (1, OURS[1])


def test_who_goes_over_is_followed_by_a_copy_only_until_the_old_way_is_sure(pair: Pair) -> None:
    a, b = pair.a, pair.b
    paths = a.node.finder.peers[b.id]
    second = next(path for path in paths.prober.direct.values() if path.endpoint.uplink == 2)
    paths.current = second  # as if it had good reasons
    a.node.finder._settle(pair.world.now, paths)
    pair.passed.clear()
    link = a.node.peering.links[b.id]
    link.peer.set_endpoint(second.endpoint)
    pair.b.node.finder.peers[a.id]._heard_key = None
    send(pair.world, a, b)
    assert [str(copy) for copy in b.node.finder.peers[a.id].copies] == ["203.0.113.1:51820"]
    pair.world.run(0.01)
    assert pair.currents()[1] == OURS[1]  # still, for it has answered
    assert pair.b.node.finder.peers[a.id].copies == []
    pair.talk(3.0)
    assert pair.currents() == (1, OURS[1])


def test_a_standby_is_kept_known_while_there_is_traffic_and_left_alone_without(pair: Pair) -> None:
    pair.passed.clear()
    pair.talk(4 * STANDBY_S, every_s=0.5)
    probes = [
        len(datagram)
        for who, uplink, datagram in pair.passed
        if who == "a" and uplink == 2 and datagram[:4] == disco.MAGIC and len(datagram) == disco.PING_BYTES
    ]
    assert 3 <= len(probes) <= 8  # pings, and pongs to those of the other end
    assert pair.b.node.finder.peers[pair.a.id].prober.direct[key_of(Endpoint(("203.0.113.1", PORT)))].heard_at
    pair.world.run(100.0)
    pair.passed.clear()
    pair.world.run(1_000.0)
    assert [uplink for _, uplink, _ in pair.passed] == []


def test_a_dear_standby_is_asked_seldom() -> None:
    counts = {}
    for cost_ms in (100.0, DEAR):
        pair = Pair(World(), cost_2_ms=cost_ms)
        pair.talk(3.0)
        pair.passed.clear()
        pair.talk(240.0, every_s=1.0)
        counts[cost_ms] = sum(len(datagram) + 28 for _, uplink, datagram in pair.passed if uplink == 2)
    assert 0 < counts[DEAR] < counts[100.0] / 5
    assert counts[DEAR] < 5_000


def test_with_one_uplink_endpoints_are_as_they_were() -> None:
    pair = Pair(World())
    pair.set_uplinks(1, several=False)
    pair.talk(2.0)
    assert pair.paths() == {0: State.PROVEN}
    assert str(pair.a.node.finder.current(pair.b.id)) == "Path(192.0.2.2:51820, ipv4, proven)"


def test_a_second_uplink_comes_and_goes_mid_flow() -> None:
    pair = Pair(World())
    pair.set_uplinks(1, several=False)
    pair.talk(2.0)
    path = pair.a.node.finder.current(pair.b.id)
    for _ in range(3):
        pair.set_uplinks(1, 2)
        assert pair.a.node.finder.current(pair.b.id) is path
        assert pair.lost(2.0) == (0.0, 0.0)
        assert pair.paths() == {1: State.PROVEN, 2: State.PROVEN}
        pair.set_uplinks(1, several=False)
        assert pair.a.node.finder.current(pair.b.id) is path
        assert pair.lost(2.0) == (0.0, 0.0)
        assert pair.paths() == {0: State.PROVEN}


def test_the_last_uplink_goes_and_another_one_comes(pair: Pair) -> None:
    pair.set_uplinks(1)
    pair.set_uplinks()
    assert set(pair.paths().values()) == {State.DEAD}
    pair.world.run(5.0)
    pair.set_uplinks(2)
    pair.talk(3.0)
    assert pair.paths() == {2: State.PROVEN}
    pair.black = {2}
    pair.set_uplinks(several=False)  # down to none, and then the first as the only one
    pair.set_uplinks(1, several=False)
    pair.talk(5.0)
    assert pair.currents() == (0, OURS[1])


def test_only_the_uplink_that_moved_is_doubted(pair: Pair) -> None:
    ways = [WayOut("wan1", 1, [OURS[1]], (4,)), WayOut("wan2", 2, [bytes((203, 0, 113, 77))], (4,), 100.0)]
    node = pair.a.node
    node._paths.handle_uplinks(pair.world.now, ways, several=True)
    assert pair.paths() == {1: State.PROVEN, 2: State.DOUBTFUL}
    node.handle_addresses(pair.world.now, [(OURS[1], PORT), (bytes((203, 0, 113, 77)), PORT)])
    assert pair.paths()[1] is State.PROVEN


def test_an_uplink_that_refuses_to_send_is_left_at_once(pair: Pair) -> None:
    path = pair.a.node.finder.current(pair.b.id)
    assert path is not None and path.endpoint.local is not None
    pair.a.node.transmit_failed(pair.world.now, path.endpoint)
    assert pair.paths()[1] is State.PROVEN and path.endpoint.unpinned() == path.endpoint  # only its source address
    pair.a.node.transmit_failed(pair.world.now, path.endpoint)
    assert pair.paths()[1] is State.DEAD
    assert pair.lost(1.0) == (0.0, 0.0)


def test_mappings_by_uplink(pair: Pair) -> None:
    node, now = pair.a.node, pair.world.now
    first = [(bytes((9, 0, 0, 1)), 5_000), (bytes((9, 0, 0, 1)), 5_000)]
    second = [(bytes((9, 0, 0, 2)), 6_000), (bytes((9, 0, 0, 2)), 6_002)]
    node.whereabouts.handle_mappings(now, second, 2)
    assert node.finder.shared.nat == "edm"
    node.whereabouts.handle_mappings(now, first, 1)
    assert node.finder.shared.nat == "eim"  # by one of them we can be reached
    told = node.client.own_feed.endpoints
    assert first[0] in told and second[1] in told
    pair.set_uplinks(2)
    assert node.finder.shared.mapped_by == {2: second}
    pair.set_uplinks(2, several=False)
    assert node.finder.shared.mapped_by == {0: second}
    node.whereabouts.handle_mappings(now, first, 0)
    pair.set_uplinks(1, 2)
    assert node.finder.shared.mapped_by == {2: first}


ACTIONS = st.lists(
    st.tuples(st.sampled_from(("send", "reply", "usable", "black", "wait", "rest", "peer-moves")), st.integers(0, 3)),
    max_size=30,
)


@settings(max_examples=40, deadline=None)
@given(ACTIONS)
def test_whatever_uplinks_do_there_is_a_way_in_the_end(actions: list[tuple[str, int]]) -> None:
    pair = Pair(World())
    world, sets = pair.world, ((), (1,), (2,), (1, 2))
    for action, number in actions:
        if action == "send":
            send(world, pair.a, pair.b)
        elif action == "reply":
            send(world, pair.b, pair.a)
        elif action == "usable":
            pair.set_uplinks(*sets[number], several=number != 1)
        elif action == "black":
            pair.black = set(sets[number])
        elif action == "peer-moves":
            pair.b.node.handle_addresses(world.now, [THEIRS, (bytes((192, 0, 2, 10 + number)), 9)])
        else:
            world.run((0.3 if action == "wait" else 40.0) * (number + 1))
        world.crank()
        paths = pair.a.node.finder.peers.get(pair.b.id)
        if paths is not None:
            assert len(paths.prober.direct) <= PATHS_MAX
            assert all(key == path.key == key_of(path.endpoint) for key, path in paths.prober.direct.items())
            finder = pair.a.node.finder
            assert paths.current is None or finder._by_path[paths.current.key] == [paths]
            assert len(finder._by_path) <= 1
    for usable, black in product(((1, 2), (2,)), (set[int](), {1})):
        pair.black = black
        pair.set_uplinks(*usable)
        pair.talk(12.0, every_s=0.5)
        assert send(world, pair.a, pair.b, b"in the end") == pair.b.received[-1]
        assert send(world, pair.b, pair.a, b"and back") == pair.a.received[-1]
