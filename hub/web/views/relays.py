"""Relays: who they are, inviting one, taking one out."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Request, Response

from edgeagent import crypto as providers
from hub import operations
from hub.core.model import HubError
from hub.core.roles import Principal
from hub.output import parse_duration
from hub.web.api import joining as api
from hub.web.auth import CurrentBackend, allowed
from hub.web.views.common import back, is_part, page

router = APIRouter(include_in_schema=False)

Writer = Annotated[Principal, allowed("relays:write")]
Text = Annotated[str, Form(max_length=100)]


@router.get("/relays")
def list_(request: Request, who: Annotated[Principal, allowed("relays:read")], backend: CurrentBackend) -> Response:
    context = {"relays": api.list_relays(backend, who), "text": ""}
    return page(request, "relays_table.html" if is_part(request) else "relays.html", context)


@router.post("/relays/invite")
def invite(request: Request, who: Writer, backend: CurrentBackend, region: Text, life: Text = "24h") -> Response:
    """The answer shows the token, this once."""
    try:
        seconds = parse_duration(life)
    except ValueError as error:
        raise HubError(f"life of the token: {error}") from error
    with backend.doing(who) as do:
        token = operations.invite_relay(do, region=region.strip().lower(), not_after=do.wall_s + seconds)
    context = {"relays": api.list_relays(backend, who), "text": token.encode(providers.load())}
    return page(request, "relays.html", context)


@router.post("/relays/{relay_id}/remove")
def remove(who: Writer, backend: CurrentBackend, relay_id: str) -> Response:
    api.remove_relay(backend, who, relay_id)
    return back("/relays", "relay-removed")
