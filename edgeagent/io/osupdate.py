"""Images of the whole system, by whichever program this board updates them with: three questions as a table.

| program    | writes a file with        | the booted system is on trial while          | kept with                  |
|------------|---------------------------|----------------------------------------------|----------------------------|
| RAUC       | rauc install              | the booted slot's boot status is not `good`  | rauc status mark-good      |
| SWUpdate   | swupdate -i               | U-Boot's `ustate` is 1 or 2                  | fw_setenv ustate 0         |
| Mender     | mender-update install     | U-Boot's `upgrade_available` is 1            | mender-update commit       |
| sysupgrade | sysupgrade, after its -T  | never: OpenWrt has one system                |                            |

What each program does with the image, and that the old system returns where nobody keeps the new one, is its own and
the boot loader's.
"""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

ASK_S, WRITE_S = 20, 1_800
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class OsUpdateError(Exception):
    """The program says no, or cannot be run; the text has its name and its last words."""


class Backend(NamedTuple):
    """`check` comes before `install`, which gets the file as its last word; empty: there is none. `told` reads what
    `ask` prints as whether the booted system is on trial."""

    name: str
    program: str  # that it is known by
    install: tuple[str, ...]
    keep: tuple[str, ...] = ()
    ask: tuple[str, ...] = ()
    check: tuple[str, ...] = ()
    told: Callable[[str], bool] = lambda text: False


def _rauc(text: str) -> bool:
    found: dict[str, Any] = json.loads(text)
    slots = [about for slot in found["slots"] for about in slot.values()]
    return any(about.get("state") == "booted" and about.get("boot_status") != "good" for about in slots)


BACKENDS = (
    Backend(
        "RAUC",
        "rauc",
        ("rauc", "install"),
        ("rauc", "status", "mark-good"),
        ("rauc", "status", "--output-format=json"),
        told=_rauc,
    ),
    Backend(
        "Mender",
        "mender-update",
        ("mender-update", "install"),
        ("mender-update", "commit"),
        ("fw_printenv", "-n", "upgrade_available"),
        told=lambda text: text.strip() == "1",
    ),
    Backend(
        "SWUpdate",
        "swupdate",
        ("swupdate", "-i"),
        ("fw_setenv", "ustate", "0"),
        ("fw_printenv", "-n", "ustate"),
        told=lambda text: text.strip() in ("1", "2"),
    ),
    Backend("sysupgrade", "sysupgrade", ("sysupgrade",), check=("sysupgrade", "-T")),
)


def find(path: str = PATH) -> Backend | None:
    """The one whose program is here; None: this system is not updated by images."""
    for backend in BACKENDS:
        if any(os.access(f"{folder}/{backend.program}", os.X_OK) for folder in path.split(":")):
            return backend
    return None


def install(backend: Backend, file: str, path: str = PATH) -> None:
    """Write an image, which the next boot tries; blocks for minutes. OsUpdateError: nothing was changed, or what the
    program says."""
    if backend.check:
        _run([*backend.check, file], path, WRITE_S)
    _run([*backend.install, file], path, WRITE_S)


def keep(backend: Backend, path: str = PATH) -> None:
    """The booted system is good. OsUpdateError."""
    if backend.keep:
        _run([*backend.keep], path, ASK_S)


def is_on_trial(backend: Backend, path: str = PATH) -> bool:
    """Whether the booted system goes at the next boot unless somebody keeps it. OsUpdateError."""
    if not backend.ask:
        return False
    text = _run([*backend.ask], path, ASK_S)
    try:
        return backend.told(text)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise OsUpdateError(f"{backend.ask[0]}: an answer of another form than this version knows") from None


def _run(words: list[str], path: str, limit_s: int) -> str:
    environ = {"PATH": path, "LANG": "C", "HOME": "/"}
    try:
        done = subprocess.run(words, capture_output=True, env=environ, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        raise OsUpdateError(f"{words[0]}: not done within {limit_s} s") from None
    except OSError as error:
        raise OsUpdateError(f"{words[0]}: {error.strerror}") from None
    output = done.stdout.decode("utf-8", "replace")
    if done.returncode:
        said = (done.stderr.decode("utf-8", "replace").strip() or output.strip()).splitlines()
        raise OsUpdateError(
            f"{words[0]}: exit status {done.returncode}: {said[-1][:200] if said else 'without a word'}"
        )
    return output
