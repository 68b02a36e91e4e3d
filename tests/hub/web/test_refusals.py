"""Requests that must not get through: each is a 403 that changes nothing, and an audit row that says why."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from hub.core.people import SESSION_IDLE_S, SESSION_LIFE_S
from hub.core.roles import OWN, PERMISSIONS, Access, Principal
from hub.store.schema import session
from hub.store.websettings import WebSettings
from hub.web import signin, throttle
from hub.web.guard import BODY_MAX
from tests.hub.web.kit import PASSWORD, Browser, Site


def last_refusal(site: Site) -> tuple[str, str]:
    """(actor, why)."""
    entry = site.audit("refused")[-1]
    return entry.actor, json.loads(entry.detail)["why"]


@pytest.mark.parametrize(
    "host",
    ["evil.test", "127.0.0.1", "127.0.0.1:80", "127.0.0.1:8480.evil.test", "evil.test:8480", "localhost", ""],
)
def test_another_host(owner: Browser, host: str) -> None:
    answer = owner.client.get("/", headers={"Host": host})
    assert answer.status_code == 403
    assert last_refusal(owner.site) == ("address:testclient", "host")


@pytest.mark.parametrize("host", ["127.0.0.1:8480", "localhost:8480", "LOCALHOST:8480", "[::1]:8480"])
def test_our_own_names(site: Site, host: str) -> None:
    assert site.browser().client.get("/healthz", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.test"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:8481"},
        {"Origin": "https://127.0.0.1:8480"},
        {"Origin": ""},
        {"Origin": "http://127.0.0.1:8480.evil.test"},
    ],
)
def test_another_origin(owner: Browser, headers: dict[str, str]) -> None:
    csrf = owner.csrf
    answer = owner.client.post("/api/v1/tokens", json={}, headers={**headers, "X-CSRF-Token": csrf})
    assert answer.status_code == 403 and last_refusal(owner.site)[1] == "origin"
    assert owner.client.get("/api/v1/tokens").json()["tokens"] == []


def test_characters_that_a_database_cannot_hold(site: Site) -> None:
    answer = site.browser().client.post("/login", data={"login": "ol\0ga", "password": PASSWORD})
    assert answer.status_code in (403, 422)


def test_a_password_in_a_link_is_no_token(site: Site) -> None:
    """`http://a:b@hub/login`: browsers send it as Basic, from pages of any site."""
    browser = site.browser()
    headers = {"Origin": "https://evil.test", "Authorization": "Basic YTpi"}
    answer = browser.client.post("/login", data={"login": "olga", "password": PASSWORD}, headers=headers)
    assert answer.status_code == 403 and not browser.client.cookies
    assert last_refusal(site)[1] == "origin"


def test_no_origin_at_all(owner: Browser) -> None:
    csrf = owner.csrf
    del owner.client.headers["Origin"]
    mark = {"X-CSRF-Token": csrf}
    for site, status in (("cross-site", 403), ("same-site", 403), ("none", 403), ("same-origin", 201)):
        answer = owner.client.post("/api/v1/tokens", json={}, headers={**mark, "Sec-Fetch-Site": site})
        assert answer.status_code == status, site
    assert owner.client.post("/api/v1/tokens", json={}, headers=mark).status_code == 403
    assert last_refusal(owner.site)[1] == "origin-missing"


@pytest.mark.parametrize("sent", [{}, {"X-CSRF-Token": ""}, {"X-CSRF-Token": "x" * 32}, {"X-CSRF-Token": "é"}])
def test_without_the_csrf_token(owner: Browser, sent: dict[str, str]) -> None:
    headers = {name.encode(): value.encode() for name, value in sent.items()}
    answer = owner.client.post("/api/v1/tokens", json={}, headers=headers)
    assert answer.status_code == 403 and answer.json()["code"] == "no-csrf-token"
    assert last_refusal(owner.site) == ("user:olga", "no-csrf-token")
    assert owner.client.get("/api/v1/tokens").json()["tokens"] == []


def test_the_csrf_token_of_another_session(owner: Browser) -> None:
    other = owner.site.browser()
    other.sign_in()
    answer = owner.client.post("/api/v1/tokens", json={}, headers={"X-CSRF-Token": other.csrf})
    assert answer.status_code == 403


def test_a_form_carries_its_token_too(owner: Browser) -> None:
    assert owner.client.post("/logout", data={"csrf": "wrong"}).status_code == 403
    assert owner.client.post("/logout", data={"csrf": owner.csrf}).status_code == 303


def test_a_session_that_is_used_after_signing_out(owner: Browser) -> None:
    kept = dict(owner.client.cookies)
    owner.client.post("/logout", data={"csrf": owner.csrf})
    assert owner.client.get("/").status_code == 303  # the cookie is gone
    owner.client.cookies.update(kept)
    assert owner.client.get("/").status_code == 403
    assert last_refusal(owner.site) == ("user:olga", "session-ended")
    owner.client.cookies.update(kept)
    answer = owner.client.get("/api/v1/me")
    assert answer.status_code == 403 and answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    "times",
    [
        {"seen_s": -SESSION_IDLE_S - 1, "created_s": -SESSION_IDLE_S - 1},
        {"seen_s": -1, "created_s": -SESSION_LIFE_S - 1},
    ],
)
def test_a_session_that_is_too_old(owner: Browser, times: dict[str, int]) -> None:
    with owner.site.write() as tx:
        now = int(time.time())
        tx.connection.execute(update(session).values({name: now + value for name, value in times.items()}))
    answer = owner.client.get("/")
    assert answer.status_code == 403 and "Sign in again" in answer.text
    assert last_refusal(owner.site) == ("user:olga", "session-expired")


def test_a_session_that_never_was(site: Site) -> None:
    browser = site.browser()
    browser.client.cookies.set("edgehub", "x" * 43)
    assert browser.client.get("/").status_code == 403
    assert last_refusal(site)[1] == "session-unknown"


def test_a_role_that_changes_ends_the_session(owner: Browser) -> None:
    site = owner.site
    site.add_person("ada", Access.OPERATOR)
    ada = site.browser()
    ada.sign_in("ada")
    assert owner.send("PATCH", "/api/v1/users/ada", role="viewer").status_code == 200
    assert ada.client.get("/api/v1/me").status_code == 403
    ada.client.cookies.clear()
    ada.sign_in("ada")
    assert ada.send("POST", "/api/v1/tokens").status_code == 403
    assert last_refusal(site) == ("user:ada", "role")


def test_signing_in_again_ends_the_session_before(site: Site) -> None:
    browser = site.browser()
    browser.sign_in()
    before = browser.client.cookies["edgehub"]
    browser.sign_in()
    assert browser.client.cookies["edgehub"] != before
    browser.client.cookies.clear()
    browser.client.cookies.set("edgehub", before)
    assert browser.client.get("/api/v1/me").status_code == 403


def test_what_the_cookie_is_like(site: Site) -> None:
    answer = site.browser().sign_in()
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=lax" in cookie and "path=/" in cookie and "domain" not in cookie


def test_under_https_the_cookie_is_of_this_host_alone(tmp_path: Path) -> None:
    site = Site(tmp_path / "hub", WebSettings(url="https://hub.example.org"))
    browser = Browser(site, "https://hub.example.org")
    answer = browser.sign_in()
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith("__Host-edgehub=") and "Secure" in cookie
    assert answer.headers["strict-transport-security"].startswith("max-age=")
    assert browser.client.get("/").status_code == 200
    assert browser.client.get("/", headers={"Host": "hub.example.org:444"}).status_code == 403
    plain = browser.client.post("/logout", headers={"Origin": "http://evil.test"})
    assert plain.status_code == 403


# objects of others


def test_objects_of_others(owner: Browser) -> None:
    site = owner.site
    site.add_person("vic", Access.VIEWER)
    site.add_person("eve", Access.VIEWER)
    mine = site.add_device(1, user="vic")
    site.add_device(2, user="eve")
    site.add_device(3)
    token_id = site.token("eve", "devices:read").split("_")[1]
    vic = site.browser()
    vic.sign_in("vic")
    eve = site.browser()
    eve.sign_in("eve")
    [eves_session] = eve.client.get("/api/v1/me/sessions").json()
    for method, path in (
        ("DELETE", "/api/v1/devices/box-2"),
        ("DELETE", "/api/v1/devices/box-3"),
        ("DELETE", f"/api/v1/api-tokens/{token_id}"),
        ("DELETE", f"/api/v1/sessions/{eves_session['id']}"),
        ("GET", "/api/v1/users/eve"),
    ):
        answer = vic.send(method, path)
        assert (answer.status_code, answer.json()["code"]) == (403, "not-yours"), path
        assert last_refusal(site) == ("user:vic", "not-yours"), path
    for path in ("/api/v1/devices/box-2", "/api/v1/devices/box-3"):
        assert vic.send("PATCH", path, name="stolen").status_code == 403
    assert vic.send("GET", "/api/v1/users/nobody").status_code == 403  # no telling who is there
    assert vic.send("GET", "/api/v1/api-tokens?everybodys=true").status_code == 403
    assert vic.send("PATCH", "/api/v1/devices/box-1", name="vics-own").status_code == 200
    assert vic.send("PATCH", "/api/v1/devices/vics-own", tags=["tag:admin"]).status_code == 403
    assert vic.send("PATCH", "/api/v1/devices/vics-own", user="eve").status_code == 403
    assert vic.send("PATCH", "/api/v1/devices/vics-own", not_after=int(time.time()) + 60).status_code == 200
    assert vic.send("PATCH", "/api/v1/devices/vics-own", not_after=0).status_code == 403
    assert vic.send("DELETE", "/api/v1/devices/vics-own").status_code == 204
    assert vic.client.get(f"/api/v1/devices/{mine.id}").json()["state"] == "removed"
    assert eve.client.get("/api/v1/me").status_code == 200


def test_only_owners_touch_owners(owner: Browser) -> None:
    site = owner.site
    site.add_person("ada", Access.ADMIN)
    ada = site.browser()
    ada.sign_in("ada")
    for change in ({"role": "viewer"}, {"disabled": True}, {"password": "another one entirely"}):
        answer = ada.send("PATCH", "/api/v1/users/olga", **change)
        assert (answer.status_code, answer.json()["code"]) == (403, "owners-only")
    assert ada.send("PATCH", "/api/v1/users/ada", role="owner").status_code == 403
    assert ada.send("POST", "/api/v1/users", login="eve", role="owner").status_code == 403
    assert ada.send("POST", "/api/v1/users", login="eve", role="operator").status_code == 201
    assert owner.send("PATCH", "/api/v1/users/olga", role="viewer").status_code == 400  # the last owner


@pytest.mark.parametrize("role", list(Access))
def test_every_action_is_allowed_to_somebody_and_owners_may_all(role: Access) -> None:
    who = Principal("u-x", "x", "", role)
    for action, roles in PERMISSIONS.items():
        assert Access.OWNER in roles
        assert who.may(action) is (role in roles)
        assert who.may(action, "somebody") is (role in roles)
        assert who.may(action, "x") is (role in roles or action in OWN)
        assert not Principal("u-x", "x", "", role, scopes=frozenset(), token="t").may(action, "x")


# API tokens


def test_a_token_may_what_its_scopes_say(site: Site) -> None:
    program = site.program(site.token("olga", "devices:read"))
    assert program.get("/api/v1/devices").status_code == 200
    for method, path in (("GET", "/api/v1/audit"), ("POST", "/api/v1/tokens"), ("GET", "/api/v1/users")):
        answer = program.request(method, path, json={} if method == "POST" else None)
        assert (answer.status_code, answer.json()["code"]) == (403, "scope-missing")
    assert last_refusal(site)[0].startswith("token:") and last_refusal(site)[0].endswith("of user:olga")


def test_a_token_writes_without_csrf_and_origin(site: Site) -> None:
    assert site.program(site.token("olga", "tokens:write")).post("/api/v1/tokens", json={}).status_code == 201


def test_a_token_is_worth_no_more_than_its_owner(owner: Browser) -> None:
    site = owner.site
    site.add_person("ada", Access.OPERATOR)
    token = site.token("ada", "tokens:write", "devices:read")
    program = site.program(token)
    assert program.post("/api/v1/tokens", json={}).status_code == 201
    assert owner.send("PATCH", "/api/v1/users/ada", role="viewer").status_code == 200
    assert program.post("/api/v1/tokens", json={}).status_code == 403
    assert program.get("/api/v1/devices").status_code == 200
    assert owner.send("PATCH", "/api/v1/users/ada", disabled=True).status_code == 200
    assert program.get("/api/v1/devices").status_code == 403


def test_a_token_makes_no_token_with_more_scopes(site: Site) -> None:
    program = site.program(site.token("olga", "apitokens:write", "devices:read"))
    made = program.post("/api/v1/api-tokens", json={"name": "more", "scopes": ["users:write"]})
    assert made.status_code == 400
    made = program.post("/api/v1/api-tokens", json={"name": "less", "scopes": ["devices:read"]})
    assert made.status_code == 201


@pytest.mark.parametrize("text", ["", "em_", "em_aaaaaaaaaaaa_" + "A" * 43, "x" * 5_000, "em_AAAAAAAAAAAA_" + "A" * 43])
def test_a_token_that_is_none(site: Site, text: str) -> None:
    assert site.program(text).get("/api/v1/devices").status_code in (401, 403)


def test_a_token_that_is_over(site: Site) -> None:
    token = site.token("olga", "devices:read", "apitokens:write")
    program = site.program(token)
    assert program.delete(f"/api/v1/api-tokens/{token.split('_')[1]}").status_code == 204
    answer = program.get("/api/v1/devices")
    assert (answer.status_code, answer.json()["code"]) == (403, "token-revoked")


def test_a_token_with_a_wrong_secret(site: Site) -> None:
    token = site.token("olga", "devices:read")
    wrong = token[:-1] + ("A" if token[-1] != "A" else "B")
    assert site.program(wrong).get("/api/v1/devices").json()["code"] in ("token-unknown", "token-malformed")


# signing in


def test_a_wrong_password_and_an_unknown_login_look_the_same(site: Site) -> None:
    browser = site.browser()
    wrong, unknown = browser.sign_in(password="not this one"), browser.sign_in("nobody", "not this one")
    assert wrong.status_code == unknown.status_code == 403
    assert wrong.text == unknown.text
    assert [entry.object for entry in site.audit("signin.failed")] == ["user:olga", "user:?"]


def test_tries_are_counted(site: Site) -> None:
    browser = site.browser()
    codes = [browser.sign_in(password=f"guess number {number}").status_code for number in range(signin.TRIES_BURST + 3)]
    assert codes == [403] * signin.TRIES_BURST + [429] * 3
    assert browser.sign_in(password=PASSWORD).status_code == 429
    assert last_refusal(site)[1] == "too-many-tries"


def test_a_whole_prefix_counts_as_one() -> None:
    assert throttle.source("2001:db8:1:2:3:4:5:6") == throttle.source("2001:db8:1:2::1") == "2001:db8:1:2::"
    assert throttle.source("fe80::1%eth0") == "fe80::"
    assert throttle.source("::ffff:192.0.2.1") == throttle.source("192.0.2.1") == "192.0.2.1"
    assert throttle.source("testclient") == "testclient"


def test_tries_at_many_accounts_leave_few_rows(site: Site) -> None:
    backend = site.app.state.backend
    for number in range(200):
        backend.note_refusal(f"address:{number}", "password", "user:?", str(number), verb="signin.failed")
    assert len(site.audit("signin.failed")) < 100


def test_the_tables_of_tries_do_not_grow(site: Site) -> None:
    tries = site.app.state.tries
    for number in range(throttle.KEYS_MAX + 100):
        tries.take(0.0, f"address {number}", f"login {number}")
        tries.take_step(0.0, f"address {number}")
    assert len(tries) <= 3 * throttle.KEYS_MAX


@pytest.mark.parametrize(
    "target", ["//evil.test", "https://evil.test", "/\\evil.test", "/\nx", "javascript:alert(1)", ""]
)
def test_the_way_back_stays_here(site: Site, target: str) -> None:
    browser = site.browser()
    answer = browser.client.post("/login", data={"login": "olga", "password": PASSWORD, "next": target})
    assert (answer.status_code, answer.headers["location"]) == (303, "/")


# what is too much


def test_a_body_that_is_too_long(site: Site) -> None:
    program = site.program(site.token("olga", "tokens:write"))
    answer = program.post("/api/v1/tokens", content=b"x" * (BODY_MAX + 1))
    assert answer.status_code == 413
    longer = (b"x" * 65_536 for _ in range(BODY_MAX // 65_536 + 2))
    assert program.post("/api/v1/tokens", content=longer).status_code in (400, 413, 422)


def test_a_flood_of_refusals_leaves_few_rows(site: Site) -> None:
    browser = site.browser()
    for _ in range(200):
        assert browser.client.get("/", headers={"Host": "evil.test"}).status_code == 403
    assert len(site.audit("refused")) < 100


@pytest.mark.parametrize(
    "body",
    [
        {"uses": -1},
        {"uses": "many"},
        {"tags": ["no tag"]},
        {"tags": ["tag:x"] * 100},
        {"expires_in": 1 << 62},
        {"unknown": 1},
        [],
        "text",
        None,
    ],
)
def test_bodies_that_make_no_sense(site: Site, body: Any) -> None:
    program = site.program(site.token("olga", "tokens:write"))
    answer = program.post("/api/v1/tokens", json=body)
    assert answer.status_code in (400, 422)
    problem = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["status"] == answer.status_code and problem["code"] and problem["detail"]


def test_headers_are_strict_everywhere(owner: Browser) -> None:
    for path in ("/", "/login", "/nothing", "/api/v1/me", "/api/v1/nothing", "/static/nothing.js", "/healthz"):
        headers = owner.client.get(path).headers
        policy = headers["content-security-policy"]
        assert "unsafe" not in policy and "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "same-origin"
        assert path.startswith("/static/") or headers["cache-control"] == "no-store"


def test_a_page_for_people_and_a_problem_for_programs(owner: Browser) -> None:
    assert owner.client.get("/nothing").headers["content-type"].startswith("text/html")
    assert owner.client.get("/api/v1/nothing").headers["content-type"] == "application/problem+json"
