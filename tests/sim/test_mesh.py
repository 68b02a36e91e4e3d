"""A network with its hub and broker: coming together, and staying together while parts of it fail."""

from __future__ import annotations

import pytest

from tests.sim.device import SimDevice
from tests.sim.mesh import Mesh
from tests.sim.net import Conditions

HOUR_S = 3_600.0
IN_FLIGHT_S = 1.0  # what was sent less than this ago may still be under way


def lost_between(mesh: Mesh, since: float, until: float | None = None) -> list[str]:
    """Packets sent in that time that never arrived, as text."""
    until = mesh.world.now - IN_FLIGHT_S if until is None else until
    sent = [mesh.traffic.sent[number] for number in mesh.traffic.lost(since, until)]
    return [f"{each.sender}→{each.receiver} at {each.sent_at - since:.2f}" for each in sent]


def talk_all(mesh: Mesh, *, every_s: float) -> None:
    devices = list(mesh.devices.values())
    for place, a in enumerate(devices):
        for b in devices[place + 1 :]:
            mesh.talk(a, b, every_s=every_s)


@pytest.mark.parametrize("count", [3, pytest.param(12, marks=pytest.mark.slow)])
def test_devices_join_and_reach_one_another(count: int) -> None:
    mesh = Mesh(1)
    mesh.joined(count)
    assert mesh.wait_all_reach(within_s=10.0) < 3.0
    began = mesh.world.now
    talk_all(mesh, every_s=30.0)
    mesh.world.run_for(600.0)
    mesh.finish()
    assert lost_between(mesh, began) == []
    # The hub hears once of each pair and side, and never of packets
    assert mesh.audit.by_kind["ask"] <= count * (count - 1)


def test_a_bad_internet_is_enough() -> None:
    mesh = Mesh(1, conditions=Conditions(loss=0.2, jitter_s=0.1, duplicate=0.05, reorder=0.05))
    mesh.broker.duplicate = 0.2
    mesh.joined(4)
    mesh.wait_all_reach(within_s=60.0)
    talk_all(mesh, every_s=5.0)
    mesh.world.run_for(HOUR_S)
    mesh.internet.conditions = Conditions()
    mesh.wait_all_reach(within_s=20.0)
    mesh.finish()


def test_while_the_hub_is_down_devices_go_on_and_roam() -> None:
    mesh = Mesh(1)
    a, b, c = mesh.joined(3)
    mesh.wait_all_reach()
    mesh.hub.kill()
    began = mesh.world.now
    talk_all(mesh, every_s=5.0)
    mesh.world.run_for(1_800.0)
    assert lost_between(mesh, began) == []
    a.move_to(mesh.address(200))
    b.move_to(mesh.address(201))  # both at once: only their feeds can tell
    moved = mesh.world.now
    mesh.world.run_for(600.0)
    assert lost_between(mesh, moved + 60.0) == []
    c.reboot(off_s=30.0)
    mesh.world.run_for(60.0)
    mesh.wait_all_reach(within_s=30.0)
    mesh.hub.start(mesh.broker)
    newcomer = mesh.add_device()
    mesh.world.wait_for(lambda: newcomer.connected, 60.0, "a device joins after the outage")
    mesh.wait_all_reach()
    mesh.finish()


@pytest.mark.parametrize("state", ["kept", "saved", "lost"])
def test_while_the_broker_is_down_tunnels_go_on(state: str) -> None:
    mesh = Mesh(1)
    a, b, c, d = mesh.joined(4)
    mesh.wait_reach(mesh.pairs([a, b, c]), within_s=10.0)
    mesh.broker.save()
    mesh.world.run_for(30.0)
    began = mesh.world.now
    for pair in ((a, b), (b, c), (a, c)):
        mesh.talk(*pair, every_s=5.0)
    mesh.broker.restart(down_s=900.0, state=state)
    mesh.world.run_for(450.0)
    moved = mesh.world.now
    a.move_to(mesh.address(200))  # its peers hear it from there
    mesh.world.run_for(450.0)
    mesh.wait_joined(within_s=400.0)
    assert lost_between(mesh, began, moved - IN_FLIGHT_S) == []
    assert lost_between(mesh, moved + IN_FLIGHT_S) == []
    mesh.wait_all_reach(within_s=15.0)
    assert d.connected
    mesh.finish()


def test_an_agent_comes_back_from_its_cache_with_hub_and_broker_dead() -> None:
    mesh = Mesh(1)
    a, b, c = mesh.joined(3)
    mesh.wait_all_reach()
    mesh.world.run_for(120.0)  # caches are written a while after a change
    mesh.hub.kill()
    mesh.broker.stop()
    a.reboot(off_s=60.0)
    b.restart()
    mesh.world.run_for(90.0)
    mesh.wait_reach(mesh.pairs([a, b, c]), within_s=15.0)
    mesh.world.run_for(HOUR_S)
    for device in (a, b, c):
        device.reboot(off_s=10.0)
    mesh.world.run_for(30.0)
    mesh.wait_all_reach(within_s=15.0)
    mesh.finish()


def test_a_whole_site_loses_power_while_the_hub_is_away_for_weeks() -> None:
    mesh = Mesh(1, check_every_s=HOUR_S)
    devices = mesh.joined(5)
    mesh.wait_all_reach()
    mesh.world.run_for(120.0)
    mesh.hub.kill()
    for _ in range(7):
        mesh.world.run_for(3 * 86_400.0)
        for device in devices:
            device.reboot(off_s=600.0)
        mesh.world.run_for(700.0)
        mesh.wait_all_reach(within_s=15.0)
    mesh.finish()


