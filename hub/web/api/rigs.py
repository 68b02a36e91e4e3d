"""Rigs that test devices: CI tells of their runs, people look at them (docs/hil.md)."""

from __future__ import annotations

import gzip
from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import AwareDatetime, BaseModel, Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from hub import rigging
from hub.core.model import HubError
from hub.core.rigs import PAGE_BYTES_MAX, TREND_RUNS, Rig, Run, Verdict
from hub.core.roles import Principal
from hub.rigging import Told
from hub.store import rigs
from hub.store.sql import SqlTx
from hub.web.api.common import PAGE_MAX
from hub.web.auth import CurrentBackend, allowed
from hub.web.backend import Backend
from hub.web.errors import Forbidden, Problem

# Whatever is in a page that was sent, nothing of it runs, asks anybody, or is sent anywhere: `sandbox` without a word
# behind it takes scripts, forms and refreshes, and gives it an origin of its own.
PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; sandbox; form-action 'none'; base-uri 'none'; "
    "frame-ancestors 'none'"
)

LAST_S = 253_402_300_799  # 9999-12-31T23:59:59Z

Reader = Annotated[Principal, allowed("rigs:read")]
Writer = Annotated[Principal, allowed("rigs:write")]
Manager = Annotated[Principal, allowed("rigs:manage")]
RigName = Annotated[str, Path(max_length=63, pattern="^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")]
Number = Annotated[int, Path(ge=1, le=1 << 40)]
Text = Annotated[str, Field(max_length=200)]
Word = Annotated[str, Field(max_length=64)]
Facts = Annotated[dict[Word, Text], Field(max_length=16)]
Span = Annotated[float, Field(ge=0, le=10_000_000, allow_inf_nan=False)]  # seconds
Figure = Annotated[float, Field(ge=-1e15, le=1e15, allow_inf_nan=False)]
VerdictName = Literal["passed", "retried", "failed"]

router = APIRouter(tags=["rigs"])


class StepIn(BaseModel):
    name: Annotated[str, Field(min_length=1, max_length=200)]
    outcome: Annotated[str, Field(max_length=32, description="`passed`, or anything else.")]
    at_s: Span = Field(0, description="Since the run's beginning.")
    seconds: Span = 0
    load: Span = Field(0, description="Of the host, when it ended.")
    error: Word = Field("", description="The name of what went wrong, as in `guest-stuck`.")
    said: Annotated[str, Field(max_length=2_000)] = ""


class FigureIn(BaseModel):
    what: Annotated[str, Field(min_length=1, max_length=200)]
    guest: Word = ""
    value: Figure
    unit: Annotated[str, Field(max_length=32)] = ""
    limit: Figure | None = Field(None, description="Beyond it the run has failed.")
    least: bool = Field(False, description="The limit is a lower one.")


class EventIn(BaseModel):
    at_s: Span
    what: Text
    kind: Literal["on", "off", "good", "bad", "retry", "note"] = "note"


class GuestIn(BaseModel):
    name: Word
    about: Facts = {}
    events: Annotated[list[EventIn], Field(max_length=64)] = []


class RunIn(BaseModel):
    """What `edgehil report upload` sends. What is not known here is left out, so that a newer edgehil is understood."""

    id: Annotated[str, Field(pattern="^[0-9a-f]{32}$", description="The run's own: sent again, it is the same run.")]
    suite: Annotated[str, Field(min_length=1, max_length=64)]
    verdict: VerdictName
    began: AwareDatetime
    seconds: Span
    retries: Annotated[int, Field(ge=0, le=10_000)] = 0
    host: Facts = {}
    versions: Facts = {}
    steps: Annotated[list[StepIn], Field(max_length=200)]
    figures: Annotated[list[FigureIn], Field(max_length=500)] = []
    guests: Annotated[list[GuestIn], Field(max_length=64)] = []

    def told(self) -> Told:
        return Told(
            id=self.id,
            suite=self.suite,
            claimed=Verdict(self.verdict),
            began_s=_seconds(self.began),
            seconds=self.seconds,
            retries=self.retries,
            steps=[step.model_dump() for step in self.steps],
            figures=[figure.model_dump() for figure in self.figures],
            detail=self.model_dump(include={"host", "versions", "guests"}),
        )


class RunOut(BaseModel):
    """Times in seconds since 1970."""

    rig: str
    number: int
    id: str
    suite: str
    verdict: VerdictName
    failed: str = Field(description="What went wrong first.")
    began: int
    received: int
    seconds: float
    retries: int
    steps: int
    passed: int = Field(description="Of the steps.")
    by: str


class TakenOut(BaseModel):
    number: int
    verdict: VerdictName
    new: bool = Field(description="False: it was told before.")


class RigOut(BaseModel):
    name: str
    user: str = Field(description="Who told of it first: who may tell of its runs.")
    created: int
    runs: int
    last: RunOut | None
    recent: list[VerdictName] = Field(description="Of its last runs, the oldest first.")


class RigList(BaseModel):
    rigs: list[RigOut]


class RunList(BaseModel):
    runs: list[RunOut] = Field(description="The newest first.")
    next: int | None = Field(description="`before` of the next page; null on the last.")


class FigureOut(FigureIn):
    ok: bool


class WholeRun(BaseModel):
    run: RunOut
    host: dict[str, str]
    versions: dict[str, str]
    steps: list[StepIn]
    figures: list[FigureOut]
    guests: list[GuestIn]
    report: bool = Field(description="Whether its page is kept.")


class TrendOut(BaseModel):
    what: str
    guest: str
    unit: str
    limit: float | None
    least: bool
    points: list[tuple[int, float]] = Field(description="Number of a run and the value there, the oldest first.")


