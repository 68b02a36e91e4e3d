"""Nodes in a locked network: who is met, who is refused, what a hub that lies brings about, renewal without anybody."""

from __future__ import annotations

from typing import Any

import pytest

from edgeagent.proto import topics
from edgeagent.proto.identity import Admission
from edgeagent.proto.limits import Limits
from edgeagent.proto.lock import Lock
from edgeagent.proto.node import Node
from edgeagent.proto.node_events import LockPinned, NodeKeyRenewed, PeerGone, Resolved
from edgeagent.proto.publishing import Publish
from edgeagent.proto.refusals import ControlDrop
from edgeagent.proto.tai64n import Tai64nClock
from edgeagent.proto.walltime import WallFloor
from tests.control_kit import CRYPTO, NETWORK, NETWORK_KEY, WALL_S, entropy_of
from tests.lock_kit import Owner
from tests.node_kit import LIFE_S, Board, World, icmp_errors, opened, send

ANA, BEN, EVE = Owner(1), Owner(2), Owner(3)


class LockedWorld(World):
    """A hub that passes on what lock keys signed: `statements`, `signed` by device id; and what devices report."""

    def __init__(self) -> None:
        super().__init__()
        self.statements: list[bytes] = []
        self.signed: dict[str, list[list[Any]]] = {}
        self.node_signatures: dict[bytes, list[Any]] = {}
        self.reports: list[dict[str, Any]] = []
        self.kept: dict[str, bytes] = {}  # what each device keeps of the lock

    def fields(self, board: Board) -> dict[str, Any]:
        rows = [self.node_signatures[key] for key, _ in board.node_keys if key in self.node_signatures]
        return {"c": self.signed.get(board.id, []), "k": rows}

    def map_object(self, board: Board, **changes: Any) -> bytes:
        if self.statements:
            changes = {"lk": {"s": self.statements, **self.fields(board)}, **changes}
        return super().map_object(board, **changes)

    def record(self, board: Board, **changes: Any) -> bytes:
        body = {**({"lk": self.fields(board)} if self.statements else {}), **changes.pop("body", {})}
        return super().record(board, body={key: value for key, value in body.items() if value is not None}, **changes)

    def hub_reads(self, sender: Board, verb: str, publish: Publish) -> None:
        if verb == "report" and self.hub_answers:
            body = opened(sender, "report", publish.payload).body
            self.reports.append(body)
            self.node_signatures.update({row[0]: row for row in body.get("ls", [])})
        super().hub_reads(sender, verb, publish)

    def crank_one(self, board: Board) -> bool:
        moved = super().crank_one(board)
        if any(isinstance(event, LockPinned) for event in board.events) and board.node.client.lock is not None:
            self.kept[board.id] = board.node.client.lock.encode()
        return moved

    def say(self, *statements: bytes) -> None:  # type: ignore[override]
        """The hub tells all devices what the lock's owners say."""
        self.statements = list(statements)
        for board in self.boards.values():
            self.say_map(board)
        self.run(1)

    def sign(self, *boards: Board, by: Owner = ANA) -> None:
        for board in boards:
            self.signed[board.id] = [by.device(board.id, board.identity.device_key)]
            self.say_map(board)
            for reader in self.boards.values():
                if reader is not board and reader.online:
                    self.say_rec(reader, board)
        self.crank()

    def start_locked(self, board: Board, lock: Lock | None = None) -> None:
        """The device starts anew with what it has kept."""
        kept = self.kept.get(board.id)
        board.node = Node(
            self.now,
            crypto=CRYPTO,
            entropy=entropy_of(board.number),
            jitter=lambda: 0.5,
            tai64n=Tai64nClock(self.now, WALL_S + self.now),
            limits=Limits(),
            identity=board.identity,
            admission=Admission(
                CRYPTO,
                network_key=NETWORK_KEY,
                ca_der=b"ca",
                map_object=self.map_object(board),
                hosts=["hub.example:8883"],
            ),
            wall=WallFloor(self.now, WALL_S + self.now),
            boot=bytes([board.number, self.random.randrange(256)]) * 8,
            version="test",
            facts={},
            saved=board.saved,
            lock=lock or (None if kept is None else Lock.decode(CRYPTO, kept)),
        )
        board.node.handle_addresses(self.now, board.endpoints)
        board.online, board.session = False, None
        self.crank()


