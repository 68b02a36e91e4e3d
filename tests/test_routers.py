"""Prefixes behind several routers: one carries it, another one takes over within seconds, and back it goes in time."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeagent.proto import prefixes, topics
from edgeagent.proto.allowedips import AllowedIPs
from edgeagent.proto.errors import DropReason
from edgeagent.proto.ip import ip_to_bytes
from edgeagent.proto.prefixes import Prefix
from edgeagent.proto.refusals import ControlDrop
from edgeagent.proto.routers import AGAIN_S, PROOF_S, PROOFS, Group, Routers
from edgeagent.proto.targets import Targets
from tests.control_kit import NETWORK
from tests.node_kit import Board, World, icmp_errors, ipv4, send
from tests.policy_kit import udp

SITE = (bytes((192, 168, 7, 0)), 24)
HOST = bytes((192, 168, 7, 9))
WITHIN_S = 5.0


class Site(World):
    """A world whose hub knows of routes: `a` asks, `r1` and `r2` route SITE, online or not."""

    def __init__(self, routers: int = 2) -> None:
        super().__init__()
        self.dead: set[str] = set()
        self.asked_routes = 0
        self.lose = lambda sender, datagram, to: sender.id in self.dead or self.is_dead(to)
        self.a = self.add(1, "a")
        self.routers = [self.add(2 + n, f"r{n + 1}") for n in range(routers)]
        for board in self.routers:
            board.routes = [list(SITE)]
            self.say_map(board)
        self.say_map(self.a)
        self.run(2)

    def is_dead(self, to: tuple[bytes, int]) -> bool:
        return any(to in self.boards[each].listens for each in self.dead)

    def map_object(self, board: Board, **changes: Any) -> bytes:
        if board.name == "a":
            changes = {"ro": [list(SITE)], **changes}
        return super().map_object(board, **changes)

    def hub_answers_ask(self, sender: Board, ask: dict[str, Any]) -> None:
        found = [each for each in self.boards.values() if list(SITE) in each.routes and each is not sender]
        if ask.get("a", b"")[:3] != SITE[0][:3] or not found:
            super().hub_answers_ask(sender, ask)
            return
        self.asked_routes += 1
        body = {"rec": self.record(found[0]), "fk": found[0].feed_key, "fg": 1, "id": ask["id"]}
        body["via"] = [each.id for each in found]
        self.fan(topics.down(NETWORK, sender.id, "rec"), self.down(sender, "rec", body))
        for each in found[1:]:
            self.say_rec(sender, each)
        for each in found:
            self.say_rec(each, sender)

    def talk(self, seconds: float, every_s: float = 0.25) -> None:
        """Packets from `a` to the host at the site, each answered by the router that it came to."""
        end = self.now + seconds
        while self.now < end:
            before = [len(board.received) for board in self.routers]
            send(self, self.a, HOST)
            self.run(every_s)
            for board, count in zip(self.routers, before, strict=True):
                for _ in board.received[count:]:
                    self.answer(board)

    def answer(self, board: Board) -> bytes:
        packet = ipv4(HOST, self.a.v4, b"answer")
        board.node.handle_packets(self.now, [packet])
        self.crank()
        return packet

    def until_answered(self, within_s: float) -> float:
        """Seconds until `a` has an answer again."""
        began, count = self.now, len(self.a.received)
        while self.now - began < within_s:
            self.talk(0.25)
            if any(packet[12:16] == HOST for packet in self.a.received[count:]):
                return self.now - began
        raise AssertionError(f"no answer within {within_s} s")

    @property
    def routers_of_a(self) -> Routers:
        routers = self.a.node.routers
        assert routers is not None
        return routers

    @property
    def group(self) -> Group:
        return self.routers_of_a.groups[SITE]

    @property
    def active(self) -> str:
        group = self.group
        return self.boards[group.active].name if group.active else "none"


@pytest.fixture
def site() -> Site:
    return Site()


def test_one_router_carries_and_the_other_stands_by(site: Site) -> None:
    site.talk(5)
    first, second = site.routers
    assert site.active == "r1" and first.received and not second.received
    assert site.asked_routes == 1
    assert second.id in site.a.node.peering.links
    peer = site.a.node.peering.links[second.id].peer
    assert SITE not in list(site.a.node.device.allowed_ips.of_peer(peer))


def test_it_fails_over_without_hub_and_broker(site: Site) -> None:
    site.talk(5)
    site.hub_answers = False
    for board in site.boards.values():
        site.disconnect(board)
    site.dead.add(site.routers[0].id)
    took_s = site.until_answered(20.0)
    assert took_s <= WITHIN_S
    assert site.active == "r2"
    site.talk(60)
    assert site.active == "r2"
    assert site.group.switches == 1


def test_one_way_traffic_keeps_a_router_that_lives(site: Site) -> None:
    """Nobody answers, as with telemetry by UDP; the router's probes do."""
    site.talk(2)
    for _ in range(240):
        send(site, site.a, HOST)
        site.run(0.5)
    assert site.active == "r1"
    assert site.group.switches == 0


