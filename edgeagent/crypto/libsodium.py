"""What the providers on libsodium share: its calls and their checks, and BLAKE2s from CPython.

How the library is called is theirs: by cffi (`pynacl`) or by ctypes (`sodium`).
"""

from __future__ import annotations

from struct import Struct
from struct import error as StructError

try:
    from _blake2 import blake2s  # what hashlib.blake2s is; hashlib itself loads OpenSSL, 3.6 MiB
except ImportError:
    from hashlib import blake2s

TYPE_CHECKING = False  # what the typing module would say, and 5 ms
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MESSAGE_MAX = 65_536  # B of plaintext: the largest IP packet, padded to 16

_TAG = 16
_HEADER = 16
_nonce_of_counter = Struct("<4xQ").pack  # WireGuard paper 5.4.6
_INNER = bytes(byte ^ 0x36 for byte in range(256))  # RFC 2104: ipad and opad as translation tables
_OUTER = bytes(byte ^ 0x5C for byte in range(256))


class Libsodium:
    """Implements `edgeagent.proto.crypto.Crypto`. One instance per thread: all calls share its scratch buffer.

    ValueError when a key, nonce, header or plaintext has the wrong length; that is also what keeps libsodium, which
    gets bare pointers, from reading beyond them.
    """

    __slots__ = (
        "_lib",
        "_look",
        "_new",
        "_null",
        "_open",
        "_public",
        "_scratch",
        "_seal",
        "_view",
        "_xopen",
        "_xseal",
        "name",
    )

    _view: bytes  # over the scratch: all that is asked of it is slices, and those are bytes

    def __init__(self, name: str, lib: Any, new: Callable[[int], Any], look: Callable[[Any], Any], null: Any) -> None:
        """`lib` has libsodium's functions, which take bytes and what `new` makes of a size; `look` makes a thing of it
        whose slices are bytes; `null` is the null pointer."""
        # Without this libsodium stays on its portable code: 2.6 instead of 1.9 µs for 1,280 B.
        if lib.sodium_init() < 0:
            raise OSError("libsodium does not initialise")
        self.name = name
        self._lib, self._new, self._look, self._null = lib, new, look, null
        self._seal = lib.crypto_aead_chacha20poly1305_ietf_encrypt
        self._open = lib.crypto_aead_chacha20poly1305_ietf_decrypt
        self._xseal = lib.crypto_aead_xchacha20poly1305_ietf_encrypt
        self._xopen = lib.crypto_aead_xchacha20poly1305_ietf_decrypt
        self._scratch = new(MESSAGE_MAX + _TAG)
        self._public = new(32)
        self._view = look(self._scratch)

    def seal_transport(self, key: bytes, header: bytes, counter: int, plaintext: bytes) -> bytes:
        """header (16 B) ‖ ciphertext ‖ tag under the nonce 4 zero bytes ‖ counter, with no additional data."""
        size = len(plaintext)
        if len(key) != 32 or len(header) != _HEADER or size > MESSAGE_MAX:
            raise _wrong_length(key=(key, 32), header=(header, _HEADER), plaintext=(plaintext, None))
        try:
            self._seal(
                self._scratch, self._null, plaintext, size, self._null, 0, self._null, _nonce_of_counter(counter), key
            )
        except StructError as error:
            raise ValueError(f"counter: {counter} does not fit into 64 bits") from error
        return header + self._view[: size + _TAG]

    def open_transport(self, key: bytes, counter: int, datagram: bytes) -> bytes | None:
        """The plaintext of datagram[16:], or None when it is not authentic."""
        size = len(datagram) - _HEADER
        if len(key) != 32:
            raise _wrong_length(key=(key, 32))
        if not _TAG <= size <= MESSAGE_MAX + _TAG:
            return None
        try:
            nonce = _nonce_of_counter(counter)
        except StructError as error:
            raise ValueError(f"counter: {counter} does not fit into 64 bits") from error
        if self._open(self._scratch, self._null, self._null, datagram[_HEADER:], size, self._null, 0, nonce, key):
            return None
        return self._view[: size - _TAG]

    def aead_seal(self, key: bytes, nonce: bytes, plaintext: bytes, ad: bytes) -> bytes:
        """ChaCha20-Poly1305, RFC 8439: ciphertext ‖ tag."""
        size = len(plaintext)
        if len(key) != 32 or len(nonce) != 12 or size > MESSAGE_MAX:
            raise _wrong_length(key=(key, 32), nonce=(nonce, 12), plaintext=(plaintext, None))
        self._seal(self._scratch, self._null, plaintext, size, ad, len(ad), self._null, nonce, key)
        return self._view[: size + _TAG]

    def aead_open(self, key: bytes, nonce: bytes, ciphertext: bytes, ad: bytes) -> bytes | None:
        """The plaintext, or None when key, nonce, ciphertext and additional data do not belong together."""
        size = len(ciphertext)
        if len(key) != 32 or len(nonce) != 12:
            raise _wrong_length(key=(key, 32), nonce=(nonce, 12))
        if not _TAG <= size <= MESSAGE_MAX + _TAG:
            return None
        if self._open(self._scratch, self._null, self._null, ciphertext, size, ad, len(ad), nonce, key):
            return None
        return self._view[: size - _TAG]

    def xaead_seal(self, key: bytes, nonce: bytes, plaintext: bytes, ad: bytes) -> bytes:
        """XChaCha20-Poly1305, draft-irtf-cfrg-xchacha: ciphertext ‖ tag."""
        size = len(plaintext)
        if len(key) != 32 or len(nonce) != 24 or size > MESSAGE_MAX:
            raise _wrong_length(key=(key, 32), nonce=(nonce, 24), plaintext=(plaintext, None))
        self._xseal(self._scratch, self._null, plaintext, size, ad, len(ad), self._null, nonce, key)
        return self._view[: size + _TAG]

    def xaead_open(self, key: bytes, nonce: bytes, ciphertext: bytes, ad: bytes) -> bytes | None:
        """The plaintext, or None when key, nonce, ciphertext and additional data do not belong together."""
        size = len(ciphertext)
        if len(key) != 32 or len(nonce) != 24:
            raise _wrong_length(key=(key, 32), nonce=(nonce, 24))
        if not _TAG <= size <= MESSAGE_MAX + _TAG:
            return None
        if self._xopen(self._scratch, self._null, self._null, ciphertext, size, ad, len(ad), nonce, key):
            return None
        return self._view[: size - _TAG]

    def x25519(self, private: bytes, public: bytes) -> bytes:
        """Shared secret, 32 B; all zero for a low-order point (RFC 7748, section 6.1), which the caller refuses."""
        if len(private) != 32 or len(public) != 32:
            raise _wrong_length(private=(private, 32), public=(public, 32))
        if self._lib.crypto_scalarmult(self._scratch, private, public):
            return bytes(32)
        return self._view[:32]

    def x25519_base(self, private: bytes) -> bytes:
        """Public key of a private key, 32 B."""
        if len(private) != 32:
            raise _wrong_length(private=(private, 32))
        self._lib.crypto_scalarmult_base(self._scratch, private)
        return self._view[:32]

    def blake2s(self, data: bytes, key: bytes = b"", size: int = 32) -> bytes:
        """RFC 7693: hash, or MAC when there is a key (≤ 32 B), of `size` bytes (1 to 32)."""
        return blake2s(data, digest_size=size, key=key).digest()

    def hmac_blake2s(self, key: bytes, data: bytes) -> bytes:
        """RFC 2104 over BLAKE2s-256, 32 B. Two plain calls take half the time of hmac.digest."""
        if len(key) > 64:
            key = blake2s(key).digest()
        key = key.ljust(64, b"\0")
        return blake2s(key.translate(_OUTER) + blake2s(key.translate(_INNER) + data).digest()).digest()

    def hkdf(self, chaining_key: bytes, data: bytes, n: int) -> tuple[bytes, ...]:
        """KDF_n of the WireGuard paper, section 5.4: n outputs of 32 B, 1 ≤ n ≤ 3."""
        if not 1 <= n <= 3:
            raise ValueError(f"n: {n} outputs asked for, 1 to 3 are defined")
        secret = self.hmac_blake2s(chaining_key, data)
        outputs = [self.hmac_blake2s(secret, b"\x01")]
        while len(outputs) < n:
            outputs.append(self.hmac_blake2s(secret, outputs[-1] + bytes((len(outputs) + 1,))))
        return tuple(outputs)

    def ed25519_public(self, seed: bytes) -> bytes:
        """Public key of a 32 B seed (RFC 8032)."""
        return self._expand(seed)[32:]

    def ed25519_sign(self, seed: bytes, message: bytes) -> bytes:
        """Signature, 64 B."""
        signed = self._new(64 + len(message))
        self._lib.crypto_sign(signed, self._null, message, len(message), self._expand(seed))
        signature: bytes = self._look(signed)[:64]
        return signature

    def ed25519_verify(self, public: bytes, message: bytes, signature: bytes) -> bool:
        """False for a bad signature, for S ≥ L, for points that are not canonical or of small order, wrong lengths."""
        if len(public) != 32 or len(signature) != 64:
            return False
        return not self._lib.crypto_sign_open(self._null, self._null, signature + message, 64 + len(message), public)

    def equal(self, a: bytes, b: bytes) -> bool:
        """Comparison in a time that depends on the lengths only."""
        return len(a) == len(b) and self._lib.sodium_memcmp(a, b, len(a)) == 0

    def wipe(self, secret: bytes) -> None:
        """Zero the bytes object itself. It must come from this provider or from the entropy source, and be held by
        the caller alone: a literal or an interned object would change for everybody. What x25519 and the signing key
        left in the scratch goes too."""
        if len(secret) > 1:  # CPython shares the empty and the one-byte objects
            self._lib.sodium_memzero(secret, len(secret))
        self._lib.sodium_memzero(self._scratch, 96)

    def _expand(self, seed: bytes) -> bytes:
        """libsodium's 64 B secret key: seed ‖ public key."""
        if len(seed) != 32:
            raise _wrong_length(seed=(seed, 32))
        self._lib.crypto_sign_seed_keypair(self._public, self._scratch, seed)
        return self._view[:64]


def _wrong_length(**arguments: tuple[bytes, int | None]) -> ValueError:
    """Names the first argument whose length is not the given one, or is above MESSAGE_MAX where none is given."""
    for name, (value, size) in arguments.items():
        if size is not None and len(value) != size:
            return ValueError(f"{name}: {len(value)} B, must be {size} B")
    return ValueError(f"{name}: {len(value)} B, at most {MESSAGE_MAX} B")
