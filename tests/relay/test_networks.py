"""Networks and siblings that come and go while a relay runs, each network with its own name for it."""

from __future__ import annotations

import random

import pytest

from edgeagent.proto.names import network_id
from edgeagent.proto.relay_client import RelayClient
from edgeagent.proto.relay_events import Carrier, PassRefused, RelayDown
from edgeagent.proto.relay_frames import CHALLENGE, FORWARD, PRESENT, Refusal, frame
from edgeagent.proto.signed import sign_object
from relay.core.admission import Neighbour
from relay.core.relay import RelayCore
from relay.core.shared import Happening
from tests.relay import kit
from tests.relay.kit import Host, World, drops, refusals
from tests.relay.test_siblings import KEY_2, PRIVATE_2, Region

UDP, TLS = Carrier.DATAGRAM, Carrier.STREAM
KEY_3 = kit.public_key(3_000)


def bare_core() -> RelayCore:
    """A relay that no network has taken in yet."""
    return RelayCore(
        kit.NOW,
        kit.WALL_S,
        crypto=kit.CRYPTO,
        entropy=random.Random(3).randbytes,
        relay="wished",
        region="",
        private=kit.RELAY_PRIVATE,
    )


def join(world: World, number: int, relay: str, pass_object: bytes) -> Host:
    """A member that knows the relay by this name."""
    client: RelayClient = kit.make_client(number, carriers=(TLS,), pass_object=pass_object)
    client._login.relay = relay
    host = Host(number, client)
    world.hosts.append(host)
    client.start(world.now)
    world.settle()
    return host


def other_pass(number: int, regions: list[str], seq: int = 1) -> bytes:
    return kit.make_pass(number, seed=kit.OTHER_SEED, network=kit.OTHER_NETWORK, relays=[], regions=regions, seq=seq)


def test_each_network_has_its_own_name_and_region_for_a_relay() -> None:
    world = World(bare_core())
    early = join(world, 1, "fra-1", kit.make_pass(1, relays=["fra-1"]))
    assert not early.client.alive and refusals(world.core) == {"wrong-network": 1}
    world.core.serve(world.now, kit.NETWORK_KEY, "fra-1", "fra")
    world.core.serve(world.now, kit.OTHER_KEY, "relay-7", "europe")
    assert (world.core.shared.admission.relay, world.core.shared.admission.region) == ("fra-1", "fra")
    a = join(world, 2, "fra-1", kit.make_pass(2, relays=["fra-1"]))
    b = join(world, 3, "relay-7", other_pass(3, ["europe"]))
    assert a.client.alive and b.client.alive
    # The name or region of another network counts for nothing
    for number, pass_object in ((4, other_pass(4, ["fra"])), (5, kit.make_pass(5, relays=["relay-7"]))):
        refused = join(world, number, "fra-1", pass_object)
        assert [e.refusal for e in refused.told(PassRefused) if isinstance(e, PassRefused)] == [Refusal.WRONG_RELAY]
    nobody = join(world, 6, "wished", kit.make_pass(6, relays=["wished"]))
    assert not nobody.client.alive and refusals(world.core)["bad-login"] == 1
    # Under a new name the members of the old one stay
    world.core.serve(world.now, kit.NETWORK_KEY, "fra-1-1", "fra")
    assert a.client.alive and join(world, 7, "fra-1-1", kit.make_pass(7, relays=["fra-1-1"])).client.alive


def test_a_network_that_takes_its_relay_back_takes_its_members_along() -> None:
    world = World(bare_core())
    world.core.serve(world.now, kit.NETWORK_KEY, "fra-1", "fra")
    world.core.serve(world.now, kit.OTHER_KEY, "fra-1", "fra")
    a, b = join(world, 1, "fra-1", kit.make_pass(1)), join(world, 2, "fra-1", other_pass(2, ["fra"]))
    world.core.leave(kit.NETWORK)
    world.settle()
    assert a.told(RelayDown) and b.client.alive
    assert list(world.core.shared.roster.networks) == [kit.OTHER_NETWORK]
    late = join(world, 3, "fra-1", kit.make_pass(3))
    assert not late.client.alive and refusals(world.core)["wrong-network"] == 2
    world.core.leave(kit.NETWORK)
    world.core.serve(world.now, kit.NETWORK_KEY, "fra-1", "fra")
    late.client.set_pass(world.now, kit.make_pass(3, seq=2))
    world.settle()
    assert late.client.alive


def gone(number: int, wall_s: int) -> bytes:
    return sign_object(
        kit.CRYPTO,
        kit.SEED,
        kind="gone",
        network=kit.NETWORK,
        subject=kit.device(number),
        epoch=1,
        seq=1,
        wall_s=wall_s,
        body={},
    )


@pytest.mark.parametrize("carrier", [UDP, TLS])
def test_a_removal_that_is_said_again_leaves_the_device_that_came_back(carrier: Carrier) -> None:
    world = World()
    host = world.join(1, carrier)
    removed = gone(1, kit.WALL_S + 5)
    world.core.revoke(removed)
    world.settle()
    assert refusals(world.core) == {"revoked": 1} and len(world.core.shared.roster) == 0
    world.advance(1)
    host.client.set_pass(world.now, kit.make_pass(1, seq=2, issued=6))
    world.advance(1)
    assert host.client.alive
    world.core.revoke(removed)
    world.settle()
    assert host.client.alive
    world.core.revoke(gone(1, kit.WALL_S + 6))
    world.settle()
    assert len(world.core.shared.roster) == 0


