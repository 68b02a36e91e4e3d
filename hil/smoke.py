"""The smoke suite: images are made, guests boot, join, reach each other, lose their power and come back.

An agent on this machine (`hil.desk`) is a peer of all, the only one of a guest that is alone, and sees them come back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path

from hil import images, journal
from hil.desk import Desk
from hil.errors import CommandFailed, GuestStuck, NotReached
from hil.guests.build import build
from hil.machines import Machine
from hil.programs import until
from hil.report import Report
from hil.rig import Device, Rig

NAMES = ("pump", "camera", "truck", "gate")
# Of the homes' routers: the second and any other get a direct path, the first and third none.
KINDS = ("port", "full", "symmetric", "address")
REACH_TIMEOUT_S = 120.0
REJOIN_TIMEOUT_S = 900.0
NAMES_TIMEOUT_S = 120.0
DOCTOR_TIMEOUT_S = 300.0  # it tries the C library in a process of its own, on mipsel, too
ASK_TIMEOUT_S = 120.0
POLL_S = 1.0
RSS_MIB_MAX = 40  # what an agent keeps itself below, unless told otherwise


def smoke(
    machines: Sequence[Machine], store: Path, out: Path, say: Callable[[str], None], *, pcap: bool = False
) -> Report:
    """A guest for each of `machines`, at most as many as NAMES. The report is in `out` however it ends."""
    report = Report("smoke", say)
    try:
        with Rig(out, pcap=pcap) as rig:
            devices = raise_fleet(report, rig, machines, store, out, desk=True)
            assert rig.desk is not None
            with report.step("names") as step:
                step["said"] = _names(devices, [*devices, rig.desk])
            with report.step("edgeagent doctor") as step:
                for device in devices:
                    _doctor(device)
                step["said"] = ", ".join(device.name for device in devices)
            _power_cut(report, devices, rig.desk)
            taken = [step["seconds"] for step in report.steps if not step["name"].startswith("guest ")]
            report.figure("whole suite, guests being built", sum(taken), "s")
    finally:
        report.write(out)
    return report


def raise_fleet(
    report: Report, rig: Rig, machines: Sequence[Machine], store: Path, out: Path, *, desk: bool = False
) -> list[Device]:
    """A hub, a relay, and a guest for each of `machines` that has joined and reaches the others; with `desk` also the
    rig's own agent."""
    names = NAMES[: len(machines)]
    built, agents = {}, {}
    with ThreadPoolExecutor(1) as pool:
        outside = pool.submit(_outside, rig, desk)
        for machine in dict.fromkeys(machines):
            with report.step(f"package {machine.name}") as step:
                agents[machine.name] = images.package(machine, out / "packages" / machine.name)
                step["said"] = f"{agents[machine.name].name}, {agents[machine.name].stat().st_size} bytes"
            with report.step(f"guest {machine.name}") as step:
                built[machine.name] = made = build(machine, store)
                step["said"] = f"built: {made.root}" if made.seconds else "kept"
        with report.step("hub, relay and agent here" if desk else "hub and relay") as step:
            step["said"] = f"ready after {outside.result():.1f} s"
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
    members: list[Device | Desk] = [*devices, *([rig.desk] if rig.desk else [])]
    with report.step("boot and join") as step:
        for device in devices:
            device.guest.power_on()
        for name, (seconds, processor_s) in rig.wait_online(names).items():
            report.figure("power-on to online, first", seconds, "s", name)
            report.figure("power-on to online, first: processor time of QEMU", processor_s, "s", name)
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


def _outside(rig: Rig, desk: bool) -> float:
    """What is outside of the homes, beside the packing of agents; returns the seconds that it took."""
    began = time.monotonic()
    rig.hub.start()
    rig.hub.start_relay()
    if desk:
        rig.add_desk()
    return time.monotonic() - began


def _power_cut(report: Report, devices: Sequence[Device], desk: Desk) -> None:
    """Of all at once, as when a mast loses it."""
    with report.step("power cut and rejoin") as step, ThreadPoolExecutor(len(devices)) as pool:
        for device in devices:
            device.guest.power_off()
        time.sleep(1.0)
        for device in devices:
            device.guest.power_on()
        step["said"] = "; ".join(pool.map(lambda device: _returned(report, desk, device), devices))
    with report.step("console again"), ThreadPoolExecutor(len(devices)) as pool:
        list(pool.map(lambda device: device.guest.login(), devices))
    with report.step("pings again") as step:
        step["said"] = pings(report, [*devices, desk], "after the power cut")
    for device in devices:
        report.figure("agent, resident memory, again", device.rss_kb() / 1024, "MiB", device.name, limit=RSS_MIB_MAX)


