"""The parts of the check alone: the MTU search, the gateway's probe, and the words."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from edgeagent.proto import stun
from edgeagent.proto.endpoint import Endpoint
from edgeagent.proto.natpmp import PortMapDrop
from edgeagent.proto.netcheck_facts import Filtering, Mapping, classify
from edgeagent.proto.netcheck_mtu import MtuSearch
from edgeagent.proto.netcheck_portmap import GatewayProbe
from tests.netcheck_kit import GATEWAY, OUTSIDE, OWN, OWN6, SERVERS
from tests.test_netcheck import AD, APD, EI
from tests.test_portmap import Router


@given(st.integers(576, 9_000), st.integers(576, 9_000), st.integers(0, 1 << 30))
def test_the_search_ends_at_the_limit(link: int, path: int, seed: int) -> None:
    """Against a line with random answers in random order."""
    chance = Random(seed)
    server = Endpoint(("198.51.100.1", 3478))
    search = MtuSearch(0.0, server, chance.randbytes, ipv6=False, rtt_s=0.01)
    now, sent = 0.0, 0
    while not search.done:
        transmits = search.drain_transmits()
        chance.shuffle(transmits)
        for transmit in transmits:
            [datagram] = transmit.datagrams
            sent += 1
            size = len(datagram) + 28
            if size > link:
                search.refused(now, datagram[8:20])
            elif size <= path:
                mapped = stun.xor_mapped_address(datagram[8:20], (OUTSIDE, 1))
                answer = stun.write(stun.BINDING_SUCCESS, datagram[8:20], [mapped], fingerprint=False)
                search.handle(now, answer, server)
        due = search.poll_timeout()
        if due is not None and not search.done:
            now = max(now, due)
            search.handle_timeout(now)
    assert search.exact and search.low == min(link, path) // 4 * 4
    assert sent < 150


def test_nobody_but_the_gateway_is_heard() -> None:
    probe = GatewayProbe(0.0, "eth0", GATEWAY, OWN, 41_000, bytes)
    [asked, _] = probe.drain_datagrams()
    good = Router(2).answer(0.0, asked)
    assert good is not None
    for source in ((OWN, 5351), (GATEWAY, 5352), (OWN6, 5351)):
        probe.handle_datagram(0.1, source, good)
    assert probe.drops == {PortMapDrop.STRANGER: 3} and probe.facts() == []
    probe.handle_datagram(0.1, (GATEWAY, 5351), good[:24] + b"\x01" + good[25:])
    probe.handle_datagram(0.1, (GATEWAY, 5351), good[:20])
    assert probe.drops == {PortMapDrop.STRANGER: 3, PortMapDrop.UNEXPECTED: 1, PortMapDrop.MALFORMED: 1}
    probe.handle_datagram(0.1, (GATEWAY, 5351), good)
    assert [fact.address for fact in probe.facts()] == [OUTSIDE]


def test_a_silent_gateway_is_asked_four_times() -> None:
    probe = GatewayProbe(0.0, "eth0", GATEWAY, OWN, 41_000, bytes)
    asked = [(0.0, len(probe.drain_datagrams()))]
    while (due := probe.poll_timeout()) is not None:
        probe.handle_timeout(due)
        asked.append((due, len(probe.drain_datagrams())))
    assert asked == [(0.0, 2), (0.25, 2), (0.75, 2), (1.75, 2), (2.75, 0)]
    assert probe.done and probe.facts() == []


@given(st.binary(max_size=80))
def test_whatever_a_gateway_says_is_read_or_dropped(noise: bytes) -> None:
    probe = GatewayProbe(0.0, "eth0", GATEWAY, OWN, 41_000, bytes)
    for head in (b"", b"\x00\x80", b"\x02\x81\x00", b"\x02\x80\x00\x00"):
        probe.handle_datagram(0.1, (GATEWAY, 5351), head + noise)
    assert sum(probe.drops.values()) + len(probe.facts()) >= 0
    assert all(fact.address is None or len(fact.address) in (4, 16) for fact in probe.facts())


addresses = st.tuples(st.sampled_from(SERVERS), st.sampled_from((1, 2, 3)))


@given(st.dictionaries(addresses, st.tuples(st.just(OUTSIDE), st.integers(1, 3)), max_size=6))
def test_classification_against_its_slow_twin(samples: dict[tuple[bytes, int], tuple[bytes, int]]) -> None:
    pairs = [(a, b, samples[a] == samples[b]) for a in samples for b in samples if a < b]
    within = [same for a, b, same in pairs if a[0] == b[0]]
    across = [same for a, b, same in pairs if a[0] != b[0]]
    if not all(within):
        expected = Mapping.ADDRESS_AND_PORT_DEPENDENT
    elif not all(across):
        expected = Mapping.ADDRESS_DEPENDENT if within else Mapping.DEPENDENT
    elif across:
        expected = Mapping.ENDPOINT_INDEPENDENT
    else:
        expected = Mapping.NOT_BY_PORT if within else Mapping.UNKNOWN
    assert classify(samples) is expected


def test_the_words_are_those_of_the_rfc() -> None:
    names = ("ENDPOINT_INDEPENDENT", "ADDRESS_DEPENDENT", "ADDRESS_AND_PORT_DEPENDENT")
    assert [Filtering[name].value for name in names] == [Mapping[name].value for name in names] == [EI, AD, APD]
