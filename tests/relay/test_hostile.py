"""Whatever comes, on either carrier and on either side: read or dropped by name, bounded, and no mirror for anybody."""

from __future__ import annotations

import random
import subprocess
import sys
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeagent.proto.endpoint import Endpoint
from edgeagent.proto.relay_events import Carrier
from edgeagent.proto.relay_frames import (
    BIND,
    BIND_BODY,
    BYE,
    CHALLENGED,
    CONTROL_BYTES_MIN,
    DATA,
    DATAGRAM_FIRST,
    DATAGRAM_HEAD,
    DATAGRAM_LAST,
    FRAME_BYTES_MAX,
    FRAME_HEAD,
    FRAME_HEAD_SIZE,
    FRAME_SIZES,
    HELLO_BYTES,
    REBIND,
    FrameSplitter,
    Gone,
    Refusal,
    RelayError,
    control_datagram,
    frame,
    open_control,
    to_gone,
    to_refusal,
)
from edgeagent.proto.relay_http import HEAD_BYTES_MAX, HttpError, ResponseReader
from edgeagent.proto.relay_login import SessionKeys, open_login, open_welcome
from relay.core.http import RequestReader
from relay.core.reasons import RelayDrop
from relay.core.shared import Train
from tests.relay import kit
from tests.relay.driver import ROOT
from tests.relay.kit import World, drops

UDP, TLS = Carrier.DATAGRAM, Carrier.STREAM
STRANGER = Endpoint(("203.0.113.5", 5_555), (bytes((198, 51, 100, 1)), 2))

kinds = st.sampled_from(sorted(FRAME_SIZES))


@st.composite
def frames(draw: st.DrawFn) -> tuple[int, bytes]:
    kind = draw(kinds)
    least, most = FRAME_SIZES[kind]
    return kind, draw(st.binary(min_size=least, max_size=min(most, least + 60)))


@given(st.lists(frames(), max_size=12), st.lists(st.integers(0, 2_000), max_size=30))
def test_frames_survive_any_cutting(sent: list[tuple[int, bytes]], cuts: list[int]) -> None:
    stream = b"".join(frame(kind, payload) for kind, payload in sent)
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    splitter = FrameSplitter()
    received = []
    for start, stop in pairwise(edges):
        received += splitter.feed(stream[start:stop])
        assert splitter.waiting_bytes < FRAME_HEAD_SIZE + FRAME_BYTES_MAX
    assert received == sent


@given(st.integers(0, 255), st.integers(0, 65_535), st.binary(max_size=100))
def test_lengths_that_lie_end_the_stream(kind: int, size: int, payload: bytes) -> None:
    splitter = FrameSplitter()
    least, most = FRAME_SIZES.get(kind, (1, 0))
    try:
        splitter.feed(FRAME_HEAD.pack(kind, size) + payload)
        assert least <= size <= most or splitter.waiting_bytes <= FRAME_HEAD_SIZE
    except RelayError as error:
        assert error.reason is Refusal.BAD_FRAME


@given(st.binary(max_size=600), st.lists(frames(), max_size=4))
def test_a_stranger_on_a_stream_gets_nothing_but_a_challenge_and_a_refusal(
    data: bytes, more: list[tuple[int, bytes]]
) -> None:
    for stream in (data, b"".join(frame(kind, payload) for kind, payload in more) + data):
        core = kit.make_core()
        core.stream_opened(kit.NOW, 1, bytes(4))
        core.stream_received(kit.NOW, 1, stream)
        said = FrameSplitter().feed(b"".join(data for _, data in core.drain_writes()))
        assert [kind for kind, _ in said] in ([0x01], [0x01, 0x04])
        assert len(core.shared.roster) == 0 and core.drain_trains() == []
        assert core.drain_closes() == ([1] if len(said) == 2 else [])


@given(st.lists(frames(), min_size=1, max_size=6), st.binary(max_size=40))
def test_a_member_may_say_anything(said: list[tuple[int, bytes]], rest: bytes) -> None:
    world = World()
    a, b = world.join(1, TLS), world.join(2, UDP)
    assert a.conn is not None
    world.core.stream_received(world.now, a.conn, b"".join(frame(kind, payload) for kind, payload in said) + rest)
    world.settle()
    world.send(b, a, b"the other one is unharmed")
    assert b.client.alive


