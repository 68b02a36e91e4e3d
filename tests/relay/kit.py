"""A real relay core and real clients, with wires between them that a test cranks by hand."""

from __future__ import annotations

import random
from collections.abc import Callable

from edgeagent.crypto import load
from edgeagent.proto.endpoint import Endpoint
from edgeagent.proto.names import device_id, network_id
from edgeagent.proto.relay_client import RelayClient
from edgeagent.proto.relay_events import Carrier, CloseStream, OpenStream, RelayEvent
from edgeagent.proto.relay_pass import write_pass
from relay.core.limits import Rate, RelayLimits
from relay.core.relay import RelayCore
from relay.core.shared import Train

CRYPTO = load("pynacl")
WALL_S = 1_800_000_000
NOW = 1_000.0
SEED = bytes(31) + b"\x01"
NETWORK_KEY = CRYPTO.ed25519_public(SEED)
NETWORK = network_id(CRYPTO, NETWORK_KEY)
OTHER_SEED = bytes(31) + b"\x02"
OTHER_KEY = CRYPTO.ed25519_public(OTHER_SEED)
OTHER_NETWORK = network_id(CRYPTO, OTHER_KEY)
RELAY_PRIVATE = bytes(range(32))
RELAY_KEY = CRYPTO.x25519_base(RELAY_PRIVATE)
RELAY, REGION = "fra-1", "fra"
BOTH = (Carrier.DATAGRAM, Carrier.STREAM)


def private_key(number: int) -> bytes:
    return CRYPTO.blake2s(b"node" + number.to_bytes(4, "big"))


def public_key(number: int) -> bytes:
    return CRYPTO.x25519_base(private_key(number))


def device(number: int) -> str:
    return device_id(CRYPTO, number.to_bytes(32, "big"))


def make_pass(
    number: int,
    *,
    seed: bytes = SEED,
    network: str = NETWORK,
    seq: int = 1,
    relays: list[str] | None = None,
    regions: list[str] | None = None,
    rate_class: int = 0,
    begins: int = -100,
    ends: int = 86_400,
    issued: int = 0,
    node_key: bytes | None = None,
) -> bytes:
    """For the device and node key `number`; times are seconds from WALL_S."""
    return write_pass(
        CRYPTO,
        seed,
        network=network,
        device=device(number),
        epoch=1,
        seq=seq,
        wall_s=WALL_S + issued,
        not_before=WALL_S + begins,
        not_after=WALL_S + ends,
        node_key=node_key or public_key(number),
        relays=[RELAY] if relays is None else relays,
        regions=[] if regions is None else regions,
        rate_class=rate_class,
    )


def make_core(
    *,
    relay: str = RELAY,
    private: bytes = RELAY_PRIVATE,
    siblings: dict[bytes, str] | None = None,
    seed: int = 7,
    rates: dict[int, Rate] | None = None,
    network_rate: Rate | None = None,
    total_bytes_per_s: int | None = None,
    ports: tuple[int, int | None] = (3478, 3479),
    **limits: int,
) -> RelayCore:
    return RelayCore(
        NOW,
        WALL_S,
        crypto=CRYPTO,
        entropy=random.Random(seed).randbytes,
        relay=relay,
        region=REGION,
        private=private,
        networks=[NETWORK_KEY, OTHER_KEY],
        siblings=siblings,
        limits=RelayLimits(**limits),
        member_rates=rates,
        network_rate=network_rate or Rate(1 << 40, 1 << 40),
        total_bytes_per_s=total_bytes_per_s,
        ports=ports,
    )


def make_client(number: int, *, carriers: tuple[Carrier, ...] = BOTH, pass_object: bytes | None = None) -> RelayClient:
    rng = random.Random(1000 + number)
    return RelayClient(
        crypto=CRYPTO,
        entropy=rng.randbytes,
        jitter=rng.random,
        relay=RELAY,
        relay_key=RELAY_KEY,
        private=private_key(number),
        pass_object=make_pass(number) if pass_object is None else pass_object,
        carriers=carriers,
    )


class Host:
    """One client, its UDP address, its connection, and what it was told."""

    def __init__(self, number: int, client: RelayClient) -> None:
        self.number = number
        self.key = public_key(number)
        self.client = client
        self.endpoint = Endpoint((f"192.0.2.{number % 250 + 1}", 40_000 + number), (bytes((198, 51, 100, 1)), 2))
        self.conn: int | None = None
        self.reads = True  # False: its end of the connection takes nothing more
        self.packets: list[tuple[bytes, bytes]] = []
        self.events: list[RelayEvent] = []

    def told(self, kind: type) -> list[RelayEvent]:
        return [event for event in self.events if isinstance(event, kind)]


