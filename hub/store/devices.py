"""Lists of devices for people: filtered, sorted and paged in the database, without what only devices need.

Conditions and orders are answered from one index (`ix_device_list`) wherever it has their columns: rows are ten times
as long. Only what a page shows is read from the table.
"""

from __future__ import annotations

import json
import operator
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, ip_network
from typing import Any

from sqlalchemy import (
    JSON,
    ColumnElement,
    Connection,
    and_,
    cast,
    false,
    func,
    literal,
    not_,
    or_,
    select,
    tuple_,
    type_coerce,
)

from hub.core.filters import Term, seconds, version_key
from hub.core.model import DeviceState, HubError, Kind
from hub.store.schema import device

PAGE_MAX = 500
VERSIONS_MAX = 1_000  # that are told apart in comparisons
_COLUMNS = (
    *(device.c.id, device.c.name, device.c.state, device.c.v4, device.c.v6, device.c.tags, device.c.user),
    *(device.c.version, device.c.facts, device.c.online, device.c.last_seen_s, device.c.created_s),
    *(device.c.not_after, device.c.cloned_s, device.c.claim, device.c.removed_s),
)
SORTS: dict[str, ColumnElement[Any]] = {
    "name": func.coalesce(device.c.name, ""),
    "state": device.c.state,
    "version": device.c.version,
    "user": device.c.user,
    "address": func.coalesce(device.c.v4, 0),
    "seen": device.c.last_seen_s,
    "joined": device.c.created_s,
    "expires": device.c.not_after,
    "online": device.c.online,
}
_TEXTS = ("name", "state", "version", "user")
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "=": operator.eq,
}


@dataclass(slots=True, frozen=True)
class DeviceRow:
    """What lists show of a device. Times in seconds since 1970, 0 for never."""

    id: str
    name: str | None
    state: DeviceState
    v4: int | None
    v6: bytes | None
    tags: tuple[str, ...]
    user: str
    version: str
    facts: dict[str, str]
    online: bool
    last_seen_s: int
    created_s: int
    not_after: int
    cloned_s: int
    claim: str
    removed_s: int


@dataclass(slots=True, frozen=True)
class Page:
    rows: list[DeviceRow]
    total: int  # of all pages
    next: str  # what `after` is to be for the next page; "" on the last


def find(
    connection: Connection,
    terms: tuple[Term, ...],
    wall_s: int,
    *,
    sort: str = "name",
    after: str = "",
    limit: int = 100,
    owner: str = "",
) -> Page:
    """Devices without relays, and without removed ones unless a term asks for them.

    `sort`: a name of SORTS, `-` before it turns it round. `owner`: only that login's. Raises HubError for a sort or an
    `after` that makes no sense.
    """
    column = SORTS.get(sort.removeprefix("-"))
    if column is None:
        raise HubError(f"sort {sort!r}: one of {', '.join(SORTS)} expected, with - before it for the other way round")
    where = conditions(connection, terms, wall_s)
    if owner:
        where.append(device.c.user == owner)
    # What devices say of themselves is in no index, and long: the rows are read once, for the page and for the count.
    hits = select(device.c.id, column.label("sort_key")).where(*where).cte("hits")
    once = any(term.field in ("fact", "board") for term in terms)
    total: int = 0
    if not once:
        total = connection.execute(select(func.count()).select_from(device).where(*where)).scalar_one()
    limit = max(1, min(limit, PAGE_MAX))
    by, device_id = (hits.c.sort_key, hits.c.id) if once else (column, device.c.id)
    number = select(func.count()).select_from(hits).scalar_subquery() if once else literal(total)
    key, down, page = tuple_(by, device_id), sort.startswith("-"), [] if once else where
    if after:
        value, last_id = _unpack(after, sort.removeprefix("-") in _TEXTS)
        mark = tuple_(bool(value) if column is device.c.online else value, last_id)
        page = [*page, key < mark if down else key > mark]
    order = (by.desc(), device_id.desc()) if down else (by, device_id)
    query = select(device_id.label("id"), by.label("sort_key"), number.label("total")).where(*page).order_by(*order)
    found = connection.execute(query.limit(limit + 1)).all()
    total = found[0].total if found else total
    shown = connection.execute(select(*_COLUMNS).where(device.c.id.in_([row.id for row in found[:limit]])))
    by_id = {row.id: _to_row(row) for row in shown}
    rows = [by_id[row.id] for row in found[:limit]]
    last = found[limit - 1] if len(found) > limit else None
    return Page(rows, total, _pack(last.sort_key, last.id) if last is not None else "")


def one(connection: Connection, device_id: str) -> DeviceRow | None:
    row = connection.execute(select(*_COLUMNS).where(device.c.id == device_id)).first()
    return None if row is None else _to_row(row)


def by_ids(connection: Connection, ids: Iterable[str]) -> dict[str, DeviceRow]:
    """Of the first PAGE_MAX of them, those that there are."""
    query = select(*_COLUMNS).where(device.c.id.in_(list(ids)[:PAGE_MAX]))
    return {row.id: _to_row(row) for row in connection.execute(query)}


def ids(connection: Connection, terms: tuple[Term, ...], wall_s: int, limit: int) -> list[str]:
    """Of all that the terms fit, for something done to them together."""
    query = select(device.c.id).where(*conditions(connection, terms, wall_s)).order_by(device.c.id).limit(limit)
    return list(connection.execute(query).scalars())


def tags_in_use(connection: Connection, limit: int = 500) -> list[str]:
    """For completion; sorted."""
    query = select(device.c.tags).where(device.c.kind == Kind.DEVICE.value, device.c.tags != "[]").distinct()
    found = {tag for text in connection.execute(query.limit(limit)).scalars() for tag in json.loads(text)}
    return sorted(found)


