"""Breaks of the audit log as commands and the dashboard tell of them; exports that have them, or what was before."""

from __future__ import annotations

import io
import json
import logging
import socket
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from hub import serve
from hub.auditfile import read_lines, write_line
from hub.core import retention
from hub.core.audit import Entry
from hub.core.chain import ACCEPTED, Accepts, Break, beginning
from hub.core.model import HubError
from hub.core.retention import KEPT_MIN
from hub.core.roles import Access
from hub.database import open_database
from hub.serve import REMIND_S, Server
from tests.hub.test_audit_accept import after, altered, tamper, without
from tests.hub.web.kit import Browser
from tests.hub.web.test_audit_kept import NOW_S, Desk, desk

__all__ = ["desk"]  # a fixture: rows 1 to 30 are old, those to 130 are not


CLOCK = SimpleNamespace(time=lambda: float(NOW_S), monotonic=time.monotonic, strftime=time.strftime, gmtime=time.gmtime)


@pytest.fixture
def spoil(desk: Desk) -> Callable[..., None]:
    def change(*changes: Callable[[list[Entry]], object]) -> None:
        with closing(open_database(desk.site.state)) as store:
            for each in changes:
                tamper(store, each)  # type: ignore[arg-type]

    return change


def test_a_break_is_accepted_and_then_said(desk: Desk, spoil: Callable[..., None]) -> None:
    whole = desk.site.audit()
    spoil(altered(7, actor="cli:nobody"), without(40, 41))
    said = desk("audit", "verify", code=1)
    assert "broken at row 7: it, or what stood before it, was changed" in said and "`edgehub audit accept 7`" in said
    assert "it is not broken at row 42, but at row 7" in desk("audit", "accept", "42", "--why", "x", code=1)
    assert "1 to 256 expected" in desk("audit", "accept", "7", "--why", " ", code=1)
    assert "1 to 256 expected" in desk("audit", "accept", "7", "--why", "x" * 257, code=1)
    assert not desk.site.audit(ACCEPTED)
    said = desk("audit", "accept", "7", "--why", "a slip of mine")
    assert "It is 2025-09-02, cli:nobody, test, thing:6, n=6 ü=" in said and "row 7: accepted, by row 131" in said
    assert "row 7: accepted by cli:" in (again := desk("audit", "accept", "7", "--why", "x", code=1))
    assert ": a slip of mine" in again
    said = desk("audit", "verify", code=1, lines=2)
    assert "row 7: accepted by" in said and "broken at row 42: rows 40 to 41 before it are not there" in said
    assert "rows 40 to 41" in desk("audit", "accept", "42", "--why", "\x1b[2Jlost with a disk", "--yes")
    said = desk("audit", "verify")
    assert said.index("row 7: accepted by") < said.index("row 42: accepted by")
    assert "\x1b" not in said and "[2Jlost with a disk" in said
    assert "130 rows, unbroken but for 2 accepted; the last hash is " in said
    assert "or anywhere else" in desk("audit", "accept", "50", "--why", "x", code=1)
    assert [row.id for row in desk.site.audit(ACCEPTED)] == [131, 132]
    spoil(lambda rows: [*rows[:6], whole[6], *rows[7:]])  # row 7 as it was
    said = desk("audit", "verify")
    assert "row 131 accepts a break at row 7 that is not there" in said and "but for 1 accepted" in said
    spoil(altered(7, actor="cli:third"))
    assert "broken at row 7" in desk("audit", "verify", code=1, lines=1)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("answer", "options", "code"), [("n\n", [], 1), ("y\n", [], 0), ("", ["--yes"], 0)])
def test_it_asks_on_a_terminal(
    desk: Desk,
    spoil: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    answer: str,
    options: list[str],
    code: int,
) -> None:
    spoil(without(40))
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    said = desk("audit", "accept", "41", "--why", "x", *options, code=code, lines=None)
    assert ("Accept the break at row 41?" in said) == bool(answer)
    assert len(desk.site.audit(ACCEPTED)) == (code == 0)


def test_rows_that_accept_what_was_pruned_are_said(desk: Desk, spoil: Callable[..., None]) -> None:
    spoil(without(1, 2))
    assert "rows 1 to 2 before it are not there" in desk("audit", "accept", "3", "--why", "known")
    desk.prune()
    said = desk("audit", "verify")
    assert "row 3: accepted by" in said and ": known (pruned since)" in said
    assert "rows 31 to 132 (those before were pruned" in said and "unbroken; the last hash" in said


