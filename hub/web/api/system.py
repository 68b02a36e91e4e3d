"""The hub itself: network, audit log, settings, web hooks, and the description of this API."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import lru_cache
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, Field

from hub import operations, webhooks
from hub.core import audit, web
from hub.core.events import EVENTS, Webhook
from hub.core.model import DeviceState
from hub.core.oidc import Oidc, keep_secret
from hub.core.roles import PERMISSIONS, Principal
from hub.store import audits, hooks, oidcsettings, websettings
from hub.web import cookies
from hub.web.api.common import PAGE_MAX, check_if_match, etag, not_modified
from hub.web.auth import CurrentBackend, allowed
from hub.web.errors import Problem

router = APIRouter()


class NetworkOut(BaseModel):
    id: str
    domain: str
    hosts: list[str] = Field(description="Of the broker, as devices reach it.")
    key: str = Field(description="The network's public key, hex.")
    devices: dict[str, int] = Field(description="How many, by state.")
    online: int
    relays: int
    relays_online: int
    hub: dict[str, Any] = Field(description="What the running hub says of itself; empty when none runs.")


class AuditOut(BaseModel):
    id: int
    time: int
    actor: str
    verb: str
    object: str
    detail: dict[str, str | int]
    hash: str


class AuditList(BaseModel):
    rows: list[AuditOut]
    next: int = Field(description="`before` of the next page; 0 on the last.")


class SettingsOut(BaseModel):
    listen: str
    url: str
    cert: str
    key: str = Field(description="Path of the key's file, not the key.")
    private_hooks: bool
    proxies: list[str]


class SettingsChange(BaseModel, extra="forbid"):
    """What is left out stays. Where it listens has effect when the dashboard starts again."""

    url: Annotated[str, Field(max_length=300)] | None = None
    private_hooks: bool | None = None


class OidcChange(BaseModel, extra="forbid"):
    issuer: Annotated[str, Field(max_length=300, examples=["https://id.example.org"])]
    client_id: Annotated[str, Field(max_length=300)] = ""
    client_secret: Annotated[str, Field(max_length=1_000, description="Never read back; empty: as it is.")] = ""
    label: Annotated[str, Field(max_length=40)] = "single sign-on"
    domains: Annotated[list[Annotated[str, Field(max_length=253)]], Field(max_length=64)] = []
    groups_claim: Annotated[str, Field(max_length=100)] = "groups"
    roles: dict[str, str] = Field(default={}, description="Group: role.")
    default_role: str = ""


class OidcOut(BaseModel):
    issuer: str = Field(description="Empty: nobody signs in this way.")
    client_id: str
    label: str
    domains: list[str]
    groups_claim: str
    roles: dict[str, str]
    default_role: str
    redirect_uri: str = Field(description="What the provider must know.")


class WebhookOut(BaseModel):
    id: str
    url: str
    events: list[str]
    disabled: bool
    created: int
    last: int = Field(description="When it was tried last.")
    last_result: str


class NewWebhook(BaseModel, extra="forbid"):
    url: Annotated[str, Field(max_length=web.URL_MAX, examples=["https://chat.example.org/hooks/fleet"])]
    events: Annotated[list[str], Field(max_length=len(EVENTS), examples=[["device.offline"]])]


class WebhookMade(WebhookOut):
    secret: str = Field(description="Key of the HMAC-SHA256 in X-Edgehub-Signature; shown this once.")


def to_out(entry: audit.Entry) -> AuditOut:
    return AuditOut(
        id=entry.id,
        time=entry.wall_s,
        actor=entry.actor,
        verb=entry.verb,
        object=entry.object,
        detail=entry.details(),
        hash=entry.hash.hex(),
    )


@router.get("/network", tags=["hub"])
def network(backend: CurrentBackend, who: Annotated[Principal, allowed("network:read")]) -> NetworkOut:
    with backend.read() as tx:
        known, counts, online, relays = tx.network(), tx.device_counts(), tx.online_count(), tx.relays()
    return NetworkOut(
        id=known.id,
        domain=known.domain,
        hosts=list(known.hosts),
        key=known.key.hex(),
        devices={state.value: counts.get(state, 0) for state in DeviceState},
        online=online,
        relays=len(relays),
        relays_online=sum(relay.online for relay in relays),
        hub=backend.state.read_status() if backend.state.is_running() else {},
    )


@router.get("/audit", tags=["audit"])
def audit_log(
    backend: CurrentBackend,
    who: Annotated[Principal, allowed("audit:read")],
    before: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=1, le=PAGE_MAX)] = 100,
    actor: Annotated[str, Query(max_length=300)] = "",
    verb: Annotated[str, Query(max_length=64, description="Or its beginning, as device.")] = "",
    object: Annotated[str, Query(max_length=300, examples=["device:d-…"])] = "",
) -> AuditList:
    """The newest first. Each row's hash covers the one before: `edgehub audit verify`."""
    with backend.read() as tx:
        found = audits.newest(tx.connection, before=before, limit=limit + 1, actor=actor, verb=verb, object_=object)
    rows = [to_out(entry) for entry in found[:limit]]
    return AuditList(rows=rows, next=rows[-1].id if len(found) > limit else 0)


@router.get("/settings", tags=["hub"])
def settings(
    backend: CurrentBackend,
    who: Annotated[Principal, allowed("settings:read")],
    request: Request,
    response: Response,
) -> SettingsOut:
    with backend.read() as tx:
        found = asdict(websettings.load(tx.connection))
    not_modified(request, response, etag(found))
    return SettingsOut(**found)