def _names(devices: Sequence[Device], members: Sequence[Device | Desk]) -> str:
    """Programs of each guest know the others by name, without a domain. Raises NotReached."""
    for device in devices:
        others = [other.name for other in members if other is not device]
        why = f"{device.name}: its resolver does not know all of {', '.join(others)}"
        until(partial(_knows, device, others), NAMES_TIMEOUT_S, partial(NotReached, why), POLL_S)
    return f"each knows {', '.join(member.name for member in members)}"


def _knows(device: Device, names: Sequence[str]) -> bool:
    asked = " && ".join(f"getent hosts {name}" for name in names)
    return "unknown" not in device.guest.console.shell(f"{{ {asked}; }} || echo unknown", ASK_TIMEOUT_S)


def _doctor(device: Device) -> None:
    """It finds no failure. On a busy machine an agent may not answer it in time, so it may try again. CommandFailed."""
    deadline = time.monotonic() + DOCTOR_TIMEOUT_S
    while True:
        try:
            device.ask("doctor", timeout_s=DOCTOR_TIMEOUT_S)
        except CommandFailed:
            if time.monotonic() > deadline:
                raise
        else:
            return


def _boards(rig: Rig, devices: Sequence[Device]) -> str:
    """Each device's board as the hub lists it. Raises NotReached where it is another."""
    listed = rig.hub.devices()
    for device in devices:
        told = listed[device.name].get("facts", {}).get("board")
        if told != device.guest.machine.board:
            raise NotReached(f"{device.name}: the hub lists board {told!r}, not {device.guest.machine.board!r}")
    return ", ".join(f"{device.name} {device.guest.machine.board}" for device in devices)


def pings(report: Report, members: Sequence[Device | Desk], when: str) -> str:
    """Each reaches each other; returns how fast, by which paths. All ask at once, one after the other each. Raises
    NotReached."""

    def asked_by(a: Device | Desk) -> list[tuple[str, str, float, str]]:
        return [(a.name, b.name, *_asked(a, b.name)) for b in members if b is not a]

    said = []
    with ThreadPoolExecutor(len(members)) as pool:
        for a, b, seconds, path in chain.from_iterable(pool.map(asked_by, members)):
            report.figure(f"round trip to {b}, {when}", seconds * 1000, "ms", a)
            said.append(f"{a}→{b} {seconds * 1000:.0f} ms {path}")
    return "; ".join(said)


def _asked(member: Device | Desk, name: str) -> tuple[float, str]:
    """On a busy machine a guest's first handshakes take longer than a ping waits."""
    deadline = time.monotonic() + REACH_TIMEOUT_S
    while True:
        try:
            return member.ping(name)
        except CommandFailed as error:
            if time.monotonic() > deadline:
                raise NotReached(f"not within {REACH_TIMEOUT_S:g} s: {error}") from None


def _returned(report: Report, desk: Desk, lost: Device) -> str:
    """Until the agent here reaches `lost` again: the hub may list it online still from before."""
    deadline = time.monotonic() + REJOIN_TIMEOUT_S
    hangs = lost.guest.hangs()
    while True:
        try:
            seconds, path = desk.ping(lost.name, 1, wait_s=1.0)
        except CommandFailed:
            if time.monotonic() > deadline:
                raise NotReached(f"{lost.name}: not reached within {REJOIN_TIMEOUT_S:g} s") from None
            if why := hangs():
                raise GuestStuck(f"{lost.name}: {why}; it said last:\n{lost.guest.console.tail()}") from None
            continue
        journal.note(lost.name, "reached again", journal.Kind.GOOD)
        took = time.monotonic() - lost.guest.began
        report.figure("power-on to reached, again", took, "s", lost.name)
        report.figure("power-on to reached, again: processor time of QEMU", lost.guest.processor_s(), "s", lost.name)
        return f"{lost.name} is reached {took:.0f} s after the power came back, {seconds * 1000:.0f} ms {path}"
