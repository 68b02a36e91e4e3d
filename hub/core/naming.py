"""What devices' name servers say beside hosts: search domains, split domains, resolvers, and the operator's records.

One value for the whole network, kept as maps have it (docs/protocol.md, `dn`). Each change is checked as a whole, and
has all maps written again in rounds of small steps. Hosts are not here: a device asks the hub about each.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from edgeagent.proto.codec import decode, encode
from edgeagent.proto.constants import NAME_SERVER
from edgeagent.proto.dnssettings import (
    ALIASES_MAX,
    NAMES,
    NAMES_BYTES_MAX,
    RECORD_KINDS,
    RECORDS_MAX,
    RESOLVERS_MAX,
    SEARCH_MAX,
    SPLIT_MAX,
    is_record_name,
    is_record_value,
)
from edgeagent.proto.ip import ip_to_bytes, ip_to_text
from edgeagent.proto.names import is_domain, is_host_name
from edgeagent.proto.paths import is_unicast
from hub.core.model import HubError, JobKind
from hub.core.store import Tx

DNS_PORT = 53
APEX = "@"  # the domain itself, on the command line
_NAME_HELP = (
    "a name has labels of a-z, 0-9 and -, each at most 63 characters and with no - at its ends, with dots between "
    "them; a service's label may begin with _. Write for example db, or db.site-1"
)

Resolver = tuple[bytes, int]


@dataclass(slots=True, frozen=True)
class NameRecord:
    """`name` is what stands before the network's domain, "" for the domain itself; `value` as dnssettings.py has it."""

    name: str
    kind: str
    value: str


@dataclass(slots=True)
class Names:
    """All settings. `search` None stands for the network's domain alone."""

    search: list[str] | None = None
    split: dict[str, list[Resolver]] = field(default_factory=dict)
    resolvers: list[Resolver] = field(default_factory=list)  # of all other names; empty: those that each host has
    records: list[NameRecord] = field(default_factory=list)


def load(tx: Tx) -> Names:
    encoded = tx.names()
    if not encoded:
        return Names()
    fields: dict[str, Any] = decode(encoded)
    return Names(
        search=fields.get("sd"),
        split={domain: [(address, port) for address, port in to] for domain, to in fields.get("sp", [])},
        resolvers=[(address, port) for address, port in fields.get("gl", [])],
        records=[NameRecord(*record) for record in fields.get("rr", [])],
    )


def set_search(tx: Tx, domains: list[str] | None) -> None:
    """Domains that are tried behind a name without dots, in order; None for the network's own alone."""
    if domains is not None:
        if len(domains) > SEARCH_MAX:
            raise HubError(f"{len(domains)} search domains: resolvers take {SEARCH_MAX}. Give fewer")
        domains = list(dict.fromkeys(_domain(domain) for domain in domains))
    names = load(tx)
    names.search = domains
    _save(tx, names)


def set_split(tx: Tx, domain: str, resolvers: list[str]) -> None:
    """Names of `domain` are answered by these, in order; in place of what was set for it."""
    domain = _domain(domain)
    own = tx.network().domain
    if domain == own or domain.endswith("." + own):
        raise HubError(f"domain {domain}: it is in {own}, for which the hub itself answers. Add records instead")
    names = load(tx)
    if domain not in names.split and len(names.split) >= SPLIT_MAX:
        raise HubError(f"{SPLIT_MAX} split domains: there is no room for another. Unset one, or use a common parent")
    names.split[domain] = read_resolvers(resolvers)
    _save(tx, names)


def unset_split(tx: Tx, domain: str) -> None:
    names = load(tx)
    if names.split.pop(domain.lower().removesuffix("."), None) is None:
        raise HubError(f"domain {domain}: nothing is set for it. `edgehub dns show` lists what is")
    _save(tx, names)


def set_resolvers(tx: Tx, resolvers: list[str]) -> None:
    """Who answers for all names that nothing else is set for; none: whom each device's host has found."""
    names = load(tx)
    names.resolvers = read_resolvers(resolvers) if resolvers else []
    _save(tx, names)


