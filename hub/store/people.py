"""People, their sessions, passkeys and API tokens: SQL over one connection. The coordinator knows nothing of them."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from hub.core.people import SESSION_KEPT_S, ApiToken, Passkey, Person, Session
from hub.core.roles import Access
from hub.store.schema import api_token, passkey, person, session

_PERSON_FIELDS = [field.name for field in fields(Person)]


def add_person(connection: Connection, new: Person) -> None:
    connection.execute(insert(person), _person_values(new))


def save_person(connection: Connection, changed: Person) -> None:
    connection.execute(update(person).where(person.c.id == changed.id).values(_person_values(changed)))


def person_by_id(connection: Connection, person_id: str) -> Person | None:
    return _to_person(connection.execute(select(person).where(person.c.id == person_id)).first())


def person_by_login(connection: Connection, login: str) -> Person | None:
    return _to_person(connection.execute(select(person).where(person.c.login == login)).first())


def person_by_subject(connection: Connection, issuer: str, subject: str) -> Person | None:
    """Who signs in by OIDC: both together are who it is, whatever name or address the provider says."""
    query = select(person).where(person.c.issuer == issuer, person.c.subject == subject)
    return _to_person(connection.execute(query).first())


def people(connection: Connection, *, after: str = "", limit: int = 100) -> list[Person]:
    """In the order of their logins, those after `after`."""
    query = select(person).where(person.c.login > after).order_by(person.c.login).limit(limit)
    return [found for row in connection.execute(query) if (found := _to_person(row)) is not None]


def people_count(connection: Connection) -> int:
    return _number(connection, select(func.count()).select_from(person))


def owner_count(connection: Connection) -> int:
    """Owners who can sign in."""
    owners = select(func.count()).where(person.c.role == Access.OWNER.value, person.c.disabled_s == 0)
    return _number(connection, owners)


# sessions


def add_session(connection: Connection, new: Session) -> None:
    connection.execute(insert(session), asdict(new))


def session_by_hash(connection: Connection, hash_: bytes) -> Session | None:
    row = connection.execute(select(session).where(session.c.hash == hash_)).first()
    return None if row is None else Session(**row._mapping)


def sessions_of(connection: Connection, person_id: str) -> list[Session]:
    """Those that have not been ended, the newest first."""
    query = select(session).where(session.c.person == person_id, session.c.ended_s == 0)
    return [Session(**row._mapping) for row in connection.execute(query.order_by(session.c.created_s.desc()))]


def touch_session(connection: Connection, hash_: bytes, wall_s: int) -> None:
    connection.execute(update(session).where(session.c.hash == hash_).values(seen_s=wall_s))


def end_sessions(connection: Connection, wall_s: int, *, person_id: str = "", hash_: bytes = b"") -> int:
    """All of a person, or one; how many were ended."""
    which = session.c.hash == hash_ if hash_ else session.c.person == person_id
    return connection.execute(update(session).where(which, session.c.ended_s == 0).values(ended_s=wall_s)).rowcount


def forget_sessions(connection: Connection, wall_s: int) -> None:
    """Those that began so long ago that nobody will use them again."""
    connection.execute(delete(session).where(session.c.created_s < wall_s - SESSION_KEPT_S))


# passkeys


def add_passkey(connection: Connection, new: Passkey) -> None:
    connection.execute(insert(passkey), asdict(new))


def passkey_by_id(connection: Connection, passkey_id: bytes) -> Passkey | None:
    row = connection.execute(select(passkey).where(passkey.c.id == passkey_id)).first()
    return None if row is None else Passkey(**row._mapping)


def passkeys_of(connection: Connection, person_id: str) -> list[Passkey]:
    query = select(passkey).where(passkey.c.person == person_id).order_by(passkey.c.created_s)
    return [Passkey(**row._mapping) for row in connection.execute(query)]


def use_passkey(connection: Connection, passkey_id: bytes, counter: int, wall_s: int) -> None:
    connection.execute(update(passkey).where(passkey.c.id == passkey_id).values(counter=counter, used_s=wall_s))


def drop_passkey(connection: Connection, passkey_id: bytes) -> None:
    connection.execute(delete(passkey).where(passkey.c.id == passkey_id))


# API tokens


def add_api_token(connection: Connection, new: ApiToken) -> None:
    connection.execute(insert(api_token), {**asdict(new), "scopes": json.dumps(new.scopes)})


def api_token_by_id(connection: Connection, token_id: str) -> ApiToken | None:
    row = connection.execute(select(api_token).where(api_token.c.id == token_id)).first()
    return None if row is None else _to_api_token(row)


def api_tokens(connection: Connection, *, person_id: str = "", after: str = "", limit: int = 100) -> list[ApiToken]:
    """In the order of their ids, those after `after`; of one person, or of all."""
    query = select(api_token).where(api_token.c.id > after)
    if person_id:
        query = query.where(api_token.c.person == person_id)
    return [_to_api_token(row) for row in connection.execute(query.order_by(api_token.c.id).limit(limit))]


def touch_api_token(connection: Connection, token_id: str, wall_s: int) -> None:
    connection.execute(update(api_token).where(api_token.c.id == token_id).values(used_s=wall_s))


def revoke_api_tokens(connection: Connection, wall_s: int, *, person_id: str = "", token_id: str = "") -> int:
    """All of a person, or one; how many were revoked."""
    which = api_token.c.id == token_id if token_id else api_token.c.person == person_id
    done = connection.execute(update(api_token).where(which, api_token.c.revoked_s == 0).values(revoked_s=wall_s))
    return done.rowcount


def _person_values(item: Person) -> dict[str, Any]:
    values = {name: getattr(item, name) for name in _PERSON_FIELDS}
    values["role"] = item.role.value
    return values


def _to_person(row: Row[Any] | None) -> Person | None:
    if row is None:
        return None
    return Person(**{**row._mapping, "role": Access(row.role)})


def _to_api_token(row: Row[Any]) -> ApiToken:
    return ApiToken(**{**row._mapping, "scopes": tuple(json.loads(row.scopes))})


def _number(connection: Connection, query: Any) -> int:
    number: int = connection.execute(query).scalar_one()
    return number
