"""What the kernel is told of a policy, beside the verdicts of the policy itself; and that nft takes it."""

from __future__ import annotations

import re
import shutil
import subprocess
from types import SimpleNamespace
from typing import Any

import pytest

from edgeagent.engine.kernel.filter import CHAINS_SPARE_MAX, Change, Filter
from edgeagent.engine.kernel.rights import allow_all_of, services, widest
from edgeagent.engine.kernel.ruleset import removal, table_name
from edgeagent.proto.allowedips import AllowedIPs
from edgeagent.proto.policy import Identity, Slice
from tests.policy_kit import ME4, ME6, PEER4, PEER6, FakePeer

NETWORKS = [(bytes((100, 64, 0, 0)), 10), (bytes.fromhex("fd00") + bytes(14), 48)]
OTHER4 = bytes((100, 64, 0, 3))
LAN = bytes((192, 168, 7, 0)), 24
ANYWHERE = [0, 0, 65_535]


def device(inbound: list[Any], outbound: list[Any], peers: list[FakePeer], own: tuple[bytes, ...] = (ME4, ME6)) -> Any:
    made: Any = SimpleNamespace(own=frozenset(own), peers={}, allowed_ips=AllowedIPs(10_000))
    allow(made, inbound, outbound)
    for peer in peers:
        meet(made, peer)
    return made


def allow(made: Any, inbound: list[Any], outbound: list[Any]) -> None:
    policy = Slice({"v": 1, "u": "", "in": inbound, "out": outbound}, [], sorted(made.own), NETWORKS)
    made.firewall = SimpleNamespace(policy=policy)


def meet(made: Any, peer: FakePeer, *behind: tuple[bytes, int]) -> None:
    made.peers[peer.public_key] = peer
    for address in peer.record.addresses if peer.record is not None else ():
        made.allowed_ips.insert(address, 8 * len(address), peer)
    for address, length in behind:
        made.allowed_ips.insert(address, length, peer)


def retag(peer: FakePeer, tags: list[str]) -> None:
    peer.record = SimpleNamespace(**{**vars(peer.record), "tags": tags})


def nobody(*own: bytes) -> Any:
    return SimpleNamespace(own=frozenset(own), firewall=None, peers={}, allowed_ips=AllowedIPs(10))


def change_of(made: Any) -> Change:
    found = Filter("w").look(made)
    assert found is not None
    return found


def text_of(made: Any) -> str:
    script = change_of(made).script
    assert script is not None
    return script


def chain(text: str, name: str) -> list[str]:
    found = re.search(rf"  chain {name} {{\n(.*?)\n?  }}", text, re.DOTALL)
    assert found is not None
    return [line.strip() for line in found[1].splitlines() if "type filter hook" not in line]


def rights(text: str) -> dict[str, list[str]]:
    """Rules by `map key`."""
    found = {}
    for name, said in re.findall(r"add element inet \S+ (\w+) { (.*) }", text):
        for each in said.split(", "):
            key, _, number = each.rpartition(" : jump ")
            found[f"{name} {key}"] = chain(text, number)
    return found


def test_without_a_policy_only_our_own_addresses_are_reached() -> None:
    text = text_of(nobody(ME4, ME6))
    assert chain(text, "input") == [
        'iifname != "w" accept',
        "iifname != @alive drop",
        "ip daddr != { 100.64.0.1 } drop",
        "ip6 daddr != { fd00::1 } drop",
        "accept",
    ]
    assert chain(text, "forward") == ['iifname "w" drop', 'oifname "w" drop']
    assert chain(text, "output") == ['oifname != "w" accept', "oifname != @alive drop"]


def test_without_addresses_nothing_is() -> None:
    assert chain(text_of(nobody()), "input")[2:4] == ["meta nfproto ipv4 drop", "meta nfproto ipv6 drop"]


