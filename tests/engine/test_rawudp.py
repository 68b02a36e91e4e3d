"""Beside a port that somebody else holds: which datagrams are seen there, and that what is sent comes from it."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

import pytest

from edgeagent.io.rawudp import RawSocket, port_filter
from edgeagent.io.udp import Udp
from edgeagent.io.udpsocket import UdpDrop
from edgeagent.proto.endpoint import Endpoint, Transmit
from tests.netlab import until

PORT = 51820


def run(code: list[tuple[int, int, int, int]], data: bytes) -> bool:
    """Classic BPF as bpf(4) has it, as far as it is used; a load beyond the packet ends it with 0."""
    accumulator = index = at = 0
    while True:
        operation, yes, no, operand = code[at]
        at += 1
        try:
            if operation == 0xB1:
                index = (data[operand] & 15) * 4
            elif operation in (0x20, 0x28, 0x40, 0x48):
                start = operand + (index if operation & 0x40 else 0)
                form = ">I" if operation & 0x18 == 0 else ">H"
                (accumulator,) = struct.unpack_from(form, data, start)
            elif operation == 0x15:
                at += yes if accumulator == operand else no
            else:
                assert operation == 0x06
                return operand != 0
        except (struct.error, IndexError):
            return False


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
@pytest.mark.parametrize(
    ("port", "payload", "passes"),
    [
        (PORT, b"\1\0\0\0" + bytes(144), True),  # an initiation: strangers may send them
        (PORT, b"\2\0\0\0" + bytes(88), False),
        (PORT, b"\3\0\0\0" + bytes(60), False),
        (PORT, b"\4\0\0\0" + bytes(1400), False),
        (PORT, b"\4\0\0\1" + bytes(28), True),  # a reserved byte: not WireGuard's
        (PORT, b"\5\0\0\0" + bytes(28), True),
        (PORT, b"disco and the like", True),
        (PORT, b"", False),
        (PORT, b"abc", False),
        (PORT + 1, b"disco and the like", False),
    ],
)
def test_the_filter(family: int, port: int, payload: bytes, passes: bool) -> None:
    datagram = struct.pack(">HHHH", 9, port, 8 + len(payload), 0) + payload
    for head in (b"\x45" + bytes(19), b"\x48" + bytes(31)) if family == socket.AF_INET else (b"",):
        assert run(port_filter(family, PORT), head + datagram) is passes


@pytest.fixture
def beside() -> Iterator[tuple[socket.socket, Udp]]:
    """(a socket that has the port, what is beside it)"""
    if os.geteuid():
        pytest.skip("raw sockets want root")
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as owner:
        owner.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        owner.bind(("::", 0))
        owner.settimeout(2.0)
        udp = Udp(kind=RawSocket)
        udp.open(owner.getsockname()[1])
        yield owner, udp
        udp.close()


def heard(udp: Udp, count: int) -> list[tuple[bytes, Endpoint, int]]:
    batch: list[tuple[bytes, Endpoint, int]] = []

    def enough() -> bool:
        for fd in udp.fds:
            batch.extend(udp.receive(fd, 16))
        return len(batch) >= count

    until(enough, 5.0, f"{count} datagrams")
    return batch


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_both_hear_and_one_is_spared(beside: tuple[socket.socket, Udp], host: str) -> None:
    owner, udp = beside
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as far:
        far.bind((host, 0))
        for data in (b"\4\0\0\0" + bytes(40), b"disco", b"\2\0\0\0" + bytes(88), b"\1\0\0\0" + bytes(144)):
            far.sendto(data, (host, owner.getsockname()[1]))
        batch = heard(udp, 2)
        assert [data for data, _, _ in batch] == [b"disco", b"\1\0\0\0" + bytes(144)]
        source = batch[0][1]
        assert source.addr[:2] == far.getsockname()[:2]
        assert source.local is not None and source.local[0] == socket.inet_pton(family, host)
        assert len(owner.recv(2048)) == 44  # and the owner got it all
        far.settimeout(2.0)
        assert udp.send([Transmit(source, [b"answer", b"more"])])
        for said in (b"answer", b"more"):
            assert far.recvfrom(100)[:1] == (said,)
        udp.send([Transmit(source.unpinned(), [b"x" * 1_200], ttl=7, fragment=True)])
        data, address = far.recvfrom(2048)
        assert (len(data), address[1]) == (1_200, owner.getsockname()[1])


def test_what_contradicts_itself_is_counted(beside: tuple[socket.socket, Udp]) -> None:
    """As only a raw socket can send it: a length beyond the packet, one shorter than the header, no source port."""
    owner, udp = beside
    port = owner.getsockname()[1]
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP) as raw:
        for source, length in ((9, 60), (9, 7), (0, 16), (9, 16)):
            raw.sendto(struct.pack(">HHHH", source, port, length, 0) + b"disco...", ("127.0.0.1", 0))
        assert [data for data, _, _ in heard(udp, 1)] == [b"disco..."]
    assert udp.drops[UdpDrop.MALFORMED] == 3


def test_what_is_too_long_is_told(beside: tuple[socket.socket, Udp]) -> None:
    _, udp = beside
    there = Endpoint(("127.0.0.1", 9))
    udp.send([Transmit(there, [bytes(66_000)])])
    assert udp.drops[UdpDrop.TOO_LONG] == 1
    assert udp.drain_too_long() == [(there, 66_000)]