def versions(connection: Connection) -> dict[str, int]:
    """How many devices run which; the commonest first."""
    number = func.count().label("number")
    query = (
        select(device.c.version, number)
        .where(device.c.kind == Kind.DEVICE.value, device.c.state == DeviceState.ACTIVE.value)
        .group_by(device.c.version)
        .order_by(number.desc())
        .limit(VERSIONS_MAX)
    )
    return {row.version: row.number for row in connection.execute(query)}


def conditions(connection: Connection, terms: tuple[Term, ...], wall_s: int) -> list[ColumnElement[bool]]:
    where: list[ColumnElement[bool]] = [device.c.kind == Kind.DEVICE.value]
    if not any(term.field == "state" for term in terms):
        where.append(device.c.state != DeviceState.REMOVED.value)
    for term in terms:
        either = or_(*(_condition(connection, term, value, wall_s) for value in term.values))
        where.append(not_(either) if term.negated else either)
    return where


def _condition(connection: Connection, term: Term, value: str, wall_s: int) -> ColumnElement[bool]:
    if term.field == "":
        parts = [_contains(column, value) for column in (device.c.name, device.c.id, device.c.user)]
        if (address := _address(value)) is not None:
            parts.append(address)
        return or_(*parts)
    if term.field == "tag":
        return device.c.tags.contains(json.dumps(value), autoescape=True)
    if term.field == "online":
        return device.c.online if value == "yes" else not_(device.c.online)
    if term.field == "cloned":
        return device.c.cloned_s > 0 if value == "yes" else device.c.cloned_s == 0
    if term.field == "address":
        within = _address(value)
        return within if within is not None else false()
    if term.field in ("seen", "joined", "expires"):
        return _time(term, value, wall_s)
    if term.field == "fact":
        return _contains(device.c.facts, value)
    if term.field == "version" and term.op not in ("=", "~"):
        return _version(connection, term.op, value)
    if term.field == "board":
        column = _fact(connection, "board")
    else:
        column = device.c[term.field]
        column = func.coalesce(column, "") if term.field == "name" else column
    if term.op == "~":
        return _contains(column, value)
    if "*" in value:
        escaped = value.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
        return column.ilike(escaped.replace("*", "%"), escape="\\")
    return column == value


def _fact(connection: Connection, name: str) -> ColumnElement[str]:
    """What a device says of itself under a name, "" where it says nothing. Facts are JSON in a column of text."""
    facts: ColumnElement[Any] = device.c.facts
    # SQLite reads text as JSON, and a cast there would make a number of it.
    facts = cast(facts, JSON) if connection.dialect.name == "postgresql" else type_coerce(facts, JSON)
    return func.coalesce(facts[name].as_string(), "")


def _contains(column: ColumnElement[Any], value: str) -> ColumnElement[bool]:
    """In whatever case: databases do not agree on what LIKE makes of it."""
    return func.coalesce(column, "").icontains(value, autoescape=True)


def _time(term: Term, value: str, wall_s: int) -> ColumnElement[bool]:
    """`seen` and `joined` lie in the past: `<1h` is within the last hour. `expires` lies ahead: `<30d` is soon."""
    columns = {"seen": device.c.last_seen_s, "joined": device.c.created_s, "expires": device.c.not_after}
    column = columns[term.field]
    if value == "never":
        return column == 0
    if term.field == "expires":
        return and_(column > 0, _COMPARE[term.op](column, wall_s + seconds(value)))
    turned = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}[term.op]
    compared: ColumnElement[bool] = _COMPARE[turned](column, wall_s - seconds(value))
    return compared


def _version(connection: Connection, op: str, value: str) -> ColumnElement[bool]:
    """Versions are few: which of them fit is told here, because no database orders them as people do."""
    wanted = version_key(value)
    known = connection.execute(select(device.c.version).distinct().limit(VERSIONS_MAX)).scalars()
    fit = [text for text in known if text and _COMPARE[op](_padded(version_key(text)), _padded(wanted))]
    return device.c.version.in_(fit) if fit else false()


def _padded(key: tuple[int, ...]) -> tuple[int, ...]:
    return (*key, *(0,) * (6 - len(key)))


def _address(value: str) -> ColumnElement[bool] | None:
    """Devices with an address in a prefix; None when it is none."""
    try:
        network = ip_network(value, strict=False)
    except ValueError:
        return None
    if isinstance(network, IPv4Network):
        return device.c.v4.between(int(network.network_address), int(network.broadcast_address))
    return device.c.v6.between(network.network_address.packed, network.broadcast_address.packed)


def _to_row(row: Any) -> DeviceRow:
    return DeviceRow(
        id=row.id,
        name=row.name,
        state=DeviceState(row.state),
        v4=row.v4,
        v6=row.v6,
        tags=tuple(json.loads(row.tags)),
        user=row.user,
        version=row.version,
        facts=json.loads(row.facts),
        online=bool(row.online),
        last_seen_s=row.last_seen_s,
        created_s=row.created_s,
        not_after=row.not_after,
        cloned_s=row.cloned_s,
        claim=row.claim,
        removed_s=row.removed_s,
    )


def _pack(value: object, device_id: str) -> str:
    return urlsafe_b64encode(json.dumps([value, device_id]).encode()).decode().rstrip("=")


def _unpack(mark: str, textual: bool) -> tuple[Any, str]:
    try:
        value, device_id = json.loads(urlsafe_b64decode(mark + "=" * (-len(mark) % 4)))
    except (ValueError, TypeError):
        value = device_id = None
    fits = isinstance(value, str) if textual else isinstance(value, int) and abs(value) < 1 << 62
    if not fits or not isinstance(device_id, str):
        raise HubError("after: not what a page before gave. Begin at the first page")
    return value, device_id