def test_rules_become_peers_addresses_and_ports() -> None:
    peers = [FakePeer("a", [PEER4, PEER6], ["tag:web"]), FakePeer("b", [OTHER4], ["tag:db"])]
    inbound = [
        [["tag:web"], ["me"], [[6, 80, 90], [6, 85, 100], [6, 443, 443], [1, 0, 0], [58, 0, 0]]],
        [["tag:db"], ["me"], [ANYWHERE]],
    ]
    text = text_of(device(inbound, [[["tag:db"], [[17, 53, 53]]]], peers))
    web = [
        "meta l4proto 1 accept",
        "ct direction original tcp dport { 80-100, 443 } accept",
        "ct direction reply tcp sport { 80-100, 443 } accept",
        "meta l4proto 58 accept",
    ]
    assert rights(text) == {
        "in4 100.64.0.2 . 100.64.0.1": web,
        "in6 fd00::2 . fd00::1": web,
        "in4 100.64.0.3 . 100.64.0.1": [f"meta l4proto {each} accept" for each in (1, 6, 17, 58, 132)],
        "out4 100.64.0.3": [
            "ct direction original udp dport { 53 } accept",
            "ct direction reply udp sport { 53 } accept",
        ],
    }
    assert len(re.findall(r"chain c\d+ {", text)) == 3  # one for each list of services, whoever has it
    assert chain(text, "input")[4:] == [
        "ct state related meta l4proto { 1, 58 } accept",
        "ct direction original ip saddr . ip daddr vmap @in4",
        "ct direction original ip6 saddr . ip6 daddr vmap @in6",
        "ct direction reply ip saddr vmap @out4",
        "ct direction reply ip6 saddr vmap @out6",
        "drop",
    ]
    assert chain(text, "output")[2:] == [
        "ct state related meta l4proto { 1, 58 } accept",
        "ct direction original ip daddr vmap @out4",
        "ct direction original ip6 daddr vmap @out6",
        "ct direction reply ip daddr . ip saddr vmap @in4",
        "ct direction reply ip6 daddr . ip6 saddr vmap @in6",
        "meta l4proto tcp reject with tcp reset",
        "reject with icmpx type admin-prohibited",
    ]


def test_prefixes_behind_peers_are_judged_by_their_addresses() -> None:
    peer = FakePeer("a", [PEER4], ["tag:router"])
    inbound = [[[[*LAN]], ["me"], [[6, 22, 22]]], [["tag:router"], ["me"], [[6, 80, 80]]]]
    outbound = [[[[*LAN], "tag:router"], [[6, 443, 443]]], [["internet"], [[17, 123, 123]]]]
    made = device(inbound, outbound, [])
    meet(made, peer, LAN)
    text = text_of(made)
    assert chain(text, "input")[-2:] == ["ip saddr { 192.168.7.0/24 } jump from_prefixes", "drop"]
    outside = [word for word in chain(text, "from_prefixes") if "!=" in word]
    others = [word for word in chain(text, "from_prefixes") if "!=" not in word]
    assert [re.sub(r"c\d+", "", each) for each in others] == [
        "ct direction reply ip saddr { 192.168.7.0/24 } jump ",
        "ct direction original ip saddr { 192.168.7.0/24 } ip daddr 100.64.0.1 jump ",
    ]
    assert len(outside) == 2 and "100.64.0.0/10" in outside[0] and "192.168.0.0/16" in outside[0]
    to = chain(text, "to_prefixes")
    assert any(each.startswith("ct direction original ip daddr { 192.168.7.0/24 } jump") for each in to)
    assert any(each.startswith("ct direction reply ip daddr { 192.168.7.0/24 } ip saddr 100.64.0.1") for each in to)


