"""Packets through the core: to admitted keys of one network, within rates, past whoever does not read, one hop far."""

from __future__ import annotations

import pytest

from edgeagent.proto.errors import LocalProtocolError
from edgeagent.proto.relay_events import Carrier, RelayDown, RelayDraining, RelayPeerGone
from edgeagent.proto.relay_frames import (
    DATA,
    DATAGRAM_HEAD,
    FRAME_HEAD,
    LONG_PROBE_SIZE,
    OWN_CHANNEL,
    PACKET_BYTES_MAX,
    PROBE,
    PROBE_SIZE,
    RECV,
    RelayError,
    frame,
)
from edgeagent.proto.relay_login import Login, Role, SessionKeys
from edgeagent.proto.relay_pass import Pass
from edgeagent.proto.signed import Signed
from relay.core.admission import Guest
from relay.core.limits import Rate, RelayLimits
from relay.core.metrics import render
from relay.core.relay import RelayCore
from relay.core.shared import Train
from tests.relay import kit
from tests.relay.kit import World, drops

UDP, TLS = Carrier.DATAGRAM, Carrier.STREAM


@pytest.mark.parametrize("source_carrier", [UDP, TLS])
@pytest.mark.parametrize("destination_carrier", [UDP, TLS])
def test_packets_of_all_sizes_cross(source_carrier: Carrier, destination_carrier: Carrier) -> None:
    world = World()
    a, b = world.join(1, source_carrier), world.join(2, destination_carrier)
    packets = [bytes((size & 255,)) * size for size in (1, 32, 148, 1_280, 1_420, PACKET_BYTES_MAX)]
    for _ in range(2):  # before the channels are bound, and after
        world.send(a, b, *packets)
        world.send(b, a, *packets)
        assert b.packets == [(a.key, packet) for packet in packets]
        assert a.packets == [(b.key, packet) for packet in packets]
        a.packets.clear()
        b.packets.clear()
        world.advance(1)
    assert drops(world.core) == {}
    traffic = world.core.shared
    assert traffic.by_datagram.packets_in + traffic.by_stream.packets_in >= 4 * len(packets)
    a.client.send(world.now, b.key, [bytes(PACKET_BYTES_MAX + 1), b""])
    assert {reason.value: count for reason, count in a.client.drops.items() if count} == {"relay-too-long": 2}
    with pytest.raises(LocalProtocolError):
        a.client.send(world.now, a.key, [b"to myself"])


def test_bound_channels_cost_eight_bytes() -> None:
    world = World()
    a, b = world.join(1, UDP), world.join(2, UDP)
    world.send(a, b, b"first")
    world.send(b, a, b"answer")
    world.log.clear()
    world.send(a, b, bytes(100))
    assert [len(datagram) for _, datagram in world.log] == [108, 108]


def test_a_train_is_rewritten_whole_and_in_order() -> None:
    world = World()
    a, b = world.join(1, UDP), world.join(2, UDP)
    world.send(a, b, b"first")
    world.send(b, a, b"answer")
    b.packets.clear()
    packets = [n.to_bytes(2, "big") * 50 for n in range(40)] + [b"short"]
    a.client.send(world.now, b.key, packets)
    datagrams = b"".join(datagram for datagram, _ in a.client.drain_datagrams())
    world.core.handle_trains(world.now, [Train(a.endpoint, datagrams, 108, ecn=2)])
    (train,) = world.core.drain_trains()
    assert (len(train), train.segment, train.ecn, train.endpoint) == (41, 108, 2, b.endpoint)
    for datagram in train.datagrams():
        b.client.handle_datagrams(world.now, [(datagram, train.ecn)])
    assert b.client.drain_packets() == [(a.key, packet, 2) for packet in packets]


def test_a_train_of_different_headers_is_taken_apart() -> None:
    world = World()
    a, b, c = world.join(1, UDP), world.join(2, UDP), world.join(3, TLS)
    for other in (b, c):
        world.send(a, other, b"bind")
        world.send(other, a, b"bind")
        other.packets.clear()
    a.client.send(world.now, b.key, [b"to b"])
    a.client.send(world.now, c.key, [b"to c"])
    a.client.send(world.now, b.key, [b"b 2!"])
    mixed = b"".join(datagram for datagram, _ in a.client.drain_datagrams())
    world.core.handle_trains(world.now, [Train(a.endpoint, mixed, 12)])
    world.settle()
    assert b.packets == [(a.key, b"to b"), (a.key, b"b 2!")] and c.packets == [(a.key, b"to c")]


