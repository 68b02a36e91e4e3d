"""The check of a network against simulated ones: every kind of NAT, filters, narrow lines, portals, and silence."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeagent.proto import stun
from edgeagent.proto.endpoint import Endpoint, Transmit
from edgeagent.proto.errors import LocalProtocolError
from edgeagent.proto.netcheck_nat import Role
from edgeagent.proto.netcheck_report import report
from edgeagent.proto.portmap_upnp import Done, UpnpFailure
from edgeagent.proto.relay_http import Response
from tests.netcheck_kit import OUTSIDE, OWN, SERVER6, SERVERS, TIMEOUT_S, Server, World, relay
from tests.sim import nat as sim
from tests.test_portmap import Router

EI, AD, APD = (
    "endpoint-independent",
    "address-dependent",
    "address-and-port-dependent",
)
EITHER = "endpoint-independent-or-address-dependent"
OTHER = bytes((198, 51, 100, 9))
HAIRPIN_STRICT = sim.Kind(
    "hairpin-strict", sim.Mapping.ENDPOINT_INDEPENDENT, sim.Filtering.ADDRESS_AND_PORT_DEPENDENT, hairpin=True
)


@pytest.mark.parametrize(
    ("kind", "mapping", "filtering", "hairpin", "port_kept"),
    [
        (sim.FULL, EI, EITHER, False, True),
        (sim.ADDRESS, EI, EITHER, False, True),
        (sim.PORT, EI, APD, False, True),
        (sim.SYMMETRIC, APD, APD, False, False),
        (sim.BY_ADDRESS, AD, EITHER, False, False),
        (sim.HAIRPIN, EI, EITHER, True, True),
        (HAIRPIN_STRICT, EI, APD, True, True),
        (sim.CARRIER, EI, APD, False, False),
        (sim.CARRIER_HAIRPIN, EI, EITHER, True, False),
    ],
    ids=lambda value: value.name if isinstance(value, sim.Kind) else None,
)
def test_kinds_by_two_relays(kind: sim.Kind, mapping: str, filtering: str, hairpin: bool, port_kept: bool) -> None:
    world = World(kind)
    found = report(world.run())
    nat = found["nat"]["ipv4"]
    assert (nat["mapping"], nat["filtering"], nat["hairpin"], nat["port_kept"]) == (
        mapping,
        filtering,
        hairpin,
        port_kept,
    )
    assert found["reachable"] and found["udp"] == {"ipv4": True, "ipv6": None} and found["unfinished"] == []
    assert nat["local"] == "192.168.1.7:40000"
    assert all(text.startswith("203.0.113.9:") for text in nat["mapped"])
    assert [way["mtu"] for row in found["relays"] for way in row["ways"]] == [1_500, 1_500]
    assert [way["udp_ms"] for row in found["relays"] for way in row["ways"]] == [40.0, 40.0]


@pytest.mark.parametrize(
    ("kind", "filtering"), [(sim.FULL, EI), (sim.ADDRESS, AD), (sim.PORT, APD), (sim.SYMMETRIC, APD)]
)
def test_a_server_with_a_second_address_tells_filtering_apart(kind: sim.Kind, filtering: str) -> None:
    found = report(World(kind, servers=[Server(SERVERS[0], other=SERVERS[1])]).run())
    assert found["nat"]["ipv4"]["filtering"] == filtering


def test_a_server_with_a_second_address_is_preferred() -> None:
    found = report(World(sim.ADDRESS, servers=[Server(SERVERS[1]), Server(SERVERS[0], other=OTHER)]).run())
    assert found["nat"]["ipv4"]["filtering"] == AD


@pytest.mark.parametrize(("kind", "mapping"), [(sim.PORT, EITHER), (sim.SYMMETRIC, APD), (sim.BY_ADDRESS, EITHER)])
def test_one_relay_tells_what_it_can(kind: sim.Kind, mapping: str) -> None:
    found = report(World(kind, servers=[Server(SERVERS[0])]).run())
    assert found["nat"]["ipv4"]["mapping"] == mapping
    said = " ".join(found["advice"])
    assert ("second relay" in said) == (mapping == EITHER)


@pytest.mark.parametrize(
    ("kind", "mapping"), [(sim.PORT, EI), (sim.SYMMETRIC, "address-dependent-or-address-and-port-dependent")]
)
def test_relays_without_a_second_port(kind: sim.Kind, mapping: str) -> None:
    servers = [Server(address, ports=(3478, 0)) for address in SERVERS]
    for server in servers:
        server.knows_changes = False
    found = report(World(kind, servers=servers).run([relay(1, ports=(3478, 0)), relay(2, ports=(3478, 0))]))
    assert (found["nat"]["ipv4"]["mapping"], found["nat"]["ipv4"]["filtering"]) == (mapping, "unknown")


def test_the_second_port_is_learnt_from_the_server() -> None:
    found = report(World(sim.PORT).run([relay(1, ports=(3478, 0)), relay(2, ports=(3478, 0))]))
    assert (found["nat"]["ipv4"]["mapping"], found["nat"]["ipv4"]["filtering"]) == (EI, APD)


def test_a_server_that_ignores_changes_does_not_make_a_nat_look_open_or_closed() -> None:
    world = World(sim.FULL)
    for server in world.servers:
        server.knows_changes = False
    assert report(world.run())["nat"]["ipv4"]["filtering"] == "unknown"


def test_a_second_port_that_is_closed_at_the_server_does_not_look_like_a_filter() -> None:
    world = World(sim.FULL)
    world.closed = {(address, 3479) for address in SERVERS}
    found = report(world.run())
    assert found["nat"]["ipv4"]["filtering"] == "unknown"
    world = World(sim.FULL)
    world.closed = {(SERVERS[0], 3479)}
    assert report(world.run())["nat"]["ipv4"]["filtering"] == EITHER


def test_no_nat_with_and_without_a_firewall() -> None:
    for firewall, filtering, said in ((False, EITHER, "all networks"), (True, APD, "most networks")):
        world = World(None)
        world.firewall = firewall
        found = report(world.run())
        nat = found["nat"]["ipv4"]
        assert (nat["mapping"], nat["filtering"], nat["hairpin"], nat["port_kept"]) == ("no-nat", filtering, None, True)
        assert said in found["advice"][0]


def test_udp_blocked_and_tls_open() -> None:
    world = World(sim.BLOCKED)
    found = report(world.run())
    assert found["reachable"] and found["udp"] == {"ipv4": False, "ipv6": None} and found["nat"]["ipv4"] is None
    assert found["advice"] == ["UDP is blocked: relays by TLS only, no direct paths."]
    assert world.now < world.began + TIMEOUT_S


def test_nothing_open() -> None:
    world = World(sim.BLOCKED)
    world.tls_error = "Connection timed out"
    found = report(world.run())
    assert not found["reachable"] and "neither by UDP nor by TLS" in found["advice"][0]
    assert found["relays"][0]["ways"][0]["tls_error"] == "Connection timed out"
    world = World()
    world.names = {}
    found = report(world.run())
    assert not found["reachable"] and "name server" in found["advice"][0]
    assert found["relays"][0]["errors"] == ["fra-1.example: no such name"]


def test_relays_without_udp() -> None:
    found = report(World().run([relay(1, ports=(0, 0)), relay(2, ports=(0, 3479))]))
    assert found["reachable"] and found["udp"]["ipv4"] is None
    assert "nothing is known" in found["advice"][0]


def test_what_is_cut_short_is_not_called_blocked() -> None:
    world = World(sim.BLOCKED)
    world.timeout_s = 2.0
    found = report(world.run())
    assert found["udp"]["ipv4"] is None and found["unfinished"] == ["udp"]
    assert found["reachable"] and "could not be told" in found["advice"][0]


def test_sixteen_relays_with_both_ip_versions() -> None:
    servers = [Server(SERVERS[0][:3] + bytes((number,))) for number in range(1, 17)]
    world = World(sim.PORT, servers=servers)
    for number, server in enumerate(servers, 1):
        world.names[f"fra-{number}.example"] = [server.address, SERVER6[:15] + bytes((number,))]
    world.servers += [Server(SERVER6[:15] + bytes((number,))) for number in range(1, 17)]
    found = report(world.run([relay(number) for number in range(1, 17)]))
    assert [len(row["ways"]) for row in found["relays"]] == [2] * 16
    assert all(way["udp"] and way["mtu"] == 1_500 for row in found["relays"] for way in row["ways"])


def test_both_ip_versions() -> None:
    world = World(sim.SYMMETRIC)
    world.servers.append(Server(SERVER6))
    world.names["fra-1.example"] = [SERVER6, SERVERS[0], SERVERS[1]]
    world.firewall = True
    found = report(world.run([relay(1), relay(2)]))
    assert found["udp"] == {"ipv4": True, "ipv6": True}
    assert found["nat"]["ipv6"]["mapping"] == "no-nat" and found["nat"]["ipv6"]["filtering"] == APD
    assert found["ipv6"] == {"address": "2001:db8:0:1::7", "relays": 1, "reached": True}
    assert [way["address"] for way in found["relays"][0]["ways"]] == ["2001:db8:0:2::1", "198.51.100.1"]
    assert "symmetric" in found["advice"][0] and "IPv6 passes too" in " ".join(found["advice"])


def test_a_system_without_ipv6() -> None:
    world = World()
    world.names["fra-1.example"] = [SERVER6, SERVERS[0]]
    found = report(world.run(sizes=(4,)))
    assert found["udp"] == {"ipv4": True, "ipv6": None}


@pytest.mark.parametrize("loss", [0.1, 0.25])
def test_lost_datagrams_change_no_verdict(loss: float) -> None:
    """Silence is what a filter looks like: it takes several lost in a row to be mistaken."""
    right = 0
    for seed in range(20):
        world = World(sim.HAIRPIN, seed=seed)
        world.loss = loss
        nat = report(world.run())["nat"]["ipv4"]
        right += (nat["mapping"], nat["filtering"], nat["hairpin"]) == (EI, EITHER, True)
    assert right >= (19 if loss < 0.2 else 14)


# MTU


@pytest.mark.parametrize(
    ("link", "path", "measured"),
    [
        (1_500, 1_500, 1_500),
        (9_000, 9_000, 9_000),
        (65_536, 65_536, 9_000),
        (1_492, 1_492, 1_492),
        (1_500, 1_280, 1_280),
        (1_500, 1_403, 1_400),
        (1_500, 576, 576),
        (1_500, 1_364, 1_364),
        (9_000, 8_996, 8_996),
        (1_500, 1_111, 1_108),
    ],
)
def test_the_mtu_is_found_to_four_bytes(link: int, path: int, measured: int) -> None:
    world = World()
    world.link_mtu, world.path_mtu = link, path
    found = report(world.run())
    ways = [way for row in found["relays"] for way in row["ways"]]
    assert [(way["mtu"], way["mtu_exact"]) for way in ways] == [(measured, True)] * 2
    assert any("do not reach" in line for line in found["advice"]) == (measured < 1_340)
    assert world.sent_bytes < 200_000


def test_the_mtu_over_ipv6() -> None:
    world = World(servers=[Server(SERVER6)])
    world.path_mtu = 1_420
    found = report(world.run())
    assert found["relays"][0]["ways"][0]["mtu"] == 1_420


def test_a_path_too_narrow_for_the_smallest_probe_has_no_mtu() -> None:
    world = World()
    world.path_mtu = 500
    found = report(world.run())
    assert [way["mtu"] for row in found["relays"] for way in row["ways"]] == [None, None]
    assert found["udp"]["ipv4"]


def test_an_mtu_search_that_runs_out_of_time_says_so() -> None:
    world = World()
    world.delay_s, world.path_mtu = 0.45, 1_410
    found = report(world.run())
    way = found["relays"][0]["ways"][0]
    assert way["mtu"] == 1_400 and not way["mtu_exact"] and "mtu" in found["unfinished"]
    assert way["udp_ms"] == 900.0 and found["nat"]["ipv4"]["filtering"] == APD


# Port mapping


@pytest.mark.parametrize(
    ("versions", "protocols"), [((2,), ["pcp"]), ((0,), ["nat-pmp"]), ((0, 2), ["nat-pmp", "pcp"]), ((), [])]
)
def test_who_opens_ports(versions: tuple[int, ...], protocols: list[str]) -> None:
    world = World(sim.PORT)
    router = Router(*versions)
    world.gateway = router.answer
    found = report(world.run(gateway=True))
    assert sorted(row["protocol"] for row in found["port_mapping"]) == protocols
    assert all(row["address"] == "203.0.113.9" and row["gateway"] == "192.168.1.1" for row in found["port_mapping"])
    assert ("The router opens ports" in found["advice"][0]) == bool(protocols)
    assert found["unfinished"] == []
    for datagram in world.given_back:
        router.answer(world.now, datagram)
    assert router.ends_at == {}
    assert len(world.given_back) == ("pcp" in protocols)


def test_upnp_is_waited_for_where_nothing_better_answers() -> None:
    world = World(sim.PORT)
    world.upnp = Done(OUTSIDE)
    found = report(world.run(gateway=True))
    assert [(row["protocol"], row["address"]) for row in found["port_mapping"]] == [("upnp", "203.0.113.9")]
    world = World(sim.PORT)
    world.upnp = UpnpFailure.NOT_INSTALLED
    assert report(world.run(gateway=True))["port_mapping"] == []


def test_a_gateway_with_a_private_address_outside_is_not_the_last_one() -> None:
    world = World(sim.PORT)
    router = Router(2)
    router.address = bytes((100, 64, 0, 7))
    world.gateway = router.answer
    found = report(world.run(gateway=True))
    assert "another NAT" in " ".join(found["advice"])
    assert "most networks" in found["advice"][0]


def test_refusals_of_a_gateway_are_told() -> None:
    world = World(sim.PORT)
    router = Router(2)
    router.refuses = 2
    world.gateway = router.answer
    found = report(world.run(gateway=True))
    assert [(row["address"], row["refused"]) for row in found["port_mapping"]] == [(None, "result 2")]


# Portals and interception

LOGIN = Response(302, {"location": "http://login.cafe.example/?to=x"}, b"")


@pytest.mark.parametrize(
    ("portal", "tls_works", "plain", "suspected"),
    [
        (None, True, False, False),
        (None, False, False, None),
        (None, False, True, False),
        (LOGIN, True, False, True),
        (LOGIN, False, False, True),
        (Response(511, {}, b""), True, False, True),
        (Response(204, {}, b""), False, False, True),
        (Response(200, {}, b""), False, False, True),
        # a web server of the relay's own host, or its redirection to TLS
        (Response(404, {}, b""), True, False, False),
        (Response(301, {"location": "https://fra-1.example/generate_204"}, b""), True, False, False),
        (Response(301, {"location": "https://198.51.100.1:443/"}, b""), True, False, False),
        (Response(307, {}, b""), True, False, False),
        (Response(302, {"location": "https://[2001:db8::9]:8443/login"}, b""), True, False, True),
    ],
)
def test_captive_portals(portal: Response | None, tls_works: bool, plain: bool, suspected: bool | None) -> None:
    world = World(servers=[Server(SERVERS[0])])
    world.portal, world.plain = portal, plain
    world.tls_error = "" if tls_works else "Connection refused"
    found = report(world.run())
    assert found["captive_portal"] is suspected
    assert any("captive portal" in line for line in found["advice"]) == bool(suspected)


def test_another_certificate_is_interception() -> None:
    world = World()
    assert report(world.run())["tls_interception"] is False
    world = World()
    world.certificate = bytes(32)
    found = report(world.run())
    assert found["tls_interception"] is True and "opens TLS" in " ".join(found["advice"])
    assert found["relays"][0]["ways"][0]["tls_certificate"] == "another"
    world = World()
    assert report(world.run([relay(1, pin=b""), relay(2, pin=b"")]))["tls_interception"] is None
    world = World()
    world.tls_error = "Connection refused"
    assert report(world.run())["tls_interception"] is None


# Hostile and odd


def test_a_server_cannot_have_us_knock_anywhere() -> None:
    """Where a server claims to see us at an address that no host has, nothing is sent there."""
    for lie in ((bytes((224, 0, 0, 1)), 53), (bytes((127, 0, 0, 1)), 53), (OUTSIDE, 0)):
        world = Recording(servers=[Liar(lie)])
        world.run()
        assert {endpoint.addr[0] for endpoint in world.sent} == {"198.51.100.1"}


class Liar(Server):
    """Says to everybody that it is at `lie`."""

    def __init__(self, lie: tuple[bytes, int]) -> None:
        super().__init__(SERVERS[0])
        self.lie = lie

    def answer(self, at: Any, source: Any, datagram: bytes) -> Any:
        mapped = stun.xor_mapped_address(datagram[8:20], self.lie)
        return at, stun.write(stun.BINDING_SUCCESS, datagram[8:20], [mapped], fingerprint=True)


class Recording(World):
    def __init__(self, servers: list[Server]) -> None:
        super().__init__(servers=servers)
        self.sent: list[Endpoint] = []

    def _send(self, at: Any, transmit: Transmit) -> None:
        self.sent.append(transmit.endpoint)
        super()._send(at, transmit)


def test_late_and_double_reports_change_nothing() -> None:
    world = World()
    check = world.run()
    before = report(check)
    way = check.relays[0].ways[0]
    check.resolved(world.now, 0, [(SERVERS[1], OWN)])
    check.not_resolved(world.now, 0, "x")
    check.fetched(world.now, way, LOGIN)
    check.dialled(world.now, way, world._dial(way))
    check.handle_datagram(world.now, (Role.MAPPING, 4), b"\0\1", Endpoint(("198.51.100.1", 3478)))
    check.handle_datagram(world.now, (Role.MTU, 4), b"", Endpoint(("192.0.2.9", 1)))
    assert report(check) == before
    with pytest.raises(LocalProtocolError):
        check.upnp_ended(world.now, UpnpFailure.REFUSED)


@given(st.lists(st.tuples(st.sampled_from(list(Role)), st.binary(max_size=120)), max_size=20))
def test_noise_on_the_sockets_changes_nothing(noise: list[tuple[Role, bytes]]) -> None:
    world = World(sim.PORT)

    def say(role: Role, datagram: bytes) -> None:
        world.check.handle_datagram(world.now, (role, 4), datagram, Endpoint(("198.51.100.1", 3478)))

    for number, (role, datagram) in enumerate(noise):
        world.at(0.01 * number, partial(say, role, datagram))
    nat = report(world.run())["nat"]["ipv4"]
    assert (nat["mapping"], nat["filtering"]) == (EI, APD)
