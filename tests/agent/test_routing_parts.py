"""What stands behind routes on a device: wishes on flash, sysctls, nftables, rules, and look-ups past the tunnel."""

from __future__ import annotations

import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.rtnl.fibmsg import fibmsg

from edgeagent import markedlookup
from edgeagent.cli_routes import show_routes
from edgeagent.io import forwarding, tayga
from edgeagent.io import rtnetlink as rt
from edgeagent.io.forwarding import NftError, Ruleset, Sysctls
from edgeagent.io.rules import Rule
from edgeagent.proto import prefixes
from edgeagent.proto.prefixes import EXIT
from edgeagent.proto.refusals import ControlError
from edgeagent.proto.routewish import RouteWish
from edgeagent.routing import Routing, describe

SITE, SITE_6 = prefixes.parse("192.168.7.0/24"), prefixes.parse("fd00:7::/64")
NETWORKS = (prefixes.parse("100.64.0.0/10"), prefixes.parse("fd12:3456:789a::/48"))


# wishes


def test_a_wish_is_kept_as_it_was() -> None:
    wish = RouteWish()
    wish.change({"advertise": ["192.168.7.0/24", "fd00:7::/64"], "snat": False, "accept": False, "offers_exit": True})
    again = RouteWish.decode(wish.encode())
    assert again.offered == [SITE, SITE_6, *EXIT]
    assert (again.snat, again.accept, again.offers_exit, again.exit_node) == (False, False, True, "")
    again.change({"offers_exit": False, "exit_node": "gw-1", "allow_lan": True})
    last = RouteWish.decode(again.encode())
    assert (last.exit_node, last.allow_lan, last.offered) == ("gw-1", True, [SITE, SITE_6])
    wish.change({"advertise": ["10.77.1.0/24=192.168.7.0/24", "10.0.0.0/8"]})
    mapped = RouteWish.decode(wish.encode())
    assert mapped.real == {prefixes.parse("10.77.1.0/24"): SITE} and len(mapped.advertise) == 2
    assert mapped.translated == {}
    with pytest.raises(ControlError):
        RouteWish.decode(wish.encode()[:-1])