def test_back_it_goes_when_the_preferred_one_is_proven(site: Site) -> None:
    site.talk(5)
    site.dead.add(site.routers[0].id)
    site.until_answered(20.0)
    site.talk(60)
    site.dead.clear()
    site.talk(PROOF_S)
    assert site.active == "r2"  # one answer is no proof
    site.talk(PROOF_S * (PROOFS + 5))
    assert site.active == "r1"
    # It fails again, and has to answer for longer
    site.dead.add(site.routers[0].id)
    site.until_answered(20.0)
    site.talk(40)
    site.dead.clear()
    site.talk(PROOF_S * (PROOFS + 1))
    assert site.active == "r2"
    site.talk(PROOF_S * (2 * PROOFS + 5))
    assert site.active == "r1"


def test_what_waited_for_the_dead_one_arrives(site: Site) -> None:
    """The preferred one was dead before the first packet."""
    site.dead.add(site.routers[0].id)
    packet = send(site, site.a, HOST)
    site.run(WITHIN_S)
    assert packet in site.routers[1].received


def test_with_all_dead_it_does_not_spin_and_asks_for_others(site: Site) -> None:
    site.talk(5)
    site.dead |= {board.id for board in site.routers}
    for _ in range(120):
        send(site, site.a, HOST)
        site.run(0.5)
    group = site.group
    assert group.switches <= 60 / AGAIN_S + 2
    assert site.asked_routes >= 2
    new = site.add(7, "r7")
    new.routes = [list(SITE)]
    site.say_map(new)
    site.run(2)
    site.routers.append(new)
    site.until_answered(3 * AGAIN_S)
    assert site.active == "r7"


def test_answers_through_the_other_router_are_taken(site: Site) -> None:
    """Its site may send them that way: both are approved for the prefix. Nothing else of it is."""
    site.talk(5)
    second = site.routers[1]
    send(site, second, site.a)  # there is a session
    packet = site.answer(second)
    assert site.a.received[-1] == packet
    drops = site.a.node.device.drops
    before = drops[DropReason.INNER_SOURCE]
    second.node.handle_packets(site.now, [ipv4(bytes((192, 168, 8, 9)), site.a.v4)])
    site.crank()
    assert drops[DropReason.INNER_SOURCE] == before + 1


def test_an_unapproved_router_is_left_at_once(site: Site) -> None:
    site.talk(5)
    first, second = site.routers
    first.routes = []
    site.say_rec(site.a, first)
    site.talk(3)
    assert site.active == "r2" and second.received
    before = site.a.node.device.drops[DropReason.INNER_SOURCE]
    site.answer(first)
    assert site.a.node.device.drops[DropReason.INNER_SOURCE] == before + 1


def test_a_prefix_that_the_map_does_not_name_is_not_used(site: Site) -> None:
    site.talk(2)
    site.say_map(site.a, ro=[])
    count = len(icmp_errors(site.a))
    send(site, site.a, HOST)
    site.run(1)
    assert len(icmp_errors(site.a)) == count + 1
    assert site.routers_of_a.groups == {}
    assert site.asked_routes == 1  # nobody is asked for what the map does not name


def test_who_does_not_accept_routes_takes_none(site: Site) -> None:
    site.a.node.use_routes(site.now, accept=False, exit_name="")
    send(site, site.a, HOST)
    send(site, site.routers[0], site.a)
    before = site.a.node.device.drops[DropReason.INNER_SOURCE]
    site.answer(site.routers[0])
    assert site.a.node.device.drops[DropReason.INNER_SOURCE] == before + 1
    assert site.asked_routes == 0


