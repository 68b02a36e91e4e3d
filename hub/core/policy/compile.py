"""A policy made ready for use: whom its rules concern, each device's slice of it, and what a slice may cost at most.

A slice names groups and never their members: a change of who is in a group reaches only the records of those users.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2s
from typing import Any

from edgeagent.proto.codec import encode
from edgeagent.proto.policy import Slice
from hub.core.ipam import V4_NETWORK, V4_PREFIX
from hub.core.policy.document import (
    Document,
    Kind,
    Prefix,
    Rule,
    Selector,
    Service,
    covers,
    holds,
    overlap,
)
from hub.core.policy.merging import Raw, merge_in, merge_out

DIGEST_SIZE = 16
MESH: Prefix = (V4_NETWORK.to_bytes(4, "big"), V4_PREFIX)  # where all networks have their IPv4 addresses
_EXIT = "exit"
is_internet: Callable[[bytes], bool] = Slice({"v": 0, "u": "", "in": [], "out": []}, (), (), ()).is_internet


@dataclass(slots=True, frozen=True)
class Facts:
    """What a policy looks at in a device. `addresses` are its own, 4 or 16 B; `routes` those that it may route;
    `clients` are addresses of the plain WireGuard clients that it is the gateway of."""

    tags: tuple[str, ...] = ()
    user: str = ""
    addresses: tuple[bytes, ...] = ()
    routes: tuple[Prefix, ...] = ()
    id: str = ""
    clients: tuple[bytes, ...] = ()

    @property
    def person(self) -> str:
        """Its user, unless tags stand in that place; "" for none."""
        return "" if self.tags else self.user


@dataclass(slots=True, frozen=True)
class Flow:
    """One part of a rule: words and prefixes of its sources and targets."""

    rule: Rule
    source_words: frozenset[str]
    source_prefixes: tuple[Prefix, ...]
    target_words: frozenset[str]
    target_prefixes: tuple[Prefix, ...]
    services: tuple[Service, ...]


class Side:
    """Which flows a word or a prefix is in, as bits of an integer: the flow's place is the bit."""

    def __init__(self, sides: Sequence[tuple[frozenset[str], tuple[Prefix, ...]]]) -> None:
        self.by_word: dict[str, int] = {}
        self.by_prefix: dict[Prefix, int] = {}
        for place, (words, prefixes) in enumerate(sides):
            for word in words:
                self.by_word[word] = self.by_word.get(word, 0) | 1 << place
            for prefix in prefixes:
                self.by_prefix[prefix] = self.by_prefix.get(prefix, 0) | 1 << place

    def of_words(self, words: Iterable[str]) -> int:
        found = 0
        for word in words:
            found |= self.by_word.get(word, 0)
        return found

    def of_address(self, address: bytes) -> int:
        """The same for one address."""
        found = 0
        for prefix, places in self.by_prefix.items():
            if holds(prefix, address):
                found |= places
        return found

    def of_addresses(self, facts: Facts) -> int:
        found = 0
        for prefix, places in self.by_prefix.items():
            if concerns(prefix, facts):
                found |= places
        return found


