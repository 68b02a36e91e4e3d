"""The pump counts its flows by what of them still holds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edgeagent.engine.fast import library
from edgeagent.engine.fast import records as r
from edgeagent.engine.fast.binding import Pump, load

FLOWS = 64


@pytest.fixture
def pump() -> Iterator[Pump]:
    path = library.path()
    if path is None:
        pytest.skip(library.why_missing())
    pump = Pump(load(path), peers=4, flows=FLOWS, down_bytes=1 << 18, up_bytes=1 << 18, small="lanes", large="lanes")
    yield pump
    pump.close()


def packet(number: int) -> bytes:
    source, destination = (10 << 24 | number).to_bytes(4, "big"), bytes((10, 255, 0, 1))
    return bytes((0x45, 0, 0, 20, 0, 0, 0, 0, 64, 17, 0, 0)) + source + destination


def used(pump: Pump) -> int:
    while pump.turn(0):
        pass
    return int(pump.figures().flows_used)


def peer(pump: Pump, slot: int, flags: int) -> None:
    assert pump.push(r.PEER, *r.write_peer(slot, flags, (), None, 1280))


def flow(pump: Pump, slot: int, number: int, *, inbound: bool = False) -> None:
    assert pump.push(r.FLOW, r.write_flow(slot, inbound=inbound), packet(number))


def test_flows_are_counted_by_what_of_them_holds(pump: Pump) -> None:
    peer(pump, 0, r.PEER_NEW)
    peer(pump, 1, r.PEER_NEW)
    for number in range(3):
        flow(pump, 0, number)
        flow(pump, 0, number)  # again: the same
        flow(pump, 0, number, inbound=True)
    flow(pump, 1, 9)
    assert used(pump) == 7
    flow(pump, 1, 0)  # led to the other peer until now
    assert used(pump) == 7
    peer(pump, 0, r.PEER_GONE)
    assert used(pump) == 2
    peer(pump, 0, r.PEER_NEW)
    flow(pump, 0, 1)  # into the place of one that holds no more
    assert used(pump) == 3
    assert pump.push(r.UNFLOW, b"")
    assert used(pump) == 0
    flow(pump, 0, 1)
    assert used(pump) == 1


def test_a_full_table_evicts_and_says_how_many(pump: Pump) -> None:
    peer(pump, 0, r.PEER_NEW)
    for number in range(4 * FLOWS):
        flow(pump, 0, number)
        used(pump)
    figures = pump.figures()
    assert figures.flows_max == FLOWS and 0 < figures.flows_used <= FLOWS
    assert figures.flows_used + figures.flows_evicted == 4 * FLOWS
    assert figures.down_peak > 0 and figures.mapped_kib > 0
