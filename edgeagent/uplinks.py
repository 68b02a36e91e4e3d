"""The uplinks as the kernel has them. Loaded when there is more than one interface with a default route."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from edgeagent.io import rtnetlink as rt
from edgeagent.io.marks import MARK
from edgeagent.proto.uplink import UplinkFacts, UplinkSetting, settings_of
from edgeagent.proto.uplinks import Uplinks

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgeagent.io.netlink import Netlink

_SO_BINDTODEVICE = 25
_INTERFACE_BYTES = 16


class UplinkWatch:
    """`look` at everything when something has changed, `link_changed` at once. `uplinks` is then to be given to the
    node. `order` names the interfaces to be used, the best first, or none for all; `is_metered` tells of a name
    whether its bytes cost money, `is_ours` tells addresses inside the mesh, `tun` is the index of its own interface."""

    def __init__(
        self, order: list[str], is_metered: Callable[[str], bool], is_ours: Callable[[bytes], bool], tun: int
    ) -> None:
        self._order = order
        self._settings = settings_of(order, [name for name in order if is_metered(name)])
        self._only_named = bool(order)
        self.uplinks = Uplinks(self._settings, only_named=self._only_named)
        self.down: list[int] = []  # indexes of interfaces that carry nothing at present
        self._is_metered = is_metered
        self._is_ours = is_ours
        self._tun = tun
        self._facts: list[UplinkFacts] = []
        self._own: dict[bytes, list[int]] = {}  # indexes of the interfaces that have an address, however long

    def look(self, now: float, links: list[rt.Link], addresses: list[rt.Address], routes: list[rt.Route]) -> None:
        """All interfaces, all addresses, and the default routes."""
        self.down = [link.index for link in links if not link.carries]
        self._own = {}
        for address in addresses:
            self._own.setdefault(address.address, []).append(address.index)
        self._facts = [
            _facts(link, [each for each in addresses if each.index == link.index and self._lasts(each)], routes)
            for link in links
            if link.index != self._tun and not link.flags & rt.IFF_LOOPBACK
        ]
        self._settings.clear()
        if self._only_named:
            self._settings.update(settings_of(self._order, [name for name in self._order if self._is_metered(name)]))
        else:
            for each in self._facts:
                self._settings[each.name] = UplinkSetting(is_metered=self._is_metered(each.name))
        self.uplinks.handle_links(now, self._facts)

    def steer(self, sock: socket.socket, address: tuple[Any, ...], netlink: Netlink) -> None:
        """Bind a connection that is about to be made to the active uplink, if the routes would send it by any of them;
        what is near (the same LAN, a route of its own, this host) goes as the routes say."""
        active = self.uplinks.active
        if active is None or not self.uplinks.bound:
            return
        with suppress(OSError, ValueError):  # no route at all is a reason to go by the active one
            destination = socket.inet_pton(sock.family, str(address[0]).partition("%")[0])
            route = netlink.route_to(destination, mark=MARK)
            for each in self._facts:
                if each.index == route.index and each.gateways.get(len(destination)) == route.gateway:
                    break
            else:
                return
        with suppress(OSError):  # it is gone: the kernel will say what that means
            sock.setsockopt(socket.SOL_SOCKET, _SO_BINDTODEVICE, active.name.encode() + b"\0")

    def is_elsewhere(self, sock: socket.socket, index: int) -> bool:
        """Whether a connection goes by another uplink than that one: by the device that it is bound to, else by its own
        address, which may be a temporary one; False for what is near."""
        uplinks = {each.index: each.name for each in self._facts if each.gateways}
        try:
            device = sock.getsockopt(socket.SOL_SOCKET, _SO_BINDTODEVICE, _INTERFACE_BYTES).rstrip(b"\0")
            own = socket.inet_pton(sock.family, sock.getsockname()[0].partition("%")[0])
        except OSError:
            return False
        if device:
            return device.decode("ascii", "replace") != uplinks.get(index)
        at = self._own.get(own, [])
        return index not in at and any(each in uplinks for each in at)

    def link_changed(self, now: float, link: rt.Link, removed: bool) -> bool:
        """True when an uplink went up or down by this."""
        carries = link.carries and not removed
        for at, facts in enumerate(self._facts):
            if facts.index == link.index and facts.gateways and facts.is_up is not carries:
                self._facts[at] = _with_link(facts, carries)
                self.uplinks.handle_links(now, self._facts)
                return True
        return False

    def _lasts(self, address: rt.Address) -> bool:
        """A temporary address of IPv6 comes and goes, and is no reason to doubt anything."""
        passing = rt.IFA_F_TENTATIVE | rt.IFA_F_DEPRECATED | rt.IFA_F_TEMPORARY
        return address.scope < rt.RT_SCOPE_LINK and not address.flags & passing and not self._is_ours(address.address)


def filters_strictly(name: str) -> bool:
    """Whether the kernel drops what comes in at the interface unless its own route to the sender leads there too
    (rp_filter, RFC 3704): then only the uplink with the best route works."""
    strictest = 0
    for scope in ("all", name):
        try:
            with open(f"/proc/sys/net/ipv4/conf/{scope}/rp_filter", "rb") as setting:
                strictest = max(strictest, int(setting.read(2)))
        except (OSError, ValueError):
            continue
    return strictest == 1


def _facts(link: rt.Link, addresses: list[rt.Address], routes: list[rt.Route]) -> UplinkFacts:
    mine = [route for route in routes if route.index == link.index]
    best = {len(route.destination): route for route in sorted(mine, key=lambda route: -route.metric)}
    return UplinkFacts(
        link.name,
        link.index,
        addresses=sorted(address.address for address in addresses),
        gateways={size: route.gateway for size, route in best.items()},
        metric=min((route.metric for route in mine), default=0),
        mtu=link.mtu,
        is_up=link.carries,
    )


def _with_link(facts: UplinkFacts, is_up: bool) -> UplinkFacts:
    return UplinkFacts(
        facts.name,
        facts.index,
        addresses=facts.addresses,
        gateways=facts.gateways,
        metric=facts.metric,
        mtu=facts.mtu,
        is_up=is_up,
    )
