"""The engine on a port that only keeps what it was told, so that each decision is seen."""

from __future__ import annotations

import errno
import logging
import selectors
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from edgeagent import crypto
from edgeagent.engine.kernel.engine import POLL_IDLE_S, POLL_S, POLL_WAITING_S, KernelDrop, KernelEngine
from edgeagent.engine.kernel.guard import PACE_S, RENEW_S, RETRY_S
from edgeagent.engine.kernel.ports import FilterError
from edgeagent.engine.kernel.proxies import SPARE_MAX
from edgeagent.engine.kernel.ruleset import ALIVE_S
from edgeagent.proto.device import Device
from edgeagent.proto.endpoint import Endpoint, Transmit
from edgeagent.proto.errors import DropReason, LocalProtocolError
from edgeagent.proto.events import EndpointRoamed, HandshakeCompleted, HandshakeFailed
from edgeagent.proto.limits import Limits
from edgeagent.proto.outsourced import DATAGRAMS_MAX, GIVE_UP_S, OutsourcedPeer
from edgeagent.proto.policy import Slice
from edgeagent.proto.relay_endpoint import RelayEndpoint
from edgeagent.proto.tai64n import Tai64nClock
from edgeagent.wireguard import _Flow
from tests.engine.twins import SocketTun
from tests.policy_kit import ME4, PEER4, tcp, udp

KEY = b"\7" * 32
OTHER = b"\x08" * 32
AT = Endpoint(("192.0.2.7", 51820))
AT_RAW = (bytes((192, 0, 2, 7)), 51820, 0)
ELSEWHERE = (bytes((192, 0, 2, 9)), 40_000, 0)
OTHER4 = bytes((100, 64, 0, 3))
PACKET = udp(ME4, PEER4, 1, 2)


class Port:
    """A kernel that does nothing by itself."""

    def __init__(self) -> None:
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", 0))
        self.udp.settimeout(2.0)
        self.did: list[tuple[Any, ...]] = []
        self.figures: dict[bytes, Any] = {}
        self.injected: list[bytes] = []
        self.filters: list[str] = []
        self.fails: Exception | None = None
        self.refuses: dict[bytes, Exception] = {}  # by public key
        self.reads = self.renewed = 0
        self.stands = True
        self.changed, self.filter_end = socket.socketpair()
        self.filter_fd = self.filter_end.fileno()

    def bind(self, port: int) -> int:
        return int(self.udp.getsockname()[1])

    def unbind(self) -> None:
        self.did.append(("unbind",))

    def set_private_key(self, key: bytes) -> None:
        self.did.append(("key", key))

    def set_peer(self, public: bytes, endpoint: Any, prefixes: Any) -> None:
        if public in self.refuses:
            raise self.refuses[public]
        self.did.append(("peer", public, endpoint, prefixes))
        self.figures.setdefault(
            public, SimpleNamespace(endpoint=endpoint, handshake_s=0.0, rx_bytes=0, tx_bytes=0)
        ).endpoint = endpoint or self.figures[public].endpoint

    def remove_peer(self, public: bytes) -> None:
        self.did.append(("remove", public))
        self.figures.pop(public, None)

    def set_routes(self, public: bytes, prefixes: Any) -> None:
        self.did.append(("routes", public, prefixes))

    def begin(self, public: bytes) -> None:
        self.did.append(("begin", public))

    def inject(self, packet: bytes) -> bool:
        self.injected.append(packet)
        return True

    def let_in(self, ruleset: str) -> None:
        if self.fails is not None:
            raise self.fails
        self.filters.append(ruleset)

    def change_filter(self, gone: Any, new: Any) -> None:
        if self.fails is not None:
            raise OSError(errno.ENOENT, "no such element")
        self.did.append(("filter", list(gone), list(new)))

    def renew_filter(self) -> None:
        if self.fails is not None:
            raise OSError(errno.ENOBUFS, "no buffers")
        self.renewed += 1

    def filter_stands(self) -> bool:
        self.filter_end.recv(100)
        return self.stands

    def read(self) -> dict[bytes, Any]:
        self.reads += 1
        return self.figures

    def close(self) -> None:
        for each in (self.udp, self.changed, self.filter_end):
            each.close()

    def take(self) -> list[tuple[Any, ...]]:
        did, self.did = self.did, []
        return did


