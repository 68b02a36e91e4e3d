"""The firewall of one device: flows, their answers, their errors, their fragments, and what ends them."""

from __future__ import annotations

from typing import Any

import pytest

from edgeagent.proto import conntrack
from edgeagent.proto.conntrack import SWEEP_S, flow_key
from edgeagent.proto.control import POLICY
from edgeagent.proto.errors import DropReason
from edgeagent.proto.firewall import ANSWERS_PER_S, Firewall
from edgeagent.proto.heads import ACK, FIN, ICMP, ICMPV6, RST, SYN, TCP, UDP, read
from edgeagent.proto.policy import Slice
from tests.policy_kit import LAN_HOST, ME4, ME6, PEER4, PEER6, FakePeer, echo, error_about, ipv4, ipv6, tcp, udp

NETWORKS = [(bytes((100, 64, 0, 0)), 16), (bytes.fromhex("fd00") + bytes(14), 48)]
SSH = [[["tag:ops"], ["me"], [[TCP, 22, 22]]]]
ALL_OUT = [[["*"], [[0, 0, 65535], [47, 0, 65535]]]]
DROP = DropReason.POLICY
OTHER4 = bytes((100, 64, 0, 3))


def policy(rules: list[Any], out: list[Any] = ALL_OUT, version: int = 1) -> Slice:
    body = POLICY.check({"v": version, "u": "", "in": rules, "out": out}, "po")
    return Slice(body, (), (ME4, ME6), NETWORKS)


class Marks:
    def __init__(self) -> None:
        self.valid: dict[int, int] = {}
        self.used: list[tuple[int, int]] = []

    def set(self, number: int, generation: int) -> None:
        self.valid[number] = generation

    def take(self) -> Any:
        used, self.used = self.used, []
        return iter(used)


class Lab:
    def __init__(self, rules: list[Any], out: list[Any] = ALL_OUT, connections: int = 64) -> None:
        self.now = 1000.0
        self.marks = Marks()
        self.firewall = Firewall(self.now, policy(rules, out), connections, self.marks)
        self.ops = FakePeer("ops", [PEER4, PEER6], ["tag:ops"])
        self.other = FakePeer("other", [OTHER4], ["tag:other"])

    def come(self, packet: bytes, peer: Any = None) -> DropReason | None:
        who: Any = peer or self.ops
        return self.firewall.inbound(self.now, who, packet)

    def go(self, packet: bytes, peer: Any = None) -> bool:
        who: Any = peer or self.ops
        return self.firewall.outbound(self.now, who, packet)

    def carried(self, packet: bytes, *, inbound: bool) -> Any:
        return self.firewall.carried(self.now, self.ops, packet, inbound=inbound)  # type: ignore[arg-type]


def to_ssh(flags: int = SYN, port: int = 5000) -> bytes:
    return tcp(PEER4, ME4, port, 22, flags)


def from_ssh(flags: int = ACK, port: int = 5000) -> bytes:
    return tcp(ME4, PEER4, 22, port, flags)


def test_what_a_rule_admits_comes_in_and_its_answers_go_out() -> None:
    lab = Lab(SSH, out=[])
    assert lab.come(to_ssh()) is None
    assert lab.go(from_ssh(SYN | ACK)) and lab.come(to_ssh(ACK)) is None
    assert lab.come(tcp(PEER4, ME4, 5000, 23, SYN)) is DROP
    assert lab.come(tcp(OTHER4, ME4, 5000, 22, SYN), lab.other) is DROP
    assert not lab.go(tcp(ME4, PEER4, 6000, 22, SYN)), "out has no rules"
    assert lab.firewall.admitted == 1


def test_answers_come_in_without_a_rule_and_nothing_else_does() -> None:
    lab = Lab([])
    assert lab.come(udp(PEER4, ME4, 53, 6000)) is DROP
    assert lab.go(udp(ME4, PEER4, 6000, 53))
    assert lab.come(udp(PEER4, ME4, 53, 6000)) is None
    for packet in (udp(PEER4, ME4, 54, 6000), udp(PEER4, ME4, 53, 6001), tcp(PEER4, ME4, 53, 6000, ACK)):
        assert lab.come(packet) is DROP
    assert lab.come(udp(PEER4, ME4, 53, 6000), lab.other) is DROP, "another peer's flow"


def test_an_answer_is_no_connection_of_the_other_side() -> None:
    """Who was connected to may not connect back from the same port."""
    lab = Lab([])
    assert lab.go(tcp(ME4, PEER4, 6000, 443, SYN))
    assert lab.come(tcp(PEER4, ME4, 443, 6000, SYN | ACK)) is None
    assert lab.come(tcp(PEER4, ME4, 443, 6000, SYN)) is DROP
    assert lab.come(tcp(PEER4, ME4, 443, 6000, ACK)) is None


