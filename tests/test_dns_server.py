"""The name server: whose a name is, what is said of it, what others are asked about it, and what never leaves."""

from __future__ import annotations

import struct
from ipaddress import ip_address
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeagent.proto import dnsmessage as dm
from edgeagent.proto.devicemap import DeviceMap
from edgeagent.proto.dns import HUB_TIMEOUT_S, OFFLINE_TIMEOUT_S, WAITING_MAX, NameServer
from edgeagent.proto.dns_drops import DnsDrop
from edgeagent.proto.dnsforward import DEADLINE_S, FORWARDS_MAX, UDP_TIMEOUT_S
from edgeagent.proto.dnssettings import NAMES
from edgeagent.proto.dnszone import Zone
from edgeagent.proto.records import Query as Lookup
from edgeagent.proto.records import Record
from edgeagent.proto.refusals import ControlError

TYPES = {"A": dm.A, "AAAA": dm.AAAA, "PTR": dm.PTR, "SOA": dm.SOA, "NS": dm.NS, "TXT": dm.TXT, "CNAME": dm.CNAME,
         "ANY": dm.ANY, "MX": 15, "AXFR": dm.AXFR, "HTTPS": dm.HTTPS}  # fmt: skip
CODES = ("NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED")
ULA = bytes.fromhex("fd0123456789") + bytes(10)


def packed(text: str) -> bytes:
    return ip_address(text).packed


def device_map(**names: Any) -> DeviceMap:
    body: dict[str, Any] = {
        "id": "d" * 24,
        "name": "me",
        "addrs": [packed("100.64.0.1"), ULA[:15] + b"\1"],
        "tags": [],
        "domain": "lab.internal",
        "v4": [packed("100.64.0.0"), 10],
        "v6": [ULA, 48],
        "fk": bytes(32),
        "fg": 0,
        "bx": bytes(32),
        "h": ["hub:1"],
        "nk": [],
        "na": 0,
        "set": {},
    }
    if names:
        body["dn"] = NAMES.check(names, "dn")
    signed = SimpleNamespace(body=body, raw=b"", stamp=(1, 77), wall_s=0, subject="d" * 24)
    return DeviceMap(cast(Any, signed))


def host(name: str, *addresses: str) -> Record:
    return cast(Record, SimpleNamespace(name=name, addresses=[packed(address) for address in addresses]))


class Asker:
    """A name server, and whoever asks it: `ask` gives what a dig of a few words prints."""

    def __init__(self, **names: Any) -> None:
        self.server = NameServer(Random(1).randbytes, device_map(**names))
        self.now = 100.0
        self.hosts = {"b": host("b", "100.64.0.2", "fd01:2345:6789::2")}
        self.asked: list[Lookup] = []

    def send(self, name: str, kind: str = "A", client: object = "c", *, edns: int = 0, stream: bool = False,
             reachable: bool = True, flags: int = dm.RD) -> None:  # fmt: skip
        labels = () if name == "." else tuple(name.rstrip(".").encode().split(b"."))
        question = dm.write_name(labels) + struct.pack(">HH", TYPES[kind], dm.IN)
        data = dm.HEADER.pack(7, flags, 1, 0, 0, bool(edns)) + question
        if edns:
            data += b"\0" + struct.pack(">HHIH", dm.OPT, edns, 0, 0)
        self.server.handle_query(self.now, data, client, stream=stream, reachable=reachable)

    def hub(self, *, sure: bool = True, silent: bool = False) -> None:
        for lookup in self.server.drain_lookups():
            self.asked.append(lookup)
            _, value = lookup
            found = [each for each in self.hosts.values() if value in (each.name, *each.addresses)]
            if not silent:
                self.server.resolved(self.now, lookup, found[0] if found else None, sure=sure)

    def answers(self) -> list[tuple[object, str]]:
        return [(client, show(data)) for client, data in self.server.drain_answers()]

    def ask(self, name: str, kind: str = "A", **options: Any) -> str:
        self.send(name, kind, **options)
        self.hub()
        [(_, said)] = self.answers()
        return said


