"""The twins of offload, one in Python and one in C, byte for byte.

A failure names its seed. EDGEAGENT_FUZZ_S makes each run go on for that many seconds, from a seed of its own unless
EDGEAGENT_FUZZ_SEED is set.
"""

from __future__ import annotations

import os
from random import Random, SystemRandom
from time import monotonic
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeagent.engine import offload as pure
from edgeagent.engine.offload import FRAME_MAX, SEGMENTS_MAX, VNET_HEADER_SIZE
from tests.engine.fast import library as fast
from tests.engine.fast.mutations import PACKETS_MAX, RUNS_MAX, batch, frame
from tests.engine.packets import Segment, stream, vnet
from tests.engine.test_offload import by_flow, expand, joined

if TYPE_CHECKING:
    from collections.abc import Iterator

ROUNDS = 500
LONG_S = float(os.environ.get("EDGEAGENT_FUZZ_S", "0"))
SEED = int(os.environ.get("EDGEAGENT_FUZZ_SEED", SystemRandom().getrandbits(40) if LONG_S else 1))


@pytest.fixture(scope="module", autouse=True)
def _library() -> None:
    fast.library()


def seeds() -> Iterator[int]:
    yield from range(SEED, SEED + ROUNDS)
    end = monotonic() + LONG_S
    seed = SEED + ROUNDS
    while monotonic() < end:
        yield seed
        seed += 1


def compare_coalesced(packets: list[bytes], *, udp: bool, verify: bool, seed: int) -> int:
    frames = joined(fast.coalesce(packets, udp=udp, verify=verify))
    assert frames == joined(pure.coalesce(packets, udp=udp, verify=verify)), f"seed {seed}"
    return len(frames)


def lengths_are_true(packet: bytes) -> bool:
    if len(packet) >= 40 and packet[0] == 0x45:
        ip_size, length, protocol = 20, int.from_bytes(packet[2:4], "big"), packet[9]
    elif len(packet) >= 60 and packet[0] >> 4 == 6:
        ip_size, length, protocol = 40, 40 + int.from_bytes(packet[4:6], "big"), packet[6]
    else:
        return False
    return length == len(packet) and (
        protocol == 6
        or (protocol == 17 and int.from_bytes(packet[ip_size + 4 : ip_size + 6], "big") == length - ip_size)
    )


class TestSplit:
    def test_seeded_frames(self) -> None:
        taken = refused = cut = 0
        for seed in seeds():
            candidate = frame(Random(seed))
            expected = pure.split(candidate)
            assert fast.split(candidate) == expected, f"seed {seed}"
            taken += expected is not None
            refused += expected is None
            cut += expected is not None and len(expected) > 1
        assert min(taken, refused, cut) > ROUNDS // 10  # otherwise the mutations are not worth their time

    @given(st.binary(max_size=300))
    def test_any_bytes(self, noise: bytes) -> None:
        assert fast.split(noise) == pure.split(noise)

    @given(
        st.integers(0, 1),
        st.sampled_from([0, 1, 3, 4, 5, 0x80, 0x81, 0x84, 0x85, 0xFF]),
        st.integers(0, 80),
        st.sampled_from([0, 19, 20, 24, 39, 40, 48]),
        st.sampled_from([0, 6, 16, 17, 0xFFFF]),
        st.sampled_from([Segment(bytes(90), version=v, udp=u) for v in (4, 6) for u in (False, True)]),
        st.integers(0, 150),
    )
    def test_any_vnet_header(
        self, flags: int, kind: int, size: int, start: int, offset: int, segment: Segment, length: int
    ) -> None:
        candidate = vnet(flags, kind, 0, size, start, offset) + segment.packet()[:length]
        assert fast.split(candidate) == pure.split(candidate)

    def test_bounds(self) -> None:
        packet = Segment(bytes(65_535 - 40)).packet()
        plain = bytes(VNET_HEADER_SIZE) + packet
        assert len(plain) == FRAME_MAX
        for twin in (pure, fast):
            assert twin.split(plain) == [packet]
            assert twin.split(plain + b"\0") is None
            assert twin.split(plain[:VNET_HEADER_SIZE]) == [b""]
        most = Segment(bytes(SEGMENTS_MAX)).super_frame(1)
        assert fast.split(most) == pure.split(most)
        assert fast.split(most + b"\0") is pure.split(most + b"\0") is None


class TestCoalesce:
    def test_seeded_batches(self) -> None:
        packets_seen = frames_seen = 0
        for seed in seeds():
            random = Random(seed)
            packets, udp, verify = batch(random), random.random() < 0.7, random.random() < 0.5
            packets_seen += len(packets)
            frames_seen += compare_coalesced(packets, udp=udp, verify=verify, seed=seed)
        assert ROUNDS < frames_seen < packets_seen // 2

    @given(st.lists(st.binary(max_size=120), max_size=20), st.booleans(), st.booleans())
    def test_any_bytes(self, packets: list[bytes], udp: bool, verify: bool) -> None:
        shaped = [bytes((0x45 if i & 1 else 0x60,)) + packet[1:] for i, packet in enumerate(packets)]
        for some in (packets, shaped):
            compare_coalesced(some, udp=udp, verify=verify, seed=-1)

    def test_split_gives_back_what_was_coalesced(self) -> None:
        """Also what is wrong in them, for with `verify` it goes alone."""
        for seed in range(SEED, SEED + ROUNDS // 5):
            packets = [packet for packet in batch(Random(seed)) if lengths_are_true(packet)]
            frames = joined(fast.coalesce(packets, udp=True, verify=True))
            back = [packet for made in frames for packet in expand(fast, made)]
            assert by_flow(back) == by_flow(packets), f"seed {seed}"

    def test_a_full_batch_is_flushed_and_nothing_is_lost(self) -> None:
        lone = [Segment(b"x", ports=(port, 1)).packet() for port in range(3 * RUNS_MAX)]
        long = stream(Segment(b""), [10] * (2 * PACKETS_MAX), bytes(20 * PACKETS_MAX))
        for packets, frames_expected in ((lone, 3 * RUNS_MAX), (long, 2)):
            frames = joined(fast.coalesce(packets, udp=False, verify=True))
            assert len(frames) == frames_expected
            back = [packet for made in frames for packet in expand(fast, made)]
            assert by_flow(back) == by_flow(packets)

    def test_a_run_is_no_longer_than_a_writev_takes(self) -> None:
        packets = stream(Segment(b""), [10] * (PACKETS_MAX + 1), bytes(10 * (PACKETS_MAX + 1)))
        frames = pure.coalesce(packets, udp=False, verify=False)
        assert [len(buffers) for buffers in frames] == [1 + PACKETS_MAX, 2]
        assert joined(fast.coalesce(packets, udp=False, verify=False)) == joined(frames)