def test_a_date_that_is_none(desk: Desk, spoil: Callable[..., None]) -> None:
    spoil(altered(40, wall_s=1 << 62, detail="no JSON"))
    assert f"It is {1 << 62}, cli:root, test, thing:9, detail=no JSON" in desk("audit", "accept", "40", "--why", "x")
    assert "unbroken but for 1" in desk("audit", "verify")


def test_who_keeps_the_log_is_told_that_nothing_is_pruned(
    desk: Desk, spoil: Callable[..., None], owner: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("hub.web.views.system", "hub.web.views.overview", "hub.cli_audit"):
        monkeypatch.setattr(f"{module}.time", CLOCK)
    assert "pruning" not in desk("audit", "keep") and "Nothing is pruned" not in owner.client.get("/audit").text
    assert "is not pruned any more" not in owner.client.get("/").text
    spoil(without(7))
    before = len(desk.site.audit())
    desk.prune()
    assert len(desk.site.audit()) == before
    assert "pruning  held up: the chain is broken at row 8: row 7 before it is not there" in desk("audit", "keep")
    page = owner.client.get("/audit").text
    assert "Nothing is pruned any more" in page and "<code>edgehub audit accept 8</code>" in page
    assert "The audit log breaks at row 8, and is not pruned any more" in owner.client.get("/").text
    desk.site.add_person("vera", Access.VIEWER)
    viewer = desk.site.browser()
    viewer.sign_in("vera")
    assert "The audit log breaks" not in viewer.client.get("/").text
    desk("audit", "accept", "8", "--why", "known")
    for path in ("/audit", "/"):
        assert "any more" not in owner.client.get(path).text
    assert "pruning" not in desk("audit", "keep")
    desk.prune()
    assert "rows 31 to" in desk("audit", "verify")


def test_the_dashboard_says_what_was_accepted(desk: Desk, spoil: Callable[..., None], owner: Browser) -> None:
    spoil(altered(7, detail="no JSON"), without(40, 41))
    chain = owner.client.get("/audit/chain").text
    assert "The chain breaks at row 7: it, or what stood before it, was changed" in chain
    assert "Rows before it fit. " in chain and "edgehub audit accept 7" in chain
    desk("audit", "accept", "7", "--why", "a <b>slip</b>")
    chain = owner.client.get("/audit/chain").text
    assert "Rows before it fit, but for what was accepted." in chain and "The chain breaks at row 42: rows 40" in chain
    assert "Row 7: it, or what stood before it, was changed or taken out. Accepted by cli:" in chain
    assert "a &lt;b&gt;slip&lt;/b&gt;" in chain
    desk("audit", "accept", "42", "--why", "known")
    chain = owner.client.get("/audit/chain").text
    assert "fit but for 2 accepted breaks, that is all of them" in chain
    for path in ("/audit?verb=test&before=9", "/api/v1/audit?verb=test&before=9"):
        assert "no JSON" in owner.client.get(path).text
    assert "detail=no JSON" in desk("audit", "list", "--limit", "1000")


def test_a_gap_ends_no_look_at_the_chain(
    desk: Desk, spoil: Callable[..., None], owner: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hub.web.views.system.CHAIN_STEP", 10)
    spoil(lambda rows: [*rows, after(rows[-1], 1_000_000)])
    desk.fill(30, 0)
    desk("audit", "accept", "1000000", "--why", "known")
    assert "fit but for 1 accepted break, that is all of them" in owner.client.get("/audit/chain").text


def test_the_running_hub_says_once_a_day_that_nothing_is_pruned(
    desk: Desk, spoil: Callable[..., None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(serve, "time", CLOCK)
    spoil(without(7))

    def told() -> int:
        return caplog.text.count("the audit log is not pruned any more, and grows: it is broken at row 8: row 7 before")

    ours, theirs = socket.socketpair()
    with ours, theirs, closing(open_database(desk.site.state)) as store, caplog.at_level(logging.WARNING):
        server = Server(desk.site.state, store, ours)
        for now, count in ((100.0, 1), (200.0, 1), (99.0 + REMIND_S, 1), (101.0 + REMIND_S, 2)):
            server._tick(now)
            assert told() == count
        desk("audit", "accept", "8", "--why", "known")
        server._tick(102.0 + 2 * REMIND_S)
        assert told() == 2
        server.detach()


# exports


def verify(desk: Desk, lines: list[str], monkeypatch: pytest.MonkeyPatch, code: int = 0) -> str:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("".join(lines).encode())))
    return desk("audit", "verify", "--export", "-", code=code, lines=None)


def export(desk: Desk, after_: int = 0) -> list[str]:
    return [line + "\n" for line in desk("audit", "export", "--after", str(after_)).split("\n")[:-1]]


@pytest.mark.parametrize("pruned", [False, True])
def test_an_export_from_before_the_break_has_what_was_there(
    desk: Desk, spoil: Callable[..., None], monkeypatch: pytest.MonkeyPatch, pruned: bool
) -> None:
    early = export(desk)
    spoil(altered(7, actor="cli:nobody"), altered(12, hash=bytes(32)), without(1, 2), without(20, 21))
    for number in (3, 7, 12, 13, 22):
        desk("audit", "accept", str(number), "--why", "known")
    if pruned:
        desk.prune()
    said = verify(desk, early, monkeypatch)
    assert "the export has rows 1 to 130 of the same chain" in said
    for number in (3, 7, 12, 22):
        assert (f"row {number}: the export has what was there before the break" in said) is not pruned
    assert "row 13: the export has" not in said
    assert "the export has rows 1 to 13" in verify(desk, early + export(desk, 130), monkeypatch)
    if not pruned:  # nothing behind them proves those
        assert "row 21 of the export is not in the database, where" in verify(desk, early[:21], monkeypatch, 1)
        assert "row 7 of the export is not in the database, where" in verify(desk, early[:7], monkeypatch, 1)
        assert "row 2 of the export is not in the database, where" in verify(desk, early[:2], monkeypatch, 1)
        assert "rows 1 to 22" in verify(desk, early[:22], monkeypatch)
        assert "rows 20 to 22" in verify(desk, early[19:22], monkeypatch)


@pytest.mark.parametrize("number", [1, 2, 7, 12, 20, 21])
def test_an_export_has_nothing_else_in_the_place_of_a_break(
    desk: Desk, spoil: Callable[..., None], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    early = export(desk)
    spoil(altered(7, actor="cli:nobody"), altered(12, hash=bytes(32)), without(1, 2), without(20, 21))
    for each in (3, 7, 12, 13, 22):
        desk("audit", "accept", str(each), "--why", "known")
    row = json.loads(early[number - 1])
    row["actor"] = "cli:third"
    early[number - 1] = json.dumps(row) + "\n"
    assert f"export: broken at row {number}:" in verify(desk, early, monkeypatch, 1)
    rows = desk.site.audit()  # and with a hash that fits what stands before it
    before = bytes.fromhex(json.loads(early[number - 2])["hash"]) if number > 1 else bytes(32)
    text = json.dumps(row["detail"], ensure_ascii=False, sort_keys=True)
    made = Entry(number, row["time"], row["actor"], row["verb"], row["object"], text, b"")
    early[number - 1] = json.dumps({**row, "hash": made.digest(before).hex()}) + "\n"
    assert f"export: broken at row {number + 1}:" in verify(desk, early, monkeypatch, 1)
    assert rows == desk.site.audit()


def test_another_row_before_an_accepted_break_is_still_another(
    desk: Desk, spoil: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands before a break was not accepted: an export is all that tells of it."""
    early = export(desk)
    spoil(lambda rows: [*rows[:39], after(rows[38], 40, actor="cli:nobody"), *rows[40:]])
    desk("audit", "accept", "41", "--why", "known")
    assert "row 40 of the export is another there" in verify(desk, early, monkeypatch, 1)


BREAKS = [
    pytest.param([altered(7, actor="cli:nobody")], [7], id="changed"),
    pytest.param([altered(7, detail='{"b": 1,  "a": null}')], [7], id="in other words"),
    pytest.param([altered(7, detail="\u2028 no JSON")], [7], id="no JSON"),
    pytest.param([altered(7, detail='{"half": "\\ud800"}')], [7], id="half a character"),
    pytest.param([altered(7, hash=b"")], [7, 8], id="hash"),
    pytest.param([without(5, 6), altered(9, wall_s=3)], [7, 9], id="missing"),
    pytest.param([without(1, 2, 3)], [4], id="beginning"),
]


@pytest.mark.parametrize(("changes", "numbers"), BREAKS)
def test_an_export_with_breaks_joins_before_and_after_pruning(
    desk: Desk,
    spoil: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    changes: list[Callable[[list[Entry]], object]],
    numbers: list[int],
) -> None:
    spoil(*changes)
    early = export(desk)  # before anybody accepted anything
    for number in numbers:
        desk("audit", "accept", str(number), "--why", "known")
    whole = export(desk)
    last = 130 + len(numbers)
    assert f"rows {json.loads(whole[0])['id']} to {last} of the same" in verify(desk, whole, monkeypatch)
    assert "to 130 of the same" in verify(desk, early, monkeypatch)
    desk.prune()  # the rows, and then those that accept them
    assert "to 130 of the same" in verify(desk, early, monkeypatch)
    assert f"to {last} of the same" in verify(desk, whole, monkeypatch)
    desk.fill(2 * KEPT_MIN, 0)
    desk("audit", "keep", "--days", "0")
    monkeypatch.setattr("hub.core.retention.ROWS_MIN", 10)
    desk("audit", "keep", "--rows", "100")
    whole += export(desk, last)
    desk.prune()
    assert not desk.site.audit(ACCEPTED)
    assert f"rows {json.loads(whole[0])['id']} to" in verify(desk, whole, monkeypatch)
    # without the row that accepts the first, and with another break than the one that was accepted
    assert "broken at row" in verify(
        desk, [line for line in whole if '"verb": "audit.accept"' not in line], monkeypatch, 1
    )
    at = next(index for index, line in enumerate(whole) if json.loads(line)["id"] == numbers[-1])
    if at:
        row = json.loads(whole[at])
        whole[at] = json.dumps({**row, "object": "thing:other"}) + "\n"
        assert f"broken at row {numbers[-1]}:" in verify(desk, whole, monkeypatch, 1)


def test_a_forged_row_that_accepts_must_fit_the_database(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Who has the export alone changes row 7, and puts in the place of row 20 one that accepts that."""
    lines = export(desk)
    desk.prune()
    rows = [replace(row) for row in _read(lines)]
    rows[6] = replace(rows[6], actor="cli:nobody")
    forged = Forge(rows)
    forged.accept(7, at=20)
    assert "broken at row 21:" in verify(desk, forged.lines(), monkeypatch, 1)
    forged.accept(21, at=25)
    assert "broken at row 26:" in verify(desk, forged.lines(), monkeypatch, 1)
    forged.accept(26, at=30)
    assert "row 30 of the export is not the one" in verify(desk, forged.lines(), monkeypatch, 1)


class Forge:
    """An export whose rows are changed, with rows that accept it."""

    def __init__(self, rows: list[Entry]) -> None:
        self.rows = rows

    def accept(self, number: int, at: int) -> None:
        """In the place of row `at`, fitting the row before that."""
        broken = Break(self.rows[number - 1], self.rows[number - 2].hash, number)
        detail = json.dumps({**broken.detail(), "why": "forged"}, sort_keys=True)
        self.rows[at - 1] = after(self.rows[at - 2], at, verb=ACCEPTED, detail=detail)

    def lines(self) -> list[str]:
        return [write_line(row) for row in self.rows]


def _read(lines: list[str]) -> list[Entry]:
    return list(read_lines(io.BytesIO("".join(lines).encode())))


def test_more_breaks_than_are_followed_at_once(desk: Desk) -> None:
    lines = export(desk)
    desk.prune()
    rows = iter([replace(row, hash=bytes([row.id])) for row in _read(lines)])
    with closing(open_database(desk.site.state)) as store, store.read() as tx, pytest.MonkeyPatch.context() as patch:
        patch.setattr(retention, "ACCEPTS_MAX", 5)
        with pytest.raises(HubError, match="broken at row 1:"):
            retention.join(rows, beginning(tx), iter(tx.audit_rows()), Accepts(tx), ())
    assert next(rows).id == 7
