"""A peer that began anew has forgotten its older keys: what goes to it is sealed under the new ones at once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.engine.fast.test_pump_ways import greet, packet
from tests.engine.twins import Node, plain, report, settle

TURNS_MAX = 50


@pytest.fixture
def restarted() -> Iterator[tuple[Node, Node]]:
    """(a, b): a has keys with an earlier b; the first packet of a b that began anew has just come out of a's pump."""
    a, before = Node("fast", 1), Node("pure", 2)
    a.meet(before)
    before.meet(a)
    greet(a, before)
    before.close()
    b = Node("pure", 2, seed=2)
    b.device.set_private_key(b.now, before.device.private_key)
    b.ahead_s = 60.0  # its TAI64N stamps are later than those of before
    b.meet(a)
    b.inject([plain(packet(b, a, b"here again"))])
    frames: list[bytes] = []
    for _ in range(TURNS_MAX):
        b.turn()
        a.turn()
        if frames := a.taken():
            break
    assert frames == [packet(b, a, b"here again")]
    yield a, b
    a.close()
    b.close()


def test_the_answer_does_not_wait_for_the_owner(restarted: tuple[Node, Node]) -> None:
    a, b = restarted
    assert a.peer(b).keypairs.next is not None, "the owner has not heard yet"
    a.inject([plain(packet(a, b, b"welcome"))])
    assert a.fast.pump.turn(0) > 0
    settle(b)
    assert b.taken() == [packet(a, b, b"welcome")]
    assert b.dropped() == {}


def test_what_the_owner_said_before_it_heard_does_not_bring_the_old_keys_back(restarted: tuple[Node, Node]) -> None:
    a, b = restarted
    a.peer(b).fragment = not a.peer(b).fragment  # so that the ways are told again
    a.engine.flush(a.now)
    assert a.peer(b).keypairs.next is not None, "the owner has not heard yet"
    a.inject([plain(packet(a, b, b"welcome"))])
    a.fast.pump.turn(0)
    settle(b)
    assert b.taken() == [packet(a, b, b"welcome")]


def test_the_owner_hears_and_its_word_counts_again(restarted: tuple[Node, Node]) -> None:
    a, b = restarted
    report(a)
    assert a.peer(b).keypairs.next is None
    a.device.set_private_key(a.now, bytes(range(32)))
    current = a.peer(b).keypairs.current
    assert current is None or not current.may_send
    settle(a)
    b.taken()
    a.inject([plain(packet(a, b, b"under keys of another identity"))])
    a.fast.pump.turn(0)
    settle(b)
    assert b.taken() == []
