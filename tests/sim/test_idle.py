"""What the simulator's bill says of devices, idle for an hour or at work; a day is `python -m tests.sim.idle`."""

from __future__ import annotations

from boards.schema import WRITES_A_DAY
from edgeagent.accounts import SAVE_SLACK_S
from edgeagent.proto.ledger import SAVE_AFTER_S, Cause
from tests.sim.bill import Bill
from tests.sim.homes import Homes
from tests.sim.idle import Idle
from tests.sim.nat import PORT, SYMMETRIC, Kind
from tests.sim.test_nat import talk

SELDOM_S = 1.0


def test_an_idle_metered_device_has_one_tcp_connection_and_nothing_else() -> None:
    shares = Idle(1, 3, metered=True, keepalive_s=25.0, learnt=False).bill(1.0)
    assert set(shares) == {Cause.CONTROL}
    assert 3 * (128 + 76) <= sum(shares[Cause.CONTROL]) < 3_000  # the pings, and what a device says in its first hour


def test_an_unmetered_device_keeps_its_binding_as_often_as_was_learnt() -> None:
    often, rarely = (
        Idle(1, 3, metered=False, keepalive_s=keepalive_s, learnt=True).bill(1.0) for keepalive_s in (50.0, 300.0)
    )
    assert set(often) == set(rarely) == {Cause.CONTROL, Cause.RELAY}
    assert often[Cause.CONTROL] == rarely[Cause.CONTROL]
    assert 5 < sum(often[Cause.RELAY]) / sum(rarely[Cause.RELAY]) < 7


def test_a_binding_that_would_cost_too_much_is_not_kept() -> None:
    idle = Idle(1, 3, metered=False, keepalive_s=25.0, learnt=True)
    idle.homes.world.run_for(600.0)
    assert set(idle.bill(1.0)) == {Cause.CONTROL}
    others = [device for device in idle.homes.devices.values() if device is not idle.device]
    assert idle.homes.first_answer(others[0], idle.device) < 1.5


def test_an_idle_day_spares_the_flash() -> None:
    """What node and clock write of themselves. The ledger comes on top: tests/agent/test_accounts.py has its share."""
    idle = Idle(1, 2, metered=False, keepalive_s=102.0, learnt=True)
    before = sum(idle.device.flash.writes.values())
    idle.bill(24.0)
    writes = sum(idle.device.flash.writes.values()) - before
    assert writes <= 4
    assert writes + 86_400 / (SAVE_AFTER_S - SAVE_SLACK_S) <= WRITES_A_DAY


def probed(kind: Kind, sparing: int) -> int:
    """Bytes in twenty minutes in which two devices of this kind talk all the time, if not much."""
    homes = Homes(1)
    a, b = homes.pair(kind, kind)
    for device in (a, b):
        assert device.node is not None
        device.node.set_price(device.now, on_demand=True, sparing=sparing)
    talk(homes, a, b, 10.0)
    a.bill = Bill()
    talk(homes, a, b, 1_200.0, SELDOM_S)
    return sum(a.bill.by_cause(a.now)[Cause.PROBE])


def test_where_bytes_cost_money_paths_in_use_are_probed_less() -> None:
    often, rarely = (probed(PORT, sparing) for sparing in (1, 4))
    assert 3.5 < often / rarely < 4.5


def test_ports_that_change_all_the_time_are_no_reason_to_search_all_the_time() -> None:
    assert probed(SYMMETRIC, 1) < 60_000
    assert probed(SYMMETRIC, 12) < 20_000