def test_a_removed_device_is_cut_off_by_all_who_know_it() -> None:
    mesh = Mesh(1)
    a, b, c, d = mesh.joined(4)
    mesh.wait_reach(mesh.pairs([a, b, c]), within_s=10.0)
    talk_all(mesh, every_s=2.0)
    mesh.world.run_for(60.0)
    mesh.remove(c)
    mesh.world.run_for(600.0)
    mesh.wait_reach(mesh.pairs([a, b, d]), within_s=10.0)
    c.reboot()
    mesh.world.run_for(600.0)
    assert not c.connected
    mesh.finish()


def test_who_was_away_at_the_removal_hears_of_it_when_it_comes_back() -> None:
    mesh = Mesh(1)
    a, b, c = mesh.joined(3)
    mesh.wait_all_reach()
    mesh.world.run_for(120.0)
    b.cut_power()
    mesh.world.run_for(60.0)
    mesh.remove(c, after_s=660.0 + 10.0)
    mesh.world.run_for(660.0 - 3.0)
    b.power_on()
    talk_all(mesh, every_s=1.0)
    mesh.world.run_for(600.0)
    mesh.wait_reach(mesh.pairs([a, b]), within_s=5.0)
    mesh.finish()


def test_fifty_devices_and_one_use() -> None:
    mesh = Mesh(1)
    token = mesh.hub.create_token(uses=1)
    devices = mesh.add_devices(50, token)
    mesh.world.run_for(120.0)
    assert sum(device.connected for device in devices) == 1
    assert sum(device.refused == "used-up" for device in devices) == 49
    mesh.finish()


def test_a_token_for_three_and_a_hub_that_dies_all_the_time() -> None:
    mesh = Mesh(1)
    token = mesh.hub.create_token(uses=3)
    devices = mesh.add_devices(20, token)
    chance = mesh.world.stream("kills")
    for _ in range(40):
        mesh.hub.fuse.left = chance.randint(1, 40)
        mesh.world.run_for(chance.uniform(0.5, 8.0))
    mesh.hub.fuse.left = None
    mesh.world.run_for(180.0)
    assert mesh.hub.fuse.blown > 10
    assert sum(device.connected for device in devices) == 3
    assert sum(device.refused == "used-up" for device in devices) == 17
    mesh.wait_all_reach(within_s=30.0)
    mesh.finish()


def test_a_late_will_does_not_mark_the_next_session_dead() -> None:
    mesh = Mesh(1)
    mesh.broker.will_delay_s = 120.0
    (a,) = mesh.joined(1)
    for _ in range(5):
        a.restart(down_s=2.0)
        mesh.world.run_for(60.0)
        assert is_online(mesh, a)
    mesh.world.run_for(300.0)
    assert is_online(mesh, a)
    a.cut_power()
    mesh.world.run_for(1_200.0)
    assert not is_online(mesh, a)
    mesh.finish()


def is_online(mesh: Mesh, device: SimDevice) -> bool:
    row = mesh.hub.device(device.device_id)
    assert row is not None
    return row.online


def test_two_initiations_under_one_unknown_key_in_one_batch() -> None:
    mesh = Mesh(1, conditions=Conditions(duplicate=1.0))
    mesh.joined(3)
    mesh.wait_all_reach(within_s=10.0)
    mesh.finish()


def test_feed_keys_change_when_a_device_that_knew_them_is_removed() -> None:
    mesh = Mesh(1)
    a, b, c, d = mesh.joined(4)
    mesh.wait_reach(mesh.pairs([a, b, c]), within_s=10.0)
    mesh.world.run_for(60.0)
    before = {device.name: feed_generation(device) for device in (a, b, c, d)}
    assert c.node is not None
    known = {entry.record.name: entry.feed_key for entry in c.node.client.records}
    mesh.remove(c)
    mesh.world.run_for(60.0)
    after = {device.name: feed_generation(device) for device in (a, b, d)}
    assert after == {"d1": before["d1"] + 1, "d2": before["d2"] + 1, "d4": before["d4"]}
    for device in (a, b):
        row = mesh.hub.device(device.device_id)
        assert row is not None and row.feed_key != known[device.name]
        assert mesh.retained_feed(device)["boot"]  # it opens, so it is sealed under the new one
    mesh.check_settled()


def feed_generation(device: SimDevice) -> int:
    assert device.node is not None
    return device.node.map.feed_generation


def test_devices_with_one_or_both_ip_versions() -> None:
    mesh = Mesh(1)
    v4_1, v4_2, v6_1, v6_2 = "198.18.0.1", "198.18.0.2", "2001:db8:1::1", "2001:db8:1::2"
    both = mesh.add_device("both", addresses=(v4_1, v6_1))
    old = mesh.add_device("old", addresses=(v4_2,))
    new = mesh.add_device("new", addresses=(v6_2,))
    mesh.wait_joined()
    mesh.wait_reach([*mesh.pairs([both, old]), *mesh.pairs([both, new])], within_s=10.0)
    mesh.finish()


def test_who_sleeps_for_months_finds_its_peers_under_new_keys() -> None:
    mesh = Mesh(1, check_every_s=24 * HOUR_S)
    mesh.hub.chores_every_s = 6 * HOUR_S
    a, b = mesh.joined(2)
    mesh.wait_all_reach()
    mesh.world.run_for(120.0)
    assert a.identity is not None
    key = a.identity.node_key
    b.cut_power()
    mesh.world.run_for(150 * 24 * HOUR_S)
    assert a.identity.node_key != key
    b.power_on()
    mesh.world.run_for(10.0)
    mesh.wait_all_reach(within_s=20.0)
    mesh.world.run_for(60.0)
    mesh.check_settled()
