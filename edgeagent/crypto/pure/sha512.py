"""SHA-512 (FIPS 180-4) for Ed25519, on builds of MicroPython whose hashlib lacks it."""

_MASK = (1 << 64) - 1


def sha512(data: bytes) -> bytes:
    """Hash, 64 B."""
    constants, h = _tables()
    size = len(data)
    data = data + b"\x80" + bytes(-(size + 17) % 128) + (8 * size).to_bytes(16, "big")
    for at in range(0, len(data), 128):
        h = _compress(h, data[at : at + 128], constants)
    return b"".join([word.to_bytes(8, "big") for word in h])


def _compress(state: "list[int]", block: bytes, constants: "list[int]") -> "list[int]":
    w = [int.from_bytes(block[at : at + 8], "big") for at in range(0, 128, 8)]
    for t in range(16, 80):
        x = w[t - 15]
        y = w[t - 2]
        s0 = (x >> 1 | x << 63) ^ (x >> 8 | x << 56) ^ x >> 7
        s1 = (y >> 19 | y << 45) ^ (y >> 61 | y << 3) ^ y >> 6
        w.append((w[t - 16] + (s0 & _MASK) + w[t - 7] + (s1 & _MASK)) & _MASK)
    a, b, c, d, e, f, g, h = state
    for t in range(80):
        s1 = ((e >> 14 | e << 50) ^ (e >> 18 | e << 46) ^ (e >> 41 | e << 23)) & _MASK
        t1 = h + s1 + (e & f ^ ~e & g) + constants[t] + w[t]
        s0 = ((a >> 28 | a << 36) ^ (a >> 34 | a << 30) ^ (a >> 39 | a << 25)) & _MASK
        t2 = s0 + (a & b ^ a & c ^ b & c)
        h, g, f, e, d, c, b, a = g, f, e, (d + t1) & _MASK, c, b, a, (t1 + t2) & _MASK
    return [(x + y) & _MASK for x, y in zip(state, [a, b, c, d, e, f, g, h])]  # noqa: B905


_cache: "list[list[int]]" = []


def _tables() -> "list[list[int]]":
    """The 80 round constants and the 8 initial words: fractions of the cube and square roots of the first primes."""
    if not _cache:
        primes: list[int] = []
        candidate = 2
        while len(primes) < 80:
            if all(candidate % prime for prime in primes):
                primes.append(candidate)
            candidate += 1
        _cache.append([_root(prime << 192, 3) & _MASK for prime in primes])
        _cache.append([_root(prime << 128, 2) & _MASK for prime in primes[:8]])
    return _cache


def _root(n: int, degree: int) -> int:
    """The largest integer whose power of `degree` is at most n, for n below 2^202, bit by bit."""
    root = 0
    for bit in range(101, -1, -1):
        if (root | 1 << bit) ** degree <= n:
            root |= 1 << bit
    return root
