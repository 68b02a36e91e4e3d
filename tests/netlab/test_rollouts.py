"""A rollout on real processes: a hub, its repository, two devices, a good version and one that is broken."""

from __future__ import annotations

import json
import os
import signal
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from edgeagent.version import VERSION
from tests.netlab import Lab, rights, until
from tests.netlab.agents import zipapp
from tests.netlab.mesh import Device, Mesh

TRIAL_S = 20
# As a service manager does it: started again whenever it ends.
SERVICE = 'while :; do "$@"; echo "service: ended with $?"; sleep 0.3; done'


class Site:
    """A hub that is only given commands, as an operator would."""

    def __init__(self, lab: Lab) -> None:
        self.net = lab.net("198.51.100.0/24")
        self.mesh = Mesh(lab, self.net)
        self.mesh.start_hub()
        self.token = self.mesh.token("--uses", "0")
        self.devices: list[Device] = []
        self.run("update", "init", "--root-key", str(self.mesh.hub.directory / "root.key"))
        a, b = self.device("a"), self.device("b")
        until(lambda: a.host.ping(b.address), 20, "a reaches b")

    def run(self, *words: str) -> Any:
        done = self.mesh.hub.run("edgehub", *words)
        return json.loads(done.stdout) if "--json" in words else done.stdout

    def device(self, name: str) -> Device:
        device = self.mesh.device(name, self.net)
        token = device.host.directory / "token"
        token.write_text(self.token)
        words = ["edgeagent", "run", "--hostname", name, "--join-file", str(token), f"--trial={TRIAL_S}"]
        device.host.start("sh", "-c", SERVICE, "service", *words, name="edgeagent")
        until(lambda: device.host.run("edgeagent", "ip", check=False).returncode == 0, 30, f"{name} is in")
        device.addresses = device.host.run("edgeagent", "ip").stdout.split()
        self.devices.append(device)
        return device

    def publish(self, version: str, broken: str = "") -> None:
        whole = BytesIO(zipapp(version, broken))
        with zipfile.ZipFile(whole, "a") as archive:
            archive.writestr("manifest.json", json.dumps({"version": version, "abi": "any"}))
        name = f"edgeagent-{version}-any.pyz"
        Path(self.mesh.hub.directory, name).write_bytes(whole.getvalue())
        self.run("update", "publish", str(Path(self.mesh.hub.directory, name)))

    def roll_out(self, *words: str) -> int:
        made = self.run("rollout", "create", *words, "--soak", "1s", "--json")
        number = int(made["id"])
        assert made["state"] == "awaiting-approval"
        self.run("rollout", "approve", str(number))
        return number

    def shown(self, number: int) -> dict[str, Any]:
        found: dict[str, Any] = self.run("rollout", "show", str(number), "--json")
        return found

    def wait_for(self, number: int, state: str, seconds: float) -> dict[str, Any]:
        until(lambda: self.shown(number)["state"] == state, seconds, f"rollout {number} is {state}")
        return self.shown(number)

    def versions(self) -> dict[str, str]:
        return {each["name"]: each["version"] for each in self.run("devices", "list", "--json")}


@pytest.fixture
def site() -> Iterator[Site]:
    if why := rights.missing():
        pytest.skip(why)
    with Lab() as lab:
        yield Site(lab)


@pytest.mark.long
def test_a_good_version_comes_to_all_and_a_broken_one_stops_at_the_canary(site: Site) -> None:
    a, b = site.devices
    assert site.versions() == {"a": VERSION, "b": VERSION}

    site.publish("0.2.0")
    good = site.roll_out("--version", "0.2.0", "--groups", "1,100%")
    done = site.wait_for(good, "done", 300)
    assert done["counts"]["done"] == 2 and [group["done"] for group in done["groups"]] == [1, 1]
    until(lambda: site.versions() == {"a": "0.2.0", "b": "0.2.0"}, 30, "both say that they run it")
    until(lambda: a.host.ping(b.address), 20, "a reaches b")

    site.publish("0.3.0", "is deaf")
    broken = site.roll_out("--version", "0.3.0", "--groups", "1,100%")
    paused = site.wait_for(broken, "paused", 300)
    assert paused["why"] == "1 of 1 failed; 10 % pause it"
    devices = site.run("rollout", "devices", str(broken), "--json")
    assert sorted(each["state"] for each in devices) == ["pending", "retry"]
    assert next(each["why"] for each in devices if each["state"] == "retry")
    until(lambda: site.versions() == {"a": "0.2.0", "b": "0.2.0"}, 60, "the canary is back, the other never left")
    until(lambda: a.host.ping(b.address), 20, "a reaches b")
    site.run("rollout", "abort", str(broken), "--why", "it is deaf")
    site.run("update", "revoke", "0.3.0")


@pytest.mark.long
def test_settings_are_confirmed_or_taken_back_by_the_device_itself(site: Site) -> None:
    number = site.roll_out("--set", "log-level=debug", "--groups", "1,100%")
    assert site.wait_for(number, "done", 200)["counts"]["done"] == 2
    _an_engine_that_the_hub_names_is_taken_where_it_can_be(site)
    hub, logs = site.run("status", "--json")["process"]["pid"], [device.host.processes[-1] for device in site.devices]
    tried = [log.text().count("tried from now on") for log in logs]
    number = site.roll_out("--set", "log-level=warning", "--groups", "1,100%", "--confirm", "30s")
    until(lambda: [log.text().count("tried from now on") for log in logs] != tried, 60, "a device tries them")
    os.kill(hub, signal.SIGSTOP)  # as settings do it that lead somewhere else
    try:
        until(lambda: any("taken back" in log.text() for log in logs), 120, "the canary takes the old ones back")
    finally:
        os.kill(hub, signal.SIGCONT)
    paused = site.wait_for(number, "paused", 120)
    assert paused["counts"] == {"pending": 1, "under_way": 0, "done": 0, "failed": 1, "to_retry": 1, "skipped": 0}
    assert site.run("status", "--json")["process"]["drops"] == {}


def _an_engine_that_the_hub_names_is_taken_where_it_can_be(site: Site) -> None:
    """And where it cannot the device stays: the kernel that this runs on may have no WireGuard."""
    number = site.roll_out("--set", "engine=kernel", "--groups", "100%")
    assert site.wait_for(number, "done", 200)["counts"]["done"] == 2
    a, b = site.devices
    for device in (a, b):
        told = device.ask("status")["engine"]
        log = device.host.processes[-1].text()
        if told["name"] == "kernel":
            assert told["why"] == "the hub's setting `engine` says so"
        else:
            assert "not kernel: engine kernel: " in told["why"] and log.count("another engine is taken") == 1
    until(lambda: a.host.ping(b.address), 20, "a reaches b")
