"""Handshakes of whom the kernel does not have: they come by a raw socket to Python, which asks the hub about them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edgeagent import crypto
from edgeagent.proto.device import Device
from edgeagent.proto.endpoint import Endpoint
from edgeagent.proto.errors import DropReason
from edgeagent.proto.events import UnknownPeer
from edgeagent.proto.limits import Limits
from edgeagent.proto.messages import COOKIE_REPLY, INITIATION
from edgeagent.proto.tai64n import Tai64nClock
from tests.engine.kernel.bench import AT, KEY, Bench, Machine
from tests.policy_kit import ME4, PEER4, udp

STRANGER_AT = Endpoint(("198.51.100.7", 7))


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


class Stranger:
    """One that knows our key, and whom we do not know."""

    def __init__(self, us: Device, private: bytes = b"\x05" * 32) -> None:
        self.device = Device(
            0.0, crypto=crypto.load(), entropy=lambda size: bytes(range(9, size + 9)), jitter=lambda: 0.0,
            tai64n=Tai64nClock(0.0, 1.7e9), limits=Limits(), mtu=1280,
        )  # fmt: skip
        self.device.set_private_key(0.0, private)
        peer = self.device.add_peer(0.0, us.public_key)
        self.device.allowed_ips.insert(ME4, 32, peer)
        peer.set_endpoint(AT)

    def initiation(self, now: float) -> bytes:
        self.device.handle_packets(now, [udp(PEER4, ME4, 1, 2)])
        self.device.handle_timeout(now)
        ((datagram,),) = [transmit.datagrams for transmit in self.device.drain_transmits()]
        assert datagram[0] == INITIATION
        return datagram


def flood(machine: Machine, now: float, initiation: bytes, count: int) -> None:
    spoofed = [Endpoint((f"203.0.113.{number % 200}", 1000 + number)) for number in range(count)]
    machine.handle_datagrams(now, [(initiation, source, 0) for source in spoofed])


def settle(device: Device, now: float) -> None:
    while device.poll_timeout() == 0.0:
        device.handle_timeout(now)


def strangers(device: Device) -> list[Endpoint]:
    return [event.endpoint for event in device.drain_events() if isinstance(event, UnknownPeer)]


def test_who_does_not_know_our_key_takes_no_room(bench: Bench) -> None:
    junk = b"\1\0\0\0" + bytes(144)
    flood(bench.machine, 1.0, junk, 1_000)
    assert bench.device.drops[DropReason.MAC1_INVALID] == 1_000
    assert not bench.device.responder.waiting and not bench.device.responder.under_load(1.0)
    stranger = Stranger(bench.device)
    bench.machine.handle_datagrams(1.0, [(stranger.initiation(1.0), STRANGER_AT, 0)])
    assert strangers(bench.device) == [STRANGER_AT]


def test_who_receives_where_it_is_gets_in_while_others_flood(bench: Bench) -> None:
    """The flood is by somebody who knows our key, and forges sources."""
    forged = Stranger(bench.device, b"\x06" * 32).initiation(0.0)
    stranger = Stranger(bench.device)
    seen: list[Endpoint] = []
    for second in range(12):
        now = float(second)
        for tenth in range(10):
            flood(bench.machine, now + tenth / 10, forged, 40)
        if second in (1, 7):  # it repeats its initiation as WireGuard does
            bench.device.drain_transmits()
            settle(bench.device, now)
            bench.machine.handle_datagrams(now, [(stranger.initiation(now), STRANGER_AT, 0)])
            settle(bench.device, now)
            replies = [each for each in bench.device.drain_transmits() if each.endpoint is STRANGER_AT]
            for reply in replies:
                assert reply.datagrams[0][0] == COOKIE_REPLY
                stranger.device.handle_datagrams(now, [(reply.datagrams[0], AT, 0)])
        seen += [each for each in strangers(bench.device) if each is STRANGER_AT]
    assert seen == [STRANGER_AT]
    assert bench.device.drops[DropReason.COOKIE_DEMANDED] > 100


def test_cookies_for_peers_are_the_kernels(bench: Bench) -> None:
    bench.peer()
    bench.engine.flush(0.0)
    assert KEY in bench.device.peers
    forged = Stranger(bench.device, b"\x06" * 32).initiation(0.0)
    flood(bench.machine, 0.0, forged, 40)
    bench.device.drain_transmits()
    bench.machine.handle_datagrams(0.1, [(forged, AT, 0)])
    settle(bench.device, 0.1)
    assert AT not in [transmit.endpoint for transmit in bench.device.drain_transmits()]