def show(data: bytes) -> str:
    """`NOERROR aa: records | authorities`, an address or the name where it is one."""
    _, flags, _, answers, authorities, additional = dm.HEADER.unpack_from(data)
    at = dm._skip_name(data, 12) + 4 if data[4:6] == b"\0\1" else 12
    shown = []
    for _ in range(answers + authorities + additional):
        owner, type_, _, ttl, start, end = dm._resource(data, at)
        name = name_at(data, owner)
        rdata = data[start:end]
        if type_ in (dm.A, dm.AAAA):
            text = str(ip_address(rdata))
        elif type_ in (dm.PTR, dm.CNAME, dm.NS):
            text = name_at(data, start) + "."
        elif type_ == dm.SOA:
            text = str(struct.unpack(">5I", rdata[-20:])[0])
        else:
            text = rdata[1:].decode("latin-1") if type_ == dm.TXT else ""
        word = next((word for word, number in TYPES.items() if number == type_), "OPT")
        shown.append(f"{name} {ttl} {word} {text}".strip() if word != "OPT" else "OPT")
        at = end
    assert at == len(data)
    head = CODES[flags & 15] + (" aa" if flags & dm.AA else "") + (" tc" if flags & dm.TC else "")
    parts = [", ".join(shown[:answers]), ", ".join(shown[answers : answers + authorities])]
    return f"{head}: {parts[0]}" + (f" | {parts[1]}" if parts[1] else "")


def name_at(data: bytes, at: int) -> str:
    labels: list[str] = []
    while data[at]:
        if data[at] >= 0xC0:
            at = (data[at] & 0x3F) << 8 | data[at + 1]
            continue
        labels.append(data[at + 1 : at + 1 + data[at]].decode("latin-1"))
        at += 1 + data[at]
    return ".".join(labels)