class Policy:
    """One version of a network's policy. Its slices are within their ceilings if `ceilings.check_ceilings` says so."""

    def __init__(self, document: Document, version: int = 0) -> None:
        self.document = document
        self.version = version
        self.flows = tuple(_flow(rule, part.targets, part.services) for rule in document.rules for part in rule.parts)
        self.sources = Side([(flow.source_words, flow.source_prefixes) for flow in self.flows])
        self.targets = Side([(flow.target_words, flow.target_prefixes) for flow in self.flows])
        groups: dict[str, list[str]] = {}
        for name, users in document.groups.items():
            for user in users:
                groups.setdefault(user, []).append(name)
        self._groups = {user: tuple(sorted(names)) for user, names in groups.items()}

    @property
    def users(self) -> Iterable[str]:
        """Those that are in groups."""
        return self._groups

    def groups_of(self, user: str) -> tuple[str, ...]:
        """Sorted; at most as many as a record holds."""
        return self._groups.get(user, ())

    def names_of(self, tags: Iterable[str], user: str) -> frozenset[str]:
        """The words that are true of a device: of its tags if it has any, else of its user."""
        words = {"*", *tags}
        if len(words) > 1:
            words.add("tagged")
        elif user:
            words.update(("member", f"user:{user}"), self.groups_of(user))
        return frozenset(words)

    def slice_for(self, facts: Facts) -> dict[str, Any]:
        """A map's `po` for this device (docs/protocol.md): the same for the same facts, and within its ceilings."""
        names = self.names_of(facts.tags, facts.user)
        incoming = [raw for flow in self.flows_at(self.as_target(facts)) for raw in _raw_in(flow, facts, names)]
        outgoing = [(_selectors(_reached(flow, facts)), flow.services) for flow in self.flows_at(self.as_source(facts))]
        return {
            "v": self.version,
            "u": facts.person,
            "in": merge_in(incoming),
            "out": merge_out((targets, services) for targets, services in outgoing if targets),
        }

    def may_meet(self, a: Facts, b: Facts) -> bool:
        """Whether one of the two may reach the other, or what it routes, by any service."""
        return self._may_reach(a, b) or self._may_reach(b, a)

    def as_source(self, facts: Facts) -> int:
        """The flows, as bits, that this device or what it routes may begin."""
        names = self.names_of(facts.tags, facts.user)
        return self.sources.of_words(names) | self.sources.of_addresses(facts)

    def as_target(self, facts: Facts) -> int:
        """The flows, as bits, that may end at this device or behind it."""
        words = set(self.names_of(facts.tags, facts.user))
        if facts.person:
            words.add("self")
        if routes_internet(facts):
            words.add("internet")
        return self.targets.of_words(words) | self.targets.of_addresses(facts)

    def auto_approves(self, route: Prefix | str, tags: Iterable[str], user: str, groups: Iterable[str]) -> bool:
        """Whether a device's word that it routes `route` needs nobody's approval. "exit" or a prefix of length 0: that
        it is an exit node."""
        tags, groups = frozenset(tags), frozenset(groups)
        if isinstance(route, str):
            if route != _EXIT:
                raise ValueError(f"{route!r}: a prefix or {_EXIT!r} expected")
            approvers = self.document.exit_approvers
        elif route[1] == 0:
            approvers = self.document.exit_approvers
        else:
            approvers = tuple(
                selector
                for prefix, selectors in self.document.route_approvers
                if covers(prefix, route)
                for selector in selectors
            )
        return any(_is_device(selector, tags, user, groups) for selector in approvers)

    def _may_reach(self, a: Facts, b: Facts) -> bool:
        both = self.as_source(a) & self.as_target(b)
        if not both:
            return False
        if a.person and a.person == b.person:
            return True
        only_self = self.targets.by_word.get("self", 0)
        return any(
            _reached_by_others(flow, self.names_of(b.tags, b.user), b) for flow in self.flows_at(both & only_self)
        ) or (both & ~only_self != 0)

    def flows_at(self, places: int) -> list[Flow]:
        """Those that the bits name."""
        found = []
        while places:
            lowest = places & -places
            found.append(self.flows[lowest.bit_length() - 1])
            places ^= lowest
        return found


def digest(slice_: dict[str, Any] | None) -> bytes:
    """16 B, the same for slices that say the same, whichever version they are of; empty for no policy."""
    if slice_ is None:
        return b""
    return blake2s(encode([slice_["u"], slice_["in"], slice_["out"]]), digest_size=DIGEST_SIZE).digest()


def may_tag(policy: Policy | None, user: str, roles: Iterable[str], tag: str) -> bool:
    """Whether a person may give a device this tag: owners and admins any, others those whose tagOwners name them.

    `roles` are those that the person has at the hub; `user` is the login that policies name.
    """
    roles = frozenset(roles)
    if roles & {"owner", "admin"}:
        return True
    if policy is None or not user:
        return False
    owners = policy.document.tag_owners.get(tag, ())
    groups = frozenset(policy.groups_of(user))
    return any(
        (selector.kind is Kind.ROLE and selector.name in roles) or _is_device(selector, frozenset(), user, groups)
        for selector in owners
    )


