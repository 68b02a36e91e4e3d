"""Devices behind routers of every kind: at once by relay, then direct where it is possible, and back without a gap."""

from __future__ import annotations

from itertools import product

import pytest

from edgeagent.proto import prober
from tests.sim import nat
from tests.sim.device import SimDevice
from tests.sim.homes import Homes, is_direct, path_of
from tests.sim.nat import Kind
from tests.sim.net import Conditions

DIRECT_WITHIN_S = 3.0
DIRECT_AT_WORST_S = 10.0
FIRST_ANSWER_WITHIN_S = 1.5
EVERY_S = 0.05
IN_FLIGHT_S = 1.0

# The table of what must come out, row by row: full, address, port, symmetric, blocked
TABLE = ("DDDDR", "DDDDR", "DDDRR", "DDRRR", "RRRRR")


def talk(homes: Homes, a: SimDevice, b: SimDevice, seconds: float, every_s: float = EVERY_S) -> None:
    """Packets in both directions, and time for them."""
    homes.talk(a, b, every_s=every_s, until=homes.world.now + seconds)
    homes.world.run_for(seconds)


def longest_gap(homes: Homes, since: float) -> float:
    """The longest time in which everything that one of the two sent was lost."""
    longest = 0.0
    for sender in homes.devices:
        sent = sorted(
            (each.sent_at, each.arrived_at is not None)
            for each in homes.traffic.sent.values()
            if each.sender == sender and since <= each.sent_at < homes.world.now - IN_FLIGHT_S
        )
        last = since
        for at, arrived in sent:
            if arrived:
                longest = max(longest, at - last)
                last = at
        longest = max(longest, sent[-1][0] - last)
    return longest


def established(homes: Homes, a: Kind, b: Kind) -> tuple[SimDevice, SimDevice]:
    first, second = homes.pair(a, b)
    homes.first_answer(first, second)
    assert homes.until_direct(first, second, DIRECT_WITHIN_S) is not None
    talk(homes, first, second, 5.0)
    return first, second


def test_the_oracle_is_the_table() -> None:
    rule = ["".join("D" if nat.direct_is_possible(a, b) else "R" for b in nat.KINDS) for a in nat.KINDS]
    assert tuple(rule) == TABLE


@pytest.mark.parametrize(("a", "b"), list(product(nat.KINDS, nat.KINDS)), ids=lambda kind: kind.name)
def test_every_pair_of_kinds(a: Kind, b: Kind) -> None:
    homes = Homes(1)
    first, second = homes.pair(a, b)
    began = homes.world.now
    assert homes.first_answer(first, second) < FIRST_ANSWER_WITHIN_S
    homes.talk(first, second, every_s=EVERY_S)
    direct = homes.until_direct(first, second, 12.0 - (homes.world.now - began))
    assert (direct is not None) == nat.direct_is_possible(a, b)
    if direct is not None:
        assert homes.world.now - began < DIRECT_WITHIN_S
        relayed = homes.relayed
        homes.world.run_for(5.0)
        assert homes.relayed - relayed <= 2
    else:
        assert path_of(first, second) is not None
        homes.world.run_for(5.0)
    assert homes.traffic.lost(began, homes.world.now - IN_FLIGHT_S) == []
    homes.finish()


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 4))])
@pytest.mark.parametrize("kinds", [(nat.PORT, nat.PORT), (nat.FULL, nat.SYMMETRIC), (nat.SYMMETRIC, nat.ADDRESS)])
def test_loss_makes_it_slower(kinds: tuple[Kind, Kind], seed: int) -> None:
    homes = Homes(seed)
    a, b = homes.pair(*kinds)
    homes.internet.conditions = Conditions(loss=0.2, jitter_s=0.05, duplicate=0.02, reorder=0.05)
    homes.talk(a, b, every_s=EVERY_S)
    assert homes.until_direct(a, b, DIRECT_AT_WORST_S) is not None
    homes.finish()


def test_without_any_relay() -> None:
    homes = Homes(1)
    homes.relay.forwards = False
    a, b = homes.pair(nat.PORT, nat.PORT)
    homes.talk(a, b, every_s=EVERY_S)
    assert homes.until_direct(a, b, DIRECT_WITHIN_S) is not None
    assert homes.relayed == 0
    homes.finish()


