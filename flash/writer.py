"""Writes one image to several cards at once, and reads back what the cards have kept.

The order, for each card: the first block is emptied, so that what was on the card does not start any more → all but the
first block → flush → read back past the page cache and compare → the first block → flush → read it back. A card that is
pulled, or found bad, at any moment has no first block: no device starts from half an image.
"""

from __future__ import annotations

import errno
import hashlib
import lzma
import mmap
import os
import stat
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
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

Block = tuple[int, bytes | memoryview]  # where it is in the image, and what
Tell = Callable[[str, str, int, int], None]  # path of the card, step, bytes done, bytes in all


class Card:
    """One target. `error` is empty when it was written and verified; `written_s` and `verified_s` are seconds."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.error = ""
        self.written_s = 0.0
        self.verified_s = 0.0
        self._blocks: Queue[Block | None] = Queue(QUEUED)
        self._ended = threading.Event()

    def hand(self, block: Block | None) -> None:
        """Queue a block; returns at once when the card has failed."""
        while not self._ended.is_set():
            with suppress(Full):
                self._blocks.put(block, timeout=TICK_S)
                return

    def run(self, size: int, plan: Plan, feed: Iterator[Block] | None, tell: Tell) -> None:
        """In a thread of its own: everything, with `error` for what went wrong. `feed` None: what is handed to it."""
        path = self.device.path
        step = "opening"
        try:
            target = _Target(self.device)
            try:
                step = "writing"
                began = time.monotonic()
                target.clear(size)
                self._write(target, plan, self._handed(plan) if feed is None else feed, tell)
                target.flush()
                self.written_s = time.monotonic() - began
                step = "reading back"
                began = time.monotonic()
                _compare(target, plan, tell, path)
                step = "writing the first block"
                for offset, data in reversed(plan.first):
                    if offset:
                        target.write(offset, data)
                head = plan.first[0][1]
                target.write(ALIGN, head[ALIGN:])
                target.flush()
                target.write(0, head[:ALIGN])  # the table: what comes before it is of no use without
                target.flush()
                if any(target.read(offset, len(data)) != data for offset, data in plan.first):
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

    def _write(self, target: _Target, plan: Plan, feed: Iterator[Block], tell: Tell) -> None:
        done = 0
        for offset, data in feed:
            plan.go_on()
            if offset >= BLOCK:
                target.write(offset, data)
            done += len(data)
            tell(self.device.path, "writing", done, plan.total)
        plan.go_on()

    def _handed(self, plan: Plan) -> Iterator[Block]:
        while True:
            try:
                block = self._blocks.get(timeout=TICK_S)
            except Empty:
                plan.go_on()
                continue
            if block is None:
                return
            yield block


class Plan:
    """What all cards of a run get: filled by the reader, block by block, before a card hears of the block."""

    def __init__(self, total: int, source: Path | None) -> None:
        self.total = total  # bytes that are written
        self.source = source  # to compare with; None for one that is packed, of which there are digests
        self.first: list[tuple[int, bytes]] = []  # what is in the first block: all of it, or what a block map has of it
        self.blocks: list[tuple[int, int, bytes]] = []  # offset, length, digest or nothing
        self.failed = ""

    def go_on(self) -> None:
        """FlashError when the image turned out bad, or somebody has interrupted."""
        if self.failed:
            raise FlashError(self.failed)

    def feed(self, source: Path, kind: str, size: int, bmap: Bmap | None, one: bool) -> Iterator[Block]:
        """The blocks of the image, each noted here first. For `one` card a block may be gone with the next."""
        found: Iterator[Block] = blocks(source, kind, size, bmap)
        if one and kind == "raw" and bmap is None:
            found = _aligned_blocks(source, size)
        try:
            for offset, data in found:
                if offset < BLOCK:
                    self.first.append((offset, bytes(data)))
                self.blocks.append((offset, len(data), b"" if kind == "raw" else _digest(data)))
                yield offset, data
        except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
            raise FlashError(
                f"{source}: {error}. It changed since it was looked over; the card is not written."
            ) from None
        if not self.first or self.first[0][0]:
            raise FlashError(f"{source}: its first block is not in the block map, and no device starts without one.")


def write(source: Path, kind: str, size: int, bmap: Bmap | None, devices: Sequence[Device], tell: Tell) -> list[Card]:
    """Write an image of `size` bytes, all of it, or with `bmap` what that maps. FlashError when the image is bad."""
    cards = [Card(device) for device in devices]
    total = sum(end - start for start, end in map(bmap.bytes_of, bmap.ranges)) if bmap else size
    plan = Plan(total, source if kind == "raw" else None)
    feed = plan.feed(source, kind, size, bmap, len(cards) == 1)
    # One card reads by itself, as dd does; of several the slowest sets the pace
    words = (size, plan, feed if len(cards) == 1 else None, tell)
    threads = [threading.Thread(target=card.run, args=words, daemon=True) for card in cards]
    for thread in threads:
        thread.start()
    try:
        if len(cards) > 1:
            _hand_out(feed, cards, plan)
        for thread in threads:
            thread.join()
    except BaseException:  # an interrupt: no card must go on to its first block
        plan.failed = "interrupted. The card is not written; write it again."
        for thread in threads:
            thread.join()
        raise
    return cards


def _hand_out(feed: Iterator[Block], cards: Sequence[Card], plan: Plan) -> None:
    try:
        for block in feed:
            for card in cards:
                card.hand(block)
            if all(card.error for card in cards):
                break
    except FlashError as error:
        plan.failed = str(error)
    for card in cards:
        card.hand(None)


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


def blocks(source: Path, kind: str, size: int, bmap: Bmap | None) -> Iterator[Block]:
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
        self._buffer = _aligned()
        self._size = device.size

    def clear(self, size: int) -> None:
        """The first block, and what a second partition table at the end of the card would be."""
        self.write(0, bytes(min(BLOCK, size)))
        if self._size > size + ALIGN * 16:
            end = self._size - self._size % 512
            self.write(end - 34 * 512, bytes(34 * 512))
        self.flush()

    def write(self, offset: int, data: bytes | memoryview) -> None:
        whole = len(data) - len(data) % ALIGN if self._direct >= 0 and offset % ALIGN == 0 else 0
        if whole and isinstance(data, memoryview):  # aligned already
            _all(os.pwrite(self._direct, data[:whole], offset), whole)
        elif whole:
            self._buffer[:whole] = data[:whole]
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

    def flush(self) -> None:
        os.fsync(self._fd)

    def close(self) -> None:
        for fd in (self._direct, self._fd):
            if fd >= 0:
                with suppress(OSError):  # a card that is gone has been reported
                    os.close(fd)
        self._buffer.close()


def _compare(target: _Target, plan: Plan, tell: Tell, path: str) -> None:
    """All but the first block, with the source itself where it can be read again, else with its digests."""
    done = 0
    with _opened(plan.source) as source:
        for offset, size, digest in plan.blocks:
            plan.go_on()
            if offset >= BLOCK:
                found = target.read(offset, size)
                same = found == os.pread(source, size, offset) if source >= 0 else _digest(found) == digest
                if not same:
                    raise FlashError(_differs("", offset, size).lstrip(": "))
            done += size
            tell(path, "verifying", done, plan.total)


@contextmanager
def _opened(path: Path | None) -> Iterator[int]:
    """The file opened for reading; -1 for none."""
    fd = -1 if path is None else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        if fd >= 0:
            os.close(fd)


def _aligned() -> mmap.mmap:
    """BLOCK bytes, page-aligned as O_DIRECT wants them, in large pages, of which the kernel pins fewer a request."""
    buffer = mmap.mmap(-1, BLOCK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without large pages
        buffer.madvise(mmap.MADV_HUGEPAGE)
    return buffer


def _aligned_blocks(source: Path, size: int) -> Iterator[tuple[int, memoryview]]:
    """As `blocks`, of a raw image, each at the same place in memory as the one before: nothing is copied."""
    at = 0
    with source.open("rb", buffering=0) as raw, memoryview(_aligned()) as view:
        while count := raw.readinto(view):
            with view[:count] as part:
                yield at, part
            at += count
    if at != size:
        raise FlashError(f"{source}: changed while it was read.")


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
