"""Two relays of one region: who is where, and one hop between them."""

from __future__ import annotations

import pytest

from edgeagent.proto.relay_events import Carrier
from edgeagent.proto.relay_frames import (
    ABSENT,
    FORWARD,
    KEYS_PER_FRAME_MAX,
    PRESENT,
    FrameSplitter,
    frame,
)
from relay.core.admission import Neighbour
from relay.core.limits import Rate
from relay.core.members import CLAIMS_MAX, SIBLING_CONTROLS_MAX
from relay.core.relay import RelayCore
from relay.core.siblings import Siblings
from tests.relay import kit
from tests.relay.kit import Host, World, drops
from tests.relay.test_forwarding import seat

UDP, TLS = Carrier.DATAGRAM, Carrier.STREAM

PRIVATE_2 = bytes(range(50, 82))
KEY_2 = kit.CRYPTO.x25519_base(PRIVATE_2)


class Region:
    """Two relays with a link between them, and members on each."""

    def __init__(self) -> None:
        self.one = World(kit.make_core(siblings={KEY_2: "fra-2"}))
        self.two = World(kit.make_core(relay="fra-2", private=PRIVATE_2, siblings={kit.RELAY_KEY: "fra-1"}, seed=8))
        self.cores = (self.one.core, self.two.core)
        self.link = 10_001  # of each relay's end
        self.now = kit.NOW
        self.crossed: list[tuple[int, bytes]] = []

    def connect(self, after_s: float = 1.0) -> None:
        self.link += 1
        self.now += after_s
        self.two.core.stream_opened(self.now, self.link, bytes(4))
        self.one.core.stream_called(self.now, self.link, "fra-2", KEY_2)
        self.settle()

    def settle(self) -> None:
        """Everything between relays and members; what is for members goes straight into their clients."""
        for _ in range(50):
            moved = False
            for core, other, world in (
                (self.cores[0], self.cores[1], self.one),
                (self.cores[1], self.cores[0], self.two),
            ):
                for conn, data in core.drain_writes():
                    moved = True
                    if conn == self.link:
                        self.crossed += FrameSplitter().feed(data)
                        other.stream_received(self.now, conn, data)
                    else:
                        for host in world.hosts:
                            if host.conn == conn:
                                host.client.handle_stream(world.now, data)
                for conn in core.drain_closes():
                    moved = True
                    core.stream_closed(conn)
                for host in world.hosts:
                    data = host.client.drain_stream()
                    if data and host.conn is not None:
                        moved = True
                        core.stream_received(world.now, host.conn, data)
                    host.packets += [(key, packet) for key, packet, _ in host.client.drain_packets()]
            if not moved:
                return
        raise AssertionError("never quiet")

    def join(self, world: World, number: int) -> Host:
        host = Host(
            number, kit.make_client(number, carriers=(TLS,), pass_object=kit.make_pass(number, regions=["fra"]))
        )
        host.client._login.relay = "fra-1" if world is self.one else "fra-2"
        host.client._login.relay_key = kit.RELAY_KEY if world is self.one else KEY_2
        world.hosts.append(host)
        host.client.start(world.now)
        host.client.drain_events()
        host.conn = 100 + number
        world.core.stream_opened(world.now, host.conn, bytes(4))
        host.client.stream_opened(world.now)
        self.settle()
        assert host.client.alive
        return host

    def send(self, host: Host, key: bytes, packet: bytes) -> None:
        host.client.send(kit.NOW, key, [packet])
        self.settle()


def test_one_hop_to_a_sibling_and_back() -> None:
    region = Region()
    early = region.join(region.one, 1)
    region.connect()
    late = region.join(region.two, 2)
    assert [core.shared.roster.away for core in region.cores] == [1, 1]
    region.send(early, late.key, b"over")
    region.send(late, early.key, b"back")
    assert late.packets == [(early.key, b"over")] and early.packets == [(late.key, b"back")]
    assert [kind for kind, _ in region.crossed if kind == FORWARD] == [FORWARD, FORWARD]
    # Gone from the one, and nobody asks the other for it any more
    late.client.stop(kit.NOW)
    region.two.core.stream_closed(late.conn or 0)
    region.settle()
    before = len(region.crossed)
    region.send(early, late.key, b"nobody")
    assert len(region.crossed) == before and drops(region.cores[0]) == {"not-here": 1}


def test_a_forwarded_packet_is_never_forwarded_again() -> None:
    """Both relays believe that the other has the member: the packet crosses once and dies."""
    region = Region()
    a = region.join(region.one, 1)
    region.connect()
    ghost = kit.public_key(9)
    told = frame(PRESENT, kit.NETWORK.encode(), ghost)
    for core in region.cores:
        core.stream_received(kit.NOW, region.link, told)
    region.crossed.clear()
    region.send(a, ghost, b"to and fro?")
    assert [kind for kind, _ in region.crossed] == [FORWARD]
    assert drops(region.cores[1]) == {"second-hop": 1}


