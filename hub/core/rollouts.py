"""Rollouts at work: made, decided upon by people, moved on by the hub, and told by devices.

Each function runs inside a write transaction, but for those that only read. `hub.core.rollout` says what comes next;
here it becomes rows, and maps that are written anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeagent.proto.control import SETTING_BYTES_MAX, SETTINGS_MAX
from edgeagent.proto.updatestate import UpdateState
from hub.core import rollout as engine
from hub.core.model import Device, HubDrop, HubError, JobKind
from hub.core.on_rollouts import ABI_FACT, TRIES_SPAN, merged, target_of
from hub.core.rollout import (
    TAKEN_BACK,
    Counts,
    Event,
    Plan,
    Progress,
    Rollout,
    RolloutDevice,
    RolloutKind,
    RolloutState,
)
from hub.core.scribe import Scribe
from hub.core.store import Tx

BEGIN_MAX = 128  # devices in one step: each gets a map
TAKE_BACK_MAX = 500
OPEN_MAX = 32
KEPT_MAX = 200  # that are over
# What devices let the hub change (edgeagent/settingstrial.py); a test compares the two.
SETTINGS = ("budget", "engine", "log-level", "memory-ceiling", "metered", "port-mapping", "trial", "uplinks")


def create(
    tx: Tx, kind: RolloutKind, selector: str, plan: Plan, devices: list[str], wall_s: int, *, actor: str
) -> Rollout:
    """A draft for these devices (ids). Raises HubError."""
    engine.check_plan(plan)
    if kind is RolloutKind.VERSION and not plan.targets:
        raise HubError(f"version {plan.version or '-'}: it is not published. `edgehub update publish FILE` does that")
    if kind is RolloutKind.SETTINGS:
        _check_settings(plan.settings)
    if not devices:
        raise HubError(
            f"selector {selector!r}: no device fits that would need this. `edgehub devices list` shows which there are"
        )
    if len(tx.rollouts.under_way()) >= OPEN_MAX:
        raise HubError(f"rollouts: {OPEN_MAX} are open. Abort some first: `edgehub rollout list`")
    made = Rollout(tx.rollouts.next_id(), kind, selector, plan, actor, wall_s, len(devices), since_s=wall_s)
    tx.rollouts.add(made)
    tx.rollouts.add_devices([RolloutDevice(made.id, device, engine.rank(made.id, device)) for device in devices])
    for old in tx.rollouts.beyond(KEPT_MAX):
        tx.rollouts.drop(old)
    return made


def submit(tx: Tx, rollout: Rollout, wall_s: int) -> None:
    """The draft is finished: it asks for approval."""
    engine.move(rollout, Event.SUBMIT, wall_s)
    tx.rollouts.save(rollout)
    _tell(tx, rollout, "waiting", wall_s)


def approve(scribe: Scribe, tx: Tx, rollout: Rollout, wall_s: int, actor: str) -> None:
    engine.approve(rollout, wall_s, actor)
    tx.rollouts.save(rollout)
    _tell(tx, rollout, "running", wall_s)
    advance(scribe, tx, rollout, wall_s)


def pause(tx: Tx, rollout: Rollout, wall_s: int, why: str) -> None:
    """No further device begins; one in its trial ends that."""
    engine.move(rollout, Event.PAUSE, wall_s, why)
    _stopped(tx, rollout, wall_s, "paused")


def resume(scribe: Scribe, tx: Tx, rollout: Rollout, wall_s: int) -> None:
    engine.resume(rollout, counts(tx, rollout), wall_s)
    tx.rollouts.save(rollout)
    _tell(tx, rollout, "running", wall_s)
    advance(scribe, tx, rollout, wall_s)


def abort(tx: Tx, rollout: Rollout, wall_s: int, why: str) -> None:
    """For good. Devices that have it keep it."""
    engine.move(rollout, Event.ABORT, wall_s, why)
    _stopped(tx, rollout, wall_s, "aborted")


def pause_version(tx: Tx, version: str, wall_s: int, why: str) -> list[Rollout]:
    """Those that bring a version which shall not be brought any more; drafts of it are over."""
    found = [each for each in tx.rollouts.under_way() if each.plan.version == version]
    for draft in (each for each in found if each.state is RolloutState.DRAFT):
        abort(tx, draft, wall_s, why)
    paused = [each for each in found if (each.state, Event.PAUSE) in engine.STATES]
    for rollout in paused:
        pause(tx, rollout, wall_s, why)
    return paused


def look(scribe: Scribe, tx: Tx, wall_s: int) -> bool:
    """The hub's own steps of all that are open. True: there is more to do at once."""
    more = False
    for rollout in tx.rollouts.under_way():
        more = advance(scribe, tx, rollout, wall_s) or more
    return more


