"""What is done to people's accounts, by command and by page alike: inside a write transaction, with an audit row."""

from __future__ import annotations

import os
import secrets
import threading

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError

from hub.core import audit
from hub.core.model import HubError
from hub.core.people import (
    API_TOKEN_LIFE_MAX_S,
    API_TOKENS_MAX,
    PEOPLE_MAX,
    SESSIONS_MAX,
    ApiToken,
    Person,
    Session,
    check_login,
    check_name,
    check_password,
    check_scopes,
    digest,
    make_api_token,
    make_id,
    make_secret,
)
from hub.core.roles import Access, Principal
from hub.store import people
from hub.store.sql import SqlTx

# OWASP's smallest set for Argon2id: the process that shows pages has a memory to keep.
_HASHER = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
_AT_ONCE = threading.BoundedSemaphore(2)  # 19 MiB each
_NOBODYS = _HASHER.hash(secrets.token_urlsafe(32))  # what a password of an unknown login is compared with


def hash_password(password: str) -> str:
    with _AT_ONCE:
        return _HASHER.hash(password)


def password_fits(person: Person | None, password: str) -> bool:
    """As slow for nobody, or for somebody without a password, as for a wrong one."""
    known = person is not None and bool(person.password)
    stored = person.password if person is not None and person.password else _NOBODYS
    with _AT_ONCE:
        try:
            _HASHER.verify(stored, password)
        except (Argon2Error, InvalidHashError):
            return False
    return known


def add_person(
    tx: SqlTx, wall_s: int, actor: str, *, login: str, role: Access, name: str = "", password: str = ""
) -> Person:
    """`password` empty: signs in by OIDC or passkey only, or when one is set."""
    check_login(login)
    if people.person_by_login(tx.connection, login) is not None:
        raise HubError(f"login {login}: somebody has it. Choose another")
    if people.people_count(tx.connection) >= PEOPLE_MAX:
        raise HubError(f"{PEOPLE_MAX} people: there is no room for another")
    new = Person(make_id(os.urandom, "u-"), login, check_name(name), role, wall_s, role_from=_role_from(actor))
    if password:
        new.password = hash_password(check_password(password, login))
    people.add_person(tx.connection, new)
    audit.record(tx, wall_s, actor, "user.add", f"user:{login}", {"role": role.value})
    tx.note("users")
    return new


def _role_from(actor: str) -> str:
    return actor if actor == "oidc" else ""


def find_person(tx: SqlTx, text: str) -> Person:
    """By login or id."""
    found = people.person_by_login(tx.connection, text) or people.person_by_id(tx.connection, text)
    if found is None:
        raise HubError(f"user {text}: there is none of this login or id. `edgehub users list` shows them")
    return found


def set_role(tx: SqlTx, wall_s: int, actor: str, target: Person, role: Access) -> None:
    """Ends the sessions: what a page offers, and what the cookie stands for, is another now."""
    _keep_an_owner(tx, target, still=role is Access.OWNER)
    before, target.role, target.role_from = target.role, role, _role_from(actor)
    people.save_person(tx.connection, target)
    people.end_sessions(tx.connection, wall_s, person_id=target.id)
    detail = {"before": before.value, "after": role.value}
    audit.record(tx, wall_s, actor, "user.role", f"user:{target.login}", detail)
    tx.note("users")


def take_away(tx: SqlTx, wall_s: int, actor: str, target: Person) -> None:
    """Whoever gave the role gives it no more: sessions end, and API tokens are revoked."""
    people.end_sessions(tx.connection, wall_s, person_id=target.id)
    people.revoke_api_tokens(tx.connection, wall_s, person_id=target.id)
    audit.record(tx, wall_s, actor, "user.role-lost", f"user:{target.login}", {"before": target.role.value})
    tx.note("users")


