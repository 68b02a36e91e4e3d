"""Which engine moves the packets: the C library where it is there, else Python. Decided without loading anything."""

from __future__ import annotations

import os

from edgeagent.engine.fast import library
from edgeagent.proto.errors import EdgeError

TYPE_CHECKING = False  # what the typing module would say, and 5 ms
if TYPE_CHECKING:
    from collections.abc import Mapping

ENGINES = ("fast", "pure", "kernel")
ENGINE_VARIABLE = "EDGEAGENT_ENGINE"


class EngineUnavailable(EdgeError):
    """The engine that was asked for is not there; the text says which, why, and what to do."""


def choose(environ: Mapping[str, str] = os.environ) -> tuple[str, str]:
    """(engine, why): one of ENGINES, and a clause for logs and people.

    What EDGEAGENT_ENGINE names, else `fast` when there is a library for this machine, else `pure`; `kernel` only by
    name. Raises EngineUnavailable for a name that is none, and when `fast` or `kernel` is asked for by name and there
    is no library, or no WireGuard in the kernel.
    """
    asked = environ.get(ENGINE_VARIABLE, "")
    if asked not in ("", *ENGINES):
        raise EngineUnavailable(
            f"engine {asked!r}: there is none of that name. Use one of {', '.join(ENGINES)}, "
            f"or leave {ENGINE_VARIABLE} unset"
        )
    if asked == "pure":
        return "pure", f"{ENGINE_VARIABLE} says so"
    if asked == "kernel":
        if (missing := why_no_kernel()) is not None:
            raise EngineUnavailable(f"engine kernel: {missing}. Unset {ENGINE_VARIABLE}, or see `edgeagent doctor`")
        return "kernel", f"{ENGINE_VARIABLE} says so"
    path = library.path(environ)
    if path is None:
        why = f"no C library: {library.why_missing()}"
    elif (wrong := library.fault(path)) is not None:
        why = f"no C library: {path}: {wrong}"
    elif not _has_ctypes():
        why = "this Python has no ctypes (OpenWrt: opkg install python3-ctypes)"
    else:
        return "fast", f"{ENGINE_VARIABLE} says so" if asked else f"the C library is there: {path}"
    if asked == "fast":
        raise EngineUnavailable(f"engine fast: {why}. Unset {ENGINE_VARIABLE}, or see `edgeagent doctor`")
    return "pure", why


def by_kernel(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether `kernel` is asked for."""
    return environ.get(ENGINE_VARIABLE) == "kernel"


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


def _has_ctypes() -> bool:
    """Asked last: the engine that is chosen then loads it anyhow."""
    try:
        import ctypes  # noqa: F401
    except ImportError:
        return False
    return True
