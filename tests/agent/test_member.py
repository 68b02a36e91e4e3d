"""A real agent that is a member: what it shows, what it keeps to itself, how it leaves and how it comes back."""

from __future__ import annotations

import json
import os
import signal
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeagent import crypto
from edgeagent.proto.identity import Admission, Identity
from edgeagent.proto.token import Token
from tests.netlab import Lab, Net, rights, until
from tests.netlab.mesh import Device, Mesh
from tests.netlab.sweep import is_alive

PROVIDER = crypto.load()
STATE_HEADER = 44  # bytes of a state file before its body


class Site:
    """A hub and two joined devices whose agents log everything."""

    def __init__(self, lab: Lab) -> None:
        self.net: Net = lab.net("198.51.100.0/24")
        self.mesh = Mesh(lab, self.net)
        self.mesh.start_hub()
        self.token = self.mesh.token("--uses", "0")
        self.a, self.b = self.device("a"), self.device("b")
        for device in (self.a, self.b):
            device.up(self.token)

    def device(self, name: str) -> Device:
        device = self.mesh.device(name, self.net)
        device.host.env["EDGEAGENT_LOG"] = "debug"
        return device

    def seen(self, device: Device) -> str:
        """How the hub sees a device: online, or the time since it was."""
        for row in json.loads(self.mesh.hub.run("edgehub", "devices", "list", "--json").stdout):
            if row["name"] == device.name:
                return json.dumps(row)
        return ""


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    if why := rights.missing():
        pytest.skip(why)
    with Lab() as lab:
        yield Site(lab)


pytestmark = pytest.mark.netlab


def test_the_verbs(site: Site) -> None:
    a, b = site.a, site.b
    pong = a.host.run("edgeagent", "ping", "b", "-c", "2", "-i", "0.1").stdout.splitlines()
    assert len(pong) == 2
    assert pong[0].startswith(f"pong from b ({b.address}) via {b.host.address}:51820 in ")
    for target in b.addresses:
        row = json.loads(a.host.run("edgeagent", "ping", target, "-c", "1", "--json").stdout)
        assert (
            row["name"] == "b"
            and row["address"] == target
            and row["path"] == f"{b.host.address}:51820"
            and row["ms"] > 0
        )
    assert a.host.run("edgeagent", "ip", "-4").stdout == f"{a.address}\n"
    assert a.host.run("edgeagent", "ip", "-6").stdout.count(":") > 2
    for target in ("b", f"b.{site.a.ask('status')['self']['domain']}", *b.addresses):
        assert a.ask("whois", target)["addresses"] == b.addresses
    assert a.ask("whois", "a")["self"] is True
    assert "b" in a.host.run("edgeagent", "peers").stdout
    shown = a.host.run("edgeagent", "status", "--log").stdout
    assert all(word in shown for word in ("member", a.address, "UDP port 51820", b.host.address))
    assert a.host.run("edgeagent", "up").stdout.split() == ["a", *a.addresses]
    assert "is this device" in a.host.run("edgeagent", "ping", "a", check=False).stderr
    nobody = a.host.run("edgeagent", "ping", "nobody", "-c", "1", check=False)
    assert nobody.returncode == 1 and "nobody in this network" in nobody.stderr


def test_how_full_it_is(site: Site) -> None:
    a = site.a
    usage = a.ask("status", "--memory")
    tables = usage["tables"]
    assert {"peers", "publishes", "log_lines", "udp_backlog", "relay_streams"} <= set(tables)
    if usage["pump"] is not None:
        assert usage["pump"]["mapped_kib"] > 256 and tables["pump_flows"]["ceiling"] == 4096
        assert tables["pump_down"]["unit"] == "bytes" and 0 < tables["pump_down"]["peak"] <= 1 << 18
    assert all(table.get("used", 0) <= table["ceiling"] for table in tables.values())
    assert 0 < usage["process"]["rss_kib"] <= usage["process"]["rss_peak_kib"] <= usage["process"]["ceiling_kib"]
    shown = a.host.run("edgeagent", "status", "--memory").stdout
    assert all(name.replace("_", " ") in shown for name in tables)
    facts = json.loads(site.mesh.hub.run("edgehub", "devices", "show", "a", "--json").stdout)["facts"]
    assert " of 40.0 MiB, peak " in facts["memory"] and {"tables", "gave_way", "kernel"} <= set(facts)
    assert "of 40.0 MiB, peak" in site.mesh.hub.run("edgehub", "devices", "show", "a").stdout


def test_no_secret_is_shown(site: Site) -> None:
    device = site.a
    status = device.ask("status", "--log")
    pid = status["agent"]["pid"]
    shown = json.dumps(status) + json.dumps(device.ask("peers"))
    shown += "".join(process.text() for process in device.host.processes)
    for source in ("cmdline", "environ"):
        shown += Path(f"/proc/{pid}/{source}").read_bytes().decode("utf-8", "replace")
    assert [secret for secret in secrets(device, site.token) if secret in shown] == []
    state = device.host.directory / "edgeagent"
    assert state.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in state.iterdir() if path.stat().st_mode & 0o077] == []
    assert not (state / "token").exists()


