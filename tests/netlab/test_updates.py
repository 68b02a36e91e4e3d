"""Versions on trial on real agents: a good one stays, and each kind of broken one comes back by itself and says so."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from edgeagent.version import VERSION
from tests.netlab import Lab, rights, until
from tests.netlab.agents import zipapp
from tests.netlab.mesh import HUB_READY_TIMEOUT_S, Device, Mesh
from tests.tuf_kit import Repository

TRIAL_S = 20
# As a service manager does it: started again whenever it ends.
SERVICE = 'while :; do "$@"; echo "service: ended with $?"; sleep 0.3; done'


class Site:
    def __init__(self, lab: Lab) -> None:
        net = self.net = lab.net("198.51.100.0/24")
        self.mesh = Mesh(lab, net)
        self.mesh.init_hub()
        self.state = self.mesh.hub.directory / "edgehub"
        self.repository = Repository()
        self.wanted: dict[str, dict[str, Any]] = {}
        self.publish()
        hub = Path(__file__).with_name("wanting.py")
        self.mesh.server = self.mesh.hub.start(sys.executable, hub, "serve", "--no-web", name="edgehub")
        until(self.mesh._is_ready, HUB_READY_TIMEOUT_S, "the hub's answer")
        self.token = self.mesh.token("--uses", "0", "--tag", "tag:cam")
        self.devices: dict[str, Device] = {}

    def device(self, name: str, *, delay_ms: float = 0.0) -> Device:
        host = self.mesh.lab.host(name)
        host.attach(self.net, delay_ms=delay_ms)
        device = Device(host)
        token = device.host.directory / "token"
        token.write_text(self.token)
        words = ["edgeagent", "run", "--hostname", name, f"--join-file={token}", f"--trial={TRIAL_S}"]
        device.host.start("sh", "-c", SERVICE, "service", *words, name="edgeagent")
        until(lambda: device.host.run("edgeagent", "ip", check=False).returncode == 0, 30, f"{name} is in")
        device.addresses = device.host.run("edgeagent", "ip").stdout.split()
        self.devices[name] = device
        return device

    def publish(self, name: str = "", data: bytes = b"", **custom: Any) -> None:
        """A target more, and the metadata for it."""
        updates = self.state / "updates"
        for part in ("metadata", "targets"):
            (updates / part).mkdir(parents=True, exist_ok=True)
        if name:
            self.repository.add(name, data, **custom)
            self.repository.next()
            target = self.repository.targets.targets[name]
            (updates / "targets" / f"{target.hashes['sha256']}.{name}").write_bytes(data)
        for file, content in self.repository.files.items():
            (updates / "metadata" / file).write_bytes(content)

    def want(self, device: str, **fields: Any) -> None:
        """What the device's map says from now on."""
        self.wanted[device] = fields
        (self.state / "wanted.json").write_text(json.dumps(self.wanted))
        tag = f"tag:w{len(json.dumps(self.wanted))}"
        self.mesh.hub.run("edgehub", "devices", "tag", device, tag)


@pytest.fixture
def site() -> Iterator[Site]:
    if why := rights.missing():
        pytest.skip(why)
    with Lab() as lab:
        yield Site(lab)


def choice(device: Device) -> dict[str, Any]:
    path = device.host.directory / "edgeagent/slots/choice"
    found: dict[str, Any] = json.loads(path.read_bytes().split(b"\n")[0]) if path.exists() else {}
    return found


def version(device: Device) -> str:
    done = device.host.run("edgeagent", "version", "--json", check=False)
    return str(json.loads(done.stdout)["agent"]) if done.returncode == 0 else ""


def returned(device: Device) -> None:
    """Its trial was given up, and the version of before answers again."""
    until(lambda: choice(device).get("returned"), 200, f"{device.name} has given up")
    until(lambda: version(device) == VERSION, 30, f"{device.name} has its old version")