SOA = "lab.internal 10 SOA 77"
V4_SOA = "64.100.in-addr.arpa 10 SOA 77"
V6 = "9.8.7.6.5.4.3.2.1.0.d.f.ip6.arpa"
V6_HOST = "2." + "0." * 19 + V6
VIA = "192-168-1-20-via-7"
VIA_ZONE = "2.0.c.3.6.6.9.0.e.2.d.f.ip6.arpa"
VIA_HOST = "4.1.1.0.8.a.0.c.7." + "0." * 11 + VIA_ZONE


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("b.lab.internal", "A", "NOERROR aa: b.lab.internal 60 A 100.64.0.2"),
        ("B.LAB.Internal", "A", "NOERROR aa: B.LAB.Internal 60 A 100.64.0.2"),
        ("b.lab.internal", "AAAA", "NOERROR aa: b.lab.internal 60 AAAA fd01:2345:6789::2"),
        ("b.lab.internal", "ANY", "NOERROR aa: b.lab.internal 60 A 100.64.0.2, "
         "b.lab.internal 60 AAAA fd01:2345:6789::2"),
        ("b.lab.internal", "MX", f"NOERROR aa:  | {SOA}"),
        ("b.lab.internal", "HTTPS", f"NOERROR aa:  | {SOA}"),
        ("me.lab.internal", "A", "NOERROR aa: me.lab.internal 60 A 100.64.0.1"),
        ("b", "A", "NOERROR aa: b 60 A 100.64.0.2"),
        ("nope", "A", "NXDOMAIN aa: "),
        ("nope.lab.internal", "A", f"NXDOMAIN aa:  | {SOA}"),
        ("a.b.lab.internal", "A", f"NXDOMAIN aa:  | {SOA}"),
        ("-b.lab.internal", "A", f"NXDOMAIN aa:  | {SOA}"),
        ("b_.lab.internal", "A", f"NXDOMAIN aa:  | {SOA}"),
        ("lab.internal", "SOA", "NOERROR aa: lab.internal 10 SOA 77"),
        ("lab.internal", "NS", "NOERROR aa: lab.internal 60 NS lab.internal."),
        ("lab.internal", "A", "NOERROR aa: lab.internal 60 A 100.100.100.100"),
        ("lab.internal", "AAAA", f"NOERROR aa:  | {SOA}"),
        ("lab.internal", "AXFR", "REFUSED: "),
        ("2.0.64.100.in-addr.arpa", "PTR", "NOERROR aa: 2.0.64.100.in-addr.arpa 60 PTR b.lab.internal."),
        ("1.0.64.100.in-addr.arpa", "PTR", "NOERROR aa: 1.0.64.100.in-addr.arpa 60 PTR me.lab.internal."),
        ("2.0.64.100.in-addr.arpa", "A", f"NOERROR aa:  | {V4_SOA}"),
        ("9.0.64.100.in-addr.arpa", "PTR", f"NXDOMAIN aa:  | {V4_SOA}"),
        ("0.64.100.in-addr.arpa", "PTR", f"NOERROR aa:  | {V4_SOA}"),  # there are names below it (RFC 8020)
        ("64.100.in-addr.arpa", "SOA", f"NOERROR aa: {V4_SOA}"),
        ("64.100.in-addr.arpa", "PTR", f"NOERROR aa:  | {V4_SOA}"),
        ("x.0.64.100.in-addr.arpa", "PTR", f"NXDOMAIN aa:  | {V4_SOA}"),
        ("002.0.64.100.in-addr.arpa", "PTR", f"NXDOMAIN aa:  | {V4_SOA}"),
        ("1.2.0.64.100.in-addr.arpa", "PTR", f"NXDOMAIN aa:  | {V4_SOA}"),
        ("300.0.64.100.in-addr.arpa", "PTR", f"NXDOMAIN aa:  | {V4_SOA}"),
        ("100.100.100.100.in-addr.arpa", "PTR", "NOERROR aa: 100.100.100.100.in-addr.arpa 60 PTR lab.internal."),
        ("1.0.63.100.in-addr.arpa", "PTR", "REFUSED: "),  # not of 100.64.0.0/10
        ("1.0.128.100.in-addr.arpa", "PTR", "REFUSED: "),
        ("100.in-addr.arpa", "PTR", "REFUSED: "),  # others have most of it
        ("in-addr.arpa", "PTR", "REFUSED: "),
        (V6_HOST, "PTR", f"NOERROR aa: {V6_HOST} 60 PTR b.lab.internal."),
        (V6, "NS", f"NOERROR aa: {V6} 60 NS lab.internal."),
        ("0." + V6, "PTR", f"NOERROR aa:  | {V6} 10 SOA 77"),
        ("g." + V6, "PTR", f"NXDOMAIN aa:  | {V6} 10 SOA 77"),
        (V6_HOST.replace("2.0", "3.0", 1), "PTR", f"NXDOMAIN aa:  | {V6} 10 SOA 77"),
        ("8" + V6[1:], "PTR", "REFUSED: "),
        (VIA + ".lab.internal", "AAAA", f"NOERROR aa: {VIA}.lab.internal 60 AAAA fd2e:966:3c02::7:c0a8:114"),
        (VIA + ".lab.internal", "A", f"NOERROR aa:  | {SOA}"),
        (VIA, "AAAA", f"NOERROR aa: {VIA} 60 AAAA fd2e:966:3c02::7:c0a8:114"),
        ("x." + VIA + ".lab.internal", "AAAA", f"NXDOMAIN aa:  | {SOA}"),
        (VIA.replace("20", "256") + ".lab.internal", "AAAA", f"NXDOMAIN aa:  | {SOA}"),
        (VIA + "0000.lab.internal", "AAAA", f"NXDOMAIN aa:  | {SOA}"),
        (VIA_HOST, "PTR", f"NOERROR aa: {VIA_HOST} 60 PTR {VIA}.lab.internal."),
        (VIA_HOST.replace("7.0", "0.0", 1), "PTR", f"NXDOMAIN aa:  | {VIA_ZONE} 10 SOA 77"),  # site 0 is nobody's
        (VIA_ZONE, "SOA", f"NOERROR aa: {VIA_ZONE} 10 SOA 77"),
        ("example.com", "A", "REFUSED: "),
        ("xlab.internal", "A", "REFUSED: "),  # no dot before it
        ("internal", "SOA", "REFUSED: "),
        (".", "NS", "REFUSED: "),
        ("localhost", "AAAA", "NOERROR aa: localhost 60 AAAA ::1"),
    ],
)  # fmt: skip
def test_what_is_said_of_a_name(name: str, kind: str, said: str) -> None:
    assert Asker().ask(name, kind) == said


