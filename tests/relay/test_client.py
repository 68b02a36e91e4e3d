"""The client machine: which carrier, when it is alive, and what it does when a relay is slow, blind, gone or new."""

from __future__ import annotations

from itertools import pairwise

import pytest

from edgeagent.proto.causes import Direction
from edgeagent.proto.errors import LocalProtocolError
from edgeagent.proto.ledger import Cause
from edgeagent.proto.ratelimiter import RateLimiter
from edgeagent.proto.relay_client import WAITING_PACKETS_MAX
from edgeagent.proto.relay_datagram_client import DatagramState
from edgeagent.proto.relay_endpoint import RelayEndpoint
from edgeagent.proto.relay_events import (
    Carrier,
    CloseStream,
    OpenStream,
    PassRefused,
    RelayDown,
    RelaySuspect,
    RelayUp,
)
from edgeagent.proto.relay_frames import BIND, BOUND, DATA, DATAGRAM_HEAD, HELLO, WELCOMED
from edgeagent.proto.relay_http import (
    Response,
    ResponseReader,
    connect_request,
    is_probe_answer,
    probe_request,
    upgrade_request,
)
from tests.relay import kit
from tests.relay.kit import World

UDP, TLS = Carrier.DATAGRAM, Carrier.STREAM


def test_udp_is_taken_and_tls_not_even_opened() -> None:
    world = World()
    host = world.add(1)
    world.advance(5)
    assert host.client.carrier is UDP and host.client.alive and not host.told(OpenStream)
    assert host.client.latency_s == 0.0


def test_without_udp_tls_is_there_within_a_moment() -> None:
    world = World()
    world.udp_works = False
    host = world.add(1)
    world.advance(0.39)
    assert not host.told(OpenStream)
    world.advance(0.02)
    assert host.client.carrier is TLS and host.client.alive


def test_packets_wait_for_a_carrier_but_not_for_ever() -> None:
    world = World()
    b = world.join(2, UDP)
    a = world.add(1)
    for n in range(WAITING_PACKETS_MAX + 5):
        a.client.send(world.now, b.key, [bytes((n,))])
    world.settle()
    assert [packet for _, packet in b.packets] == [bytes((n,)) for n in range(5, WAITING_PACKETS_MAX + 5)]
    b.packets.clear()
    c = world.add(3)
    world.udp_works = world.tls_works = False
    c.client.send(world.now, b.key, [b"too old"])
    world.advance(6)
    world.udp_works = world.tls_works = True
    world.advance(20)
    assert c.client.alive and b.packets == []
    assert {reason.value: count for reason, count in c.client.drops.items() if count} == {"relay-not-up": 1}
    stopped = kit.make_client(9)
    stopped.send(world.now, b.key, [b"x"])
    assert sum(stopped.drops.values()) == 1


def test_udp_that_dies_is_replaced_and_taken_again() -> None:
    world = World()
    a, b = world.add(1), world.join(2, TLS)
    world.settle()
    assert a.client.carrier is UDP
    world.udp_works = False
    began = world.now
    sent = 0
    while a.client.carrier is not TLS:
        world.send(a, b, sent.to_bytes(2, "big"))
        sent += 1
        world.advance(0.05)
        assert world.now - began < 3
    world.send(b, a, b"over tls")
    assert a.packets[-1] == (b.key, b"over tls") and not a.told(RelayDown)
    world.udp_works = True
    world.advance(700)
    assert a.client.carrier is UDP and a.conn is None
    world.send(b, a, b"over udp")
    assert a.packets[-1] == (b.key, b"over udp")


def test_what_a_stream_carried_for_members_is_told_from_its_own() -> None:
    world = World()
    a, b = world.join(1, TLS), world.join(2, TLS)
    world.advance(600)  # probes of its own cross the relay meanwhile
    assert [sum(a.client.stream_carried.take(direction)) for direction in Direction] == [0, 0]
    data, keepalive = b"\4\0\0\0" + bytes(60), b"\4\0\0\0" + bytes(28)
    for packet in (data, keepalive, data):
        world.send(a, b, packet)
    sent, received = a.client.stream_carried.take(Direction.SENT), b.client.stream_carried.take(Direction.RECEIVED)
    assert sent == received
    assert (sent[Cause.PAYLOAD], sent[Cause.KEEPALIVE], sum(sent)) == (128, 32, 160)
    assert sum(a.client.stream_carried.take(Direction.SENT)) == sum(b.client.stream_carried.take(Direction.SENT)) == 0