def add_record(tx: Tx, name: str, kind: str, value: str) -> NameRecord:
    """Raises HubError where it is not of its form, taken by a device, there already, or contradicts another."""
    record = check_record(tx, name, kind, value)
    names = load(tx)
    if len(names.records) >= RECORDS_MAX:
        raise HubError(f"{RECORDS_MAX} records: there is no room for another. Remove one")
    names.records.append(record)
    names.records.sort(key=lambda each: (each.name, each.kind, each.value))
    _save(tx, names)
    return record


def remove_record(tx: Tx, name: str, kind: str = "", value: str = "") -> list[NameRecord]:
    """Those of a name, or of one type, or the one of that value. Returns what was removed."""
    relative, names = _relative(tx, name), load(tx)
    gone = [
        each
        for each in names.records
        if each.name == relative and kind.upper() in ("", each.kind) and value in ("", each.value)
    ]
    if not gone:
        raise HubError(f"record {name}: there is no such record. `edgehub dns show` lists those that there are")
    names.records = [each for each in names.records if each not in gone]
    _save(tx, names)
    return gone


def check_record(tx: Tx, name: str, kind: str, value: str) -> NameRecord:
    """The record as it would be kept, beside those that there are. Raises HubError."""
    relative, kind = _relative(tx, name), kind.upper()
    if kind not in RECORD_KINDS:
        raise HubError(f"type {kind[:20]!r}: want {', '.join(RECORD_KINDS[:-1])} or {RECORD_KINDS[-1]}")
    if kind == "CNAME":
        value = _relative(tx, value)
    elif kind in ("A", "AAAA"):
        try:
            value = ip_to_text(ip_to_bytes(value))
        except ValueError:
            raise HubError(f"value {value[:80]!r}: {kind} wants an address") from None
    if not is_record_value(kind, value):
        wanted = {
            "A": "an IPv4 address, as in 192.0.2.7",
            "AAAA": "an IPv6 address, as in 2001:db8::7",
            "CNAME": "another name of this network than the domain itself",
            "TXT": "1 to 255 characters of printable ASCII",
        }
        raise HubError(f"value {value[:80]!r}: {kind} wants {wanted[kind]}")
    owner = tx.device_by_name(relative) if is_host_name(relative) else None
    if owner is not None:
        raise HubError(f"name {relative}: device {owner.id} has it. Choose another, or rename the device first")
    record = NameRecord(relative, kind, value)
    _refuse_contradiction(load(tx).records, record)
    return record


def is_taken(tx: Tx, label: str) -> bool:
    """Whether a record has this name, so that no device may."""
    return any(record.name == label for record in load(tx).records)


def read_resolvers(texts: list[str]) -> list[Resolver]:
    """Of `192.0.2.1`, `192.0.2.1:5353`, `2001:db8::1` or `[2001:db8::1]:5353`. Raises HubError."""
    if not 1 <= len(texts) <= RESOLVERS_MAX:
        raise HubError(f"{len(texts)} resolvers: want 1 to {RESOLVERS_MAX}")
    return list(dict.fromkeys(_resolver(text) for text in texts))


def resolver_text(resolver: Resolver) -> str:
    address, port = resolver
    text = ip_to_text(address)
    if port == DNS_PORT:
        return text
    return f"[{text}]:{port}" if len(address) == 16 else f"{text}:{port}"


def as_json(tx: Tx) -> dict[str, Any]:
    """All settings as programs read them; `search` as devices have it."""
    names, domain = load(tx), tx.network().domain
    return {
        "domain": domain,
        "search": [domain] if names.search is None else names.search,
        "split": {split: [resolver_text(each) for each in to] for split, to in names.split.items()},
        "resolvers": [resolver_text(each) for each in names.resolvers],
        "records": [
            {"name": full_name(record.name, domain), "type": record.kind, "value": shown_value(record, domain)}
            for record in names.records
        ],
    }


def full_name(relative: str, domain: str) -> str:
    return f"{relative}.{domain}" if relative else domain


