"""The provider where PyNaCl is not: the system's libsodium by ctypes, for machines that no wheel is made for.

A call takes 2 µs longer than by PyNaCl, which a handshake does not notice and packets need not: the C library has its
own ciphers.
"""

from __future__ import annotations

import ctypes

from edgeagent.crypto.libsodium import Libsodium

# By their sonames: 23 up to 1.0.18, 26 from 1.0.19 on. ctypes.util would start a compiler to find them.
NAMES = ("libsodium.so.26", "libsodium.so.23", "libsodium.so")
_BYTES, _SIZE, _OUT = ctypes.c_char_p, ctypes.c_ulonglong, ctypes.c_void_p
_SEAL = (_BYTES, _OUT, _BYTES, _SIZE, _BYTES, _SIZE, _BYTES, _BYTES, _BYTES)
_OPEN = (_BYTES, _OUT, _BYTES, _BYTES, _SIZE, _BYTES, _SIZE, _BYTES, _BYTES)
# Of libsodium's headers; tests/test_crypto_load.py compares them with PyNaCl's.
PROTOTYPES = {
    "crypto_aead_chacha20poly1305_ietf_encrypt": _SEAL,
    "crypto_aead_chacha20poly1305_ietf_decrypt": _OPEN,
    "crypto_aead_xchacha20poly1305_ietf_encrypt": _SEAL,
    "crypto_aead_xchacha20poly1305_ietf_decrypt": _OPEN,
    "crypto_scalarmult": (_BYTES, _BYTES, _BYTES),
    "crypto_scalarmult_base": (_BYTES, _BYTES),
    "crypto_sign": (_BYTES, _OUT, _BYTES, _SIZE, _BYTES),
    "crypto_sign_open": (_BYTES, _OUT, _BYTES, _SIZE, _BYTES),
    "crypto_sign_seed_keypair": (_BYTES, _BYTES, _BYTES),
    "sodium_init": (),
    "sodium_memcmp": (_BYTES, _BYTES, ctypes.c_size_t),
    "sodium_memzero": (_BYTES, ctypes.c_size_t),
}


class Sodium(Libsodium):
    """Implements `edgeagent.proto.crypto.Crypto`. One instance per thread. OSError where there is no libsodium."""

    __slots__ = ()

    def __init__(self) -> None:
        library = _library()
        for name, arguments in PROTOTYPES.items():
            function = getattr(library, name)
            function.argtypes = arguments
            function.restype = None if name == "sodium_memzero" else ctypes.c_int
        super().__init__("sodium", library, ctypes.create_string_buffer, lambda buffer: buffer, None)


def _library() -> ctypes.CDLL:
    why = "no name to look for"
    for name in NAMES:
        try:
            return ctypes.CDLL(name)
        except OSError as error:
            why = str(error)
    raise OSError(f"no libsodium: {why}")
