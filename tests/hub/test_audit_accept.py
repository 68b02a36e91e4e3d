"""Breaks of the audit log that somebody looked into, on all stores: each kind, what comes after, attempts to cheat."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import update

from hub.core import audit, retention
from hub.core.audit import Entry, record
from hub.core.chain import ACCEPTED, ACCEPTS_MAX, PRUNED, Accepts, Break, Walk, accept, beginning
from hub.core.model import HubError
from hub.core.retention import BATCH, DAY_S, KEPT_MIN, held_up_by, prune
from hub.core.store import Store
from hub.store import schema
from tests.hub.kit import WALL_S, Hub, load_crypto, make_network, make_sqlite, seeded
from tests.hub.test_retention import OLD_S, fill, keep, settle

ROWS = 12
FAR = 100_000

Change = Callable[[list[Entry]], Iterable[Entry]]


def rows_of(store: Store) -> list[Entry]:
    with store.read() as tx:
        return tx.audit_rows(limit=100_000)


def tamper(store: Store, change: Change) -> None:
    """As somebody does who can write the database."""
    with store.write() as tx:
        rows = tx.audit_rows(limit=100_000)
        tx.drop_audit(rows[-1].id)
        for row in change(rows):
            tx.add_audit(row)


def walk(store: Store) -> Walk:
    with store.read() as tx:
        found = Walk(beginning(tx), Accepts(tx))
        found.go(tx.audit_rows(limit=100_000))
    return found


def broken_at(store: Store) -> int | None:
    broken = walk(store).broken
    return broken.row.id if broken is not None else None


def accept_next(store: Store, wall_s: int = WALL_S, why: str = "known") -> tuple[Break, Entry]:
    broken = walk(store).broken
    assert broken is not None
    with store.write() as tx:
        return broken, accept(tx, wall_s, "cli:root", broken, why)


def altered(number: int, **changes: object) -> Change:
    return lambda rows: [replace(row, **changes) if row.id == number else row for row in rows]  # type: ignore[arg-type]


def without(*numbers: int) -> Change:
    return lambda rows: [row for row in rows if row.id not in numbers]


def after(row: Entry, number: int, **changes: str) -> Entry:
    """A row that fits behind `row`, but for its id."""
    made = replace(row, id=number, **changes, hash=b"")  # type: ignore[arg-type]
    return replace(made, hash=made.digest(row.hash))


def another(rows: list[Entry]) -> list[Entry]:
    """In the place of row 5, and it fits."""
    return [*rows[:4], after(rows[3], 5, actor="cli:nobody"), *rows[5:]]


def put_in(rows: list[Entry]) -> list[Entry]:
    """Behind row 9; those that followed have moved up."""
    return [*rows[:9], after(rows[8], 10, actor="cli:nobody"), *(replace(row, id=row.id + 1) for row in rows[9:])]


KINDS: dict[str, tuple[Change, list[int]]] = {
    "changed": (altered(7, actor="cli:nobody"), [7]),
    "no JSON": (altered(7, detail="no JSON"), [7]),
    "hash changed": (altered(7, hash=bytes(32)), [7, 8]),
    "hash of no length": (altered(7, hash=b""), [7, 8]),
    "another in its place": (another, [6]),
    "missing": (without(5, 6), [7]),
    "missing at the beginning": (without(1, 2, 3), [4]),
    "first changed": (altered(1, verb="other"), [1]),
    "last changed": (altered(ROWS, verb="other"), [ROWS]),
    "put in, renumbered": (put_in, [11, 12, 13]),
    "put in far away": (lambda rows: [*rows, after(rows[-1], FAR)], [FAR]),
    "several": (lambda rows: without(5, 6)(list(altered(9, wall_s=1)(rows))), [7, 9]),
    "side by side": (lambda rows: without(5, 6)(list(altered(7, wall_s=1)(altered(8, wall_s=1)(rows)))), [7, 8]),  # type: ignore[arg-type]
}


@pytest.fixture(params=KINDS)
def broken(request: pytest.FixtureRequest, hub: Hub) -> list[int]:
    """The rows at which the hub's chain is broken, one after the other."""
    change, numbers = KINDS[request.param]
    fill(hub.store, [OLD_S] * ROWS)
    tamper(hub.store, change)
    return numbers


