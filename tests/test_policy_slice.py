"""A device's slice of the policy: its form in the map, and what it admits."""

from __future__ import annotations

from typing import Any

import pytest

from edgeagent.proto.codec import encode
from edgeagent.proto.control import (
    BODIES,
    GROUP_BYTES_MAX,
    GROUPS_MAX,
    MAP_BYTES_MAX,
    POLICY,
    RECORD_BYTES_MAX,
    ROUTES_MAX,
    TAGS_MAX,
    check_body,
)
from edgeagent.proto.heads import ICMP, ICMPV6, SCTP, TCP, UDP
from edgeagent.proto.ip import ip_to_bytes
from edgeagent.proto.policy import NOBODY, Identity, Slice
from edgeagent.proto.refusals import ControlError

ME4, ME6 = ip_to_bytes("100.64.0.1"), ip_to_bytes("fd00::1")
PEER4, PEER6 = ip_to_bytes("100.64.0.2"), ip_to_bytes("fd00::2")
NETWORKS = [(ip_to_bytes("100.64.0.0"), 16), (ip_to_bytes("fd00::"), 48)]
LAN = [ip_to_bytes("192.168.7.0"), 24]
ANY = [[0, 0, 65535]]
ANN = Identity((), "ann@example.com", ["group:eng"])
SENSOR = Identity(["tag:sensor"], "ann@example.com", ["group:eng"])


def slice_of(rules: list[Any] = [], out: list[Any] = [], tags: tuple[str, ...] = (), user: str = "") -> Slice:  # noqa: B006
    body = {"v": 7, "u": user, "in": rules, "out": out}
    assert POLICY.check(body, "po") == body
    return Slice(body, tags, (ME4, ME6), NETWORKS)


def ssh(policy: Slice, identity: Identity, source: bytes = PEER4, target: bytes = ME4, own: bool = True) -> bool:
    return policy.admits(identity, own, source, target, TCP, 22)


def test_a_slice_without_rules_admits_nothing() -> None:
    policy = slice_of()
    assert not ssh(policy, ANN)
    assert not policy.may_reach(ANN, True, PEER4, TCP, 22)
    assert policy.version == 7


@pytest.mark.parametrize(
    ("selector", "ann", "sensor", "nobody"),
    [
        ("*", True, True, True),
        ("tag:sensor", False, True, False),
        ("tag:senso", False, False, False),
        ("group:eng", True, False, False),
        ("user:ann@example.com", True, False, False),
        ("user:", False, False, False),
        ("member", True, False, False),
        ("tagged", False, True, False),
        ("self", True, False, False),
        ("internet", False, False, False),
        ("me", False, False, False),
        ("what newer hubs say", False, False, False),
        ([PEER4, 32], True, True, True),
        ([ip_to_bytes("100.64.0.0"), 10], True, True, True),
        ([PEER6, 128], False, False, False),
    ],
)
def test_sources_are_identities_or_addresses(selector: Any, ann: bool, sensor: bool, nobody: bool) -> None:
    policy = slice_of([[[selector], ["me"], ANY]], [[[selector], ANY]], user="ann@example.com")
    assert (ssh(policy, ANN), ssh(policy, SENSOR), ssh(policy, NOBODY)) == (ann, sensor, nobody)
    reached = [policy.may_reach(identity, True, PEER4, TCP, 22) for identity in (ANN, SENSOR, NOBODY)]
    assert reached == [ann, sensor, nobody]


def test_self_is_the_same_user_and_neither_tagged() -> None:
    rules = [[["self"], ["me"], ANY]]
    assert ssh(slice_of(rules, user="ann@example.com"), ANN)
    assert not ssh(slice_of(rules, user="bob@example.com"), ANN)
    assert not ssh(slice_of(rules, user="ann@example.com", tags=("tag:x",)), ANN)
    assert not ssh(slice_of(rules), NOBODY)  # two devices without a user are not one user's


def test_an_address_that_a_peer_routes_is_not_the_peer() -> None:
    host = ip_to_bytes("192.168.7.9")
    for selector, admitted in (("tag:sensor", False), ("tagged", False), ("*", True), (LAN, True)):
        policy = slice_of([[[selector], ["me"], ANY]], [[[selector], ANY]])
        assert ssh(policy, SENSOR, host, own=False) is admitted
        assert policy.may_reach(SENSOR, False, host, TCP, 22) is admitted


@pytest.mark.parametrize(
    ("target", "me", "lan", "web", "web6"),
    [
        ("me", True, False, False, False),
        ("*", True, True, True, True),
        (LAN, False, True, False, False),
        ("internet", False, False, True, True),
        ("tag:sensor", False, False, False, False),
    ],
)
def test_targets_are_my_own_addresses_or_what_i_route(target: Any, me: bool, lan: bool, web: bool, web6: bool) -> None:
    policy = slice_of([[["*"], [target], ANY]])
    verdicts = [
        ssh(policy, SENSOR, PEER4, ME4),
        ssh(policy, SENSOR, PEER4, ip_to_bytes("192.168.7.9")),
        ssh(policy, SENSOR, PEER4, ip_to_bytes("9.9.9.9")),
        ssh(policy, SENSOR, PEER6, ip_to_bytes("2620:fe::9")),
    ]
    assert verdicts == [me, lan, web, web6]


