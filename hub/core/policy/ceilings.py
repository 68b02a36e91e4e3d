"""What a slice may cost, looked at before a policy holds: no device that there could be is to be told more."""

from __future__ import annotations

from collections.abc import Iterable

from edgeagent.proto.control import CLIENTS_MAX, TAGS_MAX
from hub.core.policy.compile import MESH, Flow, Policy, Side
from hub.core.policy.document import Prefix, covers
from hub.core.policy.merging import BYTES_MAX, RULES_MAX, Cost, Raw
from hub.core.policy.problems import PolicyError, Problem

_ADDRESSES_MAX = 1 + CLIENTS_MAX


def check_ceilings(policy: Policy) -> None:
    """Raises PolicyError that names the first rule with which some device could be told too much."""
    dearest = _Bill(policy, len(policy.flows)).too_dear()
    if dearest is None:
        return
    low, high = 0, len(policy.flows)  # flows[:low] are within, flows[:high] are not
    while high - low > 1:
        middle = (low + high) // 2
        found = _Bill(policy, middle).too_dear()
        if found is None:
            low = middle
        else:
            high, dearest = middle, found
    who, cost = dearest
    rule = policy.flows[high - 1].rule
    text = (
        f"{rule.name}: with this rule, {who} could be told {cost.rules} rules in {cost.size} bytes; at most "
        f"{RULES_MAX} rules and {BYTES_MAX} bytes are possible. Use tags or groups for what is alike"
    )
    raise PolicyError([Problem(rule.line, rule.column, text)])


def cost_of(policy: Policy, tags: tuple[str, ...], user: str) -> Cost:
    """What the slice of such a device costs at most, whatever its address is and whatever it routes."""
    bill = _Bill(policy, len(policy.flows))
    words = ("tagged", *tags) if tags else ("member", f"user:{user}", *policy.groups_of(user)) if user else ()
    return bill.base(words) + bill.address


class _Bill:
    """Costs if there were only the first `count` flows. Devices may route everything, and have one IPv4 address and
    those of the plain clients that they are the gateway of."""

    def __init__(self, policy: Policy, count: int) -> None:
        self._policy = policy
        self._within = (1 << count) - 1
        self._anywhere_in, own_in = _addresses(policy.targets, ("*", "internet"))
        self._anywhere_out, own_out = _addresses(policy.sources, ("*",))
        costs = [self._cost(own_in.get(prefix, 0), own_out.get(prefix, 0)) for prefix in {*own_in, *own_out}]
        self.address = Cost(
            sum(sorted((cost.rules for cost in costs), reverse=True)[:_ADDRESSES_MAX]),
            sum(sorted((cost.size for cost in costs), reverse=True)[:_ADDRESSES_MAX]),
        )

    def base(self, words: Iterable[str]) -> Cost:
        """Of a device of which these words are true, without what is about its own address alone."""
        words = tuple(words)
        return self._cost(self._incoming(words) | self._anywhere_in, self._outgoing(words) | self._anywhere_out)

    def too_dear(self) -> tuple[str, Cost] | None:
        """Who could be told too much, and how much. The dearest of all tags, as many as a device can have, count."""
        policy = self._policy
        words = {*policy.targets.by_word, *policy.sources.by_word}
        own = {word: self._cost(self._incoming((word,)), self._outgoing((word,))) for word in words}
        users = [("a device of any user", ()), *_users(policy, words)]
        tags = [("a device with tags", tuple(tag for tag in policy.document.tag_owners if tag in own))]
        for kind, identities, most in (("member", users, len(own)), ("tagged", tags, TAGS_MAX)):
            base = self.base((kind,)) + self.address
            for who, names in identities:
                found = [own[name] for name in names]
                rules = sorted((cost.rules for cost in found), reverse=True)[:most]
                sizes = sorted((cost.size for cost in found), reverse=True)[:most]
                cost = Cost(base.rules + sum(rules), base.size + sum(sizes))
                if cost.is_too_much and len(names) <= most:
                    cost = self.base((kind, *names)) + self.address  # the sum counted twice what names have in common
                if cost.is_too_much:
                    return who, cost
        return None

    def _incoming(self, words: tuple[str, ...]) -> int:
        """autogroup:self is about those that the flow may begin at."""
        policy = self._policy
        own = policy.targets.of_words(("self",)) & policy.sources.of_words(words)
        return policy.targets.of_words(words) | own

    def _outgoing(self, words: tuple[str, ...]) -> int:
        return self._policy.sources.of_words(words)

    def _cost(self, incoming: int, outgoing: int) -> Cost:
        at = self._policy.flows_at
        coming = Cost.of_in(raw for flow in at(incoming & self._within) for raw in _dearest_in(flow))
        going = Cost.of_out(
            (frozenset((*flow.target_words, *flow.target_prefixes)), flow.services)
            for flow in at(outgoing & self._within)
        )
        return Cost(max(coming.rules, going.rules), coming.size + going.size)


def _addresses(side: Side, words: tuple[str, ...]) -> tuple[int, dict[Prefix, int]]:
    """(flows that every device may be concerned by, those about one mesh address: nobody routes that, one has it)."""
    anywhere = side.of_words(words)
    own: dict[Prefix, int] = {}
    for prefix, places in side.by_prefix.items():
        if prefix[1] == 32 and covers(MESH, prefix):
            own[prefix] = places
        else:
            anywhere |= places
    return anywhere, own


def _users(policy: Policy, words: set[str]) -> list[tuple[str, tuple[str, ...]]]:
    """One user of each kind that rules tell apart, and the words that are true of that user alone."""
    named = {word.removeprefix("user:") for word in words if word.startswith("user:")}
    found: dict[tuple[str, ...], str] = {}
    for user in sorted({*policy.users, *named}):
        names = [group for group in policy.groups_of(user) if group in words]
        found.setdefault((*names, f"user:{user}") if user in named else tuple(names), user)
    return [(f"a device of {user}", names) for names, user in found.items()]


def _dearest_in(flow: Flow) -> list[Raw]:
    """What a slice says of a flow to a device that all its targets concern."""
    ends: frozenset[str | Prefix] = frozenset(("me", *flow.target_prefixes, *(flow.target_words & {"*", "internet"})))
    found: list[Raw] = [(frozenset((*flow.source_words, *flow.source_prefixes)), ends, flow.services)]
    if "self" in flow.target_words:
        found.append((frozenset({"self"}), frozenset({"me"}), flow.services))
    return found
