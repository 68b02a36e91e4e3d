"""Pages: templates that escape everything, and what each of them knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import Request, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import HTMLResponse

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
    known = {"request": request, "who": who, "csrf": who.csrf if who is not None else "", "next": "/", **context}
    response = HTMLResponse(environment.get_template(template).render(known), status, headers)
    if clear_session:
        cookies.clear(request, response)
    return response
