"""Packets that are too large: MSS, fragments and answers, judged by scapy and by whole recomputation."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeagent.proto.icmp import checksum
from edgeagent.proto.icmp_too_big import fragments, fragments_v6, too_big
from edgeagent.proto.mss import clamp_mss

V4 = bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2))
V6 = bytes.fromhex("fd00" + "00" * 13 + "01"), bytes.fromhex("fd00" + "00" * 13 + "02")
SYN, ACK = 0x02, 0x10


def tcp_checksum(packet: bytes, at: int) -> int:
    """Over the whole segment, with its checksum field: 0 when it fits."""
    if packet[0] >> 4 == 4:
        source, destination = packet[12:16], packet[16:20]
    else:
        source, destination = packet[8:24], packet[24:40]
    segment = packet[at:]
    return checksum(source + destination + len(segment).to_bytes(4, "big") + bytes((0, 0, 0, 6)) + segment)


def tcp(
    options: bytes, *, flags: int = SYN, ipv6: bool = False, extensions: bytes = b"", data: bytes = b""
) -> tuple[bytes, int]:
    """A packet with right checksums, and where its TCP header begins. `extensions` begins with the first one's kind."""
    options += bytes(-len(options) % 4)
    segment = (
        bytes.fromhex("1234 0050 01020304 00000000")
        + bytes(((20 + len(options)) // 4 << 4, flags))
        + bytes.fromhex("ffff 0000 0000")
    )
    segment += options + data
    if ipv6:
        kind, more = (extensions[0], extensions[1:]) if extensions else (6, b"")
        header = (
            bytes((0x60, 0, 0, 0))
            + (len(more) + len(segment)).to_bytes(2, "big")
            + bytes((kind, 64))
            + V6[0]
            + V6[1]
            + more
        )
    else:
        header = (
            bytes((0x45, 0))
            + (20 + len(segment)).to_bytes(2, "big")
            + bytes.fromhex("0001 4000 40 06 0000")
            + V4[0]
            + V4[1]
        )
        header = header[:10] + checksum(header).to_bytes(2, "big") + header[12:]
    at = len(header)
    packet = header + segment
    value = tcp_checksum(packet, at)
    return packet[: at + 16] + value.to_bytes(2, "big") + packet[at + 18 :], at


def mss_of(packet: bytes) -> int:
    from scapy.layers.inet import IP, TCP
    from scapy.layers.inet6 import IPv6

    layers = (IP if packet[0] >> 4 == 4 else IPv6)(packet)
    return int(dict(layers[TCP].options)["MSS"])


MSS = bytes.fromhex("0204 05b4")
OPTIONS = [
    MSS,
    MSS + bytes.fromhex("0402 080a 00000001 00000000 01 030307"),  # as Linux sends it
    b"\x01" + MSS + b"\x01\x01\x01",  # at an odd place
    bytes.fromhex("030307") + MSS + b"\x00",
    bytes.fromhex("0101") + MSS + b"\x00\x00",
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("flags", [SYN, SYN | ACK])
@pytest.mark.parametrize("mtu", [1_280, 1_000, 516, 1_499])
def test_the_mss_of_a_syn_is_lowered_and_its_checksum_fits(options: bytes, flags: int, mtu: int) -> None:
    for ipv6, headers in ((False, 40), (True, 60)):
        packet, at = tcp(options, flags=flags, ipv6=ipv6)
        clamped = clamp_mss(packet, mtu)
        assert mss_of(clamped) == min(mtu - headers, 1_460)
        assert tcp_checksum(packet, at) == tcp_checksum(clamped, at) == 0
        assert len(clamped) == len(packet)
        assert clamp_mss(clamped, mtu) is clamped
        assert clamp_mss(clamped, 9_000) is clamped


def test_headers_between_ipv6_and_tcp() -> None:
    hop_by_hop = bytes((0,)) + bytes((60, 0)) + bytes(6) + bytes((44, 1)) + bytes(14) + bytes((6, 0, 0, 0, 0, 0, 0, 1))
    packet, at = tcp(MSS, ipv6=True, extensions=hop_by_hop)
    clamped = clamp_mss(packet, 1_280)
    assert mss_of(clamped) == 1_220 and tcp_checksum(clamped, at) == 0
    endless, _ = tcp(
        MSS, ipv6=True, extensions=bytes((60,)) + 9 * (bytes((60, 0)) + bytes(6)) + bytes((6, 0)) + bytes(6)
    )
    assert clamp_mss(endless, 1_280) is endless
    later_fragment, _ = tcp(MSS, ipv6=True, extensions=bytes((44,)) + bytes((6, 0, 0, 8, 0, 0, 0, 1)))
    assert clamp_mss(later_fragment, 1_280) is later_fragment


def test_a_checksum_still_to_be_completed_is_left_alone() -> None:
    packet, at = tcp(MSS)
    clamped = clamp_mss(packet, 1_280, checksummed=False)
    assert mss_of(clamped) == 1_240
    assert clamped[at + 16 : at + 18] == packet[at + 16 : at + 18]


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        tcp(MSS, flags=ACK)[0],
        tcp(b"")[0],
        tcp(bytes.fromhex("00") + MSS)[0],  # behind the end of the options
        tcp(bytes.fromhex("0203 05b4"))[0],  # an MSS of another length
        tcp(bytes.fromhex("0300"))[0],  # an option without length would never end
        tcp(bytes.fromhex("0341"))[0],  # one longer than the header
        tcp(MSS)[0][:39],
        tcp(MSS)[0][:9] + b"\x11" + tcp(MSS)[0][10:],  # UDP
        tcp(MSS)[0][:6] + b"\x00\x01" + tcp(MSS)[0][8:],  # a later fragment
        b"\x44" + tcp(MSS)[0][1:],
    ],
)
def test_all_else_is_left_as_it_is(packet: bytes) -> None:
    assert clamp_mss(packet, 576) is packet


@given(st.binary(max_size=120), st.integers(0, 2_000))
def test_whatever_comes_is_taken(packet: bytes, mtu: int) -> None:
    assert len(clamp_mss(packet, mtu)) == len(packet)
    assert sum(len(piece) - 20 for piece in fragments(packet, mtu)) <= len(packet)
    too_big(packet, mtu)


@given(st.binary(max_size=40), st.booleans(), st.integers(60, 1_500), st.integers(0, 7))
def test_whatever_the_options_the_checksum_still_fits(options: bytes, ipv6: bool, mtu: int, front: int) -> None:
    packet, at = tcp((b"\x01" * front + MSS + options)[:40], ipv6=ipv6)
    clamped = clamp_mss(packet, mtu)
    assert tcp_checksum(clamped, at) in (0, 0xFFFF)
    assert sum(a != b for a, b in zip(packet, clamped, strict=True)) <= 4


def test_fragmentation_needed() -> None:
    from scapy.layers.inet import ICMP, IP

    packet, _ = tcp(MSS, data=bytes(1_200))
    answer = too_big(packet, 1_000)
    assert answer is not None
    said = IP(answer)
    assert (said.src, said.dst, said[ICMP].type, said[ICMP].code, said[ICMP].nexthopmtu) == (
        "10.0.0.2",
        "10.0.0.1",
        3,
        4,
        1_000,
    )
    assert len(answer) <= 576 and checksum(answer[:20]) == 0 and checksum(answer[20:]) == 0
    assert answer[28:] == packet[: 576 - 28]
    may_be_cut = packet[:6] + b"\0\0" + packet[8:]
    assert too_big(may_be_cut, 1_000) is None
    assert too_big(packet[:6] + b"\x40\x10" + packet[8:], 1_000) is None  # a later fragment (RFC 1122, 3.2.2)


def test_packet_too_big() -> None:
    from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6

    packet, _ = tcp(MSS, ipv6=True, data=bytes(1_300))
    answer = too_big(packet, 1_320)
    assert answer is not None
    said = IPv6(answer)
    assert (said.src, said.dst, said[ICMPv6PacketTooBig].mtu, said[ICMPv6PacketTooBig].code) == (
        "fd00::2",
        "fd00::1",
        1_320,
        0,
    )
    assert len(answer) == 1_280
    pseudo = answer[8:40] + (len(answer) - 40).to_bytes(4, "big") + bytes((0, 0, 0, 58))
    assert checksum(pseudo + answer[40:]) == 0
    low = too_big(packet, 900)
    assert low is not None and IPv6(low)[ICMPv6PacketTooBig].mtu == 1_280
    small, _ = tcp(MSS, ipv6=True, data=bytes(1_000))
    assert too_big(small, 900) is None


def udp(size: int, options: bytes = b"", offset: int = 0, more: bool = False) -> bytes:
    header = bytes((0x40 | (20 + len(options)) // 4, 0)) + (20 + len(options) + size).to_bytes(2, "big") + b"\x12\x34"
    header += (offset | (0x2000 if more else 0)).to_bytes(2, "big") + bytes((64, 17, 0, 0)) + V4[0] + V4[1] + options
    header = header[:10] + checksum(header).to_bytes(2, "big") + header[12:]
    return header + bytes(at % 251 for at in range(size))


@given(st.integers(0, 4_000), st.integers(68, 1_500), st.integers(0, 100), st.booleans())
def test_fragments_make_the_packet_again(size: int, mtu: int, offset: int, more: bool) -> None:
    packet = udp(size, offset=offset, more=more)
    pieces = fragments(packet, mtu)
    whole = b""
    for number, piece in enumerate(pieces):
        flags = int.from_bytes(piece[6:8], "big")
        assert len(piece) <= max(mtu, 20) and int.from_bytes(piece[2:4], "big") == len(piece)
        assert checksum(piece[:20]) == 0
        assert (flags & 0x1FFF) == offset + len(whole) // 8
        assert bool(flags & 0x2000) == (more or number < len(pieces) - 1)
        whole += piece[20:]
    assert whole == packet[20:]


def test_scapy_agrees_about_options() -> None:
    from scapy.layers.inet import IP, defragment

    options = bytes.fromhex("94040000 01 07070400000000 00000000".replace(" ", ""))
    packet = udp(3_000, options=options)
    pieces = fragments(packet, 576)
    assert [len(piece) for piece in pieces][:2] == [36 + 536, 24 + 536]
    assert [IP(piece).options[0].name for piece in pieces] == ["IP Option Router Alert"] * len(pieces)
    [joined] = defragment([IP(piece) for piece in fragments(udp(3_000), 576)])  # type: ignore[no-untyped-call]
    assert bytes(joined.payload) == udp(3_000)[20:]


def test_what_may_not_be_cut_is_not() -> None:
    packet = udp(1_000)
    assert fragments(packet[:6] + b"\x40\0" + packet[8:], 576) == []
    assert fragments(packet[:-1], 576) == []
    assert fragments(packet, 27) == []
    assert fragments(b"\x60" + packet[1:], 576) == []
    assert fragments(udp(20_000), 100) == []
    assert fragments(udp(1_000, offset=0x1FFF), 576) == []  # beyond the longest packet there is


ID = b"\xde\xad\xbe\xef"


def udp6(size: int, extensions: bytes = b"") -> bytes:
    """`extensions` begins with the first one's kind."""
    kind, more = (extensions[0], extensions[1:]) if extensions else (17, b"")
    header = bytes((0x60, 1, 2, 3)) + (len(more) + size).to_bytes(2, "big") + bytes((kind, 64)) + V6[0] + V6[1]
    return header + more + bytes(at % 251 for at in range(size))


HOP_BY_HOP, ROUTING = bytes((43, 0)) + bytes(6), bytes((17, 2)) + bytes(22)


@pytest.mark.parametrize("extensions", [b"", b"\x00" + HOP_BY_HOP + ROUTING, b"\x2b" + ROUTING])
def test_scapy_makes_the_ipv6_packet_again(extensions: bytes) -> None:
    from scapy.layers.inet6 import IPv6, defragment6

    packet = udp6(1_200 - len(extensions), extensions)
    pieces = fragments_v6(packet, 516, ID)
    assert len(pieces) == 3 and all(len(piece) <= 516 for piece in pieces)
    assert bytes(defragment6([IPv6(piece) for piece in reversed(pieces)])) == packet  # type: ignore[no-untyped-call]


@given(st.integers(1, 4_000), st.integers(100, 1_500), st.integers(0, 3_000), st.booleans(), st.integers(100, 600))
def test_fragments_of_fragments_are_those_of_the_whole(
    size: int, mtu: int, offset: int, more: bool, again: int
) -> None:
    if more:
        size = size + 7 & ~7
    word = 8 * offset | more
    packet = udp6(size, b"\x2c" + bytes((17, 0)) + word.to_bytes(2, "big") + ID)
    whole = b""
    pieces = [last for piece in fragments_v6(packet, mtu, b"none") for last in fragments_v6(piece, again, b"none")]
    for number, piece in enumerate(pieces):
        assert len(piece) <= min(mtu, again) and int.from_bytes(piece[4:6], "big") == len(piece) - 40
        assert (piece[:4], piece[6:40]) == (packet[:4], packet[6:40])
        assert (piece[40], piece[44:48]) == (17, ID)
        found = int.from_bytes(piece[42:44], "big")
        assert (found >> 3) == offset + len(whole) // 8
        assert bool(found & 1) == (more or number < len(pieces) - 1)
        whole += piece[48:]
    assert whole == packet[48:]


@given(st.binary(max_size=200), st.integers(0, 1_500))
def test_whatever_comes_is_taken_for_ipv6_too(tail: bytes, mtu: int) -> None:
    for packet in (tail, b"\x60" + tail, b"\x60\0\0\0" + max(0, len(tail) - 34).to_bytes(2, "big") + tail):
        pieces = fragments_v6(packet, mtu, ID)
        assert all(len(piece) <= mtu for piece in pieces)
        assert sum(map(len, pieces)) <= 64 * (len(packet) + 48)
        too_big(packet, mtu)


def test_what_is_no_ipv6_packet_is_not_cut() -> None:
    packet = udp6(1_000)
    assert fragments_v6(packet[:-1], 576, ID) == []
    assert fragments_v6(b"\x40" + packet[1:], 576, ID) == []
    assert fragments_v6(packet, 55, ID) == []
    assert fragments_v6(udp6(0), 576, ID) == []
    assert fragments_v6(udp6(0, b"\x2c" + bytes((17, 0, 0, 0))), 576, ID) == []  # the header of a fragment, cut off
    assert fragments_v6(udp6(1_000, b"\x2c" + bytes((17, 0, 0xFF, 0xF8)) + ID), 576, ID) == []
    assert fragments_v6(udp6(8, b"\x00" + bytes((0, 200)) + bytes(6)), 576, ID) == []  # longer than the packet
