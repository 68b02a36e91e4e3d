"""Files that a power cut leaves old or new: written beside the old one, synced, renamed, and their directory synced."""

from __future__ import annotations

import os


def replace(path: str, data: bytes, mode: int = 0o600) -> None:
    """Durable when it returns. OSError when the disk refuses: then the old file is still there."""
    beside = path + ".new"
    write(beside, data, mode)
    os.replace(beside, path)
    sync_directory(os.path.dirname(path))


def write(path: str, data: bytes, mode: int = 0o600) -> None:
    """A file of these bytes, synced; its name is not."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        write_all(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def open_append(path: str) -> int:
    """A descriptor of a file that grows; it and its name are synced by `close_synced` and `sync_directory`."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def close_synced(fd: int) -> None:
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def rename(path: str, name: str) -> None:
    """Within its directory, which is synced."""
    directory = os.path.dirname(path)
    os.replace(path, f"{directory}/{name}")
    sync_directory(directory)


def make_directory(path: str) -> None:
    """And those above it that are missing; nothing happens where it is there."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    make_directory(parent)
    os.mkdir(path, 0o700)
    sync_directory(parent)


def sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove(path: str) -> None:
    """No error when there is none; gone for good when it returns."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    sync_directory(os.path.dirname(path))