def test_a_moment_of_loss_costs_no_carrier() -> None:
    world = World()
    a, b = world.add(1), world.join(2, UDP)
    world.settle()
    world.send(a, b, b"active")
    world.udp_works = False
    world.advance(1.2)  # one probe is lost
    world.udp_works = True
    world.advance(3)
    assert a.client.carrier is UDP and not a.told(OpenStream)


def test_a_suspicion_that_was_wrong_leaves_udp_as_it_was() -> None:
    """TLS came up beside UDP, UDP recovered: TLS goes, and what is sent to the member goes to the older login again."""
    world = World()
    a, b = world.add(1), world.join(2, TLS)
    world.settle()
    world.send(a, b, b"active")
    world.udp_works = False
    world.advance(2.2)
    assert a.client.alive and a.client.carrier is TLS
    assert a.told(OpenStream)
    world.udp_works = True
    world.advance(10)
    assert a.client.carrier is UDP and a.conn is None and len(a.told(CloseStream)) == 1
    before = len(a.packets)
    world.send(b, a, b"still by the first login")
    assert len(a.packets) == before + 1


@pytest.mark.parametrize("carrier", [UDP, TLS])
def test_a_relay_that_takes_and_forwards_nothing_is_noticed(carrier: Carrier) -> None:
    world = World()
    a, b = world.join(1, carrier), world.join(2, UDP)
    world.core._forwarder._route = lambda *_: None  # type: ignore[method-assign]
    world.core._forwarder.forward_train = lambda *_: None  # type: ignore[method-assign]
    began = world.now
    world.send(a, b, b"into the void")
    while not a.told(RelayDown):
        world.advance(0.1)
        assert world.now - began < 15
    assert a.client.carrier is None or not a.client.alive


def test_answers_that_are_only_late_keep_the_carrier() -> None:
    """Four seconds of full buffers: suspected, not given up, and not suspected once that is known to be the latency."""
    world = World()
    a, b = world.join(1, UDP), world.join(2, TLS)
    held: list[tuple[float, bytes]] = []

    def keep(up: bool, datagram: bytes) -> bool:
        if not up:
            held.append((world.now + 4.0, datagram))
        return up

    world.keep = keep
    for _ in range(300):
        world.send(a, b, b"x" * 60)
        world.advance(0.1)
        for at, datagram in list(held):
            if at <= world.now:
                held.remove((at, datagram))
                a.client.handle_datagrams(world.now, [(datagram, 0)])
                world.settle()
    assert a.client.carrier is UDP and not a.told(RelayDown)
    assert 1 <= len(a.told(RelaySuspect)) <= 4 and a.client.alive
    assert a.client.latency_s is not None and 2.0 < a.client.latency_s <= 4.2


def test_a_suspected_relay_is_said_once_and_given_up_later() -> None:
    world = World()
    a, b = world.join(1, UDP), world.join(2, TLS)
    world.send(a, b, b"active")
    world.udp_works = False
    world.advance(2.2)
    assert len(a.told(RelaySuspect)) == 1 and not a.client.alive and a.client.carrier is UDP
    world.advance(8)
    assert not a.told(RelayDown)
    world.advance(2)
    assert len(a.told(RelayDown)) == 1 and len(a.told(RelaySuspect)) == 1


def test_a_pass_that_was_renewed_in_time_leaves_no_gap() -> None:
    for carrier in (UDP, TLS):
        world = World()
        a = world.join(1, carrier, pass_object=kit.make_pass(1, ends=50))
        world.advance(30)
        a.client.set_pass(world.now, kit.make_pass(1, seq=2))
        world.advance(21)
        b = world.join(2, TLS)
        world.advance(4)
        assert a.client.alive and not a.told(PassRefused) and kit.refusals(world.core) == {"expired": 1}
        world.send(b, a, b"there again")
        assert a.packets == [(b.key, b"there again")]


def test_a_blind_relay_is_not_called_alive_after_login() -> None:
    world = World()
    world.core._forwarder.forward_train = lambda *_: None  # type: ignore[method-assign]
    a = world.add(1, carriers=(UDP,))
    world.settle()
    assert a.client.carrier is UDP and not a.client.alive


def test_an_idle_client_says_little() -> None:
    world = World()
    world.join(1, UDP)
    world.advance(60)
    world.log.clear()
    world.advance(250)
    assert [len(datagram) for _, datagram in world.log] == [17] * 20  # each 25 s, there and back


