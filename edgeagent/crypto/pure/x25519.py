"""X25519 (RFC 7748). Not constant-time."""

_P = (1 << 255) - 19


def x25519(private: bytes, public: bytes) -> bytes:
    """Shared secret, 32 B; all zero for a low-order point. Any 32 B are a key (RFC 7748, section 5)."""
    k = int.from_bytes(private, "little") & ((1 << 254) - 8) | 1 << 254
    x1 = int.from_bytes(public, "little") & ((1 << 255) - 1)
    p = _P
    x2, z2, x3, z3 = 1, 0, x1, 1
    swapped = 0
    for t in range(254, -1, -1):
        bit = k >> t & 1
        if bit != swapped:
            x2, z2, x3, z3 = x3, z3, x2, z2
            swapped = bit
        a = x2 + z2
        b = x2 - z2
        da = (x3 - z3) * a % p
        cb = (x3 + z3) * b % p
        a = a * a % p
        b = b * b % p
        e = a - b
        x3 = (da + cb) * (da + cb) % p
        z3 = x1 * (da - cb) * (da - cb) % p
        x2 = a * b % p
        z2 = e * (a + 121665 * e) % p
    # The lowest bit of a clamped scalar is zero: the last step left nothing swapped.
    # Fermat's inverse, because pow(z, -1, p) is zero in MicroPython.
    return (x2 * pow(z2, p - 2, p) % p).to_bytes(32, "little")


def x25519_base(private: bytes) -> bytes:
    """Public key of a private key, 32 B."""
    return x25519(private, b"\x09" + bytes(31))
