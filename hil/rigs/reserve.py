"""Who has a rig: two locks of the kernel's a rig, which go with the process that holds them, however it ends.

`reserved` is held by `edgehil reserve`, for hours; others are refused meanwhile, and the same user is not. `busy` is
held by whatever works with the rig just now, and refuses everybody. What stands in the files is for people.
"""

from __future__ import annotations

import fcntl
import getpass
import hashlib
import json
import os
import re
import signal
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hil.errors import HilError, Reserved

FOLDERS = (Path("/run/lock"), Path("/var/lock"), Path("/tmp"))  # the first that all may write to
TEXT_BYTES_MAX = 4_096
RESERVED, BUSY = "reserved", "busy"


class Lock:
    """One of the two locks of the rig at `path`. Two files of one rig are two rigs."""

    def __init__(self, path: Path, which: str, folder: Path | None = None) -> None:
        real = os.path.realpath(path)
        digest = hashlib.sha256(real.encode()).hexdigest()[:12]
        self.rig = path
        self.path = (folder or _folder()) / f"edgehil-{re.sub('[^a-z0-9-]', '-', path.stem.lower())}-{digest}.{which}"
        self._file = -1

    def take(self, why: str) -> None:
        """Until `drop`, or the end of this process. Raises Reserved, with who has it, since when and why."""
        self._file = self._open()
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.drop()
            raise Reserved(f"{self.rig.stem} is taken: {told(self.holder())}") from None
        text = {"user": _user(), "uid": os.geteuid(), "pid": os.getpid(), "since": int(time.time()), "why": why[:200]}
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, json.dumps(text).encode(), 0)

    def drop(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def holder(self) -> dict[str, Any] | None:
        """Who has it, as they said; None when it is free."""
        try:
            file = self._open()
        except HilError:
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None
        except BlockingIOError:
            with suppress(ValueError):
                found = json.loads(os.pread(file, TEXT_BYTES_MAX, 0))
                if isinstance(found, dict):
                    return found
            return {}
        finally:
            os.close(file)

    def end(self) -> dict[str, Any]:
        """End the process that holds it, which is to be this user's; returns who that was. Raises Reserved."""
        found = self.holder()
        if found is None:
            raise Reserved(f"{self.rig.stem} is not reserved")
        if found.get("uid") != os.geteuid() or not isinstance(found.get("pid"), int) or found["pid"] <= 1:
            raise Reserved(f"{self.rig.stem} is not yours: {told(found)}")
        with suppress(ProcessLookupError):
            os.kill(found["pid"], signal.SIGTERM)
        return found

    def _open(self) -> int:
        """A file of everybody's in a folder of everybody's: no link is followed, and only a plain file is one."""
        mask = os.umask(0)
        try:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise HilError(f"{self.path}: {error.strerror}; EDGEHIL_LOCKS names another place") from None
        finally:
            os.umask(mask)
        if not stat.S_ISREG(os.fstat(file).st_mode):
            os.close(file)
            raise HilError(f"{self.path}: is no file")
        return file


@contextmanager
def working(path: Path, why: str, folder: Path | None = None) -> Iterator[None]:
    """The rig for a piece of work. Raises Reserved when another user has reserved it, or anybody works with it."""
    holder = Lock(path, RESERVED, folder).holder()
    if holder is not None and holder.get("uid") != os.geteuid():
        raise Reserved(f"{path.stem} is reserved: {told(holder)}")
    lock = Lock(path, BUSY, folder)
    lock.take(why)
    try:
        yield
    finally:
        lock.drop()


def told(holder: dict[str, Any] | None) -> str:
    """For people."""
    if holder is None:
        return "free"
    since = holder.get("since")
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(since)) if isinstance(since, int) else "?"
    why = str(holder.get("why") or "no reason given")
    why = "".join(character if character.isprintable() else "?" for character in why[:200])
    return f"by {str(holder.get('user', '?'))[:32]} (process {holder.get('pid', '?')}) since {when}: {why}"


def _folder() -> Path:
    if given := os.environ.get("EDGEHIL_LOCKS"):
        return Path(given)
    for folder in FOLDERS:
        if folder.is_dir() and os.access(folder, os.W_OK):
            return folder
    raise HilError(f"none of {', '.join(map(str, FOLDERS))} can be written to; EDGEHIL_LOCKS names another place")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.geteuid())
