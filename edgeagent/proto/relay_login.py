"""How a member shows a relay whose node key it holds, and the relay shows that it is the one of the signed relay map.

challenge   u64 milliseconds of the relay's clock ‖ 16 B MAC over them and the member's address, under a secret of the
            relay's: it costs the relay no memory, and only who receives at that address can use it
login       box for the relay key (seal.py; context: relay id and challenge) of u8 role, u16 seconds between two of the
            member's signs of life, 16 B nonce, 32 B key, 16 B proof, pass
keys        KDF3(X25519(member, relay) ‖ challenge ‖ nonce ‖ member's key ‖ relay's key) → proof key, up key, down key
proof       BLAKE2s(proof key, role ‖ seconds ‖ pass)[:16]
"""

from __future__ import annotations

from enum import Enum
from struct import Struct

from edgeagent.proto.crypto import Crypto
from edgeagent.proto.errors import LocalProtocolError
from edgeagent.proto.keys import Entropy
from edgeagent.proto.refusals import ControlError
from edgeagent.proto.relay_frames import (
    KEY_SIZE,
    LOGIN_BYTES_MAX,
    MAC_SIZE,
    OWN_CHANNEL,
    WELCOME_BODY,
    Refusal,
    RelayError,
)
from edgeagent.proto.seal import open_box, seal_box

NONCE_SIZE = 16
SILENCE_MAX_S = 3_600  # the longest that a relay waits for a sign of life
_SALT = b"em1 relay login"
_ZERO = bytes(KEY_SIZE)
_LOGIN_HEAD = Struct(">BH16s32s16s")


class Role(Enum):
    """As what somebody logs in; the value is its code."""

    MEMBER = 0  # a device, with a pass
    SIBLING = 1  # a relay of the same region, known by its relay key; no pass


class SessionKeys:
    """One key each way. `up` is the member's, `down` the relay's."""

    __slots__ = ("down", "proof", "up")

    def __init__(self, proof: bytes, up: bytes, down: bytes) -> None:
        self.proof = proof
        self.up = up
        self.down = down


class Login:
    """A login whose proof holds: `key` is the member's. The pass is not looked at yet."""

    __slots__ = ("interval_s", "key", "keys", "nonce", "pass_object", "role")

    def __init__(
        self, role: Role, interval_s: int, nonce: bytes, key: bytes, keys: SessionKeys, pass_object: bytes
    ) -> None:
        self.role = role
        self.interval_s = interval_s
        self.nonce = nonce
        self.key = key
        self.keys = keys
        self.pass_object = pass_object


def write_login(
    crypto: Crypto,
    entropy: Entropy,
    *,
    relay: str,
    relay_key: bytes,
    challenge: bytes,
    private: bytes,
    role: Role,
    interval_s: int,
    pass_object: bytes,
) -> tuple[bytes, SessionKeys]:
    """The sealed login for one challenge, and the keys of the session that it may begin."""
    public = crypto.x25519_base(private)
    nonce = entropy(NONCE_SIZE)
    keys = _session_keys(crypto, private, relay_key, challenge, nonce, public, relay_key)
    if keys is None:
        raise LocalProtocolError("relay login: the relay's key is not a valid X25519 key")
    interval_s = max(1, min(interval_s, SILENCE_MAX_S))
    proof = _proof(crypto, keys, role.value, interval_s, pass_object)
    plaintext = _LOGIN_HEAD.pack(role.value, interval_s, nonce, public, proof) + pass_object
    login = seal_box(crypto, entropy, relay_key, _context(relay, challenge), plaintext)
    if len(login) > LOGIN_BYTES_MAX:
        raise LocalProtocolError(f"relay login: at most {LOGIN_BYTES_MAX} bytes, got {len(login)}")
    return login, keys


def open_login(
    crypto: Crypto, *, relay: str, relay_private: bytes, relay_key: bytes, challenge: bytes, login: bytes
) -> Login:
    """Raises RelayError(BAD_LOGIN)."""
    try:
        plaintext = open_box(crypto, relay_private, _context(relay, challenge), login)
    except ControlError:
        raise RelayError(Refusal.BAD_LOGIN, "login: not sealed for this relay and this challenge") from None
    if len(plaintext) < _LOGIN_HEAD.size or plaintext[0] > Role.SIBLING.value:
        raise RelayError(Refusal.BAD_LOGIN, "login: too short, or an unknown role")
    role, interval_s, nonce, key, proof = _LOGIN_HEAD.unpack_from(plaintext)
    pass_object = plaintext[_LOGIN_HEAD.size :]
    keys = _session_keys(crypto, relay_private, key, challenge, nonce, key, relay_key)
    if keys is None or not crypto.equal(_proof(crypto, keys, role, interval_s, pass_object), proof):
        raise RelayError(Refusal.BAD_LOGIN, "login: no proof of the node key")
    return Login(Role(role), interval_s, nonce, key, keys, pass_object)


def write_welcome(crypto: Crypto, keys: SessionKeys, session: int, silence_s: int, channels: int) -> bytes:
    """The payload of WELCOME."""
    body: bytes = WELCOME_BODY.pack(session, silence_s, channels)
    return body + crypto.blake2s(b"welcome" + body, keys.down, MAC_SIZE)


def open_welcome(crypto: Crypto, keys: SessionKeys, payload: bytes) -> tuple[int, int, int]:
    """(session, seconds of silence that the relay bears, channels). Raises RelayError(BAD_LOGIN)."""
    body = payload[:-MAC_SIZE]
    if not crypto.equal(crypto.blake2s(b"welcome" + body, keys.down, MAC_SIZE), payload[-MAC_SIZE:]):
        raise RelayError(Refusal.BAD_LOGIN, "welcome: not by the relay whose key is in the map")
    session, silence_s, channels = WELCOME_BODY.unpack(body)
    return session, silence_s, max(OWN_CHANNEL, channels)


def _context(relay: str, challenge: bytes) -> str:
    return f"em1 relay {relay} {challenge.hex()}"


def _session_keys(
    crypto: Crypto, private: bytes, other: bytes, challenge: bytes, nonce: bytes, member: bytes, relay: bytes
) -> SessionKeys | None:
    shared = crypto.x25519(private, other)
    if crypto.equal(shared, _ZERO):  # RFC 7748, section 6.1
        return None
    return SessionKeys(*crypto.hkdf(_SALT, shared + challenge + nonce + member + relay, 3))


def _proof(crypto: Crypto, keys: SessionKeys, role: int, interval_s: int, pass_object: bytes) -> bytes:
    data = bytes((role,)) + interval_s.to_bytes(2, "big") + pass_object
    return crypto.blake2s(data, keys.proof, MAC_SIZE)
