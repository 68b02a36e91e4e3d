"""Modems of real agents: one by a `mmcli` that says what ModemManager would, one by AT commands on a pty."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.agent.modem_programs import FakeProgram, fake_mmcli
from tests.agent.modem_sim import ModemSim
from tests.netlab import Lab, rights, until
from tests.netlab.mesh import Device, Mesh
from tests.netlab.nat import Kind, NatRouter


class Site:
    """`a` with eth0 and behind its modem lan9, by mmcli, roaming; `b` with an AT port, whose modem carries eth0."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        internet, home = lab.net("198.51.100.0/24", "2001:db8::/64"), lab.net("192.168.1.0/24")
        NatRouter(lab, "nat", home, internet, Kind.PORT)
        self.mesh = Mesh(lab, internet)
        self.mesh.start_hub()
        self.internet, self.token = internet, self.mesh.token("--uses", "0")
        self.a, self.b = self.mesh.device("a", internet), self.mesh.device("b", internet)
        port = self.a.host.attach(home, "lan9")
        assert home.gateway is not None
        self.a.host.ip(f"route add default via 198.51.100.1 dev {self.a.host.ports[0].ifname} metric 50")
        self.a.host.ip(f"route add default via {home.gateway.v4} dev {port.ifname} metric 700")
        programs = self.a.host.directory / "bin"
        self.mmcli = fake_mmcli(programs, "lan9", "roaming", "-118.00")
        self.a.words = ["env", f"PATH={programs}:{self.a.host.env['PATH']}"]
        self.a.options = ["--modem=mmcli"]
        self.sim = ModemSim(str(directory / "ttyUSB2"))
        self.sim.plug()
        self.b.options = [f"--modem={self.sim.port}=eth0"]
        for device in (self.a, self.b):
            device.up(self.token)
        until(lambda: self.a.host.ping(self.b.address), 15, "b answers a")

    def edgehub(self, *words: str) -> str:
        return self.mesh.hub.run("edgehub", *words, "--json", timeout_s=60).stdout

    def show(self, device: str) -> dict[str, Any]:
        return dict(json.loads(self.edgehub("devices", "show", device)))


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    if why := rights.missing():
        pytest.skip(why)
    directory = Path(tempfile.mkdtemp(prefix="edgemesh-modems-", dir="/dev/shm"))  # a port is somewhere below /dev
    try:
        with Lab() as lab:
            made = Site(lab, directory)
            try:
                yield made
            finally:
                made.sim.unplug()
    finally:
        shutil.rmtree(directory)


def modem_of(device: Device) -> dict[str, Any]:
    until(lambda: bool(device.ask("modem")["modems"]), 30, f"the modem of {device.name}")
    [found] = device.ask("modem")["modems"]
    return dict(found)


def test_what_modemmanager_says_is_known_on_the_device(site: Site) -> None:
    found = modem_of(site.a)
    expected = {
        "driver": "ModemManager", "uplink": "lan9", "technology": "LTE", "band": "B3", "rsrp_dbm": -118, "bars": 0,
        "registration": "roaming", "roaming": True, "operator": "Testnet", "apn": "internet.test",
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected
    assert found["received"] + found["sent"] >= 0


def test_its_uplink_is_metered_and_roams(site: Site) -> None:
    modem_of(site.a)

    def uplink() -> dict[str, Any]:
        return next(dict(row) for row in site.a.ask("status")["uplinks"] if row["name"] == "lan9")

    until(lambda: bool(uplink()["metered"]), 10, "lan9 is metered")
    assert uplink()["cost_ms"] >= 5_000
    log = site.a.ask("status", "--log")["log"]
    assert any("lan9: roaming, was normal" in line for line in log)


def test_what_at_commands_say_is_known_on_the_device(site: Site) -> None:
    found = modem_of(site.b)
    expected = {
        "driver": "AT", "uplink": "eth0", "model": "Quectel EC25", "technology": "LTE", "band": "B3", "rsrp_dbm": -97,
        "sinr_db": 12, "bars": 2, "registration": "home", "operator": "Testnet Home",
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected
    until(lambda: any(row["uplink"] == "eth0" for row in site.b.ask("status")["metered"]), 20, "eth0 is metered")
    assert "eth0: LTE, B3, -97 dBm, home, Testnet Home" in site.b.host.run("edgeagent", "status").stdout
    assert "RSRP -97 dBm, RSRQ -11 dB, SINR 12 dB" in site.b.host.run("edgeagent", "modem").stdout
    assert found["agent_sent"] > 0 and found["agent_received"] > 0


def test_bytes_of_the_interface_hold_those_of_the_ledger(site: Site) -> None:
    """What the agent booked to an uplink is part of what its interface counted."""
    modem_of(site.b)
    before = site.b.ask("modem")["modems"][0]
    for _ in range(20):
        assert site.b.host.ping(site.a.address)
    after = site.b.ask("modem")["modems"][0]
    own = sum(after[name] - before[name] for name in ("agent_sent", "agent_received"))
    all_of_it = sum(after[name] - before[name] for name in ("sent", "received"))
    assert 0 < own <= all_of_it and after["ledger_agrees"] is True


def test_who_looks_at_the_hub_sees_it(site: Site) -> None:
    modem_of(site.a)
    last = json.loads(site.edgehub("watch", "a", "--every", "1", "--seconds", "3").splitlines()[-1])
    [modem] = last["modems"]
    assert (modem["uplink"], modem["rsrp_dbm"], modem["bars"], modem["roaming"]) == ("lan9", -118, 0, True)
    uplinks = {row["name"]: row for row in last["uplinks"]}
    assert uplinks["lan9"]["signal_dbm"] == -118 and uplinks["lan9"]["level"] == "roaming"
    assert uplinks["eth0"]["signal_dbm"] is None
    assert site.show("a")["modems"][0]["operator"] == "Testnet"


def test_the_hub_is_told_without_anybody_looking(site: Site) -> None:
    def fact() -> str:
        return str(site.show("b")["facts"].get("modem"))

    until(lambda: fact() == "eth0: LTE B3, -97 dBm, home, Testnet Home", 30, "the fact at the hub")


def test_a_modem_that_goes_mad_or_away_costs_the_agent_nothing(site: Site) -> None:
    port = f"{site.sim.port}-mad"
    with ModemSim(port) as mad:
        mad.answers = dict.fromkeys(mad.answers)  # else it would be read, between the garbage
        mad.garbage = lambda random: random.randbytes(2_048)
        c = site.mesh.device("c", site.internet)
        c.options = [f"--modem={port}=eth0"]
        c.up(site.token)
        pid = c.pid()
        until(lambda: c.ask("modem")["drivers"][0]["failures"], 20, "the poll has failed")
        told = c.ask("modem")
        assert told["modems"] == [] and told["drivers"][0]["next_s"] > 500
        assert told["drivers"][0]["why"].startswith(port)
        before = _cpu_s(pid)
        for _ in range(30):
            assert c.host.ping(site.a.address)
        assert _cpu_s(pid) - before < 5, "of processor time: it does not listen"
    assert c.host.ping(site.a.address) and c.pid() == pid  # the port is gone
    site.sim.unplug()
    assert site.b.host.ping(site.a.address)
    site.sim.plug()


def _cpu_s(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_the_program_is_asked_no_more_than_once_a_minute(site: Site) -> None:
    fake: FakeProgram = site.mmcli
    assert 1 <= fake.asked.count("-L -J") <= 3
