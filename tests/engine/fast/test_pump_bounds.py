"""Tables, windows and rings of the pump at their bounds, against naive twins and by what comes out."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeagent import crypto
from edgeagent.engine.fast import records as r
from edgeagent.engine.fast.binding import DROPS, RING_NET, RING_REPORT, RING_TUN, Pump, PumpDrop
from edgeagent.proto.replay import ReplayWindow
from tests.engine.packets import Segment
from tests.engine.twins import Node, SocketTun, library, plain, settle

KEY = bytes(range(32))
NOT_IP = b"\0" * 20  # opened, and dropped for what it is: so that it was accepted is counted
LAST = 2**64 - 2**13 - 2
SLOTS = 3


class Bare:
    """A pump alone; all records are the test's."""

    def __init__(self, *, slots: int = SLOTS, flows: int = 64, entries: int = 0) -> None:
        self.crypto = crypto.load()
        self.tun = SocketTun()
        self.pump = Pump(
            library(), peers=slots, flows=flows, down_bytes=1 << 18, up_bytes=1 << 18, small="lanes", large="lanes",
            entries=entries,
        )  # fmt: skip
        self.pump.set_tun(self.tun.fd, True)
        self.configure()
        self.way = r.write_way(r.WAY_UDP, bytes((127, 0, 0, 1)), 9)
        for slot in range(slots):
            self.push(r.PEER, *r.write_peer(slot, r.PEER_NEW, (), None, 1420))

    def configure(self, new_flows_per_s: int = 1_000_000, *, exact: bool = False) -> None:
        record = r.write_config(
            mtu=1420, router=False, unknown_up=False, report_ms=1, new_flows_per_s=new_flows_per_s, exact=exact
        )
        self.push(r.CONFIG, record)

    def push(self, kind: int, head: bytes, body: bytes = b"") -> None:
        assert self.pump.push(kind, head, body)
        self.pump.turn(0)

    def keypair(self, slot: int, position: int, index: int) -> None:
        self.push(r.KEYPAIR, struct.pack("=HBBIIIq32s32s", slot, position, 0, index, 1, 0, self.now(), KEY, KEY))

    @staticmethod
    def now() -> int:
        return time.monotonic_ns()

    def open(self, index: int, counter: int, packet: bytes = NOT_IP) -> PumpDrop | None:
        """A datagram under the key; why it was dropped."""
        header = struct.pack("<IIQ", 4, index, counter)
        datagram = self.crypto.seal_transport(KEY, header, counter, packet)
        before = self.drops()
        for count, body in r.split_packets([datagram]):
            self.push(r.OPEN, r.write_send(self.way, count), body)
        changed = [reason for reason, old, new in zip(DROPS, before, self.drops(), strict=True) if new != old]
        assert len(changed) <= 1
        return changed[0] if changed else None

    def drops(self) -> list[int]:
        return list(map(int, self.pump.figures().drops))

    def dropped(self, reason: PumpDrop) -> int:
        return self.drops()[DROPS.index(reason)]

    def pulled(self, ring: int) -> list[tuple[int, bytes]]:
        records = []
        while data := self.pump.pull(ring):
            records += [(kind, data[at:end]) for kind, at, end in r.read_records(data)]
        return records

    def close(self) -> None:
        self.pump.close()
        self.tun.close()


@pytest.fixture
def bare() -> Iterator[Bare]:
    made = Bare()
    yield made
    made.close()


counters = st.one_of(
    st.integers(0, 200),
    st.integers(0, 20_000),
    st.integers(8_100, 8_200),
    st.integers(0, LAST),
    st.integers(LAST - 9_000, LAST),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(counters, min_size=1, max_size=60))
