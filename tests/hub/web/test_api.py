"""The API: what programs do, what it leaves in the database, and its description."""

from __future__ import annotations

import json
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from edgeagent.proto.token import Token as JoinToken
from hub import setup
from hub.core.audit import START, first_break
from hub.core.model import DeviceState, Kind
from hub.core.roles import PERMISSIONS, Access
from hub.database import open_database
from hub.state import State
from hub.store import schema
from tests.hub.kit import load_crypto
from tests.hub.web.kit import PASSWORD, Browser, Site, device_id


@pytest.fixture
def program(site: Site) -> TestClient:
    """May everything."""
    return site.program(site.token("olga", *PERMISSIONS))


def test_devices_are_listed_in_pages(site: Site, program: TestClient) -> None:
    for number in range(5):
        site.add_device(number, online=number % 2 == 0, tags=("tag:cam",))
    first = program.get("/api/v1/devices", params={"filter": "tag:cam online:yes", "limit": 2}).json()
    assert [device["name"] for device in first["devices"]] == ["box-0", "box-2"] and first["total"] == 3
    rest = program.get(
        "/api/v1/devices", params={"filter": "tag:cam online:yes", "limit": 2, "after": first["next"]}
    ).json()
    assert [device["name"] for device in rest["devices"]] == ["box-4"] and rest["next"] == ""
    assert program.get("/api/v1/devices", params={"limit": 501}).status_code == 422
    refused = program.get("/api/v1/devices", params={"filter": "colour:red"})
    assert refused.status_code == 400 and "colour: is no field" in refused.json()["detail"]


def test_a_device_is_changed(site: Site, program: TestClient) -> None:
    site.add_device(1, credential="secret-credential")
    got = program.get("/api/v1/devices/box-1")
    assert got.headers["etag"] == got.json()["etag"]
    assert "secret-credential" not in got.text
    body = {"name": "front-door", "tags": ["tag:camera"], "user": "ada", "not_after": int(time.time()) + 60}
    changed = program.patch("/api/v1/devices/box-1", json=body, headers={"If-Match": got.headers["etag"]})
    assert changed.status_code == 200, changed.text
    assert {name: changed.json()[name] for name in body} == body
    again = program.patch("/api/v1/devices/front-door", json={"name": "x"}, headers={"If-Match": got.headers["etag"]})
    assert (again.status_code, again.json()["code"]) == (412, "changed")
    assert program.get("/api/v1/devices/front-door").json()["name"] == "front-door"
    verbs = [entry.verb for entry in site.audit() if entry.object == f"device:{got.json()['id']}"]
    assert verbs == ["device.rename", "device.tag", "device.assign", "device.expire"]


@pytest.mark.parametrize("name", ["", "a b", "a.b", "..", "ü", "a" * 64, 'a"b', "a\nb", "-a", "localhost"])
def test_names_that_are_none(site: Site, program: TestClient, name: str) -> None:
    site.add_device(1)
    assert program.patch("/api/v1/devices/box-1", json={"name": name}).status_code in (400, 422)
    assert program.get("/api/v1/devices/box-1").json()["name"] == "box-1"


def test_a_name_that_is_taken(site: Site, program: TestClient) -> None:
    site.add_device(1)
    site.add_device(2)
    answer = program.patch("/api/v1/devices/box-1", json={"name": "box-2"})
    assert answer.status_code == 400 and "has it" in answer.json()["detail"]


def test_a_device_is_removed_and_the_hub_must_tell_all(site: Site, program: TestClient) -> None:
    device = site.add_device(1)
    assert program.delete("/api/v1/devices/box-1").status_code == 204
    assert program.get("/api/v1/devices/box-1").status_code == 404
    assert program.get(f"/api/v1/devices/{device.id}").json()["state"] == "removed"
    with closing(open_database(site.state)) as store, store.read() as tx:
        assert device.id in tx.accounts_in_flight()