def test_one_home_is_one_network() -> None:
    homes = Homes(1)
    home = homes.home("h", nat.PORT)
    a, b = homes.add_device_at(home), homes.add_device_at(home)
    homes.wait_joined()
    homes.world.run_for(2.0)
    homes.talk(a, b, every_s=EVERY_S)
    assert homes.until_direct(a, b, 1.0) is not None
    assert str(path_of(a, b)) == "Path(192.168.1.102:51820, lan, proven)"
    homes.finish()


@pytest.mark.parametrize(
    ("carrier", "other", "possible"),
    [
        (nat.CARRIER, nat.PORT, True),
        (nat.CARRIER, nat.CARRIER, True),
        (nat.CARRIER_SYMMETRIC, nat.PORT, False),
        (nat.CARRIER_SYMMETRIC, nat.ADDRESS, True),
    ],
    ids=lambda kind: getattr(kind, "name", str(kind)),
)
def test_a_home_behind_a_carrier(carrier: Kind, other: Kind, possible: bool) -> None:
    homes = Homes(1)
    a = homes.add_device_at(homes.home("a", nat.PORT, carrier=homes.carrier("c", carrier)))
    b = homes.add_device_at(homes.home("b", other))
    homes.wait_joined()
    homes.world.run_for(2.0)
    assert homes.first_answer(a, b) < FIRST_ANSWER_WITHIN_S
    homes.talk(a, b, every_s=EVERY_S)
    assert (homes.until_direct(a, b, DIRECT_AT_WORST_S) is not None) == possible
    homes.finish()


@pytest.mark.parametrize(("kind", "possible"), [(nat.CARRIER, False), (nat.CARRIER_HAIRPIN, True)])
def test_two_homes_behind_one_carrier_need_it_to_turn_back(kind: Kind, possible: bool) -> None:
    homes = Homes(1)
    carrier = homes.carrier("c", kind)
    a = homes.add_device_at(homes.home("a", nat.FULL, carrier=carrier))
    b = homes.add_device_at(homes.home("b", nat.FULL, carrier=carrier))
    homes.wait_joined()
    homes.world.run_for(2.0)
    homes.talk(a, b, every_s=EVERY_S)
    assert (homes.until_direct(a, b, DIRECT_AT_WORST_S) is not None) == possible
    homes.finish()


def test_a_router_that_takes_in_first_packets_needs_a_probe_that_does_not_arrive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def direct_within() -> float | None:
        homes = Homes(1)
        a, b = homes.pair(nat.ACCEPTING, nat.ACCEPTING)
        # One of the two is told later than the other's probes take
        homes.internet.pair_conditions["nat-b", "broker"] = Conditions(delay_s=0.1)
        homes.talk(a, b, every_s=EVERY_S)
        return homes.until_direct(a, b, DIRECT_WITHIN_S)

    assert direct_within() is not None
    monkeypatch.setattr(prober, "PUNCH_TTL", 64)
    assert direct_within() is None


def test_ports_that_count_up_are_guessed() -> None:
    assert not nat.direct_is_possible(nat.COUNTING, nat.PORT)
    for order in ((nat.COUNTING, nat.PORT), (nat.PORT, nat.COUNTING)):
        homes = Homes(1)
        a, b = homes.pair(*order)
        homes.talk(a, b, every_s=EVERY_S)
        assert homes.until_direct(a, b, DIRECT_WITHIN_S) is not None


@pytest.mark.parametrize("kinds", [(nat.PORT, nat.PORT), (nat.FULL, nat.ADDRESS)], ids=lambda pair: pair[0].name)
def test_a_router_that_forgets_its_bindings_mid_flow(kinds: tuple[Kind, Kind]) -> None:
    homes = Homes(1)
    a, b = established(homes, *kinds)
    for _ in range(3):
        began = homes.world.now
        homes.nats["a"].rebind()
        talk(homes, a, b, 20.0)
        assert longest_gap(homes, began) < 5.0
        assert is_direct(a, b) and is_direct(b, a)
    homes.finish()


