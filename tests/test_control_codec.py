"""The CBOR subset: a naive recursive twin, RFC 8949's own examples, and everything that must be refused."""

from __future__ import annotations

import struct
from typing import Any

import cbor2
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgeagent.proto import codec
from edgeagent.proto.errors import LocalProtocolError
from edgeagent.proto.refusals import ControlDrop, ControlError

LEAVES = (
    st.none() | st.booleans() | st.integers(-(1 << 64), (1 << 64) - 1) | st.binary(max_size=40) | st.text(max_size=20)
)


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.text(st.characters(codec="ascii"), max_size=23), inner, max_size=5)
        | st.dictionaries(st.integers(0, (1 << 64) - 1), inner, max_size=5)
    )


LOOP: list[Any] = []
LOOP.append(LOOP)
VALUES = st.recursive(LEAVES, containers, max_leaves=20).filter(lambda value: depth(value) <= codec.DEPTH_MAX)


def depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max((depth(item) for item in value.values()), default=0)
    return 1 + max((depth(item) for item in value), default=0) if isinstance(value, list) else 0


class Naive:
    """The same rules as `codec.decode`, written the obvious way: recursive descent that builds the value."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.items = 0

    def whole(self) -> Any:
        value = self.item(0)
        assert not self.data
        return value

    def take(self, count: int) -> bytes:
        assert count <= len(self.data)
        taken, self.data = self.data[:count], self.data[count:]
        return taken

    def item(self, level: int) -> Any:
        self.items += 1
        assert self.items <= codec.ITEMS_MAX
        first = self.take(1)[0]
        major, info = first >> 5, first & 31
        if major == 7:
            return {20: False, 21: True, 22: None}[info]
        if info >= 24:
            argument = struct.unpack(">" + {24: "B", 25: "H", 26: "I", 27: "Q"}[info], self.take(1 << (info - 24)))[0]
            assert argument >= {24: 24, 25: 256, 26: 65536, 27: 1 << 32}[info]
        else:
            argument = info
        if major == 0:
            return argument
        if major == 1:
            return -1 - argument
        if major == 2:
            return self.take(argument)
        if major == 3:
            return self.take(argument).decode()
        assert major in (4, 5)
        assert level < codec.DEPTH_MAX
        if major == 4:
            assert argument <= codec.ARRAY_ITEMS_MAX
            return [self.item(level + 1) for _ in range(argument)]
        assert argument <= codec.MAP_ITEMS_MAX
        keys: list[bytes] = []
        found: dict[Any, Any] = {}
        for _ in range(argument):
            before = self.data
            key = self.item(level + 1)
            assert type(key) in (int, str)
            keys.append(before[: len(before) - len(self.data)])
            found[key] = self.item(level + 1)
        assert all(type(key) is int and key >= 0 for key in found) or all(
            type(key) is str and len(key.encode()) <= 23 for key in found
        )
        assert keys == sorted(set(keys))
        return found


def naive(data: bytes) -> tuple[bool, Any]:
    try:
        return True, Naive(data).whole()
    except (AssertionError, KeyError, UnicodeDecodeError, struct.error):
        return False, None


def agrees(data: bytes) -> None:
    sound, value = naive(data)
    try:
        decoded = codec.decode(data)
    except ControlError as error:
        assert error.reason is ControlDrop.NOT_CBOR
        assert not sound, str(error)
    else:
        assert sound
        assert decoded == value
        assert codec.encode(decoded) == data


@given(VALUES)
def test_roundtrip_and_twin(value: Any) -> None:
    data = codec.encode(value)
    assert codec.decode(data) == value
    agrees(data)


@given(VALUES)
def test_the_library_says_the_same(value: Any) -> None:
    data = codec.encode(value)
    assert data == cbor2.dumps(value, canonical=True)
    assert cbor2.loads(data) == value


@given(st.binary(max_size=64))
@example(b"")
@example(b"\xa2\x61a\x01\x61a\x02")
@example(b"\xa2\x61b\x01\x61a\x02")
@example(b"\xa2\x61a\x01\x01\x02")
@example(b"\xa1\x20\x01")
@example(b"\xa1\x40\x01")
@example(b"\xa1\x80\x01")
@example(b"\xa1\x78\x18" + b"a" * 24 + b"\x01")
def test_random_bytes_agree_with_the_twin(data: bytes) -> None:
    agrees(data)


@given(VALUES, st.data())
def test_mutations_agree_with_the_twin(value: Any, data: st.DataObject) -> None:
    encoded = bytearray(codec.encode(value))
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(encoded)))
        kind = data.draw(st.sampled_from(["set", "cut", "insert"]))
        if kind == "set" and position < len(encoded):
            encoded[position] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del encoded[position:]
        else:
            encoded.insert(position, data.draw(st.integers(0, 255)))
    agrees(bytes(encoded))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"\x5b" + b"\0\0\0\1\0\0\0\0", "a string of 4294967296 bytes where 0 are left"),
        (b"\x7a\xff\xff\xff\xff", "a string of 4294967295 bytes"),
        (b"\x9a\xff\xff\xff\xff", "4294967295 items"),
        (b"\xbb" + b"\xff" * 8, "18446744073709551615 items"),
        (b"\x99\x10\x01" + b"\0" * 4097, "4097 items"),
        (b"\xb9\x04\x01" + b"\0" * 5000, "1025 items"),
        (b"\x81" * 9 + b"\0", "deeper than 8"),
        (b"\x81" * 60_000 + b"\0", "deeper than 8"),
        (b"\x18\x17", "shortest form"),
        (b"\x19\x00\xff", "shortest form"),
        (b"\x1a\x00\x00\xff\xff", "shortest form"),
        (b"\x1b\x00\x00\x00\x00\xff\xff\xff\xff", "shortest form"),
        (b"\x38\x17", "shortest form"),
        (b"\x58\x01a", "shortest form"),
        (b"\x9f\xff", "indefinite"),
        (b"\x5f\xff", "indefinite"),
        (b"\xbf\xff", "indefinite"),
        (b"\x1c", "reserved"),
        (b"\xc0\x60", "a tag"),
        (b"\xf9\x00\x00", "a float"),
        (b"\xfb" + b"\0" * 8, "a float"),
        (b"\xf7", "undefined"),
        (b"\xf8\x20", "simple"),
        (b"\xff", "a float, an undefined or a simple value"),
        (b"\x61\xff", "UTF-8"),
        (b"\x63\xed\xa0\x80", "UTF-8"),
        (b"\x00\x00", "1 bytes after the end"),
        (b"", "cut short"),
        (b"\x19\x01", "cut short"),
        (b"\x82\x00", "items"),
        (b"\xa2\x01\x00\x01\x00", "the same key twice"),
        (b"\xa2\x02\x00\x01\x00", "keys out of order"),
        (b"\xa2\x01\x00\x61a\x00", "keys of two kinds"),
        (b"\xa1\xf4\x00", "a key that is neither"),
    ],
)
def test_refused_with_the_offset(data: bytes, says: str) -> None:
    with pytest.raises(ControlError, match="message: byte") as caught:
        codec.decode(data)
    assert says in str(caught.value)
    assert caught.value.reason is ControlDrop.NOT_CBOR


def test_limits_hold_exactly() -> None:
    assert codec.decode(codec.encode([0] * codec.ARRAY_ITEMS_MAX)) == [0] * codec.ARRAY_ITEMS_MAX
    big_map = dict.fromkeys(range(codec.MAP_ITEMS_MAX), 0)
    assert codec.decode(codec.encode(big_map)) == big_map
    nested: Any = 0
    for _ in range(codec.DEPTH_MAX):
        nested = [nested]
    assert codec.decode(codec.encode(nested)) == nested
    with pytest.raises(LocalProtocolError):
        codec.encode([nested])
    many = b"\x84" + (b"\x99\x10\x00" + bytes(4096)) * 4
    with pytest.raises(ControlError, match="more than 16384 items"):
        codec.decode(many)


def test_too_long_is_its_own_reason() -> None:
    with pytest.raises(ControlError) as caught:
        codec.decode(bytes(11), max_bytes=10)
    assert caught.value.reason is ControlDrop.TOO_LONG


@pytest.mark.parametrize(
    "value",
    [
        1.5,
        {1: 2, "a": 3},
        {b"k": 1},
        {-1: 0},
        {"k" * 24: 1},
        1 << 64,
        -(1 << 64) - 1,
        object(),
        {None: 1},
        "\ud800",
        LOOP,
    ],
)
def test_what_cannot_be_encoded_is_our_bug(value: Any) -> None:
    with pytest.raises(LocalProtocolError):
        codec.encode(value)


@given(st.dictionaries(st.text(st.characters(codec="ascii"), max_size=23), st.integers(0, 9), max_size=30))
def test_key_order_is_bytewise(value: dict[str, int]) -> None:
    pairs = sorted((cbor2.dumps(key), cbor2.dumps(item)) for key, item in value.items())
    head = bytes((0xA0 + len(pairs),)) if len(pairs) < 24 else bytes((0xB8, len(pairs)))
    assert codec.encode(value) == head + b"".join(key + item for key, item in pairs)