def test_the_same_for_many(site: Site, program: TestClient) -> None:
    for number in range(4):
        site.add_device(number, tags=("tag:old",) if number else ())
    out = program.post("/api/v1/devices/bulk", json={"filter": "tag:old", "do": "tag", "tag": "tag:new"}).json()
    assert len(out["done"]) == 3 and out["refused"] == {} and out["more"] is False
    assert program.get("/api/v1/devices", params={"filter": "tag:new"}).json()["total"] == 3
    ids = [device_id(number) for number in (1, 9)]
    out = program.post("/api/v1/devices/bulk", json={"ids": ids, "do": "remove"}).json()
    assert out["done"] == ids[:1] and list(out["refused"]) == ids[1:]
    for nobody in ({}, {"filter": ""}, {"filter": " "}):
        assert program.post("/api/v1/devices/bulk", json={"do": "remove", **nobody}).status_code == 422
    out = program.post("/api/v1/devices/bulk", json={"filter": "box", "do": "approve"}).json()
    assert out["done"] == [] and all("not waiting" in why for why in out["refused"].values())


def test_join_tokens(site: Site, program: TestClient) -> None:
    made = program.post("/api/v1/tokens", json={"uses": 3, "expires_in": 60, "tags": ["tag:cam"]}).json()
    token = JoinToken.decode(load_crypto(), made["token"])
    assert (token.claim, token.uses, token.tags) == (made["id"], 3, ["tag:cam"])
    listed = program.get("/api/v1/tokens")
    assert made["token"] not in listed.text
    assert listed.json()["tokens"][0]["state"] == "good"
    assert program.delete(f"/api/v1/tokens/{made['id']}").status_code == 204
    assert program.get("/api/v1/tokens").json()["tokens"][0]["state"] == "revoked"
    assert program.delete("/api/v1/tokens/c-none").status_code == 404


def test_relays(site: Site, program: TestClient) -> None:
    made = program.post("/api/v1/relays/invite", json={"region": "fra"})
    assert made.status_code == 201
    assert program.get("/api/v1/tokens").json()["tokens"][0]["kind"] == "relay"
    assert program.post("/api/v1/relays/invite", json={"region": "not one word"}).status_code == 400
    relay = site.add_device(7, name="fra-1", kind=Kind.RELAY, tags=("tag:fra",))
    [shown] = program.get("/api/v1/relays").json()
    assert (shown["name"], shown["online"], shown["key"]) == ("fra-1", False, "")
    assert program.get("/api/v1/devices/fra-1").status_code == 404
    assert program.get(f"/api/v1/relays/{relay.id}").json() == shown
    assert program.get("/api/v1/relays/..%22").status_code == 404
    assert program.delete(f"/api/v1/relays/{relay.id}").status_code == 204
    assert program.get(f"/api/v1/relays/{relay.id}").status_code == 404
    assert program.get("/api/v1/relays").json() == []


def test_users(site: Site, program: TestClient) -> None:
    made = program.post("/api/v1/users", json={"login": "ada@example.org", "role": "operator", "password": "x" * 12})
    assert made.status_code == 400 and "too easily guessed" in made.json()["detail"]
    made = program.post("/api/v1/users", json={"login": "ada@example.org", "role": "operator"})
    assert made.status_code == 201 and made.json()["password"] is False
    assert program.post("/api/v1/users", json={"login": "ada@example.org", "role": "viewer"}).status_code == 400
    assert program.post("/api/v1/users", json={"login": "A B", "role": "viewer"}).status_code == 400
    assert program.post("/api/v1/users", json={"login": "bob", "role": "king"}).status_code == 400
    changed = program.patch("/api/v1/users/ada@example.org", json={"password": "six words are better than one"})
    assert changed.json()["password"] is True
    assert site.browser().sign_in("ada@example.org", "six words are better than one").status_code == 303
    assert [user["login"] for user in program.get("/api/v1/users").json()["users"]] == ["ada@example.org", "olga"]
    assert program.get("/api/v1/users/nobody").status_code == 404


