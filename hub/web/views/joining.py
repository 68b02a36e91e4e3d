"""Join tokens: the wizard that ends in one, what it is good for on a device, and the list of all."""

from __future__ import annotations

import io
import time
from typing import Annotated
from urllib.parse import quote

import segno
from fastapi import APIRouter, Form, Query, Request, Response
from markupsafe import Markup

from edgeagent import crypto as providers
from edgeagent.proto.names import is_claim_id
from hub import operations
from hub.core.model import HubError, Kind
from hub.core.roles import Principal
from hub.output import parse_duration
from hub.store import fleet
from hub.web import claims, cookies
from hub.web.auth import CurrentBackend, allowed
from hub.web.errors import Problem
from hub.web.views.common import PAGE_SIZE, Pager, back, is_part, page

router = APIRouter(include_in_schema=False)

USES_MAX = 100_000
JOINED_SHOWN = 50

Reader = Annotated[Principal, allowed("tokens:read")]
Writer = Annotated[Principal, allowed("tokens:write")]
ClaimReader = Annotated[Principal, allowed("claims:read")]
LIVES = {"1h": "1 hour", "24h": "1 day", "7d": "1 week", "30d": "30 days", "never": "never"}


@router.get("/add")
def ask(request: Request, who: Writer, backend: CurrentBackend) -> Response:
    with backend.read() as tx:
        tags = fleet.tag_counts(tx.connection, 12)
    waiting = claims.list_claims(backend, who) if who.may("claims:read") else []
    hub_url = backend.settings.url or cookies.origin(request)
    return page(request, "add.html", {"lives": LIVES, "tags": tags, "claims": waiting, "hub_url": hub_url})


@router.get("/claims")
def claim_list(request: Request, who: ClaimReader, backend: CurrentBackend) -> Response:
    """Devices that ask to come in by a link."""
    return page(request, "claims.html", {"claims": claims.list_claims(backend, who)})


@router.get("/claim")
def find_claim(who: ClaimReader, code: Annotated[str, Query(max_length=40)]) -> Response:
    """From a code that somebody typed to its page."""
    return back(f"/add/{quote(code.strip(), safe='')}")


@router.post("/add")
def make(
    request: Request,
    who: Writer,
    backend: CurrentBackend,
    many: Annotated[str, Form(max_length=10)] = "one",
    uses: Annotated[str, Form(max_length=7)] = "",
    life: Annotated[str, Form(max_length=10)] = "24h",
    tags: Annotated[str, Form(max_length=1_000)] = "",
    approval: Annotated[str, Form(max_length=3)] = "",
) -> Response:
    count = {"one": 1, "any": 0}.get(many, -1)
    if count < 0:
        if not uses.isdecimal() or not 0 < int(uses) <= USES_MAX:
            raise HubError(f"devices: a number from 1 to {USES_MAX} expected")
        count = int(uses)
    seconds = _seconds(life)
    wanted = tuple(dict.fromkeys(tag if tag.startswith("tag:") else f"tag:{tag}" for tag in _words(tags)))
    with backend.doing(who) as do:
        not_after = do.wall_s + seconds if seconds else 0
        token = operations.create_token(do, uses=count, not_after=not_after, tags=wanted, needs_approval=bool(approval))
    text = token.encode(providers.load())
    context = {"token": token, "text": text, "qr": qr_code(text), "approval": bool(approval), "rows": []}
    return page(request, "add_made.html", context)


@router.get("/add/{claim}/joined")
def joined(
    request: Request, who: Annotated[Principal, allowed("devices:read")], backend: CurrentBackend, claim: str
) -> Response:
    """Who has joined with it; the wizard's page asks when it hears of a change."""
    if not is_claim_id(claim):
        raise Problem(404, "no-token", "There is no such token.")
    with backend.read() as tx:
        token = tx.token(claim)
        rows = fleet.latest(tx.connection, JOINED_SHOWN, claim)
    if token is None:
        raise Problem(404, "no-token", "There is no such token.")
    return page(request, "add_joined.html", {"token": token, "rows": rows})


@router.get("/tokens")
def list_(
    request: Request,
    who: Reader,
    backend: CurrentBackend,
    first: Annotated[int, Query(ge=1, le=1_000_000)] = 1,
) -> Response:
    with backend.read() as tx:
        tokens, total = fleet.tokens(tx.connection, offset=first - 1, limit=PAGE_SIZE)
    now_s = int(time.time())
    more = "y" if first - 1 + len(tokens) < total else ""
    context = {
        "tokens": [(token, token.refusal(now_s)) for token in tokens],
        "pager": Pager("/tokens", {}, first, len(tokens), total, {"more": more}),
        "here": f"/tokens?first={first}",
        "relay": Kind.RELAY,
    }
    return page(request, "tokens_table.html" if is_part(request) else "tokens.html", context)


@router.post("/tokens/{claim}/revoke")
def revoke(who: Writer, backend: CurrentBackend, claim: str) -> Response:
    with backend.doing(who) as do:
        if do.tx.token(claim) is None:
            raise Problem(404, "no-token", f"There is no token {claim}.")
        operations.revoke_token(do, claim)
    return back("/tokens", "revoked")


def qr_code(text: str) -> Markup:
    """As SVG without style and script; dark on light in every theme, as scanners want it."""
    out = io.BytesIO()
    segno.make(text, error="l", micro=False).save(
        out, kind="svg", xmldecl=False, svgns=True, svgclass=None, lineclass=None, omitsize=True, border=2, light="#fff"
    )
    return Markup(out.getvalue().decode())


def _seconds(life: str) -> int:
    try:
        return 0 if life == "never" else parse_duration(life)
    except ValueError as error:
        raise HubError(f"life of the token: {error}, or never") from error


def _words(text: str) -> list[str]:
    return text.lower().replace(",", " ").split()
