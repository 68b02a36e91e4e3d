"""The smoke suite: images are made, guests boot, join, reach each other, lose their power and come back.

A guest that is alone has a peer on this machine (`hil.desk`), of which nothing is asked but answers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

from hil import images, journal
from hil.desk import Desk
from hil.errors import CommandFailed, GuestStuck, NotReached
from hil.guests.build import build
from hil.machines import Machine
from hil.report import Report
from hil.rig import Device, Rig

NAMES = ("pump", "camera", "truck", "gate")
# Of the homes' routers: the second and any other get a direct path, the first and third none.
KINDS = ("port", "full", "symmetric", "address")
REJOIN_TIMEOUT_S = 900.0
RSS_MIB_MAX = 40  # what an agent keeps itself below, unless told otherwise


def smoke(
    machines: Sequence[Machine], store: Path, out: Path, say: Callable[[str], None], *, pcap: bool = False
) -> Report:
    """A guest for each of `machines`, at most as many as NAMES. The report is in `out` however it ends."""
    report = Report("smoke", say)
    try:
        with Rig(out, pcap=pcap) as rig:
            devices = raise_fleet(report, rig, machines, store, out)
            _power_cut(report, devices, [*devices, *([rig.desk] if rig.desk else [])])
            taken = [step["seconds"] for step in report.steps if not step["name"].startswith("guest ")]
            report.figure("whole suite, guests being built", sum(taken), "s")
    finally:
        report.write(out)
    return report


def raise_fleet(
    report: Report, rig: Rig, machines: Sequence[Machine], store: Path, out: Path, *, desk: bool = False
) -> list[Device]:
    """A hub, a relay, and a guest for each of `machines` that has joined and reaches the others. With `desk`, or where
    there is one guest, also the rig's own agent."""
    names = NAMES[: len(machines)]
    built, agents = {}, {}
    for machine in dict.fromkeys(machines):
        with report.step(f"guest {machine.name}") as step:
            built[machine.name] = made = build(machine, store)
            step["said"] = f"built: {made.root}" if made.seconds else "kept"
        with report.step(f"package {machine.name}") as step:
            agents[machine.name] = images.package(machine, out / "packages" / machine.name)
            step["said"] = f"{agents[machine.name].name}, {agents[machine.name].stat().st_size} bytes"
    with report.step("hub and relay"):
        rig.hub.start()
        rig.hub.start_relay()
    with report.step("edgeflash batch") as step:
        for machine in dict.fromkeys(machines):
            mine = [name for name, each in zip(names, machines, strict=True) if each is machine]
            tokens = [rig.hub.ask("token", "create") for _ in mine]
            kept, folder = built[machine.name], rig.folder / f"disks-{machine.name}"
            disks = images.batch(machine, kept.root, agents[machine.name], mine, tokens, folder)
            for name in mine:
                rig.guest(name, machine, kept, disks[name], KINDS[names.index(name)])
        step["said"] = f"{len(names)} images, each with a token of its own"
    devices = list(rig.devices.values())
    members: list[Device | Desk] = [*devices]
    if desk or len(devices) == 1:
        with report.step("agent on this machine") as step:
            members.append(rig.add_desk())
            step["said"] = members[-1].name
    with report.step("boot and join") as step:
        for device in devices:
            device.guest.power_on()
        for name, (seconds, processor_s) in rig.wait_online(names).items():
            report.figure("power-on to online, first", seconds, "s", name)
            report.figure("the same, processor time of QEMU", processor_s, "s", name)
        step["said"] = ", ".join(names)
    with report.step("listed with their boards") as step:
        step["said"] = _boards(rig, devices)
    with report.step("console"), ThreadPoolExecutor(len(devices)) as pool:
        list(pool.map(lambda device: device.guest.login(), devices))
    with report.step("pings through the mesh") as step:
        step["said"] = pings(report, members, "first")
    for device in devices:
        report.figure("agent, resident memory", device.rss_kb() / 1024, "MiB", device.name, limit=RSS_MIB_MAX)
    return devices


def _power_cut(report: Report, devices: Sequence[Device], members: Sequence[Device | Desk]) -> None:
    lost = devices[-1]
    with report.step("power cut and rejoin") as step:
        lost.guest.power_off()
        time.sleep(1.0)
        lost.guest.power_on()
        step["said"] = _returned(report, next(each for each in members if each is not lost), lost)
    with report.step("console again"):
        lost.guest.login()
    with report.step("pings again") as step:
        step["said"] = pings(report, members, "after the power cut")
    for device in devices:
        report.figure("agent, resident memory, again", device.rss_kb() / 1024, "MiB", device.name, limit=RSS_MIB_MAX)


def _boards(rig: Rig, devices: Sequence[Device]) -> str:
    """Each device's board as the hub lists it. Raises NotReached where it is another."""
    listed = rig.hub.devices()
    for device in devices:
        told = listed[device.name].get("facts", {}).get("board")
        if told != device.guest.machine.board:
            raise NotReached(f"{device.name}: the hub lists board {told!r}, not {device.guest.machine.board!r}")
    return ", ".join(f"{device.name} {device.guest.machine.board}" for device in devices)


def pings(report: Report, members: Sequence[Device | Desk], when: str) -> str:
    """Each reaches each other; returns how fast, by which paths. All ask at once, one after the other each."""

    def asked_by(a: Device | Desk) -> list[tuple[str, str, float, str]]:
        return [(a.name, b.name, *a.ping(b.name)) for b in members if b is not a]

    said = []
    with ThreadPoolExecutor(len(members)) as pool:
        for a, b, seconds, path in chain.from_iterable(pool.map(asked_by, members)):
            report.figure(f"round trip to {b}, {when}", seconds * 1000, "ms", a)
            said.append(f"{a}→{b} {seconds * 1000:.0f} ms {path}")
    return "; ".join(said)


def _returned(report: Report, other: Device | Desk, lost: Device) -> str:
    """Until another reaches `lost` again: the hub may list it online still from before."""
    deadline = time.monotonic() + REJOIN_TIMEOUT_S
    hangs = lost.guest.hangs()
    while True:
        try:
            seconds, path = other.ping(lost.name, 1)
        except CommandFailed:
            if time.monotonic() > deadline:
                raise NotReached(f"{lost.name}: not reached within {REJOIN_TIMEOUT_S:g} s") from None
            if why := hangs():
                raise GuestStuck(f"{lost.name}: {why}; it said last:\n{lost.guest.console.tail()}") from None
            continue
        journal.note(lost.name, "reached again", journal.Kind.GOOD)
        took = time.monotonic() - lost.guest.began
        report.figure("power-on to reached, again", took, "s", lost.name)
        report.figure("the same, processor time of QEMU", lost.guest.processor_s(), "s", lost.name)
        return (
            f"{other.name} reaches {lost.name} {took:.0f} s after the power came back, {seconds * 1000:.0f} ms {path}"
        )