@pytest.mark.parametrize("carrier", [UDP, TLS])
def test_nobody_there_is_said_but_not_for_every_packet(carrier: Carrier) -> None:
    world = World()
    a = world.join(1, carrier)
    for _ in range(10):
        world.send(a, kit.public_key(9), b"x")
    gone = [event for event in a.told(RelayPeerGone) if isinstance(event, RelayPeerGone)]
    assert [event.key for event in gone] == [kit.public_key(9)]
    assert drops(world.core) == {"not-here": 10}


def test_networks_do_not_meet() -> None:
    world = World()
    a = world.join(1, UDP)
    foreign = kit.make_pass(2, seed=kit.OTHER_SEED, network=kit.OTHER_NETWORK)
    b = world.join(2, TLS, pass_object=foreign)
    world.send(a, b, b"hello")
    world.now += 1
    world.send(b, a, b"hello")
    assert a.packets == b.packets == []
    assert drops(world.core) == {"other-tenant": 2}
    assert a.told(RelayPeerGone) and b.told(RelayPeerGone)  # as if nobody were there


def test_a_member_that_never_reads_holds_up_nobody() -> None:
    world = World()
    a, deaf, b = world.join(1, UDP), world.join(2, TLS), world.join(3, TLS)
    deaf.reads = False
    for n in range(2_000):
        world.send(a, deaf, n.to_bytes(2, "big") * 500)
        if n % 100 == 0:
            world.send(a, b, b"past it")
    assert len(b.packets) == 20
    limits = RelayLimits()
    core = world.core
    assert 0 < core.shared.queued_bytes <= limits.queue_packets * 1_100
    assert drops(core)["queue-full"] >= 2_000 - limits.queue_packets - 1
    deaf.reads = True
    assert deaf.conn is not None
    core.stream_writable(deaf.conn)
    world.settle()
    # The newest are what is left, in their order
    kept = [int.from_bytes(packet[:2], "big") for _, packet in deaf.packets]
    assert kept == list(range(2_000 - len(kept), 2_000)) and len(kept) == limits.queue_packets
    assert core.shared.queued_bytes == 0


def test_control_frames_have_a_bound_too() -> None:
    world = World()
    deaf = world.join(1, TLS)
    deaf.reads = False
    assert deaf.conn is not None
    for n in range(300):
        world.core.stream_received(world.now, deaf.conn, frame(0x09, n.to_bytes(8, "big")))
        for conn, _ in world.core.drain_writes():
            world.core.stream_blocked(conn)
    assert drops(world.core)["never-reads"] == 1
    assert world.core.drain_closes() == [deaf.conn]


def test_all_slow_members_together_have_a_bound() -> None:
    world = World(kit.make_core(queues_bytes=10_000))
    a = world.join(1, UDP)
    deaf = [world.join(n, TLS) for n in range(2, 12)]
    for host in deaf:
        host.reads = False
        for _ in range(20):
            world.send(a, host, bytes(400))
    assert world.core.shared.queued_bytes <= 10_000
    assert drops(world.core)["queues-full"] > 0
    for host in deaf:
        assert host.conn is not None
        world.core.stream_closed(host.conn)
    assert world.core.shared.queued_bytes == 0 and len(world.core.shared.roster) == 1


def test_writes_are_small_while_much_waits_unsent() -> None:
    """Each may have to wait as well: in full size they would be many times what may wait."""
    world = World(kit.make_core(queues_bytes=100_000))
    a, deaf, b = world.join(1, UDP), world.join(2, TLS), world.join(3, TLS)
    assert deaf.conn is not None and b.conn is not None
    shared = world.core.shared

    def sizes() -> list[int]:
        for _ in range(20):
            shared.write_packet(shared.streams[b.conn or 0], bytes(4_000))
        written = []
        while writes := world.core.drain_writes():
            written += [len(data) for _, data in writes]
        return written

    assert sizes() == [80_000]
    world.core.stream_blocked(deaf.conn, 60_000)
    assert shared.queued_bytes == 60_000 and sizes() == 5 * [16_000]
    world.core.stream_blocked(deaf.conn, 100_000)
    world.send(a, deaf, bytes(1_000))
    assert drops(world.core) == {"queues-full": 1}
    world.core.stream_writable(deaf.conn)
    assert shared.queued_bytes == 0 and sizes() == [80_000]


