"""Peers behind relays, as the kernel sees them: each is a socket on loopback, whose address is the peer's endpoint."""

from __future__ import annotations

import socket
from contextlib import suppress
from selectors import EVENT_READ
from typing import TYPE_CHECKING

from edgeagent.proto.endpoint import Transmit

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from selectors import BaseSelector

    from edgeagent.proto.endpoint import Endpoint

LOOPBACK = "127.0.0.1"
SPARE_MAX = 16  # beside those of peers: of who has only just begun
READS_MAX = 64  # at one wake-up
DATAGRAM_MAX = 65_535
BUFFER_BYTES = 1 << 20


class Proxies:
    """At most `peers_max` + SPARE_MAX; the oldest that no peer needs gives way. `port` is the kernel's."""

    __slots__ = ("_by_endpoint", "_by_fd", "_by_port", "_max", "_port", "_readable", "_selector", "lost")

    def __init__(
        self, selector: BaseSelector, readable: Callable[[float, int], None], port: int, peers_max: int
    ) -> None:
        self.lost = 0  # datagrams for which there was no room at the other side, or no proxy
        self._selector = selector
        self._readable = readable
        self._port = port
        self._max = peers_max + SPARE_MAX
        self._by_endpoint: dict[Endpoint, socket.socket] = {}
        self._by_fd: dict[int, Endpoint] = {}
        self._by_port: dict[int, Endpoint] = {}

    def __len__(self) -> int:
        return len(self._by_endpoint)

    def __contains__(self, fd: int) -> bool:
        return fd in self._by_fd

    @property
    def ceiling(self) -> int:
        return self._max

    def address(self, endpoint: Endpoint, needed: Callable[[], Collection[Endpoint]]) -> int | None:
        """The UDP port that stands for a relay's member; None where there is no room beside those `needed`."""
        found = self._by_endpoint.get(endpoint) or self._open(endpoint, needed)
        return None if found is None else int(found.getsockname()[1])

    def endpoint(self, port: int) -> Endpoint | None:
        """Whom a port of loopback stands for."""
        return self._by_port.get(port)

    def deliver(self, datagram: bytes, endpoint: Endpoint, needed: Callable[[], Collection[Endpoint]]) -> None:
        """Hand the kernel what came by a relay."""
        found = self._by_endpoint.get(endpoint) or self._open(endpoint, needed)
        try:
            if found is None:
                self.lost += 1
            else:
                found.send(datagram)
        except OSError:  # its buffer is full, or it has no port at the moment
            self.lost += 1

    def read(self, fd: int) -> list[Transmit]:
        """What the kernel wants sent by a relay."""
        endpoint = self._by_fd[fd]
        opened = self._by_endpoint[endpoint]
        datagrams = []
        for _ in range(READS_MAX):
            try:
                datagrams.append(opened.recv(DATAGRAM_MAX))
            except OSError:
                break
        return [Transmit(endpoint, datagrams)] if datagrams else []

    def close(self) -> None:
        for endpoint in list(self._by_endpoint):
            self._close(endpoint)

    def _open(self, endpoint: Endpoint, needed: Callable[[], Collection[Endpoint]]) -> socket.socket | None:
        if len(self._by_endpoint) >= self._max:
            kept = needed()
            spare = next((each for each in self._by_endpoint if each not in kept), None)
            if spare is None:
                return None
            self._close(spare)
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            with suppress(OSError):
                opened.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
        try:
            opened.bind((LOOPBACK, 0))
            opened.connect((LOOPBACK, self._port))  # nobody else on this host is heard
        except OSError:
            opened.close()
            return None
        self._by_endpoint[endpoint] = opened
        self._by_fd[opened.fileno()] = endpoint
        self._by_port[opened.getsockname()[1]] = endpoint
        self._selector.register(opened.fileno(), EVENT_READ, self._readable)
        return opened

    def _close(self, endpoint: Endpoint) -> None:
        opened = self._by_endpoint.pop(endpoint)
        del self._by_port[opened.getsockname()[1]]
        del self._by_fd[opened.fileno()]
        self._selector.unregister(opened.fileno())
        opened.close()
