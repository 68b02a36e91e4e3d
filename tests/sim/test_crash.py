"""Power that goes, and hubs that are killed, at every step: what was promised before still holds after."""

from __future__ import annotations

import pytest

from tests.sim.device import SimDevice
from tests.sim.mesh import Mesh

pytestmark = pytest.mark.long

STEPS_MAX = 200


def test_power_that_goes_at_each_step_of_joining() -> None:
    """However the device dies, it joins once, under one identity, with one use of the token."""
    for step in range(1, STEPS_MAX):
        mesh = Mesh(step)
        other = mesh.joined(1)[0]
        token = mesh.hub.create_token(uses=1)
        device = mesh.add_device("victim", token)
        device.flash.fuse.left = step
        mesh.world.run_for(60.0)
        device.flash.fuse.left = None
        mesh.wait_joined(within_s=120.0)
        mesh.wait_all_reach(within_s=30.0)
        with mesh.hub.store.read() as tx:
            assert [row.name for row in tx.devices()].count("victim") == 1
            assert len(tx.devices()) == 2
        mesh.check_settled()
        assert other.connected
        if device.flash.fuse.blown == 0:
            assert step > 10
            return
    raise AssertionError("joining has no end")


def test_a_hub_killed_at_each_step_of_a_join() -> None:
    for step in range(1, STEPS_MAX):
        mesh = Mesh(step)
        mesh.joined(1)
        token = mesh.hub.create_token(uses=1)
        mesh.hub.fuse.left = step
        rivals = mesh.add_devices(2, token)
        mesh.world.run_for(120.0)
        killed = mesh.hub.fuse.blown > 0
        mesh.hub.fuse.left = None
        assert [device.connected for device in rivals].count(True) == 1
        assert [device.refused for device in rivals].count("used-up") == 1
        mesh.wait_all_reach(within_s=30.0)
        mesh.check_settled()
        if not killed:
            assert step > 10
            return
    raise AssertionError("a join has no end")


@pytest.mark.slow
def test_a_hub_killed_at_each_step_of_a_removal() -> None:
    for step in range(1, STEPS_MAX):
        mesh = Mesh(step)
        a, b, c = mesh.joined(3)
        mesh.wait_all_reach()
        mesh.hub.fuse.left = step
        mesh.remove(c, after_s=60.0)
        mesh.world.run_for(60.0)
        killed = mesh.hub.fuse.blown > 0
        mesh.hub.fuse.left = None
        for pair in ((a, c), (b, c)):
            mesh.talk(*pair, every_s=5.0)
        mesh.world.run_for(60.0)
        mesh.wait_reach(mesh.pairs([a, b]), within_s=10.0)
        mesh.check_settled()
        if not killed:
            assert step > 10
            return
    raise AssertionError("a removal has no end")


def test_power_that_goes_at_each_write_of_a_key_renewal() -> None:
    for step in range(1, STEPS_MAX):
        mesh = Mesh(step, check_every_s=86_400.0)
        mesh.hub.chores_every_s = 6 * 3_600.0
        a, b = mesh.joined(2)
        mesh.wait_all_reach()
        before = node_key(a)
        mesh.world.run_for(115 * 86_400.0)
        assert node_key(a) == before
        a.flash.fuse.left = step
        mesh.world.run_for(10 * 86_400.0)
        killed = a.flash.fuse.blown > 0
        a.flash.fuse.left = None
        mesh.wait_reach(mesh.pairs([a, b]), within_s=60.0)
        assert node_key(a) != before
        mesh.world.run_for(60.0)
        mesh.check_settled()
        if not killed:
            assert step > 6
            return
    raise AssertionError("a renewal has no end")


def node_key(device: SimDevice) -> bytes:
    assert device.identity is not None
    return device.identity.node_key
