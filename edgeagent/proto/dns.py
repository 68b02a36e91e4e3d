"""The name server of a device, without input or output: what this host asks about names of the network, and of others.

```
query ──▶ NameServer ──▶ records of the map ─────────────────────────────▶ answer
               ├──▶ Lookup: the hub, by the node's own questions ──────────▶
               └──▶ Forwarder: resolvers of split domains, or of the host ─▶
```
What is asked of the network's own domain and reverse zones never leaves for a resolver. What resolvers say of any other
name than those of split domains holds no address of the network (`Zone.is_hidden`), so that no web site's name can be
made to lead into it.
"""

from __future__ import annotations

from collections import OrderedDict

from edgeagent.proto import dnsmessage as dm
from edgeagent.proto import via
from edgeagent.proto.constants import NAME_SERVER
from edgeagent.proto.dns_drops import DnsDrop
from edgeagent.proto.dnsforward import FORWARDS_MAX, Forwarder
from edgeagent.proto.dnssettings import ALIASES_MAX
from edgeagent.proto.dnszone import HOST_TTL_S, PRIVATE_DOMAINS, Zone
from edgeagent.proto.ip import holds
from edgeagent.proto.names import is_host_name

TYPE_CHECKING = False  # what the typing module would say, and 5 ms
if TYPE_CHECKING:
    from typing import Any

    from edgeagent.proto.devicemap import DeviceMap
    from edgeagent.proto.dnsforward import Ask
    from edgeagent.proto.dnsmessage import Name, Query, Resource, Scan
    from edgeagent.proto.dnszone import Server
    from edgeagent.proto.keys import Entropy
    from edgeagent.proto.records import Query as Lookup
    from edgeagent.proto.records import Record

WAITING_MAX = 128  # queries that wait for the hub
HUB_TIMEOUT_S = 3.0
OFFLINE_TIMEOUT_S = 1.0  # while there is no hub to ask, but may be in a moment
_LOCALHOST = (b"localhost",)


class Waiting:
    """A query whose answer is the hub's to complete: `owner` is the name that a host's addresses are told under,
    `before` are the aliases that led there. A reverse query wants a name instead."""

    __slots__ = ("before", "client", "deadline", "lookup", "owner", "query", "zone")

    def __init__(self, query: Query, client: object, lookup: Lookup, owner: Name, zone: Name | None) -> None:
        self.query = query
        self.client = client
        self.lookup = lookup
        self.owner = owner
        self.zone = zone  # that says no; None where nobody can
        self.before: list[Resource] = []
        self.deadline = 0.0


