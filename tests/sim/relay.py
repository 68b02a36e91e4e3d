"""Relays on the simulated internet: the production core behind a host's UDP ports and connections."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from edgeagent.proto.endpoint import Endpoint, Transmit
from edgeagent.proto.keys import clamp
from edgeagent.proto.names import device_id
from edgeagent.proto.relay_frames import DATA, DATAGRAM_HEAD_SIZE, LONG_PROBE_SIZE, RECV
from edgeagent.proto.relaymap import RelayInfo
from hub.core import ipam, relays
from hub.core.model import NODE_KEY_LIFE_S, DeviceState, Kind, NodeKey
from hub.core.model import Device as DeviceRow
from relay.core.limits import Rate, RelayLimits
from relay.core.relay import RelayCore
from relay.core.shared import Train
from tests.sim.alarm import Alarm
from tests.sim.hub import SimHub
from tests.sim.net import Batch, Host, Net, Segment
from tests.sim.stream import Side, Stream
from tests.sim.tunnel import CRYPTO
from tests.sim.world import World

UDP_PORT, SECOND_PORT, TLS_PORT = 3_478, 3_479, 443
REGION = "here"
TCP_KEEPALIVE_S = 300.0
PROBE_BYTES = DATAGRAM_HEAD_SIZE + LONG_PROBE_SIZE
HANDSHAKES = 6  # ways there and back before frames go: TCP, TLS, the HTTP upgrade
_UNLIMITED = Rate(1 << 40, 1 << 40)


class SimRelay:
    """`kill` and `start` it, `freeze` and `thaw` it; `forwards` False makes it take everything and pass nothing on."""

    def __init__(self, world: World, net: Net, segment: Segment, hub: SimHub, name: str, address: str) -> None:
        self.world = world
        self.net = net
        self.hub = hub
        self.name = name
        self.address = address
        self.host: Host = net.host(name)
        self.host.attach(segment, address)
        self.forwards = True
        self.packets = 0  # that it brought to members, by UDP
        self.bytes = 0
        self._entropy = world.stream(f"{name}/entropy").randbytes
        self._private = clamp(self._entropy(32))
        self.core: RelayCore | None = None
        self._streams: dict[int, RelayStream] = {}
        self._waiting: list[Callable[[], None]] | None = None  # what came in since it was frozen
        self._last_conn = 0
        self._alarm = Alarm(world, name, self._ring)
        self.start()
        self.register()

    @property
    def is_up(self) -> bool:
        return self.core is not None

    def info(self) -> RelayInfo:
        return RelayInfo({"id": self.name, **self._fields()})

    def register(self) -> None:
        """Be in the maps, as a relay that joined and has told what it is."""
        device = device_id(CRYPTO, CRYPTO.blake2s(self.name.encode()))
        with self.hub.store.write() as tx:
            row = DeviceRow(
                id=device,
                state=DeviceState.ACTIVE,
                claim="",
                device_key=bytes(32),
                box_key=CRYPTO.x25519_base(self._private),
                node_key=CRYPTO.blake2s(self.name.encode()),
                created_s=self.hub.wall_s,
                name=self.name,
                v4=ipam.choose_v4(device, lambda _: False),
                v6=ipam.choose_v6(self.hub.network.id, device, lambda _: False),
                feed_key=bytes(32),
                kind=Kind.RELAY,
                online=True,
                last_seen_s=self.hub.wall_s,
            )
            tx.add_device(row)
            tx.save_node_key(NodeKey(row.node_key, device, self.hub.wall_s + NODE_KEY_LIFE_S))
            relays.take_word(tx, row, {**self._fields(), "m": 0}, self.hub.wall_s)
        self.hub.go_on()

    def start(self) -> None:
        """The process, which remembers nothing."""
        self.core = RelayCore(
            self.world.now,
            self.world.wall_s,
            crypto=CRYPTO,
            entropy=self._entropy,
            relay=self.name,
            region=REGION,
            private=self._private,
            networks=[self.hub.network.key],
            limits=RelayLimits(),
            network_rate=_UNLIMITED,
            member_rates={0: _UNLIMITED},
            ports=(UDP_PORT, SECOND_PORT),
        )
        self.host.bind(UDP_PORT, self._from_udp)
        self.host.bind(SECOND_PORT, self._from_second_port)
        self.settle()

    def kill(self) -> None:
        """kill -9: connections are closed by the kernel, datagrams find nobody."""
        self.core = None
        self.host.unbind(UDP_PORT)
        self.host.unbind(SECOND_PORT)
        self._alarm.stop()
        for stream in list(self._streams.values()):
            stream.stream.close(Side.SERVER)
        self._streams.clear()

    def freeze(self) -> None:
        """kill -STOP: buffers fill, and nothing comes of it until `thaw`."""
        self._waiting = []

    def thaw(self) -> None:
        waiting, self._waiting = self._waiting or [], None
        for each in waiting:
            each()
        self._ring()

    def connect(
        self, client: Host, opened: Callable[[], None], data: Callable[[bytes], None], closed: Callable[[], None]
    ) -> RelayStream:
        """A connection from `client`, which is told by the functions given what becomes of it."""
        return RelayStream(self, client, opened, data, closed)

    # What streams call

    def accept(self, stream: RelayStream) -> int:
        assert self.core is not None
        self._last_conn += 1
        self._streams[self._last_conn] = stream
        self.core.stream_opened(self.world.now, self._last_conn, bytes((192, 0, 2, 200)))
        self.settle()
        return self._last_conn

    def received(self, conn: int, data: bytes) -> None:
        if self._waiting is not None:
            self._waiting.append(partial(self.received, conn, data))
        elif self.core is not None and conn in self._streams:
            self.core.stream_received(self.world.now, conn, data)
            self.settle()

    def closed(self, conn: int) -> None:
        if self._streams.pop(conn, None) is not None and self.core is not None:
            self.core.stream_closed(conn)
            self.settle()

    # Datagrams and time

    def _from_udp(self, batch: Batch) -> None:
        if self._waiting is not None:
            self._waiting.append(partial(self._from_udp, batch))
        elif self.core is not None:
            self.core.handle_trains(self.world.now, [_train(*item) for item in batch])
            self.settle()

    def _from_second_port(self, batch: Batch) -> None:
        if self.core is not None:
            for item in batch:
                self.core.handle_stun(self.world.now, _train(*item))
            self.settle()

    def _ring(self) -> None:
        if self.core is not None and self._waiting is None:
            self.core.handle_timeout(self.world.now)
            self.settle()

    def settle(self) -> None:
        """After anything was done to `core`."""
        core = self.core
        assert core is not None
        for train in core.drain_trains():
            self._send(core, train)
        while True:
            writes, closes = core.drain_writes(), core.drain_closes()
            for conn, data in writes:
                if conn in self._streams:
                    self._streams[conn].to_client(data)
            for conn in closes:
                stream = self._streams.pop(conn, None)
                if stream is not None:
                    stream.stream.close(Side.SERVER)
                    core.stream_closed(conn)
            if not writes and not closes:
                break
        core.drain_brakes()
        core.drain_happenings()
        self._alarm.set(core.poll_timeout())

    def _send(self, core: RelayCore, train: Train) -> None:
        datagrams = [bytes(datagram) for datagram in train.datagrams()]
        if datagrams[0][0] == DATA:
            if not self.forwards:
                return
            if len(datagrams[0]) > PROBE_BYTES:  # and no probe of a member to itself
                self.packets += len(datagrams)
                self.bytes += sum(map(len, datagrams))
        port = SECOND_PORT if train.from_second_port else UDP_PORT
        self.host.transmit(port, [Transmit(train.endpoint.unpinned(), datagrams, train.ecn, fragment=True)])

    def _fields(self) -> dict[str, object]:
        return {
            "rg": REGION,
            "k": CRYPTO.x25519_base(self._private),
            "h": [f"{self.address}:{TLS_PORT}"],
            "u": UDP_PORT,
            "s": SECOND_PORT,
            "pin": bytes(32),
        }


class RelayStream:
    """TCP, TLS and the upgrade as so many ways there and back, then bytes in order."""

    def __init__(
        self,
        relay: SimRelay,
        client: Host,
        opened: Callable[[], None],
        data: Callable[[bytes], None],
        closed: Callable[[], None],
    ) -> None:
        self.relay = relay
        self.conn = 0
        self._opened = opened
        self._data = data
        self._closed = closed
        self.stream = Stream(relay.net, client, relay.address, TCP_KEEPALIVE_S, self._lost)
        self._shake(HANDSHAKES)

    def send(self, data: bytes) -> None:
        self.stream.send(Side.CLIENT, partial(self._at_relay, data))

    def close(self) -> None:
        """By the client."""
        self.stream.close(Side.CLIENT)

    def to_client(self, data: bytes) -> None:
        if self.relay.forwards or data[0] != RECV:
            self.stream.send(Side.SERVER, partial(self._data, data))

    def _shake(self, left: int) -> None:
        """One way after the other; nobody at the other end closes it."""
        if left == 0:
            self._opened()
            return
        if left == 1 and not self.relay.is_up:
            self.stream.close(Side.SERVER)
            return
        side = Side.CLIENT if left % 2 == 0 else Side.SERVER
        self.stream.send(side, partial(self._shake, left - 1))
        if left == 1:  # behind the answer to the upgrade
            self.conn = self.relay.accept(self)

    def _at_relay(self, data: bytes) -> None:
        self.relay.received(self.conn, data)

    def _lost(self, side: Side) -> None:
        if side is Side.CLIENT:
            self._closed()
        else:
            self.relay.closed(self.conn)


def _train(datagram: bytes, source: Endpoint, ecn: int) -> Train:
    return Train(source, datagram, len(datagram), ecn)
