"""What the kernel refuses to the engine: who is tried again, when, and who does not have to wait for that."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from edgeagent.engine.kernel.engine import KernelDrop
from edgeagent.proto.endpoint import Endpoint
from edgeagent.proto.events import HandshakeFailed
from edgeagent.proto.outsourced import GIVE_UP_S
from tests.engine.kernel.bench import AT_RAW, KEY, OTHER, OTHER4, PACKET, Bench
from tests.policy_kit import PEER4


def test_who_is_refused_holds_up_nobody_else(bench: Bench) -> None:
    bench.peer()
    other = bench.peer(key=OTHER, address=OTHER4)
    bench.port.refuses[KEY] = OSError(errno.EINVAL, "Invalid argument")
    bench.machine.handle_packets(1.0, [PACKET])
    bench.engine.flush(1.0)
    assert bench.port.take() == [("remove", KEY), ("peer", OTHER, AT_RAW, [(OTHER4, 32)])]  # what there was of it
    assert other.installed and bench.engine.drops[KernelDrop.REFUSED] == 1
    tries = []
    for tenth in range(10, 2_000):
        bench.engine.flush(tenth / 10)
        if bench.port.take():
            tries.append(tenth / 10)
    assert tries == [6.0, 16.0, 36.0, 76.0, 136.0, 196.0]
    assert bench.engine.drops[KernelDrop.REFUSED] == 1 + len(tries)
    del bench.port.refuses[KEY]
    bench.device.drain_events()
    bench.machine.handle_packets(255.9, [PACKET])
    bench.engine.flush(256.0)
    assert [did[:2] for did in bench.port.take()] == [("peer", KEY), ("begin", KEY)]


def test_who_is_never_taken_is_given_up(bench: Bench) -> None:
    peer = bench.peer()
    bench.port.refuses[KEY] = OSError(errno.ENOMEM, "Cannot allocate memory")
    bench.machine.handle_packets(1.0, [PACKET])
    bench.engine.flush(1.0)
    bench.engine.sync(1.0 + GIVE_UP_S)
    assert [type(event) for event in bench.device.drain_events()] == [HandshakeFailed]
    assert not peer.staged and not peer.waits


def test_a_bad_endpoint_leaves_the_one_before(bench: Bench) -> None:
    peer = bench.peer()
    bench.engine.flush(1.0)
    bench.port.take()
    bench.port.refuses[KEY] = OSError(errno.EINVAL, "Invalid argument")
    peer.set_endpoint(Endpoint(("192.0.2.8", 1)))
    bench.engine.flush(2.0)
    assert bench.port.take() == [] and peer.installed
    del bench.port.refuses[KEY]
    bench.engine.flush(7.0)
    assert bench.port.take() == [("peer", KEY, (bytes((192, 0, 2, 8)), 1, 0), None)]


def test_prefixes_that_cannot_be_changed_are_nobodys(bench: Bench) -> None:
    peer = bench.peer()
    bench.engine.flush(1.0)
    bench.port.take()
    bench.port.refuses[KEY] = OSError(errno.ENOMEM, "Cannot allocate memory")
    bench.device.allowed_ips.remove(PEER4, 32, peer)
    bench.engine.flush(2.0)
    assert bench.port.take() == [("remove", KEY)] and not peer.installed
    del bench.port.refuses[KEY]
    bench.engine.flush(7.0)
    assert bench.port.take() == [("peer", KEY, AT_RAW, [])]


def test_who_cannot_be_removed_is_tried_each_second(bench: Bench) -> None:
    bench.peer()
    bench.engine.flush(1.0)
    bench.port.take()
    real, bench.port.remove_peer = bench.port.remove_peer, refuse  # type: ignore[method-assign]
    bench.device.remove_peer(2.0, KEY)
    for now in (2.0, 2.5, 3.0, 4.0):
        bench.engine.flush(now)
    assert bench.engine.drops[KernelDrop.REFUSED] == 3 and bench.engine.tables()["kernel_peers"]["used"] == 1
    bench.port.remove_peer = real  # type: ignore[method-assign]
    bench.engine.flush(5.0)
    assert bench.port.take() == [("remove", KEY)] and bench.engine.tables()["kernel_peers"]["used"] == 0


def refuse(public: bytes) -> None:
    raise OSError(errno.ENOMEM, "Cannot allocate memory")


def test_a_kernel_that_does_not_answer_is_asked_once(bench: Bench) -> None:
    for number, key in enumerate((KEY, OTHER)):
        bench.peer(key=key, address=bytes((100, 64, 9, number)))
        bench.port.refuses[key] = TimeoutError("timed out")
    bench.engine.flush(1.0)
    assert [did[:2] for did in bench.port.take()] == [("remove", KEY)]
    bench.engine.flush(2.0)
    assert bench.port.take() == []


def test_what_cannot_be_read_is_asked_for_each_second(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.peer()
    bench.machine.handle_packets(1.0, [PACKET])
    bench.engine.flush(1.0)
    real, bench.port.read = bench.port.read, gone  # type: ignore[method-assign]
    for twentieth in range(20, 80):
        bench.engine.flush(1.0 + twentieth / 20)
    assert bench.engine.drops[KernelDrop.REFUSED] == 3
    assert len([each for each in caplog.messages if "to be read: No such device" in each]) == 1
    bench.port.read = real  # type: ignore[method-assign]
    bench.engine.flush(6.0)
    assert bench.engine.drops[KernelDrop.REFUSED] == 3


def gone() -> dict[bytes, Any]:
    raise OSError(errno.ENODEV, "No such device")
