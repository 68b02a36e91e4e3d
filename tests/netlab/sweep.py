"""What a lab leaves in the kernel and on disk, and its removal. Run as a file, this is the lab's warden.

A lab's id is `edgelab<pid>` (`edgelab<pid>.<n>` for a further lab of the same process). Every namespace is called
`<id>-<host>`, and the lab's directory is `<tmp>/<id>`, so who owns what can be told after a crash, without a list.

Each lab starts its warden, in a session of its own and waiting on a pipe. When the lab closes the pipe, or dies in
whatever way, the warden kills every process inside the lab's namespaces, whoever started it, and removes namespaces
and directory. Only the standard library is imported, so that it starts in some 20 ms.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

NETNS_DIR = Path("/run/netns")
KILL_ROUNDS_MAX = 100  # × KILL_ROUND_S: how long a process may take to vanish after SIGKILL
KILL_ROUND_S = 0.02

_ID = re.compile(r"(edgelab(\d{1,10})(?:\.\d{1,6})?)(?:-[a-z0-9-]+)?")
_serial = itertools.count(1)
_alive_here: set[str] = set()


def new_id() -> str:
    """The id of a lab of this process, unique on this machine while the process lives."""
    serial = next(_serial)
    lab_id = f"edgelab{os.getpid()}" + ("" if serial == 1 else f".{serial}")
    _alive_here.add(lab_id)
    return lab_id


def directory_of(lab_id: str) -> Path:
    return Path(tempfile.gettempdir()) / lab_id


def leftovers() -> list[str]:
    """Ids of labs that still own something though their process is dead, sorted."""
    return sorted({lab_id for lab_id, pid in _present() if not _is_running(lab_id, pid)})


def sweep(lab_id: str) -> None:
    """Kill all processes in the lab's namespaces, then remove the namespaces and the lab's directory. Idempotent."""
    names = namespaces_of(lab_id)
    _kill_all_in(names)
    for name in names:
        # Another sweep may have been first; what stays is seen by `leftovers`.
        subprocess.run(["ip", "netns", "del", name], stderr=subprocess.DEVNULL, check=False)
    shutil.rmtree(directory_of(lab_id), ignore_errors=True)
    _alive_here.discard(lab_id)


def namespaces_of(lab_id: str) -> list[str]:
    return sorted(name for name in _list(NETNS_DIR) if name.startswith(lab_id + "-"))


def processes_in(names: list[str]) -> list[int]:
    """Pids of all processes whose network namespace is one of `names`, this process left out."""
    wanted = set()
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            wanted.add(_inode(NETNS_DIR / name))
    found = []
    for entry in _list(Path("/proc")):
        if entry.isdigit() and int(entry) != os.getpid():
            # Gone meanwhile, or another user's and so not of this lab.
            with contextlib.suppress(OSError):
                if _inode(Path("/proc", entry, "ns/net")) in wanted:
                    found.append(int(entry))
    return found


def is_alive(pid: int) -> bool:
    """Whether the process still runs; a zombie does not."""
    try:
        stat = Path("/proc", str(pid), "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"  # proc(5)


def _present() -> Iterator[tuple[str, int]]:
    for name in _list(NETNS_DIR):
        if match := _ID.fullmatch(name):
            yield match[1], int(match[2])
    tmp = Path(tempfile.gettempdir())
    for name in _list(tmp):
        match = _ID.fullmatch(name)
        if match and match[1] == name and _is_own_directory(tmp / name):
            yield name, int(match[2])


def _is_running(lab_id: str, pid: int) -> bool:
    return lab_id in _alive_here if pid == os.getpid() else is_alive(pid)


def _kill_all_in(names: list[str]) -> None:
    for _ in range(KILL_ROUNDS_MAX):
        pids = processes_in(names)
        if not pids:
            return
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(KILL_ROUND_S)


def _is_own_directory(path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return path.is_dir() and not path.is_symlink() and path.stat().st_uid == os.geteuid()
    return False


def _inode(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_dev, stat.st_ino


def _list(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []


def main() -> None:
    """`sweep.py ID` is the warden, reading the lab's pipe. `sweep.py` alone clears what crashed labs left."""
    if len(sys.argv) == 1:
        for lab_id in leftovers():
            sweep(lab_id)
        return
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    while os.read(0, 4096):
        pass
    sweep(sys.argv[1])


if __name__ == "__main__":
    main()