class NameServer:
    """Drive it: `handle_query` and the other handle methods; after each drain lookups, asks, ends and answers. A client
    is whatever the caller knows it by; `stream` says that it takes answers of any length (RFC 7766).

    `found` are resolvers that the host itself would use, `local` the domains that these may answer privately.
    """

    def __init__(self, entropy: Entropy, device_map: DeviceMap) -> None:
        self.drops: dict[DnsDrop, int] = dict.fromkeys(DnsDrop, 0)
        self.counters = {"queries": 0, "network": 0, "forwarded": 0, "answered": 0}
        self.cut_off = False  # the network is not ours to ask about any more
        self.found: list[Server] = []
        self.local: list[Name] = []
        self.forwarder = Forwarder(entropy, self.count)
        self._waiting: OrderedDict[int, Waiting] = OrderedDict()
        self._number = 0
        self._lookups: list[Lookup] = []
        self._answers: list[tuple[object, bytes]] = []
        self.zone = Zone(device_map)
        self.drops[DnsDrop.BAD_RECORD] += self.zone.refused

    def set_map(self, device_map: DeviceMap) -> None:
        self.zone = Zone(device_map)
        self.drops[DnsDrop.BAD_RECORD] += self.zone.refused

    def count(self, reason: DnsDrop) -> None:
        self.drops[reason] += 1

    # Inputs

    def handle_query(self, now: float, data: bytes, client: object, *, stream: bool, reachable: bool) -> None:
        """`reachable`: whether the hub can be asked at present."""
        self.counters["queries"] += 1
        try:
            query = dm.read_query(data)
        except dm.DnsError as error:
            if error.rcode is None:
                self.count(DnsDrop.MALFORMED)
            else:
                self.count(DnsDrop.REFUSED if error.rcode == dm.REFUSED else DnsDrop.FORMAT)
                self._answers.append((client, dm.write_error(data, error.rcode)))
            return
        if stream:
            query.bytes_max = 65_535
        if query.version:
            self._say(query, client, dm.BADVERS)
        elif query.kind in (dm.AXFR, dm.IXFR, dm.OPT):
            self._refuse(query, client)
        elif not self._ours(now, query, client, reachable):
            self._forward(now, query, client)

    def resolved(self, now: float, lookup: Lookup, record: Record | None, *, sure: bool) -> None:
        """The end of a lookup. `sure` that there is no record, or else nobody could say."""
        for number in [number for number, each in self._waiting.items() if each.lookup == lookup]:
            waiting = self._waiting.pop(number)
            if record is None and not sure:
                self._give_up(waiting)
            else:
                self._complete(waiting, record)

    def handle_reply(self, now: float, number: int, data: bytes) -> None:
        self.forwarder.handle_reply(now, number, data)
        self._finish()

    def handle_failed(self, now: float, number: int) -> None:
        self.forwarder.handle_failed(now, number)
        self._finish()

    def handle_timeout(self, now: float) -> None:
        for number in [number for number, waiting in self._waiting.items() if waiting.deadline <= now]:
            self._give_up(self._waiting.pop(number))
        self.forwarder.handle_timeout(now)
        self._finish()

    def poll_timeout(self) -> float | None:
        times = [waiting.deadline for waiting in self._waiting.values()]
        due = self.forwarder.poll_timeout()
        return min(times if due is None else [*times, due], default=None)

    # Outputs

    def drain_lookups(self) -> list[Lookup]:
        """To be asked of the node; each ends in `resolved`."""
        lookups, self._lookups = self._lookups, []
        return lookups

    def drain_asks(self) -> list[Ask]:
        return self.forwarder.drain_asks()

    def drain_ends(self) -> list[int]:
        """Asks whose sockets are to be closed; to be drained before the asks."""
        return self.forwarder.drain_ends()

    def drain_answers(self) -> list[tuple[object, bytes]]:
        answers, self._answers = self._answers, []
        self.counters["answered"] += len(answers)
        return answers

    def tables(self) -> dict[str, dict[str, int]]:
        return {
            "dns_waiting": {
                "used": len(self._waiting),
                "ceiling": WAITING_MAX,
                "gave_way": self.drops[DnsDrop.TABLE_FULL],
            },
            "dns_forwards": {"used": len(self.forwarder), "ceiling": FORWARDS_MAX},
        }

    def describe(self) -> dict[str, Any]:
        zone = self.zone
        return {
            "domain": zone.map.domain,
            "search": zone.search,
            "reverse": len(zone.reverse_domains()),
            "records": sum(len(each) for each in zone.records.values()),
            "split": {dm.to_text(name): [server_text(each) for each in to] for name, to in zone.split.items()},
            "global": [server_text(each) for each in zone.servers],
            "found": [server_text(each) for each in self.found],
            "counters": self.counters,
            "drops": {reason.value: count for reason, count in self.drops.items() if count},
            "waiting": {"hub": [len(self._waiting), WAITING_MAX], "resolvers": [len(self.forwarder), FORWARDS_MAX]},
        }

    # Names of the network

    def _ours(self, now: float, query: Query, client: object, reachable: bool) -> bool:
        """Answer, or ask the hub about, a name that is the network's. False for one that is not."""
        zone, name = self.zone, query.name
        relative = zone.within(name)
        if relative is None and name == _LOCALHOST:
            self._say(query, client, dm.NOERROR, _loopback(query))
            return True
        if relative is None and zone.bare and len(name) == 1 and query.kind in (dm.A, dm.AAAA):
            relative = name  # a host of the network, by the search domain
        reverse = None if relative is not None else zone.reverse(name)
        if relative is None and reverse is None:
            return False
        self.counters["network"] += 1
        if self.cut_off:
            self._refuse(query, client)
        elif relative is not None:
            authority = zone.domain if zone.within(name) is not None else None
            self._name(now, query, client, relative, authority, reachable)
        elif reverse is not None:
            self._reverse(now, query, client, *reverse, reachable)
        return True

    def _reverse(
        self, now: float, query: Query, client: object, apex: Name, address: bytes | None, reachable: bool
    ) -> None:
        zone, name = self.zone, query.name
        if name == apex:
            self._apex(query, client, apex)
        elif address is None:
            whole = len(name) < (6 if name[-2] == b"in-addr" else 34)
            self._no(query, client, apex, exists=whole and _is_reverse(name))
        elif address == NAME_SERVER:
            self._pointer(query, client, apex, zone.domain)
        elif address in zone.map.addresses:
            self._pointer(query, client, apex, (zone.own, *zone.domain))
        elif (label := via.label_of(address)) is not None:
            self._pointer(query, client, apex, (label.encode("ascii"), *zone.domain))
        elif holds(via.NETWORK, address):
            self._no(query, client, apex)
        else:
            self._ask(now, Waiting(query, client, ("a", address), name, apex), reachable)

    def _name(
        self, now: float, query: Query, client: object, relative: Name, authority: Name | None, reachable: bool
    ) -> None:
        """Follow aliases among the operator's records; what they end in is a record, a host, or nothing."""
        zone, owner = self.zone, query.name
        before: list[Resource] = []
        for _ in range(ALIASES_MAX + 1):
            records = zone.records.get(relative, [])
            alias = next((data for type_, data in records if type_ == dm.CNAME), None)
            if not isinstance(alias, tuple) or query.kind in (dm.CNAME, dm.ANY):
                break
            before.append((owner, dm.CNAME, HOST_TTL_S, dm.write_name(alias)))
            owner, relative, authority = alias, zone.within(alias) or (), zone.domain
        else:
            self._say(query, client, dm.SERVFAIL, before)
            return
        if not relative:
            self._apex(query, client, zone.domain, before, owner)
        elif records:
            self._tell(query, client, [*before, *_matching(query, owner, records)], authority)
        elif relative == (zone.own,):
            self._host(query, client, before, owner, zone.map.addresses, authority)
        elif len(relative) == 1 and (there := via.address_of(relative[0].decode("ascii", "replace"))) is not None:
            self._host(query, client, before, owner, [there], authority)  # whether anybody is there, nobody is asked
        elif len(relative) == 1 and is_host_name(relative[0].decode("ascii", "replace")):
            waiting = Waiting(query, client, ("h", relative[0].decode("ascii")), owner, authority)
            waiting.before = before
            self._ask(now, waiting, reachable)
        else:
            self._no(query, client, authority, exists=zone.is_between(relative), before=before)

    def _apex(
        self,
        query: Query,
        client: object,
        apex: Name,
        before: list[Resource] | None = None,
        owner: Name | None = None,
    ) -> None:
        """Of the domain, and of a reverse zone: who answers for it. The domain's own address is the name server's,
        unless the operator gave it another."""
        zone, found = self.zone, list(before or [])
        owner = query.name if owner is None else owner
        if query.kind in (dm.SOA, dm.ANY):
            found.append(zone.start_of_authority(apex))
        if query.kind in (dm.NS, dm.ANY):
            found.append(zone.name_server(apex))
        if apex == zone.domain:
            records = zone.records.get((), []) or [(dm.A, NAME_SERVER)]
            found += _matching(query, owner, records)
        self._tell(query, client, found, apex)

    def _host(
        self,
        query: Query,
        client: object,
        before: list[Resource],
        owner: Name,
        addresses: list[bytes] | tuple[bytes, ...],
        authority: Name | None,
    ) -> None:
        records: list[tuple[int, bytes | Name]] = [
            (dm.A if len(address) == 4 else dm.AAAA, address) for address in addresses
        ]
        self._tell(query, client, [*before, *_matching(query, owner, records)], authority)

    def _pointer(self, query: Query, client: object, zone: Name, name: Name) -> None:
        found = [(query.name, dm.PTR, HOST_TTL_S, dm.write_name(name))] if query.kind in (dm.PTR, dm.ANY) else []
        self._tell(query, client, found, zone)

    # The hub

    def _ask(self, now: float, waiting: Waiting, reachable: bool) -> None:
        if len(self._waiting) >= WAITING_MAX:
            self.count(DnsDrop.TABLE_FULL)
            _, oldest = self._waiting.popitem(last=False)
            self._say(oldest.query, oldest.client, dm.SERVFAIL)
        waiting.deadline = now + (HUB_TIMEOUT_S if reachable else OFFLINE_TIMEOUT_S)
        if all(each.lookup != waiting.lookup for each in self._waiting.values()):
            self._lookups.append(waiting.lookup)
        self._number += 1
        self._waiting[self._number] = waiting

    def _complete(self, waiting: Waiting, record: Record | None) -> None:
        query, client, zone = waiting.query, waiting.client, self.zone
        form, value = waiting.lookup
        if form == "a":
            # a device may also route an address without having it
            if record is None or value not in record.addresses or waiting.zone is None:
                self._no(query, client, waiting.zone)
            else:
                self._pointer(query, client, waiting.zone, (record.name.encode("ascii"), *zone.domain))
        elif record is None or record.name != value:
            exists = zone.is_between((str(value).encode("ascii"),))
            self._no(query, client, waiting.zone, exists=exists, before=waiting.before)
        else:
            self._host(query, client, waiting.before, waiting.owner, record.addresses, waiting.zone)

    def _give_up(self, waiting: Waiting) -> None:
        self.count(DnsDrop.UNANSWERED)
        self._say(waiting.query, waiting.client, dm.SERVFAIL)

    # Resolvers

    def _forward(self, now: float, query: Query, client: object) -> None:
        zone = self.zone
        servers = zone.resolvers(query.name)
        if servers is None:
            servers = zone.servers or self.found
        if not servers or not query.flags & dm.RD:
            self._refuse(query, client)
            return
        self.counters["forwarded"] += 1
        self.forwarder.begin(now, query, client, servers)
        self._finish()

    def _finish(self) -> None:
        done, self.forwarder.done = self.forwarder.done, []
        for forward, answer in done:
            if answer is None:
                self.count(DnsDrop.UNANSWERED)
                self._say(forward.query, forward.client, dm.SERVFAIL)
            elif self._leads_inside(forward.query, answer[1]):
                self.count(DnsDrop.REBIND)
                self._answers.append((forward.client, dm.write_answer(forward.query, dm.NOERROR, blocked=True)))
            else:
                query = forward.query
                self._answers.append((forward.client, dm.rewrite(query, *answer, query.bytes_max)))

    def _leads_inside(self, query: Query, found: Scan) -> bool:
        """Split domains are the operator's word that their resolvers may name what is inside."""
        zone, name = self.zone, query.name
        if not found.addresses or zone.resolvers(name) is not None:
            return False
        local = (*PRIVATE_DOMAINS, *self.local)
        public = len(name) > 1 and not any(name[len(name) - len(each) :] == each for each in local if each)
        return any(zone.is_hidden(address, public=public) for address in found.addresses)

    # Answers

    def _tell(self, query: Query, client: object, found: list[Resource], authority: Name | None) -> None:
        """`found`; where its last name has nothing of the type that is asked for, the zone says so (RFC 2308)."""
        is_alias = bool(found) and found[-1][1] == dm.CNAME and query.kind not in (dm.CNAME, dm.ANY)
        if found and not is_alias:
            self._say(query, client, dm.NOERROR, found)
        else:
            self._no(query, client, authority, exists=True, before=found)

    def _no(
        self,
        query: Query,
        client: object,
        authority: Name | None,
        *,
        exists: bool = False,
        before: list[Resource] | None = None,
    ) -> None:
        authorities = [] if authority is None else [self.zone.start_of_authority(authority)]
        self._say(query, client, dm.NOERROR if exists else dm.NXDOMAIN, before or [], authorities)

    def _say(
        self,
        query: Query,
        client: object,
        rcode: int,
        answers: list[Resource] | None = None,
        authorities: list[Resource] | None = None,
    ) -> None:
        flags = dm.RA | (dm.AA if rcode in (dm.NOERROR, dm.NXDOMAIN) else 0)
        data = dm.write_answer(query, rcode, answers or [], authorities or [], flags=flags, bytes_max=query.bytes_max)
        self._answers.append((client, data))

    def _refuse(self, query: Query, client: object) -> None:
        self.count(DnsDrop.REFUSED)
        self._say(query, client, dm.REFUSED)


def server_text(server: Server) -> str:
    """As in `192.0.2.1`, `192.0.2.1:5353`, `[2001:db8::1]:5353`."""
    from edgeagent.proto.ip import ip_to_text

    address, port = server
    text = ip_to_text(address)
    if port == 53:
        return text
    return f"[{text}]:{port}" if len(address) == 16 else f"{text}:{port}"


def _matching(query: Query, owner: Name, records: list[tuple[int, bytes | Name]]) -> list[Resource]:
    return [
        (owner, type_, HOST_TTL_S, dm.write_name(data) if isinstance(data, tuple) else data)
        for type_, data in records
        if query.kind in (type_, dm.ANY)
    ]


def _loopback(query: Query) -> list[Resource]:
    """RFC 6761, section 6.3."""
    return _matching(query, query.name, [(dm.A, bytes((127, 0, 0, 1))), (dm.AAAA, bytes(15) + b"\1")])


def _is_reverse(name: Name) -> bool:
    """Whether a part of a reverse name is one: octets, or nibbles."""
    if name[-2] == b"in-addr":
        return all(label.isdigit() and len(label) <= 3 and int(label) < 256 for label in name[:-2])
    return all(len(label) == 1 and label in b"0123456789abcdef" for label in name[:-2])
