"""The few messages of rtnetlink(7) that a device needs, as bytes: building requests, reading answers and events.

All numbers are in native byte order, addresses in network order. What comes from the kernel is parsed within bounds
all the same.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

AF_UNSPEC, AF_INET, AF_INET6 = 0, 2, 10
NLMSG_ERROR, NLMSG_DONE = 2, 3
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWRULE, RTM_DELRULE = 32, 33
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x001, 0x004, 0x300
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 0x100, 0x200, 0x400
NLM_F_DUMP_INTR = 0x10
IFF_UP, IFF_LOOPBACK, IFF_RUNNING, IFF_LOWER_UP = 0x1, 0x8, 0x40, 0x10000
RT_TABLE_MAIN = 254
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK, _RT_SCOPE_NOWHERE = 0, 253, 255
IFA_F_TENTATIVE, IFA_F_DEPRECATED, IFA_F_TEMPORARY = 0x40, 0x20, 0x01
_IFA_F_NODAD = 0x02

_IFLA_IFNAME, _IFLA_MTU, _IFLA_TXQLEN = 3, 4, 13
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_RTA_DST, _RTA_SRC, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC, _RTA_MULTIPATH, _RTA_TABLE, _RTA_MARK = (
    1,
    2,
    4,
    5,
    6,
    7,
    9,
    15,
    16,
)
_RTPROT_STATIC, _RTN_UNICAST = 4, 1
_ATTRIBUTES_MAX = 128  # of one message

_HEADER = Struct("=IHHII")  # length, type, flags, sequence, port
_ATTRIBUTE = Struct("=HH")  # length, type
_IFINFO = Struct("=BxHiII")  # family, device type, index, flags, change
_IFADDR = Struct("=BBBBi")  # family, prefix length, flags, scope, index
_RTMSG = Struct("=BBBBBBBBI")  # family, dst_len, src_len, tos, table, protocol, scope, type, flags
_RTNEXTHOP = Struct("=HBBi")  # length, flags, hops, interface
_ERROR = Struct("=i")
_U32 = Struct("=I")


class Link:
    """An interface as RTM_NEWLINK tells of it. `mtu` is 0 where the message does not say."""

    __slots__ = ("flags", "index", "mtu", "name")

    def __init__(self, index: int, name: str, flags: int, mtu: int) -> None:
        self.index = index
        self.name = name
        self.flags = flags
        self.mtu = mtu

    @property
    def is_up(self) -> bool:
        return bool(self.flags & IFF_UP)

    @property
    def carries(self) -> bool:
        """Whether packets can leave by it: switched on, its cable plugged in or its modem connected (IFF_LOWER_UP), and
        nothing else in the way (IFF_RUNNING is the kernel's word for an IFLA_OPERSTATE of up, or unknown)."""
        wanted = IFF_UP | IFF_RUNNING | IFF_LOWER_UP
        return self.flags & wanted == wanted


class Address:
    """An address of one of our interfaces (4 or 16 B)."""

    __slots__ = ("address", "cidr", "flags", "index", "scope")

    def __init__(self, index: int, address: bytes, cidr: int, scope: int, flags: int) -> None:
        self.index = index
        self.address = address
        self.cidr = cidr
        self.scope = scope
        self.flags = flags


class Route:
    """A route: to `destination`/`cidr` (4 or 16 B) through interface `index`, by `gateway` if there is one.

    `source` is the preferred source address, empty for none; `index` is 0 where there is none.
    """

    __slots__ = ("cidr", "destination", "gateway", "index", "metric", "source", "table")

    def __init__(
        self,
        destination: bytes,
        cidr: int,
        index: int,
        *,
        gateway: bytes = b"",
        source: bytes = b"",
        metric: int = 0,
        table: int = RT_TABLE_MAIN,
    ) -> None:
        self.destination = destination
        self.cidr = cidr
        self.index = index
        self.gateway = gateway
        self.source = source
        self.metric = metric
        self.table = table


# Building


def request(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    return _HEADER.pack(_HEADER.size + len(body), kind, flags | NLM_F_REQUEST, sequence, 0) + body


def link_query(name: str) -> bytes:
    return _IFINFO.pack(AF_UNSPEC, 0, 0, 0, 0) + _attribute(_IFLA_IFNAME, name.encode() + b"\0")


def links_query() -> bytes:
    return _IFINFO.pack(AF_UNSPEC, 0, 0, 0, 0)


def link_change(
    index: int, *, up: bool | None = None, mtu: int | None = None, queue_length: int | None = None
) -> bytes:
    """None leaves a property as it is."""
    body = _IFINFO.pack(AF_UNSPEC, 0, index, IFF_UP if up else 0, IFF_UP if up is not None else 0)
    if mtu is not None:
        body += _attribute(_IFLA_MTU, _U32.pack(mtu))
    if queue_length is not None:
        body += _attribute(_IFLA_TXQLEN, _U32.pack(queue_length))
    return body


def address_query() -> bytes:
    return _IFADDR.pack(AF_UNSPEC, 0, 0, 0, 0)


def address_change(index: int, address: bytes, cidr: int) -> bytes:
    # Without it an IPv6 address is tentative for a moment, and the kernel refuses it as a route's source meanwhile.
    flags = _IFA_F_NODAD if len(address) == 16 else 0
    body = _IFADDR.pack(_family(address), cidr, flags, RT_SCOPE_UNIVERSE, index)
    return body + _attribute(_IFA_LOCAL, address) + _attribute(_IFA_ADDRESS, address)


def route_change(route: Route, *, delete: bool = False) -> bytes:
    """To delete, scope, protocol and type are left open: whatever matches the rest."""
    scope = RT_SCOPE_UNIVERSE if route.gateway or len(route.destination) == 16 else RT_SCOPE_LINK
    scope, protocol, kind = (_RT_SCOPE_NOWHERE, 0, 0) if delete else (scope, _RTPROT_STATIC, _RTN_UNICAST)
    table = route.table if route.table < 256 else 0
    body = _RTMSG.pack(_family(route.destination), route.cidr, 0, 0, table, protocol, scope, kind, 0)
    body += _attribute(_RTA_DST, route.destination) + _attribute(_RTA_TABLE, _U32.pack(route.table))
    if route.index:
        body += _attribute(_RTA_OIF, _U32.pack(route.index))
    if route.gateway:
        body += _attribute(_RTA_GATEWAY, route.gateway)
    if route.source:
        body += _attribute(_RTA_PREFSRC, route.source)
    if route.metric:
        body += _attribute(_RTA_PRIORITY, _U32.pack(route.metric))
    return body


def routes_query(family: int) -> bytes:
    """All of them."""
    return _RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)


def route_query(destination: bytes, source: bytes, mark: int) -> bytes:
    """Which way a packet would go; `source` empty for any."""
    bits = len(destination) * 8
    body = _RTMSG.pack(_family(destination), bits, bits if source else 0, 0, 0, 0, 0, 0, 0)
    body += _attribute(_RTA_DST, destination)
    if source:
        body += _attribute(_RTA_SRC, source)
    if mark:
        body += _attribute(_RTA_MARK, _U32.pack(mark))
    return body


def _family(address: bytes) -> int:
    return AF_INET if len(address) == 4 else AF_INET6


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


# Reading


def messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """(type, flags, sequence, body) of each whole message; stops at the first that does not fit."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size or at + length > len(data):
            return
        yield kind, flags, sequence, data[at + _HEADER.size : at + length]
        at += (length + 3) & ~3


def error_number(body: bytes) -> int:
    """Of NLMSG_ERROR: 0 for an acknowledgement."""
    return -int(_ERROR.unpack_from(body)[0]) if len(body) >= _ERROR.size else 0


def read_link(body: bytes) -> Link | None:
    """Of RTM_NEWLINK and RTM_DELLINK; None for what is neither."""
    if len(body) < _IFINFO.size:
        return None
    _, _, index, flags, _ = _IFINFO.unpack_from(body)
    found = _attributes(body, _IFINFO.size)
    name = found.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode("ascii", "replace")
    return Link(index, name, flags, _u32(found.get(_IFLA_MTU)))


def read_address(body: bytes) -> Address | None:
    """Of RTM_NEWADDR and RTM_DELADDR; None for what is neither, or of another family."""
    if len(body) < _IFADDR.size:
        return None
    family, cidr, flags, scope, index = _IFADDR.unpack_from(body)
    found = _attributes(body, _IFADDR.size)
    # on a point-to-point interface IFA_ADDRESS is the other end
    address = found.get(_IFA_LOCAL, found.get(_IFA_ADDRESS, b""))
    if len(address) != {AF_INET: 4, AF_INET6: 16}.get(family):
        return None
    return Address(index, address, cidr, scope, _u32(found.get(_IFA_FLAGS)) or flags)


def read_route(body: bytes) -> Route | None:
    """Of RTM_NEWROUTE and RTM_DELROUTE; None for what is neither, or of another family."""
    if len(body) < _RTMSG.size:
        return None
    family, cidr, _, _, table, _, _, _, _ = _RTMSG.unpack_from(body)
    size = {AF_INET: 4, AF_INET6: 16}.get(family)
    found = _attributes(body, _RTMSG.size)
    destination = found.get(_RTA_DST, bytes(size or 0))
    if size is None or len(destination) != size:
        return None
    return Route(
        destination,
        cidr,
        _u32(found.get(_RTA_OIF)),
        gateway=found.get(_RTA_GATEWAY, b""),
        source=found.get(_RTA_PREFSRC, b""),
        metric=_u32(found.get(_RTA_PRIORITY)),
        table=_u32(found.get(_RTA_TABLE)) or table,
    )


def read_default_routes(body: bytes) -> list[Route]:
    """Of RTM_NEWROUTE: the default routes of the main table that it stands for, several where it has several next hops;
    none for any other route."""
    route = read_route(body)
    if route is None or route.cidr or route.table != RT_TABLE_MAIN or _RTMSG.unpack_from(body)[7] != _RTN_UNICAST:
        return []
    if route.index:
        return [route]
    hops = _attributes(body, _RTMSG.size).get(_RTA_MULTIPATH, b"")
    found, at = [], 0
    while at + _RTNEXTHOP.size <= len(hops):
        length, _, _, index = _RTNEXTHOP.unpack_from(hops, at)
        if length < _RTNEXTHOP.size or at + length > len(hops):
            break
        gateway = _attributes(hops[at : at + length], _RTNEXTHOP.size).get(_RTA_GATEWAY, b"")
        found.append(Route(route.destination, 0, index, gateway=gateway, source=route.source, metric=route.metric))
        at += (length + 3) & ~3
    return found


def _attributes(body: bytes, at: int) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    for _ in range(_ATTRIBUTES_MAX):
        if at + _ATTRIBUTE.size > len(body):
            break
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        if length < _ATTRIBUTE.size or at + length > len(body):
            break
        found[kind & 0x3FFF] = body[at + _ATTRIBUTE.size : at + length]  # without NLA_F_NESTED and its kin
        at += (length + 3) & ~3
    return found


def _u32(value: bytes | None) -> int:
    return int(_U32.unpack(value)[0]) if value is not None and len(value) == 4 else 0
