"""What holds for whatever comes: the reader of packets, the firewall against a model, its tables under changes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeagent.proto import conntrack, heads
from edgeagent.proto.conntrack import REVOKED
from edgeagent.proto.errors import DropReason
from edgeagent.proto.firewall import Firewall
from edgeagent.proto.heads import ACK, FIN, RST, SYN, read
from edgeagent.proto.policy import NOBODY
from tests.policy_kit import ME4, ME6, PEER4, PEER6, FakePeer, echo, error_about, ip, ipv4, ipv6, tcp, udp
from tests.test_firewall import ALL_OUT, Marks, policy

REASONS = (None, DropReason.POLICY, DropReason.FRAGMENT_WITHOUT_FIRST, DropReason.FLOW_UNREADABLE)
ANY = [[0, 0, 65535], [47, 0, 65535]]

ports = st.integers(0, 3)
flags = st.sampled_from((SYN, SYN | ACK, ACK, FIN | ACK, RST))


def sound(packet: bytes) -> bool:
    """As the device has checked it before."""
    if not packet or packet[0] >> 4 not in (4, 6):
        return False
    if packet[0] >> 4 == 4:
        return len(packet) >= 20 and int.from_bytes(packet[2:4], "big") == len(packet)
    return len(packet) >= 40 and int.from_bytes(packet[4:6], "big") + 40 == len(packet)


@st.composite
def hostile(draw: st.DrawFn) -> bytes:
    """Something like a packet: of options, extension headers, fragments and quotes in any order and of any length."""
    raw = st.binary(max_size=80)
    kind = draw(st.integers(0, 5))
    if kind == 0:
        return bytes((draw(st.sampled_from((0x45, 0x46, 0x4F, 0x40, 0x44, 0x60, 0x6F))),)) + draw(raw)
    if kind == 1:
        body = draw(raw)
        made = bytearray(
            ipv4(PEER4, ME4, draw(st.integers(0, 255)), body, fragment=draw(st.sampled_from((0, 0x2000, 1, 2, 0x3FFF))))
        )
        made[0] = 0x40 | draw(st.integers(0, 15))
        return bytes(made)
    if kind == 2:
        chain, first = b"", draw(st.sampled_from((0, 43, 44, 51, 60, 6, 17, 58, 59)))
        for _ in range(draw(st.integers(0, 12))):
            following, length = (
                draw(st.sampled_from((0, 43, 44, 51, 60, 6, 17, 58))),
                draw(st.sampled_from((0, 0, 1, 255))),
            )
            chain += bytes((following, length)) + draw(st.binary(min_size=6, max_size=6)) + bytes(8 * length)
        return ipv6(PEER6, ME6, first, (chain + draw(raw))[:1400])
    if kind == 3:
        return error_about(draw(raw), draw(st.sampled_from((PEER4, PEER6))))
    if kind == 4:
        packet = draw(st.sampled_from((tcp(PEER4, ME4, 1, 2, SYN), udp(PEER6, ME6, 1, 2), echo(PEER4, ME4, 1))))
        return packet[: draw(st.integers(1, len(packet)))]
    return error_about(error_about(udp(ME4, PEER4, 1, 2), PEER4)[: draw(st.integers(0, 80))], PEER4)


@settings(max_examples=400, deadline=None)
@given(st.lists(hostile(), max_size=12), st.booleans())
def test_nothing_that_comes_does_harm(packets: list[bytes], all_may: bool) -> None:
    firewall = Firewall(0.0, policy([[["*"], ["*"], ANY]] if all_may else []), 4, None)
    peer: Any = FakePeer("p", [PEER4, PEER6], [])
    for packet in packets:
        head = read(packet)
        quoted = read(packet, quoted=True)
        assert head is None or quoted is not None, "what is whole is enough for a quote"
        if head is not None:
            assert len(head.source) == len(head.target) == (4 if packet[0] >> 4 == 4 else 16)
            assert head.at <= len(packet) and 0 <= head.source_port < 65536 and 0 <= head.destination_port < 65536
        assert isinstance(firewall.outbound(0.0, peer, packet), bool)
        if sound(packet):
            assert firewall.inbound(0.0, peer, packet) in REASONS
        firewall.carried(0.0, peer, packet, inbound=True)
        assert len(firewall.flows) <= 4


services = st.lists(
    st.tuples(st.sampled_from((0, 1, 6, 17, 47, 132)), st.integers(0, 9), st.integers(0, 9)).map(list), max_size=6
)


@settings(max_examples=300, deadline=None)
@given(services, st.sampled_from((1, 6, 17, 47, 50, 58, 132)), st.integers(0, 11))
def test_services_against_the_contract(some: list[list[int]], protocol: int, port: int) -> None:
    expected = False
    for allowed, low, high in some:
        if protocol in (6, 17, 132):
            expected |= allowed in (0, protocol) and low <= port <= high
        elif protocol in (1, 58):
            expected |= allowed in (0, protocol)
        else:
            expected |= allowed == protocol
    rules = policy([[["*"], ["*"], some]], [[["*"], some]])
    assert rules.admits(NOBODY, True, PEER4, ME4, protocol, port) is expected
    assert rules.may_reach(NOBODY, True, PEER4, protocol, port) is expected


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.booleans(), ports, ports, st.booleans(), st.sampled_from((0.0, 1.0, 90.0, 179.0, 181.0))),
        max_size=40,
    )
)
def test_udp_against_a_model(steps: list[tuple[bool, int, int, bool, float]]) -> None:
    """A datagram comes in if a rule says so, or if one of its flow passed by less than three minutes ago."""
    firewall = Firewall(0.0, policy([[["tag:a"], ["me"], [[17, 1, 1]]]]), 1000, None)
    peers: list[Any] = [FakePeer("a", [PEER4], ["tag:a"]), FakePeer("b", [PEER6], ["tag:b"])]
    passed: dict[tuple[bool, int, int], float] = {}
    now = 0.0
    for inbound, local, remote, second, gap in steps:
        now += gap
        me, other = (ME6, PEER6) if second else (ME4, PEER4)
        flow = second, local, remote
        known = now - passed.get(flow, -1e9) < conntrack.UDP_S
        if inbound:
            expected = known or (not second and local == 1)
            got = firewall.inbound(now, peers[second], udp(other, me, remote, local)) is None
        else:
            expected, got = True, firewall.outbound(now, peers[second], udp(me, other, local, remote))
        assert got is expected
        if got:
            passed[flow] = now


changes = st.one_of(
    st.tuples(st.just("in"), st.integers(0, 2), ports, ports, flags),
    st.tuples(st.just("out"), st.integers(0, 2), ports, ports, flags),
    st.tuples(st.just("rules"), st.sampled_from((0, 1, 2)), ports, ports, flags),
    st.tuples(st.just("record"), st.integers(0, 2), ports, ports, flags),
    st.tuples(st.just("wait"), st.sampled_from((0, 1, 2)), ports, ports, flags),
    st.tuples(st.just("used"), st.integers(0, 7), ports, ports, flags),
    st.tuples(st.just("forget"), st.integers(0, 2), ports, ports, flags),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(changes, max_size=60))
def test_an_engine_is_told_of_every_end(steps: list[tuple[str, int, int, int, int]]) -> None:
    """What it holds to be valid is what today's rules allow, and nothing that has ended is ever valid again."""
    marks = Marks()
    firewall = Firewall(0.0, policy([]), 5, marks)
    peers: list[Any] = [FakePeer(f"p{n}", [bytes((100, 64, 0, 9 + n))], ["tag:a"]) for n in range(3)]
    rules: tuple[list[Any], ...] = ([], [[["tag:a"], ["me"], ANY]], [[["tag:b"], ["me"], [[6, 1, 1]]]])
    ended: set[tuple[int, int]] = set()
    live: set[tuple[int, int]] = set()
    now, allowed = 0.0, 0
    for what, which, local, remote, flag in steps:
        address = bytes((100, 64, 0, 9 + which % 3))
        if what == "in":
            firewall.inbound(now, peers[which], tcp(address, ME4, remote, local, flag))
        elif what == "out":
            firewall.outbound(now, peers[which], tcp(ME4, address, local, remote, flag))
        elif what == "rules":
            allowed = which
            firewall.use(now, policy(rules[which], ALL_OUT if which else []))
        elif what == "record":
            peers[which].record = FakePeer(f"p{which}", [address], ["tag:b" if flag == SYN else "tag:a"]).record
            firewall.record_changed(now, peers[which])
        elif what == "wait":
            now += (0.5, 100.0, 8000.0)[which]
            firewall.handle_timeout(now)
        elif what == "used":
            marks.used.append((which, 1 + 2 * (flag == FIN | ACK)))
        else:
            firewall.forget(f"p{which}")
        flows = list(firewall.flows)
        assert len(flows) == len(firewall.flows) <= 5
        assert len({flow.number for flow in flows}) == len(flows)
        holds = {(flow.number, flow.generation) for flow in flows if flow.state != REVOKED}
        assert all(marks.valid[number] == generation for number, generation in holds)
        ended |= live - holds
        live |= holds
        assert not any(marks.valid[number] == generation for number, generation in ended)
        for flow in flows:
            if flow.inbound and flow.state != REVOKED:
                assert allowed == 1 or flow.ends[2] == 1
        assert sum(len(holder.items) for holder in firewall.flows.table.holders.values()) == len(flows)


