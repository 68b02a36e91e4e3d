"""Allowed IPs: which peer an address belongs to (the cryptokey routing table, WireGuard paper, section 2).

A dict a prefix length, longest first. A table of a fleet uses a handful of lengths, so a lookup is a handful of
hash probes however many prefixes there are, and a bounded cache makes it one for addresses in use.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Hashable, Iterator
from typing import Any, Generic, TypeVar

from edgeagent.proto.errors import LimitReached, LocalProtocolError

P = TypeVar("P", bound=Hashable)
_CACHE_MAX = 4096
_HOLE: Any = object()  # in place of a peer: nobody


class AllowedIPs(Generic[P]):
    """Prefixes of 4-byte and 16-byte addresses, each owned by one peer. The last `insert` of a prefix wins."""

    def __init__(self, prefixes_max: int) -> None:
        self._prefixes_max = prefixes_max
        self._count = 0
        self._tables: dict[int, dict[int, dict[int, P]]] = {4: {}, 16: {}}  # address size → cidr → prefix → peer
        self._lengths: dict[int, list[int]] = {4: [], 16: []}  # negated cidrs, so that the longest comes first
        self._owned: dict[P, dict[tuple[int, int, int], None]] = {}  # peer → (address size, cidr, prefix), in order
        self._cache: dict[bytes, P | None] = {}
        self._holes: set[tuple[int, int, int]] = set()  # (address size, cidr, prefix)
        self.moves = 0  # how often addresses went from a peer that stays to another, or to none

    def __len__(self) -> int:
        return self._count

    def insert(self, address: bytes, cidr: int, peer: P) -> None:
        """Give `address`/`cidr` to `peer`; host bits are ignored. Raises LimitReached at the ceiling."""
        size, prefix = self._prefix(address, cidr)
        table = self._table(size, cidr)
        before = table.get(prefix)
        covering = before if before is not None else self._covering(size, prefix, cidr)
        covering = None if covering is _HOLE else covering
        if covering is not None and covering is not peer:
            self.moves += 1
        if before is _HOLE or before is None:
            if self._count >= self._prefixes_max:
                raise LimitReached(f"limits.allowed_ips: {self._prefixes_max} prefixes are in use")
            self._count += 1
        else:
            del self._owned[before][size, cidr, prefix]
        table[prefix] = peer
        self._owned.setdefault(peer, {})[size, cidr, prefix] = None
        self._cache.clear()

    def set_holes(self, prefixes: list[tuple[bytes, int]]) -> None:
        """What is in these and in no longer prefix of a peer is nobody's, whoever has a shorter one."""
        wanted = {(size, cidr, prefix) for address, cidr in prefixes for size, prefix in [self._prefix(address, cidr)]}
        if wanted == self._holes:
            return
        for size, cidr, prefix in self._holes - wanted:
            if self._tables[size].get(cidr, {}).get(prefix) is _HOLE:
                self._forget(size, cidr, prefix)
        for size, cidr, prefix in wanted - self._holes:
            self._table(size, cidr).setdefault(prefix, _HOLE)
        self._holes = wanted
        self._cache.clear()
        self.moves += 1

    def holes(self) -> list[tuple[bytes, int]]:
        return [((prefix << (size * 8 - cidr)).to_bytes(size, "big"), cidr) for size, cidr, prefix in self._holes]

    def remove(self, address: bytes, cidr: int, peer: P) -> bool:
        """Take `address`/`cidr` from `peer`; False when it is not the owner."""
        size, prefix = self._prefix(address, cidr)
        if self._tables[size].get(cidr, {}).get(prefix) != peer:
            return False
        del self._owned[peer][size, cidr, prefix]
        self._discard(size, cidr, prefix)
        self.moves += 1
        return True

    def remove_peer(self, peer: P) -> None:
        """Take every prefix from `peer`."""
        for size, cidr, prefix in self._owned.pop(peer, {}):
            self._discard(size, cidr, prefix)

    def of_peer(self, peer: P) -> Iterator[tuple[bytes, int]]:
        """(address, cidr) of each prefix of `peer`, in the order of insertion."""
        for size, cidr, prefix in self._owned.get(peer, {}):
            yield (prefix << (size * 8 - cidr)).to_bytes(size, "big"), cidr

    def lookup(self, address: bytes) -> P | None:
        """The peer with the longest prefix that holds `address` (4 or 16 B)."""
        try:
            return self._cache[address]
        except KeyError:
            pass
        size = len(address)
        value = int.from_bytes(address, "big")
        tables = self._tables[size]
        found = None
        for negated in self._lengths[size]:
            found = tables[-negated].get(value >> (size * 8 + negated))
            if found is not None:
                break
        if found is _HOLE:
            found = None
        if len(self._cache) >= _CACHE_MAX:
            self._cache.clear()
        self._cache[address] = found
        return found

    def _covering(self, size: int, prefix: int, cidr: int) -> P | None:
        """Whose the addresses of a prefix are that is not in the table: those of shorter ones, for longer ones stay."""
        for negated in self._lengths[size]:
            shorter = -negated
            if shorter < cidr and (found := self._tables[size][shorter].get(prefix >> (cidr - shorter))) is not None:
                return found
        return None

    def _table(self, size: int, cidr: int) -> dict[int, P]:
        table = self._tables[size].get(cidr)
        if table is None:
            table = self._tables[size][cidr] = {}
            insort(self._lengths[size], -cidr)
        return table

    def _discard(self, size: int, cidr: int, prefix: int) -> None:
        if (size, cidr, prefix) in self._holes:
            self._tables[size][cidr][prefix] = _HOLE
        else:
            self._forget(size, cidr, prefix)
        self._count -= 1
        self._cache.clear()

    def _forget(self, size: int, cidr: int, prefix: int) -> None:
        table = self._tables[size][cidr]
        del table[prefix]
        if not table:
            del self._tables[size][cidr]
            self._lengths[size].remove(-cidr)

    @staticmethod
    def _prefix(address: bytes, cidr: int) -> tuple[int, int]:
        size = len(address)
        if size not in (4, 16) or not 0 <= cidr <= size * 8:
            raise LocalProtocolError(f"allowed IP: a prefix of 4 or 16 bytes, got {size} bytes and /{cidr}")
        return size, int.from_bytes(address, "big") >> (size * 8 - cidr)
