"""Uplinks as the kernel tells of them: default routes, addresses that last, and whether anything can leave."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from edgeagent.io import rtnetlink as rt
from edgeagent.io.netlink import LinkChanged, Netlink, NetlinkMonitor
from edgeagent.proto.uplink import State, UplinkFacts
from edgeagent.uplinks import UplinkWatch, filters_strictly
from tests.engine.conftest import Inside
from tests.engine.test_netlink import packed
from tests.netlab import Host, Lab, until

MESH = packed("100.64.0.1")


class Kernel:
    """A host with two uplinks and a third interface, and the watch of its agent."""

    def __init__(self, lab: Lab, inside: Inside, order: list[str]) -> None:
        nets = [lab.net("192.0.2.0/24", "2001:db8::/64"), lab.net("198.51.100.0/24"), lab.net("10.0.0.0/24")]
        self.host: Host = lab.host("a", *nets)
        self.host.ip(
            "route add default via 192.0.2.9 metric 100",
            "-6 route add default via 2001:db8::9 metric 100",
            "route add default dev eth1 metric 700",
            "addr add 2001:db8::77/64 dev eth0 nodad preferred_lft 0",
            "addr add 100.64.0.1/32 dev eth0",
        )
        with inside(self.host):
            self.netlink, self.monitor = Netlink(), NetlinkMonitor()
        self.watch = UplinkWatch(
            order, lambda name: False, lambda address: address == MESH, self.netlink.link("eth2").index
        )

    def look(self) -> dict[str, UplinkFacts]:
        netlink = self.netlink
        self.watch.look(1.0, netlink.links(), netlink.addresses(), netlink.default_routes())
        return {uplink.name: uplink.facts for uplink in self.watch.uplinks}

    def states(self) -> dict[str, State]:
        return {uplink.name: uplink.state for uplink in self.watch.uplinks}

    def follows(self, name: str, state: State) -> None:
        """By events alone."""

        def told() -> bool:
            for change in self.monitor.drain():
                if isinstance(change, LinkChanged):
                    self.watch.link_changed(2.0, change.link, change.removed)
            return self.states()[name] is state

        until(told, 5, f"{name} {state.value}")

    def cable(self, number: int, up: str) -> None:
        """At the far end."""
        net = self.host.ports[number].net
        net.switch.ip(f"link set {net.bridge}p1 {up}")


@pytest.fixture
def kernel(lab: Lab, inside: Inside) -> Iterator[Kernel]:
    made = Kernel(lab, inside, [])
    yield made
    made.netlink.close()
    made.monitor.close()


class Connection:
    family = socket.AF_INET6

    def __init__(self, own: str, device: str = "") -> None:
        self.own = own
        self.device = device

    def getsockname(self) -> tuple[str, int, int, int]:
        return self.own, 1, 0, 0

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        return self.device.encode() + b"\0" if self.device else b""


@pytest.mark.parametrize(
    ("connection", "elsewhere"),
    [
        (Connection("2001:db8:1::a"), True),
        (Connection("2001:db8:1::beef"), True),
        (Connection("2001:db8:2::a"), False),
        (Connection("2001:db8:1::a", "eth1"), False),
        (Connection("2001:db8:2::a", "eth0"), True),
        (Connection("2001:db8:3::a"), False),
        (Connection("2001:db8:9::9"), False),
    ],
    ids=["lasting", "temporary", "ours", "bound", "bound to the other", "near", "unknown"],
)
def test_which_connections_go_by_another_uplink(connection: Connection, elsewhere: bool) -> None:
    """eth1 is to be used: eth0 has a temporary address as well, and eth2 is no uplink."""
    up = rt.IFF_UP | rt.IFF_RUNNING | rt.IFF_LOWER_UP
    watch = UplinkWatch([], lambda name: False, lambda address: False, 9)
    watch.look(
        0.0,
        [rt.Link(2 + number, f"eth{number}", up, 1500) for number in range(3)],
        [
            rt.Address(2, packed("2001:db8:1::a"), 64, 0, 0),
            rt.Address(2, packed("2001:db8:1::beef"), 64, 0, rt.IFA_F_TEMPORARY),
            rt.Address(3, packed("2001:db8:2::a"), 64, 0, 0),
            rt.Address(4, packed("2001:db8:3::a"), 64, 0, 0),
        ],
        [rt.Route(bytes(16), 0, index, gateway=packed("fe80::1"), metric=index) for index in (2, 3)],
    )
    assert watch.is_elsewhere(connection, 3) is elsewhere  # type: ignore[arg-type]


def test_what_is_an_uplink(kernel: Kernel) -> None:
    facts = kernel.look()
    assert list(facts) == ["eth0", "eth1"]
    eth0, eth1 = facts["eth0"], facts["eth1"]
    assert eth0.addresses == sorted([packed(kernel.host.address), packed(kernel.host.address6)])
    assert eth0.gateways == {4: packed("192.0.2.9"), 16: packed("2001:db8::9")}
    assert (eth0.metric, eth0.mtu, eth0.is_up, eth0.routed) == (100, 1500, True, (4, 16))
    assert (eth1.gateways, eth1.metric, eth1.routed) == ({4: b""}, 700, (4,))
    assert kernel.watch.uplinks.active is not None and kernel.watch.uplinks.active.name == "eth0"
    assert kernel.watch.down == []


def test_a_cable_that_is_pulled_is_told_by_the_event_alone(kernel: Kernel) -> None:
    kernel.look()
    kernel.cable(0, "down")
    kernel.follows("eth0", State.DOWN)
    assert kernel.watch.uplinks.active is not None and kernel.watch.uplinks.active.name == "eth1"
    assert not kernel.look()["eth0"].is_up
    assert kernel.watch.down == [kernel.netlink.link("eth0").index]
    kernel.cable(0, "up")
    kernel.follows("eth0", State.UNTESTED)
    assert kernel.look()["eth0"].is_up and kernel.states()["eth0"] is State.UNTESTED


def test_an_interface_that_vanishes_and_comes_back_under_another_number(kernel: Kernel) -> None:
    before = kernel.look()["eth1"].index
    kernel.host.ip("link del eth1")
    kernel.follows("eth1", State.DOWN)
    kernel.look()
    kernel.host.ip(
        "link add eth1 type veth peer name far",
        "link set far up",
        "link set eth1 up",
        "addr add 203.0.113.1/24 dev eth1",
        "route add default dev eth1 metric 700",
    )
    facts = kernel.look()["eth1"]
    assert facts.index != before and kernel.states()["eth1"] is State.UNTESTED


def test_a_route_that_is_lost(kernel: Kernel) -> None:
    kernel.look()
    kernel.host.ip("route del default dev eth1")
    kernel.look()
    assert kernel.states() == {"eth0": State.UNTESTED, "eth1": State.DOWN}


def test_a_strict_filter_is_noticed(kernel: Kernel, inside: Inside) -> None:
    def seen(everywhere: int, here: int) -> tuple[bool, bool]:
        kernel.host.sysctl({"net/ipv4/conf/all/rp_filter": everywhere, "net/ipv4/conf/eth1/rp_filter": here})
        with inside(kernel.host):
            return filters_strictly("eth0"), filters_strictly("eth1")

    assert seen(0, 0) == (False, False)
    assert seen(0, 1) == (False, True)
    assert seen(1, 0) == (True, True)
    assert seen(1, 2) == (True, False)


def test_only_what_is_named(lab: Lab, inside: Inside) -> None:
    kernel = Kernel(lab, inside, ["eth1"])
    assert list(kernel.look()) == ["eth1"]
    assert [name for name, _ in kernel.watch.uplinks.bound] == ["eth1"]  # or the kernel would send by eth0
    kernel.netlink.close()
    kernel.monitor.close()
