"""The audit log with the state of its chain, the settings, and web hooks."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Form, Query, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders

from hub.core import chain as chains
from hub.core import retention
from hub.core.chain import Accepts, Walk
from hub.core.events import EVENTS
from hub.core.retention import Keep
from hub.core.roles import Principal
from hub.store import audits, hooks, oidcsettings, websettings
from hub.store.sql import SqlTx
from hub.web.api import system as api
from hub.web.api.common import etag
from hub.web.auth import CurrentBackend, allowed
from hub.web.backend import Backend
from hub.web.views.common import PAGE_SIZE, back, is_part, page, valid

router = APIRouter(include_in_schema=False)

CHAIN_STEP = 1_000
CHAIN_MAX = 50_000  # rows that one look at the chain follows; `edgehub audit verify` follows all

Text = Annotated[str, Form(max_length=1_000)]


@router.get("/audit")
def audit_log(
    request: Request,
    who: Annotated[Principal, allowed("audit:read")],
    backend: CurrentBackend,
    before: Annotated[int, Query(ge=0)] = 0,
    actor: Annotated[str, Query(max_length=300)] = "",
    verb: Annotated[str, Query(max_length=64)] = "",
    object: Annotated[str, Query(max_length=300)] = "",
) -> Response:
    with backend.read() as tx:
        found = audits.newest(
            tx.connection,
            before=before,
            limit=PAGE_SIZE + 1,
            actor=actor.strip(),
            verb=verb.strip(),
            object_=object.strip(),
        )
        last, begin, keep = tx.last_audit(), chains.beginning(tx), Keep.decode(tx.audit_keep())
        held_up = None if is_part(request) else retention.held_up_by(tx, int(time.time()))
    shown = found[:PAGE_SIZE]
    query = {"actor": actor, "verb": verb, "object": object}
    context: dict[str, Any] = {
        "events": shown,
        "query": query,
        "filtered": any(query.values()),
        "older": shown[-1].id if len(found) > PAGE_SIZE else 0,
        "before": before,
        "last": last,
        "begin": begin,
        "keep": keep,
        "held_up": held_up,
        "here": str(request.url.path) + (f"?{request.url.query}" if request.url.query else ""),
    }
    return page(request, "audit_table.html" if is_part(request) else "audit.html", context)


@router.get("/audit/chain")
def chain(request: Request, who: Annotated[Principal, allowed("audit:read")], backend: CurrentBackend) -> Response:
    """Whether every row's hash fits, from the first that is kept on."""
    with backend.read() as tx:
        context = follow(tx)
    return page(request, "audit_chain.html", context)


def follow(tx: SqlTx) -> dict[str, Any]:
    """`broken`: the first break that was not accepted, or None; `accepted`: those before it; `rows`: how many rows
    were read; `whole`: whether that was all."""
    begin = chains.beginning(tx)
    walk, count = Walk(begin, Accepts(tx)), 0
    while count < CHAIN_MAX:
        rows = tx.audit_rows(after=walk.next_id - 1, limit=CHAIN_STEP)
        count += len(rows)
        if not walk.go(rows) or len(rows) < CHAIN_STEP:
            break
    last = tx.last_audit()
    return {
        "broken": walk.broken,
        "accepted": walk.accepted,
        "rows": count,
        "begin": begin,
        "whole": walk.broken is None and (last is None or last.id == walk.next_id - 1),
        "hash": walk.before.hex(),
    }


@router.get("/settings")
def settings(
    request: Request, who: Annotated[Principal, allowed("settings:read")], backend: CurrentBackend
) -> Response:
    return page(request, "settings.html", _context(backend))


@router.post("/settings")
def change_settings(
    request: Request,
    who: Annotated[Principal, allowed("settings:write")],
    backend: CurrentBackend,
    url: Text = "",
    private_hooks: Text = "",
    was: Text = "",
) -> Response:
    """`was`: the version of the settings that the form showed."""
    MutableHeaders(scope=request.scope)["if-match"] = was
    body = valid(api.SettingsChange, url=url.strip(), private_hooks=bool(private_hooks))
    api.change_settings(backend, who, body, Request(request.scope), Response())
    return back("/settings", "settings-saved")


@router.post("/settings/webhooks")
async def add_webhook(
    request: Request, who: Annotated[Principal, allowed("webhooks:write")], backend: CurrentBackend
) -> Response:
    """`event` stands for each. The answer shows the hook's secret, this once."""
    form = await request.form()
    body = valid(api.NewWebhook, url=str(form.get("url", "")).strip(), events=[str(e) for e in form.getlist("event")])
    made = await run_in_threadpool(api.add_webhook, backend, who, body)
    return page(request, "settings.html", {**_context(backend), "made": made})


@router.post("/settings/webhooks/{hook_id}/{do}")
def change_webhook(
    who: Annotated[Principal, allowed("webhooks:write")], backend: CurrentBackend, hook_id: str, do: str
) -> Response:
    if do == "test":
        api.test_webhook(backend, who, hook_id)
        return back("/settings", "hook-tested")
    api.remove_webhook(backend, who, hook_id)
    return back("/settings", "hook-removed")


def _context(backend: Backend) -> dict[str, Any]:
    with backend.read() as tx:
        found = websettings.load(tx.connection)
        network = tx.network()
        webhooks = hooks.all_(tx.connection)
        oidc = oidcsettings.load(tx.connection)
    return {
        "settings": found,
        "was": etag(asdict(found)),
        "network": network,
        "oidc": oidc,
        "hub": backend.state.read_status() if backend.state.is_running() else {},
        "state_directory": str(backend.state.directory),
        "webhooks": webhooks,
        "event_names": EVENTS,
        "made": None,
    }