@pytest.fixture
def world() -> LockedWorld:
    return LockedWorld()


def three(world: LockedWorld) -> tuple[Board, Board, Board]:
    boards = world.add(1, "a"), world.add(2, "b"), world.add(3, "c")
    world.run(2)
    return boards


def dropped(board: Board, reason: ControlDrop) -> int:
    return board.node.client.drops[reason]


def talk(world: World, a: Board, b: Board) -> bool:
    """Whether a packet passes that was not there before."""
    return send(world, a, b, b"%d" % len(world.wire)) in b.received


def test_a_lock_that_is_not_on_makes_devices_ready_and_refuses_nothing(world: LockedWorld) -> None:
    a, b, _ = three(world)
    world.say(ANA.statement(1, on=False))
    assert [len(report["ls"]) for report in world.reports] == [1, 1, 1]
    assert sum(isinstance(event, LockPinned) for event in a.events) == 1
    assert talk(world, a, b)
    status = a.node.status(world.now)["lock"]
    assert status == {"on": False, "statement": 1, "keys": [ANA.key.hex()], "signed": False, "withheld": False}
    world.run(8 * 3600)
    assert len(world.reports) == 3  # the hub has what it needs


def test_the_signed_meet_and_the_unsigned_are_refused_until_they_are_signed(world: LockedWorld) -> None:
    a, b, c = three(world)
    world.say(ANA.statement(1, on=False))
    world.sign(a, b)
    assert talk(world, a, c)  # not on yet
    world.say(ANA.statement(1, on=False), ANA.statement(2))
    assert talk(world, a, b)
    assert not talk(world, a, c)
    assert icmp_errors(a)
    assert not talk(world, c, a)
    world.run(20)  # nobody answers it, so it begins a handshake, which is not completed
    assert [link.name for link in a.node.peering] == ["b"]
    assert [(row["name"], row["refused"]) for row in a.node.peers(world.now)] == [("b", None), ("c", "lock-unsigned")]
    gone = [(event.name, event.reason) for event in a.events if isinstance(event, PeerGone)]
    assert gone == [("c", "refused by the lock")]
    assert dropped(a, ControlDrop.LOCK_UNSIGNED) > 0
    assert dropped(a, ControlDrop.STRANGER_REFUSED) > 0
    assert c.node.status(world.now)["lock"]["signed"] is False  # type: ignore[index]
    world.sign(c)
    world.run(6)
    assert talk(world, a, c)
    assert [(row["name"], row["refused"]) for row in a.node.peers(world.now)] == [("b", None), ("c", None)]
    assert c.node.status(world.now)["lock"]["signed"] is True  # type: ignore[index]


def test_a_question_about_somebody_unsigned_ends_at_once(world: LockedWorld) -> None:
    a, b, _ = three(world)
    world.say(ANA.statement(1))
    a.node.lookup(world.now, ("h", "b"))
    world.crank()
    answers = [event for event in a.events if isinstance(event, Resolved)]
    assert [(event.query, event.record) for event in answers] == [(("h", "b"), None)]
    world.sign(b)
    assert getattr(a.node.lookup(world.now, ("h", "b")), "name", "") == "b"


def locked_pair(world: LockedWorld) -> tuple[Board, Board, Board]:
    """a and b are signed and speak; the network is locked."""
    a, b, c = three(world)
    world.say(ANA.statement(1, on=False))
    world.sign(a, b)
    world.say(ANA.statement(1, on=False), ANA.statement(2))
    assert talk(world, a, b)
    return a, b, c


