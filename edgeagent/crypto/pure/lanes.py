"""32-bit words side by side in one Python integer: ChaCha20 and BLAKE2s turn a row of their state at a time.

Each word has a lane of 64 bits, so that a sum's carry and a rotated word stay within it. One big operation instead of
many small ones is 17 times faster for a packet in CPython. In MicroPython, where every integer of more than 31 bits
lives on the heap, it is 7 times faster than the usual way there, which is to compute with 16-bit halves.
"""

_GAP = b"\0\0\0\0"


def spread(words: bytes) -> int:
    """Four little-endian words (16 B) in four lanes (256 bits)."""
    return int.from_bytes(
        words[0:4] + _GAP + words[4:8] + _GAP + words[8:12] + _GAP + words[12:16] + _GAP,
        "little",
    )


def repeat(pattern: bytes, count: int) -> int:
    """A pattern of 32 B, the lanes of one row, once for each of `count` blocks that are computed side by side."""
    return int.from_bytes(pattern * count, "little")


WORDS = b"\xff\xff\xff\xff\0\0\0\0" * 4  # the words, not the room above them
LANE_0 = b"\xff" * 8 + bytes(24)
LANES_01 = b"\xff" * 16 + bytes(16)
LANES_012 = b"\xff" * 24 + bytes(8)
