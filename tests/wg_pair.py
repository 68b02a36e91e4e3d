"""Two real WireGuard machines and a wire between them that a test cranks by hand."""

from __future__ import annotations

import random
from collections.abc import Callable

from edgeagent.crypto import load
from edgeagent.proto.constants import MTU_DEFAULT
from edgeagent.proto.device import Device
from edgeagent.proto.endpoint import Endpoint, Transmit
from edgeagent.proto.icmp import checksum
from edgeagent.proto.limits import Limits
from edgeagent.proto.messages import INITIATION, RESPONSE, TRANSPORT
from edgeagent.proto.peer import Peer
from edgeagent.proto.tai64n import Tai64nClock

CRYPTO = load("pynacl")
A_ADDR = Endpoint(("192.0.2.1", 51820))
B_ADDR = Endpoint(("198.51.100.2", 51821))
A_IP, B_IP = bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2))
A_IP6, B_IP6 = bytes.fromhex("fd00" + "00" * 13 + "01"), bytes.fromhex("fd00" + "00" * 13 + "02")


def device(seed: int, *, now: float = 0.0, wall_s: float = 1.8e9, mtu: int = MTU_DEFAULT, **limits: int) -> Device:
    rng = random.Random(seed)
    made = Device(
        now,
        crypto=CRYPTO,
        entropy=rng.randbytes,
        jitter=rng.random,
        tai64n=Tai64nClock(now, wall_s),
        limits=Limits(**limits),
        mtu=mtu,
    )
    made.set_private_key(now, rng.randbytes(32))
    return made


def ipv4(source: bytes, destination: bytes, payload: bytes = b"hello", tos: int = 0) -> bytes:
    header = bytes((0x45, tos)) + (20 + len(payload)).to_bytes(2, "big") + bytes((0, 0, 0, 0, 64, 17, 0, 0))
    header += source + destination
    return header[:10] + checksum(header).to_bytes(2, "big") + header[12:] + payload


def ipv6(source: bytes, destination: bytes, payload: bytes = b"hello", traffic_class: int = 0) -> bytes:
    first = (6 << 28 | traffic_class << 20).to_bytes(4, "big")
    return first + len(payload).to_bytes(2, "big") + bytes((17, 64)) + source + destination + payload


class Pair:
    """`a` and `b` know each other; nothing crosses until `deliver`. `now` moves only by `advance`."""

    def __init__(self, *, a_knows_endpoint: bool = True, b_knows_endpoint: bool = False, **limits: int) -> None:
        self.now = 1000.0
        self.a = device(1, now=self.now, **limits)
        self.b = device(2, now=self.now, **limits)
        self.to_b = self.a.add_peer(self.now, self.b.public_key)
        self.to_a = self.b.add_peer(self.now, self.a.public_key)
        for dev, peer, ip, ip6 in ((self.a, self.to_b, B_IP, B_IP6), (self.b, self.to_a, A_IP, A_IP6)):
            dev.allowed_ips.insert(ip, 32, peer)
            dev.allowed_ips.insert(ip6, 128, peer)
        if a_knows_endpoint:
            self.to_b.set_endpoint(B_ADDR)
        if b_knows_endpoint:
            self.to_a.set_endpoint(A_ADDR)
        self.wire: list[tuple[Device, bytes]] = []  # (receiver, datagram) in the order sent

    def collect(self) -> list[bytes]:
        """Take what both machines want to send onto the wire; returns the new datagrams."""
        fresh: list[tuple[Device, bytes]] = []
        for sender, receiver in ((self.a, self.b), (self.b, self.a)):
            for transmit in sender.drain_transmits():
                fresh.extend((receiver, datagram) for datagram in transmit.datagrams)
        self.wire.extend(fresh)
        return [datagram for _, datagram in fresh]

    def deliver(self, keep: Callable[[bytes], bool] = lambda _: True) -> None:
        """Carry datagrams to and fro until the wire is silent; `keep` says which are not lost."""
        for _ in range(100):
            self.collect()
            if not self.wire:
                return
            wire, self.wire = self.wire, []
            for receiver, datagram in wire:
                if keep(datagram):
                    source = A_ADDR if receiver is self.b else B_ADDR
                    receiver.handle_datagrams(self.now, [(datagram, source, 0)])
        raise AssertionError("the machines never fall silent")

    def a_sends(self, payload: bytes = b"hello") -> bytes:
        packet = ipv4(A_IP, B_IP, payload)
        assert self.a.handle_packets(self.now, [packet]) == []
        return packet

    def b_sends(self, payload: bytes = b"hello") -> bytes:
        packet = ipv4(B_IP, A_IP, payload)
        assert self.b.handle_packets(self.now, [packet]) == []
        return packet

    def advance(self, seconds: float, *, keep: Callable[[bytes], bool] = lambda _: True) -> None:
        """Let time pass, timers run out and datagrams cross."""
        end = self.now + seconds
        while True:
            due = [at for at in (self.a.poll_timeout(), self.b.poll_timeout()) if at is not None]
            if not due or min(due) > end:
                break
            self.now = max(self.now, min(due))
            self.a.handle_timeout(self.now)
            self.b.handle_timeout(self.now)
            self.deliver(keep)
        self.now = end

    def connect(self) -> None:
        self.a_sends()
        self.deliver()
        assert self.b.drain_packets()


def established() -> Pair:
    pair = Pair()
    pair.connect()
    return pair


def kinds(datagrams: list[bytes]) -> list[int]:
    return [datagram[0] for datagram in datagrams]


def drops(dev: Device) -> dict[str, int]:
    return {reason.value: count for reason, count in dev.drops.items() if count}


__all__ = [
    "A_ADDR", "A_IP", "A_IP6", "B_ADDR", "B_IP", "B_IP6", "CRYPTO", "INITIATION", "RESPONSE", "TRANSPORT",
    "Pair", "Peer", "Transmit", "device", "drops", "established", "ipv4", "ipv6", "kinds",
]  # fmt: skip
