"""A kernel for tests: its WireGuard is a Device of its own, its routes a dict, and time is the world's.

`drive` puts the engine `kernel` between it and a board's node; the world goes on as if it were the node alone.
"""

from __future__ import annotations

import logging
import random
import re
import selectors
import socket
from types import SimpleNamespace
from typing import Any

from edgeagent.engine.kernel.engine import KernelEngine
from edgeagent.proto.device import Device
from edgeagent.proto.disco import Kind, classify
from edgeagent.proto.endpoint import Endpoint, Transmit
from edgeagent.proto.ip import ip_to_bytes
from edgeagent.proto.limits import Limits
from edgeagent.proto.messages import INITIATION
from edgeagent.proto.paths import from_endpoint
from edgeagent.proto.tai64n import Tai64nClock
from tests.control_kit import CRYPTO, WALL_S, entropy_of
from tests.engine.kernel.bench import Udp
from tests.engine.twins import SocketTun
from tests.node_kit import Board, World


class TwinPort:
    """A KernelPort."""

    def __init__(self, world: World, number: int) -> None:
        self._world = world
        self.device = Device(
            world.now, crypto=CRYPTO, entropy=entropy_of(7000 + number), jitter=random.Random(number).random,
            tai64n=Tai64nClock(world.now, WALL_S + world.now), limits=Limits(), mtu=1280,
        )  # fmt: skip
        self.routes: dict[bytes, bytes] = {}  # public key by address
        self.filter = ""
        self.elements: dict[tuple[str, bytes], str] = {}  # of its maps, and the chain each leads to
        self._never, self._filter_end = socket.socketpair()
        self.filter_fd = self._filter_end.fileno()
        self.refused: list[bytes] = []  # initiations of strangers

    def bind(self, port: int) -> int:
        return port

    def unbind(self) -> None: ...

    def set_private_key(self, key: bytes) -> None:
        self.device.set_private_key(self._world.now, key)

    def set_peer(self, public: bytes, endpoint: Any, prefixes: Any) -> None:
        now = self._world.now
        peer = self.device.add_peer(now, public)
        if endpoint is not None:
            family = socket.AF_INET if len(endpoint[0]) == 4 else socket.AF_INET6
            host = socket.inet_ntop(family, endpoint[0])
            peer.set_endpoint(
                Endpoint((host, endpoint[1]) if family == socket.AF_INET else (host, *endpoint[1:2], 0, 0))
            )
        if prefixes is not None:
            for address, cidr in list(self.device.allowed_ips.of_peer(peer)):
                self.device.allowed_ips.remove(address, cidr, peer)
            for address, cidr in prefixes:
                self.device.allowed_ips.insert(address, cidr, peer)

    def remove_peer(self, public: bytes) -> None:
        self.device.remove_peer(self._world.now, public)
        self.routes = {address: key for address, key in self.routes.items() if key != public}

    def set_routes(self, public: bytes, prefixes: Any) -> None:
        self.routes = {address: key for address, key in self.routes.items() if key != public}
        self.routes.update((address, public) for address, cidr in prefixes if cidr == 8 * len(address))

    def begin(self, public: bytes) -> None:
        peer = self.device.peers[public]
        peer.send_keepalive(self._world.now)
        self.device.touched(peer)

    def inject(self, packet: bytes) -> bool:
        return not self.device.handle_packets(self._world.now, [packet])

    def let_in(self, ruleset: str) -> None:
        self.filter = ruleset
        self.elements = read_elements(ruleset)

    def read(self) -> dict[bytes, Any]:
        found = {}
        for key, peer in self.device.peers.items():
            at = peer.endpoint
            found[key] = SimpleNamespace(
                endpoint=None if at is None else (*from_endpoint(at), 0),
                handshake_s=peer.last_handshake_wall_s,
                rx_bytes=peer.rx_bytes,
                tx_bytes=peer.tx_bytes,
            )
        return found

    def change_filter(self, gone: Any, new: Any) -> None:
        for element in gone:
            del self.elements[element]
        self.elements.update(new)

    def renew_filter(self) -> None: ...

    def filter_stands(self) -> bool:
        return True

    def close(self) -> None:
        self._never.close()
        self._filter_end.close()


def read_elements(ruleset: str) -> dict[tuple[str, bytes], str]:
    found = {}
    for line in ruleset.splitlines():
        if line.startswith("add element"):
            name, said = re.fullmatch(r"add element inet \S+ (\w+) { (.*) }", line).groups()  # type: ignore[union-attr]
            for each in said.split(", "):
                key, _, chain = each.rpartition(" : jump ")
                found[name, b"".join(ip_to_bytes(word) for word in key.split(" . "))] = chain
    return found


class Driven:
    """In the place of `board.node`: what the world would give the node goes by the kernel, where it would."""

    def __init__(self, world: World, board: Board) -> None:
        self._world = world
        self.inner = board.node
        self.port = TwinPort(world, board.number)
        self.udp = Udp()
        self.selector = selectors.DefaultSelector()
        self.tun = SocketTun()
        self.engine = KernelEngine(
            self.inner, self.tun, self.udp, self.selector, self.port, logging.getLogger("t"),  # type: ignore[arg-type]
            interface="edge0-wg", peers_max=64,
        )  # fmt: skip
        self.engine.bind(51820)
        self._packets: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def close(self) -> None:
        self.engine.close()
        self.selector.close()
        self.tun.close()

    def poll_timeout(self) -> float | None:
        times = (self.inner.poll_timeout(), self.engine.poll_timeout(), self.port.device.poll_timeout())
        return min((at for at in times if at is not None), default=None)

    def handle_timeout(self, now: float) -> None:
        self.inner.handle_timeout(now)
        self.port.device.handle_timeout(now)
        self.engine.flush(now)

    def handle_datagrams(self, now: float, batch: list[tuple[bytes, Endpoint, int]]) -> None:
        ours = [item for item in batch if classify(item[0]) is not Kind.WIREGUARD or item[0][0] == INITIATION]
        self.port.device.handle_datagrams(now, [item for item in batch if classify(item[0]) is Kind.WIREGUARD])
        self.port.device.drain_events()
        self.inner.handle_datagrams(now, ours)

    def handle_packets(self, now: float, packets: list[bytes]) -> None:
        for packet in packets:
            target = packet[16:20] if packet[0] >> 4 == 4 else packet[24:40]
            if target in self.port.routes:
                self.port.device.handle_packets(now, [packet])
            else:
                self.inner.handle_packets(now, [packet])

    def drain_transmits(self) -> list[Transmit]:
        self.engine.flush(self._world.now)
        sent, self.udp.sent = self.udp.sent, []
        return sent + self.port.device.drain_transmits()

    def drain_packets(self) -> list[bytes]:
        """For this host: the answers that its own TUN gets are among them."""
        return self.port.device.drain_packets() + self.inner.drain_packets()


def drive(world: World, board: Board) -> Driven:
    driven = Driven(world, board)
    board.node = driven  # type: ignore[assignment]
    return driven


def park(world: World) -> None:
    """Close what is open."""
    for board in world.boards.values():
        if isinstance(board.node, Driven):
            board.node.close()
