"""Looks an image over before a card is touched: whole, of a known size, its tables and checksums right."""

from __future__ import annotations

import gzip
import lzma
import os
import zlib
from pathlib import Path

from flash.bmap import Bmap
from flash.errors import FlashError
from flash.partitions import read_table
from flash.source import Progress, chunks, kind_of, no_progress
from flash.volumes import volumes


def look_over(source: Path, bmap: Bmap | None, progress: Progress = no_progress) -> tuple[str, int]:
    """(kind, size of the raw image in bytes). FlashError when it is cut short or damaged. A compressed one is unpacked
    once for that, into nothing: its checksums are at its end, and a card must not be half written before they are seen.
    """
    kind = kind_of(source)
    if kind in ("dir", "tar"):
        raise FlashError(f"{source}: is a root file system and no image. Make one of it: edgeflash image.")
    try:
        with source.open("rb") as raw:
            size = os.fstat(raw.fileno()).st_size
            if kind == "raw":
                try:
                    volumes(raw, size, read_table(raw, size))
                except FlashError as error:
                    raise FlashError(f"{source}: {error}") from None
            else:
                packed, size = size, 0
                for chunk in chunks(raw, kind):
                    size += len(chunk)
                    progress(raw.tell(), packed)
    except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
        raise FlashError(
            f"{source}: is damaged or cut short ({str(error).rstrip('.') or 'no more data'}). "
            "Fetch it again and compare its checksum with the publisher's."
        ) from None
    except OSError as error:
        raise FlashError(f"{source}: {error.strerror}.") from None
    if not size:
        raise FlashError(f"{source}: is empty.")
    if bmap is not None and bmap.size != size:
        raise FlashError(
            f"{source}: has {size} bytes, and its block map is of an image of {bmap.size}. Fetch both again."
        )
    return kind, size
