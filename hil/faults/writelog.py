"""What a disk was told to write, in order: the log of QEMU's blklogwrites, in the format of Linux's dm-log-writes.

```
superblock   magic 8 ‖ version 8 ‖ entries 8 ‖ sector size 4, padded to a sector
entry        sector 8 ‖ sectors 8 ‖ flags 8 ‖ data length 8, padded to a sector, then the sectors unless it is a discard
```
All little-endian (Documentation/admin-guide/device-mapper/log-writes.rst).
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from hil.errors import HilError

MAGIC, VERSION = 0x6A736677736872, 1
FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8
ENTRIES_MAX = 1 << 20
WRITE_BYTES_MAX = 64 << 20
_SUPER = struct.Struct("<QQQI")
_ENTRY = struct.Struct("<QQQQ")


class LogDamaged(HilError):
    """The log of writes is not what blklogwrites writes."""

    name = "log-damaged"


def recording(image: Path, log: Path) -> list[str]:
    """QEMU's options for the drive `root` on a raw image, all writes to which go to `log` as well."""
    log.write_bytes(b"")
    words = ["-blockdev", f"driver=file,node-name=disk,filename={image}"]
    words += ["-blockdev", f"driver=file,node-name=log,filename={log}"]
    return [*words, "-blockdev", "driver=blklogwrites,node-name=root,file=disk,log=log"]


class Write(NamedTuple):
    """Bytes from `at` on, which stand in the log from `data_at` on; `size` 0 with FLUSH: all before is on the disk."""

    at: int
    size: int
    flags: int
    data_at: int


class WriteLog:
    """Reads a log that is complete: the machine has ended."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            self.writes = list(_entries(file))

    def data(self, file: BinaryIO, write: Write) -> bytes:
        """What was written, out of the log that `file` is."""
        file.seek(write.data_at)
        found = file.read(write.size)
        if len(found) != write.size:
            raise LogDamaged(f"{self.path}: it ends within a write")
        return found


def _entries(file: BinaryIO) -> Iterator[Write]:
    head = file.read(_SUPER.size)
    if len(head) < _SUPER.size:
        raise LogDamaged(f"{file.name}: no superblock: the machine may not have ended in peace")
    magic, version, count, sector = _SUPER.unpack(head)
    if magic != MAGIC or version != VERSION:
        raise LogDamaged(f"{file.name}: not a log of writes (magic {magic:#x}, version {version})")
    if sector not in (512, 1024, 2048, 4096) or count > ENTRIES_MAX:
        raise LogDamaged(f"{file.name}: sectors of {sector} bytes, {count} entries")
    at = sector
    for _ in range(count):
        file.seek(at)
        line = file.read(_ENTRY.size)
        if len(line) < _ENTRY.size:
            raise LogDamaged(f"{file.name}: {count} entries are promised, and it ends before")
        where, sectors, flags, _ = _ENTRY.unpack(line)
        at += sector
        size = 0 if flags & DISCARD else sectors * sector
        if size > WRITE_BYTES_MAX:
            raise LogDamaged(f"{file.name}: a write of {size} bytes")
        yield Write(where * sector, size, flags, at)
        at += size


class Cut(NamedTuple):
    """A moment at which the power may fail: the first `whole` writes are on the disk for sure, since a flush was
    answered behind them; of those that came later, `some` (indexes, rising) are."""

    whole: int
    some: tuple[int, ...]

    def __str__(self) -> str:
        return f"write {self.some[-1] if self.some else self.whole}, {len(self.some)} since the last flush"


def cuts(writes: Sequence[Write], seed: int, strays: int = 1) -> list[Cut]:
    """Each prefix of what was written; and, `strays` times for each, one in which a disk with a cache of its own has
    taken only some of the writes since the last flush, as it may. In the order of `whole`."""
    chance = random.Random(seed)
    found = [Cut(0, ())]
    flushed = 0
    sure: set[int] = set()  # since the flush, but with FUA
    for index, write in enumerate(writes):
        if write.flags & FLUSH:
            flushed = index
            sure.clear()
            found.append(Cut(flushed, ()))
        if not write.size:
            continue
        if write.flags & FUA:
            sure.add(index)
        since = tuple(each for each in range(flushed, index + 1) if writes[each].size)
        found.append(Cut(flushed, since))
        for _ in range(strays if len(since) > 1 else 0):
            found.append(Cut(flushed, tuple(each for each in since if each in sure or chance.random() < 0.5)))
    return list(dict.fromkeys(found))


class Disk:
    """An image to which cuts are made, one after the other in the order that `cuts` gives; `image` is changed."""

    def __init__(self, image: Path, log: WriteLog) -> None:
        self.image = image
        self._log = log
        self._whole = 0
        self._before: list[tuple[int, bytes]] = []

    def make(self, cut: Cut) -> None:
        """From now on the image is as the cut leaves it, until `back`."""
        self.back()
        if cut.whole < self._whole:
            raise ValueError("cuts are to be made in their order")
        with self.image.open("r+b") as disk, self._log.path.open("rb") as log:
            for write in self._log.writes[self._whole : cut.whole]:
                self._put(disk, log, write)
            self._whole = cut.whole
            for index in cut.some:
                write = self._log.writes[index]
                disk.seek(write.at)
                self._before.append((write.at, disk.read(write.size)))
                self._put(disk, log, write)

    def back(self) -> None:
        """Take back what is not on the disk for sure."""
        with self.image.open("r+b") as disk:
            while self._before:
                at, data = self._before.pop()
                disk.seek(at)
                disk.write(data)

    def _put(self, disk: BinaryIO, log: BinaryIO, write: Write) -> None:
        if write.size:
            disk.seek(write.at)
            disk.write(self._log.data(log, write))