@pytest.mark.long
def test_good_and_broken_versions(site: Site) -> None:
    a, b = site.device("a"), site.device("b")
    until(lambda: a.host.ping(b.address), 20, "a reaches b")
    site.publish("good.pyz", zipapp("0.2.0"), version="0.2.0", abi="any")
    site.want("a", up={"v": "0.2.0", "r": 1, "t": "good.pyz"})
    until(lambda: choice(a).get("trial") == "a", 60, "the trial begins")
    until(lambda: choice(a).get("committed") == "a", 90, "it is committed")
    until(lambda: version(a) == "0.2.0", 20, "the new version answers")
    until(lambda: a.host.ping(b.address), 20, "a reaches b")
    seen = json.loads(site.mesh.hub.run("edgehub", "devices", "show", "a", "--json").stdout)
    assert seen["version"] == "0.2.0"

    # A broken one comes back to the slot that was committed, not to the factory's
    site.publish("worse.pyz", zipapp("0.4.0", "exits"), version="0.4.0", abi="any")
    site.want("a", up={"v": "0.4.0", "r": 2, "t": "worse.pyz"})
    until(lambda: choice(a).get("returned"), 90, "it is given up")
    until(lambda: version(a) == "0.2.0", 30, "the good one is back")
    assert choice(a)["committed"] == "a"

    kinds = ("exits", "lacks a module", "hangs", "is deaf")
    devices = {kind: site.device(f"d{number}") for number, kind in enumerate(kinds)}
    for number, (kind, device) in enumerate(devices.items()):
        site.publish(f"broken{number}.pyz", zipapp("0.3.0", kind), version="0.3.0", abi="any")
        site.want(device.name, up={"v": "0.3.0", "r": 10 + number, "t": f"broken{number}.pyz"})
    for device in devices.values():
        returned(device)
    for device in devices.values():
        until(partial(a.host.ping, device.address), 20, f"{device.name} answers a")


@pytest.mark.long
def test_a_fetch_goes_on_where_a_kill_has_left_it(site: Site) -> None:
    device = site.device("f", delay_ms=250.0)
    slot = device.host.directory / "edgeagent/slots/a"
    program = zipapp("0.2.1")
    site.publish("killed.pyz", program, version="0.2.1", abi="any")
    pid = device.pid()
    with ThreadPoolExecutor(1) as operator:
        operator.submit(site.want, "f", up={"v": "0.2.1", "r": 3, "t": "killed.pyz"})
        until(lambda: any(path.stat().st_size > 50_000 for path in slot.glob("part-*")), 60, "a part is there")
        os.kill(pid, signal.SIGKILL)
    [part] = slot.glob("part-*")
    had = part.stat().st_size
    assert had < len(program)
    sent = site.mesh.hub.directory / "edgehub/status.json"
    until(lambda: choice(device).get("committed") == "a", 120, "it is committed all the same")
    assert (slot / "edgeagent.pyz").read_bytes() == program
    received = next(
        cause["day"]["received"]
        for uplink in device.ask("ledger")["uplinks"]
        for cause in uplink["causes"]
        if cause["cause"] == "update"
    )
    assert received < 1.2 * len(program) - had / 2, (received, had)  # what was there was not fetched again
    # What these tests want of a device is no rollout of the hub's, so it does not know what the reports are about.
    assert set(json.loads(sent.read_text())["drops"]) <= {"unknown-rollout"}


@pytest.mark.long
def test_settings_that_lead_nowhere_are_taken_back(site: Site) -> None:
    device = site.device("e")
    status = site.state / "status.json"
    site.want("e", se={"g": 1, "c": 30, "k": {"log-level": "debug", "budget": "wwan0=2MB/day"}})
    log = device.host.processes[-1]
    log.expect("settings of the hub, 1: confirmed", 60)
    log.expect("DEBUG", 10)
    site.want("e", se={"g": 2, "c": 30, "k": {"log-level": "warning"}})
    log.expect("settings of the hub, 2: tried from now on", 30)
    hub = json.loads(status.read_text())["pid"]
    os.kill(hub, signal.SIGSTOP)  # as settings do it that lead somewhere else
    try:
        log.expect("taken back, because the hub was not reached", 90)
        log.expect("DEBUG", 30)
    finally:
        os.kill(hub, signal.SIGCONT)
    site.want("e", se={"g": 3, "c": 30, "k": {"state-dir": "/tmp"}})
    log.expect("state-dir: not a setting that the hub may change", 30)
    device.host.run("edgeagent", "status")
    # Maps say here what a file tells, so no rollout is behind what devices report.
    assert set(json.loads(status.read_text())["drops"]) <= {"unknown-rollout"}
