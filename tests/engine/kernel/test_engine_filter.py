"""What the engine tells the filter, and who is out of the kernel while that is not as it should be."""

from __future__ import annotations

import logging
import selectors
from types import SimpleNamespace
from typing import Any

import pytest

from edgeagent import crypto
from edgeagent.engine.kernel.engine import KernelDrop, KernelEngine
from edgeagent.engine.kernel.guard import PACE_S, RENEW_S, RETRY_S
from edgeagent.engine.kernel.ports import FilterError
from edgeagent.engine.kernel.ruleset import ALIVE_S
from edgeagent.proto.device import Device
from edgeagent.proto.errors import DropReason
from edgeagent.proto.limits import Limits
from edgeagent.proto.policy import Slice
from edgeagent.proto.tai64n import Tai64nClock
from tests.engine.kernel.bench import AT_RAW, KEY, OTHER, OTHER4, Bench, Machine, Port, Udp
from tests.engine.twins import SocketTun
from tests.policy_kit import ME4, PEER4, tcp


def test_the_filter_comes_first_and_only_when_it_changes(bench: Bench) -> None:
    assert len(bench.port.filters) == 1
    assert (
        'iifname != "edge0-wg" accept\n    iifname != @alive drop\n    ip daddr != { 100.64.0.1 } drop'
        in (bench.port.filters[0])
    )
    bench.engine.flush(1.0)
    assert len(bench.port.filters) == 1
    bench.port.fails = FilterError("nft: no")
    bench.device.take_for(frozenset({PEER4}), None)
    bench.peer()
    bench.engine.flush(1.0)
    assert bench.port.take() == []  # nobody comes in past a filter that is not there
    assert bench.engine.drops[KernelDrop.REFUSED] == 1
    bench.port.fails = None
    bench.engine.flush(2.0)
    assert bench.port.take() == []  # it is not tried again at once
    bench.engine.flush(7.0)
    assert [did[0] for did in bench.port.take()] == ["peer"]
    assert len(bench.port.filters) == 2


def change_tables(bench: Bench, now: float, *, stands: bool) -> None:
    """Somebody else has, of this host."""
    bench.port.stands = stands
    bench.port.changed.send(b"changed")
    for key, _ in bench.selector.select(2.0):
        key.data(now, key.fd)
    bench.engine.flush(now)


def test_a_filter_that_somebody_removed_is_put_back(bench: Bench) -> None:
    bench.peer()
    bench.engine.flush(1.0)
    change_tables(bench, 2.0, stands=True)
    assert len(bench.port.filters) == 1
    change_tables(bench, 3.0, stands=False)
    assert len(bench.port.filters) == 2 and bench.port.filters[0] == bench.port.filters[1]
    assert bench.device.peers[KEY].installed  # type: ignore[attr-defined]


def test_where_it_cannot_be_put_back_nobody_stays(bench: Bench) -> None:
    peer = bench.peer()
    bench.engine.flush(1.0)
    bench.port.take()
    bench.port.fails = FilterError("nft: no")
    change_tables(bench, 2.0, stands=False)
    assert bench.port.take() == [("remove", KEY)] and not peer.installed
    assert bench.engine.drops[KernelDrop.CUT] == 1
    bench.port.fails = None
    bench.engine.flush(8.0)
    assert len(bench.port.filters) == 2 and bench.port.take()[0][:2] == ("peer", KEY)


def test_no_filter_no_engine() -> None:
    bench_port = Port()
    bench_port.fails = FilterError("nft is not installed")
    device = Device(
        0.0, crypto=crypto.load(), entropy=bytes, jitter=lambda: 0.0, tai64n=Tai64nClock(0.0, 1.7e9), limits=Limits()
    )
    tun = SocketTun()
    with selectors.DefaultSelector() as selector, pytest.raises(FilterError):
        KernelEngine(
            Machine(device), tun, Udp(), selector, bench_port, logging.getLogger("t"),  # type: ignore[arg-type]
            interface="edge0-wg", peers_max=4,
        )  # fmt: skip
    bench_port.close()
    tun.close()


def restrict(bench: Bench, now: float, inbound: list[Any], *, tags: tuple[str, ...] = ("tag:web",)) -> None:
    body = {"v": 1, "u": "", "in": inbound, "out": []}
    bench.device.set_policy(now, Slice(body, [], [ME4], [(bytes((100, 64, 0, 0)), 10)]))
    for peer in bench.device.peers.values():
        bear(bench, peer, tags)


def bear(bench: Bench, peer: Any, tags: tuple[str, ...]) -> None:
    addresses = [address for address, _ in bench.device.allowed_ips.of_peer(peer)]
    peer.record = SimpleNamespace(device=peer.public_key.hex(), addresses=addresses, tags=tags, user="", groups=[])


WEB = [["tag:web"], ["me"], [[6, 80, 80]]]
SSH = [["tag:web"], ["me"], [[6, 22, 22]]]


