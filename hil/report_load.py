"""What the run costs this machine: its processors' share, and of each program that the rig runs processor and memory.

Guests slow down with it, so a report that does not show it cannot be compared with another.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from hil.programs import Program

EVERY_S = 2.0
END_TIMEOUT_S = 5.0
PROC = Path("/proc")
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_MIB = os.sysconf("SC_PAGE_SIZE") / (1 << 20)


class Usage(NamedTuple):
    """Of all processes of a session: a Program begins one (proc(5): stat)."""

    processor_s: float
    rss_mib: float


class Load:
    """From `begin` to `end`, in a thread: `sample(what, value, unit, guest)` gets a point of each every EVERY_S."""

    def __init__(self, sample: Callable[[str, float, str, str], None]) -> None:
        self._sample = sample
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Once; more calls do nothing."""
        if self._thread is None and not self._over.is_set():
            self._thread = threading.Thread(target=self._run, name="load", daemon=True)
            self._thread.start()

    def end(self) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join(END_TIMEOUT_S)
            self._thread = None

    def _run(self) -> None:
        then, busy_s, before = time.monotonic(), _busy_s(), usages()
        while not self._over.wait(EVERY_S):
            now, now_busy_s, after = time.monotonic(), _busy_s(), usages()
            passed = max(now - then, 0.001)
            self._sample("host processors in use", 100 * (now_busy_s - busy_s) / passed, "%", "")
            for program in Program.running():
                if (used := after.get(program.pid)) is not None:
                    was = before.get(program.pid, Usage(0.0, 0.0))
                    share = 100 * max(0.0, used.processor_s - was.processor_s) / passed
                    self._sample("processor of its programs", share, "%", program.name)
                    self._sample("memory of its programs", used.rss_mib, "MiB", program.name)
            then, busy_s, before = now, now_busy_s, after


def usages() -> dict[int, Usage]:
    """By session, of all processes that can be seen."""
    found: dict[int, Usage] = {}
    for folder in PROC.iterdir():
        if folder.name.isdecimal():
            try:
                fields = (folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            except OSError:  # it has ended meanwhile
                continue
            session, ticks, pages = int(fields[3]), int(fields[11]) + int(fields[12]), int(fields[21])
            before = found.get(session, Usage(0.0, 0.0))
            found[session] = Usage(before.processor_s + ticks / _TICKS, before.rss_mib + pages * _PAGE_MIB)
    return found


def _busy_s() -> float:
    """Processor seconds since the boot, of all processors: user, nice, system, irq, softirq (proc(5))."""
    fields = (PROC / "stat").read_text(encoding="ascii").split("\n", 1)[0].split()
    return sum(int(fields[at]) for at in (1, 2, 3, 6, 7)) / _TICKS
