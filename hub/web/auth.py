"""Who makes a request and whether they may: one dependency, on every endpoint that is not for everybody.

    @router.get("/devices")
    def devices(who: Annotated[Principal, allowed("devices:read")], backend: CurrentBackend) -> …

A session comes by cookie and must bring its CSRF token with every write; an API token comes by header and needs none.
"""

from __future__ import annotations

import hmac
import time
from typing import Annotated, Any

from fastapi import Depends, Request
from starlette.concurrency import run_in_threadpool

from hub.core.people import SESSION_SEEN_S, csrf_token, digest, split_api_token
from hub.core.roles import PERMISSIONS, Principal
from hub.store import people
from hub.web import cookies
from hub.web.backend import Backend
from hub.web.errors import Forbidden, NotSignedIn

SAFE = ("GET", "HEAD", "OPTIONS")
TOKEN_SEEN_S = 60
_FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")


def backend_of(request: Request) -> Backend:
    backend: Backend = request.app.state.backend
    return backend


async def current_user(request: Request) -> Principal:
    """Raises NotSignedIn, or Forbidden for a session or token that does not count any more."""
    backend = backend_of(request)
    request.state.live_mark = request.app.state.live_mark()  # before anything that a page shows is read
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        who = await run_in_threadpool(_by_api_token, backend, secret.strip())
    else:
        token = cookies.session_token(request)
        if not token:
            raise NotSignedIn
        who = await run_in_threadpool(by_session, backend, token)
        if request.method not in SAFE and not hmac.compare_digest(
            (await _sent_csrf(request)).encode(), who.csrf.encode()
        ):
            raise Forbidden("no-csrf-token", "The form was old, or of another site. Load the page again.", who.actor)
    request.state.who = who
    return who


CurrentUser = Annotated[Principal, Depends(current_user)]
CurrentBackend = Annotated[Backend, Depends(backend_of)]


def allowed(action: str) -> Any:
    """A dependency: the Principal, who may do `action`; else 403 and an audit row."""
    assert action in PERMISSIONS

    async def check(who: CurrentUser) -> Principal:
        demand(who, action)
        return who

    return Depends(check)


def demand(who: Principal, action: str, owner: str | None = None) -> None:
    """For what belongs to somebody: `owner` is a login. Raises Forbidden."""
    if who.may(action, owner):
        return
    if who.scopes is not None and action not in who.scopes:
        raise Forbidden("scope-missing", f"This API token has not the scope {action}.", who.actor)
    code = "not-yours" if owner is not None else "role"
    raise Forbidden(code, f"Your role ({who.role.value}) does not allow this ({action}).", who.actor)


def by_session(backend: Backend, token: str) -> Principal:
    hash_ = digest(token)
    wall_s = int(time.time())
    with backend.read() as tx:
        session = people.session_by_hash(tx.connection, hash_)
        person = people.person_by_id(tx.connection, session.person) if session is not None else None
    if session is None or person is None:
        raise Forbidden("session-unknown", "This session is unknown. Sign in.")
    refusal = session.refusal(wall_s) or ("disabled" if person.disabled_s else None)
    if refusal:
        raise Forbidden(refusal, "Your session is over. Sign in again.", f"user:{person.login}")
    if wall_s >= session.seen_s + SESSION_SEEN_S:
        with backend.write() as (tx, _, wall_s):
            people.touch_session(tx.connection, hash_, wall_s)
    return Principal(person.id, person.login, person.name, person.role, session=hash_, csrf=csrf_token(token))


def _by_api_token(backend: Backend, text: str) -> Principal:
    parts = split_api_token(text)
    if parts is None:
        raise Forbidden("token-malformed", "This is no API token: one begins with em_.")
    token_id, secret = parts
    wall_s = int(time.time())
    with backend.read() as tx:
        token = people.api_token_by_id(tx.connection, token_id)
        person = people.person_by_id(tx.connection, token.person) if token is not None else None
    if token is None or person is None or not hmac.compare_digest(token.hash, digest(secret)):
        raise Forbidden("token-unknown", "This API token is unknown.")
    refusal = token.refusal(wall_s) or ("disabled" if person.disabled_s else None)
    if refusal:
        raise Forbidden(refusal, "This API token does not count any more.", f"token:{token.id} of user:{person.login}")
    if wall_s >= token.used_s + TOKEN_SEEN_S:
        with backend.write() as (tx, _, wall_s):
            people.touch_api_token(tx.connection, token.id, wall_s)
    return Principal(person.id, person.login, person.name, person.role, scopes=frozenset(token.scopes), token=token.id)


async def _sent_csrf(request: Request) -> str:
    if sent := request.headers.get("x-csrf-token"):
        return sent
    if request.headers.get("content-type", "").partition(";")[0] in _FORMS:
        field = (await request.form()).get("csrf")
        return field if isinstance(field, str) else ""
    return ""
