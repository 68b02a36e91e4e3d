"""Writes one image to several cards at once, and reads back what the cards have kept.

The order, for each card: the first block is emptied, so that what was on the card does not start any more → all but the
first block → flush → read back past the page cache and compare → the first block → flush → read it back. A card that is
pulled, or found bad, at any moment has no first block: no device starts from half an image.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, Full, Queue

from flash.bmap import Bmap
from flash.devices import Device
from flash.errors import FlashError
from flash.source import chunks

BLOCK = 4 << 20  # what is read, written and compared at once; the first of them is the one that is written last
ALIGN = 4096
QUEUED = 3  # blocks that wait for a card that is slower than the others
TICK_S = 0.5
_PULLED = (errno.EIO, errno.ENODEV, errno.ENXIO, errno.ENOMEDIUM, errno.EREMOTEIO)

Tell = Callable[[str, str, int, int], None]  # path of the card, step, bytes done, bytes in all


class Card:
    """One target. `error` is empty when it was written and verified; `written_s` and `verified_s` are seconds."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.error = ""
        self.written_s = 0.0
        self.verified_s = 0.0
        self._blocks: Queue[tuple[int, bytes] | None] = Queue(QUEUED)
        self._ended = threading.Event()

    def hand(self, block: tuple[int, bytes] | None) -> None:
        """Queue a block; returns at once when the card has failed."""
        while not self._ended.is_set():
            with suppress(Full):
                self._blocks.put(block, timeout=TICK_S)
                return

    def run(self, size: int, plan: Plan, tell: Tell) -> None:
        """In a thread of its own: everything, with `error` for what went wrong."""
        path = self.device.path
        step = "opening"
        try:
            target = _Target(self.device)
            try:
                step = "writing"
                began = time.monotonic()
                target.clear(size)
                self._write(target, plan, tell)
                target.flush()
                self.written_s = time.monotonic() - began
                step = "reading back"
                began = time.monotonic()
                _compare(target, plan, tell, path)
                step = "writing the first block"
                first = plan.first
                target.write(0, first)
                target.flush()
                if target.read(0, len(first)) != first:
                    raise FlashError("the first block is not what was written: the card is bad. Take another.")
                self.verified_s = time.monotonic() - began
            finally:
                target.close()
        except FlashError as error:
            self.error = f"{path}: {error}"
        except OSError as error:
            self.error = f"{path}: while {step}: {_said(error)}"
        finally:
            self._ended.set()

    def _write(self, target: _Target, plan: Plan, tell: Tell) -> None:
        done = 0
        while True:
            try:
                block = self._blocks.get(timeout=TICK_S)
            except Empty:
                if plan.failed:
                    raise FlashError(plan.failed) from None
                continue
            if block is None:
                break
            offset, data = block
            if offset:
                target.write(offset, data)
            done += len(data)
            tell(self.device.path, "writing", done, plan.total)
        if plan.failed:
            raise FlashError(plan.failed)


class Plan:
    """What all cards of a run get: filled by the reader, block by block, before a card hears of the block."""

    def __init__(self, total: int) -> None:
        self.total = total  # bytes that are written
        self.first = b""
        self.digests: list[tuple[int, int, bytes]] = []  # offset, length, digest
        self.failed = ""


def write(source: Path, kind: str, size: int, bmap: Bmap | None, devices: Sequence[Device], tell: Tell) -> list[Card]:
    """Write an image of `size` bytes, all of it, or with `bmap` what that maps. FlashError when the image is bad."""
    cards = [Card(device) for device in devices]
    plan = Plan(sum(end - start for start, end in map(bmap.bytes_of, bmap.ranges)) if bmap else size)
    threads = [threading.Thread(target=card.run, args=(size, plan, tell), daemon=True) for card in cards]
    for thread in threads:
        thread.start()
    try:
        for offset, data in blocks(source, kind, size, bmap):
            if offset == 0:
                plan.first = data
            plan.digests.append((offset, len(data), _digest(data)))
            for card in cards:
                card.hand((offset, data))
            if all(card.error for card in cards):
                break
        if not plan.first:
            raise FlashError(f"{source}: its first block is not in the block map, and no device starts without one.")
    except (FlashError, OSError, EOFError) as error:
        plan.failed = str(error)
    except BaseException:  # an interrupt too: the threads must not go on to the first block
        plan.failed = "interrupted. The card is not written; write it again."
        raise
    finally:
        for card in cards:
            card.hand(None)
        for thread in threads:
            thread.join()
    return cards