def test_a_rogue_device_of_the_hub_reaches_nobody(world: LockedWorld) -> None:
    a, b, _ = locked_pair(world)
    rogue = world.add(9, "rogue")
    world.run(2)
    lies: list[dict[str, Any]] = [
        {},
        {"lk": {"c": [EVE.device(rogue.id, rogue.identity.device_key)], "k": world.fields(rogue)["k"]}},
        {"lk": {"c": world.signed[b.id], "k": world.fields(rogue)["k"]}},
        {"lk": {"c": world.signed[b.id], "k": world.fields(b)["k"]}},
        {"lk": {"c": [[ANA.key, 0, 2**40, bytes(64)]], "k": world.fields(rogue)["k"]}},
        {"lk": None},
        {"addrs": [b.v4, b.v6], "name": "b"},
    ]
    for lie in lies:
        raw = world.record(rogue, body=lie)
        for board in (a, b):
            before = sum(board.node.client.drops.values())
            world.fan(
                topics.down(NETWORK, board.id, "rec"),
                world.down(board, "rec", {"rec": raw, "fk": rogue.feed_key, "fg": rogue.feed_generation}),
            )
            world.crank()
            assert sum(board.node.client.drops.values()) > before, lie
            assert board.node.client.records.get(rogue.id) is None
    assert not talk(world, rogue, a)
    assert not talk(world, a, rogue)
    assert talk(world, a, b)


def test_the_hub_cannot_swap_a_devices_node_key(world: LockedWorld) -> None:
    a, b, _ = locked_pair(world)
    rogue = world.add(9, "rogue")
    for lie in (
        {"nk": [[rogue.identity.node_key, 0]]},
        {"nk": [[rogue.identity.node_key, 0], *b.node_keys]},
        {"dk": rogue.identity.device_key},
    ):
        raw = world.record(b, body=lie)
        world.fan(
            topics.down(NETWORK, a.id, "rec"),
            world.down(a, "rec", {"rec": raw, "fk": b.feed_key, "fg": b.feed_generation}),
        )
        world.crank()
        entry = a.node.client.records.get(b.id)
        assert entry is not None
        assert [key for key, _ in entry.record.node_keys] == [b.identity.node_key]
        assert a.node.client.records.find(("k", rogue.identity.node_key), 0) is None
    assert talk(world, a, b)
    assert not talk(world, rogue, a)


def test_the_hub_cannot_name_other_keys_nor_take_the_lock_away(world: LockedWorld) -> None:
    a, b, c = locked_pair(world)
    for lie in (
        [EVE.statement(3)],
        [EVE.statement(3, on=False)],
        [ANA.statement(1, on=False)],
        [EVE.statement(1, on=False), EVE.statement(3, EVE.key, ANA.key, on=False)],
        [],
    ):
        before = dropped(a, ControlDrop.LOCK_STATEMENT)
        world.say(*lie)
        assert dropped(a, ControlDrop.LOCK_STATEMENT) == before + 1
        status: Any = a.node.status(world.now)["lock"]
        assert (status["on"], status["keys"], status["withheld"]) == (True, [ANA.key.hex()], True)
        assert not talk(world, a, c)
    assert talk(world, a, b)
    a.saved = a.node.snapshot(world.now)
    world.start_locked(a)  # its map names no lock, and it holds it all the same
    assert a.node.client.lock is not None
    assert a.node.client.lock.on
    assert a.node.client.records.get(b.id) is not None
    assert a.node.client.records.get(c.id) is None


def test_keys_that_were_given_hold_from_the_first_map_on(world: LockedWorld) -> None:
    a, _, _ = three(world)
    world.statements = [EVE.statement(1)]
    world.start_locked(a, Lock(CRYPTO, NETWORK, [ANA.key], given=True))
    world.connect(a)
    world.run(2)
    assert dropped(a, ControlDrop.LOCK_STATEMENT) > 0
    assert a.node.client.lock is not None
    assert a.node.client.lock.keys == [ANA.key]


def test_what_is_cached_is_weighed_by_the_lock_that_is_held(world: LockedWorld) -> None:
    a, b, _ = locked_pair(world)
    a.saved = a.node.snapshot(world.now)
    world.start_locked(a)
    assert a.node.client.records.get(b.id) is not None
    a.saved = a.node.snapshot(world.now)
    lock = Lock.decode(CRYPTO, world.kept[a.id])
    lock.follow([ANA.statement(3, revoked={b.id: int(WALL_S)})])
    world.kept[a.id] = lock.encode()
    world.start_locked(a)
    assert a.node.client.records.get(b.id) is None
    assert dropped(a, ControlDrop.LOCK_VOID) == 1


