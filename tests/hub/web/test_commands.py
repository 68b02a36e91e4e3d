"""Commands by the API: given, seen, watched, and refused; each with its audit row."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from edgeagent.proto.commands import VERBS
from edgeagent.proto.identity import Identity
from edgeagent.proto.telemetry import write
from hub import commanding
from hub.core.model import CommandState, Device, DeviceState
from hub.core.roles import Access
from tests.hub.kit import load_crypto, seeded
from tests.hub.test_commands import SAMPLE
from tests.hub.web.kit import Browser, Site


def add_device(site: Site) -> Device:
    """One with keys that something can be sealed for."""
    identity = Identity.create(load_crypto(), seeded(1))
    device = Device(
        id=identity.device_id,
        state=DeviceState.ACTIVE,
        claim="c-aaaaaaaaaaaaaaaa",
        device_key=identity.device_key,
        box_key=identity.box_key,
        node_key=identity.node_key,
        created_s=1,
        name="box-1",
        v4=0x64400001,
    )
    with site.write() as tx:
        tx.add_device(device)
    return device


def test_every_verb_has_words_for_all_that_it_takes() -> None:
    assert set(commanding.ARGUMENTS) == set(VERBS)
    for verb, words in commanding.ARGUMENTS.items():
        schema: Any = VERBS[verb]
        assert {name for name, _ in words.values()} == {*schema.required, *schema.optional}


def test_a_command_is_given_seen_and_audited(site: Site, owner: Browser) -> None:
    device = add_device(site)
    args = {"script": "clean", "arguments": ["--all"]}
    answer = owner.send("POST", "/api/v1/devices/box-1/commands", verb="run", args=args, expires_in=60)
    assert answer.status_code == 201
    made = answer.json()
    assert (made["state"], made["actor"], made["args"]) == ("queued", "user:olga", {**args, "seconds": 60})
    assert made["expires"] - made["created"] == 60
    [row] = site.audit("command.run")
    detail = json.loads(row.detail)
    assert (row.actor, row.object) == ("user:olga", f"device:{device.id}")
    assert detail == {"command": made["id"], "name": "box-1", "script": "clean"}
    with site.write() as tx:
        found = tx.command(made["id"])
        assert found is not None and [out.key for out in tx.outgoing()] == [f"cmd/{device.id}/{made['id']}"]
        tx.save_output(made["id"], 0, b"cleaned\n")
        found.state, found.finished_s, found.due_s, found.parts = CommandState.DONE, int(time.time()), 0, 1
        tx.save_command(found)
    shown = owner.send("GET", f"/api/v1/commands/{made['id']}").json()
    assert (shown["state"], shown["output"], shown["output_complete"]) == ("done", "cleaned\n", True)
    listed = owner.send("GET", f"/api/v1/devices/{device.id}/commands").json()["commands"]
    assert [each["id"] for each in listed] == [made["id"]]


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"verb": "format-disk"}, 422, "verb"),
        ({"verb": "run"}, 400, "script is missing"),
        ({"verb": "run", "args": {"script": "../x"}}, 400, "name of a script"),
        ({"verb": "rekey", "args": {"now": 1}}, 400, "takes no 'now'"),
        ({"verb": "netcheck", "args": {"seconds": 1_000}}, 400, "from 1 to 60"),
        ({"verb": "rekey", "expires_in": 1}, 422, "expires_in"),
        ({"verb": "rekey", "sudo": True}, 422, "sudo"),
    ],
)
def test_what_cannot_be_is_refused(site: Site, owner: Browser, body: dict[str, Any], status: int, says: str) -> None:
    add_device(site)
    answer = owner.send("POST", "/api/v1/devices/box-1/commands", **body)
    assert answer.status_code == status and says in answer.text
    assert site.audit("command.run") == [] and owner.send("GET", "/api/v1/devices/box-1/commands").json() == {
        "commands": []
    }


def test_who_may_give_and_who_may_look(site: Site) -> None:
    add_device(site)
    path = "/api/v1/devices/box-1/commands"
    roles = (Access.ADMIN, Access.OPERATOR, Access.AUDITOR, Access.VIEWER)
    for number, (role, gives, looks) in enumerate(zip(roles, (201, 201, 403, 403), (200, 200, 200, 403), strict=True)):
        site.add_person(f"p{number}", role)
        browser = site.browser()
        browser.sign_in(f"p{number}")
        assert browser.send("POST", path, verb="rekey").status_code == gives, role
        watches = browser.send("POST", "/api/v1/devices/box-1/watch", seconds=10).status_code
        assert watches == {201: 200, 403: 403}[gives], role
        assert browser.send("GET", path).status_code == looks, role


def test_a_token_needs_the_scope(site: Site, owner: Browser) -> None:
    add_device(site)
    path = "/api/v1/devices/box-1/commands"
    reader = site.program(site.token("olga", "commands:read"))
    assert reader.get(path).status_code == 200
    assert reader.post(path, json={"verb": "rekey"}).status_code == 403
    runner = site.program(site.token("olga", "commands:run"))
    made = runner.post(path, json={"verb": "rekey"})
    assert made.status_code == 201 and made.json()["actor"].endswith(" of user:olga")


def test_looking_at_a_device_is_audited_once(site: Site, owner: Browser) -> None:
    device = add_device(site)
    path = "/api/v1/devices/box-1"
    assert owner.send("GET", f"{path}/telemetry").status_code == 404
    first = owner.send("POST", f"{path}/watch", seconds=60, every=1).json()
    assert owner.send("POST", f"{path}/watch", seconds=60, every=1).json()["id"] == first["id"]
    [row] = site.audit("command.watch")
    assert first["id"] in row.detail
    with site.write() as tx:
        tx.save_telemetry(device.id, 1_800_000_000, write(SAMPLE))
    found = owner.send("GET", f"{path}/telemetry").json()
    assert (found["received"], found["peers"][0]["name"]) == (1_800_000_000, "cam")
    assert owner.send("DELETE", f"{path}/watch").status_code == 204
    assert owner.send("GET", f"{path}/commands").json()["commands"][0]["state"] == "done"


def test_what_is_not_there(site: Site, owner: Browser) -> None:
    for method, path in (
        ("GET", "/api/v1/devices/nobody/commands"),
        ("GET", "/api/v1/devices/nobody/telemetry"),
        ("DELETE", "/api/v1/devices/nobody/watch"),
        ("GET", "/api/v1/commands/0123456789abcdef"),
    ):
        assert owner.send(method, path).status_code == 404