def verify(source: Path, kind: str, size: int, bmap: Bmap | None, device: Device, tell: Tell) -> None:
    """FlashError when the card does not hold the image."""
    done, total = 0, sum(end - start for start, end in map(bmap.bytes_of, bmap.ranges)) if bmap else size
    target = _Target(device, reading=True)
    try:
        for offset, data in blocks(source, kind, size, bmap):
            if target.read(offset, len(data)) != data:
                raise FlashError(_differs(device.path, offset, len(data)))
            done += len(data)
            tell(device.path, "comparing", done, total)
    except OSError as error:
        raise FlashError(f"{device.path}: while reading: {_said(error)}") from None
    finally:
        target.close()


def blocks(source: Path, kind: str, size: int, bmap: Bmap | None) -> Iterator[tuple[int, bytes]]:
    """(offset, at most BLOCK bytes) of the image in order; with `bmap` what is mapped, checked by its checksums."""
    if bmap is None:
        at = 0
        with source.open("rb") as raw:
            for data in _blocks_of(chunks(raw, kind) if kind != "raw" else iter(lambda: raw.read(BLOCK), b"")):
                yield at, data
                at += len(data)
        if at != size:
            raise FlashError(f"{source}: changed while it was read.")
        return
    with source.open("rb") as raw:
        stream = _Stream(raw if kind == "raw" else None, chunks(raw, kind))
        for each in bmap.ranges:
            start, end = bmap.bytes_of(each)
            digest = hashlib.sha256()
            while start < end:
                # Blocks begin at multiples of BLOCK, so that the first one is the same with a map and without
                data = stream.read(start, min(BLOCK - start % BLOCK, end - start))
                digest.update(data)
                yield start, data
                start += len(data)
            if digest.hexdigest() != each.checksum:
                raise FlashError(
                    f"{source}: blocks {each.first} to {each.last} are not those of its block map: the image is "
                    "damaged, or the map is another's. The card is not written. Fetch both again."
                )


class _Stream:
    """Reads at rising offsets of an image that may be compressed."""

    def __init__(self, raw: object, stream: Iterator[bytes]) -> None:
        self._fd = raw.fileno() if raw is not None and hasattr(raw, "fileno") else -1
        self._stream = stream
        self._at = 0
        self._kept = b""

    def read(self, offset: int, size: int) -> bytes:
        if self._fd >= 0:
            data = os.pread(self._fd, size, offset)
            if len(data) != size:
                raise EOFError("the image is shorter than its block map says")
            return data
        while self._at + len(self._kept) < offset + size:
            chunk = next(self._stream, b"")
            if not chunk:
                raise EOFError("the image is shorter than its block map says")
            if self._at + len(self._kept) <= offset:
                self._at, self._kept = self._at + len(self._kept), b""
            self._kept += chunk
        skip = offset - self._at
        data, self._kept = self._kept[skip : skip + size], self._kept[skip + size :]
        self._at = offset + size
        return data


