"""Web hooks and what they have not been told yet."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from hub.core import events
from hub.core.events import DELIVERIES_MAX, Delivery, Webhook
from hub.store.prepared import Prepared
from hub.store.schema import delivery, webhook

_ACTIVE = Prepared(select(webhook.c.id, webhook.c.events).where(webhook.c.disabled_s == 0))


def add(connection: Connection, new: Webhook) -> None:
    connection.execute(insert(webhook), {**asdict(new), "events": json.dumps(new.events)})


def all_(connection: Connection) -> list[Webhook]:
    return [_to_webhook(row) for row in connection.execute(select(webhook).order_by(webhook.c.created_s))]


def by_id(connection: Connection, hook_id: str) -> Webhook | None:
    row = connection.execute(select(webhook).where(webhook.c.id == hook_id)).first()
    return None if row is None else _to_webhook(row)


def drop(connection: Connection, hook_id: str) -> None:
    connection.execute(delete(delivery).where(delivery.c.webhook == hook_id))
    connection.execute(delete(webhook).where(webhook.c.id == hook_id))


def emit(connection: Connection, event: str, wall_s: int, fields: Mapping[str, str | int], only: str = "") -> int:
    """A row for each hook that wants to hear of it (or for `only`, whatever it wants); how many."""
    hooks = _ACTIVE.all(connection)
    wanted = [hook for hook, wishes in hooks if (hook == only if only else event in json.loads(wishes))]
    if not wanted or waiting(connection) + len(wanted) > DELIVERIES_MAX:
        return 0
    row = {"event": event, "body": events.body(event, wall_s, fields), "tries": 0, "due_s": wall_s}
    connection.execute(insert(delivery), [{**row, "webhook": hook_id} for hook_id in wanted])
    return len(wanted)


def waiting(connection: Connection) -> int:
    number: int = connection.execute(select(func.count()).select_from(delivery)).scalar_one()
    return number


def any_due(connection: Connection, wall_s: int) -> bool:
    return connection.execute(select(delivery.c.id).where(delivery.c.due_s <= wall_s).limit(1)).first() is not None


def take_due(connection: Connection, wall_s: int, lease_s: int, limit: int) -> list[Delivery]:
    """Those whose time has come, which nobody else takes for `lease_s`."""
    due = select(delivery).where(delivery.c.due_s <= wall_s).order_by(delivery.c.due_s, delivery.c.id).limit(limit)
    found = [Delivery(**row._mapping) for row in connection.execute(due)]
    if found:
        leased = delivery.c.id.in_([item.id for item in found])
        connection.execute(update(delivery).where(leased).values(due_s=wall_s + lease_s))
    return found


def done(connection: Connection, item: Delivery, wall_s: int, result: str) -> None:
    connection.execute(delete(delivery).where(delivery.c.id == item.id))
    _note(connection, item.webhook, wall_s, result)


def failed(connection: Connection, item: Delivery, wall_s: int, result: str) -> None:
    """Tried again later, or given up."""
    tries = item.tries + 1
    if tries >= events.TRIES_MAX:
        done(connection, item, wall_s, f"given up: {result}")
        return
    due_s = wall_s + events.retry_after_s(tries)
    connection.execute(update(delivery).where(delivery.c.id == item.id).values(tries=tries, due_s=due_s))
    _note(connection, item.webhook, wall_s, result)


def _note(connection: Connection, hook_id: str, wall_s: int, result: str) -> None:
    connection.execute(update(webhook).where(webhook.c.id == hook_id).values(last_s=wall_s, last_result=result[:200]))


def _to_webhook(row: Row[Any]) -> Webhook:
    return Webhook(**{**row._mapping, "events": tuple(json.loads(row.events))})
