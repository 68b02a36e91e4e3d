"""A whole network: hub, broker and devices on one internet, with the invariants that hold in every scenario.

mesh = Mesh(seed)                       # or Mesh(seed, conditions=Conditions(loss=0.3))
a, b = mesh.add_devices(2)              # with a token, power on
mesh.wait_joined()
mesh.talk(a, b, every_s=5.0)            # packets for as long as the scenario runs
mesh.broker.restart(down_s=30.0, state="lost")
mesh.wait_all_reach(within_s=60.0)
mesh.finish()
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address
from itertools import permutations
from typing import Any

from edgeagent.proto import topics
from edgeagent.proto.envelope import read_feed
from edgeagent.proto.identity import Identity
from edgeagent.proto.limits import Limits
from edgeagent.proto.node import Node
from edgeagent.proto.token import Token
from hub.core.model import Device as DeviceRow
from hub.core.model import DeviceState
from tests.sim.audit import Audit
from tests.sim.broker import Broker
from tests.sim.device import UDP_PORT, SimDevice
from tests.sim.hub import SimHub
from tests.sim.net import Conditions, Net
from tests.sim.traffic import Traffic
from tests.sim.tunnel import CRYPTO
from tests.sim.world import World

BROKER_ADDRESS, BROKER_ADDRESS_6, HUB_ADDRESS = "192.0.2.1", "2001:db8::b", "192.0.2.2"
PROBE_EVERY_S = 1.0
REMOVED_AFTER_S = 5.0  # from the removal until no packet passes, with hub and broker up
QUEUED_MAX = 2_000
WALL_OFF_MAX_S = 5.0
FLASH_WRITES_PER_HOUR_MAX = 90

# What honest devices never cause, whatever the network does
WG_NEVER = {
    "malformed", "no-private-key", "cookie-demanded", "handshake-queue-full", "initiation-invalid", "response-invalid",
    "cookie-reply-unexpected", "cookie-reply-invalid", "authentication", "inner-malformed", "inner-source",
    "inner-destination", "inner-ecn", "not-ip",
}  # fmt: skip
CONTROL_NEVER = {
    "too-long", "not-cbor", "bad-box", "bad-signature", "bad-field", "wrong-kind", "wrong-network", "wrong-subject",
    "unknown-topic", "publish-full", "bad-cache", "not-yet-valid",
}  # fmt: skip
HUB_NEVER = CONTROL_NEVER | {"reserved-kind", "weak-key", "weak-password", "unknown-node-key", "node-key-taken"}


class Mesh:
    """`devices` by name, in the order they were added."""

    def __init__(
        self,
        seed: int,
        *,
        conditions: Conditions | None = None,
        limits: Limits | None = None,
        check_every_s: float = 60.0,
        audited: bool = True,
    ) -> None:
        self.world = World(seed, check_every_s=check_every_s)
        self.net = Net(self.world)
        self.traffic = Traffic(self.world)
        self.limits = limits
        self.internet = self.net.segment("internet", "0.0.0.0/0", "::/0", conditions=conditions)
        broker_host = self.net.host("broker")
        broker_host.attach(self.internet, BROKER_ADDRESS, BROKER_ADDRESS_6)
        hub_host = self.net.host("hub")
        hub_host.attach(self.internet, HUB_ADDRESS)
        self.hub = SimHub(self.world, hub_host, BROKER_ADDRESS)
        self.broker = Broker(self.world, self.net, broker_host, self.hub.network.id, queued_max=QUEUED_MAX)
        self.devices: dict[str, SimDevice] = {}
        self.may_drop: set[str] = set()  # reasons that this scenario provokes on purpose
        self._identities: dict[str, SimDevice] = {}
        self.audit = Audit(self.world, self.hub, self._identity_of)
        if audited:
            self.broker.taps.append(self.audit.tap)
        self.world.checks.append(self.check)
        self.hub.start(self.broker)

    # Building

    def add_device(
        self, name: str | None = None, token: Token | None = None, *, addresses: tuple[str, ...] = ()
    ) -> SimDevice:
        """A new device with a token of its own, or the one given; it is switched on at once."""
        number = len(self.devices) + 1
        host = self.net.host(name or f"d{number}")
        host.attach(self.internet, *(addresses or (self.address(number),)))
        token = token or self.hub.create_token()
        device = SimDevice(self.world, self.traffic, host, self.broker, token, limits=self.limits)
        self.devices[device.name] = device
        device.power_on()
        return device

    def add_devices(self, count: int, token: Token | None = None) -> list[SimDevice]:
        return [self.add_device(token=token) for _ in range(count)]

    @staticmethod
    def address(number: int) -> str:
        """On the internet; numbers from 1."""
        return f"198.18.{number >> 8}.{number & 0xFF}"

    def wait_joined(self, within_s: float = 60.0) -> None:
        waiting = list(self.devices.values())

        def all_connected() -> bool:
            while waiting and waiting[-1].connected:
                waiting.pop()
            return not waiting

        self.world.wait_for(all_connected, within_s, "all devices connected")

    def joined(self, count: int) -> list[SimDevice]:
        """That many devices, in the mesh and connected."""
        devices = self.add_devices(count)
        self.wait_joined()
        return devices

    # Traffic

    def talk(self, a: SimDevice, b: SimDevice, *, every_s: float, until: float | None = None) -> None:
        """Packets in both directions, from now on."""
        if until is not None and self.world.now >= until:
            return
        for sender, receiver in ((a, b), (b, a)):
            if sender.is_running:
                self.traffic.send(sender, receiver, family=4 if int(self.world.now) % 2 else 6)
        self.world.after(every_s, lambda: self.talk(a, b, every_s=every_s, until=until))

    def pairs(self, devices: Iterable[SimDevice] | None = None) -> list[tuple[SimDevice, SimDevice]]:
        """Ordered pairs of the devices that run."""
        chosen = list(self.devices.values() if devices is None else devices)
        return list(permutations([device for device in chosen if device.is_running and device.node is not None], 2))

    def wait_reach(self, pairs: list[tuple[SimDevice, SimDevice]], within_s: float) -> float:
        """Until a packet sent from now on came through for every (from, to). Returns the seconds it took."""
        began = self.world.now
        open_pairs = list(pairs)

        def probe() -> None:
            open_pairs[:] = [pair for pair in open_pairs if not self.traffic.came_through(*pair, since=began)]
            for sender, receiver in open_pairs:
                self.traffic.send(sender, receiver)
            if open_pairs:
                self.world.after(PROBE_EVERY_S, probe)

        def all_came() -> bool:
            return all(self.traffic.came_through(*pair, since=began) for pair in open_pairs)

        probe()
        try:
            took_s = self.world.wait_for(all_came, within_s, "every pair reaches one another")
        except AssertionError as error:
            silent = [f"{a.name}→{b.name}" for a, b in open_pairs if not self.traffic.came_through(a, b, began)]
            raise type(error)(f"{error}\nsilent: {', '.join(silent)}") from None
        open_pairs.clear()
        return took_s

    def wait_all_reach(self, within_s: float = 30.0) -> float:
        return self.wait_reach(self.pairs(), within_s)

    # An operator's removal

    def remove(self, device: SimDevice, *, after_s: float = REMOVED_AFTER_S) -> None:
        """From `after_s` on no packet may pass to or from it."""
        self.hub.remove(device.device_id)
        self.traffic.removed_at[device.name] = self.world.now + after_s

    # Invariants

    def check(self) -> None:
        """At every quiet point."""
        for device in self.devices.values():
            self._check_device(device)
        if self.broker.forbidden:
            self.world.fail(f"against the broker's rules: {self.broker.forbidden[:5]}")
        self._no_drops("the hub", self.hub.all_drops(), HUB_NEVER)

    def finish(self) -> None:
        """At the end of a scenario."""
        self.world.check()

    def check_settled(self) -> None:
        """When nothing was disturbed for a while: hub, broker and devices hold the same to be true."""
        with self.hub.store.read() as tx:
            waiting = tx.outgoing_depth(), tx.job_count()
        if waiting != (0, 0):
            self.world.fail(f"the hub still has {waiting[0]} rows and {waiting[1]} jobs")
        for device in self.devices.values():
            row = self.hub.device(device.device_id)
            if row is not None and row.state is DeviceState.ACTIVE and device.node is not None:
                self._check_agreement(device, device.node, row)

    def _check_agreement(self, device: SimDevice, node: Node, row: DeviceRow) -> None:
        feed = self.retained_feed(device)
        endpoints = [(ip_address(text).packed, UDP_PORT) for text in device.host.addresses()]
        hub_state = self.broker.retained.get(topics.hub_state(self.hub.network.id))
        wanted = {
            "presence": (True, row.online),
            "map": ((row.map_epoch, row.map_seq), node.map.stamp),
            "feed key": (row.feed_key, node.map.feed_key),
            "node key at the hub": (node.identity.node_key, row.node_key),
            "node key in the feed": (node.identity.node_key, feed["nk"]),
            "endpoints in the feed": (endpoints, [tuple(endpoint) for endpoint in feed["ep"]]),
            "hub state": (True, hub_state is not None and node.client.hub_up),
            "wall time known": (True, node.wall.known),
            "wall time": (True, abs(node.wall.at(device.now) - self.world.wall_s) < WALL_OFF_MAX_S),
        }
        for what, (expected, found) in wanted.items():
            if expected != found:
                self.world.fail(f"{device.name}: {what}: {expected} expected, found {found}")
        for entry in node.client.records:
            other = self.hub.device(entry.record.device)
            if other is None or other.state is not DeviceState.ACTIVE:
                self.world.fail(f"{device.name} still has a record of {entry.record.name}, which was removed")
            elif (entry.record.stamp, entry.feed_key) != ((other.record_epoch, other.record_seq), other.feed_key):
                self.world.fail(f"{device.name} has an old record or feed key of {entry.record.name}")
        held = self.broker.sessions[device.device_id].filters
        for link in node.peering:
            if topics.feed(self.hub.network.id, link.device) not in held:
                self.world.fail(f"{device.name} is not subscribed to the feed of {link.name}")

    def retained_feed(self, device: SimDevice) -> dict[str, Any]:
        """What the broker would give to a new subscriber."""
        network = self.hub.network.id
        topic = topics.feed(network, device.device_id)
        row, identity = self.hub.device(device.device_id), device.identity
        if topic not in self.broker.retained or row is None or identity is None:
            self.world.fail(f"{device.name}: the broker has no feed of it")
        assert row is not None and identity is not None
        feed = read_feed(
            CRYPTO,
            identity.device_key,
            row.feed_key,
            topic,
            self.broker.retained[topic],
            network=network,
            device=device.device_id,
        )
        return feed.body

    def _check_device(self, device: SimDevice) -> None:
        if device.node is not None:
            self._check_links(device, device.node)
            status = device.status()
            for name, table in status["tables"].items():
                if table["used"] > table["ceiling"]:
                    self.world.fail(f"{device.name}: table {name}: {table}")
        self._no_drops(device.name, device.all_drops(), WG_NEVER | CONTROL_NEVER)
        hours = self.world.elapsed_s / 3600.0 + 1.0
        writes = sum(device.flash.writes.values())
        if writes > FLASH_WRITES_PER_HOUR_MAX * hours * max(1, device.boots):
            self.world.fail(f"{device.name}: {writes} writes to flash in {hours:.1f} h: {device.flash.writes}")

    def _check_links(self, device: SimDevice, node: Node) -> None:
        """Every link has its WireGuard peer, and there are no others."""
        keys = [peer.public_key for link in node.peering for peer in (link.peer, link.coming) if peer is not None]
        if sorted(keys) != sorted(node.device.peers):
            self.world.fail(
                f"{device.name}: {len(keys)} links and {len(node.device.peers)} peers do not belong together"
            )

    def _no_drops(self, who: str, drops: dict[str, int], never: set[str]) -> None:
        wrong = {reason: count for reason, count in drops.items() if count and reason in never - self.may_drop}
        if wrong:
            self.world.fail(f"{who} dropped what nobody may send: {wrong}")

    def _identity_of(self, device_id: str) -> Identity | None:
        if device_id not in self._identities:
            self._identities = {device.device_id: device for device in self.devices.values() if device.device_id}
        device = self._identities.get(device_id)
        return None if device is None else device.identity
