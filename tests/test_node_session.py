"""The node and its broker: epochs, presence, reconnecting, time, what is kept on flash, renewal of the node key."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeagent.proto import snapshot, topics
from edgeagent.proto.backoff import Backoff
from edgeagent.proto.epochs import RESERVE, Epochs
from edgeagent.proto.identity import Admission, Identity
from edgeagent.proto.node_events import (
    AdmissionChanged,
    CacheDirty,
    IdentityChanged,
    MapChanged,
    NodeKeyRenewed,
    ReconnectWanted,
)
from edgeagent.proto.refusals import ControlDrop, ControlError
from edgeagent.proto.signed import WILL_SEQ
from edgeagent.proto.walltime import WallFloor
from tests.control_kit import CRYPTO, NETWORK, OTHER, WALL_S, entropy_of
from tests.node_kit import Board, World, opened, send


@pytest.fixture
def world() -> World:
    return World()


def states(board: Board) -> list[tuple[int, int, bool]]:
    found = [publish for publish in board.publishes if publish.topic.endswith("/state")]
    return [(*(m := opened(board, "state", publish.payload)).stamp, m.body["up"]) for publish in found]


def test_every_session_has_its_epoch_and_a_late_will_is_older(world: World) -> None:
    a = world.add(1, "a")
    will = opened(a, "state", a.node.last_will(world.now).payload)
    world.disconnect(a)
    world.connect(a)
    (e1, q1, up1), (e2, q2, up2) = states(a)
    assert up1 and up2
    assert (e1, q1) < will.stamp == (e1, WILL_SEQ) < (e2, q2)
    assert not will.body["up"]
    assert all(publish.qos == 1 for publish in a.publishes)
    assert [publish.retain for publish in a.publishes if publish.topic.endswith("/state")] == [True, True]
    a.node.farewell(world.now)
    world.crank()
    assert states(a)[-1][2] is False
    assert (e2, q2) < states(a)[-1][:2] < (e2, WILL_SEQ)


def test_subscriptions_that_a_new_session_did_not_take_are_asked_for_again(world: World) -> None:
    """The broker lost the session, made another with CONNECT, and was gone, or refused, before it had them."""
    a = world.add(1, "a")
    world.say_hub_state(True)
    world.say_map(a)
    world.disconnect(a)
    down, hub = topics.down_filter(NETWORK, a.id), topics.hub_state(NETWORK)
    assert a.session is not None and {down, hub} <= a.session.keys()
    partly: list[list[str]] = [[], [down], [hub]]
    for taken in partly:
        a.session = {}
        a.node.begin_session(world.now)
        a.node.handle_connected(world.now, False)
        wanted = [topic for topic, subscribe in a.node.drain_subscriptions() if subscribe]
        assert {down, hub} <= set(wanted)
        for topic in taken:
            a.session[topic] = None
            for retained, payload in world.retained.items():
                if topic == retained or retained.startswith(topic.rstrip("#")):
                    a.node.handle_message(world.now, retained, payload)
        a.node.handle_disconnected(world.now)
        world.connect(a)
        assert {down, hub} <= a.session.keys()
        world.disconnect(a)
    world.connect(a)
    assert a.node.client.hub_up


def test_a_session_that_goes_on_costs_no_subscription(world: World) -> None:
    a = world.add(1, "a")
    world.say_hub_state(True)
    world.say_map(a)
    world.disconnect(a)
    a.node.begin_session(world.now)
    a.node.handle_connected(world.now, True)
    topics_now = [topic for topic, _ in a.node.drain_subscriptions()]
    assert len(topics_now) == 1 and topics_now[0].startswith(f"em1/{NETWORK}/{a.id}/s/"), "its inbox is of each life"


def test_epochs_are_saved_in_blocks_before_they_are_used(world: World) -> None:
    a = world.add(1, "a", online=False)
    a.events.clear()
    for _ in range(RESERVE):
        a.node.begin_session(world.now)
    urgent = [event for event in a.node.drain_events() if isinstance(event, CacheDirty) and event.urgent]
    assert len(urgent) == 1
    used = opened(a, "state", a.node.last_will(world.now).payload).epoch
    a.saved = a.node.snapshot(world.now)
    world.start(a)
    a.node.begin_session(world.now)
    assert opened(a, "state", a.node.last_will(world.now).payload).epoch > used


@given(st.lists(st.sampled_from(["begin", "crash"]), max_size=200))
def test_no_epoch_is_used_twice(steps: list[str]) -> None:
    saved, seen = 0, set()
    epochs = Epochs(saved)
    for step in steps:
        if step == "crash":
            epochs = Epochs(saved)
            continue
        if epochs.begin():
            saved = epochs.reserved
        assert epochs.epoch not in seen
        seen.add(epochs.epoch)


def test_a_device_that_lost_its_epoch_is_told(world: World) -> None:
    a = world.add(1, "a")
    world.say(a, "time", {"e": 500})
    assert any(isinstance(event, ReconnectWanted) for event in a.events)
    world.disconnect(a)
    world.connect(a)
    assert a.births[-1].epoch == 501
    a.events.clear()
    world.say(a, "time", {"e": 500})
    assert not any(isinstance(event, ReconnectWanted) for event in a.events)


def test_reconnecting_is_jittered_and_bounded() -> None:
    for seed in range(20):
        backoff = Backoff(random.Random(seed).random, 1.0, 300.0)
        waits = [backoff.wait_s() for _ in range(50)]
        assert 1 <= waits[0] <= 3
        assert all(1 <= wait <= 300 for wait in waits)
        assert all(after <= 3 * before for before, after in pairwise(waits))
        assert max(waits) > 20
        backoff.reset()
        assert backoff.wait_s() <= 3


def test_reconnecting_starts_over_after_a_good_connection(world: World) -> None:
    a = world.add(1, "a")

    def wait_s() -> float:
        at = a.node.next_connect_at
        assert at is not None
        return at - world.now

    waits = []
    for _ in range(30):
        world.disconnect(a)
        waits.append(wait_s())
    assert waits[0] <= 3 and max(waits) > 20
    world.connect(a)
    world.run(61)
    world.disconnect(a)
    assert wait_s() <= 3


def test_a_new_address_of_our_own_ends_a_long_pause(world: World) -> None:
    a = world.add(1, "a")
    while a.node.next_connect_at is None or a.node.next_connect_at - world.now < 30:
        world.disconnect(a)
    a.node.handle_addresses(world.now, a.endpoints)
    assert a.node.next_connect_at - world.now >= 30, "nothing is new"
    a.node.handle_addresses(world.now, [(bytes((198, 51, 100, 77)), 4000)])
    assert a.node.next_connect_at - world.now <= 3


def test_the_hub_may_slow_the_fleet_down(world: World) -> None:
    a = world.add(1, "a")
    a.settings = {"reconnect_min_s": 60, "mqtt_keepalive_s": 99_999, "unheard_of": -1}
    world.say_map(a)
    assert a.node.mqtt_keepalive_s == 3600
    world.disconnect(a)
    assert a.node.next_connect_at is not None and a.node.next_connect_at - world.now >= 60


def test_the_map_is_kept_and_told(world: World) -> None:
    a = world.add(1, "a")
    a.events.clear()
    first = a.node.map
    a.name = "renamed"
    world.say_map(a, h=["other.example:1", "hub.example:8883"])
    assert a.node.map.name == "renamed"
    assert a.node.hosts == ["other.example:1", "hub.example:8883"]
    assert [type(event) for event in a.events] == [AdmissionChanged, MapChanged]
    kept = Admission.decode(CRYPTO, a.node.admission.encode())
    assert kept.open_map(CRYPTO, a.id).stamp == a.node.map.stamp > first.stamp
    world.disconnect(a)
    world.connect(a)  # the retained map comes again
    assert a.births[-1].body["map"] == list(a.node.map.stamp)
    assert a.node.client.drops[ControlDrop.REPLAYED] == 0


def test_time_only_goes_up(world: World) -> None:
    wall = WallFloor(10.0, 1000.0)
    assert (wall.at(10.0), wall.at(15.0), wall.known) == (1000.0, 1005.0, False)
    assert not wall.raise_to(15.0, 900.0)
    assert wall.known
    assert wall.raise_to(15.0, 2000.0)
    assert wall.at(16.0) == 2001.0
    wall.restore(16.0, 1.0)
    assert wall.at(16.0) == 2001.0
    a = world.add(1, "a", online=False)
    assert a.node.wall.at(world.now) < WALL_S
    world.connect(a)
    assert a.node.wall.at(world.now) == WALL_S + world.now
    a.saved = a.node.snapshot(world.now)
    world.start(a)
    assert a.node.wall.at(world.now) == WALL_S + world.now
    assert not a.node.wall.known


def test_records_end(world: World) -> None:
    a, b = world.add(1, "a"), world.add(2, "b")
    world.run(2)
    send(world, a, b)
    a.saved = a.node.snapshot(world.now)
    world.now += 31 * 86_400
    world.start(a)
    assert len(a.node.client.records) == 1  # without the hub's time nobody knows
    world.connect(a)
    assert a.node.wall.known
    assert not a.node.client.is_known(world.now, ("a", b.v4))
    old = world.record(b, not_after=int(WALL_S + world.now) - 1)
    world.say(a, "rec", {"rec": old, "fk": b.feed_key, "fg": 1})
    assert a.node.client.drops[ControlDrop.EXPIRED] == 1


def test_a_record_in_use_ends_too(world: World) -> None:
    a, b = world.add(1, "a"), world.add(2, "b")
    world.run(2)
    record = world.record(b, not_after=int(WALL_S + world.now) + 100)
    world.say(a, "rec", {"rec": record, "fk": b.feed_key, "fg": 1})
    world.hub_answers = False
    send(world, a, b)
    assert len(a.node.peering.links) == 1
    world.run(140)
    assert a.node.peering.links == {}


# What is kept on flash


def test_a_damaged_cache_is_no_cache(world: World) -> None:
    a, b = world.add(1, "a"), world.add(2, "b")
    world.run(2)
    send(world, a, b)
    good = a.node.snapshot(world.now)
    for bad in (b"", good[:-1], good[:100], b"\0" + good, bytes(len(good)), good[:-40] + b"\1" + good[-39:]):
        a.saved = bad
        world.start(a)
        assert len(a.node.client.records) == 0
        assert a.node.client.drops[ControlDrop.BAD_CACHE] == 1
    a.saved = good
    world.start(a)
    assert len(a.node.client.records) == 1
    assert a.node.client.drops[ControlDrop.BAD_CACHE] == 0
    b.saved = good
    world.start(b)
    assert b.node.client.drops[ControlDrop.BAD_CACHE] == 1


def test_the_snapshot_is_bounded_and_keeps_the_newest(world: World) -> None:
    a = world.add(1, "a")
    for n in range(256):
        other = Board(n % 250 + 2, f"b{n}")
        other.identity = Identity.create(CRYPTO, entropy_of(5000 + n))
        other.id = other.identity.device_id
        other.node_keys = [[other.identity.node_key, 0]]
        other.v4 = bytes((100, 65, n, 1))
        other.routes = [[bytes.fromhex("2001") + bytes((m,)) + bytes(13), 24] for m in range(64)]
        world.say_rec(a, other)
    data = a.node.snapshot(world.now)
    assert len(a.node.client.records) == 256
    assert 0.8 * snapshot.SNAPSHOT_BYTES_MAX < len(data) <= snapshot.SNAPSHOT_BYTES_MAX
    a.saved = data
    world.start(a)
    kept = [entry.record.name for entry in a.node.client.records]
    assert 100 < len(kept) < 256
    assert kept == [f"b{n}" for n in range(256 - len(kept), 256)]
    assert a.node.snapshot(world.now) == data


def test_identity_and_admission_are_strict() -> None:
    identity = Identity.create(CRYPTO, entropy_of(5))
    again = Identity.decode(CRYPTO, identity.encode())
    assert (again.device_id, again.node_key, again.next_key) == (identity.device_id, identity.node_key, None)
    identity.make_next(entropy_of(6))
    again = Identity.decode(CRYPTO, identity.encode())
    assert again.next_key == identity.next_key is not None
    again.switch()
    assert (again.node_key, again.next_key) == (identity.next_key, None)
    for bad in (b"", identity.encode()[:-1], b"\xa0"):
        with pytest.raises(ControlError):
            Identity.decode(CRYPTO, bad)
        with pytest.raises(ControlError):
            Admission.decode(CRYPTO, bad)


# Renewal of the node key


def renewing(world: World) -> tuple[Board, Board, bytes]:
    a, b = world.add(1, "a"), world.add(2, "b")
    a.settings = {"node_key_life_s": 3000, "node_key_grace_s": 60}
    a.node_keys[0][1] = int(WALL_S + world.now) + 3000
    world.say_map(a)
    world.run(2)
    send(world, a, b)
    send(world, b, a)
    return a, b, a.identity.node_key


def chat(world: World, a: Board, b: Board, seconds: int) -> list[int]:
    """One packet each way a second; returns how many arrived late or never, at a and at b."""
    lost = [0, 0]
    for n in range(seconds):
        world.run(1)
        for index, (sender, reader) in enumerate([(b, a), (a, b)]):
            packet = send(world, sender, reader, n.to_bytes(4, "big"))
            if packet not in reader.received[-2:]:
                lost[index] += 1
    return lost


@pytest.mark.parametrize("feed_first", [False, True])
def test_the_node_key_is_renewed_under_traffic(world: World, feed_first: bool) -> None:
    a, b, first = renewing(world)
    if not feed_first and b.session is not None:
        del b.session[topics.feed(NETWORK, a.id)]  # b learns of it by the handshake alone
    assert chat(world, a, b, 2100) == [0, 0]
    second = a.identity.node_key
    assert second != first
    assert [key for key, _ in a.node_keys] == [first, second]
    assert any(isinstance(event, NodeKeyRenewed) for event in a.events)
    assert sum(isinstance(event, IdentityChanged) for event in a.events) == 2
    assert a.births[-1].body["nk"] == second
    assert list(b.node.device.peers) == [second]
    assert b.node.peering.links[a.id].peer.public_key == second
    assert b.node.client.drops[ControlDrop.STRANGER_REFUSED] == 0


def test_the_other_side_begins_with_the_new_key(world: World) -> None:
    a, b, first = renewing(world)
    world.run(2100)  # without traffic
    assert a.identity.node_key != first
    packet = send(world, b, a)
    assert a.received[-1] == packet
    assert list(b.node.device.peers) == [a.identity.node_key]


def test_an_initiation_under_the_old_key_is_no_way_back(world: World) -> None:
    a, b, first = renewing(world)
    world.run(130)
    before = len(world.wire)
    send(world, a, b)
    initiation = next(datagram for datagram in world.wire[before:] if datagram[0] == 1)
    world.run(2000)
    send(world, a, b)
    assert b.node.peering.links[a.id].peer.public_key != first
    world.deliver(a, initiation, b.listens[0])
    world.crank()
    assert b.node.peering.links[a.id].peer.public_key == a.identity.node_key
    assert b.node.client.drops[ControlDrop.STRANGER_REFUSED] == 1
    packet = send(world, b, a)
    assert a.received[-1] == packet


def test_a_renewal_outlives_restarts_and_lost_reports(world: World) -> None:
    a, b, first = renewing(world)
    world.hub_answers = False
    world.run(2100)
    assert a.identity.next_key is not None
    reports = [publish for publish in a.publishes if publish.topic.endswith("/report")]
    assert len(reports) >= 2
    coming = a.identity.next_key
    a.identity = Identity.decode(CRYPTO, a.identity.encode())
    a.saved = a.node.snapshot(world.now)
    world.start(a)
    world.hub_answers = True
    world.connect(a)
    world.run(100)
    assert a.identity.node_key == coming != first
    packet = send(world, b, a)
    world.run(10)
    assert packet in a.received


def test_a_key_that_the_map_lost_is_reported_again(world: World) -> None:
    a = world.add(1, "a")
    a.node_keys = [[OTHER.node_key, 0]]
    a.settings = {"node_key_life_s": 3600}
    world.say_map(a)
    world.run(60)
    assert [a.identity.node_key] == [key for key, _ in a.node_keys[1:]]
    assert a.node.renewal.state.value == "resting"


def test_a_revoked_key_is_cut_off(world: World) -> None:
    a, b, first = renewing(world)
    b.node_keys = [[OTHER.node_key, 0]]
    world.say_rec(a, b)
    world.crank()
    assert list(a.node.device.peers) == [OTHER.node_key]
    assert a.node.device.allowed_ips.lookup(b.v4) is a.node.device.peers[OTHER.node_key]
    assert first
