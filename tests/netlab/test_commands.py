"""Commands to real agents: each verb end to end, and what a kill in between must not change."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.netlab import Lab, rights, until
from tests.netlab.homes import RelayHost
from tests.netlab.mesh import Device, Mesh

pytestmark = pytest.mark.long


class Site:
    def __init__(self, lab: Lab) -> None:
        net = self.net = lab.net("198.51.100.0/24", "2001:db8::/64")
        self.mesh = Mesh(lab, net)
        self.mesh.start_hub()
        token = self.mesh.token("--uses", "0", "--tag", "tag:cam")
        self.devices: list[Device] = []
        self.scripts: dict[str, Path] = {}
        for name in ("a", "b"):
            device = self.mesh.device(name, net)
            self.scripts[name] = device.host.directory / "scripts"
            device.options = [f"--scripts={self.scripts[name]}"]
            device.up(token)
            self.devices.append(device)

    def edgehub(self, *words: str, check: bool = True, timeout_s: float = 60.0) -> Any:
        done = self.mesh.hub.run("edgehub", *words, "--json", check=check, timeout_s=timeout_s)
        return json.loads(done.stdout) if done.stdout else done.stderr

    def command(self, *words: str, check: bool = True) -> Any:
        """The one device's answer."""
        [found] = self.edgehub("command", *words, check=check)
        return found

    def script(self, device: Device, name: str, text: str) -> None:
        self.scripts[device.name].mkdir(mode=0o755, exist_ok=True)
        path = self.scripts[device.name] / name
        path.write_text(text)
        path.chmod(0o755)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    if why := rights.missing():
        pytest.skip(why)
    with Lab() as lab:
        yield Site(lab)


def connected(device: Device) -> None:
    until(lambda: device.ask("status")["hub"]["connected"], 30, f"{device.name} is connected")


def test_logs_come_and_the_device_says_who_asked(site: Site) -> None:
    a, _ = site.devices
    [found] = site.edgehub("logs", "a", "-n", "5", "--level", "info")
    assert (found["state"], found["code"], found["output_complete"]) == ("done", "", True)
    lines = found["output"].splitlines()
    assert 1 <= len(lines) <= 5 and all(" INFO " in line or " WARNING " in line for line in lines)
    mine = a.ask("commands")[0]
    assert (mine["id"], mine["verb"], mine["by"], mine["state"]) == (found["id"], "collect-logs", "cli:root", "done")


def test_netcheck_is_what_the_device_itself_would_say(site: Site) -> None:
    a, _ = site.devices
    found = site.command("a", "netcheck", "2", check=False)
    assert (found["state"], found["code"]) == ("failed", "exit-status")
    assert "this network has no relays" in found["output"]
    relay = RelayHost(site.mesh.lab.host("fra-1", site.net), "fra")
    relay.start(site.mesh.invite("fra"))
    until(lambda: site.mesh.relays().get("fra-1") == "online", 20, "the relay is online")
    until(lambda: [row["id"] for row in a.ask("status")["relays"]] == ["fra-1"], 20, "a knows the relay")
    found = site.command("a", "netcheck", "3")
    checked = json.loads(found["output"])
    assert [row["id"] for row in checked["relays"]] == ["fra-1"] and checked["reachable"]


def test_a_new_node_key_is_made_and_known_to_others(site: Site) -> None:
    a, b = site.devices
    until(lambda: a.host.ping(b.address), 10, "b answers a")
    keys = {key["key"] for key in site.edgehub("devices", "show", "a")["node_keys"]}
    assert site.command("a", "rekey")["state"] == "done"
    until(
        lambda: keys.isdisjoint({key["key"] for key in site.edgehub("devices", "show", "a")["node_keys"]}),
        10,
        "only the new key",
    )
    for one, other in ((a, b), (b, a)):
        until(lambda one=one, other=other: one.host.ping(other.address), 10, "a ping")  # type: ignore[misc]


