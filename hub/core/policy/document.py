"""What a policy says, typed: groups, owners of tags, hosts, rules, approvers, tests. `reading.py` makes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Network, IPv6Network

from hub.core.policy.problems import Problem

RULES_MAX = 1_000  # of acls and grants together
GROUPS_MAX = 1_000
USERS_MAX = 2_000  # of one group
TAGS_MAX = 1_000
HOSTS_MAX = 2_000
ITEMS_MAX = 256  # of sources, destinations, services, owners or approvers in one list
APPROVERS_MAX = 256  # prefixes of autoApprovers
TESTS_MAX = 500

Prefix = tuple[bytes, int]  # address of 4 or 16 B without bits behind the prefix, and its length
Service = tuple[int, int, int]  # protocol, low and high port; protocol 0 as docs/protocol.md has it

ANY_OF_THESE = 0
TCP, UDP, SCTP, ICMP, ICMPV6 = 6, 17, 132, 1, 58
WITH_PORTS = (TCP, UDP, SCTP)
PORT_MAX = 65_535


class Kind(Enum):
    ANY = "*"
    USER = "user"
    GROUP = "group"
    TAG = "tag"
    MEMBER = "autogroup:member"
    TAGGED = "autogroup:tagged"
    SELF = "autogroup:self"
    INTERNET = "autogroup:internet"
    PREFIX = "prefix"
    ROLE = "role"  # autogroup:owner and autogroup:admin, where people are meant and not devices


@dataclass(slots=True, frozen=True)
class Selector:
    """One source, destination, owner or approver. `name`: login, group:x, tag:x or role; "" for the others."""

    kind: Kind
    name: str = ""
    prefix: Prefix | None = None

    @property
    def word(self) -> str:
        """As a slice has it (docs/protocol.md, map); not for prefixes and roles."""
        words = {Kind.ANY: "*", Kind.MEMBER: "member", Kind.TAGGED: "tagged", Kind.SELF: "self"}
        if self.kind is Kind.USER:
            return f"user:{self.name}"
        return words.get(self.kind) or ("internet" if self.kind is Kind.INTERNET else self.name)

    def __str__(self) -> str:
        """As a policy has it."""
        if self.prefix is not None:
            return prefix_text(self.prefix)
        if self.kind is Kind.USER:
            return self.name if "@" in self.name else f"{self.name}@"
        if self.kind is Kind.ROLE:
            return f"autogroup:{self.name}"
        return self.name or self.kind.value


@dataclass(slots=True, frozen=True)
class Part:
    """Of one rule: what of it has the same services."""

    targets: tuple[Selector, ...]
    services: tuple[Service, ...]


@dataclass(slots=True, frozen=True)
class Rule:
    """One item of acls or grants. Each of `parts` allows `sources` to reach its targets."""

    name: str  # acls[0], grants[3]
    line: int
    column: int
    sources: tuple[Selector, ...]
    parts: tuple[Part, ...]


@dataclass(slots=True, frozen=True)
class Claim:
    """One line of a test: this destination must, or must not, be reached."""

    line: int
    column: int
    text: str
    target: Selector
    ports: tuple[tuple[int, int], ...]
    allowed: bool


@dataclass(slots=True, frozen=True)
class Test:
    """`protocols`: one of them must do for what is accepted, none for what is denied."""

    line: int
    column: int
    source: Selector
    protocols: tuple[int, ...]
    claims: tuple[Claim, ...]


@dataclass(slots=True, frozen=True)
class Document:
    """A policy without errors in itself; whether its tests pass is another matter."""

    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)  # group:x → logins
    tag_owners: dict[str, tuple[Selector, ...]] = field(default_factory=dict)
    hosts: dict[str, Prefix] = field(default_factory=dict)
    rules: tuple[Rule, ...] = ()
    route_approvers: tuple[tuple[Prefix, tuple[Selector, ...]], ...] = ()
    exit_approvers: tuple[Selector, ...] = ()
    tests: tuple[Test, ...] = ()
    warnings: tuple[Problem, ...] = ()


def prefix_text(prefix: Prefix) -> str:
    """`10.0.0.0/8`; a single address without its length."""
    address, length = prefix
    network = (IPv4Network if len(address) == 4 else IPv6Network)((address, length))
    return str(network.network_address if length == 8 * len(address) else network)


def holds(prefix: Prefix, address: bytes) -> bool:
    base, length = prefix
    return len(base) == len(address) and not (_number(base) ^ _number(address)) >> (8 * len(base) - length)


def overlap(a: Prefix, b: Prefix) -> bool:
    shorter, longer = sorted((a, b), key=lambda prefix: prefix[1])
    return holds(shorter, longer[0])


def covers(outer: Prefix, inner: Prefix) -> bool:
    return outer[1] <= inner[1] and holds(outer, inner[0])


def _number(address: bytes) -> int:
    return int.from_bytes(address, "big")
