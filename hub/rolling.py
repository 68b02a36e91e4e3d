"""Rollouts as people and programs ask for them: an action and its audit row, and what is shown of them.

Each runs inside a transaction of the caller's. `hub.core.rollouts` is what is done; devices are chosen here, in SQL.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from hub.core import rollout as engine
from hub.core import rollouts
from hub.core.filters import Term, parse
from hub.core.model import DeviceState, HubError
from hub.core.rollout import Counts, Plan, Progress, Rollout, RolloutDevice, RolloutKind, RolloutState
from hub.operations import Doing
from hub.published import Published
from hub.store import devices
from hub.store.sql import SqlTx

DEVICES_MAX = 200_000
_ACTIVE = Term("state", "=", (DeviceState.ACTIVE.value,))


@dataclass(frozen=True)
class GroupView:
    """One group as it stands. `size`: how many are begun in it at most."""

    number: int  # from 1
    says: str  # as in the plan
    size: int
    done: int
    failed: int
    under_way: int
    state: str  # "waits", "needs approval", "under way", "soaking", "done", "paused", "ended"

    @property
    def begun(self) -> int:
        return self.done + self.failed + self.under_way


def fits(tx: SqlTx, selector: str, wall_s: int, *, version: str = "") -> list[str]:
    """Ids of the active devices that a selector means, without those that run `version`. Raises HubError."""
    terms = (*parse(selector), _ACTIVE)
    if version:
        terms = (*terms, Term("version", "=", (version,), negated=True))
    return devices.ids(tx.connection, terms, wall_s, DEVICES_MAX)


def create_version(
    do: Doing, found: Published, version: str, selector: str, plan: Plan, *, draft: bool = False
) -> Rollout:
    """Raises HubError."""
    plan = replace(plan, version=version, targets=found.of_version(version))
    if not plan.targets and found.versions:
        raise HubError(f"version {version}: it is not published. Published are {', '.join(found.versions[:8])}")
    return _create(do, RolloutKind.VERSION, selector, plan, fits(do.tx, selector, do.wall_s, version=version), draft)


def create_settings(
    do: Doing, settings: Mapping[str, str], selector: str, plan: Plan, *, draft: bool = False
) -> Rollout:
    """Raises HubError."""
    plan = replace(plan, settings=dict(settings))
    return _create(do, RolloutKind.SETTINGS, selector, plan, fits(do.tx, selector, do.wall_s), draft)


def _create(do: Doing, kind: RolloutKind, selector: str, plan: Plan, chosen: list[str], draft: bool) -> Rollout:
    made = rollouts.create(do.tx, kind, selector, plan, chosen, do.wall_s, actor=do.actor)
    do.note("rollout.create", f"rollout:{made.id}", what=what(made), selector=selector, devices=made.total)
    if not draft:
        rollouts.submit(do.tx, made, do.wall_s)
    return made


def submit(do: Doing, number: int) -> Rollout:
    found = find(do.tx, number)
    rollouts.submit(do.tx, found, do.wall_s)
    return _noted(do, found, "submit")


def approve(do: Doing, number: int) -> Rollout:
    found = find(do.tx, number)
    rollouts.approve(do.scribe, do.tx, found, do.wall_s, do.actor)
    return _noted(do, found, "approve", group=found.group + 1)


def pause(do: Doing, number: int, why: str = "") -> Rollout:
    found = find(do.tx, number)
    rollouts.pause(do.tx, found, do.wall_s, why or f"paused by {do.actor}")
    return _noted(do, found, "pause")


def resume(do: Doing, number: int) -> Rollout:
    found = find(do.tx, number)
    rollouts.resume(do.scribe, do.tx, found, do.wall_s)
    return _noted(do, found, "resume", failed=found.forgiven)


def abort(do: Doing, number: int, why: str = "") -> Rollout:
    found = find(do.tx, number)
    rollouts.abort(do.tx, found, do.wall_s, why or f"ended by {do.actor}")
    return _noted(do, found, "abort")


def _noted(do: Doing, rollout: Rollout, verb: str, **detail: str | int) -> Rollout:
    do.note(f"rollout.{verb}", f"rollout:{rollout.id}", what=what(rollout), **detail)
    return rollout


# What is shown


def find(tx: SqlTx, number: int) -> Rollout:
    found = tx.rollouts.get(number)
    if found is None:
        raise HubError(f"rollout {number}: there is none. `edgehub rollout list` shows which there are")
    return found


def what(rollout: Rollout) -> str:
    """In a word or two."""
    if rollout.kind is RolloutKind.VERSION:
        return f"version {rollout.plan.version}"
    return " ".join(f"{name}={value}" for name, value in sorted(rollout.plan.settings.items()))


def actions_of(rollout: Rollout) -> list[str]:
    """What people can do to it now: submit, approve, pause, resume, abort."""
    return [event.value for event in engine.BY_PEOPLE if (rollout.state, event) in engine.STATES]


def groups_of(tx: SqlTx, rollout: Rollout) -> list[GroupView]:
    numbers: dict[tuple[int, str], int] = {}
    for group, state, _, _, count in tx.rollouts.counts(rollout.id):
        name = "done" if state is Progress.DONE else "failed" if state.is_executed else "under_way"
        if state not in (Progress.PENDING, Progress.SKIPPED):
            numbers[group, name] = numbers.get((group, name), 0) + count
    views, before = [], 0
    total = rollouts.counts(tx, rollout).total
    for number, each in enumerate(rollout.plan.groups):
        up_to = max(before, each.up_to(total))
        found = {name: numbers.get((number, name), 0) for name in ("done", "failed", "under_way")}
        size = max(up_to - before, sum(found.values()))
        views.append(GroupView(number + 1, str(each), size, **found, state=_state_of(rollout, number)))
        before = up_to
    return views


def _state_of(rollout: Rollout, number: int) -> str:
    if number < rollout.group or rollout.state is RolloutState.DONE:
        return "done"
    if rollout.state is RolloutState.ABORTED:
        return "ended"
    if number > rollout.group or rollout.state is RolloutState.DRAFT:
        return "waits"
    return {
        RolloutState.AWAITING: "needs approval",
        RolloutState.SOAKING: "soaking",
        RolloutState.PAUSED: "paused",
    }.get(rollout.state, "under way")


def counts(tx: SqlTx, rollout: Rollout) -> Counts:
    return rollouts.counts(tx, rollout)


def describe(tx: SqlTx, rollout: Rollout, *, with_groups: bool = True) -> dict[str, Any]:
    """As JSON has it; times in seconds since 1970, None for never."""
    plan, found = rollout.plan, rollouts.counts(tx, rollout)
    described: dict[str, Any] = {
        "id": rollout.id,
        "kind": rollout.kind.value,
        "version": plan.version or None,
        "settings": plan.settings,
        "selector": rollout.selector,
        "state": rollout.state.value,
        "why": rollout.why,
        "since": rollout.since_s,
        "created": rollout.created_s,
        "created_by": rollout.actor,
        "approved_by": rollout.approved_by or None,
        "finished": rollout.finished_s or None,
        "devices": rollout.total,
        "group": rollout.group + 1,
        "counts": {
            "pending": found.pending,
            "under_way": found.under_way,
            "done": found.done,
            "failed": found.failed,
            "to_retry": found.retry,
            "skipped": found.skipped,
        },
        "can": actions_of(rollout),
    }
    if with_groups:
        described["groups"] = [
            {
                "group": view.number,
                "up_to": view.says,
                "devices": view.size,
                "done": view.done,
                "failed": view.failed,
                "under_way": view.under_way,
                "state": view.state,
            }
            for view in groups_of(tx, rollout)
        ]
        described["plan"] = {
            "targets": plan.targets,
            "soak": plan.soak_s,
            "enough_percent": plan.enough_percent,
            "wait": plan.wait_s,
            "max_failed": plan.fail_count,
            "max_failed_percent": plan.fail_percent,
            "windows": plan.windows.text,
            "time_zone": plan.windows.zone,
            "approve_each": plan.each,
            "tries": plan.tries,
            "patience": plan.patience_s,
            "confirm": plan.confirm_s,
        }
    return described


def describe_device(row: RolloutDevice, name: str | None) -> dict[str, Any]:
    return {
        "rollout": row.rollout,
        "device": row.device,
        "name": name,
        "state": row.state.value,
        "group": row.group + 1 or None,
        "tries": row.tries,
        "changed": row.changed_s or None,
        "next_try": (row.due_s or None) if row.state is Progress.RETRY else None,
        "version": row.version,
        "why": row.why,
    }


def named(tx: SqlTx, rows: list[RolloutDevice]) -> list[tuple[RolloutDevice, str | None]]:
    """With the devices' host names."""
    names: dict[str, str | None] = {}
    ids = [row.device for row in rows]
    for start in range(0, len(ids), devices.PAGE_MAX):
        found = devices.by_ids(tx.connection, ids[start : start + devices.PAGE_MAX])
        names |= {device_id: each.name for device_id, each in found.items()}
    return [(row, names.get(row.device)) for row in rows]
