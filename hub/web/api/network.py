"""Routes, plain WireGuard clients and names: what reaches beyond the devices."""

from __future__ import annotations

from base64 import b64encode
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field

from edgeagent.proto.dnssettings import RECORD_KINDS, RESOLVERS_MAX, SEARCH_MAX
from hub import operations
from hub.core import actions, clients, naming, routes
from hub.core.model import Client, Device, HubError
from hub.core.roles import Principal
from hub.store.sql import SqlTx
from hub.web.api.common import check_if_match, etag, not_modified
from hub.web.auth import CurrentBackend, allowed
from hub.web.errors import Problem

PREFIXES_MAX = 64  # in one request
TEXT_MAX = 300

router = APIRouter()

Text = Annotated[str, Field(max_length=TEXT_MAX)]
Part = Annotated[str, Query(max_length=TEXT_MAX)]


class RouteOut(BaseModel):
    prefix: str
    via: str | None = Field(
        description="Of an IPv6 prefix that is an IPv4 one of a site (4via6): 192.168.1.0/24 via 7."
    )
    exit: bool = Field(description="A default route: of an exit node.")
    device: str | None
    device_id: str
    online: bool
    advertised: bool
    approved: bool
    snat: bool
    state: Literal["in use", "waits for approval", "approved, not offered"]


class Prefixes(BaseModel, extra="forbid"):
    """Without any: all that the device has."""

    prefixes: Annotated[list[Text], Field(max_length=PREFIXES_MAX)] = []

    model_config = {"json_schema_extra": {"examples": [{"prefixes": ["192.168.7.0/24", "exit"]}]}}


class RoutesChanged(BaseModel):
    changed: list[str] = Field(description="Prefixes; empty when all was so already.")


class ClientOut(BaseModel):
    name: str
    gateway: str | None
    gateway_id: str
    addresses: list[str]
    public_key: str
    created: int


class NewClient(BaseModel, extra="forbid"):
    name: Annotated[str, Field(max_length=63)]
    gateway: Text
    endpoint: Text
    public_key: Annotated[str, Field(max_length=64, description="Empty: keys are made, and not kept.")] = ""

    model_config = {
        "json_schema_extra": {
            "examples": [{"name": "phone-anna", "gateway": "gw-1", "endpoint": "vpn.example.org:51820"}]
        }
    }


class ClientMade(ClientOut):
    config: str = Field(description="What its WireGuard app reads, with its private key; shown this once.")


class RecordOut(BaseModel):
    name: str
    type: str
    value: str


class NamesOut(BaseModel):
    domain: str
    search: list[str]
    split: dict[str, list[str]]
    resolvers: list[str] = Field(description="Of all other names; empty: those that each device's host has.")
    records: list[RecordOut]


class Search(BaseModel, extra="forbid"):
    domains: Annotated[list[Text], Field(max_length=SEARCH_MAX)] | None = Field(
        description="In order; null for the network's own domain alone.", examples=[["mesh.internal", "corp.example"]]
    )


class Resolvers(BaseModel, extra="forbid"):
    resolvers: Annotated[list[Text], Field(max_length=RESOLVERS_MAX)] = Field(
        examples=[["10.20.0.53", "[fd00::53]:5353"]]
    )


class NewRecord(BaseModel, extra="forbid"):
    name: Text
    type: Annotated[str, Field(max_length=16, description=", ".join(RECORD_KINDS))]
    value: Text

    model_config = {"json_schema_extra": {"examples": [{"name": "printer", "type": "A", "value": "192.168.7.20"}]}}


@router.get("/routes", tags=["routes"])
def list_routes(
    backend: CurrentBackend,
    who: Annotated[Principal, allowed("routes:read")],
    device: Annotated[str, Query(max_length=TEXT_MAX, description="Only those of this one.")] = "",
    waiting: Annotated[bool, Query(description="Only those that wait for approval.")] = False,
) -> list[RouteOut]:
    """By prefix. Several devices with one prefix stand in for each other."""
    with backend.read() as tx:
        rows = routes.of_device(tx, _find(tx, device)) if device else routes.table(tx)
    return [
        RouteOut(
            prefix=row.prefix,
            via=row.via or None,
            exit=row.is_exit,
            device=row.device.name,
            device_id=row.device.id,
            online=row.device.online,
            advertised=row.advertised,
            approved=row.approved,
            snat=row.snat,
            state=row.state,  # type: ignore[arg-type]
        )
        for row in rows
        if not waiting or (row.advertised and not row.approved)
    ]


@router.post("/devices/{device_id}/routes/approve", tags=["routes"])
def approve_routes(
    backend: CurrentBackend, who: Annotated[Principal, allowed("routes:write")], device_id: str, body: Prefixes
) -> RoutesChanged:
    """Let others use what the device offers."""
    with backend.doing(who) as do:
        return RoutesChanged(changed=operations.approve_routes(do, _find(do.tx, device_id), body.prefixes))


@router.post("/devices/{device_id}/routes/unapprove", tags=["routes"])
def unapprove_routes(
    backend: CurrentBackend, who: Annotated[Principal, allowed("routes:write")], device_id: str, body: Prefixes
) -> RoutesChanged:
    """Take approval back: others stop using it as soon as they are told."""
    with backend.doing(who) as do:
        return RoutesChanged(changed=operations.unapprove_routes(do, _find(do.tx, device_id), body.prefixes))


