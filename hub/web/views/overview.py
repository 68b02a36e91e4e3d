"""The first page: how the fleet is, what wants somebody's attention, and what happened last."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Request, Response

from edgeagent import crypto as providers
from edgeagent.proto.refusals import ControlError
from edgeagent.proto.telemetry import read as read_sample
from hub import rolling
from hub.core import lock, retention
from hub.core.rigs import Verdict
from hub.core.roles import Principal
from hub.core.rollout import RolloutState
from hub.store import audits, claims, commands, devices, fleet, rigs, routes
from hub.store import lock as lock_rows
from hub.store.sql import SqlTx
from hub.web.auth import CurrentBackend, allowed
from hub.web.views.common import is_part, page

router = APIRouter(include_in_schema=False)

EVENTS_SHOWN = 12
VERSIONS_SHOWN = 8
RECENT_SHOWN = 5
ALERTS_MAX = 12
SAMPLES_MAX = 50
TIGHT = 0.9  # of a memory ceiling
COMPLAINTS_EVERY_S = 60


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
        alerts += network_alerts(tx, who, now_s) + audit_alerts(tx, who, now_s)
        paths = find_paths(tx, now_s)
        short, weak = _complaints(request, tx, now_s)
        alerts += rollout_alerts(tx)
        alerts += rig_alerts(tx)
        alerts += memory_alerts(short, paths) + signal_alerts(weak)
        version = tx.policy_version() if who.may("policy:read") else 0
        policy = tx.policy(version) if version else None
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
        "alerts": sorted(alerts, key=lambda alert: ("bad", "warn", "info").index(alert.kind))[:ALERTS_MAX],
        "paths": paths,
        "policy": policy,
        "events": events,
    }
    return page(request, "overview_body.html" if is_part(request) else "overview.html", context)


@dataclass(frozen=True)
class Paths:
    """What devices that somebody looked at within a day said of the ways to their peers."""

    devices: int = 0
    direct: int = 0
    relayed: int = 0
    latencies_ms: tuple[float, ...] = ()  # of direct paths, in order
    tight: tuple[str, ...] = ()  # ids of those whose memory is nearly at its ceiling

    @property
    def median_ms(self) -> float | None:
        return self.latencies_ms[len(self.latencies_ms) // 2] if self.latencies_ms else None


def find_paths(tx: SqlTx, now_s: int) -> Paths:
    direct = relayed = count = 0
    latencies: list[float] = []
    tight: list[str] = []
    for device, data in commands.recent_telemetry(tx.connection, now_s - fleet.DAY_S, SAMPLES_MAX):
        try:
            sample = read_sample(data)
        except ControlError:
            continue  # of a newer agent, or an older hub
        count += 1
        ways = [peer["path"] for peer in sample["peers"]]
        direct, relayed = direct + ways.count("direct"), relayed + ways.count("relay")
        latencies += [
            peer["latency_ms"]
            for peer in sample["peers"]
            if peer["path"] == "direct" and peer["latency_ms"] is not None
        ]
        memory = sample["memory"]
        if memory["ceiling_kib"] and memory["used_kib"] > TIGHT * memory["ceiling_kib"]:
            tight.append(device)
    return Paths(count, direct, relayed, tuple(sorted(latencies)), tuple(tight))


def network_alerts(tx: SqlTx, who: Principal, now_s: int) -> list[Alert]:
    """Of routes and of the lock."""
    found = []
    if who.may("routes:read") and (count := routes.waiting(tx.connection)):
        text = f"{_devices(count)} offering routes that wait for approval"
        found.append(Alert("warn", "route", text, "Is it the network that you mean? Then approve it", "/routes"))
    statement = lock.LockView(providers.load(), tx.network().id).in_force(tx) if who.may("lock:read") else None
    if statement is not None:
        _, unsigned, ending = lock_rows.counts(tx.connection, statement, now_s)
        if unsigned:
            text = f"{_devices(unsigned)} not signed by a lock key"
            what = "The others refuse them until a key signs" if statement.on else "The lock cannot be turned on before"
            found.append(Alert("bad" if statement.on else "warn", "lock", text, what, "/lock"))
        if ending:
            text = f"Signatures of {_devices(ending)} end within 30 days"
            found.append(Alert("warn", "lock", text, "Sign them again in time", "/lock"))
    return found


def audit_alerts(tx: SqlTx, who: Principal, now_s: int) -> list[Alert]:
    broken = retention.held_up_by(tx, now_s) if who.may("audit:read") else None
    if broken is None:
        return []
    text = f"The audit log breaks at row {broken.row.id}, and is not pruned any more"
    return [Alert("bad", "list-details", text, "Look into it, then accept the break on the hub’s machine", "/audit")]


def rig_alerts(tx: SqlTx) -> list[Alert]:
    """Rigs whose last run failed."""
    last = [runs[-1] for runs in rigs.newest(tx.connection).values()]
    return [
        Alert("warn", "cpu", f"{run.suite} failed on the rig {run.rig}", run.failed, f"/rigs/{run.rig}/{run.number}")
        for run in last
        if run.verdict is Verdict.FAILED
    ]


def rollout_alerts(tx: SqlTx) -> list[Alert]:
    """Those that go on only when somebody decides."""
    found = []
    for rollout in tx.rollouts.under_way():
        name, path = rolling.what(rollout), f"/updates/{rollout.id}"
        if rollout.state is RolloutState.PAUSED:
            found.append(Alert("bad", "rocket", f"The rollout of {name} has paused", rollout.why, path))
        elif rollout.state is RolloutState.AWAITING:
            found.append(Alert("warn", "rocket", f"The rollout of {name} waits for approval", "Look at its plan", path))
    return found


def memory_alerts(short: int, paths: Paths) -> list[Alert]:
    found = []
    if short:
        text = f"{_devices(short)} dropped input at the memory’s ceiling"
        what = "A larger ceiling, or fewer peers: see what each says of its tables"
        found.append(Alert("warn", "cpu", text, what, _to(f'fact~"{fleet.AT_CEILING}" state:active')))
    if paths.tight:
        text = f"{_devices(len(paths.tight))} close to the memory’s ceiling when somebody looked"
        found.append(
            Alert("warn", "cpu", text, "Its page shows which table is full", f"/devices/{paths.tight[0]}#h-now")
        )
    return found


def signal_alerts(weak: int) -> list[Alert]:
    if not weak:
        return []
    what = "An antenna in another place, or another operator: each page says what it receives"
    text = f"{_devices(weak)} with a weak mobile signal"
    return [Alert("info", "broadcast", text, what, _to(f'fact~"{fleet.WEAK_SIGNAL}" state:active'))]


def find_alerts(tx: SqlTx, health: fleet.Health, relays_away: int) -> list[Alert]:
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


def _complaints(request: Request, tx: SqlTx, now_s: int) -> tuple[int, int]:
    known: tuple[int, tuple[int, int]] = getattr(request.app.state, "complaints", (0, (0, 0)))
    if not 0 <= now_s - known[0] < COMPLAINTS_EVERY_S:
        known = request.app.state.complaints = (now_s, fleet.complaints(tx.connection))
    return known[1]


def _devices(count: int) -> str:
    return "1 device" if count == 1 else f"{count} devices"


def _to(query: str) -> str:
    return f"/devices?q={quote(query)}"
