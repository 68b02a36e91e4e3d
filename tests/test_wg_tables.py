"""Small structures, each against a slow twin or a published rule."""

from __future__ import annotations

import random
from ipaddress import ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeagent.proto import ecn, icmp, keys
from edgeagent.proto.allowedips import AllowedIPs
from edgeagent.proto.constants import REPLAY_WINDOW
from edgeagent.proto.endpoint import Endpoint
from edgeagent.proto.errors import LimitReached, LocalProtocolError, RemoteProtocolError
from edgeagent.proto.indextable import IndexTable
from edgeagent.proto.limits import Limits
from edgeagent.proto.ratelimiter import RateLimiter
from edgeagent.proto.replay import ReplayWindow
from edgeagent.proto.tai64n import RESERVE_NS, Tai64nClock
from tests.wg_pair import A_IP, A_IP6, B_IP, B_IP6, ipv4, ipv6


class SlowReplay:
    def __init__(self) -> None:
        self.seen: set[int] = set()

    def accept(self, counter: int) -> bool:
        highest = max(self.seen, default=-1)
        if counter in self.seen or (counter <= highest and counter + REPLAY_WINDOW <= highest):
            return False
        self.seen.add(counter)
        return True


steps = st.one_of(
    st.integers(0, 200), st.integers(8000, 8300), st.integers(0, 100_000), st.just((1 << 64) - 1), st.integers(60, 70)
)


@settings(max_examples=300)
@given(st.lists(steps, max_size=60))
def test_replay_window_equals_its_slow_twin(counters: list[int]) -> None:
    fast, slow = ReplayWindow(), SlowReplay()
    assert [fast.accept(c) for c in counters] == [slow.accept(c) for c in counters]


def test_replay_window_is_8128_wide() -> None:
    window = ReplayWindow()
    assert window.accept(REPLAY_WINDOW)
    assert REPLAY_WINDOW == 8128
    assert window.accept(1)
    assert not window.accept(0)
    assert not window.accept(1)


class SlowAllowedIPs:
    def __init__(self) -> None:
        self.prefixes: dict[tuple[int, int, int], str] = {}

    def key(self, address: bytes, cidr: int) -> tuple[int, int, int]:
        return len(address), cidr, int.from_bytes(address, "big") >> (len(address) * 8 - cidr)

    def lookup(self, address: bytes) -> str | None:
        value, bits = int.from_bytes(address, "big"), len(address) * 8
        found = [
            (cidr, peer)
            for (size, cidr, prefix), peer in self.prefixes.items()
            if size == len(address) and value >> (bits - cidr) == prefix
        ]
        return max(found)[1] if found else None


addresses = st.one_of(
    st.tuples(st.sampled_from([10, 192]), st.integers(0, 3), st.integers(0, 255), st.integers(0, 3)).map(bytes),
    st.binary(min_size=16, max_size=16),
)


@settings(max_examples=200)
@given(
    st.lists(st.tuples(addresses, st.integers(0, 32), st.sampled_from("abcd"), st.booleans()), max_size=40),
    st.lists(addresses, max_size=20),
)
def test_allowed_ips_equal_their_slow_twin(operations: list[tuple[bytes, int, str, bool]], probes: list[bytes]) -> None:
    fast: AllowedIPs[str] = AllowedIPs(1000)
    slow = SlowAllowedIPs()
    for address, cidr, peer, add in operations:
        key = slow.key(address, cidr)
        if add:
            fast.insert(address, cidr, peer)
            slow.prefixes[key] = peer
        else:
            owned = slow.prefixes.get(key) == peer
            assert fast.remove(address, cidr, peer) is owned
            if owned:
                del slow.prefixes[key]
        for probe in (*probes, address):
            assert fast.lookup(probe) == slow.lookup(probe)
    assert len(fast) == len(slow.prefixes)
    for peer in "abcd":
        expected = {key for key, owner in slow.prefixes.items() if owner == peer}
        assert {slow.key(address, cidr) for address, cidr in fast.of_peer(peer)} == expected
    fast.remove_peer("a")
    assert list(fast.of_peer("a")) == []
    assert len(fast) == sum(owner != "a" for owner in slow.prefixes.values())


