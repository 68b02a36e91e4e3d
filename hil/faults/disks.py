"""The disks suite: a disk that is full, and one that fails under a running agent: it goes on, says so, and recovers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hil import images
from hil.errors import NotReached
from hil.machines import Machine
from hil.programs import until
from hil.report import Report
from hil.rig import Device, Rig
from hil.rollouts import GOOD, begin, variant, wait_for_state
from hil.smoke import pings, raise_fleet

FLUSHES = 2_000  # that the failing disk takes before it refuses writes; a boot and a join take some hundreds
FLUSH_TIMEOUT_S = 600.0
FULL_TIMEOUT_S = 600.0
RESTART_TIMEOUT_S = 120.0
POLL_S = 2.0
FILL = "/var/fill"
NO_ROOM = ("more are needed", "No space left")  # for the program; for the first file of all
EIO = 5


def disks(machines: Sequence[Machine], store: Path, out: Path, say: Callable[[str], None]) -> Report:
    """A guest for each of `machines`; the first one's disk fails. The report is in `out` however it ends."""
    report = Report("disks", say)
    try:
        with Rig(out) as rig:
            devices = raise_fleet(report, rig, machines, store, out)
            _full(report, rig, devices, out)
            _failing(report, rig, devices)
    finally:
        report.write(out)
    return report


def failing(image: Path, flushes: int) -> list[str]:
    """QEMU's options for the drive `root` on a raw image that, after so many flushes, answers each write with EIO."""
    states = [{"event": "flush_to_disk", "state": number, "new_state": number + 1} for number in range(1, flushes + 1)]
    refused = {"event": "write_aio", "state": flushes + 1, "iotype": "write", "errno": EIO, "once": False}
    node: dict[str, Any] = {"driver": "raw", "node-name": "root"}
    node["file"] = {
        "driver": "blkdebug",
        "image": {"driver": "file", "filename": str(image)},
        "set-state": states,
        "inject-error": [refused],
    }
    return ["-blockdev", json.dumps(node)]


def _full(report: Report, rig: Rig, devices: Sequence[Device], out: Path) -> None:
    one = devices[0]
    with report.step("a disk is filled") as step:
        one.guest.console.shell(f"fallocate -l 4G {FILL} || true; cat /dev/zero > {FILL}.2 || true; sync", 300.0)
        left = one.guest.console.shell("df -k --output=avail /var | tail -n 1").strip()
        step["said"] = f"{left} KiB left"
    with report.step("power comes back with it full") as step:
        one.guest.power_off()
        one.guest.power_on()
        one.guest.login()
        one.wait_connected()
        step["said"] = pings(report, devices, "with a full disk")
    with report.step("an update finds no room") as step:
        rig.hub.ask("update", "init", "--root-key", str(rig.folder / "root.key"))
        for machine in dict.fromkeys(device.guest.machine for device in devices):
            made = images.zipapp(machine, out / "versions" / machine.name)
            rig.hub.ask("update", "publish", str(variant(made, images.abi(machine), GOOD, False)))
        number = begin(rig, GOOD)
        step["said"] = until(
            lambda: _says_why(rig, number, one.name),
            FULL_TIMEOUT_S,
            lambda: NotReached(f"{one.name} does not say that it has no room: {_listed(rig, number)}"),
            POLL_S,
        )
    with report.step("room is made") as step:
        # By itself it looks again after ten to twenty minutes; an agent that starts looks at once.
        one.guest.console.shell(f"rm -f {FILL} {FILL}.2; sync; systemctl restart edgeagent", RESTART_TIMEOUT_S)
        shown = wait_for_state(rig, number, ("done",))
        step["said"] = f"rollout {number} is {shown['state']}"
    with report.step("pings by the new version") as step:
        step["said"] = pings(report, devices, f"with {GOOD}")


def _failing(report: Report, rig: Rig, devices: Sequence[Device]) -> None:
    one = devices[0]
    with report.step("a disk begins to refuse writes") as step:
        one.guest.power_off()
        one.guest.power_on(disk=failing(one.guest.boot.root, FLUSHES))
        one.guest.login()
        one.wait_connected()
        # Each turn writes and waits for the disk, until it does not take any more.
        count = one.guest.console.shell(
            f"n=0; while [ $n -lt {FLUSHES} ] && echo $n > /var/probe 2>/dev/null && sync /var/probe 2>/dev/null; "
            "do n=$((n+1)); done; echo $n",
            FLUSH_TIMEOUT_S,
        )
        # What is written stays in memory; it is the wait for the disk that fails.
        probe = "/var/lib/edgeagent/probe"
        said = one.guest.console.shell(f"{{ echo more > {probe} && sync {probe}; }} || echo refused", 60.0).strip()
        if "refused" not in said:
            raise NotReached(f"after {count.strip()} more writes the disk still takes them: {said!r}")
        step["said"] = f"after {count.strip()} more: {said.splitlines()[0]}"
    with report.step("the mesh goes on") as step:
        step["said"] = pings(report, devices, "while the disk refuses writes")
    with report.step("the hub changes something") as step:
        rig.hub.ask("devices", "tag", one.name, "tag:broken")
        began = time.monotonic()
        until(
            lambda: "tag:broken" in one.ask("status")["self"]["tags"],
            FULL_TIMEOUT_S,
            lambda: NotReached(f"{one.name} does not take its new map"),
            POLL_S,
        )
        agent = one.ask("status")["agent"]
        step["said"] = f"taken after {time.monotonic() - began:.0f} s, {agent['failed_writes']} writes refused"
    with report.step("the power is cut, and the disk is well again") as step:
        one.guest.power_off()
        one.guest.power_on()
        one.guest.login()
        one.wait_connected()
        step["said"] = pings(report, devices, "with the disk well again")


def _listed(rig: Rig, number: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(rig.hub.ask("rollout", "devices", str(number), "--json"))
    return found


def _says_why(rig: Rig, number: int, name: str) -> str:
    for each in _listed(rig, number):
        if each["name"] == name and any(text in str(each["why"]) for text in NO_ROOM):
            return str(each["why"])
    return ""
