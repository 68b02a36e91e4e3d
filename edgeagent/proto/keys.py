"""Key forms: base64 as `wg` prints it, hexadecimal as its userspace API has it, clamping of X25519 private keys."""

from __future__ import annotations

from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from collections.abc import Callable

from edgeagent.proto.constants import KEY_SIZE
from edgeagent.proto.errors import RemoteProtocolError

Entropy = Callable[[int], bytes]

_P = (1 << 255) - 19
# The u-coordinates of the points whose order divides eight, on the curve and on its twist
_SMALL_ORDER = (
    0,
    1,
    _P - 1,
    0xB8495F16056286FDB1329CEB8D09DA6AC49FF1FAE35616AEB8413B7C7AEBE0,
    0x57119FD0DD4E22D8868E1C58C45C44045BEF839C55B1D0B1248C50A3BC959C5F,
)


def generate_private_key(entropy: Entropy) -> bytes:
    """A new X25519 private key, 32 B, clamped."""
    return clamp(entropy(KEY_SIZE))


def clamp(private: bytes) -> bytes:
    """RFC 7748, section 5."""
    key = bytearray(private)
    key[0] &= 248
    key[31] = (key[31] & 127) | 64
    return bytes(key)


def has_small_order(public: bytes) -> bool:
    """Whether an X25519 key shares the same nothing with every other one (RFC 7748, section 6.1)."""
    return (int.from_bytes(public, "little") & ((1 << 255) - 1)) % _P in _SMALL_ORDER


def to_base64(key: bytes) -> str:
    return b2a_base64(key, newline=False).decode("ascii")


def from_base64(text: str, field: str = "key") -> bytes:
    """32 B from the 44 characters that `wg genkey` prints; `field` is named in the error."""
    try:
        key = a2b_base64(text.encode("ascii"), strict_mode=True)
    except (Base64Error, UnicodeEncodeError):
        raise RemoteProtocolError(f"{field}: not base64") from None
    if len(text) != 44 or len(key) != KEY_SIZE:
        raise RemoteProtocolError(f"{field}: a key has 44 base64 characters, got {len(text)}")
    return key


def from_hex(text: str, field: str = "key") -> bytes:
    """32 B from 64 hexadecimal digits; `field` is named in the error."""
    if len(text) != 2 * KEY_SIZE or not all(c in "0123456789abcdefABCDEF" for c in text):
        raise RemoteProtocolError(f"{field}: a key has 64 hexadecimal digits")
    return bytes.fromhex(text)


def fingerprint(key: bytes) -> str:
    """A short public name for a public key, as logs show it."""
    text = to_base64(key)
    return f"{text[:4]}…{text[-5:-1]}"
