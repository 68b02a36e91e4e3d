"""A locked network over hours: renewal of node keys, power cuts at each write, and a hub that was broken into."""

from __future__ import annotations

from typing import Any

import pytest

from edgeagent.proto.lock import Lock
from hub.core import lock
from hub.core.lock_signer import DeviceRequest, Signer
from hub.core.model import Device
from hub.core.store import Tx
from tests.sim.device import SimDevice
from tests.sim.mesh import Mesh
from tests.sim.tunnel import CRYPTO

ANA, EVE = Signer(CRYPTO, b"a" * 32), Signer(CRYPTO, b"e" * 32)


class Locked:
    """A mesh whose hub has a lock; `say` and `sign` are what its owner does."""

    def __init__(self, seed: int, count: int) -> None:
        self.mesh = Mesh(seed)
        self.devices = self.mesh.joined(count)
        self.mesh.wait_all_reach()
        self.hub = self.mesh.hub

    def say(self, signer: Signer = ANA, *, anew: bool = False, **what: Any) -> None:
        view = self.hub.scribe.lock
        with self.hub.store.write() as tx:
            if view.in_force(tx) is None or anew:
                draft = lock.first_draft(view, tx, [signer.public], anew=anew)
            else:
                draft = lock.next_draft(view, tx, **what)
            lock.take_statement(view, CRYPTO, tx, signer.statement(draft, self.hub.wall_s), anew=anew)
        self.hub.go_on()
        self.mesh.world.run_for(5.0)

    def sign(self, *devices: SimDevice) -> None:
        with self.hub.store.write() as tx:
            for device in devices:
                row = tx.device(device.device_id)
                assert row is not None
                request = DeviceRequest(self.hub.network.id, row.id, row.name or "", row.device_key)
                signature = ANA.device(request, self.hub.wall_s)
                self.hub.scribe.push(tx, lock.take_signature(self.hub.scribe.lock, CRYPTO, tx, signature))
        self.hub.go_on()
        self.mesh.world.run_for(5.0)

    def pending(self) -> set[str]:
        with self.hub.store.read() as tx:
            found = lock.standings(self.hub.scribe.lock, tx, self.hub.wall_s)
        return {each.device.id for each in found if each.is_pending}

    def put_on(self) -> None:
        self.say()
        self.sign(*self.devices)
        assert self.pending() == set()
        self.say(on=True)
        assert all(held(device).on for device in self.devices)


def held(device: SimDevice) -> Lock:
    assert device.node is not None and device.node.client.lock is not None
    return device.node.client.lock


def test_a_network_goes_over_to_the_lock_without_a_gap_and_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("hub.core.admission", "hub.core.scribe"):
        monkeypatch.setattr(f"{module}.NODE_KEY_LIFE_S", 3_000)
    monkeypatch.setattr("hub.core.scribe.NODE_KEY_GRACE_S", 60)
    locked = Locked(1, 4)
    mesh, devices = locked.mesh, locked.devices
    for a in devices:
        for b in devices:
            if a is not b:
                mesh.talk(a, b, every_s=5.0)
    began = mesh.world.now
    locked.put_on()
    keys = {device.node.identity.node_key for device in devices if device.node is not None}
    mesh.world.run_for(7_000.0)
    assert mesh.traffic.lost(began, mesh.world.now - 1.0) == []
    now = {device.node.identity.node_key for device in devices if device.node is not None}
    assert not keys & now  # each was renewed, twice, and nobody was asked
    assert locked.pending() == set()
    mesh.finish()


@pytest.mark.parametrize("step", range(1, 9))
def test_a_power_cut_at_any_write_leaves_the_old_statement_or_the_new(step: int) -> None:
    locked = Locked(2, 3)
    locked.put_on()
    mesh, victim = locked.mesh, locked.devices[0]
    before = held(victim).sequence
    victim.flash.fuse.left = step
    locked.say(on=False)
    locked.say(on=True)
    if not victim.is_running:
        kept = Lock.decode(CRYPTO, victim.flash.files["lock"])
        assert before <= kept.sequence <= before + 2
        victim.reboot()
    victim.flash.fuse.left = None
    mesh.world.run_for(30.0)
    assert (held(victim).sequence, held(victim).withheld) == (before + 2, False)
    mesh.wait_all_reach()
    mesh.finish()


class Liar(lock.LockView):
    """What a hub shows that is not the network's owner's any more."""

    def __init__(self, network: str, statements: list[bytes], rows: dict[str, Any]) -> None:
        super().__init__(CRYPTO, network)
        self.lies = statements
        self.rows = rows

    def of_record(self, tx: Tx, device: Device, node_keys: list[list[Any]]) -> dict[str, Any]:
        return {"lk": self.rows}

    def of_map(self, tx: Tx, device: Device, node_keys: list[list[Any]]) -> dict[str, Any]:
        return {"lk": {"s": self.lies, **self.rows}} if self.lies else {}


@pytest.mark.parametrize("lie", ["another lock", "none", "an older one"])
def test_whoever_has_the_hub_lets_nobody_in(lie: str) -> None:
    locked = Locked(3, 3)
    locked.put_on()
    mesh, hub = locked.mesh, locked.hub
    with hub.store.read() as tx:
        genuine = [each.raw for each in hub.scribe.lock.statements(tx)]
        honest = tx.device(locked.devices[0].device_id)
        assert honest is not None
        rows = hub.scribe.lock.of_record(tx, honest, [])["lk"]
        assert rows["c"]
    draft = lock.Draft(hub.network.id, 1 << 40, False, (EVE.public,), ())
    lies = {"another lock": [EVE.statement(draft, hub.wall_s)], "none": [], "an older one": genuine[:1]}[lie]
    hub.scribe.lock = Liar(hub.network.id, lies, rows)  # signatures of an honest device, in all records
    rogue = mesh.add_device("rogue")
    mesh.world.wait_for(lambda: rogue.connected, 60.0, "the hub lets it join")
    with hub.store.write() as tx:
        for device in locked.devices:
            row = tx.device(device.device_id)
            assert row is not None
            hub.scribe.push(tx, row)
            tx.introduce(device.device_id, rogue.device_id)
            row = tx.device(rogue.device_id)
            assert row is not None
            hub.scribe.push(tx, row)
    hub.go_on()
    mesh.world.run_for(10.0)
    for device in locked.devices:
        assert held(device).on
        assert device.all_drops()["lock-statement"] > 0
        assert device.all_drops()["lock-forged"] + device.all_drops().get("lock-unsigned", 0) > 0
        assert device.node is not None and rogue.device_id not in {each.device for each in device.node.peering}
    began = mesh.world.now
    for device in locked.devices:
        mesh.talk(rogue, device, every_s=1.0, until=began + 20.0)
        mesh.talk(device, rogue, every_s=1.0, until=began + 20.0)
    mesh.world.run_for(25.0)
    sent = {number for number, each in mesh.traffic.sent.items() if each.sent_at >= began}
    assert sent and set(mesh.traffic.lost(began, mesh.world.now)) == sent
