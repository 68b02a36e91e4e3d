"""Updates: rollouts and how far they are, what is published, one rollout with its devices, and a form for a new one."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Form, Query, Request, Response
from markupsafe import Markup
from starlette.concurrency import run_in_threadpool

from hub import published, rolling
from hub.core.model import Device, HubError
from hub.core.roles import Principal
from hub.core.rollout import Counts, Plan, Progress, Rollout, RolloutDevice, RolloutState
from hub.operations import Doing
from hub.output import parse_duration
from hub.store import devices
from hub.store.sql import SqlTx
from hub.web.api.rollouts import NewRollout, find, make
from hub.web.auth import CurrentBackend, allowed, demand
from hub.web.backend import Backend
from hub.web.errors import Problem
from hub.web.views.common import PAGE_SIZE, Pager, Trouble, back, is_part, page, trouble, valid

router = APIRouter(include_in_schema=False)

OPEN_SHOWN, OVER_SHOWN, VERSIONS_SHOWN = 32, 20, 20
ACTIONS: dict[str, tuple[str, str, Callable[[Doing, int], Rollout]]] = {  # what → right, what is said, what is done
    "submit": ("rollouts:write", "rollout-submitted", rolling.submit),
    "approve": ("rollouts:approve", "rollout-approved", rolling.approve),
    "pause": ("rollouts:write", "rollout-paused", rolling.pause),
    "resume": ("rollouts:approve", "rollout-resumed", rolling.resume),
    "abort": ("rollouts:write", "rollout-aborted", rolling.abort),
}
MARKS = {
    RolloutState.DRAFT: ("off", "draft"),
    RolloutState.AWAITING: ("warn", "waits for approval"),
    RolloutState.RUNNING: ("info", "running"),
    RolloutState.SOAKING: ("info", "soaking"),
    RolloutState.PAUSED: ("bad", "paused"),
    RolloutState.DONE: ("ok", "done"),
    RolloutState.ABORTED: ("off", "ended"),
}
PROGRESS_MARKS = {
    Progress.PENDING: ("off", "not begun"),
    Progress.WANTED: ("info", "told"),
    Progress.WAITING: ("warn", "waits"),
    Progress.FETCHING: ("info", "fetching"),
    Progress.TRIAL: ("info", "on trial"),
    Progress.RETRY: ("bad", "failed, tries again"),
    Progress.DONE: ("ok", "done"),
    Progress.FAILED: ("bad", "failed"),
    Progress.SKIPPED: ("off", "skipped"),
}
GROUP_MARKS = {
    "waits": ("off", "waits"),
    "needs approval": ("warn", "needs approval"),
    "under way": ("info", "under way"),
    "soaking": ("info", "soaking"),
    "paused": ("bad", "paused"),
    "done": ("ok", "done"),
    "ended": ("off", "ended"),
}
FORM = {
    "version": "", "settings": "", "selector": "", "groups": "1, 10%, 50%, 100%", "soak": "1h", "max_failed": "",
    "max_failed_percent": "10", "windows": "", "time_zone": "UTC", "approve_each": "", "draft": "",
}  # fmt: skip

Reader = Annotated[Principal, allowed("rollouts:read")]
Writer = Annotated[Principal, allowed("rollouts:write")]
Text = Annotated[str, Form(max_length=1_000)]


@dataclass(frozen=True)
class View:
    """A rollout as a page shows it."""

    rollout: Rollout
    what: str
    groups: list[rolling.GroupView]
    counts: Counts
    can: list[str]

    @property
    def mark(self) -> tuple[str, str]:
        return MARKS[self.rollout.state]

    @property
    def title(self) -> str:
        return f"Version {self.rollout.plan.version}" if self.rollout.plan.version else f"Settings: {self.what}"


@dataclass(frozen=True)
class VersionView:
    """All files of one version, and how many devices run it."""

    version: str
    targets: list[published.Target]
    running: int


def view_of(tx: SqlTx, rollout: Rollout, who: Principal) -> View:
    can = [verb for verb in rolling.actions_of(rollout) if who.may(ACTIONS[verb][0])]
    return View(rollout, rolling.what(rollout), rolling.groups_of(tx, rollout), rolling.counts(tx, rollout), can)


def split_bar(group: rolling.GroupView) -> Markup:
    """A group's devices as one bar: done, failed, under way; the rest is not begun."""
    at, parts = 0.0, Markup("")
    for kind, number in (("ok", group.done), ("bad", group.failed), ("info", group.under_way)):
        width = round(100 * number / group.size, 1) if group.size else 0.0
        if width:
            parts += Markup('<rect class="bar-fg {}" x="{}" width="{}" height="6"/>').format(kind, round(at, 1), width)
        at += width
    return Markup(
        '<svg viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="bar-bg" width="100" height="6"/>{}</svg>'
    ).format(parts)


def device_panel(tx: SqlTx, device: Device) -> list[tuple[RolloutDevice, Rollout, str, tuple[str, str]]]:
    """What became of the last rollouts at one device, for its page."""
    rows = [(row, tx.rollouts.get(row.rollout)) for row in tx.rollouts.of_device(device.id, limit=5)]
    return [
        (row, rollout, rolling.what(rollout), PROGRESS_MARKS[row.state])
        for row, rollout in rows
        if rollout is not None and rollout.state is not RolloutState.DRAFT
    ]


@router.get("/updates")
def show(request: Request, who: Reader, backend: CurrentBackend) -> Response:
    return page(request, "updates_body.html" if is_part(request) else "updates.html", _context(backend, who))


@router.post("/updates")
async def create(request: Request, who: Writer, backend: CurrentBackend) -> Response:
    sent = await request.form()
    form = {name: str(sent.get(name, ""))[:1_000].strip() for name in FORM}
    return await run_in_threadpool(_create, request, backend, who, form)


