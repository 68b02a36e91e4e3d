"""NAT-PMP and PCP on the wire: examples written by hand from the RFCs, and whatever else may come."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeagent.proto import natpmp, pcp
from edgeagent.proto.errors import LocalProtocolError
from edgeagent.proto.natpmp import PortMapDrop, PortMapError

V4 = bytes((192, 168, 1, 7))
V6 = bytes.fromhex("20010db8000000000000000000000007")
OUTSIDE = bytes((203, 0, 113, 9))
NONCE = bytes(range(12))

NATPMP_ADDRESS = bytes.fromhex("0080 0000 00000064 cb007109")
NATPMP_MAP = bytes.fromhex("0081 0000 00000064 a2b9 1234 00001c20")
PCP_MAP = bytes.fromhex(
    "02 81 00 00 00001c20 00000064 000000000000000000000000"
    "000102030405060708090a0b 11 000000 a2b9 1234 00000000000000000000ffffcb007109"
)
PCP_ANNOUNCE = bytes.fromhex("02 80 00 00 00000000 00000001 000000000000000000000000")
SAMPLES = [NATPMP_ADDRESS, NATPMP_MAP, PCP_MAP, PCP_ANNOUNCE]


def change_a_byte(sample: bytes, at: int, byte: int) -> bytes:
    at %= len(sample)
    return sample[:at] + bytes((byte,)) + sample[at + 1 :]


def test_natpmp_requests() -> None:
    assert natpmp.write_address_request() == b"\0\0"
    assert natpmp.write_map_request(41_657, 0x1234, 7_200) == bytes.fromhex("0001 0000 a2b9 1234 00001c20")
    for words in ((0, 0, 0), (65_536, 0, 0), (1, 65_536, 0), (1, 0, 1 << 32), (1, -1, 0)):
        with pytest.raises(LocalProtocolError):
            natpmp.write_map_request(*words)


def test_natpmp_answers() -> None:
    address = natpmp.read(NATPMP_ADDRESS)
    assert isinstance(address, natpmp.AddressAnswer)
    assert (address.address, address.epoch_s) == (OUTSIDE, 100)
    made = natpmp.read(NATPMP_MAP)
    assert isinstance(made, natpmp.MapAnswer)
    assert (made.internal_port, made.external_port, made.lifetime_s, made.epoch_s) == (41_657, 0x1234, 7_200, 100)


@pytest.mark.parametrize("size", [8, 12, 16])
def test_natpmp_refusals_come_in_any_size(size: int) -> None:
    refusal = natpmp.read(bytes.fromhex("0081 0003 00000064 a2b9 1234 00001c20")[:size])
    assert isinstance(refusal, natpmp.Refusal)
    assert (refusal.opcode, refusal.result, refusal.epoch_s) == (natpmp.MAP_UDP, 3, 100)


def test_pcp_requests() -> None:
    asked = pcp.write_map_request(V4, NONCE, 41_657, (OUTSIDE, 0x1234), 7_200)
    assert asked == bytes.fromhex(
        "02 01 0000 00001c20 00000000000000000000ffffc0a80107"
        "000102030405060708090a0b 11 000000 a2b9 1234 00000000000000000000ffffcb007109"
    )
    # RFC 6887, section 5: no wish in the family asked for is all zeros of that family
    assert pcp.write_map_request(V4, NONCE, 1, None, 0).endswith(bytes(2 + 10) + b"\xff\xff" + bytes(4))
    assert pcp.write_map_request(V6, NONCE, 1, None, 0).endswith(bytes(2 + 16))
    assert pcp.write_announce_request(V6) == bytes.fromhex("02 00 0000 00000000") + V6
    with pytest.raises(LocalProtocolError):
        pcp.write_map_request(V4[:3], NONCE, 1, None, 0)
    with pytest.raises(LocalProtocolError):
        pcp.write_map_request(V4, NONCE[:11], 1, None, 0)


def test_pcp_answers() -> None:
    made = pcp.read(PCP_MAP)
    assert isinstance(made, pcp.MapAnswer)
    assert (made.result, made.lifetime_s, made.epoch_s) == (pcp.SUCCESS, 7_200, 100)
    assert (made.address, made.external_port) == (OUTSIDE, 0x1234)
    assert made.answers(NONCE, 41_657)
    assert not made.answers(NONCE, 41_658)
    assert not made.answers(NONCE[::-1], 41_657)
    announced = pcp.read(PCP_ANNOUNCE)
    assert (announced.opcode, announced.result, announced.epoch_s) == (pcp.ANNOUNCE, pcp.SUCCESS, 1)
    assert not isinstance(announced, pcp.MapAnswer)


def test_a_pcp_answer_about_tcp_is_not_ours() -> None:
    made = pcp.read(PCP_MAP[:36] + b"\x06" + PCP_MAP[37:])
    assert isinstance(made, pcp.MapAnswer) and not made.answers(NONCE, 41_657)


def test_pcp_options_are_walked_and_not_read() -> None:
    option = bytes.fromhex("ff00 0003 01020300")
    assert isinstance(pcp.read(PCP_MAP + 16 * option), pcp.MapAnswer)
    for wrong in (17 * option, bytes.fromhex("ff00 0005 01020304"), bytes.fromhex("ff00 ffff")):
        with pytest.raises(PortMapError) as raised:
            pcp.read(PCP_MAP + wrong)
        assert raised.value.reason is PortMapDrop.MALFORMED


def test_a_pcp_server_of_another_version_says_only_that() -> None:
    refused = pcp.read(bytes.fromhex("01 81 00 01 00000000 00000000") + bytes(12))
    assert refused.result == pcp.UNSUPPORTED_VERSION
    with pytest.raises(PortMapError):
        pcp.read(bytes.fromhex("01 81 00 00 00000000 00000000") + bytes(12))


@given(
    st.binary(max_size=1_200) | st.builds(change_a_byte, st.sampled_from(SAMPLES), st.integers(0), st.integers(0, 255))
)
def test_whatever_comes_is_read_or_refused(datagram: bytes) -> None:
    for read in (natpmp.read, pcp.read):
        try:
            read(datagram)
        except PortMapError as error:
            assert error.reason is PortMapDrop.MALFORMED


@pytest.mark.parametrize("sample", SAMPLES)
def test_an_answer_cut_anywhere_is_refused(sample: bytes) -> None:
    read = natpmp.read if sample[0] == 0 else pcp.read
    for size in range(len(sample)):
        with pytest.raises(PortMapError):
            read(sample[:size])


@pytest.mark.parametrize(
    ("steps", "lost"),
    [
        ([(0, 1_000), (100, 1_100)], False),
        ([(0, 1_000), (100, 1_093)], False),  # slow, within 1/16 and two seconds
        ([(0, 1_000), (0, 999)], False),  # two answers out of order
        ([(0, 1_000), (100, 0)], True),
        ([(0, 1_000), (100, 80)], True),
        ([(0, 1_000), (0.5, 997)], True),
        ([(0, 5)], False),  # the first says nothing
    ],
)
def test_epochs_tell_a_restart(steps: list[tuple[float, int]], lost: bool) -> None:
    for epoch in (natpmp.Epoch(), pcp.Epoch()):
        said = [epoch.lost(now, epoch_s) for now, epoch_s in steps]
        assert said == [False] * (len(steps) - 1) + [lost]


def test_a_pcp_epoch_that_runs_ahead_is_another_one() -> None:
    epoch = pcp.Epoch()
    assert not epoch.lost(0.0, 10)
    assert epoch.lost(100.0, 1_000)
    assert not epoch.lost(200.0, 1_100)
