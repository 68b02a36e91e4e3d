"""Byte code of a zipapp, in an archive of its own beside it: with that, a start compiles nothing.

```
edgeagent.pyz               sources: what was installed or fetched; it runs wherever there is a Python
edgeagent.cpython-311.pyz   the same modules compiled for one Python; made on the device, or for it (bytecodejob.py)
```

The second ends in a stamp of both: where anything of either has changed, or another Python runs, the sources are used.
"""

from __future__ import annotations

import os
import sys
from _frozen_importlib_external import MAGIC_NUMBER
from binascii import crc32

ENDING = ".pyz"
KEPT_ENDING = f".{sys.implementation.cache_tag}{ENDING}"
# Python's magic number, CRC-32 of the sources, and of all before this
STAMP = "edgeagent byte code %s of %08x %08x"
STAMP_BYTES = len(STAMP % (MAGIC_NUMBER.hex(), 0, 0))
_CHUNK_BYTES = 65_536


def kept_at(source: str) -> str:
    """Where the byte code of the zipapp `source` is kept for the Python that runs this."""
    return source.removesuffix(ENDING) + KEPT_ENDING


def source_of(path: str) -> str:
    """The zipapp whose byte code `path` is; of any other path, the path itself."""
    return path.removesuffix(KEPT_ENDING) + ENDING if path.endswith(KEPT_ENDING) else path


def path_of(source: str) -> str:
    """What the agent of the zipapp `source` is to be imported from: its byte code where that is whole, and of the
    same owner or root's; else itself."""
    kept = kept_at(source)
    if not source.endswith(ENDING):
        return source
    try:
        # In /tmp others can put files beside a zipapp: theirs are not run. Of a link, its own owner counts
        if os.lstat(kept).st_uid not in (0, os.stat(source).st_uid):
            return source
        with open(kept, "rb") as file:
            length = file.seek(0, 2) - STAMP_BYTES
            file.seek(0)
            made = sum_of(file, length)
            told = file.read()
        if told == stamp(sum_of_file(source), made):
            return kept
    except (OSError, ValueError):
        pass
    return source


def stamp(source: int, made: int) -> bytes:
    return (STAMP % (MAGIC_NUMBER.hex(), source, made)).encode()


def sum_of_file(path: str) -> int:
    """CRC-32 of all of it. OSError."""
    with open(path, "rb") as file:
        return sum_of(file, file.seek(0, 2))


def sum_of(file: object, length: int) -> int:
    """CRC-32 of the first `length` bytes of a file that was opened for reading; it is read up to there."""
    read, seek = file.read, file.seek  # type: ignore[attr-defined]
    seek(0)
    value = 0
    while length > 0 and (chunk := read(min(length, _CHUNK_BYTES))):
        value = crc32(chunk, value)
        length -= len(chunk)
    return value
