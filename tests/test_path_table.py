"""The paths of one peer alone, without a world around: no state without a way out of it, and no timer that spins."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeagent.proto.devicemap import DeviceMap
from edgeagent.proto.disco import PING_BYTES, CallMe, DiscoDrop, DiscoKeys, Message, Ping, Pong, UdpAddress
from edgeagent.proto.endpoint import Endpoint, UplinkEndpoint
from edgeagent.proto.path import Path, PathKey, State, key_of
from edgeagent.proto.paths import to_endpoint
from edgeagent.proto.pathtable import SEEK_AGAIN_S, SEEKS_QUICK, PeerPaths
from edgeagent.proto.prober import ROW_S, DiscoShared
from edgeagent.proto.rechecks import RECHECK_S, STANDBY_S
from edgeagent.proto.relay_endpoint import RelayEndpoint
from edgeagent.proto.ways import WayOut, Ways
from tests.control_kit import CRYPTO, entropy_of
from tests.node_kit import World

NODE_KEY = bytes([2]) * 32
RELAYS = (RelayEndpoint("r1", NODE_KEY), RelayEndpoint("r2", NODE_KEY))
V4: UdpAddress = (bytes((203, 0, 113, 2)), 2)
V6: UdpAddress = (bytes.fromhex("2001") + bytes(13) + b"\x02", 2)
OURS = {5: bytes((198, 51, 100, 1)), 6: bytes((198, 51, 101, 1))}
DATA = [b"\x04" + bytes(99)]
SPIN_MAX = 20  # timeouts at one moment
SEARCHED_S = SEEK_AGAIN_S[-1] + 30.0  # so long the rarest search may take to begin, and to end


@cache
def device_map() -> DeviceMap:
    return World().add(1, "a").node.map


class Alone:
    """`paths` of a peer that answers pings at once where they go by a way of `alive`; all else is as the test says."""

    def __init__(self) -> None:
        self.now = 0.0
        keys, self._theirs = DiscoKeys(CRYPTO, entropy_of(51)), DiscoKeys(CRYPTO, entropy_of(52))
        them, us = keys.meet(self._theirs.public), self._theirs.meet(keys.public)
        assert them is not None and us is not None
        self._us = us
        self.shared = DiscoShared(0.0, keys, entropy_of(61), device_map(), bytes([1]) * 32)
        self.shared.mtu = 1280
        self.paths = PeerPaths(0.0, self.shared, "b", them)
        self.paths.node_keys = [NODE_KEY]
        self.paths.set_relay(RELAYS[0])
        self.alive: set[PathKey] = set()
        self.absent = False  # whether the relay says for everything that the peer is not there
        self.sent: list[tuple[Endpoint, Message]] = []
        self.unanswered: list[tuple[Endpoint, bytes, int]] = []

    def settle(self) -> None:
        """Carry everything, and have the timeouts that are due."""
        for _ in range(SPIN_MAX):
            self.paths.choose(self.now)
            transmits, self.shared.transmits = self.shared.transmits, []
            self.shared.signals.clear()
            for transmit in transmits:
                for frame in transmit.datagrams:
                    message = self._theirs.open(self._us, frame)
                    assert not isinstance(message, DiscoDrop)
                    self._carry(transmit.endpoint, message, len(frame))
            at = self.paths.deadline()
            if not transmits and (at is None or at > self.now):
                return
            self.paths.handle_timeout(self.now)
        raise AssertionError("a timer that never ends")

    def _carry(self, endpoint: Endpoint, message: Message, frame_bytes: int) -> None:
        self.sent.append((endpoint, message))
        if endpoint.is_relay and self.absent:
            self.paths.not_at_relay(self.now)
        elif isinstance(message, Ping):
            self.unanswered.append((endpoint, message.transaction, frame_bytes))
            if key_of(endpoint) in self.alive:
                self.late_pong(-1)

    def late_pong(self, number: int) -> None:
        if self.unanswered:
            endpoint, transaction, frame_bytes = self.unanswered.pop(number % len(self.unanswered))
            self.paths.handle_pong(self.now, Pong(transaction, None), endpoint, frame_bytes)

    def ping_unanswered(self) -> None:
        """By each path, with full size; their pongs are under way."""
        alive, self.alive = self.alive, set()
        for path in self.paths.prober.direct.values():
            if self.shared.ways.is_open(path.endpoint):
                self.paths.prober.ping(self.now, path.endpoint, self.shared.full_bytes)
        self.settle()
        self.alive = alive

    def send(self) -> None:
        """A packet for the peer, which answers where it got it."""
        self.paths.sent(self.now, max(map(len, DATA)), len(DATA))
        current = self.paths.current
        if current is not None and current.is_relay and self.absent:
            self.paths.not_at_relay(self.now)
        elif current is not None and current.key in self.alive:
            self.paths.heard(self.now, current.endpoint, is_data=True)
        self.settle()

    def hear(self, source: Endpoint) -> None:
        current = self.paths.current
        if current is not None and current.key == key_of(source):
            self.paths.heard(self.now, source, is_data=True)
        else:
            self.paths.roamed(self.now, source)
        self.settle()

    def ping(self, source: Endpoint) -> None:
        self.paths.handle_ping(self.now, Ping(bytes(12), NODE_KEY), source, PING_BYTES)
        self.settle()

    def set_uplinks(self, *indices: int, several: bool = True) -> None:
        """As the pathfinder has it; `indices` are of OURS."""
        before = self.shared.ways
        ways = [WayOut(f"wan{index}", index, [OURS[index]], (4, 16)) for index in indices]
        self.shared.ways = Ways(ways, several=several)
        new = [index for index in indices if index not in before.uplinks]
        self.paths.handle_uplinks(self.now, new if before.several else [], [V4, V6] if new else [])
        self.settle()

    def run(self, seconds: float, *, send_every_s: float | None = None) -> None:
        end, next_send = self.now + seconds, self.now
        self.settle()
        while True:
            times = [self.paths.deadline(), end, None if send_every_s is None else next_send]
            self.now = min(at for at in times if at is not None)
            if self.now >= end:
                self.now = end
                self.settle()
                return
            if send_every_s is not None and self.now >= next_send:
                next_send = self.now + send_every_s
                self.send()
            self.settle()

    def path(self, address: UdpAddress, uplink: int = 0) -> Path:
        return self.paths.prober.direct[key_of(way(address, uplink))]

    def pings(self, to: Endpoint) -> int:
        """So many since the last call."""
        count = sum(isinstance(message, Ping) and key_of(endpoint) == key_of(to) for endpoint, message in self.sent)
        self.sent.clear()
        return count


def way(address: UdpAddress, uplink: int = 0) -> Endpoint:
    return UplinkEndpoint.by(uplink, to_endpoint(address)) if uplink else to_endpoint(address)


@pytest.fixture
def alone() -> Alone:
    return Alone()


def proven(alone: Alone, *uplinks: int) -> Alone:
    """With both addresses proven, and by each of the uplinks."""
    if uplinks:
        alone.set_uplinks(*uplinks)
    alone.alive = {key_of(way(address, uplink)) for address in (V4, V6) for uplink in uplinks or (0,)}
    alone.alive.add(key_of(RELAYS[0]))
    alone.paths.offer(alone.now, [V4, V6])
    alone.paths.introduce(alone.now)
    alone.run(20.0, send_every_s=1.0)
    assert {path.state for path in alone.paths.prober.direct.values()} == {State.PROVEN}
    return alone


def doubtful_after_rest(alone: Alone) -> tuple[Path, Path]:
    """The current path, and another one, both in doubt since nobody talked while we moved."""
    proven(alone)
    alone.run(60.0)
    alone.paths.anew(alone.now, ours=True)
    alone.settle()
    current = alone.paths.current
    assert current is not None
    (other,) = [path for path in alone.paths.prober.direct.values() if path is not current]
    assert current.state is other.state is State.DOUBTFUL
    assert current.next_probe_at is other.next_probe_at is None
    return current, other


# In doubt without a row of probes


def test_another_doubtful_path_is_tried_when_traffic_begins_again(alone: Alone) -> None:
    current, other = doubtful_after_rest(alone)
    alone.alive.discard(current.key)
    alone.run(1.0, send_every_s=0.5)
    assert other.state is State.PROVEN and alone.paths.current is other


@pytest.mark.parametrize("use", [Alone.ping, Alone.hear])
def test_a_doubtful_path_that_the_peer_uses_is_tried(alone: Alone, use: Callable[[Alone, Endpoint], None]) -> None:
    current, other = doubtful_after_rest(alone)
    alone.alive.discard(current.key)
    use(alone, other.endpoint)
    assert other.state is State.PROVEN and alone.paths.current is other


@pytest.mark.parametrize("uplinks", [(), (5, 6)], ids=["one-uplink", "two-uplinks"])
def test_a_doubtful_path_beside_a_proven_one_is_tried(alone: Alone, uplinks: tuple[int, ...]) -> None:
    proven(alone, *uplinks)
    alone.run(60.0)
    current = alone.paths.current
    assert current is not None
    doubtful = [path for path in alone.paths.prober.direct.values() if path.endpoint.uplink == (uplinks or (0,))[-1]]
    for path in doubtful:
        if path is not current:
            alone.paths._doubt_anew(alone.now, path)  # its uplink leads somewhere else since
    assert any(path.state is State.DOUBTFUL for path in doubtful)
    alone.hear(current.endpoint)  # the peer speaks first: the current path is not in doubt
    assert current.state is State.PROVEN
    alone.paths._rechecks.looks = 0  # with several uplinks the next look at all is not the first
    alone.run((STANDBY_S if uplinks else RECHECK_S) + 1.0, send_every_s=5.0)
    assert alone.paths.current is current
    assert {path.state for path in doubtful} == {State.PROVEN}


def test_what_the_peer_does_by_an_uplink_that_is_down_moves_no_path(alone: Alone) -> None:
    proven(alone, 5, 6)
    alone.set_uplinks(6)
    alone.ping(way(V4, 5))
    alone.hear(way(V4, 5))
    current = alone.paths.current
    assert current is not None and current.endpoint.uplink == 6
    alone.set_uplinks()
    alone.ping(way(V4, 6))
    alone.hear(way(V6, 6))
    assert {path.state for path in alone.paths.prober.direct.values()} == {State.DEAD}
    alone.set_uplinks(6)
    alone.run(SEARCHED_S, send_every_s=5.0)
    assert alone.path(V4, 6).state is State.PROVEN


# Late answers


def test_a_late_pong_by_an_uplink_that_is_down_counts_for_nothing(alone: Alone) -> None:
    proven(alone, 5, 6)
    alone.paths.set_relay(None)
    alone.ping_unanswered()
    alone.set_uplinks()
    alone.late_pong(-1)
    assert {path.state for path in alone.paths.prober.direct.values()} == {State.DEAD}
    assert alone.shared.drops[DiscoDrop.UPLINK_DOWN] == 1
    alone.run(10.0, send_every_s=0.5)  # it would spin


# Peers that no relay has


def off(alone: Alone) -> Alone:
    """A peer that its relay does not have, which is said for each packet of every second."""
    alone.absent = True
    alone.paths.introduce(alone.now)
    return alone


def calls(alone: Alone) -> int:
    return sum(isinstance(message, CallMe) for _, message in alone.sent)


@pytest.mark.parametrize("sparing", [1, 10])
def test_a_peer_that_is_off_is_asked_for_more_and_more_rarely(alone: Alone, sparing: int) -> None:
    alone.shared.sparing = sparing
    off(alone).run(sum(SEEK_AGAIN_S) * sparing, send_every_s=1.0)
    alone.sent.clear()
    alone.run(SEEK_AGAIN_S[-1] * sparing * 4, send_every_s=1.0)
    # In as long: a search, and once more because the relay says so; each is a row, and the looks at all paths are too
    looks = SEEK_AGAIN_S[-1] / RECHECK_S
    assert 0 < calls(alone) <= 2 * 4 + 2
    assert 0 < alone.pings(RELAYS[0]) <= len(ROW_S) * (looks + 2) * 4 + len(ROW_S)


def is_asked(paths: PeerPaths, now: float) -> bool:
    """Whether a relay's word that it does not have the peer leads to anything."""
    before = paths._absences
    paths.not_at_relay(now)
    return paths._absences > before