def test_only_hosts_are_asked_of_the_hub_and_each_once() -> None:
    asker = Asker()
    for name, kind in (("lab.internal", "A"), ("me.lab.internal", "A"), ("a.b.lab.internal", "A"), ("x.com", "A")):
        asker.send(name, kind)
    asker.hub()
    assert asker.asked == []
    asker.answers()
    for client in range(5):
        asker.send("b.lab.internal", "A" if client % 2 else "AAAA", client)
    asker.hub()
    assert asker.asked == [("h", "b")]
    assert [client for client, _ in asker.answers()] == [0, 1, 2, 3, 4]


def test_bare_names_only_by_the_search_domain() -> None:
    asker = Asker(sd=["corp.example"])
    assert asker.ask("b") == "REFUSED: "
    assert asker.ask("b.lab.internal").startswith("NOERROR")
    assert Asker(sd=["corp.example", "lab.internal"]).ask("b") == "NOERROR aa: b 60 A 100.64.0.2"


def test_without_the_hub_it_fails_and_says_no_only_on_the_hubs_word() -> None:
    for reachable, timeout_s in ((True, HUB_TIMEOUT_S), (False, OFFLINE_TIMEOUT_S)):
        asker = Asker()
        asker.send("b.lab.internal", reachable=reachable)
        asker.hub(silent=True)
        due = asker.server.poll_timeout()
        assert due is not None and due == pytest.approx(asker.now + timeout_s)
        asker.server.handle_timeout(due - 0.01)
        assert asker.answers() == []
        asker.server.handle_timeout(due)
        assert asker.answers() == [("c", "SERVFAIL: ")]
        assert asker.server.poll_timeout() is None
    asker.send("nope.lab.internal")
    asker.hub(sure=False)
    assert asker.answers() == [("c", "SERVFAIL: ")]
    assert asker.server.drops[DnsDrop.UNANSWERED] == 2


def test_the_oldest_of_too_many_gives_way() -> None:
    asker = Asker()
    for client in range(WAITING_MAX + 2):
        asker.send(f"h{client}.lab.internal", client=client)
    assert asker.answers() == [(0, "SERVFAIL: "), (1, "SERVFAIL: ")]
    assert asker.server.drops[DnsDrop.TABLE_FULL] == 2


def test_what_is_no_query_is_counted() -> None:
    asker = Asker()
    for data, said in (
        (b"junk", []),
        (dm.HEADER.pack(7, dm.QR, 0, 0, 0, 0), []),
        (dm.HEADER.pack(7, 0, 0, 0, 0, 0), [("c", "FORMERR: ")]),
        (dm.HEADER.pack(7, 2 << 11, 0, 0, 0, 0), [("c", "NOTIMP: ")]),
    ):
        asker.server.handle_query(1.0, data, "c", stream=False, reachable=True)
        assert asker.answers() == said
    assert asker.server.drops[DnsDrop.MALFORMED] == 2 and asker.server.drops[DnsDrop.FORMAT] == 2


RECORDS = [
    ["", "TXT", "of the domain"], ["db", "CNAME", "b"], ["db2", "CNAME", "db"], ["loop", "CNAME", "loop2"],
    ["loop2", "CNAME", "loop"], ["printer", "A", "192.168.7.20"], ["printer", "AAAA", "fd00::20"],
    ["_sip._tcp.site-1", "TXT", 'a "quoted" text'], ["gone", "CNAME", "nope"],
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("printer", "A", "NOERROR aa: printer 60 A 192.168.7.20"),
        ("printer.lab.internal", "AAAA", "NOERROR aa: printer.lab.internal 60 AAAA fd00::20"),
        ("printer.lab.internal", "TXT", f"NOERROR aa:  | {SOA}"),
        ("lab.internal", "TXT", "NOERROR aa: lab.internal 60 TXT of the domain"),
        ("_sip._tcp.site-1.lab.internal", "TXT", 'NOERROR aa: _sip._tcp.site-1.lab.internal 60 TXT a "quoted" text'),
        ("_tcp.site-1.lab.internal", "A", f"NOERROR aa:  | {SOA}"),
        ("site-1.lab.internal", "A", f"NOERROR aa:  | {SOA}"),
        ("db.lab.internal", "A", "NOERROR aa: db.lab.internal 60 CNAME b.lab.internal., "
         "b.lab.internal 60 A 100.64.0.2"),
        ("db.lab.internal", "CNAME", "NOERROR aa: db.lab.internal 60 CNAME b.lab.internal."),
        ("db.lab.internal", "MX", f"NOERROR aa: db.lab.internal 60 CNAME b.lab.internal. | {SOA}"),
        ("db2.lab.internal", "A", "NOERROR aa: db2.lab.internal 60 CNAME db.lab.internal., "
         "db.lab.internal 60 CNAME b.lab.internal., b.lab.internal 60 A 100.64.0.2"),
        ("gone.lab.internal", "A", f"NXDOMAIN aa: gone.lab.internal 60 CNAME nope.lab.internal. | {SOA}"),
    ],
)  # fmt: skip
def test_records_of_the_operators(name: str, kind: str, said: str) -> None:
    assert Asker(rr=RECORDS).ask(name, kind) == said


