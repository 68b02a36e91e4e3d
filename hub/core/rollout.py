"""The rollout engine: how a version, or settings, comes to a fleet group by group. Pure; `wall_s` is an argument.

A rollout's devices are chosen when it is made, and ordered by a hash of (rollout, device). Each group says how many of
them may have been begun in all while it is under way. A device is begun while it is online, so one that is not holds
nobody up: another takes its place, and it is begun in a later group, in the last one whenever it comes back.
See `STATES` for what leads from where to where, and `step` for what is decided.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from enum import Enum
from hashlib import blake2s
from itertools import pairwise
from typing import Any

from edgeagent.proto.updatestate import UpdateState
from hub.core.model import HubError
from hub.core.windows import Windows
from hub.core.windows import read as read_windows

GROUPS_MAX = 16
TRIES_MAX = 10  # below TRIES_SPAN in on_rollouts.py
RETRY_FIRST_S, RETRY_LAST_S = 600, 12 * 3_600  # doubling between, a quarter more or less
JITTER = 0.25
SILENT_S = 6 * 3_600  # a device that is online and says nothing of what it was told, for so long, has failed
FETCHING_S = 24 * 3_600  # the same for one that fetches, however slowly
TRIAL_S = 3_600  # a trial that nothing was heard of for so long has failed, online or not
SOAK_MAX_S = 30 * 86_400
WAIT_MAX_S = 30 * 86_400
PATIENCE_MAX_S = 365 * 86_400


class RolloutKind(Enum):
    VERSION = "version"  # of the agent
    SETTINGS = "settings"  # each device confirms them, or takes the old ones back


class RolloutState(Enum):
    DRAFT = "draft"
    AWAITING = "awaiting-approval"
    RUNNING = "running"
    SOAKING = "soaking"
    PAUSED = "paused"
    DONE = "done"
    ABORTED = "aborted"

    @property
    def is_open(self) -> bool:
        return self not in (RolloutState.DONE, RolloutState.ABORTED)


class Event(Enum):
    SUBMIT = "submit"
    APPROVE = "approve"
    UNAPPROVED = "the next group needs approval"
    GROUP_DONE = "the group is done"
    SOAKED = "it has soaked"
    ALL_DONE = "all are done"
    GIVEN_UP = "patience is over"
    THRESHOLD = "too many have failed"
    PAUSE = "pause"
    RESUME = "resume"
    ABORT = "abort"


_S, _E = RolloutState, Event
STATES: dict[tuple[RolloutState, Event], RolloutState] = {
    (_S.DRAFT, _E.SUBMIT): _S.AWAITING,
    (_S.DRAFT, _E.ABORT): _S.ABORTED,
    (_S.AWAITING, _E.APPROVE): _S.RUNNING,
    (_S.AWAITING, _E.PAUSE): _S.PAUSED,
    (_S.AWAITING, _E.ABORT): _S.ABORTED,
    (_S.RUNNING, _E.UNAPPROVED): _S.AWAITING,
    (_S.RUNNING, _E.GROUP_DONE): _S.SOAKING,
    (_S.RUNNING, _E.ALL_DONE): _S.DONE,
    (_S.RUNNING, _E.GIVEN_UP): _S.DONE,
    (_S.RUNNING, _E.THRESHOLD): _S.PAUSED,
    (_S.RUNNING, _E.PAUSE): _S.PAUSED,
    (_S.RUNNING, _E.ABORT): _S.ABORTED,
    (_S.SOAKING, _E.SOAKED): _S.RUNNING,
    (_S.SOAKING, _E.THRESHOLD): _S.PAUSED,
    (_S.SOAKING, _E.PAUSE): _S.PAUSED,
    (_S.SOAKING, _E.ABORT): _S.ABORTED,
    (_S.PAUSED, _E.RESUME): _S.RUNNING,
    (_S.PAUSED, _E.ABORT): _S.ABORTED,
}


class Progress(Enum):
    """How far one device is."""

    PENDING = "pending"  # not begun, or taken back while it had not got far
    WANTED = "wanted"  # its map says so; nothing was heard of it yet
    WAITING = "waiting"  # the device waits: for budget, space or a window of its own
    FETCHING = "fetching"
    TRIAL = "trial"  # it runs the new one, and would return to the old one
    RETRY = "retry"  # failed, and is tried again later
    DONE = "done"
    FAILED = "failed"
    SKIPPED = "skipped"  # there is nothing for it, or it is gone

    @property
    def is_wanted(self) -> bool:
        """Whether the device's map holds it."""
        return self in WANTING

    @property
    def is_executed(self) -> bool:
        """Whether a try has come to an end, be it only the first."""
        return self in (Progress.DONE, Progress.FAILED, Progress.RETRY)

    @property
    def is_over(self) -> bool:
        return self in (Progress.DONE, Progress.FAILED, Progress.SKIPPED)


