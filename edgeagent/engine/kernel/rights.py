"""What the kernel is to let pass, as data: of each peer's own addresses, and of the prefixes behind peers.

Rights of peers are elements of verdict maps, so that one more peer is one more element; the rest, the frame, is as
large as the policy is and changes with it only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgeagent.proto.ip import holds
from edgeagent.proto.policy import WITH_PORTS, Identity
from edgeagent.proto.prefixes import covers as prefix_covers

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from edgeagent.proto.device import Device
    from edgeagent.proto.policy import Slice

    Prefix = tuple[bytes, int]
    # (protocol, its ranges of ports), in order; no ranges: all of the protocol
    Services = tuple[tuple[int, tuple[tuple[int, int], ...]], ...]
    # (map, key): `in4` and `in6` by peer's address and ours behind one another, `out4` and `out6` by peer's address
    Element = tuple[str, bytes]

_PORT_MAX = 65_535
_ANY = ((bytes(4), 0), (bytes(16), 0))


def services(ranges: Iterable[tuple[int, int, int]]) -> Services:
    """Of (protocol, first port, last port), which may overlap."""
    ports: dict[int, list[tuple[int, int]]] = {}
    for protocol, low, high in sorted(ranges):
        known = ports.setdefault(protocol, [])
        if known and low <= known[-1][1] + 1:
            known[-1] = known[-1][0], max(known[-1][1], high)
        else:
            known.append((low, high))
    return tuple(
        (protocol, () if protocol not in WITH_PORTS or its == [(0, _PORT_MAX)] else tuple(its))
        for protocol, its in ports.items()
    )


def allow_all_of(new: Services, old: Services) -> bool:
    """Whether whoever had `old` loses nothing by `new`."""
    by_protocol = dict(new)
    for protocol, ranges in old:
        if (its := by_protocol.get(protocol)) is None:
            return False
        if its and not (ranges and all(any(low <= a and b <= high for low, high in its) for a, b in ranges)):
            return False
    return True


def rights_of(policy: Slice, record: Any, own: Iterable[bytes]) -> dict[Element, Services]:
    """Of a peer's own addresses: what they may reach here, and what we may reach there."""
    identity = Identity(record.tags, record.user, record.groups)
    found: dict[Element, Services] = {}
    for address in record.addresses:
        version = 4 if len(address) == 4 else 6
        for target in own:
            if len(target) == len(address) and (may := policy.services_in(identity, address, target)):
                found[f"in{version}", address + target] = services(may)
        if may := policy.services_out(identity, address):
            found[f"out{version}", address] = services(may)
    return found


class Rule:
    """Of prefixes behind peers: between any address of `remote` (or any but those of `but`) and `local`, ours or None
    for each of ours. All addresses are of one IP version."""

    __slots__ = ("but", "inbound", "local", "remote", "services")

    def __init__(
        self, inbound: bool, remote: tuple[Prefix, ...], but: tuple[Prefix, ...], local: bytes | None, may: Services
    ) -> None:
        self.inbound = inbound  # begun there
        self.remote = remote
        self.but = but
        self.local = local
        self.services = may

    def _said(self) -> tuple[object, ...]:
        return self.inbound, self.remote, self.but, self.local, self.services

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rule) and self._said() == other._said()

    def __hash__(self) -> int:
        return hash(self._said())


class Frame:
    """What of the filter is no single peer's. Without `own` addresses nothing is for this device."""

    __slots__ = ("behind", "exits", "holes", "own", "restricts", "rules")

    def __init__(self, device: Device) -> None:
        self.own = frozenset(device.own or ())
        policy = None if device.firewall is None else device.firewall.policy
        self.restricts = policy is not None
        behind: set[Prefix] = set()
        if policy is not None:
            for peer in device.peers.values():
                behind.update(each for each in device.allowed_ips.of_peer(peer) if each[1] < 8 * len(each[0]))
        self.exits = tuple(sorted(each for each in behind if not each[1]))
        self.behind = widest(each for each in behind if each[1])
        self.holes = widest(device.allowed_ips.holes()) if self.exits else ()  # of exits
        self.rules = frozenset(_rules(policy, self.own)) if policy is not None and behind else frozenset()

    def same(self, other: Frame) -> bool:
        return all(getattr(self, each) == getattr(other, each) for each in self.__slots__)

    def allows_all_of(self, old: Frame) -> bool:
        """Whether nobody loses anything where this takes the place of `old`, apart from what peers have themselves."""
        if not self.restricts or not old.restricts:
            return not self.restricts and self.own >= old.own
        return (
            self.own >= old.own
            and set(self.exits) >= set(old.exits)
            and all(any(prefix_covers(mine, each) for mine in self.behind) for each in old.behind)
            and all(any(prefix_covers(each, mine) for each in old.holes) for mine in self.holes)
            and self.rules >= old.rules
        )


def _rules(policy: Slice, own: frozenset[bytes]) -> Iterator[Rule]:
    """What the policy says by addresses alone: of whom it knows no more."""
    for sources, targets, ranges in policy.rules_in():
        may = services(ranges)
        for remote in _by_version(_ANY if "*" in sources else sources):
            for local in sorted(own):
                if may and len(local) == len(remote[0][0]) and _is_for(targets, local):
                    yield Rule(True, remote, (), local, may)
    outside = policy.not_internet()
    for targets, ranges in policy.rules_out():
        may = services(ranges)
        for remote in _by_version(_ANY if "*" in targets else targets) if may else ():
            yield Rule(False, remote, (), None, may)
        for remote in _by_version(_ANY) if may and "internet" in targets else ():
            but = widest(each for each in outside if len(each[0]) == len(remote[0][0]))
            yield Rule(False, remote, but, None, may)


def _is_for(targets: list[Any], local: bytes) -> bool:
    return any(each in ("*", "me") if isinstance(each, str) else holds((each[0], each[1]), local) for each in targets)


def _by_version(selectors: Iterable[Any]) -> Iterator[tuple[Prefix, ...]]:
    """The prefixes among selectors, each IP version's together; none of a version is left out."""
    for size in (4, 16):
        prefixes = [(each[0], each[1]) for each in selectors if not isinstance(each, str)]
        if found := widest(each for each in prefixes if len(each[0]) == size):
            yield found


def widest(prefixes: Iterable[Prefix]) -> tuple[Prefix, ...]:
    """In order, and without those that are in another one: nft takes no two that overlap."""
    found: list[Prefix] = []
    for each in sorted(set(prefixes), key=lambda prefix: (prefix[1], prefix[0])):
        if not any(prefix_covers(wide, each) for wide in found):
            found.append(each)
    return tuple(sorted(found))
