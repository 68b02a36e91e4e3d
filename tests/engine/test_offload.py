from __future__ import annotations

import struct
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeagent.engine import offload as pure
from edgeagent.engine.offload import FRAME_MAX, SEGMENTS_MAX, VNET_HEADER_SIZE
from tests.engine.fast import library as fast
from tests.engine.packets import (
    ACK,
    CWR,
    ECE,
    FIN,
    NEEDS_CSUM,
    PSH,
    SYN,
    TCPV4,
    TCPV6,
    UDP_L4,
    Segment,
    checksum_holds,
    parse,
    stream,
    vnet,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

PLAIN = bytes(VNET_HEADER_SIZE)
TIMESTAMPS = bytes.fromhex("0101080a0000000100000002")


def joined(frames: list[list[bytes]]) -> list[bytes]:
    return [b"".join(frame) for frame in frames]


class Offload(Protocol):
    """One of the twins."""

    def split(self, frame: bytes) -> list[bytes] | None: ...

    def coalesce(self, packets: Sequence[bytes], *, udp: bool, verify: bool) -> list[list[bytes]]: ...


@pytest.fixture(scope="module", params=["pure", "fast"])
def twin(request: pytest.FixtureRequest) -> Offload:
    if request.param == "pure":
        return pure
    fast.library()
    return fast


def wire(twin: Offload, frame: bytes) -> list[bytes]:
    packets = twin.split(frame)
    assert packets is not None
    return packets


segments = st.builds(
    Segment,
    payload=st.binary(min_size=1, max_size=4000),
    seq=st.integers(0, 0xFFFFFFFF),
    flags=st.integers(0, 255),
    ack=st.integers(0, 0xFFFFFFFF),
    window=st.integers(0, 0xFFFF),
    options=st.sampled_from([b"", TIMESTAMPS, bytes(40)]),
    ports=st.tuples(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF)),
    version=st.sampled_from([4, 6]),
    tos=st.integers(0, 255),
    ttl=st.integers(1, 255),
    df=st.booleans(),
    identification=st.integers(0, 0xFFFF),
    udp=st.booleans(),
)