class Udp:
    """Beside the port: nothing is sent, and it is closed."""

    blocked_fds: set[int] = set()  # noqa: RUF012 - never changed
    fds: list[int] = []  # noqa: RUF012 - never changed
    sent: list[Transmit]

    def __init__(self) -> None:
        self.sent = []

    def open(self, port: int) -> int:
        return port

    def close(self) -> None: ...

    def send(self, transmits: list[Transmit]) -> bool:
        self.sent += transmits
        return True

    def count_sent(self) -> None: ...

    def resume(self) -> None: ...

    def drain_sent(self) -> list[Any]:
        return []

    drain_source_failures = drain_too_long = drain_sent


class Machine(_Flow):
    """A Device, with the relay's side of a node."""

    def __init__(self, device: Device) -> None:
        super().__init__(device)
        self.carried: list[Transmit] = []

    def carry_sealed(self, now: float, transmit: Transmit) -> None:
        self.carried.append(transmit)


class Bench:
    def __init__(self) -> None:
        self.device = Device(
            0.0,
            crypto=crypto.load(),
            entropy=lambda size: bytes(range(1, size + 1)),
            jitter=lambda: 0.0,
            tai64n=Tai64nClock(0.0, 1.7e9),
            limits=Limits(peers=4),
        )
        self.device.set_private_key(0.0, b"\1" * 32)
        self.device.take_for(frozenset({ME4}), None)
        self.port, self.udp, self.tun = Port(), Udp(), SocketTun()
        self.machine = Machine(self.device)
        self.selector = selectors.DefaultSelector()
        self.engine = KernelEngine(
            self.machine, self.tun, self.udp, self.selector, self.port, logging.getLogger("t"),  # type: ignore[arg-type]
            interface="edge0-wg", peers_max=4,
        )  # fmt: skip
        self.engine.bind(0)
        self.engine.flush(0.0)
        self.port.take()

    def close(self) -> None:
        self.engine.close()
        self.selector.close()
        self.tun.close()

    def peer(self, endpoint: Endpoint | None = AT, key: bytes = KEY, address: bytes = PEER4) -> OutsourcedPeer:
        peer = self.device.add_peer(0.0, key)
        assert isinstance(peer, OutsourcedPeer)
        self.device.allowed_ips.insert(address, 32, peer)
        peer.set_endpoint(endpoint)
        return peer

    def shake_hands(self, now: float, key: bytes = KEY, **figures: Any) -> None:
        found = self.port.figures[key]
        found.handshake_s = 1e9 + now
        found.rx_bytes += 92
        found.tx_bytes += 148
        found.__dict__.update(figures)
        self.engine.sync(now)


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


def test_what_begins_with_a_packet_ends_in_the_kernel(bench: Bench) -> None:
    bench.peer()
    bench.machine.handle_packets(1.0, [PACKET])
    bench.engine.flush(1.0)
    assert bench.port.take() == [("peer", KEY, AT_RAW, [(PEER4, 32)]), ("begin", KEY)]
    assert bench.port.injected == []
    assert bench.engine.poll_timeout() == 1.0 + POLL_WAITING_S
    bench.shake_hands(1.1)
    assert [type(event) for event in bench.device.drain_events()] == [HandshakeCompleted]
    bench.engine.flush(1.1)
    assert bench.port.injected == [PACKET]
    assert bench.port.take() == [("routes", KEY, [(PEER4, 32)])]
    bench.machine.handle_packets(2.0, [PACKET])  # of a socket that has not heard of the route
    bench.engine.flush(2.0)
    assert bench.port.injected == [PACKET, PACKET]
    assert bench.port.take() == []


