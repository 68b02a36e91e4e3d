"""What the kernel lets in and out of its interface, as nftables says it: the verdicts of `pure`, without Python.

Who may reach what is judged by the direction that a flow was begun in, at each of its packets, answers too: so what a
later policy does not allow ends at once, both ways. That a packet's source is its peer's, WireGuard itself sees to.
Each list of services is a chain, and a map leads from addresses to chains: a packet costs the same whatever the number
of peers.

Only what nft 0.9 and Linux 4.18 have: concatenations without ranges, and no sets of pairs with them (pipapo).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from edgeagent.proto.ip import ip_to_text
from edgeagent.proto.prefixes import to_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from edgeagent.engine.kernel.rights import Element, Frame, Prefix, Rule, Services

_BY_PORT = {6: "tcp", 17: "udp", 132: "sctp"}
ALIVE, ALIVE_S = "alive", 180  # a set with the interface's name in it, which has to be put there again within that time
MAPS = ("in4", "in6", "out4", "out6")
_ADDRESS = {"4": "ipv4_addr", "6": "ipv6_addr"}
_IP = {4: "ip", 16: "ip6"}
_FAMILY = {4: "ipv4", 16: "ipv6"}
_ERRORS = "ct state related meta l4proto { 1, 58 } accept"  # ICMP about a flow that is there
_ASKED, _ANSWERS = "ct direction original", "ct direction reply"


def table_name(interface: str) -> str:
    return "edgeagent_kernel_" + re.sub(r"[^A-Za-z0-9]", lambda match: f"_{ord(match[0]):x}_", interface)


def chain_name(number: int) -> str:
    return f"c{number}"


def removal(interface: str) -> str:
    """For `nft -f -`: the table is gone, whether it was there or not."""
    name = table_name(interface)
    return f"table inet {name}\ndelete table inet {name}\n"


def ruleset(interface: str, frame: Frame, chains: Mapping[Services, int], rights: Mapping[Element, Services]) -> str:
    """For `nft -f -`: takes the place of the table that is there, all or nothing. `chains` has a number for each list
    of services in `frame` and `rights`."""
    lines = [
        f'iifname != "{interface}" accept',
        f"iifname != @{ALIVE} drop",
        *(
            f"{_IP[size]} daddr != {_any_of(map(ip_to_text, its))} drop"
            if its
            else f"meta nfproto {_FAMILY[size]} drop"
            for size, its in _by_size(frame.own)
        ),
    ]
    out = [f'oifname != "{interface}" accept', f"oifname != @{ALIVE} drop"]
    if frame.restricts:
        lines += [_ERRORS, *_maps("in", "saddr", "daddr", _ASKED), *_maps("out", "saddr", "", _ANSWERS)]
        lines += [*_behind(frame, "saddr", "from_prefixes"), "drop"]
        out.append(_ERRORS)
        out += [*_maps("out", "daddr", "", _ASKED), *_maps("in", "daddr", "saddr", _ANSWERS)]
        out += [*_behind(frame, "daddr", "to_prefixes")]
        out += ["meta l4proto tcp reject with tcp reset", "reject with icmpx type admin-prohibited"]
    else:
        lines.append("accept")
    text = [removal(interface) + f"table inet {table_name(interface)} {{"]
    text.append(f'  set {ALIVE} {{ type ifname; flags timeout; elements = {{ "{interface}" timeout {ALIVE_S}s }}; }}')
    for services, number in chains.items():
        text += _chain(chain_name(number), _services(services))
    for name in MAPS if frame.restricts else ():
        address = _ADDRESS[name[-1]]
        key = f"{address} . {address}" if name[:-1] == "in" else address
        text.append(f"  map {name} {{ type {key} : verdict; }}")
    if frame.behind or frame.exits:
        rules = sorted(
            frame.rules, key=lambda rule: (rule.inbound, rule.remote, rule.local or b"", chains[rule.services])
        )
        text += _chain("from_prefixes", (_rule(rule, chains[rule.services], "saddr", rule.inbound) for rule in rules))
        text += _chain("to_prefixes", (_rule(rule, chains[rule.services], "daddr", not rule.inbound) for rule in rules))
    hooks = (
        ("input", lines),
        ("forward", [f'iifname "{interface}" drop', f'oifname "{interface}" drop']),
        ("output", out),
    )
    for hook, rules_of in hooks:
        text += _chain(hook, [f"type filter hook {hook} priority 0; policy accept;", *rules_of])
    text.append("}")
    for name in MAPS:
        of_it = sorted((key, chains[services]) for (its, key), services in rights.items() if its == name)
        if of_it:
            said = ", ".join(f"{_key(name, key)} : jump {chain_name(number)}" for key, number in of_it)
            text.append(f"add element inet {table_name(interface)} {name} {{ {said} }}")
    return "\n".join([*text, ""])


def _chain(name: str, rules: Iterable[str]) -> list[str]:
    return [f"  chain {name} {{", *(f"    {rule}" for rule in rules), "  }"]


def _services(services: Services) -> Iterator[str]:
    for protocol, ranges in services:
        if not ranges or protocol not in _BY_PORT:
            yield f"meta l4proto {protocol} accept"
            continue
        said = _any_of(str(low) if low == high else f"{low}-{high}" for low, high in ranges)
        yield f"{_ASKED} {_BY_PORT[protocol]} dport {said} accept"
        yield f"{_ANSWERS} {_BY_PORT[protocol]} sport {said} accept"


def _maps(way: str, remote: str, local: str, direction: str) -> Iterator[str]:
    for ip, version in (("ip", 4), ("ip6", 6)):
        key = f"{ip} {remote} . {ip} {local}" if local else f"{ip} {remote}"
        yield f"{direction} {key} vmap @{way}{version}"


def _behind(frame: Frame, end: str, chain: str) -> Iterator[str]:
    """The longest prefix decides, so those of exit nodes, and what is nobody's there, come last."""
    for size, prefixes in _by_version(frame.behind):
        yield f"{_IP[size]} {end} {_any_of(map(to_text, prefixes))} jump {chain}"
    for size, prefixes in _by_version(frame.holes):
        yield f"{_IP[size]} {end} {_any_of(map(to_text, prefixes))} drop"
    for address, _ in frame.exits:
        yield f"meta nfproto {_FAMILY[len(address)]} jump {chain}"


