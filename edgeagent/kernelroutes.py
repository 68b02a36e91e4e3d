"""Routes past the TUN to what the kernel has: to peers in the main table, to prefixes behind them beside those that
policyroutes.py keeps. Each of the latter is two here, its halves: the longer prefix wins, and where these go, the route
through the TUN is there as before.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from edgeagent.io import rtnetlink as rt
from edgeagent.policyroutes import TABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from edgeagent.engine.kernel.ports import Prefix
    from edgeagent.io.netlink import Netlink

_Key = tuple[bytes, int, int]  # address, length, table


class KernelRoutes:
    """Through the interface `index`, from what `source` says of the address' size (None: it has none, and there is no
    route). `put` again what went with the interface being down."""

    __slots__ = ("_index", "_netlink", "_owners", "_source")

    def __init__(self, netlink: Netlink, index: int, source: Callable[[int], bytes | None]) -> None:
        self._netlink = netlink
        self._index = index
        self._source = source
        self._owners: dict[_Key, bytes] = {}  # public key

    def put(self) -> None:
        for key in self._owners:
            self._add(key)

    def set(self, public: bytes, prefixes: list[Prefix]) -> None:
        """All that lead to this peer."""
        wanted = [key for prefix in prefixes for key in _keys(prefix)]
        for key in [key for key, owner in self._owners.items() if owner == public and key not in wanted]:
            del self._owners[key]
            with suppress(OSError):
                self._netlink.delete_route(rt.Route(key[0], key[1], self._index, table=key[2]))
        for key in wanted:
            self._owners[key] = public
            self._add(key)

    def _add(self, key: _Key) -> None:
        address, length, table = key
        source = self._source(len(address))
        if source is None:
            return
        route = rt.Route(address, length, self._index, source=source, table=table)
        with suppress(OSError):  # no IPv6, or our own address is not there yet: then its packets come by the TUN
            if table == TABLE:
                # Never in place of one through the TUN: that is of another prefix, which is as long as this half
                self._netlink.add_route(route)
            else:
                self._netlink.replace_route(route)


def _keys(prefix: Prefix) -> Iterator[_Key]:
    address, length = prefix
    bits = 8 * len(address)
    if length == bits:
        yield address, length, rt.RT_TABLE_MAIN
        return
    upper = int.from_bytes(address, "big") | 1 << (bits - length - 1)
    yield address, length + 1, TABLE
    yield upper.to_bytes(len(address), "big"), length + 1, TABLE