def test_who_has_no_endpoint_is_not_the_kernels(bench: Bench) -> None:
    peer = bench.peer(None)
    assert [unsent.reason for unsent in bench.device.handle_packets(1.0, [PACKET])] == [DropReason.NO_ENDPOINT]
    bench.engine.flush(1.0)
    assert bench.port.take() == []
    peer.set_endpoint(AT)
    bench.engine.flush(1.0)
    assert bench.port.take() == [("peer", KEY, AT_RAW, [(PEER4, 32)])]


def test_peers_go_and_change(bench: Bench) -> None:
    peer = bench.peer()
    bench.engine.flush(1.0)
    bench.port.take()
    peer.set_endpoint(Endpoint(("2001:db8::7", 7, 0, 0)))
    bench.engine.flush(1.0)
    assert bench.port.take() == [("peer", KEY, (bytes.fromhex("20010db8") + bytes(11) + b"\7", 7, 0), None)]
    other = bench.peer(key=OTHER)  # has the address now
    bench.engine.flush(1.0)
    assert ("peer", KEY, None, []) in bench.port.did and ("peer", OTHER, AT_RAW, [(PEER4, 32)]) in bench.port.take()
    bench.device.remove_peer(1.0, KEY)
    bench.engine.flush(1.0)
    assert bench.port.take() == [("remove", KEY)]
    assert not peer.installed and other.installed


def test_the_kernel_follows_its_peer_and_the_machine_decides(bench: Bench) -> None:
    peer = bench.peer()
    bench.engine.flush(1.0)
    bench.shake_hands(1.0)
    bench.engine.flush(1.0)
    bench.device.drain_events()
    bench.port.take()
    bench.shake_hands(2.0, endpoint=ELSEWHERE)
    assert str(peer.endpoint) == "192.0.2.9:40000"
    assert [type(event) for event in bench.device.drain_events()] == [HandshakeCompleted, EndpointRoamed]
    bench.engine.flush(2.0)
    assert bench.port.take() == []  # it is where the kernel sends already
    peer.set_endpoint(AT)
    bench.engine.flush(2.0)
    assert bench.port.take() == [("peer", KEY, AT_RAW, None)]


def test_a_relayed_peer_is_a_port_on_loopback(bench: Bench) -> None:
    relayed = RelayEndpoint("r1", OTHER)
    peer = bench.peer(relayed)
    bench.engine.flush(1.0)
    ((_, _, address, _),) = bench.port.take()
    host, port, _ = address
    assert host == socket.inet_aton("127.0.0.1")
    bench.port.udp.sendto(b"sealed", ("127.0.0.1", port))
    for key, _ in bench.selector.select(2.0):
        key.data(1.0, key.fd)
    assert [(each.endpoint, each.datagrams) for each in bench.machine.carried] == [(relayed, [b"sealed"])]
    bench.machine.handle_datagrams(1.0, [(b"\4\0\0\0" + bytes(28), relayed, 0)])
    bench.engine.flush(1.0)
    assert bench.port.udp.recvfrom(100) == (b"\4\0\0\0" + bytes(28), ("127.0.0.1", port))
    bench.shake_hands(2.0)  # the kernel heard it there
    assert peer.endpoint is relayed
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.sendto(b"not the kernel", ("127.0.0.1", port))
    assert bench.selector.select(0.05) == []


def test_a_proxy_that_is_gone_is_nobodys_address(bench: Bench) -> None:
    relayed = RelayEndpoint("r1", OTHER)
    peer = bench.peer(relayed)
    bench.engine.flush(1.0)
    bench.shake_hands(1.0)
    bench.engine.bind(0)
    bench.shake_hands(2.0)  # heard before that, and not read yet
    assert peer.endpoint is relayed and peer.rx_bytes == 2 * 92
    bench.port.take()
    bench.engine.flush(2.0)
    ((_, _, address, _),) = [did for did in bench.port.take() if did[0] == "peer"]
    bench.shake_hands(3.0, endpoint=address)
    assert peer.endpoint is relayed


