"""The interface of a member: TUN, UDP port and engine, with the addresses and routes that the hub's map gives."""

from __future__ import annotations

import errno
import logging
import os
from contextlib import suppress
from selectors import EVENT_READ
from time import monotonic
from typing import TYPE_CHECKING, Any

from edgeagent.context import jitter
from edgeagent.engine import choice
from edgeagent.io import rtnetlink as rt
from edgeagent.io import uapi_socket
from edgeagent.io.keystore import StateFile
from edgeagent.io.marks import mark
from edgeagent.io.netlink import AddressChanged, LinkChanged, Netlink, NetlinkMonitor, RouteChanged
from edgeagent.io.tun import Tun, TunGone
from edgeagent.io.uapi_socket import UapiSocket
from edgeagent.ownroutes import OwnRoutes
from edgeagent.proto.candidates import private_block
from edgeagent.surroundings import forwards, release_stale_sources
from edgeagent.tunnelengine import TunnelError, choose

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from edgeagent.aeadjob import AeadJob
    from edgeagent.context import Context
    from edgeagent.enginerule import Facts
    from edgeagent.io.netlink import Change
    from edgeagent.io.portmap import PortMapShell
    from edgeagent.proto.devicemap import DeviceMap
    from edgeagent.proto.node import Node
    from edgeagent.proto.routewish import RouteWish
    from edgeagent.uplinks import UplinkWatch

__all__ = ["Tunnel", "TunnelError"]

log = logging.getLogger("edgeagent")
SETTLE_S = 0.2  # changes of addresses come in bursts
LOOK_AGAIN_S = 1.0  # after a look that the kernel did not answer
ENDPOINTS_MAX = 8  # that a feed can hold


