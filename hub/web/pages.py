"""Pages: templates that escape everything, and what each of them knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import Request, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import HTMLResponse

from hub.store import oidcsettings
from hub.web import cookies

ROOT = Path(__file__).parent
STATIC = ROOT / "static"

environment = Environment(
    loader=FileSystemLoader(ROOT / "templates"), autoescape=True, undefined=StrictUndefined, auto_reload=False
)


def render(
    request: Request,
    template: str,
    context: dict[str, Any],
    status: int = 200,
    headers: dict[str, str] | None = None,
    *,
    clear_session: bool = False,
) -> Response:
    """`who` is the Principal or None, `csrf` what forms carry (`<input type=hidden name=csrf value="{{ csrf }}">`)."""
    who = getattr(request.state, "who", None)
    known = {
        "request": request,
        "who": who,
        "csrf": who.csrf if who is not None else "",
        "live_mark": getattr(request.state, "live_mark", ""),
        "next": "/",
        **context,
    }
    response = HTMLResponse(environment.get_template(template).render(known), status, headers)
    if clear_session:
        cookies.clear(request, response)
    return response


def sign_in_page(
    request: Request, said: str, target: str, status: int = 200, *, clear_session: bool = False
) -> Response:
    """`said`: what is wrong; `target`: where to go afterwards. `oidc_label` is "" where single sign-on is off."""
    with request.app.state.backend.read() as tx:
        oidc = oidcsettings.load(tx.connection)
    known = {"said": said, "next": target, "oidc_label": oidc.label if oidc.issuer else ""}
    return render(request, "login.html", known, status, clear_session=clear_session)
