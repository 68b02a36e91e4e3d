"""The provider: the primitives of this directory behind `edgeagent.proto.crypto.Crypto`."""

from . import blake2s, chacha, ed25519, x25519
from .known_answers import check

MESSAGE_MAX = 65_536  # B of plaintext: the largest IP packet, padded to 16

_HEADER = 16


class Pure:
    """Implements `edgeagent.proto.crypto.Crypto`, not in constant time. ValueError when a length is wrong."""

    __slots__ = ("name",)

    def __init__(self) -> None:
        self.name = "pure"

    def seal_transport(self, key: bytes, header: bytes, counter: int, plaintext: bytes) -> bytes:
        """header (16 B) ‖ ciphertext ‖ tag under the nonce 4 zero bytes ‖ counter, with no additional data."""
        _check_length("header", header, _HEADER)
        return header + self.aead_seal(key, _nonce_of_counter(counter), plaintext, b"")

    def open_transport(self, key: bytes, counter: int, datagram: bytes) -> "bytes | None":
        """The plaintext of datagram[16:], or None when it is not authentic."""
        return self.aead_open(key, _nonce_of_counter(counter), datagram[_HEADER:], b"")

    def aead_seal(self, key: bytes, nonce: bytes, plaintext: bytes, ad: bytes) -> bytes:
        """ChaCha20-Poly1305, RFC 8439: ciphertext ‖ tag."""
        _check_length("key", key, 32)
        _check_length("nonce", nonce, 12)
        _check_plaintext(plaintext)
        return chacha.aead_seal(key, nonce, plaintext, ad)

    def aead_open(self, key: bytes, nonce: bytes, ciphertext: bytes, ad: bytes) -> "bytes | None":
        """The plaintext, or None when key, nonce, ciphertext and additional data do not belong together."""
        _check_length("key", key, 32)
        _check_length("nonce", nonce, 12)
        if len(ciphertext) > MESSAGE_MAX + 16:
            return None
        return chacha.aead_open(key, nonce, ciphertext, ad)

    def xaead_seal(self, key: bytes, nonce: bytes, plaintext: bytes, ad: bytes) -> bytes:
        """XChaCha20-Poly1305, draft-irtf-cfrg-xchacha: ciphertext ‖ tag."""
        _check_length("key", key, 32)
        _check_length("nonce", nonce, 24)
        _check_plaintext(plaintext)
        return chacha.xaead_seal(key, nonce, plaintext, ad)

    def xaead_open(self, key: bytes, nonce: bytes, ciphertext: bytes, ad: bytes) -> "bytes | None":
        """The plaintext, or None when key, nonce, ciphertext and additional data do not belong together."""
        _check_length("key", key, 32)
        _check_length("nonce", nonce, 24)
        if len(ciphertext) > MESSAGE_MAX + 16:
            return None
        return chacha.xaead_open(key, nonce, ciphertext, ad)

    def x25519(self, private: bytes, public: bytes) -> bytes:
        """Shared secret, 32 B; all zero for a low-order point (RFC 7748, section 6.1), which the caller refuses."""
        _check_length("private", private, 32)
        _check_length("public", public, 32)
        return x25519.x25519(private, public)

    def x25519_base(self, private: bytes) -> bytes:
        """Public key of a private key, 32 B."""
        _check_length("private", private, 32)
        return x25519.x25519_base(private)

    def blake2s(self, data: bytes, key: bytes = b"", size: int = 32) -> bytes:
        """RFC 7693: hash, or MAC when there is a key (≤ 32 B), of `size` bytes (1 to 32)."""
        if not 1 <= size <= 32:
            raise ValueError("size: must be 1 to 32 B")
        if len(key) > 32:
            raise ValueError("key: at most 32 B")
        return blake2s.blake2s(data, key, size)

    def hmac_blake2s(self, key: bytes, data: bytes) -> bytes:
        """RFC 2104 over BLAKE2s-256, 32 B."""
        return blake2s.hmac_blake2s(key, data)

    def hkdf(self, chaining_key: bytes, data: bytes, n: int) -> "tuple[bytes, ...]":
        """KDF_n of the WireGuard paper, section 5.4: n outputs of 32 B, 1 ≤ n ≤ 3."""
        if not 1 <= n <= 3:
            raise ValueError("n: 1 to 3 outputs are defined")
        return blake2s.hkdf(chaining_key, data, n)

    def ed25519_public(self, seed: bytes) -> bytes:
        """Public key of a 32 B seed (RFC 8032)."""
        _check_length("seed", seed, 32)
        return ed25519.ed25519_public(seed)

    def ed25519_sign(self, seed: bytes, message: bytes) -> bytes:
        """Signature, 64 B."""
        _check_length("seed", seed, 32)
        return ed25519.ed25519_sign(seed, message)

    def ed25519_verify(self, public: bytes, message: bytes, signature: bytes) -> bool:
        """False for a bad signature, for S ≥ L, for points that are not canonical or of small order, wrong lengths."""
        return len(public) == 32 and len(signature) == 64 and ed25519.ed25519_verify(public, message, signature)

    def equal(self, a: bytes, b: bytes) -> bool:
        """Comparison that looks at every byte, wherever the first difference is."""
        return chacha.equal(a, b)

    def wipe(self, secret: bytes) -> None:
        """Does nothing: Python cannot write into a bytes object. The secret stays until its memory is used again."""


def self_test() -> None:
    """Raises WrongAnswer when a primitive computes anything but its published vectors on this interpreter."""
    check(Pure())


def _check_length(name: str, value: bytes, size: int) -> None:
    if len(value) != size:
        raise ValueError(f"{name}: {len(value)} B, must be {size} B")


def _check_plaintext(plaintext: bytes) -> None:
    if len(plaintext) > MESSAGE_MAX:
        raise ValueError(f"plaintext: {len(plaintext)} B, at most {MESSAGE_MAX} B")


def _nonce_of_counter(counter: int) -> bytes:
    """WireGuard paper 5.4.6."""
    if not 0 <= counter < 1 << 64:
        raise ValueError(f"counter: {counter} does not fit into 64 bits")
    return bytes(4) + counter.to_bytes(8, "little")
