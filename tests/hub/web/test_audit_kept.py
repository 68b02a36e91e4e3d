"""How long the audit log is kept, from the command line and in the dashboard; exports that join the living chain."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hub import cli
from hub.core.audit import record
from hub.core.retention import DAY_S, KEPT_MIN, prune
from tests.hub.web.kit import Browser, Site

NOW_S = 1_800_000_000


class Desk:
    """Commands of one hub, and what they say."""

    def __init__(self, site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.site, self._monkeypatch, self._capsys = site, monkeypatch, capsys

    def __call__(self, *arguments: str, code: int = 0, lines: int | None = 1) -> str:
        """`lines`: how many it says when it fails; None: any number."""
        self._monkeypatch.setattr(sys, "argv", ["edgehub", "--state-dir", str(self.site.state.directory), *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = self._capsys.readouterr()
        assert (ended.value.code or 0) == code, err
        assert "Traceback" not in err and (code == 0 or lines in (None, err.count("\n")))
        return out + err

    def fill(self, count: int, age_days: int) -> None:
        with self.site.write() as tx:
            for number in range(count):
                record(
                    tx,
                    NOW_S - age_days * DAY_S,
                    "cli:root",
                    "test",
                    f"thing:{number}",
                    {"ü": "\U0001f511", "n": number},
                )

    def prune(self) -> None:
        with self.site.write() as tx:
            while prune(tx, NOW_S):
                pass

    def export(self, file: Path, after: int = 0) -> Path:
        file.write_text(self("audit", "export", "--after", str(after)))
        return file


@pytest.fixture
def desk(site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Desk:
    """The first row is of making the hub, and its date that of today."""
    desk = Desk(site, monkeypatch, capsys)
    with site.write() as tx:
        tx.drop_audit(1)
    desk.fill(30, 500)
    desk.fill(KEPT_MIN, 0)
    return desk


def test_how_long_is_said_and_shown(desk: Desk) -> None:
    assert "400 days" in desk("audit", "keep")
    assert "kept: 30 days, and at most 5000 rows" in desk("audit", "keep", "--days", "30", "--rows", "5000")
    assert "kept: at most" not in desk("audit", "keep", "--rows", "0")
    shown = desk("audit", "keep")
    assert "30 days" in shown and "5000" not in shown and "132 rows" in shown
    rows = [json.loads(row.detail) for row in desk.site.audit("audit.keep")]
    assert rows == [{"days": 30, "rows": 5000}, {"days": 30, "rows": 0}]
    assert "kept: everything" in desk("audit", "keep", "--days", "0")
    assert "7 to 36500 expected" in desk("audit", "keep", "--days", "3", code=1)
    assert "--rows 10" in desk("audit", "keep", "--rows", "10", code=1)
    assert len(desk.site.audit("audit.keep")) == 3


def test_what_is_left_is_proven_and_said_to_be_the_rest(desk: Desk, owner: Browser) -> None:
    whole = desk.site.audit()
    desk.prune()
    said = desk("audit", "verify")
    assert f"rows 31 to {len(desk.site.audit()) + 30} (those before were pruned" in said and "unbroken" in said
    assert "rows 31 to" in desk("audit", "keep")
    page = owner.client.get("/audit").text
    assert "from row 31 on: those before were pruned" in page and "Kept: 400 days" in page
    chain = owner.client.get("/audit/chain").text
    assert f"{len(desk.site.audit())} rows from row 31 on fit" in chain and "that is all of them" in chain
    with desk.site.write() as tx:
        tx.drop_audit(31)
    assert "broken at row 32:" in desk("audit", "verify", code=1)
    assert "breaks at row 32:" in owner.client.get("/audit/chain").text
    assert whole[30].id == 31


def test_an_export_from_before_joins_what_is_left(desk: Desk, tmp_path: Path) -> None:
    file = desk.export(tmp_path / "audit.jsonl")
    said = desk("audit", "verify", "--export", str(file))
    assert "130 rows, unbroken" in said and "the export has rows 1 to 130 of the same chain" in said
    desk.prune()
    assert "the export has rows 1 to 130" in desk("audit", "verify", "--export", str(file))
    with file.open("a") as more:
        more.write(desk("audit", "export", "--after", "130"))
    assert "the export has rows 1 to 131" in desk("audit", "verify", "--export", str(file))


def test_exports_that_do_not_reach_or_begin_later(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = desk.export(tmp_path / "audit.jsonl").read_text().splitlines(keepends=True)
    desk.prune()

    def verify(part: list[str], code: int = 0) -> str:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("".join(part).encode())))
        return desk("audit", "verify", "--export", "-", code=code)

    assert "rows 1 to 30" in verify(lines[:30])
    assert "rows 12 to 40" in verify(lines[11:40])
    assert "rows 31 to 31" in verify(lines[30:31])
    assert "rows 90 to 130" in verify(lines[89:])
    assert "rows 30 to 30 are neither in the export nor" in verify(lines[:29], code=1)
    assert "broken at row 12" in verify(lines[:10] + lines[11:], code=1)
    assert "broken at row 20" in verify([*lines[:20], lines[19]], code=1)
    assert "there is no row in it" in verify([], code=1)


@pytest.mark.parametrize(
    ("number", "change", "said"),
    [
        (5, lambda row: row.update(actor="cli:nobody"), "broken at row 5"),
        (5, lambda row: row.update(time=1), "broken at row 5"),
        (5, lambda row: row["detail"].update(n=7), "broken at row 5"),
        (60, lambda row: row["detail"].update(n=7), "broken at row 60"),
        (5, lambda row: row.update(hash="00" * 32), "broken at row 5"),
        (5, lambda row: row.update(id="5"), "line 5: no row"),
        (5, lambda row: row.update(hash="xyz"), "line 5: no row"),
        (1, lambda row: row.update(id=0), "line 1: no row"),
        (5, lambda row: row.pop("verb"), "line 5: no row"),
        (5, lambda row: row.update(detail="x" * 70_000), "line 5: no row"),
    ],
)
def test_an_export_that_was_changed(
    desk: Desk, tmp_path: Path, number: int, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    rows = [json.loads(line) for line in desk.export(tmp_path / "audit.jsonl").read_text().splitlines()]
    desk.prune()
    change(rows[number - 1])
    file = tmp_path / "changed.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert said in desk("audit", "verify", "--export", str(file), code=1)


def make_anew(desk: Desk, changed: int) -> None:
    """All rows again, one of them by another actor, in a chain that fits."""
    with desk.site.write() as tx:
        rows = tx.audit_rows(limit=1_000)
        tx.drop_audit(rows[-1].id)
        for row in rows:
            by = "cli:nobody" if row.id == changed else row.actor
            record(tx, row.wall_s, by, row.verb, row.object, json.loads(row.detail))


def test_a_chain_that_was_made_anew(desk: Desk, tmp_path: Path) -> None:
    """By whoever can write the database: the export from before tells."""
    file = desk.export(tmp_path / "audit.jsonl")
    make_anew(desk, 40)
    assert "unbroken" in desk("audit", "verify")
    assert "row 40 of the export is another there" in desk("audit", "verify", "--export", str(file), code=1)
    desk.prune()
    early = tmp_path / "early.jsonl"
    early.write_text("".join(file.read_text().splitlines(keepends=True)[:39]))
    assert "rows 1 to 39" in desk("audit", "verify", "--export", str(early))


def test_a_pruned_part_that_was_made_anew(desk: Desk, tmp_path: Path) -> None:
    file = desk.export(tmp_path / "audit.jsonl")
    make_anew(desk, 4)
    desk.prune()
    early = tmp_path / "early.jsonl"
    early.write_text("".join(file.read_text().splitlines(keepends=True)[:30]))
    assert "row 30 of the export is not the one" in desk("audit", "verify", "--export", str(early), code=1)


def test_a_database_that_ends_before_the_export(desk: Desk, tmp_path: Path) -> None:
    file = desk.export(tmp_path / "audit.jsonl")
    with desk.site.write() as tx:
        rows = tx.audit_rows(limit=1_000)
        tx.drop_audit(rows[-1].id)
        for row in rows[:-1]:
            tx.add_audit(row)
    assert "unbroken" in desk("audit", "verify")
    said = desk("audit", "verify", "--export", str(file), code=1)
    assert "row 130 of the export is not in the database" in said


def test_files_that_are_not_there(desk: Desk, tmp_path: Path) -> None:
    assert "cannot be read (No such file" in desk("audit", "verify", "--export", str(tmp_path / "none"), code=1)
    assert "cannot be read (Is a directory" in desk("audit", "verify", "--export", str(tmp_path), code=1)
