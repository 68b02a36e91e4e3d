"""Signing in at a real OpenID provider that runs beside the test, and what it must not be believed."""

from __future__ import annotations

import base64
import hashlib
import hmac
import io
import json
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
from joserfc import jwt
from joserfc.jwk import RSAKey
from joserfc.jws import JWSRegistry
from werkzeug.serving import BaseWSGIServer, make_server

from hub.core.model import HubError
from hub.core.oidc import Oidc, Untrusted, challenge, check_claims, check_settings, keep_secret
from hub.core.roles import Access
from hub.people import set_role
from hub.store import oidcsettings, people
from hub.store.sql import SqlTx
from hub.web import signin
from hub.web.oidc import Provider, open_token
from tests.hub.web.kit import HERE, Browser, Site

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the provider uses an old name of a library of its own
    from oidc_provider_mock import User
    from oidc_provider_mock import app as provider_app

# The provider calls old names of a library of its own.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

WALL_S = 1_800_000_000


class Idp:
    """The provider, and what it does not do itself: it holds clients to PKCE."""

    def __init__(self) -> None:
        users = [
            User(sub="sub-ada", claims=_claims("Ada@Example.org", groups=["fleet", "other"])),
            User(sub="sub-ada-2", claims=_claims("ada@example.org", groups=["fleet"])),
            User(sub="sub-eve", claims=_claims("eve@elsewhere.test")),
            User(sub="sub-bob", claims={**_claims("bob@example.org", groups=["fleet"]), "email_verified": False}),
            User(sub="sub-nobody", claims=_claims("nobody@example.org")),
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._app: Any = provider_app(require_client_registration=True, require_nonce=True, user_claims=users)
        self._challenges: set[str] = set()
        self.asked: list[str] = []
        self.server: BaseWSGIServer = make_server("localhost", 0, self._answer, threaded=True)
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self._thread.start()
        self.issuer = f"http://localhost:{self.server.server_port}"

    def register(self, redirect_uri: str) -> tuple[str, str]:
        """(client id, its secret); the provider sends nobody anywhere else."""
        answer = httpx2.post(f"{self.issuer}/oauth2/clients", json={"redirect_uris": [redirect_uri]})
        client: dict[str, str] = answer.json()
        return client["client_id"], client["client_secret"]

    def stop(self) -> None:
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()

    def _answer(self, environ: Any, start: Any) -> Any:
        self.asked.append(environ["PATH_INFO"])
        if environ["PATH_INFO"] == "/oauth2/authorize":
            query = parse_qs(environ["QUERY_STRING"])
            if query.get("code_challenge_method") != ["S256"]:
                return _refuse(start)
            self._challenges.add(query["code_challenge"][0])
        if environ["PATH_INFO"] == "/oauth2/token":
            body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
            verifier = parse_qs(body.decode())["code_verifier"][0]
            digest = hashlib.sha256(verifier.encode()).digest()
            if base64.urlsafe_b64encode(digest).decode().rstrip("=") not in self._challenges:
                return _refuse(start)
            environ["wsgi.input"] = io.BytesIO(body)
        return self._app(environ, start)


def _refuse(start: Any) -> list[bytes]:
    start("400 Bad Request", [("Content-Type", "application/json")])
    return [b'{"error": "invalid_grant"}']


def _claims(email: str, groups: list[str] | None = None) -> dict[str, Any]:
    return {"email": email, "email_verified": True, "name": email.partition("@")[0], "groups": groups or []}


@pytest.fixture(scope="module")
def idp() -> Iterator[Idp]:
    idp = Idp()
    yield idp
    idp.stop()


@pytest.fixture
def sso(site: Site, idp: Idp) -> Site:
    client_id, secret = idp.register(f"{HERE}/login/oidc/callback")
    site.secrets.append(secret)
    configure(
        site,
        Oidc(
            issuer=idp.issuer,
            client_id=client_id,
            client_secret=secret,
            domains=("example.org",),
            roles={"fleet": "operator"},
        ),
    )
    return site


def configure(site: Site, settings: Oidc) -> None:
    with site.write() as tx:
        oidcsettings.save(tx.connection, settings)


def settings_of(site: Site) -> Oidc:
    with site.write() as tx:
        return oidcsettings.load(tx.connection)


def person(site: Site, login: str) -> Any:
    with site.write() as tx:
        return people.person_by_login(tx.connection, login)


def to_provider(browser: Browser, where: str = "/login/oidc") -> str:
    answer = browser.client.get(where)
    assert answer.status_code == 303
    return str(answer.headers["location"])


def consent(address: str, sub: str) -> str:
    """At the provider: where it sends the browser back to."""
    answer = httpx2.post(address, data={"sub": sub})
    assert answer.status_code == 302, answer.text
    return str(answer.headers["location"])


def come_back(browser: Browser, address: str) -> Any:
    assert address.startswith(f"{HERE}/login/oidc/callback?")
    browser.site.secrets += [value for values in parse_qs(urlsplit(address).query).values() for value in values]
    return browser.client.get(address)


def sign_in(site: Site, sub: str, where: str = "/login/oidc") -> tuple[Browser, Any]:
    browser = site.browser()
    return browser, come_back(browser, consent(to_provider(browser, where), sub))


def test_the_whole_flow(sso: Site, idp: Idp) -> None:
    browser, answer = sign_in(sso, "sub-ada", "/login/oidc?next=/devices")
    assert (answer.status_code, answer.headers["location"]) == (303, "/devices")
    me = browser.client.get("/api/v1/me").json()
    assert (me["login"], me["role"]) == ("ada@example.org", "operator")
    ada = person(sso, "ada@example.org")
    assert (ada.issuer, ada.subject, ada.password) == (idp.issuer, "sub-ada", "")
    assert [entry.verb for entry in sso.audit() if entry.actor == "oidc"] == ["user.add", "user.link"]
    _, again = sign_in(sso, "sub-ada")
    assert again.status_code == 303 and len(sso.audit("user.add")) == 2  # the owner's and hers


def test_what_is_asked_of_the_provider(sso: Site) -> None:
    query = parse_qs(urlsplit(to_provider(sso.browser())).query)
    assert query["redirect_uri"] == [f"{HERE}/login/oidc/callback"]
    assert query["response_type"] == ["code"] and query["code_challenge_method"] == ["S256"]
    other = parse_qs(urlsplit(to_provider(sso.browser())).query)
    for name in ("state", "nonce", "code_challenge"):
        assert len(query[name][0]) >= 43 and query[name] != other[name]


@pytest.mark.parametrize(
    ("sub", "why"),
    [
        ("sub-eve", "oidc-domain"),
        ("sub-bob", "oidc-email"),
        ("sub-nobody", "oidc-no-role"),
    ],
)
def test_who_is_not_let_in(sso: Site, sub: str, why: str) -> None:
    browser, answer = sign_in(sso, sub)
    assert answer.status_code == 403 and "set-cookie" not in answer.headers
    assert browser.client.get("/").status_code == 303
    assert json.loads(sso.audit("refused")[-1].detail)["why"] == why
    assert len(sso.audit("user.add")) == 1


def test_the_subject_is_who_it_is_and_not_the_address(sso: Site) -> None:
    assert sign_in(sso, "sub-ada")[1].status_code == 303
    _, answer = sign_in(sso, "sub-ada-2")  # the same address, another person
    assert answer.status_code == 403
    assert json.loads(sso.audit("refused")[-1].detail)["why"] == "oidc-taken"


def test_a_user_with_a_password_is_not_taken_over(sso: Site) -> None:
    sso.add_person("ada@example.org", Access.ADMIN)
    assert sign_in(sso, "sub-ada")[1].status_code == 403
    assert person(sso, "ada@example.org").issuer is None


def test_a_user_without_a_password_waits_for_the_provider(sso: Site) -> None:
    with sso.write() as tx:
        add(tx, "nobody@example.org", Access.AUDITOR)
    browser, answer = sign_in(sso, "sub-nobody")
    assert answer.status_code == 303
    assert browser.client.get("/api/v1/me").json()["role"] == "auditor"  # no group says otherwise


def add(tx: SqlTx, login: str, role: Access) -> None:
    from hub.people import add_person

    add_person(tx, int(time.time()), "cli:test", login=login, role=role)


def test_the_role_follows_the_groups_but_owners_stay(sso: Site) -> None:
    browser, _ = sign_in(sso, "sub-ada")
    configure(sso, replace(settings_of(sso), roles={"fleet": "viewer"}))
    sign_in(sso, "sub-ada")
    assert person(sso, "ada@example.org").role is Access.VIEWER
    assert browser.client.get("/").status_code == 403  # the session of the role before
    with sso.write() as tx:
        ada = people.person_by_login(tx.connection, "ada@example.org")
        assert ada is not None
        ada.role = Access.OWNER
        people.save_person(tx.connection, ada)
    sign_in(sso, "sub-ada")
    assert person(sso, "ada@example.org").role is Access.OWNER


def test_a_role_goes_with_the_groups_that_gave_it(sso: Site) -> None:
    browser, _ = sign_in(sso, "sub-ada")
    token = sso.token("ada@example.org", "devices:read")
    configure(sso, replace(settings_of(sso), roles={"others": "viewer"}))
    _, answer = sign_in(sso, "sub-ada")
    assert answer.status_code == 403 and json.loads(sso.audit("refused")[-1].detail)["why"] == "oidc-no-role"
    assert browser.client.get("/api/v1/me").status_code == 403
    assert sso.program(token).get("/api/v1/devices").status_code == 403
    assert [entry.object for entry in sso.audit("user.role-lost")] == ["user:ada@example.org"]
    configure(sso, replace(settings_of(sso), roles={"fleet": "viewer"}))
    assert sign_in(sso, "sub-ada")[1].status_code == 303  # the groups came back
    ada = person(sso, "ada@example.org")
    with sso.write() as tx:
        set_role(tx, int(time.time()), "cli:test", ada, Access.AUDITOR)
    configure(sso, replace(settings_of(sso), roles={"others": "viewer"}))
    assert sign_in(sso, "sub-ada")[1].status_code == 303  # somebody here gave that role
    assert person(sso, "ada@example.org").role is Access.AUDITOR


def test_another_provider_is_not_told_the_secret_of_the_one_before() -> None:
    before = Oidc("https://a.test", "hub", "secret a")
    assert keep_secret(replace(before, label="in", client_secret=""), before).client_secret == "secret a"
    assert keep_secret(replace(before, client_secret="new"), before).client_secret == "new"
    for changed in (replace(before, issuer="https://b.test"), replace(before, client_id="other"), Oidc()):
        assert keep_secret(replace(changed, client_secret=""), before).client_secret == ""
    with pytest.raises(HubError, match="secret"):
        check_settings(keep_secret(replace(before, issuer="https://b.test", client_secret=""), before))


def test_a_disabled_user_stays_out(sso: Site) -> None:
    sign_in(sso, "sub-ada")
    with sso.write() as tx:
        from hub.people import find_person, set_disabled

        set_disabled(tx, int(time.time()), "cli:test", find_person(tx, "ada@example.org"), True)
    assert sign_in(sso, "sub-ada")[1].status_code == 403


def test_an_answer_counts_once_and_only_in_the_browser_that_asked(sso: Site) -> None:
    browser = sso.browser()
    back = consent(to_provider(browser), "sub-ada")
    assert come_back(sso.browser(), back).status_code == 403  # login CSRF: a link that somebody was sent
    kept = dict(browser.client.cookies)
    assert come_back(browser, back).status_code == 303
    browser.client.cookies.update(kept)
    assert come_back(browser, back).status_code == 403
    whys = [json.loads(entry.detail)["why"] for entry in sso.audit("refused")]
    assert whys == ["oidc-state", "oidc-state"]


def test_a_code_of_another_sign_in_does_not_pass(sso: Site) -> None:
    """The thief's code with the victim's state: PKCE binds each code to one verifier, and the nonce to one token."""
    thief, victim = sso.browser(), sso.browser()
    stolen = parse_qs(urlsplit(consent(to_provider(thief), "sub-ada")).query)["code"][0]
    state = parse_qs(urlsplit(to_provider(victim)).query)["state"][0]
    answer = come_back(victim, f"{HERE}/login/oidc/callback?code={stolen}&state={state}")
    assert answer.status_code == 403
    assert json.loads(sso.audit("refused")[-1].detail)["why"] in ("oidc-code", "oidc-nonce")


def test_denied_at_the_provider(sso: Site) -> None:
    browser = sso.browser()
    address = to_provider(browser)
    state = parse_qs(urlsplit(address).query)["state"][0]
    answer = httpx2.post(address, data={"action": "deny"})
    assert "error=access_denied" in answer.headers["location"]
    refused = come_back(browser, f"{HERE}/login/oidc/callback?error=access_denied&state={state}")
    assert refused.status_code == 403 and "did not let you in" in refused.text


def test_the_provider_knows_one_redirect_address(sso: Site) -> None:
    address = to_provider(sso.browser()).replace("callback", "elsewhere")
    assert httpx2.post(address, data={"sub": "sub-ada"}).status_code == 400


def test_a_wrong_client_secret(sso: Site) -> None:
    configure(sso, replace(settings_of(sso), client_secret="wrong"))
    _, answer = sign_in(sso, "sub-ada")
    assert answer.status_code == 403
    assert json.loads(sso.audit("refused")[-1].detail)["why"] == "oidc-code"


def test_metadata_and_keys_are_kept(sso: Site, idp: Idp) -> None:
    idp.asked.clear()
    for _ in range(3):
        sign_in(sso, "sub-ada")
    assert idp.asked.count("/.well-known/openid-configuration") == 1
    assert idp.asked.count("/jwks") == 1


def test_what_is_begun_again_takes_no_try_of_a_password(sso: Site) -> None:
    browser = sso.browser()
    for _ in range(signin.TRIES_BURST + 1):
        to_provider(browser)
    assert browser.sign_in().status_code == 303
    codes = [browser.client.get("/login/oidc/callback").status_code for _ in range(signin.STEPS_BURST)]
    assert codes[0] == 403 and codes[-1] == 429 and codes.count(429) <= signin.TRIES_BURST + 1


def test_a_provider_that_calls_itself_something_else(sso: Site, idp: Idp) -> None:
    configure(sso, replace(settings_of(sso), issuer=idp.issuer + "/"))
    answer = sso.browser().client.get("/login/oidc")
    assert answer.status_code == 502 and idp.issuer not in answer.text


def test_without_settings_there_is_nothing(site: Site) -> None:
    assert site.browser().client.get("/login/oidc").status_code == 404


# what an ID token must say

SETTINGS = Oidc(issuer="https://id.test", client_id="hub", client_secret="x", default_role="viewer")
GOOD: dict[str, Any] = {
    "iss": "https://id.test",
    "aud": "hub",
    "sub": "1",
    "exp": WALL_S + 300,
    "iat": WALL_S,
    "nonce": "n",
    "email": "a@b.test",
    "email_verified": True,
}


def test_a_good_token() -> None:
    vouched = check_claims(SETTINGS, GOOD, "n", WALL_S)
    assert (vouched.subject, vouched.login, vouched.role) == ("1", "a@b.test", Access.VIEWER)
    assert check_claims(SETTINGS, {**GOOD, "aud": ["hub", "x"], "azp": "hub"}, "n", WALL_S) == vouched


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"iss": "https://id.test/"}, "oidc-issuer"),
        ({"aud": "other"}, "oidc-audience"),
        ({"aud": ["other"]}, "oidc-audience"),
        ({"aud": None}, "oidc-audience"),
        ({"aud": ["hub", "other"]}, "oidc-azp"),
        ({"azp": "other"}, "oidc-azp"),
        ({"exp": WALL_S - 61}, "oidc-expired"),
        ({"exp": "soon"}, "oidc-expired"),
        ({"exp": None}, "oidc-expired"),
        ({"iat": WALL_S - 3_600}, "oidc-expired"),
        ({"iat": WALL_S + 3_600}, "oidc-expired"),
        ({"nonce": "other"}, "oidc-nonce"),
        ({"nonce": None}, "oidc-nonce"),
        ({"sub": ""}, "oidc-subject"),
        ({"sub": 7}, "oidc-subject"),
        ({"sub": "x" * 256}, "oidc-subject"),
        ({"email_verified": "true"}, "oidc-email"),
        ({"email_verified": None}, "oidc-email"),
        ({"email": 7}, "oidc-email"),
    ],
)
def test_a_token_that_does_not_count(change: dict[str, Any], why: str) -> None:
    with pytest.raises(Untrusted) as refused:
        check_claims(SETTINGS, {**GOOD, **change}, "n", WALL_S)
    assert refused.value.code == why


