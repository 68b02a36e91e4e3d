"""What file system is in a partition: told by its superblock, and checked to be whole inside its partition."""

from __future__ import annotations

import struct
from typing import BinaryIO

from flash.errors import FlashError
from flash.partitions import Table

_NEEDS_RECOVERY = 0x4
_64BIT = 0x80


class Volume:
    """`kind` is ext4 (also ext2 and ext3), vfat, squashfs, or unknown; `number` of its partition, 0 for a bare one."""

    __slots__ = ("free", "kind", "label", "number", "offset", "size")

    def __init__(self, number: int, offset: int, size: int, kind: str, label: str = "", free: int = 0) -> None:
        self.number = number
        self.offset = offset
        self.size = size
        self.kind = kind
        self.label = label
        self.free = free  # bytes, known of ext4 only

    def __str__(self) -> str:
        return f"partition {self.number}" if self.number else "the file system"


def volumes(file: BinaryIO, size: int, table: Table) -> list[Volume]:
    """One for each partition, or one for the whole image. FlashError when a file system is larger than its place."""
    if table.label == "none":
        return [_volume(file, 0, 0, size)]
    return [_volume(file, part.number, part.start, part.size) for part in table.partitions]


def _volume(file: BinaryIO, number: int, offset: int, size: int) -> Volume:
    file.seek(offset)
    head = file.read(2048)
    if len(head) < 2048:
        return Volume(number, offset, size, "unknown")
    if head[1080:1082] == b"\x53\xef":
        return _ext4(number, offset, size, head[1024:])
    if head[:4] == b"hsqs":
        _inside(number, struct.unpack_from("<Q", head, 40)[0], size)
        return Volume(number, offset, size, "squashfs")
    if head[510:512] == b"\x55\xaa" and (head[54:57] == b"FAT" or head[82:85] == b"FAT"):
        return _fat(number, offset, size, head)
    return Volume(number, offset, size, "unknown")


def _ext4(number: int, offset: int, size: int, block: bytes) -> Volume:
    (blocks,) = struct.unpack_from("<I", block, 4)
    (free,) = struct.unpack_from("<I", block, 12)
    (log_block,) = struct.unpack_from("<I", block, 24)
    (incompatible,) = struct.unpack_from("<I", block, 96)
    if log_block > 6:
        raise FlashError(f"partition {number}: its ext4 says a block size that there is not. The image is damaged.")
    if incompatible & _64BIT:
        blocks |= struct.unpack_from("<I", block, 336)[0] << 32
        free |= struct.unpack_from("<I", block, 344)[0] << 32
    block_size = 1024 << log_block
    _inside(number, blocks * block_size, size)
    if incompatible & _NEEDS_RECOVERY:
        raise FlashError(
            f"partition {number}: its ext4 was in use when the image was made (the journal has not been replayed). "
            "Take the image of a card that was shut down cleanly, or run e2fsck on a copy."
        )
    label = block[120:136].rstrip(b"\0").decode("utf-8", "replace")
    return Volume(number, offset, size, "ext4", label, free * block_size)


def _fat(number: int, offset: int, size: int, head: bytes) -> Volume:
    sector = struct.unpack_from("<H", head, 11)[0]
    sectors = struct.unpack_from("<H", head, 19)[0] or struct.unpack_from("<I", head, 32)[0]
    if sector not in (512, 1024, 2048, 4096):
        raise FlashError(f"partition {number}: its FAT says a sector size that there is not. The image is damaged.")
    _inside(number, sectors * sector, size)
    at = 71 if head[82:85] == b"FAT" else 43
    return Volume(number, offset, size, "vfat", head[at : at + 11].decode("ascii", "replace").strip())


def _inside(number: int, needs: int, size: int) -> None:
    if needs > size:
        where = f"partition {number}" if number else "the image"
        raise FlashError(
            f"{where} has {size} bytes, and the file system in it {needs}: the image is cut short. Fetch it again."
        )
