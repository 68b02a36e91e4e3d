"""The rollout suite: a good version of the agent comes to all guests, one that ends at once comes back by itself."""

from __future__ import annotations

import json
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hil import images
from hil.errors import BuildFailed, NotReached
from hil.machines import Machine
from hil.programs import until
from hil.report import Report
from hil.rig import Device, Rig
from hil.smoke import pings, raise_fleet

ROLLOUT_TIMEOUT_S = 2_400.0
POLL_S = 5.0
GOOD, BROKEN = "0.9.0", "0.9.1"
# In the broken one this stands instead of the daemon.
_ENDS = "def main(arguments=None):\n    raise SystemExit(1)\n"


def rollout(machines: Sequence[Machine], store: Path, out: Path, say: Callable[[str], None]) -> Report:
    """A guest for each of `machines`. The report is in `out` however it ends."""
    report = Report("rollout", say)
    try:
        with Rig(out) as rig:
            devices = raise_fleet(report, rig, machines, store, out)
            _rollouts(report, rig, devices, out)
    finally:
        report.write(out)
    return report


def _rollouts(report: Report, rig: Rig, devices: Sequence[Device], out: Path) -> None:
    before = {name: device["version"] for name, device in rig.hub.devices().items()}
    with report.step("repository") as step:
        rig.hub.ask("update", "init", "--root-key", str(rig.folder / "root.key"))
        for machine in dict.fromkeys(device.guest.machine for device in devices):
            made = images.zipapp(machine, out / "versions" / machine.name)
            for version, ends in ((GOOD, False), (BROKEN, True)):
                rig.hub.ask("update", "publish", str(variant(made, images.abi(machine), version, ends)))
        step["said"] = f"{GOOD}, and {BROKEN} that ends at once"
    with report.step("rollout of a good version") as step:
        number = begin(rig, GOOD)
        began = time.monotonic()
        shown = wait_for_state(rig, number, ("done", "paused"))
        report.figure("rollout of a good version", time.monotonic() - began, "s")
        _must(shown["state"] == "done", f"rollout {number} of {GOOD} is {shown['state']}: {shown.get('why')}")
        _wait_for_versions(rig, dict.fromkeys(before, GOOD))
        step["said"] = f"all run {GOOD}"
    with report.step("pings by the new version") as step:
        step["said"] = pings(report, devices, f"with {GOOD}")
    with report.step("rollout of a broken version") as step:
        number = begin(rig, BROKEN)
        began = time.monotonic()
        shown = wait_for_state(rig, number, ("done", "paused"))
        report.figure("rollout of a broken version, until paused", time.monotonic() - began, "s")
        _must(shown["state"] == "paused", f"rollout {number} of {BROKEN} is {shown['state']}")
        told = json.loads(rig.hub.ask("rollout", "devices", str(number), "--json"))
        tried = [each for each in told if each["state"] != "pending"]
        _must(len(tried) == 1 and bool(tried[0]["why"]), f"not one canary: {tried}")
        _wait_for_versions(rig, dict.fromkeys(before, GOOD))
        step["said"] = f"{shown['why']}; the canary runs {GOOD} again: {tried[0]['why']}"
    with report.step("pings by the old version") as step:
        step["said"] = pings(report, devices, f"after {BROKEN}")


def variant(source: Path, abi: str, version: str, ends: bool) -> Path:
    """A zipapp like `source` that says it is `version`, and, where it `ends`, does nothing but that."""
    target = source.with_name(f"edgeagent-{version}-{abi}.pyz")
    with zipfile.ZipFile(source) as old, target.open("wb") as file:
        file.write(b"#!/usr/bin/env python3\n")
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
            (line,) = [text for text in old.read("edgeagent/version.py").decode().splitlines() if "VERSION" in text[:8]]
            for name in old.namelist():
                data = old.read(name)
                if name == "edgeagent/version.py":
                    data = data.replace(line.encode(), f'VERSION = "{version}"'.encode())
                elif name == "edgeagent/agentd.py" and ends:
                    data = _ENDS.encode()
                if name != "manifest.json":
                    new.writestr(name, data)
            new.writestr("manifest.json", json.dumps({"version": version, "abi": abi}))
    if not zipfile.is_zipfile(target):
        raise BuildFailed(f"{target}: no zipapp came of {source}")
    return target


def begin(rig: Rig, version: str) -> int:
    """A rollout of what was published, canary first, approved; its number."""
    made = json.loads(
        rig.hub.ask("rollout", "create", "--version", version, "--groups", "1,100%", "--soak", "1s", "--json")
    )
    rig.hub.ask("rollout", "approve", str(made["id"]))
    return int(made["id"])


def wait_for_state(rig: Rig, number: int, states: Sequence[str]) -> dict[str, Any]:
    """What is shown of a rollout once it is in one of `states`. Raises NotReached."""

    def shown() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(rig.hub.ask("rollout", "show", str(number), "--json"))
        return found

    def ended() -> dict[str, Any] | None:
        found = shown()
        return found if found["state"] in states else None

    def late() -> NotReached:
        return NotReached(f"rollout {number}: not {' or '.join(states)} within {ROLLOUT_TIMEOUT_S:g} s: {shown()}")

    found = until(ended, ROLLOUT_TIMEOUT_S, late, POLL_S)
    assert found is not None
    return found


def _wait_for_versions(rig: Rig, wanted: dict[str, str]) -> None:
    def seen() -> dict[str, str]:
        return {name: device["version"] for name, device in rig.hub.devices().items()}

    until(
        lambda: seen() == wanted, ROLLOUT_TIMEOUT_S, lambda: NotReached(f"versions are {seen()}, not {wanted}"), POLL_S
    )


def _must(true: bool, said: str) -> None:
    if not true:
        raise NotReached(said)
