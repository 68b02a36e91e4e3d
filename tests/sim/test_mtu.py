"""Paths that take less than the TUN, or more: found without a word from ICMP, and heeded by whatever is sent."""

from __future__ import annotations

from itertools import pairwise

import pytest

from edgeagent.proto.pmtu import CONFIRM_AFTER_S, PROBES_MAX, RAISE_AFTER_S, STEP
from tests.sim import nat
from tests.sim.device import SimDevice
from tests.sim.homes import Homes, is_direct, path_of
from tests.sim.mesh import Mesh
from tests.sim.net import Conditions

TUN_MTU = 1_420
DIRECT_WITHIN_S = 3.0
WAIT_MAX_S = 2.0
AROUND = {4: 28 + 32, 6: 48 + 32}  # what is around a packet of the TUN, by the version outside
CHANNEL = 8  # of a relay's datagrams
HEADERS = {4: 28 + 16, 6: 48 + 16}  # around the filler of a packet, by the version inside


class Flow:
    """From `a` to `b`, as large as `a` was told that they may be, each acknowledged by a short one.

    As TCP does it, what is lost is sent again, and while nothing is acknowledged less and less of it.
    """

    def __init__(self, mesh: Mesh, a: SimDevice, b: SimDevice, *, family: int = 4, every_s: float = 0.05) -> None:
        self.mesh = mesh
        self.a, self.b = a, b
        self.family = family
        self.every_s = every_s
        self.wait_s = every_s
        self.on = True
        self.arrivals: list[float] = []
        self.waiting: list[int] = []
        self._tick()

    @property
    def size(self) -> int:
        return min(self.a.mtu, self.mesh.traffic.told_mtu.get((self.a.name, self.family), 65_535))

    def gap_s(self, since: float) -> float:
        times = [since, *(at for at in self.arrivals if at > since), self.mesh.world.now]
        return max(after - before for before, after in pairwise(times))

    def _tick(self) -> None:
        traffic, world = self.mesh.traffic, self.mesh.world
        arrived = [number for number in self.waiting if traffic.has_arrived(number)]
        for number in arrived:
            self.waiting.remove(number)
            self.arrivals.append(traffic.sent[number].arrived_at or 0.0)
            traffic.send(self.b, self.a, family=self.family)
        self.wait_s = self.every_s if arrived else min(2 * self.wait_s, WAIT_MAX_S)
        if not self.on:
            return
        sent = traffic.send(self.a, self.b, family=self.family, size=self.size - HEADERS[self.family])
        if sent is not None:
            self.waiting.append(sent)
        world.after(self.wait_s, self._tick)


def fits(device: SimDevice, other: SimDevice) -> int:
    """What `edgeagent peers` shows as the MTU of the path."""
    assert device.node is not None
    (row,) = [row for row in device.node.peers(device.now) if row["device"] == other.device_id]
    found = row["path_mtu"]
    assert isinstance(found, int)
    return found


def narrow(homes: Homes, mtu: int, *, fragments: bool = False) -> None:
    """Between the homes, in silence."""
    homes.internet.conditions = Conditions(mtu=mtu, fragments=fragments)


@pytest.mark.parametrize("mtu", [1_500, 1_492, 1_400, 1_280, 1_000, 576])
def test_what_a_path_takes_is_found_and_used(mtu: int) -> None:
    homes = Homes(1)
    narrow(homes, mtu)
    a, b = homes.pair(nat.PORT, nat.PORT)
    began = homes.world.now
    flow, back = Flow(homes, a, b), Flow(homes, b, a, family=6)
    assert homes.until_direct(a, b, DIRECT_WITHIN_S) is not None
    homes.world.run_for(30.0)
    for one, other in ((a, b), (b, a)):
        assert min(mtu - STEP - AROUND[4], TUN_MTU) < fits(one, other) + 1 and fits(one, other) <= mtu - AROUND[4]
    homes.traffic.told_mtu.clear()  # of the time by relay, as a host forgets it
    homes.world.run_for(1.0)
    now = homes.world.now
    numbers = [
        homes.traffic.send(a, b, size=TUN_MTU - HEADERS[4], cut=True),
        homes.traffic.send(b, a, size=flow.size - HEADERS[4]),
        homes.traffic.send(a, b, family=6, size=1_280 - HEADERS[6]),
        homes.traffic.send(b, a, family=6, size=back.size - HEADERS[6]),
    ]
    homes.world.run_for(1.0)
    assert all(homes.traffic.has_arrived(number) for number in numbers)
    assert flow.gap_s(began) < DIRECT_WITHIN_S + WAIT_MAX_S and back.gap_s(began) < DIRECT_WITHIN_S + WAIT_MAX_S
    assert homes.traffic.lost(now, homes.world.now - 0.5) == []
    assert (flow.size, back.size) == (fits(a, b), max(1_280, fits(b, a)))
    assert (homes.traffic.fragments > 0) == (mtu - AROUND[4] < TUN_MTU)
    homes.finish()


