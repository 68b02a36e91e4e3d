"""How those who show the hub's state hear what has changed: datagrams on unix sockets in `<state>/live/`.

Whoever commits a change says it to every listener there, and waits for nobody. So a listener may miss something, and
what it shows is to be looked at anew now and then all the same.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

LISTENERS_MAX = 16
DEVICES_MAX = 64  # in one announcement; more are `{"kind": "devices"}`
_DATAGRAM_MAX = 512


def announce(directory: Path, changes: Iterable[str]) -> None:
    """Tell all listeners. A change is `device ID`, or one word: tokens, users, policy, routes, names, audit, …"""
    said = list(changes)
    devices = [change for change in said if change.startswith("device ")]
    messages: list[dict[str, str]] = [{"kind": change} for change in said if not change.startswith("device ")]
    if len(devices) > DEVICES_MAX:
        messages.append({"kind": "devices"})
    else:
        messages += [{"device": change.removeprefix("device ")} for change in devices]
    if not messages:
        return
    try:
        listeners = [name for name in os.listdir(directory) if name.endswith(".sock")][:LISTENERS_MAX]
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
        for name in listeners:
            _tell(sender, directory / name, messages)


def _tell(sender: socket.socket, listener: Path, messages: list[dict[str, str]]) -> None:
    for message in messages:
        try:
            sender.sendto(json.dumps(message).encode(), str(listener))
        except OSError as error:
            if error.errno == errno.ECONNREFUSED:  # its process was killed
                listener.unlink(missing_ok=True)
            return


class Listener:
    """A place to hear announcements. Raises OSError when the path is too long for a socket or not writable."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, exist_ok=True)
        self._path = directory / f"{secrets.token_hex(4)}.sock"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            self._socket.bind(str(self._path))
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def take(self, limit: int = 256) -> list[dict[str, Any]]:
        """What was said since, each thing once; at most `limit` datagrams."""
        heard: dict[bytes, None] = {}
        with contextlib.suppress(BlockingIOError):
            for _ in range(limit):
                heard[self._socket.recv(_DATAGRAM_MAX)] = None
        messages = []
        for datagram in heard:
            with contextlib.suppress(ValueError):
                messages.append(json.loads(datagram))
        return [message for message in messages if isinstance(message, dict)]

    def close(self) -> None:
        self._socket.close()
        self._path.unlink(missing_ok=True)