def test_ipv4_prefixes_under_ipv6_are_kept_with_what_they_are_inside() -> None:
    wish = RouteWish()
    own = "fd12:3456:789a:1:0:7:c0a8:700/120"
    wish.change(
        {"advertise": ["192.168.7.0/24@7", "10.0.0.0/8 via 7", "10.77.1.0/24=192.168.7.0/24", "192.168.7.0/24"]}
    )
    again = RouteWish.decode(wish.encode())
    assert again.translated == {
        prefixes.parse("fd2e:966:3c02::7:c0a8:700/120"): SITE,
        prefixes.parse("fd2e:966:3c02::7:a00:0/104"): prefixes.parse("10.0.0.0/8"),
    }
    assert len(again.real) == 3 and len(again.offered) == 4
    wish.change({"advertise": ["fd2e:966:3c02::7:c0a8:700/120"]})  # the same, as the hub shows it
    assert wish.translated == {prefixes.parse("fd2e:966:3c02::7:c0a8:700/120"): SITE}
    wish.change({"advertise": [f"{own}=192.168.7.0/24"]})
    assert wish.translated == {prefixes.parse(own): SITE}


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"advertise": ["0.0.0.0/0"]}, "0.0.0.0/0: a default route: it is an exit node that has those"),
        ({"advertise": ["192.168.7.1/24"]}, r"bits are set behind the prefix\. Write 192\.168\.7\.0/24"),
        ({"advertise": ["127.0.0.0/8"]}, "loopback"),
        ({"advertise": ["10.0.0.0/8"] * 65}, "at most 64 prefixes"),
        ({"advertise": "10.0.0.0/8"}, "at most 64 prefixes"),
        ({"advertise": [7]}, "want a prefix"),
        ({"advertise": ["10.7.0.0/16=192.168.7.0/24"]}, "of one IP version and one length"),
        ({"advertise": ["10.7.7.0/24=127.0.0.0/24"]}, "loopback"),
        ({"advertise": ["10.1.1.0/24=10.9.9.0/24", "10.2.2.0/24=10.9.9.0/24"]}, "offered under two prefixes"),
        (
            {"advertise": ["10.1.1.0/24=10.9.9.0/24", "10.1.0.0/16=172.16.0.0/16"]},
            "10.1.1.0/24 is another prefix at the site",
        ),
        ({"advertise": ["192.168.7.0/24@7", "10.0.0.0/8@8"]}, "one number of a site"),
        ({"advertise": ["192.168.7.0/24@0"]}, "a site from 1 to 65535"),
        ({"advertise": ["127.0.0.0/8@7"]}, "127.0.0.0/8@7: loopback"),
        ({"advertise": ["0.0.0.0/0@7"]}, "a default route"),
        ({"advertise": ["fd2e:966:3c02::/48"]}, "only IPv4 prefixes of sites"),
        ({"advertise": ["fd00::7:c0a8:700/120=192.168.8.0/24"]}, "192.168.8.0/24 in its last 32 bits"),
        ({"advertise": ["fd00::7:c0a8:0/112=192.168.7.0/24"]}, "96 bits longer"),
        ({"advertise": ["fd00:0:0:0:100:7:c0a8:700/120=192.168.7.0/24"]}, "bits 64 to 71 zero"),
        ({"advertise": ["64:ff9b::c0a8:700/120=192.168.7.0/24"]}, "RFC 6052"),
        ({"advertise": ["192.168.7.0/24@7=192.168.8.0/24"]}, "in its last 32 bits"),
        ({"advertise": ["192.168.7.0/24@7=fd00::/120"]}, "of one IP version and one length"),
        ({"advertise": ["10.7.0.0/24=fd00::/120"]}, "of one IP version and one length"),
        ({"snat": 1}, "not true or false"),
        ({"x": True}, "no such setting"),
        ({"exit_node": "a.b"}, "want the host name"),
        ({"exit_node": "gw", "offers_exit": True}, "turn one of them off"),
    ],
)
def test_a_wrong_wish_changes_nothing(asked: dict[str, Any], why: str) -> None:
    wish = RouteWish()
    with pytest.raises(ValueError, match=why):
        wish.change({"accept": False, **asked})
    assert wish.encode() == RouteWish().encode()


@given(st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16), st.integers(0, 128))
def test_prefixes_are_read_as_they_are_written(address: bytes, length: int) -> None:
    length = min(length, 8 * len(address))
    prefix = (prefixes.mask(address, length), length)
    assert prefixes.parse(prefixes.to_text(prefix)) == prefix
    assert prefixes.holds(prefix, address) and prefixes.holds(prefix, prefixes.last(prefix))
    assert prefixes.covers(prefix, (address, 8 * len(address)))


def test_what_is_shown_of_a_device_that_is_no_member() -> None:
    wish = RouteWish()
    assert "Offer some: edgeagent routes set" in show_routes(describe(wish))
    wish.change({"advertise": ["192.168.7.0/24"], "snat": False, "accept": False})
    shown = show_routes(describe(wish, problems=["nft is not installed"]))
    assert "192.168.7.0/24" in shown and "waits for approval" in shown and "PROBLEM  nft is not" in shown
    wish.change({"advertise": ["192.168.7.0/24@7"]})
    assert "offers   192.168.7.0/24 via 7" in (shown := show_routes(describe(wish)))
    assert ", as fd2e:966:3c02::7:c0a8:700/120" in shown
    assert "edgeagent exit-node set NAME" in show_routes(describe(wish), only_exit=True)


# sysctls


