"""Odd guests (a cloned card, a liar, one who waits for approval), a restored hub, a fleet, a long night."""

from __future__ import annotations

from edgeagent.proto.limits import Limits
from tests.sim.mesh import Mesh
from tests.sim.traffic import MAGIC, udp_packet

HOUR_S, DAY_S = 3_600.0, 86_400.0


def test_a_device_that_waits_for_approval() -> None:
    mesh = Mesh(1)
    (a,) = mesh.joined(1)
    token = mesh.hub.create_token(needs_approval=True)
    waiting = mesh.add_device(token=token)
    mesh.world.run_for(600.0)
    assert not waiting.connected and waiting.refused is None
    waiting.reboot(off_s=10.0)
    mesh.world.run_for(60.0)
    mesh.hub.restart(down_s=10.0)
    mesh.world.run_for(60.0)
    mesh.hub.approve(waiting.device_id)
    mesh.wait_joined(within_s=10.0)
    mesh.wait_reach(mesh.pairs([a, waiting]), within_s=10.0)
    mesh.check_settled()


def test_a_cloned_card_is_noticed() -> None:
    mesh = Mesh(1, audited=False)  # two who are one write the same stamp twice
    a, b = mesh.joined(2)
    mesh.world.run_for(60.0)
    clone = mesh.add_device("clone", mesh.hub.create_token())
    clone.cut_power()
    clone.flash.files = dict(a.flash.files)
    clone.power_on()
    mesh.world.run_for(600.0)
    row = mesh.hub.device(a.device_id)
    assert row is not None and row.cloned_s > 0
    others = mesh.hub.device(b.device_id)
    assert others is not None and others.cloned_s == 0
    # The two take the session from one another, but they do not do it all the time
    takeovers = [at for at in mesh.broker.connects if at > mesh.world.now - 300.0]
    assert len(takeovers) < 120


def test_a_device_that_lies_about_its_address_is_not_believed() -> None:
    mesh = Mesh(1)
    a, b, c = mesh.joined(3)
    mesh.wait_all_reach()
    mesh.may_drop = {"inner-source"}
    assert a.node is not None and b.inner_addresses is not None and c.inner_addresses is not None
    for _ in range(5):
        # It passes nobody's filter but its own; the packet claims to be from c
        lie = udp_packet(c.inner_addresses[0], b.inner_addresses[0], MAGIC + bytes(8))
        a.from_tun([lie])
        mesh.world.run_for(1.0)
    assert b.all_drops()["inner-source"] == 5
    mesh.wait_all_reach()
    mesh.finish()


def test_a_hub_restored_from_an_old_backup() -> None:
    mesh = Mesh(1)
    a, b, c = mesh.joined(3)
    mesh.wait_all_reach()
    backup = mesh.hub.backup()
    mesh.world.run_for(DAY_S)
    newcomer = mesh.add_device()
    mesh.world.run_for(60.0)
    assert newcomer.connected
    mesh.wait_all_reach()
    mesh.hub.kill()
    mesh.hub.restore(backup)
    mesh.broker.revoke(newcomer.device_id)  # the hub ends accounts that its database does not know
    mesh.may_drop = {"unknown-device"}
    mesh.hub.start(mesh.broker)
    mesh.world.run_for(120.0)
    mesh.wait_reach(mesh.pairs([a, b, c]), within_s=30.0)
    for device in (a, b, c):
        device.reboot()
    mesh.world.run_for(60.0)
    mesh.wait_reach(mesh.pairs([a, b, c]), within_s=30.0)
    again = mesh.add_device()
    mesh.world.run_for(60.0)
    mesh.wait_reach(mesh.pairs([a, b, c, again]), within_s=30.0)
    mesh.finish()


def test_a_fleet_comes_back_paced() -> None:
    mesh = Mesh(1, audited=False)
    count = 120
    token = mesh.hub.create_token(uses=0)
    mesh.add_devices(count, token)
    mesh.wait_joined(within_s=300.0)
    mesh.world.run_for(600.0)
    stopped = mesh.world.now
    mesh.broker.restart(down_s=300.0)
    mesh.world.run_for(300.0)
    tries = [at for at in mesh.broker.tries if at > stopped]
    assert len(tries) < 20 * count  # each waits longer and longer
    mesh.wait_joined(within_s=330.0)
    logins = [at for at in mesh.broker.connects if at > stopped + 300.0]
    assert busiest_second(logins) < count / 4
    mesh.world.run_for(30.0)
    mesh.finish()


def test_a_night_of_nothing_costs_nothing() -> None:
    mesh = Mesh(1, check_every_s=HOUR_S)
    devices = mesh.joined(12)
    mesh.wait_all_reach()
    mesh.world.run_for(HOUR_S)
    carried, published = mesh.net.carried, mesh.broker.published
    writes = [sum(device.flash.writes.values()) for device in devices]
    mesh.world.run_for(DAY_S)
    assert mesh.net.carried == carried
    assert mesh.broker.published == published
    assert [sum(device.flash.writes.values()) for device in devices] == writes
    mesh.finish()


def test_a_talkative_day_spares_the_flash() -> None:
    mesh = Mesh(1, check_every_s=HOUR_S)
    a, b = mesh.joined(2)
    mesh.talk(a, b, every_s=90.0)
    mesh.world.run_for(DAY_S)
    for device in (a, b):
        assert device.flash.writes["clock"] <= 6
        assert device.flash.writes["cache"] <= 6
        assert device.flash.writes["identity"] == 1
    mesh.finish()


def test_a_small_device_in_the_middle_of_a_large_mesh() -> None:
    mesh = Mesh(1, limits=Limits(records=4, feeds=3, peers=3, asks=4, unresolved_destinations=4, negatives=2))
    devices = mesh.joined(9)
    small = devices[0]
    for _ in range(4):
        for other in devices[1:]:
            mesh.wait_reach([(small, other), (other, small)], within_s=30.0)
    mesh.finish()


def busiest_second(times: list[float]) -> int:
    """The most of them within one second."""
    return max((sum(at <= other < at + 1.0 for other in times) for at in times), default=0)
