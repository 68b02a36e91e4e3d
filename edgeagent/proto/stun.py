"""STUN Binding (RFC 8489) and the addresses of behaviour discovery (RFC 5780): a strict codec, no more.

Requests of ours are padded to `REQUEST_BYTES`, because a server of ours never answers with more than it was sent.
The padding is an attribute that a server may ignore (RFC 8489, section 14: types from 0x8000), so any server will do.
"""

from __future__ import annotations

from binascii import crc32
from enum import Enum
from struct import Struct, error

from edgeagent.proto.errors import LocalProtocolError, RemoteProtocolError

MAGIC_COOKIE = 0x2112A442
HEADER_SIZE = 20  # u16 type, u16 length of what follows, u32 magic cookie, 12 B transaction id
TRANSACTION_SIZE = 12
MESSAGE_BYTES_MAX = 9_000  # padded requests measure the MTU of a path (proto/netcheck_mtu.py)
ATTRIBUTES_MAX = 32
REQUEST_BYTES = 100  # what the fullest answer takes: three IPv6 addresses and a fingerprint

BINDING_REQUEST, BINDING_SUCCESS, BINDING_ERROR = 0x0001, 0x0101, 0x0111

MAPPED_ADDRESS = 0x0001  # what XOR-MAPPED-ADDRESS says, for clients older than it (RFC 8489, section 14.1)
CHANGE_REQUEST = 0x0003  # u32: bit 2 another address, bit 1 another port (RFC 5780, section 7.2)
SOURCE_ADDRESS, CHANGED_ADDRESS = 0x0004, 0x0005  # of RFC 3489; servers that serve old clients too still send them
ERROR_CODE = 0x0009  # u16 zero, u8 hundreds, u8 rest, reason phrase
UNKNOWN_ATTRIBUTES = 0x000A  # u16 each
XOR_MAPPED_ADDRESS = 0x0020  # u8 zero, u8 family, u16 port ^ cookie, address ^ cookie ‖ transaction id
PADDING = 0x0026  # any bytes (RFC 5780, section 7.6)
FINGERPRINT = 0x8028  # u32 CRC-32 of all before it ^ 0x5354554E; the last attribute
RESPONSE_ORIGIN = 0x802B  # u8 zero, u8 family, u16 port, address: where the answer came from
OTHER_ADDRESS = 0x802C  # the same form: from where a request for a change would be answered
FILLER = 0xFFE0  # any bytes; ours, to be ignored

CHANGE_PORT, CHANGE_ADDRESS = 0x02, 0x04
UNKNOWN_ATTRIBUTE_CODE = 420  # RFC 8489, section 14.8

_FINGERPRINT_XOR = 0x5354554E
_FINGERPRINT_SIZE = 8
_HEADER = Struct(">HHI12s")
_HEAD = Struct(">HH")
_ADDRESS_HEAD = Struct(">BBH")
_U32 = Struct(">I")
_IPV4, _IPV6 = 1, 2
_OPTIONAL = 0x8000
_IN_ANSWERS = (MAPPED_ADDRESS, SOURCE_ADDRESS, CHANGED_ADDRESS, XOR_MAPPED_ADDRESS, PADDING)

Address = tuple[bytes, int]  # 4 or 16 B, port


class StunDrop(Enum):
    """Why something that should have been STUN was refused; the value is its name in `status` and in metrics."""

    MALFORMED = "stun-malformed"  # lengths that lie, too many attributes, something behind the fingerprint
    FINGERPRINT = "stun-fingerprint"  # the CRC does not fit
    UNEXPECTED = "stun-unexpected"  # another method or class than the one that was waited for
    TRANSACTION = "stun-transaction"  # an answer to a request that we did not send, or to one that was answered
    SOURCE = "stun-source"  # an answer from elsewhere than where it was asked for
    REFUSED = "stun-refused"  # an error answer, or one that asks to understand what we do not


