"""Three ways to a verdict against each other: a reading of the rules as they stand, written here and sharing nothing
with the hub; the hub's evaluator; and the device's matcher, fed by the slice that the hub made for it."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network
from typing import Any, NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from edgeagent.proto.codec import encode
from edgeagent.proto.control import POLICY, RULES_MAX
from edgeagent.proto.policy import Identity, Slice
from hub.core.policy.ceilings import cost_of
from hub.core.policy.compile import Facts, digest
from hub.core.policy.evaluate import End, check, reach, verdict
from hub.core.policy.merging import BYTES_MAX

USERS = ("alice@", "bob@", "carol@example.org")
GROUPS = {"group:one": ["alice@", "bob@"], "group:two": ["bob@"], "group:none": []}
TAGS = ("tag:a", "tag:b")
HOSTS = {"nvr": "100.64.0.3", "site": "10.1.0.0/16", "six": "fd00::/64"}
PREFIXES = ("100.64.0.0/29", "100.64.0.1", "10.0.0.0/8", "10.1.2.3", "8.8.0.0/16", "0.0.0.0/0", "fd00::2", "::/0")
NETWORKS = ((bytes((100, 64, 0, 0)), 10), (b"\xfd" + bytes(15), 48))
PORTS = ("*", "22", "80-90", "22,443", "22,24", "0", "85-65535")
NO_INTERNET = (
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"),
    *("224.0.0.0/3", "::/48", "64:ff9b:1::/48", "fc00::/7", "fe80::/10", "ff00::/8"),
)


class Box(NamedTuple):
    """A device."""

    user: str
    tags: tuple[str, ...]
    addresses: tuple[str, ...]
    routes: tuple[str, ...]

    @property
    def facts(self) -> Facts:
        routes = tuple((ip_network(route).network_address.packed, ip_network(route).prefixlen) for route in self.routes)
        packed = tuple(ip_address(address).packed for address in self.addresses)
        return Facts(tags=self.tags, user=self.user, addresses=packed, routes=routes)


class Packet(NamedTuple):
    """The first of a flow."""

    source: str
    target: str
    protocol: int
    port: int


# the rules as they stand


def is_internet(address: str) -> bool:
    return not any(ip_address(address) in ip_network(prefix) for prefix in NO_INTERNET)


def groups_of(user: str) -> set[str]:
    return {name for name, users in GROUPS.items() if user in [known.removesuffix("@") for known in users]}


def matches(word: str, box: Box, address: str, other: Box | None) -> bool:
    """`other` is the source's device, where `word` is a destination."""
    prefix = HOSTS.get(word, word)
    if word == "*":
        return True
    if "/" in prefix or prefix[0].isdigit() or prefix.startswith(("fd", "::")):
        return ip_address(address) in ip_network(prefix)
    if address not in box.addresses:
        return word == "autogroup:internet" and is_internet(address)
    person = "" if box.tags else box.user
    if word.startswith("tag:"):
        return word in box.tags
    if word.startswith("group:"):
        return bool(person) and word in groups_of(person)
    if word == "autogroup:tagged":
        return bool(box.tags)
    if word == "autogroup:member":
        return bool(person)
    if word == "autogroup:self":
        return bool(person) and other is not None and not other.tags and other.user == person
    return word.removesuffix("@") == person if "@" in word else False


def port_matches(ports: str, port: int) -> bool:
    for item in ports.split(","):
        low, _, high = item.partition("-")
        if item == "*" or int(low) <= port <= int(high or low):
            return True
    return False