@pytest.mark.parametrize("version", [4, 6])
def test_echo_by_identifier(version: int) -> None:
    me, peer = (ME4, PEER4) if version == 4 else (ME6, PEER6)
    lab = Lab([])
    assert lab.go(echo(me, peer, 7))
    assert lab.come(echo(peer, me, 7, answer=True)) is None
    assert lab.come(echo(peer, me, 8, answer=True)) is DROP
    assert lab.come(echo(peer, me, 7)) is DROP, "they may not ask because we did"
    lab.now += conntrack.ECHO_S
    assert lab.come(echo(peer, me, 7, answer=True)) is DROP
    lab = Lab([[["tag:ops"], ["me"], [[ICMP if version == 4 else ICMPV6, 0, 65535]]]], out=[])
    assert lab.come(echo(peer, me, 7)) is None and lab.go(echo(me, peer, 7, answer=True))


@pytest.mark.parametrize("version", [4, 6])
def test_errors_pass_that_quote_a_known_flow(version: int) -> None:
    me, peer = (ME4, PEER4) if version == 4 else (ME6, PEER6)
    router = bytes((10, 9, 9, 9)) if version == 4 else bytes.fromhex("fd99") + bytes(14)
    lab = Lab([])
    mine = udp(me, peer, 6000, 53)
    assert lab.come(error_about(mine, peer)) is DROP
    assert lab.go(mine)
    for source in (peer, router):
        assert lab.come(error_about(mine, source)) is None
        assert lab.come(error_about(mine[:48], source)) is None, "as much as must be quoted"
    assert lab.come(error_about(mine, peer), lab.other) is DROP, "not of this peer's"
    for quoted in (udp(me, peer, 6001, 53), udp(peer, me, 53, 6000), b"", mine[:20], mine[:-5], b"\xff" * 60):
        assert lab.come(error_about(quoted, peer)) in (DROP, DropReason.FLOW_UNREADABLE)
    assert lab.come(error_about(error_about(mine, me), peer)) is DROP
    assert lab.go(error_about(udp(peer, me, 1, 2), me)), "the receiver judges it"


def fragments_v4(packet: bytes, number: int = 9) -> list[bytes]:
    body = packet[20:]
    return [
        ipv4(packet[12:16], packet[16:20], packet[9], body[:24], identification=number, fragment=0x2000),
        ipv4(packet[12:16], packet[16:20], packet[9], body[24:48], identification=number, fragment=0x2003),
        ipv4(packet[12:16], packet[16:20], packet[9], body[48:], identification=number, fragment=6),
    ]


def fragments_v6(packet: bytes, number: int = 9) -> list[bytes]:
    body = packet[40:]
    pieces = [(body[:24], 0, 1), (body[24:48], 24, 1), (body[48:], 48, 0)]
    return [
        ipv6(
            packet[8:24], packet[24:40], 44,
            bytes((packet[6], 0)) + (offset | more).to_bytes(2, "big") + number.to_bytes(4, "big") + piece,
        )
        for piece, offset, more in pieces
    ]  # fmt: skip


@pytest.mark.parametrize("version", [4, 6])
def test_the_first_fragment_decides(version: int) -> None:
    me, peer, cut = (ME4, PEER4, fragments_v4) if version == 4 else (ME6, PEER6, fragments_v6)
    lab = Lab([[["tag:ops"], ["me"], [[UDP, 53, 53]]]])
    good, bad = udp(peer, me, 7, 53, bytes(80)), udp(peer, me, 7, 54, bytes(80))
    assert [lab.come(each) for each in cut(good)] == [None] * 3
    assert [lab.come(each) for each in cut(bad, 10)] == [DROP] * 3
    first, second, third = cut(good, 11)
    assert lab.come(second) is DropReason.FRAGMENT_WITHOUT_FIRST
    assert [lab.come(each) for each in (first, third)] == [None] * 2
    lab.now += conntrack.FRAGMENTS_S
    assert lab.come(third) is DropReason.FRAGMENT_WITHOUT_FIRST
    assert [lab.come(each) for each in cut(bad, 11)] == [DROP] * 3, "the same number again"
    assert all(lab.go(each) for each in cut(udp(me, peer, 53, 7, bytes(80))))


def test_fragments_that_would_overwrite_ports_are_refused() -> None:
    lab = Lab([[["*"], ["*"], [[0, 0, 65535]]]])
    whole = to_ssh() + bytes(80)
    first = ipv4(PEER4, ME4, TCP, whole[20:60], identification=3, fragment=0x2000)
    overlap = ipv4(PEER4, ME4, TCP, whole[28:60], identification=3, fragment=0x2001)
    tiny = ipv4(PEER4, ME4, TCP, whole[20:28], identification=4, fragment=0x2000)
    assert lab.come(first) is None
    assert lab.come(overlap) is DropReason.FLOW_UNREADABLE
    assert lab.come(tiny) is DropReason.FLOW_UNREADABLE


