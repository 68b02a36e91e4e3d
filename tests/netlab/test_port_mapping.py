"""A real agent behind a router that opens ports on request, met from where nothing else would reach it."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

from tests.netlab import Lab, until
from tests.netlab.homes import Homes, Member, way
from tests.netlab.nat import Kind, NatRouter
from tests.test_portmap_miniupnpd import CONFIG, RULES

INTERNET = "11.0.0.0/24"  # not a documentation prefix: miniupnpd would not map to one
DIRECT_WITHIN_S = 10.0
MAPPED_WITHIN_S = 20.0


def open_on_request(router: NatRouter) -> None:
    router.host.run("nft", "-f", "-", input=RULES)
    config = router.host.directory / "miniupnpd.conf"
    config.write_text(CONFIG)
    router.host.start("miniupnpd", "-d", "-f", config).expect("Listening for NAT-PMP/PCP")


def mappings(member: Member) -> list[dict[str, Any]]:
    asked = member.request("status")["port_mapping"]
    return [] if asked is None else asked["mappings"]


def test_two_symmetric_nats_and_one_of_them_opens_a_port(lab: Lab) -> None:
    """Without it this pair could only speak by a relay."""
    if shutil.which("miniupnpd") is None:
        pytest.skip("needs miniupnpd: apt-get install miniupnpd-nftables")
    homes = Homes(lab, INTERNET)
    homes.start("fra-1")
    router = homes.home(Kind.SYMMETRIC)
    open_on_request(router)
    a, b = homes.join("a", router), homes.join("b", homes.home(Kind.SYMMETRIC))
    until(lambda: bool(mappings(a)), MAPPED_WITHIN_S, "an open port")
    (mapping,) = mappings(a)
    assert mapping["protocol"] in ("pcp", "nat-pmp")
    assert mapping["address"].startswith("11.0.0.")
    assert homes.until_direct_s(b, a, DIRECT_WITHIN_S) is not None
    found = way(b, a)
    assert found is not None and found.endpoint == f"{mapping['address']}:{mapping['port']}"


def test_an_agent_that_is_told_not_to_ask(lab: Lab) -> None:
    if shutil.which("miniupnpd") is None:
        pytest.skip("needs miniupnpd: apt-get install miniupnpd-nftables")
    homes = Homes(lab, INTERNET)
    homes.start("fra-1")
    router = homes.home(Kind.PORT)
    open_on_request(router)
    member = homes.member("a", router)
    member.options = ["--port-mapping", "off"]
    homes.up(member)
    assert member.request("status")["port_mapping"] is None
