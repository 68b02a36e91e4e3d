"""`/metrics` for Prometheus: from this machine, or with an API token of scope `metrics:read`.

No label's values grow with the fleet: devices are counted, not named, and of versions only the commonest are.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.concurrency import run_in_threadpool

from hub.core.model import DeviceState
from hub.store import devices, hooks, people
from hub.web.auth import current_user, demand
from hub.web.backend import Backend

VERSIONS_MAX = 20
_FORWARDED = ("x-forwarded-for", "forwarded", "x-real-ip", "via")

router = APIRouter(include_in_schema=False)


class Metrics:
    """`app.state.metrics`: what is counted here, and the collector of what the database knows."""

    def __init__(self, backend: Backend) -> None:
        self.registry = CollectorRegistry()
        self._backend = backend
        self.requests = Counter(
            "edgehub_web_requests", "Answers of the web process.", ["status"], registry=self.registry
        )
        self.viewers = 0
        self.registry.register(self)

    def count(self, status: int) -> None:
        self.requests.labels(f"{status // 100}xx").inc()

    def collect(self) -> Iterator[Any]:
        backend = self._backend
        with backend.read() as tx:
            counts, online, relays = tx.device_counts(), tx.online_count(), tx.relays()
            waiting, jobs, tokens = tx.outgoing_depth(), tx.job_count(), tx.token_count()
            versions = devices.versions(tx.connection)
            deliveries, users = hooks.waiting(tx.connection), people.people_count(tx.connection)
            last = tx.last_audit()
        running = backend.state.is_running()
        said = backend.state.read_status() if running else {}
        states = GaugeMetricFamily("edgehub_devices", "Devices by state, without relays.", labels=["state"])
        for state in DeviceState:
            states.add_metric([state.value], counts.get(state, 0))
        yield states
        commonest = list(versions.items())
        by_version = GaugeMetricFamily("edgehub_device_versions", "Active devices by version.", labels=["version"])
        for version, number in commonest[:VERSIONS_MAX]:
            by_version.add_metric([version or "unknown"], number)
        by_version.add_metric(["others"], sum(number for _, number in commonest[VERSIONS_MAX:]))
        yield by_version
        for name, text, value in (
            ("devices_online", "Devices that are there.", online),
            ("relays", "Relays that joined.", len(relays)),
            ("relays_online", "Relays that are there.", sum(relay.online for relay in relays)),
            ("tokens", "Join tokens, finished ones too.", tokens),
            ("users", "People who may sign in.", users),
            ("outgoing", "Messages that wait for the broker.", waiting),
            ("jobs", "Changes that are being spread.", jobs),
            ("webhook_deliveries", "What web hooks have not been told yet.", deliveries),
            ("audit_rows", "The newest row's id.", last.id if last is not None else 0),
            ("live_viewers", "Pages that listen for changes.", self.viewers),
            ("up", "1 while the hub runs.", int(running)),
            ("broker_connected", "1 while it is connected to its broker.", int(bool(said.get("connected")))),
        ):
            yield GaugeMetricFamily(f"edgehub_{name}", text, value)
        drops = CounterMetricFamily("edgehub_drops", "Messages dropped since the hub started.", labels=["reason"])
        for reason, number in said.get("drops", {}).items():
            drops.add_metric([reason], number)
        yield drops


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    if not is_local(request):
        demand(await current_user(request), "metrics:read")
    found: Metrics = request.app.state.metrics
    found.viewers = len(request.app.state.broadcaster)
    text = await run_in_threadpool(generate_latest, found.registry)
    return Response(text, media_type=CONTENT_TYPE_LATEST)


def is_local(request: Request) -> bool:
    """Whether somebody on this machine asks, and not through a reverse proxy on it, for somebody outside."""
    try:
        peer = ipaddress.ip_address(request.client.host if request.client else "")
    except ValueError:
        return False
    name = request.headers.get("host", "").rpartition(":")[0]
    asked_here = name.lower() in ("localhost", "127.0.0.1", "[::1]")
    return peer.is_loopback and asked_here and not any(request.headers.get(header) for header in _FORWARDED)
