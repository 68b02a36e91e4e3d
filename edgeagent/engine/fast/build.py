"""Builds the C library. The one place that knows its compiler flags: for the install, `./dev`, tests and cross builds.

`python -m edgeagent.engine.fast.build` puts `libedgefast.so` beside its sources, where the agent looks for it. Needs
nothing but Python and a C11 compiler; `hatch_build.py` runs this file before the package is there, so it imports
nothing of ours. The same sources, compiler and flags give the same bytes, wherever the sources lie.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache as remembered
from pathlib import Path

SOURCES = Path(__file__).resolve().parent
LIBRARY = "libedgefast.so"
NOTE = "libedgefast.why"  # stands in the library's place and says why it is not there
COMPILERS = ("cc", "gcc", "clang")
COMPILE_TIMEOUT_S = 900  # of one file: a slow board, or a cross compiler that builds its libc first
OUTPUT_CHARS_MAX = 4_000  # of what a compiler says, the end
CACHED_OBJECTS_MAX = 2_000  # of a cache; those go that were not asked for the longest

# Not for the machine at hand (-march=native): what is built on one board runs on its kin.
FLAGS = ("-std=c11", "-D_GNU_SOURCE", "-O2", "-fPIC", "-fvisibility=hidden", "-pthread")
STRICT = ("-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Werror")
LINK = ("-pthread", "-Wl,--as-needed", "-Wl,--build-id=none", "-Wl,-z,noexecstack", "-Wl,-z,relro", "-Wl,-z,now")
LIBRARIES = ("-ldl",)  # a part of libc in glibc 2.34 and in musl, and a library of its own before
SANITIZERS = {"address": "address,undefined", "thread": "thread"}
# Lines are what a report names; all that a debugger knows doubles the time, which is most of a first test run's C.
SANITIZED = ("-g1", "-O1", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all")


class BuildError(Exception):
    """There is no library; the text says why, with the end of what the compiler said."""


def sources() -> list[Path]:
    return sorted(SOURCES.glob("*.c"))


def find_compiler(environ: Mapping[str, str] = os.environ) -> list[str]:
    """The words to call the C compiler with: $CC, else the first of `cc`, `gcc` and `clang` that is there."""
    for words in [environ["CC"]] if environ.get("CC") else COMPILERS:
        command = shlex.split(words)
        if command and (found := shutil.which(command[0], path=environ.get("PATH"))):
            return [found, *command[1:]]
    if environ.get("CC"):
        raise BuildError(f"no C compiler: CC is {environ['CC']!r}, and there is no such program")
    raise BuildError(f"no C compiler: none of {', '.join(COMPILERS)} is there (Debian: apt-get install gcc libc6-dev)")


def build(
    out: Path | None,
    compiler: Sequence[str],
    *,
    target: str | None = None,
    sanitize: str | None = None,
    strict: bool = False,
    strip: bool = False,
    flags: Sequence[str] = (),
    mains: Sequence[Path] = (),
    jobs: int | None = None,
    cache: Path | None = None,
) -> None:
    """Write `out`: the library, or with `mains` (more C files, one of which has `main`) a program of all of it. Where
    it is None all is compiled and nothing linked.

    `target` is a triple for clang or zig; `sanitize` a key of SANITIZERS; `strict` makes warnings errors; `strip`
    leaves out names that no loader needs; `flags` go to the compiler and the linker; `jobs` files are compiled at once
    (one a core). `cache` is a folder of object files, for several processes at once: what is there is not compiled.
    Whoever has the old file open keeps it. Raises BuildError.
    """
    checks = [*SANITIZED, f"-fsanitize={SANITIZERS[sanitize]}"] if sanitize else []
    always = [*compiler, *(["-target", target] if target else []), *flags]
    compiling = [word for word in always if not word.startswith("-Wl,")]  # else what is cached would be another file
    files = [*sources(), *mains]
    if not sources():
        raise BuildError(f"no C sources in {SOURCES}")
    with tempfile.TemporaryDirectory(prefix="edgefast-") as folder:
        objects = [f"{folder}/{number}-{path.stem}.o" for number, path in enumerate(files)]
        options = [*FLAGS, f"-ffile-prefix-map={SOURCES}=.", f"-I{SOURCES}", *(STRICT if strict else ()), *checks]

        def compile_one(pair: tuple[Path, str]) -> None:
            source, made = pair
            command = [*compiling, *options, "-c", str(source), "-o"]
            if cache is None:
                _run([*command, made])
            else:
                _compile_once(cache, source, compiler, command, made)

        with ThreadPoolExecutor(jobs or os.cpu_count() or 1) as pool:
            list(pool.map(compile_one, zip(files, objects, strict=True)))
        if out is not None:
            # What is missing is found now and not on a device. A sanitizer's own functions come with the program.
            kind = [] if mains else ["-shared"] if sanitize else ["-shared", "-Wl,-z,defs"]
            kind += ["-Wl,-s"] if strip else []
            _run([*always, *LINK, *kind, *checks, *objects, "-o", f"{folder}/{LIBRARY}", *LIBRARIES])
            _install(Path(folder, LIBRARY), out)


def _compile_once(cache: Path, source: Path, compiler: Sequence[str], command: Sequence[str], made: str) -> None:
    """Leave the object file at `made`: out of the cache, else compiled, and kept there.

    Its key is what was said to the compiler, that compiler's version, and the contents of the source and of all headers
    that it could include but the system's. Who needs the same one meanwhile waits for it. Raises BuildError.
    """
    key = hashlib.sha256("\0".join([_version(tuple(compiler)), *command]).encode())
    headers = {path for folder in (source.parent, SOURCES) for path in folder.glob("*.h")}
    try:
        for path in (source, *sorted(headers)):
            key.update(f"\0{path.name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
        name = key.hexdigest()
        kept = cache / f"{name}.o"
        cache.mkdir(parents=True, exist_ok=True)
        with (cache / f"{name[:2]}.lock").open("w") as lock:  # one for some keys, so that they are few
            fcntl.flock(lock, fcntl.LOCK_EX)
            if kept.exists():
                os.utime(kept)
                shutil.copyfile(kept, made)
                return
            _run([*command, made])
            beside = cache / f"{name}.new"
            shutil.copyfile(made, beside)
            beside.replace(kept)
        _forget(cache)
    except OSError as error:
        raise BuildError(f"{error.filename or cache}: {error.strerror}") from None


def _forget(cache: Path) -> None:
    """Other processes do the same, so what is not there any more is fine."""
    used_at = {}
    for path in cache.glob("*.o"):
        with contextlib.suppress(FileNotFoundError):
            used_at[path] = path.stat().st_mtime
    for path in sorted(used_at, key=used_at.__getitem__)[: max(0, len(used_at) - CACHED_OBJECTS_MAX)]:
        path.unlink(missing_ok=True)


@remembered
def _version(compiler: tuple[str, ...]) -> str:
    """The first line of what it says of itself."""
    return _run([*compiler, "--version"]).partition("\n")[0]


def _install(made: Path, out: Path) -> None:
    """As a new file under the name: a process that has mapped the old one is not to see it change."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        beside = out.with_name(f".{out.name}.{os.getpid()}")
        try:
            shutil.copyfile(made, beside)
            beside.chmod(0o755)
            beside.replace(out)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise BuildError(f"{out}: {error.strerror}") from None


