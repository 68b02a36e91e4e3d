"""The power-cut suite: what a device writes while it joins and while it is updated is recorded, and the power is cut
behind every single write of it; then at random moments, for real.

Each cut gives a disk, which is looked at as the device would: journal replayed, state files and slots read by the
image's own agent. What was on the disk for sure must be there, old or new, never none, and what would start is whole.
"""

from __future__ import annotations

import filecmp
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from hil import images
from hil.errors import CommandFailed, NotReached
from hil.faults import disk
from hil.faults.disk import Found, NotUndone
from hil.faults.rule import Rule
from hil.faults.writelog import Cut, Disk, WriteLog, cuts, recording
from hil.guests.build import build
from hil.machines import Machine
from hil.programs import until
from hil.qmp import Qmp
from hil.report import Report
from hil.rig import Device, Rig
from hil.rollouts import GOOD, begin, variant, wait_for_state

NAME = "pump"
SEED = 20_261
CUTS_MAX = 6_000  # that are looked at; of more, as many at even distances
BATCH = 24  # that one interpreter looks at
BOOTS = 4  # of the disks that cuts gave, by QEMU
LIVE_CUTS = 5  # at random moments of an update, one after the other on the same disk
LIVE_CUT_WITHIN_S = 40.0
VERSION_TIMEOUT_S = 120.0


def powercut(machine: Machine, store: Path, out: Path, say: Callable[[str], None]) -> Report:
    """One guest. The report is in `out` however it ends."""
    report = Report("powercut", say)
    try:
        with Rig(out) as rig:
            _suite(report, rig, machine, store, out)
    finally:
        report.write(out)
    return report


def _suite(report: Report, rig: Rig, machine: Machine, store: Path, out: Path) -> None:
    with report.step(f"guest {machine.name}") as step:
        built = build(machine, store)
        agent = images.package(machine, out / "packages")
        step["said"] = agent.name
    with report.step("hub, relay, image"):
        rig.hub.start()
        rig.hub.start_relay()
        token = rig.hub.ask("token", "create")
        image = images.batch(machine, built.root, agent, [NAME], [token], rig.folder / "disks")[NAME]
        device = rig.guest(NAME, machine, built, image)
        factory = _factory(image, rig.folder / "factory")
    with report.step("a join, recorded") as step:
        before = Path(shutil.copyfile(image, rig.folder / "before-join.img"))
        log = _recorded(device, rig.folder / "join.writes", lambda: _join(rig))
        step["said"] = f"{len(log.writes)} writes"
    with report.step("power cut at each write of it") as step:
        step["said"] = _look_at_all(report, "join", before, log, factory, rig.folder, {""})
    with report.step("an update, recorded") as step:
        _publish(rig, machine, out)
        before = Path(shutil.copyfile(image, rig.folder / "before-update.img"))
        log = _recorded(device, rig.folder / "update.writes", lambda: _update(rig))
        step["said"] = f"{len(log.writes)} writes"
    with report.step("power cut at each write of it") as step:
        step["said"] = _look_at_all(report, "update", before, log, factory, rig.folder, {"", GOOD})
    with report.step("some of these disks boot") as step:
        step["said"] = _boot_some(report, device, before, log)
    with report.step("power cuts at random moments") as step:
        step["said"] = _live(report, device)


def _recorded(device: Device, path: Path, until_done: Callable[[], None]) -> WriteLog:
    """All that is written from power-on until QEMU is told to end, which is a power cut to the guest."""
    device.guest.power_on(disk=recording(device.guest.boot.root, path))
    until_done()
    session = Qmp(device.name, device.guest.folder / "qmp.sock")
    session.ask("quit")
    session.close()
    device.guest.wait_off(30.0)
    device.guest.power_off()
    return WriteLog(path)


def _publish(rig: Rig, machine: Machine, out: Path) -> None:
    rig.hub.ask("update", "init", "--root-key", str(rig.folder / "root.key"))
    made = images.zipapp(machine, out / "versions")
    rig.hub.ask("update", "publish", str(variant(made, images.abi(machine), GOOD, False)))


def _join(rig: Rig) -> None:
    rig.wait_online([NAME])


def _update(rig: Rig) -> None:
    shown = wait_for_state(rig, begin(rig, GOOD), ("done", "paused"))
    if shown["state"] != "done":
        raise NotReached(f"the rollout of {GOOD} is {shown['state']}: {shown.get('why')}")


