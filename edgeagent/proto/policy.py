"""The slice of the network's policy that concerns one device, and the verdict on packets by it (docs/protocol.md, map).

Rules only allow; what none allows is refused. They speak of peers by identity, which the peer's signed record tells,
and of addresses. `Slice` is about the packet that begins a flow: what belongs to a known one is conntrack.py's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

ANY_OF_THESE = 0  # as the protocol of a service: TCP, UDP and SCTP by port, and ICMP whatever the ports
TCP, UDP, SCTP, ICMP, ICMPV6 = 6, 17, 132, 1, 58
WITH_PORTS = (TCP, UDP, SCTP)

_Prefix = tuple[bytes, int]
_Service = tuple[int, int, int]

# What is no address of the internet: RFC 6890's special blocks that are not globally reachable, and multicast. The
# blocks for documentation are left in: nobody has them, so nothing is lost.
_NOT_INTERNET: tuple[_Prefix, ...] = (
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

    def hold(self, address: bytes) -> bool:
        value = int.from_bytes(address, "big")
        return any(value >> shift in known for shift, known in self._by_size[len(address)].items())


class _Selectors:
    """Sources or targets of a rule."""

    __slots__ = ("prefixes", "words")

    def __init__(self, selectors: list[Any]) -> None:
        self.words = frozenset(selector for selector in selectors if isinstance(selector, str))
        ranges = [(selector[0], selector[1]) for selector in selectors if not isinstance(selector, str)]
        self.prefixes = Prefixes(ranges) if ranges else None

    def match(self, names: frozenset[str], address: bytes) -> bool:
        """`names` are all the words that are true of the peer and of `address`."""
        return not self.words.isdisjoint(names) or (self.prefixes is not None and self.prefixes.hold(address))


class Slice:
    """A map's `po`, checked by its schema. `addresses` are the device's own, `networks` the network's prefixes.

    `me` is the device's own identity. Unknown selectors match nothing.
    """

    __slots__ = ("_addresses", "_in", "_not_internet", "_out", "body", "me", "version")

    def __init__(
        self, body: dict[str, Any], tags: Iterable[str], addresses: Iterable[bytes], networks: Iterable[_Prefix]
    ) -> None:
        self.body = body
        self.version: int = body["v"]
        self.me = Identity(tags, body["u"])
        self._addresses = frozenset(addresses)
        self._not_internet = Prefixes((*_NOT_INTERNET, *networks))
        self._in = [
            (_Selectors(sources), _Selectors(targets), _services(services)) for sources, targets, services in body["in"]
        ]
        self._out = [(_Selectors(targets), _services(services)) for targets, services in body["out"]]

    def admits(
        self, identity: Identity, is_own_address: bool, source: bytes, target: bytes, protocol: int, port: int
    ) -> bool:
        """Whether a flow may come in: from the peer of `identity`, whose own address `source` is or not, to `target`
        (4 or 16 B). `port` is the destination's, 0 where the protocol has none."""
        if target in self._addresses:
            words = _ME
        else:
            words = self._words(_ANY, target)
        names = self._names(identity) if is_own_address else _ANY
        return any(
            _serves(services, protocol, port) and sources.match(names, source) and targets.match(words, target)
            for sources, targets, services in self._in
        )

    def may_reach(self, identity: Identity, is_own_address: bool, target: bytes, protocol: int, port: int) -> bool:
        """The same for a flow that goes out to `target`, an address of the peer of `identity` or one that it routes."""
        names = self._names(identity) if is_own_address else self._words(_ANY, target)
        return any(
            _serves(services, protocol, port) and targets.match(names, target) for targets, services in self._out
        )

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


def _services(services: list[list[int]]) -> tuple[_Service, ...]:
    return tuple((protocol, low, high) for protocol, low, high in services)


def _serves(services: tuple[_Service, ...], protocol: int, port: int) -> bool:
    for allowed, low, high in services:
        if protocol in WITH_PORTS:
            if allowed in (protocol, ANY_OF_THESE) and low <= port <= high:
                return True
        elif allowed == protocol or (allowed == ANY_OF_THESE and protocol in (ICMP, ICMPV6)):
            return True
    return False