class TestSplit:
    @given(segments, st.integers(16, 1500))
    def test_segments_are_whole_packets_that_carry_the_payload(
        self, twin: Offload, segment: Segment, gso_size: int
    ) -> None:
        packets = wire(twin, segment.super_frame(gso_size, ecn=bool(segment.flags & CWR)))
        parsed = [parse(packet) for packet in packets]
        assert b"".join(p.payload for p in parsed) == segment.payload
        assert all(len(p.payload) == gso_size for p in parsed[:-1])
        assert all(checksum_holds(packet) for packet in packets)
        if segment.version == 4:
            ids = [int.from_bytes(p.ip_header[4:6], "big") for p in parsed]
            assert ids == [(segment.identification + i) & 0xFFFF for i in range(len(parsed))]

    @given(segments.map(lambda s: replace(s, udp=False)), st.integers(16, 1500))
    def test_tcp_numbers_and_flags(self, twin: Offload, segment: Segment, gso_size: int) -> None:
        parsed = [parse(packet) for packet in wire(twin, segment.super_frame(gso_size))]
        assert [p.seq for p in parsed] == [(segment.seq + i * gso_size) & 0xFFFFFFFF for i in range(len(parsed))]
        for i, p in enumerate(parsed):
            expected = segment.flags
            if i:
                expected &= ~CWR
            if i < len(parsed) - 1:
                expected &= ~(FIN | PSH)
            assert p.flags == expected
            assert p.transport[20:] == segment.options
            assert p.transport[8:12] == segment.ack.to_bytes(4, "big")
            assert p.transport[14:16] == segment.window.to_bytes(2, "big")

    @given(segments)
    def test_a_partial_checksum_is_finished(self, twin: Offload, segment: Segment) -> None:
        frame = segment.super_frame(0)
        start, offset = struct.unpack_from("=6xHH", frame)
        plain = vnet(NEEDS_CSUM, 0, 0, 0, start, offset) + frame[VNET_HEADER_SIZE:]
        assert wire(twin, plain) == [segment.packet()]

    def test_a_udp_checksum_is_never_sent_as_zero(self, twin: Offload) -> None:
        base = Segment(b"\0\0", udp=True)
        filler = int.from_bytes(base.packet()[26:28], "big")
        zero = replace(base, payload=filler.to_bytes(2, "big"))
        assert zero.packet()[26:28] == b"\xff\xff"
        assert wire(twin, zero.super_frame(1000)) == [zero.packet()]

    def test_what_needs_nothing_is_passed_on(self, twin: Offload) -> None:
        packet = Segment(b"x", bad_checksum=True).packet()
        assert twin.split(PLAIN + packet) == [packet]

    def test_extension_headers_are_repeated(self, twin: Offload) -> None:
        hop_by_hop = bytes((6, 0, 1, 4, 0, 0, 0, 0))
        segment = Segment(bytes(range(200)) * 10, version=6, extension=hop_by_hop)
        packets = wire(twin, segment.super_frame(900))
        assert [packet[40:48] for packet in packets] == [hop_by_hop] * 3
        assert all(checksum_holds(packet) for packet in packets)

    def test_the_longest_frame(self, twin: Offload) -> None:
        segment = Segment(bytes(65_535 - 40))
        frame = segment.super_frame(1368)
        assert len(frame) == FRAME_MAX
        assert sum(len(parse(packet).payload) for packet in wire(twin, frame)) == 65_535 - 40

    def test_headers_that_lie(self, twin: Offload) -> None:
        tcp, tcp6 = Segment(bytes(3000)), Segment(bytes(3000), version=6)
        packet, packet6 = tcp.super_frame(1000)[VNET_HEADER_SIZE:], tcp6.super_frame(1000)[VNET_HEADER_SIZE:]
        datagram = Segment(bytes(3000), udp=True).super_frame(1000)[VNET_HEADER_SIZE:]
        fragment = packet[:6] + b"\x20\x00" + packet[8:]
        short_tcp = packet[:32] + b"\x40" + packet[33:]
        for header, lie in [
            (vnet(0, TCPV4, 40, 1000, 20, 16), packet),  # no checksum wanted
            (vnet(NEEDS_CSUM, TCPV4, 40, 0, 20, 16), packet),  # segments of no size
            (vnet(NEEDS_CSUM, TCPV4, 40, 1, 20, 16), packet),  # too many segments
            (vnet(NEEDS_CSUM, TCPV4, 40, 1000, 24, 16), packet),  # transport header elsewhere
            (vnet(NEEDS_CSUM, TCPV4, 40, 1000, 20, 6), packet),  # checksum elsewhere
            (vnet(NEEDS_CSUM, TCPV6, 60, 1000, 20, 16), packet),  # IPv4 called IPv6
            (vnet(NEEDS_CSUM, TCPV4, 60, 1000, 40, 16), packet6),  # and the other way round
            (vnet(NEEDS_CSUM, TCPV6, 60, 1000, 39, 16), packet6),
            (vnet(NEEDS_CSUM, TCPV4, 40, 1000, 20, 16), datagram),  # UDP called TCP
            (vnet(NEEDS_CSUM, UDP_L4, 28, 1000, 20, 6), packet),  # and the other way round
            (vnet(NEEDS_CSUM, 3, 28, 1000, 20, 6), datagram),  # UFO, which was not asked for
            (vnet(NEEDS_CSUM, TCPV4, 40, 1000, 20, 16), fragment),
            (vnet(NEEDS_CSUM, TCPV4, 40, 1000, 20, 16), short_tcp),
            (vnet(NEEDS_CSUM, TCPV4, 40, 1000, 20, 16), packet[:40]),  # nothing to split
            (vnet(NEEDS_CSUM, TCPV4, 40, 1000, 20, 16), packet[:30]),
            (vnet(NEEDS_CSUM, TCPV4, 40, 1000, 20, 16), b"\x75" + packet[1:]),  # IP version 7
            (vnet(NEEDS_CSUM, TCPV4, 40, 1000, 20, 16), packet + bytes(65_535)),
            (vnet(NEEDS_CSUM, 0, 0, 0, 20, 3000), packet[:100]),  # checksum behind the end
            (vnet(NEEDS_CSUM, 0, 0, 0, 0, 16), packet[:100]),  # checksum in the IP header
            (b"", PLAIN[:9]),
        ]:
            assert twin.split(header + lie) is None
        assert SEGMENTS_MAX < 3000

    @given(st.binary(max_size=200), segments, st.integers(0, 0xFFFF), st.data())
    def test_any_bytes_make_packets_or_nothing(
        self, twin: Offload, noise: bytes, segment: Segment, gso_size: int, data: st.DataObject
    ) -> None:
        frame = bytearray(segment.super_frame(gso_size))
        for _ in range(data.draw(st.integers(0, 4))):
            frame[data.draw(st.integers(0, min(len(frame) - 1, 80)))] = data.draw(st.integers(0, 255))
        for candidate in (noise, bytes(frame), bytes(frame[: data.draw(st.integers(0, len(frame)))])):
            packets = twin.split(candidate)
            assert packets is None or len(packets) <= SEGMENTS_MAX


