"""A listening socket that whoever started us hands over: systemd's socket units do (sd_listen_fds(3)).

So the dashboard answers on port 443 without a right of its own to it.
"""

from __future__ import annotations

import os

FIRST = 3  # SD_LISTEN_FDS_START


def inherited() -> int | None:
    """The descriptor, which no program that we start gets by itself; None when there is none for this process."""
    for_us = os.environ.pop("LISTEN_PID", "") == str(os.getpid())
    count = os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if not for_us or count != "1":
        return None
    os.set_inheritable(FIRST, False)
    return FIRST