def test_an_exit_node_gets_what_is_nowhere_else(site: Site) -> None:
    a, (first, _) = site.a, site.routers
    leaves = site.add(8, "exit")
    leaves.routes = [[bytes(4), 0], [bytes(16), 0]]
    site.say_map(leaves)
    stranger = site.add(9, "stranger")
    site.run(2)
    internet = bytes((9, 9, 9, 9))
    send(site, a, internet)
    assert leaves.received == []  # not asked for
    a.node.use_routes(site.now, accept=True, exit_name="exit")
    site.run(1)
    for _ in range(2):
        packet = send(site, a, internet)
        site.run(1)
    assert leaves.received[-1] == packet
    for board, address in ((first, HOST), (stranger, stranger.v4)):  # whoever was never met before
        packet = send(site, a, address)
        site.run(1)
        assert board.received[-1] == packet
    # Answers come from there, and a member that lies about its address is not believed
    leaves.node.handle_packets(site.now, [answer := ipv4(internet, a.v4)])
    site.crank()
    assert a.received[-1] == answer
    before = a.node.device.drops[DropReason.INNER_SOURCE]
    for source in (HOST, stranger.v4, bytes((100, 64, 9, 9))):
        leaves.node.handle_packets(site.now, [ipv4(source, a.v4)])
    stranger.node.handle_packets(site.now, [ipv4(internet, a.v4)])
    site.crank()
    assert a.node.device.drops[DropReason.INNER_SOURCE] == before + 4
    # Without it nothing leaves
    leaves.routes = []
    site.say_rec(a, leaves)
    count = len(icmp_errors(a))
    send(site, a, internet)
    assert len(icmp_errors(a)) == count + 1
    a.node.use_routes(site.now, accept=True, exit_name="")
    send(site, a, internet)
    assert len(icmp_errors(a)) == count + 2


@given(
    st.lists(
        st.tuples(
            st.sampled_from(("insert", "remove", "leave", "holes")),
            st.integers(0, 2),
            st.lists(st.tuples(st.integers(0, 255), st.sampled_from((0, 1, 4, 8, 12, 32))), min_size=1, max_size=3),
        ),
        max_size=20,
    ),
    st.lists(st.integers(0, (1 << 32) - 1), min_size=1, max_size=5),
)
def test_holes_are_nobodys_whatever_is_around_them(
    steps: list[tuple[str, int, list[tuple[int, int]]]], asked: list[int]
) -> None:
    table: AllowedIPs[str] = AllowedIPs(1000)
    model: dict[Prefix, str] = {}
    holes: set[Prefix] = set()
    for step, peer, made in steps:
        chosen = [(prefixes.mask(bytes((first, 7, 7, 7)), length), length) for first, length in made]
        if step == "holes":
            holes = set(chosen)
            table.set_holes(chosen)
        elif step == "leave":
            table.remove_peer(f"p{peer}")
            model = {prefix: owner for prefix, owner in model.items() if owner != f"p{peer}"}
        elif step == "insert":
            table.insert(*chosen[0], f"p{peer}")
            model[chosen[0]] = f"p{peer}"
        else:
            assert table.remove(*chosen[0], f"p{peer}") is (model.get(chosen[0]) == f"p{peer}")
            if model.get(chosen[0]) == f"p{peer}":
                del model[chosen[0]]
        assert len(table) == len(model)
        for number in asked:
            address = number.to_bytes(4, "big")
            held = [prefix for prefix in {*model, *holes} if prefixes.holds(prefix, address)]
            longest = max(held, key=lambda prefix: prefix[1], default=None)
            assert table.lookup(address) == (None if longest is None else model.get(longest))


def test_what_is_offered_is_told_with_a_birth(site: Site) -> None:
    board, count = site.routers[0], len(site.routers[0].births)
    board.node.advertise(site.now, [SITE], snat=False)
    site.run(1)
    board.node.advertise(site.now, [SITE], snat=False)  # nothing new
    site.run(1)
    assert len(board.births) == count + 1
    assert (board.births[-1].body["ro"], board.births[-1].body["sn"]) == ([list(SITE)], False)
    site.disconnect(board)
    board.node.advertise(site.now, [], snat=True)
    site.connect(board)
    assert "ro" not in board.births[-1].body


