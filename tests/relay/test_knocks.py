"""Knocks: to a second socket that received from the relay before, small, seldom, and to nobody else."""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeagent.proto.endpoint import Endpoint
from edgeagent.proto.keepalive import BindingSearch, Close, Exchange, Phase
from edgeagent.proto.relay_events import Carrier
from edgeagent.proto.relay_frames import (
    CHALLENGE_SIZE,
    HELLO_BYTES,
    KNOCK,
    KNOCK_SIZES,
    KNOCKED,
    KNOCKED_BYTES,
    KNOCKING,
    control_datagram,
    frame,
    read_knock,
    write_knock,
)
from edgeagent.proto.relay_trial import CHALLENGE_LIFE_S, RelayTrial, TrialHeard
from relay.core.knocks import KNOCKS_BURST
from relay.core.shared import Train
from tests.relay import kit
from tests.relay.driver import Driver, RelayProcess, driving, pump
from tests.relay.kit import Host, World, drops

UDP, TLS = Carrier.DATAGRAM, Carrier.STREAM
LOCAL = (bytes((198, 51, 100, 1)), 2)


class Second:
    """The second socket of a member, somewhere."""

    def __init__(self, world: World, host: str = "192.0.2.77", port: int = 50_001) -> None:
        self.world = world
        self.endpoint = Endpoint((host, port) if ":" not in host else (host, port, 0, 0), LOCAL)
        self.trial = RelayTrial()
        self.entropy = random.Random(port).randbytes

    def send(self, *datagrams: bytes) -> list[TrialHeard]:
        """What the relay answers, as the trial hears it."""
        for datagram in datagrams:
            self.world.core.handle_trains(self.world.now, [Train(self.endpoint, datagram, len(datagram))])
        return self.hear()

    def hear(self) -> list[TrialHeard]:
        trains = self.world.core.drain_trains()
        assert all(train.endpoint.addr == self.endpoint.addr for train in trains)
        return [self.trial.handle(datagram) for train in trains for datagram in train.datagrams()]

    def exchange(self) -> None:
        assert self.send(*self.trial.ask(self.entropy)) == [TrialHeard.HALF, TrialHeard.EXCHANGED]


def knock(host: Host, second: Second) -> list[TrialHeard]:
    """The member asks its relay; what comes to the second socket."""
    trial = second.trial
    assert trial.mapped is not None and host.client.knock(second.world.now, trial.challenge, trial.mapped)
    return say(host, second)


def say(host: Host, second: Second) -> list[TrialHeard]:
    world = second.world
    for datagram, ecn in host.client.drain_datagrams():
        world.core.handle_trains(world.now, [Train(host.endpoint, datagram, len(datagram), ecn)])
    if host.conn is not None:
        world.core.stream_received(world.now, host.conn, host.client.drain_stream())
    return second.hear()


@pytest.fixture(params=[UDP, TLS], ids=["udp", "tls"])
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    world = World()
    made = world.join(1, request.param)
    made.world = world  # type: ignore[attr-defined]
    yield made


def world_of(host: Host) -> World:
    world: World = host.world  # type: ignore[attr-defined]
    return world


def test_a_knock_arrives_where_the_challenge_did(host: Host) -> None:
    world = world_of(host)
    for place in (("192.0.2.77", 50_001), ("2001:db8::7", 50_002)):
        second = Second(world, *place)
        second.exchange()
        assert second.trial.mapped == (second.endpoint.ip_bytes(), place[1])
        assert knock(host, second) == [TrialHeard.KNOCKED]
    assert drops(world.core) == {}


def test_it_goes_from_the_address_that_the_member_reached_and_is_small() -> None:
    world = World()
    host = world.join(1, UDP)
    second = Second(world)
    second.exchange()
    assert second.trial.mapped is not None
    host.client.knock(world.now, second.trial.challenge, second.trial.mapped)
    for datagram, _ in host.client.drain_datagrams():
        world.core.handle_trains(world.now, [Train(host.endpoint, datagram, len(datagram))])
    [train] = world.core.drain_trains()
    assert (train.endpoint.addr, train.endpoint.local) == (second.endpoint.addr, host.endpoint.local)
    assert not train.from_second_port and len(train.data) == KNOCKED_BYTES < HELLO_BYTES


