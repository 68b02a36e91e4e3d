"""Passkeys (WebAuthn): registered by somebody who has signed in, and then enough to sign in with, without a login.

A credential is discoverable and verifies its user, so it is two factors by itself. Its counter, where it has one, must
go up.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse

from hub.core import audit
from hub.core.model import HubError
from hub.core.people import NAME_MAX, PASSKEYS_MAX, Passkey, check_name
from hub.core.roles import Principal
from hub.store import people
from hub.web import cookies
from hub.web.auth import CurrentBackend, CurrentUser
from hub.web.errors import Forbidden, Problem, client_address
from hub.web.signin import demand_step, enter, safe_next

CREDENTIAL_ID_MAX = 1_023  # bytes, WebAuthn Level 2, section 4
_NEW, _USE = "passkey-new", "passkey"

signin_router = APIRouter(include_in_schema=False)
router = APIRouter(tags=["me"])


class PasskeyOut(BaseModel):
    id: str
    name: str
    created: int
    used: int


class NewPasskey(BaseModel, extra="forbid"):
    name: Annotated[str, Field(max_length=NAME_MAX)] = "passkey"
    credential: dict[str, Any] = Field(description="What navigator.credentials.create() gave, as JSON.")


class SignIn(BaseModel, extra="forbid"):
    credential: dict[str, Any] = Field(description="What navigator.credentials.get() gave, as JSON.")
    next: Annotated[str, Field(max_length=500)] = "/"


@router.get("/me/passkeys")
def list_passkeys(backend: CurrentBackend, who: CurrentUser) -> list[PasskeyOut]:
    _demand_browser(who)
    with backend.read() as tx:
        found = people.passkeys_of(tx.connection, who.user)
    return [PasskeyOut(id=_encode(key.id), name=key.name, created=key.created_s, used=key.used_s) for key in found]


@router.post("/me/passkeys/options")
def registration_options(request: Request, backend: CurrentBackend, who: CurrentUser) -> Response:
    """For navigator.credentials.create()."""
    _demand_browser(who)
    with backend.read() as tx:
        known = people.passkeys_of(tx.connection, who.user)
    text, challenge = ceremonies().creation_options(
        _rp_id(request), who.user.encode(), who.login, who.name or who.login, [key.id for key in known]
    )
    response = Response(text, media_type="application/json")
    kept = {"challenge": _encode(challenge), "user": who.user}
    request.app.state.sealer.put(request, response, _NEW, kept)
    return response


@router.post("/me/passkeys", status_code=201)
def register(
    request: Request, response: Response, backend: CurrentBackend, who: CurrentUser, body: NewPasskey
) -> PasskeyOut:
    _demand_browser(who)
    kept = request.app.state.sealer.take(request, response, _NEW)
    if kept is None or kept["user"] != who.user:
        raise Problem(400, "passkey-late", "This took too long. Begin again.")
    tool = ceremonies()
    try:
        key_id, public_key, counter = tool.check_creation(
            body.credential, _decode(kept["challenge"]), _rp_id(request), cookies.origin(request)
        )
    except tool.Refused:
        key_id = b""
    if not 0 < len(key_id) <= CREDENTIAL_ID_MAX:
        raise Problem(400, "passkey-refused", "This passkey cannot be used.")
    with backend.write() as (tx, _, wall_s):
        if len(people.passkeys_of(tx.connection, who.user)) >= PASSKEYS_MAX:
            raise HubError(f"{PASSKEYS_MAX} passkeys: there is no room for another. Remove one")
        if people.passkey_by_id(tx.connection, key_id) is not None:
            raise HubError("passkey: it is known already")
        new = Passkey(key_id, who.user, public_key, counter, check_name(body.name), wall_s)
        people.add_passkey(tx.connection, new)
        audit.record(tx, wall_s, who.actor, "passkey.add", f"user:{who.login}", {"name": new.name})
    return PasskeyOut(id=_encode(new.id), name=new.name, created=wall_s, used=0)


@router.delete("/me/passkeys/{passkey_id}", status_code=204)
def remove_passkey(backend: CurrentBackend, who: CurrentUser, passkey_id: str) -> None:
    _demand_browser(who)
    with backend.write() as (tx, _, wall_s):
        found = people.passkey_by_id(tx.connection, _decode(passkey_id))
        if found is None:
            raise Problem(404, "no-passkey", "There is no passkey of this id.")
        if found.person != who.user:
            raise Forbidden("not-yours", "This is another user's passkey.", who.actor)
        people.drop_passkey(tx.connection, found.id)
        audit.record(tx, wall_s, who.actor, "passkey.remove", f"user:{who.login}", {"name": found.name})


@signin_router.post("/login/passkey/options")
def authentication_options(request: Request, backend: CurrentBackend) -> Response:
    """For navigator.credentials.get(); nobody is named, so nothing is told of who is here."""
    demand_step(request, backend, client_address(request))
    text, challenge = ceremonies().request_options(_rp_id(request))
    response = Response(text, media_type="application/json")
    request.app.state.sealer.put(request, response, _USE, {"challenge": _encode(challenge)})
    return response


@signin_router.post("/login/passkey")
def sign_in(request: Request, backend: CurrentBackend, body: SignIn) -> Response:
    """Answers with where to go."""
    address = client_address(request)
    demand_step(request, backend, address)
    kept = request.app.state.sealer.take(request, None, _USE)
    if kept is None:
        raise Problem(400, "passkey-late", "This took too long. Begin again.")
    with backend.read() as tx:
        known = people.passkey_by_id(tx.connection, _decode(str(body.credential.get("id", ""))))
        person = people.person_by_id(tx.connection, known.person) if known is not None else None
    if known is None or person is None or person.disabled_s:
        raise _refuse(address)
    tool = ceremonies()
    try:
        counter = tool.check_use(
            body.credential,
            _decode(kept["challenge"]),
            _rp_id(request),
            cookies.origin(request),
            known.public_key,
            known.counter,
        )
    except tool.Refused:
        raise _refuse(address) from None
    handle = body.credential.get("response", {}).get("userHandle")
    if handle and _decode(str(handle)) != person.id.encode():
        raise _refuse(address)
    with backend.write() as (tx, _, wall_s):
        people.use_passkey(tx.connection, known.id, counter, wall_s)
    entered = enter(request, backend, person, "passkey", "/")
    response = JSONResponse({"next": safe_next(body.next)})
    for name, value in entered.raw_headers:
        if name == b"set-cookie":
            response.raw_headers.append((name, value))
    cookies.clear_short(request, response, _USE)
    return response


def _demand_browser(who: Principal) -> None:
    """Passkeys are for people: a program with a stolen API token must not be able to add one."""
    if not who.session:
        raise Forbidden("browser-only", "Passkeys are seen to in a browser.", who.actor)


def _rp_id(request: Request) -> str:
    return request.headers["host"].lower().rpartition(":")[0] or request.headers["host"].lower()


def ceremonies() -> Any:
    """The module, loaded when it is needed first."""
    from hub.web import ceremonies

    return ceremonies


def _encode(data: bytes) -> str:
    return urlsafe_b64encode(data).decode().rstrip("=")


def _decode(text: str) -> bytes:
    """Empty for what is no base64url."""
    cut = text[: 2 * CREDENTIAL_ID_MAX]
    try:
        return urlsafe_b64decode(cut + "=" * (-len(cut) % 4))
    except ValueError:
        return b""


def _refuse(address: str) -> Forbidden:
    said = "This passkey is not known here; it may have been removed. Sign in another way."
    return Forbidden("passkey", said, f"address:{address}")
