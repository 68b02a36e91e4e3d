"""A control group with a ceiling on memory, of version 1 or 2, for programs that a test starts."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from edgeagent.ceiling import CGROUPS, own_group
from tests.netlab.process import until

GONE_S = 10


class NoGroups(Exception):
    """No control group can be made here; the text says why."""


class MemoryGroup:
    """In or beside the group of the test itself, and empty."""

    def __init__(self, name: str, limit_bytes: int) -> None:
        home = own_group()
        if home is None:
            raise NoGroups("no control group counts memory here")
        self._v1 = home.startswith(f"{CGROUPS}/memory")
        parent = Path(home) if self._v1 else Path(home).parent  # version 2: what has members has no children
        self.path = parent / f"{name}-{os.getpid()}"
        try:
            self.path.mkdir()
        except OSError as error:
            raise NoGroups(f"{parent}: no control group can be made in it: {error.strerror}") from None
        try:
            self._file("memory.limit_in_bytes", "memory.max").write_text(str(limit_bytes))
            self._file("memory.swappiness", "memory.swap.max").write_text("0")
        except OSError as error:
            self.close()
            raise NoGroups(f"{self.path}: memory is not to be bounded: {error.strerror}") from None

    @property
    def words(self) -> list[str]:
        """Before those of a command: it, and all that it starts, is in the group."""
        return ["sh", "-c", 'echo $$ >"$0" && exec "$@"', str(self.path / "cgroup.procs")]

    def members(self) -> list[int]:
        return [int(line) for line in (self.path / "cgroup.procs").read_text().split()]

    @property
    def peak_bytes(self) -> int:
        """The most that it ever took."""
        return int(self._file("memory.max_usage_in_bytes", "memory.peak").read_text())

    @property
    def kills(self) -> int:
        """By the kernel, for want of memory."""
        lines = self._file("memory.oom_control", "memory.events").read_text().splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)

    def close(self) -> None:
        """Once its members have ended."""
        with suppress(OSError):
            until(lambda: not self.members(), GONE_S, f"the end of what is in {self.path.name}")
            self.path.rmdir()

    def _file(self, v1: str, v2: str) -> Path:
        return self.path / (v1 if self._v1 else v2)
