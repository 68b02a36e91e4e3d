"""Which engine moves the packets: the C library where it is there, else Python. Decided without loading anything."""

from __future__ import annotations

import os

from edgeagent.engine.fast import library
from edgeagent.proto.errors import EdgeError

TYPE_CHECKING = False  # what the typing module would say, and 5 ms
if TYPE_CHECKING:
    from collections.abc import Mapping

ENGINES = ("fast", "pure")
ENGINE_VARIABLE = "EDGEAGENT_ENGINE"


class EngineUnavailable(EdgeError):
    """The engine that was asked for is not there; the text says which, why, and what to do."""


def choose(environ: Mapping[str, str] = os.environ) -> tuple[str, str]:
    """(engine, why): one of ENGINES, and a clause for logs and people.

    What EDGEAGENT_ENGINE names, else `fast` when there is a library for this machine, else `pure`. Raises
    EngineUnavailable for a name that is none, and when `fast` is asked for by name and there is no library.
    """
    asked = environ.get(ENGINE_VARIABLE, "")
    if asked not in ("", *ENGINES):
        raise EngineUnavailable(
            f"engine {asked!r}: there is none of that name. Use one of {', '.join(ENGINES)}, "
            f"or leave {ENGINE_VARIABLE} unset"
        )
    if asked == "pure":
        return "pure", f"{ENGINE_VARIABLE} says so"
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


def _has_ctypes() -> bool:
    """Asked last: the engine that is chosen then loads it anyhow."""
    try:
        import ctypes  # noqa: F401
    except ImportError:
        return False
    return True
