"""Rollouts in each state that a page has to show, and versions that are published."""

from __future__ import annotations

import tempfile
from pathlib import Path

from edgeagent import crypto as providers
from edgeagent.proto.updatestate import UpdateState
from hub import agentfile, updates, updating
from hub.core import rollout as engine
from hub.core import rollouts
from hub.core.rollout import Event, Plan, Progress, Rollout, RolloutDevice, RolloutKind, read_groups
from hub.core.windows import read as read_windows
from hub.state import State
from hub.store.sql import SqlTx
from tests.hub import agentfiles

ROOT = bytes(range(32))
ABIS = ("aarch64-musl", "armv7hf-glibc", "mipsel-musl")
DAY_S = 86_400


def publish(state: State, wall_s: int) -> None:
    """Three versions; the newest is there for one machine less."""
    with updating.Writing(state) as repository, tempfile.TemporaryDirectory() as directory:
        draft = repository.draft(wall_s - 40 * DAY_S, root_public=providers.load().ed25519_public(ROOT))
        updates.sign_draft(draft, ROOT)
        repository.install(draft, wall_s)
        for age, version, abis in ((30, "0.1.4", ABIS), (9, "0.2.0", ABIS), (1, "0.3.0", ABIS[:2])):
            for abi in abis:
                made = agentfiles.make(Path(directory), version, abi, body="#" * 400_000)
                repository.publish(agentfile.read(made), wall_s - age * DAY_S)


def add_rollouts(tx: SqlTx, state: State, wall_s: int, ids: list[str]) -> None:
    """One that is over, one that was ended, one that paused after its canaries, one that waits, one under way."""
    publish(state, wall_s)
    active = sorted(
        each.id for each in tx.devices(limit=1_000) if each.state.value == "active" and each.v4 and each.id in ids
    )
    over = _make(tx, active, wall_s - 29 * DAY_S, version="0.1.4")
    _all(tx, over, Progress.DONE, len(active), wall_s - 27 * DAY_S)
    over.group = len(over.plan.groups) - 1
    engine.move(over, Event.ALL_DONE, wall_s - 27 * DAY_S, f"{len(active)} done, 0 failed")
    tx.rollouts.save(over)
    ended = _make(tx, active[:9], wall_s - 12 * DAY_S, version="0.1.4", selector="name~lab")
    rollouts.abort(tx, ended, wall_s - 11 * DAY_S, "the lab moves house first")
    paused = _make(tx, active[:20], wall_s - 7_200, version="0.2.0", selector="tag:gateway", groups="2,25%,100%")
    rows = tx.rollouts.devices(paused.id, limit=2)
    for row, said, why in (
        (rows[0], UpdateState.COMMITTED, ""),
        (rows[1], UpdateState.RETURNED, "no handshake with any of 3 peers within 300 s"),
    ):
        engine.begin(row, 0, 0, wall_s - 7_100)
        engine.hear(row, said, "0.2.0", why, wall_s - 5_000, tries=3, jitter=0.5)
        tx.rollouts.save_device(row)
    engine.move(paused, Event.THRESHOLD, wall_s - 5_000, "1 of 2 failed; 10 % pause it")
    tx.rollouts.save(paused)
    plan = Plan(settings={"log-level": "debug", "trial": "600"}, groups=read_groups("1,100%"))
    asked = rollouts.create(
        tx, RolloutKind.SETTINGS, "tag:camera", plan, active[20:26], wall_s - 900, actor="user:grace@example.org"
    )
    rollouts.submit(tx, asked, wall_s - 800)
    running = _make(tx, active[8:], wall_s - 86_000, version="0.3.0", windows="mon-fri 01:00-05:00, sat 22:00-06:00")
    _under_way(tx, running, wall_s)


def _make(
    tx: SqlTx,
    devices: list[str],
    wall_s: int,
    *,
    version: str,
    selector: str = "",
    groups: str = "1,10%,50%,100%",
    windows: str = "",
) -> Rollout:
    plan = Plan(
        version,
        dict.fromkeys(ABIS, "target"),
        groups=read_groups(groups),
        windows=read_windows(windows, "Europe/Berlin"),
    )
    made = rollouts.create(tx, RolloutKind.VERSION, selector, plan, devices, wall_s, actor="user:grace@example.org")
    engine.move(made, Event.SUBMIT, wall_s)
    engine.approve(made, wall_s, "user:ada@example.org")
    tx.rollouts.save(made)
    return made


def _all(tx: SqlTx, rollout: Rollout, state: Progress, count: int, wall_s: int) -> None:
    total = rollout.total
    for number, row in enumerate(tx.rollouts.devices(rollout.id, limit=count)):
        group = next(at for at, each in enumerate(rollout.plan.groups) if number < each.up_to(total))
        engine.begin(row, group, 0, wall_s)
        row.state, row.due_s, row.version = state, 0, rollout.plan.version
        tx.rollouts.save_device(row)


def _under_way(tx: SqlTx, rollout: Rollout, wall_s: int) -> None:
    """In its third group: most of it done, some at each step."""
    half = rollout.plan.groups[2].up_to(rollout.total)
    _all(tx, rollout, Progress.DONE, half - 5, wall_s - 4_000)
    rows: list[RolloutDevice] = tx.rollouts.devices(rollout.id, limit=half)[half - 5 :]
    steps = (
        (UpdateState.WAITING, "no connection by the uplink that it may use"),
        (UpdateState.FETCHING, ""),
        (UpdateState.TRIAL, ""),
        (UpdateState.REFUSED, "400.3 KiB are needed, and 212.0 KiB are free"),
        (UpdateState.FETCHING, ""),
    )
    for at, (row, (said, why)) in enumerate(zip(rows, steps, strict=True)):
        engine.begin(row, 2, 0, wall_s - 900)
        engine.hear(row, said, "0.1.4", why, wall_s - 700 + 100 * at, tries=3, jitter=0.5)
        tx.rollouts.save_device(row)
    rollout.group, rollout.group_s, rollout.since_s = 2, wall_s - 1_000, wall_s - 1_000
    tx.rollouts.save(rollout)