def test_each_break_is_accepted_in_its_turn_and_then_said(hub: Hub, broken: list[int]) -> None:
    for done, number in enumerate(broken):
        assert [known.broken.row.id for known in walk(hub.store).accepted] == broken[:done]
        assert broken_at(hub.store) == number
        _, row = accept_next(hub.store, WALL_S + done, f"it was {number}")
        assert (row.actor, row.verb, row.object) == ("cli:root", "audit.accept", f"row:{number}")
    fill(hub.store, [WALL_S] * 3)
    found = walk(hub.store)
    assert found.broken is None
    assert [known.broken.row.id for known in found.accepted] == broken
    assert [(known.why, known.by.wall_s) for known in found.accepted] == [
        (f"it was {number}", WALL_S + done) for done, number in enumerate(broken)
    ]
    last = rows_of(hub.store)[-1]
    assert (found.before, found.next_id) == (last.hash, last.id + 1)


def test_the_row_says_all_of_the_break(hub: Hub) -> None:
    fill(hub.store, [OLD_S] * ROWS)
    whole = rows_of(hub.store)
    tamper(hub.store, lambda rows: without(5, 6)(list(altered(7, actor="cli:nobody")(rows))))
    _, row = accept_next(hub.store, why="  a reason ")
    assert json.loads(row.detail) == {
        "row": 7,
        "expected": 5,
        "hash": whole[6].hash.hex(),
        "before": whole[3].hash.hex(),
        "content": replace(whole[6], actor="cli:nobody").digest(b"").hex(),
        "why": "a reason",
    }


@pytest.mark.parametrize("why", ["", "  ", "x" * (audit.TEXT_MAX + 1)])
def test_a_reason_of_some_length_is_wanted(hub: Hub, why: str) -> None:
    fill(hub.store, [OLD_S] * ROWS)
    tamper(hub.store, without(5))
    with pytest.raises(HubError, match="1 to 256 expected"):
        accept_next(hub.store, why=why)
    accept_next(hub.store, why="x" * audit.TEXT_MAX)
    assert [known.why for known in walk(hub.store).accepted] == ["x" * audit.TEXT_MAX]


@pytest.mark.parametrize(
    ("change", "is_another"),
    [
        (altered(7, wall_s=2), True),
        (altered(7, hash=b"x"), True),
        (altered(6, hash=b"x"), True),
        (without(6), True),
        (without(7), True),
        (without(8), False),
        (altered(6, actor="cli:nobody"), False),
    ],
)
def test_what_changed_since_somebody_looked_is_not_accepted(hub: Hub, change: Change, is_another: bool) -> None:
    fill(hub.store, [OLD_S] * ROWS)
    tamper(hub.store, altered(7, wall_s=1))
    found = walk(hub.store).broken
    assert found is not None and found.row.id == 7
    tamper(hub.store, change)
    with hub.store.write() as tx:
        if is_another:
            with pytest.raises(HubError, match="changed meanwhile"):
                accept(tx, WALL_S, "cli:root", found, "known")
        else:  # beside it
            accept(tx, WALL_S, "cli:root", found, "known")


def test_two_who_accept_at_once_leave_one_row(hub: Hub) -> None:
    fill(hub.store, [OLD_S] * ROWS)
    tamper(hub.store, without(5))
    found, _ = accept_next(hub.store)
    with hub.store.write() as tx, pytest.raises(HubError, match="accepted meanwhile, by cli:root"):
        accept(tx, WALL_S, "cli:other", found, "known")
    assert [row.verb for row in rows_of(hub.store)].count(ACCEPTED) == 1


# attempts to cheat: row 7 was changed, rows 9 and 10 are missing, rows 13 and 14 accept that

