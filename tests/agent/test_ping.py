"""The echo requests of `edgeagent ping`."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from edgeagent.io.ping import checksum


def test_checksum_of_a_known_packet() -> None:
    # ICMP echo request, identifier 1, sequence 1, "abcdefghijklmnopqrstuvwabcdefghi" (Windows' ping)
    packet = bytes.fromhex("0800000000010001") + b"abcdefghijklmnopqrstuvwabcdefghi"
    assert checksum(packet) == 0x4D5A


@given(data=st.binary(min_size=4, max_size=200))
def test_a_packet_with_its_checksum_sums_to_zero(data: bytes) -> None:
    data = data + bytes(len(data) % 2)
    summed = data[:2] + struct.pack(">H", checksum(data[:2] + b"\0\0" + data[4:])) + data[4:]
    assert checksum(summed) == 0