def test_the_window_against_its_twin(bare: Bare, some: list[int]) -> None:
    twin = ReplayWindow()
    bare.keypair(0, 0, 77)  # another one each time, with a new window
    for counter in some:
        expected = PumpDrop.INNER_MALFORMED if twin.accept(counter) else PumpDrop.REPLAYED
        assert bare.open(77, counter) == expected, counter


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["keypair", "forget", "gone"]),
            st.integers(0, SLOTS - 1),
            st.integers(0, 3),
            st.integers(0, 7),
        ),
        max_size=40,
    )
)
def test_the_index_table_against_its_twin(bare: Bare, steps: list[tuple[str, int, int, int]]) -> None:
    """Indices that differ in bits that the table does not look at first, so that they collide."""
    twin: dict[tuple[int, int], int] = {}
    for slot in range(SLOTS):
        bare.push(r.PEER, *r.write_peer(slot, r.PEER_NEW, (), None, 1420))
    counter = 0
    for what, slot, position, number in steps:
        index = (number << 25 | 5) & 0xFFFFFFFF
        refused = bare.dropped(PumpDrop.RECORD)
        if what == "keypair":
            taken = any(its == index and place != (slot, position) for place, its in twin.items())
            bare.keypair(slot, position, index)
            twin.pop((slot, position), None)
            if not taken:
                twin[slot, position] = index
            assert bare.dropped(PumpDrop.RECORD) - refused == taken
        elif what == "forget":
            bare.push(r.FORGET, r.SLOT.pack(slot, position, 0, 0))
            twin.pop((slot, position), None)
        else:
            bare.push(r.PEER, *r.write_peer(slot, r.PEER_NEW, (), None, 1420))
            twin = {place: its for place, its in twin.items() if place[0] != slot}
        for each in range(8):
            index = (each << 25 | 5) & 0xFFFFFFFF
            counter += 1
            known = index in twin.values()
            expected = PumpDrop.INNER_MALFORMED if known else PumpDrop.UNKNOWN_INDEX
            assert bare.open(index, counter) == expected


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.sampled_from(["flow", "packet", "gone", "unflow"]), st.integers(0, SLOTS - 1), st.integers(0, 9)),
        max_size=60,
    )
)
def test_the_flow_table_against_its_twin(bare: Bare, steps: list[tuple[str, int, int]]) -> None:
    """Fewer flows than it has places: what was told is known until its peer is another, or all are forgotten."""
    twin: dict[tuple[int, int], None] = {}
    bare.push(r.UNFLOW, b"")
    for slot in range(SLOTS):
        bare.push(r.PEER, *r.write_peer(slot, r.PEER_NEW, (), None, 1420))
        bare.keypair(slot, 0, slot)
    counter = 0
    for what, slot, number in steps:
        packet = bytearray(Segment(b"", udp=True).packet())
        packet[15] = number
        if what == "flow":
            bare.push(r.FLOW, r.write_flow(slot, inbound=True), bytes(packet[:28]))
            twin[slot, number] = None
        elif what == "unflow":
            bare.push(r.UNFLOW, b"")
            twin.clear()
        elif what == "gone":
            bare.push(r.PEER, *r.write_peer(slot, r.PEER_NEW, (), None, 1420))
            bare.keypair(slot, 0, slot)
            twin = {flow: None for flow in twin if flow[0] != slot}
        else:
            counter += 1
            assert bare.open(slot, counter, bytes(packet)) is None
            came_up = [kind for kind, _ in bare.pulled(RING_TUN)]
            came_out = bare.tun.frames()
            assert (len(came_up), len(came_out)) == ((0, 1) if (slot, number) in twin else (1, 0))


def test_a_flood_from_one_source_keeps_no_other_from_coming_up() -> None:
    """Nobody takes what comes up meanwhile. By chance a source may have to share with the flood: one in 64."""
    a = Node("fast", 1)
    others = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(6)]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as flooder:
        flooder.bind(("127.0.0.1", 0))
        for _ in range(40):
            for _ in range(50):
                flooder.sendto(b"\1" + bytes(1147), ("127.0.0.1", a.port))
            a.fast.pump.turn(0)
        for i, other in enumerate(others):
            other.bind((f"127.0.0.{2 + i}", 0))
            other.sendto(b"\1" + bytes((i,)) * 147, ("127.0.0.1", a.port))
            other.close()
        while a.fast.pump.turn(0):
            pass
        up = []
        while data := a.fast.pump.pull(RING_NET):
            up += [data[at + r.SEND_BYTES : end] for _, at, end in r.read_records(data)]
        share = (1 << 18) // 8
        wanted = [b"\1" + bytes((i,)) * 147 for i in range(len(others))]
        came = [each for each in up if len(each) == 148]
        assert len(came) >= len(wanted) - 2
        assert [each for each in wanted if each in came] == came
        assert 0 < sum(len(each) for each in up if len(each) == 1148) <= share
        drops = dict(zip(DROPS, map(int, a.fast.pump.figures().drops), strict=True))
        assert drops[PumpDrop.UPCALL_SHARE] == 40 * 50 + len(wanted) - len(up)
        assert drops[PumpDrop.UPCALLS_FULL] == 0
    a.close()


def test_what_finds_a_full_ring_is_counted_and_what_is_in_it_is_whole(bare: Bare) -> None:
    sent = 0
    for host in range(250):  # sources enough to fill all shares
        packet = bytearray(Segment(bytes(1300), udp=True).packet())
        packet[13:16] = bytes((host, host, host))
        for _ in range(8):
            bare.tun.far.send(plain(bytes(packet)))
            sent += 1
        bare.pump.turn(0)
    figures = bare.pump.figures()
    dropped = bare.dropped(PumpDrop.NEW_FLOWS_FULL) + bare.dropped(PumpDrop.UPCALL_SHARE)
    up = bare.pulled(RING_TUN)
    assert bare.dropped(PumpDrop.NEW_FLOWS_FULL) > 0
    assert len(up) + dropped == sent
    assert all(len(body) == 8 + 10 + 1328 for _, body in up)
    assert 0.9 * figures.tun_max < figures.tun_peak <= figures.tun_max


