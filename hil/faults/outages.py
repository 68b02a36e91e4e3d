"""The outages suite: servers that die, cables that fail, clocks that lie, a card that was copied; the mesh comes back.

What runs goes on while the hub, its broker and the relay are away, and each part is found again when it returns.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hil.errors import CommandFailed, NotReached
from hil.guests.build import build
from hil.machines import Machine
from hil.net.link import Fault
from hil.programs import until
from hil.report import Report
from hil.rig import Device, Rig
from hil.smoke import pings, raise_fleet

# The first is an hour on: Linux takes no time that would put the boot before 1970.
CLOCKS = ("1970-01-01T01:00:00", "2016-11-26T00:00:00", "2036-11-26T00:00:00")
FLAPS = 20
FLAP_S = 0.5
HOLE_S = 30.0
BACK_TIMEOUT_S = 300.0  # on a busy machine
CLONE_TIMEOUT_S = 60.0  # from when both are connected
POLL_S = 1.0
RESTART_TIMEOUT_S = 120.0


def outages(machines: Sequence[Machine], store: Path, out: Path, say: Callable[[str], None]) -> Report:
    """A guest for each of `machines`, and one more of the first for the copied card. The report is in `out` however
    it ends."""
    report = Report("outages", say)
    try:
        with Rig(out) as rig:
            devices = raise_fleet(report, rig, machines, store, out)
            _servers(report, rig, devices)
            _cables(report, rig, devices)
            _clocks(report, devices)
            _copied_card(report, rig, devices, build(machines[0], store))
    finally:
        report.write(out)
    return report


def _servers(report: Report, rig: Rig, devices: Sequence[Device]) -> None:
    with report.step("the broker is killed") as step:
        os.kill(int(rig.hub.status()["process"]["broker_pid"]), signal.SIGKILL)
        step["said"] = _goes_on_and_returns(report, devices, "the broker")
    with report.step("the hub is killed") as step:
        rig.hub.kill()
        step["said"] = "without it: " + pings(report, devices, "while the hub was away")
        rig.hub.serve()
        step["said"] += "; " + _goes_on_and_returns(report, devices, "the hub")
    with report.step("the relay is killed") as step:
        rig.hub.kill_relay()
        began = time.monotonic()
        rig.hub.serve_relay()
        step["said"] = _until_all_reach(report, devices, began, "the relay was started again")


def _cables(report: Report, rig: Rig, devices: Sequence[Device]) -> None:
    one = devices[0]
    with report.step("a cable flaps") as step:
        for _ in range(FLAPS):
            rig.switch.set_fault(one.name, Fault(down=True))
            time.sleep(FLAP_S)
            rig.switch.set_fault(one.name, Fault())
            time.sleep(FLAP_S)
        step["said"] = f"{FLAPS} times; " + _until_all_reach(report, devices, time.monotonic(), "the last flap")
    with report.step("a black hole") as step:
        rig.switch.set_fault(one.name, Fault(down=True))
        time.sleep(HOLE_S)
        rig.switch.set_fault(one.name, Fault())
        step["said"] = f"{HOLE_S:g} s; " + _until_all_reach(report, devices, time.monotonic(), "the black hole")
    with report.step("a lossy, slow, reordering cable") as step:
        rig.switch.set_fault(one.name, Fault(delay_s=0.15, jitter_s=0.05, loss=0.1, copies=0.02))
        step["said"] = _until_all_reach(report, devices, time.monotonic(), "the cable got bad")
        rig.switch.set_fault(one.name, Fault())
    with report.step("a modem is pulled and put back") as step:
        driver = "/sys/bus/virtio/drivers/virtio_net"
        found = one.guest.console.shell(f"ls {driver} | grep ^virtio").split()
        one.guest.console.shell(f"echo {found[0]} > {driver}/unbind")
        links = one.guest.console.shell("ip -br link")
        if one.guest.console.shell(f"ls {driver} | grep -c ^virtio || true").strip() != str(len(found) - 1):
            raise CommandFailed(f"{one.name}: the interface is still there: {links}")
        time.sleep(5.0)
        one.guest.console.shell(f"echo {found[0]} > {driver}/bind")
        step["said"] = _until_all_reach(report, devices, time.monotonic(), "the modem was put back")


def _clocks(report: Report, devices: Sequence[Device]) -> None:
    one = devices[0]
    for clock in CLOCKS:
        with report.step(f"a clock of {clock[:4]}") as step:
            one.guest.power_off()
            one.guest.power_on(clock=clock)
            one.guest.login()
            # systemd has put a clock right that is older than itself: the agent is to see what a board without it shows
            one.guest.console.shell(f"date -u -s {clock} && systemctl restart edgeagent", RESTART_TIMEOUT_S)
            told = one.guest.console.shell("date -u +%Y").strip()
            one.wait_connected()
            step["said"] = f"the guest says {told}; " + _until_all_reach(
                report, devices, one.guest.began, f"power-on with a clock of {clock[:4]}"
            )
    one.guest.power_off()
    one.guest.power_on()
    one.guest.login()
    one.wait_connected()


def _copied_card(report: Report, rig: Rig, devices: Sequence[Device], built: Any) -> None:
    one = devices[0]
    with report.step("a copied card") as step:
        one.guest.power_off()
        copy = Path(shutil.copyfile(one.guest.boot.root, rig.folder / "copied.img"))
        twin = rig.guest("twin", one.guest.machine, built, copy, "full")
        for each in (one, twin):
            each.guest.power_on()
        for each in (one, twin):
            each.guest.login()
        began = time.monotonic()
        until(
            lambda: rig.hub.devices()[one.name].get("cloned"),
            CLONE_TIMEOUT_S,
            lambda: NotReached(f"two boards run as {one.name}, and the hub did not see it in {CLONE_TIMEOUT_S:g} s"),
            POLL_S,
        )
        took = time.monotonic() - began
        report.figure("two boards under one identity, until named", took, "s")
        step["said"] = f"named as {one.name} {took:.0f} s after both were up"
        twin.guest.power_off()


def _goes_on_and_returns(report: Report, devices: Sequence[Device], what: str) -> str:
    began = time.monotonic()
    said = pings(report, devices, f"after {what} was killed")
    for device in devices:
        device.wait_connected()
    took = time.monotonic() - began
    report.figure(f"{what} killed, until all were connected again", took, "s")
    return f"{said}; all connected {took:.0f} s later"


def _until_all_reach(report: Report, devices: Sequence[Device], began: float, since: str) -> str:
    deadline = time.monotonic() + BACK_TIMEOUT_S
    while True:
        try:
            said = pings(report, devices, f"since {since}")
        except CommandFailed as error:
            if time.monotonic() > deadline:
                raise NotReached(f"not all reach each other {BACK_TIMEOUT_S:g} s after {since}: {error}") from None
            continue
        took = time.monotonic() - began
        report.figure(f"all reach each other, since {since}", took, "s")
        return f"{said}; {took:.0f} s after {since}"
