"""What the simulator's bill of an idle device says, in an hour of it; a day is `python -m tests.sim.idle`."""

from __future__ import annotations

from edgeagent.proto.ledger import Cause
from tests.sim.idle import Idle


def test_an_idle_metered_device_has_one_tcp_connection_and_nothing_else() -> None:
    shares = Idle(1, 3, on_demand=True, keepalive_s=25.0).bill(1.0)
    assert set(shares) == {Cause.CONTROL}
    assert 12 * (128 + 76) <= sum(shares[Cause.CONTROL]) < 8_000  # the pings, and what a device says in its first hour


def test_an_unmetered_device_keeps_its_binding_as_often_as_was_learnt() -> None:
    often, rarely = (Idle(1, 3, on_demand=False, keepalive_s=keepalive_s).bill(1.0) for keepalive_s in (25.0, 300.0))
    assert set(often) == set(rarely) == {Cause.CONTROL, Cause.RELAY}
    assert often[Cause.CONTROL] == rarely[Cause.CONTROL]
    assert 11 < sum(often[Cause.RELAY]) / sum(rarely[Cause.RELAY]) < 13
