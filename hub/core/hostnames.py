"""Host names: one DNS label a device, the wish where it is free, else the wish with a number."""

from __future__ import annotations

from collections.abc import Callable

from edgeagent.proto import via
from hub.core.model import HubError

LABEL_MAX = 63
RESERVED = ("hub", "localhost")
PROBES_MAX = 1_000


def is_reserved(name: str) -> bool:
    """Those that devices make addresses of by themselves (4via6) among them."""
    return name in RESERVED or via.address_of(name) is not None


def choose_name(wish: str, taken: Callable[[str], bool], next_suffix: Callable[[str], int]) -> str:
    """`wish`, or `wish-1`, `wish-2` … `taken` looks one up; `next_suffix` counts up for each wish, so that the ten
    thousandth `raspberrypi` costs no more than the second."""
    if not is_reserved(wish) and not taken(wish):
        return wish
    for _ in range(PROBES_MAX):
        suffix = f"-{next_suffix(wish)}"
        name = wish[: LABEL_MAX - len(suffix)].rstrip("-") + suffix
        if not taken(name):
            return name
    raise HubError(f"no free host name like {wish}: give the device another")
