"""Which engine moves the packets: the kernel's WireGuard where enginerule.py says so, else the C library where it is
there, else Python. Decided without loading anything."""

from __future__ import annotations

import os

from edgeagent.engine.fast import library
from edgeagent.proto.errors import EdgeError

TYPE_CHECKING = False  # what the typing module would say, and 5 ms
if TYPE_CHECKING:
    from collections.abc import Mapping

ENGINES = ("fast", "pure", "kernel")
ENGINE_VARIABLE = "EDGEAGENT_ENGINE"
AUTO = "auto"
AVOIDED_VARIABLE = "EDGEAGENT_KERNEL_AVOIDED"  # from an agent that gave the kernel's engine up to the one it becomes
NOTE_MAX = 200


class EngineUnavailable(EdgeError):
    """The engine that was asked for is not there; the text says which, why, and what to do."""


def choose(environ: Mapping[str, str] = os.environ, asked: str | None = None) -> tuple[str, str]:
    """(engine, why): one of ENGINES, and a clause for logs and people.

    `asked` is what a setting says, else it is what EDGEAGENT_ENGINE names; where that is "auto" or nothing, `fast` when
    there is a library for this machine, else `pure`: whether `kernel` comes before them is enginerule.py's to say.

    Raises EngineUnavailable for a name that is none, and when `fast` or `kernel` is asked for by name and there is no
    library, or no WireGuard in the kernel.
    """
    says = f"{ENGINE_VARIABLE} says so" if asked is None else "the setting `engine` says so"
    undo = f"Unset {ENGINE_VARIABLE}" if asked is None else "Leave the setting `engine` at auto"
    asked = environ.get(ENGINE_VARIABLE, "") if asked is None else asked
    if asked not in ("", AUTO, *ENGINES):
        raise EngineUnavailable(
            f"engine {asked!r}: there is none of that name. Use one of {', '.join(ENGINES)}, "
            f"or leave {ENGINE_VARIABLE} unset"
        )
    if asked == "pure":
        return "pure", says
    if asked == "kernel":
        if (missing := why_no_kernel()) is not None:
            raise EngineUnavailable(f"engine kernel: {missing}. {undo}, or see `edgeagent doctor`")
        return "kernel", says
    path = library.path(environ)
    if path is None:
        why = f"no C library: {library.why_missing()}"
    elif (wrong := library.fault(path)) is not None:
        why = f"no C library: {path}: {wrong}"
    elif not _has_ctypes():
        why = "this Python has no ctypes (OpenWrt: opkg install python3-ctypes)"
    else:
        return "fast", says if asked == "fast" else f"the C library is there: {path}"
    if asked == "fast":
        raise EngineUnavailable(f"engine fast: {why}. {undo}, or see `edgeagent doctor`")
    return "pure", why


def why_no_kernel(root: str = "/") -> str | None:
    """None where the kernel has WireGuard, as a module or built in, or where only trying would tell: the service has no
    look at modules, and OpenWrt lists none."""
    release = os.uname().release
    folder = f"{root}lib/modules/{release}"
    if os.path.exists(f"{root}sys/module/wireguard") or os.path.exists(f"{folder}/wireguard.ko"):
        return None
    listed = False
    for name in ("modules.dep", "modules.builtin"):
        try:
            with open(f"{folder}/{name}") as file:
                listed = True
                if any("/wireguard.ko" in line.partition(":")[0] for line in file):
                    return None
        except OSError:
            continue
    return None if not listed else f"this kernel ({release}) has no WireGuard: no module wireguard in {folder}"


def take_note() -> str:
    """Why the agent that this process was before gave the kernel's engine up, "" where it did not. It counts for one
    start, and is no business of programs that the agent runs."""
    return os.environ.pop(AVOIDED_VARIABLE, "")[:NOTE_MAX]


def _has_ctypes() -> bool:
    """Asked last: the engine that is chosen then loads it anyhow."""
    try:
        import ctypes  # noqa: F401
    except ImportError:
        return False
    return True