def test_a_shut_port_is_not_read(bench: Bench) -> None:
    bench.peer()
    bench.engine.flush(1.0)
    bench.engine.unbind()
    reads = bench.port.reads
    bench.engine.flush(100.0)
    timeout = bench.engine.poll_timeout()
    assert bench.port.reads == reads and timeout == 100.0 + RENEW_S  # that is the filter's
    bench.engine.bind(0)
    bench.engine.flush(101.0)
    assert bench.port.reads == reads + 1


def test_proxies_are_bounded(bench: Bench) -> None:
    relayed = RelayEndpoint("r1", KEY)
    bench.peer(relayed)
    bench.engine.flush(1.0)
    for number in range(3 * SPARE_MAX):
        stranger = RelayEndpoint("r1", bytes([number + 10]) * 32)
        bench.machine.handle_datagrams(1.0, [(b"\2\0\0\0" + bytes(88), stranger, 0)])
        bench.engine.flush(1.0)
    table = bench.engine.tables()["kernel_proxies"]
    assert table == {"used": 4 + SPARE_MAX, "ceiling": 4 + SPARE_MAX}
    ((_, _, address, _),) = [did for did in bench.port.take() if did[0] == "peer"]
    bench.machine.handle_datagrams(1.0, [(b"\4\0\0\0" + bytes(28), relayed, 0)])
    bench.port.udp.settimeout(0.0)
    with pytest.raises(BlockingIOError):
        while bench.port.udp.recvfrom(100)[1] != ("127.0.0.1", address[1]):
            pass
    bench.engine.flush(1.0)
    assert bench.port.udp.recvfrom(100)[1] == ("127.0.0.1", address[1])  # the peer has kept its own


def test_what_there_is_no_room_for_is_counted(bench: Bench) -> None:
    relayed = RelayEndpoint("r1", OTHER)
    sealed = b"\4\0\0\0" + bytes(28)
    bench.machine.handle_datagrams(1.0, [(sealed, relayed, 0)] * (DATAGRAMS_MAX + 3))
    assert bench.engine.drops[KernelDrop.PROXY] == 3
    bench.device.handle_datagrams(1.0, [])
    bench.engine.flush(1.0)
    before = bench.engine.drops[KernelDrop.PROXY]
    bench.engine.bind(0)
    assert bench.engine.drops[KernelDrop.PROXY] == before  # it never goes back
    bench.engine.unbind()
    bench.machine.handle_datagrams(1.0, [(sealed, relayed, 0)])
    bench.engine.flush(1.0)
    assert bench.engine.drops[KernelDrop.PROXY] == before + 1


def test_silence_is_told_and_ends(bench: Bench) -> None:
    peer = bench.peer()
    bench.machine.handle_packets(0.0, [PACKET])
    bench.engine.flush(0.0)
    bench.engine.sync(GIVE_UP_S - 1.0)
    assert bench.device.drain_events() == []
    bench.engine.sync(GIVE_UP_S)
    assert [type(event) for event in bench.device.drain_events()] == [HandshakeFailed]
    assert not peer.staged and bench.device.drops[DropReason.STAGED_EXPIRED] == 1


def test_what_the_kernel_counts_is_traffic(bench: Bench) -> None:
    peer = bench.peer()
    bench.engine.flush(1.0)
    bench.shake_hands(1.0)
    found = bench.port.figures[KEY]
    seen = [(peer.last_traffic_at, peer.timers._unanswered_since)]  # a handshake is none
    for now, received, sent in ((2.0, 0, 32), (3.0, 0, 3_000), (4.0, 1_500, 0)):  # nor is a keepalive
        found.rx_bytes += received
        found.tx_bytes += sent
        bench.engine.sync(now)
        seen.append((peer.last_traffic_at, peer.timers._unanswered_since))
    assert seen == [(None, None), (None, None), (3.0, 2.0), (4.0, None)]
    assert (peer.rx_bytes, peer.tx_bytes) == (92 + 1_500, 148 + 3_032)


