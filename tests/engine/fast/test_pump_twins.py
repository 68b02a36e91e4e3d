"""Both engines, fed the same: seeded batches of frames, datagrams and changes, mixed. What comes out is the same.

Each stands in the middle of three nodes that are its peers; those are pure, so that what it sealed is opened by the
specification, and what it is to open is sealed by that. A failure names its seed. EDGEAGENT_FUZZ_S makes the run go on
for that many seconds; EDGEAGENT_FUZZ_SEED is where it begins, instead of anywhere.
"""

from __future__ import annotations

import os
import struct
from random import Random, SystemRandom
from time import monotonic
from typing import Any

from edgeagent.proto.endpoint import Transmit
from edgeagent.proto.icmp_too_big import fragments, fragments_v6
from edgeagent.proto.policy import Slice
from tests.engine.fast.mutations import frame as any_frame
from tests.engine.packets import ACK, FIN, PSH, SYN, Segment, naive_checksum
from tests.engine.test_offload import by_flow
from tests.engine.twins import TUN_MTU, Node, addressed, settle
from tests.policy_kit import FakePeer, echo, error_about
from tests.policy_kit import udp as udp_packet

ROUNDS = 6  # seeds; each makes two whole networks
STEPS = 40
PEERS = 3
ICMP = (1, 58)
LONG_S = float(os.environ.get("EDGEAGENT_FUZZ_S", "0"))
SEED = int(os.environ.get("EDGEAGENT_FUZZ_SEED", SystemRandom().getrandbits(40)))
# What is decided by Python or by the pump for the same datagram is counted under one of these
SAME_DROPS = (
    "vnet-header", "unknown-index", "key-expired", "authentication", "replayed", "inner-malformed", "inner-source",
    "inner-ecn", "malformed", "no-peer", "packet-too-big", "policy", "prohibited", "fragment-without-first",
    "flow-unreadable",
)  # fmt: skip
TAGS = ("tag:a", "tag:b")
KINDS, WEIGHTS = ("frames", "sealed", "noise", "mtu", "roam", "again", "moved"), (10, 10, 5, 2, 1, 1, 1)
POLICY_KINDS, POLICY_WEIGHTS = (*KINDS, "rules", "record", "pieces", "echo"), (10, 10, 2, 1, 1, 1, 1, 2, 1, 4, 3)


class Net:
    """One engine and its peers. Keys, addresses and indices follow from the seed: two of them are the same."""

    def __init__(self, engine: str, seed: int, *, policy: bool = False) -> None:
        self.hub = Node(engine, 1, seed=seed, slots=2, flows=64, ring_bytes=1 << 22)
        self.others = [Node("pure", number + 2, seed=seed) for number in range(PEERS)]
        self.out: list[bytes] = []  # of the hub's TUN
        self.reached: list[list[bytes]] = [[] for _ in self.others]
        for other in self.others:
            self.hub.meet(other)
            other.meet(self.hub)
        for other in self.others:
            self.hub.inject([bytes(10) + hello(self.hub, other)])
            self.settle()
            other.inject([bytes(10) + hello(other, self.hub)])
            self.settle()
        self.policy = policy
        self.tags = [TAGS[number % 2] for number in range(PEERS)]
        if policy:
            self.set_rules([], [])
            self.identify()

    def set_rules(self, rules: list[Any], out: list[Any]) -> None:
        hub = self.hub
        body = {"v": 1, "u": "", "in": rules, "out": out}
        hub.device.set_policy(hub.now, Slice(body, (), (hub.address, hub.address_v6), ()))

    def identify(self) -> None:
        """The hub's peers have records, as their tags are now."""
        for number, other in enumerate(self.others):
            peer = self.hub.peer(other)
            addresses = [other.address, other.address_v6]
            peer.record = FakePeer(f"device {number}", addresses, [self.tags[number]]).record
            self.hub.device.record_changed(self.hub.now, peer)

    def settle(self) -> None:
        settle(self.hub, *self.others)
        self.hub.sync()
        settle(self.hub, *self.others)
        self.out += self.hub.taken()
        for other, reached in zip(self.others, self.reached, strict=True):
            reached += other.taken()

    def seal(self, number: int, packet: bytes, counter: int, outer: int) -> bytes:
        """As its peer would, under a counter of ours."""
        other = self.others[number]
        pair = other.peer(self.hub).keypairs.current
        if pair is None:
            return b"\4" + bytes(40)
        header = struct.pack("<IIQ", 4, pair.remote_index, counter)
        return other.device._shared.crypto.seal_transport(pair.send_key, header, counter, packet)

    def drain(self) -> list[list[bytes]]:
        """What has come out of each TUN since the last time."""
        drained, self.out, self.reached = [self.out, *self.reached], [], [[] for _ in self.others]
        return drained

    def close(self) -> None:
        for node in (self.hub, *self.others):
            node.close()


