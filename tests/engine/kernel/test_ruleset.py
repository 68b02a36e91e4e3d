"""What the kernel is told of a policy, beside the verdicts of the policy itself; and that nft takes it."""

from __future__ import annotations

import re
import shutil
import subprocess
from types import SimpleNamespace
from typing import Any

import pytest

from edgeagent.engine.kernel.ruleset import removal, ruleset, table_name
from edgeagent.proto.policy import Identity, Slice
from tests.policy_kit import ME4, ME6, PEER4, PEER6, FakePeer

NETWORKS = [(bytes((100, 64, 0, 0)), 10), (bytes.fromhex("fd00") + bytes(14), 48)]
OTHER4 = bytes((100, 64, 0, 3))


def device(inbound: list[Any], outbound: list[Any], peers: list[FakePeer], own: tuple[bytes, ...] = (ME4, ME6)) -> Any:
    policy = Slice({"v": 1, "u": "", "in": inbound, "out": outbound}, [], own, NETWORKS)
    return SimpleNamespace(
        own=frozenset(own),
        firewall=SimpleNamespace(policy=policy),
        peers={peer.public_key: peer for peer in peers},
    )


def chain(text: str, name: str) -> list[str]:
    found = re.search(rf"  chain {name} {{\n(.*?)\n  }}", text, re.DOTALL)
    assert found is not None
    return [line.strip() for line in found[1].splitlines()][1:]


def answers(text: str, name: str) -> list[str]:
    return text.split(f"  chain {name} {{\n")[1].partition("  }")[0].replace("    ", "").splitlines()


def test_without_a_policy_only_our_own_addresses_are_reached() -> None:
    text = ruleset("edge0-wg", SimpleNamespace(own=frozenset({ME4, ME6}), firewall=None, peers={}))  # type: ignore[arg-type]
    assert chain(text, "input") == [
        'iifname != "edge0-wg" accept',
        "ip daddr != { 100.64.0.1 } drop",
        "ip6 daddr != { fd00::1 } drop",
        "accept",
    ]
    assert chain(text, "forward") == ['iifname "edge0-wg" drop', 'oifname "edge0-wg" drop']
    assert chain(text, "output") == ['oifname != "edge0-wg" accept']


def test_without_addresses_nothing_is() -> None:
    text = ruleset("edge0-wg", SimpleNamespace(own=frozenset(), firewall=None, peers={}))  # type: ignore[arg-type]
    assert chain(text, "input")[1:3] == ["meta nfproto ipv4 drop", "meta nfproto ipv6 drop"]


def test_rules_become_peers_addresses_and_ports() -> None:
    peers = [FakePeer("a", [PEER4, PEER6], ["tag:web"]), FakePeer("b", [OTHER4], ["tag:db"])]
    inbound = [
        [["tag:web"], ["me"], [[6, 80, 90], [6, 85, 100], [6, 443, 443], [1, 0, 0], [58, 0, 0]]],
        [["tag:db"], ["me"], [[0, 0, 65535]]],
    ]
    text = ruleset("w", device(inbound, [[["tag:db"], [[17, 53, 53]]]], peers))
    rules = chain(text, "input")
    assert rules[3] == "ct state related meta l4proto { 1, 58 } accept"
    assert rules[4] == "ct direction reply ct state established jump answers_to_us"
    assert rules[-1] == "drop"
    assert rules[5:-1] == [
        "ip saddr 100.64.0.2 ip daddr 100.64.0.1 meta l4proto 1 accept",
        "ip saddr 100.64.0.2 ip daddr 100.64.0.1 tcp dport { 80-100, 443 } accept",
        "ip saddr 100.64.0.2 ip daddr 100.64.0.1 meta l4proto 58 accept",
        "ip6 saddr fd00::2 ip6 daddr fd00::1 meta l4proto 1 accept",
        "ip6 saddr fd00::2 ip6 daddr fd00::1 tcp dport { 80-100, 443 } accept",
        "ip6 saddr fd00::2 ip6 daddr fd00::1 meta l4proto 58 accept",
        *(f"ip saddr 100.64.0.3 ip daddr 100.64.0.1 meta l4proto {each} accept" for each in (1, 6, 17, 58, 132)),
    ]
    assert chain(text, "output")[4:-2] == ["ip daddr 100.64.0.3 udp dport { 53 } accept"]