def test_an_exit_is_asked_last_and_not_for_what_is_nobodys() -> None:
    made = device([], [[["*"], [ANYWHERE]]], [])
    meet(made, FakePeer("a", [PEER4], []), LAN, (bytes(4), 0))
    made.allowed_ips.set_holes([NETWORKS[0], LAN])
    assert chain(text_of(made), "input")[-4:] == [
        "ip saddr { 192.168.7.0/24 } jump from_prefixes",
        "ip saddr { 100.64.0.0/10, 192.168.7.0/24 } drop",
        "meta nfproto ipv4 jump from_prefixes",
        "drop",
    ]


def test_nobody_reaches_anything() -> None:
    stranger = FakePeer("c", [PEER4], [])
    stranger.record = None
    text = text_of(device([[["*"], ["me"], [ANYWHERE]]], [], [stranger]))
    assert rights(text) == {} and chain(text, "input")[-1] == "drop"


@pytest.mark.parametrize("port", [0, 79, 80, 81, 100, 101, 65_535])
@pytest.mark.parametrize("protocol", [6, 17, 132])
def test_services_are_the_verdicts_of_each_port(protocol: int, port: int) -> None:
    body = {"v": 1, "u": "", "in": [[["tag:x"], ["me"], [[6, 80, 100], [17, 81, 81]]]], "out": []}
    policy = Slice(body, [], [ME4], NETWORKS)
    who = Identity(["tag:x"], "")
    may = policy.services_in(who, PEER4, ME4)
    told = any(kind == protocol and low <= port <= high for kind, low, high in may)
    assert told is policy.admits(who, True, PEER4, ME4, protocol, port)


# What changes


def steps() -> tuple[Filter, Any, FakePeer, FakePeer]:
    web, db = FakePeer("a", [PEER4], ["tag:web"]), FakePeer("b", [OTHER4], ["tag:db"])
    made = device([[["tag:web", "tag:db"], ["me"], [[6, 80, 80]]], [["tag:db"], ["me"], [[6, 22, 22]]]], [], [web, db])
    filter_ = Filter("w")
    first = filter_.look(made)
    assert first is not None and first.lose is None and first.wait is None  # nothing stands yet
    assert filter_.look(made) is first
    filter_.done(first)
    assert filter_.look(made) is None and filter_.stands
    return filter_, made, web, db


def test_who_gets_more_waits_and_who_gets_less_loses() -> None:
    filter_, made, web, db = steps()
    retag(web, ["tag:db"])
    change = filter_.look(made)
    assert change is not None and change.script is None and not change.takes
    assert change.wait == frozenset({web.public_key})
    assert change.gone == [("in4", PEER4 + ME4)] and [each for each, _ in change.new] == change.gone
    filter_.done(change)
    retag(db, ["tag:web"])
    change = filter_.look(made)
    assert change is not None and change.lose == frozenset({db.public_key}) and change.script is None
    filter_.done(change)
    del made.peers[db.public_key]
    change = filter_.look(made)
    assert change is not None and change.lose == frozenset({db.public_key}) and change.new == []


def test_an_element_that_only_has_another_owner_stays() -> None:
    filter_, made, web, _ = steps()
    del made.peers[web.public_key]
    renewed = FakePeer("a2", [PEER4], ["tag:web"])
    meet(made, renewed)
    assert filter_.look(made) is None
    retag(renewed, [])
    change = filter_.look(made)
    assert change is not None and change.lose == frozenset({renewed.public_key})


@pytest.mark.parametrize("what", ["address", "policy", "prefix", "rule"])
def test_what_is_everybodys_loses_for_everybody(what: str) -> None:
    filter_, made, web, _ = steps()
    meet(made, web, LAN)
    allow(made, [[["tag:web", [*LAN]], ["me"], [[6, 80, 80]]]], [])
    first = filter_.look(made)
    assert first is not None and first.script is not None
    filter_.done(first)
    if what == "address":
        made.own = frozenset((ME4,))
    elif what == "policy":
        made.firewall = None
        freed = filter_.look(made)
        assert freed is not None and not freed.takes and freed.lose == frozenset()
        filter_.done(freed)
        assert filter_.look(made) is None
        allow(made, [[["tag:web", [*LAN]], ["me"], [[6, 80, 80]]]], [])
    elif what == "prefix":
        made.allowed_ips.remove(*LAN, web)
    else:
        allow(made, [[["tag:web"], ["me"], [[6, 80, 80]]]], [])
    change = filter_.look(made)
    assert change is not None and change.lose is None and change.script is not None


