"""Whole engines with real Devices and UDP sockets on loopback; the TUN is a socketpair, or whatever else is given."""

from __future__ import annotations

import ctypes
import os
import selectors
import socket
import struct
import tempfile
import time
from functools import cache
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest

from edgeagent import crypto
from edgeagent.engine import offload as pure
from edgeagent.engine.fast import records as r
from edgeagent.engine.fast.binding import load
from edgeagent.engine.fast.build import SOURCES, BuildError, build, find_compiler
from edgeagent.engine.fast.engine import FastEngine
from edgeagent.engine.pure import PureEngine
from edgeagent.io.tun import TunGone
from edgeagent.io.udp import Udp
from edgeagent.proto.device import Device
from edgeagent.proto.endpoint import Endpoint, Transmit
from edgeagent.proto.limits import Limits
from edgeagent.proto.tai64n import Tai64nClock
from tests.engine.packets import Segment, naive_checksum
from tests.engine.test_offload import expand
from tools import OBJECTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from edgeagent.engine.pure import TunPort
    from edgeagent.proto.established import Traffic
    from edgeagent.proto.peer import Peer
    from edgeagent.proto.records import UdpAddress

TUN_MTU = 1400
FRAME_MAX = 66_000
TUN_BUFFER_BYTES = 4 << 20
IDLE_ROUNDS, ROUNDS_MAX = 3, 400


@cache
def library() -> ctypes.CDLL:
    """$EDGEAGENT_FAST_LIBRARY, or what is built beside the sources, or what the compiler makes of them here."""
    chosen = os.environ.get("EDGEAGENT_FAST_LIBRARY")
    if chosen:
        return load(chosen)
    built = SOURCES / "libedgefast.so"
    if built.exists() and built.stat().st_mtime >= max(file.stat().st_mtime for file in SOURCES.glob("*.[ch]")):
        return load(str(built))
    with tempfile.TemporaryDirectory(prefix="edgefast-") as folder:
        try:
            build(Path(folder, "libedgefast.so"), find_compiler(), cache=OBJECTS)
        except BuildError as error:
            pytest.skip(str(error))
        return load(f"{folder}/libedgefast.so")


class SocketTun:
    """Frames in and out of a socketpair that keeps their bounds; `far` is what would be the kernel."""

    def __init__(self, *, udp_offload: bool = True) -> None:
        near, self.far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for each in (near, self.far):
            each.setblocking(False)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, TUN_BUFFER_BYTES)  # as far as the kernel lets us
        self._near = near
        self.fd = near.fileno()
        self.udp_offload = udp_offload

    def read(self) -> bytes | None:
        try:
            frame = os.read(self.fd, FRAME_MAX)
        except BlockingIOError:
            return None
        if not frame:
            raise TunGone("socketpair")
        return frame

    def write(self, frame: Sequence[bytes]) -> bool:
        try:
            os.writev(self.fd, frame)
        except OSError:
            return False
        return True

    def frames(self) -> list[bytes]:
        """Of the engine's, that have not been looked at."""
        frames = []
        while True:
            try:
                frames.append(self.far.recv(FRAME_MAX))
            except BlockingIOError:
                return frames

    def close(self) -> None:
        self._near.close()
        self.far.close()


class Member(Endpoint):
    """Somebody at a relay."""

    __slots__ = ()

    @property
    def is_relay(self) -> bool:
        return True


