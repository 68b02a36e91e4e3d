"""STUN: the vectors of RFC 5769, what we write read back, and whatever else may come."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeagent.proto import stun
from edgeagent.proto.errors import LocalProtocolError
from edgeagent.proto.stun import StunDrop, StunError

TRANSACTION = bytes.fromhex("b7e7a701bc34d686fa87dfae")
V4, V6 = bytes((192, 0, 2, 1)), bytes.fromhex("20010db8123456780011223344556677")
# RFC 5769, sections 2.1 to 2.3
REQUEST = bytes.fromhex(
    "000100582112a442b7e7a701bc34d686fa87dfae802200105354554e207465737420636c69656e74002400046e0001ff80290008932ff9b1"
    "51263b36000600096576746a3a68367659202020000800149aeaa70cbfd8cb56781ef2b5b2d3f249c1b571a280280004e57a3bcf"
)
ANSWER_V4 = bytes.fromhex(
    "0101003c2112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220002000080001a147e112a643000800142b91f599"
    "fd9e90c38c7489f92af9ba53f06be7d780280004c07d4c96"
)
ANSWER_V6 = bytes.fromhex(
    "010100482112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220002000140002a1470113a9faa5d3f179bc25f4b5"
    "bed2b9d900080014a382954e4be67bf11784c97c8292c275bfe3ed4180280004c8fb0b4c"
)

addresses = st.one_of(st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16))
ports = st.integers(0, 65_535)
transactions = st.binary(min_size=12, max_size=12)


def answer(*attributes: tuple[int, bytes], kind: int = stun.BINDING_SUCCESS, transaction: bytes = TRANSACTION) -> bytes:
    return stun.write(kind, transaction, list(attributes), fingerprint=True)


def refused(drop: StunDrop, data: bytes) -> str:
    with pytest.raises(StunError) as caught:
        stun.read_binding(data, TRANSACTION)
    assert caught.value.reason is drop
    return str(caught.value)


@pytest.mark.parametrize(("vector", "kind"), [(REQUEST, 0x0001), (ANSWER_V4, 0x0101), (ANSWER_V6, 0x0101)])
def test_vectors_of_rfc_5769(vector: bytes, kind: int) -> None:
    message = stun.parse(vector)
    assert (message.kind, message.transaction, message.fingerprinted) == (kind, TRANSACTION, True)
    for address in (V4, V6):
        name, value = stun.xor_mapped_address(TRANSACTION, (address, 32_853))
        if len(value) == len(message.attributes.get(name, b"")):
            assert value == message.attributes[name]
    for i in range(len(vector) - 8):  # one that is flipped into another attribute is no fingerprint
        flipped = bytearray(vector)
        flipped[i] ^= 0x10
        with pytest.raises(StunError):
            stun.parse(bytes(flipped))


@given(transactions, addresses, ports.filter(bool), addresses, ports)
def test_a_binding_comes_back(transaction: bytes, mapped: bytes, port: int, other: bytes, other_port: int) -> None:
    data = answer(
        stun.plain_address(stun.OTHER_ADDRESS, (other, other_port)),
        stun.xor_mapped_address(transaction, (mapped, port)),
        transaction=transaction,
    )
    binding = stun.read_binding(data, transaction)
    assert (binding.mapped, binding.other, binding.origin) == ((mapped, port), (other, other_port), None)


def test_nothing_was_ever_sent_from_port_0() -> None:
    data = answer(stun.xor_mapped_address(TRANSACTION, (V4, 0)))
    with pytest.raises(StunError) as raised:
        stun.read_binding(data, TRANSACTION)
    assert raised.value.reason is StunDrop.MALFORMED


@given(transactions, st.integers(0, 1_200), st.sampled_from((0, stun.CHANGE_PORT, stun.CHANGE_ADDRESS)))
def test_a_request_has_its_size_and_says_its_change(transaction: bytes, size: int, change: int) -> None:
    data = stun.write_request(transaction, size=size, change=change)
    assert len(data) >= size or len(data) >= 28
    assert stun.looks_like_stun(data)
    message = stun.parse(data)
    assert message.fingerprinted and stun.read_change(message) == change
    assert stun.unknown_attributes(message, (stun.CHANGE_REQUEST,)) == []


def test_our_request_has_room_for_the_fullest_answer() -> None:
    full = answer(
        stun.xor_mapped_address(TRANSACTION, (V6, 1)),
        stun.plain_address(stun.OTHER_ADDRESS, (V6, 2)),
        stun.plain_address(stun.RESPONSE_ORIGIN, (V6, 3)),
    )
    assert len(full) == stun.REQUEST_BYTES == len(stun.write_request(TRANSACTION))


@given(st.binary(max_size=200))
def test_whatever_comes_is_read_or_refused(data: bytes) -> None:
    for message in (data, REQUEST[:20] + data, REQUEST[:2] + len(data).to_bytes(2, "big") + REQUEST[4:20] + data):
        try:
            stun.read_change(stun.parse(message))
        except StunError as error:
            assert isinstance(error.reason, StunDrop)
        try:
            stun.read_binding(message, TRANSACTION)
        except StunError as error:
            assert isinstance(error.reason, StunDrop)


@given(st.sampled_from((ANSWER_V4, ANSWER_V6, REQUEST)), st.data())
def test_cut_or_lengthened_is_refused(vector: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(vector) - 1))
    for message in (vector[:at], vector + bytes(4), vector[:at] + b"\0\0\0\0" + vector[at:]):
        with pytest.raises(StunError):
            stun.parse(message)


def test_named_refusals() -> None:
    mapped = stun.xor_mapped_address(TRANSACTION, (V4, 1))
    refused(StunDrop.TRANSACTION, answer(mapped, transaction=bytes(12)))
    refused(StunDrop.UNEXPECTED, answer(mapped, kind=stun.BINDING_REQUEST))
    refused(StunDrop.MALFORMED, answer())
    refused(StunDrop.MALFORMED, answer((stun.XOR_MAPPED_ADDRESS, b"\0\1\0")))
    refused(StunDrop.MALFORMED, answer((stun.XOR_MAPPED_ADDRESS, b"\0\2\0\0" + V4)))
    refused(StunDrop.MALFORMED, answer((stun.XOR_MAPPED_ADDRESS, b"\0\7\0\0" + V4)))
    assert "0x7ffe" in refused(StunDrop.REFUSED, answer(mapped, (0x7FFE, b"")))
    unknown = answer(*stun.unknown_attributes_error([1, 2]), kind=stun.BINDING_ERROR)
    assert "420" in refused(StunDrop.REFUSED, unknown)
    assert "error 0" in refused(StunDrop.REFUSED, answer((stun.ERROR_CODE, b"\0\0\0\xff"), kind=stun.BINDING_ERROR))
    refused(StunDrop.MALFORMED, bytes(19))
    refused(StunDrop.MALFORMED, answer(*[(stun.FILLER, b"")] * (stun.ATTRIBUTES_MAX + 1)))
    whole = answer(mapped)
    refused(StunDrop.FINGERPRINT, whole[:-1] + bytes((whole[-1] ^ 1,)))
    message = stun.parse(answer((stun.CHANGE_REQUEST, b"\0\0")))
    with pytest.raises(StunError):
        stun.read_change(message)
    with pytest.raises(LocalProtocolError):
        stun.write_request(b"short")


def test_what_servers_send_for_older_clients_is_passed_over() -> None:
    """coturn answers with MAPPED-ADDRESS beside the other one."""
    old = [(name, b"\0\1\0\7" + V4) for name in (stun.MAPPED_ADDRESS, stun.SOURCE_ADDRESS, stun.CHANGED_ADDRESS)]
    binding = stun.read_binding(answer(*old, stun.xor_mapped_address(TRANSACTION, (V4, 1))), TRANSACTION)
    assert binding.mapped == (V4, 1)


def test_the_first_of_two_counts() -> None:
    first, second = (stun.xor_mapped_address(TRANSACTION, (V4, port)) for port in (1, 2))
    assert stun.read_binding(answer(first, second), TRANSACTION).mapped == (V4, 1)