def test_api_tokens_are_shown_once(owner: Browser) -> None:
    made = owner.send("POST", "/api/v1/api-tokens", name="inventory", scopes=["devices:read"], expires_in=60).json()
    assert made["token"].startswith("em_") and made["scopes"] == ["devices:read"]
    assert owner.site.program(made["token"]).get("/api/v1/devices").status_code == 200
    listed = owner.client.get("/api/v1/api-tokens")
    assert made["token"][16:] not in listed.text and listed.json()["api_tokens"][0]["used"] > 0
    bodies: list[dict[str, Any]] = [
        {"scopes": []},
        {"scopes": ["devices:everything"]},
        {"scopes": ["devices:read"], "expires_in": 0},
    ]
    for body in bodies:
        assert owner.send("POST", "/api/v1/api-tokens", name="x", **body).status_code in (400, 422)
    assert owner.send("DELETE", f"/api/v1/api-tokens/{made['id']}").status_code == 204
    assert owner.site.program(made["token"]).get("/api/v1/devices").status_code == 403


def test_ones_own_password(owner: Browser) -> None:
    new = "a new one that is longer"
    owner.site.secrets.append(new)
    assert owner.send("POST", "/api/v1/me/password", old="wrong", new=new).status_code == 403
    assert owner.send("POST", "/api/v1/me/password", old=PASSWORD, new="short").status_code == 400
    program = owner.site.program(owner.site.token("olga", "users:write"))
    assert program.post("/api/v1/me/password", json={"old": PASSWORD, "new": new}).status_code == 403
    assert owner.send("POST", "/api/v1/me/password", old=PASSWORD, new=new).status_code == 204
    assert owner.client.get("/api/v1/me").status_code == 403
    assert owner.sign_in(password=PASSWORD).status_code == 403
    assert owner.sign_in(password=new).status_code == 303


@pytest.mark.parametrize("database_url", [""], ids=["sqlite"])  # a server's database is backed up there
def test_a_restored_hub_has_no_sessions(owner: Browser, tmp_path: Path) -> None:
    setup.backup(owner.site.state, tmp_path / "backup.db")
    other = State(tmp_path / "other")
    setup.restore(other, tmp_path / "backup.db", force=False)
    with closing(open_database(other)) as store, store.read() as tx:
        rows = tx.audit_rows()
        assert tx.connection.execute(schema.session.select()).all() == []
    assert rows[-1].verb == "restore" and first_break(START, 1, rows)[0] is None


def test_sessions_can_be_ended_from_elsewhere(owner: Browser) -> None:
    elsewhere = owner.site.browser()
    elsewhere.sign_in()
    sessions = owner.client.get("/api/v1/me/sessions").json()
    assert len(sessions) == 2 and sum(session["this"] for session in sessions) == 1
    [other] = [session["id"] for session in sessions if not session["this"]]
    assert owner.send("DELETE", f"/api/v1/sessions/{other}").status_code == 204
    assert elsewhere.client.get("/api/v1/me").status_code == 403
    assert owner.send("DELETE", "/api/v1/sessions/xyz").status_code == 404


def test_the_audit_log(site: Site, program: TestClient) -> None:
    site.add_device(1)
    program.patch("/api/v1/devices/box-1", json={"name": "one"})
    rows = program.get("/api/v1/audit", params={"limit": 2}).json()
    assert rows["rows"][0]["verb"] == "device.rename"
    assert rows["rows"][0]["detail"] == {"before": "box-1", "after": "one"}
    assert rows["rows"][0]["actor"].endswith("of user:olga")
    older = program.get("/api/v1/audit", params={"before": rows["next"]}).json()
    assert older["rows"][0]["id"] == rows["next"] - 1
    only = program.get("/api/v1/audit", params={"verb": "device."}).json()["rows"]
    assert [row["verb"] for row in only] == ["device.rename"]


