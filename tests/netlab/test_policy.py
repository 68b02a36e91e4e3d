"""Real hub, broker and agents under a policy: what it lets through, what it cuts, and that a change reaches them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import pytest

from tests.netlab import Lab, Net, rights, until
from tests.netlab.mesh import Device, Mesh

PORTS = (5000, 5010)  # not side by side: ranges that touch are one
SERVE = """
import socketserver

class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(99):
            self.request.sendall(data)

socketserver.ThreadingTCPServer.allow_reuse_address = True
socketserver.ThreadingTCPServer(("", {port}), Echo).serve_forever()
"""
TALK = """
import socket, time
with socket.create_connection(("{address}", {port}), 3) as talk:
    talk.settimeout(2)
    while True:
        talk.sendall(b"x")
        talk.recv(9)
        print("answered", flush=True)
        time.sleep(0.1)
"""


class Site:
    """Two devices with tags that know each other, each with an echo server on TCP 5000 and 5010."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.net: Net = lab.net("198.51.100.0/24", "2001:db8::/64")
        self.mesh = Mesh(lab, self.net)
        self.mesh.start_hub()
        self.cam, self.nvr = (self.join(name, f"tag:{name}") for name in ("cam", "nvr"))
        for port in PORTS:
            self.nvr.host.start(sys.executable, "-c", SERVE.format(port=port))
        until(lambda: self.cam.host.ping(self.nvr.address), 10, "nvr answers cam")

    def join(self, name: str, tag: str) -> Device:
        device = self.mesh.device(name, self.net)
        device.up(self.mesh.token("--tag", tag))
        return device

    def set(self, *rules: str) -> int:
        text = f'{{"tagOwners": {{"tag:cam": [], "tag:nvr": [], "tag:odd": []}}, "acls": [{", ".join(rules)}]}}'
        result = self.mesh.hub.run("edgehub", "policy", "set", "-", "--json", input=text)
        version: int = json.loads(result.stdout)["version"]
        return version

    def wait_for(self, device: Device, *ports: int) -> None:
        """Until a device's own slice speaks of these ports, in either direction."""

        def has_them() -> bool:
            policy = device.ask("policy")["policy"]
            if policy is None:
                return False
            rows = [*policy["in"], *policy["out"]]
            return sorted(low for row in rows for _, low, _ in row["services"]) == sorted(ports)

        until(has_them, 5, f"{device.name} has the policy with {ports}")

    def connects(self, source: Device, target: Device, port: int) -> bool:
        script = f"import socket; socket.create_connection(('{target.address}', {port}), 2)"
        return source.host.run(sys.executable, "-c", script, check=False).returncode == 0

    def explains(self, source: Device, target: Device, port: int) -> bool:
        words = ("policy", "explain", source.name, f"{target.name}:{port}", "--json")
        verdicts = json.loads(self.mesh.hub.run("edgehub", *words).stdout)["verdicts"]
        return all(verdict["allowed"] for verdict in verdicts)


def rule(port: int | str, proto: str = "tcp") -> str:
    return f'{{"action": "accept", "src": ["tag:cam"], "proto": "{proto}", "dst": ["tag:nvr:{port}"]}}'


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    if why := rights.missing():
        pytest.skip(why)
    with Lab() as lab:
        yield Site(lab)


def test_a_policy_is_enforced_as_the_hub_explains_it(site: Site) -> None:
    cam, nvr = site.cam, site.nvr
    assert site.connects(cam, nvr, 5000) and site.connects(cam, nvr, 5010)
    site.set(rule(5000))
    for device in (cam, nvr):
        site.wait_for(device, 5000)
    for source, target, port in ((cam, nvr, 5000), (cam, nvr, 5010), (nvr, cam, 5000)):
        expected = (source, port) == (cam, 5000)
        assert site.explains(source, target, port) == expected
        assert site.connects(source, target, port) == expected
    assert cam.host.ping(nvr.address) is None and nvr.host.ping(cam.address) is None
    site.set(rule(5000), rule("*", "icmp"))
    until(lambda: cam.host.ping(nvr.address), 5, "pings are let through")
    assert nvr.host.ping(cam.address) is None


def test_what_is_taken_back_ends_flows_that_live(site: Site) -> None:
    site.set(rule(5000), rule(5010))
    site.wait_for(site.nvr, 5000, 5010)
    site.wait_for(site.cam, 5000, 5010)
    talk = site.cam.host.start(sys.executable, "-c", TALK.format(address=site.nvr.address, port=5000))
    other = site.cam.host.start(sys.executable, "-c", TALK.format(address=site.nvr.address, port=5010))
    talk.expect("answered")
    other.expect("answered")
    site.set(rule(5010))
    until(lambda: not talk.running, 10, "the end of the flow that is allowed no longer")
    assert other.running
    before = other.text().count("answered")
    until(lambda: other.text().count("answered") > before + 5, 5, "the other flow goes on")


def test_devices_that_may_not_meet_are_not_introduced(site: Site) -> None:
    site.set(rule(5000))
    odd = site.join("odd", "tag:odd")
    site.wait_for(odd)
    assert odd.host.ping(site.nvr.address) is None
    shown = json.loads(site.mesh.hub.run("edgehub", "devices", "show", "odd", "--json").stdout)
    assert shown["known_by"] == []
    site.set(rule(5000), rule(5010).replace("tag:cam", "tag:odd"))
    until(
        lambda: site.connects(odd, site.nvr, 5010), 45, "the way that was opened; the refusal is remembered for a while"
    )