def test_a_plain_client_is_a_peer_while_the_map_names_it(site: Site) -> None:
    key, v4, v6 = bytes([7]) * 32, bytes((100, 64, 3, 3)), site.a.v6[:15] + b"\x77"
    site.say_map(site.a, cl=[[key, v4, v6]])
    device = site.a.node.device
    assert device.allowed_ips.lookup(v4) is device.peers[key] is device.allowed_ips.lookup(v6)
    site.say_map(site.a)
    assert key not in device.peers and device.allowed_ips.lookup(v4) is None
    assert site.a.node.client.drops[ControlDrop.TABLE_FULL] == 0


def test_others_reach_a_client_through_its_gateway(site: Site) -> None:
    gateway, phone = site.routers[0], bytes((100, 64, 3, 3))
    body = {"rec": site.record(gateway, body={"cl": [phone]}), "fk": gateway.feed_key, "fg": 1}
    site.say(site.a, "rec", body)
    site.say_map(gateway, cl=[[b"k" * 32, phone, bytes(16)]])
    packet = send(site, site.a, phone)
    assert gateway.received == [packet]


def taken(site: Site, to: Board, target: bytes) -> bool:
    """Whether a packet that `a` sends to `to` in spite of all is taken there."""
    packet = udp(site.a.v4 if len(target) == 4 else site.a.v6, target, 1, 2)
    device, peer = site.a.node.device, site.a.node.peering.links[to.id].peer
    ours = device.allowed_ips.lookup(target)
    device.allowed_ips.insert(target, 8 * len(target), peer)
    before = len(to.received)
    site.a.node.handle_packets(site.now, [packet])
    site.crank()
    if ours is not peer:
        device.allowed_ips.remove(target, 8 * len(target), peer)
    return packet in to.received[before:]


@pytest.mark.parametrize(
    "target",
    ["127.0.0.1", "127.8.8.8", "169.254.1.1", "224.0.0.251", "255.255.255.255", "0.0.0.0", "192.168.1.1", "10.0.0.1",
     "172.17.0.2", "100.64.7.7", "240.0.0.1", "fe80::1", "ff02::fb", "::1", "fd00::77", "::ffff:7f00:1", "::7f00:1"],
)  # fmt: skip
def test_nobody_reaches_more_than_what_a_device_is_and_routes(site: Site, target: str) -> None:
    """Whatever the kernel would forward: it may do so for containers, and a host answers by all of its addresses."""
    site.talk(5)
    address = ip_to_bytes(target)
    router, plain, exits = site.routers[0], site.add(7, "plain"), site.add(8, "exit")
    exits.routes = [[bytes(4), 0], [bytes(16), 0]]
    for board in (plain, exits):
        site.say_map(board)
        site.run(1)
        send(site, site.a, board)
        site.run(1)
    for board in (router, plain, exits):
        before = board.node.device.drops[DropReason.INNER_DESTINATION]
        assert not taken(site, board, address), board.name
        assert board.node.device.drops[DropReason.INNER_DESTINATION] == before + 1
        assert taken(site, board, board.v4) and taken(site, board, board.v6)
    internet = bytes((9, 9, 9, 9))
    assert [taken(site, board, internet) for board in (router, plain, exits)] == [False, False, True]
    assert [taken(site, board, HOST) for board in (router, plain, exits)] == [True, False, False]


def test_what_is_no_longer_approved_is_no_longer_taken(site: Site) -> None:
    site.talk(5)
    router = site.routers[0]
    moves = router.node.device.allowed_ips.moves
    assert taken(site, router, HOST)
    site.say_map(router)
    assert router.node.device.allowed_ips.moves == moves, "the same as before"
    router.routes = []
    site.say_map(router)
    assert not taken(site, router, HOST)
    assert router.node.device.allowed_ips.moves > moves, "an engine lets go of its flows"


def test_a_plain_client_reaches_the_network_and_nothing_beside_the_gateway(site: Site) -> None:
    device_map = site.routers[0].node.map
    device_map.clients = [(b"k" * 32, bytes((100, 64, 3, 3)), bytes(16))]
    device_map.approved, device_map.routes = [], [SITE]
    targets = Targets(device_map)
    for address, device, client in (
        (bytes((100, 64, 3, 3)), True, True),
        (site.a.v4, False, True),
        (HOST, False, True),
        (bytes((192, 168, 1, 1)), False, False),
        (bytes((127, 0, 0, 1)), False, False),
    ):
        assert (targets.hold(address, False), targets.hold(address, True)) == (device, client)
