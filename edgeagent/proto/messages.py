"""The four messages of WireGuard (paper, section 5.4), all integers little-endian.

```
1 initiation  type 1, 3 zero, sender 4, ephemeral 32, static 32+16, timestamp 12+16, mac1 16, mac2 16      148 B
2 response    type 2, 3 zero, sender 4, receiver 4, ephemeral 32, empty 0+16, mac1 16, mac2 16              92 B
3 cookie      type 3, 3 zero, receiver 4, nonce 24, cookie 16+16                                            64 B
4 transport   type 4, 3 zero, receiver 4, counter 8, packet n+16, n a multiple of 16 or the MTU            ≥ 32 B
```
"""

from __future__ import annotations

from struct import Struct

INITIATION, RESPONSE, COOKIE_REPLY, TRANSPORT = 1, 2, 3, 4

INITIATION_SIZE = 148
RESPONSE_SIZE = 92
COOKIE_REPLY_SIZE = 64
TRANSPORT_SIZE_MIN = 32

HANDSHAKE_SIZES = {INITIATION: INITIATION_SIZE, RESPONSE: RESPONSE_SIZE, COOKIE_REPLY: COOKIE_REPLY_SIZE}

# type and reserved bytes read as one integer: an unknown reserved byte makes an unknown type
TRANSPORT_HEADER = Struct("<IIQ")
_INITIATION_BODY = Struct("<II32s48s28s")
_RESPONSE_BODY = Struct("<III32s16s")
_COOKIE_REPLY = Struct("<II24s32s")


class Initiation:
    __slots__ = ("ephemeral", "sealed_static", "sealed_timestamp", "sender_index")

    def __init__(self, sender_index: int, ephemeral: bytes, sealed_static: bytes, sealed_timestamp: bytes) -> None:
        self.sender_index = sender_index
        self.ephemeral = ephemeral
        self.sealed_static = sealed_static
        self.sealed_timestamp = sealed_timestamp

    def body(self) -> bytes:
        """Everything before the macs, 116 B."""
        return _INITIATION_BODY.pack(
            INITIATION, self.sender_index, self.ephemeral, self.sealed_static, self.sealed_timestamp
        )

    @classmethod
    def parse(cls, datagram: bytes) -> Initiation:
        """Of a datagram whose type and length were checked."""
        return cls(*_INITIATION_BODY.unpack_from(datagram)[1:])


class Response:
    __slots__ = ("ephemeral", "receiver_index", "sealed_empty", "sender_index")

    def __init__(self, sender_index: int, receiver_index: int, ephemeral: bytes, sealed_empty: bytes) -> None:
        self.sender_index = sender_index
        self.receiver_index = receiver_index
        self.ephemeral = ephemeral
        self.sealed_empty = sealed_empty

    def body(self) -> bytes:
        """Everything before the macs, 60 B."""
        return _RESPONSE_BODY.pack(RESPONSE, self.sender_index, self.receiver_index, self.ephemeral, self.sealed_empty)

    @classmethod
    def parse(cls, datagram: bytes) -> Response:
        """Of a datagram whose type and length were checked."""
        return cls(*_RESPONSE_BODY.unpack_from(datagram)[1:])


class CookieReply:
    __slots__ = ("nonce", "receiver_index", "sealed_cookie")

    def __init__(self, receiver_index: int, nonce: bytes, sealed_cookie: bytes) -> None:
        self.receiver_index = receiver_index
        self.nonce = nonce
        self.sealed_cookie = sealed_cookie

    def encode(self) -> bytes:
        return _COOKIE_REPLY.pack(COOKIE_REPLY, self.receiver_index, self.nonce, self.sealed_cookie)

    @classmethod
    def parse(cls, datagram: bytes) -> CookieReply:
        """Of a datagram whose type and length were checked."""
        return cls(*_COOKIE_REPLY.unpack(datagram)[1:])


def message_type(datagram: bytes) -> int | None:
    """1 to 4, or None for a datagram that no WireGuard message looks like."""
    kind = int.from_bytes(datagram[:4], "little")
    size = len(datagram)
    if kind == TRANSPORT:
        return TRANSPORT if size >= TRANSPORT_SIZE_MIN else None
    return kind if HANDSHAKE_SIZES.get(kind) == size else None


def sender_index(datagram: bytes) -> int:
    """The sender's index of an initiation or a response."""
    return int.from_bytes(datagram[4:8], "little")
