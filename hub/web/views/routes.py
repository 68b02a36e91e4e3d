"""Prefixes behind devices, exit nodes, and plain WireGuard clients behind a gateway."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass
from itertools import groupby
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request, Response
from markupsafe import Markup

from hub import operations
from hub.core import actions, clients, routes
from hub.core.filters import parse
from hub.core.model import Client, Device, DeviceState, HubError
from hub.core.roles import Principal
from hub.core.routes import Row
from hub.store import devices
from hub.store.sql import SqlTx
from hub.web.auth import CurrentBackend, allowed
from hub.web.backend import Backend
from hub.web.views.common import Trouble, back, is_part, page, trouble
from hub.web.views.joining import qr_code

router = APIRouter(include_in_schema=False)

GROUPS_SHOWN = 200
CLIENTS_SHOWN = 200
GATEWAYS_OFFERED = 100
_ONLINE = parse("online:yes state:active")

Reader = Annotated[Principal, allowed("routes:read")]
Writer = Annotated[Principal, allowed("routes:write")]
ClientWriter = Annotated[Principal, allowed("clients:write")]
Text = Annotated[str, Form(max_length=300)]


@dataclass(frozen=True)
class Member:
    """A device that offers a prefix, or is approved for it. `primary`: whom the hub names first to those who ask."""

    device: Device
    primary: bool
    advertised: bool
    approved: bool
    snat: bool
    state: str

    @property
    def mark(self) -> tuple[str, str]:
        """(kind of mark, word)."""
        if self.state == "in use" and not self.device.online:
            return "off", "approved, offline"
        return {"in use": "ok", "waits for approval": "warn"}.get(self.state, "off"), self.state


@dataclass(frozen=True)
class Group:
    """All routers of one prefix; of exit nodes, `prefix` is "exit". `via`: what it is at the site (4via6)."""

    prefix: str
    members: list[Member]
    via: str = ""

    @property
    def waits(self) -> bool:
        return any(member.advertised and not member.approved for member in self.members)


def groups_of(rows: list[Row]) -> list[Group]:
    """By prefix, in the order of `rows`; those that wait for somebody first."""
    found = [
        Group(prefix, _members(list(members)), via)
        for (prefix, via), members in groupby(rows, key=lambda row: (row.prefix, row.via))
    ]
    return sorted(found, key=lambda group: not group.waits)


def exits_of(rows: list[Row]) -> Group:
    """One member for each device: that it offers one of IPv4 and IPv6 alone is seldom, and decided as one."""
    by_device: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: (row.advertised and not row.approved, row.state == "in use")):
        by_device[row.device.id] = row  # what waits for somebody counts before what is in use
    # Whoever uses an exit node names it: none is the first choice.
    return Group("exit", [_member(row, primary=False) for _, row in sorted(by_device.items())])


def _members(rows: list[Row]) -> list[Member]:
    """In the order in which the hub names them (`hub.core.routes.routers_of`): those in use, online first, by id."""
    rows.sort(key=lambda row: (not _is_used(row), not row.device.online, row.device.id))
    return [_member(row, primary=at == 0 and _is_used(row)) for at, row in enumerate(rows)]


def _is_used(row: Row) -> bool:
    return row.advertised and row.approved and row.device.state is DeviceState.ACTIVE


def _member(row: Row, *, primary: bool) -> Member:
    return Member(row.device, primary, row.advertised, row.approved, row.snat, row.state)


@router.get("/routes")
def show(request: Request, who: Reader, backend: CurrentBackend) -> Response:
    return page(request, "routes_body.html" if is_part(request) else "routes.html", _context(backend))


@router.post("/routes/approve")
def approve(who: Writer, backend: CurrentBackend, device: Text, prefix: Text, to: Text = "") -> Response:
    """`prefix` is "exit" for an exit node; `to` is the device whose page it was asked on."""
    with backend.doing(who) as do:
        operations.approve_routes(do, actions.find_device(do.tx, device), [prefix])
    return back(_from(device, to), "route-approved")


@router.post("/routes/unapprove")
def unapprove(who: Writer, backend: CurrentBackend, device: Text, prefix: Text, to: Text = "") -> Response:
    with backend.doing(who) as do:
        operations.unapprove_routes(do, actions.find_device(do.tx, device), [prefix])
    return back(_from(device, to), "route-unapproved")


@router.post("/routes/clients")
def add_client(
    request: Request,
    who: ClientWriter,
    backend: CurrentBackend,
    name: Text = "",
    gateway: Text = "",
    endpoint: Text = "",
    public_key: Text = "",
) -> Response:
    """The answer shows the configuration, this once; where the hub made the keys, the private one is nowhere else."""
    form = {"name": name.strip().lower(), "gateway": gateway, "endpoint": endpoint.strip(), "public_key": public_key}
    try:
        with backend.doing(who) as do:
            key = clients.read_key(public_key) if public_key.strip() else None
            try:
                found = actions.find_device(do.tx, gateway)
            except HubError as error:
                raise HubError(f"gateway {error}") from error
            added, text = operations.add_client(
                do, name=form["name"], gateway=found, endpoint=form["endpoint"], public_key=key
            )
    except HubError as error:
        fault = trouble(error, {"name": "name", "gateway": "gateway", "endpoint": "endpoint", "public": "public_key"})
        return page(request, "routes.html", _context(backend, form=form, wrong=fault), 400)
    made = {"name": added.client.name, "text": text, "qr": qr_code(text) if added.private else Markup("")}
    return page(request, "routes.html", _context(backend, made=made))


@router.post("/routes/clients/remove")
def remove_client(who: ClientWriter, backend: CurrentBackend, name: Text) -> Response:
    with backend.doing(who) as do:
        operations.remove_client(do, name)
    return back("/routes", "client-removed")


def own_routes(tx: SqlTx, device: Device) -> tuple[list[Group], Group]:
    """What one device offers, for its page: prefixes, and whether it is an exit node."""
    rows = routes.of_device(tx, device)
    return groups_of([row for row in rows if not row.is_exit]), exits_of([row for row in rows if row.is_exit])


def _context(backend: Backend, **known: Any) -> dict[str, Any]:
    with backend.read() as tx:
        rows = routes.table(tx)
        found = [(client, tx.device(client.gateway)) for client in tx.clients()[: CLIENTS_SHOWN + 1]]
        gateways = _gateways(tx, rows, [client for client, _ in found])
        domain = tx.network().domain
    groups = groups_of([row for row in rows if not row.is_exit])
    return {
        "groups": groups[:GROUPS_SHOWN],
        "more_groups": max(0, len(groups) - GROUPS_SHOWN),
        "exits": exits_of([row for row in rows if row.is_exit]),
        "clients": [
            (client, gateway, clients.addresses(client), b64encode(client.key).decode())
            for client, gateway in found[:CLIENTS_SHOWN]
        ],
        "more_clients": len(found) > CLIENTS_SHOWN,
        "gateways": gateways,
        "network_domain": domain,
        "made": None,
        "form": {"name": "", "gateway": "", "endpoint": "", "public_key": ""},
        "wrong": Trouble(),
        **known,
    }


def _gateways(tx: SqlTx, rows: list[Row], found: list[Client]) -> list[str]:
    """Names to choose from: those that are gateways already, that route something, and some that are online."""
    known = devices.by_ids(tx.connection, list({client.gateway for client in found})[: devices.PAGE_MAX])
    names = [row.name for row in known.values() if row.name]
    names += [row.device.name for row in rows if row.device.name]
    online = devices.find(tx.connection, _ONLINE, 0, limit=GATEWAYS_OFFERED)
    names += [row.name for row in online.rows if row.name]
    return list(dict.fromkeys(names))[:GATEWAYS_OFFERED]


def _from(device: str, to: str) -> str:
    return f"/devices/{device}" if to == "device" else "/routes"
