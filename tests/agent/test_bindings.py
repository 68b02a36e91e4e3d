"""Second sockets at a stand-in for a relay and its NAT, on real sockets and in virtual time."""

from __future__ import annotations

import selectors
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from edgeagent import config, crypto
from edgeagent.bindings import LOOK_S, SAVE_AFTER_S, SETTLED_S, Bindings, Way, way_home
from edgeagent.context import Context
from edgeagent.io import logring
from edgeagent.io.keystore import Keystore, StateFile
from edgeagent.io.logring import LogRing
from edgeagent.io.trials import SOCKETS_MAX, TrialSockets
from edgeagent.proto.endpoint import Endpoint
from edgeagent.proto.keepalive import INTERVAL_MAX_S, PRECISION, SAFETY
from edgeagent.proto.keepalive_learner import DEFAULT_INTERVAL_S, nat_id
from edgeagent.proto.ledger import Cause
from edgeagent.proto.relay_frames import DATAGRAM_HEAD, HELLO, KNOCKED
from edgeagent.proto.stun import BINDING_SUCCESS, looks_like_stun, parse, write, xor_mapped_address
from tests.netlab import until

NAT = nat_id(b"\xc0\xa8\1\1", b"\xcb\0\x71\x05")


class Relay:
    """Answers at a UDP port, and knocks as long as its NAT remembers who asked; `lifetime_s` of virtual time."""

    def __init__(self, lifetime_s: float) -> None:
        self.lifetime_s = lifetime_s
        self.answers = True
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.sock.bind(("127.0.0.1", 0))
        self.address: tuple[str, int] = self.sock.getsockname()
        self.heard: dict[tuple[str, int], float] = {}
        self.challenges: dict[tuple[str, int], bytes] = {}
        self.knocks: list[tuple[float, str]] = []

    def pump(self, now: float) -> bool:
        busy = False
        while True:
            try:
                data, source = self.sock.recvfrom(2_048)
            except BlockingIOError:
                return busy
            busy = True
            self.heard[source] = now
            if not self.answers:
                continue
            if looks_like_stun(data):
                transaction = parse(data).transaction
                mapped = xor_mapped_address(transaction, (socket.inet_aton(source[0]), source[1]))
                self.sock.sendto(write(BINDING_SUCCESS, transaction, [mapped], fingerprint=True), source)
            else:
                assert data[0] == HELLO
                challenge = self.challenges[source] = bytes((len(self.challenges) % 256,)) * 24
                self.sock.sendto(DATAGRAM_HEAD.pack(0xE1, 0, 0, 0) + data[8:16] + challenge, source)
                self.sock.sendto(b"\xe1 strange", source)

    def knock(self, now: float, relay: str, challenge: bytes, mapped: tuple[bytes, int]) -> bool:
        source = (socket.inet_ntoa(mapped[0]), mapped[1])
        assert self.challenges[source] == challenge
        self.knocks.append((now, relay))
        if now - self.heard[source] < self.lifetime_s:
            self.sock.sendto(DATAGRAM_HEAD.pack(KNOCKED, 0, 0, 0) + challenge[-8:], source)
        return True