def _create(request: Request, backend: Backend, who: Principal, form: dict[str, str]) -> Response:
    try:
        body = _read(form)
        with backend.doing(who) as do:
            made = make(do, backend, body)
    except HubError as error:
        fields = {"version": "version", "rollouts": "version", "setting": "settings", "settings": "settings"}
        fields |= {name: name for name in ("groups", "soak", "windows", "selector")}
        fields |= {"filter": "selector", "time": "time_zone", "max": "max_failed_percent"}
        wrong = trouble(error, fields, "version")
        return page(request, "updates.html", _context(backend, who, form=form, wrong=wrong), 400)
    return back(f"/updates/{made.id}", "rollout-made")


def _read(form: dict[str, str]) -> NewRollout:
    """Raises HubError, whose first word names the field."""
    settings: dict[str, str] = {}
    for line in form["settings"].splitlines():
        name, equals, value = line.partition("=")
        if not equals or not name.strip():
            raise HubError(f"settings: {line[:40]!r} is not NAME=VALUE. Write one a line, as in log-level=debug")
        settings[name.strip()] = value.strip()
    try:
        soak = 0 if form["soak"] in ("", "0") else parse_duration(form["soak"])
    except ValueError as error:
        raise HubError(f"soak: {error}") from error
    numbers = {}
    for name in ("max_failed", "max_failed_percent"):
        text = form[name] or "0"
        if not text.isdecimal() or len(text) > 6:
            raise HubError(f"max-failed-percent: {text[:20]!r} is no number. Write for example 10")
        numbers[name] = int(text)
    return valid(
        NewRollout,
        version=form["version"],
        settings=settings,
        selector=form["selector"],
        groups=form["groups"],
        soak=soak,
        windows=form["windows"],
        time_zone=form["time_zone"] or "UTC",
        approve_each=bool(form["approve_each"]),
        draft=bool(form["draft"]),
        **numbers,
    )


@router.get("/updates/{rollout_id}")
def one(
    request: Request,
    who: Reader,
    backend: CurrentBackend,
    rollout_id: int,
    state: Annotated[str, Query(max_length=20)] = "",
    after: Annotated[int, Query(ge=-1, le=(1 << 63) - 1)] = -1,
    first: Annotated[int, Query(ge=1, le=1_000_000)] = 1,
) -> Response:
    wanted = next((each for each in Progress if each.value == state), None)
    with backend.read() as tx:
        found = find(tx, rollout_id)
        rows = tx.rollouts.devices(found.id, state=wanted, after=after, limit=PAGE_SIZE + 1)
        shown = rolling.named(tx, rows[:PAGE_SIZE])
        numbers = _numbers(tx, found)
        view = view_of(tx, found, who)
    mark = {"after": str(rows[PAGE_SIZE - 1].rank)} if len(rows) > PAGE_SIZE else {"after": ""}
    total = numbers.get(wanted, 0) if wanted is not None else found.total
    here = f"/updates/{found.id}"
    context = {
        "view": view,
        "rows": [(row, name, PROGRESS_MARKS[row.state]) for row, name in shown],
        "numbers": [(each.value, PROGRESS_MARKS[each][1], numbers[each]) for each in Progress if numbers.get(each)],
        "state": state,
        "pager": Pager(here, {"state": state}, first, len(shown), total, mark),
        "here": request.url.path + (f"?{request.url.query}" if request.url.query else ""),
        "group_marks": GROUP_MARKS,
        "split_bar": split_bar,
    }
    return page(request, "rollout_body.html" if is_part(request) else "rollout.html", context)


@router.post("/updates/{rollout_id}/{verb}")
def decide(who: Reader, backend: CurrentBackend, rollout_id: int, verb: str, to: Text = "") -> Response:
    """`to`: "list" comes back to the list of rollouts."""
    if verb not in ACTIONS:
        raise Problem(404, "no-action", "There is nothing like that to be done to a rollout.")
    right, said, action = ACTIONS[verb]
    demand(who, right)
    with backend.doing(who) as do:
        find(do.tx, rollout_id)
        action(do, rollout_id)
    return back("/updates" if to == "list" else f"/updates/{rollout_id}", said)


def _numbers(tx: SqlTx, rollout: Rollout) -> dict[Progress, int]:
    numbers: dict[Progress, int] = {}
    for _, state, _, _, count in tx.rollouts.counts(rollout.id):
        numbers[state] = numbers.get(state, 0) + count
    return numbers


def _context(backend: Backend, who: Principal, **known: Any) -> dict[str, Any]:
    found = published.read(backend.state.updates)
    with backend.read() as tx:
        open_ = [view_of(tx, each, who) for each in reversed(tx.rollouts.under_way())]
        over = [each for each in tx.rollouts.newest(OPEN_SHOWN + OVER_SHOWN) if not each.state.is_open][:OVER_SHOWN]
        running = devices.versions(tx.connection)
        views = [view_of(tx, each, who) for each in over]
        tags = devices.tags_in_use(tx.connection, 50)
    versions = [
        VersionView(version, [each for each in found.targets if each.version == version], running.get(version, 0))
        for version in found.versions[:VERSIONS_SHOWN]
    ]
    now_s = int(time.time())
    return {
        "open": open_[:OPEN_SHOWN],
        "over": views,
        "versions": versions,
        "roles": found.roles,
        "ending": [role for role in found.roles if role.is_soon(now_s)],
        "tags": tags,
        "form": {**FORM, "version": found.versions[0] if found.versions else ""},
        "wrong": Trouble(),
        "plan": Plan(),
        "split_bar": split_bar,
        "group_marks": GROUP_MARKS,
        **known,
    }
