"""Devices: list, look at, change, admit, remove."""

from __future__ import annotations

import time
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field

from hub import operations
from hub.core import actions
from hub.core.filters import TEXT_MAX, parse
from hub.core.model import Device, HubError
from hub.core.people import check_login
from hub.core.roles import Principal
from hub.operations import Doing
from hub.store import devices
from hub.web.api.common import After, Limit, Seconds, check_if_match, etag
from hub.web.auth import CurrentBackend, CurrentUser, allowed, demand
from hub.web.errors import Problem

BULK_MAX = 500

router = APIRouter(tags=["devices"])


class DeviceOut(BaseModel):
    """Times in seconds since 1970, 0 for never."""

    id: str
    name: str | None
    state: Literal["pending", "active", "expired", "removed"]
    online: bool
    addresses: list[str]
    tags: list[str]
    user: str
    version: str
    facts: dict[str, str]
    last_seen: int
    created: int
    not_after: int = Field(description="When its admission ends.")
    cloned: int = Field(description="When two boards were seen under this identity: a copied card.")
    claim: str = Field(description="Id of the token that it joined with.")
    etag: str = Field(description="For If-Match: changes with name, state, tags, user and not_after.")


class DeviceList(BaseModel):
    devices: list[DeviceOut]
    total: int
    next: str


class DeviceChange(BaseModel, extra="forbid"):
    """What is left out stays."""

    name: Annotated[str, Field(max_length=63)] | None = None
    tags: Annotated[list[Annotated[str, Field(max_length=64)]], Field(max_length=actions.TAGS_MAX)] | None = None
    user: Annotated[str, Field(max_length=253)] | None = None
    not_after: Seconds | None = None

    model_config = {"json_schema_extra": {"examples": [{"name": "front-door", "tags": ["tag:camera"]}]}}


class Bulk(BaseModel, extra="forbid"):
    """The same for many: named by id, or by a filter."""

    ids: Annotated[list[Annotated[str, Field(max_length=64)]], Field(max_length=BULK_MAX)] = []
    filter: Annotated[str, Field(max_length=TEXT_MAX)] = ""
    do: Literal["tag", "untag", "approve", "expire", "renew", "remove"]
    tag: Annotated[str, Field(max_length=64)] = ""

    model_config = {"json_schema_extra": {"examples": [{"filter": "state:pending", "do": "approve"}]}}


class BulkOut(BaseModel):
    done: list[str]
    refused: dict[str, str]
    more: bool = Field(description="The filter fits more than were worked on: ask again.")


def to_out(row: devices.DeviceRow) -> DeviceOut:
    out = DeviceOut(
        id=row.id,
        name=row.name,
        state=row.state.value,
        online=row.online,
        addresses=[
            *([] if row.v4 is None else [str(IPv4Address(row.v4))]),
            *([] if row.v6 is None else [str(IPv6Address(row.v6))]),
        ],
        tags=list(row.tags),
        user=row.user,
        version=row.version,
        facts=row.facts,
        last_seen=row.last_seen_s,
        created=row.created_s,
        not_after=row.not_after,
        cloned=row.cloned_s,
        claim=row.claim,
        etag="",
    )
    out.etag = etag([row.id, row.name, row.state.value, row.tags, row.user, row.not_after])
    return out


@router.get("/devices")
def list_devices(
    backend: CurrentBackend,
    who: Annotated[Principal, allowed("devices:read")],
    filter: Annotated[str, Query(max_length=TEXT_MAX, examples=["tag:camera online:no version:<0.2"])] = "",
    sort: Annotated[str, Query(max_length=16, description="A field; `-` before it turns it round.")] = "name",
    limit: Limit = 100,
    after: After = "",
    mine: bool = False,
) -> DeviceList:
    """By the filter language of the dashboard; `next` is the `after` of the next page, "" on the last."""
    terms = parse(filter)
    with backend.read() as tx:
        page = devices.find(
            tx.connection,
            terms,
            int(time.time()),
            sort=sort,
            after=after,
            limit=limit,
            owner=who.login if mine else "",
        )
    return DeviceList(devices=[to_out(row) for row in page.rows], total=page.total, next=page.next)


