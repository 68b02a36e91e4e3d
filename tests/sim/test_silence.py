"""A path that dies under traffic, or seems to: what is lost until other ways carry it, and what wrong guesses cost."""

from __future__ import annotations

import pytest

from edgeagent.proto.path import State
from tests.sim import nat
from tests.sim.device import SimDevice
from tests.sim.homes import Homes, is_direct, path_of
from tests.sim.net import Conditions
from tests.sim.test_nat import established, longest_gap

pytestmark = pytest.mark.long

EVERY_S = 0.02
ROUND_TRIP_S = 0.045  # of the direct path, and of the relay's
DEAD = Conditions(loss=1.0)
NOTICED_S = 3 * ROUND_TRIP_S + 0.02
BACK_S = 60.0  # until a direct path is found again


def talking(homes: Homes | None = None) -> tuple[Homes, SimDevice, SimDevice]:
    """Two that are direct, with packets both ways."""
    homes = homes or Homes(1)
    a, b = established(homes, nat.PORT, nat.PORT)
    homes.talk(a, b, every_s=EVERY_S)
    homes.world.run_for(3.0)
    return homes, a, b


def cut(homes: Homes, *ways: str) -> None:
    """Nothing passes from the home of the first letter to that of the second any more, but by the relay."""
    for way in ways:
        homes.internet.pair_conditions[f"nat-{way[0]}", f"nat-{way[1]}"] = DEAD


@pytest.mark.parametrize("ways", [("ab", "ba"), ("ab",), ("ba",)], ids="-".join)
def test_a_path_that_dies_costs_a_few_round_trips(ways: tuple[str, ...]) -> None:
    homes, a, b = talking()
    began = homes.world.now
    cut(homes, *ways)
    homes.world.run_for(10.0)
    # Who hears the other still learns from it that it is not heard itself: a trip by the relay, and a probe
    assert longest_gap(homes, began) < NOTICED_S + EVERY_S + (0.0 if len(ways) == 2 else ROUND_TRIP_S)
    assert not is_direct(a, b) and not is_direct(b, a)
    homes.internet.pair_conditions.clear()
    moved = homes.world.now
    assert homes.until_direct(a, b, BACK_S) is not None
    homes.world.run_for(2.0)
    assert homes.traffic.lost(moved, homes.world.now - 1.0) == []
    homes.finish()


def test_copies_end_with_the_first_answer() -> None:
    homes, a, b = talking()
    relayed = homes.relayed
    cut(homes, "ab", "ba")
    homes.world.run_for(NOTICED_S + 0.05)
    homes.internet.pair_conditions.clear()
    homes.world.run_for(0.5)
    copied = homes.relayed - relayed
    assert copied > 0
    homes.world.run_for(5.0)
    assert homes.relayed - relayed == copied
    assert is_direct(a, b) and is_direct(b, a)
    homes.finish()


def test_a_flow_one_way_is_not_doubted() -> None:
    homes = Homes(1)
    a, b = established(homes, nat.PORT, nat.PORT)
    homes.world.run_for(30.0)
    carried, relayed, sent = homes.net.carried, homes.relayed, homes.traffic.count
    for _ in range(3_000):
        homes.traffic.send(a, b)
        homes.world.run_for(EVERY_S)
    packets = homes.traffic.count - sent
    # Three segments each, and beside them: a ping and a pong each three seconds, keepalives, the relay's own probes
    assert homes.net.carried - carried < 3 * packets + 3 * 2 * 60 / 3 + 200
    assert homes.relayed - relayed <= 6
    assert is_direct(a, b) and is_direct(b, a)
    homes.finish()


@pytest.mark.parametrize("pause_s", [0.2, 0.3, 0.7])
def test_pauses_that_are_usual_are_no_reason_for_long(pause_s: float) -> None:
    """Question and answer, and a while until the next: whoever sent last has no answer."""
    homes = Homes(1)
    a, b = established(homes, nat.PORT, nat.PORT)
    relayed = homes.relayed
    for _ in range(int(60 / pause_s)):
        homes.traffic.send(a, b)
        homes.world.run_for(pause_s / 2)
        homes.traffic.send(b, a)
        homes.world.run_for(pause_s / 2)
    # A few to learn it, then one after each time of calm: a ping by the relay from each side, and its answer
    assert homes.relayed - relayed < 2 * 4 * (6 + 60 / 10)
    assert homes.traffic.lost() == []
    homes.finish()


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 4))])
@pytest.mark.parametrize("every_s", [pytest.param(0.02, marks=pytest.mark.slow), 0.1])
def test_loss_moves_nothing(seed: int, every_s: float) -> None:
    homes = Homes(seed)
    a, b = established(homes, nat.PORT, nat.PORT)
    homes.talk(a, b, every_s=every_s)
    homes.world.run_for(3.0)
    for way in (("nat-a", "nat-b"), ("nat-b", "nat-a")):
        homes.internet.pair_conditions[way] = Conditions(loss=0.3, jitter_s=0.02)
    relays = 0
    for _ in range(3_000):
        homes.world.run_for(0.1)
        for one, other in ((a, b), (b, a)):
            path = path_of(one, other)
            relays += path is not None and path.is_relay
    assert relays == 0
    path = path_of(a, b)
    assert path is not None and path.state in (State.PROVEN, State.ANSWERED, State.DOUBTFUL)
    homes.finish()
