"""What pages ask of the fleet as a whole: counts, who knows whom, who is where. Read only, each answer bounded.

Relays are no devices here. Lists with filters are `hub.store.devices`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, and_, case, func, not_, select

from hub.core.model import DeviceState, Kind, Token
from hub.store.devices import PAGE_MAX, DeviceRow, by_ids
from hub.store.schema import device, pair, token
from hub.store.statements import to_token

TAG_SETS_MAX = 2_000
EDGES_EACH = 12  # of a device in the graph, at most on average
DAY_S = 86_400
AT_CEILING = "dropped at the ceiling"
WEAK_SIGNAL = "weak signal"

_IS_DEVICE = device.c.kind == Kind.DEVICE.value
_ACTIVE = device.c.state == DeviceState.ACTIVE.value
_THERE = device.c.state != DeviceState.REMOVED.value


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


def health(connection: Connection, wall_s: int) -> Health:
    def count(condition: ColumnElement[bool]) -> ColumnElement[int]:
        return func.coalesce(func.sum(case((condition, 1), else_=0)), 0)

    c = device.c
    row = connection.execute(
        select(
            func.count(),
            count(and_(c.online, _ACTIVE)),
            count(c.state == DeviceState.PENDING.value),
            count(c.state == DeviceState.EXPIRED.value),
            count(and_(c.cloned_s > wall_s - 7 * DAY_S, _ACTIVE)),
            count(and_(_ACTIVE, c.not_after > wall_s, c.not_after <= wall_s + 7 * DAY_S)),
            count(and_(_ACTIVE, not_(c.online), c.last_seen_s < wall_s - DAY_S)),
        ).where(_IS_DEVICE, _THERE)
    ).one()
    return Health(*(int(value) for value in row))


def complaints(connection: Connection) -> tuple[int, int]:
    """Admitted devices that say that they dropped input at their memory's ceiling (edgeagent/usage.py), and those whose
    modem has a weak signal (edgeagent/proto/modem.py). It reads all that all of them say: once a minute is enough,
    because each says it once a day, or once an hour."""
    facts = device.c.facts
    counts = [func.count().filter(facts.contains(words)) for words in (AT_CEILING, WEAK_SIGNAL)]
    row = connection.execute(select(*counts).select_from(device).where(_IS_DEVICE, _ACTIVE)).one()
    return int(row[0]), int(row[1])


def tag_counts(connection: Connection, limit: int) -> list[tuple[str, int]]:
    """The most used tags. A fleet has few different sets of tags, so the database counts the sets."""
    number = func.count().label("number")
    sets = (
        select(device.c.tags, number)
        .where(_IS_DEVICE, _THERE, device.c.tags != "[]")
        .group_by(device.c.tags)
        .order_by(number.desc())
        .limit(TAG_SETS_MAX)
    )
    counts: dict[str, int] = {}
    for row in connection.execute(sets):
        for tag in json.loads(row.tags):
            counts[tag] = counts.get(tag, 0) + row.number
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:limit]


def identities(connection: Connection, limit: int) -> list[tuple[tuple[str, ...], str, int]]:
    """(tags, user, how many) of what a policy looks at in admitted devices, the most frequent first. A user does not
    count where there are tags."""
    user = case((device.c.tags == "[]", device.c.user), else_="").label("owner")
    number = func.count().label("number")
    query = (
        select(device.c.tags, user, number)
        .where(_IS_DEVICE, _ACTIVE)
        .group_by(device.c.tags, user)
        .order_by(number.desc(), device.c.tags, user)
        .limit(limit)
    )
    return [(tuple(json.loads(row.tags)), row.owner, row.number) for row in connection.execute(query)]


def latest(connection: Connection, limit: int, claim: str = "") -> list[DeviceRow]:
    """Those that joined last, with one token or any."""
    query = select(device.c.id).where(_IS_DEVICE, _THERE)
    if claim:
        query = query.where(device.c.claim == claim)
    found = list(connection.execute(query.order_by(device.c.created_s.desc(), device.c.id).limit(limit)).scalars())
    rows = by_ids(connection, found)
    return [rows[device_id] for device_id in found]


def graph(connection: Connection, limit: int) -> tuple[list[DeviceRow], list[tuple[str, str]], int]:
    """Of the devices that are admitted the first `limit` (those online first), who of them knows whom, and how many
    there are in all. `limit` is at most PAGE_MAX."""
    total: int = connection.execute(select(func.count()).select_from(device).where(_IS_DEVICE, _ACTIVE)).scalar_one()
    first = (
        select(device.c.id)
        .where(_IS_DEVICE, _ACTIVE)
        .order_by(device.c.online.desc(), device.c.name, device.c.id)
        .limit(min(limit, PAGE_MAX))
    )
    ids = list(connection.execute(first).scalars())
    edges = select(pair.c.device, pair.c.other).where(
        pair.c.device < pair.c.other, pair.c.device.in_(ids), pair.c.other.in_(ids)
    )
    found = connection.execute(edges.order_by(pair.c.device, pair.c.other).limit(limit * EDGES_EACH))
    rows = by_ids(connection, ids)
    return [rows[device_id] for device_id in ids], [(row.device, row.other) for row in found], total


def located(connection: Connection, limit: int) -> list[DeviceRow]:
    """Devices whose facts name `lat` and `lon`; whether they are numbers is for the reader to see."""
    query = select(device.c.id).where(
        _IS_DEVICE, _THERE, device.c.facts.contains('"lat": "'), device.c.facts.contains('"lon": "')
    )
    ids = list(connection.execute(query.order_by(device.c.online.desc(), device.c.id).limit(limit)).scalars())
    rows: dict[str, DeviceRow] = {}
    for at in range(0, len(ids), PAGE_MAX):
        rows.update(by_ids(connection, ids[at : at + PAGE_MAX]))
    return [rows[device_id] for device_id in ids]


def tokens(connection: Connection, *, offset: int, limit: int) -> tuple[list[Token], int]:
    """The newest first, and how many there are."""
    total: int = connection.execute(select(func.count()).select_from(token)).scalar_one()
    query = select(token).order_by(token.c.created_seq.desc()).offset(offset).limit(min(limit, PAGE_MAX))
    return [to_token(row) for row in connection.execute(query)], total