@router.get("/clients", tags=["clients"])
def list_clients(backend: CurrentBackend, who: Annotated[Principal, allowed("clients:read")]) -> list[ClientOut]:
    """Plain WireGuard clients by name."""
    with backend.read() as tx:
        return [ClientOut(**_client_fields(client, tx.device(client.gateway))) for client in tx.clients()]


@router.post("/clients", status_code=201, tags=["clients"])
def add_client(
    backend: CurrentBackend,
    who: Annotated[Principal, allowed("clients:write")],
    body: NewClient,
    response: Response,
) -> ClientMade:
    """Give a plain WireGuard client an address behind a gateway device."""
    key = clients.read_key(body.public_key) if body.public_key else None
    with backend.doing(who) as do:
        gateway = _find(do.tx, body.gateway)
        added, text = operations.add_client(do, name=body.name, gateway=gateway, endpoint=body.endpoint, public_key=key)
    response.headers["Cache-Control"] = "no-store"
    return ClientMade(**_client_fields(added.client, gateway), config=text)


@router.delete("/clients/{name}", status_code=204, tags=["clients"])
def remove_client(backend: CurrentBackend, who: Annotated[Principal, allowed("clients:write")], name: str) -> None:
    """Its gateway forgets its key."""
    with backend.doing(who) as do:
        if all(client.name != name for client in do.tx.clients()):
            raise Problem(404, "no-client", "There is no client of this name.")
        operations.remove_client(do, name)


@router.get("/dns", tags=["dns"])
def names(
    backend: CurrentBackend, who: Annotated[Principal, allowed("names:read")], request: Request, response: Response
) -> NamesOut:
    """All settings of names. The changes below take its ETag as If-Match, and return it anew."""
    with backend.read() as tx:
        found = naming.as_json(tx)
    not_modified(request, response, etag(found))
    return NamesOut(**found)


@router.put("/dns/search", tags=["dns"])
def set_search(
    backend: CurrentBackend,
    who: Annotated[Principal, allowed("names:write")],
    body: Search,
    request: Request,
    response: Response,
) -> NamesOut:
    """Domains that are tried behind a name without dots."""
    with backend.doing(who) as do:
        check_if_match(request, etag(naming.as_json(do.tx)))
        operations.set_search(do, body.domains)
        return _names(do.tx, response)


@router.put("/dns/resolvers", tags=["dns"])
def set_resolvers(
    backend: CurrentBackend,
    who: Annotated[Principal, allowed("names:write")],
    body: Resolvers,
    request: Request,
    response: Response,
) -> NamesOut:
    """Who answers, on all devices, for all names that nothing else is set for; none: whom each host has."""
    with backend.doing(who) as do:
        check_if_match(request, etag(naming.as_json(do.tx)))
        operations.set_resolvers(do, body.resolvers)
        return _names(do.tx, response)


@router.put("/dns/split/{domain}", tags=["dns"])
def set_split(
    backend: CurrentBackend,
    who: Annotated[Principal, allowed("names:write")],
    domain: str,
    body: Resolvers,
    request: Request,
    response: Response,
) -> NamesOut:
    """Names of a domain are answered by resolvers of its own, in order."""
    with backend.doing(who) as do:
        check_if_match(request, etag(naming.as_json(do.tx)))
        operations.set_split(do, domain, body.resolvers)
        return _names(do.tx, response)


@router.delete("/dns/split/{domain}", tags=["dns"])
def unset_split(
    backend: CurrentBackend, who: Annotated[Principal, allowed("names:write")], domain: str, response: Response
) -> NamesOut:
    with backend.doing(who) as do:
        operations.unset_split(do, domain)
        return _names(do.tx, response)


@router.post("/dns/records", status_code=201, tags=["dns"])
def add_record(
    backend: CurrentBackend,
    who: Annotated[Principal, allowed("names:write")],
    body: NewRecord,
    response: Response,
) -> NamesOut:
    """A record of the network's domain beside its devices; its name must be no device's."""
    with backend.doing(who) as do:
        operations.add_record(do, body.name, body.type, body.value)
        return _names(do.tx, response)


@router.delete("/dns/records", tags=["dns"])
def remove_record(
    backend: CurrentBackend,
    who: Annotated[Principal, allowed("names:write")],
    response: Response,
    name: Part,
    type: Part = "",
    value: Part = "",
) -> NamesOut:
    """Those of a name, or of one type, or the one of that value."""
    with backend.doing(who) as do:
        operations.remove_record(do, name, type, value)
        return _names(do.tx, response)


def _names(tx: SqlTx, response: Response) -> NamesOut:
    found = naming.as_json(tx)
    response.headers["ETag"] = etag(found)
    return NamesOut(**found)


def _client_fields(client: Client, gateway: Device | None) -> dict[str, Any]:
    return {
        "name": client.name,
        "gateway": gateway.name if gateway is not None else None,
        "gateway_id": client.gateway,
        "addresses": list(clients.addresses(client)),
        "public_key": b64encode(client.key).decode(),
        "created": client.created_s,
    }


def _find(tx: SqlTx, text: str) -> Device:
    try:
        return actions.find_device(tx, text)
    except HubError as error:
        raise Problem(404, "no-device", str(error).partition(".")[0] + ".") from None
