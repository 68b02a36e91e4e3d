"""One job of UPnP IGD by miniupnpc, in a process of its own: `upnpjob.py WANT GATEWAY OWN PORT OUTSIDE_PORT LEASE_S`.

Whoever answers a search is asked for a description of any length, at any speed, before anybody knows whether it is the
router: here that costs a process that was going to end. Prints the outcome: `done ADDRESS`, or the name of a failure.
Imports nothing of ours, so that it starts fast.
"""

from __future__ import annotations

import os
import resource
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

ROOM_BYTES = 8 << 20  # beyond what the interpreter and miniupnpc take; a router's description has some 10 KB
TIMEOUT_S = 25  # wall time
DISCOVER_MS = 1_000  # how long routers are waited for
_DESCRIPTION = "edgeagent"
# Names that miniupnpc has for UPnP's errors 718, 729 and 725
_TAKEN = ("ConflictInMappingEntry", "ConflictWithOtherMechanisms")
_ONLY_PERMANENT = "OnlyPermanentLeasesSupported"


def confine() -> None:
    """This process: so much memory and time, and not more."""
    signal.alarm(TIMEOUT_S)
    with open("/proc/self/statm", "rb") as statm:
        used = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM_BYTES, used + ROOM_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def run(want: str, gateway: str, own: str, port: int, outside_port: int, lease_s: int) -> str:
    try:
        import miniupnpc
    except ImportError:
        return "not-installed"
    confine()
    try:
        router = miniupnpc.UPnP(own, None, DISCOVER_MS, 0)
        router.discover()
        control = str(router.selectigd())
    except Exception:  # noqa: BLE001  miniupnpc raises nothing more special
        return "no-router"
    if control.partition("://")[2].partition("/")[0].partition(":")[0] != gateway:
        return "not-the-gateway"
    try:
        address = str(router.externalipaddress())
        if want == "close":
            router.deleteportmapping(outside_port, "UDP")
        elif want == "open":
            _open(router, own, port, outside_port, lease_s)
    except Exception as error:  # noqa: BLE001
        return "port-taken" if str(error) in _TAKEN else "refused"
    return f"done {address}"


def _open(router: Any, own: str, port: int, outside_port: int, lease_s: int) -> None:
    wish = [outside_port, "UDP", own, port, _DESCRIPTION, ""]
    try:
        router.addportmapping(*wish, lease_s)
    except Exception as error:
        if str(error) != _ONLY_PERMANENT:
            raise
        router.addportmapping(*wish, 0)


if __name__ == "__main__":
    _want, _gateway, _own, _port, _outside_port, _lease_s = sys.argv[1:]
    os.write(1, run(_want, _gateway, _own, int(_port), int(_outside_port), int(_lease_s)).encode())
