"""ICMP echo through the tunnel, for `edgeagent ping` (RFC 792, RFC 4443)."""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import time

TYPE_CHECKING = False  # what the typing module would say, and 5 ms
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_ECHO = struct.Struct(">BBHHH")  # type, code, checksum, identifier, sequence
_PAYLOAD_SIZE = 48
_IP_PKTINFO, _IPV6_RECVPKTINFO, _IPV6_PKTINFO = 8, 49, 50
_INDEX = struct.Struct("=I")  # of the interface: first of in_pktinfo, last of in6_pktinfo
_ANCILLARY_BYTES = 256
_REQUEST, _REPLY = (8, 128), (0, 129)  # ICMP, ICMPv6


class Rhythm:
    """How many requests, how far apart, and how long to wait for each answer; seconds."""

    __slots__ = ("count", "interval_s", "timeout_s")

    def __init__(self, count: int, interval_s: float, timeout_s: float) -> None:
        self.count = count
        self.interval_s = interval_s
        self.timeout_s = timeout_s


def ping(
    record: dict[str, Any],
    whois: Callable[[], dict[str, Any]],
    target: str,
    interface: str,
    rhythm: Rhythm,
    as_json: bool,
) -> bool:
    """Send echo requests to `target`, which `record` describes; True when at least one was answered.

    `whois` gives the record as it is later. A name is pinged at its first address. Raises OSError when nothing can be
    sent.
    """
    name = str(record["name"])
    address = target if _is_address(target) else str(record["addresses"][0])
    answered = 0
    with _Echo(address, interface) as echo:
        for sequence in range(1, rhythm.count + 1):
            sent_at = time.monotonic()
            outcome = echo.round_trip(sequence, rhythm.timeout_s)
            if isinstance(outcome, float):
                answered += 1
                # Asked after the answer, so that it is the path which the answer took.
                path = whois().get("path")
                _show(as_json, sequence, name, address, path, outcome)
            else:
                _show(as_json, sequence, name, address, None, outcome)
            if sequence < rhythm.count:
                time.sleep(max(0.0, sent_at + rhythm.interval_s - time.monotonic()))
    return answered > 0


def _show(as_json: bool, sequence: int, name: str, address: str, path: str | None, outcome: float | str) -> None:
    if as_json:
        row: dict[str, Any] = {"seq": sequence, "name": name, "address": address, "path": path}
        row["ms" if isinstance(outcome, float) else "error"] = (
            outcome if isinstance(outcome, str) else round(outcome, 3)
        )
        print(json.dumps(row), flush=True)
    elif isinstance(outcome, float):
        print(f"pong from {name} ({address}) via {path or 'a path unknown'} in {outcome:.1f} ms", flush=True)
    else:
        print(f"edgeagent: ping {name} ({address}): {outcome}", file=sys.stderr, flush=True)


def _is_address(text: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, text)
        except OSError:
            continue
        return True
    return False


class _Echo:
    """A socket bound to the tunnel: an answer by any other way does not count.

    With the kernel's WireGuard the tunnel is two interfaces, and the host's routes say which one a packet leaves by:
    then answers are looked at for where they came in.
    """

    def __init__(self, address: str, interface: str) -> None:
        self._v6 = ":" in address
        family = socket.AF_INET6 if self._v6 else socket.AF_INET
        protocol = socket.IPPROTO_ICMPV6 if self._v6 else socket.IPPROTO_ICMP
        self._id = os.getpid() & 0xFFFF
        self._raw = True
        try:
            self._sock = socket.socket(family, socket.SOCK_RAW, protocol)
        except PermissionError:
            self._raw = False  # the kernel's ping socket, where net.ipv4.ping_group_range allows
            self._sock = socket.socket(family, socket.SOCK_DGRAM, protocol)
        self._inside: tuple[int, ...] = ()  # indices of interfaces; none: the socket is bound
        try:
            if beside := _index(f"{interface[:12]}-wg"):
                self._inside = _index(interface), beside
                if self._v6:
                    self._sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
                else:
                    self._sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
            else:
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
            self._sock.connect((address, 0))
        except OSError:
            self._sock.close()
            raise

    def __enter__(self) -> _Echo:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def round_trip(self, sequence: int, timeout_s: float) -> float | str:
        """Milliseconds, or why there is no answer."""
        sequence &= 0xFFFF
        nonce = os.urandom(_PAYLOAD_SIZE)
        sent_at = time.monotonic()
        try:
            self._sock.send(self._request(sequence, nonce))
            while (left := sent_at + timeout_s - time.monotonic()) > 0:
                self._sock.settimeout(left)
                packet, told, _, _ = self._sock.recvmsg(2048, _ANCILLARY_BYTES)
                took = (time.monotonic() - sent_at) * 1000
                if self._came_inside(told) and self._is_reply(packet, sequence, nonce):
                    return took
        except TimeoutError:
            pass
        except OSError as error:
            return error.strerror or str(error)
        return f"no answer within {timeout_s:g} s"

    def _came_inside(self, told: list[tuple[int, int, bytes]]) -> bool:
        if not self._inside:
            return True
        for _, kind, value in told:
            if kind == (_IPV6_PKTINFO if self._v6 else _IP_PKTINFO) and len(value) >= (20 if self._v6 else 4):
                (index,) = _INDEX.unpack_from(value, 16 if self._v6 else 0)
                return index in self._inside
        return False

    def _request(self, sequence: int, nonce: bytes) -> bytes:
        kind = _REQUEST[self._v6]
        packet = _ECHO.pack(kind, 0, 0, self._id, sequence) + nonce
        # The kernel sums ICMPv6, whose checksum covers addresses that only it knows yet.
        return packet if self._v6 else _ECHO.pack(kind, 0, checksum(packet), self._id, sequence) + nonce

    def _is_reply(self, packet: bytes, sequence: int, nonce: bytes) -> bool:
        if self._raw and not self._v6 and packet:
            packet = packet[(packet[0] & 15) * 4 :]
        if len(packet) < _ECHO.size:
            return False
        kind, _, _, identifier, number = _ECHO.unpack_from(packet)
        return (
            kind == _REPLY[self._v6]
            and number == sequence
            and (identifier == self._id or not self._raw)
            and packet[_ECHO.size :] == nonce
        )


def _index(interface: str) -> int:
    """0 where there is none."""
    try:
        return socket.if_nametoindex(interface)
    except OSError:
        return 0


def checksum(data: bytes) -> int:
    """The Internet checksum, RFC 1071."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total >> 16) + (total & 0xFFFF)
    return ~total & 0xFFFF
