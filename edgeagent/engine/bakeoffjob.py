"""A process of its own that measures AEAD providers, so that libraries that lose never stay in an agent's memory, and
one that dies takes nobody along: `bakeoffjob.py LIBRARY MILLISECONDS NAME …`.

Imports nothing of ours. Says each thing when it is known, in lines of words between tabs: `try NAME`, then `not NAME
WHY`, or `have NAME VERSION` and for each measurement `cell NAME BYTES BATCH PICOSECONDS`,
and `done NAME`.
"""

from __future__ import annotations

import ctypes
import os
import sys

SIZES = (64, 1420)  # B of a message: an acknowledgement, and what fills a path of 1,500 with the overhead of IPv4
BATCHES = (1, 16, 64)
_WHY_BYTES = 256


def main(path: str, milliseconds: int, names: list[str]) -> None:
    library = ctypes.CDLL(path)
    new, free, version, measure = (
        getattr(library, f"ea_aead_{name}") for name in ("new", "free", "version", "measure")
    )
    new.argtypes, new.restype = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t), ctypes.c_void_p
    free.argtypes, free.restype = (ctypes.c_void_p,), None
    version.argtypes, version.restype = (ctypes.c_void_p,), ctypes.c_char_p
    measure.argtypes = (ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint, ctypes.c_uint)
    measure.restype = ctypes.c_double
    for name in names:
        _say("try", name)
        why = ctypes.create_string_buffer(_WHY_BYTES)
        aead = new(name.encode(), why, _WHY_BYTES)
        if not aead:
            _say("not", name, why.value.decode("utf-8", "replace"))
            continue
        _say("have", name, version(aead).decode("utf-8", "replace"))
        for size in SIZES:
            for batch in BATCHES:
                _say("cell", name, str(size), str(batch), str(int(measure(aead, size, batch, milliseconds) * 1000)))
        free(aead)
        _say("done", name)


def _say(*words: str) -> None:
    os.write(1, ("\t".join(" ".join(word.split()) for word in words) + "\n").encode())


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
