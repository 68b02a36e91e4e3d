"""What goes between a relay and its members, on both carriers. Numbers are big-endian.

Stream (TLS, after the HTTP upgrade): frames of u8 type, u16 length of the payload, payload.
Datagram (UDP): an 8-byte header of u8 type, u8 zero, u16 channel, u32 session, then what the type says. Types are
0xE0 to 0xEF, which no WireGuard, STUN, TURN channel or DTLS datagram begins with, so that all may share a port.

A control datagram of a session is header, u32 counter, body, 16 B MAC: BLAKE2s under the session's key of that
direction over all before it. Counters of one direction only go up. Data has no MAC: what is in it has its own.
"""

from __future__ import annotations

from enum import Enum
from struct import Struct

from edgeagent.proto.crypto import Crypto
from edgeagent.proto.errors import RemoteProtocolError

PACKET_BYTES_MAX = 9_216  # one relayed packet: a WireGuard datagram on a path of jumbo frames
KEY_SIZE = 32
MAC_SIZE = 16

# Stream frames
CHALLENGE = 0x01  # 24 B challenge; relay → member, the first frame
LOGIN = 0x02  # a sealed login (relay_login.py)
WELCOME = 0x03  # u32 session, u16 seconds of silence that the relay bears, u16 channels, 16 B proof of the relay's key
REFUSED = 0x04  # u8 reason (Refusal); the last frame
SEND = 0x05  # 32 B destination key, then the packet; member → relay
RECV = 0x06  # 32 B source key, then the packet; relay → member
PEER_GONE = 0x07  # 32 B key, u8 reason (Gone): a packet to it could not be forwarded
DRAIN = 0x08  # u16 seconds until the relay closes
PING = 0x09  # 8 B that come back
PONG = 0x0A  # the 8 B of a PING
PRESENT = 0x0B  # 16 B network id, then 32 B keys of members that are here; relay → relay of one region
ABSENT = 0x0C  # 16 B network id, then 32 B keys of members that are here no longer
KNOCK = 0x0E  # a knock (write_knock); member → relay
FORWARD = 0x0D  # 32 B source key, 32 B destination key, packet; relay → relay, and never further

# Datagram types
HELLO = 0xE0  # 8 B echo, zeros up to 40 B in all; member → relay
CHALLENGED = 0xE1  # 8 B echo, 24 B challenge: an answer to HELLO, or to what came from an unexpected address
LOGGING_IN = 0xE2  # 24 B challenge, a sealed login
DENIED = 0xE3  # 8 B echo, u8 reason (Refusal)
WELCOMED = 0xE4  # control: u16 seconds of silence that the relay bears, u16 channels
DATA = 0xE5  # channel 0: 32 B destination key (to the relay) or source key (from it), packet; else the packet alone
BIND = 0xE6  # control: 32 B key, u16 channel to be forgotten or 0; from now on the header's channel means that key
BOUND = 0xE7  # control: nothing; the header's channel is bound
REBIND = 0xE8  # control: 24 B challenge; the session's member has the address that this comes from
REBOUND = 0xE9  # control: nothing
GONE = 0xEA  # control: 32 B key, u8 reason (Gone)
DRAINING = 0xEB  # control: u16 seconds
BYE = 0xEC  # control: u8 reason (Refusal); either side ends the session
KNOCKING = 0xED  # control: a knock (write_knock): send KNOCKED to where its challenge was got
KNOCKED = 0xEE  # the last 8 B of that challenge; from the relay's UDP port to a socket that no session has

DATAGRAM_FIRST, DATAGRAM_LAST = 0xE0, 0xEF
MEMBER_CONTROLS = frozenset((BIND, REBIND, BYE, KNOCKING))
RELAY_CONTROLS = frozenset((WELCOMED, BOUND, REBOUND, GONE, DRAINING, BYE))

FRAME_HEAD = Struct(">BH")
FRAME_HEAD_SIZE = FRAME_HEAD.size
FRAME_BYTES_MAX = 2 * KEY_SIZE + PACKET_BYTES_MAX  # FORWARD is the longest
DATAGRAM_HEAD = Struct(">BBHI")
DATAGRAM_HEAD_SIZE = DATAGRAM_HEAD.size
HELLO_BYTES = 40  # as long as CHALLENGED, its answer
LOGIN_BYTES_MAX = 1_280  # of a sealed login; fits any path that WireGuard does
ECHO_SIZE = 8
CHALLENGE_SIZE = 24
NETWORK_ID_SIZE = 16
KEYS_PER_FRAME_MAX = 256  # of PRESENT and ABSENT
OWN_CHANNEL = 1  # bound from the start to the member's own key: what is sent there comes back
CHANNEL_MAX = 0xFFFF

