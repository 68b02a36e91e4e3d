"""Links, addresses and routes by rtnetlink(7), and word of their changes."""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING

from edgeagent.io import rtnetlink as rt

if TYPE_CHECKING:
    from collections.abc import Iterator

RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE = 0x1, 0x10, 0x40
RTMGRP_IPV6_IFADDR, RTMGRP_IPV6_ROUTE = 0x100, 0x400
ALL_GROUPS = RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_ROUTE

_KERNEL = 0  # the port number that kernel messages come from
_READ_BYTES = 1 << 16
_READS_MAX = 4096  # of one dump
_DUMP_TRIES_MAX = 5
_TIMEOUT_S = 5.0
_EVENT_READS_MAX = 64  # at one wake-up


class Netlink:
    """Requests of the network namespace in which it was made. Every method raises OSError with the kernel's number."""

    __slots__ = ("_sequence", "_socket")

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.settimeout(_TIMEOUT_S)
        self._socket.bind((0, 0))
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def link(self, name: str) -> rt.Link:
        """Raises ENODEV where there is no interface of that name."""
        for kind, body in self._exchange(rt.RTM_GETLINK, 0, rt.link_query(name)):
            link = rt.read_link(body) if kind == rt.RTM_NEWLINK else None
            if link is not None:
                return link
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), name)

    def links(self) -> list[rt.Link]:
        """All interfaces."""
        found = [rt.read_link(body) for kind, body in self._dump(rt.RTM_GETLINK, rt.links_query())]
        return [link for link in found if link is not None]

    def set_link(
        self, index: int, *, up: bool | None = None, mtu: int | None = None, queue_length: int | None = None
    ) -> None:
        """Change what is not None: administrative state, MTU in bytes, packets that may wait to be sent."""
        body = rt.link_change(index, up=up, mtu=mtu, queue_length=queue_length)
        self._exchange(rt.RTM_NEWLINK, rt.NLM_F_ACK, body)

    def add_address(self, index: int, address: bytes, cidr: int) -> None:
        """4 or 16 B. An address that is there already stays."""
        self._exchange(
            rt.RTM_NEWADDR, rt.NLM_F_ACK | rt.NLM_F_CREATE | rt.NLM_F_REPLACE, rt.address_change(index, address, cidr)
        )

    def delete_address(self, index: int, address: bytes, cidr: int) -> None:
        """Raises EADDRNOTAVAIL where it is not."""
        self._exchange(rt.RTM_DELADDR, rt.NLM_F_ACK, rt.address_change(index, address, cidr))

    def addresses(self) -> list[rt.Address]:
        """Of all interfaces."""
        found = [rt.read_address(body) for kind, body in self._dump(rt.RTM_GETADDR, rt.address_query())]
        return [address for address in found if address is not None]

    def default_routes(self) -> list[rt.Route]:
        """Those of the main table, of both IP versions."""
        found: list[rt.Route] = []
        for family in (rt.AF_INET, rt.AF_INET6):
            for kind, body in self._dump(rt.RTM_GETROUTE, rt.routes_query(family)):
                if kind == rt.RTM_NEWROUTE:
                    found += rt.read_default_routes(body)
        return found

    def add_route(self, route: rt.Route) -> None:
        """Raises EEXIST."""
        self._exchange(rt.RTM_NEWROUTE, rt.NLM_F_ACK | rt.NLM_F_CREATE | rt.NLM_F_EXCL, rt.route_change(route))

    def replace_route(self, route: rt.Route) -> None:
        """Add, or take the place of the one with the same destination, metric and table."""
        self._exchange(rt.RTM_NEWROUTE, rt.NLM_F_ACK | rt.NLM_F_CREATE | rt.NLM_F_REPLACE, rt.route_change(route))

    def delete_route(self, route: rt.Route) -> None:
        """Raises ESRCH where it is not."""
        self._exchange(rt.RTM_DELROUTE, rt.NLM_F_ACK, rt.route_change(route, delete=True))

    def change_rule(self, body: bytes, *, delete: bool) -> None:
        """A rule of policy routing, as rules.py writes it. Raises EEXIST, ENOENT, and EOPNOTSUPP without support."""
        if delete:
            self._exchange(rt.RTM_DELRULE, rt.NLM_F_ACK, body)
        else:
            self._exchange(rt.RTM_NEWRULE, rt.NLM_F_ACK | rt.NLM_F_CREATE | rt.NLM_F_EXCL, body)

    def route_to(self, destination: bytes, source: bytes = b"", mark: int = 0) -> rt.Route:
        """The way a packet would take. Raises ENETUNREACH and the like, EINVAL when `source` is not ours."""
        for kind, body in self._exchange(rt.RTM_GETROUTE, 0, rt.route_query(destination, source, mark)):
            route = rt.read_route(body) if kind == rt.RTM_NEWROUTE else None
            if route is not None:
                return route
        raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))

    def _dump(self, kind: int, body: bytes) -> list[tuple[int, bytes]]:
        for _ in range(_DUMP_TRIES_MAX - 1):
            try:
                return self._exchange(kind, rt.NLM_F_DUMP, body)
            except InterruptedError:  # the table changed while it was being read
                continue
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                self._read_on()
        return self._exchange(kind, rt.NLM_F_DUMP, body)

    def _read_on(self) -> None:
        """The kernel is busy with an earlier dump, which was given up: it ends by being read."""
        self._socket.settimeout(0.0)
        try:
            for _ in range(_READS_MAX):
                self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            pass
        finally:
            self._socket.settimeout(_TIMEOUT_S)

    def _exchange(self, kind: int, flags: int, body: bytes) -> list[tuple[int, bytes]]:
        """Send a request and gather its answers up to the last one."""
        self._sequence += 1
        self._socket.send(rt.request(kind, flags, self._sequence, body))
        answers: list[tuple[int, bytes]] = []
        interrupted = False  # the kernel says so when it notices, and goes on to the end
        for _ in range(_READS_MAX):
            data, (sender, _) = self._socket.recvfrom(_READ_BYTES)
            if sender != _KERNEL:
                continue
            for answer, answer_flags, sequence, content in rt.messages(data):
                if sequence != self._sequence:
                    continue  # the rest of a request that timed out
                if answer == rt.NLMSG_ERROR:
                    number = rt.error_number(content)
                    if number:
                        raise OSError(number, os.strerror(number))
                    return answers
                interrupted |= bool(answer_flags & rt.NLM_F_DUMP_INTR)
                if answer == rt.NLMSG_DONE:
                    if interrupted:
                        raise InterruptedError(errno.EINTR, "netlink dump interrupted")
                    return answers
                answers.append((answer, content))
                if not flags & (rt.NLM_F_ACK | rt.NLM_F_DUMP):
                    return answers
        raise OSError(errno.EMSGSIZE, "netlink answer without an end")