def test_who_lost_its_keys_is_begun_with_anew(bench: Bench) -> None:
    peer = bench.peer()
    bench.engine.flush(1.0)
    bench.shake_hands(1.0)
    bench.engine.flush(1.0)
    bench.port.take()
    assert peer.begin_handshake(2.0, anew=True)
    bench.engine.flush(2.0)
    assert [did[0] for did in bench.port.take()] == ["remove", "peer", "begin"]
    bench.machine.handle_packets(2.0, [PACKET])
    bench.engine.flush(2.0)
    assert bench.port.injected == []  # it waits here until there are keys
    bench.shake_hands(2.1)
    bench.engine.flush(2.1)
    assert bench.port.injected == [PACKET]
    assert peer.rx_bytes == 92 + 92  # counted on over the kernel's own zero
    peer.begin_handshake(2.5, anew=True)
    bench.engine.flush(2.5)
    peer.begin_handshake(2.6, anew=True)
    bench.engine.flush(2.6)
    assert [did[0] for did in bench.port.take()].count("remove") == 0  # not again within a second of the last


def test_the_filter_comes_first_and_only_when_it_changes(bench: Bench) -> None:
    assert len(bench.port.filters) == 1
    assert (
        'iifname != "edge0-wg" accept\n    iifname != @alive drop\n    ip daddr != { 100.64.0.1 } drop'
        in (bench.port.filters[0])
    )
    bench.engine.flush(1.0)
    assert len(bench.port.filters) == 1
    bench.port.fails = FilterError("nft: no")
    bench.device.take_for(frozenset({PEER4}), None)
    bench.peer()
    bench.engine.flush(1.0)
    assert bench.port.take() == []  # nobody comes in past a filter that is not there
    assert bench.engine.drops[KernelDrop.REFUSED] == 1
    bench.port.fails = None
    bench.engine.flush(2.0)
    assert bench.port.take() == []  # it is not tried again at once
    bench.engine.flush(7.0)
    assert [did[0] for did in bench.port.take()] == ["peer"]
    assert len(bench.port.filters) == 2


def change_tables(bench: Bench, now: float, *, stands: bool) -> None:
    """Somebody else has, of this host."""
    bench.port.stands = stands
    bench.port.changed.send(b"changed")
    for key, _ in bench.selector.select(2.0):
        key.data(now, key.fd)
    bench.engine.flush(now)


def test_a_filter_that_somebody_removed_is_put_back(bench: Bench) -> None:
    bench.peer()
    bench.engine.flush(1.0)
    change_tables(bench, 2.0, stands=True)
    assert len(bench.port.filters) == 1
    change_tables(bench, 3.0, stands=False)
    assert len(bench.port.filters) == 2 and bench.port.filters[0] == bench.port.filters[1]
    assert bench.device.peers[KEY].installed  # type: ignore[attr-defined]


def test_where_it_cannot_be_put_back_nobody_stays(bench: Bench) -> None:
    peer = bench.peer()
    bench.engine.flush(1.0)
    bench.port.take()
    bench.port.fails = FilterError("nft: no")
    change_tables(bench, 2.0, stands=False)
    assert bench.port.take() == [("remove", KEY)] and not peer.installed
    assert bench.engine.drops[KernelDrop.CUT] == 1
    bench.port.fails = None
    bench.engine.flush(8.0)
    assert len(bench.port.filters) == 2 and bench.port.take()[0][:2] == ("peer", KEY)


def test_no_filter_no_engine() -> None:
    bench_port = Port()
    bench_port.fails = FilterError("nft is not installed")
    device = Device(
        0.0, crypto=crypto.load(), entropy=bytes, jitter=lambda: 0.0, tai64n=Tai64nClock(0.0, 1.7e9), limits=Limits()
    )
    tun = SocketTun()
    with selectors.DefaultSelector() as selector, pytest.raises(FilterError):
        KernelEngine(
            Machine(device), tun, Udp(), selector, bench_port, logging.getLogger("t"),  # type: ignore[arg-type]
            interface="edge0-wg", peers_max=4,
        )  # fmt: skip
    bench_port.close()
    tun.close()


