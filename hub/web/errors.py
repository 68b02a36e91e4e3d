"""What a request is answered when it cannot be done: problem+json (RFC 9457) for the API, a page for people."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse
from sqlalchemy.exc import DataError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from hub.core.model import HubBusy, HubError
from hub.web.pages import render, sign_in_page

PROBLEM = "application/problem+json"
TITLES = {
    400: "Refused",
    401: "Sign in first",
    403: "Not allowed",
    404: "Not found",
    405: "Not this way",
    409: "Conflict",
    412: "Changed meanwhile",
    413: "Too large",
    422: "Not understood",
    428: "Say which version",
    429: "Too many",
    500: "Our fault",
    503: "Busy",
}


class Problem(Exception):
    """Raised by an endpoint; `code` is for programs and does not change."""

    def __init__(self, status: int, code: str, detail: str, **headers: str) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail = status, code, detail
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class Forbidden(Problem):
    """403, with an audit row that says `code`."""

    def __init__(self, code: str, detail: str, actor: str = "") -> None:
        super().__init__(403, code, detail)
        self.actor = actor


class NotSignedIn(Problem):
    """A page leads to the sign-in; the API says 401."""

    def __init__(self) -> None:
        super().__init__(401, "not-signed-in", "This needs an API token or a session.", WWW_Authenticate="Bearer")


def is_api(request: Request) -> bool:
    """Whether a program reads the answer."""
    return request.url.path.startswith(("/api/", "/metrics", "/live", "/login/passkey", "/join/"))


def client_address(request: Request) -> str:
    """Of the browser: behind a reverse proxy that the settings name, what that proxy says."""
    peer = request.client.host if request.client else ""
    proxies = request.app.state.backend.settings.proxies
    if peer in proxies:
        for said in reversed(request.headers.get("x-forwarded-for", "").split(",")):
            if (address := said.strip()) and address not in proxies:
                return address[:64]
    return peer


async def note_refusal(request: Request, actor: str, why: str) -> None:
    address = client_address(request)
    what = f"{request.method} {request.url.path}"
    await run_in_threadpool(request.app.state.backend.note_refusal, actor or f"address:{address}", why, what, address)


def problem(request: Request, status: int, code: str, detail: str, headers: dict[str, str] | None = None) -> Response:
    """The answer itself."""
    title = TITLES.get(status, "Failed")
    if is_api(request):
        body: dict[str, Any] = {"type": "about:blank", "title": title, "status": status, "code": code, "detail": detail}
        return JSONResponse(body, status, headers, media_type=PROBLEM)
    return render(request, "error.html", {"title": title, "status": status, "detail": detail}, status, headers)


def install(app: FastAPI) -> None:
    """Handlers for everything that an endpoint may raise."""

    async def on_problem(request: Request, error: Exception) -> Response:
        assert isinstance(error, Problem)
        if isinstance(error, NotSignedIn) and not is_api(request):
            return RedirectResponse(f"/login?next={request.url.path}" if request.method == "GET" else "/login", 303)
        if isinstance(error, Forbidden):
            await note_refusal(request, error.actor, error.code)
            if error.code in ("session-ended", "session-expired") and not is_api(request):
                return sign_in_page(request, error.detail, "/", 403, clear_session=True)
        return problem(request, error.status, error.code, error.detail, error.headers)

    async def on_hub_error(request: Request, error: Exception) -> Response:
        status, code = (503, "busy") if isinstance(error, HubBusy) else (400, "refused")
        return problem(request, status, code, str(error))

    async def on_invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        # What was sent is not repeated: it may be a password.
        said = "; ".join(f"{'.'.join(map(str, one['loc'][1:]))}: {one['msg']}" for one in error.errors()[:8])
        return problem(request, 422, "invalid", said)

    async def on_data(request: Request, error: Exception) -> Response:
        # PostgreSQL takes no NUL in texts, SQLite does
        return problem(request, 422, "invalid", "There is a character in it that no text of ours can have.")

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return problem(request, error.status_code, f"http-{error.status_code}", error.detail)

    async def on_bug(request: Request, error: Exception) -> Response:
        return problem(request, 500, "bug", "The hub failed at this. Its log says why.")

    app.add_exception_handler(Problem, on_problem)
    app.add_exception_handler(HubError, on_hub_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(DataError, on_data)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(Exception, on_bug)