LATER: dict[str, tuple[Change, int]] = {
    "the row is changed again": (altered(7, actor="cli:third"), 7),
    "its hash, too": (altered(7, hash=b"x"), 7),
    "what stood before it is changed": (altered(6, actor="cli:third"), 6),
    "what stood before it is another, that fits": (
        lambda rows: [*rows[:5], after(rows[4], 6, actor="cli:third"), *rows[6:]],
        7,
    ),
    "more is taken out": (without(8), 11),
    "the row that accepts is taken out": (without(13), 7),
    "it is changed": (altered(13, actor="cli:third"), 7),
    "it names another row": (altered(13, detail='{"row": 11}'), 7),
    "it is of another kind": (altered(13, verb="audit.accepted"), 7),
    "the two have each other's places": (
        lambda rows: [*rows[:10], replace(rows[11], id=13), replace(rows[10], id=14), *rows[12:]],
        7,
    ),
    "their end is cut off": (lambda rows: rows[:10], 7),
}


@pytest.fixture
def accepted(hub: Hub) -> Hub:
    fill(hub.store, [OLD_S] * ROWS)
    tamper(hub.store, lambda rows: without(9, 10)(list(altered(7, actor="cli:nobody")(rows))))
    for _ in range(2):
        accept_next(hub.store)
    fill(hub.store, [WALL_S])
    assert [row.id for row in rows_of(hub.store)] == [*range(1, 9), *range(11, 16)]
    assert broken_at(hub.store) is None
    return hub


@pytest.mark.parametrize("kind", LATER)
def test_what_is_changed_after_acceptance_is_seen_again(accepted: Hub, kind: str) -> None:
    change, number = LATER[kind]
    tamper(accepted.store, change)
    assert broken_at(accepted.store) == number


def test_a_row_that_is_itself_a_break_accepts_nothing_though_that_is_accepted(accepted: Hub) -> None:
    tamper(accepted.store, altered(13, actor="user:somebody"))
    before, row = rows_of(accepted.store)[9:11]
    assert (before.id, row.id, row.verb) == (12, 13, ACCEPTED)
    with accepted.store.write() as tx:
        accept(tx, WALL_S, "cli:root", Break(row, before.hash, 13), "the row that accepts was changed")
    assert broken_at(accepted.store) == 7
    accept_next(accepted.store, why="again")
    found = walk(accepted.store)
    assert [(known.broken.row.id, known.why) for known in found.accepted] == [
        (7, "again"),
        (11, "known"),
        (13, "the row that accepts was changed"),
    ]
    assert found.broken is None


def test_a_row_accepts_nothing_that_stands_behind_it(accepted: Hub) -> None:
    known = walk(accepted.store).accepted[0]
    assert known.broken.is_accepted_by(replace(known.by, id=8))
    assert not known.broken.is_accepted_by(replace(known.by, id=7))
    assert not known.broken.is_accepted_by(replace(known.by, id=3))


@pytest.mark.parametrize(
    "detail", ["", "7", "[7]", '{"row": [7]}', '{"row": null}', "[" * 100_000, '{"row": 7}', '{"row": "7"}']
)
def test_rows_that_accept_in_no_words_of_ours(hub: Hub, detail: str) -> None:
    fill(hub.store, [OLD_S] * ROWS)
    tamper(hub.store, without(6))
    tamper(hub.store, lambda rows: [*rows, after(replace(rows[-1], verb=ACCEPTED), ROWS + 1, detail=detail)])
    assert broken_at(hub.store) == 7
    accept_next(hub.store)
    assert broken_at(hub.store) is None


def test_the_newest_that_accept_are_looked_at(hub: Hub) -> None:
    fill(hub.store, [OLD_S] * ROWS)
    tamper(hub.store, without(6))
    accept_next(hub.store)
    with hub.store.write() as tx:
        for number in range(ACCEPTS_MAX - 1):
            record(tx, WALL_S, "cli:root", ACCEPTED, "", {"row": number})
    assert broken_at(hub.store) is None
    with hub.store.write() as tx:
        record(tx, WALL_S, "cli:root", ACCEPTED, "", {"row": 1})
    assert broken_at(hub.store) == 7
    accept_next(hub.store)  # which makes it the newest again
    assert broken_at(hub.store) is None