def test_what_a_sibling_forwards_keeps_to_the_rates_here() -> None:
    """The network's, and its share of the relay's own: the other relay may be anybody's."""
    core = kit.make_core(siblings={KEY_2: "fra-2"}, network_rate=Rate(100_000, 1_000))
    world = World(core)
    a = world.join(1, UDP)
    link(core)
    assert len(forwarded(core, a, 200)) == pytest.approx(25, abs=2)
    assert drops(core)["tenant-rate"] == core.shared.network(kit.NOW, kit.NETWORK).dropped > 170

    core = kit.make_core(siblings={KEY_2: "fra-2"}, total_bytes_per_s=100_000, fair_share_bytes=20_000)
    world = World(core)
    a = world.join(1, UDP)
    link(core)
    assert len(forwarded(core, a, 100)) == pytest.approx(18, abs=2)
    assert drops(core)["fair-share"] > 50
    # What waited is for who is there then, and only while the sibling may speak of that network
    core.handle_timeout(kit.NOW + 0.1)
    assert sum(len(train) for train in core.drain_trains()) == pytest.approx(10, abs=2)
    a.client.stop(kit.NOW)
    world.settle()
    core.handle_timeout(kit.NOW + 0.2)
    assert core.drain_trains() == [] and drops(core)["second-hop"] > 0


def link(core: RelayCore, conn: int = 10_001) -> None:
    """To fra-2, without the cryptography of its login."""
    core.stream_called(kit.NOW, conn, "fra-2", KEY_2)
    Siblings(core.shared).link_up(core.shared.streams[conn], "fra-2")
    core.drain_writes()


def forwarded(core: RelayCore, host: Host, count: int) -> list[bytes]:
    """What arrives of `count` packets of 1 kB that a sibling forwards to a member on UDP."""
    for _ in range(count):
        core.stream_received(kit.NOW, 10_001, frame(FORWARD, kit.public_key(9), host.key, bytes(1_000)))
    return [datagram for train in core.drain_trains() for datagram in train.datagrams()]


def test_a_lost_link_is_forgotten_and_comes_again() -> None:
    region = Region()
    a, b = region.join(region.one, 1), region.join(region.two, 2)
    region.connect()
    for core in region.cores:
        core.stream_closed(region.link)
        assert core.shared.roster.away == 0 and not core.shared.links
    region.send(a, b.key, b"lost")
    region.connect()
    region.send(a, b.key, b"found")
    assert [packet for _, packet in b.packets] == [b"found"]
    first = region.link
    region.connect()  # again, while the first still seems to be there
    assert all(next(iter(core.shared.links.values())).conn == region.link != first for core in region.cores)


def test_a_sibling_that_comes_again_and_again_is_told_of_all_members_at_its_first() -> None:
    region = Region()
    region.connect()
    first = region.link
    region.connect(after_s=0.5)
    assert kit.refusals(region.two.core) == {"too-often": 1}
    assert next(iter(region.two.core.shared.links.values())).conn == first
    region.connect()
    assert next(iter(region.two.core.shared.links.values())).conn == region.link


def test_a_key_that_several_siblings_claim_stays_with_one_that_has_it() -> None:
    core, (x, y) = linked(3)[0], (1, 2)
    a = kit.public_key(9)

    def at() -> int | None:
        found = core.shared.roster.find_away(a, kit.NETWORK)
        return found.conn if found is not None else None

    say(core, x, PRESENT, kit.NETWORK, a)
    say(core, y, PRESENT, kit.NETWORK, a)  # it has moved on
    say(core, x, PRESENT, kit.NETWORK, a)  # nothing new
    assert at() == y
    say(core, y, ABSENT, kit.NETWORK, a)
    say(core, y, ABSENT, kit.NETWORK, a)
    assert at() == x
    say(core, y, PRESENT, kit.NETWORK, a)
    core.stream_closed(y)
    assert at() == x and core.shared.roster.away == 1
    core.stream_closed(x)
    assert at() is None and core.shared.roster.away == 0


def test_only_so_many_siblings_claim_a_key() -> None:
    core = linked(CLAIMS_MAX + 1)[0]
    for conn in range(1, CLAIMS_MAX + 2):
        say(core, conn, PRESENT, kit.NETWORK, kit.public_key(9))
    assert [core.shared.streams[conn].claimed for conn in range(1, CLAIMS_MAX + 2)] == [0] + CLAIMS_MAX * [1]


