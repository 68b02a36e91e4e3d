"""Disco: how two devices find out which addresses reach one another, on the UDP port of WireGuard and by relay.

A frame, at most FRAME_BYTES_MAX:

    magic 4 ‖ sender's key id 8 ‖ nonce 24 ‖ XChaCha20-Poly1305(key, nonce, message, ad = magic ‖ key id)

The key comes from X25519 of the two disco keys, made at each start and told in the feed. The nonce is a counter
of 8 B that goes up with each frame of the sender's life, then 16 random bytes. Whoever is not known by his key id, or
seals wrongly, gets no answer; no answer is longer than what it answers.
"""

from __future__ import annotations

from collections import OrderedDict
from enum import Enum
from struct import Struct

from edgeagent.proto.constants import KEY_SIZE, TAG_SIZE
from edgeagent.proto.crypto import Crypto
from edgeagent.proto.errors import LocalProtocolError
from edgeagent.proto.keys import Entropy, clamp
from edgeagent.proto.relay_frames import DATAGRAM_FIRST, DATAGRAM_LAST
from edgeagent.proto.replay import ReplayWindow
from edgeagent.proto.stun import looks_like_stun

MAGIC = b"\xd1\x5c\x0e\x01"  # no first byte of WireGuard, STUN, DTLS, TURN channels, RTP, QUIC long headers or a relay
KEY_ID_SIZE = 8
NONCE_SIZE = 24
TRANSACTION_SIZE = 12
ENDPOINTS_MAX = 16  # in one call-me
FRAME_BYTES_MAX = 9_216
CORRESPONDENTS_MAX = 256  # remembered with what was seen of their frames, 1 to 6 KB each
OVERHEAD = len(MAGIC) + KEY_ID_SIZE + NONCE_SIZE + TAG_SIZE

PING = 0x01  # 12 B transaction, 32 B node key of the sender, u16 ms that its uplink costs, zeros
PONG = 0x02  # 12 B transaction, where the ping came from (u8 size 0, 4 or 16, address, u16 port), zeros
CALL_ME = 0x03  # u8 number of endpoints ≤ 16, then each: u8 size 4 or 16, address, u16 port

COST_MAX_MS = 65_535

PING_BYTES = OVERHEAD + 1 + TRANSACTION_SIZE + KEY_SIZE + 2  # the smallest; the answer has as many

_HEAD = Struct(">4s8s24s")
_COUNTER = Struct(">Q")
_PORT = Struct(">H")
_COST = Struct(">H")
_LABEL = b"em1 disco"

UdpAddress = tuple[bytes, int]


class Kind(Enum):
    """What a datagram on the UDP port is, by its first bytes."""

    WIREGUARD = "wireguard"  # u32 LE 1 to 4
    DISCO = "disco"  # MAGIC
    STUN = "stun"  # the magic cookie at 4
    RELAY = "relay"  # a relay's UDP carrier: first byte 0xE0 to 0xEF
    UNKNOWN = "unknown"


class DiscoDrop(Enum):
    """Why a frame of disco was dropped; the value is its name in `status` and in metrics."""

    NOT_OURS = "disco-not-ours"  # a datagram that is neither WireGuard, disco, STUN nor a relay's
    MALFORMED = "disco-malformed"  # too short, too long, or a message that is not of its form
    UNKNOWN_SENDER = "disco-unknown-sender"  # a key id that no feed in use names
    SEALED_WRONG = "disco-sealed-wrong"  # does not open: forged, or for an earlier life of ours
    REPLAYED = "disco-replayed"  # a frame that was here before
    NODE_KEY = "disco-node-key"  # a ping that names a node key which is not its sender's
    TRANSACTION = "disco-transaction"  # a pong to no ping of ours
    PONG_SOURCE = "disco-pong-source"  # a pong from elsewhere than where its ping went
    UPLINK_DOWN = "disco-uplink-down"  # a pong by an uplink that went down meanwhile
    FLOOD = "disco-flood"  # more pings or call-me than one peer may send
    BY_SIGNAL = "disco-by-signal"  # a ping or pong through the broker
    STALE_INBOX = "disco-stale-inbox"  # a signal to a capability that is not in use any more
    CANDIDATE = "disco-candidate"  # an endpoint that no datagram of ours should go to
    PATHS_FULL = "disco-paths-full"  # an endpoint for which there was no room


