"""Packets for a peer whose path takes less than the TUN: what TCP is told, what senders are told, what is cut up."""

from __future__ import annotations

import pytest

from edgeagent.proto.constants import MTU_DEFAULT, MTU_MAX
from edgeagent.proto.device import Device
from edgeagent.proto.narrow import ANSWERS_MAX, ANSWERS_PER_S
from tests.test_pmtu_packets import MSS, mss_of, tcp
from tests.wg_pair import A_IP, A_IP6, B_IP, B_IP6, TRANSPORT, Pair, drops, established, ipv4, ipv6

ACK = 0x10
NARROW = 900


@pytest.fixture
def pair() -> Pair:
    """The way from `a` to `b` is narrow; `b` does not know."""
    made = established()
    made.to_b.set_path_mtu(NARROW, fragment=False)
    return made


def may_not_be_cut(packet: bytes) -> bytes:
    return packet[:6] + b"\x40" + packet[7:10] + b"\0\0" + packet[12:]


def arriving(pair: Pair, packets: list[bytes]) -> list[bytes]:
    """What comes out at `b` of what goes in at `a`."""
    assert pair.a.handle_packets(pair.now, packets) == []
    pair.deliver()
    return pair.b.drain_packets()


def joined(pieces: list[bytes]) -> bytes:
    """The payload of fragments that came in order."""
    return b"".join(piece[48:] if piece[0] >> 4 == 6 else piece[20:] for piece in pieces)


def test_what_fits_goes_as_it_is(pair: Pair) -> None:
    packets = [ipv4(A_IP, B_IP, bytes(880)), ipv6(A_IP6, B_IP6, bytes(860)), ipv4(A_IP, B_IP), tcp(MSS, flags=ACK)[0]]
    assert arriving(pair, packets) == packets
    assert pair.a.drain_packets() == []


def test_ipv4_without_df_goes_in_fragments(pair: Pair) -> None:
    packet = ipv4(A_IP, B_IP, bytes(at % 251 for at in range(1_400)))
    pieces = arriving(pair, [packet, ipv4(A_IP, B_IP)])
    assert [len(piece) for piece in pieces] == [20 + 880, 20 + 520, 25]
    assert joined(pieces[:2]) == packet[20:]
    assert drops(pair.a) == {} and pair.a.drain_packets() == []


def test_ipv4_with_df_is_answered(pair: Pair) -> None:
    packet = may_not_be_cut(ipv4(A_IP, B_IP, bytes(1_400)))
    assert arriving(pair, [packet]) == []
    (answer,) = pair.a.drain_packets()
    assert (answer[12:16], answer[16:20], answer[20:22]) == (B_IP, A_IP, b"\x03\x04")
    assert int.from_bytes(answer[24:28], "big") == NARROW
    assert drops(pair.a) == {"packet-too-big": 1}


def test_ipv6_above_1280_is_answered_with_what_a_host_heeds(pair: Pair) -> None:
    assert arriving(pair, [ipv6(A_IP6, B_IP6, bytes(1_241))]) == []
    (answer,) = pair.a.drain_packets()
    assert (answer[40], int.from_bytes(answer[44:48], "big")) == (2, 1_280)
    assert drops(pair.a) == {"packet-too-big": 1}


def test_ipv6_up_to_1280_goes_in_fragments_for_no_host_sends_less(pair: Pair) -> None:
    packet = ipv6(A_IP6, B_IP6, bytes(at % 251 for at in range(1_240)))
    first, second = arriving(pair, [packet]), arriving(pair, [packet])
    for pieces in (first, second):
        assert len(pieces) == 2 and all(len(piece) <= NARROW for piece in pieces)
        assert joined(pieces) == packet[40:]
    assert first[0][44:48] != second[0][44:48]
    assert pair.a.drain_packets() == [] and drops(pair.a) == {}


def test_answers_are_few_and_all_else_is_counted(pair: Pair) -> None:
    packet = may_not_be_cut(ipv4(A_IP, B_IP, bytes(1_400)))
    pair.a.handle_packets(pair.now, [packet] * 1_000)
    assert len(pair.a.drain_packets()) == ANSWERS_MAX
    pair.now += 1.0
    pair.a.handle_packets(pair.now, [packet] * 1_000)
    assert len(pair.a.drain_packets()) == ANSWERS_PER_S
    assert drops(pair.a) == {"packet-too-big": 2_000}


def test_no_answer_to_what_gets_none(pair: Pair) -> None:
    error = bytearray(may_not_be_cut(ipv4(A_IP, B_IP, b"\x03" + bytes(1_400))))
    error[9] = 1  # an ICMP error
    later = bytearray(may_not_be_cut(ipv4(A_IP, B_IP, bytes(1_400))))
    later[7] = 1  # a later fragment
    malformed = ipv4(A_IP, B_IP, bytes(1_400))[:-1]
    assert arriving(pair, [bytes(error), bytes(later), malformed]) == []
    assert pair.a.drain_packets() == [] and drops(pair.a) == {"packet-too-big": 3}


