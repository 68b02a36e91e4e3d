"""A site behind two devices that sit behind NATs: one of them dies, with a relay that still takes what is for it."""

from __future__ import annotations

from itertools import pairwise

import pytest

from edgeagent.proto import prefixes
from hub.core import routes
from tests.sim import nat
from tests.sim.device import SimDevice
from tests.sim.homes import Homes, is_direct
from tests.sim.traffic import Inner, udp_packet

SITE = prefixes.parse("10.20.0.0/16")
HOST = bytes((10, 20, 1, 9))
WITHIN_S = 5.0


class Routed(Homes):
    """`a` talks to a host at a site that `routers` route; the host answers by the router that a packet came to."""

    def __init__(self, seed: int, kind: nat.Kind) -> None:
        super().__init__(seed)
        self.a = self.add_device_at(self.home("a", kind))
        self.routers = [self.add_device_at(self.home(f"r{n}", kind)) for n in (1, 2)]
        self.came: list[tuple[float, str]] = []  # when, and to which router
        self.answered: list[float] = []
        self._arrived = self.traffic.arrived
        self.traffic.arrived = self.arrived  # type: ignore[method-assign]
        self.wait_joined()
        self.world.run_for(3.0)
        for router in self.routers:
            self.offer(router)
        self.world.run_for(3.0)

    def offer(self, router: SimDevice) -> None:
        assert router.node is not None
        router.node.advertise(self.world.now, [SITE], snat=True)
        router.from_tun([])
        self.world.run_for(2.0)
        with self.hub.store.write() as tx:
            row = tx.device(router.device_id)
            assert row is not None
            routes.approve(self.hub.scribe, tx, row, [])
        self.hub.go_on()

    def arrived(self, receiver: Inner, packet: bytes) -> None:
        if packet[16:20] == HOST:
            self.came.append((self.world.now, receiver.name))
            assert self.a.inner_addresses is not None
            receiver.from_tun([udp_packet(HOST, self.a.inner_addresses[0], b"answer")])
        elif packet[12:16] == HOST:
            assert receiver.name == self.a.name
            self.answered.append(self.world.now)
        else:
            self._arrived(receiver, packet)

    def ask(self, seconds: float) -> None:
        for _ in range(int(seconds / 0.2)):
            assert self.a.inner_addresses is not None
            self.a.from_tun([udp_packet(self.a.inner_addresses[0], HOST, b"question")])
            self.world.run_for(0.2)

    def gap(self, since: float) -> float:
        """The longest time without an answer."""
        times = [since, *(at for at in self.answered if at > since), self.world.now]
        return max(later - earlier for earlier, later in pairwise(times))


@pytest.mark.parametrize("kind", [nat.PORT, nat.SYMMETRIC])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_another_router_takes_over_when_one_dies(kind: nat.Kind, seed: int) -> None:
    mesh = Routed(seed, kind)
    mesh.ask(20.0)
    first = next(device for device in mesh.routers if device.name == mesh.came[-1][1])
    assert is_direct(mesh.a, first) is (kind is nat.PORT)
    mesh.hub.kill()
    mesh.broker.stop()
    died = mesh.world.now
    first.cut_power()
    mesh.ask(30.0)
    assert mesh.gap(died) <= WITHIN_S
    assert mesh.came[-1][1] != first.name
    assert {name for at, name in mesh.came if at > died + WITHIN_S} == {mesh.came[-1][1]}


def test_a_bad_network_is_no_reason_to_go_over() -> None:
    mesh = Routed(1, nat.PORT)
    mesh.ask(20.0)
    first = mesh.came[-1][1]
    mesh.internet.conditions.loss = 0.25
    mesh.ask(600.0)
    away = sum(name != first for _, name in mesh.came)
    assert away <= 0.05 * len(mesh.came)
