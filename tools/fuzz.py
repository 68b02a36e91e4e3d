"""Runs the C library's fuzz targets (tests/engine/fast/fuzz_NAME.c) under AddressSanitizer and UBSan.

`python -m tools.fuzz [NAME …] [--seconds N]`. clang's libFuzzer drives them where it is there, which is led by what
code an input reaches; else tests/engine/fast/fuzz_main.c, built by the system's compiler. What an input breaks is kept
in build/fuzz, beside the program that it breaks.
"""

from __future__ import annotations

import argparse
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from edgeagent.engine.fast.build import BuildError, build, find_compiler
from tools import OBJECTS

ROOT = Path(__file__).parents[1]
TARGETS = ROOT / "tests" / "engine" / "fast"
DRIVER = TARGETS / "fuzz_main.c"
OUT = ROOT / "build" / "fuzz"
SECONDS = 60
GRACE_S = 60.0  # that a target may take to end after its time
SHOWN_LINES = 30  # of what a target said, from where a sanitizer begins
LIBFUZZER = ("-fsanitize=fuzzer", "-DFUZZ_WITHOUT_VALID")
INPUT_BYTES_MAX = 1 << 17


def names() -> list[str]:
    return sorted(path.stem.removeprefix("fuzz_") for path in TARGETS.glob("fuzz_*.c") if path != DRIVER)


class Crash(Exception):
    """A target found something; the text is what was said of it, and the command to repeat it."""


def build_driven(name: str, out: Path) -> Path:
    """The target with the driver of this repository, sanitized. Raises BuildError."""
    build(out, find_compiler(), sanitize="address", mains=[TARGETS / f"fuzz_{name}.c", DRIVER], cache=OBJECTS)
    return out


def build_libfuzzer(name: str, out: Path) -> Path | None:
    """The target with clang's libFuzzer; None where there is none."""
    clang = shutil.which("clang")
    if clang is None:
        return None
    probe = out.with_name("probe.c")
    probe.parent.mkdir(parents=True, exist_ok=True)
    probe.write_text("int LLVMFuzzerTestOneInput(const char *d, unsigned long n) { return d == (char *)n; }\n")
    command = [clang, "-fsanitize=fuzzer,address,undefined", str(probe), "-o", str(out)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        return None
    build(out, [clang], sanitize="address", flags=LIBFUZZER, mains=[TARGETS / f"fuzz_{name}.c"], cache=OBJECTS)
    return out


def run(program: Path, arguments: Sequence[str], folder: Path, timeout_s: float) -> str:
    """What it said, when it found nothing. Raises Crash."""
    before = set(folder.glob("*-crash-*")) | set(folder.glob("*-timeout-*")) | set(folder.glob("*-oom-*"))
    command = [str(program), *arguments, f"-artifact_prefix={folder}/{program.name}-"]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout_s,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise Crash(f"not done after {timeout_s:.0f} s: it hangs. Repeat it: {' '.join(command)}") from None
    said = done.stdout.decode("utf-8", "replace")
    if done.returncode == 0:
        return said
    kept = (set(folder.glob("*-crash-*")) | set(folder.glob("*-timeout-*")) | set(folder.glob("*-oom-*"))) - before
    again = f"{program} {min(kept)}" if kept else " ".join(command)
    lines = said.splitlines()
    found = [number for number, line in enumerate(lines) if "ERROR: " in line or "runtime error: " in line]
    told = "\n".join(lines[found[0] :][:SHOWN_LINES] if found else lines[-SHOWN_LINES:])
    raise Crash(f"{told}\nstatus {done.returncode}. Repeat it: {again}")


def fuzz(name: str, seconds: int, seed: int, *, libfuzzer: bool) -> None:
    """One target for some seconds, telling what it does. Raises Crash and BuildError."""
    program = (build_libfuzzer(name, OUT / f"{name}-libfuzzer") if libfuzzer else None) or OUT / name
    arguments = [f"-seed={seed}", f"-max_total_time={seconds}"]
    plain = build_driven(name, OUT / name)
    if program != plain:
        corpus = OUT / f"{name}-corpus"
        if not corpus.is_dir():  # what libFuzzer has learned stays for the next time
            corpus.mkdir(parents=True)
            subprocess.run([str(plain), f"-seeds={corpus}"], check=True)
        arguments += [f"-max_len={INPUT_BYTES_MAX}", "-timeout=10", str(corpus)]
    driver = "the standalone driver" if program == plain else "libFuzzer"
    print(f"{name}: {seconds} s by {driver}, seed {seed}", flush=True)
    began = time.monotonic()
    said = run(program, arguments, OUT, seconds + GRACE_S)
    last = (said.strip().splitlines() or ["nothing was said"])[-1]
    print(f"{name}: {last} ({time.monotonic() - began:.0f} s)", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.fuzz", description=__doc__)
    parser.add_argument("names", metavar="NAME", nargs="*", help=f"of {', '.join(names())} (all)")
    parser.add_argument("--seconds", metavar="N", type=int, default=SECONDS, help=f"for each ({SECONDS})")
    parser.add_argument("--seed", metavar="N", type=int, help="of the first run, to repeat it (random)")
    parser.add_argument("--standalone", action="store_true", help="without libFuzzer")
    options = parser.parse_args(arguments)
    if options.seconds < 1 or (options.seed is not None and not 1 <= options.seed < 1 << 31):
        parser.error("--seconds: want 1 or more; --seed: want 1 to 2147483647")
    if unknown := [name for name in options.names if name not in names()]:
        parser.error(f"{unknown[0]!r}: no such target; there are {', '.join(names())}")
    bad = 0
    for name in options.names or names():
        seed = options.seed or secrets.randbelow((1 << 31) - 1) + 1
        try:
            fuzz(name, options.seconds, seed, libfuzzer=not options.standalone)
        except (Crash, BuildError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            bad = 1
    return bad


if __name__ == "__main__":
    sys.exit(main())
