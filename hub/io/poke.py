"""How a command tells the running hub that the database has changed: one datagram on a unix socket.

It only saves waiting: the hub looks by itself each second.
"""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

_READS_MAX = 64


def send(path: Path) -> None:
    """Nobody listening is no error."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, contextlib.suppress(OSError):
        sender.setblocking(False)
        sender.connect(str(path))
        sender.send(b"\x01")


class Receiver:
    """The hub's end. Raises OSError when the path is too long for a socket (107 bytes) or not writable."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            before = os.umask(0o177)
            try:
                self._socket.bind(str(path))
            finally:
                os.umask(before)
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def take(self) -> None:
        """Empty the socket."""
        with contextlib.suppress(BlockingIOError):
            for _ in range(_READS_MAX):
                self._socket.recv(16)

    def close(self) -> None:
        self._socket.close()
        self._path.unlink(missing_ok=True)