def test_aliases_in_a_circle_end() -> None:
    assert Asker(rr=RECORDS).ask("loop.lab.internal").startswith("SERVFAIL")


def test_records_that_contradict_are_left_out_and_counted() -> None:
    asker = Asker(rr=[["me", "A", "192.0.2.1"], ["x", "A", "192.0.2.1"], ["x", "CNAME", "b"], ["x", "A", "192.0.2.1"]])
    assert asker.server.drops[DnsDrop.BAD_RECORD] == 3
    assert asker.ask("me.lab.internal") == "NOERROR aa: me.lab.internal 60 A 100.64.0.1"
    assert asker.ask("x.lab.internal") == "NOERROR aa: x.lab.internal 60 A 192.0.2.1"


BAD_NAMES = [
    'a"b',
    "a'b",
    "a\nb",
    "a..b",
    ".a",
    "a.",
    "ä",
    "a" * 64,
    "A",
    "a b",
    "-a",
    "a-",
    "*",
    "a\0",
    "_",
    "a/b",
    "x" * 121,
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_bad_names_are_refused_by_the_device(name: str) -> None:
    for fields in ({"rr": [[name, "A", "192.0.2.1"]]}, {"rr": [["a", "CNAME", name]]}, {"sd": [name]},
                   {"sp": [[name, [[b"\1\2\3\4", 53]]]]}):  # fmt: skip
        if name == "x" * 121 and ("sd" in fields or "sp" in fields):
            continue
        with pytest.raises(ControlError):
            NAMES.check(fields, "dn")


@pytest.mark.parametrize(
    "fields",
    [
        {"rr": [["a", "A", "fd00::1"]]}, {"rr": [["a", "AAAA", "192.0.2.1"]]}, {"rr": [["a", "A", "192.0.2.256"]]},
        {"rr": [["a", "MX", "b"]]}, {"rr": [["a", "CNAME", ""]]}, {"rr": [["a", "TXT", ""]]},
        {"rr": [["a", "TXT", "ä"]]}, {"rr": [["a", "TXT", "x" * 256]]}, {"rr": [["a", "A", "192.0.2.1"]] * 129},
        {"sp": [["a", []]]}, {"sp": [["a", [[b"\1\2\3", 53]]]]}, {"sp": [["a", [[bytes(4), 0]]]]},
        {"sp": [["a", [[bytes(4), 53]] * 5]]}, {"gl": []}, {"sd": ["a"] * 7},
    ],
)  # fmt: skip
def test_bad_settings_are_refused_by_the_device(fields: dict[str, Any]) -> None:
    with pytest.raises(ControlError):
        NAMES.check(fields, "dn")


def test_a_longest_label_is_good() -> None:
    NAMES.check({"rr": [["a" * 63, "A", "192.0.2.1"], ["_" + "a" * 62, "TXT", "x"]]}, "dn")


def test_reverse_zones_as_others_route_them() -> None:
    found = Zone(device_map()).reverse_domains()
    assert found[0] == "64.100.in-addr.arpa" and found[63] == "127.100.in-addr.arpa" and found[64:] == [V6, VIA_ZONE]
    assert len(found) == 66


# Resolvers

CORP, PUBLIC = packed("10.20.0.53"), packed("192.0.2.53")


class Forwarding(Asker):
    """With a split domain, and resolvers for the rest."""

    def __init__(self, **names: Any) -> None:
        super().__init__(sp=[["corp.example", [[CORP, 53], [packed("10.20.1.53"), 5353]]]], **names)
        self.server.found = [(PUBLIC, 53)]

    def answer(self, *addresses: str, rcode: int = 0, tc: bool = False) -> None:
        """The last ask, answered by whoever was asked."""
        self.server.drain_ends()
        [ask] = self.server.drain_asks()
        self.server.handle_reply(self.now, ask.number, self.reply(ask.message, *addresses, rcode=rcode, tc=tc))

    @staticmethod
    def reply(message: bytes, *addresses: str, rcode: int = 0, tc: bool = False) -> bytes:
        end = dm._skip_name(message, 12) + 4
        body = b"".join(
            b"\xc0\x0c" + struct.pack(">HHIH", dm.A if len(each) == 4 else dm.AAAA, 1, 60, len(each)) + each
            for each in map(packed, addresses)
        )
        flags = dm.QR | dm.RD | dm.RA | rcode | (dm.TC if tc else 0)
        return message[:2] + dm.HEADER.pack(0, flags, 1, len(addresses), 0, 0)[2:] + message[12:end] + body

    def look_up(self, name: str, *addresses: str, **options: Any) -> str:
        self.send(name, **options)
        self.answer(*addresses)
        [(_, said)] = self.answers()
        return said


def test_a_split_domain_goes_to_its_resolvers_and_may_be_private() -> None:
    asker = Forwarding()
    asker.send("www.Corp.Example")
    [ask] = asker.server.drain_asks()
    assert ask.server == (CORP, 53) and not ask.stream
    asker.server.handle_reply(1.0, ask.number, asker.reply(ask.message, "10.20.0.9", "100.64.0.2"))
    assert asker.answers() == [("c", "NOERROR: www.Corp.Example 60 A 10.20.0.9, www.Corp.Example 60 A 100.64.0.2")]
    assert asker.server.drain_ends() == [ask.number]


def test_the_network_s_own_names_never_leave() -> None:
    asker = Forwarding()
    asker.server.zone.split[(b"internal",)] = [(CORP, 53)]
    asker.server.zone.split[()] = [(CORP, 53)]
    for name, kind in [("b.lab.internal", "A"), ("nope.lab.internal", "A"), ("x.y.lab.internal", "TXT"),
                       ("9.0.64.100.in-addr.arpa", "PTR"), (V6_HOST, "PTR"), ("nope", "A"),
                       ("lab.internal", "MX"), ("lab.internal", "AXFR")]:  # fmt: skip
        asker.send(name, kind)
    asker.hub(silent=True)
    asker.server.handle_timeout(asker.now + 60)
    assert asker.server.drain_asks() == [] and len(asker.answers()) == 8


HIDDEN = ["100.64.0.2", "100.127.255.255", "100.100.100.100", "fd01:2345:6789::2", "127.0.0.1", "0.0.0.0", "::1", "::",
          "::ffff:100.64.0.2", "64:ff9b::6440:2", "::ffff:127.0.0.1", "fd2e:966:3c02::7:c0a8:114"]  # fmt: skip
PRIVATE = ["10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.0.1", "169.254.1.1", "fd99::1", "fc00::1", "fe80::1",
           "::ffff:10.0.0.1", "64:ff9b::a00:1"]  # fmt: skip


def test_no_private_answers_for_public_names() -> None:
    asker = Forwarding()
    asker.server.local = [(b"office", b"example")]
    for address in HIDDEN + PRIVATE:
        assert asker.look_up("evil.example", "192.0.2.9", address) == "NOERROR: ", address
    assert asker.server.drops[DnsDrop.REBIND] == len(HIDDEN + PRIVATE)
    for address in HIDDEN:  # these not even where a name is the LAN's
        assert asker.look_up("nas.lan", address) == "NOERROR: ", address
    for name in ("nas.lan", "nas.home.arpa", "nas", "nas.office.example"):
        for address in PRIVATE:
            kind = "A" if ":" not in address else "AAAA"
            flat = ip_address(address)
            asker.server.zone.bare = False
            assert asker.look_up(name, address, kind=kind) == f"NOERROR: {name} 60 {kind} {flat}"
    for address in ("192.0.2.9", "2001:db8::9", "100.63.255.255", "100.128.0.0", "172.32.0.0", "11.0.0.0"):
        assert address.rpartition(":")[2] in asker.look_up("good.example", address)


def test_an_emptied_answer_says_that_it_is_blocked() -> None:
    asker = Forwarding()
    asker.send("evil.example", edns=1_232)
    asker.answer("10.0.0.1")
    [(_, data)] = asker.server.drain_answers()
    assert data.endswith(bytes.fromhex("000f0002000f"))  # RFC 8914


def test_forgeries_are_counted_and_waited_out() -> None:
    asker = Forwarding()
    asker.send("WwW.good.example")
    [ask] = asker.server.drain_asks()
    spelt = ask.message[12:]
    assert spelt.lower().startswith(b"\3www\4good\7example\0") and spelt[:17] != b"\3www\4good\7example\0"
    good = asker.reply(ask.message, "192.0.2.1")
    other_id = bytes((good[0] ^ 1,)) + good[1:]
    lower = good[:12] + good[12:30].swapcase() + good[30:]
    for forged in (other_id, lower):
        asker.server.handle_reply(1.0, ask.number, forged)
    asker.server.handle_reply(1.0, ask.number, good[:-1])
    asker.server.handle_reply(1.0, ask.number + 1, good)  # to a socket that there is not
    assert asker.answers() == []
    assert (asker.server.drops[DnsDrop.REPLY_MISMATCH], asker.server.drops[DnsDrop.REPLY_MALFORMED]) == (2, 1)
    asker.server.handle_reply(1.0, ask.number, good)
    assert asker.answers() == [("c", "NOERROR: WwW.good.example 60 A 192.0.2.1")]
    asker.server.handle_reply(1.0, ask.number, good)
    assert asker.answers() == []


def test_ids_and_spellings_differ() -> None:
    asker = Forwarding()
    seen = set()
    for _ in range(50):
        asker.send("www.good.example")
        [ask] = asker.server.drain_asks()
        seen.add((ask.message[:2], ask.message[12:30]))
    assert len(seen) == 50


def test_a_silent_or_unable_resolver_is_followed_by_the_next_and_in_lower_case() -> None:
    asker = Forwarding()
    asker.send("A.corp.example")
    servers, spelt = [], []
    for turn in range(4):
        asker.server.drain_ends()
        [ask] = asker.server.drain_asks()
        servers.append(ask.server[1])
        spelt.append(ask.message[12:27])
        if turn == 0:
            asker.server.handle_timeout(asker.now + UDP_TIMEOUT_S)
        elif turn == 1:
            asker.server.handle_failed(asker.now + UDP_TIMEOUT_S, ask.number)
        elif turn == 2:
            asker.server.handle_reply(asker.now, ask.number, asker.reply(ask.message, rcode=dm.REFUSED))
        else:
            asker.server.handle_reply(asker.now, ask.number, asker.reply(ask.message, "10.0.0.1"))
    assert servers == [53, 5353, 53, 5353]
    assert spelt[2] == spelt[3] == b"\1a\4corp\7example"
    assert asker.answers() == [("c", "NOERROR: A.corp.example 60 A 10.0.0.1")]


def test_what_a_resolver_cannot_is_said_when_none_can() -> None:
    asker = Forwarding()
    asker.send("a.corp.example")
    for _ in range(4):
        asker.answer(rcode=dm.REFUSED)
    assert asker.answers() == [("c", "REFUSED: ")]


def test_nobody_answers_in_time() -> None:
    asker = Forwarding()
    asker.send("a.good.example")
    while (due := asker.server.poll_timeout()) is not None:
        asker.server.handle_timeout(due)
        asker.server.drain_asks()
        assert due <= asker.now + DEADLINE_S
    assert asker.answers() == [("c", "SERVFAIL: ")]


def test_a_truncated_answer_is_asked_for_by_tcp() -> None:
    asker = Forwarding()
    asker.send("big.good.example")
    [first] = asker.server.drain_asks()
    asker.server.handle_reply(1.0, first.number, asker.reply(first.message, tc=True))
    assert asker.server.drain_ends() == [first.number]
    [second] = asker.server.drain_asks()
    assert second.stream and second.server == first.server
    asker.server.handle_reply(1.0, second.number, asker.reply(second.message, *["192.0.2.1"] * 40))
    [(_, said)] = asker.answers()
    assert said == "NOERROR tc: "  # 512 bytes without EDNS: the client comes by TCP
    asker.send("big.good.example", stream=True)
    asker.answer(*["192.0.2.1"] * 40)
    [(_, said)] = asker.answers()
    assert said.count("192.0.2.1") == 40


def test_the_table_of_forwards_is_bounded() -> None:
    asker = Forwarding()
    for client in range(FORWARDS_MAX + 1):
        asker.send("a.good.example", client=client)
    assert asker.answers() == [(0, "SERVFAIL: ")]
    assert len(asker.server.drain_asks()) == FORWARDS_MAX and len(asker.server.drain_ends()) == 1


def test_without_recursion_desired_nothing_is_forwarded() -> None:
    asker = Forwarding()
    asker.send("a.good.example", flags=0)
    assert asker.answers() == [("c", "REFUSED: ")]


def test_resolvers_of_the_hub_come_before_those_found() -> None:
    asker = Forwarding(gl=[[packed("9.9.9.9"), 53]])
    asker.send("a.good.example")
    [ask] = asker.server.drain_asks()
    assert ask.server == (packed("9.9.9.9"), 53)


# Whatever happens

WORDS = st.sampled_from(
    ["b", "me", "nope", "db", "lab", "internal", "corp", "example", "64", "100", "2", "in-addr", "arpa", "ip6", "f",
     "d", "_x", "localhost", "192-168-1-20-via-7", "1-2-3-4-via-70000"]
)  # fmt: skip
ADDRESSES = st.sampled_from(["192.0.2.1", "10.0.0.1", "100.64.0.2"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.lists(WORDS, max_size=5), st.sampled_from(sorted(TYPES)), st.booleans()),
        st.tuples(st.just("bytes"), st.binary(max_size=60)),
        st.tuples(st.just("hub"), st.booleans(), st.booleans()),
        st.tuples(st.just("reply"), ADDRESSES, st.integers(0, 5), st.booleans()),
        st.tuples(st.just("garble"), st.integers(0, 60), st.integers(0, 255)),
        st.tuples(st.just("fail")),
        st.tuples(st.just("wait"), st.floats(0, 5)),
    ),
    max_size=40,
)