def test_more_prefixes_and_rules_take_nothing() -> None:
    filter_, made, web, _ = steps()
    meet(made, web, LAN)
    first = filter_.look(made)
    assert first is not None and not first.takes and first.script is not None
    filter_.done(first)
    made.own = made.own | {bytes((100, 64, 0, 9))}
    more = filter_.look(made)
    assert more is not None and not more.takes


def test_chains_that_nobody_uses_are_bounded() -> None:
    filter_, made, _, _ = steps()
    numbers = []
    for port in range(1, 2 * CHAINS_SPARE_MAX):
        allow(made, [[["tag:web"], ["me"], [[6, port, port]]]], [])
        change = filter_.look(made)
        assert change is not None and change.script is not None  # each time another list of services
        filter_.done(change)
        numbers.append(len(re.findall(r"chain c\d+ {", change.script)))
    assert set(numbers) == {1}


def test_a_filter_that_broke_is_put_anew() -> None:
    filter_, made, _, _ = steps()
    filter_.broke()
    assert not filter_.stands
    change = filter_.look(made)
    assert change is not None and change.lose is None and change.script is not None
    filter_.done(change)
    assert filter_.look(made) is None


def test_what_takes_nothing_away() -> None:
    web, more = services([(6, 80, 80)]), services([(6, 1, 100), (17, 5, 5)])
    everything = services([(6, 0, 65_535)])
    assert allow_all_of(more, web) and not allow_all_of(web, more)
    assert allow_all_of(everything, web) and not allow_all_of(web, everything)
    assert not allow_all_of((), web) and allow_all_of(web, ())
    assert services([(6, 1, 5), (6, 6, 9), (6, 3, 4)]) == ((6, ((1, 9),)),)


def test_prefixes_within_others_are_left_out() -> None:
    inner = bytes((192, 168, 7, 128)), 25
    assert widest([inner, LAN, LAN]) == (LAN,)
    assert widest([inner, (bytes(4), 0), NETWORKS[1]]) == ((bytes(4), 0), NETWORKS[1])


def test_names_stay_names() -> None:
    assert table_name("a-b.c") == "edgeagent_kernel_a_2d_b_2e_c"


@pytest.mark.skipif(shutil.which("nft") is None, reason="nft is not here")
def test_nft_takes_it() -> None:
    peers = [FakePeer("a", [PEER4, PEER6], ["tag:web"])]
    rules = [[["tag:web"], ["me"], [[6, 80, 90], [6, 443, 443], ANYWHERE]], [["*", [*LAN]], ["me"], [[6, 22, 22]]]]
    reach = [[["tag:web", "*"], [[6, 1, 5], [17, 53, 53], [132, 9, 9]]], [["internet"], [ANYWHERE]]]
    routed = device(rules, reach, peers)
    meet(routed, peers[0], LAN, (bytes((192, 168, 7, 128)), 25), (bytes(4), 0), (bytes(16), 0))
    routed.allowed_ips.set_holes([*NETWORKS, (bytes((10, 0, 0, 0)), 8)])
    for text in [text_of(device(rules, reach, peers)), text_of(routed), text_of(nobody()), removal("w")]:
        words = ["unshare", "--net", "nft", "-f", "-"]
        done = subprocess.run(words, input=text, capture_output=True, text=True, timeout=30)
        if "Operation not permitted" in done.stderr:
            pytest.skip("no right to make a network namespace")
        assert done.returncode == 0, done.stderr