def _look_at_all(
    report: Report, what: str, image: Path, log: WriteLog, factory: Path, folder: Path, versions: set[str]
) -> str:
    """Cut at each write; returns what was found, and raises NotReached with the first cuts that lost something."""
    began = time.process_time()
    made = cuts(log.writes, SEED)
    chosen = choose(made)
    rule = Rule(versions)
    seen: dict[str, int] = {}
    for cut, found in _found(image, log, chosen, factory, folder):
        rule.judge(cut, found)
        would = found.version or "factory"
        seen[would] = seen.get(would, 0) + 1
    report.figure(f"power cuts looked at, {what}", len(chosen), "")
    report.figure(f"the same, processor time here, {what}", time.process_time() - began, "s")
    if rule.faults:
        raise NotReached(f"{len(rule.faults)} of {len(chosen)} cuts lost something; the first:\n" + rule.faults[0])
    would = ", ".join(f"{name} {count}" for name, count in sorted(seen.items()))
    return f"{len(chosen)} of {len(made)} moments, nothing lost; what would start: {would}"


def choose(made: Sequence[Cut], most: int = CUTS_MAX) -> list[Cut]:
    """All, or about `most` at even distances beside those that say what is on the disk for sure: without these the rule
    would not know what may not be missing."""
    step = -(-len(made) // most)
    return [cut for index, cut in enumerate(made) if not cut.some or index % step == 0]


def _found(
    image: Path, log: WriteLog, chosen: Sequence[Cut], factory: Path, folder: Path
) -> Iterator[tuple[Cut, Found]]:
    work, undo = folder / "work.img", folder / "undo"
    shutil.copyfile(image, work)
    made = Disk(work, log)
    for at in range(0, len(chosen), BATCH):
        batch = chosen[at : at + BATCH]
        states = []
        for number, cut in enumerate(batch):
            made.make(cut)
            to = folder / "states" / str(number)
            try:
                states.append(disk.mounted(work, to, undo))
            except NotUndone:  # the state has been read; the image is made anew
                states.append(to / Path(disk.STATE).name)
                shutil.copyfile(image, work)
                made = Disk(work, log)
        yield from zip(batch, disk.look(factory, states), strict=True)
    made.make(Cut(len(log.writes), ()))
    again = Path(shutil.copyfile(image, folder / "again.img"))
    Disk(again, log).make(Cut(len(log.writes), ()))
    if not filecmp.cmp(work, again, shallow=False):
        raise CommandFailed("a replay of the journal was not taken back whole: what was looked at is not to be trusted")
    again.unlink()


def _boot_some(report: Report, device: Device, image: Path, log: WriteLog) -> str:
    """Disks that cuts gave, in the same guest: each comes online, by the old or the new version."""
    made = cuts(log.writes, SEED)
    said = []
    changed = Disk(image, log)
    for index in sorted(random.Random(SEED).sample(range(len(made)), min(BOOTS, len(made)))):
        changed.make(made[index])
        shutil.copyfile(image, device.guest.boot.root)
        said.append(f"{_boots(device)} after {made[index]}")
    report.figure("disks after a power cut that booted and came online", len(said), "")
    return "; ".join(said)


def _live(report: Report, device: Device) -> str:
    """SIGKILL to QEMU at random moments of a boot, each on the disk of the one before; then it comes online."""
    chance = random.Random(SEED)
    for _ in range(LIVE_CUTS):
        device.guest.power_on()
        time.sleep(chance.uniform(0.0, LIVE_CUT_WITHIN_S))
        device.guest.power_off()
    version = _boots(device)
    report.figure("power cuts at random moments, one after the other", LIVE_CUTS, "")
    return f"{version} online after {LIVE_CUTS}"


def _boots(device: Device) -> str:
    """The version that comes online."""
    device.guest.power_on()
    try:
        device.guest.login()
        device.wait_connected()
        # It may be about to start again as the version that the hub wants.
        late = NotReached(f"{device.name}: no agent says its version")
        return str(until(lambda: device.ask("version")["agent"], VERSION_TIMEOUT_S, lambda: late, 1.0))
    finally:
        device.guest.power_off()


def _factory(image: Path, to: Path) -> Path:
    """The agent that came with the image: a zipapp, from which Python imports."""
    to.mkdir(parents=True)
    disk.debugfs(image, f"rdump {disk.FACTORY} {to}")
    found = to / Path(disk.FACTORY).name / "edgeagent.pyz"
    if not found.is_file():
        raise CommandFailed(f"the image has no agent in {disk.FACTORY}")
    return found