class TestCoalesce:
    @given(segments, st.integers(16, 700), st.booleans())
    def test_split_undoes_coalesce(self, twin: Offload, segment: Segment, size: int, verify: bool) -> None:
        segment = replace(segment, flags=ACK)
        packets = wire(twin, segment.super_frame(size))
        frames = joined(twin.coalesce(packets, udp=True, verify=verify))
        expanded = [packet for frame in frames for packet in expand(twin, frame)]
        assert expanded == packets
        if segment.df and not (segment.udp and len(packets) > 64):
            assert len(frames) == 1

    @given(st.data())
    def test_flows_keep_their_order_and_their_bytes(self, twin: Offload, data: st.DataObject) -> None:
        """The slow twin of coalescing is to write every packet alone."""
        packets = data.draw(mixed_flows())
        for verify in (False, True):
            frames = joined(twin.coalesce(packets, udp=data.draw(st.booleans()), verify=verify))
            expanded = [packet for frame in frames for packet in expand(twin, frame)]
            assert by_flow(expanded) == by_flow(packets)

    @pytest.mark.parametrize("version", [4, 6])
    @pytest.mark.parametrize("verify", [False, True])
    def test_a_stream_becomes_one_frame(self, twin: Offload, version: int, verify: bool) -> None:
        data = bytes(range(256)) * 20
        first = Segment(b"", version=version, options=TIMESTAMPS, seq=0xFFFFFF00)
        packets = stream(first, [1000] * 5 + [120], data)
        packets[-1] = replace(
            first, payload=data[5000:5120], seq=5000 - 0x100, flags=ACK | PSH, identification=12
        ).packet()
        (frame,) = joined(twin.coalesce(packets, udp=False, verify=verify))
        flags, kind, header_size, gso_size, start, offset = struct.unpack_from("=BBHHHH", frame)
        ip_size = 20 if version == 4 else 40
        assert (kind, header_size, gso_size) == (TCPV4 if version == 4 else TCPV6, ip_size + 32, 1000)
        assert (flags, start, offset) == ((NEEDS_CSUM, ip_size, 16) if verify else (0, 0, 0))
        whole = parse(frame[VNET_HEADER_SIZE:])
        assert whole.payload == data
        assert whole.flags == ACK | PSH
        assert whole.seq == 0xFFFFFF00
        assert verify or checksum_holds(frame[VNET_HEADER_SIZE:])

    @pytest.mark.parametrize(
        "second",
        [
            {"seq": 2001},  # a gap
            {"seq": 1999},  # an overlap
            {"flags": ACK | FIN},
            {"flags": ACK | SYN},
            {"flags": ACK | ECE},
            {"flags": ACK | CWR},
            {"ack": 78},
            {"window": 503},
            {"urgent": 1},
            {"options": bytes.fromhex("0101080a0000000100000003")},
            {"options": b""},
            {"tos": 2},
            {"ttl": 63},
            {"df": False},
            {"ports": (5000, 6001)},
            {"version": 6},
            {"payload": b"y" * 1001},  # longer than the first
            {"payload": b""},
        ],
        ids=str,
    )
    def test_what_does_not_merge(self, twin: Offload, second: dict[str, object]) -> None:
        first = Segment(b"x" * 1000, seq=1000, options=TIMESTAMPS)
        follower = replace(replace(first, payload=b"y" * 1000, seq=2000, identification=8), **second)  # type: ignore[arg-type]
        packets = [first.packet(), follower.packet()]
        assert joined(twin.coalesce(packets, udp=True, verify=False)) == [PLAIN + packet for packet in packets]

    def test_nothing_follows_a_push_or_a_short_segment(self, twin: Offload) -> None:
        first = Segment(b"x" * 100)
        pushed = [replace(first, flags=ACK | PSH), replace(first, seq=1100)]
        short = [first, replace(first, seq=1100, payload=b"x" * 99), replace(first, seq=1199, payload=b"x" * 99)]
        assert len(twin.coalesce([s.packet() for s in pushed], udp=False, verify=False)) == 2
        assert len(twin.coalesce([s.packet() for s in short], udp=False, verify=False)) == 2

    def test_packets_without_df_do_not_merge(self, twin: Offload) -> None:
        packets = stream(Segment(b"", df=False), [100] * 3, bytes(300))
        assert len(twin.coalesce(packets, udp=False, verify=True)) == 3

    def test_a_packet_with_a_wrong_ip_checksum_starts_nothing(self, twin: Offload) -> None:
        first, second = stream(Segment(b""), [100, 100], bytes(200))
        first = first[:10] + bytes((first[10] ^ 1,)) + first[11:]
        assert joined(twin.coalesce([first, second], udp=False, verify=False)) == [PLAIN + first, PLAIN + second]

    def test_a_wrong_checksum_stays_wrong(self, twin: Offload) -> None:
        packets = stream(Segment(b""), [100] * 3, bytes(range(100)) * 3)
        bad = bytearray(packets[1])
        bad[-1] ^= 1
        packets[1] = bytes(bad)
        assert joined(twin.coalesce(packets, udp=False, verify=True)) == [PLAIN + packet for packet in packets]
        (frame,) = joined(twin.coalesce(packets, udp=False, verify=False))
        assert not checksum_holds(frame[VNET_HEADER_SIZE:])

    def test_udp_only_where_the_tun_takes_it(self, twin: Offload) -> None:
        packets = stream(Segment(b"", udp=True), [200] * 3 + [10], bytes(610))
        assert len(twin.coalesce(packets, udp=False, verify=False)) == 4
        (frame,) = joined(twin.coalesce(packets, udp=True, verify=False))
        assert frame[:2] == bytes((NEEDS_CSUM, UDP_L4))
        assert expand(twin, frame) == packets

    def test_udp_frames_have_at_most_64_segments(self, twin: Offload) -> None:
        packets = stream(Segment(b"", udp=True), [10] * 100, bytes(1000))
        assert [len(expand(twin, frame)) for frame in joined(twin.coalesce(packets, udp=True, verify=False))] == [
            64,
            36,
        ]

    def test_udp_without_a_checksum_stays_without(self, twin: Offload) -> None:
        packet = Segment(b"x" * 100, udp=True).packet()
        packet = packet[:26] + b"\0\0" + packet[28:]
        assert joined(twin.coalesce([packet, packet], udp=True, verify=True)) == [PLAIN + packet] * 2

    def test_a_frame_is_no_longer_than_ip_allows(self, twin: Offload) -> None:
        for version in (4, 6):
            packets = stream(Segment(b"", version=version), [1400] * 60, bytes(84_000))
            frames = joined(twin.coalesce(packets, udp=False, verify=False))
            assert len(frames) == 2
            assert all(len(frame) <= FRAME_MAX for frame in frames)

    @given(st.lists(st.binary(min_size=20, max_size=120).map(lambda p: bytes((0x45,)) + p[1:]), max_size=6))
    def test_any_packets_pass(self, twin: Offload, packets: list[bytes]) -> None:
        padded = [packet.ljust(20, b"\0") for packet in packets]
        six = [b"\x60" + packet[1:].ljust(64, b"\1") for packet in packets]
        for verify in (False, True):
            assert sum(
                len(expand(twin, f)) for f in joined(twin.coalesce(padded + six, udp=True, verify=verify))
            ) == 2 * len(packets)