WANTING = (Progress.WANTED, Progress.WAITING, Progress.FETCHING, Progress.TRIAL)
TAKEN_BACK = (Progress.WANTED, Progress.WAITING, Progress.FETCHING, Progress.RETRY)  # when it pauses


@dataclass(slots=True, frozen=True)
class Group:
    """How many may have been begun in all: a number of devices, or a share of them."""

    count: int = 0
    percent: int = 0

    def up_to(self, total: int) -> int:
        return min(total, self.count) if self.count else -(-total * self.percent // 100)

    def __str__(self) -> str:
        return f"{self.percent}%" if self.percent else str(self.count)


@dataclass(slots=True, frozen=True)
class Plan:
    """What somebody decided when they made the rollout; does not change."""

    version: str = ""
    targets: dict[str, str] = field(default_factory=dict)  # ABI → name of the target
    settings: dict[str, str] = field(default_factory=dict)
    confirm_s: int = 600  # settings: within which a device must have reached the hub with them
    groups: tuple[Group, ...] = (Group(count=1), Group(percent=10), Group(percent=50), Group(percent=100))
    soak_s: int = 3_600  # after each group but the last
    enough_percent: int = 100  # of those that can be reached, whose tries must have ended before a group is done
    wait_s: int = 86_400  # after which a group is done without those of it that are offline, or wait for something
    fail_count: int = 0  # so many failed devices pause it; 0 = however many
    fail_percent: int = 10  # such a share of those that have executed pauses it; 0 = whatever share
    windows: Windows = field(default_factory=Windows)
    each: bool = False  # every group needs approval, not only the first
    tries: int = 3  # of one device
    patience_s: int = 14 * 86_400  # after the beginning of a group that never ends, and of the last: all is given up

    def encode(self) -> str:
        fields = {name: value for name, value in asdict(self).items() if name not in ("groups", "windows")}
        fields["groups"] = ",".join(map(str, self.groups))
        fields["windows"] = [self.windows.text, self.windows.zone]
        return json.dumps(fields, sort_keys=True)


@dataclass(slots=True)
class Rollout:
    """`group` is the number of the one under way, from 0; groups below `approved` may begin."""

    id: int
    kind: RolloutKind
    selector: str
    plan: Plan
    actor: str  # who made it
    created_s: int
    total: int  # devices that were chosen
    state: RolloutState = RolloutState.DRAFT
    why: str = ""  # it is in this state
    since_s: int = 0
    group: int = 0
    approved: int = 0
    approved_by: str = ""
    group_s: int = 0  # when the group under way began
    forgiven: int = 0  # failures that somebody has resumed over
    finished_s: int = 0

    @property
    def is_last(self) -> bool:
        return self.group >= len(self.plan.groups) - 1


@dataclass(slots=True)
class RolloutDevice:
    """One device of a rollout. `rank` gives the order; `order` is what its map and its reports name (settings)."""

    rollout: int
    device: str
    rank: int
    state: Progress = Progress.PENDING
    group: int = -1  # in which it was begun; -1 = in none yet
    tries: int = 0
    order: int = 0
    due_s: int = 0  # when its state is to be looked at; 0 = never
    changed_s: int = 0
    version: str = ""  # that it said it runs
    why: str = ""


@dataclass(slots=True, frozen=True)
class Counts:
    """Devices of a rollout. Those that were removed since, or that there is nothing for, are `skipped`."""

    pending: int = 0
    candidates: int = 0  # pending, online, and wanted by no other rollout
    under_way: int = 0
    under_way_online: int = 0
    done: int = 0
    failed: int = 0  # for good, or to be tried again
    retry: int = 0  # of those
    skipped: int = 0

    @property
    def executed(self) -> int:
        return self.done + self.failed

    @property
    def begun(self) -> int:
        return self.under_way + self.executed

    @property
    def total(self) -> int:
        """Without those skipped."""
        return self.pending + self.begun


def move(rollout: Rollout, event: Event, wall_s: int, why: str = "") -> None:
    """Raises HubError for what makes no sense in its state."""
    after = STATES.get((rollout.state, event))
    if after is None:
        able = ", ".join(known.value for state, known in STATES if state is rollout.state and known in BY_PEOPLE)
        raise HubError(
            f"rollout {rollout.id}: it is {rollout.state.value}, and {event.value} makes no sense then. "
            + (f"What can be done: {able}" if able else "Make a new one: `edgehub rollout create`")
        )
    rollout.state, rollout.since_s, rollout.why = after, wall_s, why
    if not after.is_open:
        rollout.finished_s = wall_s


BY_PEOPLE = (Event.SUBMIT, Event.APPROVE, Event.PAUSE, Event.RESUME, Event.ABORT)


def approve(rollout: Rollout, wall_s: int, actor: str) -> None:
    """The group under way, or all of them, as the plan wants it."""
    move(rollout, Event.APPROVE, wall_s)
    rollout.approved = rollout.group + 1 if rollout.plan.each else len(rollout.plan.groups)
    rollout.approved_by = actor
    rollout.group_s = wall_s


def resume(rollout: Rollout, counts: Counts, wall_s: int) -> None:
    """Failures up to now are accepted: only further ones pause it again."""
    move(rollout, Event.RESUME, wall_s)
    rollout.forgiven = counts.failed
    rollout.group_s = wall_s


def too_many(rollout: Rollout, counts: Counts) -> str:
    """Why so many failures pause it; "" while they do not."""
    plan, failed = rollout.plan, counts.failed - rollout.forgiven
    if failed <= 0:
        return ""
    if plan.fail_count and failed >= plan.fail_count:
        return f"{counts.failed} of {counts.executed} failed; {plan.fail_count} pause it"
    if plan.fail_percent and failed * 100 >= plan.fail_percent * counts.executed:
        return f"{counts.failed} of {counts.executed} failed; {plan.fail_percent} % pause it"
    return ""


def step(rollout: Rollout, counts: Counts, wall_s: int) -> int:
    """Move it on as far as it goes now; how many more devices may be begun at once."""
    if rollout.state not in (RolloutState.RUNNING, RolloutState.SOAKING):
        return 0
    if why := too_many(rollout, counts):
        move(rollout, Event.THRESHOLD, wall_s, why)
        return 0
    for _ in rollout.plan.groups:
        if rollout.state is RolloutState.SOAKING:
            if wall_s < rollout.since_s + rollout.plan.soak_s:
                return 0
            rollout.group += 1
            rollout.group_s = wall_s
            move(rollout, Event.SOAKED, wall_s)
        free = rollout.plan.groups[rollout.group].up_to(counts.total) - counts.begun
        if rollout.is_last:
            free = counts.pending
        if free > 0 and rollout.group >= rollout.approved:
            move(rollout, Event.UNAPPROVED, wall_s, f"group {rollout.group + 1} of {len(rollout.plan.groups)}")
            return 0
        if free > 0 and counts.candidates:
            if rollout.plan.windows.is_open(wall_s):
                rollout.why = ""
                return min(free, counts.candidates)
            rollout.why = f"waits for its window: {rollout.plan.windows}"
        if not _group_is_done(rollout, counts, free, wall_s):
            return 0
        move(rollout, Event.GROUP_DONE, wall_s)
        if rollout.group and _is_empty(rollout, counts):
            rollout.since_s = wall_s - rollout.plan.soak_s  # nothing was begun in it: nothing has to soak
    return 0


def _is_empty(rollout: Rollout, counts: Counts) -> bool:
    """Whether the group under way is not larger than the one before it."""
    now, before = (rollout.plan.groups[number].up_to(counts.total) for number in (rollout.group, rollout.group - 1))
    return now <= before


def _group_is_done(rollout: Rollout, counts: Counts, free: int, wall_s: int) -> bool:
    """Moves to the end where that is it. For `free` places nobody can be begun now."""
    waited_s, plan = wall_s - rollout.group_s, rollout.plan
    left = counts.pending + counts.under_way + counts.retry
    if rollout.is_last and not left:
        move(rollout, Event.ALL_DONE, wall_s, _summary(counts))
        return False
    if waited_s >= plan.patience_s and (rollout.is_last or not counts.executed):
        move(rollout, Event.GIVEN_UP, wall_s, f"{_summary(counts)}, {left} never came to an end")
        return False
    if counts.candidates and free > 0:
        return False  # outside its window
    if rollout.is_last:
        rollout.why = f"{left} have not come to an end yet"
        return False
    reachable = counts.executed + counts.under_way_online
    enough = counts.executed * 100 >= plan.enough_percent * reachable
    if counts.executed and ((enough and free <= 0) or waited_s >= plan.wait_s):
        return True
    rollout.why = f"{free} more are to be begun, but not online" if free > 0 and enough else ""
    return False


def _summary(counts: Counts) -> str:
    return f"{counts.done} done, {counts.failed} failed" + (f", {counts.skipped} skipped" if counts.skipped else "")


# One device


def rank(rollout_id: int, device_id: str) -> int:
    """The order of devices in a rollout: another one in each, so that it is not always the same that go first. 63 bits:
    what every database has."""
    return int.from_bytes(blake2s(f"{rollout_id} {device_id}".encode(), digest_size=8).digest(), "big") >> 1


def begin(row: RolloutDevice, group: int, order: int, wall_s: int) -> None:
    row.state, row.order = Progress.WANTED, order
    row.group = group if row.group < 0 else row.group
    row.tries += 1
    row.changed_s, row.due_s, row.why = wall_s, wall_s + SILENT_S, ""


def skip(row: RolloutDevice, why: str, wall_s: int) -> None:
    row.state, row.why, row.changed_s, row.due_s = Progress.SKIPPED, why, wall_s, 0


def take_back(row: RolloutDevice, wall_s: int) -> bool:
    """The rollout pauses or ends: what has not come to its trial is not wanted any more. Whether it was."""
    if row.state not in TAKEN_BACK:
        return False
    if row.state is Progress.RETRY:
        return False  # it failed, and that stays to be seen
    row.tries -= 1
    if row.tries:
        row.state, row.due_s = Progress.RETRY, wall_s  # it has failed before
    else:
        row.state, row.due_s, row.group = Progress.PENDING, 0, -1
    row.changed_s = wall_s
    return True


def hear(
    row: RolloutDevice, said: UpdateState, version: str, why: str, wall_s: int, *, tries: int, jitter: float
) -> bool:
    """What the device says of it. `jitter`: 0 to 1. Whether anything has changed but its words."""
    before = row.state
    if said is UpdateState.IDLE or before is Progress.SKIPPED or (before.is_over and said is not UpdateState.COMMITTED):
        return False  # what has said its end, or was given up, can only turn out well yet
    if before is Progress.RETRY and said not in (UpdateState.TRIAL, UpdateState.COMMITTED):
        return False  # the same again: a map is slower than a report
    if before is Progress.PENDING and said in (UpdateState.WAITING, UpdateState.FETCHING, UpdateState.REFUSED):
        return False  # it was taken back, and the device will hear of that
    row.version = version or row.version
    row.tries = max(1, row.tries)
    row.changed_s, row.why = wall_s, why
    if said is UpdateState.COMMITTED:
        row.state, row.due_s = Progress.DONE, 0
    elif said is UpdateState.RETURNED:
        _fail(row, why or "returned to what it had before", wall_s, tries, jitter)
    elif said is UpdateState.REFUSED:
        _fail(row, why or "refused", wall_s, 0, jitter)
    else:
        row.state, within_s = _UNDER_WAY[said]
        row.due_s = wall_s + within_s if within_s else 0
    return row.state is not before


_UNDER_WAY = {
    UpdateState.WAITING: (Progress.WAITING, 0),
    UpdateState.FETCHING: (Progress.FETCHING, FETCHING_S),
    UpdateState.TRIAL: (Progress.TRIAL, TRIAL_S),
}


def overdue(row: RolloutDevice, wall_s: int, *, online: bool, tries: int, jitter: float) -> bool:
    """Its time has come and nothing was heard. Whether it has failed. Not for RETRY, which is begun again."""
    if row.state is Progress.TRIAL:
        _fail(row, "not heard of since its trial began", wall_s, tries, jitter)
    elif online:
        said = "says nothing of it" if row.state is Progress.WANTED else "fetched for too long"
        _fail(row, f"it is online and {said}", wall_s, tries, jitter)
    else:
        row.due_s = wall_s + (FETCHING_S if row.state is Progress.FETCHING else SILENT_S)  # patience
        return False
    return True


def retry_after_s(tries: int, jitter: float) -> int:
    """After so many tries; `jitter` from 0 to 1."""
    wait_s = min(RETRY_LAST_S, RETRY_FIRST_S * 2 ** min(tries - 1, 16))
    return int(wait_s * (1 - JITTER + 2 * JITTER * jitter))


def _fail(row: RolloutDevice, why: str, wall_s: int, tries: int, jitter: float) -> None:
    row.why, row.changed_s = why, wall_s
    if row.tries < tries:
        row.state, row.due_s = Progress.RETRY, wall_s + retry_after_s(row.tries, jitter)
    else:
        row.state, row.due_s = Progress.FAILED, 0


# What people write


_GROUP = re.compile(r"(\d{1,6})(%?)")


def read_groups(text: str) -> tuple[Group, ...]:
    """`1,10%,50%,100%`: each says how many have been begun in all. Raises HubError."""
    words = [word for word in text.replace(" ", "").split(",") if word]
    groups = []
    for word in words:
        found = _GROUP.fullmatch(word)
        number = int(found[1]) if found else 0
        if found is None or not number or (found[2] and number > 100):
            raise HubError(f"groups: {word[:20]!r} is neither a number of devices nor a share of them. {_GROUPS_SAID}")
        groups.append(Group(percent=number) if found[2] else Group(count=number))
    if not groups or len(groups) > GROUPS_MAX or groups[-1] != Group(percent=100):
        raise HubError(f"groups: 1 to {GROUPS_MAX} of them expected, the last one 100%. {_GROUPS_SAID}")
    for before, after in pairwise(groups):
        if (after.percent, after.count) <= (before.percent, before.count) or (before.percent and not after.percent):
            raise HubError(f"groups: {after} does not come after {before}: each must be larger. {_GROUPS_SAID}")
    return tuple(groups)


_GROUPS_SAID = "Write for example 1,10%,50%,100%: one device first, then a tenth of all, half, all"


def decode_plan(text: str) -> Plan:
    """Of what `Plan.encode` wrote."""
    fields: dict[str, Any] = json.loads(text)
    fields["groups"] = read_groups(fields["groups"])
    fields["windows"] = read_windows(*fields["windows"])
    return Plan(**fields)


def check_plan(plan: Plan) -> Plan:
    """Raises HubError for numbers that make no sense."""
    for name, value, low, high, unit in (
        ("soak", plan.soak_s, 0, SOAK_MAX_S, "s"),
        ("enough", plan.enough_percent, 1, 100, "%"),
        ("wait", plan.wait_s, 0, WAIT_MAX_S, "s"),
        ("max-failed", plan.fail_count, 0, 1_000_000, "devices"),
        ("max-failed-percent", plan.fail_percent, 0, 100, "%"),
        ("tries", plan.tries, 1, TRIES_MAX, ""),
        ("patience", plan.patience_s, 3_600, PATIENCE_MAX_S, "s"),
        ("confirm", plan.confirm_s, 30, 86_400, "s"),
    ):
        if not low <= value <= high:
            raise HubError(f"{name}: {value} {unit}".rstrip() + f"; between {low} and {high} expected")
    return plan


def print_table() -> str:
    """The states as text, for people and for the documentation."""
    return "\n".join(f"{state.value:18} {event.value:30} {after.value}" for (state, event), after in STATES.items())
