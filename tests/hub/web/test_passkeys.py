"""Passkeys, with an authenticator of the test's own that signs as a real one does."""

from __future__ import annotations

import hashlib
import json
import os
from base64 import urlsafe_b64encode
from typing import Any

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

from hub.core.roles import Access
from hub.web import signin
from tests.hub.web.kit import Browser, Site

HERE = "http://localhost:8480"  # browsers take no address for a passkey's name
PRESENT, VERIFIED, WITH_CREDENTIAL = 0x01, 0x04, 0x40


class Authenticator:
    """One credential on P-256 (COSE ES256)."""

    def __init__(self, origin: str = HERE, rp_id: str = "localhost") -> None:
        self.origin, self.rp_id = origin, rp_id
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.id = os.urandom(32)
        self.user = ""
        self.counter = 0
        self.flags = PRESENT | VERIFIED

    def create(self, options: dict[str, Any]) -> dict[str, Any]:
        self.user = options["user"]["id"]
        point = self.key.public_key().public_numbers()
        public = cbor2.dumps({1: 2, 3: -7, -1: 1, -2: point.x.to_bytes(32, "big"), -3: point.y.to_bytes(32, "big")})
        data = self._data(self.flags | WITH_CREDENTIAL) + bytes(16) + len(self.id).to_bytes(2, "big") + self.id + public
        response = {
            "clientDataJSON": _encode(self._client("webauthn.create", options["challenge"])),
            "attestationObject": _encode(cbor2.dumps({"fmt": "none", "attStmt": {}, "authData": data})),
        }
        return {"id": _encode(self.id), "rawId": _encode(self.id), "type": "public-key", "response": response}

    def get(self, options: dict[str, Any]) -> dict[str, Any]:
        self.counter += 1
        client = self._client("webauthn.get", options["challenge"])
        data = self._data(self.flags)
        signature = self.key.sign(data + hashlib.sha256(client).digest(), ec.ECDSA(SHA256()))
        response = {
            "clientDataJSON": _encode(client),
            "authenticatorData": _encode(data),
            "signature": _encode(signature),
            "userHandle": self.user,
        }
        return {"id": _encode(self.id), "rawId": _encode(self.id), "type": "public-key", "response": response}

    def _data(self, flags: int) -> bytes:
        return hashlib.sha256(self.rp_id.encode()).digest() + bytes([flags]) + self.counter.to_bytes(4, "big")

    def _client(self, kind: str, challenge: str) -> bytes:
        return json.dumps({"type": kind, "challenge": challenge, "origin": self.origin}).encode()


def _encode(data: bytes) -> str:
    return urlsafe_b64encode(data).decode().rstrip("=")


@pytest.fixture
def olga(site: Site) -> Browser:
    browser = Browser(site, HERE)
    assert browser.sign_in().status_code == 303
    return browser


def register(browser: Browser, authenticator: Authenticator) -> Any:
    options = browser.send("POST", "/api/v1/me/passkeys/options").json()
    return browser.send("POST", "/api/v1/me/passkeys", name="blue key", credential=authenticator.create(options))


def sign_in(browser: Browser, authenticator: Authenticator, **changes: Any) -> Any:
    options = browser.client.post("/login/passkey/options").json()
    credential = authenticator.get(options)
    credential["response"] |= changes
    return browser.client.post("/login/passkey", json={"credential": credential, "next": "/devices"})


def test_a_passkey_is_enough_to_sign_in(olga: Browser) -> None:
    key = Authenticator()
    made = register(olga, key)
    assert (made.status_code, made.json()["name"]) == (201, "blue key")
    browser = Browser(olga.site, HERE)
    answer = sign_in(browser, key)
    assert (answer.status_code, answer.json()) == (200, {"next": "/devices"})
    assert browser.client.get("/api/v1/me").json()["login"] == "olga"
    assert json.loads(olga.site.audit("signin")[-1].detail)["how"] == "passkey"
    [shown] = olga.client.get("/api/v1/me/passkeys").json()
    assert shown["used"] > 0