def advance(scribe: Scribe, tx: Tx, rollout: Rollout, wall_s: int) -> bool:
    """One step; True: there is more to do at once."""
    if rollout.state in (RolloutState.DRAFT, RolloutState.DONE, RolloutState.ABORTED):
        return False
    late = _look_at_late(scribe, tx, rollout, wall_s)
    if rollout.state is RolloutState.PAUSED:
        return _take_back(tx, rollout, wall_s) or late
    if rollout.state is RolloutState.AWAITING:
        return late
    before = (rollout.state, rollout.why, rollout.group)
    candidates = tx.rollouts.candidates(rollout.id, BEGIN_MAX)
    found = counts(tx, rollout, len(candidates))
    number = engine.step(rollout, found, wall_s)
    if (rollout.state, rollout.why, rollout.group) != before:
        tx.rollouts.save(rollout)
        if rollout.state is not before[0]:
            _handle_moved(tx, rollout, wall_s)
    for row in candidates[:number]:
        _begin(scribe, tx, rollout, row, wall_s)
    may_retry = rollout.state in (RolloutState.RUNNING, RolloutState.SOAKING) and rollout.plan.windows.is_open(wall_s)
    retries = tx.rollouts.retries_due(rollout.id, wall_s, BEGIN_MAX) if may_retry else []
    for row in retries:
        _begin(scribe, tx, rollout, row, wall_s)
    return late or max(number, len(retries)) >= BEGIN_MAX


def counts(tx: Tx, rollout: Rollout, candidates: int = 0) -> Counts:
    number: dict[str, int] = dict.fromkeys(Counts.__slots__, 0)
    for _, state, online, active, count in tx.rollouts.counts(rollout.id):
        if state is Progress.SKIPPED or not (active or state.is_over):
            number["skipped"] += count
        elif state is Progress.PENDING:
            number["pending"] += count
        elif state.is_wanted:
            number["under_way"] += count
            number["under_way_online"] += count * online
        else:
            number["done" if state is Progress.DONE else "failed"] += count
            number["retry"] += count * (state is Progress.RETRY)
    return Counts(**{**number, "candidates": candidates})


def take_report(scribe: Scribe, tx: Tx, device: Device, body: Mapping[str, Any], wall_s: int) -> HubDrop | None:
    """What a device says of a version or of settings; why it was dropped, if it was."""
    attempt = 0
    if "up" in body:
        said = body["up"]
        number, attempt = divmod(said["r"], TRIES_SPAN)
        row = tx.rollouts.device(number, device.id)
    else:
        said = body["se"]
        row = next((each for each in tx.rollouts.of_device(device.id) if each.order == said["g"]), None)
    rollout = tx.rollouts.get(row.rollout) if row is not None else None
    if row is None or rollout is None or (rollout.kind is RolloutKind.VERSION) is not ("up" in body):
        return HubDrop.UNKNOWN_ROLLOUT
    other = tx.rollouts.wanted(device.id)
    state, version, why = UpdateState(said["s"]), said.get("v", ""), said["w"]
    if other is not None and other.rollout != row.rollout and state in (UpdateState.WAITING, UpdateState.FETCHING):
        return None  # its map has another one by now
    if other is not None and other.rollout != row.rollout and state is UpdateState.TRIAL:
        return None
    if state is not UpdateState.COMMITTED and (not rollout.state.is_open or 0 < attempt < row.tries):
        return None  # it is over, or this was an earlier try
    row.tries = max(row.tries, min(attempt, rollout.plan.tries))
    changed = engine.hear(row, state, version, why, wall_s, tries=rollout.plan.tries, jitter=_jitter(scribe))
    if changed and row.state is Progress.DONE and rollout.kind is RolloutKind.SETTINGS:
        tx.rollouts.save_settings(device.id, merged(tx, rollout.plan, device.id))
    if row.group < 0 and row.state is not Progress.PENDING:
        row.group = rollout.group
    tx.rollouts.save_device(row)
    if changed and row.state in (Progress.RETRY, Progress.FAILED):
        tx.add_job(JobKind.MAP, "", device.id)  # without it: a map with it again is another try
        tx.emit("rollout.device-failed", wall_s, rollout=rollout.id, device=device.id, why=row.why)
        advance(scribe, tx, rollout, wall_s)  # it may be one too many; what went well can wait for the next look
    return None


