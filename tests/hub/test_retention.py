"""Audit rows that are not kept any more, on all stores: what goes, and that the rest is proven whatever happens."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import pytest

from hub.core import chores, retention
from hub.core.audit import Entry, first_break, record
from hub.core.chain import PRUNED, Beginning, beginning
from hub.core.model import HubError
from hub.core.retention import BATCH, DAY_S, KEPT_MIN, Keep, prune
from hub.core.store import Store
from tests.hub.kit import WALL_S, Hub, open_store

FORK = multiprocessing.get_context("fork")
OLD_S = WALL_S - 500 * DAY_S


def fill(store: Store, times: Iterable[int]) -> None:
    with store.write() as tx:
        for wall_s in times:
            record(tx, wall_s, "cli:root", "test", f"thing:{wall_s}")


def keep(store: Store, **changes: int) -> None:
    with store.write() as tx:
        tx.save_audit_keep(Keep(**changes).check().encode())


def settle(store: Store, wall_s: int = WALL_S) -> int:
    """Prune until there is nothing to prune; how many transactions that took."""
    for number in range(1, 100):
        with store.write() as tx:
            if not prune(tx, wall_s):
                return number
    raise AssertionError("it does not end")


def proven(store: Store) -> tuple[Beginning, list[Entry]]:
    """Where the chain begins, and its rows, which fit."""
    with store.read() as tx:
        begin, rows = beginning(tx), tx.audit_rows(limit=100_000)
    broken, _, _ = first_break(begin.before, begin.id, rows)
    assert broken is None, f"broken at {broken}"
    return begin, rows


def test_the_oldest_go_and_the_rest_is_proven(hub: Hub) -> None:
    fill(hub.store, [OLD_S] * (BATCH + 100) + [WALL_S - 399 * DAY_S] * 20 + [WALL_S] * KEPT_MIN)
    _, whole = proven(hub.store)
    turns = 0
    with hub.store.write() as tx:
        while chores.look_at_dates(hub.scribe, tx, WALL_S):
            turns += 1
    assert turns == 1  # a batch, and then what was left
    begin, rows = proven(hub.store)
    assert begin.id == rows[0].id == BATCH + 101 and begin.before == whole[BATCH + 99].hash
    assert rows[:120] == whole[BATCH + 100 :]
    told = [(row.actor, row.verb, json.loads(row.detail)) for row in rows[120:]]
    assert told == [
        (
            "hub",
            "audit.prune",
            {"first": first, "last": last, "hash": whole[last - 1].hash.hex(), "until": OLD_S, "days": 400, "rows": 0},
        )
        for first, last in ((1, BATCH), (BATCH + 1, BATCH + 100))
    ]
    assert begin.by == rows[-1]


def test_what_is_taken_out_without_a_word_breaks_the_chain(hub: Hub) -> None:
    fill(hub.store, [OLD_S] * 50 + [WALL_S] * KEPT_MIN)
    settle(hub.store)
    first = proven(hub.store)[0].id
    assert first == 51
    with hub.store.write() as tx:
        tx.drop_audit(first)
        begin = beginning(tx)
        broken, _, _ = first_break(begin.before, begin.id, tx.audit_rows(limit=1_000))
        assert broken is not None and broken.id == first + 1
    false: tuple[dict[str, str | int], ...] = (
        {"last": first, "hash": bytes(32).hex()},
        {"last": first, "hash": "nonsense"},
        {"last": first, "hash": 7},
        {"last": first},
        {},
    )
    for detail in false:  # and a word that does not fit is none
        with hub.store.write() as tx:
            record(tx, WALL_S, "hub", PRUNED, "", detail)
            begin = beginning(tx)
            broken, _, _ = first_break(begin.before, begin.id, tx.audit_rows(limit=1_000))
            assert broken is not None and broken.id == first + 1


def test_a_broken_chain_stays_as_it_is(hub: Hub) -> None:
    fill(hub.store, [OLD_S] * 50 + [WALL_S] * KEPT_MIN)
    with hub.store.write() as tx:
        rows = tx.audit_rows(limit=1_000)
        tx.drop_audit(rows[-1].id)
        for row in rows[:20] + rows[21:]:  # somebody took one out
            tx.add_audit(row)
    settle(hub.store)
    with hub.store.write() as tx:
        assert tx.audit_rows(limit=1_000) == rows[:20] + rows[21:]
        tx.drop_audit(22)  # and more
    settle(hub.store)
    with hub.store.read() as tx:
        assert tx.audit_rows(limit=1_000) == rows[22:]


def test_the_newest_stay_whatever_their_date(hub: Hub) -> None:
    fill(hub.store, [WALL_S] * (KEPT_MIN + 30))
    settle(hub.store, WALL_S + 10_000 * DAY_S)  # a clock that is years ahead
    begin, rows = proven(hub.store)
    assert (begin.id, len(rows)) == (31, KEPT_MIN + 1)


def test_rows_that_tell_of_it_do_not_take_the_place_of_the_others(hub: Hub) -> None:
    """The log of a hub where nothing happens: all of it is old."""
    fill(hub.store, [OLD_S] * (KEPT_MIN + retention.LEAST))
    for day in range(30):
        settle(hub.store, WALL_S + day * DAY_S)
    verbs = [row.verb for row in proven(hub.store)[1]]
    assert verbs == ["test"] * KEPT_MIN + ["audit.prune"]
    fill(hub.store, [WALL_S] * (retention.LEAST - 1))
    settle(hub.store, WALL_S + 30 * DAY_S)
    verbs = [row.verb for row in proven(hub.store)[1]]
    assert verbs.count("audit.prune") == 2 and len(verbs) == KEPT_MIN + 1


def test_it_begins_a_day_late_and_then_takes_all_that_is_older(hub: Hub) -> None:
    hour_s = 3_600
    fill(hub.store, [WALL_S + number * hour_s for number in range(30)] + [WALL_S + 400 * DAY_S] * KEPT_MIN)
    for hours in range(24):
        settle(hub.store, WALL_S + 400 * DAY_S + hours * hour_s)
        assert proven(hub.store)[0].by is None
    settle(hub.store, WALL_S + 401 * DAY_S + 1)
    assert proven(hub.store)[0].id == 26


def test_more_rows_than_are_kept(hub: Hub) -> None:
    keep(hub.store, days=0, rows=1_000)
    fill(hub.store, [WALL_S] * 1_100)
    settle(hub.store)
    assert proven(hub.store)[0].by is None  # a tenth more is borne
    fill(hub.store, [WALL_S])
    settle(hub.store)
    begin, rows = proven(hub.store)
    assert begin.id == 102 and len(rows) == 1_001


def test_nothing_goes_where_all_is_kept(hub: Hub) -> None:
    keep(hub.store, days=0, rows=0)
    fill(hub.store, [OLD_S] * 1_200)
    assert settle(hub.store) == 1
    assert len(proven(hub.store)[1]) == 1_200


def test_dates_of_a_wrong_clock(hub: Hub) -> None:
    ahead_s, never_set_s = WALL_S + 9_999 * DAY_S, 0
    old = [OLD_S] * 20 + [ahead_s, ahead_s, OLD_S]
    fill(hub.store, [*old, ahead_s, WALL_S, never_set_s, OLD_S, *[WALL_S] * KEPT_MIN])
    settle(hub.store)
    assert proven(hub.store)[0].id == 24  # the row before the young one is of its time, the two behind it are younger


def test_the_first_row_is_of_a_clock_that_was_ahead(hub: Hub) -> None:
    fill(hub.store, [WALL_S + 9_999 * DAY_S, *[OLD_S] * 20, *[WALL_S] * KEPT_MIN])
    settle(hub.store)
    assert proven(hub.store)[0].id == 22


def test_a_batch_that_fails_takes_nothing(hub: Hub) -> None:
    fill(hub.store, [OLD_S] * 50 + [WALL_S] * KEPT_MIN)
    before = proven(hub.store)
    with pytest.raises(ZeroDivisionError), hub.store.write() as tx:
        prune(tx, WALL_S)
        raise ZeroDivisionError
    assert proven(hub.store) == before


@pytest.mark.parametrize("changes", [{"days": 6}, {"days": -1}, {"days": 99_999}, {"rows": 999}, {"rows": -5}])
def test_what_cannot_be_kept(changes: dict[str, int]) -> None:
    with pytest.raises(HubError, match="or 0 for no such bound"):
        Keep(**changes).check()
    assert Keep(0, 0).words() == "everything" and Keep(30, 5_000).words() == "30 days, and at most 5000 rows"


# other processes


def _prune_for_ever(place: Path | str, pipe: int) -> None:
    with closing(open_store(place)) as store:
        while True:
            with store.write() as tx:
                prune(tx, WALL_S)
            os.write(pipe, b".")


def test_kill_9_in_the_middle_leaves_a_chain(place: Path | str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "BATCH", 5)
    monkeypatch.setattr(retention, "LEAST", 5)
    with closing(open_store(place)) as store:
        fill(store, [OLD_S] * 600 + [WALL_S] * KEPT_MIN)
    for _ in range(3):
        reader, writer = os.pipe()
        process = FORK.Process(target=_prune_for_ever, args=(place, writer))
        process.start()
        os.close(writer)
        for _ in range(10):
            os.read(reader, 1)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        process.close()
        os.close(reader)
        with closing(open_store(place)) as store:
            begin, rows = proven(store)
            assert begin.id > 50 and (begin.id - 1) % 5 == 0 and begin.by == rows[-1]


def _prune_all(place: Path | str) -> None:
    with closing(open_store(place)) as store:
        settle(store)


def test_two_hubs_side_by_side_take_each_row_once(place: Path | str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "BATCH", 5)
    monkeypatch.setattr(retention, "LEAST", 5)
    with closing(open_store(place)) as store:
        fill(store, [OLD_S] * 200 + [WALL_S] * KEPT_MIN)
    processes = [FORK.Process(target=_prune_all, args=(place,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
        process.close()
    with closing(open_store(place)) as store:
        begin, rows = proven(store)
    told = [json.loads(row.detail) for row in rows if row.verb == PRUNED]
    assert begin.id == 201 and [(one["first"], one["last"]) for one in told] == [
        (first, first + 4) for first in range(1, 200, 5)
    ]
