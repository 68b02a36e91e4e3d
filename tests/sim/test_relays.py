"""Homes at relays: the nearest one, another when it dies, forwards nothing or is to stop, and none while it costs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from edgeagent.proto.linkpaths import LinkPaths
from edgeagent.proto.pathfinder import WAKE_BURST
from edgeagent.proto.relays import AWAKE_S
from tests.sim import nat
from tests.sim.device import SimDevice
from tests.sim.homes import Homes, path_of
from tests.sim.nat import Kind
from tests.sim.net import Conditions
from tests.sim.relay import SimRelay
from tests.sim.test_nat import EVERY_S, FIRST_ANSWER_WITHIN_S, longest_gap, talk

KILLED_WITHIN_S = 3.0
BLACKHOLED_WITHIN_S = 15.0
OFF_PER_MINUTE = 40  # datagrams for a peer that is off: WireGuard's own initiations are 12, a row of probes 7
DIRECT_ANSWER_WITHIN_S = 0.65  # the hub is asked, then a few trips of 20 ms


def by_relay(kind: Kind = nat.SYMMETRIC, relays: int = 2) -> tuple[Homes, list[SimDevice]]:
    """Two devices that only relays connect, and that talk."""
    homes = Homes(1, relays=relays)
    pair = homes.pair(kind, kind)
    homes.talk(*pair, every_s=EVERY_S)
    homes.world.run_for(10.0)
    return homes, list(pair)


def home_of(device: SimDevice) -> str | None:
    assert device.node is not None
    return device.node.relays.home


def relay_of(homes: Homes, device: SimDevice) -> SimRelay:
    return next(relay for relay in homes.relays if relay.name == home_of(device))


def far(homes: Homes, relay: SimRelay, delay_s: float) -> None:
    """So long is the way between the relay and everybody, one way."""
    for router in homes.nats:
        homes.internet.pair_conditions[f"nat-{router}", relay.name] = Conditions(delay_s=delay_s)
        homes.internet.pair_conditions[relay.name, f"nat-{router}"] = Conditions(delay_s=delay_s)


@pytest.mark.parametrize("delay_s", [0.1, 0.2, 0.4])
@pytest.mark.parametrize("other", [nat.PORT, nat.SYMMETRIC], ids=lambda kind: kind.name)
def test_where_the_relay_is_far_the_first_answer_comes_by_the_direct_path(other: Kind, delay_s: float) -> None:
    homes = Homes(1)
    a, b = homes.add_device_at(homes.home("a", nat.FULL)), homes.add_device_at(homes.home("b", other))
    far(homes, homes.relay, delay_s)
    homes.wait_joined()
    homes.world.run_for(10.0)
    assert homes.first_answer(a, b) < DIRECT_ANSWER_WITHIN_S
    homes.finish()


@pytest.mark.parametrize("kind", [nat.SYMMETRIC, nat.BLOCKED], ids=lambda kind: kind.name)
def test_a_relay_is_killed(kind: Kind) -> None:
    homes, (a, b) = by_relay(kind)
    killed = relay_of(homes, a)
    assert relay_of(homes, b) is killed
    began = homes.world.now
    killed.kill()
    homes.world.run_for(30.0)
    assert longest_gap(homes, began) < KILLED_WITHIN_S
    assert home_of(a) == home_of(b) != killed.name
    killed.start()
    homes.world.run_for(120.0)
    assert home_of(a) == home_of(b), "it comes back, and nobody hurries there"
    homes.finish()


@pytest.mark.parametrize(("down_s", "up_s"), [(10.0, 0.5), (20.0, 0.5), (40.0, 2.0)])
@pytest.mark.parametrize("kind", [nat.SYMMETRIC, nat.BLOCKED], ids=lambda kind: kind.name)
def test_one_relay_comes_back_and_soon_the_other_is_killed(kind: Kind, down_s: float, up_s: float) -> None:
    homes, (a, b) = by_relay(kind)
    first = relay_of(homes, a)
    first.kill()
    homes.world.run_for(down_s)
    first.start()
    homes.world.run_for(up_s)  # nobody has tried it yet
    second = relay_of(homes, a)
    assert second is not first
    began = homes.world.now
    second.kill()
    homes.world.run_for(30.0)
    assert longest_gap(homes, began) < KILLED_WITHIN_S
    assert home_of(a) == home_of(b) == first.name
    homes.finish()


@pytest.mark.parametrize("kind", [nat.SYMMETRIC, nat.BLOCKED], ids=lambda kind: kind.name)
def test_a_relay_takes_everything_and_forwards_nothing(kind: Kind) -> None:
    homes, (a, b) = by_relay(kind)
    blind = relay_of(homes, a)
    began = homes.world.now
    blind.forwards = False
    homes.world.run_for(40.0)
    assert longest_gap(homes, began) < BLACKHOLED_WITHIN_S
    assert home_of(a) == home_of(b) != blind.name
    homes.finish()


@pytest.mark.parametrize(("every_s", "frozen_s"), [(0.4, 3.3), (0.7, 5.0), (1.0, 2.8)])
def test_packets_that_come_late_do_not_lead_back_to_the_relay_that_was_left(every_s: float, frozen_s: float) -> None:
    """WireGuard answers where it heard its peer last: when both sides do so at once, neither would leave again."""
    homes = Homes(1, relays=2)
    a, b = homes.pair(nat.SYMMETRIC, nat.SYMMETRIC)
    homes.talk(a, b, every_s=every_s)
    homes.world.run_for(10.0)
    frozen = relay_of(homes, a)
    frozen.freeze()
    homes.world.run_for(frozen_s)
    assert home_of(a) == home_of(b) != frozen.name
    frozen.thaw()
    homes.world.run_for(5.0)
    for device in (a, b):
        assert device.node is not None
        (peer,) = device.node.peers(homes.world.now)
        assert peer["endpoint"] == f"relay:{home_of(a)}"
    began = homes.world.now
    frozen.kill()
    homes.world.run_for(30.0)
    assert longest_gap(homes, began) <= every_s + 0.1
    homes.finish()


def test_a_relay_that_is_to_stop_is_left_without_a_gap() -> None:
    homes, (a, b) = by_relay()
    leaving = relay_of(homes, a)
    began = homes.world.now
    assert leaving.core is not None
    leaving.core.begin_drain(homes.world.now, 10)
    leaving.settle()
    homes.world.run_for(30.0)
    assert longest_gap(homes, began) < 0.5
    assert home_of(a) == home_of(b) != leaving.name
    homes.finish()


def test_all_relays_go_and_one_comes_back() -> None:
    homes, (a, b) = by_relay()
    for relay in homes.relays:
        relay.kill()
    homes.world.run_for(60.0)
    assert home_of(a) is None and home_of(b) is None
    homes.relays[1].start()
    homes.world.run_for(20.0)
    began = homes.world.now
    homes.world.run_for(10.0)
    assert homes.traffic.lost(began, homes.world.now - 1.0) == []
    homes.finish()


@pytest.mark.parametrize("kind", [nat.PORT, nat.BLOCKED], ids=lambda kind: kind.name)
def test_home_is_the_nearest_and_stays_where_two_are_as_near(kind: Kind) -> None:
    homes = Homes(1, relays=3)
    a = homes.add_device_at(homes.home("a", kind))
    for relay, delay_s in zip(homes.relays, (0.080, 0.015, 0.018), strict=True):
        far(homes, relay, delay_s)
    homes.wait_joined()
    homes.world.run_for(10.0)
    assert home_of(a) == "relay-2"
    far(homes, homes.relays[1], 0.020)
    homes.world.run_for(600.0)
    a.tell_addresses()
    homes.world.run_for(10.0)
    assert home_of(a) == "relay-2", "a little nearer is no reason to move"
    homes.finish()


def test_a_device_that_moves_finds_the_relay_that_is_near_there() -> None:
    homes = Homes(1, relays=2)
    a = homes.add_device_at(homes.home("a", nat.PORT))
    far(homes, homes.relays[0], 0.010)
    far(homes, homes.relays[1], 0.090)
    homes.wait_joined()
    homes.world.run_for(10.0)
    assert home_of(a) == "relay-1"
    far(homes, homes.relays[0], 0.090)
    far(homes, homes.relays[1], 0.010)
    a.move_to("192.168.1.77")
    homes.world.run_for(20.0)
    assert home_of(a) == "relay-2"
    homes.finish()


def test_no_other_home_while_nobody_can_be_told_of_it() -> None:
    homes = Homes(1, relays=2)
    a = homes.add_device_at(homes.home("a", nat.PORT))
    far(homes, homes.relays[0], 0.010)
    far(homes, homes.relays[1], 0.090)
    homes.wait_joined()
    homes.world.run_for(10.0)
    homes.broker.stop()
    homes.world.run_for(5.0)
    far(homes, homes.relays[0], 0.090)
    far(homes, homes.relays[1], 0.010)
    a.move_to("192.168.1.77")
    homes.world.run_for(60.0)
    assert home_of(a) == "relay-1"
    homes.broker.start()
    homes.world.run_for(600.0)
    assert home_of(a) == "relay-2"
    homes.finish()


def test_peers_at_different_relays_reach_each_other() -> None:
    homes = Homes(1, relays=2)
    a = homes.add_device_at(homes.home("a", nat.SYMMETRIC))
    b = homes.add_device_at(homes.home("b", nat.SYMMETRIC))
    for router, near, remote in (("a", 0, 1), ("b", 1, 0)):
        for index, delay_s in ((near, 0.010), (remote, 0.060)):
            name = homes.relays[index].name
            homes.internet.pair_conditions[f"nat-{router}", name] = Conditions(delay_s=delay_s)
            homes.internet.pair_conditions[name, f"nat-{router}"] = Conditions(delay_s=delay_s)
    homes.wait_joined()
    homes.world.run_for(5.0)
    assert (home_of(a), home_of(b)) == ("relay-1", "relay-2")
    assert homes.first_answer(a, b) < FIRST_ANSWER_WITHIN_S
    talk(homes, a, b, 10.0)
    path = path_of(a, b)
    assert path is not None and path.is_relay and str(path.endpoint) == "relay:relay-2"
    for device, home in ((a, "relay-2"), (b, "relay-1")):
        assert device.node is not None
        (peer,) = device.node.peers(homes.world.now)
        assert peer["endpoint"] == f"relay:{home}", "each sends to the other's home, and hears at its own"
    homes.world.run_for(200.0)
    homes.finish()


def test_a_session_at_a_peers_relay_ends_when_it_is_not_used() -> None:
    homes = Homes(1, relays=2)
    a = homes.add_device_at(homes.home("a", nat.SYMMETRIC))
    b = homes.add_device_at(homes.home("b", nat.SYMMETRIC))
    homes.internet.pair_conditions["nat-a", "relay-2"] = Conditions(delay_s=0.060)
    homes.internet.pair_conditions["nat-b", "relay-1"] = Conditions(delay_s=0.060)
    homes.wait_joined()
    homes.world.run_for(5.0)
    homes.first_answer(a, b)
    assert a.node is not None
    assert {session.relay.id for session in a.node.relays.sessions.all} == {"relay-1", "relay-2"}
    homes.world.run_for(300.0)
    assert {session.relay.id for session in a.node.relays.sessions.all} == {"relay-1"}
    homes.finish()


@pytest.mark.parametrize("both", [False, True])
def test_a_metered_device_has_no_session_until_somebody_calls(both: bool) -> None:
    homes = Homes(1)
    a, b = homes.pair(nat.SYMMETRIC, nat.SYMMETRIC)
    for device in (a, b) if both else (b,):
        device.set_on_demand(True)
    homes.world.run_for(300.0)
    assert b.node is not None and b.node.relays.sessions.all == []
    assert home_of(b) == "relay-1", "it is still told where it will be"
    carried = homes.net.carried
    homes.world.run_for(600.0)
    if both:
        assert homes.net.carried == carried
    assert homes.first_answer(a, b) < FIRST_ANSWER_WITHIN_S
    talk(homes, a, b, 20.0)
    homes.world.run_for(300.0)
    assert b.node.relays.sessions.all == []
    # Now with records, feeds and keys still there, from the other side
    assert homes.first_answer(b, a) < FIRST_ANSWER_WITHIN_S
    homes.finish()


def test_who_calls_a_metered_device_and_says_nothing_does_not_keep_it_awake() -> None:
    homes = Homes(1)
    a, b = homes.pair(nat.SYMMETRIC, nat.SYMMETRIC)
    c = homes.add_device_at(homes.home("c", nat.SYMMETRIC))
    b.set_on_demand(True)
    homes.wait_joined()
    homes.first_answer(a, b)
    homes.world.run_for(400.0)
    node = a.node
    assert node is not None and b.node is not None

    def call() -> None:
        node.finder.peers[b.device_id]._call(a.now)
        node.handle_timeout(a.now)

    for _ in range(WAKE_BURST // 2 + 2):  # each comes by the relay and by the broker
        a._guarded(call)
        homes.world.run_for(5.0)
    homes.world.run_for(AWAKE_S + 30.0)
    a._guarded(call)
    homes.world.run_for(1.0)
    assert b.node.relays.sessions.all == []
    # Nor where it is forgotten meanwhile
    b.node.peering.remove(b.now, a.device_id)
    b.node.finder.know(b.now, b.node.client.records.get(a.device_id))  # type: ignore[arg-type]
    a._guarded(call)
    homes.world.run_for(1.0)
    assert b.node.relays.sessions.all == []
    assert homes.first_answer(c, b) < FIRST_ANSWER_WITHIN_S, "others are heard at once"
    homes.finish()


def test_a_peer_that_is_off_costs_little_though_there_are_packets_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[float] = []  # when the relay said that it does not have the peer: for each datagram that is sent there
    not_at_relay = LinkPaths.not_at_relay

    def count(paths: LinkPaths, now: float, node_key: bytes) -> None:
        told.append(now)
        not_at_relay(paths, now, node_key)

    monkeypatch.setattr(LinkPaths, "not_at_relay", count)
    homes = Homes(1)
    a, b = homes.pair(nat.SYMMETRIC, nat.SYMMETRIC)
    b.set_on_demand(True)
    homes.world.run_for(300.0)
    off: Any = SimpleNamespace(name=b.name, inner_addresses=b.inner_addresses)  # without power it has no address
    b.cut_power()
    for _ in range(300):
        homes.traffic.send(a, off)
        homes.world.run_for(1.0)
    early = len(told)
    assert early > 0
    for _ in range(120):
        homes.traffic.send(a, off)
        homes.world.run_for(1.0)
    assert len(told) - early < OFF_PER_MINUTE * 2
    b.power_on()
    homes.world.run_for(10.0)
    assert homes.first_answer(a, b) < FIRST_ANSWER_WITHIN_S
    homes.finish()


@pytest.mark.slow
def test_a_new_node_key_is_known_at_the_relay_before_it_is_used() -> None:
    homes = Homes(1)
    a, b = homes.pair(nat.SYMMETRIC, nat.SYMMETRIC)
    homes.talk(a, b, every_s=0.5)
    homes.world.run_for(10.0)
    assert a.identity is not None
    before = a.identity.node_key
    began = homes.world.now
    a.identity.make_next(homes.world.stream("next").randbytes)
    a.tell_addresses()
    homes.world.run_for(4_500.0)
    assert a.identity.node_key != before
    assert longest_gap(homes, began) < 1.6
    homes.finish()


def told_home(a: SimDevice, b: SimDevice) -> str | None:
    """At which relay `b` is, as `a` heard last."""
    assert a.node is not None
    entry = a.node.client.records.get(b.device_id)
    assert entry is not None
    return entry.home_relay


def test_who_goes_is_at_no_relay_any_more_and_is_reached_once_it_is_back() -> None:
    homes, (a, b) = by_relay(relays=1)
    path = path_of(a, b)
    assert told_home(a, b) == homes.relay.name and path is not None and path.is_relay
    b.stop()
    homes.world.run_for(1.0)
    assert told_home(a, b) is None and path_of(a, b) is None
    b.start()
    homes.world.run_for(3.0)
    assert told_home(a, b) == homes.relay.name
    assert homes.first_answer(a, b) < FIRST_ANSWER_WITHIN_S


def test_who_begins_anew_at_once_stays_at_its_relay() -> None:
    """If the broker died meanwhile, the relay would be the only way to it."""
    homes, (a, b) = by_relay(relays=1)
    assert b.node is not None
    b.node.farewell(b.now, returns=True)
    b._settle()
    homes.world.run_for(1.0)
    assert told_home(a, b) == homes.relay.name
