"""The words of a policy, one at a time: selectors, ports, services, protocols. Each raises ValueError, whose text says
what is wrong and what to write."""

from __future__ import annotations

import re
from ipaddress import ip_interface

from edgeagent.proto.control import USER_BYTES_MAX
from edgeagent.proto.names import is_tag
from hub.core.policy.document import (
    ANY_OF_THESE,
    ICMP,
    ICMPV6,
    PORT_MAX,
    SCTP,
    TCP,
    UDP,
    WITH_PORTS,
    Kind,
    Prefix,
    Selector,
    Service,
)

# What `proto` may be, beside numbers; https://tailscale.com/kb/1337/policy-syntax names them.
PROTOCOLS: dict[str, tuple[int, ...]] = {
    "icmp": (ICMP, ICMPV6),
    "igmp": (2,),
    "ipv4": (4,),
    "ip-in-ip": (4,),
    "tcp": (TCP,),
    "egp": (8,),
    "igp": (9,),
    "udp": (UDP,),
    "gre": (47,),
    "esp": (50,),
    "ah": (51,),
    "ipv6-icmp": (ICMPV6,),
    "sctp": (SCTP,),
}
RANGES_MAX = 64  # of ports after one destination
ROLES = ("owner", "admin")
_AUTOGROUPS = {
    "member": Kind.MEMBER,
    "members": Kind.MEMBER,  # as older files have it
    "tagged": Kind.TAGGED,
    "self": Kind.SELF,
    "internet": Kind.INTERNET,
}
_OTHER_ROLES = ("network-admin", "it-admin", "billing-admin", "auditor")
_USER = re.compile(r"[^\s@:*/\[\]\"',]+@[^\s@:*/\[\]\"',]*")
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_PORT = re.compile(r"[0-9]{1,5}")
_PROTOCOL_NUMBER = re.compile(r"[1-9][0-9]{0,2}")


def clip(text: str) -> str:
    """A word of the policy as error texts show it."""
    return repr(text if len(text) <= 60 else text[:57] + "…")


def read_user(text: str) -> str:
    """The login of `alice@example.org`, or of `alice@`: alice."""
    if _USER.fullmatch(text) is None or not text.isprintable():
        raise ValueError(f"{clip(text)}: a user is written alice@example.org, or alice@ for the login alice")
    if len(text.encode()) > USER_BYTES_MAX:
        raise ValueError(f"{clip(text)}: a login has at most {USER_BYTES_MAX} bytes")
    return text.removesuffix("@")


def read_prefix(text: str) -> tuple[Prefix, bool] | None:
    """(prefix, whether bits behind it were dropped); None for what is neither an address nor a prefix."""
    if (not text[:1].isalnum() and text[:1] != ":") or "%" in text:
        return None
    try:
        interface = ip_interface(text)
    except ValueError:
        return None
    network = interface.network
    prefix = network.network_address.packed, network.prefixlen
    return prefix, "/" in text and interface.ip != network.network_address


def is_host_alias(text: str) -> bool:
    return _HOST.fullmatch(text) is not None and read_prefix(text) is None


class Names:
    """What a policy defines, to tell words that mean something from mistakes."""

    def __init__(self, groups: frozenset[str], tags: frozenset[str], hosts: dict[str, Prefix]) -> None:
        self.groups = groups
        self.tags = tags
        self.hosts = hosts

    def selector(self, text: str, *, roles: bool = False) -> Selector:
        """A source, or a destination without its ports. `roles`: where people are meant, autogroup:admin is one too."""
        if text == "*":
            return Selector(Kind.ANY)
        prefix, colon, rest = text.partition(":")
        if colon and prefix == "autogroup":
            return _autogroup(rest, roles=roles)
        if colon and prefix == "group":
            if text not in self.groups:
                raise ValueError(f'{clip(text)}: there is no such group. Define it under "groups"')
            return Selector(Kind.GROUP, text)
        if colon and prefix == "tag":
            return self.tag(text)
        if colon and prefix in ("ipset", "svc", "user", "localpart", "posture", "app", "drive"):
            raise ValueError(f"{clip(text)}: {prefix}: is not known to this hub. Name users, groups, tags or addresses")
        if "@" in text:
            return Selector(Kind.USER, read_user(text))
        found = read_prefix(text)
        if found is not None:
            return Selector(Kind.PREFIX, prefix=found[0])
        if text in self.hosts:
            return Selector(Kind.PREFIX, prefix=self.hosts[text])
        raise ValueError(
            f'{clip(text)}: neither an address nor a name under "hosts". '
            "Users are written alice@, groups group:x, tags tag:x"
        )

    def tag(self, text: str) -> Selector:
        if not is_tag(text):
            raise ValueError(f"{clip(text)}: a tag is tag: and a name of a-z, 0-9 and -, at most 63 characters")
        if text not in self.tags:
            raise ValueError(f'{clip(text)}: there is no such tag. Define it under "tagOwners", with [] for nobody')
        return Selector(Kind.TAG, text)


