"""PCP (RFC 6887), opcodes MAP and ANNOUNCE for UDP over IPv4 and IPv6: a strict codec, and the check of epochs."""

from __future__ import annotations

from struct import Struct

from edgeagent.proto.errors import LocalProtocolError
from edgeagent.proto.natpmp import PortMapDrop, PortMapError

VERSION = 2
ANNOUNCE, MAP = 0, 1  # opcodes; an answer has the highest bit set
MESSAGE_BYTES_MAX = 1_100
OPTIONS_MAX = 16
NONCE_SIZE = 12
SUCCESS, UNSUPPORTED_VERSION = 0, 1

_ANSWER = 0x80
_UDP = 17
_V4_MAPPED = bytes(10) + b"\xff\xff"
_REQUEST = Struct(">BBHI16s")  # version, opcode, zero, lifetime in s, the client's own address
_RESPONSE = Struct(">BBBBII12x")  # version, opcode | 0x80, zero, result, lifetime in s, epoch in s, zero
_MAP = Struct(">12sB3xHH16s")  # nonce, protocol, zero, internal port, external port, external address
_OPTION = Struct(">BxH")  # code, zero, length of what follows, which is padded to four bytes


class Answer:
    """What every answer says: `result` 0, or why not and for how long (`lifetime_s`)."""

    __slots__ = ("epoch_s", "lifetime_s", "opcode", "result")

    def __init__(self, opcode: int, result: int, lifetime_s: int, epoch_s: int) -> None:
        self.opcode = opcode
        self.result = result
        self.lifetime_s = lifetime_s
        self.epoch_s = epoch_s


class MapAnswer(Answer):
    """An answer to MAP. `address` (4 or 16 B) and the external port mean something in a success only."""

    __slots__ = ("address", "external_port", "internal_port", "nonce", "protocol")

    def __init__(self, answer: Answer, nonce: bytes, protocol: int, internal: int, external: int, ip: bytes) -> None:
        super().__init__(answer.opcode, answer.result, answer.lifetime_s, answer.epoch_s)
        self.nonce = nonce
        self.protocol = protocol
        self.internal_port = internal
        self.external_port = external
        self.address = ip

    def answers(self, nonce: bytes, internal_port: int) -> bool:
        """Whether this is about our mapping (RFC 6887, section 11.4)."""
        return self.nonce == nonce and self.protocol == _UDP and self.internal_port == internal_port


def write_map_request(
    client: bytes, nonce: bytes, internal_port: int, wish: tuple[bytes, int] | None, lifetime_s: int
) -> bytes:
    """Ask for UDP to `client` (4 or 16 B, the source address of this datagram); a lifetime of 0 removes the mapping.

    `wish` is the external address and port that would be welcome, as they were before.
    """
    if len(nonce) != NONCE_SIZE or not 1 <= internal_port <= 65_535 or not 0 <= lifetime_s < 1 << 32:
        raise LocalProtocolError("pcp: a nonce has 12 bytes, a port 16 bits, a lifetime 32 bits")
    address, port = wish or (bytes(len(client)), 0)
    return _REQUEST.pack(VERSION, MAP, 0, lifetime_s, _to_16(client)) + _MAP.pack(
        nonce, _UDP, internal_port, port, _to_16(address)
    )


def write_announce_request(client: bytes) -> bytes:
    """Ask for nothing but the epoch."""
    return _REQUEST.pack(VERSION, ANNOUNCE, 0, 0, _to_16(client))


def read(datagram: bytes) -> Answer:
    """An answer: a MapAnswer when it is one to MAP. Raises PortMapError(MALFORMED)."""
    size = len(datagram)
    if not _RESPONSE.size <= size <= MESSAGE_BYTES_MAX or size % 4:  # RFC 6887, section 8.3
        raise _malformed(f"{_RESPONSE.size} to {MESSAGE_BYTES_MAX} bytes in fours, got {size}")
    version, code, _, result, lifetime_s, epoch_s = _RESPONSE.unpack_from(datagram)
    if not code & _ANSWER:
        raise _malformed("a request where an answer belongs")
    answer = Answer(code & ~_ANSWER, result, lifetime_s, epoch_s)
    if version != VERSION:
        # A server of another version says only that (RFC 6887, section 9); the rest is not ours to read
        if result != UNSUPPORTED_VERSION:
            raise _malformed(f"version {VERSION}, got {version}")
        return answer
    if answer.opcode == ANNOUNCE:
        _check_options(datagram, _RESPONSE.size)
        return answer
    if answer.opcode != MAP or size < _RESPONSE.size + _MAP.size:
        raise _malformed(f"opcode {answer.opcode} with {size} bytes")
    nonce, protocol, internal, external, address = _MAP.unpack_from(datagram, _RESPONSE.size)
    _check_options(datagram, _RESPONSE.size + _MAP.size)
    return MapAnswer(answer, nonce, protocol, internal, external, _from_16(address))


class Epoch:
    """Whether the server still knows what it granted (RFC 6887, section 8.5)."""

    __slots__ = ("_at", "_epoch_s")

    def __init__(self) -> None:
        self._at: float | None = None
        self._epoch_s = 0

    def lost(self, now: float, epoch_s: int) -> bool:
        """Take note of the clock in an answer; True when it shows that the server started anew since the last one."""
        before, self._at = self._at, now
        server_s, self._epoch_s = epoch_s - self._epoch_s, epoch_s
        if before is None:
            return False
        client_s = now - before
        return server_s < -1 or client_s + 2 < server_s - server_s / 16 or server_s + 2 < client_s - client_s / 16


def _check_options(datagram: bytes, at: int) -> None:
    """We ask with no options and read none; they must still be what they say (RFC 6887, section 7.3)."""
    for _ in range(OPTIONS_MAX):
        if at == len(datagram):
            return
        _, length = _OPTION.unpack_from(datagram, at)
        at += _OPTION.size + length + -length % 4
        if at > len(datagram):
            raise _malformed("an option that is longer than the message")
    if at != len(datagram):
        raise _malformed(f"more than {OPTIONS_MAX} options")


def _to_16(address: bytes) -> bytes:
    if len(address) not in (4, 16):
        raise LocalProtocolError("pcp: an address has 4 or 16 bytes")
    return _V4_MAPPED + address if len(address) == 4 else address


def _from_16(address: bytes) -> bytes:
    return address[12:] if address.startswith(_V4_MAPPED) else address


def _malformed(detail: str) -> PortMapError:
    return PortMapError(PortMapDrop.MALFORMED, f"pcp: {detail}")
