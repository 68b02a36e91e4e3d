"""The devices table, what is done to many at once, and the page of one device."""

from __future__ import annotations

import time
from base64 import b64encode
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Form, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from hub import operations
from hub.core import actions
from hub.core.filters import FIELDS, TEXT_MAX, parse
from hub.core.model import Device, DeviceState, HubError
from hub.core.roles import Principal
from hub.operations import Doing
from hub.output import parse_duration
from hub.store import audits, devices, fleet
from hub.store.sql import SqlTx
from hub.web.auth import CurrentBackend, allowed
from hub.web.backend import Backend
from hub.web.errors import Problem
from hub.web.views import operating
from hub.web.views.common import PAGE_SIZE, Pager, back, is_part, page, page_query
from hub.web.views.routes import own_routes
from hub.web.views.updates import device_panel

router = APIRouter(include_in_schema=False)

BULK_MAX = 200
KNOWN_SHOWN = 100
EVENTS_SHOWN = 12

Reader = Annotated[Principal, allowed("devices:read")]
Writer = Annotated[Principal, allowed("devices:write")]
Text = Annotated[str, Form(max_length=500)]

SAID = {"approve": "approved", "remove": "removed", "tag": "tagged", "untag": "untagged"}


@router.get("/devices")
def list_(
    request: Request,
    who: Reader,
    backend: CurrentBackend,
    q: Annotated[str, Query(max_length=TEXT_MAX + 1)] = "",
    sort: Annotated[str, Query(max_length=20)] = "name",
    after: Annotated[str, Query(max_length=1_000)] = "",
    first: Annotated[int, Query(ge=1, le=1_000_000)] = 1,
) -> Response:
    """`after` is where the page before ended, `first` the number of this one's first row."""
    wrong, found = "", devices.Page([], 0, "")
    with backend.read() as tx:
        try:
            found = devices.find(tx.connection, parse(q), int(time.time()), sort=sort, after=after, limit=PAGE_SIZE)
        except HubError as error:
            wrong = str(error)
        exists = bool(found.total) or bool(tx.device_counts())
        tags = [] if is_part(request) else fleet.tag_counts(tx.connection, 6)
    query = {"q": q, "sort": sort if sort != "name" else ""}
    context = {
        "rows": found.rows,
        "pager": Pager("/devices", query, first, len(found.rows), found.total, {"after": found.next}),
        "q": q,
        "sort": sort,
        "wrong": wrong,
        "exists": exists,
        "tags": tags,
        "fields": FIELDS,
        "here": request.url.path + (f"?{request.url.query}" if request.url.query else ""),
    }
    return page(request, "devices_table.html" if is_part(request) else "devices.html", context)


@router.post("/devices/bulk")
async def bulk(request: Request, who: Writer, backend: CurrentBackend) -> Response:
    """`do` is approve, remove, tag or untag; `id` stands for each device, and `tag` says which one."""
    form = await request.form()
    ids = [str(value) for value in form.getlist("id")][:BULK_MAX]
    do, tag = str(form.get("do", "")), str(form.get("tag", "")).strip().lower()
    if do not in SAID:
        raise HubError(f"{do!r} is nothing that can be done to devices here")
    if not ids:
        raise HubError("no device is chosen. Tick some in the table first")
    count = await run_in_threadpool(_bulk, backend, who, ids, do, f"tag:{tag.removeprefix('tag:')}")
    kept = page_query(str(form.get("back", "")), ("q", "sort", "after", "first"))
    return back("/devices", SAID[do], **kept, n=count)


def _bulk(backend: Backend, who: Principal, ids: list[str], do: str, tag: str) -> int:
    """All of it in one transaction, or nothing; how many were changed."""
    count = 0
    with backend.doing(who) as doing:
        for device_id in ids:
            device = actions.find_device(doing.tx, device_id)
            if do == "approve":
                operations.approve(doing, device)
            elif do == "remove":
                operations.remove(doing, device)
            else:
                tags = {*device.tags, tag} if do == "tag" else {*device.tags} - {tag}
                if tags == set(device.tags):
                    continue
                operations.tag(doing, device, tuple(sorted(tags)))
            count += 1
    return count