def test_challenges_serve_for_the_longest_silence_and_no_longer(host: Host) -> None:
    world = world_of(host)
    second = Second(world)
    second.exchange()
    world.advance(CHALLENGE_LIFE_S - 1)
    assert host.client.alive and knock(host, second) == [TrialHeard.KNOCKED]
    world.advance(2)
    assert knock(host, second) == [] and drops(world.core) == {"knock-refused": 1}
    # For a login and a changed address they never served so long
    challenge = second.trial.challenge
    assert not world.core.shared.admission.check_challenge(world.now, challenge, second.endpoint.source_bytes())


def test_nobody_is_knocked_who_did_not_receive_before(host: Host) -> None:
    world = world_of(host)
    second, victim = Second(world), Second(world, "203.0.113.9", 53)
    second.exchange()
    challenge, mapped = second.trial.challenge, second.trial.mapped
    assert mapped is not None
    other = World(kit.make_core(seed=99))
    foreign = Second(other)
    foreign.exchange()
    told = [
        (challenge, victim.endpoint.ip_bytes(), 53),  # another address's
        (challenge, mapped[0], mapped[1] + 1),  # another port's
        (challenge, mapped[0] + bytes(12), mapped[1]),  # another kind of address
        (foreign.trial.challenge, *mapped),  # another relay's, or of before its restart
        (challenge[:-1] + bytes((challenge[-1] ^ 1,)), *mapped),  # forged
        (bytes((challenge[0] ^ 1,)) + challenge[1:], *mapped),  # its time forged
        (bytes(CHALLENGE_SIZE), *mapped),
    ]
    for count, (false, ip, port) in enumerate(told, 1):
        host.client.knock(world.now, false, (ip, port))
        assert say(host, second) == []
        assert drops(world.core) == {"knock-refused": count}
        world.advance(2)


def test_a_member_knocks_once_a_second(host: Host) -> None:
    world = world_of(host)
    second = Second(world)
    second.exchange()
    heard = [knock(host, second) for _ in range(10)]
    assert heard.count([TrialHeard.KNOCKED]) == KNOCKS_BURST and drops(world.core) == {"knock-rate": 6}
    world.advance(1)
    assert knock(host, second) == [TrialHeard.KNOCKED] and knock(host, second) == []
    # Another member has its own
    late = world.join(2, UDP)
    assert knock(late, second) == [TrialHeard.KNOCKED]


def test_only_a_session_knocks() -> None:
    world = World()
    host = world.join(1, UDP)
    second = Second(world)
    second.exchange()
    assert second.trial.mapped is not None
    body = write_knock(second.trial.challenge, second.trial.mapped)
    session = next(iter(world.core.shared.roster.by_session))
    member = world.core.shared.roster.by_session[session]
    assert member.session is not None
    forged = control_datagram(kit.CRYPTO, bytes(32), KNOCKING, session, 999, body)
    assert second.send(forged) == [] and drops(world.core) == {"bad-mac": 1}
    # Genuine, but from elsewhere: whoever repeats it learns nothing and moves nothing
    genuine = control_datagram(kit.CRYPTO, member.session.keys.up, KNOCKING, session, 1_000, body)
    assert second.send(genuine) == [TrialHeard.STRANGE]  # a challenge, to the session's member
    assert drops(world.core) == {"bad-mac": 1, "wrong-source": 1}
    world.core.handle_trains(world.now, [Train(host.endpoint, genuine, len(genuine))])
    assert second.hear() == [] and drops(world.core)["bad-mac"] == 2  # its counter was used
    unknown = control_datagram(kit.CRYPTO, member.session.keys.up, KNOCKING, session ^ 1, 1_001, body)
    assert second.send(unknown) == [] and drops(world.core)["unknown-session"] == 1
    # And a stranger's stream is ended by it
    world.core.stream_opened(world.now, 900, bytes(4))
    world.core.stream_received(world.now, 900, frame(KNOCK, body))
    assert world.core.drain_closes() == [900] and kit.refusals(world.core) == {"bad-frame": 1}