def test_revocation_ends_what_was_let_in_and_our_answers_do_not_revive_it() -> None:
    lab = Lab(SSH)
    lab.come(to_ssh())
    lab.go(from_ssh(SYN | ACK))
    assert lab.come(to_ssh(ACK)) is None
    flow = lab.carried(to_ssh(ACK), inbound=True)
    assert lab.marks.valid[flow.number] == flow.generation
    before = flow.generation
    lab.firewall.use(lab.now, policy([], version=2))
    assert lab.marks.valid[flow.number] != before and lab.firewall.revoked == 1
    assert lab.come(to_ssh(ACK)) is DROP
    assert not lab.go(from_ssh(ACK)), "although out allows all"
    assert lab.come(to_ssh(ACK)) is DROP
    assert lab.carried(from_ssh(ACK), inbound=False) is None
    assert lab.go(from_ssh(SYN)), "a connection of our own"
    lab.firewall.use(lab.now, policy(SSH, version=3))
    assert lab.come(to_ssh(SYN, port=5001)) is None
    lab.firewall.use(lab.now, policy([], version=4))
    lab.firewall.use(lab.now, policy(SSH, version=5))
    assert lab.go(from_ssh(ACK, port=5001)), "admitted again"


def test_a_changed_record_is_judged_again_at_once() -> None:
    lab = Lab(SSH)
    assert lab.come(to_ssh()) is None and lab.go(tcp(ME4, PEER4, 1, 2, SYN))
    flow = lab.carried(to_ssh(), inbound=True)
    number, generation = flow.number, flow.generation
    lab.ops.record = FakePeer("ops", [PEER4, PEER6], ["tag:other"]).record
    lab.firewall.record_changed(lab.now, lab.ops)  # type: ignore[arg-type]
    assert lab.marks.valid[number] != generation
    assert lab.come(to_ssh(ACK)) is DROP
    assert lab.come(tcp(PEER4, ME4, 2, 1, SYN | ACK)) is None, "what we began goes on"
    lab.ops.record = FakePeer("ops", [PEER4, PEER6], ["tag:ops"]).record
    assert lab.come(to_ssh(SYN)) is None, "noticed without being told, too"


def test_an_address_behind_a_peer_is_not_the_peer() -> None:
    lab = Lab([[["tag:ops"], ["me"], [[0, 0, 65535]]], [[[LAN_HOST, 32]], ["me"], [[TCP, 80, 80]]]])
    assert lab.come(tcp(LAN_HOST, ME4, 1, 22, SYN)) is DROP
    assert lab.come(tcp(LAN_HOST, ME4, 1, 80, SYN)) is None


def test_answers_of_what_is_routed_may_come_by_another_router() -> None:
    """Whose address it is, is what counts; of a peer's own address nobody else is."""
    lab = Lab([])
    out = tcp(ME4, LAN_HOST, 1, 80, SYN)
    assert lab.go(out)
    assert lab.come(tcp(LAN_HOST, ME4, 80, 1, SYN | ACK), lab.other) is None
    assert lab.come(error_about(out, OTHER4), lab.other) is None
    assert lab.come(tcp(LAN_HOST, ME4, 80, 1, SYN), lab.other) is DROP
    assert lab.firewall.carried(lab.now, lab.other, out, inbound=False) is lab.carried(out, inbound=False)  # type: ignore[arg-type]
    assert lab.go(tcp(ME4, PEER4, 1, 80, SYN))
    assert lab.come(tcp(PEER4, ME4, 80, 1, SYN | ACK), lab.other) is DROP


def test_a_flow_goes_on_by_the_next_router() -> None:
    lab = Lab([[[[LAN_HOST, 32]], ["me"], [[TCP, 22, 22]]]], out=[])
    assert lab.come(tcp(LAN_HOST, ME4, 5, 22, SYN)) is None
    assert lab.go(tcp(ME4, LAN_HOST, 22, 5, SYN | ACK)), "by the one that it came by"
    assert (
        lab.go(tcp(ME4, LAN_HOST, 22, 5, ACK), lab.other)
        and lab.come(tcp(LAN_HOST, ME4, 5, 22, ACK), lab.other) is None
    )
    assert len(lab.firewall.flows) == 1
    assert not lab.go(tcp(ME4, LAN_HOST, 22, 6, ACK), lab.other)