@router.get("/devices/{device_id}")
def show(request: Request, who: Reader, backend: CurrentBackend, device_id: str) -> Response:
    with backend.read() as tx:
        device = _find(tx, device_id)
        known = tx.acquaintances(device.id, limit=KNOWN_SHOWN + 1)
        rows = devices.by_ids(tx.connection, [device.id, *known[:KNOWN_SHOWN]])
        keys = tx.node_keys(device.id)
        events = audits.newest(tx.connection, object_=f"device:{device.id}", limit=EVENTS_SHOWN)
        domain = tx.network().domain
        prefixes, exits = own_routes(tx, device) if who.may("routes:read") else ([], None)
        own_settings = tx.rollouts.settings_of(device.id) if who.may("rollouts:read") else {}
        brought = device_panel(tx, device) if who.may("rollouts:read") else []
        panels = {} if is_part(request) else operating.panels(tx, device, who)
    context: dict[str, Any] = {
        **panels,
        "device": device,
        "row": rows[device.id],
        "keys": [(b64encode(key.key).decode(), key.not_after, key.key == device.node_key) for key in keys],
        "known": sorted(
            (rows[other] for other in known[:KNOWN_SHOWN] if other in rows), key=lambda row: row.name or row.id
        ),
        "more_known": len(known) > KNOWN_SHOWN,
        "events": events if who.may("audit:read") else [],
        "domain": domain,
        "prefixes": prefixes,
        "exits": exits,
        "brought": brought,
        "own_settings": own_settings,
    }
    return page(request, "device_body.html" if is_part(request) else "device.html", context)


@router.post("/devices/{device_id}/approve")
def approve(who: Writer, backend: CurrentBackend, device_id: str) -> Response:
    return _change(backend, who, device_id, operations.approve, "approved")


@router.post("/devices/{device_id}/rename")
def rename(who: Writer, backend: CurrentBackend, device_id: str, name: Text) -> Response:
    wanted = name.strip().lower()
    return _change(backend, who, device_id, lambda do, device: operations.rename(do, device, wanted), "renamed")


@router.post("/devices/{device_id}/tags")
def tags(who: Writer, backend: CurrentBackend, device_id: str, tags: Text = "") -> Response:
    """All the tags that it shall have, with blanks or commas between."""
    words = tags.lower().replace(",", " ").split()
    wanted = tuple(sorted({f"tag:{word.removeprefix('tag:')}" for word in words}))
    return _change(backend, who, device_id, lambda do, device: operations.tag(do, device, wanted), "tagged")


@router.post("/devices/{device_id}/expire")
def expire(who: Writer, backend: CurrentBackend, device_id: str, after: Text = "") -> Response:
    """`after`: "now", "never", or a time like 30d."""
    try:
        seconds = 0 if after in ("now", "never") else parse_duration(after)
    except ValueError as error:
        raise HubError(f"admission: {error}, or now, or never") from error

    def change(do: Doing, device: Device) -> None:
        operations.expire(do, device, 0 if after == "never" else do.wall_s + seconds)

    return _change(backend, who, device_id, change, "expired" if after == "now" else "renewed")


@router.post("/devices/{device_id}/remove")
def remove(who: Writer, backend: CurrentBackend, device_id: str) -> Response:
    _change(backend, who, device_id, operations.remove, "removed")
    return back("/devices", "removed")


def _change(
    backend: Backend, who: Principal, device_id: str, change: Callable[[Doing, Device], None], said: str
) -> Response:
    with backend.doing(who) as do:
        device = _find(do.tx, device_id)
        if device.state is DeviceState.REMOVED:
            raise HubError(f"device {device_id}: it was removed. It comes back by joining with a new token")
        change(do, device)
    return back(f"/devices/{device.id}", said)


def _find(tx: SqlTx, device_id: str) -> Device:
    try:
        return actions.find_device(tx, device_id)
    except HubError as error:
        raise Problem(404, "no-device", f"There is no device {device_id}. It may have been removed.") from error