def test_a_way_back_that_is_narrower_counts_for_both() -> None:
    homes = Homes(1)
    a, b = homes.pair(nat.PORT, nat.PORT)
    homes.internet.pair_conditions["nat-b", "nat-a"] = Conditions(mtu=1_200, fragments=False)
    flow, back = Flow(homes, a, b), Flow(homes, b, a)
    assert homes.until_direct(a, b, DIRECT_WITHIN_S) is not None
    homes.world.run_for(30.0)
    now = homes.world.now
    homes.world.run_for(10.0)
    for one, other in ((a, b), (b, a)):
        assert 1_200 - STEP - AROUND[4] < fits(one, other) <= 1_200 - AROUND[4]
    assert flow.gap_s(now) < 0.2 and back.gap_s(now) < 0.2


@pytest.mark.parametrize(
    "becomes", [1_280, *(pytest.param(mtu, marks=pytest.mark.slow) for mtu in (1_400, 1_000, 576))]
)
def test_a_path_that_grows_narrow_under_traffic_and_wide_again(becomes: int) -> None:
    homes = Homes(1)
    a, b = homes.pair(nat.PORT, nat.PORT)
    flow = Flow(homes, a, b)
    homes.world.run_for(20.0)
    assert is_direct(a, b) and fits(a, b) == TUN_MTU
    began, relayed = homes.world.now, homes.relayed
    narrow(homes, becomes)
    homes.world.run_for(30.0)
    assert flow.gap_s(began) < 3.5 + WAIT_MAX_S
    assert becomes - STEP - AROUND[4] < fits(a, b) <= becomes - AROUND[4]
    # No payload: each doubt that a short ping refutes sends one by the relay as well, which is answered
    assert is_direct(a, b) and homes.relayed - relayed < 12
    narrow(homes, 1_500)
    flow.every_s = 0.5
    homes.world.run_for(RAISE_AFTER_S + 120.0)
    assert fits(a, b) == TUN_MTU
    homes.finish()


def test_what_others_answer_does_not_hide_a_hole() -> None:
    homes = Homes(1)
    a, b = homes.pair(nat.PORT, nat.PORT)
    flow = Flow(homes, a, b)
    homes.world.run_for(CONFIRM_AFTER_S)
    homes.talk(a, b, every_s=0.2)  # short packets, which go on both ways
    homes.world.run_for(5.0)
    narrow(homes, 1_300)
    began = homes.world.now
    for _ in range(30):
        homes.traffic.send(a, b, size=flow.size - HEADERS[4])
    homes.world.run_for(30.0)
    assert flow.gap_s(began) < CONFIRM_AFTER_S + PROBES_MAX + 3.0
    assert fits(a, b) <= 1_300 - AROUND[4]


def test_a_path_that_dies_for_a_while_is_as_wide_as_before() -> None:
    homes = Homes(1)
    a, b = homes.pair(nat.PORT, nat.PORT)
    Flow(homes, a, b)
    homes.world.run_for(20.0)
    for gone_s in (0.5, 2.0, 5.0, 20.0):
        homes.net.isolate(homes.nats["a"])
        homes.world.run_for(gone_s)
        homes.net.restore(homes.nats["a"])
        homes.world.run_for(40.0)
        assert is_direct(a, b) and fits(a, b) == TUN_MTU, gone_s


@pytest.mark.parametrize("link", [1_500, 1_452, 1_280, 1_000])
def test_what_the_first_link_does_not_take_costs_no_time(link: int) -> None:
    homes = Homes(1)
    home = homes.home("a", nat.PORT)
    home.conditions = Conditions(delay_s=0.0005, mtu=link)
    a = homes.add_device_at(home, mtu=8_900)
    b = homes.add_device_at(homes.home("b", nat.PORT), mtu=8_900)
    homes.wait_joined()
    homes.world.run_for(3.0)
    narrow(homes, 9_000)
    Flow(homes, a, b)
    took_s = homes.until_direct(a, b, DIRECT_WITHIN_S)
    assert took_s is not None
    homes.world.run_for(3.0 - took_s)
    assert link - STEP - AROUND[4] < fits(a, b) <= link - AROUND[4]


