"""Who is measured: our engines, and other userspace implementations of WireGuard as they can be had here.

`python -m tools.bench.peers [--all]` fetches and builds them in advance, for a bench that runs without a network.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from edgeagent.version import VERSION
from tools.bench.blast import BUILT

GO_MODULE = "golang.zx2c4.com/wireguard"
CRATE = "boringtun-cli"
FETCH_TIMEOUT_S = 240.0
BUILD_TIMEOUT_S = 1800.0
FAST_LIBRARY = "libedgefast.so"
HEAD = "wireguard-go HEAD"


class Contender(NamedTuple):
    """An implementation: called with an interface's name it stays in the foreground."""

    key: str
    name: str
    command: tuple[str, ...]
    env: dict[str, str]
    version: str


class Missing(NamedTuple):
    """One that cannot be had, and why."""

    key: str
    why: str


OURS = ("fast", "pure")
KEYS = (*OURS, "go", "debian", "boringtun")
REFERENCES = ("go", "debian", "boringtun", "pure")  # ratios are by the first of these that is there


def find(only: tuple[str, ...] = (), build_all: bool = False) -> tuple[list[Contender], list[Missing]]:
    """Those of `only` (all), in the order in which they take turns."""
    found: list[Contender] = []
    missing: list[Missing] = []
    makers: dict[str, Callable[[], Contender | Missing]] = {
        "fast": lambda: _ours("fast"),
        "pure": lambda: _ours("pure"),
        "go": _go,
        "debian": _debian,
        "boringtun": lambda: _boringtun(build_all),
    }
    for key, make in makers.items():
        if not only or key in only:
            made = make()
            if isinstance(made, Missing):
                missing.append(made)
            else:
                found.append(made)
    return found, missing


def reference(contenders: list[Contender]) -> Contender | None:
    there = {contender.key: contender for contender in contenders}
    return next((there[key] for key in REFERENCES if key in there), None)


def go_version(text: str) -> str:
    """Revision and day of `go version -m`'s pseudo-version, or whatever it says instead."""
    found = re.search(rf"^\s*mod\s+{re.escape(GO_MODULE)}\s+(\S+)", text, re.MULTILINE)
    if found is None:
        return "unknown"
    pseudo = re.search(r"(\d{4})(\d\d)(\d\d)\d{6}-([0-9a-f]{7})", found[1])
    return f"{pseudo[4]} of {pseudo[1]}-{pseudo[2]}-{pseudo[3]}" if pseudo else found[1]


def _ours(engine: str) -> Contender:
    environ = {"EDGEAGENT_ENGINE": engine}
    return Contender(engine, f"edge-wireguard {engine}", ("edge-wireguard", "-f"), environ, VERSION)


def _go() -> Contender | Missing:
    if given := os.environ.get("WIREGUARD_GO"):
        path = shutil.which(given)
        if path is None:
            return Missing("go", f"WIREGUARD_GO={given} is no program")
        return Contender("go", f"wireguard-go at {given}", (path, "-f"), {}, _go_says(path))
    built = BUILT / "wireguard"
    if not built.exists():
        go = shutil.which("go")
        if go is None:
            return Missing("go", "no go here to build its newest with; WIREGUARD_GO=/path/to/wireguard-go is taken too")
        BUILT.mkdir(parents=True, exist_ok=True)
        command = [go, "install", f"{GO_MODULE}@latest"]
        if why := _build(command, FETCH_TIMEOUT_S, {"GOBIN": str(BUILT), "GOFLAGS": "-mod=mod"}):
            return Missing("go", why)
    return Contender("go", HEAD, (str(built), "-f"), {}, _go_says(str(built)))


def _debian() -> Contender | Missing:
    path = shutil.which("wireguard-go")
    if path is None:
        return Missing("debian", "wireguard-go is not installed: apt-get install wireguard-go")
    version = _says(path, "--version").partition("\n")[0].rpartition(" ")[2]
    year = re.search(r"\.(20\d\d)\d{4}$", version)
    name = f"wireguard-go of {year[1]}" if year else "wireguard-go, the system's"
    return Contender("debian", name, (path, "-f"), {}, version or "unknown")


def _boringtun(build: bool) -> Contender | Missing:
    path = BUILT / "bin" / CRATE
    if not path.exists() and (installed := shutil.which(CRATE)):
        path = Path(installed)
    if not path.exists():
        cargo = shutil.which("cargo")
        if cargo is None:
            return Missing("boringtun", f"neither {CRATE} nor a cargo to build it with is here")
        if not build:
            return Missing("boringtun", "not built: it takes minutes, `--peers all` does it")
        if why := _build([cargo, "install", CRATE, "--root", str(BUILT)], BUILD_TIMEOUT_S, {}):
            return Missing("boringtun", why)
    version = _says(str(path), "--version").rpartition(" ")[2]
    return Contender("boringtun", "boringtun", (str(path), "-f", "--disable-drop-privileges"), {}, version)


def _go_says(path: str) -> str:
    return go_version(_says("go", "version", "-m", path)) if shutil.which("go") else "unknown"


def _says(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return result.stdout.strip()


def _build(command: list[str], timeout_s: float, env: dict[str, str]) -> str | None:
    """Why it failed, or None."""
    words = " ".join(command[1:3])
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, check=False, env={**os.environ, **env}
        )
    except subprocess.TimeoutExpired:
        return f"{words}: not within {timeout_s:g} s"
    if result.returncode == 0:
        return None
    return f"{words}: {(result.stderr.strip().splitlines() or ['no word why'])[-1][:200]}"


def main() -> int:
    found, missing = find(build_all="--all" in sys.argv[1:])
    for contender in found:
        print(f"{contender.key:10} {contender.name}, {contender.version}: {contender.command[0]}")
    for absent in missing:
        print(f"{absent.key:10} none: {absent.why}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
