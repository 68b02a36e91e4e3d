"""Simulated boards for tests: what they are flashed with, and how little of it will do."""

from __future__ import annotations

from pathlib import Path

from hil.sim import rootfs
from tools.package import contents

KIND = rootfs.KINDS["x86_64"]
BOARD, AGENT = rootfs.machine(KIND).board, "edgeagent.pyz"


def tree(folder: Path) -> Path:
    """A root file system, as far as edgeflash looks: the programs in it are heads of programs."""
    return rootfs.write(folder / "rootfs", KIND)


def agent(folder: Path) -> Path:
    """The agent of this checkout as a zipapp, without the C library, which is minutes of Zig."""
    made = folder / AGENT
    made.write_bytes(contents.zipapp(None))
    return made