def set_disabled(tx: SqlTx, wall_s: int, actor: str, target: Person, disabled: bool) -> None:
    """Disabled: sessions end, API tokens are revoked, and nobody signs in as them."""
    if disabled:
        _keep_an_owner(tx, target, still=False)
        people.end_sessions(tx.connection, wall_s, person_id=target.id)
        people.revoke_api_tokens(tx.connection, wall_s, person_id=target.id)
    target.disabled_s = wall_s if disabled else 0
    people.save_person(tx.connection, target)
    audit.record(tx, wall_s, actor, "user.disable" if disabled else "user.enable", f"user:{target.login}")
    tx.note("users")


def set_password(tx: SqlTx, wall_s: int, actor: str, target: Person, password: str) -> None:
    """All their sessions end."""
    target.password = hash_password(check_password(password, target.login))
    people.save_person(tx.connection, target)
    people.end_sessions(tx.connection, wall_s, person_id=target.id)
    audit.record(tx, wall_s, actor, "user.password", f"user:{target.login}")


def open_session(tx: SqlTx, wall_s: int, target: Person, *, how: str, address: str, browser: str) -> str:
    """A new session's token, for the cookie. Whatever session the browser had before is for the caller to end."""
    open_ = people.sessions_of(tx.connection, target.id)
    for old in open_[SESSIONS_MAX - 1 :]:
        people.end_sessions(tx.connection, wall_s, hash_=old.hash)
    people.forget_sessions(tx.connection, wall_s)
    token = make_secret(os.urandom)
    people.add_session(tx.connection, Session(digest(token), target.id, wall_s, wall_s, 0, how, address, browser[:120]))
    target.seen_s = wall_s
    people.save_person(tx.connection, target)
    audit.record(tx, wall_s, f"user:{target.login}", "signin", f"user:{target.login}", {"how": how, "address": address})
    return token


def close_session(tx: SqlTx, wall_s: int, who: Principal, hash_: bytes, login: str) -> None:
    """Of `login`, who may be another."""
    people.end_sessions(tx.connection, wall_s, hash_=hash_)
    audit.record(tx, wall_s, who.actor, "signout", f"user:{login}", {"session": hash_.hex()[:12]})


def make_token(
    tx: SqlTx, wall_s: int, who: Principal, *, name: str, scopes: tuple[str, ...], life_s: int, actor: str = ""
) -> tuple[ApiToken, str]:
    """A new API token of `who`, and its text, which is shown once. `actor`: who makes it, if not `who`."""
    if not 0 < life_s <= API_TOKEN_LIFE_MAX_S:
        raise HubError(f"expires: at most {API_TOKEN_LIFE_MAX_S // 86_400} days expected, and at least a second")
    scopes = check_scopes(scopes, who)
    if len(people.api_tokens(tx.connection, person_id=who.user, limit=API_TOKENS_MAX)) >= API_TOKENS_MAX:
        raise HubError(f"{API_TOKENS_MAX} API tokens: there is no room for another. Remove those that nobody needs")
    token_id, secret, text = make_api_token(os.urandom)
    new = ApiToken(token_id, who.user, digest(secret), check_name(name), scopes, wall_s, wall_s + life_s)
    people.add_api_token(tx.connection, new)
    detail: dict[str, str | int] = {"scopes": " ".join(scopes), "expires": new.not_after}
    audit.record(tx, wall_s, actor or who.actor, "apitoken.create", f"apitoken:{token_id}", detail)
    tx.note("apitokens")
    return new, text


def revoke_token(tx: SqlTx, wall_s: int, actor: str, target: ApiToken) -> None:
    people.revoke_api_tokens(tx.connection, wall_s, token_id=target.id)
    audit.record(tx, wall_s, actor, "apitoken.revoke", f"apitoken:{target.id}")
    tx.note("apitokens")


def _keep_an_owner(tx: SqlTx, target: Person, *, still: bool) -> None:
    last = target.role is Access.OWNER and not target.disabled_s and people.owner_count(tx.connection) == 1
    if last and not still:
        raise HubError(f"user {target.login}: the last owner. Make somebody else owner first")