def test_pkce_is_that_of_the_rfc() -> None:
    assert challenge("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk") == "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"


def _signed(key: Any, claims: dict[str, Any], algorithm: str, key_id: str) -> str:
    registry = JWSRegistry(algorithms=[algorithm])
    return jwt.encode({"alg": algorithm, "kid": key_id}, claims, key, registry=registry)


@pytest.mark.parametrize("how", ["stranger", "hmac-with-public-key", "none"])
def test_a_token_that_the_provider_did_not_sign(idp: Idp, how: str) -> None:
    [public] = httpx2.get(f"{idp.issuer}/jwks").json()["keys"]
    settings = replace(SETTINGS, issuer=idp.issuer)
    claims = {**GOOD, "iss": idp.issuer}
    key_id = public.get("kid", "")
    if how == "stranger":
        token = _signed(RSAKey.generate_key(2048), claims, "RS256", key_id)
    elif how == "none":
        parts = ({"alg": "none", "kid": key_id}, claims)
        token = ".".join(_base64(json.dumps(part).encode()) for part in parts) + "."
    else:
        head = (
            _base64(json.dumps({"alg": "HS256", "kid": key_id}).encode()) + "." + _base64(json.dumps(claims).encode())
        )
        pem = RSAKey.import_key(public).as_pem(private=False)
        token = f"{head}.{_base64(hmac.digest(pem, head.encode(), 'sha256'))}"
    with pytest.raises(Untrusted) as refused:
        open_token(Provider(), 0.0, settings, token)
    assert refused.value.code == "oidc-signature"


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