@router.post("/devices/bulk")
def bulk(backend: CurrentBackend, who: Annotated[Principal, allowed("devices:write")], body: Bulk) -> BulkOut:
    """One transaction for all; those that it cannot be done to are named with the reason."""
    if not body.ids and not body.filter.strip():
        raise Problem(422, "invalid", "ids or filter: one of them is needed.")
    done: list[str] = []
    refused: dict[str, str] = {}
    more = False
    with backend.doing(who) as do:
        ids = body.ids
        if body.filter.strip():
            ids = devices.ids(do.tx.connection, parse(body.filter), do.wall_s, BULK_MAX + 1)
            more = len(ids) > BULK_MAX
        for device_id in ids[:BULK_MAX]:
            try:
                _DOING[body.do](do, _find(do, device_id), body.tag)
            except (HubError, Problem) as error:
                refused[device_id] = str(error)
            else:
                done.append(device_id)
    return BulkOut(done=done, refused=refused, more=more)


@router.get("/devices/{device_id}")
def get_device(
    backend: CurrentBackend, who: Annotated[Principal, allowed("devices:read")], device_id: str, response: Response
) -> DeviceOut:
    """By id, name or address."""
    with backend.read() as tx:
        row = devices.one(tx.connection, _find(tx, device_id).id)
    assert row is not None
    out = to_out(row)
    response.headers["ETag"] = out.etag
    return out


@router.patch("/devices/{device_id}")
def change_device(
    backend: CurrentBackend,
    who: CurrentUser,
    device_id: str,
    body: DeviceChange,
    request: Request,
    response: Response,
) -> DeviceOut:
    """With If-Match: nothing is done when somebody else has changed it meanwhile (412)."""
    with backend.doing(who) as do:
        device = _owned(do, who, device_id)
        row = devices.one(do.tx.connection, device.id)
        assert row is not None
        check_if_match(request, to_out(row).etag)
        if body.tags is not None or body.user is not None:
            demand(who, "devices:write")  # what a device counts as is not for its user to say
        if body.name is not None and body.name != device.name:
            operations.rename(do, device, body.name)
        if body.tags is not None and tuple(body.tags) != device.tags:
            operations.tag(do, device, tuple(body.tags))
        if body.user is not None and body.user != device.user:
            operations.assign(do, device, check_login(body.user) if body.user else "")
        if body.not_after is not None and body.not_after != device.not_after:
            if body.not_after == 0 or body.not_after > device.not_after > 0:
                demand(who, "devices:write")  # and neither how long it may stay
            operations.expire(do, device, body.not_after)
        row = devices.one(do.tx.connection, device.id)
        assert row is not None
    out = to_out(row)
    response.headers["ETag"] = out.etag
    return out


@router.post("/devices/{device_id}/approve")
def approve_device(
    backend: CurrentBackend, who: Annotated[Principal, allowed("devices:write")], device_id: str
) -> DeviceOut:
    """Let a waiting device in."""
    with backend.doing(who) as do:
        device = _find(do, device_id)
        operations.approve(do, device)
        row = devices.one(do.tx.connection, device.id)
    assert row is not None
    return to_out(row)


@router.delete("/devices/{device_id}", status_code=204)
def remove_device(backend: CurrentBackend, who: CurrentUser, device_id: str) -> None:
    """Cut it off for good: its session ends, all who know it are told, keys it knew are changed."""
    with backend.doing(who) as do:
        operations.remove(do, _owned(do, who, device_id))


def _owned(do: Doing, who: Principal, text: str) -> Device:
    device = _find(do, text)
    demand(who, "devices:write", device.user)
    return device


def _find(where: Any, text: str) -> Device:
    """By id, name or address; never a relay. Raises Problem 404."""
    try:
        return actions.find_device(where.tx if isinstance(where, Doing) else where, text)
    except HubError as error:
        raise Problem(404, "no-device", str(error).partition(".")[0] + ".") from None


def _expire(do: Doing, device: Device, _: str) -> None:
    operations.expire(do, device, do.wall_s)


def _tag(do: Doing, device: Device, tag: str) -> None:
    if tag not in device.tags:
        operations.tag(do, device, (*device.tags, tag))


def _untag(do: Doing, device: Device, tag: str) -> None:
    if tag in device.tags:
        operations.tag(do, device, tuple(kept for kept in device.tags if kept != tag))


_DOING: dict[str, Callable[[Doing, Device, str], None]] = {
    "tag": _tag,
    "untag": _untag,
    "approve": lambda do, device, _: operations.approve(do, device),
    "expire": _expire,
    "renew": lambda do, device, _: operations.expire(do, device, 0),
    "remove": lambda do, device, _: operations.remove(do, device),
}
