"""What the kernel lets in and out of its interface, as nftables says it: the verdicts of `pure`, without Python.

Who may reach what is judged by the direction that a flow was begun in, at each of its packets: so what a later policy
does not allow ends at once. Answers pass. That a packet's source is its peer's, WireGuard itself sees to.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from edgeagent.proto.ip import ip_to_text
from edgeagent.proto.policy import Identity

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from edgeagent.proto.device import Device
    from edgeagent.proto.peer import Peer
    from edgeagent.proto.policy import Slice

_PORT_MAX = 65_535
_BY_PORT = {6: "tcp", 17: "udp", 132: "sctp"}
_ANSWERS = "ct direction reply ct state established,related accept"


def table_name(interface: str) -> str:
    return "edgeagent_kernel_" + re.sub(r"[^A-Za-z0-9]", lambda match: f"_{ord(match[0]):x}_", interface)


def removal(interface: str) -> str:
    """For `nft -f -`: the table is gone, whether it was there or not."""
    name = table_name(interface)
    return f"table inet {name}\ndelete table inet {name}\n"


def ruleset(interface: str, device: Device) -> str:
    """For `nft -f -`: takes the place of the table that is there, all or nothing."""
    own = sorted(device.own or ())
    lines = [
        f'iifname != "{interface}" accept',
        *(f"{ip} daddr != {{ {', '.join(mine)} }} drop" if mine else f"meta nfproto {family} drop"
          for ip, family, mine in _by_family(own)),
    ]  # fmt: skip
    out = [f'oifname != "{interface}" accept']
    if device.firewall is not None:
        lines += [_ANSWERS, *_allowed(device.firewall.policy, device.peers.values(), own), "drop"]
        out += [_ANSWERS, *_reachable(device.firewall.policy, device.peers.values())]
        out += ["meta l4proto tcp reject with tcp reset", "reject with icmpx type admin-prohibited"]
    chains = {
        "input": [*lines, "accept"] if device.firewall is None else lines,
        "forward": [f'iifname "{interface}" drop', f'oifname "{interface}" drop'],
        "output": out,
    }
    text = [removal(interface) + f"table inet {table_name(interface)} {{"]
    for hook, rules in chains.items():
        text += [f"  chain {hook} {{", f"    type filter hook {hook} priority 0; policy accept;"]
        text += [*(f"    {rule}" for rule in rules), "  }"]
    return "\n".join([*text, "}", ""])


def _by_family(addresses: list[bytes]) -> Iterator[tuple[str, str, list[str]]]:
    for ip, family, size in (("ip", "ipv4", 4), ("ip6", "ipv6", 16)):
        yield ip, family, [ip_to_text(each) for each in addresses if len(each) == size]


def _allowed(policy: Slice, peers: Iterable[Peer], own: list[bytes]) -> Iterator[str]:
    for peer, identity in _known(peers):
        for source in peer.record.addresses if peer.record is not None else ():
            for target in own:
                if len(source) == len(target):
                    ends = f"{_ip(source)} saddr {ip_to_text(source)} {_ip(target)} daddr {ip_to_text(target)}"
                    yield from _services(ends, policy.services_in(identity, source, target))


def _reachable(policy: Slice, peers: Iterable[Peer]) -> Iterator[str]:
    for peer, identity in _known(peers):
        for target in peer.record.addresses if peer.record is not None else ():
            yield from _services(f"{_ip(target)} daddr {ip_to_text(target)}", policy.services_out(identity, target))


def _known(peers: Iterable[Peer]) -> Iterator[tuple[Peer, Identity]]:
    """Who is nobody to the policy reaches nothing here."""
    for peer in peers:
        if (record := peer.record) is not None:
            yield peer, Identity(record.tags, record.user, record.groups)


def _services(ends: str, services: list[tuple[int, int, int]]) -> Iterator[str]:
    """`services` are in order, and those of several rules may overlap."""
    ports: dict[int, list[tuple[int, int]]] = {}
    for protocol, low, high in services:
        ranges = ports.setdefault(protocol, [])
        if ranges and low <= ranges[-1][1] + 1:
            ranges[-1] = ranges[-1][0], max(ranges[-1][1], high)
        else:
            ranges.append((low, high))
    for protocol, ranges in ports.items():
        if ranges == [(0, _PORT_MAX)] or protocol not in _BY_PORT:
            yield f"{ends} meta l4proto {protocol} accept"
        else:
            said = ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges)
            yield f"{ends} {_BY_PORT[protocol]} dport {{ {said} }} accept"


def _ip(address: bytes) -> str:
    return "ip" if len(address) == 4 else "ip6"
