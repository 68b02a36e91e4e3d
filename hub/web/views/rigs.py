"""Rigs: how each did lately, one with its runs and how its figures go, one run with what it measured."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from markupsafe import Markup

from hub import rigging
from hub.core.rigs import TREND_RUNS, Rig, Run, Verdict
from hub.rigging import Trend
from hub.store import rigs
from hub.web.api.rigs import Manager, Number, Reader, RigName, find, find_run, page_of
from hub.web.api.rigs import remove_rig as api_remove
from hub.web.auth import CurrentBackend
from hub.web.views.common import Pager, back, is_part, page

router = APIRouter(include_in_schema=False)

MARKS = {
    Verdict.PASSED: ("ok", "passed"),
    Verdict.RETRIED: ("warn", "passed with retries"),
    Verdict.FAILED: ("bad", "failed"),
}
RUNS_SHOWN = 12  # on a page: how figures go stands below them
CHARTS_MAX = 24
LINES_MAX = 6  # in a chart: so many can be told apart
CHANGE_MAX = 10_000  # percent; beyond it nobody reads the number
_SPARK = (100, 24)  # units of a small picture's width and height


@dataclass(frozen=True)
class View:
    """A rig in the list. `runs`: its last ones, the oldest first."""

    rig: Rig
    runs: list[Run]

    @property
    def last(self) -> Run | None:
        return self.runs[-1] if self.runs else None

    @property
    def share(self) -> str:
        """How many of the last runs passed."""
        return f"{sum(run.verdict is not Verdict.FAILED for run in self.runs)} of {len(self.runs)}"

    @property
    def median_s(self) -> int:
        return round(statistics.median(run.seconds for run in self.runs))


@router.get("/rigs")
def list_(request: Request, who: Reader, backend: CurrentBackend) -> Response:
    with backend.read() as tx:
        newest = rigs.newest(tx.connection)
        views = [View(rig, newest.get(rig.name, [])) for rig in rigs.all_(tx.connection)]
    # What failed last first: that is what somebody has come to see.
    views.sort(key=lambda view: (view.last is None or view.last.verdict is not Verdict.FAILED, view.rig.name))
    hub_url = backend.settings.url or f"{request.url.scheme}://{request.url.netloc}"
    context = {"views": views, "marks": MARKS, "hub_url": hub_url}
    return page(request, "rigs_body.html" if is_part(request) else "rigs.html", context)


@router.get("/rigs/{rig}")
def one(
    request: Request,
    who: Reader,
    backend: CurrentBackend,
    rig: RigName,
    suite: Annotated[str, Query(max_length=64)] = "",
    before: Annotated[int, Query(ge=0, le=1 << 40)] = 0,
    first: Annotated[int, Query(ge=1, le=1_000_000)] = 1,
) -> Response:
    with backend.read() as tx:
        found = find(tx, rig)
        suites = rigs.suites(tx.connection, rig)
        suite = suite if suite in suites else ""
        rows = rigs.runs(tx.connection, rig, before=before, suite=suite, limit=RUNS_SHOWN + 1)
        total = rigs.run_count(tx.connection, rig, suite)
        shown = suite or (rows[0].suite if rows else "")
        trends = rigging.trends(rigs.figures(tx.connection, rig, shown, TREND_RUNS))
        recent = list(reversed(rigs.runs(tx.connection, rig, suite=shown, limit=TREND_RUNS)))
        pages = rigs.pages(tx.connection, rig)
    mark = {"before": str(rows[RUNS_SHOWN - 1].number)} if len(rows) > RUNS_SHOWN else {"before": ""}
    here = f"/rigs/{rig}"
    context = {
        "rig": found,
        "runs": rows[:RUNS_SHOWN],
        "recent": recent,
        "suites": suites,
        "suite": suite,
        "shown": shown,
        "charts": charts(trends),
        "pages": pages,
        "marks": MARKS,
        "pager": Pager(here, {"suite": suite}, first, len(rows[:RUNS_SHOWN]), total, mark),
        "here": request.url.path + (f"?{request.url.query}" if request.url.query else ""),
    }
    return page(request, "rig_body.html" if is_part(request) else "rig.html", context)


@router.get("/rigs/{rig}/{number}")
def run(request: Request, who: Reader, backend: CurrentBackend, rig: RigName, number: Number) -> Response:
    with backend.read() as tx:
        found = find_run(tx, rig, number)
        whole = rigging.describe_whole(tx, found)
        history = rigs.figures(tx.connection, rig, found.suite, TREND_RUNS, up_to=number)
        newest = find(tx, rig).runs
        before = rigs.run(tx.connection, rig, number - 1) if number > 1 else None
    trends = {(each.what, each.guest, each.unit): each for each in rigging.trends(history)}
    kinds = {(row["what"], row["unit"]): at for at, row in reversed(list(enumerate(whole["figures"])))}
    figures = sorted(whole["figures"], key=lambda row: kinds[row["what"], row["unit"]])  # those of a kind together
    rows = [(row, trends[row["what"], row["guest"], row["unit"]]) for row in figures]
    context: dict[str, Any] = {
        "found": found,
        "whole": whole,
        "rows": rows,
        "mark": MARKS[found.verdict],
        "beyond": [row for row in whole["figures"] if not row["ok"]],
        "before": before,
        "newest": newest,
        "spark": spark,
        "change": change,
    }
    return page(request, "rig_run.html", context)


@router.get("/rigs/{rig}/{number}/report")
def report(request: Request, who: Reader, backend: CurrentBackend, rig: RigName, number: Number) -> Response:
    """As it was sent, under a policy that lets nothing of it run."""
    return page_of(request, backend, rig, number)


@router.post("/rigs/{rig}/remove")
def remove(who: Manager, backend: CurrentBackend, rig: RigName) -> Response:
    api_remove(backend, who, rig)
    return back("/rigs", "rig-removed")


def charts(trends: list[Trend]) -> list[dict[str, Any]]:
    """A chart for each thing with two runs or more, a line for each guest; `data` is what rigs.js draws."""
    grouped: dict[tuple[str, str], list[Trend]] = {}
    for trend in trends:
        if len(trend.points) >= 2:
            grouped.setdefault((trend.what, trend.unit), []).append(trend)
    # Those with limits first: somebody has said that they matter.
    order = sorted(grouped.items(), key=lambda item: all(trend.limit is None for trend in item[1]))
    made = []
    for (what, unit), found in order:
        for at in range(0, len(found), LINES_MAX):
            part = found[at : at + LINES_MAX]
            numbers = sorted({number for trend in part for number, _ in trend.points})
            limits = {trend.limit for trend in part}
            data = {
                "unit": unit,
                "runs": numbers,
                "lines": [
                    {"name": trend.guest or "all", "values": [dict(trend.points).get(number) for number in numbers]}
                    for trend in part
                ],
                "limit": limits.pop()
                if len(limits) == 1
                else None,  # those of one chart may differ: then none is drawn
            }
            made.append({"what": what, "unit": unit, "data": json.dumps(data), "least": part[0].least, **_last(part)})
    return made[:CHARTS_MAX]


def spark(trend: Trend, number: int) -> Markup:
    """A figure over the runs up to this one, small, with its limit; what it says stands beside it as text."""
    if len(trend.points) < 2:
        return Markup("")
    width, height = _SPARK
    values = [value for _, value in trend.points] + ([trend.limit] if trend.limit is not None else [])
    low, high = min(values), max(values)
    spread = (high - low) or 1.0

    def y(value: float) -> float:
        return round(height - 3 - (height - 6) * (value - low) / spread, 1)

    step = width / (len(trend.points) - 1)
    line = " ".join(f"{round(at * step, 1)},{y(value)}" for at, (_, value) in enumerate(trend.points))
    limit = Markup("")
    if trend.limit is not None:
        limit = Markup('<line class="spark-limit" x1="0" x2="{}" y1="{y}" y2="{y}"/>').format(width, y=y(trend.limit))
    return Markup(
        '<svg class="spark" viewBox="0 0 {} {}" preserveAspectRatio="none" aria-hidden="true">{}'
        '<polyline points="{}"/></svg>'
    ).format(width, height, limit, line)


def change(trend: Trend) -> str:
    """Against the median of the runs before, as in +12 %; empty while there are too few to say."""
    before = [value for _, value in trend.points[:-1]]
    if len(before) < 3 or not (usual := statistics.median(before)):
        return ""
    percents = 100 * (trend.points[-1][1] - usual) / abs(usual)
    if abs(percents) >= CHANGE_MAX:  # infinite, even, beside what is nearly nothing
        return "far from usual"
    percent = round(percents)
    return f"{percent:+d} %" if percent else "as usual"


def _last(part: list[Trend]) -> dict[str, Any]:
    newest = max(trend.points[-1][0] for trend in part)
    values = [trend.points[-1][1] for trend in part if trend.points[-1][0] == newest]
    limits = {trend.limit for trend in part}
    return {"low": min(values), "high": max(values), "limit": limits.pop() if len(limits) == 1 else None}