def brute(policy: dict[str, Any], source: Box, target: Box, packet: Packet) -> bool:
    with_ports = packet.protocol in (6, 17, 132)

    def ends_match(rule: dict[str, Any], word: str) -> bool:
        of_source = source if packet.source in source.addresses else None
        return any(matches(src, source, packet.source, None) for src in rule["src"]) and matches(
            word, target, packet.target, of_source
        )

    for rule in policy["acls"]:
        protocols = {"tcp": {6}, "udp": {17}, "icmp": {1, 58}, "gre": {47}, "": {1, 6, 17, 58, 132}}[rule["proto"]]
        for dst in rule["dst"]:
            word, _, ports = dst.rpartition(":")
            right_port = not with_ports or port_matches(ports, packet.port)
            if packet.protocol in protocols and right_port and ends_match(rule, word.strip("[]")):
                return True
    for rule in policy["grants"]:
        for service in rule["ip"]:
            name, _, ports = service.rpartition(":") if ":" in service else ("", "", service)
            if ports in ("icmp", "gre"):
                name, ports = ports, "*"
            protocols = {"tcp": {6}, "udp": {17}, "icmp": {1, 58}, "gre": {47}, "": {1, 6, 17, 58, 132}}[name]
            right_port = not with_ports or port_matches(ports, packet.port)
            if packet.protocol in protocols and right_port and any(ends_match(rule, word) for word in rule["dst"]):
                return True
    return False


# what is tried

PEOPLE = (*USERS, *GROUPS, "autogroup:member")
SOURCES = (*PEOPLE, *TAGS, *HOSTS, *PREFIXES, "*", "autogroup:tagged")
TARGETS = (*SOURCES, "autogroup:internet")
ADDRESSES = ("10.1.2.3", "10.9.9.9", "8.8.8.8", "9.9.9.9", "2600::1", "192.168.1.1")


def bracketed(word: str) -> str:
    return f"[{word}]" if ":" in word and word[0] in "f:2" and "/" not in word and word[:5] != "group" else word


@st.composite
def acls(draw: st.DrawFn) -> dict[str, Any]:
    to_self = draw(st.booleans()) and draw(st.booleans())
    sources = draw(st.lists(st.sampled_from((*PEOPLE, "*") if to_self else SOURCES), min_size=0, max_size=3))
    proto = draw(st.sampled_from(("", "", "tcp", "udp", "icmp", "gre")))
    ports = st.just("*") if proto in ("icmp", "gre") else st.sampled_from(PORTS)
    targets = draw(st.lists(st.sampled_from((*TARGETS, "autogroup:self") if to_self else TARGETS), max_size=3))
    dst = [f"{bracketed(target)}:{draw(ports)}" for target in targets]
    return {"action": "accept", "src": sources, "proto": proto, "dst": dst}


@st.composite
def grants(draw: st.DrawFn) -> dict[str, Any]:
    ip = st.sampled_from(("*", "22", "80-90", "tcp:443", "udp:*", "icmp", "gre", "tcp:22", "*:53"))
    return {
        "src": draw(st.lists(st.sampled_from(SOURCES), max_size=3)),
        "dst": draw(st.lists(st.sampled_from(TARGETS), max_size=3)),
        "ip": [item.removeprefix("*:") for item in draw(st.lists(ip, max_size=3))],
    }


@st.composite
def boxes(draw: st.DrawFn, number: int) -> Box:
    return Box(
        draw(st.sampled_from(("", *(user.removesuffix("@") for user in USERS), "dave"))),
        tuple(draw(st.sets(st.sampled_from(TAGS)))) if draw(st.booleans()) else (),
        (f"100.64.0.{number}", f"fd00::{number}"),
        draw(st.sampled_from(((), ("10.1.0.0/16",), ("0.0.0.0/0", "::/0"), ("192.168.0.0/16", "8.8.8.0/24")))),
    )


PACKETS = st.tuples(st.sampled_from((1, 6, 17, 47, 58, 132)), st.sampled_from((0, 22, 23, 53, 80, 90, 443, 65_535)))


def addresses_of(box: Box) -> list[str]:
    routed = [text for text in ADDRESSES if any(ip_address(text) in ip_network(route) for route in box.routes)]
    return [*box.addresses, *routed]


