"""What devices and relays join with, and the relays."""

from __future__ import annotations

import time
from base64 import b64encode
from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, Field

from edgeagent import crypto as providers
from hub import operations
from hub.core import actions, relays
from hub.core.model import Device, DeviceState, HubError, Token
from hub.core.roles import Principal
from hub.store.sql import SqlTx
from hub.web.api.common import After, Limit
from hub.web.auth import CurrentBackend, allowed
from hub.web.errors import Problem

router = APIRouter()

Life = Annotated[int, Field(ge=0, le=100 * 365 * 86_400, description="Seconds; 0 = it does not expire.")]
Uses = Annotated[int, Field(ge=0, le=1_000_000, description="How many may join with it; 0 = any number.")]


class TokenOut(BaseModel):
    """A join token without its secret. Times in seconds since 1970, 0 for never."""

    id: str
    kind: str = Field(description="device or relay: what joins with it.")
    state: str = Field(description="good, or why nobody new may join with it: revoked, expired, used-up.")
    uses: int
    used: int
    created: int
    not_after: int
    needs_approval: bool
    tags: list[str]
    user: str = Field(description="Whose the devices are; empty: nobody's.")


class TokenList(BaseModel):
    tokens: list[TokenOut]
    next: str


class NewToken(BaseModel, extra="forbid"):
    uses: Uses = 1
    expires_in: Life = 86_400
    tags: Annotated[list[Annotated[str, Field(max_length=64)]], Field(max_length=actions.TAGS_MAX)] = []
    needs_approval: bool = False
    user: Annotated[str, Field(max_length=253, description="Whose the devices are: a login.")] = ""

    model_config = {"json_schema_extra": {"examples": [{"uses": 50, "expires_in": 604800, "tags": ["tag:camera"]}]}}


class NewRelayToken(BaseModel, extra="forbid"):
    region: Annotated[str, Field(max_length=63, examples=["fra"])]
    uses: Uses = 1
    expires_in: Life = 86_400


class TokenMade(BaseModel):
    """`token` is shown this once: the hub keeps only a hash."""

    token: str
    id: str
    not_after: int


class RelayOut(BaseModel):
    id: str
    name: str | None
    region: str
    online: bool
    addresses: list[str]
    members: int
    version: str
    last_seen: int
    created: int
    key: str = Field(description="Its relay key, base64; empty until it has said one.")


def to_out(token: Token, wall_s: int) -> TokenOut:
    return TokenOut(
        id=token.claim,
        kind=token.kind.value,
        state=token.refusal(wall_s) or "good",
        uses=token.uses,
        used=token.used,
        created=token.created_s,
        not_after=token.not_after,
        needs_approval=token.needs_approval,
        tags=list(token.tags),
        user=token.user,
    )


@router.get("/tokens", tags=["tokens"])
def list_tokens(
    backend: CurrentBackend,
    who: Annotated[Principal, allowed("tokens:read")],
    limit: Limit = 100,
    after: After = "",
) -> TokenList:
    """In the order of their ids."""
    with backend.read() as tx:
        found = tx.tokens(after=after, limit=limit + 1)
    wall_s = int(time.time())
    more = found[limit - 1].claim if len(found) > limit else ""
    return TokenList(tokens=[to_out(token, wall_s) for token in found[:limit]], next=more)


@router.post("/tokens", status_code=201, tags=["tokens"])
def create_token(
    backend: CurrentBackend, who: Annotated[Principal, allowed("tokens:write")], body: NewToken
) -> TokenMade:
    """What a device needs to join: `edgeagent up --join TOKEN`."""
    with backend.doing(who) as do:
        not_after = do.wall_s + body.expires_in if body.expires_in else 0
        token = operations.create_token(
            do,
            uses=body.uses,
            not_after=not_after,
            tags=tuple(body.tags),
            needs_approval=body.needs_approval,
            user=body.user,
        )
    return TokenMade(token=token.encode(providers.load()), id=token.claim, not_after=not_after)


@router.delete("/tokens/{token_id}", status_code=204, tags=["tokens"])
def revoke_token(backend: CurrentBackend, who: Annotated[Principal, allowed("tokens:write")], token_id: str) -> None:
    """Nobody new may join with it; devices that did stay."""
    with backend.doing(who) as do:
        if do.tx.token(token_id) is None:
            raise Problem(404, "no-token", f"Token {token_id}: there is none of this id.")
        operations.revoke_token(do, token_id)


@router.get("/relays", tags=["relays"])
def list_relays(backend: CurrentBackend, who: Annotated[Principal, allowed("relays:read")]) -> list[RelayOut]:
    """All of them, by region."""
    with backend.read() as tx:
        found = tx.relays()
    return sorted(map(_relay_out, found), key=lambda relay: (relay.region, relay.name or "", relay.id))


@router.get("/relays/{relay_id}", tags=["relays"])
def get_relay(backend: CurrentBackend, who: Annotated[Principal, allowed("relays:read")], relay_id: str) -> RelayOut:
    """By id or name."""
    with backend.read() as tx:
        return _relay_out(_find_relay(tx, relay_id))


@router.post("/relays/invite", status_code=201, tags=["relays"])
def invite_relay(
    backend: CurrentBackend, who: Annotated[Principal, allowed("relays:write")], body: NewRelayToken
) -> TokenMade:
    """A join token for relays of one region: `edgerelay serve --join-file FILE`."""
    with backend.doing(who) as do:
        not_after = do.wall_s + body.expires_in if body.expires_in else 0
        token = operations.invite_relay(do, region=body.region, uses=body.uses, not_after=not_after)
    return TokenMade(token=token.encode(providers.load()), id=token.claim, not_after=not_after)


@router.delete("/relays/{relay_id}", status_code=204, tags=["relays"])
def remove_relay(backend: CurrentBackend, who: Annotated[Principal, allowed("relays:write")], relay_id: str) -> None:
    with backend.doing(who) as do:
        operations.remove(do, _find_relay(do.tx, relay_id))


def _find_relay(tx: SqlTx, text: str) -> Device:
    try:
        found: Device | None = actions.find_relay(tx, text)
    except HubError:
        found = None
    if found is None or found.state is DeviceState.REMOVED:
        raise Problem(404, "no-relay", f"Relay {text}: there is none of this id.")
    return found


def _relay_out(relay: Device) -> RelayOut:
    fields = relays.fields_of(relay)
    return RelayOut(
        id=relay.id,
        name=relay.name,
        region=relays.region_of(relay),
        online=relay.online,
        members=relay.members,
        version=relay.version,
        last_seen=relay.last_seen_s,
        created=relay.created_s,
        addresses=fields.get("h", []),
        key=b64encode(fields["k"]).decode() if fields else "",
    )