KNOCK_TAIL_SIZE = 8
KNOCKED_BYTES = DATAGRAM_HEAD_SIZE + KNOCK_TAIL_SIZE
KNOCK_SIZES = tuple(CHALLENGE_SIZE + 1 + size + 2 for size in (4, 16))

WELCOME_BODY = Struct(">IHH")
WELCOMED_BODY = Struct(">HH")
BIND_BODY = Struct(">32sH")
SECONDS = Struct(">H")
_COUNTER = Struct(">I")
CONTROL_BYTES_MIN = DATAGRAM_HEAD_SIZE + _COUNTER.size + MAC_SIZE

# A probe crosses the relay from a member to itself: a relay that takes packets and forwards none does not answer it.
PROBE = 0xEF  # 8 or 31 B that come back; begins a packet from a member to itself
PROBE_SIZE = 9
LONG_PROBE_SIZE = HELLO_BYTES - DATAGRAM_HEAD_SIZE  # as a datagram as long as what a relay answers a stranger with

# Body sizes of stream frames: (least, most)
FRAME_SIZES = {
    CHALLENGE: (CHALLENGE_SIZE, CHALLENGE_SIZE),
    LOGIN: (1, LOGIN_BYTES_MAX),
    WELCOME: (WELCOME_BODY.size + MAC_SIZE, WELCOME_BODY.size + MAC_SIZE),
    REFUSED: (1, 1),
    SEND: (KEY_SIZE + 1, KEY_SIZE + PACKET_BYTES_MAX),
    RECV: (KEY_SIZE + 1, KEY_SIZE + PACKET_BYTES_MAX),
    PEER_GONE: (KEY_SIZE + 1, KEY_SIZE + 1),
    DRAIN: (2, 2),
    PING: (8, 8),
    PONG: (8, 8),
    PRESENT: (NETWORK_ID_SIZE + KEY_SIZE, NETWORK_ID_SIZE + KEYS_PER_FRAME_MAX * KEY_SIZE),
    ABSENT: (NETWORK_ID_SIZE + KEY_SIZE, NETWORK_ID_SIZE + KEYS_PER_FRAME_MAX * KEY_SIZE),
    FORWARD: (2 * KEY_SIZE + 1, 2 * KEY_SIZE + PACKET_BYTES_MAX),
    KNOCK: (KNOCK_SIZES[0], KNOCK_SIZES[1]),
}


class Refusal(Enum):
    """Why a relay does not serve, or no longer; the value is its code on the wire, `word` its name in metrics."""

    BAD_FRAME = 1  # what was said makes no sense at this point
    BAD_LOGIN = 2  # not sealed for this relay and this challenge, or no proof of the node key
    BAD_PASS = 3  # the pass is not a pass, or not signed by its network
    WRONG_NETWORK = 4  # a pass of a network that this relay does not serve
    WRONG_RELAY = 5  # a pass for other relays
    WRONG_KEY = 6  # a pass for another node key
    EXPIRED = 7  # the pass has ended
    NOT_YET = 8  # the pass has not begun
    REPLAYED = 9  # a pass older than one that was seen, or a login that was used
    REVOKED = 10  # the device was removed from its network
    FULL = 11  # no room for one more member
    TOO_OFTEN = 12  # too many logins from one address
    DRAINING = 13  # the relay is about to stop
    IDLE = 14  # nothing was heard for longer than agreed
    REPLACED = 15  # the same node key logged in again
    NO_SESSION = 16  # the relay does not know this session, or not any more
    LEAVING = 17  # the member said so

    @property
    def word(self) -> str:
        return self.name.lower().replace("_", "-")


class Gone(Enum):
    """Why a packet could not be forwarded; the value is its code on the wire."""

    NOT_HERE = 1  # no member with that key is on this relay or its region


