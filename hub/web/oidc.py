"""Signing in by OpenID Connect: authorization code flow with PKCE, state and nonce.

The provider's metadata and keys are fetched from where the settings say, kept for an hour, and bounded. Whoever comes
back is who (iss, sub) says; an email address only names a new user, and only when the provider has verified it.
"""

from __future__ import annotations

import base64
import json
import logging
import secrets
import threading
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode, urlsplit

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from hub.core import audit
from hub.core.model import HubError
from hub.core.oidc import ALGORITHMS, Oidc, Untrusted, Vouched, challenge, check_claims
from hub.core.people import Person, check_login
from hub.core.roles import Access
from hub.io.fetch import Answer, FetchError, fetch
from hub.people import add_person, set_role, take_away
from hub.store import oidcsettings, people
from hub.store.sql import SqlTx
from hub.web import cookies
from hub.web.auth import CurrentBackend
from hub.web.backend import Backend
from hub.web.errors import Problem, client_address
from hub.web.signin import demand_step, enter, safe_next

KEPT_S = 3_600
KEYS_AGAIN_S = 60  # an unknown key id makes us look at the keys anew, but not more often
KEYS_MAX = 64
CODE_MAX = 2_048

if TYPE_CHECKING:
    from joserfc.jwk import KeySet

log = logging.getLogger("edgehub.web")
router = APIRouter(include_in_schema=False)