def test_a_changed_address_is_followed_at_the_first_packet() -> None:
    world = World()
    a, b = world.join(1, UDP), world.join(2, UDP)
    for _ in range(2):
        world.send(a, b, b"before")
        world.send(b, a, b"before")
    a.endpoint = type(a.endpoint)(("198.51.100.77", 1), a.endpoint.local)
    b.packets.clear()
    world.send(a, b, bytes(60))  # asks the relay's question, and is lost
    world.send(a, b, b"after")
    world.send(b, a, b"answer")
    assert b.packets == [(a.key, b"after")] and a.packets[-1] == (b.key, b"answer")
    assert kit.drops(world.core) == {"wrong-source": 1}
    assert not a.told(RelayDown)


def test_a_restarted_relay_is_logged_in_to_at_the_first_packet() -> None:
    world = World()
    a, b = world.join(1, UDP), world.join(2, UDP)
    world.core = kit.make_core(seed=99)
    world.now += 0.5
    world.send(a, b, bytes(60))
    world.send(b, a, bytes(60))
    assert len(world.core.shared.roster) == 2
    world.send(a, b, b"again")
    assert b.packets == [(a.key, b"again")]


def test_lost_datagrams_of_a_login_are_sent_again() -> None:
    for victim in (HELLO, 0xE1, 0xE2, WELCOMED):
        world = World()
        lost: list[bytes] = []

        def keep(up: bool, datagram: bytes, victim: int = victim, lost: list[bytes] = lost) -> bool:
            if datagram[0] != victim or len(lost) >= 2:
                return True
            lost.append(datagram)
            return False

        world.keep = keep
        a = world.add(1, carriers=(UDP,))
        world.advance(2)
        assert a.client.alive and len(lost) == 2
        assert len(world.core.shared.roster) == 1


def test_a_lost_bind_or_bound_costs_bytes_and_nothing_else() -> None:
    for victim in (BIND, BOUND):
        world = World()
        a, b = world.join(1, UDP), world.join(2, UDP)
        world.keep = lambda up, datagram, victim=victim: datagram[0] != victim  # type: ignore[misc]
        for _ in range(5):
            world.send(a, b, b"long way")
            world.send(b, a, b"long way")
            world.advance(1.1)
        world.keep = lambda up, datagram: True
        world.send(a, b, b"asks again")
        world.log.clear()
        world.send(a, b, b"short")
        assert [len(datagram) for up, datagram in world.log if up] == [8 + 5]
        assert len(b.packets) == 7 and len(a.packets) == 5


def test_more_peers_than_channels() -> None:
    world = World(kit.make_core(channels=4))
    a = world.join(1, UDP)
    peers = [world.join(n, TLS) for n in range(2, 12)]
    for turn in range(3):
        for peer in peers:
            world.send(a, peer, bytes((turn,)))
            world.send(peer, a, bytes((turn,)))
    assert all([packet for _, packet in peer.packets] == [b"\0", b"\1", b"\2"] for peer in peers)
    assert len(a.packets) == 30 and kit.drops(world.core) == {}
    assert {reason.value: count for reason, count in a.client.drops.items() if count} == {}
    session = next(iter(world.core.shared.roster.by_session.values())).session
    assert session is not None and len(session.channels) == 4


def test_a_late_datagram_on_a_channel_that_was_given_up_is_dropped() -> None:
    world = World(kit.make_core(channels=2))
    a, b, c = world.join(1, UDP), world.join(2, TLS), world.join(3, TLS)
    world.send(b, a, b"hello")
    session = next(iter(world.core.shared.roster.by_session.values())).session
    assert session is not None
    old = session.numbers[b.key]
    world.send(c, a, b"hello")
    a.client.handle_datagrams(world.now, [(DATAGRAM_HEAD.pack(DATA, 0, old, session.id) + b"late", 0)])
    assert a.client.drain_packets() == []
    assert [reason.value for reason, count in a.client.drops.items() if count] == ["relay-unknown-channel"]


def test_a_slow_stream_keeps_the_newest() -> None:
    world = World()
    a, b = world.join(1, TLS), world.join(2, TLS)
    a.client.stream_blocked()
    for n in range(100):
        a.client.send(world.now, b.key, [bytes((n,))])
    assert a.client.drain_stream() == b""
    a.client.stream_writable()
    world.settle()
    kept = [packet for _, packet in b.packets]
    assert kept == [bytes((n,)) for n in range(100 - len(kept), 100)] and len(kept) == 32
    assert {reason.value: count for reason, count in a.client.drops.items() if count} == {"relay-queue-full": 68}


