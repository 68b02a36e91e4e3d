"""The bounded tables of a node against naive twins, and the renewal of the node key as a table of states."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from edgeagent.proto import topics
from edgeagent.proto.boundedqueue import BoundedQueue
from edgeagent.proto.control_client import Answer
from edgeagent.proto.devicemap import open_map
from edgeagent.proto.errors import DropReason
from edgeagent.proto.feeds import FeedSubscriptions
from edgeagent.proto.identity import Identity
from edgeagent.proto.keyrenewal import KeyRenewal, Step
from edgeagent.proto.limits import Limits
from edgeagent.proto.questions import ATTEMPTS_MAX, Questions
from edgeagent.proto.ratelimiter import RateLimiter
from edgeagent.proto.records import Entry, Query, Record, RecordTable
from edgeagent.proto.refusals import ControlError
from edgeagent.proto.signed import SeqGuard, open_signed, sign_object
from edgeagent.proto.unresolved import Unresolved
from tests.control_kit import CRYPTO, NETWORK, NETWORK_KEY, NETWORK_SEED, V6, WALL_S, entropy_of
from tests.node_kit import Board, World, send

IDENTITIES = [Identity.create(CRYPTO, entropy_of(3000 + n)) for n in range(4)]


def signed(device: int, seq: int, address: int, name: str, kind: str = "record") -> Any:
    identity = IDENTITIES[device]
    body: dict[str, Any] = {
        "name": name,
        "addrs": [bytes((100, 64, 0, address)), V6[0][:15] + bytes((address,))],
        "dk": identity.device_key,
        "nk": [[identity.node_key, 0]],
        "tags": [],
        "user": "",
        "routes": [[bytes((10, address, 0, 0)), 16]],
    }
    dates = {"not_before": 0, "not_after": WALL_S + 1000 * seq} if kind == "record" else {}
    data = sign_object(
        CRYPTO,
        NETWORK_SEED,
        kind=kind,
        network=NETWORK,
        subject=identity.device_id,
        epoch=1,
        seq=seq,
        wall_s=WALL_S + seq,
        body=body if kind == "record" else {},
        **dates,
    )
    return open_signed(CRYPTO, NETWORK_KEY, data, kind=kind, network=NETWORK, subject=identity.device_id)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["record", "record", "record", "gone"]),
        st.integers(0, 3),
        st.integers(1, 6),
        st.integers(1, 3),
        st.sampled_from(["a", "b"]),
    ),
    max_size=12,
)


@given(STEPS)
def test_records_against_a_list(steps: list[tuple[str, int, int, int, str]]) -> None:
    """The twin keeps all that counts in a list; who answers is the one with the latest wall time."""
    table = RecordTable(100, 100)
    held: dict[str, Record] = {}
    gone: dict[str, int] = {}
    for kind, device, seq, address, name in steps:
        thing = signed(device, seq, address, name, kind)
        subject = thing.subject
        before = held.get(subject)
        if kind == "gone":
            sound = gone.get(subject, 0) < seq and (before is None or before.stamp[1] <= seq)
            if sound:
                gone[subject] = seq
                held.pop(subject, None)
        else:
            sound = gone.get(subject, 0) < seq and (before is None or before.stamp[1] <= seq)
            if sound:
                held[subject] = Record(thing)
        try:
            if kind == "gone":
                table.check_gone(thing)
                table.bury(thing)
            else:
                record = Record(thing)
                table.check(record, 1)
                table.take(record, bytes(32), 1)
        except ControlError:
            assert not sound
        else:
            assert sound
    assert {entry.record.device: entry.record.stamp for entry in table} == {
        device: record.stamp for device, record in held.items()
    }
    for record in held.values():
        for query in record.queries():
            found = table.find(query, WALL_S)
            # A later record may have had the same address or name and gone since: then nobody has it until asked
            if found is not None:
                assert found.record.answers(query)
                assert found.record.device in held
        assert table.find(("k", record.node_keys[0][0]), WALL_S) is not None
        assert table.find(("k", record.node_keys[0][0]), record.not_after + 1) is None


def test_an_address_goes_to_the_later_record() -> None:
    table = RecordTable(10, 10)
    for device, seq in ((0, 2), (1, 5), (2, 3)):
        table.take(Record(signed(device, seq, 1, "a")), bytes(32), 1)
    queries: list[Query] = [("a", bytes((100, 64, 0, 1))), ("h", "a")]
    for query in queries:
        entry = table.find(query, WALL_S)
        assert entry is not None and entry.record.device == IDENTITIES[1].device_id


def test_the_longest_route_wins() -> None:
    table = RecordTable(10, 10)
    wide, narrow = Record(signed(0, 1, 1, "a")), Record(signed(1, 1, 2, "b"))
    wide.routes, narrow.routes = [(bytes((10, 0, 0, 0)), 8)], [(bytes((10, 7, 0, 0)), 16)]
    for record in (wide, narrow):
        table.take(record, bytes(32), 1)
    for address, holder in ((bytes((10, 7, 1, 1)), narrow), (bytes((10, 8, 1, 1)), wide)):
        entry = table.find(("a", address), WALL_S)
        assert entry is not None and entry.record is holder
    assert table.find(("a", bytes((11, 7, 1, 1))), WALL_S) is None
    assert table.find(("a", bytes(16)), WALL_S) is None


def test_the_least_recently_used_record_is_forgotten() -> None:
    table = RecordTable(2, 2)
    for device in (0, 1):
        table.take(Record(signed(device, 1, device + 1, f"n{device}")), bytes(32), 1)
    table.find(("h", "n0"), WALL_S)
    _, evicted = table.take(Record(signed(2, 1, 3, "n2")), bytes(32), 1)
    assert [entry.record.name for entry in evicted] == ["n1"]
    assert table.find(("h", "n1"), WALL_S) is None
    assert len(table) == 2


@given(st.lists(st.tuples(st.sampled_from(["use", "leave", "again", "lost", "drain"]), st.sampled_from("abcde"))))
@example([("use", "a"), ("drain", "a"), ("leave", "a"), ("again", "a")])
@example([("use", "a"), ("drain", "a"), ("again", "a"), ("leave", "a")])
def test_feed_subscriptions_against_the_broker(steps: list[tuple[str, str]]) -> None:
    feeds = FeedSubscriptions(NETWORK, 3)
    broker: set[str] = set()
    for step, device in [*steps, ("drain", "")]:
        if step == "use":
            feeds.use(device)
        elif step == "leave":
            feeds.leave(device)
        elif step == "again":
            feeds.again(device)
        elif step == "lost":
            feeds.session_lost()
            broker.clear()
        else:
            for topic, subscribe in feeds.drain():
                assert topic.split("/")[2] in "abcde"
                (broker.add if subscribe else broker.discard)(topic.split("/")[2])
    assert broker == {device for device in "abcde" if device in feeds}
    assert len(broker) <= 3
    assert feeds.drain() == []


def test_a_feed_that_came_while_nobody_wanted_it_is_asked_for_once_more() -> None:
    feeds = FeedSubscriptions(NETWORK, 3)
    feeds.stray("a")  # of an earlier life's subscription
    feeds.use("a")
    assert feeds.drain() == [(topics.feed(NETWORK, "a"), True)]


def test_questions_are_bounded_and_end() -> None:
    questions = Questions(2, 2, random.Random(1).random)
    queries: list[Query] = [("h", name) for name in "abcd"]
    assert [questions.ask(0.0, query, reachable=True) for query in queries] == [True, True, False, False]
    assert questions.ask(0.0, queries[0], reachable=True)
    assert len(questions) == 2
    sent, now = len(questions.due(0.0)), 0.0
    while len(questions):
        at = questions.poll_timeout()
        assert at is not None and at >= now
        now = at
        sent += len(questions.due(now))
        expired = questions.expired(now)
    assert sent == 2 * ATTEMPTS_MAX
    assert expired == queries[:2]
    assert questions.poll_timeout() is None
    assert questions.is_refused(now, queries[0])
    assert not questions.said_no(now, queries[0])  # nobody said anything
    assert not questions.is_refused(now + 5, queries[0])
    for query in queries:
        questions.refused(now, query, 10)
    assert questions.said_no(now, queries[3])
    assert questions.negatives == 2
    assert not questions.is_refused(now, queries[0])


def test_unresolved_packets_are_bounded() -> None:
    unresolved = Unresolved(2, 3)
    dropped = [unresolved.add(bytes((d,)), bytes((d, n)), 5.0 + d) for d in range(3) for n in range(4)]
    assert sum(dropped) == 3 + 3
    assert unresolved.destinations() == [b"\1", b"\2"]
    assert unresolved.poll_timeout() == 6.0
    assert unresolved.expired(6.0) == [b"\1"]
    assert unresolved.take(b"\1") == [b"\1\1", b"\1\2", b"\1\3"]
    assert unresolved.take(b"\1") == []
    assert len(unresolved) == 1


def test_a_full_table_of_questions_is_a_no() -> None:
    world = World()
    a = world.add(1, "a", limits=Limits(asks=1))
    world.hub_answers = False
    assert a.node.lookup(world.now, ("h", "x")) is Answer.PENDING
    assert a.node.lookup(world.now, ("h", "y")) is Answer.NO
    assert a.node.lookup(world.now, ("h", "x")) is Answer.PENDING


# Renewal


class Renewing:
    """A device, its map, and time."""

    def __init__(self, not_after_s: int, **settings: int) -> None:
        self.board = Board(1, "a")
        self.board.settings = {"node_key_life_s": 900, "node_key_grace_s": 60, **settings}
        self.board.node_keys = [[self.board.identity.node_key, WALL_S + not_after_s if not_after_s else 0]]
        self.world = World()
        self.now = 0.0
        self.machine = KeyRenewal(self.board.identity, random.Random(1).random)

    @property
    def state(self) -> str:
        return self.machine.state.value

    def step(self, *, reachable: bool = True) -> Step | None:
        data = self.world.map_object(self.board)
        device_map = open_map(CRYPTO, NETWORK_KEY, data, network=NETWORK, device=self.board.id)
        return self.machine.step(self.now, WALL_S + self.now, device_map, reachable=reachable)


def test_a_key_without_an_end_is_never_renewed() -> None:
    renewing = Renewing(0)
    assert renewing.step() is None
    assert renewing.machine.poll_timeout() is None


def test_every_state_of_a_renewal() -> None:
    renewing = Renewing(900)
    board, machine = renewing.board, renewing.machine
    assert renewing.step() is None
    assert (renewing.state, machine.poll_timeout()) == ("resting", 600.0)
    renewing.now = 600.0
    assert renewing.step() is Step.MAKE
    board.identity.make_next(entropy_of(1))
    assert renewing.step(reachable=False) is None
    assert (renewing.state, machine.poll_timeout()) == ("reported", None)
    assert renewing.step() is Step.REPORT_NEXT
    assert renewing.step() is None
    again_at = machine.poll_timeout()
    assert again_at is not None and again_at >= 630
    renewing.now = again_at
    assert renewing.step() is Step.REPORT_NEXT
    board.node_keys.append([board.identity.next_key, WALL_S + 2000])
    assert renewing.step() is None
    assert renewing.state == "spreading"
    assert machine.poll_timeout() == renewing.now + 60
    renewing.now += 60
    assert renewing.step() is Step.SWITCH
    board.identity.switch()
    assert renewing.step() is None
    assert renewing.state == "resting"


def test_the_switch_is_before_the_old_key_ends_whatever_the_grace() -> None:
    renewing = Renewing(300, node_key_grace_s=86_400)
    renewing.board.identity.make_next(entropy_of(1))
    renewing.board.node_keys.append([renewing.board.identity.next_key, WALL_S + 2000])
    assert renewing.step() is None
    assert renewing.machine.poll_timeout() == 150.0


def test_keys_with_too_short_a_life_are_not_renewed_without_end() -> None:
    renewing = Renewing(100)
    board = renewing.board
    made = 0
    for _ in range(3000):
        renewing.now += 1
        step = renewing.step()
        if step is Step.MAKE:
            made += 1
            board.identity.make_next(entropy_of(made))
        elif step is Step.REPORT_NEXT:
            board.node_keys.append([board.identity.next_key, WALL_S + int(renewing.now) + 100])
        elif step is Step.SWITCH:
            board.identity.switch()
            del board.node_keys[0]
    assert 3 <= made <= 11  # a third of 900 s apart, not a minute


def test_a_lost_key_is_reported_or_replaced() -> None:
    renewing = Renewing(900)
    board = renewing.board
    board.node_keys = [[bytes(32), 0]]
    assert renewing.step() is Step.REPORT_CURRENT
    assert renewing.state == "lost"
    board.identity.make_next(entropy_of(1))
    board.node_keys = [[board.identity.next_key, 0]]
    assert renewing.step() is Step.SWITCH


def test_both_sides_begin_under_the_new_key_at_once() -> None:
    """The feed tells of the new key while the initiation is lost, so that both handshakes cross."""
    world = World()
    a, b = world.add(1, "a"), world.add(2, "b")
    world.run(2)
    send(world, a, b)
    send(world, b, a)
    a.settings = {"node_key_life_s": 3000, "node_key_grace_s": 60}
    a.node_keys[0][1] = int(WALL_S + world.now) + 900
    world.say_map(a)
    world.run(59)
    world.lose = lambda sender, datagram, to: sender is a
    world.run(4)
    assert a.identity.next_key is None
    assert b.node.peering.links[a.id].coming is not None  # b has begun, and no answer has come
    packets = [send(world, a, b, bytes([n])) for n in range(5)]
    world.lose = lambda sender, datagram, to: False
    world.run(6)
    assert b.received[-5:] == packets
    assert b.node.device.drops[DropReason.INNER_SOURCE] == 0
    assert list(b.node.device.peers) == [a.identity.node_key]


def test_entries_know_which_key_to_use() -> None:
    entry = Entry(Record(signed(0, 1, 1, "a")), bytes(32), 1)
    first, second = entry.record.node_keys[0][0], bytes(31) + b"\1"
    assert entry.node_key() == first
    entry.key_failed(first)
    assert entry.node_key() == first  # there is no other
    entry.record.node_keys.append((second, 5))
    entry.key_failed(first)
    assert entry.node_key() == second
    entry.feed_node_key = bytes(32)  # a key that the hub did not sign
    assert entry.node_key() == first
    assert entry.record.key_end(first) == float("inf")
    assert entry.record.key_end(second) == 5


def test_a_full_queue_forgets_its_oldest_and_counts_that() -> None:
    queue: BoundedQueue[int] = BoundedQueue(3)
    queue.append(1)
    assert (queue.peak, queue.gave_way) == (1, 0)
    queue.extend(range(2, 8))
    assert list(queue) == [5, 6, 7]
    queue.clear()
    queue.append(9)
    assert (list(queue), queue.peak, queue.gave_way, queue.ceiling) == ([9], 3, 4, 3)


def test_every_table_counts_what_gave_way() -> None:
    world = World()
    a, b = world.add(1, "a", limits=Limits(events=2, negatives=1, asks=1, feeds=1)), world.add(2, "b")
    world.run(2)
    before: Any = a.node.status(world.now)["tables"]
    assert set(Limits.DEFAULTS) - set(before) == {  # not of the node: the engine's, or no table
        "flows", "new_flows_per_s", "pump_ring_bytes", "handshakes_per_call", "message_bytes", "log_lines",
    }  # fmt: skip
    assert all(0 <= table["used"] <= table["ceiling"] for table in before.values())
    for last in range(20, 24):
        send(world, a, bytes((100, 64, 9, last)))
    send(world, a, b)
    world.run(2)
    tables: Any = a.node.status(world.now)["tables"]
    assert tables["negatives"]["gave_way"] > 0 and tables["negatives"]["used"] == 1
    assert tables["events"]["peak"] <= 2


def test_feeds_and_tombstones_count_what_gave_way() -> None:
    feeds = FeedSubscriptions("n", 2)
    for device in "abcb":
        feeds.use(device)
    assert (len(feeds), feeds.gave_way) == (2, 1)
    guard = SeqGuard(2)
    for number, key in enumerate("aabcd"):
        guard.accept(key, 1, number)
    assert (len(guard), guard.gave_way) == (2, 2)
    limiter = RateLimiter(2)
    for last in range(5):
        limiter.allow(0.0, bytes((192, 0, 2, last)))
    assert (len(limiter), limiter.gave_way) == (2, 3)
    questions = Questions(1, 1, lambda: 0.0)
    assert [questions.ask(0.0, ("h", name), reachable=True) for name in ("x", "y", "x")] == [True, False, True]
    assert questions.refused_full == 1
    waiting = Unresolved(1, 2)
    for last in (1, 2):
        for _ in range(3):
            waiting.add(bytes((192, 0, 2, last)), b"packet", 9.0)
    assert (waiting.gave_way, waiting.longest()) == (1, 2)
