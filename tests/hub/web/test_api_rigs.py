"""Runs of rigs by API: told once, judged by the hub, of whoever told of the rig first; and pages that cannot run."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

import pytest
from sqlalchemy import update
from starlette.testclient import TestClient

from hil import report_upload
from hub import rigging
from hub.core import rigs as core
from hub.core.roles import PERMISSIONS, Access
from hub.store import hooks, people, rigs
from hub.store.schema import rig
from hub.web.api.rigs import PAGE_POLICY
from tests.hil import report_kit
from tests.hub.web.kit import Site

on_both = pytest.mark.parametrize("database_url", ["sqlite", "postgres"], indirect=True)
RUNS = "/api/v1/rigs/bench-1/runs"


def run_of(number: int = 1, **changes: Any) -> dict[str, Any]:
    return report_upload.run_of(report_kit.told(seed=number, **changes))


@pytest.fixture
def program(site: Site) -> TestClient:
    """May everything."""
    return site.program(site.token("olga", *PERMISSIONS))


def tell(program: TestClient, body: dict[str, Any], path: str = RUNS) -> Any:
    answer = program.post(path, json=body)
    assert answer.status_code in (200, 201), answer.text
    return answer.json()


@on_both
def test_a_run_is_told_once_and_shown(site: Site, program: TestClient) -> None:
    assert tell(program, run_of()) == {"number": 1, "verdict": "passed", "new": True}
    assert tell(program, run_of()) == {"number": 1, "verdict": "passed", "new": False}
    assert tell(program, run_of(2, failed="truck: no login"))["verdict"] == "failed"
    [rig] = program.get("/api/v1/rigs").json()["rigs"]
    assert (rig["name"], rig["user"], rig["runs"], rig["recent"]) == ("bench-1", "olga", 2, ["passed", "failed"])
    assert rig["last"]["failed"] == "boot and join: guest-stuck" and rig["last"]["began"] == 1_795_658_404
    page = program.get(RUNS, params={"limit": 1}).json()
    rest = program.get(RUNS, params={"before": page["next"]}).json()
    assert [run["number"] for run in page["runs"] + rest["runs"]] == [2, 1] and rest["next"] is None
    assert program.get(RUNS, params={"suite": "rollout"}).json()["runs"] == []
    whole = program.get(f"{RUNS}/1").json()
    assert [step["name"] for step in whole["steps"]] == [step[0] for step in report_kit.STEPS]
    assert whole["host"]["name"] == "ci-2" and whole["report"] is False
    assert whole["guests"][2]["events"][-1] == {"at_s": 188.5, "what": "reached again", "kind": "good"}
    assert {row["ok"] for row in whole["figures"]} == {True}
    assert [(row.verb, row.object) for row in site.audit() if row.verb.startswith("rig.")] == [
        ("rig.add", "rig:bench-1"),
        ("rig.run", "rig:bench-1"),
        ("rig.run", "rig:bench-1"),
    ]


JUDGED: list[tuple[dict[str, Any], str, str]] = [
    ({}, "passed", ""),
    ({"retries": 1}, "retried", ""),
    ({"verdict": "retried", "retries": 0}, "retried", ""),
    ({"verdict": "failed"}, "failed", "the suite itself: no step and no limit"),
    ({"steps": [{"name": "boot", "outcome": "failed", "error": "guest-stuck"}]}, "failed", "boot: guest-stuck"),
    ({"figures": [{"what": "rss", "guest": "a", "value": 3, "limit": 2}]}, "failed", "rss a: 3 , limit 2"),
    (
        {"figures": [{"what": "speed", "value": 3, "unit": "x", "limit": 4, "least": True}]},
        "failed",
        "speed: 3 x, limit 4",
    ),
]


def test_the_hub_judges_by_itself(program: TestClient) -> None:
    """Whatever the run says of itself: a verdict that its steps do not bear out would make a night green."""
    for number, (change, verdict, failed) in enumerate(JUDGED, 1):
        tell(program, {**run_of(number), "verdict": "passed", **change})
        run = program.get(f"{RUNS}/{number}").json()["run"]
        assert (run["verdict"], run["failed"]) == (verdict, failed)


REFUSED: list[tuple[dict[str, Any], int]] = [
    ({"steps": []}, 400),
    ({"id": "x"}, 422),
    ({"verdict": "fine"}, 422),
    ({"began": "yesterday"}, 422),
    ({"began": "2026-11-26T02:00:04"}, 422),
    ({"seconds": -1}, 422),
    ({"seconds": 1e300}, 422),
    ({"suite": ""}, 422),
    ({"suite": "s" * 65}, 422),
    ({"steps": [{"name": "x", "outcome": "passed"}] * 201}, 422),
    ({"figures": [{"what": "x", "value": "much"}]}, 422),
    ({"figures": [{"what": "x", "value": 1e16}]}, 422),
    ({"figures": [{"what": "x", "value": 1}] * 501}, 422),
    ({"guests": [{"name": "g"}] * 65}, 422),
    ({"guests": [{"name": "g", "events": [{"at_s": 1, "what": "x", "kind": "boom"}]}]}, 422),
    ({"host": {"name": 3}}, 422),
    ({"steps": [{"name": "x", "outcome": "passed", "said": "x" * 2_000}] * 200}, 400),
]


def test_what_is_no_run_is_refused(site: Site, program: TestClient) -> None:
    for change, status in REFUSED:
        answer = program.post(RUNS, json={**run_of(), **change})
        assert answer.status_code == status, (change, answer.text)
    assert program.get("/api/v1/rigs").json() == {"rigs": []}
    assert site.audit("rig.add") == []


def test_dates_at_the_end_of_the_calendar(program: TestClient) -> None:
    for number, (began, kept) in enumerate(
        (("9999-12-31T23:59:59-14:00", 253_402_300_799), ("0001-01-01T00:00:00+14:00", 0)), 1
    ):
        tell(program, {**run_of(number), "began": began})
        assert program.get(f"{RUNS}/{number}").json()["run"]["began"] == kept


def test_numbers_that_are_none_are_refused(program: TestClient) -> None:
    body = json.dumps(run_of()).replace('"seconds": 212.6', '"seconds": NaN')
    assert "NaN" in body
    assert program.post(RUNS, content=body, headers={"content-type": "application/json"}).status_code == 422


def test_what_is_not_known_here_is_left_out(program: TestClient) -> None:
    tell(program, {**run_of(), "weather": "rain", "steps": [{"name": "x", "outcome": "passed", "mood": "good"}]})
    assert "mood" not in program.get(f"{RUNS}/1").text


def test_a_rigs_name_is_looked_at(program: TestClient) -> None:
    for name in ["Bench", "-a", "a-", "a_b", "ä", "a" * 64, "a%2Fb", "..%2Fx"]:
        assert program.post(f"/api/v1/rigs/{name}/runs", json=run_of()).status_code in (404, 422), name


@on_both
def test_there_are_so_many_rigs_and_so_many_runs(program: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rigging, "RIGS_MAX", 2)
    monkeypatch.setattr(rigging, "RUNS_KEPT", 3)
    monkeypatch.setattr(rigging, "PAGES_KEPT", 2)
    for number in range(1, 6):
        tell(program, run_of(number))
        assert program.put(f"{RUNS}/{number}/report", content=gzip.compress(b"<p>x")).status_code == 204
    assert [run["number"] for run in program.get(RUNS).json()["runs"]] == [5, 4, 3]
    assert program.get(f"{RUNS}/2").status_code == 404
    pages = [program.get(f"{RUNS}/{number}/report").status_code for number in (3, 4, 5)]
    assert pages == [404, 200, 200]
    assert "newest 2 runs" in program.put(f"{RUNS}/3/report", content=gzip.compress(b"x")).json()["detail"]
    tell(program, run_of(), "/api/v1/rigs/bench-2/runs")
    answer = program.post("/api/v1/rigs/bench-3/runs", json=run_of())
    assert answer.status_code == 400 and "there are 2 rigs" in answer.json()["detail"]


@on_both
def test_figures_are_compared_over_runs_of_their_suite(program: TestClient) -> None:
    for number in (1, 2, 3):
        tell(program, run_of(number, memory_mib=20.0 + number))
    tell(program, run_of(4, suite="rollout"))
    found = program.get("/api/v1/rigs/bench-1/figures", params={"suite": "smoke"}).json()["figures"]
    assert len(found) == 11
    [memory] = [each for each in found if (each["what"], each["guest"]) == ("agent, resident memory", "pump")]
    assert [number for number, _ in memory["points"]] == [1, 2, 3] and (memory["limit"], memory["least"]) == (32, False)
    assert found[0]["what"] == "power-on to online, first"


@pytest.mark.parametrize("role", list(Access))
def test_roles(site: Site, program: TestClient, role: Access) -> None:
    """Operators tell of their own rigs, admins of all; everybody looks."""
    site.add_person(role.value, role)
    mine = site.program(site.token(role.value, *(each for each in PERMISSIONS if role in PERMISSIONS[each])))
    tell(program, run_of())
    runs, rules = role in PERMISSIONS["rigs:write"], role in PERMISSIONS["rigs:manage"]
    assert mine.get(f"{RUNS}/1").status_code == mine.get("/api/v1/rigs").status_code == 200
    answer = mine.post("/api/v1/rigs/own/runs", json=run_of())
    assert answer.status_code == (201 if runs else 403)
    answer = mine.post(RUNS, json=run_of(2))
    assert answer.status_code == (201 if rules else 403)
    if runs and not rules:
        assert answer.json()["code"] == "not-yours" and "is of olga" in answer.json()["detail"]
        assert site.audit("refused")[-1].actor.endswith(f"of user:{role.value}")
    page = gzip.compress(b"<p>x")
    assert mine.put(f"{RUNS}/1/report", content=page).status_code == (204 if rules else 403)
    assert mine.delete("/api/v1/rigs/bench-1").status_code == (204 if rules else 403)


def test_a_token_of_ci_may_nothing_else(site: Site, program: TestClient) -> None:
    ci = site.program(site.token("olga", "rigs:write"))
    tell(ci, run_of())
    assert ci.get("/api/v1/rigs").json()["code"] == "scope-missing"
    tell(program, run_of(), "/api/v1/rigs/theirs/runs")
    assert ci.delete("/api/v1/rigs/theirs").status_code == 403


@on_both
def test_a_rig_goes_with_all_that_was_told_of_it(site: Site, program: TestClient) -> None:
    tell(program, run_of())
    assert program.put(f"{RUNS}/1/report", content=gzip.compress(b"<p>x")).status_code == 204
    assert program.delete("/api/v1/rigs/bench-1").status_code == 204
    assert program.delete("/api/v1/rigs/bench-1").status_code == 404
    assert program.get("/api/v1/rigs").json() == {"rigs": []}
    with site.write() as tx:
        assert rigs.page(tx.connection, "bench-1", 1) is None
    assert [row.verb for row in site.audit() if row.verb.startswith("rig.")][-1] == "rig.remove"


def test_what_is_not_there(program: TestClient) -> None:
    for path in (RUNS, f"{RUNS}/1", f"{RUNS}/1/report", "/api/v1/rigs/bench-1/figures?suite=smoke"):
        assert program.get(path).json()["code"] == "no-rig"
    tell(program, run_of())
    assert program.get(f"{RUNS}/2").json()["code"] == "no-run"
    assert program.get(f"{RUNS}/1/report").json()["code"] == "no-report"
    assert program.put(f"{RUNS}/2/report", content=gzip.compress(b"x")).json()["code"] == "no-run"


def test_a_page_is_served_so_that_nothing_of_it_runs(site: Site, program: TestClient) -> None:
    tell(program, run_of())
    html = "<!doctype html><script>alert(1)</script><meta http-equiv=refresh content='0;url=//evil.test'>€".encode()
    assert program.put(f"{RUNS}/1/report", content=gzip.compress(html)).status_code == 204
    for headers in ({"accept-encoding": "gzip"}, {"accept-encoding": "identity"}):
        answer = program.get(f"{RUNS}/1/report", headers=headers)
        assert answer.content == html and answer.headers["content-type"] == "text/html; charset=utf-8"
        policies = answer.headers.get_list("content-security-policy")
        assert policies == [PAGE_POLICY] and "sandbox;" in PAGE_POLICY and "script-src" not in PAGE_POLICY
        assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["x-frame-options"] == "DENY"
    assert program.get(f"{RUNS}/1").json()["report"] is True
    assert "'self'" in program.get("/api/v1/rigs").headers["content-security-policy"], "the others keep theirs"


NO_PAGES: list[tuple[bytes, int, str]] = [
    (b"", 400, "cut off"),
    (b"<html>", 400, "not gzip"),
    (gzip.compress(b"x" * 100)[:-3], 400, "cut off"),
    (gzip.compress(b"x") + b"more", 400, "follows"),
    (gzip.compress(b"x") + gzip.compress(b"y"), 400, "follows"),
    (gzip.compress(b"\xff\xfe"), 400, "not UTF-8"),
    (zlib.compress(b"x"), 400, "not gzip"),
    (gzip.compress(bytes(core.PAGE_UNPACKED_MAX + 1), 1), 400, "when it is unpacked"),
    (bytes(core.PAGE_BYTES_MAX + 1), 413, "At most"),
]


def test_pages_that_are_none(program: TestClient) -> None:
    tell(program, run_of())
    for packed, status, says in NO_PAGES:
        answer = program.put(f"{RUNS}/1/report", content=packed)
        assert answer.status_code == status and says in answer.json()["detail"], answer.text
    endless = program.put(f"{RUNS}/1/report", content=(bytes(1 << 16) for _ in range(40)))
    assert endless.status_code == 413
    assert program.get(f"{RUNS}/1").json()["report"] is False


def test_web_hooks_hear_of_a_failure_and_of_its_end(site: Site, program: TestClient) -> None:
    program.post("/api/v1/webhooks", json={"url": "https://hooks.example/x", "events": ["rig.failed", "rig.mended"]})
    for number, failed in ((1, ""), (2, "truck: no login"), (3, "truck: no login"), (4, ""), (5, "")):
        tell(program, run_of(number, failed=failed))
    tell(program, run_of(6, suite="rollout"))
    with site.write() as tx:
        bodies = [json.loads(each.body) for each in hooks.take_due(tx.connection, 1 << 40, 60, 100)]
    assert [(each["event"], each["run"]) for each in bodies] == [
        ("rig.failed", 2),
        ("rig.failed", 3),
        ("rig.mended", 4),
    ]
    assert bodies[0]["failed"] == "boot and join: guest-stuck" and bodies[0]["suite"] == "smoke"


def test_a_rig_is_a_persons_whatever_their_login(site: Site) -> None:
    """A login may become another's; what a night's verdict is worth does not go with it."""
    site.add_person("ivan", Access.OPERATOR)
    mine = site.program(site.token("ivan", "rigs:write", "rigs:read"))
    tell(mine, run_of())
    with site.write() as tx:
        ivan = people.person_by_login(tx.connection, "ivan")
        assert ivan is not None
        ivan.login = "ivan2"
        people.save_person(tx.connection, ivan)
    site.add_person("ivan", Access.OPERATOR)
    other = site.program(site.token("ivan", "rigs:write"))
    assert tell(mine, run_of(2))["number"] == 2
    answer = other.post(RUNS, json=run_of(3))
    assert answer.status_code == 403 and "is of ivan2" in answer.json()["detail"]
    assert mine.get("/api/v1/rigs").json()["rigs"][0]["user"] == "ivan2"
    with site.write() as tx:
        tx.connection.execute(update(rig).values(person=""))
    answer = mine.post(RUNS, json=run_of(3))
    assert answer.status_code == 403 and "is of nobody: only admins" in answer.json()["detail"]