@given(
    st.one_of(
        st.binary(min_size=1, max_size=300),
        st.builds(
            lambda kind, rest: bytes((kind, 0)) + rest,
            st.integers(DATAGRAM_FIRST, DATAGRAM_LAST),
            st.binary(max_size=600),
        ),
    ),
    st.integers(1, 700),
)
def test_no_answer_to_a_stranger_is_larger_than_what_it_sent(data: bytes, segment: int) -> None:
    core = kit.make_core()
    core.handle_trains(kit.NOW, [Train(STRANGER, data, min(segment, len(data)))])
    answers = core.drain_trains()
    assert sum(len(answer.data) for answer in answers) <= len(data)
    assert all(answer.endpoint == STRANGER for answer in answers)
    assert len(core.shared.roster) == 0


def test_each_kind_of_first_datagram_is_dropped_or_answered_with_less() -> None:
    answered: dict[int, set[tuple[int, int]]] = {}
    for kind in range(256):
        for size in (1, 7, 8, 20, 39, 40, 80, 300, 1_200):
            core = kit.make_core()
            datagram = (bytes((kind,)) + bytes(size))[:size]
            core.handle_trains(kit.NOW, [Train(STRANGER, datagram, size)])
            out = core.drain_trains()
            assert len(out) <= 1
            if out:
                answered.setdefault(kind, set()).add((size, len(out[0].data)))
                assert len(out[0].data) <= size
            else:
                assert sum(drops(core).values()) == 1
    # hello; login with a challenge that is none; data of an unknown session; a rebind of an unknown session
    assert sorted(answered) == [0xE0, 0xE2, DATA, REBIND]
    assert {size for size, _ in answered[0xE0]} == {40, 80, 300, 1_200}


def test_hints_to_unknown_sessions_are_few() -> None:
    core = kit.make_core(logins_per_source_per_s=5)
    datagram = DATAGRAM_HEAD.pack(DATA, 0, 5, 77) + bytes(100)
    core.handle_trains(kit.NOW, [Train(STRANGER, datagram * 50, len(datagram)) for _ in range(50)])
    answers = core.drain_trains()
    assert len(answers) == 8 and {answer.data[0] for answer in answers} == {CHALLENGED}
    assert drops(core) == {"unknown-session": 2_500}


def test_a_short_hello_is_not_answered() -> None:
    core = kit.make_core()
    core.handle_trains(kit.NOW, [Train(STRANGER, b"\xe0" + bytes(HELLO_BYTES - 2), HELLO_BYTES - 1)])
    assert core.drain_trains() == [] and drops(core) == {"short-hello": 1}


@given(st.data())
def test_a_session_is_not_moved_or_bound_by_somebody_else(data: st.DataObject) -> None:
    """Datagrams of a member, captured and changed, or sent again as they were."""
    world = World()
    a, b = world.join(1, UDP), world.join(2, UDP)
    a.client.send(world.now, b.key, [b"hello"])
    captured = [datagram for datagram, _ in a.client.drain_datagrams()]
    world.core.handle_trains(world.now, [Train(a.endpoint, datagram, len(datagram)) for datagram in captured])
    world.settle()
    session = next(iter(world.core.shared.roster.by_session.values())).session
    assert session is not None
    before = (session.endpoint, dict(session.channels), session.up_counter)
    for datagram in captured:
        if datagram[0] == BIND:
            world.core.handle_trains(world.now, [Train(a.endpoint, datagram, len(datagram))])  # again
            at = data.draw(st.integers(8, len(datagram) - 1))
            changed = datagram[:at] + bytes((datagram[at] ^ data.draw(st.integers(1, 255)),)) + datagram[at + 1 :]
            world.core.handle_trains(world.now, [Train(a.endpoint, changed, len(changed))])
        world.core.handle_trains(world.now, [Train(STRANGER, datagram, len(datagram))])
    for kind in (REBIND, BYE):
        forged = control_datagram(kit.CRYPTO, bytes(32), kind, session.id, 999, bytes(24))
        world.core.handle_trains(world.now, [Train(STRANGER, forged, len(forged))])
    assert (session.endpoint, session.channels, session.up_counter) == before
    assert drops(world.core)["bad-mac"] >= 3
    assert a.client.alive


