"""The engine on a port that only keeps what it was told."""

from __future__ import annotations

import errno
import logging
import selectors
import socket
from types import SimpleNamespace
from typing import Any

from edgeagent import crypto
from edgeagent.engine.kernel.engine import KernelEngine
from edgeagent.proto.device import Device
from edgeagent.proto.endpoint import Endpoint, Transmit
from edgeagent.proto.limits import Limits
from edgeagent.proto.outsourced import OutsourcedPeer
from edgeagent.proto.tai64n import Tai64nClock
from edgeagent.wireguard import _Flow
from tests.engine.twins import SocketTun
from tests.policy_kit import ME4, PEER4, udp

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
