"""Who uses the hub: oneself, users, sessions, API tokens."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from hub import people as doing
from hub.core.people import API_TOKEN_LIFE_MAX_S, NAME_MAX, PASSWORD_MAX, ApiToken, Person, check_role
from hub.core.roles import OWN, PERMISSIONS, Access, Principal
from hub.store import people
from hub.store.sql import SqlTx
from hub.web.api.common import After, Limit
from hub.web.auth import CurrentBackend, CurrentUser, allowed, demand
from hub.web.errors import Forbidden, Problem, client_address
from hub.web.signin import demand_try

router = APIRouter()

Name = Annotated[str, Field(max_length=NAME_MAX)]
Password = Annotated[str, Field(max_length=PASSWORD_MAX)]
Login = Annotated[str, Field(max_length=253, examples=["ada@example.org"])]


class Me(BaseModel):
    login: str
    name: str
    role: str
    may: list[str] = Field(description="Every action that this token or session may do.")


class UserOut(BaseModel):
    id: str
    login: str
    name: str
    role: str
    disabled: bool
    password: bool = Field(description="Whether a password is set.")
    oidc: bool = Field(description="Whether this user signs in by OIDC.")
    created: int
    seen: int


class UserList(BaseModel):
    users: list[UserOut]
    next: str


class NewUser(BaseModel, extra="forbid"):
    login: Login
    role: str
    name: Name = ""
    password: Password = Field("", description="Empty: signs in by OIDC only.")


class UserChange(BaseModel, extra="forbid"):
    role: str | None = None
    disabled: bool | None = None
    password: Password | None = None


class PasswordChange(BaseModel, extra="forbid"):
    old: Password
    new: Password


class SessionOut(BaseModel):
    id: str
    created: int
    seen: int
    how: str
    address: str
    browser: str
    this: bool


class ApiTokenOut(BaseModel):
    id: str
    user: str = Field(description="Login of its owner.")
    name: str
    scopes: list[str]
    state: str = Field(description="good, token-revoked or token-expired.")
    created: int
    not_after: int
    used: int


class ApiTokenList(BaseModel):
    api_tokens: list[ApiTokenOut]
    next: str


class NewApiToken(BaseModel, extra="forbid"):
    name: Name
    scopes: Annotated[list[Annotated[str, Field(max_length=32)]], Field(max_length=len(PERMISSIONS))]
    expires_in: Annotated[int, Field(gt=0, le=API_TOKEN_LIFE_MAX_S)] = 90 * 86_400

    model_config = {"json_schema_extra": {"examples": [{"name": "inventory", "scopes": ["devices:read"]}]}}


class ApiTokenMade(ApiTokenOut):
    token: str = Field(description="Shown this once: the hub keeps only a hash.")


def to_out(person: Person) -> UserOut:
    return UserOut(
        id=person.id,
        login=person.login,
        name=person.name,
        role=person.role.value,
        disabled=bool(person.disabled_s),
        password=bool(person.password),
        oidc=person.issuer is not None,
        created=person.created_s,
        seen=person.seen_s,
    )


@router.get("/me", tags=["me"])
def me(who: CurrentUser) -> Me:
    may = [action for action in PERMISSIONS if who.may(action)]
    return Me(login=who.login, name=who.name, role=who.role.value, may=may)


@router.get("/users", tags=["users"])
def list_users(
    backend: CurrentBackend, who: Annotated[Principal, allowed("users:read")], limit: Limit = 100, after: After = ""
) -> UserList:
    """In the order of their logins."""
    with backend.read() as tx:
        found = people.people(tx.connection, after=after, limit=limit + 1)
    return UserList(
        users=[to_out(person) for person in found[:limit]], next=found[limit - 1].login if len(found) > limit else ""
    )


@router.post("/users", status_code=201, tags=["users"])
def add_user(backend: CurrentBackend, who: Annotated[Principal, allowed("users:write")], body: NewUser) -> UserOut:
    role = check_role(body.role)
    demand_rank(who, role)
    with backend.write() as (tx, _, wall_s):
        new = doing.add_person(
            tx, wall_s, who.actor, login=body.login, role=role, name=body.name, password=body.password
        )
    return to_out(new)


@router.get("/users/{user}", tags=["users"])
def get_user(backend: CurrentBackend, who: CurrentUser, user: str) -> UserOut:
    """By login or id."""
    with backend.read() as tx:
        found = _seen(tx, who, user, "users:read")
    return to_out(found)


@router.patch("/users/{user}", tags=["users"])
def change_user(
    backend: CurrentBackend, who: Annotated[Principal, allowed("users:write")], user: str, body: UserChange
) -> UserOut:
    """A new role, a new password, or being disabled ends the user's sessions."""
    with backend.write() as (tx, _, wall_s):
        target = _seen(tx, who, user, "users:write")
        demand_rank(who, target.role)
        if body.role is not None and body.role != target.role.value:
            role = check_role(body.role)
            demand_rank(who, role)
            doing.set_role(tx, wall_s, who.actor, target, role)
        if body.disabled is not None and body.disabled != bool(target.disabled_s):
            doing.set_disabled(tx, wall_s, who.actor, target, body.disabled)
        if body.password is not None:
            doing.set_password(tx, wall_s, who.actor, target, body.password)
    return to_out(target)


