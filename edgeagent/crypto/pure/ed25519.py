"""Ed25519 (RFC 8032), verifying as strictly as libsodium does. Not constant-time.

Points are (X, Y, Z, T) with x = X/Z, y = Y/Z, xy = T/Z (RFC 8032, section 5.1.4).
"""

try:
    from hashlib import sha512 as _hashlib_sha512

    def sha512(data: bytes) -> bytes:
        """Hash, 64 B."""
        return _hashlib_sha512(data).digest()

except ImportError:
    from .sha512 import sha512

_P = (1 << 255) - 19
_L = (1 << 252) + 27742317777372353535851937790883648493
_D = -121665 * pow(121666, _P - 2, _P) % _P
_SQRT_M1 = pow(2, (_P - 1) // 4, _P)
_IDENTITY = (0, 1, 1, 0)
_BASE_X = 0x216936D3CD6E53FEC0A4E231FDD6DC5C692CC7609525A7B2C9562D608F25D51A
_BASE_Y = 0x6666666666666666666666666666666666666666666666666666666666666658
_BASE = (_BASE_X, _BASE_Y, 1, _BASE_X * _BASE_Y % _P)


def ed25519_public(seed: bytes) -> bytes:
    """Public key of a 32 B seed."""
    return _encode(_combine(_expand(seed)[0], 0, _IDENTITY))


def ed25519_sign(seed: bytes, message: bytes) -> bytes:
    """Signature, 64 B (RFC 8032, section 5.1.6)."""
    scalar, prefix = _expand(seed)
    public = _encode(_combine(scalar, 0, _IDENTITY))
    r = int.from_bytes(sha512(prefix + message), "little") % _L
    encoded = _encode(_combine(r, 0, _IDENTITY))
    s = (r + _challenge(encoded, public, message) * scalar) % _L
    return encoded + s.to_bytes(32, "little")


def ed25519_verify(public: bytes, message: bytes, signature: bytes) -> bool:
    """Whether R = S·B − k·A, without cofactor. False also for S ≥ L and for A or R not canonical or of small order."""
    point = _decode(public)
    s = int.from_bytes(signature[32:], "little")
    if point is None or s >= _L or _has_small_order(point):
        return False
    x, y, z, t = point
    r = _combine(s, _challenge(signature[:32], public, message), (-x, y, z, -t))
    return not _has_small_order(r) and _encode(r) == signature[:32]


def _expand(seed: bytes) -> "tuple[int, bytes]":
    """Secret scalar and the prefix that makes nonces (RFC 8032, section 5.1.5)."""
    digest = sha512(seed)
    return int.from_bytes(digest[:32], "little") & ((1 << 254) - 8) | 1 << 254, digest[32:]


def _challenge(encoded_r: bytes, public: bytes, message: bytes) -> int:
    return int.from_bytes(sha512(encoded_r + public + message), "little") % _L


def _combine(s: int, k: int, a: "tuple[int, int, int, int]") -> "tuple[int, int, int, int]":
    """s·B + k·A, both at once (Straus)."""
    both = _add(_BASE, a)
    result = _IDENTITY
    for bit in range(254, -1, -1):
        result = _double(result)
        if s >> bit & 1:
            result = _add(result, both if k >> bit & 1 else _BASE)
        elif k >> bit & 1:
            result = _add(result, a)
    return result


def _add(p: "tuple[int, int, int, int]", q: "tuple[int, int, int, int]") -> "tuple[int, int, int, int]":
    x1, y1, z1, t1 = p
    x2, y2, z2, t2 = q
    a = (y1 - x1) * (y2 - x2) % _P
    b = (y1 + x1) * (y2 + x2) % _P
    c = 2 * t1 * t2 * _D % _P
    d = 2 * z1 * z2 % _P
    e = b - a
    f = d - c
    g = d + c
    h = b + a
    return e * f % _P, g * h % _P, f * g % _P, e * h % _P


def _double(p: "tuple[int, int, int, int]") -> "tuple[int, int, int, int]":
    x1, y1, z1, _ = p
    a = x1 * x1 % _P
    b = y1 * y1 % _P
    h = a + b
    e = h - (x1 + y1) * (x1 + y1) % _P
    g = a - b
    f = 2 * z1 * z1 % _P + g
    return e * f % _P, g * h % _P, f * g % _P, e * h % _P


def _has_small_order(p: "tuple[int, int, int, int]") -> bool:
    """Whether 8·P is the identity."""
    x, y, z, _ = _double(_double(_double(p)))
    return x % _P == 0 and (y - z) % _P == 0


def _encode(p: "tuple[int, int, int, int]") -> bytes:
    x, y, z, _ = p
    inverse = pow(z, _P - 2, _P)
    return (y * inverse % _P | (x * inverse % _P & 1) << 255).to_bytes(32, "little")


def _decode(encoded: bytes) -> "tuple[int, int, int, int] | None":
    """The point, or None when there is none or its encoding is not the canonical one (RFC 8032, section 5.1.3)."""
    y = int.from_bytes(encoded, "little")
    sign = y >> 255
    y &= (1 << 255) - 1
    if y >= _P:
        return None
    u = (y * y - 1) % _P
    v = (_D * y * y + 1) % _P
    x = u * v * v * v % _P * pow(u * v**7 % _P, (_P - 5) // 8, _P) % _P
    if (v * x * x - u) % _P != 0:
        x = x * _SQRT_M1 % _P
    if (v * x * x - u) % _P != 0 or (x == 0 and sign == 1):
        return None
    if x & 1 != sign:
        x = _P - x
    return x, y, 1, x * y % _P
