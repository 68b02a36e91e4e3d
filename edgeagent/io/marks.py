"""The mark of what the agent itself sends: policyroutes.py keeps such packets out of the tunnel."""

from __future__ import annotations

import socket
from contextlib import suppress

MARK, MARK_MASK = 0x6E000000, 0xFF000000


def mark(sock: socket.socket) -> None:
    """What it sends from now on does not go through the tunnel."""
    with suppress(OSError):  # without CAP_NET_ADMIN there is no tunnel either
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK)
