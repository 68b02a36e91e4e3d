"""IP addresses as text and as bytes. The standard library's module does it too, and more, for 0.2 MiB."""

from __future__ import annotations

import re

_BYTE = re.compile("0|[1-9][0-9]{0,2}")
_GROUP = re.compile("[0-9A-Fa-f]{1,4}")
_GROUPS = 8  # of an IPv6 address, 16 bits each


def ip_to_text(address: bytes) -> str:
    """4 or 16 B as RFC 5952 writes them."""
    if len(address) == 4:
        return "{}.{}.{}.{}".format(*address)
    if len(address) != 2 * _GROUPS:
        raise ValueError("an address has 4 or 16 bytes")
    groups = [f"{address[at] << 8 | address[at + 1]:x}" for at in range(0, 2 * _GROUPS, 2)]
    at, first, longest = 0, 0, 1  # the longest run of zeros, the first of several; one alone is none
    while at < _GROUPS:
        run = 0
        while at + run < _GROUPS and groups[at + run] == "0":
            run += 1
        if run > longest:
            first, longest = at, run
        at += run + 1
    if longest == 1:
        return ":".join(groups)
    return f"{':'.join(groups[:first])}::{':'.join(groups[first + longest :])}"


def ip_to_bytes(text: str) -> bytes:
    """4 or 16 B. Raises ValueError for what is no address, a scope (%eth0) among it."""
    packed = _to_ipv6(text) if ":" in text else _to_ipv4(text)
    if packed is None:
        raise ValueError("no IP address")
    return packed


def holds(prefix: tuple[bytes, int], address: bytes) -> bool:
    """Whether an address is in a prefix, which has no bits behind its length."""
    network, length = prefix
    if len(network) != len(address):
        return False
    behind = 8 * len(address) - length
    return int.from_bytes(address, "big") >> behind == int.from_bytes(network, "big") >> behind


def _to_ipv4(text: str) -> bytes | None:
    parts = text.split(".")
    if len(parts) != 4 or not all(_BYTE.fullmatch(part) for part in parts):
        return None
    numbers = [int(part) for part in parts]
    return bytes(numbers) if max(numbers) < 256 else None


def _to_ipv6(text: str) -> bytes | None:
    """RFC 4291, section 2.2."""
    if "." in text:
        text, _, last = text.rpartition(":")
        tail = _to_ipv4(last)
        if tail is None:
            return None
        text += f":{tail[:2].hex()}:{tail[2:].hex()}"
    left, double, right = text.partition("::")
    before, after = left.split(":") if left else [], right.split(":") if right else []
    missing = _GROUPS - len(before) - len(after)
    if (missing < 1) if double else missing:
        return None
    groups = [*before, *["0"] * missing, *after]
    if not all(_GROUP.fullmatch(group) for group in groups):
        return None
    return b"".join(int(group, 16).to_bytes(2, "big") for group in groups)
