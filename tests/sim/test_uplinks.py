"""Devices with two WANs: a cable pulled, a router that swallows everything, flapping, other addresses, and back."""

from __future__ import annotations

from itertools import pairwise

import pytest

from edgeagent.proto.path import State
from edgeagent.proto.uplink import HOLD_MIN_S
from tests.sim import nat
from tests.sim.homes import Homes, is_direct, path_of
from tests.sim.nat import Kind
from tests.sim.net import Conditions
from tests.sim.test_nat import EVERY_S, IN_FLIGHT_S, longest_gap, talk
from tests.sim.wans import add_wan_device

pytestmark = pytest.mark.long

GAP_MAX_S = 1.0
IDLE_H = 2.0
SELDOM_S = 0.25  # where it is only to be known that the way is in use
INSTANT_S = 3 * EVERY_S  # no more than what was under way
SILENCE = Conditions(loss=1.0)


class Site:
    """`a` with two WANs and `b` with one, talking directly, without any relay to help them out."""

    def __init__(
        self,
        seed: int = 1,
        first: Kind = nat.PORT,
        second: Kind = nat.PORT,
        *,
        metered: bool = False,
    ) -> None:
        self.homes = Homes(seed)
        self.homes.relay.forwards = False
        wans = [("eth0", self.homes.home("w1", first)), ("wwan0", self.homes.home("w2", second))]
        self.a = add_wan_device(self.homes, wans, metered=("wwan0",) if metered else ())
        self.b = self.homes.add_device_at(self.homes.home("b", nat.PORT))
        self.homes.wait_joined()
        self.homes.world.run_for(3.0)
        self.talk(6.0)
        assert self.uplink() == "eth0"

    def talk(self, seconds: float, every_s: float = EVERY_S) -> float:
        """The longest gap, in either direction."""
        began = self.homes.world.now
        talk(self.homes, self.a, self.b, seconds, every_s)
        return longest_gap(self.homes, began)

    def uplink(self) -> str | None:
        """By which `a` sends."""
        path = path_of(self.a, self.b)
        return None if path is None else self.a.names[path.endpoint.uplink - 1]

    def lost(self, since: float) -> int:
        return len(self.homes.traffic.lost(since, self.homes.world.now - IN_FLIGHT_S))

    def black(self, wan: str, *, outward: bool = True, inward: bool = True) -> None:
        """What passes the router of that WAN is gone, and nobody is told."""
        conditions = self.homes.internet.pair_conditions
        for name in self.homes.net.stations:
            if outward:
                conditions[f"nat-{wan}", name] = SILENCE
            if inward:
                conditions[name, f"nat-{wan}"] = SILENCE

    def light(self) -> None:
        self.homes.internet.pair_conditions.clear()


@pytest.mark.parametrize("kinds", [(nat.PORT, nat.PORT), (nat.FULL, nat.CARRIER)], ids=["ports", "carrier"])
def test_a_cable_that_is_pulled_mid_flow(kinds: tuple[Kind, Kind]) -> None:
    site = Site(1, *kinds)
    site.a.pull("eth0")
    assert site.talk(10.0) < INSTANT_S
    assert site.uplink() == "wwan0"
    assert is_direct(site.a, site.b) and is_direct(site.b, site.a)
    began = site.homes.world.now
    site.a.plug("eth0")
    site.talk(HOLD_MIN_S + 5.0)
    assert site.lost(began) == 0
    assert site.uplink() == "eth0"
    site.homes.finish()


@pytest.mark.parametrize("direction", ["both", "outward", "inward"])
def test_a_router_that_swallows_everything(direction: str) -> None:
    site = Site()
    site.black("w1", outward=direction != "inward", inward=direction != "outward")
    assert site.talk(20.0) < GAP_MAX_S
    assert site.uplink() == "wwan0"
    began = site.homes.world.now
    site.light()
    site.talk(90.0)
    assert site.lost(began) == 0
    assert site.uplink() == "eth0"
    site.homes.finish()


@pytest.mark.parametrize("sender", ["a", "b"])
def test_a_black_hole_under_traffic_that_goes_one_way(sender: str) -> None:
    site = Site()
    one, other = (site.a, site.b) if sender == "a" else (site.b, site.a)
    homes, began = site.homes, site.homes.world.now
    for step in range(400):
        if step == 100:
            began = homes.world.now
            site.black("w1")
        homes.traffic.send(one, other)
        homes.world.run_for(EVERY_S)
    sent = [each for each in homes.traffic.sent.values() if each.sent_at >= began and each.sender == one.name]
    came = [each.sent_at for each in sent if each.arrived_at is not None]
    assert came[0] - began < GAP_MAX_S
    assert all(after - before <= 2 * EVERY_S for before, after in pairwise(came))
    homes.finish()