def test_allowed_ips_take_fifty_thousand_prefixes_and_not_one_more() -> None:
    table: AllowedIPs[str] = AllowedIPs(50_000)
    for i in range(50_000):
        table.insert((0x0A000000 + i * 4).to_bytes(4, "big"), 30, "a" if i % 2 else "b")
    with pytest.raises(LimitReached, match=r"limits\.allowed_ips"):
        table.insert(bytes((172, 16, 0, 0)), 12, "a")
    table.insert(bytes((10, 0, 0, 0)), 30, "a")
    assert table.lookup(bytes((10, 0, 0, 5))) == "a"
    assert table.lookup(bytes((10, 0, 0, 9))) == "b"
    assert len(table) == 50_000
    with pytest.raises(LocalProtocolError):
        table.insert(b"abc", 8, "a")
    with pytest.raises(LocalProtocolError):
        table.insert(bytes(4), 33, "a")


def test_allowed_ips_agree_with_ip_network() -> None:
    table: AllowedIPs[str] = AllowedIPs(10)
    network = ip_network("fd12:3456::/44")
    table.insert(network.network_address.packed, network.prefixlen, "a")
    assert list(table.of_peer("a")) == [(network.network_address.packed, 44)]
    assert table.lookup(network.broadcast_address.packed) == "a"
    assert table.lookup((network.broadcast_address + 1).packed) is None


def test_rate_limiter_allows_a_burst_and_then_twenty_a_second() -> None:
    limiter = RateLimiter(sources_max=4)
    host = bytes((192, 0, 2, 1))
    assert [limiter.allow(0.0, host) for _ in range(7)] == [True] * 5 + [False] * 2
    assert limiter.allow(0.05, host)
    assert not limiter.allow(0.05, host)
    assert sum(limiter.allow(1.0 + i / 1000, host) for i in range(1000)) in range(20, 27)


def test_rate_limiter_counts_an_ipv6_64_as_one_source_and_forgets_the_oldest() -> None:
    limiter = RateLimiter(sources_max=4)
    assert sum(limiter.allow(0.0, bytes(8) + i.to_bytes(8, "big")) for i in range(100)) == 5
    for i in range(100):
        assert limiter.allow(0.0, bytes((10, 0, 0, i)))
        assert len(limiter) <= 4


@pytest.mark.parametrize(
    ("inner", "outer", "expected"),
    # RFC 6040, figure 4: inner Not-ECT, ECT(0), ECT(1), CE against outer Not-ECT, ECT(0), ECT(1), CE
    [(i, o, e) for i, row in {0: (0, 0, 0, None), 2: (2, 2, 1, 3), 1: (1, 1, 1, 3), 3: (3, 3, 3, 3)}.items()
     for o, e in zip((0, 2, 1, 3), row, strict=True)],
)  # fmt: skip
def test_ecn_decapsulation_is_figure_4_of_rfc_6040(inner: int, outer: int, expected: int | None) -> None:
    for make, source, destination in ((ipv4, A_IP, B_IP), (ipv6, A_IP6, B_IP6)):
        for dscp in (0, 0xB8, 0xFC):
            got = ecn.decapsulate(make(source, destination, b"x", dscp | inner), outer)
            assert got == (None if expected is None else make(source, destination, b"x", dscp | expected))


def slow_checksum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total = sum(int.from_bytes(data[i : i + 2], "big") for i in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@given(st.binary(max_size=64) | st.sampled_from([b"\xff" * 40, bytes(40), b"\xff\xff", b"\0"]))
def test_checksum_equals_its_slow_twin(data: bytes) -> None:
    assert icmp.checksum(data) == slow_checksum(data)


def test_icmp_unreachable_quotes_the_packet_and_checks_out() -> None:
    packet = ipv4(A_IP, B_IP, b"q" * 900)
    answer = icmp.unreachable(packet)
    assert answer is not None and len(answer) <= 576
    assert slow_checksum(answer[:20]) == 0 and slow_checksum(answer[20:]) == 0
    assert answer[12:20] == B_IP + A_IP
    assert answer[28:] == packet[: len(answer) - 28]
    packet = ipv6(A_IP6, B_IP6, b"q" * 1400)
    answer = icmp.unreachable(packet, prohibited=True)
    assert answer is not None and len(answer) <= 1280
    pseudo = answer[8:40] + (len(answer) - 40).to_bytes(4, "big") + bytes((0, 0, 0, 58))
    assert slow_checksum(pseudo + answer[40:]) == 0
    assert answer[40:42] == bytes((1, 1))


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"\x45",
        ipv4(A_IP, bytes((224, 0, 0, 1))),
        ipv4(A_IP, b"\xff\xff\xff\xff"),
        ipv4(bytes(4), B_IP),
        ipv4(bytes((127, 0, 0, 1)), B_IP),
        ipv4(A_IP, B_IP)[:6] + b"\x00\x10" + ipv4(A_IP, B_IP)[8:],  # a later fragment
        ipv4(A_IP, B_IP, b"\x03\x01")[:9] + b"\x01" + ipv4(A_IP, B_IP, b"\x03\x01")[10:],  # an ICMP error
        ipv6(A_IP6, b"\xff" + bytes(15)),
        ipv6(bytes(16), B_IP6),
        ipv6(A_IP6, B_IP6, b"\x01\x00")[:6] + b"\x3a" + ipv6(A_IP6, B_IP6, b"\x01\x00")[7:],
    ],
)
def test_icmp_is_never_sent_about_these(packet: bytes) -> None:
    assert icmp.unreachable(packet) is None