class RelayError(RemoteProtocolError):
    """A relay or a member said something that cannot be. `reason` is for counting and for telling the other side."""

    def __init__(self, reason: Refusal, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class FrameSplitter:
    """`feed` it what a stream brought, in any pieces: it gives the frames that are whole, and keeps what is not."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """[(type, payload) …]. Raises RelayError(BAD_FRAME) at a type that is none, or a length that it cannot have."""
        buffer = self._rest + data if self._rest else data
        frames = []
        at, end = 0, len(buffer)
        while end - at >= FRAME_HEAD_SIZE:
            kind, size = FRAME_HEAD.unpack_from(buffer, at)
            sizes = FRAME_SIZES.get(kind)
            if sizes is None or not sizes[0] <= size <= sizes[1]:
                raise RelayError(Refusal.BAD_FRAME, f"frame: type 0x{kind:02x} with {size} bytes")
            stop = at + FRAME_HEAD_SIZE + size
            if stop > end:
                break
            frames.append((kind, buffer[at + FRAME_HEAD_SIZE : stop]))
            at = stop
        self._rest = buffer[at:]
        return frames

    @property
    def waiting_bytes(self) -> int:
        """Of a frame that is not whole yet: fewer than FRAME_HEAD_SIZE + FRAME_BYTES_MAX."""
        return len(self._rest)


def frame(kind: int, *parts: bytes) -> bytes:
    """One stream frame."""
    payload = b"".join(parts)
    return FRAME_HEAD.pack(kind, len(payload)) + payload


def data_datagram(session: int, channel: int, packet: bytes) -> bytes:
    return DATAGRAM_HEAD.pack(DATA, 0, channel, session) + packet


def control_datagram(
    crypto: Crypto, key: bytes, kind: int, session: int, counter: int, body: bytes = b"", channel: int = 0
) -> bytes:
    """header ‖ counter ‖ body ‖ MAC."""
    signed = DATAGRAM_HEAD.pack(kind, 0, channel, session) + _COUNTER.pack(counter) + body
    return signed + crypto.blake2s(signed, key, MAC_SIZE)


def open_control(crypto: Crypto, key: bytes, datagram: bytes, last_counter: int) -> tuple[int, bytes] | None:
    """(counter, body), or None when the MAC is wrong or the counter is not above `last_counter`."""
    if len(datagram) < CONTROL_BYTES_MIN:
        return None
    signed = datagram[:-MAC_SIZE]
    counter: int = _COUNTER.unpack_from(datagram, DATAGRAM_HEAD_SIZE)[0]
    if counter <= last_counter or not crypto.equal(crypto.blake2s(signed, key, MAC_SIZE), datagram[-MAC_SIZE:]):
        return None
    return counter, signed[DATAGRAM_HEAD_SIZE + _COUNTER.size :]


def hello_datagram(echo: bytes) -> bytes:
    """The first datagram of whoever wants a challenge; `echo` (8 B) comes back with it."""
    return (DATAGRAM_HEAD.pack(HELLO, 0, 0, 0) + echo).ljust(HELLO_BYTES, b"\0")


def read_challenged(datagram: bytes) -> tuple[bytes, bytes] | None:
    """(echo, challenge) of a CHALLENGED, None for what has another length."""
    if len(datagram) != DATAGRAM_HEAD_SIZE + ECHO_SIZE + CHALLENGE_SIZE:
        return None
    return datagram[DATAGRAM_HEAD_SIZE : DATAGRAM_HEAD_SIZE + ECHO_SIZE], datagram[-CHALLENGE_SIZE:]


def write_knock(challenge: bytes, address: tuple[bytes, int]) -> bytes:
    """challenge 24 ‖ size of the address ‖ address ‖ port 2: the address is where the challenge was sent to."""
    ip, port = address
    return challenge + bytes((len(ip),)) + ip + port.to_bytes(2, "big")


def read_knock(body: bytes) -> tuple[bytes, tuple[bytes, int]] | None:
    """(challenge, (address, port)), None for what is no knock."""
    ip = body[CHALLENGE_SIZE + 1 : -2]
    if len(body) not in KNOCK_SIZES or body[CHALLENGE_SIZE] != len(ip) or body[-2:] == bytes(2):
        return None
    return body[:CHALLENGE_SIZE], (ip, int.from_bytes(body[-2:], "big"))


def echo_of(datagram: bytes) -> bytes:
    """What an answer repeats of a datagram that has no field for it: its end, which nobody off the path can guess."""
    return datagram[-ECHO_SIZE:]


def to_refusal(code: int) -> Refusal:
    """Raises RelayError for a code that is none."""
    try:
        return Refusal(code)
    except ValueError:
        raise RelayError(Refusal.BAD_FRAME, f"refused: no reason has the code {code}") from None


def to_gone(code: int) -> Gone:
    """Raises RelayError for a code that is none."""
    try:
        return Gone(code)
    except ValueError:
        raise RelayError(Refusal.BAD_FRAME, f"gone: no reason has the code {code}") from None