@router.patch("/settings", tags=["hub"])
def change_settings(
    backend: CurrentBackend,
    who: Annotated[Principal, allowed("settings:write")],
    body: SettingsChange,
    request: Request,
    response: Response,
) -> SettingsOut:
    """With If-Match, which is needed: two people must not undo each other's work unseen."""
    with backend.write() as (tx, _, wall_s):
        found = websettings.load(tx.connection)
        check_if_match(request, etag(asdict(found)), needed=True)
        changed = {name: value for name, value in body.model_dump().items() if value is not None}
        if changed.get("url"):
            changed["url"] = web.check_url(changed["url"])
        new = replace(found, **changed)
        websettings.save(tx.connection, new)
        audit.record(tx, wall_s, who.actor, "settings.web", "", {name: str(value) for name, value in changed.items()})
        tx.note("settings")
    response.headers["ETag"] = etag(asdict(new))
    return SettingsOut(**asdict(new))


@router.get("/oidc", tags=["hub"])
def oidc(
    backend: CurrentBackend, who: Annotated[Principal, allowed("settings:read")], request: Request, response: Response
) -> OidcOut:
    """Single sign-on, without the client's secret."""
    with backend.read() as tx:
        found = oidcsettings.load(tx.connection)
    response.headers["ETag"] = etag(asdict(found))
    return _oidc_out(request, found)


@router.put("/oidc", tags=["hub"])
def change_oidc(
    backend: CurrentBackend,
    who: Annotated[Principal, allowed("signin:write")],
    body: OidcChange,
    request: Request,
    response: Response,
) -> OidcOut:
    """For owners, with If-Match. An empty issuer ends it; without a secret the one stays that the same issuer gave."""
    with backend.doing(who) as do:
        found = oidcsettings.load(do.tx.connection)
        check_if_match(request, etag(asdict(found)), needed=True)
        values = body.model_dump()
        new = keep_secret(Oidc(**{**values, "domains": tuple(domain.lower() for domain in body.domains)}), found)
        operations.set_oidc(do, new)
    response.headers["ETag"] = etag(asdict(new))
    return _oidc_out(request, new)


@router.get("/webhooks", tags=["webhooks"])
def list_webhooks(backend: CurrentBackend, who: Annotated[Principal, allowed("webhooks:read")]) -> list[WebhookOut]:
    with backend.read() as tx:
        return [WebhookOut(**_hook_fields(hook)) for hook in hooks.all_(tx.connection)]


@router.post("/webhooks", status_code=201, tags=["webhooks"])
def add_webhook(
    backend: CurrentBackend, who: Annotated[Principal, allowed("webhooks:write")], body: NewWebhook
) -> WebhookMade:
    """Posts JSON when one of the events happens."""
    with backend.doing(who) as do:
        hook = webhooks.add(do, body.url, tuple(body.events))
    return WebhookMade(**_hook_fields(hook), secret=hook.secret)


@router.post("/webhooks/{hook_id}/test", status_code=202, tags=["webhooks"])
def test_webhook(backend: CurrentBackend, who: Annotated[Principal, allowed("webhooks:write")], hook_id: str) -> None:
    """Sends the event `test`; what came of it is in `last_result` soon."""
    with backend.doing(who) as do:
        webhooks.test(do, _hook(hooks.by_id(do.tx.connection, hook_id)), who.login)


@router.delete("/webhooks/{hook_id}", status_code=204, tags=["webhooks"])
def remove_webhook(backend: CurrentBackend, who: Annotated[Principal, allowed("webhooks:write")], hook_id: str) -> None:
    with backend.doing(who) as do:
        webhooks.remove(do, _hook(hooks.by_id(do.tx.connection, hook_id)))


@router.get("/openapi.json", include_in_schema=False)
def openapi(request: Request) -> dict[str, Any]:
    """For everybody: it tells nothing of this hub."""
    return describe(request.app)


@lru_cache(maxsize=2)
def describe(app: FastAPI) -> dict[str, Any]:
    schema = get_openapi(
        title="edgehub",
        version="1",
        summary="The hub of a private WireGuard network.",
        description="Errors are RFC 9457 problems. A token is made in the dashboard, by `POST /api/v1/api-tokens`, "
        "or by `edgehub users token`; its scopes are: " + ", ".join(f"`{scope}`" for scope in PERMISSIONS) + ".",
        routes=app.routes,
    )
    schema.setdefault("components", {})["securitySchemes"] = {
        "token": {"type": "http", "scheme": "bearer", "bearerFormat": "em_…"},
        "session": {"type": "apiKey", "in": "cookie", "name": "__Host-edgehub"},
    }
    schema["security"] = [{"token": []}, {"session": []}]
    return schema


def _oidc_out(request: Request, found: Oidc) -> OidcOut:
    base = request.app.state.backend.settings.url or cookies.origin(request)
    values = {name: value for name, value in asdict(found).items() if name != "client_secret"}
    return OidcOut(**values, redirect_uri=f"{base}/login/oidc/callback")


def _hook(found: Webhook | None) -> Webhook:
    if found is None:
        raise Problem(404, "no-webhook", "There is no web hook of this id.")
    return found


def _hook_fields(hook: Webhook) -> dict[str, Any]:
    return {
        "id": hook.id,
        "url": hook.url,
        "events": list(hook.events),
        "disabled": bool(hook.disabled_s),
        "created": hook.created_s,
        "last": hook.last_s,
        "last_result": hook.last_result,
    }
