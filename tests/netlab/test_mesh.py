"""Real hub, broker and agents: what must go on when one of them dies, and what must end when a device is removed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netlab import Lab, Net, rights, sweep, until
from tests.netlab.mesh import Device, Mesh

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]


class Site:
    """A mesh on one segment: two devices, joined and known to each other, and what a test adds."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.net: Net = lab.net("198.51.100.0/24", "2001:db8::/64")
        self.mesh = Mesh(lab, self.net)
        self.mesh.start_hub()
        self.token = self.mesh.token("--uses", "0")
        self.devices = (self.join("a"), self.join("b"))
        reach(*self.devices)

    def join(self, name: str) -> Device:
        device = self.mesh.device(name, self.net)
        device.up(self.token)
        return device


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """One for all tests here, because it takes seconds to make: each leaves it in order."""
    if why := rights.missing():
        pytest.skip(why)
    with Lab() as lab:
        yield Site(lab)


def reach(a: Device, b: Device, within_s: float = 10.0) -> None:
    until(lambda: a.host.ping(b.address), within_s, f"{b.name} answers {a.name}")


def pings_without_a_gap(a: Device, b: Device, count: int = 20) -> None:
    """Ten pings a second: each is answered."""
    result = a.host.run("ping", "-n", "-q", "-i", "0.1", "-W", "1", "-c", str(count), b.address, check=False)
    assert f"{count} received" in result.stdout, result.stdout


def broker_pid(site: Site) -> int:
    return int(site.mesh.status()["process"]["broker_pid"])


@pytest.mark.parametrize("demo", ["demo", pytest.param("demo_nat", marks=pytest.mark.matrix)])
def test_the_demo_proves_itself_and_leaves_nothing(demo: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", f"tests.netlab.{demo}", "--once"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "It works" in result.stdout
    lab_id = result.stdout.partition("lab edgelab")[2].partition(",")[0]
    assert lab_id.isdigit()
    assert sweep.namespaces_of(f"edgelab{lab_id}") == []
    assert not sweep.directory_of(f"edgelab{lab_id}").exists()


def test_inside_the_tunnel_both_families_and_large_packets_pass(site: Site) -> None:
    a, b = site.devices
    for address in b.addresses:
        a.host.run("ping", "-n", "-c1", "-W2", "-s", "1200", address)


def test_the_hub_knows_which_board_each_device_is(site: Site) -> None:
    device = site.join("gizmo-host")
    state = device.host.directory / "edgeagent"
    device.host.run("edgeagent", "down")
    (state / "board.json").write_text('{"v": 1, "id": "acme-gizmo", "profile": "small", "limits": {"peers": 9}}')
    device.up()
    status = device.ask("status")
    assert status["agent"]["board"] == {"id": "acme-gizmo", "by": "slice", "problem": ""}
    assert status["tables"]["peers"]["ceiling"] == 9 and status["agent"]["ceiling_kib"] == 30 << 10

    def told() -> dict[str, str]:
        shown = site.mesh.hub.run("edgehub", "devices", "show", "gizmo-host", "--json").stdout
        facts: dict[str, str] = json.loads(shown)["facts"]
        return facts

    until(lambda: told().get("board") == "acme-gizmo", 20, "the hub is told")
    assert "writes" in told()["flash"]
    device.host.run("edgeagent", "down")
    (state / "board.json").write_text("{")
    device.up()  # a slice that is broken stops nobody
    assert device.ask("status")["agent"]["board"]["problem"] == f"{state}/board.json: no JSON"
    device.host.run("edgeagent", "down")


def test_wg_shows_the_running_agent(site: Site) -> None:
    a, b = site.devices
    shown = a.host.run("wg", "show", "edge0").stdout
    assert f"endpoint: {b.host.address}:51820" in shown or f"endpoint: [{b.host.address6}]:51820" in shown
    assert f"{b.address}/32" in shown


def test_devices_go_on_without_the_hub_and_it_comes_back(site: Site) -> None:
    a, b = site.devices
    assert site.mesh.server is not None
    site.mesh.server.kill()
    pings_without_a_gap(a, b)
    b.host.run("edgeagent", "down")
    b.up()  # from its cache: there is nobody to ask
    reach(b, a)
    reach(a, b)
    site.mesh.start_hub()
    c = site.join("after-hub")
    for device in (a, b):
        reach(device, c)
        reach(c, device)


def test_devices_go_on_without_the_broker_and_it_comes_back(site: Site) -> None:
    a, b = site.devices
    old = broker_pid(site)
    os.kill(old, signal.SIGKILL)
    pings_without_a_gap(a, b)
    until(lambda: broker_pid(site) not in (0, old), 15, "a new broker")
    for device in (a, b):
        until(lambda device=device: device.ask("status")["hub"]["connected"], 30, f"{device.name} is connected")  # type: ignore[misc]
    reach(site.join("after-broker"), a)


def test_an_agent_that_is_killed_comes_back(site: Site) -> None:
    a, b = site.devices
    os.kill(a.pid(), signal.SIGKILL)
    until(lambda: a.host.run("edgeagent", "version", "--json").stdout.find('"agent": null') >= 0, 5, "the end of it")
    a.up()
    reach(a, b)
    reach(b, a)


def test_a_removed_device_is_cut_off_at_every_peer_within_seconds(site: Site) -> None:
    a, b = site.devices
    out = site.join("out")
    for peer in (a, b):
        reach(peer, out)
    site.mesh.hub.run("edgehub", "devices", "remove", out.name, "--yes")
    for peer in (a, b):
        until(lambda peer=peer: out.name not in [row["name"] for row in peer.ask("peers")], 5, f"{peer.name} drops it")  # type: ignore[misc]
        assert peer.host.ping(out.address) is None
        assert out.host.ping(peer.address) is None
    pings_without_a_gap(a, b)


def test_one_token_for_one_device_admits_one(site: Site) -> None:
    token = site.mesh.token("--uses", "1")
    devices = [site.mesh.device(f"twin-{number}", site.net) for number in range(4)]
    runs = [
        device.host.start(
            "sh", "-c", f"echo {token} | edgeagent up --join-file - --hostname {device.name} --timeout 20", name="up"
        )
        for device in devices
    ]
    codes = sorted(run.wait(40) for run in runs)
    assert codes == [0, 4, 4, 4]
    assert sum("used" in run.text() for run in runs) == 3
    listed = json.loads(site.mesh.hub.run("edgehub", "devices", "list", "--json").stdout)
    assert len([device for device in listed if device["name"].startswith("twin-")]) == 1