def test_it_leaves_in_order_and_comes_back(site: Site) -> None:
    a, b = site.a, site.b
    pid = b.pid()
    os.kill(pid, signal.SIGHUP)
    assert b.pid() == pid
    b.host.run("edgeagent", "down")
    until(lambda: "online" not in site.seen(b) or '"online": false' in site.seen(b), 5, "the hub hears of it")
    assert "edge0" not in b.host.run("ip", "link").stdout
    assert not (b.host.directory / "run/edgeagent/agent.sock").exists()
    assert not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text()
    b.up()
    assert b.ask("status")["agent"]["flash_writes"] <= 4
    until(lambda: a.host.ping(b.address), 10, "b answers again")


def test_an_interface_that_was_down_has_its_routes_and_the_map_of_meanwhile(site: Site) -> None:
    a, b = site.a, site.b
    pid = b.pid()
    b.host.run("ip", "link", "set", "edge0", "down")
    site.mesh.hub.run("edgehub", "devices", "rename", "b", "bee")
    until(lambda: b.ask("status")["self"]["name"] == "bee", 20, "the map with the new name")
    b.host.run("ip", "link", "set", "edge0", "up")
    until(lambda: a.host.ping(b.address), 10, "it answers again")
    assert b.address.rpartition(".")[0].split(".")[0] in b.host.run("ip", "route", "show", "dev", "edge0").stdout
    assert "scope global" in b.host.run("ip", "-6", "addr", "show", "dev", "edge0").stdout
    for command in (("addr", "flush", "dev", "edge0"), ("route", "flush", "dev", "edge0")):
        b.host.run("ip", *command)
        until(lambda: a.host.ping(b.address), 15, f"it answers after {command}")
    site.mesh.hub.run("edgehub", "devices", "rename", "bee", "b")
    until(lambda: b.ask("status")["self"]["name"] == "b", 20, "the map with its old name")
    assert b.pid() == pid


def test_an_interface_that_somebody_removes_ends_the_agent(site: Site) -> None:
    device = site.b
    agent = device.pid()
    device.host.run("ip", "link", "del", "edge0")
    until(lambda: device.host.run("edgeagent", "status", check=False).returncode == 3, 5, "the end of the agent")
    until(lambda: not is_alive(agent), 5, "the end of its process")
    device.up()


def test_a_removed_device_says_so_and_comes_back_with_a_new_token(site: Site) -> None:
    device = site.device("prodigal")
    device.up(site.token)
    site.mesh.hub.run("edgehub", "devices", "remove", device.name, "--yes")
    until(lambda: device.ask("status")["agent"]["state"] == "cut off by the hub", 40, "the device hears of it")
    device.up(site.mesh.token())
    assert device.ask("status")["agent"]["state"] == "member"
    until(lambda: site.a.host.ping(device.address), 10, "it answers again")


def test_a_token_of_another_network_is_refused(site: Site) -> None:
    token = Token.decode(PROVIDER, site.token)
    token.network_key = PROVIDER.ed25519_public(bytes(32))
    result = site.a.host.run("edgeagent", "up", "--join-file", "-", input=token.encode(PROVIDER), check=False)
    assert result.returncode == 1 and "another network" in result.stderr
    assert site.a.ask("status")["agent"]["state"] == "member"


def test_wg_may_look_and_not_touch(site: Site) -> None:
    assert "listening port: 51820" in site.a.host.run("wg", "show", "edge0").stdout
    assert site.a.host.run("wg", "set", "edge0", "listen-port", "1", check=False).returncode != 0


def test_a_service_survives_a_refusal_and_joins_with_the_next_token(site: Site) -> None:
    device = site.device("service")
    device.host.start("edgeagent", "run")
    until(lambda: device.host.run("edgeagent", "status", check=False).returncode == 0, 10, "the agent answers")
    assert device.ask("status")["agent"]["state"] == "not joined"
    used = site.mesh.token("--uses", "1")
    site.device("other").up(used)
    refused = device.host.run("edgeagent", "up", "--join-file", "-", input=used, check=False)
    assert refused.returncode == 4 and "used as often as it may be" in refused.stderr
    about = device.ask("status")["agent"]
    assert about["state"] == "not joined" and "used as often" in about["progress"]
    device.up(site.token)
    assert site.a.host.ping(device.address)


def secrets(device: Device, token: str) -> list[str]:
    """Everything that the device must keep to itself, in the forms in which it might slip out."""
    state = device.host.directory / "edgeagent"
    identity = Identity.decode(PROVIDER, (state / "identity").read_bytes()[STATE_HEADER:])
    admission = Admission.decode(PROVIDER, (state / "admission").read_bytes()[STATE_HEADER:])
    parsed = Token.decode(PROVIDER, token)
    texts = [token, token[4:40], parsed.password(PROVIDER), identity.password]
    feed_key = admission.open_map(PROVIDER, identity.device_id).feed_key
    keys = (parsed.secret, feed_key, identity.device_seed, identity.box_private, identity.node_private)
    return texts + [form for key in keys for form in forms(key)]


def forms(key: bytes) -> list[str]:
    """A key as hexadecimal, base64 of both alphabets, and as Python prints it."""
    return [key.hex(), b64encode(key).decode()[:-1], urlsafe_b64encode(key).decode().rstrip("="), repr(key)[2:-1]]
