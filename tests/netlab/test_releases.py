"""Old and new together: an earlier agent with today's hub and agents, and an earlier hub with today's agent; each is
replaced in place by the other, on the state that it finds."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.netlab import Lab, until
from tests.netlab.host import Host
from tests.netlab.mesh import Device, Mesh

ROOT = Path(__file__).parents[2]
# Commits of this repository, by what came with them. None has been released yet.
AGENTS = {"before policies": "101917b", "before boards and updates": "4b26a53"}
HUBS = {"before boards and updates": "4b26a53", "before reports of rigs": "63779e8"}


@pytest.fixture
def earlier(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with `edgeagent` and `edgehub` of an earlier commit, to be put before all others on a PATH."""
    commit = request.param
    tree = tmp_path_factory.mktemp(f"tree-{commit}")
    packed = subprocess.run(["git", "-C", ROOT, "archive", commit, "edgeagent", "hub", "relay"], capture_output=True)
    if packed.returncode:
        pytest.skip(f"{commit} is not in this clone's history: {packed.stderr.decode().strip()}")
    subprocess.run(["tar", "-x", "-C", tree], input=packed.stdout, check=True)
    programs = tmp_path_factory.mktemp(f"bin-{commit}")
    for program, module in (("edgeagent", "edgeagent"), ("edgehub", "hub")):
        made = programs / program
        made.write_text(f'#!/bin/sh\nPYTHONPATH={tree} exec {sys.executable} -P -m {module} "$@"\n', encoding="utf-8")
        made.chmod(0o755)
    return programs


def use(host: Host, programs: Path | None) -> None:
    """From now on the commands in that host are those in `programs`, or today's."""
    own = host.env["PATH"]
    path = own if programs is None else f"{programs}:{own}"
    text = host.enter.read_text()
    host.enter.write_text(re.sub(r"\bPATH=\S+", f"PATH={path}", text, count=1))


def reach(a: Device, b: Device) -> None:
    until(lambda: a.host.ping(b.address), 20, f"{b.name} answers {a.name}")
    until(lambda: b.host.ping(a.address), 20, f"{a.name} answers {b.name}")


def replace(device: Device, programs: Path | None) -> None:
    """The agent ends, and another goes on with its state."""
    pid = device.pid()
    os.kill(pid, signal.SIGTERM)
    until(lambda: not Path(f"/proc/{pid}").exists(), 20, f"{device.name}'s agent ends")
    use(device.host, programs)
    device.up()


@pytest.mark.slow
@pytest.mark.parametrize("earlier", AGENTS.values(), ids=AGENTS, indirect=True)
def test_an_earlier_agent_with_the_hub_of_today(lab: Lab, earlier: Path) -> None:
    net = lab.net("198.51.100.0/24", "2001:db8::/64")
    mesh = Mesh(lab, net)
    mesh.start_hub()
    token = mesh.token("--uses", "0")
    old, new = mesh.device("old", net), mesh.device("new", net)
    use(old.host, earlier)
    old.up(token)
    new.up(token)
    address = old.address
    reach(old, new)
    replace(old, None)  # an update
    assert old.address == address
    reach(old, new)
    replace(old, earlier)  # and back, on a state that today's has written
    assert old.address == address
    reach(old, new)


@pytest.mark.slow
@pytest.mark.parametrize("earlier", HUBS.values(), ids=HUBS, indirect=True)
def test_an_earlier_hub_with_the_agent_of_today(lab: Lab, earlier: Path) -> None:
    net = lab.net("198.51.100.0/24", "2001:db8::/64")
    mesh = Mesh(lab, net, hub="release")
    use(mesh.hub, earlier)
    mesh.start_hub()
    a, b = (mesh.device(name, net) for name in ("a", "b"))
    for device in (a, b):
        device.up(mesh.token())
    reach(a, b)
    assert mesh.server is not None
    mesh.server.stop()
    use(mesh.hub, None)
    mesh.start_hub()  # on the state of the earlier one: its database is brought up to date
    third = mesh.device("c", net)
    third.up(mesh.token())
    for device in (a, b):
        reach(third, device)
        until(lambda device=device: device.ask("status")["hub"]["connected"], 90, f"{device.name} is connected")  # type: ignore[misc]