class Machine:
    """A Device as an engine drives it, with relays and further ways as the test has them."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.copies: dict[bytes, list[Endpoint]] = {}  # further ways, by public key
        self.quiet: dict[bytes, float] = {}  # so long its silence is not news, by public key
        self.sessions: list[tuple[Endpoint, int]] = []
        self.relays: dict[Endpoint, tuple[Endpoint, int, int]] = {}
        self.carried: list[Transmit] = []
        self.failed: list[Endpoint] = []
        self.too_long: list[tuple[Endpoint, int]] = []
        self.packets_seen = 0
        self.traffic: list[Traffic] = []
        self.handle_datagrams = device.handle_datagrams
        self.handle_opened = device.handle_opened
        self.drain_packets = device.drain_packets

    def handle_packets(self, now: float, packets: list[bytes]) -> None:
        self.packets_seen += len(packets)
        for unsent in self.device.handle_packets(now, packets):
            self.device.refuse(unsent)

    def handle_traffic(self, now: float, reports: list[Traffic]) -> None:
        self.traffic += reports
        self.device.handle_traffic(now, reports)

    def drain_transmits(self) -> list[Transmit]:
        transmits = self.device.drain_transmits()
        for transmit in [each for each in transmits if each.endpoint.is_relay]:
            transmits.remove(transmit)
            self.carried.append(transmit)
        return transmits

    def transmit_failed(self, now: float, endpoint: Endpoint) -> None:
        self.failed.append(endpoint)
        self.device.transmit_failed(now, endpoint)

    def transmit_too_long(self, now: float, endpoint: Endpoint, datagram_bytes: int) -> None:
        self.too_long.append((endpoint, datagram_bytes))

    def carry_sealed(self, now: float, transmit: Transmit) -> None:
        self.carried.append(transmit)

    def ways(self, peer: Peer) -> list[Endpoint]:
        return [] if peer.endpoint is None else [peer.endpoint, *self.copies.get(peer.public_key, ())]

    def quiet_s(self, peer: Peer) -> float | None:
        return self.quiet.get(peer.public_key)

    def relay_sessions(self) -> list[tuple[Endpoint, int]]:
        return self.sessions

    def relay_way(self, endpoint: Endpoint) -> tuple[Endpoint, int, int] | None:
        return self.relays.get(endpoint)

    def relay_source(self, address: UdpAddress, session: int, channel: int) -> Endpoint | None:
        for endpoint, (udp, its_session, its_channel) in self.relays.items():
            if ((udp.ip_bytes(), udp.addr[1]), its_session, its_channel) == (address, session, channel):
                return endpoint
        return None


class Node:
    """One side. `turn` is a turn of its owner's loop; `ahead_s` is how far its machine's clock is beyond the real one,
    and keypairs that it makes are `age_s` older than they are."""

    def __init__(
        self,
        engine: str,
        number: int,
        *,
        slots: int = 8,
        flows: int = 256,
        ring_bytes: int = 1 << 18,
        mtu: int = TUN_MTU,
        seed: int = 1,
        tun: TunPort | None = None,
        threaded: bool = False,
        host: str = "127.0.0.1",
    ) -> None:
        random = Random(seed * 1000 + number)
        self.number = number
        self.is_fast = engine == "fast"
        self.ahead_s = self.age_s = 0.0
        self._aged: set[int] = set()
        self.device = Device(
            time.monotonic(),
            crypto=crypto.load(),
            entropy=random.randbytes,
            jitter=lambda: 0.0,
            tai64n=Tai64nClock(time.monotonic(), 1.7e9),
            limits=Limits(),
            mtu=mtu,
        )
        self.machine = Machine(self.device)
        self.device.set_private_key(time.monotonic(), random.randbytes(32))
        self.selector = selectors.DefaultSelector()
        self.socket_tun = SocketTun()
        self.tun = tun or self.socket_tun
        self.udp = Udp()
        if self.is_fast:
            self.engine: PureEngine | FastEngine = FastEngine(
                self.machine, self.tun, self.udp, self.selector, library(),
                slots=slots, flows=flows, ring_bytes=ring_bytes, threaded=threaded,
            )  # fmt: skip
        else:
            self.engine = PureEngine(self.machine, self.tun, self.udp, self.selector)
        self.engine.is_router = False
        self.host = host
        self.port = self.engine.bind(0)

    @property
    def fast(self) -> FastEngine:
        assert isinstance(self.engine, FastEngine)
        return self.engine

    @property
    def now(self) -> float:
        return time.monotonic() + self.ahead_s

    @property
    def address(self) -> bytes:
        """Inside the tunnel."""
        return bytes((10, 0, 0, self.number))

    @property
    def address_v6(self) -> bytes:
        return bytes.fromhex("fd00" + "00" * 13) + bytes((self.number,))

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint((self.host, self.port))

    def meet(self, other: Node, *, endpoint: bool = True) -> Peer:
        peer = self.device.add_peer(self.now, other.device.public_key)
        self.device.allowed_ips.insert(other.address, 32, peer)
        self.device.allowed_ips.insert(other.address_v6, 128, peer)
        if endpoint:
            peer.set_endpoint(other.endpoint)
        return peer

    def peer(self, other: Node) -> Peer:
        return self.device.peers[other.device.public_key]

    def turn(self) -> bool:
        """Whether anything was done."""
        now, busy = self.now, False
        for key, _ in self.selector.select(0):
            key.data(now, key.fd)
            busy = True
        self.device.handle_timeout(now)
        self._age()
        if self.is_fast:
            before = self._work()
            self.engine.flush(now)
            return busy or self._work() != before
        self.engine.flush(now)
        return busy

    def _work(self) -> tuple[int, ...]:
        figures = self.fast.pump.figures()
        return (figures.frames_in, figures.frames_out, figures.datagrams_in, figures.datagrams_out, *figures.drops)

    def _age(self) -> None:
        for peer in self.device.peers.values():
            for pair in (peer.keypairs.previous, peer.keypairs.current, peer.keypairs.next):
                if pair is not None and id(pair) not in self._aged:
                    self._aged.add(id(pair))
                    pair.created_at -= self.age_s

    def inject(self, frames: Iterable[bytes]) -> None:
        """Frames of the kernel's."""
        for frame in frames:
            self.socket_tun.far.send(frame)

    def taken(self) -> list[bytes]:
        """Packets that came out, cut up as they were; the identification of atomic ones means nothing (RFC 6864)."""
        return [atomic(packet) for frame in self.socket_tun.frames() for packet in expand(pure, frame)]

    def sync(self) -> None:
        self.engine.sync(self.now)

    def dropped(self) -> dict[str, int]:
        """By reason, of all parts together."""
        drops: dict[str, int] = {}
        parts = [self.device.drops, self.engine.drops, {} if self.is_fast else self.udp.drops]
        for part in parts:
            for reason, count in part.items():
                if count:
                    drops[reason.value] = drops.get(reason.value, 0) + count
        return drops

    def close(self) -> None:
        self.engine.close()
        self.socket_tun.close()
        self.selector.close()


