"""Nodes with slices of a policy: what comes through, what a change of the map or of a record ends, and what is told."""

from __future__ import annotations

from typing import Any

import pytest

from edgeagent.policywords import show_policy
from edgeagent.proto.heads import ACK, SYN, TCP, UDP
from edgeagent.proto.limits import Limits
from edgeagent.proto.node_status import policy
from edgeagent.status import policy_line
from tests.node_kit import Board, World, icmp_errors, send
from tests.policy_kit import LAN_HOST, echo, tcp, udp

ANY = [[0, 0, 65535]]


def slice_of(rules: list[Any], out: list[Any] | None = None, version: int = 1, user: str = "") -> dict[str, Any]:
    return {"v": version, "u": user, "in": rules, "out": [[["*"], ANY]] if out is None else out}


class Lab:
    """`a` may reach `b` by SSH as long as it has tag:ops; nothing else is allowed."""

    def __init__(self, **limits: int) -> None:
        self.world = World()
        self.a = self.world.add(1, "a", limits=Limits(**limits))
        self.b = self.world.add(2, "b", limits=Limits(**limits))
        self.a.tags = ["tag:ops"]
        self.a.policy = slice_of([])
        self.b.policy = slice_of([[["tag:ops"], ["me"], [[TCP, 22, 22]]]])
        for board in (self.a, self.b):
            self.world.say_map(board)
        self.world.run(1)

    def say_map(self, board: Board, policy: dict[str, Any] | None) -> None:
        board.policy = policy
        self.world.say_map(board)

    def pass_on(self, sender: Board, to: Board, packet: bytes) -> bool:
        before = to.received.count(packet)
        sender.node.handle_packets(self.world.now, [packet])
        self.world.run(0.2)
        return to.received.count(packet) > before


@pytest.fixture
def lab() -> Lab:
    return Lab()


def ssh(lab: Lab, flags: int = SYN, port: int = 5000) -> bytes:
    return tcp(lab.a.v4, lab.b.v4, port, 22, flags)


def answer(lab: Lab, flags: int = ACK, port: int = 5000) -> bytes:
    return tcp(lab.b.v4, lab.a.v4, 22, port, flags)


def drops(board: Board, reason: str) -> int:
    counted: Any = board.node.status(0)["drops"]
    return int(counted.get(reason, 0))


def test_rules_are_enforced_by_the_receiver(lab: Lab) -> None:
    assert lab.pass_on(lab.a, lab.b, ssh(lab))
    assert lab.pass_on(lab.b, lab.a, answer(lab, SYN | ACK))
    assert lab.pass_on(lab.a, lab.b, tcp(lab.a.v6, lab.b.v6, 5000, 22, SYN))
    for packet in (tcp(lab.a.v4, lab.b.v4, 5000, 23, SYN), udp(lab.a.v4, lab.b.v4, 1, 22), echo(lab.a.v4, lab.b.v4, 1)):
        assert not lab.pass_on(lab.a, lab.b, packet)
    assert drops(lab.b, "policy") == 3
    assert not lab.pass_on(lab.b, lab.a, tcp(lab.b.v4, lab.a.v4, 1, 22, SYN)), "a admits nothing"
    assert lab.pass_on(lab.b, lab.a, udp(lab.b.v4, lab.a.v4, 7, 8)) is False
    assert lab.pass_on(lab.a, lab.b, ssh(lab, ACK))


def test_without_a_policy_nothing_is_kept() -> None:
    world = World()
    a, b = world.add(1, "a"), world.add(2, "b")
    packet = send(world, a, b)
    world.run(1)
    assert b.received == [packet]
    assert a.node.device.firewall is None and b.node.status(world.now)["policy"] is None


