"""The soak suite: what a day brings, in minutes: restarts of routers, new addresses, cables, new policies, and nothing
that grows: memory, file descriptors, flash writes, bytes of a device at rest."""

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
SETTLE_S = 60.0  # after the last, in which paths fall asleep and what was learnt is saved
QUIET_S = 300.0  # at the end, in which nothing is done
ADDRESS_S = 30.0  # until there is another one
RSS_GROWTH_MIB_MAX = 2.0
FDS_GROWTH_MAX = 4
FLASH_WRITES_MAX = 2  # in the quiet time; of a day 20 (docs/hardware.md), most of them soon after events
IDLE_BYTES_MAX = 8_000  # of all causes in the quiet time: soon after events the NAT's time-out is still being learnt
_CARD = "$(ls /sys/class/net | grep -m 1 -E '^(eth|en)')"
_ADDRESSES = f"ip -4 -o address show dev {_CARD} scope global | awk '{{print $4}}'"


class Sample(NamedTuple):
    """Of an agent: what is resident, open files, writes to flash since its start, bytes by cause."""

    rss_mib: float
    fds: int
    flash: int
    carried: dict[str, int]

    @property
    def bytes(self) -> int:
        return sum(self.carried.values())


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


def sample(report: Report, device: Device) -> Sample:
    agent = device.ask("status")["agent"]
    fds = int(device.guest.console.shell(f"ls /proc/{agent['pid']}/fd | wc -l"))
    carried: dict[str, int] = {}
    for uplink in device.ask("ledger")["uplinks"]:
        for line in uplink["causes"]:
            counts = line["since_start"]
            carried[line["cause"]] = carried.get(line["cause"], 0) + counts["sent"] + counts["received"]
    found = Sample(device.rss_kb() / 1024, fds, agent["flash"]["writes"], carried)
    report.sample("agent, resident memory", found.rss_mib, "MiB", device.name)
    report.sample("agent, open files", found.fds, "", device.name)
    report.sample("agent, writes to flash", found.flash, "", device.name)
    return found


def _events(report: Report, rig: Rig, devices: Sequence[Device], minutes: float) -> None:
    """What happens by turns; memory and descriptors are compared with those after the first round of all."""
    deadline = time.monotonic() + minutes * 60
    before: dict[str, Sample] = {}
    after: dict[str, Sample] = {}
    turn = 0
    while time.monotonic() < deadline or turn < 2 * len(EVENTS):
        name, happen = EVENTS[turn % len(EVENTS)]
        device = devices[turn // len(EVENTS) % len(devices)]
        turn += 1
        with report.step(f"{turn}: {name}") as step:
            happen(rig, device, turn)
            time.sleep(TURN_S)
            step["said"] = f"{device.name}; then {pings(report, devices, 'after events')}"
            after = {each.name: sample(report, each) for each in devices}
        if turn == len(EVENTS):
            before = after
    with report.step("nothing has grown") as step:
        step["said"] = "; ".join(_compared(report, name, before[name], after[name]) for name in after)


def _compared(report: Report, name: str, before: Sample, after: Sample) -> str:
    grown = after.rss_mib - before.rss_mib
    report.figure("agent, resident memory, growth", grown, "MiB", name, RSS_GROWTH_MIB_MAX)
    report.figure("agent, open files, growth", after.fds - before.fds, "", name, FDS_GROWTH_MAX)
    return f"{name}: {after.rss_mib:.1f} MiB ({grown:+.1f}), {after.fds} files"


def _quiet(report: Report, devices: Sequence[Device]) -> None:
    with report.step(f"{QUIET_S:g} s of nothing") as step:
        time.sleep(SETTLE_S)
        before = {device.name: sample(report, device) for device in devices}
        time.sleep(QUIET_S)
        said = []
        for device in devices:
            old, new = before[device.name], sample(report, device)
            writes, carried = new.flash - old.flash, new.bytes - old.bytes
            report.figure("flash writes at rest", writes, "", device.name, FLASH_WRITES_MAX)
            report.figure("bytes at rest", carried, "B", device.name, IDLE_BYTES_MAX)
            causes = {cause: count - old.carried.get(cause, 0) for cause, count in new.carried.items()}
            by_cause = ", ".join(f"{cause} {count}" for cause, count in causes.items() if count)
            said.append(f"{device.name}: {writes} writes, {carried} bytes ({by_cause or 'none'})")
        step["said"] = "; ".join(said)


def _new_policy(rig: Rig, _device: Device, turn: int) -> None:
    accept = [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]
    accept += [{"action": "accept", "src": ["*"], "dst": [f"*:{7000 + turn}"]}]
    path = rig.folder / "policy.json"
    path.write_text(json.dumps({"acls": accept}), encoding="utf-8")
    rig.hub.ask("policy", "set", str(path))


def _router_forgets(rig: Rig, device: Device, _turn: int) -> None:
    rig.switch.do(lambda world: world.rebind(device.name))


def _cable(rig: Rig, device: Device, _turn: int) -> None:
    rig.switch.set_fault(device.name, Fault(down=True))
    time.sleep(3.0)
    rig.switch.set_fault(device.name, Fault())


def _new_address(rig: Rig, device: Device, _turn: int) -> None:
    """The device's interface goes and comes, and the router gives it another address than before."""
    before = device.guest.console.shell(_ADDRESSES)
    rig.switch.do(lambda world: world.renumber(device.name))
    device.guest.console.shell(f"for i in down up; do ip link set {_CARD} $i; sleep 1; done")
    deadline = time.monotonic() + ADDRESS_S
    while (after := device.guest.console.shell(_ADDRESSES)) == before or not after.strip():
        if time.monotonic() > deadline:
            raise NotReached(f"{device.name} has no new address {ADDRESS_S:g} s after its cable came back: {after!r}")
        time.sleep(0.5)


EVENTS: tuple[tuple[str, Callable[[Rig, Device, int], None]], ...] = (
    ("another policy", _new_policy),
    ("a router forgets its flows", _router_forgets),
    ("a cable is out for 3 s", _cable),
    ("a device gets another address", _new_address),
)
