"""Silence under traffic: what the pump says of it by itself, once, and what it takes for none."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator

import pytest

from edgeagent.proto.endpoint import Endpoint
from edgeagent.proto.established import Traffic
from tests.engine.packets import Segment
from tests.engine.twins import Member, Node, addressed, plain, report, settle

QUIET_S = 0.3  # longer than a report of traffic takes, so that another one is by silence alone
PATIENCE_S = 1.0


def packet(source: Node, to: Node) -> bytes:
    return plain(addressed(Segment(b"to and fro", udp=True).packet(), source, to))


@pytest.fixture
def pair() -> Iterator[tuple[Node, Node]]:
    a, b = Node("fast", 1), Node("pure", 2)
    a.meet(b)
    b.meet(a)
    for source, to in ((a, b), (b, a)) * 2:
        source.inject([packet(source, to)])
        settle(a, b)
    report(a, b)
    a.machine.traffic.clear()
    yield a, b
    a.close()
    b.close()


def overdue(a: Node, *, within_s: float) -> list[Traffic]:
    """Reports that say of nothing but that an answer is missing."""
    found: list[Traffic] = []
    end = time.monotonic() + within_s
    while time.monotonic() < end and not found:
        a.turn()
        found = [each for each in a.machine.traffic if each.last_sent_at is None and each.last_received_at is None]
    return found


def ask(a: Node, b: Node) -> None:
    a.inject([packet(a, b)])
    settle(a)


def test_an_answer_that_is_overdue_is_told_at_once_and_once(pair: tuple[Node, Node]) -> None:
    a, b = pair
    a.machine.quiet[b.device.public_key] = QUIET_S
    began = time.monotonic()
    ask(a, b)
    (told,) = overdue(a, within_s=10.0)
    assert told.unanswered_since is not None
    assert began <= told.unanswered_since <= time.monotonic() - QUIET_S
    a.machine.traffic.clear()
    assert not overdue(a, within_s=PATIENCE_S)
    ask(a, b)
    report(a)
    assert a.machine.traffic[-1].unanswered_since == told.unanswered_since, "what is sent meanwhile changes nothing"


def test_what_is_answered_is_no_news(pair: tuple[Node, Node]) -> None:
    a, b = pair
    a.machine.quiet[b.device.public_key] = QUIET_S
    for _ in range(3):
        a.inject([packet(a, b)])
        settle(a, b)
        b.inject([packet(b, a)])
        settle(a, b)
    assert not overdue(a, within_s=PATIENCE_S)
    assert a.machine.traffic[-1].unanswered_since is None


def test_nobody_asks(pair: tuple[Node, Node]) -> None:
    a, b = pair
    ask(a, b)
    assert not overdue(a, within_s=PATIENCE_S)
    assert a.machine.traffic[-1].unanswered_since is not None, "it is told with the rest"


def test_who_only_sends_is_not_answered(pair: tuple[Node, Node]) -> None:
    a, b = pair
    a.machine.quiet[b.device.public_key] = QUIET_S
    time.sleep(1.1)  # nothing was heard for longer than a talk pauses
    ask(a, b)
    assert not overdue(a, within_s=PATIENCE_S)


def test_a_keepalive_is_an_answer_and_no_talk(pair: tuple[Node, Node]) -> None:
    a, b = pair
    a.machine.quiet[b.device.public_key] = QUIET_S
    time.sleep(1.1)
    ask(a, b)
    settle(b)
    b.peer(a).send_keepalive(b.now)
    b.device.touched(b.peer(a))
    settle(a, b)
    report(a)
    assert a.machine.traffic[-1].unanswered_since is None
    ask(a, b)
    assert not overdue(a, within_s=PATIENCE_S)


def test_another_way_begins_anew(pair: tuple[Node, Node]) -> None:
    a, b = pair
    a.machine.quiet[b.device.public_key] = QUIET_S
    ask(a, b)
    elsewhere = Node("pure", 3)
    a.peer(b).set_endpoint(elsewhere.endpoint)
    a.engine.flush(a.now)
    assert not overdue(a, within_s=PATIENCE_S)
    elsewhere.close()


def test_what_comes_by_another_way_is_no_answer(pair: tuple[Node, Node], monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = pair
    home = a.peer(b).endpoint
    assert home is not None
    monkeypatch.setattr(a.machine, "ways", lambda _: [home])  # as the paths have it: WireGuard's roaming is a hint
    a.machine.quiet[b.device.public_key] = QUIET_S
    ask(a, b)
    settle(b)
    b.engine.bind(0)
    b.inject([packet(b, a)])
    settle(b)
    (told,) = overdue(a, within_s=10.0)
    assert told.unanswered_since is not None
    assert a.peer(b).endpoint != home, "it was heard"


def test_what_went_into_the_silence_goes_by_the_copies_too(pair: tuple[Node, Node]) -> None:
    a, b = pair
    a.machine.quiet[b.device.public_key] = QUIET_S
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as relay:
        relay.bind(("127.0.0.1", 0))
        relay.settimeout(2)
        member = Member(("relay", 1))
        a.machine.relays[member] = (Endpoint(relay.getsockname()), 0x01020304, 0x0506)
        b.taken()
        b.udp.close()  # nothing reaches it any more
        first = packet(a, b)
        a.inject([first])
        settle(a)
        time.sleep(0.01)
        lost = [plain(addressed(Segment(bytes((i,)) * 99, udp=True).packet(), a, b)) for i in range(40)]
        a.inject(lost)
        settle(a)
        assert overdue(a, within_s=10.0)
        a.machine.copies[b.device.public_key] = [member]
        a.engine.flush(a.now)
        settle(a)
        kept = [relay.recv(3000) for _ in range(32)]
        assert all(each[:8] == struct.pack(">BBHI", 0xE5, 0, 0x0506, 0x01020304) for each in kept)
        b.engine.bind(b.port)
        for each in kept:
            relay.sendto(each[8:], b.endpoint.addr)
        settle(b)
        assert [plain(each) for each in b.taken()] == lost[8:], "the last ones, in order"
        a.engine.flush(a.now)
        relay.settimeout(0.1)
        with pytest.raises(TimeoutError):
            relay.recv(3000)