@given(st.binary(max_size=60))
def test_whatever_a_member_says_as_a_knock_is_a_counted_drop(body: bytes) -> None:
    world, host = _FUZZ
    member = world.core.shared.roster.by_key[host.key]
    assert member.session is not None
    before = sum(drops(world.core).values())
    world.now += 10
    member.session.up_counter += 1
    datagram = control_datagram(
        kit.CRYPTO, member.session.keys.up, KNOCKING, member.session.id, member.session.up_counter + 1, body
    )
    world.core.handle_trains(world.now, [Train(host.endpoint, datagram, len(datagram))])
    assert world.core.drain_trains() == [] and sum(drops(world.core).values()) == before + 1
    assert read_knock(body) is None or len(body) in KNOCK_SIZES


_FUZZ_WORLD = World()
_FUZZ = (_FUZZ_WORLD, _FUZZ_WORLD.join(1, UDP))


@given(st.binary(max_size=80), st.integers(0, 3))
def test_whatever_comes_to_a_second_socket_is_strange(data: bytes, kind: int) -> None:
    trial = RelayTrial()
    trial.ask(os.urandom)
    head = (b"", b"\xe1", bytes((KNOCKED,)), b"\x01\x01\x00\x0c\x21\x12\xa4\x42")[kind]
    assert trial.handle(head + data) is TrialHeard.STRANGE
    assert trial.challenge == b"" and trial.mapped is None


def test_an_exchange_is_whole_or_nothing() -> None:
    world = World()
    second = Second(world)
    hello, request = second.trial.ask(second.entropy)
    assert second.send(request) == [TrialHeard.HALF]
    late_hello, late_request = second.trial.ask(second.entropy)  # the first try was lost
    assert second.send(hello) == [TrialHeard.STRANGE] and second.send(request) == [TrialHeard.STRANGE]
    assert second.send(late_hello) == [TrialHeard.HALF] and second.trial.challenge == b""
    assert second.send(late_request) == [TrialHeard.EXCHANGED]
    known = second.trial.challenge
    second.trial.ask(second.entropy)
    assert second.trial.challenge == known  # until another is there, a knock for this one may still come
    assert second.send(hello, late_request) == [TrialHeard.STRANGE] * 2


def test_without_a_carrier_there_is_no_knock() -> None:
    assert not kit.make_client(1).knock(kit.NOW, bytes(24), (bytes(4), 1))


def received(sock: socket.socket) -> Iterator[bytes]:
    """What is there."""
    with suppress(BlockingIOError):
        while True:
            yield sock.recv(2_048)


@pytest.mark.parametrize("carrier", [UDP, TLS], ids=["udp", "tls"])
def test_a_search_for_a_bindings_life_with_a_relay_for_its_server(tmp_path: Path, carrier: Carrier) -> None:
    """Over real sockets, up to the first silence: the search opens, proves that a knock comes in, and warms."""
    with RelayProcess(tmp_path / "relay") as relay, driving(Driver(relay, 1, carrier)) as (member,):
        search = BindingSearch(time.monotonic(), random.random)
        trials: dict[int, tuple[RelayTrial, socket.socket]] = {}

        def turn() -> bool:
            now = time.monotonic()
            search.handle_timeout(now)
            for wish in search.drain_wishes():
                if isinstance(wish, Close):
                    trials.pop(wish.trial)[1].close()
                    continue
                if wish.trial not in trials:
                    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
                    sock.connect(("127.0.0.1", relay.ports["udp"]))
                    trials[wish.trial] = (RelayTrial(), sock)
                trial, sock = trials[wish.trial]
                if isinstance(wish, Exchange):
                    for datagram in trial.ask(os.urandom):
                        sock.send(datagram)
                elif trial.mapped is not None:
                    member.client.knock(now, trial.challenge, trial.mapped)
                    member.push()
            for number, (trial, sock) in list(trials.items()):
                for datagram in received(sock):
                    heard = trial.handle(datagram)
                    if heard is TrialHeard.EXCHANGED:
                        search.answered(now, number)
                    elif heard is TrialHeard.KNOCKED:
                        search.knocked(now, number)
            return search.phase is Phase.WARMING

        try:
            pump([member], turn)
        finally:
            for _, sock in trials.values():
                sock.close()