class Rig:
    """Bindings of an agent whose way home, and whose clock, are the test's."""

    def __init__(self, directory: Path, relay: Relay) -> None:
        self.relay = relay
        self.selector = selectors.DefaultSelector()
        self.keystore = Keystore(str(directory))
        self.keystore.open()
        ring = LogRing(100, None)
        logring.install(ring, 10)
        settings = config.load({"state-dir": str(directory)}, {}, "/dev/null")
        self.context = Context(
            0.0, settings=settings, crypto=crypto.load(), keystore=self.keystore, selector=self.selector, ring=ring
        )
        self.way: Way | None = self.to(NAT)
        self.moves = 0
        self.intervals: list[float] = []
        self.learnt = False
        self.now = 0.0
        self.bindings = Bindings(
            0.0,
            self.context,
            find_way=lambda: self.way,
            moves=lambda: self.moves,
            knock=relay.knock,
            use_interval=lambda now, interval_s, learnt: self.told(interval_s, learnt),
        )

    def told(self, interval_s: float, learnt: bool) -> None:
        """The same interval comes twice when nothing but its being sure is new."""
        if self.intervals[-1:] != [interval_s]:
            self.intervals.append(interval_s)
        self.learnt = learnt

    def to(self, nat: str, *, may_learn: bool = True, relay: str = "fra") -> Way:
        return Way("eth0", nat, relay, self.relay.address, may_learn=may_learn)

    def run(self, seconds: float, every_s: float = 300.0) -> None:
        """As the daemon's loop, with a wake-up for something else now and then."""
        until_ = self.now + seconds
        next_at = self.now + every_s
        while self.now < until_:
            times = [self.bindings.poll_timeout(), self.context.accounts.poll_timeout(), next_at, until_]
            self.now = max(self.now, min(at for at in times if at is not None))
            if self.now >= next_at:
                next_at += every_s
            self.bindings.on_timeout(self.now)
            self.context.accounts.on_wake(self.now)
            self.exchange()

    def exchange(self) -> None:
        while self.relay.pump(self.now) | self.read():
            pass

    def read(self) -> bool:
        ready = self.selector.select(0)
        for key, _ in ready:
            key.data(self.now, key.fd)
        return bool(ready)

    @property
    def sockets(self) -> int:
        return len(self.bindings._sockets)

    def close(self) -> None:
        self.bindings.close()
        assert not self.selector.get_map()
        self.context.accounts.close(self.now)
        self.keystore.close()
        self.selector.close()


@pytest.fixture
def relay() -> Iterator[Relay]:
    relay = Relay(120.0)
    yield relay
    relay.sock.close()


@pytest.fixture
def start(tmp_path: Path, relay: Relay) -> Iterator[Callable[[], Rig]]:
    rigs: list[Rig] = []

    def begin() -> Rig:
        if rigs:
            rigs.pop().close()
        rigs.append(Rig(tmp_path / "state", relay))
        return rigs[0]

    yield begin
    for rig in rigs:
        rig.close()


def test_a_lifetime_is_learnt_kept_and_used_at_the_next_start(start: Callable[[], Rig], relay: Relay) -> None:
    rig = start()
    assert rig.intervals == [DEFAULT_INTERVAL_S] and rig.sockets == 0
    rig.run(SETTLED_S - 1, every_s=40.0)
    assert rig.sockets == 0 and not relay.heard  # who knows whether we stay
    rig.run(4 * 3_600.0)
    assert rig.sockets == 0 and rig.bindings.poll_timeout() is None
    learnt = rig.intervals[-1]
    assert 120 / PRECISION * SAFETY <= learnt < 120 * SAFETY
    assert rig.learnt
    assert rig.intervals == sorted(rig.intervals) and {relay for _, relay in relay.knocks} == {"fra"}
    [line] = [line for line in rig.context.accounts.ledger.lines(rig.now) if line.cause is Cause.KEEPALIVE]
    assert line.uplink == "lo" and min(line.since_start) > 1_000  # the way that the second sockets really took
    assert Path(rig.keystore.path(StateFile.BINDINGS)).exists() and rig.bindings.learner.dirty is False
    heard = len(relay.heard)
    rig = start()
    assert rig.intervals == [learnt]
    rig.run(4 * 3_600.0)
    assert len(relay.heard) == heard


def test_a_device_that_is_often_awake_saves_too(start: Callable[[], Rig]) -> None:
    rig = start()
    rig.run(2 * 3_600.0, every_s=10.0)
    assert rig.bindings.poll_timeout() is None
    rig.run(SAVE_AFTER_S, every_s=10.0)
    assert Path(rig.keystore.path(StateFile.BINDINGS)).exists() and not rig.bindings.learner.dirty


