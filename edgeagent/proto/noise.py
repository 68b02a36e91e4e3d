"""Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s as WireGuard uses it (paper, sections 5.4.1 to 5.4.5).

Functions over a `Handshake`, the symmetric state of one exchange; which exchange counts, when one may start and
what becomes of the keys is the peer's business. Names follow the paper: C is `chaining_key`, H is `hash`.
"""

from __future__ import annotations

from edgeagent.proto.constants import CONSTRUCTION, IDENTIFIER, KEY_SIZE
from edgeagent.proto.crypto import Crypto
from edgeagent.proto.keys import Entropy, generate_private_key
from edgeagent.proto.messages import Initiation, Response

_NONCE_ZERO = bytes(12)
_KEY_ZERO = bytes(KEY_SIZE)


class Handshake:
    """Symmetric state between an initiation and its response, on either side."""

    __slots__ = ("chaining_key", "ephemeral_private", "hash", "local_index", "remote_ephemeral", "remote_index")

    def __init__(self, chaining_key: bytes, hash_: bytes, local_index: int) -> None:
        self.chaining_key = chaining_key
        self.hash = hash_
        self.local_index = local_index
        self.remote_index = 0
        self.ephemeral_private = b""
        self.remote_ephemeral = b""


class OpenedInitiation:
    """An initiation that decrypted: who sent it, when they say so, and the state to answer with."""

    __slots__ = ("handshake", "static_public", "timestamp")

    def __init__(self, handshake: Handshake, static_public: bytes, timestamp: bytes) -> None:
        self.handshake = handshake
        self.static_public = static_public
        self.timestamp = timestamp


class TransportKeys:
    """Paper 5.4.5: what both sides hold when the handshake is done."""

    __slots__ = ("local_index", "receive", "remote_index", "send")

    def __init__(self, send: bytes, receive: bytes, local_index: int, remote_index: int) -> None:
        self.send = send
        self.receive = receive
        self.local_index = local_index
        self.remote_index = remote_index


def create_initiation(
    crypto: Crypto,
    entropy: Entropy,
    static_private: bytes,
    static_public: bytes,
    remote_static: bytes,
    timestamp: bytes,
    local_index: int,
) -> tuple[Handshake, Initiation] | None:
    """Paper 5.4.2. None when the remote key is a low-order point: no handshake with it can be secret."""
    chaining_key, hash_ = _begin(crypto, remote_static)
    ephemeral_private = generate_private_key(entropy)
    ephemeral = crypto.x25519_base(ephemeral_private)
    chaining_key = crypto.hkdf(chaining_key, ephemeral, 1)[0]
    hash_ = crypto.blake2s(hash_ + ephemeral)

    shared = crypto.x25519(ephemeral_private, remote_static)
    static_shared = crypto.x25519(static_private, remote_static)
    if _KEY_ZERO in (shared, static_shared):
        return None
    chaining_key, key = crypto.hkdf(chaining_key, shared, 2)
    sealed_static = crypto.aead_seal(key, _NONCE_ZERO, static_public, hash_)
    hash_ = crypto.blake2s(hash_ + sealed_static)

    chaining_key, key = crypto.hkdf(chaining_key, static_shared, 2)
    sealed_timestamp = crypto.aead_seal(key, _NONCE_ZERO, timestamp, hash_)
    hash_ = crypto.blake2s(hash_ + sealed_timestamp)

    handshake = Handshake(chaining_key, hash_, local_index)
    handshake.ephemeral_private = ephemeral_private
    return handshake, Initiation(local_index, ephemeral, sealed_static, sealed_timestamp)