@pytest.mark.parametrize("carrier", [UDP, TLS])
def test_a_member_keeps_to_its_rate_and_class(carrier: Carrier) -> None:
    world = World(kit.make_core(rates={0: Rate(100_000, 1_000), 2: Rate(400_000, 4_000)}))
    slow, sink = world.join(1, carrier), world.join(3, UDP)
    fast = world.join(2, carrier, pass_object=kit.make_pass(2, rate_class=2))
    unknown = world.join(4, carrier, pass_object=kit.make_pass(4, rate_class=7))
    for _ in range(200):
        for host in (slow, fast, unknown):
            world.send(host, sink, bytes(1_000))
        world.advance(0.005)  # 200 kB/s each for a second, and a burst of a quarter second's worth
    taken = {host.number: sum(1 for key, _ in sink.packets if key == host.key) for host in (slow, fast, unknown)}
    assert taken[2] == 200
    assert taken[1] == pytest.approx(125, abs=3) and taken[4] == pytest.approx(125, abs=3)
    assert drops(world.core)["member-rate"] == 600 - sum(taken.values())
    assert slow.conn is None or slow.conn in world.core.drain_brakes()


def test_many_small_packets_count_as_packets() -> None:
    world = World(kit.make_core(rates={0: Rate(1 << 40, 100)}))
    a, b = world.join(1, UDP), world.join(2, UDP)
    world.advance(1)
    b.packets.clear()
    for _ in range(200):
        world.send(a, b, b"x")
    assert len(b.packets) == 25


def test_a_network_keeps_to_its_rate_whatever_its_members_do() -> None:
    world = World(kit.make_core(network_rate=Rate(100_000, 100_000)))
    hosts = [world.join(n, UDP) for n in range(1, 6)]
    foreign = kit.make_pass(7, seed=kit.OTHER_SEED, network=kit.OTHER_NETWORK)
    other = world.join(7, UDP, pass_object=foreign)
    foreign = kit.make_pass(8, seed=kit.OTHER_SEED, network=kit.OTHER_NETWORK)
    sink = world.join(8, UDP, pass_object=foreign)
    world.advance(2)
    for _ in range(100):
        for host in hosts[:4]:
            world.send(host, hosts[4], bytes(1_000))
        world.advance(0.01)
    world.send(other, sink, bytes(1_000))
    assert len(hosts[4].packets) == pytest.approx(125, abs=3)
    assert len(sink.packets) == 1  # the other network has its own
    assert drops(world.core)["tenant-rate"] == 400 - len(hosts[4].packets)
    assert world.core.shared.network(world.now, kit.NETWORK).dropped == 400 - len(hosts[4].packets)


def test_a_rate_too_small_for_all_is_shared_between_networks() -> None:
    """Nine members of one network against one of another: half each."""
    world = World(kit.make_core(total_bytes_per_s=100_000, fair_share_bytes=20_000))
    many = [world.join(n, UDP) for n in range(1, 10)]
    foreign = [kit.make_pass(n, seed=kit.OTHER_SEED, network=kit.OTHER_NETWORK) for n in (10, 11)]
    lone, its_sink = world.join(10, UDP, pass_object=foreign[0]), world.join(11, TLS, pass_object=foreign[1])
    sink = world.join(12, UDP)
    for n in range(250):
        if n == 50:  # the first burst is used up
            sink.packets.clear()
            its_sink.packets.clear()
        for host in many:
            world.send(host, sink, bytes(900))
        world.send(lone, its_sink, bytes(900))
        world.advance(0.01)  # 90 kB/s alone would nearly fill it
    shares = len(sink.packets), len(its_sink.packets)
    assert sum(shares) == pytest.approx(200_000 / 900, rel=0.15)
    assert shares[0] == pytest.approx(shares[1], rel=0.1)
    assert drops(world.core)["fair-share"] > 0


