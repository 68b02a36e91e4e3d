"""The slice of the network's policy that concerns one device, and the verdict on packets by it (docs/protocol.md, map).

Rules only allow; what none allows is refused. They speak of peers by identity, which the peer's signed record tells,
and of addresses. `Slice` is about the packet that begins a flow: what belongs to a known one is conntrack.py's.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import Any

from edgeagent.proto.heads import ICMP, ICMPV6, SCTP, TCP, UDP

ANY_OF_THESE = 0  # as the protocol of a service: TCP, UDP and SCTP by port, and ICMP whatever the ports
WITH_PORTS = (TCP, UDP, SCTP)
_PORT_MAX = 65_535

_Prefix = tuple[bytes, int]

# What is no address of the internet: RFC 6890's special blocks that are not globally reachable, and multicast. The
# blocks for documentation are left in: nobody has them, so nothing is lost.
NOT_INTERNET: tuple[_Prefix, ...] = (
    (bytes(4), 8),
    (bytes((10, 0, 0, 0)), 8),
    (bytes((100, 64, 0, 0)), 10),
    (bytes((127, 0, 0, 0)), 8),
    (bytes((169, 254, 0, 0)), 16),
    (bytes((172, 16, 0, 0)), 12),
    (bytes((192, 168, 0, 0)), 16),
    (bytes((224, 0, 0, 0)), 3),
    (bytes(16), 48),  # unspecified, loopback, IPv4-compatible and IPv4-mapped
    (bytes.fromhex("0064ff9b0001") + bytes(10), 48),  # RFC 8215: translation within a site
    (b"\xfc" + bytes(15), 7),
    (b"\xfe\x80" + bytes(14), 10),
    (b"\xff" + bytes(15), 8),
)


class Identity:
    """Who a device is to the policy: its tags if it has any, else its user ("" for none) and that user's groups.

    `tags` as "tag:x", `groups` as "group:x". `names` are the selectors that match it.
    """

    __slots__ = ("names", "user")

    def __init__(self, tags: Iterable[str], user: str, groups: Iterable[str] = ()) -> None:
        names = {"*", *tags}
        self.user = user if len(names) == 1 else ""  # "" where tags stand in its place
        if len(names) > 1:
            names.add("tagged")
        elif user:
            names.update(("member", f"user:{user}"), groups)
        self.names = frozenset(names)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and self.names == other.names

    def __hash__(self) -> int:
        return hash(self.names)


NOBODY = Identity((), "")  # a peer without a record: only "*" and prefixes match


class Prefixes:
    """Whether an address is in any of a set of prefixes: a set a length, of which there are a handful."""

    __slots__ = ("_by_size",)

    def __init__(self, prefixes: Iterable[_Prefix]) -> None:
        self._by_size: dict[int, dict[int, set[int]]] = {4: {}, 16: {}}  # address size → shift → prefixes
        for address, length in prefixes:
            shift = 8 * len(address) - length
            self._by_size[len(address)].setdefault(shift, set()).add(int.from_bytes(address, "big") >> shift)

    def __iter__(self) -> Iterator[_Prefix]:
        for size, by_shift in self._by_size.items():
            for shift, known in by_shift.items():
                yield from (((prefix << shift).to_bytes(size, "big"), 8 * size - shift) for prefix in known)

    def hold(self, address: bytes) -> bool:
        value = int.from_bytes(address, "big")
        return any(value >> shift in known for shift, known in self._by_size[len(address)].items())


class _Selectors:
    """Of all rules at one place, sources or targets: which of them match, without a look at the others."""

    __slots__ = ("_by_size", "_by_word")

    def __init__(self, rules: list[list[Any]]) -> None:
        self._by_word: dict[str, list[int]] = {}
        # address size → shift → prefix → numbers of rules
        self._by_size: dict[int, dict[int, dict[int, list[int]]]] = {4: {}, 16: {}}
        for number, selectors in enumerate(rules):
            for selector in selectors:
                if isinstance(selector, str):
                    self._by_word.setdefault(selector, []).append(number)
                else:
                    address, length = selector
                    shift = 8 * len(address) - length
                    table = self._by_size[len(address)].setdefault(shift, {})
                    table.setdefault(int.from_bytes(address, "big") >> shift, []).append(number)

    def matching(self, names: frozenset[str], address: bytes) -> set[int]:
        """Numbers of rules; `names` are all the words that are true of the peer and of `address`."""
        found: set[int] = set()
        for name in names:
            found.update(self._by_word.get(name, ()))
        value = int.from_bytes(address, "big")
        for shift, table in self._by_size[len(address)].items():
            found.update(table.get(value >> shift, ()))
        return found


class _Services:
    """What a rule allows: for each protocol where ranges of ports begin and end, in order."""

    __slots__ = ("_bounds",)

    def __init__(self, services: list[list[int]]) -> None:
        ranges: dict[int, list[tuple[int, int]]] = {}
        for protocol, low, high in services:
            for each in WITH_PORTS if protocol == ANY_OF_THESE else (protocol,):
                if each not in WITH_PORTS:
                    low, high = 0, _PORT_MAX
                if low <= high:
                    ranges.setdefault(each, []).append((low, high))
            if protocol == ANY_OF_THESE:
                for each in (ICMP, ICMPV6):
                    ranges[each] = [(0, _PORT_MAX)]
        self._bounds = {protocol: _bounds(its) for protocol, its in ranges.items()}

    def hold(self, protocol: int, port: int) -> bool:
        bounds = self._bounds.get(protocol)
        return bounds is not None and bisect_right(bounds, port) & 1 == 1

    def ranges(self) -> Iterator[tuple[int, int, int]]:
        """(protocol, first port, last port); all ports where the protocol has none."""
        for protocol, bounds in self._bounds.items():
            for low, end in zip(bounds[::2], bounds[1::2], strict=True):
                yield protocol, low, end - 1


def _bounds(ranges: list[tuple[int, int]]) -> list[int]:
    """First port of the first range, first one after it, first port of the second and so on; none touch."""
    bounds: list[int] = []
    for low, high in sorted(ranges):
        if bounds and low <= bounds[-1]:
            bounds[-1] = max(bounds[-1], high + 1)
        else:
            bounds += (low, high + 1)
    return bounds


class Slice:
    """A map's `po`, checked by its schema. `addresses` are the device's own, `networks` the network's prefixes.

    `me` is the device's own identity. `clients` are the addresses of the plain WireGuard clients that it is the gateway
    of, `elsewhere` the prefixes that others route and it does not. Unknown selectors match nothing.
    """

    __slots__ = ("_addresses", "_clients", "_elsewhere", "_in", "_in_services", "_mesh", "_not_internet", "_out",
                 "_out_services", "_sources", "body", "me", "version")  # fmt: skip

    def __init__(
        self,
        body: dict[str, Any],
        tags: Iterable[str],
        addresses: Iterable[bytes],
        networks: Iterable[_Prefix],
        clients: Iterable[bytes] = (),
        elsewhere: Iterable[_Prefix] = (),
    ) -> None:
        self.body = body
        self.version: int = body["v"]
        self.me = Identity(tags, body["u"])
        self._addresses = frozenset(addresses)
        self._not_internet = Prefixes((*NOT_INTERNET, *networks))
        self._clients = frozenset(clients)
        self._mesh = Prefixes(networks) if self._clients else None
        self._elsewhere = Prefixes((*networks, *elsewhere)) if self._clients else None
        self._sources = _Selectors([sources for sources, _, _ in body["in"]])
        self._in = _Selectors([targets for _, targets, _ in body["in"]])
        self._in_services = [_Services(services) for _, _, services in body["in"]]
        self._out = _Selectors([targets for targets, _ in body["out"]])
        self._out_services = [_Services(services) for _, services in body["out"]]

    def admits(
        self, identity: Identity, is_own_address: bool, source: bytes, target: bytes, protocol: int, port: int
    ) -> bool:
        """Whether a flow may come in: from the peer of `identity`, whose own address `source` is or not, to `target`
        (4 or 16 B). `port` is the destination's, 0 where the protocol has none."""
        names = self._names(identity) if is_own_address else _ANY
        rules = self._sources.matching(names, source)
        if not rules:
            return False
        words = _ME if target in self._addresses else self._words(_ANY, target)
        rules &= self._in.matching(words, target)
        return any(self._in_services[rule].hold(protocol, port) for rule in rules)

    def may_reach(self, identity: Identity, is_own_address: bool, target: bytes, protocol: int, port: int) -> bool:
        """The same for a flow that goes out to `target`, an address of the peer of `identity` or one that it routes."""
        names = self._names(identity) if is_own_address else self._words(_ANY, target)
        return any(self._out_services[rule].hold(protocol, port) for rule in self._out.matching(names, target))

    def services_in(self, identity: Identity, source: bytes, target: bytes) -> list[tuple[int, int, int]]:
        """(protocol, first port, last port) of what a peer's own address `source` may reach at `target`, for whoever
        judges in our place; in order, each once."""
        rules = self._sources.matching(self._names(identity), source)
        rules &= self._in.matching(_ME if target in self._addresses else self._words(_ANY, target), target)
        return sorted({each for rule in rules for each in self._in_services[rule].ranges()})

    def services_out(self, identity: Identity, target: bytes) -> list[tuple[int, int, int]]:
        """The same of what we may reach at a peer's own address."""
        rules = self._out.matching(self._names(identity), target)
        return sorted({each for rule in rules for each in self._out_services[rule].ranges()})

    def rules_in(self) -> Iterator[tuple[list[Any], list[Any], Iterator[tuple[int, int, int]]]]:
        """(sources, targets, services as `services_in` has them, in no order) of each rule, for whoever judges in our
        place."""
        for (sources, targets, _), services in zip(self.body["in"], self._in_services, strict=True):
            yield sources, targets, services.ranges()

    def rules_out(self) -> Iterator[tuple[list[Any], Iterator[tuple[int, int, int]]]]:
        for (targets, _), services in zip(self.body["out"], self._out_services, strict=True):
            yield targets, services.ranges()

    def not_internet(self) -> list[_Prefix]:
        """What "internet" leaves out."""
        return list(self._not_internet)

    def passes_on(self, source: bytes, target: bytes) -> bool:
        """Whether what a plain client sends is for another device, which judges it by the client's address."""
        return (
            self._elsewhere is not None
            and source in self._clients
            and target not in self._addresses
            and target not in self._clients
            and self._elsewhere.hold(target)
        )

    def brings(self, source: bytes, target: bytes) -> bool:
        """Whether a packet is one of another device, or of another client, for a plain client of ours."""
        return (
            self._mesh is not None
            and target in self._clients
            and source not in self._addresses
            and self._mesh.hold(source)
        )

    def is_for_client(self, source: bytes, target: bytes) -> bool:
        """Whether a packet is for a plain client of ours, and not from ourselves."""
        return target in self._clients and source not in self._addresses

    def is_internet(self, address: bytes) -> bool:
        """Whether "internet" matches: outside private, shared, link-local, multicast blocks and the network's own."""
        return not self._not_internet.hold(address)

    def _names(self, identity: Identity) -> frozenset[str]:
        same = identity.user and identity.user == self.me.user
        return identity.names | _SELF if same else identity.names

    def _words(self, words: frozenset[str], address: bytes) -> frozenset[str]:
        return words | _INTERNET if self.is_internet(address) else words


_ANY = frozenset({"*"})
_ME = frozenset({"*", "me"})
_SELF = frozenset({"self"})
_INTERNET = frozenset({"internet"})