def test_jumbo_frames() -> None:
    homes = Homes(1)
    home = homes.home("h", nat.PORT)
    a, b = homes.add_device_at(home, mtu=8_900), homes.add_device_at(home, mtu=8_900)
    homes.wait_joined()
    homes.world.run_for(2.0)
    home.conditions = Conditions(delay_s=0.0005, mtu=9_000)
    flow = Flow(homes, a, b)
    homes.world.run_for(5.0)
    assert fits(a, b) == fits(b, a) == 8_900
    home.conditions = Conditions(delay_s=0.0005, mtu=1_500)
    began = homes.world.now
    homes.world.run_for(60.0)
    assert flow.gap_s(began) < 5.0
    assert 1_500 - STEP - AROUND[4] < fits(a, b) <= 1_500 - AROUND[4]


@pytest.mark.parametrize("mtu", [1_500, 1_400, 1_280])
def test_over_ipv6_where_nobody_fragments(mtu: int) -> None:
    mesh = Mesh(1)
    a, b = (mesh.add_device(addresses=(f"2001:db8::{n}",)) for n in (1, 2))
    mesh.wait_joined()
    mesh.internet.conditions = Conditions(mtu=mtu)
    flows = [Flow(mesh, a, b), Flow(mesh, a, b, family=6)]
    mesh.world.run_for(30.0)
    path = path_of(a, b)
    assert path is not None and ":" in path.endpoint.addr[0]
    assert min(mtu - STEP - AROUND[6], TUN_MTU) < fits(a, b) + 1 and fits(a, b) <= mtu - AROUND[6]
    now = mesh.world.now
    mesh.world.run_for(5.0)
    assert all(flow.gap_s(now) < 0.2 for flow in flows)


@pytest.mark.parametrize("mtu", [1_500, 1_400, 1_280, 1_000])
@pytest.mark.parametrize("fragments", [True, False])
def test_by_relay(mtu: int, fragments: bool) -> None:
    homes = Homes(1)
    a, b = homes.pair(nat.SYMMETRIC, nat.SYMMETRIC)
    narrow(homes, mtu, fragments=fragments)
    flow = Flow(homes, a, b)
    homes.world.run_for(30.0)
    path = path_of(a, b)
    assert path is not None and path.is_relay and path.frame_bytes
    homes.traffic.told_mtu.clear()  # as a host forgets it
    homes.world.run_for(3.0)
    now = homes.world.now
    homes.world.run_for(5.0)
    assert flow.gap_s(now) < 0.3
    assert fits(a, b) == flow.size
    if fragments:
        assert flow.size == TUN_MTU
    else:
        assert min(TUN_MTU, mtu - STEP - AROUND[4] - CHANNEL) <= flow.size <= mtu - AROUND[4] - CHANNEL


def test_before_anything_is_known_of_a_relay_s_ways_packets_are_short_and_may_be_cut_up() -> None:
    homes = Homes(1)
    a, b = homes.pair(nat.SYMMETRIC, nat.SYMMETRIC)
    narrow(homes, 1_280, fragments=True)
    first = homes.traffic.send(a, b, size=TUN_MTU - HEADERS[4])
    assert homes.traffic.told_mtu == {} and first is not None
    homes.world.run_for(2.0)
    assert homes.traffic.told_mtu == {(a.name, 4): 1_280}
    number = homes.traffic.send(a, b, size=1_280 - HEADERS[4])
    homes.world.run_for(1.0)
    assert homes.traffic.has_arrived(number)


def test_no_probes_where_there_is_no_large_traffic_and_none_after_it() -> None:
    homes = Homes(1)
    a, b = homes.pair(nat.PORT, nat.PORT)
    narrow(homes, 1_300)
    flow = Flow(homes, a, b)
    homes.world.run_for(60.0)
    flow.on = False
    homes.world.run_for(300.0)
    path = path_of(a, b)
    assert path is not None and path.search is not None and path.search.poll_timeout() is None
    transmits = len(homes.traffic.sent)
    homes.world.run_for(600.0)
    assert len(homes.traffic.sent) == transmits