class Ping:
    """`cost_ms` is what the sender adds to the latency of the uplink it pings by, so that both choose the same one."""

    __slots__ = ("cost_ms", "node_key", "transaction")

    def __init__(self, transaction: bytes, node_key: bytes, cost_ms: int = 0) -> None:
        self.transaction = transaction
        self.node_key = node_key
        self.cost_ms = cost_ms


class Pong:
    """`observed` is where the other side saw the ping come from; None if it came by relay."""

    __slots__ = ("observed", "transaction")

    def __init__(self, transaction: bytes, observed: UdpAddress | None) -> None:
        self.transaction = transaction
        self.observed = observed


class CallMe:
    """Whoever sends this is pinging us and wants to be pinged at `endpoints`, the best first."""

    __slots__ = ("endpoints",)

    def __init__(self, endpoints: list[UdpAddress]) -> None:
        self.endpoints = endpoints


Message = Ping | Pong | CallMe


def classify(datagram: bytes) -> Kind:
    """What shares the port is told apart here and nowhere else (RFC 7983 has the idea)."""
    if datagram[1:4] == b"\0\0\0" and 1 <= datagram[0] <= 4:
        return Kind.WIREGUARD
    if datagram[:4] == MAGIC:
        return Kind.DISCO
    if datagram and DATAGRAM_FIRST <= datagram[0] <= DATAGRAM_LAST:
        return Kind.RELAY
    return Kind.STUN if looks_like_stun(datagram) else Kind.UNKNOWN


class Correspondent:
    """Another device as disco knows it: the sealing key that both share, and what of its frames was seen."""

    __slots__ = ("key", "key_id", "public", "window")

    def __init__(self, public: bytes, key_id: bytes, key: bytes) -> None:
        self.public = public
        self.key_id = key_id
        self.key = key
        self.window = ReplayWindow()


class DiscoKeys:
    """Our own key of this life, and the sealing under what it shares with others.

    Who was met is remembered also when it is no peer any more: it comes back with the same key, and frames that were
    captured before must not count again then. Of more than CORRESPONDENTS_MAX the one goes that was met, and heard, the
    longest ago.
    """

    __slots__ = ("_counter", "_crypto", "_entropy", "_met", "_private", "key_id", "public")

    def __init__(self, crypto: Crypto, entropy: Entropy) -> None:
        self._crypto = crypto
        self._entropy = entropy
        self._private = clamp(entropy(KEY_SIZE))
        self._counter = 0
        self._met: OrderedDict[bytes, Correspondent] = OrderedDict()
        self.public = crypto.x25519_base(self._private)
        self.key_id = key_id(crypto, self.public)

    def meet(self, public: bytes) -> Correspondent | None:
        """The other side of a feed's `dk`; None for our own key, or one that shares nothing with anybody."""
        met = self._met.get(public)
        if met is not None:
            self._met.move_to_end(public)
            return met
        shared = self._crypto.x25519(self._private, public)
        if public == self.public or self._crypto.equal(shared, bytes(KEY_SIZE)):  # RFC 7748, section 6.1
            return None
        low, high = sorted((self.public, public))
        (key,) = self._crypto.hkdf(_LABEL, shared + low + high, 1)
        met = self._met[public] = Correspondent(public, key_id(self._crypto, public), key)
        if len(self._met) > CORRESPONDENTS_MAX:
            self._met.popitem(last=False)
        return met

    def seal(self, reader: Correspondent, message: bytes) -> bytes:
        nonce = _COUNTER.pack(self._counter) + self._entropy(NONCE_SIZE - _COUNTER.size)
        self._counter += 1
        head = MAGIC + self.key_id
        return head + nonce + self._crypto.xaead_seal(reader.key, nonce, message, head)

    def open(self, writer: Correspondent, frame: bytes) -> Message | DiscoDrop:
        """What `writer`, found by `peek_sender`, has said; or why that counts for nothing."""
        head, nonce = frame[: len(MAGIC) + KEY_ID_SIZE], frame[len(MAGIC) + KEY_ID_SIZE : _HEAD.size]
        plain = self._crypto.xaead_open(writer.key, nonce, frame[_HEAD.size :], head)
        if plain is None:
            return DiscoDrop.SEALED_WRONG
        if not writer.window.accept(_COUNTER.unpack_from(nonce)[0]):
            return DiscoDrop.REPLAYED
        if writer.public in self._met:
            self._met.move_to_end(writer.public)
        return read(plain) or DiscoDrop.MALFORMED