def test_the_reader_against_scapy() -> None:
    scapy = pytest.importorskip("scapy.all")
    v4, v6 = scapy.IP(src="100.64.0.2", dst="100.64.0.1"), scapy.IPv6(src="fd00::2", dst="fd00::1")
    options = scapy.IP(src="100.64.0.2", dst="100.64.0.1", options=[scapy.IPOption(b"\x83\x03\x10")])
    chain = (
        scapy.IPv6ExtHdrHopByHop(options=[scapy.PadN(optdata=bytes(12))])
        / scapy.IPv6ExtHdrDestOpt()
        / scapy.IPv6ExtHdrRouting(addresses=["fd00::9"])
        / scapy.IPv6ExtHdrFragment(id=7)
    )
    authenticated = scapy.AH(nh=17, payloadlen=4, icv=bytes(12))
    cases = [
        (v4 / scapy.UDP(sport=5, dport=6), heads.PLAIN, (17, 5, 6), True),
        (options / scapy.TCP(sport=5, dport=6, flags="FA"), heads.PLAIN, (6, 5, 6), True),
        (v6 / scapy.TCP(sport=5, dport=6, flags="S"), heads.PLAIN, (6, 5, 6), True),
        (v6 / chain / scapy.UDP(sport=5, dport=6), heads.PLAIN, (17, 5, 6), False),
        (v6 / authenticated / scapy.UDP(sport=5, dport=6), heads.PLAIN, (17, 5, 6), False),
        (v4 / scapy.ICMP(type=8, id=77), heads.ECHO_REQUEST, (1, 77, 0), True),
        (v6 / scapy.ICMPv6EchoReply(id=77), heads.ECHO_REPLY, (58, 0, 77), True),
        (v4 / scapy.ICMP(type=11) / bytes(v4 / scapy.UDP()), heads.ICMP_ERROR, (1, 0, 0), False),
        (v4 / scapy.ICMP(type=5) / bytes(v4 / scapy.UDP()), heads.ICMP_OTHER, (1, 0, 0), False),
        (v6 / scapy.ICMPv6PacketTooBig(mtu=1280) / bytes(v6 / scapy.UDP()), heads.ICMP_ERROR, (58, 0, 0), False),
        (v6 / scapy.ICMPv6ND_NS(tgt="fd00::1"), heads.ICMP_OTHER, (58, 0, 0), False),
        (v4 / scapy.SCTP(sport=5, dport=6), heads.PLAIN, (132, 5, 6), True),
        (v4 / scapy.GRE(), heads.PLAIN, (47, 0, 0), True),
    ]
    for made, kind, what, carried in cases:
        head = read(bytes(made))
        assert head is not None, made.summary()
        assert (head.kind, head.protocol, head.source_port, head.destination_port) == (kind, *what), made.summary()
        assert head.carried is carried, made.summary()
    whole = v6 / scapy.IPv6ExtHdrFragment(id=9) / scapy.UDP(sport=5, dport=6) / bytes(3000)
    first, *later = [read(bytes(piece)) for piece in scapy.fragment6(whole, 1280)]
    assert first is not None and (first.kind, first.destination_port) == (heads.PLAIN, 6)
    assert len(later) == 2
    for each in later:
        assert each is not None and each.kind == heads.LATER_FRAGMENT and each.fragment == first.fragment
    assert ip(PEER4, ME4, 17, b"") and read(ip(PEER4, ME4, 17, b"")) is None
