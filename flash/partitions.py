"""Reads partition tables of images: MBR with logical partitions, and GPT (UEFI 2.10, chapter 5) with its checksums.

Nothing is repaired and no backup stands in for a damaged table: an image that is not whole is to be fetched again.
"""

from __future__ import annotations

import struct
import zlib
from typing import BinaryIO
from uuid import UUID

from flash.errors import FlashError

SECTOR = 512
PARTITIONS_MAX = 256
GPT_ENTRY_BYTES = (128, 512)
_GPT_HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")
_PROTECTIVE = 0xEE
_EXTENDED = (0x05, 0x0F, 0x85)
_AGAIN = "The image is damaged or cut short: fetch it again and compare its checksum with the publisher's."


class Partition:
    """`start` and `size` in bytes; `kind` is the MBR type as 0x0c, or the GPT type's UUID; `number` as Linux counts."""

    __slots__ = ("kind", "name", "number", "size", "start")

    def __init__(self, number: int, start: int, size: int, kind: str, name: str = "") -> None:
        self.number = number
        self.start = start
        self.size = size
        self.kind = kind
        self.name = name

    def __repr__(self) -> str:
        return f"Partition({self.number}, {self.start}, {self.size}, {self.kind!r}, {self.name!r})"


class Table:
    """`label` is gpt, mbr, or none when the image is one bare file system; `partitions` in the order of the table."""

    __slots__ = ("label", "partitions")

    def __init__(self, label: str, partitions: list[Partition]) -> None:
        self.label = label
        self.partitions = partitions


def read_table(file: BinaryIO, size: int) -> Table:
    """The table of an image of `size` bytes. FlashError when a checksum is wrong or a partition is not inside."""
    first = _at(file, 0, SECTOR)
    if len(first) < SECTOR:
        raise FlashError(f"{size} bytes are no image of a disk: not even one sector. {_AGAIN}")
    entries = [first[446 + 16 * index : 462 + 16 * index] for index in range(4)]
    if first[510:512] != b"\x55\xaa" or not _is_mbr(first, entries):
        return Table("none", [])
    if any(entry[4] == _PROTECTIVE for entry in entries):
        return Table("gpt", _checked(_read_gpt(file, size), size))
    return Table("mbr", _checked(_read_mbr(file, entries, size), size))


def _is_mbr(first: bytes, entries: list[bytes]) -> bool:
    # The boot sector of a FAT file system ends with the same two bytes, and has code where the table would be
    return all(entry[0] in (0x00, 0x80) for entry in entries) and any(entry[4] for entry in entries)


def _read_mbr(file: BinaryIO, entries: list[bytes], size: int) -> list[Partition]:
    found: list[Partition] = []
    for number, entry in enumerate(entries, 1):
        kind, start, sectors = _mbr_entry(entry)
        if kind in _EXTENDED:
            found += _read_logical(file, start, size, 5 + sum(1 for part in found if part.number >= 5))
        elif kind:
            found.append(Partition(number, start * SECTOR, sectors * SECTOR, f"0x{kind:02x}"))
    return found


def _read_logical(file: BinaryIO, base: int, size: int, number: int) -> list[Partition]:
    """The chain of extended boot records from sector `base`. One that runs in a circle is too long, and an error."""
    found: list[Partition] = []
    at = base
    while True:
        record = _at(file, at * SECTOR, SECTOR)
        if record[510:512] != b"\x55\xaa":
            raise FlashError(f"the extended partition has no boot record at byte {at * SECTOR}. {_AGAIN}")
        kind, start, sectors = _mbr_entry(record[446:462])
        if kind:
            found.append(Partition(number + len(found), (at + start) * SECTOR, sectors * SECTOR, f"0x{kind:02x}"))
        kind, start, _ = _mbr_entry(record[462:478])
        if not kind:
            return found
        if len(found) >= PARTITIONS_MAX:
            raise FlashError(
                f"the extended partition has more than {PARTITIONS_MAX} parts, or runs in a circle. {_AGAIN}"
            )
        at = base + start


def _mbr_entry(entry: bytes) -> tuple[int, int, int]:
    start, sectors = struct.unpack_from("<II", entry, 8)
    return entry[4], start, sectors


def _read_gpt(file: BinaryIO, size: int) -> list[Partition]:
    sector = next((bytes_ for bytes_ in (512, 4096) if _at(file, bytes_, 8) == b"EFI PART"), 0)
    if not sector:
        raise FlashError(f"the partition table says GPT, and no GPT header is there. {_AGAIN}")
    header, backup_at = _gpt_header(file, sector, sector, "the GPT header")
    if (backup_at + 1) * sector > size:
        raise FlashError(
            f"the GPT says that the disk has {(backup_at + 1) * sector} bytes, and the image has {size}. {_AGAIN}"
        )
    _gpt_header(file, backup_at * sector, sector, "the GPT's second header, at the end of the image,")
    entries_at, count, entry_size, checksum = header
    if not 1 <= count <= PARTITIONS_MAX or not GPT_ENTRY_BYTES[0] <= entry_size <= GPT_ENTRY_BYTES[1] or entry_size % 8:
        raise FlashError(f"the GPT has {count} entries of {entry_size} bytes, which no GPT of ours has. {_AGAIN}")
    data = _at(file, entries_at * sector, count * entry_size)
    if zlib.crc32(data) != checksum:
        raise FlashError(f"the checksum of the GPT's entries is wrong. {_AGAIN}")
    found = []
    for index in range(count):
        entry = data[index * entry_size : (index + 1) * entry_size]
        if any(entry[:16]):
            first, last = struct.unpack_from("<QQ", entry, 32)
            if last < first:
                raise FlashError(f"GPT partition {index + 1} ends before it begins. {_AGAIN}")
            name = entry[56:128].decode("utf-16-le", "replace").partition("\0")[0]
            kind = str(UUID(bytes_le=entry[:16]))
            found.append(Partition(index + 1, first * sector, (last - first + 1) * sector, kind, name))
    return found


def _gpt_header(file: BinaryIO, at: int, sector: int, what: str) -> tuple[tuple[int, int, int, int], int]:
    """(LBA of the entries, their number, their size, their CRC) and the LBA of the other header."""
    data = _at(file, at, sector)
    if len(data) < sector or data[:8] != b"EFI PART":
        raise FlashError(f"{what} is not there. {_AGAIN}")
    _, _, length, checksum, _, here, other, _, _, _, entries, count, entry_size, entries_crc = _GPT_HEADER.unpack_from(
        data
    )
    if not _GPT_HEADER.size <= length <= sector or zlib.crc32(data[:16] + bytes(4) + data[20:length]) != checksum:
        raise FlashError(
            f"the checksum of {what.removeprefix('the ')} is wrong. {_AGAIN}".replace("of GPT", "of the GPT")
        )
    if here * sector != at:
        raise FlashError(f"{what} says that it stands elsewhere. {_AGAIN}")
    return (entries, count, entry_size, entries_crc), other


def _checked(partitions: list[Partition], size: int) -> list[Partition]:
    end, before = 0, 0
    for part in sorted(partitions, key=lambda part: part.start):
        if not part.start or not part.size:
            raise FlashError(f"partition {part.number} has no place or no size. {_AGAIN}")
        if part.start + part.size > size:
            raise FlashError(
                f"partition {part.number} ends at byte {part.start + part.size}, beyond the image's {size}. {_AGAIN}"
            )
        if part.start < end:
            raise FlashError(f"partitions {before} and {part.number} overlap. {_AGAIN}")
        end, before = part.start + part.size, part.number
    return partitions


def _at(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)