# What the kernel refuses


def test_who_is_refused_holds_up_nobody_else(bench: Bench) -> None:
    bench.peer()
    other = bench.peer(key=OTHER, address=OTHER4)
    bench.port.refuses[KEY] = OSError(errno.EINVAL, "Invalid argument")
    bench.machine.handle_packets(1.0, [PACKET])
    bench.engine.flush(1.0)
    assert bench.port.take() == [("remove", KEY), ("peer", OTHER, AT_RAW, [(OTHER4, 32)])]  # what there was of it
    assert other.installed and bench.engine.drops[KernelDrop.REFUSED] == 1
    tries = []
    for tenth in range(10, 2_000):
        bench.engine.flush(tenth / 10)
        if bench.port.take():
            tries.append(tenth / 10)
    assert tries == [6.0, 16.0, 36.0, 76.0, 136.0, 196.0]
    assert bench.engine.drops[KernelDrop.REFUSED] == 1 + len(tries)
    del bench.port.refuses[KEY]
    bench.device.drain_events()
    bench.machine.handle_packets(255.9, [PACKET])
    bench.engine.flush(256.0)
    assert [did[:2] for did in bench.port.take()] == [("peer", KEY), ("begin", KEY)]


def test_who_is_never_taken_is_given_up(bench: Bench) -> None:
    peer = bench.peer()
    bench.port.refuses[KEY] = OSError(errno.ENOMEM, "Cannot allocate memory")
    bench.machine.handle_packets(1.0, [PACKET])
    bench.engine.flush(1.0)
    bench.engine.sync(1.0 + GIVE_UP_S)
    assert [type(event) for event in bench.device.drain_events()] == [HandshakeFailed]
    assert not peer.staged and not peer.waits


def test_a_bad_endpoint_leaves_the_one_before(bench: Bench) -> None:
    peer = bench.peer()
    bench.engine.flush(1.0)
    bench.port.take()
    bench.port.refuses[KEY] = OSError(errno.EINVAL, "Invalid argument")
    peer.set_endpoint(Endpoint(("192.0.2.8", 1)))
    bench.engine.flush(2.0)
    assert bench.port.take() == [] and peer.installed
    del bench.port.refuses[KEY]
    bench.engine.flush(7.0)
    assert bench.port.take() == [("peer", KEY, (bytes((192, 0, 2, 8)), 1, 0), None)]


def test_prefixes_that_cannot_be_changed_are_nobodys(bench: Bench) -> None:
    peer = bench.peer()
    bench.engine.flush(1.0)
    bench.port.take()
    bench.port.refuses[KEY] = OSError(errno.ENOMEM, "Cannot allocate memory")
    bench.device.allowed_ips.remove(PEER4, 32, peer)
    bench.engine.flush(2.0)
    assert bench.port.take() == [("remove", KEY)] and not peer.installed
    del bench.port.refuses[KEY]
    bench.engine.flush(7.0)
    assert bench.port.take() == [("peer", KEY, AT_RAW, [])]


def test_who_cannot_be_removed_is_tried_each_second(bench: Bench) -> None:
    bench.peer()
    bench.engine.flush(1.0)
    bench.port.take()
    real, bench.port.remove_peer = bench.port.remove_peer, refuse  # type: ignore[method-assign]
    bench.device.remove_peer(2.0, KEY)
    for now in (2.0, 2.5, 3.0, 4.0):
        bench.engine.flush(now)
    assert bench.engine.drops[KernelDrop.REFUSED] == 3 and bench.engine.tables()["kernel_peers"]["used"] == 1
    bench.port.remove_peer = real  # type: ignore[method-assign]
    bench.engine.flush(5.0)
    assert bench.port.take() == [("remove", KEY)] and bench.engine.tables()["kernel_peers"]["used"] == 0


