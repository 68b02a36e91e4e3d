"""Verdicts: may this reach that, and by which rule. For a policy's own tests, for `explain`, for who-reaches-what."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from hub.core.policy.ceilings import check_ceilings
from hub.core.policy.compile import Facts, Policy, is_internet
from hub.core.policy.document import (
    ANY_OF_THESE,
    ICMP,
    ICMPV6,
    WITH_PORTS,
    Claim,
    Kind,
    Rule,
    Selector,
    Service,
    Test,
)
from hub.core.policy.merging import join_services
from hub.core.policy.problems import SHOWN_MAX, PolicyError, Problem
from hub.core.policy.reading import read

VERDICTS_MAX = 50_000  # of all tests of one policy, users of groups and stretches of ports counted

# Addresses that stand for any of the internet: nobody's (RFC 5737, RFC 3849).
_SOMEWHERE = (bytes((192, 0, 2, 1)), bytes.fromhex("20010db8") + bytes(11) + b"\x01")


@dataclass(slots=True, frozen=True)
class End:
    """Where a flow begins or ends: a device by one of its own addresses, or, without `facts`, an address that some
    device routes. `address` is None where only the kind of device is asked for: then no prefix matches."""

    facts: Facts | None
    address: bytes | None = None

    @property
    def person(self) -> str:
        return self.facts.person if self.facts else ""


def load(text: str, version: int = 0) -> Policy:
    """The policy that `text` is, its tests not run. Raises PolicyError."""
    policy = Policy(read(text), version)
    check_ceilings(policy)
    return policy


def check(text: str, version: int = 0, find: Callable[[bytes], Facts | None] = lambda _: None) -> Policy:
    """The policy that `text` is. Raises PolicyError: what is wrong with it, or which of its own tests fail.

    `find` tells whose own address an address is, for tests that name one.
    """
    policy = load(text, version)
    failures = _Trial(policy, find).failures()
    if failures:
        raise PolicyError(failures)
    return policy


def verdict(policy: Policy, source: End, target: End, protocol: int, port: int) -> Rule | None:
    """The first rule that allows it. `protocol` is an IP protocol (or 0: by any of TCP, UDP and SCTP), `port` the
    destination's, 0 where there is none."""
    for flow in policy.flows_at(flows_between(policy, source, target)):
        if serves(flow.services, protocol, port):
            return flow.rule
    return None


def flows_between(policy: Policy, source: End, target: End) -> int:
    """The flows, as bits, that begin at one and end at the other, by whatever service."""
    names = set(_names(policy, target))
    if target.person and target.person == source.person:
        names.add("self")
    if target.facts is None and target.address is not None and is_internet(target.address):
        names.add("internet")
    sources = policy.sources.of_words(_names(policy, source))
    targets = policy.targets.of_words(names)
    if source.address is not None:
        sources |= policy.sources.of_address(source.address)
    if target.address is not None:
        targets |= policy.targets.of_address(target.address)
    return sources & targets


def rules_between(
    policy: Policy, source: End, target: End, protocols: tuple[int, ...] = ()
) -> list[tuple[Rule, tuple[Service, ...]]]:
    """All rules that let one reach the other by any of `protocols` (() = by anything), and the services of each."""
    found: dict[Rule, set[Service]] = {}
    for flow in policy.flows_at(flows_between(policy, source, target)):
        services = {
            service
            for service in flow.services
            if not protocols or any(serves((service,), protocol, service[1]) for protocol in protocols)
        }
        if services:
            found.setdefault(flow.rule, set()).update(services)
    return [(rule, _joined(services)) for rule, services in found.items()]


def describe(policy: Policy, end: End) -> str:
    """What an end is to the policy."""
    address = "" if end.address is None else str(ip_address(end.address))
    if end.facts is None:
        place = "an address of the internet" if end.address is not None and is_internet(end.address) else "an address"
        return f"{place}{f' ({address})' if address else ''} that is no device's own"
    if end.facts.tags:
        who = f"tagged {', '.join(end.facts.tags)}"
    elif end.facts.user:
        groups = policy.groups_of(end.facts.user)
        who = f"of user {end.facts.user}" + (f", who is in {', '.join(groups)}" if groups else ", who is in no group")
    else:
        who = "with neither a user nor tags"
    return f"a device {who}" + (f" ({address})" if address else "")


def reach(policy: Policy, source: Facts, target: Facts) -> tuple[Service, ...]:
    """All services by which one device may reach the other itself, by any of their addresses."""
    found: set[Service] = set()
    for one, other in _pairs(source, target):
        for flow in policy.flows_at(flows_between(policy, one, other)):
            found.update(flow.services)
    return _joined(found)


def matrix(policy: Policy, devices: Sequence[tuple[str, Facts]]) -> list[list[tuple[Service, ...]]]:
    """Who reaches what: a row for each source, a column for each target, both in the order of `devices` (labels are the
    caller's). () is nothing."""
    return [[reach(policy, source, target) for _, target in devices] for _, source in devices]


