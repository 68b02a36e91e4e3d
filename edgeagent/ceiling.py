"""Keeps the process below what it may take of a device's memory, and says how much that is.

RLIMIT_DATA bounds what is private and writable: heaps, stacks of threads, and the C library's one mapping, used or
not (RLIMIT_AS would count shared libraries too, most of which is never touched). Pages of files stand beside it, so
with a limit of (ceiling - file pages) the resident set stays below the ceiling. What needs more then gets a
MemoryError: the input at hand is lost, and counted; the C library goes on with established flows, and so do we.
"""

from __future__ import annotations

import gc
import logging
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from edgeagent import memory
from edgeagent.proto.limits import CEILING_MIB

if TYPE_CHECKING:
    from edgeagent.config import Settings

log = logging.getLogger("edgeagent")
CGROUPS = "/sys/fs/cgroup"
HEADROOM_KIB = 1024  # that a process has at least, however low the ceiling
RESERVE_BYTES = 262_144  # address space for the way out of a MemoryError; no pages
BESIDE_KIB = 16_384  # what a control group also counts: socket buffers, page tables, pages of files read once
HITS_IN_A_ROW_MAX = 100
_NO_LIMIT = 1 << 60  # version 1 says so with a number near 2^63
_FIELDS = {b"VmRSS:": "rss_kib", b"VmHWM:": "rss_peak_kib", b"VmData:": "data_kib", b"RssFile:": "file_kib"}


class Ceiling:
    """`enforce` it once the agent has what it starts with; `hit` for each MemoryError, `passed` for a turn without one.

    `kib` is what the resident set stays below, None where nothing bounds it; `hits` counts MemoryErrors.
    """

    def __init__(self, settings: Settings) -> None:
        word = settings.memory_ceiling
        mib = None if word == "off" else CEILING_MIB[settings.memory_profile] if word == "auto" else int(word)
        self.kib = None if mib is None else mib * 1024
        self.hits = 0
        self._in_a_row = 0
        self._reserve = bytearray(RESERVE_BYTES)

    def enforce(self) -> None:
        if self.kib is None:
            return
        now = process()
        if "data_kib" not in now:
            log.warning("memory ceiling: /proc/self/status does not tell what is in use; there is none")
            self.kib = None
            return
        data_kib = self.kib - now["file_kib"]
        if data_kib < now["data_kib"] + HEADROOM_KIB:
            data_kib = now["data_kib"] + HEADROOM_KIB
            self.kib = data_kib + now["file_kib"]
            log.warning("memory ceiling: raised to %.1f MiB, because so much is needed already", self.kib / 1024)
        import resource

        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        soft = data_kib * 1024
        resource.setrlimit(resource.RLIMIT_DATA, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))
        group = own_group()
        if group is not None and set_high(group, (self.kib + BESIDE_KIB) * 1024):
            log.info("memory.high of %s is %d KiB now", group, self.kib + BESIDE_KIB)

    def hit(self) -> bool:
        """Make room. False where that has not helped for so long that the process is better begun anew."""
        self.hits += 1
        self._in_a_row += 1
        self._reserve = bytearray()
        with suppress(MemoryError):
            gc.collect()
            memory.trim()
            if self.hits & (self.hits - 1) == 0:  # the 1st, 2nd, 4th, …
                log.warning("the memory ceiling was reached, and input dropped, %d times", self.hits)
        with suppress(MemoryError):
            self._reserve = bytearray(RESERVE_BYTES)
        return self._in_a_row < HITS_IN_A_ROW_MAX

    def passed(self) -> None:
        self._in_a_row = 0


def process() -> dict[str, int]:
    """What /proc tells of this process, in KiB: `rss_kib`, `rss_peak_kib`, `data_kib`, `file_kib`."""
    found: dict[str, int] = {}
    with suppress(OSError, ValueError, IndexError), open("/proc/self/status", "rb") as status:
        for line in status:
            name = _FIELDS.get(line.partition(b"\t")[0])
            if name is not None:
                found[name] = int(line.split()[1])
    return found if len(found) == len(_FIELDS) else {}


def own_group(root: str = CGROUPS, listed: str = "/proc/self/cgroup") -> str | None:
    """The folder of the control group whose memory this process is counted in; None where there is none to be seen."""
    try:
        with open(listed, encoding="ascii", errors="replace") as file:
            groups = [line.rstrip("\n").split(":", 2) for line in file]
    except OSError:
        return None
    for _, controllers, group in (fields for fields in groups if len(fields) == 3):
        one = "memory" in controllers.split(",")
        folder = f"{root}/memory{group}" if one else f"{root}{group}"
        if (one or not controllers) and os.path.exists(f"{folder}/{_names(folder)[0]}"):
            return folder.rstrip("/")
    return None


def describe(group: str | None) -> dict[str, int | str | None] | None:
    """Of a control group: its folder, `usage_kib`, and the least `limit_kib` of it and those above it; with version 2
    also `high_kib`. None where there is none."""
    if group is None:
        return None
    usage, limit = _names(group)
    limits, folder = [], group
    while os.path.exists(f"{folder}/{usage}"):
        limits.append(_number(f"{folder}/{limit}"))
        folder = os.path.dirname(folder)
    bounds = [each for each in limits if each is not None]
    used, high = _number(f"{group}/{usage}"), _number(f"{group}/memory.high")
    return {
        "path": group,
        "usage_kib": None if used is None else used // 1024,
        "limit_kib": min(bounds) // 1024 if bounds else None,
        "high_kib": None if high is None else high // 1024,
    }


def set_high(group: str, size: int) -> bool:
    """Bound a control group of version 2 in which this process is alone and which nobody has bounded: beyond that the
    kernel takes back what it can, and slows it down, before anything is killed. False where that may not be."""
    try:
        with open(f"{group}/cgroup.procs", "rb") as file:
            alone = file.read(64).split() == [str(os.getpid()).encode()]
        if not alone or _number(f"{group}/memory.high") is not None:
            return False
        fd = os.open(f"{group}/memory.high", os.O_WRONLY)
        try:
            os.write(fd, str(size).encode())
        finally:
            os.close(fd)
    except OSError:  # not there, or not ours to write
        return False
    return True


def _names(folder: str) -> tuple[str, str]:
    """Files of usage and limit, in version 2 and in version 1."""
    if os.path.exists(f"{folder}/memory.limit_in_bytes"):
        return "memory.usage_in_bytes", "memory.limit_in_bytes"
    return "memory.current", "memory.max"


def _number(path: str) -> int | None:
    """None where there is no such file, or no bound in it."""
    try:
        with open(path, "rb") as file:
            value = int(file.read(32))
    except (OSError, ValueError):
        return None
    return value if value < _NO_LIMIT else None
