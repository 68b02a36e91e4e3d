"""Exact flows of the pump: which packets are of one, against the reader in Python; and how one is ended at once."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from random import Random, SystemRandom

import pytest

from edgeagent.engine.fast import records as r
from edgeagent.engine.fast.binding import RING_TUN
from edgeagent.proto.conntrack import CLOSING, USED, flow_key
from edgeagent.proto.heads import ACK, FIN, RST, SYN, Head, read
from tests.engine.fast.test_pump_bounds import Bare
from tests.policy_kit import ME4, ME6, PEER4, PEER6, echo, error_about, ip, ipv4, ipv6, tcp, udp

SEED = int(os.environ.get("EDGEAGENT_FUZZ_SEED", SystemRandom().getrandbits(40)))
ROUNDS = 400
ENTRIES = 8


class Exact(Bare):
    def __init__(self) -> None:
        super().__init__(entries=ENTRIES)
        self.configure(exact=True)
        self.keypair(0, 0, 5)
        self.counter = 0

    def flow(self, packet: bytes, entry: int | None = None, generation: int = 0) -> None:
        head = r.write_flow(0, inbound=True, entry=entry, generation=generation)
        assert self.pump.push(r.FLOW, head, packet[: r.PACKET_HEAD])
        self.pump.turn(0)

    def comes_out(self, packet: bytes) -> bool:
        """Out of the tunnel to the TUN; else it went up."""
        self.counter += 1
        self.open(5, self.counter, packet)
        up, frames = self.pulled(RING_TUN), self.tun.frames()
        assert len(up) + len(frames) == 1
        return bool(frames)


@pytest.fixture
def exact() -> Iterator[Exact]:
    made = Exact()
    yield made
    made.close()


def any_packet(random: Random) -> bytes:
    """Few addresses and ports, so that some are of one flow; some cut short, some with a byte changed."""
    me, peer = random.choice(((ME4, PEER4), (ME6, PEER6)))
    ports = random.randrange(2), random.randrange(2)
    packet = random.choice(
        (
            tcp(peer, me, *ports, random.choice((ACK, SYN, SYN | ACK, FIN | ACK, RST))),
            udp(peer, me, *ports),
            echo(peer, me, random.randrange(2), answer=random.random() < 0.5),
            error_about(udp(me, peer, *ports), peer),
            ip(peer, me, random.choice((1, 47, 50, 58, 132)), random.randbytes(random.choice((0, 7, 8, 12, 30)))),
            ipv4(PEER4, ME4, 17, bytes(24), identification=3, fragment=random.choice((0x4000, 0x2000, 0x2003, 5))),
            ipv6(PEER6, ME6, random.choice((0, 43, 44, 51, 60)), bytes((17, 0)) + random.randbytes(30)),
            bytes((0x46,)) + udp(PEER4, ME4, *ports)[1:20] + bytes(4) + udp(PEER4, ME4, *ports)[20:],
        )
    )
    if random.random() < 0.3:
        packet = packet[: random.randrange(len(packet) + 1)]
    if random.random() < 0.2 and len(packet) > 9:
        at = random.randrange(len(packet))
        packet = packet[:at] + bytes((random.randrange(256),)) + packet[at + 1 :]
    made = bytearray(packet)
    if len(made) >= 20 and made[0] >> 4 == 4:
        made[2:4] = len(made).to_bytes(2, "big")
    elif len(made) >= 40 and made[0] >> 4 == 6:
        made[4:6] = (len(made) - 40).to_bytes(2, "big")
    else:
        return udp(peer, me, *ports)
    return bytes(made)


def name(head: Head) -> tuple[bytes, int]:
    return flow_key(head, inbound=True), head.kind


def test_the_pump_carries_what_the_reader_says(exact: Exact) -> None:
    """And through no flow but its own. EDGEAGENT_FUZZ_SEED repeats a run."""
    random = Random(SEED)
    carried = 0
    for _ in range(ROUNDS):
        first, second = any_packet(random), any_packet(random)
        exact.push(r.UNFLOW, b"")
        head = read(first)
        if head is None or not head.carried:
            assert not exact.comes_out(first), (SEED, first.hex())
            continue
        exact.flow(first)
        for packet in (first, second):
            other = read(packet)
            of_it = other is not None and other.carried and name(other) == name(head) and not other.begins
            assert exact.comes_out(packet) is of_it, (SEED, first.hex(), packet.hex())
            carried += of_it
    assert carried > ROUNDS / 8 and exact.drops()[-1] == 0


def test_an_ended_flow_carries_nothing_from_the_next_packet_on(exact: Exact) -> None:
    packet, other = udp(PEER4, ME4, 1, 2), udp(PEER4, ME4, 1, 3)
    exact.pump.set(3, 7)
    exact.flow(packet, 3, 7)
    exact.flow(other)
    assert exact.comes_out(packet) and exact.comes_out(packet)
    exact.pump.set(3, 8)
    assert not exact.comes_out(packet) and exact.comes_out(other)
    assert exact.pump.figures().flows_used == 1
    exact.flow(packet, 3, 7)
    assert not exact.comes_out(packet), "told too late"
    exact.flow(packet, 3, 8)
    assert exact.comes_out(packet)
    exact.pump.set(ENTRIES, 1)  # there is no such entry: nothing
    assert exact.pump.figures().flows_used == 2


def test_what_was_carried_is_marked(exact: Exact) -> None:
    packets = [tcp(PEER4, ME4, 1, port, ACK) for port in range(3)]
    for entry, packet in enumerate(packets):
        exact.pump.set(entry, 1)
        exact.flow(packet, entry, 1)
    assert list(exact.pump.take()) == []
    exact.comes_out(packets[1])
    exact.comes_out(tcp(PEER4, ME4, 1, 2, FIN | ACK))
    assert list(exact.pump.take()) == [(1, USED), (2, USED | CLOSING)]
    assert list(exact.pump.take()) == []
    exact.comes_out(tcp(PEER4, ME4, 1, 0, RST))
    exact.pump.set(0, 2)
    assert list(exact.pump.take()) == [], "of what was there before"
    assert not exact.comes_out(tcp(PEER4, ME4, 1, 1, SYN))


def test_a_flow_of_an_entry_that_there_is_not_is_refused(exact: Exact) -> None:
    exact.flow(udp(PEER4, ME4, 1, 2), ENTRIES, 0)
    assert exact.drops()[-1] == 1
    exact.pump.push(r.FLOW, struct.pack("=HBxIII", 0, 1, 0xFFFFFFFF, 0, 0), udp(PEER4, ME4, 1, 2))
    exact.pump.turn(0)
    assert exact.drops()[-1] == 2


def test_flows_that_ended_give_way_first() -> None:
    bare = Exact()
    packets = [udp(PEER4, ME4, 1, port) for port in range(200)]
    for round_ in range(4):
        bare.pump.set(0, round_)
        for packet in packets:
            bare.flow(packet, 0, round_)
    figures = bare.pump.figures()
    assert figures.flows_used <= 64
    bare.pump.set(0, 99)
    evicted = figures.flows_evicted
    for packet in packets[:16]:
        bare.flow(packet)
        assert bare.comes_out(packet)
    assert bare.pump.figures().flows_evicted == evicted
    bare.close()
