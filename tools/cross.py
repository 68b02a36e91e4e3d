"""Builds the C library for the machines that agents run on, and runs its self-test there under QEMU.

`python -m tools.cross [TARGET …]` with targets such as `mips` or `mips-musl`; all of them by default. Zig's C compiler
knows all these machines and brings both libcs, so no SDK is needed. What is built is in build/cross/TARGET.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from edgeagent.engine.fast.build import LIBRARY, BuildError, build
from edgeagent.status import table
from tools import OBJECTS

ROOT = Path(__file__).parents[1]
OUT = ROOT / "build" / "cross"
SELF_TEST = ROOT / "tests" / "engine" / "fast" / "self_test.c"
AT_ONCE = 2  # builds; the first for a target compiles its libc
RUN_TIMEOUT_S = 300
PASSED, FAILED, NOT_RUN = "passed", "FAILED", "not run"


class Machine(NamedTuple):
    """`triple` has {} for the libc; `cpu` is the least that the target stands for, in Zig's words and in QEMU's."""

    name: str
    triple: str
    cpu: str
    qemu: str
    qemu_cpu: str
    sysroot: str  # Debian's, where its glibc runs on this machine; "" where there is none


MACHINES = (
    Machine("x86-64", "x86_64-linux-{}", "x86_64", "x86_64", "qemu64", "/"),
    Machine("aarch64", "aarch64-linux-{}", "generic", "aarch64", "cortex-a53", "/usr/aarch64-linux-gnu"),
    Machine("armv7hf", "arm-linux-{}eabihf", "generic+v7a+vfp3d16", "arm", "cortex-a9", "/usr/arm-linux-gnueabihf"),
    Machine("armv6hf", "arm-linux-{}eabihf", "arm1176jzf_s", "arm", "arm1176", ""),  # Pi Zero; Debian's armhf is v7
    Machine("mips", "mips-linux-{}eabi", "mips32r2", "mips", "24Kc", ""),
    Machine("mipshf", "mips-linux-{}eabihf", "mips32r2", "mips", "24Kf", "/usr/mips-linux-gnu"),
    Machine("mipsel", "mipsel-linux-{}eabi", "mips32r2", "mipsel", "24Kc", ""),
    Machine("mipselhf", "mipsel-linux-{}eabihf", "mips32r2", "mipsel", "24Kf", "/usr/mipsel-linux-gnu"),
)
LIBCS = {"musl": "musl", "glibc": "gnu"}


class Result(NamedTuple):
    """`self_test` is PASSED, FAILED or NOT_RUN, `why` what it said or why it was not run; sizes in bytes."""

    target: str
    libc: str
    bytes: int
    stripped_bytes: int
    self_test: str
    why: str
    seconds: float


def chosen(names: Sequence[str]) -> Iterator[tuple[Machine, str]]:
    """(machine, libc) of each; a machine's name alone stands for both libcs. Raises ValueError for an unknown name."""
    pairs = [(machine, libc) for machine in MACHINES for libc in LIBCS]
    known = {f"{machine.name}-{libc}" for machine, libc in pairs} | {machine.name for machine in MACHINES}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"{unknown[0]!r}: no such target; known are {', '.join(sorted(known))}")
    for machine, libc in pairs:
        if not names or machine.name in names or f"{machine.name}-{libc}" in names:
            yield machine, libc


