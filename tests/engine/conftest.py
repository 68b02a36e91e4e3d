"""`inside`: run a part of a test in the network namespace of a lab host."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from tests.netlab import Host

CLONE_NEWNET = 0x40000000
Inside = Callable[[Host], AbstractContextManager[None]]


@contextmanager
def _inside(host: Host) -> Iterator[None]:
    libc = ctypes.CDLL(None, use_errno=True)

    def enter(fd: int) -> None:
        if libc.setns(fd, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")

    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    away = os.open(f"/run/netns/{host.namespace}", os.O_RDONLY)
    try:
        enter(away)
        yield
    finally:
        enter(home)
        os.close(home)
        os.close(away)


@pytest.fixture
def inside() -> Inside:
    """`with inside(host):` sockets and interfaces made in it are the host's, and stay so."""
    return _inside