@pytest.mark.parametrize("sparing", [1, 10])
def test_a_peer_that_may_sleep_is_asked_for_quickly_at_first(alone: Alone, sparing: int) -> None:
    alone.shared.sparing = sparing
    paths, asked = alone.paths, list[float]()
    paths.introduce(alone.now)
    for _ in range(100):
        if is_asked(paths, alone.now):
            asked.append(alone.now)
        alone.run(0.1, send_every_s=1.0)
    assert asked[:SEEKS_QUICK] == pytest.approx([0.0, 2.5, 5.0], abs=0.2)
    assert calls(alone) >= SEEKS_QUICK


def test_a_peer_that_is_heard_of_is_asked_for_at_once_again(alone: Alone) -> None:
    paths = off(alone).paths

    def pong() -> None:
        paths.prober.ping(alone.now, RELAYS[0], PING_BYTES)
        alone.absent = False
        alone.settle()
        alone.late_pong(-1)
        alone.absent = True

    for sign in (
        pong,
        lambda: paths.handle_call_me(alone.now, CallMe([])),
        lambda: paths.heard(alone.now, RELAYS[0]),
        lambda: paths.roamed(alone.now, RELAYS[1]),
    ):
        alone.run(100.0, send_every_s=1.0)
        assert not is_asked(paths, alone.now)
        sign()
        assert is_asked(paths, alone.now)
        alone.settle()