def test_a_binding_that_ran_out_costs_no_packet() -> None:
    homes = Homes(1)
    a, b = (
        homes.add_device_at(homes.home("a", nat.PORT, binding_s=15.0)),
        homes.add_device_at(homes.home("b", nat.PORT, binding_s=15.0)),
    )
    homes.wait_joined()
    homes.world.run_for(3.0)
    homes.first_answer(a, b)
    talk(homes, a, b, 5.0)
    assert is_direct(a, b)
    for pause_s in (40.0, 100.0, 400.0):
        homes.world.run_for(pause_s)
        began = homes.world.now
        talk(homes, a, b, 8.0)
        assert homes.traffic.lost(began, homes.world.now - IN_FLIGHT_S) == []
        assert is_direct(a, b) and is_direct(b, a)
    homes.finish()


def test_a_relay_that_goes_is_not_missed_by_those_who_are_direct() -> None:
    homes = Homes(1)
    a, b = established(homes, nat.PORT, nat.FULL)
    began = homes.world.now
    homes.relay.kill()
    talk(homes, a, b, 20.0)
    assert homes.traffic.lost(began, homes.world.now - IN_FLIGHT_S) == []
    homes.relay.start()
    talk(homes, a, b, 5.0)
    homes.nats["a"].kind = nat.BLOCKED
    blocked = homes.world.now
    talk(homes, a, b, 20.0)
    assert longest_gap(homes, blocked) < 3.0
    assert not is_direct(a, b) and not is_direct(b, a)
    homes.nats["a"].kind = nat.PORT
    homes.world.run_for(1.0)
    talk(homes, a, b, 60.0)
    assert is_direct(a, b) and is_direct(b, a)
    homes.finish()


def test_latency_falls_with_the_direct_path() -> None:
    homes = Homes(1)
    a, b = established(homes, nat.PORT, nat.PORT)
    path = path_of(a, b)
    assert path is not None and path.latency_ms is not None and path.latency_ms < 90.0
    (row,) = [row for row in a.node.peers(a.now) if row["device"] == b.device_id]  # type: ignore[union-attr]
    assert (row["path"], row["path_kind"], row["path_state"]) == ("direct", "ipv4", "proven")
    assert row["path_mtu"] == a.node.device.mtu  # type: ignore[union-attr]


def test_silence_costs_no_more_than_a_binding_kept() -> None:
    homes = Homes(1)
    a = homes.add_device_at(homes.home("a", nat.PORT))
    b = homes.add_device_at(homes.home("b", nat.FULL))
    homes.wait_joined()
    homes.first_answer(a, b)
    homes.world.run_for(300.0)
    carried, published, relayed = homes.net.carried, homes.broker.published, homes.relayed
    homes.world.run_for(3_600.0)
    assert (homes.broker.published, homes.relayed) == (published, relayed)
    # Two devices, a probe to the relay each 25 s and its answer, two hops each; and nothing else
    assert homes.net.carried - carried <= 2 * 3_600 / 25 * 2 * 2 + 8
    homes.finish()


@pytest.mark.parametrize("seed", [*range(2), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 6))])
def test_whatever_happens_to_the_routers_everybody_is_reached_again(seed: int) -> None:
    homes = Homes(seed)
    dice = homes.world.stream("disturbances")
    kinds = [dice.choice(nat.KINDS) for _ in range(3)]
    devices = [homes.add_device_at(homes.home(str(number), kind)) for number, kind in enumerate(kinds)]
    homes.wait_joined()
    for place, a in enumerate(devices):
        for b in devices[place + 1 :]:
            homes.talk(a, b, every_s=0.5)
    for step in range(25):
        router = homes.nats[str(dice.randrange(3))]
        happening = dice.randrange(6)
        if happening == 0:
            router.rebind()
        elif happening == 1:
            router.move(f"203.0.{100 + step}.1")
        elif happening == 2:
            homes.relay.kill()
        elif happening == 3:
            dice.choice(devices).restart(down_s=2.0)
        elif happening == 4:
            homes.internet.conditions = Conditions(loss=dice.choice((0.0, 0.1, 0.4)), jitter_s=0.02)
        else:
            router.kind = dice.choice(nat.KINDS)
        homes.world.run_for(dice.uniform(0.2, 40.0))
        if not homes.relay.is_up:
            homes.relay.start()
    homes.internet.conditions = Conditions()
    homes.world.run_for(120.0)
    homes.wait_all_reach(within_s=20.0)
    homes.finish()