def test_a_metered_way_uses_what_is_known_and_tries_nothing(start: Callable[[], Rig], relay: Relay) -> None:
    rig = start()
    rig.way = rig.to(NAT, may_learn=False)
    rig.run(4 * 3_600.0)
    assert not relay.heard and rig.intervals == [DEFAULT_INTERVAL_S]
    rig.way = rig.to(NAT)
    rig.run(700.0)
    assert rig.sockets == 1
    rig.way = rig.to(NAT, may_learn=False)
    rig.run(2 * LOOK_S, every_s=10.0)
    assert rig.sockets == 0


@pytest.mark.parametrize("other", ["nat", "relay", "none"])
def test_another_way_ends_what_was_tried_on_the_old_one(start: Callable[[], Rig], relay: Relay, other: str) -> None:
    rig = start()
    rig.run(700.0)
    assert rig.sockets == 1
    ways = {"nat": rig.to("link 203.0.114.0/24"), "relay": rig.to(NAT, relay="ams"), "none": None}
    rig.way = ways[other]
    rig.run(2 * LOOK_S, every_s=10.0)
    assert rig.sockets == 0 and (rig.bindings.interval_s is None) == (other == "none")
    knocks = len(relay.knocks)
    rig.run(4 * 3_600.0)
    assert (len(relay.knocks) == knocks) == (other == "none")
    if other == "relay":
        assert {relay for _, relay in relay.knocks[knocks:]} == {"ams"}


def test_a_nat_that_forgets_sooner_than_it_did_is_learnt_anew(start: Callable[[], Rig], relay: Relay) -> None:
    rig = start()
    relay.lifetime_s = 10_000.0
    rig.run(12 * 3_600.0)
    assert INTERVAL_MAX_S - 1 <= rig.intervals[-1] <= INTERVAL_MAX_S
    relay.lifetime_s = 60.0
    rig.moves += 1  # the relay saw us come from another port
    rig.run(12 * 3_600.0)
    assert 60 / PRECISION * SAFETY <= rig.intervals[-1] < 60 * SAFETY


def test_moving_house_is_no_sign_of_a_forgetful_nat(start: Callable[[], Rig], relay: Relay) -> None:
    rig = start()
    rig.run(4 * 3_600.0)
    learnt = rig.intervals[-1]
    rig.way, rig.moves = rig.to("link 203.0.114.0/24"), rig.moves + 1
    rig.run(60.0, every_s=10.0)
    rig.way = rig.to(NAT)
    rig.run(60.0, every_s=10.0)
    assert rig.intervals[-2:] == [DEFAULT_INTERVAL_S, learnt]


def test_a_relay_that_is_away_teaches_nothing(start: Callable[[], Rig], relay: Relay) -> None:
    rig = start()
    relay.answers = False
    rig.run(86_400.0)
    assert rig.intervals == [DEFAULT_INTERVAL_S] and not relay.knocks
    relay.answers = True
    rig.run(2 * 86_400.0)
    assert rig.intervals[-1] > 60.0


def test_a_damaged_file_costs_what_was_learnt_and_no_more(start: Callable[[], Rig], relay: Relay) -> None:
    rig = start()
    rig.run(4 * 3_600.0)
    learnt, path = rig.intervals[-1], Path(rig.keystore.path(StateFile.BINDINGS))
    path.write_bytes(path.read_bytes()[:-1])
    rig = start()
    assert rig.context.damaged_files == 1 and rig.intervals == [DEFAULT_INTERVAL_S]
    rig.keystore.save(StateFile.BINDINGS, b"\x80")
    rig = start()
    assert rig.context.damaged_files == 1
    rig.run(4 * 3_600.0)
    assert rig.intervals[-1] == pytest.approx(learnt, abs=1.0)


# The sockets


