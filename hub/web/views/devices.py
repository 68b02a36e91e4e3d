"""The devices table, what is done to many at once, and the page of one device."""

from __future__ import annotations

import contextlib
import time
from base64 import b64encode
from collections.abc import Iterator
from typing import Annotated, Any
from urllib.parse import parse_qsl, urlsplit

from fastapi import APIRouter, Form, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from hub.core import actions, audit
from hub.core.fleetfilter import AGES, FACTS, FLAGS, FilterError, Term, parse
from hub.core.model import Device, HubError
from hub.core.roles import Principal
from hub.core.scribe import Scribe
from hub.output import parse_duration
from hub.store import audits, fleet
from hub.store.sqlite import SqliteTx
from hub.web.auth import CurrentBackend, allowed
from hub.web.backend import Backend
from hub.web.errors import Problem
from hub.web.views.common import PAGE_SIZE, Pager, back, is_part, page

router = APIRouter(include_in_schema=False)

BULK_MAX = 200
KNOWN_SHOWN = 100
EVENTS_SHOWN = 12
PAGES_MAX = 10_000

Reader = Annotated[Principal, allowed("devices:read")]
Writer = Annotated[Principal, allowed("devices:write")]
Text = Annotated[str, Form(max_length=500)]


@router.get("/devices")
def list_(
    request: Request,
    who: Reader,
    backend: CurrentBackend,
    q: Annotated[str, Query(max_length=600)] = "",
    sort: str = "name",
    desc: str = "",
    number: Annotated[int, Query(alias="page", ge=1, le=PAGES_MAX)] = 1,
) -> Response:
    if sort not in fleet.SORTS:
        sort = "name"
    wrong, terms = "", tuple[Term, ...]()
    try:
        terms = parse(q)
    except FilterError as error:
        wrong = str(error)
    found = fleet.Page([], 0)
    with backend.read() as tx:
        if not wrong:
            found = fleet.search(
                tx.connection,
                terms,
                now_s=int(time.time()),
                sort=sort,
                descending=bool(desc),
                offset=(number - 1) * PAGE_SIZE,
                limit=PAGE_SIZE,
            )
        exists = bool(found.total) or bool(tx.device_counts())
        tags = [] if is_part(request) else fleet.tag_counts(tx.connection, 12)
    context = {
        "rows": found.rows,
        "pager": Pager(number, found.total, "/devices", {"q": q, "sort": sort if sort != "name" else "", "desc": desc}),
        "q": q,
        "sort": sort,
        "desc": desc,
        "wrong": wrong,
        "exists": exists,
        "tags": tags,
        "flags": FLAGS,
        "facts": FACTS,
        "ages": AGES,
        "here": request.url.path + (f"?{request.url.query}" if request.url.query else ""),
    }
    return page(request, "devices_table.html" if is_part(request) else "devices.html", context)


@router.post("/devices/bulk")
async def bulk(request: Request, who: Writer, backend: CurrentBackend) -> Response:
    """`do` is approve, remove, tag or untag; `id` stands for each device, and `tag` says which one."""
    form = await request.form()
    ids = [str(value) for value in form.getlist("id")][:BULK_MAX]
    do, tag = str(form.get("do", "")), str(form.get("tag", "")).strip().lower()
    if not ids:
        raise HubError("no device is chosen. Tick some in the table first")
    if do in ("tag", "untag") and not tag.startswith("tag:"):
        tag = f"tag:{tag}"
    count = await run_in_threadpool(_bulk, backend, who, ids, do, tag)
    said = {"approve": "approved", "remove": "removed", "tag": "tagged", "untag": "untagged"}[do]
    query = parse_qsl(urlsplit(str(form.get("back", ""))).query, max_num_fields=8)
    kept = {name: value for name, value in query if name in ("q", "sort", "desc", "page")}
    return back("/devices", said, **kept, n=count)


def _bulk(backend: Backend, who: Principal, ids: list[str], do: str, tag: str) -> int:
    """In one transaction: all of it, or nothing."""
    count = 0
    with backend.write() as (tx, scribe, wall_s):
        for device_id in ids:
            device = actions.find_device(tx, device_id)
            if do == "approve":
                actions.approve_device(scribe, tx, device, wall_s)
            elif do == "remove":
                actions.remove_device(scribe, tx, device, wall_s)
            elif do == "tag":
                if not actions.tag_device(scribe, tx, device, add=(tag,)):
                    continue
            elif do == "untag":
                if not actions.tag_device(scribe, tx, device, take=(tag,)):
                    continue
            else:
                raise HubError(f"{do!r} is nothing that can be done to devices here")
            count += 1
            detail: dict[str, str | int] = {"name": device.name or ""}
            if "tag" in do:
                detail["tag"] = tag
            audit.record(tx, wall_s, who.actor, f"device.{do}", f"device:{device.id}", detail)
    return count