def test_one_more_peer_is_one_more_element(bench: Bench) -> None:
    bench.peer()
    restrict(bench, 1.0, [WEB])
    bench.engine.flush(1.0)
    assert len(bench.port.filters) == 2
    bench.port.take()
    other = bench.peer(key=OTHER, address=OTHER4)
    bear(bench, other, ("tag:web",))
    bench.engine.flush(1.1)
    element = ("in4", OTHER4 + ME4)
    assert [did[:3] for did in bench.port.take()] == [("filter", [], [(element, "c0")]), ("peer", OTHER, AT_RAW)]
    bear(bench, other, ())
    bench.engine.flush(1.2)
    assert bench.port.take() == [("filter", [element], [])] and len(bench.port.filters) == 2


def test_answers_of_ours_are_the_kernels_to_judge(bench: Bench) -> None:
    """Which has heard what they answer, and Python has not; what we begin ourselves Python refuses before there is a
    peer in the kernel."""
    bench.peer()
    restrict(bench, 1.0, [WEB])
    answer = tcp(ME4, PEER4, 80, 5_555, 0x12)
    bench.machine.handle_packets(1.0, [answer])
    assert bench.device.drops[DropReason.PROHIBITED] == 1
    bench.engine.flush(1.0)
    bench.machine.handle_packets(1.1, [answer])
    bench.engine.flush(1.1)
    assert bench.device.drops[DropReason.PROHIBITED] == 1 and bench.port.injected == []
    bench.shake_hands(1.2)  # begun by the peer
    bench.engine.flush(1.2)
    assert bench.port.injected == [answer]


def test_calls_of_nft_that_only_allow_more_are_a_second_apart(bench: Bench) -> None:
    bench.peer()
    restrict(bench, 10.0, [WEB])
    bench.engine.flush(10.0)
    assert len(bench.port.filters) == 2
    restrict(bench, 10.2, [WEB, SSH])
    bench.engine.flush(10.2)
    assert len(bench.port.filters) == 2 and bench.engine.poll_timeout() == 10.0 + PACE_S
    restrict(bench, 10.4, [SSH])  # takes something away
    bench.engine.flush(10.4)
    assert len(bench.port.filters) == 3
    restrict(bench, 10.5, [SSH, WEB])
    bench.engine.flush(10.5)
    assert len(bench.port.filters) == 3
    bench.engine.flush(10.4 + PACE_S)
    assert len(bench.port.filters) == 4


def test_who_loses_what_nft_does_not_take_away_is_cut(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.peer()
    other = bench.peer(key=OTHER, address=OTHER4)
    restrict(bench, 1.0, [WEB])
    bench.engine.flush(1.0)
    bench.port.take()
    bench.port.fails = FilterError("nft: no")
    bear(bench, other, ())
    bench.engine.flush(2.0)
    assert bench.port.take() == [("remove", OTHER)]  # and not the other one
    assert (bench.engine.drops[KernelDrop.CUT], bench.engine.drops[KernelDrop.REFUSED]) == (1, 1)
    assert "nft: no. Peers 0808080808080808 may do less" in caplog.text
    bench.engine.flush(3.0)
    assert bench.port.take() == [] and bench.engine.drops[KernelDrop.REFUSED] == 1
    bench.port.fails = None
    bench.engine.flush(2.0 + RETRY_S)
    assert [did[:2] for did in bench.port.take()] == [("peer", OTHER)] and len(bench.port.filters) == 3


def test_where_nft_only_does_not_allow_more_all_go_on(bench: Bench) -> None:
    peer = bench.peer()
    restrict(bench, 1.0, [WEB])
    bench.engine.flush(1.0)
    bench.port.take()
    bench.port.fails = FilterError("nft: no")
    restrict(bench, 5.0, [WEB, SSH])
    other = bench.peer(key=OTHER, address=OTHER4)
    bear(bench, other, ("tag:web",))
    bench.engine.flush(5.0)
    assert bench.port.take() == [] and peer.installed and not other.installed
    restrict(bench, 6.0, [])  # before it is tried again; now it takes away
    bench.engine.flush(6.0)
    assert [did[:2] for did in bench.port.take()] == [("remove", KEY), ("peer", OTHER)]  # who has nothing to wait for
    assert bench.engine.drops[KernelDrop.REFUSED] == 2


def test_a_filter_is_renewed_for_as_long_as_somebody_is_there(bench: Bench) -> None:
    bench.port.renewed = 0
    for second in range(100, 400):
        bench.engine.flush(float(second))
    assert bench.port.renewed == 5 and RENEW_S * 3 == ALIVE_S
    bench.port.fails = FilterError("nft: no")
    bench.engine.flush(400.0)
    assert bench.engine.drops[KernelDrop.REFUSED] == 1
    bench.port.fails = None
    bench.engine.flush(400.0 + RETRY_S)
    assert bench.port.renewed == 6