@given(st.binary(max_size=80))
def test_icmp_takes_anything(packet: bytes) -> None:
    answer = icmp.unreachable(packet)
    assert answer is None or answer.endswith(packet[:500])


def test_tai64n_never_goes_back_and_reserves_ahead() -> None:
    persisted: list[int] = []
    clock = Tai64nClock(0.0, 1.8e9, persist=persisted.append)
    stamps = [clock.stamp(t / 10) for t in range(100)]
    assert stamps == sorted(set(stamps))
    assert len(persisted) == 1, "one write for six hours of handshakes"
    assert int.from_bytes(stamps[0][:8], "big") == (1 << 62) + 10 + 1_800_000_000
    clock.set_wall(10.0, 0.0)  # the clock falls back to 1970
    later = clock.stamp(11.0)
    assert later > stamps[-1]

    reborn = Tai64nClock(0.0, 60.0, floor_ns=persisted[-1], persist=persisted.append)
    assert reborn.stamp(0.0) > later, "after a start in 1970 stamps go on beyond everything reserved"
    assert persisted[-1] > persisted[0]


def test_tai64n_restart_loop_does_not_run_away_into_the_future() -> None:
    floor = 0
    for _ in range(1000):
        saved: list[int] = []
        clock = Tai64nClock(0.0, 1.8e9, floor_ns=floor, persist=saved.append)
        clock.stamp(0.0)
        floor = saved[-1] if saved else floor
    ahead_s = floor / 1e9 - 1.8e9
    assert ahead_s < RESERVE_NS / 1e9 + 1000 * 18


def test_index_table_draws_again_and_gives_up_in_the_end() -> None:
    draws = iter([b"\1\0\0\0", b"\1\0\0\0", b"\2\0\0\0"])
    table: IndexTable[str] = IndexTable(lambda n: next(draws))
    assert table.insert("a") == 1
    assert table.insert("b") == 2
    table.replace(1, "c")
    assert table.get(1) == "c"
    table.remove(1)
    assert table.get(1) is None and len(table) == 1
    with pytest.raises(LocalProtocolError):
        table.replace(1, "d")
    stuck: IndexTable[str] = IndexTable(lambda n: bytes(n))
    stuck.insert("a")
    with pytest.raises(LocalProtocolError, match="entropy"):
        stuck.insert("b")


def test_key_forms() -> None:
    key = keys.generate_private_key(random.Random(1).randbytes)
    assert keys.clamp(key) == key
    assert keys.from_base64(keys.to_base64(key)) == key
    assert keys.from_hex(key.hex()) == key
    for bad in ("", "x" * 44, "A" * 43 + "!", keys.to_base64(key)[:-1], keys.to_base64(key) + "\n", "é" * 44):
        with pytest.raises(RemoteProtocolError, match="peer key"):
            keys.from_base64(bad, "peer key")
    for bad in ("", "0" * 63, "g" * 64, " " + "0" * 63):
        with pytest.raises(RemoteProtocolError, match="private_key"):
            keys.from_hex(bad, "private_key")


def test_endpoints_print_as_wg_prints_them() -> None:
    assert str(Endpoint(("192.0.2.1", 5))) == "192.0.2.1:5"
    assert str(Endpoint(("2001:db8::1", 5, 0, 0))) == "[2001:db8::1]:5"
    assert str(Endpoint(("fe80::1", 5, 0, 3))) == "[fe80::1%3]:5"
    assert Endpoint(("fe80::1%eth0", 258, 0, 3)).source_bytes() == b"\xfe\x80" + bytes(13) + b"\x01\x01\x02"


def test_limits_refuse_what_they_do_not_know() -> None:
    assert Limits(peers=3).peers == 3
    with pytest.raises(ValueError, match="no such limit"):
        Limits(peer=3)
    with pytest.raises(ValueError, match="at least 1"):
        Limits(peers=0)
