"""Uplinks of which not all carry both IP versions, and servers that have both: from probe to verdict."""

from __future__ import annotations

import random
from ipaddress import ip_address

import pytest

from edgeagent.proto import stun
from edgeagent.proto.endpoint import Endpoint
from edgeagent.proto.outside import Outside
from edgeagent.proto.uplink import State, UplinkFacts
from edgeagent.proto.uplinks import FAILURES_MAX, RETRY_S, Uplinks

V4, V6 = Endpoint(("192.0.2.1", 3478)), Endpoint(("2001:db8::1", 3478, 0, 0))
OWN = {1: ["192.168.1.2", "2001:db8:1::a"], 2: ["10.0.0.2"]}
SIZES = {1: (4, 16), 2: (4,)}
STEP_S = 0.05


def facts(index: int) -> UplinkFacts:
    own = [ip_address(address).packed for address in OWN[index]]
    return UplinkFacts(f"eth{index}", index, addresses=own, gateways={len(each): each for each in own})


class Site:
    """The first uplink has both versions, the second IPv4 alone; what is sent where an uplink does not lead is lost."""

    def __init__(self, *servers: list[Endpoint]) -> None:
        self.now = 0.0
        listed = [(f"r{at}", endpoints, 0) for at, endpoints in enumerate(servers)]
        self.outside = Outside(random.Random(1).randbytes, lambda: listed)
        self.uplinks = Uplinks({})
        self.uplinks.handle_links(0.0, [facts(1), facts(2)])
        self.dead: set[int] = set()
        self.lost: list[tuple[int, Endpoint]] = []

    def advance(self, seconds: float) -> None:
        for _ in range(round(seconds / STEP_S)):
            self.uplinks.used(self.now)
            self.uplinks.handle_timeout(self.now)
            self.outside.handle_timeout(self.now)
            for index in self.uplinks.drain_probes():
                self.outside.probe(self.now, index, SIZES[index])
            self.carry()
            for index, answered in self.outside.drain_verdicts():
                (self.uplinks.answered if answered else self.uplinks.unanswered)(self.now, index)
            self.now += STEP_S

    def carry(self) -> None:
        for transmit in self.outside.drain_transmits():
            endpoint = transmit.endpoint
            if endpoint.size not in SIZES[endpoint.uplink] or endpoint.uplink in self.dead:
                self.lost.append((endpoint.uplink, endpoint))
                continue
            transaction = stun.parse(transmit.datagrams[0]).transaction
            mapped = stun.xor_mapped_address(transaction, (bytes(endpoint.size - 1) + b"\x09", 9))
            answer = stun.write(stun.BINDING_SUCCESS, transaction, [mapped], fingerprint=True)
            self.outside.handle_datagram(self.now, answer, endpoint)

    def state(self, index: int) -> State:
        return next(uplink.state for uplink in self.uplinks if uplink.index == index)


def test_an_uplink_without_ipv6_is_probed_by_ipv4_and_takes_over() -> None:
    site = Site([V6, V4])
    site.advance(60.0)
    assert (site.state(1), site.state(2)) == (State.ALIVE, State.ALIVE) and not site.lost
    site.dead = {1}
    site.advance(20.0)
    assert site.uplinks.active is not None and site.uplinks.active.index == 2


def test_a_server_of_another_version_says_nothing_of_an_uplink() -> None:
    site = Site([V6])
    site.advance(4 * FAILURES_MAX * RETRY_S)
    assert (site.state(1), site.state(2)) == (State.ALIVE, State.UNTESTED) and not site.lost


def test_the_next_server_is_asked_where_the_nearest_is_of_another_version() -> None:
    site = Site([V6], [V4])
    site.advance(2.0)
    assert site.state(2) is State.ALIVE


@pytest.mark.parametrize("survey", [False, True])
def test_mappings_are_asked_for_at_addresses_that_the_uplink_leads_to(survey: bool) -> None:
    site = Site([V6, V4], [V6], [V6, V4], [V6, V4], [V6, V4])
    site.outside.set_uplinks(0.0, {2: SIZES[2], 1: SIZES[1]})
    site.outside.doubt(0.0, survey=survey)
    site.advance(3.0)
    assert not site.lost and [len(address) for address, _ in site.outside.mapped_by(2)] == [4]
    assert {len(address) for address, _ in site.outside.mapped_by(1)} == {4, 16}


def test_where_one_of_several_is_usable_it_is_asked_by_that_one() -> None:
    """The kernel's default route may still be by the one that is dead."""
    site = Site([V4])
    site.outside.set_uplinks(0.0, {1: SIZES[1], 2: SIZES[2]})
    site.outside.set_uplinks(0.0, {2: SIZES[2]})
    site.dead = {1}
    site.outside.doubt(0.0)
    asked = {transmit.endpoint.uplink for transmit in site.outside.drain_transmits()}
    assert asked == {2}
