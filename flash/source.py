"""Brings an image, compressed or not, or a root file system into a new raw image, whole or not at all.

The result is made as NAME.part beside its name and renamed when it is done; the source is only read.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import lzma
import os
import stat
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from uuid import UUID

from flash.errors import FlashError
from flash.run import run

CHUNK = 1 << 20
IMAGE_BYTES_MAX = 256 << 30
ROOTFS_SPARE = 64 << 20
# Named, so that the image does not depend on the mke2fs.conf of the machine; all are known to Linux 3.10 and later.
EXT4_FEATURES = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum"  # noqa: E501

_TRAILER = 16  # fwtool: magic, checksum, type, size

Progress = Callable[[int, int], None]  # bytes done, bytes in all or 0 for unknown


def no_progress(_done: int, _total: int) -> None:
    """For who does not want to be told."""


def kind_of(path: Path) -> str:
    """raw, gz, xz, tar or dir: by what is there, not by the name. FlashError for what is neither."""
    try:
        if path.is_dir():
            return "dir"
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise FlashError(f"{path}: {error.strerror}.") from None
    if head[:6] == b"\xfd7zXZ\0":
        return "tar" if _is_tar(path) else "xz"
    if head[:2] == b"\x1f\x8b":
        return "tar" if _is_tar(path) else "gz"
    for magic, name in ((b"\x28\xb5\x2f\xfd", "zstd"), (b"BZh", "bzip2"), (b"PK\x03\x04", "zip")):
        if head.startswith(magic):
            raise FlashError(f"{path}: is compressed by {name}, which is not read here. Unpack it first.")
    if head[257:262] == b"ustar":
        return "tar"
    return "raw"


@contextmanager
def part_file(target: Path, force: bool = False, mode: int = 0o600) -> Iterator[BinaryIO]:
    """A new file, open for reading and writing, that gets the name `target` when the block ends without an error."""
    if target.exists() and not force:
        raise FlashError(f"{target}: is there already. Name another file, or give --force to replace it.")
    part = target.with_name(target.name + ".part")
    try:
        # What holds a join token is nobody else's to read
        fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    except OSError as error:
        raise FlashError(f"{part}: {error.strerror}.") from None
    try:
        with os.fdopen(fd, "r+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.rename(part, target)
        _sync(target.parent)
    except OSError as error:
        raise FlashError(f"{part}: {_said(error)}") from None
    finally:
        with suppress(FileNotFoundError):
            part.unlink()


def unpack(source: Path, kind: str, file: BinaryIO, progress: Progress = no_progress) -> int:
    """Write the raw image into `file`, with holes where it is zero; returns its size, bytes. FlashError when cut."""
    if kind in ("dir", "tar"):
        return make_rootfs(source, kind, file)
    try:
        with source.open("rb") as raw:
            size = os.fstat(raw.fileno()).st_size
            if kind == "raw":
                return copy_sparse(raw, file, size, progress)
            done = 0
            for chunk in chunks(raw, kind):
                # No holes where it is zero: a block map would take them for blocks that need not be written
                file.write(chunk)
                done += len(chunk)
                if done > IMAGE_BYTES_MAX:
                    raise FlashError(
                        f"{source}: is more than {IMAGE_BYTES_MAX >> 30} GiB unpacked. No card holds that."
                    )
                progress(raw.tell(), size)
    except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
        raise FlashError(
            f"{source}: is damaged or cut short ({str(error).rstrip('.') or 'no more data'}). "
            "Fetch it again and compare its checksum with the publisher's."
        ) from None
    file.truncate(done)
    file.flush()
    return done


def copy_sparse(raw: BinaryIO, file: BinaryIO, size: int, progress: Progress) -> int:
    """Copy what is data and leave holes where the source has them (SEEK_DATA, lseek(2))."""
    for start, end in extents(raw.fileno(), size):
        raw.seek(start)
        file.seek(start)
        while start < end:
            chunk = raw.read(min(CHUNK, end - start))
            if not chunk:
                raise EOFError("it became shorter while it was read")
            file.write(chunk)
            start += len(chunk)
            progress(start, size)
    file.truncate(size)
    file.flush()
    return size


def extents(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """(start, end) of what is data in a file that may have holes, bytes."""
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
            at = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                return
            if error.errno != errno.EINVAL:
                raise
            start, at = at, size  # a file system that tells no holes
        yield start, at


def _make_dense(file: BinaryIO, size: int) -> None:
    """Write the holes: mke2fs leaves them where its tables are zero, and a block map must not leave those out."""
    end = 0
    for start, stop in [*extents(file.fileno(), size), (size, size)]:
        file.seek(end)
        while end < start:
            end += file.write(bytes(min(CHUNK, start - end)))
        end = stop
    file.flush()


def make_rootfs(source: Path, kind: str, file: BinaryIO, size: int = 0) -> int:
    """One bare ext4 of a directory or a tar, by mke2fs; owners are those of the tar, and root for an ordinary user's
    directory. `size` 0: what is in it, a quarter more, and ROOTFS_SPARE."""
    needs, digest = _measure(source, kind)
    size = size or -(-(needs * 5 // 4 + ROOTFS_SPARE) // CHUNK) * CHUNK
    file.truncate(size)
    file.flush()
    uuid = str(UUID(bytes=digest[:16], version=4))
    make = (
        f"mke2fs -q -F -t ext4 -b 4096 -I 256 -O {EXT4_FEATURES} -U {uuid}"
        f" -E hash_seed={uuid},root_owner=0:0,lazy_itable_init=0"
        f' -d "$1" /proc/self/fd/{file.fileno()} {size // 1024}k'
    )
    fds = [file.fileno()]
    if kind == "dir":
        # As root the owners are what they are; for anybody else nothing but root's would make sense on a device
        as_root = [] if os.geteuid() == 0 else ["fakeroot"]
        run([*as_root, "sh", "-c", make, "sh", str(source)], fds=fds)
    else:
        with tempfile.TemporaryDirectory(prefix="edgeflash-") as folder:
            # fakeroot remembers owners and device nodes from one to the other
            script = f'tar -C "$1" --numeric-owner -xpf "$2" && {make}'
            run(["fakeroot", "sh", "-c", script, "sh", folder, str(source.resolve())], fds=fds)
    _make_dense(file, size)
    return size


def _measure(source: Path, kind: str) -> tuple[int, bytes]:
    """Bytes that a root file system needs, and a digest of what it is: names, sizes, and of a tar all bytes."""
    digest = hashlib.sha256()
    needs = 0
    if kind == "dir":
        for folder, folders, names in os.walk(source):
            folders.sort()
            for name in sorted(names) + folders:
                about = os.lstat(os.path.join(folder, name))
                needs += 4096 + (-(-about.st_size // 4096) * 4096 if stat.S_ISREG(about.st_mode) else 0)
                digest.update(f"{os.path.relpath(os.path.join(folder, name), source)}\0{about.st_size}\n".encode())
        return needs, digest.digest()
    try:
        with source.open("rb") as raw:
            for chunk in iter(lambda: raw.read(CHUNK), b""):
                digest.update(chunk)
        with tarfile.open(source) as archive:
            for member in archive:
                needs += 4096 + -(-member.size // 4096) * 4096
                if needs > IMAGE_BYTES_MAX:
                    raise FlashError(
                        f"{source}: is more than {IMAGE_BYTES_MAX >> 30} GiB unpacked. No card holds that."
                    )
    except (tarfile.TarError, EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
        raise FlashError(f"{source}: is damaged or cut short ({error}). Fetch it again.") from None
    return needs, digest.digest()


def chunks(raw: BinaryIO, kind: str) -> Iterator[bytes]:
    """What is in a raw, gz or xz file, CHUNK bytes at most at a time. EOFError, zlib.error or LZMAError: damaged."""
    if kind == "xz":
        with lzma.open(raw) as stream:
            yield from iter(lambda: stream.read(CHUNK), b"")
    elif kind == "gz":
        yield from _gunzip(raw)
    else:
        yield from iter(lambda: raw.read(CHUNK), b"")


def _gunzip(raw: BinaryIO) -> Iterator[bytes]:
    """RFC 1952. The gzip module would refuse OpenWrt's images, whose metadata stand behind the last member."""
    engine = zlib.decompressobj(wbits=31)
    data = raw.read(CHUNK)
    while data:
        out = engine.decompress(data, CHUNK)
        if out:
            yield out
        if engine.eof:
            data = engine.unused_data or raw.read(CHUNK)
            if data and not data.startswith(b"\x1f\x8b"):
                raw.seek(-_TRAILER, os.SEEK_END)
                if raw.read(4) != b"FWx0":
                    raise EOFError("behind its end is something else")
                return
            engine = zlib.decompressobj(wbits=31) if data else engine
        else:
            data = engine.unconsumed_tail or raw.read(CHUNK)
    if not engine.eof:
        raise EOFError("no end of the compressed data")


def _is_tar(path: Path) -> bool:
    try:
        with tarfile.open(path) as archive:
            return archive.next() is not None
    except (tarfile.TarError, EOFError, lzma.LZMAError, zlib.error, OSError):
        return False


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _said(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full. Free some room, or name a file on another disk."
    return f"{error.strerror}."