def test_answers_pass_for_as_long_as_what_they_answer_may_be_asked() -> None:
    peers = [FakePeer("a", [PEER4, PEER6], ["tag:web"]), FakePeer("b", [OTHER4], ["tag:db"])]
    inbound = [[["tag:web"], ["me"], [[17, 80, 90], [1, 0, 0]]]]
    outbound = [[["tag:db"], [[17, 53, 53]]]]
    text = ruleset("w", device(inbound, outbound, peers))
    elsewhere = [
        "ip saddr != { 100.64.0.2, 100.64.0.3 } accept",
        "ip6 saddr != { fd00::2 } accept",
    ]
    assert answers(text, "answers_to_us") == ["ip saddr 100.64.0.3 udp sport { 53 } accept", *elsewhere]
    assert answers(text, "answers_of_us") == [
        "ip saddr 100.64.0.1 ip daddr 100.64.0.2 meta l4proto 1 accept",
        "ip saddr 100.64.0.1 ip daddr 100.64.0.2 udp sport { 80-90 } accept",
        "ip6 saddr fd00::1 ip6 daddr fd00::2 meta l4proto 1 accept",
        "ip6 saddr fd00::1 ip6 daddr fd00::2 udp sport { 80-90 } accept",
    ]
    text = ruleset("w", device([], [], peers))
    assert answers(text, "answers_to_us") == elsewhere and answers(text, "answers_of_us") == []


def test_what_python_has_judged_goes_out() -> None:
    """To prefixes behind a peer, of which no rule here says anything; the raw sockets put the mark on."""
    text = ruleset("w", device([], [[[[bytes((192, 168, 7, 0)), 24]], [[6, 80, 80]]]], [FakePeer("a", [PEER4], [])]))
    assert chain(text, "output")[1] == "meta mark 0x6d000000 accept"
    assert "0x6d000000" not in "".join(chain(text, "input") + chain(text, "forward"))


def test_nobody_reaches_anything() -> None:
    stranger = FakePeer("c", [PEER4], [])
    stranger.record = None
    text = ruleset("w", device([[["*"], ["me"], [[0, 0, 65535]]]], [], [stranger]))
    assert chain(text, "input")[5:] == ["drop"]
    assert chain(text, "output")[4:] == [
        "meta l4proto tcp reject with tcp reset",
        "reject with icmpx type admin-prohibited",
    ]


@pytest.mark.parametrize("port", [0, 79, 80, 81, 100, 101, 65_535])
@pytest.mark.parametrize("protocol", [6, 17, 132])
def test_services_are_the_verdicts_of_each_port(protocol: int, port: int) -> None:
    body = {"v": 1, "u": "", "in": [[["tag:x"], ["me"], [[6, 80, 100], [17, 81, 81]]]], "out": []}
    policy = Slice(body, [], [ME4], NETWORKS)
    who = Identity(["tag:x"], "")
    services = policy.services_in(who, PEER4, ME4)
    told = any(kind == protocol and low <= port <= high for kind, low, high in services)
    assert told is policy.admits(who, True, PEER4, ME4, protocol, port)


def test_names_stay_names() -> None:
    assert table_name("a-b.c") == "edgeagent_kernel_a_2d_b_2e_c"


@pytest.mark.skipif(shutil.which("nft") is None, reason="nft is not here")
def test_nft_takes_it() -> None:
    peers = [FakePeer("a", [PEER4, PEER6], ["tag:web"])]
    rules = [[["tag:web"], ["me"], [[6, 80, 90], [6, 443, 443], [0, 0, 65535]]]]
    services = [[["tag:web"], [[6, 1, 5], [17, 53, 53], [132, 9, 9]]]]
    texts = [
        ruleset("edge0-wg", device(rules, services, peers)),
        ruleset("edge0-wg", SimpleNamespace(own=frozenset(), firewall=None, peers={})),  # type: ignore[arg-type]
        removal("edge0-wg"),
    ]
    for text in texts:
        words = ["unshare", "--net", "nft", "-f", "-"]
        done = subprocess.run(words, input=text, capture_output=True, text=True, timeout=30)
        if "Operation not permitted" in done.stderr:
            pytest.skip("no right to make a network namespace")
        assert done.returncode == 0, done.stderr