class StunError(RemoteProtocolError):
    """`reason` is for counting; the text names the field."""

    def __init__(self, reason: StunDrop, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class StunMessage:
    """A message whose lengths and fingerprint were checked. `attributes` holds the first of each type."""

    __slots__ = ("attributes", "fingerprinted", "kind", "transaction")

    def __init__(self, kind: int, transaction: bytes, attributes: dict[int, bytes], fingerprinted: bool) -> None:
        self.kind = kind
        self.transaction = transaction
        self.attributes = attributes
        self.fingerprinted = fingerprinted


class Binding:
    """What a server said: where it saw the request come from, and from where it answered and could answer."""

    __slots__ = ("mapped", "origin", "other")

    def __init__(self, mapped: Address, origin: Address | None, other: Address | None) -> None:
        self.mapped = mapped
        self.origin = origin
        self.other = other


def looks_like_stun(datagram: bytes) -> bool:
    """The first look that tells STUN from whatever else shares the port (RFC 8489, section 5; RFC 7983)."""
    return len(datagram) >= HEADER_SIZE and datagram[0] < 64 and datagram[4:8] == b"\x21\x12\xa4\x42"


def parse(datagram: bytes) -> StunMessage:
    """Raises StunError: MALFORMED or FINGERPRINT."""
    size = len(datagram)
    if not HEADER_SIZE <= size <= MESSAGE_BYTES_MAX:
        raise StunError(StunDrop.MALFORMED, f"stun: {HEADER_SIZE} to {MESSAGE_BYTES_MAX} bytes, got {size}")
    kind, length, cookie, transaction = _HEADER.unpack_from(datagram)
    if kind >> 14 or cookie != MAGIC_COOKIE or length % 4 or length != size - HEADER_SIZE:
        raise StunError(StunDrop.MALFORMED, "stun: header: cookie, two zero bits or length")
    attributes: dict[int, bytes] = {}
    fingerprinted = False
    at = HEADER_SIZE
    for _ in range(ATTRIBUTES_MAX + 1):
        if at == size:
            return StunMessage(kind, transaction, attributes, fingerprinted)
        if fingerprinted:
            break
        name, length = _HEAD.unpack_from(datagram, at)
        value = datagram[at + 4 : at + 4 + length]
        if len(value) != length:
            break
        if name == FINGERPRINT:
            if length != 4 or _U32.unpack(value)[0] != crc32(datagram[:at]) ^ _FINGERPRINT_XOR:
                raise StunError(StunDrop.FINGERPRINT, "stun: fingerprint")
            fingerprinted = True
        else:
            attributes.setdefault(name, value)
        at += 4 + length + -length % 4
        if at > size:
            break
    raise StunError(StunDrop.MALFORMED, f"stun: attributes: byte {min(at, size)}")


def write_request(transaction: bytes, *, size: int = REQUEST_BYTES, change: int = 0) -> bytes:
    """A Binding request of at least `size` bytes. `change`: CHANGE_PORT | CHANGE_ADDRESS, for our own servers only."""
    if len(transaction) != TRANSACTION_SIZE:
        raise LocalProtocolError(f"stun: a transaction id has {TRANSACTION_SIZE} bytes")
    attributes = [(CHANGE_REQUEST, _U32.pack(change))] if change else []
    filler = size - HEADER_SIZE - 8 * len(attributes) - _FINGERPRINT_SIZE - 4
    if filler >= 0:
        attributes.append((FILLER, bytes(filler + -filler % 4)))
    return write(BINDING_REQUEST, transaction, attributes, fingerprint=True)


def read_binding(datagram: bytes, transaction: bytes) -> Binding:
    """The answer to the request `transaction`. Raises StunError."""
    message = parse(datagram)
    if message.transaction != transaction:
        raise StunError(StunDrop.TRANSACTION, "stun: no request of ours has this transaction")
    if message.kind == BINDING_ERROR:
        raise StunError(StunDrop.REFUSED, f"stun: error {read_error_code(message)}")
    if message.kind != BINDING_SUCCESS:
        raise StunError(StunDrop.UNEXPECTED, f"stun: type 0x{message.kind:04x} is no answer to a binding request")
    unknown = unknown_attributes(message, _IN_ANSWERS)
    if unknown:  # RFC 8489, section 6.3.3
        raise StunError(StunDrop.REFUSED, f"stun: attribute 0x{unknown[0]:04x} would have to be understood")
    mapped = message.attributes.get(XOR_MAPPED_ADDRESS)
    if mapped is None:
        raise StunError(StunDrop.MALFORMED, "stun: no XOR-MAPPED-ADDRESS")
    seen = _read_address(mapped, _mask(transaction))
    if not seen[1]:
        raise StunError(StunDrop.MALFORMED, "stun: nothing was ever sent from port 0")
    origin, other = message.attributes.get(RESPONSE_ORIGIN), message.attributes.get(OTHER_ADDRESS)
    return Binding(
        seen,
        None if origin is None else _read_address(origin, bytes(16)),
        None if other is None else _read_address(other, bytes(16)),
    )


def unknown_attributes(message: StunMessage, known: tuple[int, ...]) -> list[int]:
    """The attributes that must be understood and are not among `known`."""
    return [name for name in message.attributes if name < _OPTIONAL and name not in known]


def read_change(message: StunMessage) -> int:
    """The flags of CHANGE-REQUEST, 0 without one. Raises StunError."""
    value = message.attributes.get(CHANGE_REQUEST)
    if value is None:
        return 0
    if len(value) != 4:
        raise StunError(StunDrop.MALFORMED, "stun: CHANGE-REQUEST has 4 bytes")
    flags: int = _U32.unpack(value)[0] & (CHANGE_PORT | CHANGE_ADDRESS)
    return flags


def read_error_code(message: StunMessage) -> int:
    """300 to 699, or 0 when there is none that makes sense."""
    value = message.attributes.get(ERROR_CODE, b"")
    if len(value) < 4 or not 3 <= value[2] & 7 <= 6 or value[3] > 99:
        return 0
    return (value[2] & 7) * 100 + value[3]


def xor_mapped_address(transaction: bytes, address: Address) -> tuple[int, bytes]:
    return XOR_MAPPED_ADDRESS, _write_address(address, _mask(transaction))


def plain_address(name: int, address: Address) -> tuple[int, bytes]:
    """RESPONSE-ORIGIN or OTHER-ADDRESS."""
    return name, _write_address(address, bytes(16))


def unknown_attributes_error(unknown: list[int]) -> list[tuple[int, bytes]]:
    """The attributes of the error answer 420, with at most four of the names so that it stays small."""
    code = bytes((0, 0, UNKNOWN_ATTRIBUTE_CODE // 100, UNKNOWN_ATTRIBUTE_CODE % 100))
    return [(ERROR_CODE, code), (UNKNOWN_ATTRIBUTES, b"".join(name.to_bytes(2, "big") for name in unknown[:4]))]


def write(kind: int, transaction: bytes, attributes: list[tuple[int, bytes]], *, fingerprint: bool) -> bytes:
    """A message; values are padded to four bytes, and counted without that (RFC 8489, section 14)."""
    body = b"".join(_HEAD.pack(name, len(value)) + value + bytes(-len(value) % 4) for name, value in attributes)
    length = len(body) + (_FINGERPRINT_SIZE if fingerprint else 0)
    message = _HEADER.pack(kind, length, MAGIC_COOKIE, transaction) + body
    if fingerprint:
        message += _HEAD.pack(FINGERPRINT, 4) + _U32.pack(crc32(message) ^ _FINGERPRINT_XOR)
    return message


def _mask(transaction: bytes) -> bytes:
    return MAGIC_COOKIE.to_bytes(4, "big") + transaction


def _write_address(address: Address, mask: bytes) -> bytes:
    packed, port = address
    family = _IPV4 if len(packed) == 4 else _IPV6
    return _ADDRESS_HEAD.pack(0, family, port ^ int.from_bytes(mask[:2], "big")) + _xor(packed, mask)


def _read_address(value: bytes, mask: bytes) -> Address:
    try:
        _, family, port = _ADDRESS_HEAD.unpack_from(value)
    except error:
        raise StunError(StunDrop.MALFORMED, "stun: an address of fewer than 4 bytes") from None
    if len(value) != 4 + {_IPV4: 4, _IPV6: 16}.get(family, -1):
        raise StunError(StunDrop.MALFORMED, "stun: an address whose family and length do not fit")
    return _xor(value[4:], mask), port ^ int.from_bytes(mask[:2], "big")


def _xor(packed: bytes, mask: bytes) -> bytes:
    size = len(packed)
    return (int.from_bytes(packed, "big") ^ int.from_bytes(mask[:size], "big")).to_bytes(size, "big")