@router.post("/me/password", status_code=204, tags=["me"])
def change_password(request: Request, backend: CurrentBackend, who: CurrentUser, body: PasswordChange) -> None:
    """One's own, in a browser; every session ends, this one too."""
    if not who.session:
        raise Forbidden("browser-only", "Passwords are changed in a browser.", who.actor)
    demand_try(request, backend, client_address(request), who.login)
    with backend.read() as tx:
        person = people.person_by_id(tx.connection, who.user)
    if person is None or not doing.password_fits(person, body.old):
        raise Forbidden("password", "The old password is another.", who.actor)
    with backend.write() as (tx, _, wall_s):
        doing.set_password(tx, wall_s, who.actor, person, body.new)


@router.get("/me/sessions", tags=["me"])
def list_sessions(backend: CurrentBackend, who: CurrentUser) -> list[SessionOut]:
    """Browsers in which one is signed in."""
    demand(who, "sessions:write", who.login)
    with backend.read() as tx:
        found = people.sessions_of(tx.connection, who.user)
    return [
        SessionOut(
            id=session.hash.hex(),
            created=session.created_s,
            seen=session.seen_s,
            how=session.how,
            address=session.address,
            browser=session.browser,
            this=session.hash == who.session,
        )
        for session in found
        if session.refusal(int(time.time())) is None
    ]


@router.delete("/sessions/{session_id}", status_code=204, tags=["me"])
def end_session(backend: CurrentBackend, who: CurrentUser, session_id: str) -> None:
    """Sign a browser out: one's own, or anybody's for who may."""
    try:
        hash_ = bytes.fromhex(session_id)
    except ValueError:
        hash_ = b""
    with backend.write() as (tx, _, wall_s):
        session = people.session_by_hash(tx.connection, hash_)
        person = people.person_by_id(tx.connection, session.person) if session is not None else None
        if person is None:
            raise Problem(404, "no-session", "There is no session of this id.")
        demand(who, "sessions:write", person.login)
        if person.login != who.login:
            demand_rank(who, person.role)
        doing.close_session(tx, wall_s, who, hash_, person.login)


@router.get("/api-tokens", tags=["api-tokens"])
def list_api_tokens(
    backend: CurrentBackend, who: CurrentUser, everybodys: bool = False, limit: Limit = 100, after: After = ""
) -> ApiTokenList:
    """One's own, or `everybodys` for who may."""
    demand(who, "apitokens:read", None if everybodys else who.login)
    with backend.read() as tx:
        mine = "" if everybodys else who.user
        found = people.api_tokens(tx.connection, person_id=mine, after=after, limit=limit + 1)
        logins = {token.person: _login(tx, token.person) for token in found}
    out = [ApiTokenOut(**_token_fields(token, logins[token.person])) for token in found[:limit]]
    return ApiTokenList(api_tokens=out, next=found[limit - 1].id if len(found) > limit else "")


@router.post("/api-tokens", status_code=201, tags=["api-tokens"])
def make_api_token(backend: CurrentBackend, who: CurrentUser, body: NewApiToken) -> ApiTokenMade:
    """For oneself, with no more than what one may oneself."""
    demand(who, "apitokens:write", who.login)
    with backend.write() as (tx, _, wall_s):
        new, text = doing.make_token(tx, wall_s, who, name=body.name, scopes=tuple(body.scopes), life_s=body.expires_in)
    return ApiTokenMade(**_token_fields(new, who.login), token=text)


@router.delete("/api-tokens/{token_id}", status_code=204, tags=["api-tokens"])
def revoke_api_token(backend: CurrentBackend, who: CurrentUser, token_id: str) -> None:
    with backend.write() as (tx, _, wall_s):
        token = people.api_token_by_id(tx.connection, token_id)
        if token is None:
            raise Problem(404, "no-api-token", f"API token {token_id[:16]}: there is none of this id.")
        owner = people.person_by_id(tx.connection, token.person)
        assert owner is not None
        demand(who, "apitokens:write", owner.login)
        if owner.login != who.login:
            demand_rank(who, owner.role)
        doing.revoke_token(tx, wall_s, who.actor, token)


def demand_rank(who: Principal, role: Access) -> None:
    """Owners are made, changed and unmade by owners only."""
    if role is Access.OWNER and who.role is not Access.OWNER:
        raise Forbidden("owners-only", "Only an owner can do this to an owner, or make one.", who.actor)


def _seen(tx: SqlTx, who: Principal, text: str, action: str) -> Person:
    found = people.person_by_login(tx.connection, text) or people.person_by_id(tx.connection, text)
    demand(who, action, found.login if found is not None and action in OWN else None)
    if found is None:
        raise Problem(404, "no-user", f"User {text[:64]}: there is none of this login or id.")
    return found


def _login(tx: SqlTx, person_id: str) -> str:
    person = people.person_by_id(tx.connection, person_id)
    return person.login if person is not None else ""


def _token_fields(token: ApiToken, login: str) -> dict[str, Any]:
    return {
        "id": token.id,
        "user": login,
        "name": token.name,
        "scopes": list(token.scopes),
        "state": token.refusal(int(time.time())) or "good",
        "created": token.created_s,
        "not_after": token.not_after,
        "used": token.used_s,
    }