class LinkChanged:
    """An interface came, went (`removed`) or changed."""

    __slots__ = ("link", "removed")

    def __init__(self, link: rt.Link, removed: bool) -> None:
        self.link = link
        self.removed = removed


class AddressChanged:
    __slots__ = ("address", "removed")

    def __init__(self, address: rt.Address, removed: bool) -> None:
        self.address = address
        self.removed = removed


class RouteChanged:
    __slots__ = ("removed", "route")

    def __init__(self, route: rt.Route, removed: bool) -> None:
        self.route = route
        self.removed = removed


class EventsLost:
    """The kernel had more to tell than the buffer holds: look at everything anew."""

    __slots__ = ()


Change = LinkChanged | AddressChanged | RouteChanged | EventsLost


class NetlinkMonitor:
    """Changes in the network namespace in which it was made. Register `fd` for reading and call `drain` then."""

    __slots__ = ("_socket", "fd")

    def __init__(self, groups: int = ALL_GROUPS) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
        )
        self._socket.bind((0, groups))
        self.fd = self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def drain(self) -> list[Change]:
        changes: list[Change] = []
        for _ in range(_EVENT_READS_MAX):
            try:
                data, (sender, _) = self._socket.recvfrom(_READ_BYTES)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                changes.append(EventsLost())
                continue
            if sender == _KERNEL:
                changes.extend(read_changes(data))
        return changes


def read_changes(data: bytes) -> Iterator[Change]:
    """The changes that one read tells of; other messages are none."""
    for kind, _, _, body in rt.messages(data):
        if kind in (rt.RTM_NEWLINK, rt.RTM_DELLINK):
            link = rt.read_link(body)
            if link is not None:
                yield LinkChanged(link, kind == rt.RTM_DELLINK)
        elif kind in (rt.RTM_NEWADDR, rt.RTM_DELADDR):
            address = rt.read_address(body)
            if address is not None:
                yield AddressChanged(address, kind == rt.RTM_DELADDR)
        elif kind in (rt.RTM_NEWROUTE, rt.RTM_DELROUTE):
            route = rt.read_route(body)
            if route is not None:
                yield RouteChanged(route, kind == rt.RTM_DELROUTE)