@settings(max_examples=200)
@given(st.lists(acls(), max_size=5), st.lists(grants(), max_size=3), boxes(1), boxes(2), st.lists(PACKETS, max_size=12))
def test_three_ways_to_one_verdict(
    acl_rules: list[Any], grant_rules: list[Any], one: Box, two: Box, shots: list[tuple[int, int]]
) -> None:
    text = {
        "groups": GROUPS,
        "tagOwners": {tag: [] for tag in TAGS},
        "hosts": HOSTS,
        "acls": acl_rules,
        "grants": grant_rules,
    }
    policy = check(json.dumps(text), 7)
    bodies = [policy.slice_for(box.facts) for box in (one, two)]
    for body in bodies:
        assert POLICY.check(body, "po") == body
        assert len(encode(body)) <= BYTES_MAX + 200
    sender, receiver = (
        Slice(body, box.tags, box.facts.addresses, NETWORKS) for body, box in zip(bodies, (one, two), strict=True)
    )
    met = False
    for source in addresses_of(one):
        for target in addresses_of(two):
            if ip_address(source).version != ip_address(target).version:
                continue
            ends = [
                End(box.facts if text in box.addresses else None, ip_address(text).packed)
                for box, text in ((one, source), (two, target))
            ]
            for protocol, port in shots:
                port = port if protocol in (6, 17, 132) else 0
                packet = Packet(source, target, protocol, port)
                expected = brute(text, one, two, packet)
                rule = verdict(policy, ends[0], ends[1], protocol, port)
                raw = ip_address(source).packed, ip_address(target).packed
                admitted = receiver.admits(
                    Identity(one.tags, one.user, policy.groups_of(one.user)),
                    source in one.addresses,
                    *raw,
                    protocol,
                    port,
                )
                assert ((rule is not None), admitted) == (expected, expected), packet
                if expected:
                    met = True
                    early = sender.may_reach(
                        Identity(two.tags, two.user, policy.groups_of(two.user)),
                        target in two.addresses,
                        raw[1],
                        protocol,
                        port,
                    )
                    assert early, "the sender would answer early for what the receiver lets in"
                    if source in one.addresses and target in two.addresses:
                        assert reach(policy, one.facts, two.facts)
    if met:
        assert policy.may_meet(one.facts, two.facts) and policy.may_meet(two.facts, one.facts)


@settings(max_examples=150)
@given(st.lists(acls(), max_size=5), st.randoms(), boxes(1))
def test_the_order_of_rules_and_lists_changes_no_slice(acl_rules: list[Any], random: Any, box: Box) -> None:
    text = {"groups": GROUPS, "tagOwners": {tag: [] for tag in TAGS}, "hosts": HOSTS, "acls": acl_rules}
    before = check(json.dumps(text)).slice_for(box.facts)
    for rule in acl_rules:
        random.shuffle(rule["src"])
        random.shuffle(rule["dst"])
    random.shuffle(acl_rules)
    after = check(json.dumps(text), 9).slice_for(box.facts)
    assert {**after, "v": 0} == before
    assert digest(after) == digest(before)


@settings(max_examples=150)
@given(st.lists(acls(), max_size=6), st.lists(grants(), max_size=4), boxes(1))
def test_no_slice_costs_more_than_the_ceiling_thinks(acl_rules: list[Any], grant_rules: list[Any], box: Box) -> None:
    """The check at `set` looks at the dearest identity; no device's slice may be dearer."""
    text = {
        "groups": GROUPS,
        "tagOwners": {tag: [] for tag in TAGS},
        "hosts": HOSTS,
        "acls": acl_rules,
        "grants": grant_rules,
    }
    policy = check(json.dumps(text))
    body = policy.slice_for(box.facts)
    cost = cost_of(policy, box.tags, box.user)
    assert len(encode([body["in"], body["out"]])) <= cost.size + 8
    assert max(len(body["in"]), len(body["out"])) <= cost.rules <= RULES_MAX