def shown_value(record: NameRecord, domain: str) -> str:
    return full_name(record.value, domain) if record.kind == "CNAME" else record.value


def _save(tx: Tx, names: Names) -> None:
    fields: dict[str, Any] = {}
    if names.search is not None:
        fields["sd"] = names.search
    if names.split:
        fields["sp"] = [[domain, [list(each) for each in names.split[domain]]] for domain in sorted(names.split)]
    if names.resolvers:
        fields["gl"] = [list(each) for each in names.resolvers]
    if names.records:
        fields["rr"] = [[record.name, record.kind, record.value] for record in names.records]
    NAMES.check(fields, "dn")  # what a device would refuse never gets into a map
    encoded = encode(fields) if fields else b""
    if len(encoded) > NAMES_BYTES_MAX:
        raise HubError(
            f"{len(encoded)} bytes of names: a map has room for {NAMES_BYTES_MAX}. Use fewer or shorter ones, or give "
            "a domain of its own to a resolver with `edgehub dns set-split`"
        )
    if encoded != tx.names():
        tx.save_names(encoded)
        tx.add_job(JobKind.MAPS, "", "")


def _domain(text: str) -> str:
    domain = text.lower().removesuffix(".")
    if not is_domain(domain):
        raise HubError(f"domain {text[:80]!r}: {_NAME_HELP}")
    return domain


def _relative(tx: Tx, text: str) -> str:
    """What stands before the network's domain: of `db`, `db.DOMAIN`, `db.DOMAIN.`, or `@` for the domain itself."""
    domain = tx.network().domain
    name = text.lower()
    if name in (APEX, domain, domain + "."):
        return ""
    if name.endswith(".") and not name.endswith(f".{domain}."):
        raise HubError(
            f"name {text[:80]!r}: it is not in {domain}. Names elsewhere are for the resolvers of split domains"
        )
    name = name.removesuffix(".").removesuffix("." + domain)
    if not name or not is_record_name(name) or not is_domain(full_name(name.replace("_", ""), domain)):
        raise HubError(f"name {text[:80]!r}: {_NAME_HELP}")
    return name


def _refuse_contradiction(records: list[NameRecord], record: NameRecord) -> None:
    if record in records:
        raise HubError(f"record {record.name or APEX} {record.kind} {record.value}: it is there already")
    same = [each for each in records if each.name == record.name]
    if record.kind == "CNAME":
        if not record.name:
            raise HubError("CNAME: the domain itself cannot be an alias (RFC 1034). Give it A and AAAA records")
        if same:
            raise HubError(f"name {record.name}: it has other records, and an alias must be alone. Remove those first")
    elif any(each.kind == "CNAME" for each in same):
        raise HubError(f"name {record.name}: it is an alias, which must be alone. Remove the CNAME first")
    aliases = {each.name: each.value for each in (*records, record) if each.kind == "CNAME"}
    for name in aliases:
        steps, at = 0, name
        while at in aliases:
            at, steps = aliases[at], steps + 1
            if steps > ALIASES_MAX:
                raise HubError(f"name {name}: its aliases go in a circle, or over more than {ALIASES_MAX} steps")


def _resolver(text: str) -> Resolver:
    host, port_text = text, str(DNS_PORT)
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        port_text = rest.removeprefix(":") if rest else port_text
        if not bracket or (rest and not rest.startswith(":")):
            host = ""
    elif text.count(":") == 1:
        host, _, port_text = text.partition(":")
    try:
        address = ip_to_bytes(host)
        port = int(port_text) if port_text.isascii() and port_text.isdecimal() else 0
        if not 1 <= port <= 65_535 or not is_unicast(address) or address == NAME_SERVER:
            raise ValueError
    except ValueError:
        raise HubError(
            f"resolver {text[:80]!r}: want the address of another host, as in 192.0.2.1, 192.0.2.1:5353, 2001:db8::1 "
            "or [2001:db8::1]:5353"
        ) from None
    return address, port
