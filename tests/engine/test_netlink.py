from __future__ import annotations

import errno
import json
import socket
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeagent.io import rtnetlink as rt
from edgeagent.io.netlink import (
    AddressChanged,
    Change,
    EventsLost,
    LinkChanged,
    Netlink,
    NetlinkMonitor,
    RouteChanged,
    read_changes,
)
from tests.engine.conftest import Inside
from tests.netlab import Host, Lab, until

SETTLE_S = 5.0
SIZES: dict[int, int] = {socket.AF_INET: 4, socket.AF_INET6: 16}  # of addresses, in bytes


@pytest.fixture
def host(lab: Lab) -> Host:
    lab.net("192.0.2.0/24", "2001:db8::/64")
    return lab.host("a", *lab.nets)


@pytest.fixture
def netlink(host: Host, inside: Inside) -> Iterator[Netlink]:
    with inside(host):
        made = Netlink()
        yield made
        made.close()


def shown(host: Host, *command: str) -> list[dict[str, object]]:
    """iproute2 as the oracle."""
    found: list[dict[str, object]] = json.loads(host.run("ip", "-j", "-details", *command).stdout or "[]")
    return found


def packed(text: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)


def test_links(host: Host, netlink: Netlink) -> None:
    link = netlink.link("eth0")
    assert (link.name, link.mtu, link.is_up) == ("eth0", 1500, True)
    assert link.index == shown(host, "link", "show", "eth0")[0]["ifindex"]
    netlink.set_link(link.index, mtu=1400, queue_length=77)
    (seen,) = shown(host, "link", "show", "eth0")
    assert (seen["mtu"], seen["txqlen"]) == (1400, 77)
    assert "UP" in str(seen["flags"])
    netlink.set_link(link.index, up=False)
    assert not netlink.link("eth0").is_up
    netlink.set_link(link.index, up=True)
    assert netlink.link("eth0").is_up
    with pytest.raises(OSError) as caught:
        netlink.link("nosuch0")
    assert caught.value.errno == errno.ENODEV
    with pytest.raises(OSError):
        netlink.set_link(9999, up=True)


def test_all_links_and_whether_they_carry(lab: Lab, host: Host, netlink: Netlink) -> None:
    host.ip("link add v0 type veth peer name v1", "link set v0 up")
    oracle = {
        link["ifname"]: ("LOWER_UP" in link["flags"] and link["operstate"] in ("UP", "UNKNOWN"))  # type: ignore[operator]
        for link in shown(host, "link")
    }
    assert {link.name: link.carries for link in netlink.links()} == oracle
    assert (oracle["eth0"], oracle["lo"], oracle["v0"], oracle["v1"]) == (True, True, False, False)
    assert next(link for link in netlink.links() if link.name == "v0").is_up
    host.ip("link set v1 up")
    # The kernel's link watch sets the state a moment after the command has returned.
    until(lambda: netlink.link("v0").carries, SETTLE_S, "v0 carries")
    host.ports[0].net.switch.ip(f"link set {host.ports[0].net.bridge}p1 down")  # the cable is pulled at the far end
    until(lambda: not netlink.link("eth0").carries, SETTLE_S, "eth0 carries nothing")


def test_default_routes(host: Host, netlink: Netlink) -> None:
    index = netlink.link("eth0").index
    assert netlink.default_routes() == []
    host.ip("link add v0 type veth peer name v1", "link set v0 up", "link set v1 up")
    other = netlink.link("v0").index
    host.ip(
        "route add default via 192.0.2.9 metric 100",
        "route add default dev v0 metric 700",
        "route add default via 192.0.2.8 table 77",
        "route add 10.0.0.0/8 via 192.0.2.9",
        "-6 route add default via 2001:db8::9",
        "-6 route add unreachable default metric 4000",
    )
    found = [(r.index, r.gateway, r.metric, len(r.destination)) for r in netlink.default_routes()]
    assert found == [
        (index, packed("192.0.2.9"), 100, 4),
        (other, b"", 700, 4),
        (index, packed("2001:db8::9"), 1024, 16),
    ]
    host.ip(
        "route flush default",
        "-6 route flush default",
        "route add default metric 5 nexthop via 192.0.2.9 weight 2 nexthop dev v0",
    )
    assert [(r.index, r.gateway, r.metric) for r in netlink.default_routes()] == [
        (index, packed("192.0.2.9"), 5),
        (other, b"", 5),
    ]


