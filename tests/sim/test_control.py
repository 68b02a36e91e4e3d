"""The control plane over time: dead connections, keys that are renewed, records that age, fleets."""

from __future__ import annotations

import pytest

from edgeagent.proto import topics
from edgeagent.proto.keyrenewal import Renewal
from edgeagent.proto.limits import Limits
from tests.sim.device import SimDevice
from tests.sim.mesh import Mesh

HOUR_S, DAY_S = 3_600.0, 86_400.0
DEAD_AFTER_S = 900.0  # by now both sides have noticed that nothing passes


def test_a_feed_written_into_a_dead_connection_is_published_again() -> None:
    mesh = Mesh(1)
    a, _ = mesh.joined(2)
    mesh.world.run_for(60.0)
    mesh.net.cut(a.host, mesh.broker.host)
    lan = mesh.net.segment("lan", "10.1.0.0/24")
    a.host.attach(lan, "10.1.0.5")
    a.tell_addresses()
    mesh.world.run_for(DEAD_AFTER_S)
    mesh.net.heal()
    mesh.wait_joined(within_s=400.0)
    mesh.world.run_for(10.0)
    assert len(mesh.retained_feed(a)["ep"]) == 2
    mesh.finish()


def test_a_subscription_written_into_a_dead_connection_is_made_again() -> None:
    mesh = Mesh(1)
    a, b = mesh.joined(2)
    mesh.wait_all_reach()
    mesh.world.run_for(1_800.0)  # idle: both let go of the link and of the feed
    topic = topics.feed(mesh.hub.network.id, b.device_id)
    assert topic not in mesh.broker.sessions[a.device_id].filters
    mesh.net.cut(a.host, mesh.broker.host)
    mesh.wait_reach([(a, b)], within_s=10.0)
    mesh.world.run_for(DEAD_AFTER_S)
    mesh.net.heal()
    mesh.talk(a, b, every_s=60.0)
    mesh.wait_joined(within_s=400.0)
    mesh.world.run_for(10.0)
    assert topic in mesh.broker.sessions[a.device_id].filters
    mesh.finish()


def test_the_node_key_is_renewed_under_traffic_without_loss() -> None:
    mesh = Mesh(1, check_every_s=DAY_S)
    mesh.hub.chores_every_s = HOUR_S
    a, b, c = mesh.joined(3)
    mesh.wait_all_reach()
    before = {device.name: node_key(device) for device in (a, b, c)}
    mesh.world.wait_for(lambda: renewal(a) is not Renewal.RESTING, 130 * DAY_S, "the node key is renewed in time")
    assert mesh.world.elapsed_s > 100 * DAY_S
    mesh.world.run_for(HOUR_S)
    switches = [switch_at(device) for device in (a, b, c)]
    mesh.world.run_until(min(switches) - 300.0)
    mesh.wait_all_reach()
    since = mesh.world.now
    for pair in ((a, b), (b, c), (a, c)):
        mesh.talk(*pair, every_s=0.5)
    mesh.world.run_until(max(switches) + 600.0)
    for device in (a, b, c):
        assert renewal(device) is Renewal.RESTING and node_key(device) != before[device.name]
    assert mesh.traffic.lost(since, mesh.world.now - 1.0) == []
    mesh.finish()


def switch_at(device: SimDevice) -> float:
    """When the device puts its next key into use."""
    assert device.node is not None and renewal(device) is Renewal.SPREADING
    at = device.node.renewal.poll_timeout()
    assert at is not None
    return at + device.world.now - device.now


def renewal(device: SimDevice) -> Renewal:
    assert device.node is not None
    return device.node.renewal.state


def node_key(device: SimDevice) -> bytes:
    assert device.identity is not None
    return device.identity.node_key


@pytest.mark.parametrize(
    ("count", "limits"),
    [pytest.param(300, Limits(), marks=pytest.mark.slow), (100, Limits(records=32, feeds=8, peers=8))],
)
def test_memory_is_bounded_by_limits_in_a_network_of_hundreds(count: int, limits: Limits) -> None:
    mesh = Mesh(1, limits=limits, audited=False)
    token = mesh.hub.create_token(uses=0)
    devices = mesh.add_devices(count, token)
    mesh.wait_joined(within_s=300.0)
    a = devices[0]
    for other in devices[1:]:
        mesh.traffic.send(a, other)
        mesh.world.run_for(0.2)
    mesh.world.run_for(30.0)
    mesh.finish()
    assert len(mesh.traffic.lost()) < 3
    tables = a.status()["tables"]
    assert tables["records"]["used"] == limits.records
    assert len(a.flash.files["cache"]) < 262_144


def test_how_full_a_device_is_reaches_the_hub_among_its_facts() -> None:
    mesh = Mesh(7)
    a, _ = mesh.joined(2)
    mesh.world.run_for(60.0)
    node = a.node
    assert node is not None
    full = {"memory": "25.5 of 40.0 MiB, peak 26.0", "tables": "peers 60/64", "gave_way": "records 7", "os": "test"}
    node.set_facts(full)
    mesh.world.run_for(60.0)
    row = mesh.hub.device(a.device_id)
    assert row is not None and "memory" not in row.facts  # until there is a reason to speak
    a.tell_facts()
    mesh.world.run_for(10.0)
    row = mesh.hub.device(a.device_id)
    assert row is not None and row.facts == full and row.online
    mesh.finish()
