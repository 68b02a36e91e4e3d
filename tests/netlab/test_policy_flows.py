"""The policy between real agents of both engines: set at the hub, enforced at the receiver, changed under flows."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from tests.netlab import Lab, echo, rights, until
from tests.netlab.mesh import Device, Mesh
from tests.netlab.process import Process

pytestmark = pytest.mark.netlab

PORT = 7000  # TCP and UDP; what comes is sent back
CUT_WITHIN_S = 10.0  # the figure
OPEN = {"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}
TAGS: dict[str, Any] = {"tagOwners": {"tag:ops": [], "tag:edge": []}}
OPS_TO_EDGE = {**TAGS, "acls": [{"action": "accept", "src": ["tag:ops"], "dst": [f"tag:edge:{PORT}"]}]}


class Site:
    """ops-1 and edge-1 move packets by the C library, edge-2 by Python; a server runs on each."""

    def __init__(self, lab: Lab) -> None:
        net = lab.net("198.51.100.0/24")
        self.mesh = Mesh(lab, net)
        self.mesh.start_hub()
        self.devices: dict[str, Device] = {}
        for name, tag, engine in (("ops-1", "ops", ""), ("edge-1", "edge", ""), ("edge-2", "edge", "pure")):
            device = self.devices[name] = self.mesh.device(name, net)
            if engine:
                device.host.env["EDGEAGENT_ENGINE"] = engine
            device.up(self.mesh.token("--tag", f"tag:{tag}"))
            for port in (PORT, PORT + 1):
                echo.serve(device.host, device.address, port)

    def set_policy(self, policy: dict[str, Any]) -> int:
        """At the hub; returns when all devices have it."""
        said = self.mesh.hub.run("edgehub", "policy", "set", "-", "--json", input=json.dumps(policy)).stdout
        version: int = json.loads(said)["version"]
        for device in self.devices.values():
            until(partial(self.version, device), 15, f"{device.name}'s policy")
        return version

    @staticmethod
    def version(device: Device) -> int | None:
        policy = device.ask("status")["policy"]
        return None if policy is None else policy["version"]

    def client(self, source: str, to: str, *, kind: str = "tcp", port: int = PORT, size: int = 500) -> Process:
        return echo.client(self.devices[source].host, self.devices[to].address, port, kind=kind, size=size)

    def reaches(self, source: str, to: str, *, kind: str = "tcp", port: int = PORT, size: int = 500) -> bool:
        client = self.client(source, to, kind=kind, port=port, size=size)
        try:
            return client.expect(r"^(echo|end).*\n", 15).group(1) == "echo"
        finally:
            client.kill()

    def drops(self, name: str, reason: str) -> int:
        return int(self.devices[name].ask("status")["drops"].get(reason, 0))


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    if why := rights.missing():
        pytest.skip(why)
    with Lab() as lab:
        yield Site(lab)


def test_one_policy_after_the_other(site: Site) -> None:
    """Everything at first; then only what rules say, and no longer what they have said."""
    assert site.reaches("edge-1", "edge-2") and site.reaches("edge-2", "ops-1", kind="udp")
    site.set_policy(OPS_TO_EDGE)
    for edge in ("edge-1", "edge-2"):
        assert site.reaches("ops-1", edge) and site.reaches("ops-1", edge, kind="udp")
        assert site.reaches("ops-1", edge, kind="udp", size=5000), "in fragments"
        assert not site.reaches("ops-1", edge, port=PORT + 1)
        assert not site.reaches(edge, "ops-1")
    assert not site.reaches("edge-1", "edge-2", kind="udp")
    said = site.devices["edge-1"].host.run("edgeagent", "policy").stdout
    assert "tag:ops" in said and f"{PORT}" in said
    assert site.drops("edge-1", "prohibited") > 0, "it may reach nobody, and is told at once"
    clients = {edge: site.client("ops-1", edge) for edge in ("edge-1", "edge-2")}
    for edge, client in clients.items():
        until(partial(echo.is_alive, client), 15, f"a flow to {edge}")
    cut_at = time.time()
    site.set_policy({**TAGS, "acls": []})
    until(lambda: time.time() > cut_at + CUT_WITHIN_S + 1, CUT_WITHIN_S + 5, "the end")
    for edge, client in clients.items():
        last = echo.echoes(client)[-1]
        print(f"{edge}: cut {last - cut_at:.2f} s after the change")
        assert last < cut_at + CUT_WITHIN_S
        assert site.devices[edge].ask("status")["policy"]["revoked"] >= 1
        client.kill()
    site.set_policy(OPEN)
    for source, to, kind in (("edge-1", "edge-2", "tcp"), ("edge-2", "ops-1", "udp")):
        until(partial(site.reaches, source, to, kind=kind), 45, "the way; the hub's refusal is remembered for a while")
