"""Silence of a path in use: when it is a reason to ask, whoever moves the packets, and what a wrong guess teaches."""

from __future__ import annotations

import pytest

from edgeagent.proto.path import Path, State, key_of
from edgeagent.proto.pathtable import TAILS_MAX
from edgeagent.proto.patience import CALM_S, GROWTH, QUIET_MAX_S, QUIET_MIN_S, Patience
from tests.test_path_table import DATA, RELAYS, V4, Alone, way

DIRECT = way(V4)
BIT_S = 0.001


def in_a_talk(*, sparing: int = 1) -> Alone:
    """Direct, and data came a moment ago; from now on nothing is answered."""
    alone = Alone()
    alone.shared.sparing = sparing
    alone.alive = {key_of(DIRECT), key_of(RELAYS[0])}
    alone.paths.offer(alone.now, [V4])
    alone.paths.introduce(alone.now)
    alone.run(20.0, send_every_s=1.0)
    alone.hear(DIRECT)
    alone.alive.clear()
    alone.sent.clear()
    alone.unanswered.clear()
    assert current(alone).state is State.PROVEN and alone.paths.copies == []
    return alone


@pytest.fixture
def talking() -> Alone:
    return in_a_talk()


def current(alone: Alone) -> Path:
    assert alone.paths.current is not None
    return alone.paths.current


def test_in_a_talk_silence_sends_copies_by_the_relay_and_asks_quickly(talking: Alone) -> None:
    talking.send()
    talking.run(QUIET_MIN_S - BIT_S)
    assert talking.paths.copies == [] and talking.pings(DIRECT) == 0
    talking.run(2 * BIT_S)
    assert talking.paths.copies == [RELAYS[0]]
    assert current(talking).state is State.PROVEN, "one probe moves nothing"
    talking.run(0.25)
    assert talking.pings(DIRECT) == 3
    talking.run(0.1)
    assert current(talking).state is State.DOUBTFUL and talking.paths.copies == [RELAYS[0]]
    talking.run(10.0)
    assert current(talking).is_relay and talking.paths.copies == []


def test_an_answer_ends_it(talking: Alone) -> None:
    talking.send()
    talking.run(QUIET_MIN_S + BIT_S)
    talking.late_pong(-1)
    talking.settle()
    assert talking.paths.copies == [] and current(talking).state is State.PROVEN
    assert current(talking).next_probe_at is None


def test_the_peer_is_asked_by_the_relay_too_unless_bytes_cost_money(talking: Alone) -> None:
    talking.send()
    talking.run(QUIET_MIN_S + BIT_S)
    assert talking.pings(RELAYS[0]) == 1
    other = in_a_talk(sparing=4)
    other.send()
    other.run(QUIET_MIN_S + BIT_S)
    assert other.paths.copies == [RELAYS[0]] and other.pings(RELAYS[0]) == 0


def test_without_another_way_nothing_is_gained(talking: Alone) -> None:
    talking.paths.set_relay(None)
    talking.send()
    talking.run(0.5)
    assert talking.pings(DIRECT) == 0


def test_a_sign_by_the_relay_is_asked_about_at_once_and_not_often(talking: Alone) -> None:
    talking.alive = {key_of(DIRECT)}
    talking.run(1.0)
    talking.hear(DIRECT)
    for _ in range(5):
        talking.ping(RELAYS[0])
    assert talking.pings(DIRECT) == 1
    talking.run(1.0)
    talking.hear(DIRECT)
    talking.hear(RELAYS[0])
    assert talking.pings(DIRECT) == 1, "data, too"
    assert talking.paths.copies == [], "it has answered"


class TestWatched:
    """By an engine that tells since when it has no answer."""

    def test_it_counts_from_when_the_engine_says(self, talking: Alone) -> None:
        talking.paths.unanswered(talking.now, talking.now - QUIET_MIN_S + 0.02, talking.now)
        talking.run(0.5)
        assert talking.paths.copies == [], "it says so again when it is time: meanwhile there may have been an answer"
        talking.hear(DIRECT)
        talking.paths.unanswered(talking.now, talking.now - QUIET_MIN_S, None)
        talking.settle()
        assert talking.paths.copies == [RELAYS[0]] and talking.pings(DIRECT) == 1

    def test_what_was_sent_before_a_pong_is_settled(self, talking: Alone) -> None:
        sent_at = talking.now
        talking.paths.prober.ping(talking.now, DIRECT, 60)
        talking.settle()
        talking.run(0.01)
        talking.late_pong(-1)
        talking.run(0.2)
        talking.sent.clear()
        talking.paths.unanswered(talking.now, sent_at, sent_at)
        talking.settle()
        assert talking.paths.copies == [] and current(talking).unanswered_since is None
        talking.paths.unanswered(talking.now, sent_at, talking.now)
        talking.settle()
        assert talking.paths.copies == [RELAYS[0]], "what was sent after it, since the pong"


def test_what_went_into_the_silence_goes_by_the_copies(talking: Alone) -> None:
    talking.send()
    talking.paths.keep(talking.now, [b"first"], 0)
    talking.run(0.01)
    talking.paths.keep(talking.now, [bytes((i,)) * 40 for i in range(TAILS_MAX + 3)], 2)
    talking.now += QUIET_MIN_S
    talking.paths.handle_timeout(talking.now)
    sent = [
        (each.endpoint, each.datagrams, each.ecn) for each in talking.shared.transmits if len(each.datagrams[0]) == 40
    ]
    assert sent == [(RELAYS[0], [bytes((i,)) * 40], 2) for i in range(3, TAILS_MAX + 3)]
    talking.shared.transmits.clear()
    talking.hear(DIRECT)
    talking.paths.keep(talking.now, DATA, 0)
    assert talking.paths._tail == [], "a stream that runs is not copied"


def test_patience_grows_with_each_wrong_guess_and_shrinks_with_time() -> None:
    patience = Patience(0.0)
    limits = []
    while (quiet_s := patience.quiet_s(None)) is not None:
        limits.append(quiet_s)
        patience.refuted(1.0)
    assert limits == [QUIET_MIN_S * GROWTH**i for i in range(len(limits))] and limits[-1] < QUIET_MAX_S
    patience.heard(1.0 + CALM_S - BIT_S, 1)
    assert patience.quiet_s(None) is None
    patience.heard(1.0 + CALM_S, 4)
    assert patience.quiet_s(None) is None, "where bytes cost money, it remembers for longer"
    for i in range(1, 7):
        patience.heard(1.0 + CALM_S * i, 1)
    assert patience.quiet_s(None) == QUIET_MIN_S
    assert patience.quiet_s(100.0) == pytest.approx(0.3)


def test_only_a_talk_is_missed() -> None:
    patience = Patience(0.0)
    assert patience.doubts_at(0.5, None) == 0.5 + QUIET_MIN_S
    assert patience.doubts_at(1.5, None) is None