def in_order(packets: list[bytes], *, loose: bool) -> dict[bytes, list[bytes]]:
    """By flow, but for ICMP: how many answers there are depends on the time."""
    flows = {flow: its for flow, its in by_flow(packets).items() if flow[0] not in ICMP}
    return {flow: sorted(its) if loose else its for flow, its in flows.items()}


def hello(source: Node, to: Node) -> bytes:
    return addressed(Segment(b"hello", udp=True).packet(), source, to)


def between(random: Random, source: Node, to: Node, ecn: int) -> bytes:
    """A frame, perhaps a super-packet, mostly right."""
    version = random.choice((4, 4, 6))
    udp = random.random() < 0.3
    size = random.choice((0, 1, 13, 500, 1300, random.randrange(1, 9000), random.randrange(1, 60_000)))
    segment = Segment(
        random.randbytes(size),
        version=version,
        udp=udp,
        seq=random.getrandbits(32),
        flags=random.choice((ACK, ACK, ACK | PSH, ACK | FIN, SYN)),
        tos=random.getrandbits(6) << 2 | ecn,
        df=random.random() < 0.8,
        ports=random.choice(((random.randrange(4), 80), (80, random.randrange(4)))),
        options=random.choice((b"", b"", bytes((2, 4, 5, 180)))),
    )
    addresses = (source.address + to.address) if version == 4 else (source.address_v6 + to.address_v6)
    if size <= 1300:
        return bytes(10) + addressed(segment.packet(), source, to)
    made = bytearray(segment.super_frame(random.choice((536, 1200, 1300))))
    start = 10 + (20 if version == 4 else 40)
    if version == 4:
        made[22:30] = addresses
        made[20:22] = b"\0\0"
        made[20:22] = naive_checksum(bytes(made[10:30])).to_bytes(2, "big")
    else:
        made[18:50] = addresses
    where = start + (6 if udp else 16)
    pseudo = addresses + struct.pack(">II", len(made) - start, 17 if udp else 6)
    made[where : where + 2] = (~naive_checksum(pseudo) & 0xFFFF).to_bytes(2, "big")
    return bytes(made)


def mutated(random: Random, data: bytes) -> bytes:
    kind = random.randrange(6)
    if kind == 0 and data:
        at = random.randrange(len(data))
        return data[:at] + bytes((data[at] ^ 1 << random.randrange(8),)) + data[at + 1 :]
    if kind == 1:
        return data[: random.randrange(len(data) + 1)]
    if kind == 2:
        return data[:4] + random.randbytes(4) + data[8:]
    if kind == 3:
        return data[:8] + random.choice((bytes(8), b"\xff" * 8, random.randbytes(8))) + data[16:]
    if kind == 4:
        return b"\xff" * len(data)
    return data + random.randbytes(random.choice((1, 16, 2000)))


