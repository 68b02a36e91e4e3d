"""The uplinks as the kernel has them. Loaded when there is more than one interface with a default route."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeagent.io import rtnetlink as rt
from edgeagent.proto.uplink import UplinkFacts, settings_of
from edgeagent.proto.uplinks import Uplinks

if TYPE_CHECKING:
    from collections.abc import Callable


class UplinkWatch:
    """`look` at everything when something has changed, `link_changed` at once. `uplinks` is then to be given to the
    node. `order` names the interfaces to be used, the best first, or none for all; `metered` those that cost by the
    byte; `is_ours` tells addresses inside the mesh, `tun` is the interface index of its own interface."""

    def __init__(self, order: list[str], metered: list[str], is_ours: Callable[[bytes], bool], tun: int) -> None:
        self.uplinks = Uplinks(settings_of(order, metered), only_named=bool(order))
        self.down: list[int] = []  # indexes of interfaces that carry nothing at present
        self._is_ours = is_ours
        self._tun = tun
        self._facts: list[UplinkFacts] = []

    def look(self, now: float, links: list[rt.Link], addresses: list[rt.Address], routes: list[rt.Route]) -> None:
        """All interfaces, all addresses, and the default routes."""
        self.down = [link.index for link in links if not link.carries]
        self._facts = [
            _facts(link, [each for each in addresses if each.index == link.index and self._lasts(each)], routes)
            for link in links
            if link.index != self._tun and not link.flags & rt.IFF_LOOPBACK
        ]
        self.uplinks.handle_links(now, self._facts)

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
