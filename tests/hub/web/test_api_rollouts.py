"""Rollouts by API: made by operators, let begin by admins, audited, told to web hooks, refused with a reason."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from hub.core.roles import PERMISSIONS, Access
from hub.store import hooks
from tests.hub.dash.rollouts import publish
from tests.hub.kit import WALL_S
from tests.hub.web.kit import Site

BODY = {"version": "0.3.0", "groups": "1,100%"}


@pytest.fixture
def program(site: Site) -> TestClient:
    """May everything."""
    return site.program(site.token("olga", *PERMISSIONS))


@pytest.fixture
def fleet(site: Site) -> list[str]:
    publish(site.state, WALL_S)
    return [site.add_device(number, name=f"cam-{number}", version="0.1.0").id for number in (1, 2, 3)]


def verbs(site: Site) -> list[tuple[str, str]]:
    return [(entry.verb, entry.object) for entry in site.audit() if entry.verb.startswith("rollout.")]


def test_a_rollout_from_its_making_to_its_end(site: Site, program: TestClient, fleet: list[str]) -> None:
    offered = program.get("/api/v1/updates").json()
    assert [each["version"] for each in offered["versions"]][:2] == ["0.3.0", "0.3.0"] and len(offered["roles"]) == 4
    made = program.post("/api/v1/rollouts", json={**BODY, "selector": "name:cam-1,cam-2", "draft": True})
    assert made.status_code == 201, made.text
    made = made.json()
    assert (made["state"], made["devices"], made["can"]) == ("draft", 2, ["submit", "abort"])
    path = f"/api/v1/rollouts/{made['id']}"
    assert program.post(f"{path}/submit").json()["state"] == "awaiting-approval"
    assert program.post(f"{path}/approve").json()["state"] == "running"
    assert program.post(f"{path}/pause", json={"why": "the press is here"}).json()["why"] == "the press is here"
    assert program.post(f"{path}/resume").json()["state"] == "running"
    page = program.get(f"{path}/devices", params={"limit": 1}).json()
    rest = program.get(f"{path}/devices", params={"after": page["next"]}).json()
    assert {each["device"] for each in page["devices"] + rest["devices"]} == set(fleet[:2]) and rest["next"] is None
    assert program.get(f"{path}/devices", params={"state": "failed"}).json()["devices"] == []
    ended = program.post(f"{path}/abort").json()
    assert ended["state"] == "aborted" and ended["can"] == []
    assert [each["id"] for each in program.get("/api/v1/rollouts").json()["rollouts"]] == [made["id"]]
    assert program.get(path).json()["plan"]["max_failed_percent"] == 10
    said = ["create", "submit", "approve", "pause", "resume", "abort"]
    assert sorted(verbs(site)) == sorted((f"rollout.{verb}", f"rollout:{made['id']}") for verb in said)


def test_settings_are_rolled_out_the_same_way(program: TestClient, fleet: list[str]) -> None:
    made = program.post("/api/v1/rollouts", json={"settings": {"log-level": "debug"}, "confirm": 90}).json()
    assert (made["kind"], made["devices"], made["settings"]) == ("settings", 3, {"log-level": "debug"})
    assert made["plan"]["confirm"] == 90


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "version: give a version or settings"),
        ({**BODY, "settings": {"log-level": "debug"}}, "one of the two"),
        ({"version": "9.9"}, "version 9.9: it is not published. Published are 0.3.0"),
        ({**BODY, "selector": "name:nobody"}, "no device fits"),
        ({**BODY, "selector": "colour:red"}, "colour: is no field"),
        ({**BODY, "groups": "50%"}, "the last one 100%"),
        ({**BODY, "windows": "noon"}, "windows: 'noon' cannot be read"),
        ({**BODY, "windows": "01:00-02:00", "time_zone": "Mars"}, "time zone 'Mars'"),
        ({**BODY, "tries": 99}, "tries: 99; between 1 and 10 expected"),
        ({**BODY, "soak": -1}, "soak: -1 s"),
        ({"settings": {"state-dir": "/"}}, "setting state-dir: the hub may change"),
    ],
)
def test_what_makes_no_sense_is_refused_with_a_reason(
    program: TestClient, fleet: list[str], body: dict[str, Any], said: str
) -> None:
    answer = program.post("/api/v1/rollouts", json=body)
    assert answer.status_code == 400 and said in answer.json()["detail"]
    assert program.get("/api/v1/rollouts").json() == {"rollouts": []}


def test_what_is_not_there_is_404_and_what_cannot_be_done_now_says_what_can(
    program: TestClient, fleet: list[str]
) -> None:
    for way in ("", "/devices"):
        assert program.get(f"/api/v1/rollouts/7{way}").status_code == 404
    assert program.post("/api/v1/rollouts/7/approve").status_code == 404
    made = program.post("/api/v1/rollouts", json=BODY).json()
    answer = program.post(f"/api/v1/rollouts/{made['id']}/resume")
    assert answer.status_code == 400 and "What can be done: approve, pause, abort" in answer.json()["detail"]
    assert program.get(f"/api/v1/rollouts/{made['id']}/devices", params={"state": "happy"}).status_code == 422


@pytest.mark.parametrize("role", list(Access))
def test_operators_make_and_admins_approve(site: Site, program: TestClient, fleet: list[str], role: Access) -> None:
    number = program.post("/api/v1/rollouts", json=BODY).json()["id"]
    site.add_person(role.value, role)
    mine = site.program(site.token(role.value, *(each for each in PERMISSIONS if role in PERMISSIONS[each])))
    assert mine.get(f"/api/v1/rollouts/{number}").status_code == 200
    runs, rules = role in PERMISSIONS["rollouts:write"], role in PERMISSIONS["rollouts:approve"]
    assert mine.post("/api/v1/rollouts", json=BODY).status_code == (201 if runs else 403)
    assert mine.post(f"/api/v1/rollouts/{number}/approve").status_code == (200 if rules else 403)
    if not rules:
        program.post(f"/api/v1/rollouts/{number}/approve")
    assert mine.post(f"/api/v1/rollouts/{number}/pause").status_code == (200 if runs else 403)


def test_web_hooks_hear_that_one_waits_runs_and_pauses(site: Site, program: TestClient, fleet: list[str]) -> None:
    program.post(
        "/api/v1/webhooks", json={"url": "https://hooks.example/x", "events": ["rollout.waiting", "rollout.paused"]}
    )
    number = program.post("/api/v1/rollouts", json=BODY).json()["id"]
    program.post(f"/api/v1/rollouts/{number}/approve")
    program.post(f"/api/v1/rollouts/{number}/pause", json={"why": "enough"})
    with site.write() as tx:
        # The process that delivers may have begun with the first, which then is due later than the second.
        due = sorted(hooks.take_due(tx.connection, 1 << 40, 60, 10), key=lambda row: row.id)
        bodies = [json.loads(row.body) for row in due]
    assert [(each["event"], each["rollout"], each["what"]) for each in bodies] == [
        ("rollout.waiting", number, "0.3.0"),
        ("rollout.paused", number, "0.3.0"),
    ]