# Whatever happens

WAYS = [way(address, uplink) for uplink in (0, *OURS) for address in (V4, V6)]
UPLINKS: list[tuple[tuple[int, ...], bool]] = [((), False), ((5,), False), ((5,), True), ((5, 6), True), ((), True)]
VERBS = (
    "talk", "send", "hear", "hear-by-relay", "ping", "late-pong", "call", "introduce", "move", "moved",
    "move-idle", "uplinks", "uplinks-idle", "unpin", "relay", "absent", "alive", "wait", "rest",
)  # fmt: skip
ACTIONS = st.lists(st.tuples(st.sampled_from(VERBS), st.integers(0, 63)), max_size=40)


def act(alone: Alone, verb: str, number: int) -> None:
    paths, source = alone.paths, WAYS[number % len(WAYS)]
    if verb == "talk":
        alone.run(5.0, send_every_s=1.0)
        alone.send()
    elif verb == "send":
        alone.send()
    elif verb == "hear":
        alone.hear(source)
    elif verb == "hear-by-relay":
        alone.hear(RELAYS[number % 2])
    elif verb == "ping":
        alone.ping(source)
    elif verb == "late-pong":
        for _ in range(number % 4):
            alone.late_pong(-1)
    elif verb == "call":
        paths.handle_call_me(alone.now, CallMe([V4, V6]))
    elif verb == "introduce":
        paths.introduce(alone.now)
    elif verb in ("move", "moved", "move-idle"):
        alone.run(60.0 if verb == "move-idle" else 0.0)
        paths.anew(alone.now, ours=verb != "moved")
    elif verb in ("uplinks", "uplinks-idle"):
        alone.run(60.0 if verb == "uplinks-idle" else 0.0)
        indices, several = UPLINKS[number % len(UPLINKS)]
        alone.ping_unanswered()
        alone.set_uplinks(*indices, several=several)
        act(alone, "late-pong", number // len(UPLINKS))
    elif verb == "unpin":  # as the pathfinder does when the kernel would not send by it
        path = paths.prober.find(source)
        if path is not None and path.endpoint.uplink:
            path.lose()
    elif verb == "relay":
        paths.set_relay((None, *RELAYS)[number % 3])
    elif verb == "absent":
        alone.absent = number % 2 == 0
    elif verb == "alive":
        alone.alive = {key_of(each) for at, each in enumerate(WAYS) if number >> at & 1}
        alone.alive |= {key_of(RELAYS[0])} if number % 2 else set()
    else:
        alone.run((0.3 if verb == "wait" else 20.0) * (number % 4 + 1))
    alone.settle()


def check(alone: Alone, *, traffic: bool = False) -> None:
    """Out of each state something leads; `traffic`: there just was some."""
    paths = alone.paths
    at = paths.deadline()
    assert at is None or at > alone.now
    for path in paths.prober.direct.values():
        under_way = path.next_probe_at is not None
        if not alone.shared.ways.is_open(path.endpoint):
            assert path.state in (State.DEAD, State.UNTRIED) and not under_way
        assert under_way or path.state not in (State.PROBING, State.ANSWERED)
        if traffic and path is paths.current:
            assert under_way or path.state not in (State.DOUBTFUL, State.ONE_WAY)
    suspected = paths._suspected
    assert suspected is None or (suspected is paths.current and suspected.next_probe_at is not None)
    if traffic:
        rows = any(path.next_probe_at is not None for path in paths.prober.direct.values())
        assert paths.is_direct or rows or paths.next_seek_at is not None
        assert paths._rechecks.next_at is not None


@settings(max_examples=60, deadline=None)
@given(ACTIONS, st.integers(0, 4), st.integers(1, 3), st.integers(0, 63))
def test_nothing_stays_in_doubt_and_the_way_that_works_is_found(
    actions: list[tuple[str, int]], begins: int, usable: int, works: int
) -> None:
    alone = Alone()
    alone.alive = {key_of(each) for each in (*WAYS, RELAYS[0])}
    alone.paths.offer(alone.now, [V4, V6])
    act(alone, "uplinks", begins)
    for verb, number in actions:
        act(alone, verb, number)
        check(alone, traffic=verb in ("talk", "send", "hear"))
    indices, several = UPLINKS[usable]
    alone.set_uplinks(*indices, several=several)
    open_ways = [each for each in WAYS if bool(each.uplink) == several and alone.shared.ways.is_open(each)]
    way_that_works = open_ways[works % len(open_ways)]
    alone.absent = False
    alone.alive = {key_of(way_that_works)}
    alone.paths.offer(alone.now, [V4, V6])
    alone.run(SEARCHED_S, send_every_s=5.0)
    check(alone)
    current = alone.paths.current
    assert current is not None and current.key == key_of(way_that_works) and current.state is State.PROVEN
    for path in alone.paths.prober.direct.values():
        settled = path.state in (State.PROVEN, State.DEAD, State.UNTRIED)
        assert settled or path.next_probe_at is not None, path