def expand(twin: Offload, frame: bytes) -> list[bytes]:
    """What the kernel makes of a frame, the slow way."""
    flags, kind, header_size, gso_size, _, _ = struct.unpack_from("=BBHHHH", frame)
    packet = frame[VNET_HEADER_SIZE:]
    if not kind:
        return [packet]
    if not flags & NEEDS_CSUM:  # complete: as good as partial, for a reader who does not check it
        ip_size = 20 if packet[0] >> 4 == 4 else 40
        frame = vnet(NEEDS_CSUM, kind, header_size, gso_size, ip_size, 16) + packet
    return wire(twin, frame)


def by_flow(packets: list[bytes]) -> dict[bytes, list[bytes]]:
    flows: dict[bytes, list[bytes]] = {}
    for packet in packets:
        key = packet[9:10] + packet[12:24] if packet[0] >> 4 == 4 else packet[6:7] + packet[8:44]
        if packet[0] == 0x45:  # RFC 6864: the identification of an atomic datagram means nothing
            packet = packet[:4] + b"\0\0" + packet[6:10] + b"\0\0" + packet[12:]
        flows.setdefault(key, []).append(packet)
    return flows


@st.composite
def mixed_flows(draw: st.DrawFn) -> list[bytes]:
    """A few streams, shuffled into each other, some out of order, some with odd ones in between."""
    pools = []
    for port in range(draw(st.integers(1, 4))):
        first = Segment(
            b"",
            ports=(port, 80),
            version=draw(st.sampled_from([4, 6])),
            udp=draw(st.booleans()),
            seq=draw(st.integers(0xFFFFF000, 0xFFFFFFFF)),
        )
        size = draw(st.integers(1, 300))
        count = draw(st.integers(1, 8))
        sizes = [size] * (count - 1) + [draw(st.integers(0, size))]
        packets = stream(first, sizes, draw(st.binary(min_size=size * count, max_size=size * count)))
        if draw(st.booleans()):
            packets = draw(st.permutations(packets))
        if draw(st.booleans()):
            packets.insert(draw(st.integers(0, len(packets))), replace(first, flags=ACK | PSH, payload=b"!").packet())
        pools.append(packets)
    mixed = []
    while any(pools):
        pool = draw(st.sampled_from([pool for pool in pools if pool]))
        mixed.append(pool.pop(0))
    return mixed