def _begin(scribe: Scribe, tx: Tx, rollout: Rollout, row: RolloutDevice, wall_s: int) -> None:
    device = tx.device(row.device)
    assert device is not None
    if rollout.kind is RolloutKind.VERSION and device.version == rollout.plan.version:
        engine.begin(row, rollout.group, 0, wall_s)
        row.state, row.due_s, row.version, row.why = Progress.DONE, 0, device.version, "ran it already"
    elif rollout.kind is RolloutKind.VERSION and not target_of(rollout.plan, device):
        abi = device.facts.get(ABI_FACT, "") or "that it does not tell"
        engine.skip(row, f"version {rollout.plan.version} is not published for its ABI, {abi}", wall_s)
    else:
        order = (wall_s << 20) + tx.next_seq() % (1 << 20)  # higher than before, also where a backup was restored
        engine.begin(row, rollout.group, order, wall_s)
        tx.add_job(JobKind.MAP, "", row.device)
    tx.rollouts.save_device(row)


def _look_at_late(scribe: Scribe, tx: Tx, rollout: Rollout, wall_s: int) -> bool:
    """Those that have not been heard of in time."""
    late = tx.rollouts.late(rollout.id, wall_s, BEGIN_MAX)
    for row in late:
        device = tx.device(row.device)
        online = device is not None and device.online
        if engine.overdue(row, wall_s, online=online, tries=rollout.plan.tries, jitter=_jitter(scribe)):
            tx.add_job(JobKind.MAP, "", row.device)
            tx.emit("rollout.device-failed", wall_s, rollout=rollout.id, device=row.device, why=row.why)
        tx.rollouts.save_device(row)
    return len(late) >= BEGIN_MAX


def _handle_moved(tx: Tx, rollout: Rollout, wall_s: int) -> None:
    if rollout.state is RolloutState.PAUSED:
        _stopped(tx, rollout, wall_s, "paused")
    elif rollout.state is RolloutState.DONE:
        _stopped(tx, rollout, wall_s, "done")
    elif rollout.state is RolloutState.AWAITING:
        _tell(tx, rollout, "waiting", wall_s)


def _stopped(tx: Tx, rollout: Rollout, wall_s: int, event: str) -> None:
    tx.rollouts.save(rollout)
    while _take_back(tx, rollout, wall_s):
        pass
    _tell(tx, rollout, event, wall_s)


def _take_back(tx: Tx, rollout: Rollout, wall_s: int) -> bool:
    """Have maps forget it where it has not got far. True: there may be more."""
    more = False
    for state in TAKEN_BACK:
        rows = tx.rollouts.devices(rollout.id, state=state, limit=TAKE_BACK_MAX) if state.is_wanted else []
        for row in rows:
            if engine.take_back(row, wall_s):
                tx.rollouts.save_device(row)
                tx.add_job(JobKind.MAP, "", row.device)
        more = more or len(rows) == TAKE_BACK_MAX
    return more


def _tell(tx: Tx, rollout: Rollout, event: str, wall_s: int) -> None:
    what = rollout.plan.version if rollout.kind is RolloutKind.VERSION else "settings"
    tx.emit(f"rollout.{event}", wall_s, rollout=rollout.id, what=what, why=rollout.why)


def _check_settings(settings: Mapping[str, str]) -> None:
    if not 1 <= len(settings) <= SETTINGS_MAX:
        raise HubError(f"settings: {len(settings)} of them; 1 to {SETTINGS_MAX} expected, as NAME=VALUE")
    for name, value in settings.items():
        if name not in SETTINGS:
            raise HubError(f"setting {name[:40]}: the hub may change {', '.join(SETTINGS)}, and no other")
        if len(value.encode()) > SETTING_BYTES_MAX or not value.isprintable():
            raise HubError(f"setting {name}: printable text of at most {SETTING_BYTES_MAX} bytes expected")


def _jitter(scribe: Scribe) -> float:
    return int.from_bytes(scribe.entropy(4), "big") / 0xFFFF_FFFF
