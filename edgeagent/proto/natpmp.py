"""NAT-PMP (RFC 6886): a strict codec for the requests that a device sends and the answers that it reads."""

from __future__ import annotations

from enum import Enum
from struct import Struct

from edgeagent.proto.errors import LocalProtocolError, RemoteProtocolError

SERVER_PORT = 5351
ANNOUNCE_PORT = 5350  # gateways multicast to 224.0.0.1 (PCP: and to ff02::1) when they start or change
VERSION = 0
ADDRESS, MAP_UDP = 0, 1  # opcodes; an answer has 128 more
ANSWER = 128
SUCCESS, UNSUPPORTED_VERSION = 0, 1
RESULT_MAX = 5  # 2 refused, 3 network failure, 4 out of resources, 5 unsupported opcode (RFC 6886, section 3.5)

_ADDRESS_REQUEST = bytes((VERSION, ADDRESS))
_MAP_REQUEST = Struct(">BBHHHI")  # version, opcode, zero, internal port, suggested external port, lifetime in s
_HEAD = Struct(">BBHI")  # version, opcode + 128, result, seconds since the gateway's tables were empty
_MAP_TAIL = Struct(">HHI")  # internal port, external port, lifetime in s
_ADDRESS_SIZE = _HEAD.size + 4
_MAP_SIZE = _HEAD.size + _MAP_TAIL.size


class PortMapDrop(Enum):
    """Why an answer of a gateway to a request for a port was dropped; the value is its name in `status`."""

    MALFORMED = "portmap-malformed"  # lengths, versions or opcodes that NAT-PMP and PCP do not have
    STRANGER = "portmap-stranger"  # not from a gateway that was asked, or not from its port
    UNEXPECTED = "portmap-unexpected"  # an answer to no request of ours: another nonce, port or opcode
    USELESS = "portmap-useless"  # a grant of an address, a port or a lifetime that nobody can use


class PortMapError(RemoteProtocolError):
    """`reason` is for counting; the text names the field."""

    def __init__(self, reason: PortMapDrop, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class AddressAnswer:
    """The gateway's outside address (4 B). Also what a gateway announces unasked."""

    __slots__ = ("address", "epoch_s")

    def __init__(self, epoch_s: int, address: bytes) -> None:
        self.epoch_s = epoch_s
        self.address = address


class MapAnswer:
    """A mapping made, or, with lifetime 0, removed."""

    __slots__ = ("epoch_s", "external_port", "internal_port", "lifetime_s")

    def __init__(self, epoch_s: int, internal_port: int, external_port: int, lifetime_s: int) -> None:
        self.epoch_s = epoch_s
        self.internal_port = internal_port
        self.external_port = external_port
        self.lifetime_s = lifetime_s


class Refusal:
    """The gateway said no; `result` as in RFC 6886, section 3.5. `opcode` is that of the request."""

    __slots__ = ("epoch_s", "opcode", "result")

    def __init__(self, epoch_s: int, opcode: int, result: int) -> None:
        self.epoch_s = epoch_s
        self.opcode = opcode
        self.result = result


def write_address_request() -> bytes:
    return _ADDRESS_REQUEST


def write_map_request(internal_port: int, external_port: int, lifetime_s: int) -> bytes:
    """Ask for UDP. `external_port` is a wish, 0 for none; a lifetime of 0 removes the mapping."""
    if not 1 <= internal_port <= 65_535 or not 0 <= external_port <= 65_535 or not 0 <= lifetime_s < 1 << 32:
        raise LocalProtocolError("nat-pmp: ports have 16 bits, the internal one is not 0, a lifetime has 32 bits")
    return _MAP_REQUEST.pack(VERSION, MAP_UDP, 0, internal_port, external_port, lifetime_s)


def read(datagram: bytes) -> AddressAnswer | MapAnswer | Refusal:
    """An answer of a gateway. Raises PortMapError(MALFORMED)."""
    size = len(datagram)
    if not _HEAD.size <= size <= _MAP_SIZE:
        raise _malformed(f"{_HEAD.size} to {_MAP_SIZE} bytes, got {size}")
    version, code, result, epoch_s = _HEAD.unpack_from(datagram)
    opcode = code - ANSWER
    if version != VERSION or not 0 <= opcode < ANSWER:
        raise _malformed("version 0 and an opcode from 128")
    if result > RESULT_MAX:
        raise _malformed(f"result: at most {RESULT_MAX}, got {result}")
    if result != SUCCESS:  # answered with or without the fields that a success would have
        return Refusal(epoch_s, opcode, result)
    if opcode == ADDRESS and size == _ADDRESS_SIZE:
        return AddressAnswer(epoch_s, datagram[_HEAD.size :])
    if opcode == MAP_UDP and size == _MAP_SIZE:
        return MapAnswer(epoch_s, *_MAP_TAIL.unpack_from(datagram, _HEAD.size))
    raise _malformed(f"opcode {opcode} with {size} bytes")


class Epoch:
    """Whether the gateway still knows what it granted: its clock must run on as ours does (RFC 6886, section 3.6)."""

    __slots__ = ("_at", "_epoch_s")

    def __init__(self) -> None:
        self._at: float | None = None
        self._epoch_s = 0

    def lost(self, now: float, epoch_s: int) -> bool:
        """Take note of the clock in an answer; True when it shows that the gateway started anew since the last one."""
        before, self._at = self._at, now
        expected_s, self._epoch_s = self._epoch_s, epoch_s
        if before is None:
            return False
        # 7/8: the gateway's clock may be slow; 2 s: the last answer may have been on its way for longer than this one
        return epoch_s < expected_s + (now - before) * 7 / 8 - 2


def _malformed(detail: str) -> PortMapError:
    return PortMapError(PortMapDrop.MALFORMED, f"nat-pmp: {detail}")