class Provider:
    """What is known of the provider; `app.state.provider`. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._issuer = ""
        self._metadata: dict[str, Any] = {}
        self._keys: list[dict[str, Any]] = []
        self._metadata_at = self._keys_at = float("-inf")

    def metadata(self, now: float, issuer: str) -> dict[str, Any]:
        """Raises Untrusted."""
        with self._lock:
            if issuer != self._issuer or now >= self._metadata_at + KEPT_S:
                url = issuer.rstrip("/") + "/.well-known/openid-configuration"
                found = _json(_ask("GET", url), "metadata")
                if found.get("issuer") != issuer:
                    raise Untrusted("oidc-metadata", "the provider calls itself something else than the settings do")
                for name in ("authorization_endpoint", "token_endpoint", "jwks_uri"):
                    _check_endpoint(issuer, name, found.get(name))
                self._issuer, self._metadata, self._metadata_at = issuer, found, now
                self._keys_at = float("-inf")
            return self._metadata

    def keys(self, now: float, issuer: str, key_id: str | None) -> KeySet:
        """Raises Untrusted."""
        url = self.metadata(now, issuer)["jwks_uri"]
        with self._lock:
            known = any(key.get("kid") == key_id for key in self._keys)
            if now >= self._keys_at + (KEPT_S if known else KEYS_AGAIN_S):
                keys = _json(_ask("GET", url), "keys").get("keys")
                if not isinstance(keys, list) or len(keys) > KEYS_MAX:
                    raise Untrusted("oidc-keys", "the provider's keys cannot be read")
                self._keys, self._keys_at = [key for key in keys if isinstance(key, dict)], now
            usable = [key for key in self._keys if key.get("use", "sig") == "sig" and key.get("kty") != "oct"]
        from joserfc.errors import JoseError
        from joserfc.jwk import KeySet

        try:
            return KeySet.import_key_set({"keys": usable})
        except (JoseError, ValueError, TypeError, KeyError) as error:
            raise Untrusted("oidc-keys", "the provider's keys cannot be read") from error


@router.get("/login/oidc")
def begin(request: Request, backend: CurrentBackend, next: str = "/") -> Response:
    """To the provider; what must come back is in a cookie of ours until then."""
    settings = _settings(backend)
    demand_step(request, backend, client_address(request))
    try:
        metadata = request.app.state.provider.metadata(backend.clock(), settings.issuer)
    except Untrusted as error:
        log.warning("oidc: %s", error)
        raise Problem(502, error.code, f"The provider cannot be used: {error}.") from error
    state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
    query = {
        "response_type": "code",
        "client_id": settings.client_id,
        "redirect_uri": redirect_uri(request),
        "scope": "openid email profile",
        "state": state,
        "nonce": nonce,
        "code_challenge": challenge(verifier),
        "code_challenge_method": "S256",
    }
    endpoint = metadata["authorization_endpoint"]
    response = RedirectResponse(f"{endpoint}{'&' if '?' in endpoint else '?'}{urlencode(query)}", 303)
    kept = {"state": state, "nonce": nonce, "verifier": verifier, "next": safe_next(next)}
    request.app.state.sealer.put(request, response, "oidc", kept)
    return response


@router.get("/login/oidc/callback")
def come_back(
    request: Request, backend: CurrentBackend, code: str = "", state: str = "", iss: str = "", error: str = ""
) -> Response:
    """From the provider. Each refusal is audited with its reason."""
    settings = _settings(backend)
    address = client_address(request)
    demand_step(request, backend, address)
    kept = request.app.state.sealer.take(request, None, "oidc")
    try:
        if kept is None or not secrets.compare_digest(kept["state"].encode(), state.encode()):
            raise Untrusted("oidc-state", "this sign-in was not begun here, or long ago. Begin again")
        if error or not code or len(code) > CODE_MAX:
            raise Untrusted("oidc-denied", "the provider did not let you in")
        provider: Provider = request.app.state.provider
        metadata = provider.metadata(backend.clock(), settings.issuer)
        if (iss or metadata.get("authorization_response_iss_parameter_supported")) and iss != settings.issuer:
            raise Untrusted("oidc-issuer", "the answer is of another provider")  # RFC 9207
        token = _redeem(settings, metadata, code, redirect_uri(request), kept["verifier"])
        claims = open_token(provider, backend.clock(), settings, token)
        vouched = check_claims(settings, claims, kept["nonce"], int(time.time()))
        with backend.write() as (tx, _, wall_s):
            person = _person(tx, wall_s, vouched, address)
        if person is None:
            raise Untrusted("oidc-no-role", "the groups that let you in are no longer yours")
    except Untrusted as refused:
        backend.note_refusal(f"address:{address}", refused.code, "GET /login/oidc/callback", address)
        log.warning("oidc: %s", refused)
        raise Problem(403, refused.code, f"You were not let in: {refused}.") from refused
    response = enter(request, backend, person, "oidc", kept["next"])
    cookies.clear_short(request, response, "oidc")
    return response


def redirect_uri(request: Request) -> str:
    return f"{cookies.origin(request)}/login/oidc/callback"


def _settings(backend: Backend) -> Oidc:
    with backend.read() as tx:
        settings = oidcsettings.load(tx.connection)
    if not settings.issuer:
        raise Problem(404, "oidc-off", "Nobody signs in this way here. `edgehub oidc set` changes that.")
    return settings


def _person(tx: SqlTx, wall_s: int, vouched: Vouched, address: str) -> Person | None:
    """Who it is, made or brought up to date; None: the role went with the groups. Raises Untrusted."""
    person = people.person_by_subject(tx.connection, vouched.issuer, vouched.subject)
    if person is None:
        person = _newcomer(tx, wall_s, vouched)
    if person.disabled_s:
        raise Untrusted("disabled", "this user is disabled")
    # Owners stay what they are: nobody takes the hub from them at the provider.
    if person.role is Access.OWNER:
        return person
    if vouched.role is None and person.role_from:
        take_away(tx, wall_s, "oidc", person)
        return None
    if vouched.role is not None and person.role is not vouched.role:
        set_role(tx, wall_s, "oidc", person, vouched.role)
    return person


def _newcomer(tx: SqlTx, wall_s: int, vouched: Vouched) -> Person:
    """A new user, or one that was made for this address and has no other way to sign in."""
    person = people.person_by_login(tx.connection, vouched.login)
    if person is not None and (person.issuer is not None or person.password):
        raise Untrusted("oidc-taken", "another user has this address as login")
    if person is None:
        if vouched.role is None:
            raise Untrusted("oidc-no-role", "nobody has given you a role here")
        try:
            check_login(vouched.login)
        except HubError as error:
            raise Untrusted("oidc-email", "this address cannot be a login") from error
        person = add_person(
            tx,
            wall_s,
            "oidc",
            login=vouched.login,
            role=vouched.role,
            name="".join(filter(str.isprintable, vouched.name)),
        )
    person.issuer, person.subject = vouched.issuer, vouched.subject
    people.save_person(tx.connection, person)
    audit.record(tx, wall_s, "oidc", "user.link", f"user:{person.login}", {"issuer": vouched.issuer})
    return person


def _redeem(settings: Oidc, metadata: dict[str, Any], code: str, uri: str, verifier: str) -> str:
    """The ID token for a code. Raises Untrusted."""
    form = {"grant_type": "authorization_code", "code": code, "redirect_uri": uri, "code_verifier": verifier}
    headers = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}
    methods = metadata.get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
    if "client_secret_basic" in methods:
        pair = f"{quote(settings.client_id, safe='')}:{quote(settings.client_secret, safe='')}"
        headers["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
    else:
        form |= {"client_id": settings.client_id, "client_secret": settings.client_secret}
    answer = _ask("POST", metadata["token_endpoint"], headers=headers, body=urlencode(form).encode())
    if answer.status != 200:
        raise Untrusted("oidc-code", f"the provider did not take the code (status {answer.status})")
    token = _json(answer, "token").get("id_token")
    if not isinstance(token, str):
        raise Untrusted("oidc-token", "the provider gave no ID token")
    return token


def open_token(provider: Provider, now: float, settings: Oidc, token: str) -> dict[str, Any]:
    """The claims of an ID token that the provider has signed. Raises Untrusted."""
    from joserfc import jwt  # takes memory that only single sign-on needs
    from joserfc.errors import JoseError

    try:
        header = json.loads(base64.urlsafe_b64decode(token.partition(".")[0] + "=="))
        keys = provider.keys(now, settings.issuer, header.get("kid"))
        return dict(jwt.decode(token, keys, algorithms=list(ALGORITHMS)).claims)
    except (JoseError, ValueError, AttributeError, TypeError, KeyError) as error:
        raise Untrusted("oidc-signature", "the token's signature is not the provider's") from error


def _ask(method: str, url: str, **more: Any) -> Answer:
    try:
        return fetch(method, url, private=True, **more)  # the operator chose it, and it may well stand beside the hub
    except FetchError as error:
        raise Untrusted("oidc-provider", f"the provider cannot be reached ({error})") from error


def _json(answer: Answer, what: str) -> dict[str, Any]:
    try:
        found = json.loads(answer.body) if answer.status == 200 else None
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Untrusted("oidc-provider", f"the provider's {what} cannot be read (status {answer.status})")
    return found


def _check_endpoint(issuer: str, name: str, url: Any) -> None:
    """https, or plain HTTP to this very machine where the issuer is there too."""
    parts = urlsplit(url) if isinstance(url, str) else urlsplit("")
    local = parts.hostname in ("localhost", "127.0.0.1", "::1") and urlsplit(issuer).scheme == "http"
    if parts.scheme != "https" and not local:
        raise Untrusted("oidc-metadata", f"the provider's {name} is not https")
