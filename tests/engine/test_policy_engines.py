"""Both engines under a policy: what they let out and in, what the C library carries of it, and how fast that ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from edgeagent.proto import conntrack
from edgeagent.proto.heads import ACK, FIN, SYN, TCP, UDP
from edgeagent.proto.policy import Slice
from tests.engine.twins import Node, plain, report, settle
from tests.policy_kit import FakePeer, echo, error_about, tcp, udp

PAIRS = [("pure", "pure"), ("fast", "fast"), ("pure", "fast"), ("fast", "pure")]
ANY = [[0, 0, 65535]]
Make = Callable[..., Node]


def say(node: Node, rules: list[Any], out: list[Any] | None = None) -> None:
    body = {"v": 1, "u": "", "in": rules, "out": [[["*"], ANY]] if out is None else out}
    node.device.set_policy(node.now, Slice(body, (), (node.address, node.address_v6), ()))


def name(node: Node, other: Node, tag: str = "tag:ops") -> None:
    """Who `other` is, as `node` knows it."""
    peer = node.peer(other)
    peer.record = FakePeer(f"device {other.number}", [other.address, other.address_v6], [tag]).record
    node.device.record_changed(node.now, peer)


class Pair:
    """`a` may send to UDP and TCP port 80 of `b`."""

    def __init__(self, a: Node, b: Node) -> None:
        self.a, self.b = a, b
        self.up = 0  # packets out of b's tunnel that Python was asked about
        a.meet(b)
        b.meet(a)
        for node, other in ((a, b), (b, a)):
            name(node, other)
        say(a, [])
        say(b, [[["tag:ops"], ["me"], [[UDP, 80, 80], [TCP, 80, 80]]]])
        judge = b.machine.handle_opened

        def counted(now: float, batch: list[Any]) -> None:
            self.up += len(batch)
            judge(now, batch)

        b.machine.handle_opened = counted

    def send(self, packet: bytes, *, back: bool = False) -> bool:
        """Whether it comes out at the other end."""
        source, to = (self.b, self.a) if back else (self.a, self.b)
        source.inject([plain(packet)])
        settle(self.a, self.b)
        return packet in to.taken()

    def udp(self, port: int = 80, source: int = 1000) -> bytes:
        return udp(self.a.address, self.b.address, source, port)

    def tcp(self, flags: int, port: int = 80) -> bytes:
        return tcp(self.a.address, self.b.address, 1000, port, flags)

    def reply(self, flags: int) -> bytes:
        return tcp(self.b.address, self.a.address, 80, 1000, flags)

    def wait(self, seconds: float) -> None:
        for node in (self.a, self.b):
            node.ahead_s += seconds
        settle(self.a, self.b)


@pytest.fixture(params=PAIRS, ids="-".join)
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    nodes = [Node(engine, number + 1) for number, engine in enumerate(request.param)]
    yield Pair(*nodes)
    for node in nodes:
        node.close()


def test_rules_and_answers(pair: Pair) -> None:
    assert pair.send(pair.udp()) and pair.send(pair.udp())
    assert not pair.send(pair.udp(81)) and not pair.send(echo(pair.a.address, pair.b.address, 7))
    assert pair.send(udp(pair.b.address, pair.a.address, 80, 1000), back=True)
    assert not pair.send(udp(pair.b.address, pair.a.address, 80, 1001), back=True)
    assert pair.send(udp(pair.a.address_v6, pair.b.address_v6, 1, 80))
    assert (pair.b.dropped()["policy"], pair.a.dropped()["policy"]) == (2, 1)


def test_established_flows_ask_nobody(pair: Pair) -> None:
    assert pair.send(pair.udp()) and pair.send(pair.udp())
    up, seen = pair.up, pair.a.machine.packets_seen
    for _ in range(5):
        assert pair.send(pair.udp())
    if pair.b.is_fast:
        assert pair.up == up
    if pair.a.is_fast:
        assert pair.a.machine.packets_seen == seen


def test_a_change_ends_live_flows_with_the_next_packet(pair: Pair) -> None:
    for _ in range(3):
        assert pair.send(pair.udp())
    assert pair.send(pair.tcp(SYN)) and pair.send(pair.reply(SYN | ACK), back=True) and pair.send(pair.tcp(ACK))
    assert pair.send(pair.tcp(ACK))
    say(pair.b, [[["tag:ops"], ["me"], [[TCP, 80, 80]]]])
    assert not pair.send(pair.udp()) and pair.send(pair.tcp(ACK))
    name(pair.b, pair.a, "tag:other")
    assert not pair.send(pair.tcp(ACK)) and not pair.send(pair.reply(ACK), back=True)
    assert pair.b.dropped()["prohibited"] == 1
    name(pair.b, pair.a)
    assert pair.send(pair.tcp(SYN)) and pair.send(pair.tcp(ACK))
    pair.b.device.set_policy(pair.b.now, None)
    assert pair.send(pair.udp(81)) and pair.send(pair.udp(82))
    say(pair.b, [])
    assert not pair.send(pair.udp(81)) and not pair.send(pair.udp()) and not pair.send(pair.tcp(ACK))


def test_what_is_used_lives_on_and_what_is_not_ends(pair: Pair) -> None:
    idle, kept = pair.udp(source=1), pair.udp(source=2)
    for packet in (idle, idle, kept, kept):
        assert pair.send(packet)
    for _ in range(8):
        pair.wait(conntrack.UDP_S / 3)
        assert pair.send(kept)
        report(pair.a, pair.b)
    firewall = pair.b.device.firewall
    assert firewall is not None and [flow.ends[3] for flow in firewall.flows] == [2]
    assert firewall.admitted == 2, "the same flow all the time"
    up = pair.up
    assert pair.send(idle)
    assert pair.up > up or not pair.b.is_fast
    assert firewall.admitted == 3


def test_a_closed_connection_is_seen_although_it_is_carried(pair: Pair) -> None:
    assert pair.send(pair.tcp(SYN)) and pair.send(pair.reply(SYN | ACK), back=True)
    for _ in range(3):
        assert pair.send(pair.tcp(ACK)) and pair.send(pair.reply(ACK), back=True)
    pair.wait(conntrack.SWEEP_S)
    pair.send(pair.tcp(ACK))
    report(pair.a, pair.b)
    firewall = pair.b.device.firewall
    assert firewall is not None
    (flow,) = firewall.flows
    assert flow.state == conntrack.ESTABLISHED
    up = pair.up
    assert pair.send(pair.tcp(FIN | ACK))
    assert pair.up == up or not pair.b.is_fast
    pair.wait(conntrack.SWEEP_S)
    assert pair.send(pair.reply(ACK), back=True)
    report(pair.a, pair.b)
    assert flow.state == conntrack.CLOSED
    pair.wait(conntrack.TCP_TRANSITORY_S + conntrack.SWEEP_S)
    assert len(firewall.flows) == 0


def test_ping_is_carried_by_its_identifier_and_errors_come_back(pair: Pair) -> None:
    say(pair.b, [[["tag:ops"], ["me"], [[1, 0, 65535], [UDP, 80, 80]]]])
    a, b = pair.a.address, pair.b.address
    for _ in range(2):
        assert pair.send(echo(a, b, 7)) and pair.send(echo(b, a, 7, answer=True), back=True)
    up, seen = pair.up, pair.b.machine.packets_seen
    for _ in range(3):
        assert pair.send(echo(a, b, 7)) and pair.send(echo(b, a, 7, answer=True), back=True)
    if pair.b.is_fast:
        assert (pair.up, pair.b.machine.packets_seen) == (up, seen)
    assert not pair.send(echo(b, a, 8, answer=True), back=True)
    assert not pair.send(echo(b, a, 7), back=True)
    mine = pair.udp()
    assert not pair.send(error_about(mine, b), back=True)
    assert pair.send(mine)
    assert pair.send(error_about(mine, b), back=True)


def test_the_sender_is_told(pair: Pair) -> None:
    say(pair.a, [], out=[[["*"], [[UDP, 80, 80]]]])
    assert pair.send(pair.udp())
    before = pair.b.dropped()
    pair.a.inject([plain(pair.tcp(SYN))])
    settle(pair.a, pair.b)
    (answer,) = pair.a.taken()
    assert (answer[9], answer[20:22], answer[28:]) == (1, bytes((3, 13)), pair.tcp(SYN))
    assert pair.b.dropped() == before and pair.a.dropped()["prohibited"] == 1


def test_one_peers_scan_does_not_end_the_flows_of_others() -> None:
    for engine in ("pure", "fast"):
        hub, quiet, scanner = Node(engine, 1), Node("pure", 2), Node("pure", 3)
        for other in (quiet, scanner):
            hub.meet(other)
            other.meet(hub)
            name(hub, other)
        say(hub, [[["*"], ["me"], ANY]])
        kept = [udp(quiet.address, hub.address, 5, port) for port in range(20)]
        quiet.inject(map(plain, kept))
        settle(hub, quiet)
        assert hub.taken() == kept
        for first in range(0, 2400, 100):
            scanner.inject(plain(udp(scanner.address, hub.address, 6, port)) for port in range(first, first + 100))
            settle(hub, scanner)
        firewall = hub.device.firewall
        assert firewall is not None
        by_device = [flow.holder.device for flow in firewall.flows]
        assert by_device.count("device 2") == 20
        if engine == "pure":
            assert len(by_device) == 2048 and firewall.flows.table.gave_way == 2420 - 2048
        for node in (hub, quiet, scanner):
            node.close()