def step(random: Random, nets: list[Net], counters: list[int]) -> None:
    """The same for each of them; what is drawn is drawn once."""
    number = random.randrange(PEERS)
    policy = nets[0].policy
    kind = random.choices(POLICY_KINDS if policy else KINDS, POLICY_WEIGHTS if policy else WEIGHTS)[0]
    hub, others = nets[0].hub, nets[0].others
    if kind == "frames":
        ecn = random.randrange(4)  # `pure` sends those of one ECN field together, and so changes their order
        frames = [between(random, hub, others[number], ecn) for _ in range(random.randint(1, 6))]
        if random.random() < 0.3:
            frames.insert(random.randrange(len(frames) + 1), any_frame(random))
        frames = [frame for frame in frames if 0 < len(frame) <= 65_545]
        for net in nets:
            net.hub.inject(frames)
            net.settle()
    elif kind in ("sealed", "pieces", "echo"):
        packets: list[bytes] = []
        if kind != "sealed":
            packets = (pieces if kind == "pieces" else echoes)(random, others[number], hub)
        for _ in range(random.randint(1, 8) if kind == "sealed" else 0):
            source = others[number if random.random() < 0.9 else random.randrange(PEERS)]
            packet = between(random, source, hub, random.randrange(4))[10:][:1400]
            packets.append(mutated(random, packet) if random.random() < 0.2 else packet)
        sealed = []
        for packet in packets:
            counters[number] += random.choice((1, 1, 1, 1, 2, 70))
            late = random.choice((0, 0, 0, 1, 5, 8127, 8128, 9000))
            sealed.append((packet, max(0, counters[number] - late), mutate_seed(random), random.randrange(4)))
        for net in nets:
            for packet, counter, seed, outer in sealed:
                datagram = net.seal(number, packet, counter, outer)
                if seed:
                    datagram = mutated(Random(seed), datagram)
                if datagram:
                    net.others[number].udp.send([Transmit(net.hub.endpoint, [datagram], outer)])
            net.settle()
    elif kind == "noise":
        noise = random.choice((b"\xff" * 1400, b"\4", random.randbytes(random.randrange(1, 200)), bytes(65_000)))
        for net in nets:
            net.others[number].udp.send([Transmit(net.hub.endpoint, [noise])])
            net.settle()
    elif kind == "mtu":
        mtu = random.choice((1280, 1000, 1400, 9000))
        for net in nets:
            net.hub.peer(net.others[number]).set_path_mtu(mtu, fragment=True)
            net.settle()
    elif kind == "roam":
        for net in nets:
            other = net.others[number]
            other.port = other.engine.bind(0)
            other.inject([bytes(10) + hello(other, net.hub)])
            net.settle()
    elif kind == "again":
        counters[number] = 100
        for net in nets:
            other = net.others[number]
            for node, its in ((net.hub, other), (other, net.hub)):
                node.device.remove_peer(node.now, its.device.public_key)
                node.meet(its)
            if policy:
                net.identify()
            for node in (net.hub, *net.others):
                node.ahead_s += 1.0
            net.hub.inject([bytes(10) + hello(net.hub, other)])
            net.settle()
            other.inject([bytes(10) + hello(other, net.hub)])
            net.settle()
    elif kind == "rules":
        rules, out = some_rules(random), [rule[:1] + rule[2:] for rule in some_rules(random)]
        for net in nets:
            net.set_rules(rules, out)
            net.settle()
    elif kind == "record":
        tag = random.choice(TAGS)
        for net in nets:
            net.tags[number] = tag
            net.identify()
            net.settle()
    else:
        for net in nets:
            net.hub.device.allowed_ips.insert(
                bytes((10, 0, 0, 200 + number)), 32, net.hub.peer(net.others[random_of(counters, number)])
            )
            net.settle()


def some_rules(random: Random) -> list[Any]:
    """In the form of a slice's `in`."""
    selectors: list[Any] = [*TAGS, "*", [bytes((10, 0, 0, 2)), 31], [bytes.fromhex("fd00") + bytes(14), 64]]
    services = [[0, 0, 65535], [6, 80, 80], [6, 0, 3], [17, 80, 80], [17, 0, 65535], [1, 0, 65535], [58, 0, 65535]]
    return [
        [random.sample(selectors, 2), [random.choice(("me", "*"))], random.sample(services, random.randint(1, 3))]
        for _ in range(random.randrange(4))
    ]