def test_a_closed_connection_is_made_again_with_growing_waits() -> None:
    world = World()
    a = world.join(1, TLS)
    world.tls_works = False
    assert a.conn is not None
    world.core.stream_closed(a.conn)
    a.client.stream_closed(world.now)
    a.conn = None
    opened: list[float] = []
    for _ in range(600):
        world.advance(1)
        while len(opened) < len(a.told(OpenStream)) - 1:
            opened.append(world.now)
        if a.client._stream.state.value == "connecting":
            a.client.stream_closed(world.now)  # refused at once
    waits = [later - earlier for earlier, later in pairwise(opened)]
    assert len(waits) > 5 and max(waits) <= 62 and waits[-1] > waits[0]
    assert len(a.told(RelayDown)) == 1
    world.tls_works = True
    world.advance(70)
    assert a.client.alive and len(a.told(RelayUp)) == 2


def test_stop_takes_leave() -> None:
    world = World()
    a, b = world.join(1, UDP), world.join(2, TLS)
    for host in (a, b):
        host.client.stop(world.now)
        host.client.stop(world.now)
        assert host.client.poll_timeout() is None and not host.client.alive
    world.settle()
    assert len(world.core.shared.roster) == 0
    assert a.client._datagram.state is DatagramState.IDLE
    a.client.start(world.now + 1)
    world.now += 1
    world.settle()
    assert a.client.alive


def test_without_a_carrier_there_is_no_client() -> None:
    with pytest.raises(LocalProtocolError):
        kit.make_client(1, carriers=())


def test_two_devices_with_one_key_take_turns_and_do_not_storm() -> None:
    """A cloned card: each login puts the other out after a while; the relay counts them."""
    world = World()
    a = world.join(1, UDP)
    clone = world.add(1, carriers=(UDP,))
    clone.endpoint = type(a.endpoint)(("203.0.113.1", 1), a.endpoint.local)
    world.settle()
    world.advance(300)
    assert 3 <= kit.refusals(world.core)["replaced"] <= 60
    assert len(world.core.shared.roster) <= 2


def test_many_logins_of_one_key_leave_two() -> None:
    world = World()
    hosts = [world.join(1, carrier) for carrier in (UDP, TLS, TLS, TLS)]
    assert len(world.core.shared.roster) == 2
    assert kit.refusals(world.core) == {"replaced": 2}
    assert [host.client.alive for host in hosts[2:]] == [True, True]
    world.advance(6)
    assert len(world.core.shared.roster) <= 2


def test_what_stands_for_a_source_behind_a_relay() -> None:
    one, same = RelayEndpoint("fra-1", bytes(32)), RelayEndpoint("fra-1", bytes(32))
    other = RelayEndpoint("fra-2", bytes(32))
    member = RelayEndpoint("fra-1", bytes(31) + b"\x01")
    assert one == same and hash(one) == hash(same) and one != other and one != member
    assert one.source_bytes() == b"relay" + b"fra-1" + bytes(32)
    assert len({one.source_bytes(), other.source_bytes(), member.source_bytes()}) == 3
    assert str(one) == "relay:fra-1" and one.unpinned() is one
    limiter = RateLimiter(10)
    first, second = (RelayEndpoint("fra-1", kit.public_key(n)) for n in (1, 2))
    while limiter.allow(0.0, first.ip_bytes()):
        pass
    assert limiter.allow(0.0, second.ip_bytes())


def test_http_requests_as_proxies_and_relays_read_them() -> None:
    to_v6 = connect_request("2001:db8::1", 443)
    assert to_v6.startswith(b"CONNECT [2001:db8::1]:443 HTTP/1.1\r\nHost: [2001:db8::1]:443\r\n")
    assert b"Proxy-Authorization: Basic dXNlcjpwYXNz\r\n" in connect_request("a.example", 443, "user", "pass")
    assert b"Upgrade: edgemesh-relay/1\r\n" in upgrade_request("a.example")
    for host in ("a b", "x\r\nEvil: 1", ""):
        with pytest.raises(LocalProtocolError):
            upgrade_request(host)
    assert b"x-edgemesh-probe: abc\r\n" in probe_request("a.example", "abc")
    genuine = ResponseReader().feed(b"HTTP/1.1 204 No Content\r\nX-Edgemesh-Answer: answer abc\r\n\r\n")
    assert genuine is not None and is_probe_answer(genuine, "abc") and not is_probe_answer(genuine, "abd")
    assert not is_probe_answer(Response(204, {}, b""), "abc")
    assert not is_probe_answer(Response(302, {"location": "http://portal"}, b""), "abc")