def settle(*nodes: Node) -> None:
    """Until nobody has anything to do."""
    idle = 0
    for _ in range(ROUNDS_MAX):
        busy = sum(node.turn() for node in nodes)
        idle = 0 if busy else idle + 1
        if idle == IDLE_ROUNDS:
            return
    raise AssertionError("it never ends")


def report(*nodes: Node) -> None:
    """Until everybody's machine knows of all traffic, and what it does about it is done."""
    for _ in range(2):
        for node in nodes:
            node.sync()
        settle(*nodes)


def atomic(packet: bytes) -> bytes:
    if packet[0] != 0x45 or packet[6:8] != b"\x40\0" or naive_checksum(packet[:20]):
        return packet
    header = packet[:4] + b"\0\7" + packet[6:10] + b"\0\0" + packet[12:20]
    return header[:10] + naive_checksum(header).to_bytes(2, "big") + header[12:] + packet[20:]


def plain(packet: bytes) -> bytes:
    """The frame of one packet."""
    return bytes(10) + packet


def addressed(packet: bytes | bytearray, source: Node, to: Node) -> bytes:
    """With other addresses; sums are put right by what they sum to: naively."""
    packet = bytearray(packet)
    six = packet[0] >> 4 == 6
    if six:
        packet[8:24], packet[24:40] = source.address_v6, to.address_v6
        at, addresses, protocol = 40, slice(8, 40), packet[6]
    else:
        packet[12:16], packet[16:20] = source.address, to.address
        packet[10:12] = b"\0\0"
        packet[10:12] = naive_checksum(bytes(packet[:20])).to_bytes(2, "big")
        at, addresses, protocol = 20, slice(12, 20), packet[9]
    where = at + (6 if protocol == 17 else 16)
    if protocol in (6, 17) and len(packet) >= where + 2:
        packet[where : where + 2] = b"\0\0"
        pseudo = bytes(packet[addresses]) + struct.pack(">II", len(packet) - at, protocol)
        packet[where : where + 2] = (naive_checksum(pseudo + bytes(packet[at:])) or 0xFFFF).to_bytes(2, "big")
    return bytes(packet)


def super_frame(source: Node, to: Node, payload: bytes, gso_size: int) -> bytes:
    """One of TCP over IPv4."""
    made = bytearray(Segment(payload).super_frame(gso_size))
    made[22:30] = source.address + to.address
    made[20:22] = b"\0\0"
    made[20:22] = naive_checksum(bytes(made[10:30])).to_bytes(2, "big")
    pseudo = bytes(made[22:30]) + struct.pack(">II", len(made) - 30, 6)
    made[46:48] = (~naive_checksum(pseudo) & 0xFFFF).to_bytes(2, "big")
    return bytes(made)


def keypair_record(node: Node, other: Node, **changes: object) -> bytes:
    """The record of the current keypair with a peer, as it is or not."""
    pair = node.peer(other).keypairs.current
    assert pair is not None and node.peer(other).slot is not None and pair.position is not None
    slot, position = node.peer(other).slot, pair.position
    assert slot is not None
    for name, value in changes.items():
        setattr(pair, name, value)
    return r.write_keypair(slot, position, pair, unconfirmed=False)