def pieces(random: Random, source: Node, to: Node) -> list[bytes]:
    """Fragments of a packet or two, mostly in order."""
    made = []
    for _ in range(random.randint(1, 2)):
        version = random.choice((4, 6))
        segment = Segment(bytes(600), version=version, udp=True, df=False, ports=(random.randrange(4), 80))
        packet = addressed(segment.packet(), source, to)
        if version == 4:
            made += fragments(packet[:4] + random.randbytes(2) + packet[6:], 300)
        else:
            made += fragments_v6(packet, 300, random.randbytes(4))
    if random.random() < 0.3:
        random.shuffle(made)
    return made


def echoes(random: Random, source: Node, to: Node) -> list[bytes]:
    """And errors, that quote anything."""
    some = []
    for _ in range(random.randint(1, 4)):
        ours, theirs = random.choice(((to.address, source.address), (to.address_v6, source.address_v6)))
        quoted = udp_packet(ours, theirs, random.randrange(4), 80)
        asked = echo(theirs, ours, random.randrange(3), answer=random.random() < 0.5)
        some.append(random.choice((asked, asked, error_about(quoted, theirs))))
    return some


def mutate_seed(random: Random) -> int:
    return random.getrandbits(30) + 1 if random.random() < 0.2 else 0


def random_of(counters: list[int], number: int) -> int:
    return (number + sum(counters)) % PEERS


def compare(seed: int, *, policy: bool = False) -> tuple[int, int]:
    """(packets that came through, drops)."""
    random = Random(seed)
    nets = [Net("pure", seed, policy=policy), Net("fast", seed, policy=policy)]
    counters, through = [100] * PEERS, 0
    try:
        for number in range(STEPS):
            step(random, nets, counters)
            where = f"seed {seed}, step {number}"
            # By a path that takes less than the TUN a SYN and what is cut up go by Python, which others may overtake;
            # with a policy each SYN does, and all fragments
            loose = policy or any(net.hub.peer(other).path_mtu < TUN_MTU for net in nets for other in net.others)
            for ours, theirs in zip(nets[1].drain(), nets[0].drain(), strict=True):
                assert in_order(ours, loose=loose) == in_order(theirs, loose=loose), where
                through += len(ours)
            drops = [{key: net.hub.dropped().get(key, 0) for key in SAME_DROPS} for net in nets]
            assert drops[1] == drops[0], where
            for other in range(PEERS):
                ours_, theirs_ = (net.hub.peer(net.others[other]) for net in reversed(nets))
                assert (ours_.rx_bytes, ours_.tx_bytes) == (theirs_.rx_bytes, theirs_.tx_bytes), where
        return through, sum(nets[0].hub.dropped().values())
    finally:
        for net in nets:
            net.close()


def test_seeded_mixtures() -> None:
    print(f"seed {SEED}")
    end, seed = monotonic() + LONG_S, SEED
    through = drops = 0
    while seed < SEED + ROUNDS or monotonic() < end:
        some = compare(seed)
        through, drops = through + some[0], drops + some[1]
        seed += 1
    assert through > 20 * ROUNDS, "packets came through"
    assert drops > 5 * ROUNDS, "and some did not"


def test_seeded_mixtures_with_a_policy() -> None:
    """Rules and records change in between; what they let through is the same."""
    print(f"seed {SEED}")
    end, seed = monotonic() + LONG_S, SEED
    through = drops = 0
    while seed < SEED + ROUNDS or monotonic() < end:
        some = compare(seed, policy=True)
        through, drops = through + some[0], drops + some[1]
        seed += 1
    assert through > 10 * ROUNDS, "packets came through"
    assert drops > 10 * ROUNDS, "and some did not"


def test_the_two_nets_are_made_the_same() -> None:
    nets = [Net(engine, 5) for engine in ("pure", "fast")]
    try:
        assert nets[0].hub.device.public_key == nets[1].hub.device.public_key
        assert nets[1].hub.is_fast and nets[1].hub.peer(nets[1].others[0]).slot == 0
        assert nets[1].hub.peer(nets[1].others[2]).slot is None, "one is beyond the table"
    finally:
        for net in nets:
            net.close()