def test_what_a_passkey_must_not_be_believed(olga: Browser) -> None:
    key = Authenticator()
    register(olga, key)
    browser = Browser(olga.site, HERE)
    assert sign_in(browser, Authenticator()).status_code == 403  # unknown
    forged = Authenticator()
    forged.id, forged.user = key.id, key.user
    assert sign_in(browser, forged).status_code == 403  # another key's signature
    key.origin = "http://evil.test"
    assert sign_in(browser, key).status_code == 403
    key.origin, key.rp_id = HERE, "evil.test"
    assert sign_in(browser, key).status_code == 403
    key.rp_id, key.flags = "localhost", PRESENT  # nobody's finger or PIN
    assert sign_in(browser, key).status_code == 403
    key.flags = PRESENT | VERIFIED
    assert sign_in(browser, key, userHandle=_encode(b"u-somebody-else")).status_code == 403
    assert browser.client.get("/").status_code == 303
    assert sign_in(browser, key).status_code == 200


def test_a_copied_passkey_is_noticed_by_its_counter(olga: Browser) -> None:
    key = Authenticator()
    register(olga, key)
    key.counter = 10
    browser = Browser(olga.site, HERE)
    assert sign_in(browser, key).status_code == 200
    key.counter = 5  # the copy
    assert sign_in(Browser(olga.site, HERE), key).status_code == 403
    assert json.loads(olga.site.audit("refused")[-1].detail)["why"] == "passkey"


def test_an_answer_counts_once(olga: Browser) -> None:
    key = Authenticator()
    register(olga, key)
    browser = Browser(olga.site, HERE)
    options = browser.client.post("/login/passkey/options").json()
    kept = dict(browser.client.cookies)
    body = {"credential": key.get(options)}
    assert browser.client.post("/login/passkey", json=body).status_code == 200
    browser.client.cookies.clear()
    browser.client.cookies.update(kept)
    assert browser.client.post("/login/passkey", json=body).status_code == 400
    assert Browser(olga.site, HERE).client.post("/login/passkey", json=body).status_code == 400


def test_a_disabled_user_has_no_use_of_it(olga: Browser) -> None:
    olga.site.add_person("ada", Access.ADMIN)
    ada = Browser(olga.site, HERE)
    ada.sign_in("ada")
    key = Authenticator()
    assert register(ada, key).status_code == 201
    assert olga.send("PATCH", "/api/v1/users/ada", disabled=True).status_code == 200
    assert sign_in(Browser(olga.site, HERE), key).status_code == 403


def test_another_users_passkey(olga: Browser) -> None:
    olga.site.add_person("vic", Access.VIEWER)
    key = Authenticator()
    shown = register(olga, key).json()
    vic = Browser(olga.site, HERE)
    vic.sign_in("vic")
    assert vic.client.get("/api/v1/me/passkeys").json() == []
    answer = vic.send("DELETE", f"/api/v1/me/passkeys/{shown['id']}")
    assert (answer.status_code, answer.json()["code"]) == (403, "not-yours")
    assert register(vic, key).status_code == 400  # it is known already
    assert olga.send("DELETE", f"/api/v1/me/passkeys/{shown['id']}").status_code == 204
    assert sign_in(Browser(olga.site, HERE), key).status_code == 403


def test_a_program_adds_none(olga: Browser) -> None:
    program = olga.site.program(olga.site.token("olga", "apitokens:write", "users:write"))
    answer = program.post("/api/v1/me/passkeys/options", headers={"Host": "localhost:8480"})
    assert (answer.status_code, answer.json()["code"]) == (403, "browser-only")


def test_what_is_begun_again_takes_no_try_of_a_password(olga: Browser) -> None:
    browser = Browser(olga.site, HERE)
    for _ in range(signin.TRIES_BURST + 1):
        assert browser.client.post("/login/passkey/options").status_code == 200
    assert browser.sign_in().status_code == 303
    codes = [browser.client.post("/login/passkey/options").status_code for _ in range(signin.STEPS_BURST)]
    assert codes[-1] == 429 and codes.count(429) <= signin.TRIES_BURST + 1
    refusal = olga.site.audit("refused")[-1]
    assert (refusal.object, json.loads(refusal.detail)["why"]) == ("POST /login/passkey/options", "too-many-tries")


@pytest.mark.parametrize("credential", [{}, {"id": "x"}, {"id": "é", "response": 7}, {"id": "A" * 5_000}])
def test_nonsense(olga: Browser, credential: dict[str, Any]) -> None:
    olga.send("POST", "/api/v1/me/passkeys/options")
    assert olga.send("POST", "/api/v1/me/passkeys", credential=credential).status_code == 400
    browser = Browser(olga.site, HERE)
    browser.client.post("/login/passkey/options")
    assert browser.client.post("/login/passkey", json={"credential": credential}).status_code == 403
