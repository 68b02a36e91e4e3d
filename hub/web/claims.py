"""Devices that come in by a link: what the device asks, and what people decide (see `hub.core.claims`).

`/join/begin` and `/join/poll` are for devices and need no sign-in; both are throttled and bounded.
"""

from __future__ import annotations

import io
import os
import time
from typing import Annotated, Any

import segno
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse

from edgeagent import crypto as providers
from edgeagent.proto.names import is_host_name
from hub import operations
from hub.core.actions import TAGS_MAX
from hub.core.claims import LIFE_S, POLL_S, WAITING_MAX, Claim, ClaimState, clean_facts, make_code, tidy_code
from hub.core.people import digest, make_secret
from hub.core.roles import Principal
from hub.store import claims
from hub.store.sql import SqlTx
from hub.web import cookies
from hub.web.auth import CurrentBackend, allowed
from hub.web.errors import Problem, client_address
from hub.web.pages import render
from hub.web.throttle import source

BEGIN_BURST, BEGIN_PER_S = 10, 1 / 30
POLL_BURST, POLL_PER_S = 10, 2 / POLL_S

device_router = APIRouter(include_in_schema=False)
router = APIRouter(tags=["claims"])
page_router = APIRouter(include_in_schema=False)

Text = Annotated[str, Field(max_length=512)]


class Begin(BaseModel, extra="forbid"):
    host: Annotated[str, Field(max_length=63)] = ""
    facts: Annotated[dict[Annotated[str, Field(max_length=64)], Text], Field(max_length=32)] = {}


class Poll(BaseModel, extra="forbid"):
    secret: Annotated[str, Field(max_length=64)]


class ClaimOut(BaseModel):
    code: str
    host: str
    facts: dict[str, str] = Field(description="What the device says of itself; nobody has verified it.")
    address: str = Field(description="That it asked from.")
    created: int
    expires: int


class Approval(BaseModel, extra="forbid"):
    tags: Annotated[list[Annotated[str, Field(max_length=64)]], Field(max_length=TAGS_MAX)] = []
    user: Annotated[str, Field(max_length=253, description="Whose it is, a login; empty: nobody's.")] = ""

    model_config = {"json_schema_extra": {"examples": [{"user": "ada@example.org"}, {"tags": ["tag:camera"]}]}}


@device_router.post("/join/begin")
def begin(request: Request, backend: CurrentBackend, body: Begin) -> Response:
    """A code for people and a secret for the device."""
    address = client_address(request)
    if not request.app.state.claim_begins.allow(backend.clock(), source(address)):
        raise Problem(429, "too-many-tries", "Too many devices ask from there. Wait a minute.", Retry_After="60")
    secret = make_secret(os.urandom)
    host = body.host if is_host_name(body.host) else ""
    with backend.write() as (tx, _, wall_s):
        claims.forget(tx.connection, wall_s)
        if claims.count(tx.connection) >= WAITING_MAX:
            raise Problem(503, "too-many-claims", "Too many devices wait already. Try again later.", Retry_After="300")
        code = make_code(os.urandom)
        claims.add(tx.connection, Claim(code, digest(secret), address, host, wall_s, clean_facts(body.facts)))
        tx.note("claims")
    url = f"{backend.settings.url or cookies.origin(request)}/add/{code}"
    out = io.StringIO()
    segno.make(url, error="m", micro=False).terminal(out, border=2, compact=True)
    answer: dict[str, Any] = {"code": code, "secret": secret, "url": url, "qr": out.getvalue()}
    return JSONResponse({**answer, "expires_in": LIFE_S, "interval": POLL_S}, 201)


@device_router.post("/join/poll")
def poll(request: Request, backend: CurrentBackend, body: Poll) -> Response:
    """`waiting`, `denied`, `over`, or the token, once."""
    hash_ = digest(body.secret)
    if not request.app.state.claim_polls.allow(backend.clock(), hash_.hex()):
        raise Problem(429, "slow-down", "Ask less often.", Retry_After=str(POLL_S))
    with backend.read() as tx:
        found = claims.by_secret(tx.connection, hash_)
    wall_s = int(time.time())
    if found is None or found.is_over(wall_s) or found.state is ClaimState.FETCHED:
        return JSONResponse({"state": "over"})
    if found.state is not ClaimState.APPROVED:
        return JSONResponse({"state": found.state.value})
    with backend.write() as (tx, _, wall_s):
        found = claims.by_secret(tx.connection, hash_)
        if found is None or found.state is not ClaimState.APPROVED:
            return JSONResponse({"state": "over"})
        token, found.token, found.state = found.token, "", ClaimState.FETCHED
        claims.save(tx.connection, found)
    return JSONResponse({"state": "approved", "token": token})


@router.get("/claims")
def list_claims(backend: CurrentBackend, who: Annotated[Principal, allowed("claims:read")]) -> list[ClaimOut]:
    """Devices that wait for somebody to decide, the oldest first."""
    with backend.read() as tx:
        return [to_out(claim) for claim in claims.waiting(tx.connection, int(time.time()))]


@router.get("/claims/{code}")
def get_claim(backend: CurrentBackend, who: Annotated[Principal, allowed("claims:read")], code: str) -> ClaimOut:
    with backend.read() as tx:
        return to_out(_waiting(tx, code))


@router.post("/claims/{code}/approve", status_code=204)
def approve(
    backend: CurrentBackend, who: Annotated[Principal, allowed("claims:write")], code: str, body: Approval
) -> None:
    """The device gets a join token for itself alone, which works for a quarter of an hour."""
    with backend.doing(who) as do:
        claim = _waiting(do.tx, code)
        token = operations.create_token(do, uses=1, not_after=do.wall_s + LIFE_S, tags=tuple(body.tags), user=body.user)
        claim.token, claim.state = token.encode(providers.load()), ClaimState.APPROVED
        claims.save(do.tx.connection, claim)
        do.note("claim.approve", f"token:{token.claim}", host=claim.host, address=claim.address, user=body.user)
        do.tx.note("claims")


@router.post("/claims/{code}/deny", status_code=204)
def deny(backend: CurrentBackend, who: Annotated[Principal, allowed("claims:write")], code: str) -> None:
    with backend.doing(who) as do:
        claim = _waiting(do.tx, code)
        claim.state = ClaimState.DENIED
        claims.save(do.tx.connection, claim)
        do.note("claim.deny", "", host=claim.host, address=claim.address)
        do.tx.note("claims")


@page_router.get("/add/{code}")
def show(
    request: Request, backend: CurrentBackend, who: Annotated[Principal, allowed("claims:read")], code: str
) -> Response:
    """Where the link and the QR code lead."""
    with backend.read() as tx:
        claim = _waiting(tx, code)
    return render(request, "claim.html", {"claim": to_out(claim)})


def to_out(claim: Claim) -> ClaimOut:
    return ClaimOut(
        code=claim.code,
        host=claim.host,
        facts=claim.facts,
        address=claim.address,
        created=claim.created_s,
        expires=claim.created_s + LIFE_S,
    )


def _waiting(tx: SqlTx, text: str) -> Claim:
    """Raises Problem 404."""
    found = claims.by_code(tx.connection, tidy_code(text))
    if found is None or found.is_over(int(time.time())) or found.state is not ClaimState.WAITING:
        raise Problem(404, "no-claim", "No device waits under this code. It may be too late: start it again there.")
    return found
