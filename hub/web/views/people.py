"""Users and roles, API tokens, and one's own account. What may be done is the API's to say: its functions do it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from hub.core.model import HubError
from hub.core.people import PASSWORD_MAX, PASSWORD_MIN
from hub.core.roles import OWN, PERMISSIONS, Access, Principal
from hub.output import parse_duration
from hub.store import people
from hub.web import passkeys
from hub.web.api import people as api
from hub.web.auth import CurrentBackend, CurrentUser, allowed
from hub.web.views.common import PAGE_SIZE, Pager, back, is_part, page, valid

router = APIRouter(include_in_schema=False)

TOKENS_SHOWN = 100
ROLES = {
    Access.OWNER: "everything, other owners too",
    Access.ADMIN: "everything but owners and how people sign in",
    Access.OPERATOR: "runs the fleet: devices, tokens, relays, routes, commands",
    Access.AUDITOR: "sees everything, the audit log too, and changes nothing",
    Access.VIEWER: "sees the fleet",
}
LIVES = {"7d": "1 week", "30d": "30 days", "90d": "90 days", "365d": "a year"}

Text = Annotated[str, Form(max_length=300)]
Password = Annotated[str, Form(max_length=PASSWORD_MAX)]


@router.get("/users")
def users(
    request: Request,
    who: Annotated[Principal, allowed("users:read")],
    backend: CurrentBackend,
    after: Annotated[str, Query(max_length=300)] = "",
    first: Annotated[int, Query(ge=1, le=1_000_000)] = 1,
) -> Response:
    with backend.read() as tx:
        found = people.people(tx.connection, after=after, limit=PAGE_SIZE + 1)
        total = people.people_count(tx.connection)
    shown = found[:PAGE_SIZE]
    more = shown[-1].login if len(found) > PAGE_SIZE else ""
    context = {
        "people": shown,
        "pager": Pager("/users", {}, first, len(shown), total, {"after": more}),
        "roles": ROLES,
        "may_own": who.role is Access.OWNER,
        "permissions": PERMISSIONS,
        "here": f"/users?after={after}&first={first}",
        "password_min": PASSWORD_MIN,
    }
    return page(request, "users_table.html" if is_part(request) else "users.html", context)


@router.post("/users")
def add_user(
    who: Annotated[Principal, allowed("users:write")],
    backend: CurrentBackend,
    login: Text,
    role: Text,
    name: Text = "",
    password: Password = "",
) -> Response:
    body = valid(api.NewUser, login=login.strip().lower(), role=role, name=name.strip(), password=password)
    api.add_user(backend, who, body)
    return back("/users", "user-added")


@router.post("/users/{user}")
def change_user(
    who: Annotated[Principal, allowed("users:write")],
    backend: CurrentBackend,
    user: str,
    role: Text = "",
    do: Text = "",
) -> Response:
    """A role, or `do`: disable or enable."""
    disabled = {"disable": True, "enable": False}.get(do)
    api.change_user(backend, who, user, valid(api.UserChange, role=role or None, disabled=disabled))
    return back("/users", "user-changed")


@router.get("/api-tokens")
def api_tokens(request: Request, who: CurrentUser, backend: CurrentBackend, made: str = "") -> Response:
    return page(request, "api_tokens.html", _token_context(backend, who))


@router.post("/api-tokens")
async def make_api_token(request: Request, who: CurrentUser, backend: CurrentBackend) -> Response:
    """`scope` stands for each. The answer shows the token, this once."""
    form = await request.form()
    try:
        life = parse_duration(str(form.get("life", "")))
    except ValueError as error:
        raise HubError(f"life of the token: {error}") from error
    body = valid(
        api.NewApiToken,
        name=str(form.get("name", "")).strip(),
        scopes=[str(scope) for scope in form.getlist("scope")],
        expires_in=life,
    )
    new = await run_in_threadpool(api.make_api_token, backend, who, body)
    return page(request, "api_tokens.html", {**_token_context(backend, who), "made": new})


@router.post("/api-tokens/{token_id}/revoke")
def revoke_api_token(who: CurrentUser, backend: CurrentBackend, token_id: str) -> Response:
    api.revoke_api_token(backend, who, token_id)
    return back("/api-tokens", "api-revoked")


def _token_context(backend: CurrentBackend, who: Principal) -> dict[str, object]:
    all_ = who.may("apitokens:read")
    found = api.list_api_tokens(backend, who, everybodys=all_, limit=TOKENS_SHOWN)
    scopes = [scope for scope in PERMISSIONS if who.may(scope) or scope in OWN]
    return {
        "tokens": sorted(found.api_tokens, key=lambda token: -token.created),
        "more": bool(found.next),
        "scopes": scopes,
        "lives": LIVES,
        "made": None,
    }


@router.get("/account")
def account(request: Request, who: CurrentUser, backend: CurrentBackend) -> Response:
    with backend.read() as tx:
        person = people.person_by_id(tx.connection, who.user)
    context = {
        "person": person,
        "sessions": api.list_sessions(backend, who),
        "passkeys": passkeys.list_passkeys(backend, who),
        "roles": ROLES,
        "password_min": PASSWORD_MIN,
    }
    return page(request, "account.html", context)


@router.post("/account/password")
def change_password(
    request: Request, who: CurrentUser, backend: CurrentBackend, old: Password, new: Password
) -> Response:
    """The old one is asked for: a page that was left open is not enough."""
    api.change_password(request, backend, who, valid(api.PasswordChange, old=old, new=new))
    return back("/login")


@router.post("/account/sessions/{session_id}/end")
def end_session(who: CurrentUser, backend: CurrentBackend, session_id: str) -> Response:
    api.end_session(backend, who, session_id)
    return back("/account", "session-ended")


@router.post("/account/passkeys/{passkey_id}/remove")
def remove_passkey(who: CurrentUser, backend: CurrentBackend, passkey_id: str) -> Response:
    passkeys.remove_passkey(backend, who, passkey_id)
    return back("/account", "passkey-removed")