def test_a_removed_key_and_a_revoked_device_are_cut_off_at_once(world: LockedWorld) -> None:
    a, b, c = locked_pair(world)
    world.say(ANA.statement(2), ANA.statement(3, ANA.key, BEN.key))
    world.sign(c, by=BEN)
    world.run(6)
    assert talk(world, a, c)
    world.say(ANA.statement(3, ANA.key, BEN.key), ANA.statement(4))
    assert not talk(world, a, c)
    assert talk(world, a, b)
    world.say(ANA.statement(4), ANA.statement(5, revoked={b.id: int(WALL_S)}))
    assert not talk(world, a, b)


def test_a_key_that_came_in_before_the_lock_was_on_is_cut_off_then(world: LockedWorld) -> None:
    a, b, _ = three(world)
    world.say(ANA.statement(1, on=False))
    for board in (a, b):
        world.signed[board.id] = [ANA.device(board.id, board.identity.device_key)]
    rogue = bytes(range(32))
    raw = world.record(b, body={"nk": [[rogue, 0], *b.node_keys]})
    rec = {"rec": raw, "fk": b.feed_key, "fg": b.feed_generation}
    world.fan(topics.down(NETWORK, a.id, "rec"), world.down(a, "rec", rec))
    entry = a.node.client.records.get(b.id)
    assert entry is not None
    entry.key_failed(b.identity.node_key)  # nothing keeps a from trying the other key that the hub says is b's
    send(world, a, b)
    assert rogue in a.node.device.peers
    assert a.node.client.records.find(("k", rogue), WALL_S) is not None
    world.say(ANA.statement(2))
    assert rogue not in a.node.device.peers
    assert a.node.client.records.find(("k", rogue), WALL_S) is None
    send(world, a, b)  # b has forgotten a, whose record it held from before a was signed: it asks anew
    world.run(20)
    assert talk(world, a, b)


def test_a_lock_that_is_turned_off_by_its_owner_refuses_nothing_more(world: LockedWorld) -> None:
    a, _, c = locked_pair(world)
    assert not talk(world, a, c)
    world.say(ANA.statement(2), ANA.statement(3, on=False))
    world.run(70)  # until it asks again
    assert talk(world, a, c)


def test_the_node_key_is_renewed_without_the_owner(world: LockedWorld) -> None:
    a, b, _ = locked_pair(world)
    first = a.identity.node_key
    a.settings = {"node_key_life_s": LIFE_S, "node_key_grace_s": 60}
    a.node_keys = [[first, int(WALL_S + world.now) + LIFE_S]]
    world.say_map(a)
    for _ in range(26):
        world.run(86_400)
        for board in (a, b):
            for other in (a, b):
                if other is not board:
                    world.say_rec(board, other)
        world.crank()
        assert talk(world, b, a)
    assert sum(isinstance(event, NodeKeyRenewed) for event in a.events) == 1
    assert a.identity.node_key != first
    entry = b.node.client.records.get(a.id)
    assert entry is not None
    assert entry.record.has_node_key(a.identity.node_key)
    assert len(world.signed[a.id]) == 1  # what the owner signed once


def test_a_new_key_waits_until_the_hub_shows_its_signature(world: LockedWorld) -> None:
    a, _, _ = locked_pair(world)
    first = a.identity.node_key
    a.settings = {"node_key_life_s": LIFE_S, "node_key_grace_s": 0}
    a.node_keys = [[first, int(WALL_S + world.now) + 60]]
    world.hub_answers = False
    world.say_map(a)
    coming = a.identity.next_key
    assert coming is not None
    a.node_keys.append([coming, int(WALL_S + world.now) + LIFE_S])
    world.say_map(a)
    assert a.node.renewal.state.value == "reported"
    assert a.identity.node_key == first
    world.hub_answers = True
    world.run(60)
    assert a.identity.node_key == coming