def test_settings_need_the_version_that_was_seen(site: Site, program: TestClient) -> None:
    seen = program.get("/api/v1/settings").headers["etag"]
    body = {"url": "https://hub.example.org"}
    assert program.patch("/api/v1/settings", json=body).status_code == 428
    assert program.patch("/api/v1/settings", json=body, headers={"If-Match": seen}).status_code == 200
    assert program.patch("/api/v1/settings", json=body, headers={"If-Match": seen}).status_code == 412
    seen = program.get("/api/v1/settings").headers["etag"]
    wrong = program.patch("/api/v1/settings", json={"url": "ftp://x"}, headers={"If-Match": seen})
    assert wrong.status_code == 400


def test_single_sign_on_is_for_owners(site: Site, program: TestClient) -> None:
    site.add_person("ada", Access.ADMIN)
    shown = program.get("/api/v1/oidc")
    body = {
        "issuer": "https://id.test",
        "client_id": "hub",
        "client_secret": "very secret",
        "roles": {"fleet": "viewer"},
    }
    match = {"If-Match": shown.headers["etag"]}
    admin = site.program(site.token("ada", "settings:write"))
    assert admin.put("/api/v1/oidc", json=body, headers=match).status_code == 403
    assert program.put("/api/v1/oidc", json=body).status_code == 428
    made = program.put("/api/v1/oidc", json=body, headers=match)
    assert made.status_code == 200 and made.json()["redirect_uri"].endswith("/login/oidc/callback")
    assert "very secret" not in made.text + program.get("/api/v1/oidc").text
    assert "very secret" not in site.audit("settings.oidc")[-1].detail
    match = {"If-Match": made.headers["etag"]}
    kept = program.put("/api/v1/oidc", json={**body, "client_secret": "", "label": "ID"}, headers=match)
    assert kept.status_code == 200
    for change in ({"issuer": "http://id.test"}, {"roles": {"fleet": "owner"}}, {"client_id": ""}):
        answer = program.put("/api/v1/oidc", json={**body, **change}, headers={"If-Match": "*"})
        assert answer.status_code == 400, change


def test_the_policy(site: Site, program: TestClient) -> None:
    site.add_device(1, tags=("tag:camera",))
    site.add_device(2, tags=("tag:server",))
    none = program.get("/api/v1/policy")
    assert none.json()["version"] == 0
    text = """{"tagOwners": {"tag:camera": [], "tag:server": []},
    "acls": [{"action": "accept", "src": ["tag:camera"], "dst": ["tag:server:443"]}]}"""
    assert program.put("/api/v1/policy", json={"text": text}).status_code == 428
    match = {"If-Match": none.headers["etag"]}
    wrong = program.put("/api/v1/policy", json={"text": '{\n "acls": [{"action": "accept"]}'}, headers=match)
    assert wrong.status_code == 400 and wrong.headers["content-type"] == "application/problem+json"
    assert wrong.json()["problems"][0]["line"] == 2 and wrong.json()["problems"][0]["column"] > 0
    assert program.post("/api/v1/policy/check", json={"text": "{"}).status_code == 400
    assert program.post("/api/v1/policy/check", json={"text": text}).json()["version"] == 0
    assert program.get("/api/v1/policy").json()["version"] == 0
    made = program.put("/api/v1/policy", json={"text": text}, headers=match)
    assert made.status_code == 200 and made.json()["version"] == 1
    assert program.put("/api/v1/policy", json={"text": text}, headers=match).status_code == 412
    got = program.get("/api/v1/policy").json()
    assert (got["text"], got["author"]) == (text, "olga")
    asked = program.get("/api/v1/policy/explain", params={"src": "box-1", "dst": "box-2:443"}).json()
    assert [verdict["allowed"] for verdict in asked["verdicts"]] == [True] and asked["verdicts"][0]["line"] == 2
    asked = program.get("/api/v1/policy/explain", params={"src": "box-2", "dst": "box-1:443"}).json()
    assert not any(verdict["allowed"] for verdict in asked["verdicts"])
    assert site.audit("policy.set")[-1].actor.endswith("user:olga")


