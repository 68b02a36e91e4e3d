"""Rollouts of versions and settings, and what is published: docs/updates.md."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from hub import published, rolling, updating
from hub.core.filters import TEXT_MAX
from hub.core.model import HubError
from hub.core.roles import Principal
from hub.core.rollout import Plan, Progress, Rollout, read_groups
from hub.core.windows import read as read_windows
from hub.operations import Doing
from hub.store.sql import SqlTx
from hub.web.api.common import PAGE_MAX
from hub.web.auth import CurrentBackend, allowed
from hub.web.backend import Backend
from hub.web.errors import Problem

Reader = Annotated[Principal, allowed("rollouts:read")]
Writer = Annotated[Principal, allowed("rollouts:write")]
Approver = Annotated[Principal, allowed("rollouts:approve")]
State = Literal["pending", "wanted", "waiting", "fetching", "trial", "retry", "done", "failed", "skipped"]
_PLAN = Plan()

router = APIRouter(tags=["updates"])


class NewRollout(BaseModel, extra="forbid"):
    """Give `version` or `settings`. Times in seconds."""

    version: Annotated[str, Field(max_length=64)] = ""
    settings: Annotated[dict[str, str], Field(max_length=16)] = {}
    selector: Annotated[str, Field(max_length=TEXT_MAX, description="The filter of device lists; all without.")] = ""
    groups: Annotated[str, Field(max_length=120, description="How many have been begun in all, group by group.")] = (
        "1,10%,50%,100%"
    )
    soak: int = _PLAN.soak_s
    enough_percent: int = _PLAN.enough_percent
    wait: int = _PLAN.wait_s
    max_failed: int = _PLAN.fail_count
    max_failed_percent: int = _PLAN.fail_percent
    windows: Annotated[str, Field(max_length=400)] = ""
    time_zone: Annotated[str, Field(max_length=64)] = "UTC"
    approve_each: bool = False
    tries: int = _PLAN.tries
    patience: int = _PLAN.patience_s
    confirm: int = _PLAN.confirm_s
    draft: bool = Field(default=False, description="Do not ask for approval yet: `submit` does.")

    model_config = {
        "json_schema_extra": {"examples": [{"version": "0.2.0", "selector": "tag:camera", "groups": "1,100%"}]}
    }

    def plan(self) -> Plan:
        """Raises HubError."""
        return Plan(
            groups=read_groups(self.groups),
            soak_s=self.soak,
            enough_percent=self.enough_percent,
            wait_s=self.wait,
            fail_count=self.max_failed,
            fail_percent=self.max_failed_percent,
            windows=read_windows(self.windows, self.time_zone),
            each=self.approve_each,
            tries=self.tries,
            patience_s=self.patience,
            confirm_s=self.confirm,
        )


class Reason(BaseModel, extra="forbid"):
    why: Annotated[str, Field(max_length=200, description="For those who see it.")] = ""


class CountsOut(BaseModel):
    pending: int
    under_way: int
    done: int
    failed: int = Field(description="For good, or to be tried again.")
    to_retry: int
    skipped: int


class RolloutOut(BaseModel):
    """Times in seconds since 1970, null for never."""

    id: int
    kind: Literal["version", "settings"]
    version: str | None
    settings: dict[str, str]
    selector: str
    state: Literal["draft", "awaiting-approval", "running", "soaking", "paused", "done", "aborted"]
    why: str
    since: int
    created: int
    created_by: str
    approved_by: str | None
    finished: int | None
    devices: int
    group: int = Field(description="The one under way, from 1.")
    counts: CountsOut
    can: list[str] = Field(description="What can be done to it now.")


class GroupOut(BaseModel):
    group: int
    up_to: str
    devices: int
    done: int
    failed: int
    under_way: int
    state: str


class WholeRollout(RolloutOut):
    groups: list[GroupOut]
    plan: dict[str, Any]


class RolloutList(BaseModel):
    rollouts: list[RolloutOut] = Field(description="The newest first.")


class RolloutDeviceOut(BaseModel):
    rollout: int
    device: str
    name: str | None
    state: State
    group: int | None
    tries: int
    changed: int | None
    next_try: int | None
    version: str
    why: str


class RolloutDevices(BaseModel):
    devices: list[RolloutDeviceOut] = Field(description="In the order in which they have their turn.")
    next: int | None = Field(description="`after` of the next page; null on the last.")


@router.get("/updates")
def list_published(backend: CurrentBackend, who: Reader) -> dict[str, Any]:
    """The versions that devices may fetch, and how long the signatures hold. `edgehub update publish` adds one."""
    return updating.describe(published.read(backend.state.updates))


@router.get("/rollouts")
def list_rollouts(
    backend: CurrentBackend, who: Reader, limit: Annotated[int, Query(ge=1, le=PAGE_MAX)] = 50
) -> RolloutList:
    with backend.read() as tx:
        found = [rolling.describe(tx, each, with_groups=False) for each in tx.rollouts.newest(limit)]
    return RolloutList(rollouts=[RolloutOut(**each) for each in found])


@router.post("/rollouts", status_code=201)
def create_rollout(backend: CurrentBackend, who: Writer, body: NewRollout) -> WholeRollout:
    """Nothing begins before it is approved."""
    with backend.doing(who) as do:
        return WholeRollout(**rolling.describe(do.tx, make(do, backend, body)))


def make(do: Doing, backend: Backend, body: NewRollout) -> Rollout:
    """Raises HubError."""
    if bool(body.version) is bool(body.settings):
        raise HubError("version: give a version or settings, one of the two")
    if body.version:
        found = published.read(backend.state.updates)
        return rolling.create_version(do, found, body.version, body.selector, body.plan(), draft=body.draft)
    return rolling.create_settings(do, body.settings, body.selector, body.plan(), draft=body.draft)


@router.get("/rollouts/{rollout_id}")
def get_rollout(backend: CurrentBackend, who: Reader, rollout_id: int) -> WholeRollout:
    with backend.read() as tx:
        return WholeRollout(**rolling.describe(tx, find(tx, rollout_id)))


@router.get("/rollouts/{rollout_id}/devices")
def rollout_devices(
    backend: CurrentBackend,
    who: Reader,
    rollout_id: int,
    state: State | None = None,
    after: Annotated[int, Query(ge=-1, le=(1 << 63) - 1)] = -1,
    limit: Annotated[int, Query(ge=1, le=PAGE_MAX)] = 100,
) -> RolloutDevices:
    with backend.read() as tx:
        found = find(tx, rollout_id)
        wanted = Progress(state) if state is not None else None
        rows = tx.rollouts.devices(found.id, state=wanted, after=after, limit=limit + 1)
        shown = rolling.named(tx, rows[:limit])
    return RolloutDevices(
        devices=[RolloutDeviceOut(**rolling.describe_device(row, name)) for row, name in shown],
        next=rows[limit - 1].rank if len(rows) > limit else None,
    )


@router.post("/rollouts/{rollout_id}/submit")
def submit_rollout(backend: CurrentBackend, who: Writer, rollout_id: int) -> WholeRollout:
    """Ask for the approval of a draft."""
    return _decide(backend, who, rollout_id, lambda do: rolling.submit(do, rollout_id))


@router.post("/rollouts/{rollout_id}/approve")
def approve_rollout(backend: CurrentBackend, who: Approver, rollout_id: int) -> WholeRollout:
    """Let it begin; where each group needs approval, the group that waits."""
    return _decide(backend, who, rollout_id, lambda do: rolling.approve(do, rollout_id))


@router.post("/rollouts/{rollout_id}/pause")
def pause_rollout(backend: CurrentBackend, who: Writer, rollout_id: int, body: Reason | None = None) -> WholeRollout:
    """No further device begins."""
    why = body.why if body is not None else ""
    return _decide(backend, who, rollout_id, lambda do: rolling.pause(do, rollout_id, why))


@router.post("/rollouts/{rollout_id}/resume")
def resume_rollout(backend: CurrentBackend, who: Approver, rollout_id: int) -> WholeRollout:
    """Go on. Failures up to now are accepted: only further ones pause it again."""
    return _decide(backend, who, rollout_id, lambda do: rolling.resume(do, rollout_id))


@router.post("/rollouts/{rollout_id}/abort")
def abort_rollout(backend: CurrentBackend, who: Writer, rollout_id: int, body: Reason | None = None) -> WholeRollout:
    """End it for good. Devices that have the new one keep it."""
    why = body.why if body is not None else ""
    return _decide(backend, who, rollout_id, lambda do: rolling.abort(do, rollout_id, why))


def find(tx: SqlTx, rollout_id: int) -> Rollout:
    try:
        return rolling.find(tx, rollout_id)
    except HubError as error:
        raise Problem(404, "no-rollout", str(error)) from error


def _decide(backend: Backend, who: Principal, rollout_id: int, action: Callable[[Doing], Rollout]) -> WholeRollout:
    with backend.doing(who) as do:
        find(do.tx, rollout_id)
        return WholeRollout(**rolling.describe(do.tx, action(do)))