def _run(command: Sequence[str]) -> str:
    """What it says. Raises BuildError when it fails."""
    called = command[0]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=COMPILE_TIMEOUT_S, check=False
        )
    except OSError as error:
        raise BuildError(f"{called}: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise BuildError(f"{called}: not done after {COMPILE_TIMEOUT_S} s") from None
    if done.returncode != 0:
        said = (done.stdout + done.stderr).decode("utf-8", "replace").strip()
        raise BuildError(f"{called} failed ({done.returncode}): {said[-OUTPUT_CHARS_MAX:]}")
    return done.stdout.decode("utf-8", "replace")


_TRY = """\
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
why = ctypes.create_string_buffer(256)
library.ea_version.restype = ctypes.c_char_p
library.ea_self_test.argtypes = (ctypes.c_char_p, ctypes.c_size_t)
wrong = library.ea_self_test(why, len(why))
print(library.ea_version().decode(), why.value.decode("utf-8", "replace"), sep="\\n")
sys.exit(3 if wrong else 0)
"""
TRY_TIMEOUT_S = 60


def try_out(library: str) -> str:
    """The version of a library that loads into this Python and passes its self-test. Raises BuildError.

    In a process of its own: what a file that is cut short or made for another processor does to one is no exception.
    """
    command = [sys.executable, "-I", "-S", "-c", _TRY, os.path.abspath(library)]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TRY_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"its self-test cannot be run: {error}") from None
    if done.returncode == 0:
        return done.stdout.split("\n")[0]
    if done.returncode == 3:
        raise BuildError(f"its self-test fails: {done.stdout.split(chr(10))[1]}")
    if done.returncode < 0:
        raise BuildError(f"its self-test dies of signal {-done.returncode}")
    last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
    raise BuildError(f"it does not load: {last.removeprefix('OSError: ').removeprefix('AttributeError: ')}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m edgeagent.engine.fast.build", description=__doc__)
    parser.add_argument("-o", metavar="OUT", type=Path, default=SOURCES / LIBRARY, help=f"file to write ({LIBRARY})")
    parser.add_argument("--cc", metavar="COMMAND", help="compiler with its first arguments ($CC, cc, gcc, clang)")
    parser.add_argument("--target", metavar="TRIPLE", help="machine to build for; of clang and zig")
    parser.add_argument(
        "--sanitize", nargs="?", choices=SANITIZERS, const="address", help="with run-time checks (address)"
    )
    parser.add_argument("--strict", action="store_true", help="warnings are errors")
    parser.add_argument("--compile-only", action="store_true", help="write nothing")
    parser.add_argument("--main", metavar="FILE", type=Path, action="append", default=[], help="C file of a program")
    parser.add_argument("--cache", metavar="FOLDER", type=Path, help="where object files are kept for the next time")
    parser.add_argument("--try", dest="tried", action="store_true", help="load it and run its self-test")
    options = parser.parse_args(arguments)
    try:
        compiler = find_compiler({**os.environ, "CC": options.cc} if options.cc else os.environ)
        build(
            None if options.compile_only else options.o,
            compiler,
            target=options.target,
            sanitize=options.sanitize,
            strict=options.strict,
            mains=options.main,
            cache=options.cache,
        )
        version = try_out(str(options.o)) if options.tried else ""
    except BuildError as error:
        print(f"build: {error}", file=sys.stderr)
        return 1
    if options.compile_only:
        return 0
    if options.o == SOURCES / LIBRARY:
        (SOURCES / NOTE).unlink(missing_ok=True)
    print(f"wrote {options.o}{version and f', version {version}, its self-test passes'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
