"""The session's cookie. Under https its name begins with `__Host-`, which browsers take only from this very host."""

from __future__ import annotations

from urllib.parse import urlsplit

from fastapi import Request, Response

from hub.core.people import SESSION_LIFE_S

_PLAIN, _SECURE = "edgehub", "__Host-edgehub"


def is_secure(request: Request) -> bool:
    """Whether the browser speaks TLS, to us or to a reverse proxy before us: what the settings say of this host."""
    url = urlsplit(str(request.app.state.backend.settings.url))
    host: str = request.headers.get("host", "")
    return url.scheme == "https" and host == url.netloc


def session_token(request: Request) -> str | None:
    return request.cookies.get(_SECURE if is_secure(request) else _PLAIN)


def put(request: Request, response: Response, token: str) -> None:
    secure = is_secure(request)
    response.set_cookie(
        _SECURE if secure else _PLAIN,
        token,
        max_age=SESSION_LIFE_S,
        path="/",
        secure=secure,
        httponly=True,
        samesite="lax",
    )


def clear(request: Request, response: Response) -> None:
    secure = is_secure(request)
    response.delete_cookie(_SECURE if secure else _PLAIN, path="/", secure=secure, httponly=True, samesite="lax")


def put_short(request: Request, response: Response, purpose: str, value: str, life_s: int) -> None:
    secure = is_secure(request)
    response.set_cookie(
        _short_name(purpose, secure), value, max_age=life_s, path="/", secure=secure, httponly=True, samesite="lax"
    )


def short(request: Request, purpose: str) -> str:
    return request.cookies.get(_short_name(purpose, is_secure(request)), "")


def clear_short(request: Request, response: Response, purpose: str) -> None:
    secure = is_secure(request)
    response.delete_cookie(_short_name(purpose, secure), path="/", secure=secure, httponly=True, samesite="lax")


def _short_name(purpose: str, secure: bool) -> str:
    return f"{_SECURE if secure else _PLAIN}-{purpose}"


def origin(request: Request) -> str:
    """Of our pages, as this browser sees them: the guard has looked at the host already."""
    scheme = "https" if is_secure(request) or request.url.scheme == "https" else "http"
    return f"{scheme}://{request.headers['host'].lower()}"