class World:
    """One relay and its members; nothing crosses until `settle`, time moves only by `advance`.

    `udp_works` and `tls_works` are the network between; `keep` says of each datagram, in either direction, whether it
    arrives. `log` holds every datagram that crossed: (to the relay?, datagram).
    """

    def __init__(self, core: RelayCore | None = None) -> None:
        self.now = NOW
        self.core = core or make_core()
        self.hosts: list[Host] = []
        self.udp_works = True
        self.tls_works = True
        self.keep: Callable[[bool, bytes], bool] = lambda up, datagram: True
        self.log: list[tuple[bool, bytes]] = []
        self._next_conn = 1
        self._by_conn: dict[int, Host] = {}

    def add(self, number: int, **options: object) -> Host:
        host = Host(number, make_client(number, **options))  # type: ignore[arg-type]
        self.hosts.append(host)
        host.client.start(self.now)
        return host

    def join(self, number: int, carrier: Carrier, **options: object) -> Host:
        """A member that is up and proven."""
        host = self.add(number, carriers=(carrier,), **options)
        self.settle()
        assert host.client.carrier is carrier and host.client.alive, host.events
        return host

    def settle(self) -> None:
        """Carry everything to and fro until all is quiet."""
        for _ in range(200):
            moved = [self._from_host(host) for host in list(self.hosts)]
            moved.append(self._from_relay())
            if not any(moved):
                return
        raise AssertionError("never quiet")

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        self.settle()
        while True:
            due = [at for host in self.hosts if (at := host.client.poll_timeout()) is not None]
            due.append(self.core.poll_timeout())
            if min(due) > end:
                break
            self.now = max(self.now, min(due))
            for host in self.hosts:
                host.client.handle_timeout(self.now)
            self.core.handle_timeout(self.now)
            self.settle()
        self.now = end

    def send(self, source: Host, destination: Host | bytes, *packets: bytes) -> None:
        key = destination.key if isinstance(destination, Host) else destination
        source.client.send(self.now, key, list(packets))
        self.settle()

    def _from_host(self, host: Host) -> bool:
        client = host.client
        moved = False
        for event in client.drain_events():
            moved = True
            host.events.append(event)
            if isinstance(event, OpenStream):
                self._open(host)
            elif isinstance(event, CloseStream):
                self._close(host)
        for datagram, ecn in client.drain_datagrams():
            moved = True
            self.log.append((True, datagram))
            if self.udp_works and self.keep(True, datagram):
                self.core.handle_trains(self.now, [Train(host.endpoint, datagram, len(datagram), ecn)])
        data = client.drain_stream()
        if data and host.conn is not None:
            moved = True
            if self.tls_works:
                self.core.stream_received(self.now, host.conn, data)
        host.packets += [(key, packet) for key, packet, _ in client.drain_packets()]
        return moved

    def _from_relay(self) -> bool:
        moved = False
        for train in self.core.drain_trains():
            for datagram in train.datagrams():
                moved = True
                self.log.append((False, datagram))
                host = next((host for host in self.hosts if host.endpoint.addr == train.endpoint.addr), None)
                if host is not None and self.udp_works and self.keep(False, datagram):
                    host.client.handle_datagrams(self.now, [(datagram, train.ecn)])
        for conn, data in self.core.drain_writes():
            host = self._by_conn.get(conn)
            if host is None or not self.tls_works:
                continue
            if host.reads:
                moved = True
                host.client.handle_stream(self.now, data)
            else:
                self.core.stream_blocked(conn)
        for conn in self.core.drain_closes():
            moved = True
            host = self._by_conn.pop(conn, None)
            self.core.stream_closed(conn)
            if host is not None and host.conn == conn:
                host.conn = None
                host.client.stream_closed(self.now)
        return moved

    def _open(self, host: Host) -> None:
        if not self.tls_works:
            return
        host.conn, self._next_conn = self._next_conn, self._next_conn + 1
        self._by_conn[host.conn] = host
        self.core.stream_opened(self.now, host.conn, bytes((192, 0, 2, host.number % 250 + 1)))
        host.client.stream_opened(self.now)

    def _close(self, host: Host) -> None:
        if host.conn is not None:
            self._by_conn.pop(host.conn, None)
            self.core.stream_closed(host.conn)
            host.conn = None


def drops(core: RelayCore) -> dict[str, int]:
    return {reason.value: count for reason, count in core.shared.drops.items() if count}


def refusals(core: RelayCore) -> dict[str, int]:
    return {reason.word: count for reason, count in core.shared.refusals.items() if count}