def test_the_agent_begins_anew_in_its_process_and_says_so_after(site: Site) -> None:
    a, b = site.devices
    pid, uptime = a.pid(), a.ask("status")["agent"]["uptime_s"]
    until(lambda: a.ask("status")["hub"]["connected"], 10, "a is connected")
    open_files = len(os.listdir(f"/proc/{pid}/fd"))
    time.sleep(1.1)
    found = site.command("a", "reboot-agent")
    assert found["state"] == "done"
    status = a.ask("status")["agent"]
    assert status["pid"] == pid and status["uptime_s"] <= uptime + 1
    assert not (a.host.directory / "edgeagent/crash").exists()
    assert len(os.listdir(f"/proc/{pid}/fd")) <= open_files
    until(lambda: b.host.ping(a.address), 10, "a answers b")


def test_an_agent_in_the_foreground_stays_there(site: Site) -> None:
    """As under a service manager: the same process, logging to where it did."""
    c = site.mesh.device("c", site.net)
    token = c.host.directory / "token"
    token.write_text(site.mesh.token("--uses", "1"))
    process = c.host.start("edgeagent", "run", "--hostname", "c", "--join-file", token)
    until(lambda: c.host.run("edgeagent", "ip", check=False).returncode == 0, 20, "c is in")
    pid = c.pid()
    assert site.command("c", "reboot-agent")["state"] == "done"
    assert process.running and c.pid() == pid
    process.expect("ending, to begin anew")
    process.expect("edge0 is up as c")
    again = site.command("c", "reboot-agent", check=False)  # the life before is not forgotten
    assert (again["state"], again["code"]) == ("refused", "too-soon")
    assert process.stop() == 0


def test_a_script_runs_and_nothing_else_does(site: Site) -> None:
    _, b = site.devices
    assert site.command("b", "run", "hello", check=False)["code"] == "no-scripts"
    site.script(b, "hello", '#!/bin/sh\necho "hello $# $1 $EDGEAGENT_TOKEN"\nid -u\n')
    found = site.command("b", "run", "hello", "$(reboot)", "two words")
    assert (found["state"], found["output"]) == ("done", "hello 2 $(reboot) \n0\n")
    site.script(b, "fails", "#!/bin/sh\necho before; exit 3\n")
    found = site.command("b", "run", "fails", check=False)
    assert (found["state"], found["code"], found["output"]) == ("failed", "exit-status", "before\n")
    assert site.command("b", "run", "absent", check=False)["code"] == "unknown-script"
    for name in ("../hello", "/bin/sh", ".hidden"):
        assert "name of a script" in site.edgehub("command", "b", "run", name, check=False)


def test_several_devices_by_tag_and_the_exit_code_tells_of_all(site: Site) -> None:
    found = site.edgehub("command", "tag:cam", "collect-logs", "3")
    assert [each["state"] for each in found] == ["done", "done"]
    site.script(site.devices[1], "only-here", "#!/bin/sh\n")
    done = site.mesh.hub.run("edgehub", "command", "a", "b", "run", "only-here", check=False)
    assert done.returncode == 1 and "refused" in done.stderr


def test_what_is_watched_is_told_and_no_longer(site: Site) -> None:
    a, b = site.devices
    until(lambda: a.host.ping(b.address), 10, "b answers a")
    done = site.mesh.hub.run("edgehub", "watch", "a", "--every", "1", "--seconds", "4", "--json", timeout_s=30)
    samples = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(samples) >= 2
    last = samples[-1]
    [peer] = [peer for peer in last["peers"] if peer["name"] == "b"]
    assert peer["path"] == "direct"
    assert 0 < last["memory"]["used_kib"] <= last["memory"]["ceiling_kib"]
    assert {"peers", "records", "log_lines"} & {table["name"] for table in last["tables"]}
    causes = {cause["cause"] for uplink in last["ledger_today"] for cause in uplink["causes"]}
    assert {"control", "telemetry"} <= causes
    until(lambda: a.ask("commands")[0]["state"] == "done", 5, "the end of the watch")
    before = site.edgehub("devices", "show", "a")["last_seen"]
    time.sleep(2.5)
    assert site.edgehub("devices", "show", "a")["last_seen"] == before