def peek_sender(frame: bytes) -> bytes | None:
    """The key id that a frame names, unverified; None where it cannot be a frame."""
    if not OVERHEAD < len(frame) <= FRAME_BYTES_MAX or frame[:4] != MAGIC:
        return None
    return frame[len(MAGIC) : len(MAGIC) + KEY_ID_SIZE]


def key_id(crypto: Crypto, public: bytes) -> bytes:
    """8 B that stand for a disco key on the wire."""
    return crypto.blake2s(b"em1 disco id" + public)[:KEY_ID_SIZE]


def write_ping(transaction: bytes, node_key: bytes, frame_bytes: int = PING_BYTES, cost_ms: float = 0.0) -> bytes:
    """A ping whose frame has `frame_bytes`, or as few as a ping can have."""
    if len(transaction) != TRANSACTION_SIZE or len(node_key) != KEY_SIZE:
        raise LocalProtocolError("ping: a transaction of 12 bytes and a node key of 32")
    cost = _COST.pack(max(0, min(int(cost_ms), COST_MAX_MS)))
    return _pad(bytes((PING,)) + transaction + node_key + cost, frame_bytes)


def write_pong(transaction: bytes, observed: UdpAddress | None, frame_bytes: int) -> bytes:
    """The answer to a ping of `frame_bytes`, and as long: so both directions are tried by one exchange."""
    return _pad(bytes((PONG,)) + transaction + _write_address(observed), frame_bytes)


def write_call_me(endpoints: list[UdpAddress]) -> bytes:
    """The first ENDPOINTS_MAX of `endpoints`."""
    chosen = endpoints[:ENDPOINTS_MAX]
    return bytes((CALL_ME, len(chosen))) + b"".join(_write_address(endpoint) for endpoint in chosen)


def read(plain: bytes) -> Message | None:
    """None for what is not of its form."""
    kind = plain[0] if plain else 0
    if kind == PING:
        transaction, node_key = plain[1:13], plain[13:45]
        cost_ms: int = _COST.unpack_from(plain, 45)[0] if len(plain) >= 47 else 0  # earlier versions do not say
        return Ping(transaction, node_key, cost_ms) if len(node_key) == KEY_SIZE else None
    if kind == PONG:
        observed = _read_address(plain, 13)
        if len(plain) < 14 or (observed is None and plain[13]):
            return None
        return Pong(plain[1:13], observed[0] if observed is not None else None)
    if kind == CALL_ME and len(plain) >= 2:
        return _read_call_me(plain)
    return None


def _read_call_me(plain: bytes) -> CallMe | None:
    count, at = plain[1], 2
    if count > ENDPOINTS_MAX:
        return None
    endpoints = []
    for _ in range(count):
        found = _read_address(plain, at)
        if found is None:
            return None
        endpoint, at = found
        endpoints.append(endpoint)
    return CallMe(endpoints) if at == len(plain) else None


def _write_address(address: UdpAddress | None) -> bytes:
    if address is None:
        return b"\0"
    packed, port = address
    return bytes((len(packed),)) + packed + _PORT.pack(port)


def _read_address(plain: bytes, at: int) -> tuple[UdpAddress, int] | None:
    """(address, where it ends); None where there is none."""
    size = plain[at] if at < len(plain) else 0
    end = at + 1 + size + _PORT.size
    if size not in (4, 16) or end > len(plain):
        return None
    port: int = _PORT.unpack_from(plain, end - _PORT.size)[0]
    return ((plain[at + 1 : end - _PORT.size], port), end) if port else None


def _pad(message: bytes, frame_bytes: int) -> bytes:
    return message + bytes(max(0, frame_bytes - OVERHEAD - len(message)))