def mesh(packet: bytes, source: bytes, destination: bytes) -> bytes:
    """The same between other addresses; the checksums are wrong then, as they were right before."""
    if packet[0] >> 4 == 4:
        return packet[:12] + source + destination + packet[20:]
    return packet[:8] + source + destination + packet[40:]


@pytest.mark.parametrize("version", [4, 6])
def test_the_mss_is_lowered_in_both_directions(pair: Pair, version: int) -> None:
    ours, theirs = (A_IP, B_IP) if version == 4 else (A_IP6, B_IP6)
    headers = 40 if version == 4 else 60
    syn = tcp(MSS, ipv6=version == 6)[0]
    (out,) = arriving(pair, [mesh(syn, ours, theirs)])
    assert mss_of(out) == NARROW - headers
    data = tcp(MSS, flags=ACK, ipv6=version == 6)[0]
    pair.b.handle_packets(pair.now, [mesh(syn, theirs, ours), mesh(data, theirs, ours), ipv4(B_IP, A_IP)])
    pair.deliver()
    back, kept, other = pair.a.drain_packets()
    assert mss_of(back) == NARROW - headers
    assert (kept, other) == (mesh(data, theirs, ours), ipv4(B_IP, A_IP))


@pytest.mark.parametrize("form", ["v4 options", "v6 extension", "short"])
def test_a_syn_of_another_form(pair: Pair, form: str) -> None:
    if form == "v4 options":
        plain = mesh(tcp(MSS)[0], A_IP, B_IP)
        syn = (
            b"\x46" + plain[1:2] + (len(plain) + 4).to_bytes(2, "big") + plain[4:20] + b"\x01\x01\x01\x00" + plain[20:]
        )
    elif form == "v6 extension":
        syn = mesh(tcp(MSS, ipv6=True, extensions=b"\x3c" + bytes((6, 0)) + bytes(6))[0], A_IP6, B_IP6)
    else:
        syn = mesh(tcp(MSS)[0], A_IP, B_IP)[:38]
        syn = syn[:2] + (38).to_bytes(2, "big") + syn[4:]
    (out,) = arriving(pair, [syn])
    if form == "short":
        assert out == syn
    else:
        assert mss_of(out) == NARROW - (40 if form == "v4 options" else 60)


def test_other_peers_are_not_concerned(pair: Pair) -> None:
    syn = mesh(tcp(MSS)[0], B_IP, A_IP)
    pair.b.handle_packets(pair.now, [syn, may_not_be_cut(ipv4(B_IP, A_IP, bytes(1_400)))])
    pair.to_b.set_path_mtu(MTU_MAX, fragment=True)
    pair.deliver()
    assert len(pair.a.drain_packets()) == 2
    assert pair.b.drain_packets() == [] and drops(pair.b) == {}


def test_padding_stays_within_the_path(pair: Pair) -> None:
    for size in range(NARROW - 20, NARROW + 1):
        pair.a.handle_packets(pair.now, [ipv4(A_IP, B_IP, bytes(size - 20))])
        (datagram,) = pair.collect()
        assert len(datagram) == 32 + min(-(-size // 16) * 16, NARROW)


def test_the_tun_is_a_limit_too(pair: Pair) -> None:
    assert pair.to_b.mtu == NARROW
    pair.to_b.set_path_mtu(8_000, fragment=False)
    assert pair.to_b.mtu == MTU_DEFAULT
    pair.a.mtu = 1_300
    assert pair.to_b.mtu == 1_300


def transmits(dev: Device) -> list[bool]:
    return [transmit.fragment for transmit in dev.drain_transmits() if transmit.datagrams[0][0] == TRANSPORT]


def test_while_nothing_is_known_of_the_path_datagrams_may_be_cut_up() -> None:
    pair = established()
    pair.a_sends()
    assert transmits(pair.a) == [True]
    pair.to_b.set_path_mtu(1_280, fragment=True)
    pair.a_sends()
    assert transmits(pair.a) == [True]
    pair.to_b.set_path_mtu(1_280, fragment=False)
    pair.a_sends()
    assert transmits(pair.a) == [False]


def test_what_waited_for_keys_is_fitted_when_it_goes() -> None:
    pair = Pair()
    packet = may_not_be_cut(ipv4(A_IP, B_IP, bytes(1_300)))
    pair.a.handle_packets(pair.now, [packet])
    pair.to_b.set_path_mtu(NARROW, fragment=False)
    pair.deliver()
    assert len(pair.a.drain_packets()) == 1 and pair.b.drain_packets() == []
    # All that waited was dropped: the keys were confirmed all the same
    assert pair.to_a.keypairs.current is not None
    pair.b_sends()
    pair.deliver()
    assert len(pair.a.drain_packets()) == 1
