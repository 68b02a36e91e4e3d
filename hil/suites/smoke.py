"""The essential steps, on any rig: flash, boot, join, ping, power cut, rejoin. The first device is cut."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import permutations

from hil.errors import CommandFailed, NotReached
from hil.report import Report
from hil.rigs.device import Device
from hil.rigs.openrig import OpenRig
from hil.rigs.strategy import AGENT, LOADER, OFF, SHELL

REJOIN_TIMEOUT_S = 900.0

Told = Callable[[str], None]


def test_flash(rig: OpenRig, devices: list[Device], told: Told) -> None:
    told("; ".join(f"{device.name}: {rig.flash(device.name)}" for device in devices))
    assert all(device.strategy.state == OFF for device in devices)


def test_boot_loader(devices: list[Device], told: Told) -> None:
    stopped = [device for device in devices if "UBootDriver" in device.target.drivers]
    for device in stopped:
        device.to(LOADER)
        assert "bootcmd=" in device.loader("printenv bootcmd"), device.name
    told(", ".join(device.name for device in stopped) or "no device has one that can be spoken to")


def test_boot(devices: list[Device], report: Report, told: Told) -> None:
    for device in devices:
        device.to(SHELL)
        if "UBootDriver" not in device.target.drivers:  # which was stopped, and has waited
            report.figure("power-on to shell", time.monotonic() - device.began, "s", device.name)
    told("; ".join(f"{device.name}: Linux {device.console.shell('uname -r').strip()}" for device in devices))


def test_join(rig: OpenRig, devices: list[Device], report: Report, told: Told) -> None:
    # The hub is asked first: asking a slow device all the time would keep it from what it is asked about.
    rig.wait_online([device.name for device in devices])
    for device in devices:
        device.to(AGENT)
    listed = rig.hub.devices()
    boards = {device.name: (listed[device.name].get("facts") or {}).get("board") for device in devices}
    assert boards == {device.name: device.board for device in devices}
    told(", ".join(f"{name} {board}" for name, board in boards.items()))


def test_ping(devices: list[Device], report: Report, told: Told) -> None:
    told(_pings(devices, report, "first"))


def test_power_cut(devices: list[Device], report: Report, told: Told) -> None:
    """Of a running system; it boots by itself, and is reached again by the others, or knows its hub again."""
    lost = devices[0]
    identity = lost.ask("status")["self"]["device"]
    lost.cut()
    assert lost.power.state() in (False, None)
    lost.to(AGENT)
    report.figure("power-on to agent, again", time.monotonic() - lost.began, "s", lost.name)
    assert lost.ask("status")["self"]["device"] == identity
    told(f"{lost.name} is {identity} again")


def test_rejoin(devices: list[Device], report: Report, told: Told) -> None:
    lost, *others = devices
    deadline = time.monotonic() + REJOIN_TIMEOUT_S
    for other in others:
        while True:
            try:
                other.ping(lost.name, 1)
                break
            except CommandFailed:
                if time.monotonic() > deadline:
                    raise NotReached(f"{lost.name}: not reached within {REJOIN_TIMEOUT_S:g} s") from None
    told(_pings(devices, report, "after the power cut"))


def _pings(devices: list[Device], report: Report, when: str) -> str:
    said = []
    for a, b in permutations(devices, 2):
        seconds, path = a.ping(b.name)
        report.figure(f"round trip to {b.name}, {when}", seconds * 1000, "ms", a.name)
        said.append(f"{a.name}→{b.name} {seconds * 1000:.0f} ms {path}")
    return "; ".join(said) or "one device alone has nobody to ping"
