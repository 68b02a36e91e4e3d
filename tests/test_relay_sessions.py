"""A device's sessions and connections at relays, its own and those of its peers: with real relay cores."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeagent.proto.endpoint import Endpoint
from edgeagent.proto.errors import LocalProtocolError
from edgeagent.proto.relay_datagram_client import CHANNELS_MAX
from edgeagent.proto.relay_endpoint import RelayEndpoint
from edgeagent.proto.relay_events import Carrier
from edgeagent.proto.relay_frames import DATA, DATAGRAM_HEAD, KEY_SIZE
from edgeagent.proto.relay_probe import Liveness
from edgeagent.proto.relay_sessions import ENDPOINTS_MAX, IDLE_S, SESSIONS_MAX, RelaySessions
from edgeagent.proto.relays import GONE_MAX, YIELD_S
from tests.relay import kit
from tests.relay.site import UDP_PORT, Site, SiteMember

V4 = Endpoint(("198.51.100.1", UDP_PORT))
V6 = Endpoint(("2001:db8::1", UDP_PORT, 0, 0))
V6_ADDRESS = (bytes((0x20, 1, 0x0D, 0xB8)) + bytes(11) + b"\x01", UDP_PORT)


# Sessions at peers' relays


def test_packets_cross_between_members_of_different_homes() -> None:
    site = Site(2)
    a, b = site.add(1), site.add(2, *reversed(site.relays))
    site.advance(1.0)
    assert (a.homes[-1], b.homes[-1]) == ("r1", "r2")
    assert a.send("r2", b, b"to b") and b.send("r1", a, b"to a")
    site.advance(1.0)
    assert b.packets == [(b"to b", RelayEndpoint("r2", a.key))] and a.packets == [(b"to a", RelayEndpoint("r1", b.key))]
    site.advance(IDLE_S + 1.0)
    assert (set(a.carriers()), set(b.carriers())) == ({"r1"}, {"r2"})


def test_a_member_that_is_not_there_is_told_of() -> None:
    site = Site(1)
    member = site.add(1)
    site.advance(1.0)
    for _ in range(5):
        member.send("r1", kit.public_key(9))
        site.advance(0.1)
    assert set(member.gone) == {kit.public_key(9)}
    member.gone.clear()
    for number in range(3 * GONE_MAX):
        member.relays.send(site.now, RelayEndpoint("r1", kit.public_key(1_000 + number)), [b"x"], 0)
    session = member.relays.sessions.all[0]
    site.advance(0.009)
    for relay_says in site._flights[:]:
        relay_says[2]()
    assert len(member.relays._gone) <= GONE_MAX and session in member.relays.sessions.all


def test_home_keeps_its_session_and_peers_relays_do_not_push_each_other_out() -> None:
    site = Site(10)
    member = site.add(1)
    site.advance(1.0)
    others = site.relays[1:]
    logins: dict[str, int] = {}
    before: set[str] = set()
    for round_ in range(100):
        for relay in others:
            member.send(relay, kit.public_key(9))
        site.advance(0.1)
        now = set(member.carriers())
        assert "r1" in now and len(now) <= SESSIONS_MAX
        for name in now - before:
            logins[name] = logins.get(name, 0) + 1
        before = now
        assert round_ < 3 or len(now) == SESSIONS_MAX
    assert max(logins.values()) == 1, "no session began twice"
    assert member.drops()["relay-not-up"] > 0
    # One that is idle makes room
    site.advance(YIELD_S)
    late = next(relay for relay in others if relay.id not in member.carriers())
    assert member.send(late, kit.public_key(9))
    site.advance(1.0)
    assert member.carriers()[late.id] == "udp" and len(member.carriers()) == SESSIONS_MAX
    assert member.homes == [None, "r1"]


def test_a_new_home_is_let_in_even_when_all_are_busy() -> None:
    site = Site(8)
    member = site.add(1)
    site.advance(1.0)
    for _ in range(30):
        for relay in site.relays[1:SESSIONS_MAX]:
            member.send(relay, kit.public_key(9))
        site.advance(0.1)
    for _ in range(10):
        member.relays.measured(site.now, "r8", Endpoint(("198.51.100.8", UDP_PORT)), 0.001)
        for relay in site.relays[1:SESSIONS_MAX]:
            member.send(relay, kit.public_key(9))
        site.advance(0.1)
    assert member.homes[-1] == "r8"


def test_sessions_are_begun_once_and_within_the_ceiling() -> None:
    sessions = RelaySessions(kit.CRYPTO, random.Random(1).randbytes, random.Random(1).random)
    site = Site(SESSIONS_MAX + 1)
    for relay in site.relays[:SESSIONS_MAX]:
        sessions.begin(0.0, relay.info, kit.private_key(1), b"", None)
    with pytest.raises(LocalProtocolError):
        sessions.begin(0.0, site.relays[-1].info, kit.private_key(1), b"", None)
    sessions.end(0.0, sessions.all[0])
    with pytest.raises(LocalProtocolError):
        sessions.begin(0.0, site.relays[1].info, kit.private_key(1), b"", None)


def test_leaving_is_told_to_the_relays() -> None:
    site = Site(2)
    a, b = site.add(1), site.add(2, *reversed(site.relays))
    site.advance(1.0)
    a.send("r2", b)
    site.advance(1.0)
    a.relays.close(site.now)
    assert a.relays.sessions.all == [] and a.relays.poll_timeout() is None
    site.advance(1.0)
    assert [relay.members() for relay in site.relays] == [0, 1]


# Connections


def test_a_connection_that_ended_does_not_speak_for_the_next_one() -> None:
    """Its last words may come after the client has asked for another: no number is given twice."""
    site = Site(1)
    site.relays[0].udp = False
    member = site.add(1)
    site.advance(3.0)
    session = member.relays.sessions.all[0]
    old = session.stream
    assert old is not None and member.carriers() == {"r1": "tls"}
    member.relays.network_changed(site.now)
    new = session.stream
    assert new is not None and new != old
    member.relays.sessions.stream_blocked(old, blocked=True)
    member.relays.handle_stream(site.now, old, b"\xff" * 50)
    member.relays.stream_closed(site.now, old)
    member.relays.stream_opened(site.now, old)
    site.advance(1.0)
    assert session.stream == new and member.carriers() == {"r1": "tls"} and member.homes == [None, "r1"]
    assert len({number for _, number in member.opened}) == len(member.opened)


def test_a_connection_that_takes_nothing_gets_nothing_and_little_waits() -> None:
    site = Site(1)
    site.relays[0].udp = False
    a, b = site.add(1), site.add(2)
    site.advance(3.0)
    session = a.relays.sessions.all[0]
    assert session.stream is not None
    a.relays.sessions.stream_blocked(session.stream, blocked=True)
    for _ in range(10_000):
        a.relays.send(site.now, RelayEndpoint("r1", b.key), [bytes(1_400)] * 3, 0)
    assert a.relays.drain_stream_writes() == []
    assert a.drops()["relay-queue-full"] == 30_000 - 32
    a.relays.sessions.stream_blocked(session.stream, blocked=False)
    ((number, data),) = a.relays.drain_stream_writes()
    assert number == session.stream and len(data) <= 33 * 1_440
    assert a.relays.drain_stream_writes() == []


def test_a_connection_that_never_takes_anything_again_is_given_up() -> None:
    site = Site(2)
    for relay in site.relays:
        relay.udp = False
    member = site.add(1)
    site.advance(3.0)
    home = member.homes[-1]
    session = next(each for each in member.relays.sessions.all if each.relay.id == home)
    assert session.stream is not None and home is not None
    stuck = session.stream
    member.relays.sessions.stream_blocked(stuck, blocked=True)
    for _ in range(300):
        member.send(home, kit.public_key(9))
        site.advance(0.1)
    assert session.stream != stuck and member.homes[-1] not in (None, home)


def test_frames_in_single_bytes_are_frames() -> None:
    site = Site(1)
    site.relays[0].udp = False
    a, b = site.add(1), site.add(2)
    whole = b.relays.handle_stream

    def in_pieces(now: float, number: int, data: bytes) -> None:
        for at in range(len(data)):
            whole(now, number, data[at : at + 1])

    b.relays.handle_stream = in_pieces  # type: ignore[method-assign]
    site.advance(3.0)
    a.send("r1", b, b"x" * 1_400)
    site.advance(1.0)
    assert [packet for packet, _ in b.packets] == [b"x" * 1_400]


@pytest.mark.parametrize(
    "garbage", [b"\0" * 40, b"\x01\xff\xff", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x06\x00\x01a"]
)
def test_garbage_ends_the_connection_and_is_not_asked_for_again_at_once(garbage: bytes) -> None:
    site = Site(1)
    site.relays[0].udp = False
    member = site.add(1)
    site.advance(1.0)
    for relay in site.relays:
        relay.tls = False  # from here on only we speak
    began = site.now
    for _ in range(600):
        for session in member.relays.sessions.all:
            if session.stream is not None:
                member.relays.stream_opened(site.now, session.stream)
                member.relays.handle_stream(site.now, session.stream, garbage)
        site.advance(0.1)
    assert len(member.opened) <= 4 + (site.now - began) / 1.0
    drops = member.drops()
    assert drops.get("relay-malformed", 0) + drops.get("relay-unexpected", 0) > 0


# A renewed node key


def test_with_a_new_key_the_old_one_is_heard_for_as_long_as_it_is_used() -> None:
    site = Site(1)
    a, b = site.add(1), site.add(2)
    old = a.key
    site.advance(1.0)
    a.renew(50)
    site.advance(1.0)
    assert site.relays[0].members() == 3 and len(a.relays.sessions.all) == 2
    for _ in range(100):
        b.send("r1", old, b"to the old one")
        b.send("r1", a.key, b"to the new one")
        site.advance(1.0)
    assert a.packets.count((b"to the old one", RelayEndpoint("r1", b.key))) == 100
    assert a.packets.count((b"to the new one", RelayEndpoint("r1", b.key))) == 100
    site.advance(IDLE_S + 1.0)
    assert [each.node_key for each in a.relays.sessions.all] == [a.key] and site.relays[0].members() == 2
    assert a.homes == [None, "r1"] and a.drops() == {}


def test_an_old_key_that_loses_its_pass_is_no_fault_of_the_relay() -> None:
    site = Site(2)
    a, b = site.add(1), site.add(2)
    old = a.key
    site.advance(1.0)
    passes = [kit.make_pass(1, seq=2, regions=[kit.REGION], ends=40), kit.make_pass(50, regions=[kit.REGION])]
    a.keys.append(50)
    a.use(passes=passes)
    a.relays.sessions.all[0].client._datagram._fail(None)  # so that it logs in with the pass that ends
    a.relays.set_node_key(site.now, kit.private_key(50))
    for _ in range(200):
        b.send("r1", old)
        a.send("r1", b)
        site.advance(1.0)
    assert a.homes == [None, "r1"] and a.carriers() == {"r1": "udp"}
    assert [each.node_key for each in a.relays.sessions.all] == [a.key]


def test_two_sessions_at_one_relay_survive_its_restart() -> None:
    site = Site(1)
    a = site.add(1)
    site.advance(1.0)
    a.renew(50)
    site.advance(1.0)
    site.relays[0].start()
    for _ in range(50):
        for session in a.relays.sessions.all:
            session.used_at = site.now
        a.send("r1", kit.public_key(9))
        site.advance(0.5)
    assert all(each.client.alive and each.client.carrier is Carrier.DATAGRAM for each in a.relays.sessions.all)
    assert len(a.relays.sessions.all) == 2 and site.relays[0].members() == 2


def test_a_relay_cannot_make_us_talk_to_ourselves() -> None:
    """With two keys at one relay, what it brings to one of them from the other would be answered to ourselves."""
    site = Site(1)
    a = site.add(1)
    old = a.key
    site.advance(1.0)
    a.renew(50)
    site.advance(1.0)
    by_old = next(each for each in a.relays.sessions.all if each.node_key == old)
    head = DATAGRAM_HEAD.pack(DATA, 0, 0, by_old.client._datagram._session)
    a.datagram(head + a.key + b"\x01\0\0\0from myself", Endpoint((site.relays[0].address, UDP_PORT)))
    assert a.relays.drain_packets(site.now) == []
    assert not a.send("r1", a.key) and not a.send("nowhere", a.key)
    assert a.drops() == {"relay-ourselves": 3}


# Relays that lie


def test_packets_from_keys_that_nobody_knows_are_packets_and_no_memory() -> None:
    site = Site(1)
    member = site.add(1)
    site.advance(1.0)
    session = member.relays.sessions.all[0]
    head = DATAGRAM_HEAD.pack(DATA, 0, 0, session.client._datagram._session)
    source = Endpoint((site.relays[0].address, UDP_PORT))
    rng = random.Random(5)
    for _ in range(20 * ENDPOINTS_MAX):
        member.relays.handle_datagram(site.now, head + rng.randbytes(KEY_SIZE) + b"junk", source, 0)
    batch = member.relays.drain_packets(site.now)
    assert len(batch) == 20 * ENDPOINTS_MAX
    assert len(member.relays.sessions._endpoints) == ENDPOINTS_MAX
    channels = session.client._datagram
    assert len(channels._bindings) == len(channels._keys_of) <= 256


def test_a_relay_that_bears_very_many_channels_does_not_make_us_keep_them() -> None:
    site = Site(1)
    relay = site.relays[0]
    relay.core = kit.make_core(relay=relay.id, private=relay.private, channels=65_535)
    member = site.add(1)
    site.advance(1.0)
    client = member.relays.sessions.all[0].client._datagram
    head = DATAGRAM_HEAD.pack(DATA, 0, 0, client._session)
    for number in range(3 * CHANNELS_MAX):
        member.relays.handle_datagram(site.now, head + number.to_bytes(KEY_SIZE, "big") + b"x", V4, 0)
    assert len(client._bindings) == len(client._keys_of) < CHANNELS_MAX


def test_strangers_are_counted() -> None:
    site = Site(1)
    member = site.add(1)
    site.advance(1.0)
    datagram = DATAGRAM_HEAD.pack(DATA, 0, 0, 1) + bytes(KEY_SIZE) + b"x"
    for source in (Endpoint(("198.51.100.1", 3479)), Endpoint(("198.51.100.66", UDP_PORT)), V6):
        member.relays.handle_datagram(site.now, datagram, source, 0)
    member.relays.handle_datagram(site.now, datagram, V4, 0)
    assert member.drops() == {"relay-stranger": 3, "relay-other-session": 1}


def test_a_relay_that_bears_no_silence_makes_nobody_shout() -> None:
    liveness = Liveness(0.0, random.Random(1).randbytes, active_s=1.0, idle_s=25.0, silence_s=0.0)
    assert liveness.is_probe_answer(0.0, liveness.probe(0.0)) and liveness.due() == 1.0
    liveness.set_idle(0.0)
    assert liveness.due() == 1.0


# Anything


NAMES = "send udp tls forwards kill start drain measure network demand wake map resolve broker key block wait wait jump"
ACTIONS = st.lists(st.tuples(st.sampled_from(NAMES.split()), st.integers(0, 9)), max_size=40)


@settings(deadline=None, max_examples=60)
@given(actions=ACTIONS)
def test_any_order_of_events(actions: list[tuple[str, int]]) -> None:
    site = Site(5)
    site.relays[3].hosts = ["relay.example:443"]
    a, b = site.add(1, families=[4, 16]), site.add(2)
    keys = 1
    for action, number in actions:
        relay = site.relays[number % 5]
        if action == "send":
            for _ in range(number):
                a.send(relay, b)
        elif action in ("udp", "tls", "forwards"):
            setattr(relay, action, not getattr(relay, action))
        elif action in ("kill", "start"):
            getattr(relay, action)()
        elif action == "drain" and relay.core is not None:
            relay.core.begin_drain(site.now, number)
        elif action == "measure":
            a.relays.measured(site.now, relay.id, Endpoint((relay.address, UDP_PORT)), number / 50)
        elif action == "network":
            a.relays.network_changed(site.now)
        elif action == "demand":
            a.relays.set_on_demand(site.now, number % 2 == 0)
        elif action == "wake":
            a.relays.wake(site.now)
        elif action == "map":
            a.use(*site.relays[number % 4 :])
        elif action == "resolve":
            a.relays.set_addresses(site.now, "r4", [V6_ADDRESS, (bytes((198, 51, 100, number)), UDP_PORT)])
        elif action == "broker":
            a.relays.broker_reachable = number % 2 == 0
        elif action == "key" and keys < 4:
            keys += 1
            a.renew(50 + keys)
        elif action == "block":
            for session in a.relays.sessions.all:
                if session.stream is not None:
                    a.relays.sessions.stream_blocked(session.stream, blocked=number % 2 == 0)
        elif action == "wait":
            site.advance(number**3 / 10)
        elif action == "jump":
            site.now += number * 60.0
        site.crank()
        a.relays.settle(site.now)
        check(a)
    for relay in site.relays:
        relay.udp = relay.tls = relay.forwards = True
        relay.start()
    a.relays.set_on_demand(site.now, False)
    a.relays.broker_reachable = True
    a.use()
    a.relays.network_changed(site.now)
    site.advance(60.0)
    assert a.relays.home is not None
    assert a.send(b.relays.home or "", b, b"in the end")
    site.advance(40.0)
    a.send(b.relays.home or "", b, b"in the end")
    site.advance(2.0)
    assert (b"in the end", RelayEndpoint(b.relays.home or "", a.key)) in b.packets
    a.wakes = 0
    site.advance(600.0)
    assert a.wakes <= 300
    check(a)


def check(member: SiteMember) -> None:
    sessions = member.relays.sessions
    assert len(sessions.all) <= SESSIONS_MAX
    keys = [(each.relay.id, each.node_key) for each in sessions.all]
    assert len(set(keys)) == len(keys)
    assert sorted(sessions._by_stream) == sorted(each.stream for each in sessions.all if each.stream is not None)
    listening = [each for mine in sessions._by_source.values() for each in mine]
    assert len(listening) == len([each for each in sessions.all if each.udp is not None])
    assert all(each in sessions.all for each in listening)
    names = set(member.relays._relays)
    addresses = member.relays._addresses
    assert set(addresses._endpoints) == names and set(addresses._answered) <= names
    assert all(each.relay.id in names for each in sessions.all)