def cross(machine: Machine, libc: str) -> Result:
    """Build library and self-test, and run it where that can be done. A failure is in the result, never raised."""
    began = time.monotonic()
    name = f"{machine.name}-{libc}"
    library, program = OUT / name / LIBRARY, OUT / name / "self_test"
    whole, stripped = 0, 0
    zig = [sys.executable, "-m", "ziglang", "cc"]
    triple = machine.triple.format(LIBCS[libc])
    flags = [f"-mcpu={machine.cpu}"]
    # Without an executable there is nothing that could be run by mistake after a build that failed.
    program.unlink(missing_ok=True)
    try:
        build(library, zig, target=triple, flags=flags, jobs=1, cache=OBJECTS)
        whole = library.stat().st_size
        build(library, zig, target=triple, flags=flags, jobs=1, cache=OBJECTS, strip=True)
        stripped = library.stat().st_size
        if b"\0ea_self_test\0" not in library.read_bytes():  # stripped, it names only what the loader finds
            raise BuildError("the library exports no ea_self_test")
        static = ["-static"] if libc == "musl" else []
        build(program, zig, target=triple, flags=[*flags, *static], mains=[SELF_TEST], jobs=1, cache=OBJECTS)
        outcome, why = _run(machine, libc, program)
    except BuildError as error:
        outcome, why = FAILED, str(error)
    return Result(machine.name, libc, whole, stripped, outcome, why, round(time.monotonic() - began, 1))


def _run(machine: Machine, libc: str, program: Path) -> tuple[str, str]:
    command = [str(program)]
    if os.uname().machine != machine.qemu:
        emulator = shutil.which(f"qemu-{machine.qemu}")
        if emulator is None:
            return NOT_RUN, f"built only: no qemu-{machine.qemu} (Debian: apt-get install qemu-user)"
        command = [emulator, "-cpu", machine.qemu_cpu, *command]
        if libc == "glibc":
            if not machine.sysroot or machine.sysroot == "/" or not Path(machine.sysroot).is_dir():
                return (
                    NOT_RUN,
                    f"built only: no glibc of this machine here{machine.sysroot and f' ({machine.sysroot})'}",
                )
            command[1:1] = ["-L", machine.sysroot]
    elif libc == "glibc" and _own_libc_is_musl():
        return NOT_RUN, "built only: this system's libc is musl"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return FAILED, str(error)
    said = (done.stdout + done.stderr).strip()
    if done.returncode < 0:
        return FAILED, f"died of signal {-done.returncode} {said}".strip()
    return (PASSED, said) if done.returncode == 0 else (FAILED, said or f"status {done.returncode}")


def _own_libc_is_musl() -> bool:
    return any(Path("/lib").glob("ld-musl-*"))


def show(results: Sequence[Result]) -> str:
    rows: list[tuple[str, ...]] = [("TARGET", "LIBC", "BYTES", "STRIPPED", "SELF-TEST", "SECONDS")]
    rows += [
        (each.target, each.libc, f"{each.bytes:,}", f"{each.stripped_bytes:,}", each.self_test, f"{each.seconds:.1f}")
        for each in results
    ]
    return "\n".join([table(rows), "", *(f"{each.target}-{each.libc}: {each.why}" for each in results)])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.cross", description=__doc__)
    parser.add_argument("targets", metavar="TARGET", nargs="*", help="machine, or machine-libc (all)")
    parser.add_argument("--json", action="store_true", help="data instead of text")
    options = parser.parse_args(arguments)
    if importlib.util.find_spec("ziglang") is None:
        print("cross: no Zig. Install it: pip install 'edgemesh[tools]', or run ./dev test --cross", file=sys.stderr)
        return 1
    try:
        pairs = list(chosen(options.targets))
    except ValueError as error:
        print(f"cross: {error}", file=sys.stderr)
        return 2
    for variable in ("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR"):
        os.environ[variable] = str(OUT / "cache")
    lock = threading.Lock()

    def one(pair: tuple[Machine, str]) -> Result:
        result = cross(*pair)
        with lock:
            print(f"  {result.self_test:8} {result.target}-{result.libc} ({result.seconds} s)", file=sys.stderr)
        return result

    with ThreadPoolExecutor(AT_ONCE) as pool:
        results = list(pool.map(one, pairs))
    print(json.dumps([result._asdict() for result in results]) if options.json else show(results))
    return 1 if any(result.self_test == FAILED for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
