"""What `hub.store.sql` asks of the database most often, compiled once, and rows as the objects that they are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from sqlalchemy import Row, bindparam, delete, func, insert, literal_column, select, text
from sqlalchemy import update as update_
from sqlalchemy.dialects.postgresql import insert as upsert  # SQLite has taken its ON CONFLICT from there

from hub.core.model import Device, DeviceState, Kind, Token
from hub.store.prepared import Prepared
from hub.store.schema import IS_RELAY, counter, device, job, node_key, outgoing, pair, stamp, token

TOKEN_FIELDS = [field.name for field in fields(Token)]
DEVICE_FIELDS = [field.name for field in fields(Device)]
_STATE, _TAGS, _FACTS, _KIND = (DEVICE_FIELDS.index(name) for name in ("state", "tags", "facts", "kind"))

TOKEN = select(token)
DEVICE = select(*(device.c[name] for name in DEVICE_FIELDS))
SAVEPOINT, UNDO, RELEASE = (
    Prepared(text(f"{word} message")) for word in ("SAVEPOINT", "ROLLBACK TO SAVEPOINT", "RELEASE SAVEPOINT")
)
NEXT = Prepared(
    upsert(counter)
    .values(name=bindparam("name"), value=1)
    .on_conflict_do_update(index_elements=["name"], set_={"value": counter.c.value + 1})
    .returning(counter.c.value)
)
TOKEN_BY_CLAIM = Prepared(select(*(token.c[name] for name in TOKEN_FIELDS)).where(token.c.claim == bindparam("value")))
ADD_TOKEN = Prepared(insert(token), TOKEN_FIELDS)
SAVE_TOKEN = Prepared(update_(token).where(token.c.claim == bindparam("b_claim")), TOKEN_FIELDS)
ADD_DEVICE = Prepared(insert(device), DEVICE_FIELDS)
SAVE_DEVICE = Prepared(update_(device).where(device.c.id == bindparam("b_id")), DEVICE_FIELDS)
SAVE_SEEN = Prepared(update_(device).where(device.c.id == bindparam("b_id")), ["last_seen_s"])
DEVICE_BY_ID = Prepared(DEVICE.where(device.c.id == bindparam("value")))
DEVICE_BY_NAME = Prepared(DEVICE.where(device.c.name == bindparam("value")))
DEVICE_BY_V4 = Prepared(DEVICE.where(device.c.v4 == bindparam("value")))
DEVICE_BY_V6 = Prepared(DEVICE.where(device.c.v6 == bindparam("value")))
DEVICE_BY_NODE_KEY = Prepared(
    DEVICE.join(node_key, node_key.c.device == device.c.id).where(node_key.c.key == bindparam("value"))
)
_PAGE = DEVICE.where(device.c.id > bindparam("after")).order_by(device.c.id).limit(bindparam("limit"))
DEVICES = Prepared(_PAGE)
DEVICES_IN_STATE = Prepared(_PAGE.where(device.c.state == bindparam("state")))
RELAYS = Prepared(DEVICE.where(IS_RELAY, device.c.state != DeviceState.REMOVED.value).order_by(device.c.id))
NODE_KEYS = Prepared(
    select(node_key)
    .where(node_key.c.device == bindparam("value"))
    .order_by(node_key.c.not_after.desc(), node_key.c.key)
)
NODE_KEY = Prepared(select(node_key).where(node_key.c.key == bindparam("value")))
SAVE_NODE_KEY = Prepared(
    upsert(node_key).on_conflict_do_update(
        index_elements=["key"], set_={"not_after": literal_column("excluded.not_after")}
    ),
    ["key", "device", "not_after"],
)
INTRODUCE = Prepared(upsert(pair).on_conflict_do_nothing(), ["device", "other"])
STAMP = Prepared(
    select(stamp.c.epoch, stamp.c.seq).where(stamp.c.device == bindparam("device"), stamp.c.kind == bindparam("kind"))
)
SAVE_STAMP = Prepared(
    upsert(stamp).on_conflict_do_update(
        index_elements=["device", "kind"],
        set_={"epoch": literal_column("excluded.epoch"), "seq": literal_column("excluded.seq")},
    ),
    ["device", "kind", "epoch", "seq"],
)
ADD_JOB = Prepared(upsert(job).inline().on_conflict_do_nothing(), ["kind", "reader", "subject"])
JOBS = Prepared(select(job.c.id, job.c.kind, job.c.reader, job.c.subject).order_by(job.c.id).limit(bindparam("limit")))
DROP_JOB = Prepared(delete(job).where(job.c.id == bindparam("value")))
PUT_OUT = Prepared(insert(outgoing).inline(), ["op", "target", "payload", "retain", "role", "key"])
ROWS = select(func.coalesce(select(counter.c.value).where(counter.c.name == "devices").scalar_subquery(), 0))
UNKEY = Prepared(delete(outgoing).where(outgoing.c.key == bindparam("value")))
OUTGOING = Prepared(
    select(*(outgoing.c[name] for name in ("op", "target", "payload", "retain", "role", "key", "id")))
    .where(outgoing.c.id > bindparam("after"))
    .order_by(outgoing.c.id)
    .limit(bindparam("limit"))
)
DROP_OUTGOING = Prepared(delete(outgoing).where(outgoing.c.id == bindparam("value")))
DEPTH = Prepared(
    select(
        func.coalesce(select(func.max(outgoing.c.id)).scalar_subquery(), 0)
        - func.coalesce(select(func.min(outgoing.c.id)).scalar_subquery(), 1)
        + 1
    )
)


def token_values(item: Token) -> dict[str, Any]:
    values = {name: getattr(item, name) for name in TOKEN_FIELDS}
    values["tags"] = json.dumps(item.tags)
    values["kind"] = item.kind.value
    return values


def to_token(row: Row[Any]) -> Token:
    return make_token(dict(row._mapping))


def make_token(values: dict[str, Any]) -> Token:
    values["tags"] = tuple(json.loads(values["tags"]))
    values["kind"] = Kind(values["kind"])
    return Token(**values)


def device_values(item: Device) -> dict[str, Any]:
    values = {name: getattr(item, name) for name in DEVICE_FIELDS}
    values["state"] = item.state.value
    values["tags"] = json.dumps(item.tags)
    values["facts"] = json.dumps(item.facts)
    values["kind"] = item.kind.value
    return values


def to_device(row: Sequence[Any]) -> Device:
    """Of the columns in the order of the fields."""
    values = list(row)
    values[_STATE] = DeviceState(values[_STATE])
    values[_TAGS] = tuple(json.loads(values[_TAGS]))
    values[_FACTS] = json.loads(values[_FACTS])
    values[_KIND] = Kind(values[_KIND])
    return Device(*values)