def concerns(prefix: Prefix, facts: Facts) -> bool:
    """Whether an address of the device, or one that it may route, is in the prefix. Nobody routes the mesh's own, but
    for those of plain clients."""
    if any(holds(prefix, address) for address in (*facts.addresses, *facts.clients)):
        return True
    return not covers(MESH, prefix) and any(overlap(prefix, route) for route in facts.routes)


def routes_internet(facts: Facts) -> bool:
    """Whether any address of the internet may be behind the device."""
    return any(
        length < 3 or is_internet(address) or is_internet(_last(address, length)) for address, length in facts.routes
    )  # no block that is not of the internet ends where another begins, but for the widest


def _last(address: bytes, length: int) -> bytes:
    value = int.from_bytes(address, "big") | (1 << (8 * len(address) - length)) - 1
    return value.to_bytes(len(address), "big")


def _flow(rule: Rule, targets: tuple[Selector, ...], services: tuple[Service, ...]) -> Flow:
    return Flow(rule, _words(rule.sources), _prefixes(rule.sources), _words(targets), _prefixes(targets), services)


def _words(selectors: tuple[Selector, ...]) -> frozenset[str]:
    return frozenset(selector.word for selector in selectors if selector.prefix is None)


def _prefixes(selectors: tuple[Selector, ...]) -> tuple[Prefix, ...]:
    return tuple(selector.prefix for selector in selectors if selector.prefix is not None)


def _raw_in(flow: Flow, facts: Facts, names: frozenset[str]) -> list[Raw]:
    """What a flow says to a device that it may end at."""
    targets: set[str | Prefix] = {prefix for prefix in flow.target_prefixes if concerns(prefix, facts)}
    if "*" in flow.target_words:
        targets = {"*"}
    elif flow.target_words & names:
        targets.add("me")
    if "internet" in flow.target_words and routes_internet(facts):
        targets.add("internet")
    found: list[Raw] = []
    if targets:
        sources = _selectors((*flow.source_words, *flow.source_prefixes))
        if sources:
            found.append((sources, _selectors(targets), flow.services))
    if "self" in flow.target_words and facts.person and flow.source_words & names:
        found.append((frozenset({"self"}), frozenset({"me"}), flow.services))  # its sources hold this user, if any
    return found


def _reached(flow: Flow, facts: Facts) -> tuple[str | Prefix, ...]:
    """What a flow lets a device reach that it may begin at."""
    words = flow.target_words if facts.person else flow.target_words - {"self"}
    return *words, *flow.target_prefixes


def _reached_by_others(flow: Flow, names: frozenset[str], facts: Facts) -> bool:
    """Whether a flow ends at a device for another reason than that both have one user."""
    return (
        bool(flow.target_words & names)
        or ("internet" in flow.target_words and routes_internet(facts))
        or any(concerns(prefix, facts) for prefix in flow.target_prefixes)
    )


def _selectors(found: Iterable[str | Prefix]) -> frozenset[str | Prefix]:
    """Without those that others of them hold already."""
    selectors = frozenset(found)
    if "*" in selectors:
        return frozenset({"*"})
    words = {selector for selector in selectors if isinstance(selector, str)}
    covered = {
        word
        for word in words
        if ("member" in words and word.startswith(("user:", "group:")))
        or (word == "self" and "member" in words)
        or ("tagged" in words and word.startswith("tag:"))
    }
    return selectors - covered


def _is_device(selector: Selector, tags: frozenset[str], user: str, groups: frozenset[str]) -> bool:
    if tags:
        return selector.kind is Kind.TAGGED or (selector.kind is Kind.TAG and selector.name in tags)
    if not user:
        return False
    return (
        selector.kind is Kind.MEMBER
        or (selector.kind is Kind.USER and selector.name == user)
        or (selector.kind is Kind.GROUP and selector.name in groups)
    )