class Tunnel:
    """Made for one node. Raises TunnelError. `flush` after any input to the node; `on_timeout` at `poll_timeout()`.

    Its methods raise TunGone once somebody removed the interface.
    """

    def __init__(self, now: float, context: Context, node: Node) -> None:
        settings = context.settings
        self._node = node
        self.device = node.device
        self._selector = context.selector
        self._look_at: float | None = now
        self._order = settings.uplinks.split(",") if settings.uplinks else []
        self._watch: UplinkWatch | None = None  # None as long as there was never more than one uplink
        self._bound: list[tuple[str, int]] = []  # uplinks with sockets of their own
        self._context = context
        self._wish = kept_wish(context)
        self.streams_kept: Callable[[], list[int]] = list  # those to relays that would still leave as they do
        self._ports: PortMapShell | None = None  # None as long as there was no router that could open one
        try:
            self.tun = Tun(settings.interface, settings.mtu)
        except OSError as error:
            raise TunnelError(_why_no_tun(settings.interface, error)) from None
        self.on_change: Callable[[float, Change], None] | None = None  # hears of each change in the kernel
        self._aead_job: AeadJob | None = None  # None where it is known, or not to be
        self._netlink = Netlink()
        self._uplinks: list[str] = []  # interfaces with a default route
        try:
            self.chosen = choose(context, node, self.tun, self._recall_aead, self._first_facts)
        except (choice.EngineUnavailable, TunnelError) as error:
            self._netlink.close()
            self.tun.close()
            raise TunnelError(str(error)) from None
        self.engine, self.udp, self.port = self.chosen.engine, self.chosen.udp, self.chosen.port
        self._kernel = self.chosen.watch
        self._monitor = NetlinkMonitor()
        context.selector.register(self._monitor.fd, EVENT_READ, self._changed)
        self._own = OwnRoutes(self._netlink, self.tun.index, self.tun.name)
        self._uapi: UapiSocket | None = None
        try:
            self._netlink.set_link(self.tun.index, up=True)
            self._own.put(node.map)
            self._show_to_wg()
        except OSError as error:
            self.close()
            raise TunnelError(f"{settings.interface}: {error.strerror}") from None

    @property
    def given_up(self) -> str:
        """Why the kernel's engine is to be another one from now on, for which the agent is to be begun anew; "" while
        there is nothing to change."""
        return "" if self._kernel is None else self._kernel.given_up

    def apply(self, now: float, device_map: DeviceMap) -> None:
        """Put the map's addresses and routes on the interface, and take off those that it has no more; while it is
        down, as soon as it is up."""
        self._own.take(now, device_map)

    def reconsider(self, now: float, wish: RouteWish | None) -> None:
        """Whether the engine still fits: the map is another one, or the device's owner wants other routes."""
        self._wish = wish
        if self._kernel is not None:
            self._kernel.look(now, self._facts())

    def keep(self, now: float, address: bytes) -> None:
        """Put one more IPv4 address of this host's own on the interface."""
        self._own.keep(address)
        self._own.take(now, self._node.map)

    def flush(self, now: float) -> None:
        """Hand on what the node has for the interface and for the port."""
        self._drive(self.engine.flush, now)

    def sync(self, now: float) -> None:
        """Let the node know of all traffic up to this moment."""
        self._drive(self.engine.sync, now)

    def poll_timeout(self) -> float | None:
        held_back = self.engine.poll_timeout()
        ports = None if self._ports is None else self._ports.poll_timeout()
        uapi = None if self._uapi is None else self._uapi.poll_timeout()
        job = None if self._aead_job is None else self._aead_job.poll_timeout()
        kernel = None if self._kernel is None else self._kernel.poll_timeout()
        times = (self._look_at, self._own.poll_timeout(), held_back, ports, uapi, job, kernel)
        return min((at for at in times if at is not None), default=None)

    def on_timeout(self, now: float) -> list[bytes] | None:
        """Look around when that is due. Returns all addresses of this host (4 or 16 B) that packets can leave from,
        None when it did not look."""
        self._bind_uplinks()
        self._own.on_timeout(now)
        if self._uapi is not None:
            self._uapi.on_timeout(now)
        if self._ports is not None:
            self._ports.on_timeout(now)
        if self._aead_job is not None:
            self._aead_job.on_timeout(now)
        if self._kernel is not None:
            self._kernel.on_timeout(now)
        if self._look_at is None or now < self._look_at:
            return None
        self._look_at = None
        self.engine.is_router = forwards(self.tun.name)
        self.sync(now)  # what was heard before must not be taken for news after it
        release_stale_sources(now, self.device, self._netlink, self.udp.mark)
        try:
            routes, addresses = self._netlink.default_routes(), self._netlink.addresses()
            links = self._netlink.links() if self._has_several(routes) else []
        except OSError as error:  # busy with another such question, or it took too long
            log.warning("the interfaces could not be looked at: %s", error.strerror or error)
            self._look_at = now + LOOK_AGAIN_S
            return None
        if self._kernel is not None:
            self._uplinks = self._names_of(routes)
            self._kernel.look(now, self._facts())
        addresses = self._look_at_uplinks(now, links, addresses, routes)
        self._look_at_routers(now, addresses, routes)
        endpoints = [(address, self.port) for address in self._candidates(addresses)]
        self._node.handle_addresses(now, endpoints, self.streams_kept())
        return [address.address for address in addresses]

    def look_soon(self, now: float) -> None:
        """At all interfaces: something is known of one that the kernel does not tell."""
        if self._look_at is None:
            self._look_at = now

    def take_ports(self, now: float) -> None:
        """Tell the node what routers have opened, when that is something else than before."""
        if self._ports is not None and self._ports.changed:
            self._ports.changed = False
            self._node.handle_open_ports(now, self._ports.mappings())

    def describe_ports(self) -> dict[str, Any] | None:
        """For `status`: what routers have opened; None where none was asked."""
        return None if self._ports is None else self._ports.status()

    def steer(self, sock: socket.socket, address: tuple[Any, ...]) -> None:
        """A connection that is about to leave this host goes past the tunnel, and by the active uplink, if there are
        several."""
        mark(sock)
        if self._watch is not None:
            self._watch.steer(sock, address, self._netlink)

    def farewell(self) -> None:
        """The agent ends in order."""
        if self._kernel is not None:
            self._kernel.settle()

    def look(self) -> None:
        """Something has changed around us that nobody else tells of."""
        self._look_at = 0.0

    def is_elsewhere(self, sock: socket.socket, index: int) -> bool:
        """Whether a connection goes by another uplink than that one."""
        return self._watch is not None and self._watch.is_elsewhere(sock, index)

    def close(self) -> None:
        """Remove the interface and close the port."""
        if self._aead_job is not None:
            self._aead_job.close()
        if self._ports is not None:
            self._ports.close(monotonic())
        if self._uapi is not None:
            self._uapi.close()
        self._selector.unregister(self._monitor.fd)
        self._monitor.close()
        self._netlink.close()
        self.engine.close()
        self.tun.close()

    def _drive(self, engine: Callable[[float], None], now: float) -> None:
        """The kernel's own interface may be gone without an end of the agent: there are other engines."""
        try:
            engine(now)
        except TunGone as gone:
            if self._kernel is None or str(gone) != self._kernel.interface:
                raise
            self._kernel.interface_gone()

    def _names_of(self, routes: list[rt.Route]) -> list[str]:
        names = self._context.accounts.names
        return sorted({names.of_index(route.index) for route in routes if route.index != self.tun.index})

    def _first_facts(self) -> Facts:
        with suppress(OSError):  # then none, for now
            self._uplinks = self._names_of(self._netlink.default_routes())
        return self._facts()

    def _facts(self) -> Facts:
        from edgeagent.enginerule import facts_of

        context = self._context
        return facts_of(context.settings, context.accounts, self._node.map, self._wish, self._uplinks)

    def _recall_aead(self, library: str) -> tuple[str, str] | None:
        from edgeagent import aeadjob  # only with the C library

        names = aeadjob.recall(self._context, library)
        if names is None:
            self._aead_job = aeadjob.AeadJob(monotonic(), self._context, library)
        return names

    def _look_at_uplinks(
        self, now: float, links: list[rt.Link], addresses: list[rt.Address], routes: list[rt.Route]
    ) -> list[rt.Address]:
        """Tell the node of its uplinks, if there is more than one. Returns the addresses of interfaces that carry
        something."""
        if not self._has_several(routes):
            return addresses
        if self._watch is None:
            from edgeagent.uplinks import UplinkWatch  # most devices never need it

            self._watch = UplinkWatch(self._order, self._is_metered, self._is_inside, self.tun.index)
        self._watch.look(now, links, addresses, routes)
        self._tell_uplinks(now, self._watch)
        return [address for address in addresses if address.index not in self._watch.down]

    def _has_several(self, routes: list[rt.Route]) -> bool:
        """Whether there is, or ever was, more than one uplink."""
        return self._watch is not None or len({route.index for route in routes} - {self.tun.index}) > 1

    def _look_at_routers(self, now: float, addresses: list[rt.Address], routes: list[rt.Route]) -> None:
        """Ask the routers of unmetered uplinks to open our port, where it is behind a NAT."""
        if not self._context.settings.port_mapping:
            return
        wanted = []
        for route in sorted(routes, key=lambda route: route.metric):
            own = [each.address for each in addresses if each.index == route.index and _is_translated(each.address)]
            name = self._context.accounts.names.of_index(route.index)
            if own and len(route.gateway) == 4 and not self._is_metered(name):
                wanted.append((name, route.gateway, own[0], self.port))
        if self._ports is None:
            if not wanted:
                return
            from edgeagent.io.portmap import PortMapShell  # a modem's device never needs it

            self._ports = PortMapShell(self._selector, self._context.entropy, jitter)
        self._ports.set_uplinks(now, wanted)

    def _is_metered(self, name: str) -> bool:
        return self._context.accounts.policies.budget(name).metered

    def _is_inside(self, address: bytes) -> bool:
        return self._node.map.holds(address)

    def _tell_uplinks(self, now: float, watch: UplinkWatch) -> None:
        self._node.handle_uplinks(now, watch.uplinks)
        self._bind_uplinks()

    def _bind_uplinks(self) -> None:
        """Sockets follow what the node's paths are bound to."""
        if self._watch is None or (bound := self._watch.uplinks.bound) == self._bound:
            return
        self._bound = bound
        log.info("uplinks: %s", ", ".join(name for name, _ in bound) or "no more than one")
        for name in self.engine.set_uplinks(bound):
            log.warning("%s: gone before a socket was bound to it", name)
        from edgeagent.uplinks import filters_strictly

        for name, _ in bound:
            if filters_strictly(name):
                log.warning(
                    "%s: set net.ipv4.conf.%s.rp_filter to 2, or it works only as the default route", name, name
                )

    def _show_to_wg(self) -> None:
        """`wg show` works on the interface; `wg set` is refused, for the hub decides about peers."""
        try:
            self._uapi = UapiSocket(uapi_socket.listen(self.tun.name), _Shown(self), self._selector)
        except OSError as error:
            log.warning("%s: not shown to wg: %s", self.tun.name, error)

    def _candidates(self, addresses: list[rt.Address]) -> list[bytes]:
        """Where others may reach us: what is up, global, and not of this network itself; the lasting ones first."""
        found = []
        for address in addresses:
            if (
                address.index != self.tun.index
                and address.scope < rt.RT_SCOPE_LINK
                and not address.flags & (rt.IFA_F_TENTATIVE | rt.IFA_F_DEPRECATED)
                and not self._node.map.holds(address.address)
            ):
                found.append((bool(address.flags & rt.IFA_F_TEMPORARY), address.address))
        return [address for _, address in sorted(found, key=lambda each: each[0])[:ENDPOINTS_MAX]]

    def _changed(self, now: float, _fd: int) -> None:
        for change in self._monitor.drain():
            self._own.changed(now, change)
            if self.on_change is not None:
                self.on_change(now, change)
            if isinstance(change, AddressChanged):
                ours = change.address.index == self.tun.index
            elif isinstance(change, LinkChanged):
                ours = change.link.index == self.tun.index
                if self._kernel is not None and change.removed and change.link.name == self._kernel.interface:
                    self._kernel.interface_gone()
                if self._watch is not None and self._watch.link_changed(now, change.link, change.removed):
                    self._tell_uplinks(now, self._watch)  # a cable that is pulled is no burst of changes
            else:
                ours = isinstance(change, RouteChanged) and change.route.index == self.tun.index
            if not ours and self._look_at is None:
                self._look_at = now + SETTLE_S