def test_a_hub_that_is_killed_between_command_and_answer(site: Site) -> None:
    _, b = site.devices
    marks = b.host.directory / "marks"
    site.script(b, "once", f"#!/bin/sh\necho x >>{marks}\nsleep 2\necho over\n")
    [given] = site.edgehub("command", "b", "run", "once", "--no-wait")
    until(marks.exists, 10, "the script's first line")
    assert site.mesh.server is not None
    site.mesh.server.kill()
    time.sleep(2.5)
    site.mesh.start_hub()
    until(lambda: site.edgehub("commands", "show", given["id"])["state"] == "done", 30, "the answer")
    assert site.edgehub("commands", "show", given["id"])["output"] == "over\n"
    assert marks.read_text() == "x\n"


def test_a_device_that_is_offline_does_it_when_it_is_back_and_only_in_time(site: Site) -> None:
    _, b = site.devices
    marks = b.host.directory / "offline"
    site.script(b, "mark", f"#!/bin/sh\necho $1 >>{marks}\n")
    b.host.run("edgeagent", "down")
    [late] = site.edgehub("command", "b", "run", "mark", "late", "--no-wait", "--expires", "5s")
    [kept] = site.edgehub("command", "b", "run", "mark", "kept", "--no-wait")
    time.sleep(5.5)
    b.up()
    until(lambda: site.edgehub("commands", "show", kept["id"])["state"] == "done", 20, "the command that was kept")
    until(lambda: site.edgehub("commands", "show", late["id"])["state"] == "expired", 40, "the end of the other")
    assert marks.read_text() == "kept\n"


def test_a_broker_that_forgets_loses_no_command(site: Site) -> None:
    _, b = site.devices
    site.script(b, "hello", "#!/bin/sh\necho hello\n")
    b.host.run("edgeagent", "down")
    [given] = site.edgehub("command", "b", "run", "hello", "--no-wait")
    until(lambda: site.mesh.status()["waiting"]["outgoing"] == 0, 10, "the broker has it")
    broker = int(site.mesh.status()["process"]["broker_pid"])
    os.kill(broker, signal.SIGKILL)
    until(lambda: site.mesh.status()["process"]["broker_pid"] not in (None, broker), 15, "a new broker")
    b.up()
    until(lambda: site.edgehub("commands", "show", given["id"])["state"] == "done", 30, "the end")
    assert site.edgehub("commands", "show", given["id"])["output"] == "hello\n"


def test_an_agent_that_is_killed_does_not_do_it_twice(site: Site) -> None:
    _, b = site.devices
    marks = b.host.directory / "killed"
    site.script(b, "long", f"#!/bin/sh\necho x >>{marks}\nexec sleep 30\n")
    [given] = site.edgehub("command", "b", "run", "long", "--no-wait")
    until(marks.exists, 10, "the script's first line")
    os.kill(b.pid(), signal.SIGKILL)
    until(lambda: '"agent": null' in b.host.run("edgeagent", "version", "--json").stdout, 5, "the end of it")
    b.up()
    until(lambda: site.edgehub("commands", "show", given["id"])["state"] == "failed", 20, "an answer")
    assert site.edgehub("commands", "show", given["id"])["code"] == "interrupted"
    assert marks.read_text() == "x\n"


def test_what_the_owner_does_not_allow_is_refused(site: Site) -> None:
    a, _ = site.devices
    a.host.run("edgeagent", "down")
    a.options = ["--allow-commands=collect-logs"]
    a.up()
    assert site.command("a", "netcheck", check=False)["code"] == "not-allowed"
    assert site.command("a", "collect-logs")["state"] == "done"
    assert [row["state"] for row in a.ask("commands")[:2]] == ["done", "refused"]