def test_what_the_owner_wants_opened_does_not_come_back_to_it(bare: Bare) -> None:
    """Else the two would ask each other for ever."""
    bare.push(r.CONFIG, r.write_config(mtu=1420, router=False, unknown_up=True, report_ms=1, new_flows_per_s=1000))
    assert bare.open(99, 0) is PumpDrop.UNKNOWN_INDEX
    for count, body in r.split_packets([struct.pack("<IIQ", 4, 99, 0) + bytes(66_000)]):
        bare.push(r.OPEN, r.write_send(bare.way, count), body)
    assert bare.dropped(PumpDrop.MALFORMED) == 1, "longer than any packet"
    assert bare.pulled(RING_NET) == []


def test_a_peer_heard_elsewhere_than_it_is_answered_is_no_news_in_each_turn(bare: Bare) -> None:
    bare.keypair(0, 0, 5)
    bare.push(r.CONFIG, r.write_config(mtu=1420, router=False, unknown_up=True, report_ms=1000, new_flows_per_s=1000))
    began = time.monotonic()
    for counter in range(300):
        bare.open(5, counter)
    took_ms = (time.monotonic() - began) * 1000
    assert 1 <= len(bare.pulled(RING_REPORT)) <= 2 + took_ms / 5


def test_new_flows_are_asked_about_at_a_rate(bare: Bare) -> None:
    bare.configure(new_flows_per_s=100)
    for _ in range(25):
        for _ in range(16):
            bare.tun.far.send(plain(Segment(b"x", udp=True).packet()))
        bare.pump.turn(0)
    up = len(bare.pulled(RING_TUN))
    assert 48 <= up < 120, "one source alone leaves half of a second's to others"
    assert bare.dropped(PumpDrop.NEW_FLOWS_RATE) == 400 - up


def test_a_scan_by_one_peer_leaves_all_others_their_share() -> None:
    """A peer is one source, whatever addresses it writes; none of the first 64 shares its part with another."""
    with closing(Bare(slots=64)) as bare:
        bare.configure(new_flows_per_s=640)
        for slot in range(64):
            bare.keypair(slot, 0, 100 + slot)
        scan = [Segment(b"x", udp=True).packet(), bytearray(Segment(b"x", udp=True).packet())]
        for counter in range(1500):
            scan[1][12:16] = counter.to_bytes(4, "big")  # type: ignore[index]
            bare.open(100, counter, bytes(scan[counter % 2]))
        assert bare.dropped(PumpDrop.NEW_FLOWS_RATE) > 100
        bare.pulled(RING_TUN)
        up = []
        for counter in range(4 * 63):
            bare.open(101 + counter % 63, counter, bytes(scan[0]))
            up.append(len(bare.pulled(RING_TUN)))
            bare.open(100, 2000 + counter, bytes(scan[0]))
            bare.pulled(RING_TUN)
        assert up == [1] * len(up)


def test_what_must_not_be_lost_finds_room_when_the_ring_is_full_of_packets() -> None:
    """And none of it is lost while even that is full: it waits in Python."""
    a, b = Node("fast", 1), Node("pure", 2)
    a.meet(b)
    b.meet(a)
    while a.fast.pump.push(r.TUN, r.SLOT.pack(0, 0, 0, 1), struct.pack("=II", 1400, 0) + bytes(1400)):
        pass
    turn, a.fast.pump.turn = a.fast.pump.turn, lambda timeout_ms: 0  # type: ignore[method-assign]
    used = a.fast.pump.figures().down_peak
    for _ in range(2000):
        a.fast._push(r.RELAYS, r.SLOT.pack(0, 0, 0, 0), b"")
        a.fast._push(r.PEER, *r.write_peer(0, r.PEER_GONE, (), None, 0))
    assert a.fast._lost == 0
    assert used < a.fast.pump.figures().down_peak <= 1 << 18
    a.fast.pump.turn = turn  # type: ignore[method-assign]
    settle(a)
    assert not a.fast._waiting
    assert a.dropped().get("record", 0) == 0
    a.close()
    b.close()


def test_super_packets_with_options_fragments_and_odd_versions_stay_in_order(bare: Bare) -> None:
    """What is no plain TCP or UDP goes as it is, and through the flow of its addresses."""
    bare.keypair(0, 0, 5)
    options = bytearray(Segment(bytes(50)).packet())
    packets = [
        bytes((0x46, *options[1:3], options[3] + 4, *options[4:20], 1, 1, 1, 1, *options[20:])),  # IP options
        bytes(options[:6]) + b"\x20\0" + bytes(options[8:]),  # a first fragment
        bytes(options[:6]) + b"\0\5" + bytes(options[8:]),  # a later one
        bytes(options[:20]) + b"",  # a header and nothing else, which says that there is more
        Segment(bytes(1300), version=6, extension=bytes((6, 0, 1, 4, 0, 0, 0, 0))).packet(),
    ]
    for number, packet in enumerate(packets):
        bare.push(r.FLOW, r.write_flow(0, inbound=True), packet[:64])
        drop = bare.open(5, number, packet)
        frames = bare.tun.frames()
        if len(packet) == 20:
            assert drop is PumpDrop.INNER_MALFORMED and not frames
        else:
            assert drop is None and frames == [plain(packet)]
    assert bare.pulled(RING_TUN) == []