def test_a_scan_by_one_peer_costs_the_others_nothing() -> None:
    lab = Lab([[["*"], ["me"], [[0, 0, 65535]]]], connections=32)
    mine = [udp(OTHER4, ME4, 7, port) for port in range(1, 11)]
    assert [lab.come(each, lab.other) for each in mine] == [None] * 10
    for port in range(1, 2000):
        lab.come(udp(PEER4, ME4, 9, port))
    lab.firewall.use(lab.now, policy([]))
    flows = [flow for flow in lab.firewall.flows if flow.holder.device == "other"]
    assert len(flows) == 10 and len(lab.firewall.flows) == 32
    assert lab.firewall.flows.table.gave_way == 1999 - 22


def test_lifetimes() -> None:
    lab = Lab(SSH)
    cases = [
        (udp(ME4, PEER4, 1, 2), conntrack.UDP_S),
        (ipv4(ME4, PEER4, 47, bytes(8)), conntrack.UDP_S),
        (tcp(ME4, PEER4, 1, 2, SYN), conntrack.TCP_TRANSITORY_S),
        (tcp(ME4, PEER4, 1, 3, ACK), conntrack.TCP_TRANSITORY_S),
        (echo(ME4, PEER4, 1), conntrack.ECHO_S),
    ]
    for packet, lasts in cases:
        assert lab.go(packet)
        flow = lab.carried(packet, inbound=False)
        assert flow.until - lab.now == lasts
    lab.come(to_ssh())
    flow = lab.carried(to_ssh(), inbound=True)
    for packet, inbound, lasts in (
        (to_ssh(ACK), True, conntrack.TCP_TRANSITORY_S),
        (from_ssh(SYN | ACK), False, conntrack.TCP_TRANSITORY_S),
        (to_ssh(ACK), True, conntrack.TCP_ESTABLISHED_S),
        (to_ssh(FIN | ACK), True, conntrack.TCP_TRANSITORY_S),
        (from_ssh(ACK), False, conntrack.TCP_TRANSITORY_S),
        (to_ssh(SYN), True, conntrack.TCP_TRANSITORY_S),
        (from_ssh(ACK), False, conntrack.TCP_ESTABLISHED_S),
        (from_ssh(RST), False, conntrack.TCP_TRANSITORY_S),
    ):
        assert lab.come(packet) is None if inbound else lab.go(packet)
        assert flow.until - lab.now == lasts


def test_a_reset_begins_nothing() -> None:
    lab = Lab([])
    assert lab.go(from_ssh(RST)) and lab.come(to_ssh(ACK)) is DROP


def test_what_an_engine_carries_lives_on_and_what_is_over_is_void() -> None:
    lab = Lab([])
    packets = [udp(ME4, PEER4, 1, 2), udp(ME4, PEER4, 1, 3)]
    assert all(map(lab.go, packets))
    kept, idle = [lab.carried(each, inbound=False) for each in packets]
    assert lab.firewall.poll_timeout() == lab.now + conntrack.UDP_S
    lab.now += conntrack.UDP_S
    lab.marks.used = [(kept.number, conntrack.USED), (63, conntrack.USED), (9999, 1)]
    lab.firewall.handle_timeout(lab.now)
    assert list(lab.firewall.flows) == [kept]
    assert lab.marks.valid[idle.number] != idle.generation - 1 and lab.carried(packets[1], inbound=False) is None
    assert lab.firewall.poll_timeout() == lab.now + conntrack.UDP_S
    tcp_flow = tcp(ME4, PEER4, 1, 2, SYN)
    lab.go(tcp_flow)
    lab.come(tcp(PEER4, ME4, 2, 1, SYN | ACK))
    flow = lab.carried(tcp_flow, inbound=False)
    for mark, lasts in ((1, conntrack.TCP_ESTABLISHED_S), (3, conntrack.TCP_TRANSITORY_S)):
        lab.marks.used = [(flow.number, mark)]
        lab.now += SWEEP_S
        lab.firewall.handle_traffic(lab.now)
        assert flow.until == lab.now + lasts


def test_a_removed_device_leaves_nothing() -> None:
    lab = Lab(SSH)
    lab.come(to_ssh())
    lab.come(to_ssh())
    lab.firewall.forget("ops")
    lab.firewall.forget("nobody")
    assert len(lab.firewall.flows) == 0


def test_answers_to_our_host_are_bounded() -> None:
    lab = Lab([])
    assert sum(lab.firewall.may_answer(lab.now) for _ in range(1000)) == ANSWERS_PER_S
    assert sum(lab.firewall.may_answer(lab.now + 0.5) for _ in range(1000)) == ANSWERS_PER_S // 2


def test_both_directions_of_a_flow_have_one_key() -> None:
    for there, back in (
        (udp(ME6, PEER6, 1, 2), udp(PEER6, ME6, 2, 1)),
        (echo(ME4, PEER4, 7), echo(PEER4, ME4, 7, answer=True)),
    ):
        out, into = read(there), read(back)
        assert out is not None and into is not None
        assert flow_key(out, inbound=False) == flow_key(into, inbound=True)
