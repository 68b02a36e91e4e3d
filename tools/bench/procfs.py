"""What the kernel tells of a process: CPU time, memory, and which libraries it has in memory. proc(5)."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_FORGET_PEAK = "5"


def cpu_s(*pids: int) -> float:
    """User and system time of all their threads, of those that have ended too."""
    ticks = 0
    for pid in pids:
        fields = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])  # utime, stime
    return ticks / TICKS_PER_S


def rss_mib(pid: int) -> float:
    return _status_mib(pid, "VmRSS")


def peak_rss_mib(pid: int) -> float:
    """The most since it began, or since `forget_peak`."""
    return _status_mib(pid, "VmHWM")


def forget_peak(pid: int) -> None:
    """From now on the peak is counted anew; where the kernel has no such switch, it stays that of the whole life."""
    with suppress(OSError):
        Path("/proc", str(pid), "clear_refs").write_text(_FORGET_PEAK)


def has_mapped(pid: int, library: str) -> bool:
    """Whether a file of this name is in its memory."""
    lines = Path("/proc", str(pid), "maps").read_text().splitlines()
    return any(Path(line.split(maxsplit=5)[5]).name == library for line in lines if line.count("/"))


def _status_mib(pid: int, field: str) -> float:
    lines = Path("/proc", str(pid), "status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024
