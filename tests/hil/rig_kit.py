"""Simulated boards for tests: what they are flashed with, and how little of it will do."""

from __future__ import annotations

from pathlib import Path

from tests.flash import kit
from tools.package import contents

ELF_X86_64 = 62
TREE: kit.Files = {
    **{path: kit.elf(ELF_X86_64) if isinstance(data, bytes) else data for path, data in kit.DEBIAN.items()},
    "usr/lib/x86_64-linux-gnu/libsodium.so.23": kit.elf(ELF_X86_64),
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n",
}
BOARD, AGENT = "qemu-x86-64", "edgeagent.pyz"


def tree(folder: Path) -> Path:
    """A root file system, as far as edgeflash looks: the programs in it are heads of programs."""
    return kit.tree(folder / "rootfs", TREE)


def agent(folder: Path) -> Path:
    """The agent of this checkout as a zipapp, without the C library, which is minutes of Zig."""
    made = folder / AGENT
    made.write_bytes(contents.zipapp(None))
    return made
