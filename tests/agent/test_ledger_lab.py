"""What the ledger says of real agents, held against the counters of their interfaces; and budgets at work."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.netlab import Host, Lab, rights, until
from tests.netlab.mesh import Device, Mesh

WRONG_MAX, JOIN_WRONG_MAX = 0.02, 0.15  # of all bytes: what TCP acknowledges and sends again is estimated
ETHERNET = 14
NO_UDP = """table ip lab {
    chain out {
        type nat hook postrouting priority srcnat
        oifname "eth0" masquerade
    }
    chain fw {
        type filter hook forward priority filter
        meta l4proto udp drop
    }
}
"""
pytestmark = pytest.mark.netlab


class Site:
    """A hub and two devices on one segment; nothing leaves an interface in larger pieces than the wire carries."""

    def __init__(self, lab: Lab) -> None:
        self.net = lab.net("198.51.100.0/24")
        self.mesh = Mesh(lab, self.net)
        self.mesh.start_hub()
        self.token = self.mesh.token("--uses", "0")
        self.a, self.b = self.device("a"), self.device("b")
        unsegmented(self.mesh.hub)

    def device(self, name: str) -> Device:
        device = self.mesh.device(name, self.net)
        unsegmented(device.host)
        return device


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    if why := rights.missing():
        pytest.skip(why)
    with Lab() as lab:
        yield Site(lab)


def unsegmented(host: Host) -> None:
    """And nothing but ARP is said by the kernel on its own."""
    host.ip("link set eth0 gso_max_segs 1")
    host.sysctl({"net/ipv6/conf/eth0/disable_ipv6": 1})


def transfer(device: Device, to: Device, size: str, *options: str) -> None:
    server = to.host.start("iperf3", "-s", "-1", "--forceflush")
    until(lambda: "listening" in server.text(), 5, "iperf3")
    device.host.run("iperf3", "-c", to.address, "-n", size, *options)


def wire(host: Host) -> tuple[int, int]:
    """Bytes sent and received by eth0, from the IP header on."""
    for line in host.run("cat", "/proc/net/dev").stdout.splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == "eth0":
            received, packets_in, *_ = fields = [int(number) for number in numbers.split()]
            return fields[8] - ETHERNET * fields[9], received - ETHERNET * packets_in
    raise AssertionError("no eth0")


def ledger(device: Device) -> dict[str, tuple[int, int]]:
    """Since the start, by cause; all on eth0."""
    [uplink] = device.ask("ledger")["uplinks"]
    assert uplink["uplink"] == "eth0"
    return {row["cause"]: (row["since_start"]["sent"], row["since_start"]["received"]) for row in uplink["causes"]}


def off(device: Device) -> tuple[float, float]:
    """By what part the ledger is wrong, each way."""
    on_wire, booked = wire(device.host), ledger(device)
    sums = [sum(row[way] for row in booked.values()) for way in (0, 1)]
    return sums[0] / on_wire[0] - 1, sums[1] / on_wire[1] - 1


def test_the_ledger_is_what_was_on_the_wire(site: Site) -> None:
    a, b = site.a, site.b
    for device in (a, b):
        device.up(site.token)
    for device in (a, b):
        # Of two connections that were closed at once, nobody sees what the broker said afterwards
        assert max(map(abs, off(device))) < JOIN_WRONG_MAX, (off(device), ledger(device), wire(device.host))
        assert set(ledger(device)) == {"control"}
    # Two pings in one handshake, then a bulk transfer each way
    a.host.run("ping", "-c", "2", "-i", "0.2", b.address)
    until(lambda: "rekey" in ledger(a), 5, "a handshake")
    for direction in ([], ["-R"]):
        transfer(a, b, "8M", *direction)
    for device in (a, b):
        booked = ledger(device)
        assert max(map(abs, off(device))) < WRONG_MAX, (off(device), booked, wire(device.host))
        assert {"control", "payload", "rekey", "probe"} <= set(booked)
        assert min(booked["payload"]) > 4 << 20
        assert all(booked[cause] < (20_000, 20_000) for cause in ("control", "rekey", "probe"))
    # What one sent, the other got: nothing is lost here
    assert ledger(a)["payload"] == ledger(b)["payload"][::-1]


def test_what_goes_by_a_relay_is_on_its_own_bill_and_on_that_of_what_it_carries(site: Site) -> None:
    """Behind a router that lets no UDP out: TCP in TLS in TCP, counted by the kernel."""
    relay, inside = site.mesh.lab.host("relay", site.net), site.mesh.lab.net("10.1.0.0/24")
    router = site.mesh.lab.router("router", site.net, inside)
    router.run("nft", "-f", "-", input=NO_UDP)
    token = relay.directory / "token"
    token.write_text(site.mesh.hub.run("edgehub", "relays", "invite", "--region", "fra").stdout)
    server = relay.start(
        *("edgerelay", "serve", "--join-file", str(token), "--state-dir", str(relay.directory / "state")),
        *("--id", "fra-1", "--public", relay.address),
    )
    until(lambda: "in region fra" in server.text(), 10, "the relay has joined")
    device = site.mesh.device("inside", inside)
    for host in (relay, device.host):
        unsegmented(host)
    router.ip("link set eth1 gso_max_segs 1")
    device.up(site.token)
    until(lambda: any(row["serves"] for row in device.ask("status")["relays"]), 15, "a session at the relay")
    until(lambda: device.host.ping(site.b.address), 10, "the other device answers")
    transfer(device, site.b, "4M", "-R")
    booked = ledger(device)
    assert max(map(abs, off(device))) < WRONG_MAX, (off(device), booked, wire(device.host))
    assert booked["payload"][1] > 4 << 20
    assert 0.02 < booked["relay"][1] / booked["payload"][1] < 0.2  # keys, TLS, TCP, acknowledgements


def test_the_day_goes_on_after_a_restart_and_a_damaged_file_costs_no_membership(site: Site) -> None:
    device = site.a
    [before] = device.ask("ledger")["uplinks"]
    device.host.run("edgeagent", "down")
    device.up()
    [after] = device.ask("ledger")["uplinks"]

    def day(uplink: dict[str, Any]) -> int:
        return sum(sum(row["day"].values()) for row in uplink["causes"])

    assert day(after) > day(before) > 8 << 20
    assert sum(sum(row["since_start"].values()) for row in after["causes"]) < 1 << 20
    assert device.ask("status")["agent"]["flash_writes"] <= 4
    device.host.run("edgeagent", "down")
    path = device.host.directory / "edgeagent/ledger"
    path.write_bytes(path.read_bytes()[:-1])
    device.up()
    assert device.ask("status")["agent"]["damaged_files"] == 1
    [anew] = device.ask("ledger")["uplinks"]
    assert day(anew) < 1 << 20


def test_a_budget_that_is_used_up_makes_the_agent_connect_anew_with_fewer_pings(site: Site) -> None:
    device = site.device("metered")
    device.host.run("edgeagent", "up", "--join-file", "-", "--budget", "eth0=1MB/day", input=site.token)
    [uplink] = device.ask("status")["metered"]
    assert (uplink["level"], uplink["on_demand"]) == ("normal", True)
    transfer(device, site.b, "5M")
    assert device.ask("ledger")["uplinks"][0]["level"] == "emergency"  # who asks does not wait for the next look
    log = "\n".join(device.ask("status", "--log")["log"])
    assert "eth0: emergency, was normal: " in log
    until(lambda: device.ask("status")["mqtt"]["stage"] == "up", 10, "another connection")
    text = device.host.run("edgeagent", "ledger").stdout
    assert "metered: eth0: emergency" in text and "a day used" in text
    assert json.loads(device.host.run("edgeagent", "ledger", "--json").stdout)["date_known"] is True