def test_sysctls_are_put_back_as_they_were_the_last_first(tmp_path: Path) -> None:
    for name, value in {"a": "0", "b": "1", "c": "2"}.items():
        (tmp_path / name).write_text(value + "\n")
    sysctls = Sysctls({}, str(tmp_path))
    assert sysctls.note("a", "1") and sysctls.note("c", "5")
    assert not sysctls.note("b", "1") and not sysctls.note("gone", "1")
    for name, value in (("a", "1"), ("c", "5")):
        sysctls.set(name, value)
    assert sysctls.note("a", "7")
    sysctls.set("a", "7")
    assert sysctls.before == {"a": "0", "c": "2"}
    later = Sysctls(dict(sysctls.before) | {"gone": "1"}, str(tmp_path / "none"))
    later.restore()
    assert later.before == {}
    sysctls.restore(["c"])
    assert (tmp_path / "c").read_text() == "2" and sysctls.before == {"a": "0"}
    sysctls.restore()
    assert (tmp_path / "a").read_text() == "0"


# nftables


def ruleset(**changes: Any) -> str:
    fields: dict[str, Any] = {"networks": NETWORKS, "prefixes": [SITE, SITE_6], "clients": [], "exits": False}
    return Ruleset("edge0", **{**fields, "snat": True, **changes}).text()


def test_a_router_lets_through_what_it_routes_and_no_more() -> None:
    text = ruleset()
    assert 'iifname "edge0" ip daddr { 192.168.7.0/24 } accept\n    iifname "edge0" drop' in text
    assert 'ip6 saddr fd12:3456:789a::/48 ip6 daddr { fd00:7::/64 } oifname != "edge0" masquerade' in text
    assert "masquerade" not in ruleset(snat=False)
    assert text.startswith("table ip edgeagent_edge0\ndelete table ip edgeagent_edge0\n")


def test_a_site_under_another_prefix() -> None:
    shown = prefixes.parse("10.77.1.0/24")
    text = ruleset(prefixes=[shown], real={shown: SITE})
    assert "dnat ip prefix to ip daddr map { 10.77.1.0/24 : 192.168.7.0/24 }" in text
    assert "snat ip prefix to ip saddr map { 192.168.7.0/24 : 10.77.1.0/24 }" in text
    assert "ip saddr 100.64.0.0/10 ip daddr { 192.168.7.0/24 }" in text
    refused = 'iifname "edge0" ip daddr 192.168.7.0/24 drop'
    assert text.index("ct status dnat accept") < text.index(refused) < text.index("192.168.7.0/24 } accept")


def test_what_is_translated_has_one_way_and_one_source() -> None:
    shown = prefixes.parse("fd2e:966:3c02::7:c0a8:700/120")
    ends = tayga.Ends("edge0")
    translated = forwarding.Translated(ends.interface, ends.source, {shown: SITE})
    v4, v6 = ruleset(prefixes=[], snat=False, translated=translated).split("table ip6 edgeagent_edge0 {")
    for rule in (
        'iifname "edge0-via" oifname { "edge0", "edge0-via" } drop',
        'iifname "edge0-via" ip daddr != { 192.168.7.0/24 } drop',
        'oifname "edge0-via" ct state != { established, related } drop',
    ):
        assert v4.index(rule) < v4.index("ct state established,related accept")
    assert 'iifname "edge0-via" ip saddr 198.19.84.2 accept\n    iifname "edge0-via" drop' in v4
    assert 'ip saddr 198.19.84.2 oifname != "edge0-via" masquerade' in v4  # whatever --snat says
    for rule in ('iifname "edge0-via" oifname != "edge0" drop', 'oifname "edge0-via" iifname != "edge0" drop'):
        assert v6.index(rule) < v6.index("ct state established,related accept")
    only = (
        'iifname "edge0" oifname "edge0-via" ip6 saddr fd12:3456:789a::/48 ip6 daddr { fd2e:966:3c02::7:c0a8:700/120 } '
        'accept\n    iifname "edge0" ip6 daddr { fd2e:966:3c02::7:c0a8:700/120 } drop\n    iifname "edge0-via" drop'
    )
    assert only in v6 and 'oifname "edge0-via" snat to fd2e:966:3c02::c613:5402' in v6
    # Also an exit node, which leads to all that is not private, loses nothing of it to the internet
    through = ruleset(exits=True, prefixes=[], translated=translated)
    assert through.index("c0a8:700/120 } drop") < through.index("{ fc00::/7, fe80::/10 } drop")
    assert through.index("snat to fd2e:966:3c02::c613:5402") < through.index("ip6 saddr fd12:3456:789a::/48 oifname")
    assert "via" not in ruleset()


