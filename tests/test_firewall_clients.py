"""Plain WireGuard clients under a policy: what their gateway judges, and what it leaves to whom they reach."""

from __future__ import annotations

from typing import Any

import pytest

from edgeagent.proto.control import POLICY
from edgeagent.proto.errors import DropReason
from edgeagent.proto.firewall import Firewall
from edgeagent.proto.heads import ACK, SYN, TCP
from edgeagent.proto.policy import Slice
from tests.policy_kit import LAN_HOST, ME4, ME6, PEER4, FakePeer, tcp, udp
from tests.test_firewall import NETWORKS, OTHER4

PHONE, PRINTER = bytes((100, 64, 0, 20)), bytes((100, 64, 0, 21))
SITE, OWN_SITE = bytes((192, 168, 9, 0)), bytes((192, 168, 7, 0))
ELSEWHERE = [(SITE, 24)]
TO_PHONE = [[["tag:ops"], [[PHONE, 32]], [[TCP, 22, 22]]]]
DROP = DropReason.POLICY


class Gateway:
    """Whose slice is `rules` and `out`. It has two clients."""

    def __init__(self, rules: list[Any], out: list[Any] | None = None) -> None:
        self.firewall = Firewall(1_000.0, self.policy(rules, out), 64, None)
        self.ops: Any = FakePeer("ops", [PEER4], ["tag:ops"])
        self.other: Any = FakePeer("other", [OTHER4], ["tag:other"])
        self.phone: Any = self.client("phone")
        self.printer: Any = self.client("printer")

    @staticmethod
    def policy(rules: list[Any], out: list[Any] | None = None) -> Slice:
        body = POLICY.check({"v": 1, "u": "", "in": rules, "out": out or []}, "po")
        return Slice(body, (), (ME4, ME6), NETWORKS, (PHONE, PRINTER), ELSEWHERE)

    @staticmethod
    def client(name: str) -> FakePeer:
        peer = FakePeer(name, [], [])
        peer.record = None
        return peer

    def come(self, peer: Any, packet: bytes) -> DropReason | None:
        return self.firewall.inbound(1_000.0, peer, packet)

    def go(self, peer: Any, packet: bytes) -> bool:
        return self.firewall.outbound(1_000.0, peer, packet)


@pytest.mark.parametrize("target", [PEER4, SITE[:3] + b"\x05"])
def test_what_a_client_sends_to_others_is_theirs_to_judge(target: bytes) -> None:
    gateway = Gateway([], out=[[["tag:ops", [SITE, 24]], [[TCP, 22, 22]]]])  # what its client may reach
    syn, answer = tcp(PHONE, target, 5000, 22, SYN), tcp(target, PHONE, 22, 5000, SYN | ACK)
    assert gateway.come(gateway.ops, answer) is DROP, "it answers nothing"
    assert gateway.come(gateway.phone, syn) is None and gateway.go(gateway.ops, syn)
    assert gateway.come(gateway.ops, answer) is None and gateway.go(gateway.phone, answer)
    assert not gateway.go(gateway.ops, tcp(PHONE, target, 5000, 23, SYN)), "answered early"


@pytest.mark.parametrize("target", [ME4, PRINTER, OWN_SITE[:3] + b"\x05", bytes((8, 8, 8, 8))])
def test_what_ends_at_the_gateway_is_judged_there(target: bytes) -> None:
    gateway = Gateway(TO_PHONE)
    assert gateway.come(gateway.phone, tcp(PHONE, target, 5000, 22, SYN)) is DROP
    allowed = Gateway([[[[PHONE, 32]], [[target, 32]], [[TCP, 22, 22]]]])
    assert allowed.come(allowed.phone, tcp(PHONE, target, 5000, 22, SYN)) is None
    assert allowed.come(allowed.phone, tcp(PHONE, target, 5000, 23, SYN)) is DROP
    assert allowed.come(allowed.printer, tcp(PRINTER, target, 5000, 22, SYN)) is DROP


def test_another_source_is_no_clients() -> None:
    gateway = Gateway([])
    assert gateway.come(gateway.ops, tcp(PEER4, OTHER4, 5000, 22, SYN)) is DROP
    assert gateway.come(gateway.ops, tcp(PHONE, OTHER4, 5000, 22, SYN)) is DROP, "a device that says it is the client"


def test_what_a_client_is_sent() -> None:
    gateway = Gateway(TO_PHONE)
    ssh = tcp(PEER4, PHONE, 5000, 22, SYN)
    assert not gateway.go(gateway.phone, ssh), "nothing let it in"
    assert gateway.come(gateway.ops, tcp(PEER4, PHONE, 5000, 23, SYN)) is DROP
    assert gateway.come(gateway.other, tcp(OTHER4, PHONE, 5000, 22, SYN)) is DROP
    assert gateway.come(gateway.ops, ssh) is None and gateway.go(gateway.phone, ssh)
    answer = tcp(PHONE, PEER4, 22, 5000, SYN | ACK)
    assert gateway.come(gateway.phone, answer) is None and gateway.go(gateway.ops, answer)
    assert not gateway.go(gateway.phone, tcp(ME4, PHONE, 5000, 22, SYN)), "the gateway itself is not tag:ops"


def test_clients_of_one_gateway() -> None:
    gateway = Gateway([[[[PHONE, 32]], [[PRINTER, 32]], [[TCP, 631, 631]]]])
    printing = tcp(PHONE, PRINTER, 5000, 631, SYN)
    assert gateway.come(gateway.phone, printing) is None and gateway.go(gateway.printer, printing)
    back = tcp(PRINTER, PHONE, 631, 5000, SYN | ACK)
    assert gateway.come(gateway.printer, back) is None and gateway.go(gateway.phone, back)
    assert gateway.come(gateway.printer, tcp(PRINTER, PHONE, 5000, 631, SYN)) is DROP
    assert not gateway.go(gateway.phone, tcp(PRINTER, PHONE, 5001, 631, SYN))


def test_a_host_behind_the_gateway_reaches_clients_by_rules_on_addresses() -> None:
    packet = udp(LAN_HOST, PHONE, 5000, 53)
    assert not Gateway(TO_PHONE).go(Gateway.client("phone"), packet)
    allowed = Gateway([[[[LAN_HOST, 32]], [[PHONE, 32]], [[17, 53, 53]]]])
    assert allowed.go(allowed.phone, packet)


def test_another_policy_ends_what_a_client_was_sent() -> None:
    gateway = Gateway(TO_PHONE)
    ssh = tcp(PEER4, PHONE, 5000, 22, SYN)
    assert gateway.come(gateway.ops, ssh) is None and gateway.go(gateway.phone, ssh)
    gateway.firewall.use(1_000.0, gateway.policy([]))
    assert gateway.come(gateway.ops, tcp(PEER4, PHONE, 5000, 22, ACK)) is DROP