def test_the_internet_is_what_is_neither_private_nor_ours() -> None:
    policy = Slice({"v": 1, "u": "", "in": [], "out": []}, (), (), [(ip_to_bytes("44.0.0.0"), 8)])
    outside = "9.9.9.9 172.32.0.1 100.128.0.1 223.255.255.255 2620:fe::9 64:ff9b::909:909"
    inside = (
        "44.1.2.3 0.0.0.0 10.1.2.3 100.64.0.1 127.0.0.1 169.254.1.1 172.31.0.1 192.168.0.1 224.0.0.1 240.0.0.1 "
        "255.255.255.255 :: ::1 ::ffff:9.9.9.9 64:ff9b:1::1 fc00::1 fd12::1 fe80::1 ff02::1"
    )
    assert all(policy.is_internet(ip_to_bytes(text)) for text in outside.split())
    assert not any(policy.is_internet(ip_to_bytes(text)) for text in inside.split())


@pytest.mark.parametrize(
    ("service", "admitted"),
    [
        ([0, 22, 22], {(TCP, 22), (UDP, 22), (SCTP, 22), (ICMP, 0), (ICMPV6, 0)}),
        ([TCP, 22, 80], {(TCP, 22), (TCP, 80)}),
        ([UDP, 0, 65535], {(UDP, 22), (UDP, 81)}),
        ([UDP, 23, 22], set()),
        ([ICMP, 0, 65535], {(ICMP, 0)}),
        ([47, 0, 65535], {(47, 0)}),
    ],
)
def test_services(service: list[int], admitted: set[tuple[int, int]]) -> None:
    policy = slice_of([[["*"], ["*"], [service]]], [[["*"], [service]]])
    tried = [(TCP, 22), (TCP, 80), (UDP, 22), (UDP, 81), (SCTP, 22), (ICMP, 0), (ICMPV6, 0), (47, 0), (50, 0)]
    assert {case for case in tried if policy.admits(NOBODY, True, PEER4, ME4, *case)} == admitted
    assert {case for case in tried if policy.may_reach(NOBODY, True, PEER4, *case)} == admitted


def test_a_rule_needs_all_three_of_its_parts() -> None:
    policy = slice_of([[["tag:a"], ["me"], [[TCP, 22, 22]]], [["tag:b"], ["me"], [[TCP, 80, 80]]]])
    a, b = Identity(["tag:a"], ""), Identity(["tag:b"], "")
    assert [policy.admits(who, True, PEER4, ME4, TCP, port) for who in (a, b) for port in (22, 80)] == [
        True,
        False,
        False,
        True,
    ]
    both = Identity(["tag:a", "tag:b"], "")
    assert policy.admits(both, True, PEER4, ME4, TCP, 22) and policy.admits(both, True, PEER4, ME4, TCP, 80)


def test_identities_are_equal_where_they_read_the_same() -> None:
    assert Identity(["tag:x"], "ann") == Identity(["tag:x"], "bob", ["group:g"])
    assert Identity((), "ann", ["group:a", "group:b"]) == Identity((), "ann", ["group:b", "group:a"])
    assert Identity((), "ann") != Identity((), "bob") and Identity((), "ann") != Identity((), "ann", ["group:a"])


@pytest.mark.parametrize(
    "bad",
    [
        {"v": 1, "in": [], "out": []},
        {"v": 1, "u": "", "in": [[["*"], ["me"]]], "out": []},
        {"v": 1, "u": "", "in": [[["*"], ["me"], [[0, 0, 65536]]]], "out": []},
        {"v": 1, "u": "", "in": [[["*"], ["me"], [[256, 0, 1]]]], "out": []},
        {"v": 1, "u": "", "in": [[[[PEER4, 24]], ["me"], ANY]], "out": []},
        {"v": 1, "u": "", "in": [[[[PEER4[:3], 8]], ["me"], ANY]], "out": []},
        {"v": 1, "u": "", "in": [[[1], ["me"], ANY]], "out": []},
        {"v": 1, "u": "", "in": [], "out": [[["x" * 161], ANY]]},
        {"v": 1, "u": "", "in": [[["*"] * 129, ["me"], ANY]], "out": []},
        {"v": 1, "u": "", "in": [], "out": [[["*"], ANY * 65]]},
        {"v": 1, "u": "", "in": [], "out": [[["*"], ANY]] * 257},
    ],
)
def test_a_slice_that_is_not_of_its_form_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ControlError):
        POLICY.check(bad, "po")


def test_a_record_with_all_that_it_may_hold_fits() -> None:
    groups = [f"group:{n:02d}".ljust(GROUP_BYTES_MAX, "x") for n in range(GROUPS_MAX)]
    body = {
        "name": "x" * 63,
        "addrs": [ME4, ME6, PEER4, PEER6],
        "dk": bytes(32),
        "nk": [[bytes(32), 2**63 - 1]] * 4,
        "tags": [f"tag:{n:02d}".ljust(67, "x") for n in range(TAGS_MAX)],
        "user": "u" * 128,
        "routes": [[bytes(16), 64]] * ROUTES_MAX,
        "gr": groups,
    }
    assert check_body("record", body)["gr"] == groups
    assert len(encode(body)) < RECORD_BYTES_MAX - 256
    del body["gr"]
    assert "gr" not in check_body("record", body)
    for bad in (["eng"], ["group:"], ["group:a b"], [*groups, "group:more"]):
        with pytest.raises(ControlError, match=r"record\.gr"):
            check_body("record", {**body, "gr": bad})


def test_the_largest_usual_slice_fits_a_map() -> None:
    rule = [
        ["tag:sensor-in-the-field", "group:operators", "user:someone@example.com"],
        ["me"],
        [[TCP, 22, 22], [0, 80, 443]],
    ]
    assert len(encode({"v": 1, "u": "", "in": [rule] * 256, "out": []})) < MAP_BYTES_MAX - 8_192
    assert "po" in BODIES["map"].optional  # type: ignore[attr-defined]