# pruning


def test_pruning_stops_at_a_break_and_goes_on_behind_it(hub: Hub, broken: list[int]) -> None:
    fill(hub.store, [OLD_S] * 20 + [WALL_S] * KEPT_MIN)
    before = rows_of(hub.store)
    for number in broken:
        settle(hub.store)
        with hub.store.read() as tx:
            found = held_up_by(tx, WALL_S)
        if number == FAR and found is None:  # nothing of before it is due alone
            continue
        assert found is not None and found.row.id == number
        assert [row for row in rows_of(hub.store) if row.verb != ACCEPTED] == before
        accept_next(hub.store)
    settle(hub.store)
    with hub.store.read() as tx:
        assert held_up_by(tx, WALL_S) is None
    found_ = walk(hub.store)
    assert found_.broken is None and not found_.accepted
    assert {row.wall_s for row in rows_of(hub.store)} == {WALL_S}
    assert rows_of(hub.store)[-1].verb == PRUNED


def test_the_beginning_is_proven_wherever_pruning_ends(
    hub: Hub, broken: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row by row: before the break, at it, and behind it; and past the rows that accept it."""
    for name, value in (("BATCH", 1), ("LEAST", 1), ("KEPT_MIN", 2)):
        monkeypatch.setattr(retention, name, value)
    fill(hub.store, [OLD_S] * 2)
    for number in broken:
        found, _ = accept_next(hub.store, OLD_S)
        assert found.row.id == number
    fill(hub.store, [OLD_S] * 2 + [WALL_S] * 2)
    gone = 0
    while True:
        at = walk(hub.store)
        assert at.broken is None
        first = rows_of(hub.store)[0].id
        assert [known.broken.row.id for known in at.accepted] == [number for number in broken if number >= first]
        with hub.store.write() as tx:
            if not prune(tx, WALL_S):
                break
        gone += 1
    assert gone > ROWS and {row.wall_s for row in rows_of(hub.store)} == {WALL_S}
    assert ACCEPTED not in {row.verb for row in rows_of(hub.store)}


def test_rows_that_are_missing_where_it_was_pruned_break_the_chain(
    accepted: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row that tells of pruning vouches for the first that stayed, and for no later one."""
    for name, value in (("LEAST", 1), ("KEPT_MIN", 2)):
        monkeypatch.setattr(retention, name, value)
    monkeypatch.setattr(retention, "BATCH", 2)
    with accepted.store.write() as tx:
        assert prune(tx, WALL_S)
    tamper(accepted.store, without(3))
    found, _ = accept_next(accepted.store)
    assert (found.row.id, found.expected) == (4, 3)
    assert broken_at(accepted.store) is None
    tamper(accepted.store, without(4))
    assert broken_at(accepted.store) == 5


def test_what_is_not_there_takes_no_place_among_the_rows_that_are_kept(hub: Hub) -> None:
    """By ids there are 100 000 more than there are."""
    keep(hub.store, days=0, rows=1_000)
    fill(hub.store, [WALL_S] * 500)
    tamper(hub.store, lambda rows: [*rows, after(rows[-1], FAR)])
    fill(hub.store, [WALL_S] * 598)
    accept_next(hub.store)
    assert settle(hub.store) == 1 and len(rows_of(hub.store)) == 1_100
    fill(hub.store, [WALL_S])
    settle(hub.store)
    rows = rows_of(hub.store)
    assert len(rows) == 1_001 and rows[0].id == 102
    assert broken_at(hub.store) is None


def test_with_rows_that_are_old_no_more_go_than_are_too_many(hub: Hub) -> None:
    keep(hub.store, days=400, rows=1_000)
    fill(hub.store, [OLD_S] * 30 + [WALL_S] * 500)
    tamper(hub.store, lambda rows: [*rows, after(rows[-1], 581, detail="{}")])
    fill(hub.store, [WALL_S] * 509)
    accept_next(hub.store)
    rows = rows_of(hub.store)
    assert (rows[530].wall_s, len(rows), rows[-1].id) == (WALL_S, 1_041, 1_091)
    settle(hub.store)
    assert len(rows_of(hub.store)) == 1_001


def test_a_word_of_rows_that_are_missing_does_not_count_where_they_are_there(hub: Hub) -> None:
    keep(hub.store, days=0, rows=1_000)
    fill(hub.store, [WALL_S] * 1_100)
    with hub.store.write() as tx:
        record(tx, WALL_S, "cli:root", ACCEPTED, "", {"row": 900, "expected": 200})
        record(tx, WALL_S, "cli:root", ACCEPTED, "", {"row": FAR, "expected": 5_000})
    settle(hub.store)
    assert rows_of(hub.store)[0].id == 103


def test_the_newest_stay_though_ids_say_that_there_are_more(hub: Hub) -> None:
    fill(hub.store, [OLD_S] * 50)
    tamper(hub.store, lambda rows: [*rows, after(rows[-1], FAR)])
    accept_next(hub.store, OLD_S)
    fill(hub.store, [OLD_S] * (KEPT_MIN - 10))
    settle(hub.store)
    assert len(rows_of(hub.store)) == KEPT_MIN + 1


def test_nothing_is_held_up_where_nothing_is_due(hub: Hub) -> None:
    fill(hub.store, [WALL_S] * (2 * KEPT_MIN))
    tamper(hub.store, without(5))
    with hub.store.read() as tx:
        assert held_up_by(tx, WALL_S) is None
        found = held_up_by(tx, WALL_S + 402 * DAY_S)
    assert found is not None and found.row.id == 6 and found.words() == "row 5 before it is not there"


def test_a_batch_of_breaks_asks_for_as_many_rows_at_most(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(hub.store, [OLD_S] * BATCH + [WALL_S] * KEPT_MIN)
    tamper(hub.store, lambda rows: [replace(row, hash=b"%d" % row.id) for row in rows[:BATCH]] + rows[BATCH:])
    with hub.store.write() as tx:
        before = audit.START
        for row in tx.audit_rows(limit=BATCH + 1):
            accept(tx, WALL_S, "cli:root", Break(row, before, row.id), "known")
            before = row.hash
    assert broken_at(hub.store) is None
    with hub.store.write() as tx:
        asked: list[int] = []
        for name in ("audit_rows", "audit_of"):
            real = getattr(tx, name)

            def counted(*args: object, real: Callable[..., list[Entry]] = real, **options: object) -> list[Entry]:
                found = real(*args, **options)
                asked.append(len(found))
                return found

            monkeypatch.setattr(tx, name, counted, raising=False)
        assert prune(tx, WALL_S)
    assert len(asked) <= BATCH + 6 and sum(asked) <= 3 * BATCH + KEPT_MIN + ACCEPTS_MAX
    assert broken_at(hub.store) is None


# what SQLite keeps


def test_rows_of_one_kind_are_found_by_an_index(tmp_path: Path) -> None:
    store = make_sqlite(tmp_path / "hub.db", make_network(load_crypto(), seeded(0)))
    fill(store, [WALL_S] * 10)
    with store.read() as tx:
        plan = tx.connection.exec_driver_sql(
            "EXPLAIN QUERY PLAN SELECT * FROM audit WHERE verb = 'audit.accept' ORDER BY id DESC LIMIT 256"
        ).all()
    store.close()
    assert len(plan) == 1 and "ix_audit_verb_id (verb=?)" in str(plan[0])


def test_text_in_the_place_of_a_hash(tmp_path: Path) -> None:
    """As somebody leaves it who tries things with SQLite's own program."""
    store = make_sqlite(tmp_path / "hub.db", make_network(load_crypto(), seeded(0)))
    fill(store, [OLD_S] * ROWS)
    with store.write() as tx:
        tx.connection.exec_driver_sql("UPDATE audit SET hash = 'x' WHERE id = 7")
        tx.connection.execute(update(schema.audit).where(schema.audit.c.id == 7).values(actor="cli:nobody"))
    assert accept_next(store)[0].row.id == 7 and accept_next(store)[0].row.id == 8
    assert broken_at(store) is None
    store.close()