class _Shown:
    """The tunnel as WireGuard's userspace API has it."""

    read_only = True
    is_up = True
    fwmark = 0

    def __init__(self, tunnel: Tunnel) -> None:
        self._tunnel = tunnel
        self.device = tunnel.device
        self.listen_port = tunnel.port

    def set_listen_port(self, now: float, port: int) -> int:
        return errno.EPERM

    def set_fwmark(self, now: float, mark: int) -> int:
        return errno.EPERM

    def refresh(self, now: float) -> None:
        self._tunnel.sync(now)

    def scope_index(self, name: str) -> int:
        return 0


def kept_wish(context: Context) -> RouteWish | None:
    """What the device's owner wants of routes, None where nothing was ever said."""
    if not os.path.exists(context.keystore.path(StateFile.ROUTES)):
        return None
    from edgeagent.routing import load_wish  # most devices never need it

    return load_wish(context)


def _is_translated(address: bytes) -> bool:
    """Whether the internet cannot see it, so that there is a NAT. (IPv6 has none: holes are punched in its filters.)"""
    return len(address) == 4 and private_block(address) is not None


def _why_no_tun(name: str, error: OSError) -> str:
    if error.errno == errno.EPERM:
        return f"{name}: not permitted to make an interface. Run as root, or with CAP_NET_ADMIN"
    if error.errno == errno.EBUSY:
        return f"{name}: there is such an interface already. Give another name with --interface"
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return f"{name}: no /dev/net/tun. Load the kernel module: modprobe tun"
    return f"{name}: {error.strerror}"