def test_a_member_binds_within_bounds() -> None:
    world = World(kit.make_core(channels=4))
    a = world.join(1, UDP)
    session = next(iter(world.core.shared.roster.by_session.values())).session
    assert session is not None

    def bind(channel: int, key: bytes, forget: int = 0) -> None:
        counter = session.up_counter + 1
        body = BIND_BODY.pack(key, forget)
        datagram = control_datagram(kit.CRYPTO, session.keys.up, BIND, session.id, counter, body, channel)
        world.core.handle_trains(world.now, [Train(a.endpoint, datagram, len(datagram))])

    keys = [kit.public_key(n) for n in range(10, 20)]
    for n in range(5):
        bind(2 + n, keys[n])
    assert drops(world.core) == {"channels-full": 2}
    assert session.channels == {1: a.key, 2: keys[0], 3: keys[1], 4: keys[2]}
    bind(9, keys[5], forget=3)
    bind(4, keys[6])  # another meaning
    bind(8, keys[0])  # another number
    assert session.channels == {1: a.key, 9: keys[5], 4: keys[6], 8: keys[0]}
    assert session.numbers == {key: number for number, key in session.channels.items()}
    for channel, key in ((0, keys[7]), (1, keys[7]), (10, a.key)):
        bind(channel, key)
    assert drops(world.core)["bad-datagram"] == 3
    for data, reason in (
        (DATAGRAM_HEAD.pack(DATA, 0, 77, session.id) + b"x", RelayDrop.UNBOUND_CHANNEL),
        (DATAGRAM_HEAD.pack(DATA, 1, 1, session.id) + b"x", RelayDrop.BAD_DATAGRAM),
        (DATAGRAM_HEAD.pack(DATA, 0, 1, session.id), RelayDrop.BAD_DATAGRAM),
        (DATAGRAM_HEAD.pack(DATA, 0, 0, session.id) + bytes(32), RelayDrop.BAD_DATAGRAM),
        (DATAGRAM_HEAD.pack(DATA, 0, 4, session.id) + bytes(9_217), RelayDrop.PACKET_TOO_LONG),
        (DATAGRAM_HEAD.pack(DATA, 0, 0, session.id) + keys[0] + bytes(9_217), RelayDrop.PACKET_TOO_LONG),
    ):
        before = world.core.shared.drops[reason]
        world.core.handle_trains(world.now, [Train(a.endpoint, data, len(data))])
        assert world.core.shared.drops[reason] == before + 1


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=80),
            st.builds(
                lambda kind, rest: bytes((kind, 0)) + rest,
                st.integers(DATAGRAM_FIRST, DATAGRAM_LAST),
                st.binary(max_size=80),
            ),
        ),
        max_size=10,
    ),
    st.sampled_from(("idle", "hello", "login", "up")),
)
def test_a_client_bears_any_datagram(datagrams: list[bytes], state: str) -> None:
    world = World()
    host = world.add(1, carriers=(UDP,)) if state != "idle" else None
    client = host.client if host is not None else kit.make_client(1)
    if state == "login":
        world.keep = lambda up, datagram: datagram[0] in (0xE0, 0xE1)
    if state in ("login", "up"):
        world.settle()
    for datagram in datagrams:
        client.handle_datagrams(world.now, [(datagram, 0)])
    assert client.drain_packets() == [] and sum(client.drops.values()) >= len(datagrams) - 1
    if state == "up":
        world.settle()
        assert client.alive


@given(st.lists(frames(), max_size=5), st.binary(max_size=60), st.sampled_from(("challenge", "login", "up")))
def test_a_client_bears_any_stream(said: list[tuple[int, bytes]], rest: bytes, state: str) -> None:
    world = World()
    host = world.add(1, carriers=(TLS,))
    if state == "up":
        world.settle()
    else:
        host.client.drain_events()
        host.client.stream_opened(world.now)
        if state == "login":
            host.client.handle_stream(world.now, frame(0x01, bytes(24)))
    host.client.handle_stream(world.now, b"".join(frame(kind, payload) for kind, payload in said) + rest)
    for _, packet, _ in host.client.drain_packets():
        assert packet
    due = host.client.poll_timeout()
    assert due is not None
    host.client.handle_timeout(due)


