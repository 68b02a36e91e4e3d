"""ChaCha20-Poly1305 (RFC 8439) and XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha). Not constant-time."""

from .lanes import LANE_0, LANES_01, LANES_012, WORDS, repeat, spread

_BLOCKS_MAX = 32  # blocks computed side by side: one packet of 1,420 B in one go; an integer has at most 1 KiB
_SIGMA = b"expand 32-byte k"
_P1305 = (1 << 130) - 5


def aead_seal(key: bytes, nonce: bytes, plaintext: bytes, ad: bytes) -> bytes:
    """ciphertext ‖ tag. Key 32 B, nonce 12 B."""
    stream = chacha20_stream(key, nonce, 0, 64 + len(plaintext))
    ciphertext = _xor(plaintext, stream[64:])
    return ciphertext + _tag(stream, ciphertext, ad)


def aead_open(key: bytes, nonce: bytes, ciphertext: bytes, ad: bytes) -> "bytes | None":
    """The plaintext, or None when the tag is wrong or missing."""
    size = len(ciphertext) - 16
    if size < 0:
        return None
    stream = chacha20_stream(key, nonce, 0, 64 + size)
    body = ciphertext[:size]
    if not equal(_tag(stream, body, ad), ciphertext[size:]):
        return None
    return _xor(body, stream[64:])


def xaead_seal(key: bytes, nonce: bytes, plaintext: bytes, ad: bytes) -> bytes:
    """ciphertext ‖ tag. Key 32 B, nonce 24 B."""
    return aead_seal(hchacha20(key, nonce[:16]), bytes(4) + nonce[16:], plaintext, ad)


def xaead_open(key: bytes, nonce: bytes, ciphertext: bytes, ad: bytes) -> "bytes | None":
    """The plaintext, or None when the tag is wrong or missing."""
    return aead_open(hchacha20(key, nonce[:16]), bytes(4) + nonce[16:], ciphertext, ad)


def equal(a: bytes, b: bytes) -> bool:
    """Looks at every byte, wherever the first difference is."""
    difference = len(a) ^ len(b)
    for x, y in zip(a, b):  # noqa: B905 - MicroPython's zip has no `strict`
        difference |= x ^ y
    return difference == 0


def chacha20_stream(key: bytes, nonce: bytes, counter: int, size: int) -> bytes:
    """At least `size` bytes of key stream, whole blocks of 64 B, from block `counter` on."""
    end = counter + (size + 63) // 64
    parts = []
    while counter < end:
        count = min(_BLOCKS_MAX, end - counter)
        parts.append(_blocks(key, nonce, counter, count))
        counter += count
    return b"".join(parts)


def hchacha20(key: bytes, nonce: bytes) -> bytes:
    """A key of 32 B from a key and the first 16 B of an XChaCha20 nonce (draft-irtf-cfrg-xchacha-03, section 2.2)."""
    a, _, _, d = _rounds(spread(_SIGMA), spread(key[:16]), spread(key[16:]), spread(nonce), 1)
    return _gather(a, 1).to_bytes(32, "little")[:16] + _gather(d, 1).to_bytes(32, "little")[:16]


def poly1305(key: bytes, message: bytes) -> bytes:
    """One-time authenticator, 16 B (RFC 8439, section 2.5). Key 32 B."""
    r = int.from_bytes(key[:16], "little") & 0x0FFFFFFC0FFFFFFC0FFFFFFC0FFFFFFF
    accumulator = 0
    for at in range(0, len(message), 16):
        accumulator = (accumulator + int.from_bytes(message[at : at + 16] + b"\x01", "little")) * r % _P1305
    accumulator += int.from_bytes(key[16:], "little")
    return (accumulator & ((1 << 128) - 1)).to_bytes(16, "little")


def _tag(stream: bytes, ciphertext: bytes, ad: bytes) -> bytes:
    """RFC 8439, section 2.8: the first 32 B of block 0 are the one-time key."""
    return poly1305(
        stream[:32],
        ad
        + bytes(-len(ad) % 16)
        + ciphertext
        + bytes(-len(ciphertext) % 16)
        + len(ad).to_bytes(8, "little")
        + len(ciphertext).to_bytes(8, "little"),
    )


def _xor(data: bytes, stream: bytes) -> bytes:
    size = len(data)
    if not size:
        return b""
    return (int.from_bytes(data, "little") ^ int.from_bytes(stream[:size], "little")).to_bytes(size, "little")


def _blocks(key: bytes, nonce: bytes, counter: int, count: int) -> bytes:
    """`count` blocks of key stream, computed side by side."""
    words = repeat(WORDS, count)
    a0 = repeat(spread(_SIGMA).to_bytes(32, "little"), count)
    b0 = repeat(spread(key[:16]).to_bytes(32, "little"), count)
    c0 = repeat(spread(key[16:]).to_bytes(32, "little"), count)
    tail = spread(bytes(4) + nonce).to_bytes(32, "little")[8:]
    d0 = int.from_bytes(b"".join([(counter + i).to_bytes(8, "little") + tail for i in range(count)]), "little")
    a, b, c, d = _rounds(a0, b0, c0, d0, count)
    a = _gather((a + a0) & words, count)
    b = _gather((b + b0) & words, count)
    c = _gather((c + c0) & words, count)
    d = _gather((d + d0) & words, count)
    upper = (a | b << 128).to_bytes(32 * count, "little")
    lower = (c | d << 128).to_bytes(32 * count, "little")
    halves = []
    for at in range(0, 32 * count, 32):
        halves.append(upper[at : at + 32])
        halves.append(lower[at : at + 32])
    return b"".join(halves)


def _rounds(a: int, b: int, c: int, d: int, count: int) -> "tuple[int, int, int, int]":
    """The 20 rounds, over the four rows of `count` states."""
    words = repeat(WORDS, count)
    lane_0 = repeat(LANE_0, count)
    lanes_01 = repeat(LANES_01, count)
    lanes_012 = repeat(LANES_012, count)
    for column_round in (True, False) * 10:
        a = (a + b) & words
        d ^= a
        d = (d << 16 | d >> 16) & words
        c = (c + d) & words
        b ^= c
        b = (b << 12 | b >> 20) & words
        a = (a + b) & words
        d ^= a
        d = (d << 8 | d >> 24) & words
        c = (c + d) & words
        b ^= c
        b = (b << 7 | b >> 25) & words
        # Bring the diagonals into columns, and back: row b by one lane, c by two, d by three.
        c = (c >> 128) & lanes_01 | (c & lanes_01) << 128
        if column_round:
            b = (b >> 64) & lanes_012 | (b & lane_0) << 192
            d = (d >> 192) & lane_0 | (d & lanes_012) << 64
        else:
            b = (b >> 192) & lane_0 | (b & lanes_012) << 64
            d = (d >> 64) & lanes_012 | (d & lane_0) << 192
    return a, b, c, d


def _gather(row: int, count: int) -> int:
    """The opposite of `spread`: four words without gaps in the lower 128 of each 256 bits."""
    row = (row | row >> 32) & repeat((b"\xff" * 8 + bytes(8)) * 2, count)
    return (row | row >> 64) & repeat(LANES_01, count)