def test_the_network(site: Site, program: TestClient) -> None:
    site.add_device(1, online=True)
    site.add_device(2, state=DeviceState.PENDING)
    network = program.get("/api/v1/network").json()
    assert network["devices"] == {"pending": 1, "active": 1, "expired": 0, "removed": 0}
    assert (network["online"], network["domain"], network["hub"]) == (1, "mesh.test", {})


def test_the_description(site: Site) -> None:
    described = site.browser().client.get("/api/v1/openapi.json").json()
    assert described["openapi"].startswith("3.") and set(described["components"]["securitySchemes"]) == {
        "token",
        "session",
    }
    paths = described["paths"]
    assert all(path.startswith("/api/v1/") for path in paths) and len(paths) >= 20
    for path, methods in paths.items():
        for method, operation in methods.items():
            assert operation["tags"], (method, path)
            assert "403" in operation["responses"], (method, path)
            if method == "post" and "requestBody" in operation:
                assert operation["requestBody"]["content"]["application/json"]["schema"], path


def test_every_way_in_asks_who_it_is(site: Site) -> None:
    """Nobody has forgotten the dependency: without a token or session every path of the API says 401."""
    stranger = site.browser().client
    paths = stranger.get("/api/v1/openapi.json").json()["paths"]
    body: dict[str, Any] = {}
    for path, methods in paths.items():
        for method in methods:
            where = path
            for name in ("device_id", "token_id", "relay_id", "user", "session_id", "hook_id", "passkey_id"):
                where = where.replace(f"{{{name}}}", "x")
            answer = stranger.request(method, where, json=body if method in ("post", "patch", "put") else None)
            assert answer.status_code == 401, (method, where, answer.status_code)
    assert stranger.get("/metrics").status_code == 401
    assert stranger.get("/live").status_code == 401


def test_every_way_in_asks_for_the_right(site: Site) -> None:
    """A token without any scope of use gets nothing but what it is."""
    site.add_person("vic", Access.VIEWER)
    program = site.program(site.token("vic", "routes:read"))
    paths = program.get("/api/v1/openapi.json").json()["paths"]
    bodies = {
        "/api/v1/devices/bulk": {"filter": "x", "do": "remove"},
        "/api/v1/relays/invite": {"region": "fra"},
        "/api/v1/users": {"login": "x", "role": "viewer"},
        "/api/v1/api-tokens": {"name": "x", "scopes": ["routes:read"]},
        "/api/v1/webhooks": {"url": "https://x.test/", "events": ["test"]},
        "/api/v1/me/passkeys": {"credential": {}},
        "/api/v1/oidc": {"issuer": ""},
        "/api/v1/policy": {"text": ""},
        "/api/v1/policy/check": {"text": ""},
        "/api/v1/me/password": {"old": "x", "new": "y"},
        "/api/v1/clients": {"name": "x", "gateway": "x", "endpoint": "x.test:1"},
        "/api/v1/dns/search": {"domains": None},
        "/api/v1/dns/resolvers": {"resolvers": []},
        "/api/v1/dns/split/{domain}": {"resolvers": []},
        "/api/v1/dns/records": {"name": "x", "type": "A", "value": "192.0.2.1"},
        "/api/v1/lock/signatures": {"lines": ["{}"]},
    }
    for path, methods in paths.items():
        if path in ("/api/v1/me", "/api/v1/routes"):
            continue
        for method in methods:
            body = bodies.get(path, {}) if method in ("post", "patch", "put") else None
            answer = program.request(method, path.replace("{user}", "olga"), json=body)
            assert answer.status_code in (403, 404), (method, path, answer.status_code, answer.text)
            if answer.status_code == 404:
                assert "{" in path, path


def test_problems_are_those_of_the_rfc(site: Site) -> None:
    answer = site.browser().client.get("/api/v1/devices")
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["www-authenticate"] == "Bearer"
    assert json.loads(answer.text) == {
        "type": "about:blank",
        "title": "Sign in first",
        "status": 401,
        "code": "not-signed-in",
        "detail": "This needs an API token or a session.",
    }