def services_text(services: Iterable[Service]) -> str:
    """`tcp 22, 80-90; any *`; "" for none."""
    names = {ANY_OF_THESE: "any", 6: "tcp", 17: "udp", 132: "sctp", ICMP: "icmp", ICMPV6: "ipv6-icmp"}
    by_protocol: dict[int, list[str]] = {}
    for protocol, low, high in services:
        text = "*" if (low, high) == (0, 65_535) else str(low) if low == high else f"{low}-{high}"
        by_protocol.setdefault(protocol, []).append(text)
    return "; ".join(f"{names.get(protocol, protocol)} {', '.join(ports)}" for protocol, ports in by_protocol.items())


def serves(services: Iterable[Service], protocol: int, port: int) -> bool:
    """Whether a packet of this protocol to this port is among the services."""
    for allowed, low, high in services:
        if protocol in WITH_PORTS or protocol == ANY_OF_THESE:
            meant = allowed == protocol or (
                ANY_OF_THESE in (allowed, protocol) and allowed in (ANY_OF_THESE, *WITH_PORTS)
            )
            if meant and low <= port <= high:
                return True
        elif allowed == protocol or (allowed == ANY_OF_THESE and protocol in (ICMP, ICMPV6)):
            return True
    return False


class _Trial:
    """A policy's own tests, run."""

    def __init__(self, policy: Policy, find: Callable[[bytes], Facts | None]) -> None:
        self._policy = policy
        self._find = find
        self._left = VERDICTS_MAX
        self._edges = sorted(
            {edge for flow in policy.flows for _, low, high in flow.services for edge in (low, high + 1)}
        )

    def failures(self) -> list[Problem]:
        """What does not hold: one problem for each line of a test."""
        problems: list[Problem] = []
        for test in self._policy.document.tests:
            sources = self._ends(test.source, None)
            if not sources:
                problems.append(
                    Problem(test.line, test.column, f"test: {test.source} has no users, so there is nothing to test")
                )
            for claim in test.claims if sources else ():
                why = self._failure(test, claim, sources)
                if why is not None:
                    problems.append(Problem(claim.line, claim.column, why))
                if self._left < 0 or len(problems) >= SHOWN_MAX:
                    return problems
        return problems

    def _failure(self, test: Test, claim: Claim, sources: list[End]) -> str | None:
        ports = self._ports(claim)
        for source in sources:
            targets = self._ends(claim.target, source)
            if not targets:
                return f"test: {claim.target} has nobody in it that {test.source} could reach"
            for target in targets:
                self._left -= len(ports)
                if self._left < 0:
                    return f"test: more than {VERDICTS_MAX} verdicts in all tests. Test fewer users or ports"
                why = self._judge(test, claim, ports, source, target)
                if why is not None:
                    return why
        return None

    def _judge(self, test: Test, claim: Claim, ports: list[int], source: End, target: End) -> str | None:
        flows = self._policy.flows_at(flows_between(self._policy, source, target))
        for port in ports:
            rule = next(
                (flow.rule for flow in flows for protocol in test.protocols if serves(flow.services, protocol, port)),
                None,
            )
            if (rule is not None) == claim.allowed:
                continue
            whose = f"{test.source}" if test.source.kind is not Kind.GROUP else f"{source.person} of {test.source}"
            at = "" if claim.ports == ((port, port),) else f", port {port}"
            if rule is None:
                return f"test failed: {claim.text} from {whose} is denied{at}, no rule accepts it"
            return f"test failed: {claim.text} from {whose} is accepted{at}, by {rule.name} in line {rule.line}"
        return None

    def _ends(self, selector: Selector, source: End | None) -> list[End]:
        """The ends that a test means. All of them must do."""
        if selector.kind is Kind.TAG:
            return [End(Facts(tags=(selector.name,)))]
        if selector.kind is Kind.USER:
            return [End(Facts(user=selector.name))]
        if selector.kind is Kind.GROUP:
            return [End(Facts(user=user)) for user in self._policy.document.groups[selector.name]]
        if selector.kind is Kind.INTERNET:
            return [End(None, address) for address in _SOMEWHERE]
        if selector.prefix is not None:
            return [End(self._find(selector.prefix[0]), selector.prefix[0])]
        return [End(Facts(user=source.person))] if source is not None and source.person else []  # autogroup:self

    def _ports(self, claim: Claim) -> list[int]:
        """One port of each stretch of the claim's on which the verdict cannot change."""
        found: set[int] = set()
        for low, high in claim.ports:
            inner = self._edges[bisect_right(self._edges, low) : bisect_right(self._edges, high)]
            found.update((low, *inner))
        return sorted(found)


def _pairs(source: Facts, target: Facts) -> list[tuple[End, End]]:
    """Their addresses of the same family side by side."""
    pairs = [
        (End(source, one), End(target, other))
        for one in source.addresses
        for other in target.addresses
        if len(one) == len(other)
    ]
    return pairs or [(End(source), End(target))]


def _joined(services: Iterable[Service]) -> tuple[Service, ...]:
    return tuple((protocol, low, high) for protocol, low, high in join_services(services))


def _names(policy: Policy, end: End) -> frozenset[str]:
    return frozenset({"*"}) if end.facts is None else policy.names_of(end.facts.tags, end.facts.user)