@settings(max_examples=200, deadline=None)
@given(STEPS)
def test_every_query_is_answered_once_and_nothing_of_ours_leaves(steps: list[tuple[Any, ...]]) -> None:
    asker = Forwarding(rr=RECORDS)
    server, sent, answered = asker.server, 0, []
    open_asks: dict[int, Any] = {}

    def carry() -> None:
        for number in server.drain_ends():
            open_asks.pop(number, None)
        for ask in server.drain_asks():
            name = ask.message[12 : dm._skip_name(ask.message, 12)].lower()
            assert not name.endswith((b"\3lab\10internal\0", b"\00264\003100\7in-addr\4arpa\0"))
            open_asks[ask.number] = ask
        answered.extend(server.drain_answers())

    for step in steps:
        if step[0] == "ask":
            sent += 1
            asker.send(".".join(step[1]) or ".", step[2], sent, edns=1_232 * step[3])
        elif step[0] == "bytes":
            server.handle_query(asker.now, step[1], "noise", stream=False, reachable=True)
        elif step[0] == "hub":
            asker.hub(sure=step[1], silent=step[2])
        elif step[0] == "wait":
            asker.now += step[1]
            server.handle_timeout(asker.now)
        elif open_asks:
            number, ask = next(iter(open_asks.items()))
            if step[0] == "fail":
                server.handle_failed(asker.now, number)
            else:
                reply = bytearray(asker.reply(ask.message, "192.0.2.1" if step[0] == "garble" else step[1]))
                if step[0] == "garble":
                    reply[min(step[1], len(reply) - 1)] = step[2]
                elif step[3]:
                    reply = bytearray(asker.reply(ask.message, tc=True))
                else:
                    reply[3] |= step[2]
                server.handle_reply(asker.now, number, bytes(reply))
        carry()
    for _ in range(20):
        asker.now += 5
        server.handle_timeout(asker.now)
        carry()
    assert server.poll_timeout() is None and not open_asks
    assert sorted(client for client, _ in answered if isinstance(client, int)) == list(range(1, sent + 1))
    for client, data in answered:
        if client != "noise":
            dm.scan(data)