def test_what_a_member_sends_itself_takes_its_share_unless_it_is_a_probe() -> None:
    world = World(kit.make_core(total_bytes_per_s=100_000, fair_share_bytes=20_000))
    a = world.join(1, UDP)
    (session,) = world.core.shared.roster.by_session
    head = DATAGRAM_HEAD.pack(DATA, 0, OWN_CHANNEL, session)

    def sent(packet: bytes, times: int) -> int:
        datagram = head + packet
        for _ in range(times):
            world.core.handle_trains(world.now, [Train(a.endpoint, datagram, len(datagram))])
        return sum(len(train) for train in world.core.drain_trains())

    assert sent(bytes((PROBE,)) + bytes(999), 100) == pytest.approx(18, abs=2)  # the least burst, 18 kB
    assert drops(world.core)["fair-share"] > 50
    assert sent(bytes(PROBE_SIZE), 10) == 0
    assert sent(bytes((PROBE,)) + bytes(LONG_PROBE_SIZE - 1), 10) == 10
    assert sent(bytes((PROBE,)) + bytes(LONG_PROBE_SIZE), 10) == 0


def test_ten_thousand_members_and_not_one_more() -> None:
    core = kit.make_core(members=10_000)
    members = [seat(core, n) for n in range(10_000)]
    assert len(core.shared.roster) == 10_000
    assert seat(core, 10_000) is None
    assert kit.refusals(core) == {"full": 1}
    for at in range(0, 10_000, 997):
        conn = members[at]
        assert conn is not None
        core.stream_received(kit.NOW, conn, frame(0x05, kit.public_key(9_999 - at), b"across"))
        ((reached, data),) = core.drain_writes()
        assert reached == members[9_999 - at]
        assert data == frame(RECV, kit.public_key(at), b"across")
    core.handle_timeout(kit.NOW + 3)
    assert 'edgerelay_members{carrier="tls"} 10000' in render(core, uptime_s=1.0, version="0")
    core.handle_timeout(kit.NOW + 4_000)  # nobody was heard since
    assert len(core.shared.roster) == 0 and kit.refusals(core)["idle"] == 10_000


def test_drain_tells_waits_and_ends() -> None:
    world = World()
    a, b = world.join(1, UDP), world.join(2, TLS)
    world.core.begin_drain(world.now, 5)
    world.settle()
    assert a.told(RelayDraining) and b.told(RelayDraining)
    late = world.add(3, carriers=(TLS,))
    world.send(a, b, b"still works")
    assert b.packets == [(a.key, b"still works")]
    assert kit.refusals(world.core) == {"draining": 1} and late.client.carrier is None
    assert is_drained(world) is False
    world.advance(6)
    assert is_drained(world) and a.told(RelayDown) and b.told(RelayDown)
    assert kit.refusals(world.core)["draining"] >= 3


def test_drain_ends_early_when_all_have_gone() -> None:
    world = World()
    a = world.join(1, UDP)
    world.core.begin_drain(world.now, 100)
    a.client.stop(world.now)
    world.settle()
    world.core.handle_timeout(world.now)
    assert is_drained(world)


def is_drained(world: World) -> bool:
    return world.core.drained


def seat(core: RelayCore, number: int) -> int | None:
    """A member on a stream, without the cryptography of a login: its connection, or None when it was refused."""
    conn = number + 1
    core.stream_opened(kit.NOW, conn, bytes(4))
    stream = core.shared.streams[conn]
    head = {"t": "pass", "n": kit.NETWORK, "s": kit.device(number), "e": 1, "q": 1, "w": 0, "na": kit.WALL_S + 86_400}
    pass_ = Pass(Signed(head, {"nk": kit.public_key(number), "rl": [], "rg": [], "rc": 0}, b""))
    login = Login(Role.MEMBER, 25, bytes(16), pass_.node_key, SessionKeys(*[bytes(32)] * 3), b"")
    try:
        core.streams._lobby.seat_stream(kit.NOW, stream, Guest(login, pass_, None))
    except RelayError as error:
        core.shared.refuse(stream, error.reason)
    core.drain_writes()
    return conn if stream.member is not None else None


def test_own_channel_is_the_shortest_way_to_oneself() -> None:
    world = World()
    a = world.join(1, UDP)
    session = next(iter(world.core.shared.roster.by_session))
    probe = DATAGRAM_HEAD.pack(DATA, 0, OWN_CHANNEL, session) + b"\xef12345678"
    world.core.handle_trains(world.now, [Train(a.endpoint, probe, len(probe))])
    (train,) = world.core.drain_trains()
    assert bytes(train.data) == probe
    assert FRAME_HEAD.size == 3