class _Target:
    """A card, opened so that nobody else has it (O_EXCL, open(2)), written and read past the page cache."""

    def __init__(self, device: Device, reading: bool = False) -> None:
        flags = os.O_CLOEXEC | (os.O_RDONLY if reading else os.O_RDWR)
        try:
            is_block = stat.S_ISBLK(os.stat(device.path).st_mode)
            self._fd = os.open(device.path, flags | (os.O_EXCL if is_block else 0))
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise FlashError("is in use, says the kernel. Unmount it, or wait for who has it.") from None
            if error.errno in (errno.EACCES, errno.EPERM):
                raise FlashError("not permitted. Be a member of the group disk, or use sudo.") from None
            raise
        self._direct = -1
        with suppress(OSError):  # tmpfs has none
            self._direct = os.open(f"/proc/self/fd/{self._fd}", flags | os.O_DIRECT)
        self._buffer = mmap.mmap(-1, BLOCK)  # page-aligned, as O_DIRECT wants it
        self._size = device.size

    def clear(self, size: int) -> None:
        """The first block, and what a second partition table at the end of the card would be."""
        self.write(0, bytes(min(BLOCK, size)))
        if self._size > size + ALIGN * 16:
            end = self._size - self._size % 512
            self.write(end - 34 * 512, bytes(34 * 512))
        self.flush()

    def write(self, offset: int, data: bytes) -> None:
        whole = len(data) - len(data) % ALIGN if self._direct >= 0 and offset % ALIGN == 0 else 0
        if whole:
            self._buffer[:whole] = data[:whole] if whole != len(data) else data
            with memoryview(self._buffer) as view, view[:whole] as part:
                _all(os.pwrite(self._direct, part, offset), whole)
        if whole < len(data):
            _all(os.pwrite(self._fd, data[whole:], offset + whole), len(data) - whole)

    def read(self, offset: int, size: int) -> bytes:
        # Without O_DIRECT the cache is told to forget, which it does for what has been flushed
        whole = size - size % ALIGN if self._direct >= 0 and offset % ALIGN == 0 else 0
        found = b""
        if whole:
            with memoryview(self._buffer) as view, view[:whole] as part:
                _all(os.preadv(self._direct, [part], offset), whole)
                found = bytes(part)
        if whole < size:
            os.posix_fadvise(self._fd, offset + whole, size - whole, os.POSIX_FADV_DONTNEED)
            found += os.pread(self._fd, size - whole, offset + whole)
        return found

    def digest(self, offset: int, size: int) -> bytes:
        """Of what `read` would return, without a copy of it."""
        if self._direct >= 0 and offset % ALIGN == 0 and size % ALIGN == 0:
            with memoryview(self._buffer) as view, view[:size] as part:
                _all(os.preadv(self._direct, [part], offset), size)
                return _digest(part)
        return _digest(self.read(offset, size))

    def flush(self) -> None:
        os.fsync(self._fd)

    def close(self) -> None:
        for fd in (self._direct, self._fd):
            if fd >= 0:
                with suppress(OSError):  # a card that is gone has been reported
                    os.close(fd)
        self._buffer.close()


def _compare(target: _Target, plan: Plan, tell: Tell, path: str) -> None:
    done = 0
    for offset, size, digest in plan.digests:
        if offset and target.digest(offset, size) != digest:
            raise FlashError(_differs("", offset, size).lstrip(": "))
        done += size
        tell(path, "verifying", done, plan.total)


def _blocks_of(stream: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes, BLOCK at a time."""
    kept: list[bytes] = []
    size = 0
    for chunk in stream:
        if not kept and len(chunk) == BLOCK:
            yield chunk
            continue
        kept.append(chunk)
        size += len(chunk)
        if size >= BLOCK:
            joined = b"".join(kept)
            yield joined[:BLOCK]
            kept, size = [joined[BLOCK:]], size - BLOCK
    if size:
        yield b"".join(kept)


def _digest(data: bytes | memoryview) -> bytes:
    return hashlib.sha256(data).digest()


def _differs(path: str, offset: int, size: int) -> str:
    return (
        f"{path}: what is read back between bytes {offset} and {offset + size} is not what was written: the card is "
        "bad, or smaller than it says. Take another."
    )


def _all(done: int, size: int) -> None:
    if done != size:
        raise OSError(errno.ENOSPC if done >= 0 else errno.EIO, "not all of it")


def _said(error: OSError) -> str:
    if error.errno in _PULLED:
        return (
            f"the card is gone, or broken ({error.strerror}). It has no first block, so nothing starts from it: "
            "put it in again and write it anew."
        )
    if error.errno == errno.ENOSPC:
        return "the card is full: it is smaller than it says. Take another."
    return f"{error.strerror}."