def test_the_other_end_has_two_as_well() -> None:
    homes = Homes(1)
    a, b = (
        add_wan_device(homes, [("eth0", homes.home(f"{name}1", nat.PORT)), ("wwan0", homes.home(f"{name}2", nat.PORT))])
        for name in "ab"
    )
    homes.wait_joined()
    homes.world.run_for(3.0)
    talk(homes, a, b, 8.0)
    for device, other in ((a, b), (b, a)):
        path = path_of(device, other)
        assert path is not None and (device.names[path.endpoint.uplink - 1], path.state) == ("eth0", State.PROVEN)
    began = homes.world.now
    a.pull("eth0")
    talk(homes, a, b, 5.0)
    b.pull("eth0")
    talk(homes, a, b, 5.0)
    assert longest_gap(homes, began) < INSTANT_S
    a.plug("eth0")
    a.pull("wwan0")
    talk(homes, a, b, 5.0)
    assert longest_gap(homes, began) < GAP_MAX_S
    homes.finish()


def test_a_flapping_uplink_costs_nothing_and_is_not_chosen_back() -> None:
    site = Site()
    began = site.homes.world.now
    moves = 0
    for _ in range(12):
        site.a.pull("eth0")
        gap = site.talk(2.0)
        assert gap < INSTANT_S
        site.a.plug("eth0")
        assert site.talk(3.0) < INSTANT_S
        moves += site.uplink() == "eth0"
    assert moves == 0
    assert site.lost(began) <= 2  # those under way when it was pulled first
    active = site.a.node.reach.uplinks.active  # type: ignore[union-attr]
    assert active is not None and active.name == "wwan0"
    site.homes.finish()


def test_another_address_on_the_standby_is_nobodys_loss() -> None:
    site = Site()
    began = site.homes.world.now
    site.a.renumber("wwan0", "192.168.1.77")
    site.talk(3.0)
    site.homes.nats["w2"].move("203.0.99.2")
    site.talk(30.0)
    site.homes.nats["w2"].rebind()
    site.talk(30.0)
    assert site.lost(began) == 0
    site.a.pull("eth0")
    assert site.talk(5.0) < GAP_MAX_S
    site.homes.finish()


def test_another_address_on_the_active_one() -> None:
    site = Site()
    site.a.renumber("eth0", "192.168.1.77")
    assert site.talk(5.0) < GAP_MAX_S
    site.homes.nats["w1"].move("203.0.99.1")
    assert site.talk(20.0) < GAP_MAX_S
    site.talk(60.0)
    assert site.uplink() == "eth0"
    site.homes.finish()


def test_both_are_gone_and_one_comes_back() -> None:
    site = Site()
    site.a.pull("eth0")
    site.a.pull("wwan0")
    site.talk(20.0)
    assert site.uplink() is None
    site.a.plug("wwan0")
    site.talk(5.0)
    assert site.uplink() == "wwan0"
    site.homes.finish()


def test_a_metered_standby_costs_little_with_traffic_and_next_to_nothing_without() -> None:
    site = Site(metered=True)
    site.homes.world.run_for(400.0)
    sent: list[int] = []
    segment = site.a.interface("wwan0").segment
    carry = segment.carry

    def counted(sender, datagram, next_hop):  # type: ignore[no-untyped-def]
        sent.append(len(datagram.payload) + 28)
        carry(sender, datagram, next_hop)

    segment.carry = counted  # type: ignore[method-assign]
    site.talk(480.0, SELDOM_S)
    assert site.uplink() == "eth0"
    assert 0 < sum(sent) / 480.0 < 10.0  # B/s, both ways
    site.homes.world.run_for(3_600.0)
    sent.clear()
    site.homes.world.run_for(IDLE_H * 3_600.0)
    assert 0 < sum(sent) < 20_000 * IDLE_H / 24
    site.homes.finish()


def test_with_relays_too_nothing_is_lost() -> None:
    homes = Homes(1)
    a = add_wan_device(homes, [("eth0", homes.home("w1", nat.PORT)), ("wwan0", homes.home("w2", nat.SYMMETRIC))])
    b = homes.add_device_at(homes.home("b", nat.PORT))
    homes.wait_joined()
    homes.world.run_for(3.0)
    talk(homes, a, b, 6.0)
    assert is_direct(a, b)
    began = homes.world.now
    a.pull("eth0")  # by the other one there is no direct way
    talk(homes, a, b, 6.0)
    assert longest_gap(homes, began) < GAP_MAX_S
    path = path_of(a, b)
    assert path is not None and path.is_relay
    homes.finish()


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 12))])
def test_as_long_as_one_of_two_works_the_gaps_are_short(seed: int) -> None:
    site = Site(seed)
    homes, dice = site.homes, site.homes.world.stream("disturbances")
    for step in range(20):
        name, wan = dice.choice((("eth0", "w1"), ("wwan0", "w2")))
        happening = dice.randrange(5)
        if happening == 0:
            site.a.pull(name)
        elif happening == 1:
            site.black(wan)
        elif happening == 2:
            site.a.renumber(name, f"192.168.1.{150 + step}")
        elif happening == 3:
            homes.nats[wan].rebind()
        else:
            homes.nats[wan].move(f"203.0.{100 + step}.{1 + dice.randrange(200)}")
        assert site.talk(dice.uniform(3.0, 8.0)) < 2.5, (step, happening, name)
        site.a.plug(name)
        site.light()
        site.talk(dice.uniform(15.0, 90.0), SELDOM_S)  # the other one is to be known to work before this one ends
    homes.finish()