def _autogroup(name: str, *, roles: bool) -> Selector:
    if name in _AUTOGROUPS:
        return Selector(_AUTOGROUPS[name])
    if name in ROLES and roles:
        return Selector(Kind.ROLE, name)
    if name in (*ROLES, *_OTHER_ROLES):
        raise ValueError(
            f"'autogroup:{name}': devices are not told apart by their users' roles here. Make a group of those users"
        )
    if name == "danger-all":
        raise ValueError(
            "'autogroup:danger-all': nothing from outside the network is let in. Write \"*\" for all of it"
        )
    raise ValueError(
        f"{clip('autogroup:' + name)}: unknown. There are autogroup:member, autogroup:tagged, autogroup:self and "
        "autogroup:internet"
    )


def is_role_without_meaning(text: str, *, roles: bool) -> bool:
    """A role that no user of this hub has, or any role where devices are meant and not people (`roles`)."""
    unknown = _OTHER_ROLES if roles else (*ROLES, *_OTHER_ROLES)
    return text.startswith("autogroup:") and text.removeprefix("autogroup:") in unknown


def split_target(text: str) -> tuple[str, str]:
    """(destination, ports) of `x:ports`. IPv6 addresses may stand in brackets."""
    if text.startswith("["):
        address, bracket, rest = text[1:].partition("]")
        length, colon, ports = rest.rpartition(":")
        if not bracket or not colon or (length and not length.startswith("/")):
            raise ValueError(f"{clip(text)}: after the brackets a colon and ports are expected: [fd00::1]:443")
        if read_prefix(address) is None or ":" not in address:
            raise ValueError(f"{clip(text)}: no IPv6 address between the brackets")
        return address + length, ports
    target, colon, ports = text.rpartition(":")
    if not colon or target in ("tag", "group", "autogroup") or ports == "":
        raise ValueError(
            f"{clip(text)}: ports are missing. Write {clip(text.rstrip(':') + ':443')[1:-1]}, or :* for all"
        )
    if ":" in target and read_prefix(target) is None and read_prefix(text) is not None:
        raise ValueError(f"{clip(text)}: an IPv6 address stands in brackets before its ports: [{text}]:443")
    return target, ports


def read_ports(text: str) -> list[tuple[int, int]]:
    """Of `443`, `80-90`, `22,80-90` or `*`."""
    if text == "*":
        return [(0, PORT_MAX)]
    items = text.split(",")
    if len(items) > RANGES_MAX:
        raise ValueError(f"{clip(text)}: {len(items)} ports; at most {RANGES_MAX} are possible here. Write ranges")
    ranges = []
    for item in items:
        low, dash, high = item.strip().partition("-")
        if _PORT.fullmatch(low) is None or (dash and _PORT.fullmatch(high) is None):
            raise ValueError(f"{clip(item)}: ports are numbers, ranges and lists: 443, 80-90, 22,80-90, or *")
        first, last = int(low), int(high or low)
        if max(first, last) > PORT_MAX:
            raise ValueError(f"{clip(item)}: ports end at {PORT_MAX}")
        if first > last:
            raise ValueError(f"{clip(item)}: the range runs backwards. Write {last}-{first}")
        ranges.append((first, last))
    return ranges


def read_protocol(text: str) -> tuple[int, ...]:
    """IP protocols by name or number."""
    found = PROTOCOLS.get(text.lower())
    if found is not None:
        return found
    if _PROTOCOL_NUMBER.fullmatch(text) is None or int(text) > 255:
        raise ValueError(f"{clip(text)}: no protocol. Known are {', '.join(PROTOCOLS)}, and numbers from 1 to 255")
    return (int(text),)


def services_of(protocols: tuple[int, ...], ports: list[tuple[int, int]]) -> list[Service]:
    """Raises ValueError for ports where the protocol has none."""
    services: list[Service] = []
    for protocol in protocols:
        if protocol not in (ANY_OF_THESE, *WITH_PORTS) and ports != [(0, PORT_MAX)]:
            raise ValueError("only tcp, udp and sctp have ports. Write * for the ports")
        services += ((protocol, low, high) for low, high in ports)
    return services


def read_service(text: str) -> list[Service]:
    """One item of a grant's `ip`: `*`, `443`, `80-90`, `tcp:443`, `udp:*`, `icmp`."""
    head, colon, tail = text.partition(":")
    if colon:
        return services_of((ANY_OF_THESE,) if head == "*" else read_protocol(head), read_ports(tail))
    if text != "*" and not text[:1].isdigit():
        return services_of(read_protocol(text), read_ports("*"))
    return services_of((ANY_OF_THESE,), read_ports(text))
