"""What the hub's map puts on our interface: its addresses and routes, put back when something takes them off."""

from __future__ import annotations

import errno
import logging
from typing import TYPE_CHECKING

from edgeagent.io import rtnetlink as rt
from edgeagent.io.netlink import AddressChanged, EventsLost, LinkChanged, RouteChanged

if TYPE_CHECKING:
    from edgeagent.io.netlink import Change, Netlink
    from edgeagent.proto.devicemap import DeviceMap

log = logging.getLogger("edgeagent")
REPAIR_AFTER_S = 0.2  # changes come in bursts
REPAIR_SPACING_S = 5.0  # somebody who takes them off again and again does not keep us busy
_NO_V6 = (errno.EACCES, errno.EOPNOTSUPP, errno.EAFNOSUPPORT)
_NOT_THERE = (errno.EADDRNOTAVAIL, errno.ESRCH, errno.ENODEV)


class OwnRoutes:
    """`put` the first map and `take` each later one; `changed` with whatever netlink tells, `on_timeout` at
    `poll_timeout()`. Of interface `index`, called `name`.

    While the interface is down the kernel takes no routes, and it drops them when it goes down: they wait for it.
    """

    def __init__(self, netlink: Netlink, index: int, name: str) -> None:
        self._netlink = netlink
        self._index = index
        self._name = name
        self._map: DeviceMap | None = None
        self._addresses: list[bytes] = []  # that we have put there
        self._routes: list[tuple[bytes, int]] = []
        self._kept: bytes | None = None  # one more, that the map does not name
        self._is_up = True
        self._has_v6 = True
        self._due: float | None = None
        self._repaired_at = float("-inf")

    def put(self, device_map: DeviceMap) -> None:
        """Raises OSError; not for an interface that is down."""
        self._map = device_map
        try:
            self._put(device_map)
        except OSError as error:
            if error.errno != errno.ENETDOWN:
                raise
            self._is_up = False
            log.warning("%s is down: its addresses and routes wait until it is up", self._name)

    def keep(self, address: bytes) -> None:
        """One more IPv4 address, from the next `put` or `take` on."""
        self._kept = address

    def take(self, now: float, device_map: DeviceMap) -> None:
        """What does not succeed is tried again."""
        try:
            self.put(device_map)
        except OSError as error:
            log.warning("%s: its addresses and routes are not as they should be: %s", self._name, error.strerror)
            self._due = now + REPAIR_SPACING_S

    def changed(self, now: float, change: Change) -> None:
        if isinstance(change, EventsLost):
            self._plan(now)
        elif isinstance(change, LinkChanged):
            if change.link.index == self._index and not change.removed:
                if change.link.is_up and not self._is_up:
                    self._due = now + REPAIR_AFTER_S
                self._is_up = change.link.is_up
        elif change.removed and self._is_ours(change):
            self._plan(now)

    def poll_timeout(self) -> float | None:
        return self._due

    def on_timeout(self, now: float) -> None:
        if self._due is None or now < self._due or self._map is None:
            return
        self._due, self._repaired_at = None, now
        log.info("%s: its addresses and routes are put back", self._name)
        self.take(now, self._map)

    def _plan(self, now: float) -> None:
        if self._due is None:
            self._due = max(now + REPAIR_AFTER_S, self._repaired_at + REPAIR_SPACING_S)

    def _is_ours(self, change: AddressChanged | RouteChanged) -> bool:
        if isinstance(change, AddressChanged):
            return change.address.index == self._index and change.address.address in self._addresses
        route = change.route
        return route.index == self._index and (route.destination, route.cidr) in self._routes

    def _put(self, device_map: DeviceMap) -> None:
        wanted = device_map.addresses if self._kept is None else (*device_map.addresses, self._kept)
        for address in [each for each in self._addresses if each not in wanted]:
            self._delete(address)
            self._addresses.remove(address)
        self._routes = [device_map.v4, device_map.v6]
        for address, (prefix, cidr) in zip(device_map.addresses, self._routes, strict=True):
            try:
                self._netlink.add_address(self._index, address, 8 * len(address))
                if address not in self._addresses:
                    self._addresses.append(address)
                self._netlink.replace_route(rt.Route(prefix, cidr, self._index, source=address))
            except OSError as error:
                if len(address) == 4 or error.errno not in _NO_V6:
                    raise
                if self._has_v6:
                    self._has_v6 = False
                    log.warning("%s: no IPv6 on it: %s", self._name, error.strerror)
        if self._kept is not None:
            self._netlink.add_address(self._index, self._kept, 8 * len(self._kept))
            if self._kept not in self._addresses:
                self._addresses.append(self._kept)

    def _delete(self, address: bytes) -> None:
        try:
            self._netlink.delete_address(self._index, address, 8 * len(address))
        except OSError as error:
            if error.errno not in _NOT_THERE:
                raise
