"""What holds for both engines, and between them: each test runs with each of them on each side."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator

import pytest

from edgeagent.engine.pure import EngineDrop
from edgeagent.io.tun import TunGone
from edgeagent.proto.endpoint import Endpoint, Transmit
from tests.engine.packets import ACK, SYN, Segment, naive_checksum, parse
from tests.engine.test_offload import by_flow
from tests.engine.twins import TUN_MTU, Node, addressed, keypair_record, plain, report, settle, super_frame

PAIRS = [(a, b) for a in ("pure", "fast") for b in ("pure", "fast")]
Make = Callable[..., Node]


@pytest.fixture
def make() -> Iterator[Make]:
    nodes: list[Node] = []

    def make(engine: str, **options: object) -> Node:
        nodes.append(Node(engine, len(nodes) + 1, **options))  # type: ignore[arg-type]
        return nodes[-1]

    yield make
    for node in nodes:
        node.close()


@pytest.fixture(params=PAIRS, ids="-".join)
def pair(request: pytest.FixtureRequest, make: Make) -> tuple[Node, Node]:
    """Two that know each other and have not spoken."""
    a, b = make(request.param[0]), make(request.param[1])
    a.meet(b)
    b.meet(a, endpoint=False)
    return a, b


def udp(source: Node, to: Node, payload: bytes, *, tos: int = 0, port: int = 9, version: int = 4) -> bytes:
    """A datagram between two of them."""
    packet = bytearray(Segment(payload, udp=True, tos=tos, ports=(port, port), version=version).packet())
    return addressed(packet, source, to)


def talk(a: Node, b: Node) -> None:
    """A handshake, and flows known on both sides in both directions."""
    for _ in range(2):
        a.inject([plain(udp(a, b, b"hello"))])
        settle(a, b)
        b.inject([plain(udp(b, a, b"hello"))])
        settle(a, b)
    report(a, b)
    a.taken(), b.taken()


def seen(node: Node) -> int:
    """Packets and datagrams that passed by its machine."""
    return node.machine.packets_seen


def test_the_first_packet_waits_for_the_handshake(pair: tuple[Node, Node]) -> None:
    a, b = pair
    packets = [udp(a, b, bytes((i,)) * 100) for i in range(5)]
    a.inject(map(plain, packets))
    settle(a, b)
    report(a, b)
    assert b.taken() == packets
    assert a.peer(b).last_handshake_at is not None
    assert b.peer(a).last_handshake_at is not None, "the first message has confirmed it"
    assert b.peer(a).keypairs.next is None
    assert b.peer(a).endpoint is not None, "learnt of the initiation"
    assert not a.dropped() and not b.dropped()


def test_established_flows_are_the_same_packets_and_the_same_figures(pair: tuple[Node, Node]) -> None:
    a, b = pair
    talk(a, b)
    before = [(node.peer(other).tx_bytes, node.peer(other).rx_bytes, seen(node)) for node, other in ((a, b), (b, a))]
    there = [
        udp(a, b, bytes(size), version=version) for size in (0, 1, 15, 16, 17, 500, 1000, 1340) for version in (4, 6)
    ]
    back = [udp(b, a, bytes(size)) for size in (3, 900)]
    a.inject(map(plain, there))
    b.inject(map(plain, back))
    settle(a, b)
    report(a, b)
    assert by_flow(b.taken()) == by_flow(there)
    assert a.taken() == back
    padded = sum(32 + min(TUN_MTU, len(packet) + -len(packet) % 16) for packet in there)
    padded_back = sum(32 + len(packet) + -len(packet) % 16 for packet in back)
    assert a.peer(b).tx_bytes - before[0][0] == padded == b.peer(a).rx_bytes - before[1][1]
    assert b.peer(a).tx_bytes - before[1][0] == padded_back == a.peer(b).rx_bytes - before[0][1]
    if a.is_fast:
        assert seen(a) - before[0][2] == 8, "those of IPv6 only: that flow is new"


def test_super_packets_are_cut_sealed_opened_and_joined(pair: tuple[Node, Node]) -> None:
    a, b = pair
    talk(a, b)
    payload = bytes(range(256)) * 200
    frame = super_frame(a, b, payload, 1360)
    a.inject([frame])
    settle(a, b)
    frames = b.socket_tun.frames()
    assert len(frames) < 5
    a.inject([frame])
    settle(a, b)
    assert b"".join(parse(packet).payload for packet in b.taken()) == payload


@pytest.mark.parametrize("engine", ["pure", "fast"])
def test_a_super_packet_of_a_new_flow_goes_up_whatever_the_ring(make: Make, engine: str) -> None:
    a, b = make(engine), make("pure")
    a.meet(b)
    b.meet(a)
    frame = super_frame(a, b, bytes(60_000), 1360)
    a.inject([frame])
    settle(a, b)
    assert sum(len(parse(packet).payload) for packet in b.taken()) == 60_000


def test_ten_seconds_of_silence_are_answered(pair: tuple[Node, Node]) -> None:
    a, b = pair
    talk(a, b)
    a.inject([plain(udp(a, b, b"x"))])
    settle(a, b)
    report(a, b)
    before = a.peer(b).rx_bytes
    b.ahead_s = 9.5
    settle(a, b)
    report(a, b)
    assert a.peer(b).rx_bytes == before
    b.ahead_s = 10.5
    settle(a, b)
    report(a, b)
    assert a.peer(b).rx_bytes == before + 32, "one empty message"
    b.ahead_s = 40
    settle(a, b)
    report(a, b)
    assert a.peer(b).rx_bytes == before + 32, "and no second one"


def test_fifteen_seconds_without_an_answer_begin_a_handshake(pair: tuple[Node, Node]) -> None:
    a, b = pair
    talk(a, b)
    first = a.peer(b).last_handshake_at
    b.engine.unbind()
    a.inject([plain(udp(a, b, b"x"))])
    settle(a)
    report(a)
    a.ahead_s = 14.5
    settle(a)
    assert not a.peer(b).timers.is_asking
    a.ahead_s = 15.5
    settle(a)
    assert a.peer(b).timers.is_asking
    assert a.peer(b).last_handshake_at == first


def test_the_initiator_renews_keys_after_two_minutes_of_use(pair: tuple[Node, Node]) -> None:
    a, b = pair
    a.age_s = 121.0
    talk(a, b)
    old = a.peer(b).keypairs.current
    a.age_s, a.ahead_s = 0.0, 6.0  # no two initiations within five seconds
    b.ahead_s = 6.0
    packet = udp(a, b, b"renews")
    a.inject([plain(packet)])
    settle(a, b)
    report(a, b)
    assert b.taken() == [packet]
    new = a.peer(b).keypairs.current
    assert new is not None and new is not old
    assert a.peer(b).keypairs.previous is old
    talk(a, b)
    theirs = b.peer(a).keypairs.current
    assert theirs is not None and theirs.remote_index == new.local_index


def test_nothing_is_sealed_or_opened_under_keys_of_three_minutes(pair: tuple[Node, Node]) -> None:
    a, b = pair
    a.age_s = 181.0
    a.inject([plain(udp(a, b, b"too late"))])
    settle(a, b)
    b.inject([plain(udp(b, a, b"nor this"))])
    before = a.dropped().get("key-expired", 0)
    settle(a, b)
    assert a.taken() == []
    if a.peer(b).keypairs.current is not None:
        assert a.dropped().get("key-expired", 0) >= before


def test_a_peer_that_moves_is_followed(pair: tuple[Node, Node]) -> None:
    a, b = pair
    talk(a, b)
    port = b.port
    b.port = b.engine.bind(0)
    assert b.port != port
    b.inject([plain(udp(b, a, b"I moved"))])
    settle(a, b)
    report(a, b)
    assert a.taken() == [udp(b, a, b"I moved")]
    endpoint = a.peer(b).endpoint
    assert endpoint is not None and endpoint.addr == ("127.0.0.1", b.port)
    a.inject([plain(udp(a, b, b"so I see"))])
    settle(a, b)
    assert b.taken() == [udp(a, b, b"so I see")]


def test_what_does_not_decrypt_moves_nobody(pair: tuple[Node, Node]) -> None:
    a, b = pair
    talk(a, b)
    before = a.peer(b).endpoint
    current = a.peer(b).keypairs.current
    assert current is not None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        header = struct.pack("<IIQ", 4, current.local_index, 1 << 40)
        stranger.sendto(header + bytes(32), ("127.0.0.1", a.port))
        stranger.sendto(struct.pack("<IIQ", 4, current.local_index ^ 1, 0) + bytes(32), ("127.0.0.1", a.port))
        stranger.sendto(struct.pack("<IIQ", 4, current.local_index, 2**64 - 1) + bytes(32), ("127.0.0.1", a.port))
        settle(a, b)
        report(a, b)
    assert a.peer(b).endpoint == before
    assert a.dropped() == {"authentication": 1, "unknown-index": 1, "key-expired": 1}


def test_the_responder_waits_for_the_first_message(pair: tuple[Node, Node]) -> None:
    """Also while messages under older keys come in, whose place in the table the new one may have got."""
    a, b = pair
    talk(a, b)
    for round_ in range(6):
        old = b.peer(a).keypairs.current
        a.ahead_s += 6.0
        b.ahead_s += 6.0
        assert a.peer(b).begin_handshake(a.now)
        a.device.touched(a.peer(b))
        a.inject([plain(udp(a, b, b"under the old key"))] * 3)
        a.turn()  # the initiation and messages under the old keys leave
        a.turn()
        for _ in range(4):
            b.turn()  # the response leaves
        b.sync()
        b.turn()
        assert b.peer(a).keypairs.next is not None, f"round {round_}"
        assert b.peer(a).keypairs.current is old, "nothing has come under the new one"
        b.inject([plain(udp(b, a, b"answer"))])
        b.turn()
        b.turn()
        assert b.peer(a).keypairs.current is old
        settle(a, b)
        report(a, b)
        assert udp(b, a, b"answer") in a.taken()
        assert b.peer(a).keypairs.next is None


def test_a_peer_that_is_removed_is_dead_at_once(pair: tuple[Node, Node]) -> None:
    a, b = pair
    talk(a, b)
    a.device.remove_peer(a.now, b.device.public_key)
    a.engine.flush(a.now)
    a.inject([plain(udp(a, b, b"nobody's"))])
    b.inject([plain(udp(b, a, b"from nobody"))])
    before = b.peer(a).rx_bytes
    settle(a, b)
    report(a, b)
    assert b.taken() == []
    assert b.peer(a).rx_bytes == before
    assert [packet for packet in a.taken() if packet[9] != 1] == [], "an ICMP unreachable is all"
    assert a.dropped() == {"no-peer": 1, "unknown-index": 1}


def test_a_slot_of_another_peer_carries_nothing_of_the_one_before(make: Make) -> None:
    for engine in ("pure", "fast"):
        a, b, c = make(engine, slots=1), make("pure"), make("pure")
        a.meet(b)
        b.meet(a)
        c.meet(a)
        talk(a, b)
        a.device.remove_peer(a.now, b.device.public_key)
        a.meet(c)
        talk(a, c)
        assert not a.is_fast or a.peer(c).slot == 0
        a.inject([plain(udp(a, b, b"for b"))])
        b.inject([plain(udp(b, a, b"of b"))])
        settle(a, b, c)
        assert b.taken() == c.taken() == []
        assert [packet for packet in a.taken() if packet[9] != 1] == []


def test_addresses_that_move_to_another_peer_take_their_flows_along(make: Make) -> None:
    for engine in ("pure", "fast"):
        a, b, c = make(engine), make("pure"), make("pure")
        for other in (b, c):
            a.meet(other)
            other.meet(a)
            talk(a, other)
        a.device.allowed_ips.insert(b.address, 32, a.peer(c))
        packet = udp(a, b, b"whose?")
        a.engine.flush(a.now)
        a.inject([plain(packet)])
        b.inject([plain(udp(b, a, b"not mine any more"))])
        settle(a, b, c)
        assert b.taken() == []
        assert c.taken() == [packet]
        assert a.taken() == []
        assert a.dropped() == {"inner-source": 1}
        a.device.allowed_ips.remove(b.address, 32, a.peer(c))
        a.inject([plain(packet)])
        settle(a, b, c)
        assert b.taken() == c.taken() == []


def test_peers_beyond_the_table_work_too(make: Make) -> None:
    a = make("fast", slots=1)
    others = [make(engine) for engine in ("pure", "fast", "pure")]
    for other in others:
        a.meet(other)
        other.meet(a)
        talk(a, other)
    assert [a.peer(other).slot for other in others] == [0, None, None]
    for other in others:
        packets = [udp(a, other, bytes((i,))) for i in range(5)]
        a.inject(map(plain, packets))
        other.inject([plain(udp(other, a, b"back"))])
        settle(a, *others)
        assert other.taken() == packets
        assert a.taken() == [udp(other, a, b"back")]


def test_flows_beyond_the_table_are_asked_about_again(make: Make) -> None:
    a, b = make("fast", flows=64), make("fast", flows=64)
    peer = a.meet(b)
    a.device.allowed_ips.insert(bytes((10, 9, 0, 0)), 16, peer)
    b.device.allowed_ips.insert(a.address, 32, b.meet(a))
    talk(a, b)
    packets = []
    for i in range(300):
        packet = bytearray(udp(a, b, bytes((i & 255,))))
        packet[16:20] = bytes((10, 9, i >> 8, i & 255))
        packets.append(bytes(packet))
    for _ in range(2):
        for at in range(0, 300, 50):
            a.inject(map(plain, packets[at : at + 50]))
            settle(a, b)
        assert by_flow(b.taken()) == by_flow(packets)
    figures = a.fast.pump.figures()
    assert figures.flows_evicted > 0
    assert figures.flows_used == figures.flows_max == 64


def test_an_address_that_is_kept_is_no_flow(pair: tuple[Node, Node]) -> None:
    a, b = pair
    kept = bytes((100, 100, 100, 100))
    b.device.keep(kept)
    a.device.allowed_ips.insert(kept, 32, a.peer(b))
    talk(a, b)
    packet = bytearray(udp(a, b, b"who is there?"))
    packet[16:20] = kept
    for _ in range(2):  # the second time a flow would be known
        a.inject([plain(bytes(packet))])
        settle(a, b)
    assert b.taken() == []
    assert b.dropped() == {"inner-destination": 2}


def test_a_source_that_is_not_the_peers_is_refused_in_any_flow(pair: tuple[Node, Node]) -> None:
    a, b = pair
    talk(a, b)
    stranger = bytearray(udp(a, b, b"spoofed"))
    stranger[15] = 77
    a.inject([plain(bytes(stranger))] * 3)
    settle(a, b)
    assert b.taken() == []
    assert b.dropped() == {"inner-source": 3}


@pytest.mark.parametrize("version", [4, 6])
def test_congestion_marks(pair: tuple[Node, Node], version: int) -> None:
    """RFC 6040: copied outside, and put back by its table."""
    a, b = pair
    talk(a, b)
    a.inject([plain(udp(a, b, b"", version=version))])
    settle(a, b)
    b.taken()
    for inner in range(4):
        for known in (False, True):
            packet = udp(a, b, bytes((inner, known)), tos=inner, version=version)
            a.inject([plain(packet)])
            settle(a, b)
            assert b.taken() == [packet]


def test_congestion_marks_of_the_way(make: Make) -> None:
    """The table of RFC 6040, figure 4, by datagrams that were sealed elsewhere."""
    not_ect, ect1, ect0, ce = range(4)
    expected = {(inner, outer): inner for inner in range(4) for outer in range(4)}
    expected |= {(ect0, ect1): ect1, (ect0, ce): ce, (ect1, ce): ce}
    del expected[not_ect, ce]
    for engine in ("pure", "fast"):
        a, b = make("pure"), make(engine)
        a.meet(b)
        b.meet(a)
        talk(a, b)
        for version in (4, 6):
            for inner in range(4):
                for outer in range(4):
                    packet = udp(a, b, b"?", tos=0xB8 | inner, version=version)
                    datagram = sealed(a, b, packet)
                    a.udp.send([Transmit(b.endpoint, [datagram], outer)])
                    settle(a, b)
                    out = [
                        (each[1] & 3, naive_checksum(each[:20])) if version == 4 else (each[1] >> 4 & 3, 0)
                        for each in b.taken()
                    ]
                    wanted = expected.get((inner, outer))
                    assert out == ([] if wanted is None else [(wanted, 0)]), (engine, version, inner, outer)
        assert b.dropped() == {"inner-ecn": 2}


def sealed(source: Node, to: Node, packet: bytes, *, counter: int | None = None) -> bytes:
    """A datagram under the current keypair of a pure engine, whose counters go on."""
    pair = source.peer(to).keypairs.current
    assert pair is not None and not source.is_fast
    if counter is None:
        counter = pair.send_counter
        pair.send_counter += 1
    header = struct.pack("<IIQ", 4, pair.remote_index, counter)
    return source.device._shared.crypto.seal_transport(pair.send_key, header, counter, packet)


def test_replays_are_counted_as_replays(make: Make) -> None:
    for engine in ("pure", "fast"):
        a, b = make("pure"), make(engine)
        a.meet(b)
        b.meet(a)
        talk(a, b)
        packet = udp(a, b, b"once")
        datagram = sealed(a, b, packet)
        late = sealed(a, b, packet)
        pair = a.peer(b).keypairs.current
        assert pair is not None
        pair.send_counter += 8128
        for each in (datagram, datagram, sealed(a, b, packet), late, datagram):
            a.udp.send([Transmit(b.endpoint, [each])])
            settle(a, b)
        assert b.taken() == [packet, packet]
        assert b.dropped() == {"replayed": 3}, engine


def test_a_syn_is_clamped_and_what_is_too_big_is_answered(pair: tuple[Node, Node]) -> None:
    a, b = pair
    talk(a, b)
    a.peer(b).set_path_mtu(1000, fragment=False)
    a.engine.flush(a.now)
    syn = addressed(Segment(b"", flags=SYN, options=bytes((2, 4, 5, 80))).packet(), a, b)
    long = addressed(Segment(bytes(1100), flags=ACK).packet(), a, b)
    may_be_cut = addressed(Segment(bytes(1100), udp=True, df=False).packet(), a, b)
    short = addressed(Segment(bytes(500), flags=ACK).packet(), a, b)
    a.inject(map(plain, (syn, long, may_be_cut, short)))
    settle(a, b)
    out = sorted(b.taken(), key=len)
    assert [len(packet) for packet in out if packet[9] == 6] == [44, 540]
    assert int.from_bytes(out[0][42:44], "big") == 960, "MTU less the headers"
    pieces = [packet for packet in out if packet[9] == 17]
    assert len(pieces) == 2 and all(len(packet) <= 1000 for packet in pieces)
    (answer,) = a.taken()
    assert (answer[9], answer[20], answer[21], int.from_bytes(answer[26:28], "big")) == (1, 3, 4, 1000)
    back = addressed(Segment(b"", flags=SYN | ACK, options=bytes((2, 4, 5, 80))).packet(), b, a)
    b.inject([plain(back)])
    settle(a, b)
    (clamped,) = a.taken()
    assert int.from_bytes(clamped[42:44], "big") == 960


@pytest.mark.parametrize("mtu", [1397, 1400])
def test_padding_never_passes_the_mtu(pair: tuple[Node, Node], mtu: int) -> None:
    a, b = pair
    talk(a, b)
    a.device.mtu = mtu
    a.engine.flush(a.now)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as port:
        port.bind(("127.0.0.1", 0))
        port.settimeout(2)
        a.peer(b).set_endpoint(Endpoint(("127.0.0.1", port.getsockname()[1])))
        sizes = (1, 20, 1340, 1369, mtu - 28 - 13, mtu - 28 - 1, mtu - 28)
        a.inject(plain(udp(a, b, bytes(size))) for size in sizes)
        settle(a)
        assert [len(port.recv(3000)) for _ in sizes] == [32 + min(mtu, (28 + size + 15) // 16 * 16) for size in sizes]


def test_the_end_of_the_interface_is_noticed(make: Make) -> None:
    a = make("pure")
    a.socket_tun.far.close()
    with pytest.raises(TunGone):
        settle(a)


def test_frames_that_lie_are_counted(pair: tuple[Node, Node]) -> None:
    a, b = pair
    talk(a, b)
    good = udp(a, b, b"good")
    cut = Segment(bytes(3000)).super_frame(1000)
    lies = [cut[:40], cut[:3] + b"\xff\xff" + cut[5:12], b"\xff" * 100, bytes(9), bytes(10) + bytes(65_536)]
    a.inject([*lies, plain(good)])
    settle(a, b)
    assert b.taken() == [good]
    assert a.engine.drops[next(iter(a.engine.drops))] >= 4  # type: ignore[index]
    assert next(iter(a.engine.drops)).value == EngineDrop.VNET_HEADER.value


def test_datagrams_that_lie_are_dropped_and_do_no_harm(pair: tuple[Node, Node]) -> None:
    a, b = pair
    talk(a, b)
    pair_of_b = b.peer(a).keypairs.current
    assert pair_of_b is not None
    header = struct.pack("<IIQ", 4, pair_of_b.local_index, 99)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        for datagram in (
            b"", b"\4", b"\xff" * 64, bytes(148), header, header + bytes(15), header + bytes(16), header + bytes(17),
            header + bytes(60_000), header[:1] + b"\1" + header[2:] + bytes(40),
        ):  # fmt: skip
            stranger.sendto(datagram, ("127.0.0.1", b.port))
        settle(a, b)
    drops = b.dropped()
    assert drops["authentication"] == 3
    assert sum(drops.values()) == 10, drops
    a.inject([plain(udp(a, b, b"still there"))])
    settle(a, b)
    assert b.taken() == [udp(a, b, b"still there")]


def test_counters_near_their_end(make: Make) -> None:
    """The last one that may be used is used; then new keys are asked for."""
    for engine in ("pure", "fast"):
        a, b = make("pure"), make(engine)
        a.meet(b)
        b.meet(a)
        talk(a, b)
        last = 2**64 - 2**13 - 2
        packet = udp(a, b, b"last")
        for counter in (last, last + 1, 2**64 - 1):
            a.udp.send([Transmit(b.endpoint, [sealed(a, b, packet, counter=counter)])])
            settle(b)
        assert b.taken() == [packet]
        assert b.dropped() == {"key-expired": 2}


def test_an_aged_keypair_is_not_used(make: Make) -> None:
    """As the pump's own clock has it."""
    a, b = make("fast"), make("pure")
    a.meet(b)
    b.meet(a)
    talk(a, b)
    current = a.peer(b).keypairs.current
    assert current is not None
    record = keypair_record(a, b, created_at=current.created_at - 180)
    a.fast.pump.push(3, record)
    b.inject([plain(udp(b, a, b"too old"))])
    settle(a, b)
    assert a.taken() == []
    assert a.dropped() == {"key-expired": 1}
