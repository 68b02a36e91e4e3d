"""Sockets of this process inside the hosts of a lab: a test speaks for several hosts without a program in each."""

from __future__ import annotations

import ctypes
import os
import select
import socket
from pathlib import Path

from tests.netlab.host import Host

_NETNS_DIR = Path("/run/netns")
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)

Address = tuple[str, int]


def udp_socket(host: Host, address: str = "", port: int = 0) -> socket.socket:
    """An IPv4 UDP socket of `host`. A socket stays in the namespace in which its thread was when it made it."""
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        there = os.open(_NETNS_DIR / host.namespace, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _enter(there)
        finally:
            os.close(there)
        try:
            made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        finally:
            _enter(here)
    finally:
        os.close(here)
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
