"""Look-ups that take longer than anybody waits, for the broker and in general."""

from __future__ import annotations

import selectors
import socket
import threading
from typing import Any

import pytest

from edgeagent.io import pinnedtls
from edgeagent.io.mqtt import CONNECT_TIMEOUT_S, Closed, MqttLink
from edgeagent.io.pahoclient import Login
from edgeagent.io.pinnedtls import (
    GIVEN_UP_MAX,
    KNOWN_MAX,
    LATE_MAX_S,
    LOOK_UP_TIMEOUT_S,
    LookUps,
    Resolver,
    Trust,
)
from tests.agent.broker import free_port
from tests.agent.streams import TURNS_S, SlowNames

NAME = ("hub.example", 8883)
FOUND = [(socket.AF_INET, ("127.0.0.1", 1))]


def finish() -> None:
    for thread in list(pinnedtls.Resolver._threads):
        thread.join(TURNS_S)


def test_one_that_was_given_up_goes_on_for_the_next_who_asks(slow: SlowNames) -> None:
    names = LookUps()
    slow.found = [("127.0.0.1", 1)]
    first = names.begin(0.0, *NAME)
    names.give_up(*NAME, first)
    again = names.begin(1.0, *NAME)
    assert again is first and not again.done and again.wake.fileno() >= 0
    slow.answer.set()
    assert again.wake.recv(1) == b"" and names.end(*NAME, again) == (FOUND, "")
    assert slow.asked == 1 and names.known(*NAME) == FOUND


@pytest.mark.parametrize("late", [False, True])
def test_an_answer_of_long_ago_and_an_error_are_no_answers(slow: SlowNames, late: bool) -> None:
    names = LookUps()
    if late:
        slow.found = [("127.0.0.1", 1)]
    first = names.begin(0.0, *NAME)
    names.give_up(*NAME, first)
    slow.answer.set()
    finish()
    again = names.begin(LATE_MAX_S + 1.0 if late else 1.0, *NAME)
    assert again is not first
    finish()
    names.end(*NAME, again)


def test_everything_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda *args, **more: [(socket.AF_INET, 1, 6, "", ("127.0.0.1", 1))] * 99
    )
    names = LookUps()
    for port in range(1, 60):
        names.give_up("a.example", port, names.begin(0.0, "a.example", port))
        finish()
        found, _ = names.end("b.example", port, names.begin(0.0, "b.example", port)) if port % 2 else ([], "")
        finish()
        assert len(found) <= 8
    assert len(names._given_up) == GIVEN_UP_MAX and len(names._known) <= KNOWN_MAX


def test_a_thread_that_cannot_be_started_is_a_look_up_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_thread(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", no_thread)
    resolver = Resolver(*NAME)
    assert resolver.done and "can't start" in resolver.error and resolver.wake.recv(1) == b""
    resolver.close()


class Link:
    """An MqttLink whose broker has a name, on a clock that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.selector = selectors.DefaultSelector()
        self.link = MqttLink(self.selector)
        self.tried: list[Any] = []
        self.link.steer = lambda sock, address: self.tried.append(address)

    def open(self, *hosts: str) -> None:
        self.link.open(self.now, hosts, Login("c", "u", "p", clean=True), Trust(b"", None, False))

    def turn(self) -> None:
        for key, _ in self.selector.select(TURNS_S):
            key.data(self.now, key.fd)

    def give_up(self) -> None:
        due = self.link.poll_timeout()
        assert due is not None
        self.now = due
        self.link.on_timeout(due)

    def ended(self) -> str:
        event = self.link.events.popleft()
        assert isinstance(event, Closed) and not self.link.events
        return event.reason


def test_a_broker_is_found_by_an_answer_that_came_after_the_deadline(slow: SlowNames) -> None:
    link = Link()
    slow.found = [("127.0.0.1", free_port())]
    link.open("hub.example:8883")
    assert link.link.poll_timeout() == LOOK_UP_TIMEOUT_S
    link.give_up()
    assert "resolving" in link.ended() and link.tried == []
    slow.answer.set()
    finish()
    link.open("hub.example:8883")
    link.turn()
    assert link.tried == slow.found and slow.asked == 1
    link.link.close()


def test_a_broker_whose_name_is_not_found_is_tried_where_it_was(slow: SlowNames) -> None:
    link = Link()
    slow.found = [("127.0.0.1", free_port())]
    slow.answer.set()
    link.open("hub.example:8883")
    link.turn()
    slow.answer.clear()
    link.open("hub.example:8883")
    assert link.link.poll_timeout() == link.now + CONNECT_TIMEOUT_S
    link.give_up()
    assert link.tried == 2 * slow.found
    slow.found = []
    slow.answer.set()
    finish()
    link.open("hub.example:8883")
    link.turn()
    assert len(link.tried) == 3
    link.link.close()


def test_another_broker_is_not_kept_waiting(slow: SlowNames) -> None:
    link = Link()
    link.open("hub.example:8883", f"127.0.0.1:{free_port()}")
    assert link.link.poll_timeout() == CONNECT_TIMEOUT_S
    link.give_up()
    assert len(link.tried) == 1
    link.link.close()


def test_without_descriptors_a_look_up_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*args: Any) -> Any:
        raise OSError(24, "Too many open files")

    link = Link()
    monkeypatch.setattr(socket, "socketpair", none_left)
    link.open("hub.example:8883")
    assert "Too many open files" in link.ended()