@given(st.binary(max_size=400))
def test_logins_and_welcomes_that_are_none(data: bytes) -> None:
    relay = {"relay_private": kit.RELAY_PRIVATE, "relay_key": kit.RELAY_KEY}
    with pytest.raises(RelayError) as caught:
        open_login(kit.CRYPTO, relay="fra-1", challenge=bytes(24), login=data, **relay)
    assert caught.value.reason is Refusal.BAD_LOGIN
    assert open_control(kit.CRYPTO, bytes(32), data, -1) is None
    with pytest.raises(RelayError):
        open_welcome(kit.CRYPTO, SessionKeys(*[bytes(32)] * 3), data[:24].ljust(24, b"x"))


@given(st.binary(max_size=300), st.binary(max_size=100))
def test_http_heads_that_are_none(data: bytes, more: bytes) -> None:
    for start in (b"", b"GET / HTTP/1.1\r\n", b"HTTP/1.1 101 x\r\n"):
        for reader in (RequestReader(), ResponseReader()):
            try:
                reader.feed(start + data)
                reader.feed(more + b"\r\n\r\n")
            except HttpError:
                continue


def test_http_heads_are_bounded() -> None:
    for reader in (RequestReader(), ResponseReader()):
        with pytest.raises(HttpError, match="more than 8192"):
            for _ in range(HEAD_BYTES_MAX):
                reader.feed(b"x" * 16)
    with pytest.raises(HttpError, match="64 headers"):
        RequestReader().feed(b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 65 + b"\r\n")


@pytest.mark.parametrize("reader", ["relay.core.http.RequestReader", "edgeagent.proto.relay_http.ResponseReader"])
def test_a_head_of_blanks_is_refused_and_not_pondered(reader: str) -> None:
    """In a process of its own, which can be ended: a pattern that backtracks would need minutes or hours."""
    module, _, name = reader.rpartition(".")
    first = "HTTP/1.1 101 x" if name == "ResponseReader" else "GET / HTTP/1.1"
    script = f"""if True:
        from {module} import {name}
        from edgeagent.proto.relay_http import HEAD_BYTES_MAX, HttpError
        for blanks in (" ", "\\t", " \\t"):
            head = "{first}\\r\\na:" + (blanks * HEAD_BYTES_MAX)[: HEAD_BYTES_MAX - 40]
            try:
                {name}().feed(head.encode() + b"\\x01\\r\\n\\r\\n")
            except HttpError:
                print("refused")
            print({name}().feed(head.encode() + b"b \\t\\r\\n\\r\\n") is not None)
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.stdout.split() == ["refused", "True"] * 3, done.stderr


def test_blanks_around_a_value_are_none_of_it() -> None:
    response = ResponseReader().feed(b"HTTP/1.1 101 x\r\na: \t b  c\t \r\nd:\r\ne:  \r\n\r\n")
    assert response is not None and response.headers == {"a": "b  c", "d": "", "e": ""}


def test_codes_that_are_none() -> None:
    assert {to_refusal(reason.value) for reason in Refusal} == set(Refusal)
    assert to_gone(1) is Gone.NOT_HERE
    for function in (to_refusal, to_gone):
        with pytest.raises(RelayError):
            function(200)
    assert CONTROL_BYTES_MIN == 28


def test_a_night_of_noise() -> None:
    """Members that talk, and everything that crosses repeated, cut and flipped as well."""
    rng = random.Random(20_240_601)
    world = World()
    hosts = [world.join(n, rng.choice((UDP, TLS))) for n in range(1, 7)]
    for _ in range(400):
        a, b = rng.sample(hosts, 2)
        world.send(a, b, rng.randbytes(rng.randrange(1, 200)))
        if world.log:
            _, datagram = rng.choice(world.log[-50:])
            flipped = bytearray(datagram)
            flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
            cut = datagram[: rng.randrange(1, len(datagram) + 1)]
            for noise in (bytes(flipped), cut, datagram):
                source = rng.choice([STRANGER, *(host.endpoint for host in hosts)])
                world.core.handle_trains(world.now, [Train(source, noise, len(noise))])
                rng.choice(hosts).client.handle_datagrams(world.now, [(noise, 0)])
        world.advance(rng.random())
    assert all(host.client.alive for host in hosts)
    assert all(packet for host in hosts for _, packet in host.packets)
