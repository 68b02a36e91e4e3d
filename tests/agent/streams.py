"""RelayStreams and the loop around them, for tests; name servers that are slow."""

from __future__ import annotations

import os
import selectors
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from edgeagent.io.proxy import Proxy as ProxySetting
from edgeagent.io.relaystream import (
    Closed,
    Data,
    Event,
    RelayStreams,
)
from tests.agent.servers import Handler, Server

TURNS_S = 20.0  # for what another thread does


class Shell:
    """RelayStreams and the loop around them; at the end nothing is left of either."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.streams = RelayStreams(self.selector)

    def use(self, proxy: ProxySetting | None = None, avoid: Callable[[bytes], bool] = lambda address: False) -> None:
        self.streams.close_all()
        self.streams = RelayStreams(self.selector, proxy, avoid)

    def turn(self, timeout_s: float = 0.05) -> None:
        for key, _ in self.selector.select(timeout_s):
            key.data(time.monotonic(), key.fd)
        due = self.streams.poll_timeout()
        if due is not None and due <= time.monotonic():
            self.streams.on_timeout(time.monotonic())

    def until(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + TURNS_S
        while not done():
            assert time.monotonic() < deadline, list(self.streams.events)
            self.turn()

    def until_fds(self, count: int) -> None:
        """No more descriptors than these, the server's ends among them."""
        self.until(lambda: fds() <= count)

    def open(self, *hosts: str, number: int = 1) -> Event:
        """What comes of it."""
        self.streams.open(time.monotonic(), number, list(hosts))
        return self.next()

    def next(self) -> Event:
        self.until(lambda: bool(self.streams.events))
        return self.streams.events.popleft()

    def give_up(self) -> Event:
        """Time passes without an answer."""
        due = self.streams.poll_timeout()
        assert due is not None
        self.streams.on_timeout(due)
        return self.next()

    def stage(self, number: int = 1) -> str:
        stream = self.streams._streams.get(number)
        return "" if stream is None else stream.stage.value

    def received(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            event = self.next()
            assert isinstance(event, Data), event
            data += event.data
        return data


def fds() -> int:
    return len(os.listdir("/proc/self/fd"))


Serve = Callable[[Handler], Server]


def echo(sock: socket.socket) -> None:
    while data := sock.recv(65_536):
        sock.sendall(data)


def reason(event: Event) -> str:
    assert isinstance(event, Closed), event
    return event.reason


class SlowNames:
    """A name server that answers when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answer = threading.Event()
        self.asked = 0
        self.found: list[tuple[str, int]] = []  # what it answers, nothing for an error
        monkeypatch.setattr(socket, "getaddrinfo", self._getaddrinfo)

    def _getaddrinfo(self, *args: Any, **more: Any) -> Any:
        self.asked += 1
        self.answer.wait(TURNS_S)
        if self.found:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", each) for each in self.found]
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
