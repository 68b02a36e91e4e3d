"""The policy: read, checked, set, and asked who may reach what."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse

from hub import operations
from hub.core import policy_ends
from hub.core.policing import check_policy, find_policy
from hub.core.policy.evaluate import load
from hub.core.policy.hujson import BYTES_MAX
from hub.core.policy.problems import PolicyError
from hub.core.roles import Principal
from hub.web.api.common import check_if_match
from hub.web.auth import CurrentBackend, allowed
from hub.web.errors import PROBLEM, TITLES, Problem

router = APIRouter(tags=["policy"])


class PolicyOut(BaseModel):
    version: int = Field(description="0: there is none, and every device may reach every other.")
    text: str = Field(description="HuJSON, as it was written.")
    author: str
    time: int


class PolicyText(BaseModel, extra="forbid"):
    text: Annotated[str, Field(max_length=BYTES_MAX)]

    model_config = {
        "json_schema_extra": {
            "examples": [{"text": '{"acls": [{"action": "accept", "src": ["tag:camera"], "dst": ["tag:server:443"]}]}'}]
        }
    }


class PolicyProblem(BaseModel):
    line: int
    column: int
    text: str


class PolicyChecked(BaseModel):
    version: int = Field(description="That holds from now on; 0 where nothing was set.")
    rules: int
    tests: int
    warnings: list[PolicyProblem]


class VerdictOut(BaseModel):
    service: str
    allowed: bool
    rule: str = Field(description="By which rule; empty when denied.")
    line: int


class Explained(BaseModel):
    source: str = Field(description="What it is to the policy.")
    target: str
    verdicts: list[VerdictOut]


@router.get("/policy")
def get_policy(
    backend: CurrentBackend,
    who: Annotated[Principal, allowed("policy:read")],
    response: Response,
    version: Annotated[int, Query(ge=0, le=1 << 31, description="An older one; 0 = the newest.")] = 0,
) -> PolicyOut:
    with backend.read() as tx:
        newest = tx.policy_version()
        response.headers["ETag"] = _etag(newest)
        if not newest:
            return PolicyOut(version=0, text="", author="", time=0)
        stored = find_policy(tx, version)
    return PolicyOut(version=stored.version, text=stored.text, author=stored.author, time=stored.created_s)


@router.put("/policy", response_model=PolicyChecked)
def put_policy(
    backend: CurrentBackend,
    who: Annotated[Principal, allowed("policy:write")],
    body: PolicyText,
    request: Request,
    response: Response,
) -> Any:
    """With If-Match, which is needed. What is wrong is told with line and column (400), and the one before stays."""
    try:
        with backend.doing(who) as do:
            check_if_match(request, _etag(do.tx.policy_version()), needed=True)
            policy = operations.set_policy(do, body.text, who.login)
    except PolicyError as error:
        return _refused(error)
    response.headers["ETag"] = _etag(policy.version)
    return _checked(policy)


@router.post("/policy/check", response_model=PolicyChecked)
def check(backend: CurrentBackend, who: Annotated[Principal, allowed("policy:read")], body: PolicyText) -> Any:
    """As setting it, its tests too, but nothing is changed."""
    try:
        with backend.read() as tx:
            return _checked(check_policy(tx, body.text))
    except PolicyError as error:
        return _refused(error)


@router.get("/policy/explain")
def explain(
    backend: CurrentBackend,
    who: Annotated[Principal, allowed("policy:read")],
    src: Annotated[str, Query(max_length=300, examples=["cam-3"])],
    dst: Annotated[str, Query(max_length=300, examples=["server:443"])],
    proto: Annotated[str, Query(max_length=16)] = "",
) -> Explained:
    """Whether `src` may reach `dst`, and by which rule of the policy that holds."""
    with backend.read() as tx:
        stored = find_policy(tx)
        try:
            policy = load(stored.text, stored.version)
        except PolicyError as error:
            raise Problem(400, "policy-unreadable", "Another version of this hub made it. Set it anew.") from error
        answer = policy_ends.explain(tx, policy, src, dst, proto)
    return Explained(
        source=answer.source,
        target=answer.target,
        verdicts=[
            VerdictOut(
                service=verdict.service,
                allowed=verdict.rule is not None,
                rule=verdict.rule.name if verdict.rule is not None else "",
                line=verdict.rule.line if verdict.rule is not None else 0,
            )
            for verdict in answer.verdicts
        ],
    )


def _etag(version: int) -> str:
    return f'"policy-{version}"'


def _checked(policy: Any) -> PolicyChecked:
    document = policy.document
    warnings = [PolicyProblem(line=said.line, column=said.column, text=said.text) for said in document.warnings]
    return PolicyChecked(
        version=policy.version, rules=len(document.rules), tests=len(document.tests), warnings=warnings
    )


def _refused(error: PolicyError) -> Response:
    """A problem with all the places (RFC 9457, section 3.2: extension members)."""
    places = [{"line": said.line, "column": said.column, "text": said.text} for said in error.problems]
    body = {"type": "about:blank", "title": TITLES[400], "status": 400, "code": "policy", "detail": str(error)}
    return JSONResponse({**body, "problems": places}, 400, media_type=PROBLEM)
