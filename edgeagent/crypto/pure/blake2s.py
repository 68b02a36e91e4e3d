"""BLAKE2s (RFC 7693), and HMAC (RFC 2104) and WireGuard's KDF over it. Not constant-time."""

from .lanes import LANE_0, LANES_01, LANES_012, WORDS, repeat, spread

_IV = bytes.fromhex("67e6096a85ae67bb72f36e3c3af54fa57f520e518c68059babd9831f19cde05b")  # little-endian words
_SIGMA = (
    (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
    (14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3),
    (11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4),
    (7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8),
    (9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13),
    (2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9),
    (12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11),
    (13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10),
    (6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5),
    (10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0),
)
_IV_LOW = spread(_IV[:16])
_IV_HIGH = spread(_IV[16:])
_WORDS = repeat(WORDS, 1)
_LANE_0 = repeat(LANE_0, 1)
_LANES_01 = repeat(LANES_01, 1)
_LANES_012 = repeat(LANES_012, 1)


def blake2s(data: bytes, key: bytes = b"", size: int = 32) -> bytes:
    """Hash, or MAC when there is a key (≤ 32 B), of `size` bytes (1 to 32)."""
    a = _IV_LOW ^ 0x01010000 ^ len(key) << 8 ^ size
    b = _IV_HIGH
    if key:
        data = key + bytes(64 - len(key)) + data
    last = max(0, len(data) - 1) // 64 * 64
    for at in range(0, last, 64):
        a, b = _compress(a, b, data[at : at + 64], at + 64, False)
    block = data[last:]
    a, b = _compress(a, b, block + bytes(64 - len(block)), len(data), True)
    spaced = a.to_bytes(32, "little") + b.to_bytes(32, "little")
    return b"".join([spaced[at : at + 4] for at in range(0, 64, 8)])[:size]


def hmac_blake2s(key: bytes, data: bytes) -> bytes:
    """RFC 2104 over BLAKE2s-256, 32 B."""
    if len(key) > 64:
        key = blake2s(key)
    key = key + bytes(64 - len(key))
    inner = blake2s(bytes([byte ^ 0x36 for byte in key]) + data)
    return blake2s(bytes([byte ^ 0x5C for byte in key]) + inner)


def hkdf(chaining_key: bytes, data: bytes, n: int) -> "tuple[bytes, ...]":
    """KDF_n of the WireGuard paper, section 5.4: n outputs of 32 B."""
    secret = hmac_blake2s(chaining_key, data)
    outputs = [hmac_blake2s(secret, b"\x01")]
    while len(outputs) < n:
        outputs.append(hmac_blake2s(secret, outputs[-1] + bytes([len(outputs) + 1])))
    return tuple(outputs)


def _compress(a: int, b: int, block: bytes, hashed: int, last: bool) -> "tuple[int, int]":
    """RFC 7693, section 3.2. `a` and `b` are the two rows of the chained value, `hashed` the bytes so far."""
    lanes = [block[at : at + 4] + b"\0\0\0\0" for at in range(0, 64, 4)]
    a0 = a
    b0 = b
    c = _IV_LOW
    d = _IV_HIGH ^ spread(hashed.to_bytes(8, "little") + (b"\xff\xff\xff\xff\0\0\0\0" if last else bytes(8)))
    for s in _SIGMA:
        for at in (0, 8):
            m = lanes[s[at]] + lanes[s[at + 2]] + lanes[s[at + 4]] + lanes[s[at + 6]]
            a = (a + b + int.from_bytes(m, "little")) & _WORDS
            d ^= a
            d = (d >> 16 | d << 16) & _WORDS
            c = (c + d) & _WORDS
            b ^= c
            b = (b >> 12 | b << 20) & _WORDS
            m = lanes[s[at + 1]] + lanes[s[at + 3]] + lanes[s[at + 5]] + lanes[s[at + 7]]
            a = (a + b + int.from_bytes(m, "little")) & _WORDS
            d ^= a
            d = (d >> 8 | d << 24) & _WORDS
            c = (c + d) & _WORDS
            b ^= c
            b = (b >> 7 | b << 25) & _WORDS
            # Bring the diagonals into columns, and back: row b by one lane, c by two, d by three.
            c = c >> 128 | (c & _LANES_01) << 128
            if at == 0:
                b = b >> 64 | (b & _LANE_0) << 192
                d = d >> 192 | (d & _LANES_012) << 64
            else:
                b = b >> 192 | (b & _LANES_012) << 64
                d = d >> 64 | (d & _LANE_0) << 192
    return a0 ^ a ^ c, b0 ^ b ^ d