def open_initiation(
    crypto: Crypto, static_private: bytes, static_public: bytes, message: Initiation
) -> OpenedInitiation | None:
    """Paper 5.4.2, the responder's side. None when anything in it does not decrypt."""
    chaining_key, hash_ = _begin(crypto, static_public)
    chaining_key = crypto.hkdf(chaining_key, message.ephemeral, 1)[0]
    hash_ = crypto.blake2s(hash_ + message.ephemeral)

    shared = crypto.x25519(static_private, message.ephemeral)
    if shared == _KEY_ZERO:
        return None
    chaining_key, key = crypto.hkdf(chaining_key, shared, 2)
    remote_static = crypto.aead_open(key, _NONCE_ZERO, message.sealed_static, hash_)
    if remote_static is None:
        return None
    hash_ = crypto.blake2s(hash_ + message.sealed_static)

    shared = crypto.x25519(static_private, remote_static)
    if shared == _KEY_ZERO:
        return None
    chaining_key, key = crypto.hkdf(chaining_key, shared, 2)
    timestamp = crypto.aead_open(key, _NONCE_ZERO, message.sealed_timestamp, hash_)
    if timestamp is None:
        return None
    handshake = Handshake(chaining_key, crypto.blake2s(hash_ + message.sealed_timestamp), 0)
    handshake.remote_index = message.sender_index
    handshake.remote_ephemeral = message.ephemeral
    return OpenedInitiation(handshake, remote_static, timestamp)


def create_response(
    crypto: Crypto,
    entropy: Entropy,
    handshake: Handshake,
    remote_static: bytes,
    preshared_key: bytes,
    local_index: int,
) -> tuple[Response, TransportKeys] | None:
    """Paper 5.4.3. None when the initiator's ephemeral is a low-order point."""
    ephemeral_private = generate_private_key(entropy)
    ephemeral = crypto.x25519_base(ephemeral_private)
    shared = crypto.x25519(ephemeral_private, handshake.remote_ephemeral)
    static_shared = crypto.x25519(ephemeral_private, remote_static)
    if _KEY_ZERO in (shared, static_shared):
        return None
    chaining_key = crypto.hkdf(handshake.chaining_key, ephemeral, 1)[0]
    hash_ = crypto.blake2s(handshake.hash + ephemeral)
    chaining_key = crypto.hkdf(chaining_key, shared, 1)[0]
    chaining_key = crypto.hkdf(chaining_key, static_shared, 1)[0]
    chaining_key, mixed, key = crypto.hkdf(chaining_key, preshared_key, 3)
    hash_ = crypto.blake2s(hash_ + mixed)
    sealed_empty = crypto.aead_seal(key, _NONCE_ZERO, b"", hash_)
    receive, send = crypto.hkdf(chaining_key, b"", 2)
    crypto.wipe(ephemeral_private)
    return (
        Response(local_index, handshake.remote_index, ephemeral, sealed_empty),
        TransportKeys(send, receive, local_index, handshake.remote_index),
    )


def open_response(
    crypto: Crypto, static_private: bytes, preshared_key: bytes, handshake: Handshake, message: Response
) -> TransportKeys | None:
    """Paper 5.4.3, the initiator's side. None leaves `handshake` as it was: a forged answer must not end it."""
    shared = crypto.x25519(handshake.ephemeral_private, message.ephemeral)
    static_shared = crypto.x25519(static_private, message.ephemeral)
    if _KEY_ZERO in (shared, static_shared):
        return None
    chaining_key = crypto.hkdf(handshake.chaining_key, message.ephemeral, 1)[0]
    hash_ = crypto.blake2s(handshake.hash + message.ephemeral)
    chaining_key = crypto.hkdf(chaining_key, shared, 1)[0]
    chaining_key = crypto.hkdf(chaining_key, static_shared, 1)[0]
    chaining_key, mixed, key = crypto.hkdf(chaining_key, preshared_key, 3)
    hash_ = crypto.blake2s(hash_ + mixed)
    if crypto.aead_open(key, _NONCE_ZERO, message.sealed_empty, hash_) is None:
        return None
    send, receive = crypto.hkdf(chaining_key, b"", 2)
    return TransportKeys(send, receive, handshake.local_index, message.sender_index)


def wipe(crypto: Crypto, handshake: Handshake) -> None:
    """Overwrite what a handshake must not leave behind."""
    crypto.wipe(handshake.chaining_key)
    if handshake.ephemeral_private:
        crypto.wipe(handshake.ephemeral_private)


def _begin(crypto: Crypto, responder_static: bytes) -> tuple[bytes, bytes]:
    chaining_key = crypto.blake2s(CONSTRUCTION)
    hash_ = crypto.blake2s(crypto.blake2s(chaining_key + IDENTIFIER) + responder_static)
    return chaining_key, hash_