# siblings


def shares(*networks: str) -> Neighbour:
    return Neighbour("fra-2", frozenset(networks))


def test_learned_siblings_within_the_limit_and_beside_the_given() -> None:
    core = kit.make_core(siblings={KEY_2: "fra-2"})
    assert core.set_siblings({KEY_3: shares(kit.NETWORK), kit.RELAY_KEY: shares(kit.NETWORK)}) == [KEY_2, KEY_3]
    admission = core.shared.admission
    assert admission.shares(KEY_2, "any") and admission.shares(KEY_3, kit.NETWORK)
    assert not admission.shares(KEY_3, kit.OTHER_NETWORK) and not admission.shares(kit.RELAY_KEY, kit.NETWORK)
    many = {kit.public_key(n): shares(kit.NETWORK) for n in range(40)}
    chosen = core.set_siblings(many)
    assert len(chosen) == core.shared.limits.siblings and chosen[0] == KEY_2
    assert chosen[1:] == sorted(many)[: len(chosen) - 1]
    assert core.set_siblings({}) == [KEY_2]


def test_networks_have_their_siblings_chosen_in_turn() -> None:
    """One whose map names many relays leaves room for those of the others."""
    core = kit.make_core(siblings={KEY_2: "fra-2"})
    room = core.shared.limits.siblings - 1
    many = {kit.public_key(n): shares(kit.NETWORK) for n in range(40)}
    few = {kit.public_key(n): shares(kit.OTHER_NETWORK) for n in range(40, 43)}
    chosen = core.set_siblings({**many, **few})
    assert set(few) < set(chosen) and len(chosen) == 1 + room
    assert {key for key in chosen if key in many} == set(sorted(many)[: room - len(few)])


def test_a_key_of_small_order_is_no_siblings() -> None:
    """Any network's hub can put one into its map."""
    core = kit.make_core()
    for weak in (bytes(32), bytes.fromhex("ec" + 30 * "ff" + "7f")):
        assert core.set_siblings({weak: shares(kit.NETWORK)}) == []
        core.stream_called(kit.NOW, 9, "fra-2", weak)  # as if it were
        core.stream_received(kit.NOW, 9, frame(CHALLENGE, bytes(24)))
        assert core.drain_closes() == [9]
    assert refusals(core) == {"bad-login": 2}


def test_a_link_ends_when_its_sibling_is_another_or_none() -> None:
    region = Region()
    for core, key in zip(region.cores, (KEY_2, kit.RELAY_KEY), strict=True):
        core._given_siblings.clear()
        core.set_siblings({key: shares(kit.NETWORK)})
    region.connect()
    assert all(core.shared.links for core in region.cores)
    core = region.one.core
    core.set_siblings({KEY_2: shares(kit.NETWORK)})
    assert core.shared.links
    core.set_siblings({KEY_2: shares(kit.NETWORK, kit.OTHER_NETWORK)})
    assert not core.shared.links and core.drain_closes() == [region.link]
    assert Happening.SIBLING_DOWN in [happening for happening, _ in core.drain_happenings()]
    region.settle()
    region.two.core.set_siblings({})
    region.connect()
    assert not region.two.core.shared.links and refusals(region.two.core)["bad-login"] == 1


def test_a_sibling_hears_and_speaks_of_shared_networks_alone() -> None:
    region = Region()
    for core, key in zip(region.cores, (KEY_2, kit.RELAY_KEY), strict=True):
        core._given_siblings.clear()
        core.set_siblings({key: shares(kit.OTHER_NETWORK)})
    a = region.join(region.one, 1)
    region.connect()
    b = region.join(region.two, 2)
    assert [kind for kind, _ in region.crossed if kind == PRESENT] == []
    # And what a sibling says or sends all the same is nothing to that network
    core = region.one.core
    core.stream_received(kit.NOW, region.link, frame(PRESENT, kit.NETWORK.encode(), b.key))
    core.stream_received(kit.NOW, region.link, frame(FORWARD, b.key, a.key, b"from elsewhere"))
    region.settle()
    assert drops(core) == {"sibling-foreign": 2} and core.shared.roster.away == 0 and a.packets == []
    region.send(a, b.key, b"not by that relay")
    assert drops(core) == {"sibling-foreign": 2, "not-here": 1}
    unknown = network_id(kit.CRYPTO, bytes(32))
    core.stream_received(kit.NOW, region.link, frame(PRESENT, unknown.encode(), b.key))
    assert drops(core) == {"sibling-foreign": 2, "not-here": 1}


def test_a_sibling_finds_the_relay_by_any_of_its_names() -> None:
    one = kit.make_core()
    one.serve(kit.NOW, kit.OTHER_KEY, "relay-7", "europe")
    one.set_siblings({KEY_2: shares(kit.OTHER_NETWORK)})
    two = kit.make_core(relay="x", private=PRIVATE_2)
    two.set_siblings({kit.RELAY_KEY: Neighbour("relay-7", frozenset((kit.OTHER_NETWORK,)))})
    one.stream_opened(kit.NOW, 5, bytes(4))
    two.stream_called(kit.NOW, 5, "relay-7", kit.RELAY_KEY)
    for _ in range(4):
        for core, other in ((one, two), (two, one)):
            for conn, data in core.drain_writes():
                other.stream_received(kit.NOW, conn, data)
    assert list(one.shared.links) == [KEY_2] and list(two.shared.links) == [kit.RELAY_KEY]
