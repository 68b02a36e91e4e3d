"""What `edgeagent netcheck` prints, from checks of simulated networks."""

from __future__ import annotations

import pytest

from edgeagent import netcheck
from edgeagent.netcheck import show
from edgeagent.proto.netcheck_report import report
from tests.netcheck_kit import SERVER6, SERVERS, Server, World, relay
from tests.sim import nat as sim
from tests.test_portmap import Router


def lines(world: World, gateway: bool = False) -> list[str]:
    return show(report(world.run(gateway=gateway))).splitlines()


def test_a_home() -> None:
    world = World(sim.PORT)
    world.gateway = Router(0, 2).answer
    assert lines(world, gateway=True)[:11] == [
        "relays          2 of 2 reached, the nearest is fra-1",
        "UDP             IPv4 yes, IPv6 not known",
        "IPv4            192.168.1.7:40000 is seen as 203.0.113.9:40000, port kept",
        "  mapping       endpoint-independent",
        "  filtering     address-and-port-dependent",
        "  hairpin       no",
        "IPv6            not asked: no relay is known to have it",
        "port mapping    PCP by 192.168.1.1 on eth0: 203.0.113.9",
        "                NAT-PMP by 192.168.1.1 on eth0: 203.0.113.9",
        "captive portal  no",
        "TLS opened      no",
    ]


def test_an_office_without_udp() -> None:
    shown = lines(World(sim.BLOCKED))
    assert "UDP             IPv4 no, IPv6 not known" in shown
    assert "port mapping    no router that opens ports was found" in shown
    assert "fra-1  fra     198.51.100.1  no answer  -    40.0 ms  expected" in shown
    assert shown[-1] == "UDP is blocked: relays by TLS only, no direct paths."


def test_no_nat_two_ip_versions_and_a_router_that_refuses() -> None:
    world = World(None)
    world.servers.append(Server(SERVER6))
    world.names["fra-1.example"] = [SERVER6, SERVERS[0]]
    world.names["fra-2.example"] = "no such name"
    router = Router(2)
    router.refuses = 2
    world.gateway = router.answer
    shown = show(report(world.run([relay(1), relay(2, ports=(0, 0))], gateway=True))).splitlines()
    assert "IPv4            192.168.1.7:40000, no NAT" in shown
    assert "IPv6            [2001:db8:0:1::7]:40004, no NAT" in shown
    assert "  filtering     endpoint-independent or address-dependent" in shown
    assert "port mapping    PCP by 192.168.1.1 on eth0: refused (result 2)" in shown
    assert any(line.startswith("fra-2  fra     fra-2.example: no such name ") for line in shown)


def test_a_slow_line_and_a_relay_by_tls_alone() -> None:
    world = World(sim.SYMMETRIC, servers=[Server(SERVERS[0])])
    world.delay_s, world.path_mtu = 0.45, 1_410
    assert any(" 1400 or more " in line for line in lines(world))
    world = World(servers=[Server(SERVER6)])
    shown = show(report(world.run([relay(1, ports=(0, 0))]))).splitlines()
    assert "IPv6            2001:db8:0:1::7, relays by TLS" in shown


@pytest.mark.parametrize("proxy", [False, True])
def test_what_is_reached_by_a_proxy_alone_is_not_called_unreachable_without_a_word(
    proxy: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = World(sim.BLOCKED).run()
    monkeypatch.setattr(netcheck, "check_network", lambda *_: done)
    netcheck.netcheck([], 1.0, as_json=False, proxy=proxy)
    assert ("A proxy is set" in capsys.readouterr().out) is proxy
