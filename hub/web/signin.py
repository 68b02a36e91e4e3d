"""Signing in by password, and out."""

from __future__ import annotations

from typing import Annotated, NoReturn

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse

from hub.core.people import PASSWORD_MAX, Person, digest
from hub.people import close_session, open_session, password_fits
from hub.store import people
from hub.web import cookies
from hub.web.auth import CurrentBackend, CurrentUser
from hub.web.backend import Backend
from hub.web.errors import Problem, client_address
from hub.web.pages import sign_in_page as page
from hub.web.throttle import LockedBuckets, source

router = APIRouter(include_in_schema=False)

# A try costs 19 MiB for 30 ms, and a password of twelve characters stands for years against these.
ADDRESS_PER_S, ACCOUNT_PER_S = 1 / 10, 1 / 30
TRIES_BURST = 20
# Neither a passkey nor a provider's word can be guessed, signing in by them takes two requests, and what was cancelled
# is begun again.
STEPS_PER_S, STEPS_BURST = 1.0, 120


def safe_next(target: str) -> str:
    """Where to go after signing in: a page of ours, whatever the link said."""
    good = (
        target.startswith("/") and not target.startswith(("//", "/\\")) and target.isprintable() and len(target) < 500
    )
    return target if good else "/"


@router.get("/login")
def show(request: Request, next: str = "/") -> Response:
    return page(request, "", safe_next(next))


@router.post("/login")
def sign_in(
    request: Request,
    backend: CurrentBackend,
    login: Annotated[str, Form(max_length=256)],
    password: Annotated[str, Form(max_length=PASSWORD_MAX)],
    next: Annotated[str, Form(max_length=500)] = "/",
) -> Response:
    address, login = client_address(request), login.strip().lower()
    demand_try(request, backend, address, login)
    with backend.read() as tx:
        person = people.person_by_login(tx.connection, login)
    fits = password_fits(person, password)
    if not fits or person is None or person.disabled_s:
        # A login that nobody has may be a password typed into the wrong field.
        who = f"user:{person.login}" if person is not None else "user:?"
        backend.note_refusal(f"address:{address}", "password", who, address, verb="signin.failed")
        said = "This login and password do not fit together."
        return page(request, said, safe_next(next), 403)
    return enter(request, backend, person, "password", safe_next(next))


@router.post("/logout")
def sign_out(request: Request, who: CurrentUser, backend: CurrentBackend) -> Response:
    if who.session:
        with backend.write() as (tx, _, wall_s):
            close_session(tx, wall_s, who, who.session, who.login)
    response = RedirectResponse("/login", 303)
    cookies.clear(request, response)
    return response


def enter(request: Request, backend: Backend, person: Person, how: str, target: str) -> Response:
    """A new session, whatever one the browser had before."""
    browser = "".join(char for char in request.headers.get("user-agent", "") if char.isprintable())
    before = cookies.session_token(request)
    with backend.write() as (tx, _, wall_s):
        if before:
            people.end_sessions(tx.connection, wall_s, hash_=digest(before))
        token = open_session(tx, wall_s, person, how=how, address=client_address(request), browser=browser)
    response = RedirectResponse(target, 303)
    cookies.put(request, response, token)
    return response


class Tries:
    """How often passwords may be tried, by address and by account, and passkeys and providers by address;
    `app.state.tries`."""

    def __init__(self) -> None:
        self._addresses = LockedBuckets(ADDRESS_PER_S, TRIES_BURST)
        self._accounts = LockedBuckets(ACCOUNT_PER_S, TRIES_BURST)
        self._steps = LockedBuckets(STEPS_PER_S, STEPS_BURST)

    def take(self, now: float, address: str, login: str) -> bool:
        """`login` "": no account is named."""
        return self._addresses.allow(now, source(address)) and (not login or self._accounts.allow(now, login))

    def take_step(self, now: float, address: str) -> bool:
        return self._steps.allow(now, source(address))

    def __len__(self) -> int:
        return len(self._addresses) + len(self._accounts) + len(self._steps)


def demand_try(request: Request, backend: Backend, address: str, login: str) -> None:
    """Raises Problem when there were too many tries."""
    if not request.app.state.tries.take(backend.clock(), address, login):
        _refuse(backend, address, "POST /login")


def demand_step(request: Request, backend: Backend, address: str) -> None:
    """For each of the two requests that a passkey takes, or a provider. Raises Problem."""
    if not request.app.state.tries.take_step(backend.clock(), address):
        _refuse(backend, address, f"{request.method} {request.url.path}")


def _refuse(backend: Backend, address: str, what: str) -> NoReturn:
    backend.note_refusal(f"address:{address}", "too-many-tries", what, address)
    raise Problem(429, "too-many-tries", "Too many tries. Wait half a minute.", Retry_After="30")
