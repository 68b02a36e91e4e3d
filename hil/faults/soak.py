"""The soak suite: what a day brings, in minutes: restarts, new addresses, NATs that forget, new policies, and nothing
that grows: memory, file descriptors, tables, flash writes, bytes of an idle device."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from hil.errors import NotReached
from hil.machines import Machine
from hil.net.link import Fault
from hil.report import Report
from hil.rig import Device, Rig
from hil.smoke import pings, raise_fleet

MINUTES = 10.0
TURN_S = 20.0  # between two events
QUIET_S = 120.0  # at the end, in which nothing is done
RSS_GROWTH_KIB_MAX = 2_048
FDS_GROWTH_MAX = 4
FLASH_WRITES_MAX = 6  # in the quiet time; of a day 20 (docs/hardware.md), most of them soon after events


class Sample(NamedTuple):
    """Of an agent: KiB that are resident, open files, writes to flash since its start, bytes to and from the hub."""

    rss_kib: int
    fds: int
    flash: int
    control_bytes: int


def soak(
    machines: Sequence[Machine], store: Path, out: Path, say: Callable[[str], None], minutes: float = MINUTES
) -> Report:
    """A guest for each of `machines`. The report is in `out` however it ends."""
    report = Report("soak", say)
    try:
        with Rig(out) as rig:
            devices = raise_fleet(report, rig, machines, store, out)
            _events(report, rig, devices, minutes)
            _quiet(report, devices)
    finally:
        report.write(out)
    return report


def sample(device: Device) -> Sample:
    told = device.ask("status")
    agent, mqtt = told["agent"], told["mqtt"]
    fds = int(device.guest.console.shell(f"ls /proc/{agent['pid']}/fd | wc -l"))
    return Sample(device.rss_kb(), fds, agent["flash"]["writes"], mqtt["rx_bytes"] + mqtt["tx_bytes"])


def _events(report: Report, rig: Rig, devices: Sequence[Device], minutes: float) -> None:
    """What happens by turns; memory and descriptors are compared with those after the first round of all."""
    kinds = (_new_policy, _nat_forgets, _cable, _new_address)
    deadline = time.monotonic() + minutes * 60
    before: dict[str, Sample] = {}
    turn = 0
    with report.step(f"{minutes:g} minutes of events") as step:
        while time.monotonic() < deadline or turn < 2 * len(kinds):
            kinds[turn % len(kinds)](rig, devices, turn)
            turn += 1
            time.sleep(TURN_S)
            pings(report, devices, f"turn {turn}")
            if turn == len(kinds):
                before = {device.name: sample(device) for device in devices}
        step["said"] = f"{turn} events"
    with report.step("nothing has grown") as step:
        step["said"] = "; ".join(_compared(report, device, before[device.name]) for device in devices)


def _compared(report: Report, device: Device, before: Sample) -> str:
    after = sample(device)
    report.figure("agent, resident memory, growth", (after.rss_kib - before.rss_kib) / 1024, "MiB", device.name)
    report.figure("agent, open files, growth", after.fds - before.fds, "", device.name)
    if after.rss_kib - before.rss_kib > RSS_GROWTH_KIB_MAX:
        raise NotReached(f"{device.name}: from {before.rss_kib} to {after.rss_kib} KiB resident")
    if after.fds - before.fds > FDS_GROWTH_MAX:
        raise NotReached(f"{device.name}: from {before.fds} to {after.fds} open files")
    return f"{device.name}: {after.rss_kib} KiB ({after.rss_kib - before.rss_kib:+}), {after.fds} files"


def _quiet(report: Report, devices: Sequence[Device]) -> None:
    with report.step(f"{QUIET_S:g} s of nothing") as step:
        before = {device.name: sample(device) for device in devices}
        time.sleep(QUIET_S)
        said = []
        for device in devices:
            old, new = before[device.name], sample(device)
            report.figure("flash writes while idle", new.flash - old.flash, "", device.name)
            report.figure(
                "bytes of the hub's session while idle", new.control_bytes - old.control_bytes, "B", device.name
            )
            if new.flash - old.flash > FLASH_WRITES_MAX:
                raise NotReached(f"{device.name}: {new.flash - old.flash} writes to flash in {QUIET_S:g} s of nothing")
            said.append(f"{device.name}: {new.flash - old.flash} writes, {new.control_bytes - old.control_bytes} bytes")
        step["said"] = "; ".join(said)


def _new_policy(rig: Rig, devices: Sequence[Device], turn: int) -> None:
    accept = [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]
    accept += [{"action": "accept", "src": ["*"], "dst": [f"*:{7000 + turn}"]}]
    path = rig.folder / "policy.json"
    path.write_text(json.dumps({"acls": accept}), encoding="utf-8")
    rig.hub.ask("policy", "set", str(path))


def _nat_forgets(rig: Rig, devices: Sequence[Device], turn: int) -> None:
    rig.switch.do(lambda world: world.rebind(devices[turn % len(devices)].name))


def _cable(rig: Rig, devices: Sequence[Device], turn: int) -> None:
    name = devices[turn % len(devices)].name
    rig.switch.set_fault(name, Fault(down=True))
    time.sleep(3.0)
    rig.switch.set_fault(name, Fault())


def _new_address(rig: Rig, devices: Sequence[Device], turn: int) -> None:
    """The device's interface goes and comes, and it asks for an address anew."""
    devices[turn % len(devices)].guest.console.shell("networkctl down $(ls /sys/class/net | grep -m 1 -E '^(eth|en)')")
    devices[turn % len(devices)].guest.console.shell("networkctl up $(ls /sys/class/net | grep -m 1 -E '^(eth|en)')")