def test_second_sockets_are_bounded_and_hear_only_their_server() -> None:
    heard: list[tuple[object, bytes]] = []
    counted: list[tuple[int, int]] = []
    selector = selectors.DefaultSelector()
    sockets = TrialSockets(
        selector,
        lambda now, key, datagram: heard.append((key, datagram)),
        lambda now, sock, sent, received: counted.append((len(sent), len(received))),
    )
    with (
        closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as server,
        closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as stranger,
    ):
        for each in (server, stranger):
            each.bind(("127.0.0.1", 0))
        assert all(sockets.open(number, server.getsockname(), None) for number in range(SOCKETS_MAX))
        assert not sockets.open("one more", server.getsockname(), None)
        assert not sockets.open(0, server.getsockname(), "no-such-if")
        assert not sockets.open(0, ("255.255.255.255", 1), None)
        assert len(sockets) == SOCKETS_MAX - 1
        sockets.send(1.0, 1, [b"a", bytes(70_000), b"b"])
        sockets.send(1.0, "none", [b"a"])
        data, source = server.recvfrom(9)
        assert (data, server.recvfrom(9), counted) == (b"a", (b"b", source), [(2, 0)])
        stranger.sendto(b"strange", source)
        server.sendto(b"answer", source)

        def read() -> bool:
            for key, _ in selector.select(0):
                key.data(2.0, key.fd)
            return bool(heard)

        until(read, 5, "the answer")
        assert heard == [(1, b"answer")] and counted == [(2, 0), (0, 1)]
        sockets.ready(3.0, 4_000)
        sockets.close(1)
        sockets.close(1)
        sockets.close_all()
        assert len(sockets) == 0 and not selector.get_map()
    selector.close()


# The way home


class Stub:
    def __init__(self, **values: object) -> None:
        self.__dict__.update(values)


def way(
    *, alive: bool = True, udp: Endpoint | None = None, mapped: list[tuple[bytes, int]], via: int = 0
) -> Way | None:
    session = Stub(udp=udp, client=Stub(alive=alive), relay=Stub(id="fra"))
    sessions = Stub(find=lambda relay, key: session if (relay, key) == ("fra", b"key") else None, via=via)
    node = Stub(
        relays=Stub(home="fra", sessions=sessions),
        identity=Stub(node_key=b"key"),
        outside=Stub(mapped_by=lambda uplink: mapped if uplink == via else []),
    )
    names = Stub(
        of_index=lambda index: f"wwan{index}",
        of_endpoint=lambda endpoint: "eth0",
        gateway_to=lambda address: b"\xc0\xa8\1\1",
    )
    policies = Stub(budget=lambda uplink: Stub(metered=uplink.startswith("wwan")))
    return way_home(node, Stub(names=names, policies=policies))  # type: ignore[arg-type]


def test_the_way_home() -> None:
    udp4, udp6 = Endpoint(("198.51.100.1", 3478)), Endpoint(("2001:db8::1", 3478, 0, 0))
    mapped = [(b"\xcb\0\x71\x05", 1), (bytes.fromhex("20010db80007") + bytes(10), 2)]
    found = way(udp=udp4, mapped=mapped)
    assert found is not None and found.may_learn and found.device is None and found.server == udp4.addr
    assert (found.uplink, found.nat, found.relay) == ("eth0", "192.168.1.1 203.0.113.0/24", "fra")
    found = way(udp=udp6, mapped=mapped, via=3)
    assert found is not None and not found.may_learn and found.device == found.uplink == "wwan3"
    assert found.nat == "link 2001:db8:7::/48"
    assert way(udp=udp4, mapped=mapped[1:]) is None
    assert way(udp=None, mapped=mapped) is None
    assert way(udp=udp4, mapped=mapped, alive=False) is None


def test_a_nat_is_told_by_its_neighbourhood() -> None:
    gateway, outside = b"\xfe\x80" + bytes(13) + b"\1", bytes.fromhex("20010db8000700080009000a000b000c")
    assert nat_id(gateway, outside) == "fe80::1 2001:db8:7::/48"
    assert nat_id(b"", b"\xcb\0\x71\x05") == nat_id(b"", b"\xcb\0\x71\xfe") == "link 203.0.113.0/24"
    assert len(nat_id(b"\xff" * 16, b"\xff" * 16)) <= 64