def test_a_policy_is_there_from_the_start() -> None:
    world = World()
    a, b = world.add(1, "a"), Board(2, "b")
    b.policy = slice_of([])
    world.boards[b.id] = b
    world.known.add(b.id)
    world.start(b)
    world.connect(b)
    a.node.handle_packets(world.now, [udp(a.v4, b.v4, 1, 2)])
    world.run(1)
    assert b.received == [] and drops(b, "policy") == 1


def test_a_change_of_the_map_ends_live_flows_and_only_a_change_does(lab: Lab) -> None:
    assert lab.pass_on(lab.a, lab.b, ssh(lab)) and lab.pass_on(lab.b, lab.a, answer(lab, SYN | ACK))
    firewall = lab.b.node.device.firewall
    assert firewall is not None
    before = firewall.policy
    lab.world.say_map(lab.b)
    assert firewall.policy is before, "the same again"
    lab.say_map(lab.b, slice_of([], version=2))
    assert firewall.policy.version == 2
    assert not lab.pass_on(lab.a, lab.b, ssh(lab, ACK))
    assert not lab.pass_on(lab.b, lab.a, answer(lab)), "nor may our answers begin it again"
    assert drops(lab.b, "prohibited") == 1
    told = policy(lab.b.node)
    assert told is not None and told["revoked"] == 1 and told["version"] == 2
    lab.say_map(lab.b, None)
    assert lab.b.node.device.firewall is None
    assert lab.pass_on(lab.a, lab.b, udp(lab.a.v4, lab.b.v4, 1, 99))


def test_a_change_of_a_record_ends_live_flows(lab: Lab) -> None:
    assert lab.pass_on(lab.a, lab.b, ssh(lab)) and lab.pass_on(lab.b, lab.a, answer(lab, SYN | ACK))
    lab.a.tags = ["tag:other"]
    lab.world.say_rec(lab.b, lab.a)
    lab.world.run(0.1)
    firewall = lab.b.node.device.firewall
    assert firewall is not None and firewall.revoked == 1, "before the next packet"
    assert not lab.pass_on(lab.a, lab.b, ssh(lab, ACK))
    lab.a.tags, lab.a.user, lab.a.groups = [], "ann", ["group:ops"]
    lab.say_map(lab.b, slice_of([[["group:ops"], ["me"], ANY]], version=2))
    lab.world.say_rec(lab.b, lab.a)
    assert lab.pass_on(lab.a, lab.b, ssh(lab, SYN, 5001))


def test_a_removed_device_leaves_no_flows(lab: Lab) -> None:
    assert lab.pass_on(lab.a, lab.b, ssh(lab))
    lab.world.say(lab.b, "rec", {"gone": lab.world.gone(lab.a)})
    firewall = lab.b.node.device.firewall
    assert firewall is not None and len(firewall.flows) == 0


def test_flows_outlive_the_link(lab: Lab) -> None:
    """A device whose link idled away is still that device when it comes back."""
    assert lab.pass_on(lab.a, lab.b, ssh(lab)) and lab.pass_on(lab.b, lab.a, answer(lab, SYN | ACK))
    assert lab.pass_on(lab.a, lab.b, ssh(lab, ACK))
    lab.b.node.peering.remove(lab.world.now, lab.a.id)
    lab.a.node.peering.remove(lab.world.now, lab.b.id)
    lab.world.run(1)
    assert lab.pass_on(lab.a, lab.b, ssh(lab, ACK))
    lab.world.run(3600)
    assert lab.pass_on(lab.a, lab.b, ssh(lab, ACK)), "it lives for two hours"


def test_the_sender_is_told_early(lab: Lab) -> None:
    lab.say_map(lab.a, slice_of([], out=[[["*"], [[TCP, 22, 22]]]], version=2))
    lab.world.run(1)
    packet = tcp(lab.a.v4, lab.b.v4, 1, 80, SYN)
    assert not lab.pass_on(lab.a, lab.b, packet)
    (error,) = icmp_errors(lab.a)
    assert error[20:22] == bytes((3, 13)) and error[28:] == packet
    six = tcp(lab.a.v6, lab.b.v6, 1, 80, SYN)
    assert not lab.pass_on(lab.a, lab.b, six)
    error = lab.a.received[-1]
    assert error[40:42] == bytes((1, 1)) and error[48:] == six
    assert drops(lab.a, "prohibited") == 2 and drops(lab.b, "policy") == 0
    assert lab.pass_on(lab.a, lab.b, ssh(lab))


