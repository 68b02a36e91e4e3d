"""A device of the mesh: the production Joiner and Node, driven as the daemon drives them, on a flash and a network.

After any input: events first, and what they ask to be saved; then subscriptions, publishes, datagrams, packets.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from math import inf, nextafter
from struct import Struct
from typing import Any

from edgeagent.engine.pure import SHORTER_MAX
from edgeagent.io.keystore import CacheWriter
from edgeagent.proto.causes import Direction
from edgeagent.proto.constants import MTU_DEFAULT
from edgeagent.proto.endpoint import Endpoint
from edgeagent.proto.identity import Admission, Identity
from edgeagent.proto.join import Joined, Joiner, JoinEvent, JoinRefused
from edgeagent.proto.limits import Limits
from edgeagent.proto.lock import Lock
from edgeagent.proto.node import Node
from edgeagent.proto.node_events import (
    AdmissionChanged,
    CacheDirty,
    IdentityChanged,
    LockPinned,
    NodeEvent,
    PeerGone,
    PeerUp,
    ReconnectWanted,
)
from edgeagent.proto.tai64n import RESERVE_NS, Tai64nClock
from edgeagent.proto.token import Token
from edgeagent.proto.walltime import WallFloor
from tests.sim.alarm import Alarm
from tests.sim.bill import Bill
from tests.sim.broker import Broker, Connection, Login
from tests.sim.flash import Flash, PowerCut
from tests.sim.net import Host
from tests.sim.relay import RelayStream, SimRelay
from tests.sim.traffic import Traffic
from tests.sim.tunnel import CRYPTO
from tests.sim.world import WALL_AT_START_S, Action, World

UDP_PORT = 51_820
BUILT_AT_S = int(WALL_AT_START_S) - 30 * 86_400
_NS = 1_000_000_000
_CLOCK = Struct(">QQ")  # TAI64N reservation, ns; time floor, s
BOOT_TAKES_S = 3.0  # from power to the first line of the agent
KERNEL_TELLS_AFTER_S = 0.1  # of a change of addresses
FACTS = {"model": "simulated"}
VERSION = "0.1.0"


class SimDevice:
    """`power_on` and `cut_power`, `kill` (the process alone), `stop` (in good order), `move_to` (another address).

    Its monotonic clock begins anew at each boot; `clock_is_wrong_by_s` is what the system's wall clock is off at boot.
    """

    def __init__(
        self,
        world: World,
        traffic: Traffic,
        host: Host,
        broker: Broker,
        token: Token,
        *,
        limits: Limits | None = None,
    ) -> None:
        self.world = world
        self.traffic = traffic
        self.host = host
        self.broker = broker
        self.token = token
        self.name = host.name
        self.limits = limits or Limits()
        self.flash = Flash()
        self.node: Node | None = None
        self.joiner: Joiner | None = None
        self.refused: str | None = None  # why the hub did not take it in
        self.boots = 0
        self.drops: dict[str, int] = {}  # of all lives before this one
        self.peer_ups: list[tuple[float, str]] = []
        self.peer_gones: list[tuple[float, str, str]] = []
        self.mtu = MTU_DEFAULT  # of the TUN
        self.device_id = ""
        self.on_start: Action = _nothing  # called when the agent starts
        self.bill: Bill | None = None  # told of all that goes over the line, when there is one
        self.relays: dict[str, SimRelay] = {}  # those of the world, by id
        self._entropy = world.stream(f"{host.name}/entropy").randbytes
        self._jitter = world.stream(f"{host.name}/jitter").random
        self._booted_at = 0.0
        self._boot = b""
        self._running = False
        self._link: Connection | None = None
        self._link_life = 0
        self._streams: dict[int, RelayStream] = {}
        self._cache = CacheWriter()
        self._identity: Identity | None = None
        self._wall: WallFloor | None = None
        self._tai64n: Tai64nClock | None = None
        self._stamps_reserved_ns = 0
        self._alarm = Alarm(world, host.name, self._ring)

    @property
    def now(self) -> float:
        """The device's monotonic clock."""
        return self.world.now - self._booted_at

    @property
    def is_running(self) -> bool:
        return self._running

    @property
    def inner_addresses(self) -> tuple[bytes, bytes] | None:
        return None if self.node is None else self.node.map.addresses

    @property
    def identity(self) -> Identity | None:
        """What it is; None before its first start."""
        return self._identity

    def status(self) -> dict[str, Any]:
        """As `edgeagent status --json` has it. It must be running."""
        assert self.node is not None
        return self.node.status(self.now)

    def all_drops(self) -> dict[str, int]:
        """Over all lives, by reason."""
        total = dict(self.drops)
        for reason, count in self._drops_now().items():
            total[reason] = total.get(reason, 0) + count
        return total

    @property
    def link(self) -> Connection | None:
        """To the broker."""
        return self._link

    @property
    def connected(self) -> bool:
        return self._link is not None and self._link.is_up and self.node is not None

    # Power and process

    def power_on(self) -> None:
        if self.host.up and self.boots:
            return
        self.boots += 1
        self.host.up = True
        self._booted_at = self.world.now
        boots = self.boots
        self.world.after(BOOT_TAKES_S, lambda: self._start_if(boots))

    def cut_power(self) -> None:
        """Everything that was not saved is gone, and nobody is told."""
        self.host.up = False
        self._end(lambda link: link.die())
        self.world.note(f"{self.name}: power cut")

    def reboot(self, *, off_s: float = 1.0) -> None:
        self.cut_power()
        self.world.after(off_s, self.power_on)

    def kill(self) -> None:
        """kill -9 of the agent: the kernel closes its sockets."""
        self._end(lambda link: link.close(politely=False))
        self.world.note(f"{self.name}: killed")

    def start(self) -> None:
        """The agent starts on a system that is running."""
        if not self._running and self.host.up:
            self._start()

    def restart(self, *, down_s: float = 1.0) -> None:
        self.kill()
        self.world.after(down_s, self.start)

    def stop(self) -> None:
        """SIGTERM: it says goodbye."""
        node = self.node
        if node is not None:
            self._guarded(lambda: node.farewell(self.now))
            self._guarded(lambda: self._save_all(node))
        self._end(lambda link: link.close(politely=True))

    # The system around it

    def from_tun(self, packets: list[bytes]) -> None:
        if self.node is not None:
            node, now = self.node, self.now
            self._guarded(lambda: node.handle_packets(now, packets))

    def move_to(self, address: str) -> None:
        """The network gives it another address."""
        self.host.set_address(self.host.interfaces[0], address)
        self.world.after(KERNEL_TELLS_AFTER_S, self.tell_addresses)

    def set_on_demand(self, on_demand: bool) -> None:
        """Its uplink is metered, or not any more."""
        if self.node is not None:
            node, now = self.node, self.now
            self._guarded(lambda: node.set_price(now, on_demand=on_demand))

    def tell_facts(self) -> None:
        """What the agent does once a day."""
        if self.node is not None:
            node, now = self.node, self.now
            self._guarded(lambda: node.tell_facts(now))

    def tell_addresses(self) -> None:
        if self.node is not None:
            node, now = self.node, self.now
            addresses = [(ip_address(text).packed, UDP_PORT) for text in self.host.addresses()]
            self._guarded(lambda: node.handle_addresses(now, addresses))
        # A connection from an address that is gone would be found dead only by its keepalive
        if self._link is not None and self._link.source not in self.host.addresses():
            self._guarded(self._lose_link)

    def _start_if(self, boots: int) -> None:
        if self.boots == boots and self.host.up and not self._running:
            self._start()

    def _start(self) -> None:
        self._running = True
        self.on_start()
        self.on_start = _nothing
        self._boot = self._entropy(16)
        self._cache = CacheWriter()
        try:
            self._load()
        except PowerCut:
            self.reboot()
            return
        self.host.bind(UDP_PORT, self._from_udp)
        self.tell_addresses()
        self._settle()

    def _load(self) -> None:
        saved = self.flash.load("identity")
        if saved is None:
            self._identity = Identity.create(CRYPTO, self._entropy)
            self.flash.save("identity", self._identity.encode())
        else:
            self._identity = Identity.decode(CRYPTO, saved)
        self.device_id = self._identity.device_id
        admission = self.flash.load("admission")
        self._stamps_reserved_ns, floor_s = self._load_clock(member=admission is not None)
        self._wall = WallFloor(self.now, floor_s)
        self._tai64n = Tai64nClock(self.now, floor_s, self._stamps_reserved_ns, self._reserve_stamps)
        if admission is None:
            self._join()
        else:
            self._mesh(Admission.decode(CRYPTO, admission))

    def _join(self) -> None:
        assert self._identity is not None and self._wall is not None
        self.joiner = Joiner(
            self.now,
            crypto=CRYPTO,
            entropy=self._entropy,
            jitter=self._jitter,
            token=self.token,
            identity=self._identity,
            host=self.name,
            boot=self._boot,
            facts=FACTS,
            wall=self._wall,
        )

    def _mesh(self, admission: Admission) -> None:
        assert self._identity is not None and self._wall is not None and self._tai64n is not None
        self.node = Node(
            self.now,
            crypto=CRYPTO,
            entropy=self._entropy,
            jitter=self._jitter,
            tai64n=self._tai64n,
            limits=self.limits,
            identity=self._identity,
            admission=admission,
            wall=self._wall,
            boot=self._boot,
            version=VERSION,
            facts=FACTS,
            saved=self.flash.load("cache"),
            mtu=self.mtu,
            lock=None if (kept := self.flash.load("lock")) is None else Lock.decode(CRYPTO, kept),
        )

    def _end(self, drop: Callable[[Connection], None]) -> None:
        """The process is no more."""
        self._running = False
        self._count_drops()
        self._alarm.stop()
        self.host.unbind(UDP_PORT)
        if self._link is not None:
            drop(self._link)
        self._link = None
        self._link_life += 1
        for stream in self._streams.values():
            stream.close()
        self._streams.clear()
        self.node = None
        self.joiner = None
        self.flash.fuse.left = None

    # Inputs of the machines

    def _from_udp(self, batch: list[tuple[bytes, Endpoint, int]]) -> None:
        if self.bill is not None:
            self.bill.received(self.now, batch)
        if self.node is not None:
            node, now = self.node, self.now
            self._guarded(lambda: node.handle_datagrams(now, batch))

    def _ring(self) -> None:
        def ring() -> None:
            now = self.now
            if self.joiner is not None:
                self.joiner.handle_timeout(now)
            elif self.node is not None:
                self.node.handle_timeout(now)

        self._guarded(ring)

    def _connected(self, session_present: bool) -> None:
        if self.bill is not None and self._link is not None:
            self.bill.connected(self.now, self._link.login.keepalive_s)
        if self.joiner is not None and self._link is not None:
            for topic in self.joiner.subscriptions:
                self._link.subscribe(topic)
            self.joiner.handle_connected(self.now)
        elif self.node is not None:
            self.node.handle_connected(self.now, session_present)

    def _closed(self, refused: bool) -> None:
        self._link = None
        if self.bill is not None:
            self.bill.disconnected(self.now)
        if self.joiner is not None:
            if refused:
                self.joiner.handle_refused(self.now)
            else:
                self.joiner.handle_disconnected(self.now)
        elif self.node is not None:
            self.node.handle_disconnected(self.now)

    def _message(self, topic: str, payload: bytes, mid: int | None) -> None:
        if self.bill is not None:
            self.bill.published(self.now, Direction.RECEIVED, topic, payload, acknowledged=mid is not None)
        if self.joiner is not None:
            self.joiner.handle_message(self.now, topic, payload)
        elif self.node is not None:
            self.node.handle_message(self.now, topic, payload)

    def _guarded(self, action: Action) -> None:
        """One input and what follows from it; a blown fuse is a power cut at that step."""
        if not self._running:
            return
        try:
            action()
            self._settle_machines()
        except PowerCut:
            self.reboot()

    def _settle(self) -> None:
        self._guarded(lambda: None)

    # Outputs

    def _settle_machines(self) -> None:
        if self.joiner is not None:
            self._settle_joiner(self.joiner)
        if self.node is not None:
            self._settle_node(self.node)

    def _settle_joiner(self, joiner: Joiner) -> None:
        for publish in joiner.drain_publishes():
            if self._link is not None:
                self._link.publish(publish.topic, publish.payload, qos=publish.qos, retain=publish.retain)
            self.flash.fuse.step()
        for event in joiner.drain_events():
            self._joiner_said(event)
        if self.joiner is None:
            return
        if self._is_due(joiner):
            self._open(Login(joiner.client_id, joiner.username, joiner.password, clean=True))
        self._set_alarm(joiner.poll_timeout(), self._connect_at(joiner))

    def _joiner_said(self, event: JoinEvent) -> None:
        self.world.note(f"{self.name}: {type(event).__name__}")
        if isinstance(event, Joined):
            self.flash.save("admission", event.admission.encode())
            self._leave_claim()
            self._mesh(event.admission)
            self.tell_addresses()
        elif isinstance(event, JoinRefused):
            self.refused = event.reason
            if self.joiner is None or self.joiner.done:
                self._leave_claim()

    def _leave_claim(self) -> None:
        self.joiner = None
        if self._link is not None:
            self._link.close(politely=True)
        self._link = None
        self._link_life += 1

    def _settle_node(self, node: Node) -> None:
        now = self.now
        reconnect = False
        for event in node.drain_events():
            reconnect |= self._node_said(node, event)
        if reconnect:
            self._lose_link(politely=True)
        if self._is_due(node):
            self._log_in(node)
        due = self._cache.poll_timeout()
        if due is not None and due <= now:
            self._save_cache(node)
        for topic, wanted in node.drain_subscriptions():
            if self._link is not None and self._link.is_up:
                if self.bill is not None:
                    self.bill.subscribed(now, topic)
                if wanted:
                    self._link.subscribe(topic)
                else:
                    self._link.unsubscribe(topic)
            self.flash.fuse.step()
        for publish in node.drain_publishes():
            if self._link is not None and self._link.is_up:
                if self.bill is not None:
                    self.bill.published(
                        now, Direction.SENT, publish.topic, publish.payload, acknowledged=publish.qos > 0
                    )
                self._link.publish(publish.topic, publish.payload, qos=publish.qos, retain=publish.retain)
            self.flash.fuse.step()
        self._carry_streams(node)
        for _ in range(SHORTER_MAX):
            transmits = node.drain_transmits()
            if self.bill is not None:
                self.bill.sent(now, transmits)
            for endpoint in self.host.transmit(UDP_PORT, transmits):
                node.transmit_failed(now, endpoint)
            too_long = self.host.drain_too_long()
            if not too_long:
                break
            for endpoint, size in dict.fromkeys(too_long):
                node.transmit_too_long(now, endpoint, size)
        for packet in node.drain_packets():
            self.traffic.arrived(self, packet)
        self._set_alarm(node.poll_timeout(), self._connect_at(node), self._cache.poll_timeout())

    def _carry_streams(self, node: Node) -> None:
        """Connections to relays, as the shell makes and ends them."""
        for wish in node.drain_stream_wishes():
            number = wish.number
            old = self._streams.pop(number, None)
            if old is not None:
                old.close()
            if wish.open:
                if self.bill is not None:
                    self.bill.stream_opened(self.now)
                self._open_stream(number, self.relays[wish.relay.id])
        for number, data in node.drain_stream_writes():
            if number in self._streams:
                if self.bill is not None:
                    self.bill.streamed(self.now, Direction.SENT, data)
                self._streams[number].send(data)

    def _open_stream(self, number: int, relay: SimRelay) -> None:
        stream: RelayStream

        def mine(action: Callable[[Node], None]) -> None:
            """Only while it is the stream of that number, in this life of the agent."""
            node = self.node
            if node is not None and self._streams.get(number) is stream:
                self._guarded(lambda: action(node))

        def closed() -> None:
            def tell(node: Node) -> None:
                self._streams.pop(number, None)
                node.stream_closed(self.now, number)

            mine(tell)

        stream = self._streams[number] = relay.connect(
            self.host,
            opened=lambda: mine(lambda node: node.stream_opened(self.now, number)),
            data=lambda data: mine(lambda node: self._streamed(node, number, data)),
            closed=closed,
        )

    def _streamed(self, node: Node, number: int, data: bytes) -> None:
        if self.bill is not None:
            self.bill.streamed(self.now, Direction.RECEIVED, data)
        node.handle_stream(self.now, number, data)

    def _node_said(self, node: Node, event: NodeEvent) -> bool:
        """True when the connection is to be made anew."""
        if isinstance(event, CacheDirty):
            if event.urgent:
                self._save_cache(node)
            else:
                self._cache.dirty(self.now)
            return False
        self.world.note(f"{self.name}: {type(event).__name__}")
        if isinstance(event, IdentityChanged):
            assert self._identity is not None
            self.flash.save("identity", self._identity.encode())
        elif isinstance(event, LockPinned) and node.client.lock is not None:
            self.flash.save("lock", node.client.lock.encode())
        elif isinstance(event, AdmissionChanged):
            self.flash.save("admission", node.admission.encode())
        elif isinstance(event, PeerUp):
            self.peer_ups.append((self.world.now, event.name))
        elif isinstance(event, PeerGone):
            self.peer_gones.append((self.world.now, event.name, event.reason))
        return isinstance(event, ReconnectWanted)

    def _save_cache(self, node: Node) -> None:
        self.flash.save("cache", node.snapshot(self.now))
        self._cache.written(self.now)

    def _load_clock(self, *, member: bool) -> tuple[int, int]:
        """(TAI64N reservation ns, time floor s), as the agent's context reads them."""
        saved = self.flash.load("clock")
        if saved is not None:
            reserved_ns, floor_s = _CLOCK.unpack(saved)
            return reserved_ns, max(BUILT_AT_S, floor_s)
        return (BUILT_AT_S * _NS + RESERVE_NS if member else 0), BUILT_AT_S

    def _reserve_stamps(self, reserved_ns: int) -> None:
        self._stamps_reserved_ns = reserved_ns
        floor_s = max(BUILT_AT_S, (reserved_ns - RESERVE_NS) // _NS)
        self.flash.save("clock", _CLOCK.pack(reserved_ns, floor_s))

    def _save_all(self, node: Node) -> None:
        self._save_cache(node)
        self._save_clock()

    def _save_clock(self) -> None:
        assert self._wall is not None
        self.flash.save("clock", _CLOCK.pack(self._stamps_reserved_ns, int(self._wall.at(self.now))))

    def _set_alarm(self, *times: float | None) -> None:
        first = min((at for at in times if at is not None), default=None)
        if first is None:
            return
        when = first + self._booted_at
        while when - self._booted_at < first:  # or the machine is woken a rounding error too early
            when = nextafter(when, inf)
        self._alarm.set(when)

    # MQTT

    def _connect_at(self, machine: Joiner | Node) -> float | None:
        """When to connect; None while a connection is there or being made."""
        return machine.next_connect_at if self._link is None else None

    def _is_due(self, machine: Joiner | Node) -> bool:
        at = self._connect_at(machine)
        return at is not None and at <= self.now

    def _log_in(self, node: Node) -> None:
        node.begin_session(self.now)
        for event in node.drain_events():
            self._node_said(node, event)
        will = node.last_will(self.now)
        self._open(
            Login(
                node.client_id,
                node.username,
                node.password,
                clean=False,
                keepalive_s=float(node.mqtt_keepalive_s),
                will=(will.topic, will.payload),
            )
        )

    def _open(self, login: Login) -> None:
        self._link_life += 1
        life = self._link_life

        def mine(action: Action) -> None:
            if life == self._link_life:
                self._guarded(action)

        self._link = Connection(
            self.broker,
            self.host,
            login,
            on_connected=lambda present: mine(lambda: self._connected(present)),
            on_closed=lambda refused: mine(lambda: self._closed(refused)),
            on_message=lambda topic, payload, mid: mine(lambda: self._message(topic, payload, mid)),
            on_acked=lambda _mid: None,
        )

    def _lose_link(self, *, politely: bool = False) -> None:
        if self._link is not None:
            self._link.close(politely=politely)
            self._link_life += 1
            self._closed(False)

    def _count_drops(self) -> None:
        for reason, count in self._drops_now().items():
            self.drops[reason] = self.drops.get(reason, 0) + count

    def _drops_now(self) -> dict[str, int]:
        if self.joiner is not None:
            return {reason.value: count for reason, count in self.joiner.drops.items()}
        if self.node is not None:
            drops: dict[str, int] = self.status()["drops"]
            return drops
        return {}


def _nothing() -> None:
    """Nobody wants to know."""
