"""A fleet of sessions under one selectors loop."""

from __future__ import annotations

import gc
import heapq
import itertools
import resource
import selectors
import time
from typing import TYPE_CHECKING

from edgeagent import crypto as providers
from edgeagent.proto.token import Token
from tools.load.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgeagent.io.mqtt import MqttLink
    from edgeagent.proto.node_events import NodeEvent

JOINING_MAX = 40  # at a time: an agent that is not answered asks again
FILES_SPARE = 64


class Fleet:
    """For each (token, number) so many devices join and stay. `run` turns it; `on_event` hears of maps and answers."""

    def __init__(self, *tokens: tuple[str, int]) -> None:
        size = sum(number for _, number in tokens)
        _raise_file_limit(size + FILES_SPARE)
        self._crypto = providers.load()
        self._tokens = [Token.decode(self._crypto, token) for token, number in tokens for _ in range(number)]
        self._selector = selectors.DefaultSelector()
        self._due: list[tuple[float, int, Session]] = []
        self._tickets = itertools.count()
        self._scheduled: dict[Session, float] = {}
        self._owners: dict[MqttLink, Session] = {}
        self.sessions: list[Session] = []
        self._size = size
        self.on_event: Callable[[Session, float, NodeEvent], None] = lambda session, now, event: None

    def up(self) -> list[Session]:
        return [session for session in self.sessions if session.is_up]

    def join_all(self, timeout_s: float, say: Callable[[str], None]) -> None:
        """Until all are members and connected. Raises TimeoutError, or RuntimeError when the hub refuses one."""
        deadline = time.monotonic() + timeout_s
        told = -1
        while (up := len(self.up())) < self._size:
            now = time.monotonic()
            if now > deadline:
                raise TimeoutError(f"{up} of {self._size} devices joined within {timeout_s:g} s")
            for session in self.sessions:
                if session.refusal:
                    raise RuntimeError(f"{session.host}: {session.refusal}")
            while len(self.sessions) < min(self._size, up + JOINING_MAX):
                self._add(now)
            if up // 100 != told:
                told = up // 100
                say(f"{up} of {self._size} devices")
            self.run(0.25)
        gc.collect()
        gc.freeze()  # to look through thousands of sessions for garbage takes half a second, as an answer would seem to

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        """Turn the loop for so long, or until the condition holds."""
        end = time.monotonic() + seconds
        while (now := time.monotonic()) < end and not until():
            while self._due and self._due[0][0] <= now:
                due, _, session = heapq.heappop(self._due)
                if self._scheduled.get(session) == due:
                    del self._scheduled[session]
                    session.on_timeout(now)
                    self.settle(now, session)
            wait = end - now if not self._due else min(end, self._due[0][0]) - now
            for key, _ in self._selector.select(max(0.0, wait)):
                at = time.monotonic()
                key.data(at, key.fd)
                self.settle(at, self._owners[key.data.__self__])

    def settle(self, now: float, session: Session) -> None:
        """After anything was asked of a session from outside."""
        session.settle(now)
        due = session.poll_timeout()
        if due is not None and due < self._scheduled.get(session, float("inf")):
            self._scheduled[session] = due
            heapq.heappush(self._due, (due, next(self._tickets), session))

    def close(self) -> None:
        for session in self.sessions:
            session.close()
        self._selector.close()

    def _add(self, now: float) -> None:
        number = len(self.sessions)
        address = bytes((10, 99, number >> 8, number & 255))
        session = Session(
            now,
            self._selector,
            self._crypto,
            self._tokens[number],
            f"load-{number}",
            address,
            lambda session, at, event: self.on_event(session, at, event),
        )
        self._owners[session.link] = session
        self.sessions.append(session)
        self.settle(now, session)


def _raise_file_limit(files: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < files:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (files if hard == resource.RLIM_INFINITY else min(files, hard), hard)
        )
