"""The network lock: how it stands, what is to be signed, and what was signed elsewhere. No lock key comes here."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, Field

from edgeagent import crypto as providers
from hub import locking
from hub.core import actions, lock
from hub.core.lock_signer import key_text, parse_key
from hub.core.model import Device, HubError
from hub.core.roles import Principal
from hub.io.locklines import LINE_CHARACTERS_MAX, read_answers, request_line
from hub.store.sql import SqlTx
from hub.web.api.common import Seconds
from hub.web.auth import CurrentBackend, allowed
from hub.web.errors import Problem

LINES_MAX = 5_000  # in one request
NAMES_MAX = 500

router = APIRouter(tags=["lock"])


class PendingOut(BaseModel):
    id: str
    name: str | None
    signature: bool = Field(description="Whether a lock key has signed it.")
    node_key: bool = Field(description="Whether it has signed its node key itself, which it does when it is online.")


class LockOut(BaseModel):
    state: str = Field(description="none, off or on.")
    statement: int
    keys: list[str]
    revoked: dict[str, int] = Field(description="Device: what was signed up to then is void.")
    devices: int
    pending: list[PendingOut] = Field(description="Those that others refuse under the lock.")


class Wanted(BaseModel, extra="forbid"):
    """What is to be signed: of devices (all unsigned ones without any), or one change of the lock."""

    devices: Annotated[list[Annotated[str, Field(max_length=300)]], Field(max_length=NAMES_MAX)] = []
    not_after: Seconds = 0
    on: bool | None = None
    add_key: Annotated[str, Field(max_length=64)] = ""
    remove_key: Annotated[str, Field(max_length=64)] = ""
    revoke: Annotated[str, Field(max_length=300, description="A device, a removed one too.")] = ""
    force: bool = Field(default=False, description="Even if devices are cut off by it.")

    model_config = {"json_schema_extra": {"examples": [{"devices": ["cam-3"]}, {"on": True}]}}


class LinesOut(BaseModel):
    lines: list[str] = Field(description="For `edgehub lock sign-requests`, on the machine where the key is.")


class Signed(BaseModel, extra="forbid"):
    lines: Annotated[
        list[Annotated[str, Field(max_length=LINE_CHARACTERS_MAX)]], Field(min_length=1, max_length=LINES_MAX)
    ] = Field(description="What `edgehub lock sign-requests` wrote.")
    force: bool = Field(default=False, description="Even if devices are cut off by it.")

    model_config = {
        "json_schema_extra": {"examples": [{"lines": ['{"signed":"statement","network":"…","object":"…"}']}]}
    }


class Taken(BaseModel):
    statements: int
    devices: int


@router.get("/lock")
def state(backend: CurrentBackend, who: Annotated[Principal, allowed("lock:read")]) -> LockOut:
    with backend.read() as tx:
        view = _view(tx)
        statement = view.in_force(tx)
        found = lock.standings(view, tx, int(time.time()))
    return LockOut(
        state="none" if statement is None else ("on" if statement.on else "off"),
        statement=statement.sequence if statement else 0,
        keys=[key_text(key) for key in statement.keys] if statement else [],
        revoked=dict(statement.revoked) if statement else {},
        devices=len(found),
        pending=[
            PendingOut(id=each.device.id, name=each.device.name, signature=bool(each.by), node_key=each.node_key)
            for each in found
            if each.is_pending
        ],
    )


@router.post("/lock/requests")
def make_requests(backend: CurrentBackend, who: Annotated[Principal, allowed("lock:read")], body: Wanted) -> LinesOut:
    """Changes nothing: what it returns goes to whoever has a lock key."""
    changes = [name for name in ("on", "add_key", "remove_key", "revoke") if getattr(body, name) not in (None, "")]
    if len(changes) + bool(body.devices) > 1:
        raise Problem(422, "invalid", "One at a time: devices, on, add_key, remove_key or revoke.")
    wall_s = int(time.time())
    with backend.read() as tx:
        view = _view(tx)
        if not changes:
            found = [_find(tx, name) for name in body.devices]
            wanted = locking.requests(view, tx, wall_s, found, end=body.not_after)
            return LinesOut(lines=[request_line(each) for each in wanted])
        draft = locking.draft_request(
            view,
            tx,
            wall_s,
            force=body.force,
            on=body.on,
            add=parse_key(body.add_key) if body.add_key else None,
            remove=parse_key(body.remove_key) if body.remove_key else None,
            revoke=locking.revocation(tx, wall_s, body.revoke) if body.revoke else None,
        )
    return LinesOut(lines=[request_line(draft)])


@router.post("/lock/signatures")
def take(backend: CurrentBackend, who: Annotated[Principal, allowed("lock:write")], body: Signed) -> Taken:
    """Put in force what was signed elsewhere: all of it, or none if one is wrong."""
    answers = read_answers(body.lines)
    with backend.doing(who) as do:
        statements, devices = locking.take_answers(do, answers, force=body.force)
    return Taken(statements=statements, devices=devices)


def _view(tx: SqlTx) -> lock.LockView:
    return lock.LockView(providers.load(), tx.network().id)


def _find(tx: SqlTx, text: str) -> Device:
    try:
        return actions.find_device(tx, text)
    except HubError as error:
        raise Problem(404, "no-device", str(error).partition(".")[0] + ".") from None
