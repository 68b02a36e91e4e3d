"""A bare WireGuard machine on a host of the network: the production Device without a control plane."""

from __future__ import annotations

from edgeagent.crypto import load
from edgeagent.proto.device import Device
from edgeagent.proto.endpoint import Endpoint
from edgeagent.proto.errors import DropReason
from edgeagent.proto.events import Event, HandshakeCompleted
from edgeagent.proto.limits import Limits
from edgeagent.proto.peer import Peer
from edgeagent.proto.tai64n import Tai64nClock
from tests.sim.alarm import Alarm
from tests.sim.net import Host
from tests.sim.traffic import Traffic
from tests.sim.world import World

CRYPTO = load("pynacl")
WG_PORT = 51_820


class Tunnel:
    """After any input it drains packets, datagrams and events, and sets its alarm, as a daemon does.

    `reserved_ns` is what the TAI64N clock had made durable: it is all that `reboot` keeps besides the configuration.
    """

    def __init__(self, world: World, traffic: Traffic, host: Host, number: int, *, rtc_s: float | None = None) -> None:
        self.world = world
        self.traffic = traffic
        self.host = host
        self.name = host.name
        self.inner_addresses: tuple[bytes, bytes] | None = (
            bytes((10, 0, number >> 8, number & 0xFF)),
            bytes.fromhex("fd00") + number.to_bytes(14, "big"),
        )
        self.reserved_ns = 0
        self.reservations = 0
        self.handshakes: list[float] = []  # when each completed
        self.drops_before: dict[DropReason, int] = {}
        self._entropy = world.stream(f"{host.name}/entropy").randbytes
        self._jitter = world.stream(f"{host.name}/jitter").random
        self._alarm = Alarm(world, host.name, self._ring)
        self._private_key = self._entropy(32)
        self._peers: list[Tunnel] = []
        self.device = self._make(world.wall_s if rtc_s is None else rtc_s)
        host.bind(WG_PORT, self.from_udp)

    def know(self, other: Tunnel, address: str | None = None, *, keepalive_s: int = 0) -> Peer:
        """Make `other` a peer, at `address` if that is known."""
        if other not in self._peers:
            self._peers.append(other)
        device, now = self.device, self.world.now
        peer = device.add_peer(now, other.device.public_key)
        assert other.inner_addresses is not None
        for inner in other.inner_addresses:
            device.allowed_ips.insert(inner, 8 * len(inner), peer)
        if address is not None:
            peer.set_endpoint(Endpoint((address, WG_PORT, 0, 0) if ":" in address else (address, WG_PORT)))
        peer.set_persistent_keepalive(now, keepalive_s)
        device.touched(peer)
        self._settle()
        return peer

    def peer(self, other: Tunnel) -> Peer:
        return self.device.peers[other.device.public_key]

    def reboot(self, *, rtc_s: float, addresses: dict[str, str]) -> None:
        """Begin anew with the same key; the clock starts at `rtc_s`, sessions are gone. `addresses`: peers by name."""
        for reason, count in self.device.drops.items():
            self.drops_before[reason] = self.drops_before.get(reason, 0) + count
        self._alarm.stop()
        self.device = self._make(rtc_s)
        for other in self._peers:
            self.know(other, addresses.get(other.name))

    def drops(self) -> dict[str, int]:
        """Counted over all lives, zeros left out."""
        total = dict(self.drops_before)
        for reason, count in self.device.drops.items():
            total[reason] = total.get(reason, 0) + count
        return {reason.value: count for reason, count in total.items() if count}

    def from_tun(self, packets: list[bytes]) -> None:
        for unsent in self.device.handle_packets(self.world.now, packets):
            self.device.refuse(unsent)
        self._settle()

    def from_udp(self, batch: list[tuple[bytes, Endpoint, int]]) -> None:
        self.device.handle_datagrams(self.world.now, batch)
        self._settle()

    def _make(self, wall_s: float) -> Device:
        now = self.world.now
        self.device_clock = Tai64nClock(now, wall_s, self.reserved_ns, self._reserve)
        device = Device(
            now,
            crypto=CRYPTO,
            entropy=self._entropy,
            jitter=self._jitter,
            tai64n=self.device_clock,
            limits=Limits(),
        )
        device.set_private_key(now, self._private_key)
        return device

    def _reserve(self, floor_ns: int) -> None:
        self.reserved_ns = floor_ns
        self.reservations += 1

    def _ring(self) -> None:
        self.device.handle_timeout(self.world.now)
        self._settle()

    def _settle(self) -> None:
        device, now = self.device, self.world.now
        for event in device.drain_events():
            self._saw(event)
        for endpoint in self.host.transmit(WG_PORT, device.drain_transmits()):
            device.transmit_failed(now, endpoint)
        for packet in device.drain_packets():
            self.traffic.arrived(self, packet)
        self._alarm.set(device.poll_timeout())

    def _saw(self, event: Event) -> None:
        if isinstance(event, HandshakeCompleted):
            self.handshakes.append(self.world.now)
        self.world.note(f"{self.name}: {type(event).__name__}")
