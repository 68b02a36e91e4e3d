"""Two WANs for real: a device behind two routers, a cable pulled and a router that drops everything, under traffic."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from itertools import pairwise

import pytest

from tests.netlab import Lab, rights, until
from tests.netlab.mesh import Device, Mesh
from tests.netlab.nat import Kind, NatRouter

PINGS, EVERY_S = 80, 0.1
GAP_MAX_S = 5.0  # on a machine that does other things too; the figure is printed
BACK_WITHIN_S = 45.0


class Site:
    """`a` with eth0 and eth1, each behind a NAT of its own; `b` and the hub on the internet."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        internet = lab.net("198.51.100.0/24", "2001:db8::/64")
        homes = lab.net("192.168.1.0/24"), lab.net("192.168.2.0/24")
        self.nats = [NatRouter(lab, f"nat{number}", home, internet, Kind.PORT) for number, home in enumerate(homes, 1)]
        self.mesh = Mesh(lab, internet)
        self.mesh.start_hub()
        token = self.mesh.token("--uses", "0")
        self.a, self.b = self.mesh.device("a", homes[0]), self.mesh.device("b", internet)
        port = self.a.host.attach(homes[1])
        assert homes[1].gateway is not None
        self.a.host.ip(f"route add default via {homes[1].gateway.v4} dev {port.ifname} metric 700")
        for device in (self.a, self.b):
            device.up(token)
        until(lambda: self.a.host.ping(self.b.address), 15, "b answers a")

    def path_uplink(self) -> str | None:
        """By which `a` sends to `b`."""
        (row,) = self.a.ask("peers")
        uplink: str | None = row["path_uplink"]
        return uplink

    def states(self) -> dict[str, str]:
        return {row["name"]: row["state"] for row in self.a.ask("status")["uplinks"]}

    def settle(self) -> None:
        """Until both ways are known to work and the first one is in use."""

        def ready() -> bool:
            self.a.host.ping(self.b.address)
            states = self.states()
            return self.path_uplink() == "eth0" and set(states.values()) == {"alive"}

        until(ready, BACK_WITHIN_S, "eth0 is in use and eth1 stands by")


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    if why := rights.missing():
        pytest.skip(why)
    with Lab() as lab:
        yield Site(lab)


class Pings:
    """Ten a second from one device to another, while something happens."""

    def __init__(self, sender: Device, receiver: Device) -> None:
        self._process = sender.host.start(
            "ping", "-n", "-D", "-i", str(EVERY_S), "-W", "1", "-c", str(PINGS), receiver.address
        )

    def count(self) -> int:
        return len(self._arrivals())

    def _arrivals(self) -> list[float]:
        return [float(at) for at in re.findall(r"^\[([\d.]+)\] \d+ bytes", self._process.text(), re.MULTILINE)]

    def gap_s(self) -> float:
        """The longest time without an answer, once all is over."""
        self._process.wait(PINGS * EVERY_S + 10)
        arrivals = self._arrivals()
        assert arrivals, self._process.text()
        return max(after - before for before, after in pairwise(arrivals)) - EVERY_S


def both_ways(site: Site) -> list[Pings]:
    pings = [Pings(site.a, site.b), Pings(site.b, site.a)]
    until(lambda: all(each.count() >= 10 for each in pings), 10, "a second of answers")
    return pings


def show(what: str, pings: list[Pings]) -> None:
    gaps = [each.gap_s() for each in pings]
    print(f"{what}: gap of a→b {gaps[0]:.2f} s, of b→a {gaps[1]:.2f} s", file=sys.stderr)
    assert max(gaps) < GAP_MAX_S


def test_a_cable_is_pulled_and_plugged_in_again(site: Site) -> None:
    site.settle()
    pings = both_ways(site)
    site.a.host.ports[0].pull()
    show("cable pulled", pings)
    assert site.path_uplink() == "eth1" and site.states()["eth0"] == "down"
    pings = both_ways(site)
    site.a.host.ports[0].plug_in()
    show("cable plugged in", pings)
    site.settle()


def test_a_router_drops_everything_and_comes_back(site: Site) -> None:
    site.settle()
    pings = both_ways(site)
    site.nats[0].impair(loss_percent=100)
    show("router drops everything", pings)
    assert site.path_uplink() == "eth1"
    site.nats[0].impair(loss_percent=0)
    site.settle()


@pytest.mark.matrix
def test_bulk_goes_on_over_the_other_one(site: Site) -> None:
    site.settle()
    server = site.b.host.start("iperf3", "-s", "-1", "--forceflush", "-B", site.b.address)
    until(lambda: "listening" in server.text(), 5, "iperf3")
    client = site.a.host.start("iperf3", "-c", site.b.address, "-t", "6", "-i", "0.5", "--forceflush")
    until(lambda: client.text().count("bits/sec") >= 2, 10, "a second of bulk")
    site.a.host.ports[0].pull()
    client.wait(30)
    rates = [float(rate) for rate in re.findall(r"sec +[\d.]+ \w+ +([\d.]+) Mbits/sec", client.text())]
    print("Mbit/s each half second:", *rates, file=sys.stderr)
    assert "receiver" in client.text()
    assert site.path_uplink() == "eth1"
    site.a.host.ports[0].plug_in()
    site.settle()
