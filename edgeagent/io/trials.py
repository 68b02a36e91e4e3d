"""Second UDP sockets: each opens a binding of its own at the NAT, on which silence can be tried without risk."""

from __future__ import annotations

import socket
from selectors import EVENT_READ
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from selectors import BaseSelector

    Address = tuple[str, int] | tuple[str, int, int, int]
    OnDatagram = Callable[[float, Hashable, bytes], None]
    OnBytes = Callable[[float, socket.socket, list[bytes], list[bytes]], None]

SOCKETS_MAX = 8  # an uplink has one at a time
READS_PER_TURN_MAX = 8
DATAGRAM_MAX = 2_048
_SO_BINDTODEVICE = 25


class TrialSockets:
    """`open`, `send` and `close` by key. Their descriptors are registered in `selector` with `ready` as the data, to be
    called as `key.data(now, key.fd)`: what came from the server goes to `on_datagram(now, key, datagram)`.

    `on_bytes(now, socket, sent, received)` hears of every datagram, for whoever counts them. A socket hears the server
    that it was opened to and nobody else. What cannot be sent is lost, as on any network.
    """

    __slots__ = ("_by_fd", "_by_key", "_on_bytes", "_on_datagram", "_selector")

    def __init__(self, selector: BaseSelector, on_datagram: OnDatagram, on_bytes: OnBytes) -> None:
        self._selector = selector
        self._on_datagram = on_datagram
        self._on_bytes = on_bytes
        self._by_key: dict[Hashable, socket.socket] = {}
        self._by_fd: dict[int, Hashable] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    def open(self, key: Hashable, server: Address, device: str | None) -> bool:
        """A new socket to `server`, bound to the interface `device` if one is named. False when there can be none."""
        self.close(key)
        if len(self._by_key) >= SOCKETS_MAX:
            return False
        family = socket.AF_INET if len(server) == 2 else socket.AF_INET6
        try:
            opened = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        except OSError:
            return False
        try:
            if device is not None:
                opened.setsockopt(socket.SOL_SOCKET, _SO_BINDTODEVICE, device.encode() + b"\0")
            opened.connect(server)
        except OSError:  # no route, or an interface that is gone
            opened.close()
            return False
        self._by_key[key] = opened
        self._by_fd[opened.fileno()] = key
        self._selector.register(opened, EVENT_READ, self.ready)
        return True

    def send(self, now: float, key: Hashable, datagrams: list[bytes]) -> None:
        opened = self._by_key.get(key)
        if opened is None:
            return
        sent = []
        for datagram in datagrams:
            try:
                opened.send(datagram)
                sent.append(datagram)
            except OSError:  # a full buffer, no route, or what ICMP said of an earlier one
                continue
        self._on_bytes(now, opened, sent, [])

    def close(self, key: Hashable) -> None:
        """Harmless when there is none."""
        opened = self._by_key.pop(key, None)
        if opened is not None:
            del self._by_fd[opened.fileno()]
            self._selector.unregister(opened)
            opened.close()

    def close_all(self) -> None:
        for key in list(self._by_key):
            self.close(key)

    def ready(self, now: float, fd: int) -> None:
        key = self._by_fd.get(fd)
        if key is None:
            return
        opened = self._by_key[key]
        received = []
        for _ in range(READS_PER_TURN_MAX):
            try:
                received.append(opened.recv(DATAGRAM_MAX))
            except BlockingIOError:
                break
            except OSError:  # what ICMP said of an earlier datagram
                continue
        self._on_bytes(now, opened, [], received)
        for datagram in received:
            self._on_datagram(now, key, datagram)