def refuse(public: bytes) -> None:
    raise OSError(errno.ENOMEM, "Cannot allocate memory")


def test_a_kernel_that_does_not_answer_is_asked_once(bench: Bench) -> None:
    for number, key in enumerate((KEY, OTHER)):
        bench.peer(key=key, address=bytes((100, 64, 9, number)))
        bench.port.refuses[key] = TimeoutError("timed out")
    bench.engine.flush(1.0)
    assert [did[:2] for did in bench.port.take()] == [("remove", KEY)]
    bench.engine.flush(2.0)
    assert bench.port.take() == []


def test_what_cannot_be_read_is_asked_for_each_second(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.peer()
    bench.machine.handle_packets(1.0, [PACKET])
    bench.engine.flush(1.0)
    real, bench.port.read = bench.port.read, gone  # type: ignore[method-assign]
    for twentieth in range(20, 80):
        bench.engine.flush(1.0 + twentieth / 20)
    assert bench.engine.drops[KernelDrop.REFUSED] == 3
    assert len([each for each in caplog.messages if "to be read: No such device" in each]) == 1
    bench.port.read = real  # type: ignore[method-assign]
    bench.engine.flush(6.0)
    assert bench.engine.drops[KernelDrop.REFUSED] == 3


def gone() -> dict[bytes, Any]:
    raise OSError(errno.ENODEV, "No such device")


# What the filter is told


def restrict(bench: Bench, now: float, inbound: list[Any], *, tags: tuple[str, ...] = ("tag:web",)) -> None:
    body = {"v": 1, "u": "", "in": inbound, "out": []}
    bench.device.set_policy(now, Slice(body, [], [ME4], [(bytes((100, 64, 0, 0)), 10)]))
    for peer in bench.device.peers.values():
        bear(bench, peer, tags)


def bear(bench: Bench, peer: Any, tags: tuple[str, ...]) -> None:
    addresses = [address for address, _ in bench.device.allowed_ips.of_peer(peer)]
    peer.record = SimpleNamespace(device=peer.public_key.hex(), addresses=addresses, tags=tags, user="", groups=[])


WEB = [["tag:web"], ["me"], [[6, 80, 80]]]
SSH = [["tag:web"], ["me"], [[6, 22, 22]]]


def test_one_more_peer_is_one_more_element(bench: Bench) -> None:
    bench.peer()
    restrict(bench, 1.0, [WEB])
    bench.engine.flush(1.0)
    assert len(bench.port.filters) == 2
    bench.port.take()
    other = bench.peer(key=OTHER, address=OTHER4)
    bear(bench, other, ("tag:web",))
    bench.engine.flush(1.1)
    element = ("in4", OTHER4 + ME4)
    assert [did[:3] for did in bench.port.take()] == [("filter", [], [(element, "c0")]), ("peer", OTHER, AT_RAW)]
    bear(bench, other, ())
    bench.engine.flush(1.2)
    assert bench.port.take() == [("filter", [element], [])] and len(bench.port.filters) == 2


def test_answers_of_ours_are_the_kernels_to_judge(bench: Bench) -> None:
    """Which has heard what they answer, and Python has not; what we begin ourselves Python refuses before there is a
    peer in the kernel."""
    bench.peer()
    restrict(bench, 1.0, [WEB])
    answer = tcp(ME4, PEER4, 80, 5_555, 0x12)
    bench.machine.handle_packets(1.0, [answer])
    assert bench.device.drops[DropReason.PROHIBITED] == 1
    bench.engine.flush(1.0)
    bench.machine.handle_packets(1.1, [answer])
    bench.engine.flush(1.1)
    assert bench.device.drops[DropReason.PROHIBITED] == 1 and bench.port.injected == []
    bench.shake_hands(1.2)  # begun by the peer
    bench.engine.flush(1.2)
    assert bench.port.injected == [answer]


def test_calls_of_nft_that_only_allow_more_are_a_second_apart(bench: Bench) -> None:
    bench.peer()
    restrict(bench, 10.0, [WEB])
    bench.engine.flush(10.0)
    assert len(bench.port.filters) == 2
    restrict(bench, 10.2, [WEB, SSH])
    bench.engine.flush(10.2)
    assert len(bench.port.filters) == 2 and bench.engine.poll_timeout() == 10.0 + PACE_S
    restrict(bench, 10.4, [SSH])  # takes something away
    bench.engine.flush(10.4)
    assert len(bench.port.filters) == 3
    restrict(bench, 10.5, [SSH, WEB])
    bench.engine.flush(10.5)
    assert len(bench.port.filters) == 3
    bench.engine.flush(10.4 + PACE_S)
    assert len(bench.port.filters) == 4


def test_who_loses_what_nft_does_not_take_away_is_cut(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.peer()
    other = bench.peer(key=OTHER, address=OTHER4)
    restrict(bench, 1.0, [WEB])
    bench.engine.flush(1.0)
    bench.port.take()
    bench.port.fails = FilterError("nft: no")
    bear(bench, other, ())
    bench.engine.flush(2.0)
    assert bench.port.take() == [("remove", OTHER)]  # and not the other one
    assert (bench.engine.drops[KernelDrop.CUT], bench.engine.drops[KernelDrop.REFUSED]) == (1, 1)
    assert "nft: no. Peers 0808080808080808 may do less" in caplog.text
    bench.engine.flush(3.0)
    assert bench.port.take() == [] and bench.engine.drops[KernelDrop.REFUSED] == 1
    bench.port.fails = None
    bench.engine.flush(2.0 + RETRY_S)
    assert [did[:2] for did in bench.port.take()] == [("peer", OTHER)] and len(bench.port.filters) == 3


def test_where_nft_only_does_not_allow_more_all_go_on(bench: Bench) -> None:
    peer = bench.peer()
    restrict(bench, 1.0, [WEB])
    bench.engine.flush(1.0)
    bench.port.take()
    bench.port.fails = FilterError("nft: no")
    restrict(bench, 5.0, [WEB, SSH])
    other = bench.peer(key=OTHER, address=OTHER4)
    bear(bench, other, ("tag:web",))
    bench.engine.flush(5.0)
    assert bench.port.take() == [] and peer.installed and not other.installed
    restrict(bench, 6.0, [])  # before it is tried again; now it takes away
    bench.engine.flush(6.0)
    assert [did[:2] for did in bench.port.take()] == [("remove", KEY), ("peer", OTHER)]  # who has nothing to wait for
    assert bench.engine.drops[KernelDrop.REFUSED] == 2


def test_a_filter_is_renewed_for_as_long_as_somebody_is_there(bench: Bench) -> None:
    bench.port.renewed = 0
    for second in range(100, 400):
        bench.engine.flush(float(second))
    assert bench.port.renewed == 5 and RENEW_S * 3 == ALIVE_S
    bench.port.fails = FilterError("nft: no")
    bench.engine.flush(400.0)
    assert bench.engine.drops[KernelDrop.REFUSED] == 1
    bench.port.fails = None
    bench.engine.flush(400.0 + RETRY_S)
    assert bench.port.renewed == 6


def test_it_is_read_as_often_as_there_is_something(bench: Bench) -> None:
    bench.peer()
    bench.engine.flush(100.0)
    assert bench.engine.poll_timeout() == 100.0 + POLL_S
    bench.engine.flush(101.0)
    bench.engine.flush(200.0)
    assert bench.engine.poll_timeout() == 200.0 + POLL_IDLE_S


def test_sessions_are_given_away_before_there_are_peers(bench: Bench) -> None:
    bench.peer()
    with pytest.raises(LocalProtocolError, match="peers already"):
        bench.device.outsource()