def test_an_exit_node_leads_to_no_neighbour_that_is_not_routed() -> None:
    text = ruleset(exits=True, prefixes=[SITE])
    routed, private = (
        text.index("192.168.7.0/24 } accept"),
        text.index("169.254.0.0/16, 172.16.0.0/12, 192.168.0.0/16 }"),
    )
    assert routed < private
    assert 'ip saddr 100.64.0.0/10 oifname != "edge0" masquerade' in text


def test_inside_the_network_only_clients_are_passed_on() -> None:
    assert 'iifname "edge0" oifname "edge0" drop' in ruleset()
    text = ruleset(clients=[bytes((100, 64, 3, 3))], prefixes=[])
    assert text.index("ip saddr { 100.64.3.3 } accept") < text.index('iifname "edge0" oifname "edge0" drop')
    assert "masquerade" not in text


def test_names_of_interfaces_are_names_of_tables() -> None:
    names = [forwarding.table_name(name) for name in ("edge0", "edge-0", "edge_0", "edge.0", "edge_2d_0")]
    assert len(set(names)) == len(names)
    assert all(name.replace("_", "").isalnum() for name in names)


def program(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_what_nft_says_is_told(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    good = program(tmp_path / "good", f"cat > {taken}")
    forwarding.nft("table ip x\n", find=lambda: good)
    assert taken.read_text() == "table ip x\n"
    bad = program(tmp_path / "bad", "cat >/dev/null; echo 'x:1: Error: No such file' >&2; exit 1")
    with pytest.raises(NftError, match="nft: x:1: Error: No such file"):
        forwarding.nft("table ip x\n", find=lambda: bad)
    with pytest.raises(NftError, match=r"nft is not installed\. Install the package nftables"):
        forwarding.nft("", find=lambda: None)
    with pytest.raises(NftError, match="No such file"):
        forwarding.nft("", find=lambda: str(tmp_path / "none"))
    deaf = program(tmp_path / "deaf", "exit 3")
    with pytest.raises(NftError):
        forwarding.nft("x" * 200_000, find=lambda: deaf)


def test_an_nft_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarding, "NFT_TIMEOUT_S", 0.2)
    hangs = program(tmp_path / "hangs", "cat >/dev/null; exec sleep 60")
    with pytest.raises(NftError, match="no answer"):
        forwarding.nft("", find=lambda: hangs)


# rules


def test_rules_are_what_another_implementation_reads() -> None:
    body = Rule(2, 5301, 5300, unmarked=(0x6E000000, 0xFF000000)).encode()
    message = fibmsg(rt.request(rt.RTM_NEWRULE, 0, 1, body))
    message.decode()
    assert (message["family"], message["action"], message["flags"]) == (2, 1, 2)
    assert message.get_attr("FRA_PRIORITY") == 5301 and message.get_attr("FRA_TABLE") == 5300
    assert message.get_attr("FRA_FWMARK") == 0x6E000000 and message.get_attr("FRA_FWMASK") == 0xFF000000
    own = fibmsg(rt.request(rt.RTM_NEWRULE, 0, 1, Rule(10, 5300, 254, suppress=0).encode()))
    own.decode()
    assert own.get_attr("FRA_SUPPRESS_PREFIXLEN") == 0 and own["flags"] == 0


# look-ups


def answer(query: bytes, *records: tuple[int, bytes], flags: int = 0x8180, count: int | None = None) -> bytes:
    rows = b"".join(
        b"\xc0\x0c" + kind.to_bytes(2, "big") + b"\0\1" + bytes(4) + len(data).to_bytes(2, "big") + data
        for kind, data in records
    )
    number = len(records) if count is None else count
    return query[:2] + flags.to_bytes(2, "big") + b"\0\1" + number.to_bytes(2, "big") + bytes(4) + query[12:] + rows


def test_addresses_are_read_out_of_an_answer() -> None:
    query = markedlookup.write_query(7, b"hub.example", 1)
    assert query[12:] == b"\3hub\7example\0\0\1\0\1"
    good = answer(query, (5, b"\3www\xc0\x0c"), (1, bytes((192, 0, 2, 1))), (28, bytes(16)), (1, bytes(3)))
    assert markedlookup.read_answer(query, good) == [bytes((192, 0, 2, 1))]
    assert markedlookup.read_answer(query, answer(query, flags=0x8183)) == []  # there is no such name
    for wrong in (
        *(b"\0\x08" + good[2:], answer(query, flags=0x0180), answer(query, flags=0x8182), good[:20], b""),
        good.replace(b"example", b"exampla"),
    ):
        assert markedlookup.read_answer(query, wrong) is None
    assert markedlookup.read_answer(query, answer(query, count=9)) == []
    for name in (b"", b"a..b", b"x" * 64):
        with pytest.raises(ValueError, match="no DNS name"):
            markedlookup.write_query(1, name, 1)


@given(st.binary(max_size=64))
def test_no_answer_breaks_the_reader(data: bytes) -> None:
    query = markedlookup.write_query(7, b"hub.example", 28)
    whole = answer(query, count=5) + data
    found = markedlookup.read_answer(query, whole)
    assert found is not None and all(len(address) == 16 for address in found)
    markedlookup.read_answer(query, data)


def test_who_is_asked(tmp_path: Path) -> None:
    stub, real = tmp_path / "stub", tmp_path / "real"
    stub.write_text("nameserver 127.0.0.53\nsearch lab\n")
    real.write_text("# of somebody\nnameserver 192.0.2.53\nnameserver ::1\nnameserver 2001:db8::53\nnameserver\n")
    assert markedlookup.servers((str(tmp_path / "none"), str(stub), str(real))) == ["192.0.2.53", "2001:db8::53"]
    hosts = tmp_path / "hosts"
    hosts.write_text(
        "127.0.0.1 localhost\n192.0.2.1 Hub.example hub # ours\nfe80::1%eth0 hub\n2001:db8::1 hub.example\n"
    )
    found = markedlookup._from_hosts(b"hub.EXAMPLE", str(hosts))
    assert [address for _, address in found] == ["192.0.2.1", "2001:db8::1"]
    assert markedlookup._from_hosts(b"other", str(hosts)) == []


def test_without_its_table_nothing_is_forwarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A switch that is on before somebody looks at what comes in opens the site to every peer."""
    switch = tmp_path / "net/ipv4/conf/mesh0/forwarding"
    switch.parent.mkdir(parents=True)
    switch.write_text("0")
    loaded: list[str] = []

    def refuse(script: str) -> None:
        assert switch.read_text() == "0"
        if not loaded:
            loaded.append(script)
            raise NftError("nft: no such kernel module")

    monkeypatch.setattr(forwarding, "find_nft", lambda: "/usr/sbin/nft")
    monkeypatch.setattr(forwarding, "nft", refuse)
    routing: Any = Routing.__new__(Routing)
    device_map = SimpleNamespace(approved=[SITE], clients=[], v4=NETWORKS[0], v6=NETWORKS[1])
    routing._node = SimpleNamespace(map=device_map)
    routing._tunnel = SimpleNamespace(tun=SimpleNamespace(name="mesh0", index=7), look=lambda: None)
    routing._sysctls, routing.problems, routing._applied, routing._tables = Sysctls({}, str(tmp_path)), {}, None, False
    routing._note = lambda: None
    routing._wanted_sysctls = lambda *prefixes, **options: {"net/ipv4/conf/mesh0/forwarding": "1"}
    wish = RouteWish()
    wish.change({"advertise": ["192.168.7.0/24"]})
    routing._be_router(wish, anew=False)
    assert switch.read_text() == "0" and "router" in routing.problems
    routing._be_router(wish, anew=False)
    assert switch.read_text() == "1"
