"""The first page: how the fleet is, what wants somebody's attention, and what happened last."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Request, Response

from hub.core.roles import Principal
from hub.store import audits, claims, devices, fleet
from hub.store.sqlite import SqliteTx
from hub.web.auth import CurrentBackend, allowed
from hub.web.views.common import is_part, page

router = APIRouter(include_in_schema=False)

EVENTS_SHOWN = 12
VERSIONS_SHOWN = 8
RECENT_SHOWN = 5
ALERTS_MAX = 12


@dataclass(frozen=True)
class Alert:
    kind: str  # bad, warn or info
    icon: str
    text: str
    what: str  # what to do
    path: str


@router.get("/")
def show(request: Request, who: Annotated[Principal, allowed("devices:read")], backend: CurrentBackend) -> Response:
    now_s = int(time.time())
    with backend.read() as tx:
        health = fleet.health(tx.connection, now_s)
        versions = list(devices.versions(tx.connection).items())[:VERSIONS_SHOWN]
        recent = fleet.latest(tx.connection, RECENT_SHOWN)
        relays = tx.relays()
        alerts = find_alerts(tx, health, len([relay for relay in relays if not relay.online]))
        asking = len(claims.waiting(tx.connection, now_s)) if who.may("claims:read") else 0
        events = audits.newest(tx.connection, limit=EVENTS_SHOWN) if who.may("audit:read") else []
    if asking:
        text = f"{_devices(asking)} asking to come in by a link"
        alerts.insert(0, Alert("warn", "link", text, "Look at the code, then let it in or refuse it", "/add#h-link"))
    hub = backend.state.read_status()
    if not hub.get("connected"):
        said = "Restart `edgehub serve`, and see its log" if hub.get("running") else "Start it: edgehub serve"
        alerts.insert(0, Alert("bad", "plug-connected", "The hub is not connected to its broker", said, "/settings"))
    context = {
        "health": health,
        "versions": versions,
        "recent": recent,
        "relays": relays,
        "relays_online": sum(relay.online for relay in relays),
        "alerts": alerts[:ALERTS_MAX],
        "events": events,
    }
    return page(request, "overview_body.html" if is_part(request) else "overview.html", context)


def find_alerts(tx: SqliteTx, health: fleet.Health, relays_away: int) -> list[Alert]:
    found = []
    if health.cloned:
        text = f"{_devices(health.cloned)} seen twice: two boards run under one identity"
        found.append(Alert("bad", "copy", text, "A copied card? Remove it, and join both anew", _to("cloned:yes")))
    if health.pending:
        text = f"{_devices(health.pending)} waiting for approval"
        found.append(
            Alert("warn", "hourglass", text, "Look at each, then let it in or refuse it", _to("state:pending"))
        )
    if relays_away:
        text = f"{relays_away} relay{'s' if relays_away > 1 else ''} offline"
        found.append(Alert("warn", "access-point", text, "Paths that need it fall back to others", "/relays"))
    if health.ending:
        text = f"Admission of {_devices(health.ending)} ends within a week"
        found.append(Alert("warn", "clock", text, "Renew it, or let it end", _to("expires:<7d state:active")))
    if health.silent:
        text = f"{_devices(health.silent)} silent for more than a day"
        found.append(
            Alert("info", "wifi-off", text, "Power, uplink, or taken away?", _to("online:no state:active seen:>1d"))
        )
    if health.expired:
        text = f"{_devices(health.expired)} expired"
        found.append(
            Alert("info", "ban", text, "They can join again with a token, or be removed", _to("state:expired"))
        )
    return found


def _devices(count: int) -> str:
    return "1 device" if count == 1 else f"{count} devices"


def _to(query: str) -> str:
    return f"/devices?q={quote(query)}"