def test_addresses(host: Host, netlink: Netlink) -> None:
    index = netlink.link("eth0").index
    for text, cidr in (("100.64.0.1", 32), ("fd00::1", 128)):
        netlink.add_address(index, packed(text), cidr)
        netlink.add_address(index, packed(text), cidr)  # again is no error
    ours = {(a.index, a.address, a.cidr) for a in netlink.addresses()}
    oracle = {
        (link["ifindex"], packed(info["local"]), info["prefixlen"])
        for link in shown(host, "addr")
        for info in link["addr_info"]  # type: ignore[attr-defined]
    }
    assert ours == oracle
    assert (index, packed("fd00::1"), 128) in ours
    for text, cidr in (("100.64.0.1", 32), ("fd00::1", 128)):
        netlink.delete_address(index, packed(text), cidr)
        with pytest.raises(OSError) as caught:
            netlink.delete_address(index, packed(text), cidr)
        assert caught.value.errno == errno.EADDRNOTAVAIL


def test_what_an_address_is_like(host: Host, netlink: Netlink) -> None:
    host.ip("addr add fd00::5/64 dev eth0 nodad preferred_lft 0")
    (found,) = [a for a in netlink.addresses() if a.address == packed("fd00::5")]
    assert found.flags & rt.IFA_F_DEPRECATED
    assert not found.flags & rt.IFA_F_TENTATIVE


@pytest.mark.parametrize(
    ("family", "prefix", "cidr", "gateway"),
    [
        ("-4", "10.8.0.0", 16, "192.0.2.9"),
        ("-6", "fd08::", 32, "2001:db8::9"),
    ],
)
def test_routes(host: Host, netlink: Netlink, family: str, prefix: str, cidr: int, gateway: str) -> None:
    index = netlink.link("eth0").index
    route = rt.Route(packed(prefix), cidr, index, metric=50)

    def seen() -> list[dict[str, object]]:
        return [r for r in shown(host, family, "route", "show", "table", "all") if r["dst"] == f"{prefix}/{cidr}"]

    netlink.add_route(route)
    assert [(r["dev"], r["metric"], r["protocol"]) for r in seen()] == [("eth0", 50, "static")]
    with pytest.raises(OSError) as caught:
        netlink.add_route(route)
    assert caught.value.errno == errno.EEXIST
    netlink.replace_route(rt.Route(packed(prefix), cidr, index, metric=50, gateway=packed(gateway)))
    assert [r["gateway"] for r in seen()] == [gateway]
    netlink.delete_route(route)
    assert seen() == []
    with pytest.raises(OSError) as caught:
        netlink.delete_route(route)
    assert caught.value.errno == errno.ESRCH
    source = host.address if family == "-4" else host.address6
    netlink.add_route(rt.Route(packed(prefix), cidr, index, source=packed(source), table=51820))
    (with_source,) = seen()
    assert (str(with_source["table"]), with_source["prefsrc"]) == ("51820", source)


