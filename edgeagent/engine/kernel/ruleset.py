"""What the kernel lets in and out of its interface, as nftables says it: the verdicts of `pure`, without Python.

Who may reach what is judged by the direction that a flow was begun in, at each of its packets, answers too: so what a
later policy does not allow ends at once, both ways. That a packet's source is its peer's, WireGuard itself sees to.
What bears JUDGED_MARK Python has judged: to prefixes behind a peer, of which the rules here know nothing.
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
JUDGED_MARK = 0x6D00_0000
_ERRORS = "ct state related meta l4proto { 1, 58 } accept"  # ICMP about a flow that is there
_ANSWERS = "ct direction reply ct state established"


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
    answers: dict[str, list[str]] = {}
    if device.firewall is not None:
        policy, peers = device.firewall.policy, list(device.peers.values())
        lines += [_ERRORS, f"{_ANSWERS} jump answers_to_us", *_allowed(policy, peers, own), "drop"]
        out += [f"meta mark {JUDGED_MARK:#x} accept", _ERRORS, f"{_ANSWERS} jump answers_of_us"]
        out += _reachable(policy, peers)
        out += ["meta l4proto tcp reject with tcp reset", "reject with icmpx type admin-prohibited"]
        answers["answers_to_us"] = [*_reachable(policy, peers, answers=True), *_of_prefixes(peers)]
        answers["answers_of_us"] = [*_allowed(policy, peers, own, answers=True)]
    chains = {
        "input": [*lines, "accept"] if device.firewall is None else lines,
        "forward": [f'iifname "{interface}" drop', f'oifname "{interface}" drop'],
        "output": out,
    }
    text = [removal(interface) + f"table inet {table_name(interface)} {{"]
    for name, rules in answers.items():
        text += [f"  chain {name} {{", *(f"    {rule}" for rule in rules), "  }"]
    for hook, rules in chains.items():
        text += [f"  chain {hook} {{", f"    type filter hook {hook} priority 0; policy accept;"]
        text += [*(f"    {rule}" for rule in rules), "  }"]
    return "\n".join([*text, "}", ""])


def _by_family(addresses: list[bytes]) -> Iterator[tuple[str, str, list[str]]]:
    for ip, family, size in (("ip", "ipv4", 4), ("ip6", "ipv6", 16)):
        yield ip, family, [ip_to_text(each) for each in addresses if len(each) == size]


def _allowed(policy: Slice, peers: Iterable[Peer], own: list[bytes], *, answers: bool = False) -> Iterator[str]:
    for peer, identity in _known(peers):
        for source in peer.record.addresses if peer.record is not None else ():
            for target in own:
                if len(source) == len(target):
                    first, second = (target, source) if answers else (source, target)
                    ends = f"{_ip(source)} saddr {ip_to_text(first)} {_ip(target)} daddr {ip_to_text(second)}"
                    yield from _services(ends, policy.services_in(identity, source, target), answers=answers)


def _reachable(policy: Slice, peers: Iterable[Peer], *, answers: bool = False) -> Iterator[str]:
    end = "saddr" if answers else "daddr"
    for peer, identity in _known(peers):
        for target in peer.record.addresses if peer.record is not None else ():
            ends = f"{_ip(target)} {end} {ip_to_text(target)}"
            yield from _services(ends, policy.services_out(identity, target), answers=answers)


def _of_prefixes(peers: Iterable[Peer]) -> Iterator[str]:
    """Answers from prefixes behind peers: what went there, Python has judged."""
    known = sorted({each for peer in peers if peer.record is not None for each in peer.record.addresses})
    for ip, family, theirs in _by_family(known):
        yield f"{ip} saddr != {{ {', '.join(theirs)} }} accept" if theirs else f"meta nfproto {family} accept"


def _known(peers: Iterable[Peer]) -> Iterator[tuple[Peer, Identity]]:
    """Who is nobody to the policy reaches nothing here."""
    for peer in peers:
        if (record := peer.record) is not None:
            yield peer, Identity(record.tags, record.user, record.groups)


def _services(ends: str, services: list[tuple[int, int, int]], *, answers: bool) -> Iterator[str]:
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
            yield f"{ends} {_BY_PORT[protocol]} {'sport' if answers else 'dport'} {{ {said} }} accept"


def _ip(address: bytes) -> str:
    return "ip" if len(address) == 4 else "ip6"
