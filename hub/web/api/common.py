"""What all endpoints of the API share: problems, pages, ETags."""

from __future__ import annotations

import json
from hashlib import blake2s
from typing import Annotated, Any

from fastapi import Query, Request, Response
from pydantic import BaseModel, Field

from hub.web.errors import PROBLEM, Problem

PAGE_MAX = 500

Limit = Annotated[int, Query(ge=1, le=PAGE_MAX, description="How many at most.")]
After = Annotated[str, Query(max_length=1_000, description="`next` of the page before.")]
Seconds = Annotated[int, Field(ge=0, le=1 << 40)]


class ProblemOut(BaseModel):
    """RFC 9457. `code` is for programs and does not change; `detail` is for people."""

    type: str = "about:blank"
    title: str
    status: int
    code: str
    detail: str


PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"description": said, "content": {PROBLEM: {"schema": ProblemOut.model_json_schema()}}}
    for status, said in (
        (400, "Refused: the detail says why and what next."),
        (401, "No API token and no session."),
        (403, "The token, the role or the owner does not allow it; audited."),
        (404, "There is none."),
        (422, "The request is not understood."),
    )
}


def etag(value: Any) -> str:
    """Strong: changes with anything in `value`, which JSON must take."""
    return f'"{blake2s(json.dumps(value, sort_keys=True).encode(), digest_size=12).hexdigest()}"'


def check_if_match(request: Request, current: str, *, needed: bool = False) -> None:
    """Raises Problem 412 when what the client saw is not what there is, 428 when it must say and does not."""
    said = request.headers.get("if-match")
    if said is None:
        if needed:
            raise Problem(428, "if-match-missing", "Say by If-Match which version you saw: its ETag.")
    elif said.strip() != "*" and current not in [tag.strip() for tag in said.split(",")]:
        raise Problem(412, "changed", "It was changed meanwhile. Look at it again, then repeat.", ETag=current)


def not_modified(request: Request, response: Response, current: str) -> bool:
    """Puts the ETag; whether the client has it already."""
    response.headers["ETag"] = current
    return current in [tag.strip() for tag in request.headers.get("if-none-match", "").split(",")]
