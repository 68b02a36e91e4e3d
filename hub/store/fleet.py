"""What pages and lists ask of many devices at once: filtered, sorted, counted and cut to a page by the database.

Free functions over a connection; all of them read. Relays are no devices here. Each answer is bounded.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from sqlalchemy import (
    JSON,
    ColumnElement,
    Connection,
    String,
    and_,
    case,
    cast,
    false,
    func,
    literal,
    not_,
    or_,
    select,
    type_coerce,
)

from hub.core.fleetfilter import Term
from hub.core.model import DeviceState, Kind, Token
from hub.store.schema import device, pair, token
from hub.store.sqlite import to_token

PAGE_MAX = 200
SORTS: dict[str, ColumnElement[Any]] = {
    "name": device.c.name,
    "address": device.c.v4,
    "seen": device.c.last_seen_s,
    "joined": device.c.created_s,
    "version": device.c.version,
    "state": device.c.state,
}
_IS_DEVICE = device.c.kind == Kind.DEVICE.value
_ACTIVE = device.c.state == DeviceState.ACTIVE.value
_COLUMNS = [
    device.c[name]
    for name in (
        *("id", "name", "state", "v4", "v6", "tags", "user", "version", "facts", "online"),
        *("last_seen_s", "created_s", "not_after", "cloned_s"),
    )
]


@dataclass(slots=True, frozen=True)
class Row:
    """What a list shows of a device."""

    id: str
    name: str | None
    state: str
    v4: str
    v6: str
    tags: tuple[str, ...]
    user: str
    version: str
    facts: dict[str, str]
    online: bool
    last_seen_s: int
    created_s: int
    not_after: int
    cloned_s: int

    @property
    def shown(self) -> str:
        return self.name or self.id


@dataclass(slots=True, frozen=True)
class Page:
    rows: list[Row]
    total: int  # that match, on all pages


def search(
    connection: Connection,
    terms: Sequence[Term],
    *,
    now_s: int,
    sort: str = "name",
    descending: bool = False,
    offset: int = 0,
    limit: int = 50,
) -> Page:
    """One page of what matches; KeyError for a sort that is not in SORTS."""
    where = _where(connection, terms, now_s)
    total = connection.execute(select(func.count()).select_from(device).where(where)).scalar_one()
    column = SORTS[sort]
    order = column.desc().nulls_last() if descending else column.asc().nulls_last()
    query = select(*_COLUMNS).where(where).order_by(order, device.c.id)
    found = connection.execute(query.offset(max(0, offset)).limit(min(limit, PAGE_MAX)))
    return Page([_to_row(row) for row in found], int(total))


def matching_ids(connection: Connection, terms: Sequence[Term], *, now_s: int, limit: int) -> list[str]:
    """In the order of their ids."""
    query = select(device.c.id).where(_where(connection, terms, now_s)).order_by(device.c.id).limit(limit)
    return list(connection.execute(query).scalars())


def rows_of(connection: Connection, ids: Iterable[str]) -> dict[str, Row]:
    """Of the first PAGE_MAX of them."""
    query = select(*_COLUMNS).where(device.c.id.in_(list(ids)[:PAGE_MAX]))
    return {row.id: _to_row(row) for row in connection.execute(query)}


def tag_counts(connection: Connection, limit: int = 100) -> list[tuple[str, int]]:
    """The most used tags. Devices have few different sets of tags, so the sets are counted by the database."""
    sets = (
        select(device.c.tags, func.count())
        .where(_IS_DEVICE, device.c.state != DeviceState.REMOVED.value, device.c.tags != "[]")
        .group_by(device.c.tags)
        .order_by(func.count().desc())
        .limit(2_000)
    )
    counts: dict[str, int] = {}
    for text, count in connection.execute(sets):
        for tag in json.loads(text):
            counts[tag] = counts.get(tag, 0) + count
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:limit]


def version_counts(connection: Connection, limit: int = 8) -> list[tuple[str, int]]:
    """Of devices that are admitted; the most used first."""
    query = (
        select(device.c.version, func.count())
        .where(_IS_DEVICE, _ACTIVE)
        .group_by(device.c.version)
        .order_by(func.count().desc(), device.c.version)
        .limit(limit)
    )
    return [(version, count) for version, count in connection.execute(query)]


@dataclass(slots=True, frozen=True)
class Health:
    """Counts of what an operator looks at first; of devices that were not removed."""

    total: int
    online: int
    pending: int
    expired: int
    cloned: int
    ending: int  # admission ends within a week
    silent: int  # admitted, and not heard of for a day


def health(connection: Connection, now_s: int) -> Health:
    def count(condition: ColumnElement[bool]) -> ColumnElement[int]:
        return func.coalesce(func.sum(case((condition, 1), else_=0)), 0)

    c = device.c
    row = connection.execute(
        select(
            func.count(),
            count(c.online),
            count(c.state == DeviceState.PENDING.value),
            count(c.state == DeviceState.EXPIRED.value),
            count(and_(c.cloned_s > now_s - 7 * 86_400, _ACTIVE)),
            count(and_(_ACTIVE, c.not_after > now_s, c.not_after <= now_s + 7 * 86_400)),
            count(and_(_ACTIVE, not_(c.online), c.last_seen_s < now_s - 86_400)),
        ).where(_IS_DEVICE, c.state != DeviceState.REMOVED.value)
    ).one()
    return Health(*(int(value) for value in row))


def graph(connection: Connection, limit: int) -> tuple[list[Row], list[tuple[str, str]], int]:
    """The first `limit` devices that are admitted (those online first), who of them knows whom, and how many there are."""
    where = and_(_IS_DEVICE, _ACTIVE)
    total = connection.execute(select(func.count()).select_from(device).where(where)).scalar_one()
    query = select(*_COLUMNS).where(where).order_by(device.c.online.desc(), device.c.name, device.c.id).limit(limit)
    rows = [_to_row(row) for row in connection.execute(query)]
    chosen = query.with_only_columns(device.c.id, maintain_column_froms=True).subquery()
    ids = select(chosen.c.id)
    edges = select(pair.c.device, pair.c.other).where(
        pair.c.device < pair.c.other, pair.c.device.in_(ids), pair.c.other.in_(ids)
    )
    found = connection.execute(edges.order_by(pair.c.device, pair.c.other).limit(limit * 20))
    return rows, [(a, b) for a, b in found], int(total)


def located(connection: Connection, limit: int) -> list[Row]:
    """Devices whose facts say `lat` and `lon`."""
    latitude, longitude = _fact(connection, "lat"), _fact(connection, "lon")
    query = select(*_COLUMNS).where(
        _IS_DEVICE,
        device.c.state != DeviceState.REMOVED.value,
        device.c.facts.contains('"lat"'),  # cheap, and so before the JSON is read
        latitude != "",
        longitude != "",
    )
    return [_to_row(row) for row in connection.execute(query.order_by(device.c.id).limit(limit))]


def joined_with(connection: Connection, claim: str, limit: int) -> list[Row]:
    """The newest of those that joined with a token."""
    query = select(*_COLUMNS).where(device.c.claim == claim, device.c.state != DeviceState.REMOVED.value)
    found = connection.execute(query.order_by(device.c.created_s.desc(), device.c.id).limit(limit))
    return [_to_row(row) for row in found]


def tokens(connection: Connection, *, offset: int, limit: int) -> tuple[list[Token], int]:
    """The newest first, and how many there are."""
    total = connection.execute(select(func.count()).select_from(token)).scalar_one()
    query = select(token).order_by(token.c.created_seq.desc()).offset(offset).limit(min(limit, PAGE_MAX))
    return [to_token(row) for row in connection.execute(query)], int(total)


def _where(connection: Connection, terms: Sequence[Term], now_s: int) -> ColumnElement[bool]:
    conditions = [_IS_DEVICE]
    if not any(term.key == "is" and term.value == "removed" and not term.negated for term in terms):
        conditions.append(device.c.state != DeviceState.REMOVED.value)
    for term in terms:
        condition = _condition(connection, term, now_s)
        conditions.append(not_(condition) if term.negated else condition)
    return and_(*conditions)


def _condition(connection: Connection, term: Term, now_s: int) -> ColumnElement[bool]:
    c, value = device.c, term.value
    name = func.coalesce(c.name, "")
    if term.key == "is":
        return _flag(value)
    if term.key == "tag":
        return c.tags.contains(json.dumps(f"tag:{value.removeprefix('tag:')}"), autoescape=True)
    if term.key == "name":
        return name.contains(value, autoescape=True)
    if term.key == "id":
        return c.id.startswith(value, autoescape=True)
    if term.key == "user":
        return func.lower(c.user) == value
    if term.key == "version":
        return c.version.startswith(value, autoescape=True)
    if term.key == "ip":
        return _address(value)
    if term.key in ("seen", "joined", "expires"):
        return _age(term, now_s)
    if term.key:
        return func.lower(_fact(connection, term.key.removeprefix("fact."))).contains(value, autoescape=True)
    return or_(
        name.contains(value, autoescape=True),
        c.id.startswith(value, autoescape=True),
        func.lower(c.user).contains(value, autoescape=True),
        c.tags.contains(value, autoescape=True),
        func.lower(c.facts).contains(value, autoescape=True),
        _address(value),
    )


def _flag(value: str) -> ColumnElement[bool]:
    if value == "online":
        return device.c.online.is_(True)
    if value == "offline":
        return and_(device.c.online.is_(False), _ACTIVE)
    if value == "cloned":
        return device.c.cloned_s > 0
    return device.c.state == value


def _age(term: Term, now_s: int) -> ColumnElement[bool]:
    """`seen:<1h` is within the last hour, `expires:<7d` within the next week; a time that never comes matches neither."""
    column = {"seen": device.c.last_seen_s, "joined": device.c.created_s, "expires": device.c.not_after}[term.key]
    near = term.value == "<"
    if term.key == "expires":
        limit = now_s + term.seconds
        return and_(column > 0, column < limit if near else column >= limit)
    limit = now_s - term.seconds
    return and_(column > 0, column > limit if near else column <= limit)


def _address(text: str) -> ColumnElement[bool]:
    """An address as it is written, or an IPv4 one that is cut off behind a dot: those that begin so."""
    try:
        if ":" in text:
            return device.c.v6 == IPv6Address(text).packed
        parts = [int(part) for part in text.rstrip(".").split(".")]
        if not 2 <= len(parts) <= 4 or any(not 0 <= part <= 255 for part in parts):
            return false()
    except ValueError:
        return false()
    low = int.from_bytes(bytes([*parts, 0, 0, 0, 0][:4]), "big")
    return device.c.v4.between(low, low + (1 << 8 * (4 - len(parts))) - 1)


def _fact(connection: Connection, name: str) -> ColumnElement[str]:
    """One fact out of the JSON, empty when there is none. SQLite reads JSON from text, PostgreSQL casts first."""
    if connection.dialect.name == "sqlite":
        found: ColumnElement[str] = type_coerce(device.c.facts, JSON)[name].as_string()
    else:
        found = cast(device.c.facts, JSON)[name].as_string()
    return func.coalesce(found, literal("", String))


def _to_row(row: Any) -> Row:
    values = dict(row._mapping)
    values["tags"] = tuple(json.loads(values["tags"]))
    values["facts"] = json.loads(values["facts"])
    values["v4"] = "" if values["v4"] is None else str(IPv4Address(values["v4"]))
    values["v6"] = "" if values["v6"] is None else str(IPv6Address(values["v6"]))
    return Row(**values)
