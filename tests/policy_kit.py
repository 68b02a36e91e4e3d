"""Packets, and peers with records, for tests of the policy."""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import Any

ME4, ME6 = bytes((100, 64, 0, 1)), bytes.fromhex("fd00") + bytes(13) + b"\1"
PEER4, PEER6 = bytes((100, 64, 0, 2)), bytes.fromhex("fd00") + bytes(13) + b"\2"
LAN_HOST = bytes((192, 168, 7, 9))


class FakePeer:
    """As much of a Peer as a firewall looks at."""

    def __init__(self, device: str, addresses: list[bytes], tags: list[str], user: str = "") -> None:
        self.public_key = device.encode().ljust(32)
        self.record: Any = SimpleNamespace(device=device, addresses=addresses, tags=tags, user=user, groups=[])


def ipv4(
    source: bytes, target: bytes, protocol: int, body: bytes, *, identification: int = 0, fragment: int = 0
) -> bytes:
    """Without a checksum: nobody here looks at it."""
    return (
        struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(body), identification, fragment, 64, protocol, 0)
        + source
        + target
        + body
    )


def ipv6(source: bytes, target: bytes, protocol: int, body: bytes) -> bytes:
    return struct.pack(">IHBB", 6 << 28, len(body), protocol, 64) + source + target + body


def ip(source: bytes, target: bytes, protocol: int, body: bytes) -> bytes:
    return (ipv4 if len(source) == 4 else ipv6)(source, target, protocol, body)


def tcp(source: bytes, target: bytes, source_port: int, port: int, flags: int) -> bytes:
    return ip(source, target, 6, struct.pack(">HHIIBBHHH", source_port, port, 1, 1, 0x50, flags, 9, 0, 0))


def udp(source: bytes, target: bytes, source_port: int, port: int, data: bytes = b"data") -> bytes:
    return ip(source, target, 17, struct.pack(">HHHH", source_port, port, 8 + len(data), 0) + data)


def echo(source: bytes, target: bytes, identifier: int, *, answer: bool = False) -> bytes:
    six = len(source) == 16
    kind = (129 if answer else 128) if six else (0 if answer else 8)
    return ip(source, target, 58 if six else 1, struct.pack(">BBHHH", kind, 0, 0, identifier, 1))


def error_about(packet: bytes, source: bytes) -> bytes:
    """To whom `packet` came from."""
    six = len(source) == 16
    target = (packet[8:24] if six else packet[12:16]).ljust(len(source), b"\1")
    kind = struct.pack(">BBHI", 1 if six else 3, 3, 0, 0)
    return ip(source, target, 58 if six else 1, kind + packet)