def _rule(rule: Rule, number: int, end: str, asked: bool) -> str:
    """`end` is where the remote address stands."""
    size = len(rule.remote[0][0])
    words = [_ASKED if asked else _ANSWERS]
    if rule.remote[0][1]:
        words.append(f"{_IP[size]} {end} {_any_of(map(to_text, rule.remote))}")
    else:
        words.append(f"meta nfproto {_FAMILY[size]}")
    if rule.but:
        words.append(f"{_IP[size]} {end} != {_any_of(map(to_text, rule.but))}")
    if rule.local is not None:
        words.append(f"{_IP[size]} {'daddr' if end == 'saddr' else 'saddr'} {ip_to_text(rule.local)}")
    return " ".join([*words, "jump", chain_name(number)])


def _key(name: str, key: bytes) -> str:
    if name[:-1] == "out":
        return ip_to_text(key)
    half = len(key) // 2
    return f"{ip_to_text(key[:half])} . {ip_to_text(key[half:])}"


def _any_of(words: Iterable[str]) -> str:
    return f"{{ {', '.join(words)} }}"


def _by_size(addresses: Iterable[bytes]) -> Iterator[tuple[int, list[bytes]]]:
    for size in (4, 16):
        yield size, sorted(each for each in addresses if len(each) == size)


def _by_version(prefixes: Iterable[Prefix]) -> Iterator[tuple[int, list[Prefix]]]:
    known = list(prefixes)
    for size in (4, 16):
        if its := [each for each in known if len(each[0]) == size]:
            yield size, its
