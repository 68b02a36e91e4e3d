"""For which machines there are packages, and the C library of each."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from edgeagent.engine.fast import build as builder
from tools import OBJECTS
from tools.cross import LIBCS, MACHINES, OUT

FORMATS = ("deb", "ipk", "apk")
# At -O2 clang unrolls vectors that MIPS has not: 470 KB instead of 143, on boards with 16 MiB of flash for everything
# and some 32 KiB of instruction cache. Which is faster has not been measured on one.
SMALL = {machine.name: ("-Os",) for machine in MACHINES if machine.triple.startswith("mips")}


class Target(NamedTuple):
    """`name` is what --arch takes; `arch` the package manager's own word; `abi` machine-libc as in tools/cross.py."""

    name: str
    abi: str
    arch: str
    formats: tuple[str, ...]


# Debian's architectures, then OpenWrt's package architectures (24.10 installs .ipk, 25.12 .apk).
TARGETS = (
    Target("amd64", "x86-64-glibc", "amd64", ("deb",)),
    Target("arm64", "aarch64-glibc", "arm64", ("deb",)),
    Target("armhf", "armv7hf-glibc", "armhf", ("deb",)),
    # Raspberry Pi OS' armhf is ARMv6, for the Pi Zero and the Pi 1: Debian's programs would die there.
    Target("armhf-armv6", "armv6hf-glibc", "armhf", ("deb",)),
    Target("mipsel", "mipselhf-glibc", "mipsel", ("deb",)),  # Debian 12 is the last that has it
    Target("x86_64", "x86-64-musl", "x86_64", ("ipk", "apk")),
    Target("aarch64_generic", "aarch64-musl", "aarch64_generic", ("ipk", "apk")),
    Target("aarch64_cortex-a53", "aarch64-musl", "aarch64_cortex-a53", ("ipk", "apk")),
    Target("aarch64_cortex-a72", "aarch64-musl", "aarch64_cortex-a72", ("ipk", "apk")),
    Target("mipsel_24kc", "mipsel-musl", "mipsel_24kc", ("ipk", "apk")),
    Target("mips_24kc", "mips-musl", "mips_24kc", ("ipk", "apk")),
)


def abis() -> list[str]:
    return list(dict.fromkeys(target.abi for target in TARGETS))


def chosen(names: list[str], form: str) -> Iterator[Target]:
    """Those of `form` that `names` name, all of that form where there are none. Raises ValueError for unknown ones."""
    known = [target for target in TARGETS if form in target.formats]
    everywhere = {target.name for target in TARGETS} | set(abis())
    if unknown := [name for name in names if name not in everywhere]:
        raise ValueError(f"{unknown[0]!r}: no such architecture; known are {', '.join(sorted(everywhere))}")
    yield from (target for target in known if not names or target.name in names or target.abi in names)


def library(abi: str) -> Path:
    """The C library for it, stripped; built when a source, a flag or Zig has changed. Raises BuildError."""
    name, _, libc = abi.rpartition("-")
    machine = next(machine for machine in MACHINES if machine.name == name)
    zig = [sys.executable, "-m", "ziglang", "cc"]
    out = OUT.parent / "package" / abi / builder.LIBRARY
    stamp = out.with_suffix(".stamp")
    want = _sum(abi)
    if out.exists() and stamp.exists() and stamp.read_text() == want:
        return out
    for variable in ("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR"):
        os.environ.setdefault(variable, str(OUT / "cache"))
    out.parent.mkdir(parents=True, exist_ok=True)
    triple = machine.triple.format(LIBCS[libc])
    flags = [f"-mcpu={machine.cpu}", *SMALL.get(name, ())]
    builder.build(out, zig, target=triple, flags=flags, cache=OBJECTS, strip=True)
    stamp.write_text(want)
    return out


def _sum(abi: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        found = version("ziglang")
    except PackageNotFoundError:
        raise builder.BuildError("no Zig. Install it: pip install 'edgemesh[tools]'") from None
    files = [*builder.sources(), *sorted(builder.SOURCES.glob("*.h")), builder.SOURCES / "build.py"]
    digest = hashlib.sha256(f"{abi} {found} {MACHINES} {SMALL}".encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()
