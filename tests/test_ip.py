"""Addresses as text and bytes, beside the standard library's own module."""

from __future__ import annotations

import socket
from ipaddress import IPv6Address, ip_address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgeagent.proto.ip import ip_to_bytes, ip_to_text

ADDRESSES = st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16)
SPARSE = st.lists(st.sampled_from([b"\0\0", b"\0\0", b"\0\0", b"\0\x01", b"\xab\xcd"]), min_size=8, max_size=8).map(
    b"".join
)
TEXTS = st.text(st.sampled_from("0123456789abcdefABCDEF:.%gx -"), max_size=45) | SPARSE.map(
    lambda address: str(IPv6Address(address).exploded)
)


@given(ADDRESSES | SPARSE)
@example(bytes(16))
@example(bytes(15) + b"\x01")
@example(bytes(10) + b"\xff\xff\xc0\0\x02\x01")
def test_there_and_back(address: bytes) -> None:
    text = ip_to_text(address)
    assert ip_to_bytes(text) == address and ip_to_bytes(text.upper()) == address
    if len(address) == 4 or IPv6Address(address).ipv4_mapped is None:  # which later Pythons write with dots
        assert text == str(ip_address(address))


@given(TEXTS)
@example("::")
@example("1::")
@example("::1")
@example(":::")
@example("1:::2")
@example("1::2::3")
@example("1:2:3:4:5:6:7:8")
@example("1:2:3:4:5:6:7::")
@example("::2:3:4:5:6:7:8")
@example("1:2:3:4::5:6:7:8")
@example("1:2:3:4:5:6:7")
@example("1:2:3:4:5:6:7:8:9")
@example(":1:2:3:4:5:6:7")
@example("1:2:3:4:5:6:7:")
@example("::ffff:192.0.2.1")
@example("1:2:3:4:5:6:192.0.2.1")
@example("1:2:3:4:5:6:7:192.0.2.1")
@example("::192.0.2.256")
@example("192.0.2.1::")
@example(".:")
@example("::12345")
@example("01.2.3.4")
@example("1.2.3")
@example("1.2.3.4.5")
@example("256.1.1.1")
@example("1.2.3.\u0664")
@example("\uff11::")
@example("1.2.3.4\n")
def test_every_text_is_read_as_the_standard_library_does(text: str) -> None:
    try:
        expected = ip_address(text).packed if "%" not in text else None
    except ValueError:
        expected = None
    try:
        assert ip_to_bytes(text) == expected
    except ValueError:
        assert expected is None
    else:
        family = socket.AF_INET6 if ":" in text else socket.AF_INET
        assert socket.inet_pton(family, text) == expected


@pytest.mark.parametrize("size", [0, 3, 5, 15, 17])
def test_other_sizes_are_none(size: int) -> None:
    with pytest.raises(ValueError, match="4 or 16"):
        ip_to_text(bytes(size))
