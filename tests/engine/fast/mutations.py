"""Frames and batches of packets, mostly valid, from a seed: what the twins of offload are compared with."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import TYPE_CHECKING

from edgeagent.engine.offload import VNET_HEADER_SIZE
from tests.engine.packets import ACK, CWR, ECE, FIN, NEEDS_CSUM, PSH, SYN, Segment, stream, vnet

if TYPE_CHECKING:
    from random import Random

TIMESTAMPS = bytes.fromhex("0101080a0000000100000002")
HOP_BY_HOP = bytes((0, 0, 1, 4, 0, 0, 0, 0))
RUNS_MAX, PACKETS_MAX = 128, 1023  # of a batch in C, which is flushed when there are more
_VNET = struct.Struct("=BBHHHH")


def frame(random: Random) -> bytes:
    """One that a TUN may hand out, and then perhaps spoilt."""
    made = _super_frame(random)
    for _ in range(random.choice((0, 0, 1, 1, 2, 4))):
        made = random.choice(_SPOILERS)(random, made)
    return made


def batch(random: Random) -> list[bytes]:
    """Packets of a few flows, shuffled into each other; ≤ RUNS_MAX, or so few kinds that they make no more runs."""
    if random.random() < 0.05:
        return _long_stream(random)
    flows = [_flow(random, port) for port in range(random.randint(1, 5))]
    mixed: list[bytes] = []
    while flows and len(mixed) < RUNS_MAX:
        flow = random.choice(flows)
        mixed += flow[: random.randint(1, 6)]
        del flow[:6]
        flows = [flow for flow in flows if flow]
    for _ in range(random.choice((0, 0, 0, 1, 3))):
        _disturb(random, mixed)
    return mixed[:RUNS_MAX]


# Frames


def _super_frame(random: Random) -> bytes:
    version = random.choice((4, 6))
    udp = random.random() < 0.3
    segment = Segment(
        random.randbytes(_size(random)),
        seq=random.choice((random.getrandbits(32), 0xFFFFFF00)),
        flags=random.choice((ACK, ACK | PSH, ACK | PSH | FIN, ACK | CWR, ACK | CWR | ECE, SYN, random.getrandbits(8))),
        ack=random.getrandbits(32),
        window=random.getrandbits(16),
        options=random.choice((b"", b"", TIMESTAMPS, bytes(40))),
        ports=(random.getrandbits(16), random.getrandbits(16)),
        version=version,
        tos=random.getrandbits(8),
        ttl=random.randint(0, 255),
        df=random.random() < 0.7,
        identification=random.choice((random.getrandbits(16), 0xFFFE)),
        udp=udp,
        extension=_extensions(random, 17 if udp else 6) if version == 6 and random.random() < 0.3 else b"",
    )
    made = segment.super_frame(random.choice((1, 7, 100, 536, 1220, 1368, 1420, 65_535, _size(random))))
    if random.random() < 0.2:
        flags, _, header_size, _, start, offset = _VNET.unpack_from(made)
        made = vnet(random.choice((NEEDS_CSUM, flags, 0)), 0, header_size, 0, start, offset) + made[VNET_HEADER_SIZE:]
    return made


def _size(random: Random) -> int:
    return min(65_000, max(1, int(2 ** random.uniform(0, 16.1))))


def _extensions(random: Random, protocol: int) -> bytes:
    headers = random.randint(1, 3) * [HOP_BY_HOP]
    chain = b"".join(headers)
    at = len(chain) - len(HOP_BY_HOP)
    return chain[:at] + bytes((protocol,)) + chain[at + 1 :]


def _flip(random: Random, data: bytes) -> bytes:
    """A bit, mostly of the headers."""
    if not data:
        return data
    at = random.randrange(min(len(data), 110) if random.random() < 0.9 else len(data))
    return data[:at] + bytes((data[at] ^ 1 << random.randrange(8),)) + data[at + 1 :]


def _cut(random: Random, data: bytes) -> bytes:
    return data[: random.randrange(len(data) + 1) if random.random() < 0.5 else random.randrange(120)]


def _grow(random: Random, data: bytes) -> bytes:
    return data + random.randbytes(random.choice((1, 2, 3, 1000, 65_535)))


def _lie(random: Random, data: bytes) -> bytes:
    """One field of the vnet header says something else."""
    if len(data) < VNET_HEADER_SIZE:
        return data
    fields = list(_VNET.unpack_from(data))
    at = random.randrange(len(fields))
    top = 0xFF if at < 2 else 0xFFFF
    fields[at] = random.choice((0, 1, top, len(data) & top, random.randint(0, top), fields[at] + 1 & top, 20, 40, 6))
    return _VNET.pack(*fields) + data[VNET_HEADER_SIZE:]


def _ones(random: Random, data: bytes) -> bytes:
    """All ones, or all zeros, from somewhere on: sums that are 0 in one way or the other."""
    at = random.randrange(len(data) + 1)
    end = random.choice((len(data), min(len(data), at + random.randint(1, 8))))
    return data[:at] + random.choice((b"\xff", b"\0")) * (end - at) + data[end:]


_SPOILERS = (_flip, _flip, _flip, _cut, _grow, _lie, _lie, _lie, _ones)


# Batches


def _flow(random: Random, port: int) -> list[bytes]:
    size = random.choice((1, 2, 3, 64, 99, 536, 1000, 1368, 1399))
    count = random.choice((1, 2, 3, 8, 30, 70))
    udp = random.random() < 0.35
    first = Segment(
        b"",
        seq=random.choice((1000, 0xFFFFFFFF - size * count // 2)),
        ports=(port // random.choice((1, 2)), 80),  # so that sometimes two flows are one, or one of UDP and TCP
        version=random.choice((4, 6)),
        options=random.choice((b"", TIMESTAMPS, bytes(40))),
        tos=random.choice((0, 1, 2, 3, 0xB8)),
        df=random.random() < 0.9,
        udp=udp,
        identification=random.choice((7, 0xFFF0)),
    )
    data = random.choice((random.randbytes, bytes))(size * count)
    packets = stream(first, [size] * (count - 1) + [random.randint(0, size)], data)
    for _ in range(random.choice((0, 0, 0, 1, 2))):
        at = random.randrange(count)
        other = random.choice(
            (
                {"flags": ACK | PSH},
                {"flags": ACK | random.choice((FIN, SYN, ECE, CWR))},
                {"tos": random.choice((0, 1, 2, 3))},
                {"window": 501},
                {"ack": 78},
                {"ttl": 63},
                {"urgent": 1},
                {"options": TIMESTAMPS},
                {"bad_checksum": True},
            )
        )
        piece = replace(
            first, payload=data[at * size : (at + 1) * size], seq=first.seq + at * size & 0xFFFFFFFF, **other
        )
        packets[at] = piece.packet()
    return packets


def _long_stream(random: Random) -> list[bytes]:
    """As many as a batch takes, of one or two flows."""
    first = Segment(b"", version=random.choice((4, 6)), udp=random.random() < 0.3)
    count = random.choice((900, PACKETS_MAX))
    size = random.choice((30, 100, 1000))
    return stream(first, [size] * count, random.randbytes(size * count))


def _disturb(random: Random, packets: list[bytes]) -> None:
    """Losses, duplicates, packets out of order, and such as are none."""
    at = random.randrange(len(packets))
    kind = random.randrange(7)
    if kind == 0 and len(packets) > 1:
        del packets[at]
    elif kind == 1:
        packets.insert(at, packets[at])
    elif kind == 2:
        packets.insert(random.randrange(len(packets)), packets.pop(at))
    elif kind == 3:
        packets[at] = _flip(random, packets[at])
    elif kind == 4:
        packets[at] = _cut(random, packets[at])
    elif kind == 5:
        packets[at] = _ones(random, packets[at])
    else:
        packets.insert(at, random.randbytes(random.randrange(120)))
