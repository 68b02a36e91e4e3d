"""Sockets of this process inside the hosts of a lab: a test speaks for several hosts without a program in each."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import socket
from collections.abc import Iterator
from pathlib import Path

from tests.netlab.host import Host

_NETNS_DIR = Path("/run/netns")
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)

Address = tuple[str, int]


@contextlib.contextmanager
def inside(host: Host) -> Iterator[None]:
    """This thread is in the namespace of `host`; sockets and interfaces made meanwhile stay there."""
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        there = os.open(_NETNS_DIR / host.namespace, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _enter(there)
        finally:
            os.close(there)
        try:
            yield
        finally:
            _enter(here)
    finally:
        os.close(here)


def udp_socket(host: Host, address: str = "", port: int = 0, family: int = socket.AF_INET) -> socket.socket:
    """A UDP socket of `host`."""
    with inside(host):
        made = socket.socket(family, socket.SOCK_DGRAM)
    try:
        made.bind((address, port))
    except BaseException:
        made.close()
        raise
    return made


def receive(sock: socket.socket, timeout_s: float = 2.0) -> tuple[bytes, Address] | None:
    """The next datagram and its sender, or None when none came in time."""
    if not select.select([sock], [], [], timeout_s)[0]:
        return None
    data, sender = sock.recvfrom(2048)
    return data, (sender[0], sender[1])


def _enter(namespace: int) -> None:
    if _libc.setns(namespace, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")