def test_what_a_relay_of_one_network_claims_is_nothing_to_another() -> None:
    core, [good, evil] = linked(2, sibling_members=10)
    core.set_siblings(
        {good: Neighbour("x", frozenset((kit.NETWORK, kit.OTHER_NETWORK))), evil: Neighbour("y", OTHER_ALONE)}
    )
    core.drain_closes()
    for conn, key in ((3, good), (4, evil)):
        enter(core, conn, key)
    theirs = kit.public_key(9)
    say(core, 3, PRESENT, kit.NETWORK, theirs)
    say(core, 4, PRESENT, kit.OTHER_NETWORK, theirs, *(kit.public_key(n) for n in range(100, 120)))
    assert drops(core) == {"sibling-full": 16}
    say(core, 3, PRESENT, kit.NETWORK, *(kit.public_key(n) for n in range(4)))  # as much room as the other
    assert drops(core) == {"sibling-full": 16}
    roster = core.shared.roster
    found = roster.find_away(theirs, kit.NETWORK), roster.find_away(theirs, kit.OTHER_NETWORK)
    assert [link and link.conn for link in found] == [3, 4]
    core.leave(kit.OTHER_NETWORK)
    assert roster.away == 5 and core.shared.streams[4].claimed == 0
    core.stream_closed(3)
    assert roster.away == roster._claims == 0


def test_many_that_leave_at_once_do_not_cost_the_link() -> None:
    """Each in a frame of its own, they were more than a link holds."""
    core, _ = linked(1)
    members = 2 * SIBLING_CONTROLS_MAX
    for n in range(members):
        seat(core, 100 + n)
    core.leave(kit.NETWORK)
    said = FrameSplitter().feed(b"".join(data for conn, data in core.drain_writes() if conn == 1))
    assert {kind for kind, _ in said} == {ABSENT} and len(said) == members // KEYS_PER_FRAME_MAX
    assert {payload[at : at + 32] for _, payload in said for at in range(16, len(payload), 32)} == {
        kit.public_key(100 + n) for n in range(members)
    }
    assert core.shared.links and "never-reads" not in drops(core)


OTHER_ALONE = frozenset((kit.OTHER_NETWORK,))


def linked(count: int, sibling_members: int = 200_000) -> tuple[RelayCore, list[bytes]]:
    """A relay with links to so many siblings, connections 1 and up, and the siblings' keys."""
    keys = [kit.public_key(5_000 + n) for n in range(count)]
    core = kit.make_core(sibling_members=sibling_members)
    core.set_siblings({key: Neighbour("x", frozenset((kit.NETWORK, kit.OTHER_NETWORK))) for key in keys})
    for n, key in enumerate(keys, 1):
        enter(core, n, key)
    return core, keys


def enter(core: RelayCore, conn: int, key: bytes) -> None:
    """A link, without the cryptography of its login."""
    core.stream_called(kit.NOW, conn, "x", key)
    Siblings(core.shared).link_up(core.shared.streams[conn], "x")
    core.drain_writes()


def say(core: RelayCore, conn: int, kind: int, network: str, *keys: bytes) -> None:
    core.stream_received(kit.NOW, conn, frame(kind, network.encode(), *keys))


def test_silent_siblings_are_dropped() -> None:
    region = Region()
    region.connect()
    core = region.one.core
    core.handle_timeout(kit.NOW + 2)
    assert core.drain_writes()  # a ping
    core.handle_timeout(kit.NOW + 20)
    assert not core.shared.links and core.drain_closes() == [region.link]


def test_strangers_are_no_siblings_and_members_no_relays() -> None:
    region = Region()
    region.one.core.shared.admission.siblings.clear()
    region.connect()
    assert region.one.core.shared.links  # it called, and knows whom
    region = Region()
    region.two.core.shared.admission.siblings.clear()
    region.connect()
    assert kit.refusals(region.two.core) == {"bad-login": 1} and not region.two.core.shared.links
    world = World()
    a = world.join(1, TLS)
    assert a.conn is not None
    world.core.stream_received(world.now, a.conn, frame(FORWARD, bytes(32), a.key, b"x"))
    assert world.core.drain_closes() == [a.conn] and kit.refusals(world.core) == {"bad-frame": 1}


def test_a_sibling_has_room_for_so_many_and_only_known_networks() -> None:
    core = kit.make_core(siblings={KEY_2: "fra-2"}, sibling_members=3)
    core.stream_called(kit.NOW, 1, "fra-2", KEY_2)
    stream = core.shared.streams[1]
    Siblings(core.shared).link_up(stream, "fra-2")
    keys = [kit.public_key(n) for n in range(5)]
    core.stream_received(kit.NOW, 1, frame(PRESENT, kit.NETWORK.encode(), *keys))
    assert core.shared.roster.away == 3 and drops(core) == {"sibling-full": 2}
    core.stream_received(kit.NOW, 1, frame(PRESENT, b"a" * 16, *keys))
    assert core.shared.roster.away == 3
    core.stream_received(kit.NOW, 1, frame(PRESENT, kit.NETWORK.encode(), keys[0] + b"x"))
    assert kit.refusals(core) == {"bad-frame": 1} and core.shared.roster.away == 0
