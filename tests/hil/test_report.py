"""A report: verdicts, limits, retries, what is kept; and its readers, which are told all sorts of things."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hil import cli, journal, report_file, report_load, report_series, report_upload
from hil.errors import BadReport, GuestStuck, UploadFailed
from hil.programs import Program
from hil.report import Limit, Report, at_least
from tests.hil import report_kit


@pytest.fixture
def report() -> Report:
    return Report("smoke", lambda line: None, rig="bench-1")


def passed(report: Report) -> Report:
    with report.step("boot") as step:
        step["said"] = "pump"
    return report


def test_a_run_without_a_step_has_not_passed(report: Report) -> None:
    assert report.verdict == "failed"
    assert passed(report).verdict == "passed"


def test_a_step_that_fails_is_named_and_goes_on_to_the_caller(report: Report) -> None:
    passed(report)
    with pytest.raises(GuestStuck), report.step("login"):
        raise GuestStuck("pump: no login")
    assert report.verdict == "failed"
    assert (report.steps[1]["error"], report.steps[1]["said"]) == ("guest-stuck", "pump: no login")


@pytest.mark.parametrize(
    ("value", "limit", "ok"),
    [(90, 90, True), (90.1, 90, False), (5, at_least(5), True), (4.9, at_least(5), False), (9, Limit(9), True)],
)
def test_a_limit_that_is_passed_fails_the_suite(report: Report, value: float, limit: Any, ok: bool) -> None:
    passed(report).figure("boot", value, "s", "pump", limit=limit)
    report.figure("free", 1e9, "B")
    assert report.passed is ok
    assert [row["what"] for row in report.beyond] == ([] if ok else ["boot"])
    assert ("BEYOND IT" in report.text()) is not ok


def test_a_boot_that_was_tried_again_is_seen_and_fails_nothing(report: Report) -> None:
    journal.note("pump", "power on", journal.Kind.ON)
    journal.note("pump", "booted again, 1 of 2: it said nothing", journal.Kind.RETRY)
    assert passed(report).verdict == "retried" and "passed with 1 retries" in report.text()
    assert Report("next", lambda line: None).retries == 0, "the next run begins anew"


def test_what_is_written_is_read_again(report: Report, tmp_path: Path) -> None:
    journal.describe("pump", machine="arm64")
    journal.note("pump", "power on", journal.Kind.ON)
    elsewhere = tmp_path / "elsewhere/shot.txt"
    elsewhere.parent.mkdir()
    elsewhere.write_text("seen")
    folder = tmp_path / "out"
    (folder / "pump").mkdir(parents=True)
    (folder / "pump/console.log").write_text(report_kit.console("pump"))
    (folder / "pump.pcap").write_bytes(b"pcap")
    passed(report).figure("boot", 3.0, "s", "pump", limit=9)
    report.sample("memory", 12.5, "MiB", "pump")
    report.keep("screen", elsewhere)
    report.keep("gone", tmp_path / "gone")
    assert report.write(folder) == folder / "report.json"
    told = report_file.read(folder)
    assert told == report_file.read(folder / "report.json")
    assert (told["verdict"], told["rig"], told["id"]) == ("passed", "bench-1", report.id)
    assert {file["name"]: file["path"] for file in told["kept"]} == {
        "screen": "kept/shot.txt",
        "pump.pcap": "pump.pcap",
        "pump/console.log": "pump/console.log",
    }
    assert (folder / "kept/shot.txt").read_text() == "seen"
    [guest] = [guest for guest in told["guests"] if guest["name"] == "pump"]
    assert guest["about"] == {"machine": "arm64"} and guest["transcript"] == "pump/console.log"
    assert [event["kind"] for event in guest["events"]] == ["on"]
    assert [(each["what"], len(each["points"])) for each in told["series"] if each["guest"] == "pump"] == [
        ("memory", 1)
    ]
    assert {path.name for path in folder.iterdir()} >= {"report.json", "report.txt", "junit.xml", "report.html"}


def broken(change: Callable[[dict[str, Any]], None]) -> bytes:
    told = report_kit.told()
    change(told)
    return json.dumps(told).encode()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (None, "No such file"),
        (b"{", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"[]", "of version None"),
        (b'{"version": 1}', "of version 1"),
        (broken(lambda told: told.pop("steps")), "not of the form"),
        (broken(lambda told: told.update(verdict="fine")), "not of the form"),
        (broken(lambda told: told["steps"].append({"name": 3})), "steps are not"),
        (broken(lambda told: told["figures"].append("x")), "figures are not"),
        (broken(lambda told: told["guests"][0]["events"].append(3)), "events are not"),
    ],
)
def test_what_is_no_report_is_named(tmp_path: Path, data: bytes | None, says: str, capsys: Any) -> None:
    if data is not None:
        (tmp_path / "report.json").write_bytes(data)
    with pytest.raises(BadReport, match=says):
        report_file.read(tmp_path)
    assert cli.main(["report", "show", str(tmp_path)]) == 1
    assert "hil: bad-report: " in capsys.readouterr().err


@pytest.mark.parametrize("failed", ["", "truck: no login"])
def test_a_report_is_shown_and_drawn_anew(tmp_path: Path, failed: str, capsys: Any) -> None:
    (tmp_path / "report.json").write_text(json.dumps(report_kit.told(failed=failed)))
    assert cli.main(["report", "show", str(tmp_path)]) == (1 if failed else 0)
    shown = capsys.readouterr().out
    assert "boot and join" in shown and ("guest-stuck: truck: no login" in shown) is bool(failed)
    assert ("≤ 90" in shown) is (not failed)
    for verb, mark in (("html", "<!doctype html>"), ("junit", "<testsuites ")):
        assert cli.main(["report", verb, str(tmp_path)]) == 0
        assert mark in capsys.readouterr().out


def test_points_get_fewer_and_keep_their_ends() -> None:
    series = report_series.Series()
    for number in range(10_000):
        series.add(float(number), number * 2)
    points = series.points()
    assert report_series.POINTS_MAX // 2 <= len(points) < report_series.POINTS_MAX
    assert points[0] == [0.0, 0] and points[-1][0] > 9_900
    assert all(value == 2 * at for at, value in points)


def test_the_load_of_programs_is_sampled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(report_load, "EVERY_S", 0.02)
    found: dict[tuple[str, str], float] = {}
    load = report_load.Load(lambda what, value, unit, guest: found.update({(what, guest): value}))
    program = Program("spinner", ["sh", "-c", "exec sleep 30"], tmp_path / "log")
    load.begin()
    load.begin()
    deadline = time.monotonic() + 20
    while ("memory of its programs", "spinner") not in found and time.monotonic() < deadline:
        time.sleep(0.01)
    load.end()
    assert program in Program.running()
    program.stop()
    assert program not in Program.running()
    assert found["memory of its programs", "spinner"] > 0
    assert ("host processors in use", "") in found


def test_usage_is_counted_by_session() -> None:
    child = subprocess.Popen(["sleep", "30"], start_new_session=True)
    try:
        found = report_load.usages()
        # What a process has just begun to use, the kernel may not have counted yet.
        assert found[os.getsid(0)].rss_mib > found[child.pid].rss_mib >= 0
    finally:
        child.kill()
        child.wait()


# Told to a hub


def test_a_token_comes_of_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "token"
    file.write_text("em_abc_def\n")
    assert report_upload.token_of(file) == "em_abc_def"
    monkeypatch.setenv("EDGEHUB_TOKEN", "em_other")
    assert report_upload.token_of(None) == "em_other"
    monkeypatch.delenv("EDGEHUB_TOKEN")
    with pytest.raises(UploadFailed, match="--token-file FILE"):
        report_upload.token_of(None)
    for text in ("", "secret", "em_a b", "em_" + "a" * 400, "em_ä"):
        file.write_text(text)
        with pytest.raises(UploadFailed) as caught:
            report_upload.token_of(file)
        assert not text or text not in str(caught.value)
    with pytest.raises(UploadFailed, match="No such file"):
        report_upload.token_of(tmp_path / "none")


@pytest.mark.parametrize(
    ("hub", "says"),
    [
        ("hub.example.org", "address of the dashboard"),
        ("ftp://hub.example.org", "address of the dashboard"),
        ("https://", "address of the dashboard"),
        ("https://u:p@hub.example.org", "address of the dashboard"),
        ("https://[::1", "address of the dashboard"),
        ("http://hub.example.org", "over https only"),
        ("http://127.0.0.1:9", "Connection refused"),
    ],
)
def test_a_hub_that_is_none(tmp_path: Path, hub: str, says: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("EDGEHUB_TOKEN", "em_secret_word")
    (tmp_path / "report.json").write_text(json.dumps(report_kit.told()))
    assert cli.main(["report", "upload", str(tmp_path), "--hub", hub]) == 1
    said = capsys.readouterr().err
    assert "upload-failed" in said and says in said and "em_secret" not in said


def test_a_rigs_name_is_looked_at(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "report.json").write_text(json.dumps(report_kit.told()))
    assert cli.main(["report", "upload", str(tmp_path), "--hub", "https://x.test", "--rig", "../x"]) == 1
    assert "as in bench-1" in capsys.readouterr().err


def test_what_is_told_is_bounded() -> None:
    told = report_kit.told(failed="x" * 9_000 + "\x1b[31m")
    told["steps"] *= 90
    told["figures"] = [report_kit.figure("w" * 900, 1.0, "ms", "g", 0.0)] * 900
    run = report_upload.run_of(told)
    assert len(run["steps"]) == report_upload.STEPS_MAX and len(run["figures"]) == report_upload.FIGURES_MAX
    assert max(len(step["said"]) for step in run["steps"]) == report_upload.SAID_MAX
    assert len(run["figures"][0]["what"]) == report_upload.TEXT_MAX and "series" not in run and "kept" not in run