@pytest.mark.parametrize("given_up", [False, True], ids=["interrupted", "given up"])
def test_a_dump_that_changed_meanwhile_is_read_again(
    host: Host, netlink: Netlink, monkeypatch: pytest.MonkeyPatch, given_up: bool
) -> None:
    """It goes on to its end, over several reads; to ask again before that is to be told that the kernel is busy."""
    many = "\n".join(f"addr add 10.{a}.{b}.1/32 dev lo" for a in range(1, 5) for b in range(1, 251))
    host.run("ip", "-batch", "-", input=many)
    real, seen = rt.messages, [0]

    def interrupted(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
        for kind, flags, sequence, body in real(data):
            seen[0] += 1
            yield kind, flags | (rt.NLM_F_DUMP_INTR if seen[0] == 1 else 0), sequence, body

    if given_up:
        netlink._sequence += 1
        netlink._socket.send(rt.request(rt.RTM_GETADDR, rt.NLM_F_DUMP, netlink._sequence, rt.address_query()))
    else:
        monkeypatch.setattr(rt, "messages", interrupted)
    assert len(netlink.addresses()) > 1_000
    assert netlink.link("lo").name == "lo"


def test_which_way_a_packet_goes(host: Host, netlink: Netlink) -> None:
    index = netlink.link("eth0").index
    host.ip("rule add fwmark 7 unreachable")
    for there, source in (("192.0.2.200", host.address), ("2001:db8::200", host.address6)):
        route = netlink.route_to(packed(there))
        assert route.index == index
        assert route.source == packed(source)
        assert netlink.route_to(packed(there), packed(source)).index == index
    for there, source, mark in (("198.51.100.1", "", 0), ("192.0.2.200", "", 7), ("192.0.2.200", "10.0.0.1", 0)):
        with pytest.raises(OSError):
            netlink.route_to(packed(there), packed(source) if source else b"", mark)


def test_the_same_as_pyroute2(host: Host, netlink: Netlink, inside: Inside) -> None:
    pyroute2 = pytest.importorskip("pyroute2")
    index = netlink.link("eth0").index
    netlink.add_address(index, packed("100.64.0.1"), 32)
    netlink.add_route(rt.Route(packed("100.64.0.0"), 10, index, source=packed("100.64.0.1"), metric=7))
    with inside(host), pyroute2.IPRoute() as oracle:
        (link,) = oracle.link("get", index=index)
        mine = netlink.link("eth0")
        assert (mine.name, mine.mtu) == (link.get("ifname"), link.get("mtu"))
        assert mine.flags == link["flags"]
        theirs = {
            (a["index"], packed(a.get("local") or a.get("address")), a["prefixlen"], a["scope"])
            for a in oracle.get_addr()
        }
        assert {(a.index, a.address, a.cidr, a.scope) for a in netlink.addresses()} == theirs
        (route,) = [r for r in oracle.get_routes(family=socket.AF_INET, table=254) if r.get("dst") == "100.64.0.0"]
        assert (route["dst_len"], route.get("oif"), route.get("prefsrc"), route.get("priority")) == (
            10,
            index,
            "100.64.0.1",
            7,
        )


def test_changes_are_told(host: Host, inside: Inside) -> None:
    with inside(host):
        monitor = NetlinkMonitor()
    try:
        seen: list[Change] = []

        def happens(wanted: Callable[[Change], bool], what: str) -> None:
            def look() -> bool:
                seen.extend(monitor.drain())
                return any(wanted(change) for change in seen)

            until(look, 5, what)

        host.ip("link set eth0 mtu 1300")
        happens(lambda c: isinstance(c, LinkChanged) and c.link.mtu == 1300 and not c.removed, "the MTU's change")
        host.ip("addr add 10.1.2.3/24 dev eth0")
        ours = packed("10.1.2.3")
        happens(lambda c: isinstance(c, AddressChanged) and c.address.address == ours and not c.removed, "the address")
        host.ip("route add 10.9.0.0/16 via 10.1.2.4")
        there = packed("10.9.0.0")
        happens(lambda c: isinstance(c, RouteChanged) and c.route.destination == there and not c.removed, "the route")
        host.ip("route del 10.9.0.0/16", "addr del 10.1.2.3/24 dev eth0")
        happens(lambda c: isinstance(c, RouteChanged) and c.route.destination == there and c.removed, "the route's end")
        happens(lambda c: isinstance(c, AddressChanged) and c.address.address == ours and c.removed, "the address' end")
        host.ip("link del eth0")
        happens(lambda c: isinstance(c, LinkChanged) and c.removed, "the link's end")
    finally:
        monitor.close()


def test_lost_events_are_told(host: Host, inside: Inside) -> None:
    with inside(host):
        monitor = NetlinkMonitor()
    try:
        host.sh("for i in $(seq 4000); do echo link set eth0 mtu $((1300 + i % 2)); done | ip -batch -")
        until(lambda: any(isinstance(change, EventsLost) for change in monitor.drain()), 5, "lost events")
    finally:
        monitor.close()


@given(st.binary(max_size=300))
def test_any_bytes_are_read(data: bytes) -> None:
    bodies = [body for _, _, _, body in rt.messages(data)]
    assert sum(16 + len(body) for body in bodies) <= len(data) and all(body in data for body in bodies)
    assert all(rt.error_number(body) == 0 for body in bodies if len(body) < 4)
    assert len(list(read_changes(data))) <= len(bodies)
    assert (rt.read_link(data) is None) == (len(data) < 16)
    address, route = rt.read_address(data), rt.read_route(data)
    assert address is None or len(address.address) == SIZES[data[0]]
    assert route is None or len(route.destination) == SIZES[data[0]]
    assert all(each.cidr == 0 and route is not None for each in rt.read_default_routes(data))


@given(st.binary(max_size=80))
def test_any_next_hops_are_read(hops: bytes) -> None:
    body = rt.route_change(rt.Route(b"", 0, 0)) + rt._attribute(9, hops)
    for route in rt.read_default_routes(body):
        assert route.cidr == 0 and len(route.destination) == 16


@given(st.data())
def test_any_damage_is_survived(data: st.DataObject) -> None:
    whole = rt.request(
        rt.RTM_NEWROUTE, 0, 1, rt.route_change(rt.Route(bytes(4), 8, 3, gateway=bytes(4), source=bytes(4), metric=9))
    ) + rt.request(rt.RTM_NEWADDR, 0, 2, rt.address_change(3, bytes(16), 64))
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    assert len(list(read_changes(bytes(damaged)))) <= 2
    assert len(list(read_changes(whole))) == 2