class TrendList(BaseModel):
    figures: list[TrendOut]


@router.get("/rigs")
def list_rigs(backend: CurrentBackend, who: Reader) -> RigList:
    with backend.read() as tx:
        newest = rigs.newest(tx.connection)
        found = [rigging.describe_rig(rig, newest.get(rig.name, [])) for rig in rigs.all_(tx.connection)]
    return RigList(rigs=[RigOut(**each) for each in found])


@router.delete("/rigs/{rig}", status_code=204)
def remove_rig(backend: CurrentBackend, who: Manager, rig: RigName) -> Response:
    """With all its runs."""
    with backend.doing(who) as do:
        rigging.remove(do, find(do.tx, rig))
    return Response(status_code=204)


@router.get("/rigs/{rig}/runs")
def list_runs(
    backend: CurrentBackend,
    who: Reader,
    rig: RigName,
    suite: Annotated[str, Query(max_length=64)] = "",
    before: Annotated[int, Query(ge=0, le=1 << 40)] = 0,
    limit: Annotated[int, Query(ge=1, le=PAGE_MAX)] = 50,
) -> RunList:
    with backend.read() as tx:
        find(tx, rig)
        found = rigs.runs(tx.connection, rig, before=before, suite=suite, limit=limit + 1)
    return RunList(
        runs=[RunOut(**rigging.describe_run(run)) for run in found[:limit]],
        next=found[limit - 1].number if len(found) > limit else None,
    )


@router.post("/rigs/{rig}/runs", status_code=201)
def tell_run(backend: CurrentBackend, who: Writer, rig: RigName, body: RunIn, response: Response) -> TakenOut:
    """A run that is over. The first one makes the rig, which is then its teller's: others need `rigs:manage`."""
    with backend.doing(who) as do:
        check_owner(do.tx, who, rig)
        run, new = rigging.take_run(do, rig, who, body.told())
    if not new:
        response.status_code = 200
    return TakenOut(number=run.number, verdict=run.verdict.value, new=new)


@router.get("/rigs/{rig}/runs/{number}")
def get_run(backend: CurrentBackend, who: Reader, rig: RigName, number: Number) -> WholeRun:
    with backend.read() as tx:
        return WholeRun(**rigging.describe_whole(tx, find_run(tx, rig, number)))


@router.put("/rigs/{rig}/runs/{number}/report", status_code=204)
async def tell_report(request: Request, backend: CurrentBackend, who: Writer, rig: RigName, number: Number) -> Response:
    """Its page: one HTML file, gzipped, as the body. It is shown where nothing of it can run."""
    try:
        packed = await request.body()
    except ClientDisconnect:  # or the guard has cut it off
        raise Problem(413, "too-large", f"At most {PAGE_BYTES_MAX} bytes, gzipped.") from None
    await run_in_threadpool(_take_page, backend, who, rig, number, packed)
    return Response(status_code=204)


def _take_page(backend: Backend, who: Principal, rig: str, number: int, packed: bytes) -> None:
    if len(packed) > PAGE_BYTES_MAX:
        raise Problem(413, "too-large", f"At most {PAGE_BYTES_MAX} bytes, gzipped.")
    with backend.doing(who) as do:
        check_owner(do.tx, who, rig)
        rigging.take_page(do, find_run(do.tx, rig, number), packed)


@router.get("/rigs/{rig}/runs/{number}/report")
def get_report(request: Request, backend: CurrentBackend, who: Reader, rig: RigName, number: Number) -> Response:
    """The page that was sent along."""
    return page_of(request, backend, rig, number)


@router.get("/rigs/{rig}/figures")
def list_figures(
    backend: CurrentBackend, who: Reader, rig: RigName, suite: Annotated[str, Query(max_length=64)]
) -> TrendList:
    """How the figures of a suite have become over its last runs."""
    with backend.read() as tx:
        find(tx, rig)
        found = rigging.trends(rigs.figures(tx.connection, rig, suite, TREND_RUNS))
    return TrendList(figures=[TrendOut(**vars(trend)) for trend in found])


def page_of(request: Request, backend: Backend, rig: str, number: int) -> Response:
    with backend.read() as tx:
        find_run(tx, rig, number)
        packed = rigs.page(tx.connection, rig, number)
    if packed is None:
        raise Problem(
            404, "no-report", "No page of this run is kept: none was sent, or newer runs have taken its place."
        )
    headers = {"content-security-policy": PAGE_POLICY, "vary": "accept-encoding"}
    if "gzip" in request.headers.get("accept-encoding", ""):
        headers["content-encoding"] = "gzip"
    else:
        packed = gzip.decompress(packed)
    return Response(packed, media_type="text/html; charset=utf-8", headers=headers)


def check_owner(tx: SqlTx, who: Principal, name: str) -> None:
    """Raises Forbidden where the rig is another's."""
    rig = rigs.find(tx.connection, name)
    if rig is not None and rig.person != who.user and not who.may("rigs:manage"):
        whose = f"of {rig.login}: only they and" if rig.login else "of nobody: only"
        raise Forbidden("not-yours", f"The rig {name} is {whose} admins tell of it.", who.actor)


def find(tx: SqlTx, name: str) -> Rig:
    try:
        return rigging.find(tx, name)
    except HubError as error:
        raise Problem(404, "no-rig", str(error)) from error


def find_run(tx: SqlTx, name: str, number: int) -> Run:
    find(tx, name)
    try:
        return rigging.find_run(tx, name, number)
    except HubError as error:
        raise Problem(404, "no-run", str(error)) from error


def _seconds(began: datetime) -> int:
    """Within what can be shown: in UTC a time of the year 1 or 9999 may be of a year before or after."""
    return min(max(0, int(began.timestamp())), LAST_S)