def test_a_subnet_behind_a_device_is_reached_by_its_prefix_only(lab: Lab) -> None:
    lab.b.routes = [[LAN_HOST[:3] + b"\0", 24]]
    lab.world.say_rec(lab.a, lab.b)
    rules = [[["tag:ops"], [[LAN_HOST[:3] + b"\0", 24]], [[TCP, 80, 80]]]]
    lab.say_map(lab.b, slice_of(rules, version=2))
    assert lab.pass_on(lab.a, lab.b, tcp(lab.a.v4, LAN_HOST, 1, 80, SYN))
    assert not lab.pass_on(lab.a, lab.b, tcp(lab.a.v4, LAN_HOST, 1, 22, SYN))
    assert not lab.pass_on(lab.a, lab.b, tcp(lab.a.v4, lab.b.v4, 1, 80, SYN))
    assert lab.pass_on(lab.b, lab.a, tcp(LAN_HOST, lab.a.v4, 80, 1, SYN | ACK)), "its answers"
    assert not lab.pass_on(lab.b, lab.a, tcp(LAN_HOST, lab.a.v4, 9, 9, SYN))


def test_the_table_of_connections_is_bounded() -> None:
    lab = Lab(connections=16)
    lab.say_map(lab.b, slice_of([[["*"], ["me"], ANY]], version=2))
    for port in range(40):
        lab.a.node.handle_packets(lab.world.now, [udp(lab.a.v4, lab.b.v4, 9, port)])
        lab.world.crank()
    tables: Any = lab.b.node.status(lab.world.now)["tables"]
    assert tables["connections"] == {"used": 16, "ceiling": 16, "gave_way": 24}


def test_nothing_is_left_to_wake_up_for(lab: Lab) -> None:
    """Flows end by themselves, and then nobody looks after them any more."""
    assert not lab.pass_on(lab.b, lab.a, udp(lab.b.v4, lab.a.v4, 2, 1))
    firewall = lab.b.node.device.firewall
    assert firewall is not None and firewall.poll_timeout() is not None
    lab.world.run(200)
    assert len(firewall.flows) == 0 and firewall.poll_timeout() is None


def test_it_is_said_in_words(lab: Lab) -> None:
    lab.pass_on(lab.a, lab.b, ssh(lab))
    rules = [
        [
            ["tag:ops", "*", "member"],
            ["me", [LAN_HOST, 32]],
            [[TCP, 22, 22], [UDP, 53, 60], [0, 80, 80], [1, 0, 65535]],
        ],
        [["self"], ["internet"], ANY],
    ]
    lab.say_map(lab.b, slice_of(rules, out=[], version=9, user="ann"))
    said = show_policy({"name": "b", "policy": policy(lab.b.node, rules=True)})
    assert "Policy version 9." in said
    assert (
        "tag:ops, anybody, devices of users  this device, 192.168.7.9/32  TCP 22, UDP 53-60, port 80 and ICMP, ICMP"
        in said
    )
    assert "devices of the same user" in said and "the internet" in said and "everything" in said
    assert "Whom b may reach: nobody" in said and "1 were let in" in said
    assert show_policy({"name": "b", "policy": None}).startswith("The network has no policy")
    status: Any = lab.b.node.status(lab.world.now)
    assert status["policy"]["version"] == 9 and status["policy"]["admitted"] == 1
    assert policy_line(status["policy"]) == ("version 9, 1 of 2048 connections, 1 let in, 0 packets denied, 0 not sent")
    assert policy_line(None).startswith("none")
