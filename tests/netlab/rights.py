"""The right to make namespaces: as root it is there, else a user namespace gives it where the system allows.

`python tests/netlab/rights.py COMMAND…` runs a command with that right, or, where it cannot be had, without it: then
tests are skipped and a lab says what is missing.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import socket
import subprocess
import sys

DASHBOARD = (
    "EDGEMESH_LAB_DASHBOARD"  # set to "": a listening socket for a dashboard is wanted, and its number is put here
)
DASHBOARD_PORT = 8480
TOOLS = ("ip", "nsenter", "unshare", "mount", "ping")

# /run is made anew inside, so that names of namespaces can be kept there.
_PREPARE = 'mount -t tmpfs tmpfs /run && mkdir /run/netns && ip link set lo up && exec "$@"'
_UNSHARE = ["unshare", "--user", "--map-root-user", "--net", "--mount"]


@functools.cache
def missing() -> str | None:
    """Why a lab cannot be made here, and what to do about it; None when it can."""
    for tool in TOOLS:
        if shutil.which(tool) is None:
            return f"the lab needs {tool}: install iproute2, util-linux and iputils-ping"
    if _works(["unshare", "--net", "--mount", "true"]):
        return None
    if os.geteuid() != 0 and _works([*_UNSHARE, "true"]):
        return "the lab needs the right to make namespaces: run it through `./dev` or `python tests/netlab/rights.py`"
    return (
        "the lab needs the right to make namespaces, and this system gives it to nobody but root here: run as root "
        "(in a container: with --privileged), or allow user namespaces (sysctl user.max_user_namespaces, "
        "kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns)"
    )


def main() -> None:
    command = sys.argv[1:]
    if not command:
        sys.exit("usage: rights.py COMMAND…")
    if os.environ.get(DASHBOARD) == "":
        os.environ[DASHBOARD] = str(_listen().detach())
    if missing() is not None and os.geteuid() != 0 and _works([*_UNSHARE, "true"]):
        command = [*_UNSHARE, "--", "sh", "-c", _PREPARE, "sh", *command]
    # A shell has what it starts in the background ignore Ctrl-C, and so would all that the command starts.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.execvp(command[0], command)


def _listen() -> socket.socket:
    """A socket of this network: behind a user namespace there is no way to a browser any more."""
    made = socket.socket()
    try:
        made.bind(("127.0.0.1", DASHBOARD_PORT))
    except OSError:  # somebody else's
        made.bind(("127.0.0.1", 0))
    made.listen()
    made.set_inheritable(True)
    return made


def _works(command: list[str]) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


if __name__ == "__main__":
    main()
