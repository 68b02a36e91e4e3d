"""Sealed boxes: anybody can write one, one reader can open it, and only on the topic that it was written for."""

from __future__ import annotations

from edgeagent.proto.crypto import Crypto
from edgeagent.proto.errors import LocalProtocolError
from edgeagent.proto.keys import Entropy, generate_private_key
from edgeagent.proto.refusals import ControlDrop, ControlError

BOX_OVERHEAD_BYTES = 32 + 16
_SALT = b"em1 box"
_NONCE = bytes(12)  # every key is used for one message
_ZERO = bytes(32)


def seal_box(crypto: Crypto, entropy: Entropy, reader_public: bytes, context: str, plaintext: bytes) -> bytes:
    """ephemeral public key (32) ‖ ChaCha20-Poly1305. `context` is the MQTT topic."""
    ephemeral = generate_private_key(entropy)
    ephemeral_public = crypto.x25519_base(ephemeral)
    shared = crypto.x25519(ephemeral, reader_public)
    if crypto.equal(shared, _ZERO):
        raise LocalProtocolError("box: the reader's key is not a valid X25519 key")
    key = _key(crypto, shared, ephemeral_public, reader_public)
    return ephemeral_public + crypto.aead_seal(key, _NONCE, plaintext, context.encode())


def open_box(crypto: Crypto, reader_private: bytes, context: str, data: bytes) -> bytes:
    """The plaintext. Raises ControlError(BAD_BOX)."""
    if len(data) < BOX_OVERHEAD_BYTES:
        raise ControlError(ControlDrop.BAD_BOX, f"box: at least {BOX_OVERHEAD_BYTES} bytes, got {len(data)}")
    ephemeral_public = data[:32]
    shared = crypto.x25519(reader_private, ephemeral_public)
    if crypto.equal(shared, _ZERO):  # RFC 7748, section 6.1
        raise ControlError(ControlDrop.BAD_BOX, "box: a key of small order")
    key = _key(crypto, shared, ephemeral_public, crypto.x25519_base(reader_private))
    plaintext = crypto.aead_open(key, _NONCE, data[32:], context.encode())
    if plaintext is None:
        raise ControlError(ControlDrop.BAD_BOX, "box: not sealed for this reader and this topic")
    return plaintext


def _key(crypto: Crypto, shared: bytes, ephemeral_public: bytes, reader_public: bytes) -> bytes:
    return crypto.hkdf(_SALT, shared + ephemeral_public + reader_public, 1)[0]
