"""What the protocol asks of a crypto provider. The providers themselves are in `edgeagent.crypto`."""

from __future__ import annotations

from typing import Protocol


class Crypto(Protocol):
    """X25519 (RFC 7748), BLAKE2s (RFC 7693), ChaCha20-Poly1305 (RFC 8439), XChaCha20-Poly1305, Ed25519 (RFC 8032).

    Lengths are checked: a key of the wrong length is the caller's bug and raises ValueError. What came from the
    network never raises: an open that fails returns None, a signature that fails returns False.
    """

    name: str

    def x25519(self, private: bytes, public: bytes) -> bytes:
        """Shared secret, 32 B. All zero for a low-order point: the caller refuses it (RFC 7748, section 6.1)."""

    def x25519_base(self, private: bytes) -> bytes:
        """Public key of a private key, 32 B."""

    def blake2s(self, data: bytes, key: bytes = b"", size: int = 32) -> bytes: ...

    def hmac_blake2s(self, key: bytes, data: bytes) -> bytes:
        """RFC 2104 over BLAKE2s-256, 32 B."""

    def hkdf(self, chaining_key: bytes, data: bytes, n: int) -> tuple[bytes, ...]:
        """KDF_n of the WireGuard paper, section 5.4: n outputs of 32 B, 1 ≤ n ≤ 3."""

    def aead_seal(self, key: bytes, nonce: bytes, plaintext: bytes, ad: bytes) -> bytes: ...

    def aead_open(self, key: bytes, nonce: bytes, ciphertext: bytes, ad: bytes) -> bytes | None: ...

    def xaead_seal(self, key: bytes, nonce: bytes, plaintext: bytes, ad: bytes) -> bytes: ...

    def xaead_open(self, key: bytes, nonce: bytes, ciphertext: bytes, ad: bytes) -> bytes | None: ...

    def ed25519_public(self, seed: bytes) -> bytes: ...

    def ed25519_sign(self, seed: bytes, message: bytes) -> bytes: ...

    def ed25519_verify(self, public: bytes, message: bytes, signature: bytes) -> bool: ...

    def equal(self, a: bytes, b: bytes) -> bool:
        """Comparison in constant time."""

    def seal_transport(self, key: bytes, header: bytes, counter: int, plaintext: bytes) -> bytes:
        """A datagram: header (16 B) ‖ ciphertext ‖ tag; the nonce is 4 zero bytes ‖ counter, little-endian."""

    def open_transport(self, key: bytes, counter: int, datagram: bytes) -> bytes | None:
        """The plaintext of datagram[16:], or None."""

    def wipe(self, secret: bytes) -> None:
        """Overwrite a secret that only its owner holds, as far as the provider can reach its memory."""