@router.get("/devices/{device_id}")
def show(request: Request, who: Reader, backend: CurrentBackend, device_id: str) -> Response:
    with backend.read() as tx:
        device = _find(tx, device_id)
        known = tx.acquaintances(device.id, limit=KNOWN_SHOWN + 1)
        rows = fleet.rows_of(tx.connection, [device.id, *known[:KNOWN_SHOWN]])
        keys = tx.node_keys(device.id)
        events = audits.newest(tx.connection, object_=f"device:{device.id}", limit=EVENTS_SHOWN)
        domain = tx.network().domain
    context: dict[str, Any] = {
        "device": device,
        "row": rows[device.id],
        "keys": [(b64encode(key.key).decode(), key.not_after, key.key == device.node_key) for key in keys],
        "known": sorted((rows[other] for other in known[:KNOWN_SHOWN] if other in rows), key=lambda row: row.shown),
        "more_known": len(known) > KNOWN_SHOWN,
        "events": events if who.may("audit:read") else [],
        "domain": domain,
    }
    return page(request, "device.html", context)


@router.post("/devices/{device_id}/approve")
def approve(who: Writer, backend: CurrentBackend, device_id: str) -> Response:
    with _changing(backend, who, device_id, "approve") as (tx, scribe, wall_s, device):
        actions.approve_device(scribe, tx, device, wall_s)
    return back(f"/devices/{device_id}", "approved")


@router.post("/devices/{device_id}/rename")
def rename(who: Writer, backend: CurrentBackend, device_id: str, name: Text) -> Response:
    with _changing(backend, who, device_id, "rename", to=name.strip().lower()) as (tx, scribe, _, device):
        actions.rename_device(scribe, tx, device, name.strip().lower())
    return back(f"/devices/{device_id}", "renamed")


@router.post("/devices/{device_id}/tags")
def tags(who: Writer, backend: CurrentBackend, device_id: str, tags: Text = "") -> Response:
    """All the tags that it shall have, with blanks or commas between."""
    wanted = tuple(
        tag if tag.startswith("tag:") else f"tag:{tag}" for tag in tags.lower().replace(",", " ").split() if tag
    )
    with _changing(backend, who, device_id, "tag", tags=" ".join(wanted)) as (tx, scribe, _, device):
        actions.tag_device(
            scribe, tx, device, add=wanted, take=tuple(tag for tag in device.tags if tag not in wanted)
        )
    return back(f"/devices/{device_id}", "tagged")


@router.post("/devices/{device_id}/expire")
def expire(who: Writer, backend: CurrentBackend, device_id: str, after: Text = "") -> Response:
    """`after`: "now", "never", or a time like 30d."""
    try:
        seconds = 0 if after in ("now", "never") else parse_duration(after)
    except ValueError as error:
        raise HubError(f"admission: {error}, or now, or never") from error
    with _changing(backend, who, device_id, "expire", after=after) as (tx, scribe, wall_s, device):
        actions.expire_device(scribe, tx, device, 0 if after == "never" else wall_s + seconds, wall_s)
    return back(f"/devices/{device_id}", "expired" if after == "now" else "renewed")


@router.post("/devices/{device_id}/remove")
def remove(who: Writer, backend: CurrentBackend, device_id: str) -> Response:
    with _changing(backend, who, device_id, "remove") as (tx, scribe, wall_s, device):
        actions.remove_device(scribe, tx, device, wall_s)
    return back("/devices", "removed")


def _find(tx: SqliteTx, device_id: str) -> Device:
    try:
        return actions.find_device(tx, device_id)
    except HubError as error:
        raise Problem(404, "no-such-device", f"There is no device {device_id}. It may have been removed.") from error


@contextlib.contextmanager
def _changing(
    backend: Backend, who: Principal, device_id: str, verb: str, **detail: str | int
) -> Iterator[tuple[SqliteTx, Scribe, int, Device]]:
    """A write transaction about one device, with its audit row at the end."""
    with backend.write() as (tx, scribe, wall_s):
        device = _find(tx, device_id)
        name = device.name or ""
        yield tx, scribe, wall_s, device
        audit.record(tx, wall_s, who.actor, f"device.{verb}", f"device:{device.id}", {"name": name, **detail})
