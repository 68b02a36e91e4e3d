"""The network between guests: cables, Ethernet, routers with NAT; frames made and read by scapy."""

from __future__ import annotations

import pytest
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw

from hil.net.frames import FRAME_BYTES_MAX, FrameError, Frames, encode
from hil.net.link import Fault
from hil.net.nat import KINDS
from hil.net.world import HOST, HOST_ADDRESS, Home, World
from tests.sim.nat import KINDS as SIM_KINDS
from tests.sim.nat import direct_is_possible

ROUTER_MAC = "52:54:00:ff:ff:01"
HOST_MAC = "02:00:00:00:00:99"


class Node:
    """A machine at a port, which has its lease."""

    def __init__(self, world: World, port: str, number: int, home: Home) -> None:
        self.world = world
        self.port = port
        self.mac = f"02:00:00:00:00:{number:02x}"
        world.plug(port, home)
        self.address = ""
        got = self.dhcp("discover")
        assert got["message-type"] == 2
        got = self.dhcp("request", ("requested_addr", self.address))
        assert got["message-type"] == 5
        assert got["router"] == f"192.168.{home.number}.1"

    def dhcp(self, kind: str, *options: tuple[str, object]) -> dict[str, object]:
        ask = Ether(src=self.mac, dst="ff:ff:ff:ff:ff:ff") / IP(src="0.0.0.0", dst="255.255.255.255")
        ask /= UDP(sport=68, dport=67) / BOOTP(chaddr=bytes.fromhex(self.mac.replace(":", "")), xid=7)
        send(self.world, self.port, ask / DHCP(options=[("message-type", kind), *options, "end"]))
        (answer,) = came(self.world, self.port)
        assert answer[UDP].dport == 68 and answer[BOOTP].xid == 7
        self.address = answer[BOOTP].yiaddr
        return dict(option for option in answer[DHCP].options if isinstance(option, tuple))

    def udp(self, to: tuple[str, int], port: int = 5000, data: bytes = b"hello", now: float = 0.0) -> None:
        frame = Ether(src=self.mac, dst=ROUTER_MAC) / IP(src=self.address, dst=to[0]) / UDP(sport=port, dport=to[1])
        send(self.world, self.port, frame / Raw(data), now)

    def got(self, now: float = 0.0) -> list[Packet]:
        return came(self.world, self.port, now)


def send(world: World, port: str, frame: Packet, now: float = 0.0) -> None:
    world.receive(now, port, bytes(frame))


def came(world: World, port: str, now: float = 0.0) -> list[Packet]:
    """What came to `port`; each checksum is as scapy would have it."""
    found: list[Packet] = []
    for to, frame in world.due(now):
        if to == port:
            read = Ether(frame)
            if IP in read:
                fresh = Ether(frame)
                for layer in (IP, UDP, TCP, ICMP):
                    if layer in fresh and not (layer is UDP and fresh[UDP].chksum == 0):
                        del fresh[layer].chksum
                assert bytes(fresh) == frame
            found.append(read)
    return found


def greet_host(world: World) -> None:
    """The host asks who the router is, as its kernel does."""
    send(world, HOST, Ether(src=HOST_MAC) / ARP(op=1, hwsrc=HOST_MAC, psrc=HOST_ADDRESS, pdst="198.51.100.254"))
    (answer,) = came(world, HOST)
    assert answer[ARP].op == 2 and answer[ARP].hwsrc == ROUTER_MAC


@pytest.mark.parametrize("layer", [UDP(sport=5000, dport=53), TCP(sport=5000, dport=443), ICMP(id=77)])
def test_a_guest_asks_the_host_and_gets_its_answer_through_the_router(layer: Packet) -> None:
    world = World()
    node = Node(world, "a", 1, world.home("port"))
    greet_host(world)
    send(world, "a", Ether(src=node.mac, dst=ROUTER_MAC) / IP(src=node.address, dst=HOST_ADDRESS) / layer / b"odd")
    (asked,) = came(world, HOST)
    assert asked.dst == HOST_MAC and asked[IP].src == "203.0.113.1" and asked[IP].ttl == 63
    back = asked.copy()
    if ICMP in back:
        back[ICMP].type = 0
    else:
        over = back[IP].payload
        over.sport, over.dport = over.dport, over.sport
    back.src, back.dst, back[IP].src, back[IP].dst = HOST_MAC, ROUTER_MAC, HOST_ADDRESS, "203.0.113.1"
    for name in (IP, UDP, TCP, ICMP):
        if name in back:
            del back[name].chksum
    send(world, HOST, Ether(bytes(back)))
    (answer,) = node.got()
    assert answer[IP].dst == node.address and answer.dst == node.mac and bytes(answer).endswith(b"odd")


def test_two_guests_of_one_home_talk_past_the_router() -> None:
    world = World()
    home = world.home()
    a, b = Node(world, "a", 1, home), Node(world, "b", 2, home)
    assert a.address != b.address
    send(world, "a", Ether(src=a.mac, dst="ff:ff:ff:ff:ff:ff") / ARP(hwsrc=a.mac, psrc=a.address, pdst=b.address))
    assert len(b.got()) == 1
    send(world, "b", Ether(src=b.mac, dst=a.mac) / IP(src=b.address, dst=a.address) / UDP() / b"x")
    assert len(a.got()) == 1 and b.got() == []


@pytest.mark.parametrize("a_kind", [kind.name for kind in SIM_KINDS])
@pytest.mark.parametrize("b_kind", [kind.name for kind in SIM_KINDS])
def test_who_reaches_whom_is_what_the_simulation_says(a_kind: str, b_kind: str) -> None:
    """Both learn from the host where the other is seen, then both send; what comes of it, the labs' oracle says."""
    world = World()
    a, b = Node(world, "a", 1, world.home(a_kind)), Node(world, "b", 2, world.home(b_kind))
    greet_host(world)
    seen = {}
    for node in (a, b):
        node.udp((HOST_ADDRESS, 3478))
        for asked in came(world, HOST):
            seen[node.port] = (asked[IP].src, asked[UDP].sport)
    kinds = {kind.name: kind for kind in SIM_KINDS}
    reached = False
    if len(seen) == 2:
        for _ in range(2):
            a.udp(seen["b"])
            b_got = b.got()
            b.udp(seen["a"])
            a_got = a.got()
            # Who is reached answers to where it came from.
            for answer, other in ((b_got, b), (a_got, a)):
                for packet in answer:
                    other.udp((packet[IP].src, packet[UDP].sport))
            reached = reached or bool((b_got and a.got()) or (a_got and b.got()))
    assert reached == direct_is_possible(kinds[a_kind], kinds[b_kind])


def test_a_binding_ends_and_a_router_that_starts_anew_has_forgotten_it() -> None:
    world = World()
    home = world.home("short")
    node = Node(world, "a", 1, home)
    greet_host(world)
    back = Ether(src=HOST_MAC, dst=ROUTER_MAC) / IP(src=HOST_ADDRESS, dst="203.0.113.1") / UDP(sport=53, dport=5000)
    node.udp((HOST_ADDRESS, 53))
    send(world, HOST, back, now=KINDS["short"].binding_s - 1)
    assert len(node.got(now=29.0)) == 1
    send(world, HOST, back, now=KINDS["short"].binding_s + 1)
    assert node.got(now=31.0) == []
    node.udp((HOST_ADDRESS, 53), now=40.0)
    home.nat.rebind()
    send(world, HOST, back, now=41.0)
    assert node.got(now=41.0) == [] and home.nat.refused == 2


def test_a_router_is_replaced_by_one_of_another_kind() -> None:
    world = World()
    node = Node(world, "a", 1, world.home("full"))
    greet_host(world)
    stranger = Ether(src=HOST_MAC, dst=ROUTER_MAC) / IP(src="198.51.100.9", dst="203.0.113.1")

    def lets_strangers_in() -> bool:
        node.udp((HOST_ADDRESS, 53))
        [out] = came(world, HOST)
        send(world, HOST, stranger / UDP(sport=7, dport=out[UDP].sport))
        return bool(node.got())

    assert lets_strangers_in()
    assert world.set_kind("a", "symmetric") == "full" and not lets_strangers_in()
    assert world.set_kind("a", "full") == "symmetric" and lets_strangers_in()


def test_a_cable_delays_drops_doubles_narrows_and_is_pulled() -> None:
    world = World()
    node = Node(world, "a", 1, world.home())
    greet_host(world)

    def through(fault: Fault, size: int = 100, times: int = 1) -> list[float]:
        world.set_fault("a", fault)
        came(world, HOST, 1e9)
        for _ in range(times):
            node.udp((HOST_ADDRESS, 53), data=b"x" * size, now=0.0)
        return [at for at in (0.0, 0.05, 0.1, 0.2, 0.4, 1.0) for _ in came(world, HOST, at)]

    assert through(Fault()) == [0.0]
    assert through(Fault(delay_s=0.1)) == [0.1]
    assert through(Fault(loss=1.0)) == []
    assert through(Fault(copies=1.0)) == [0.0, 0.0]
    assert through(Fault(down=True)) == []
    assert through(Fault(bytes_max=500), 473) == [] and through(Fault(bytes_max=500), 472) == [0.0]
    slow = through(Fault(bits_per_s=80_000), 1000, times=20)
    assert slow[0] == 0.2 and 2 <= len(slow) < 20  # 0.1 s each, and no queue of two seconds
    assert world.counts("a")["up_dropped"] > 10


def test_what_is_no_packet_is_counted_and_harms_nobody() -> None:
    world = World()
    node = Node(world, "a", 1, world.home())
    greet_host(world)
    head = bytes.fromhex((ROUTER_MAC + node.mac).replace(":", ""))
    for payload in (b"", b"\x45", b"\x45" + b"\0" * 30, b"\x41" + b"\xff" * 60, bytes(range(256))):
        for kind in (b"\x08\x00", b"\x08\x06", b"\x86\xdd"):
            world.receive(0.0, "a", head + kind + payload)
            world.receive(0.0, HOST, head + kind + payload)
    assert world.lost > 0
    greet_host(world)
    node.udp((HOST_ADDRESS, 53))
    assert len(came(world, HOST)) == 1


def test_frames_are_cut_wherever_the_stream_is() -> None:
    frames = [bytes([number]) * size for number, size in enumerate((14, 60, 1514, FRAME_BYTES_MAX))]
    stream = b"".join(encode(frame) for frame in frames)
    for step in (1, 7, 4096, len(stream)):
        reader = Frames()
        assert [f for at in range(0, len(stream), step) for f in reader.feed(stream[at : at + step])] == frames
    for length in (0, 13, FRAME_BYTES_MAX + 1, 0xFFFFFFFF):
        with pytest.raises(FrameError):
            Frames().feed(length.to_bytes(4, "big") + b"x" * 20)


def test_a_router_gives_another_address_and_refuses_the_old_one() -> None:
    world = World()
    home = world.home("port")
    node, other = Node(world, "a", 1, home), Node(world, "b", 2, home)
    before = node.address
    assert (before, other.address) == ("192.168.1.10", "192.168.1.11")
    world.renumber("a")
    assert node.dhcp("request", ("requested_addr", before))["message-type"] == 6
    assert node.dhcp("discover")["message-type"] == 2
    assert node.address not in (before, other.address)
    assert node.dhcp("request", ("requested_addr", node.address))["message-type"] == 5


def test_a_network_has_245_leases_however_often_it_is_renumbered() -> None:
    world = World()
    home = world.home("port")
    for _ in range(2):
        given = {home.dhcp.answer(_discover(number))[16:20] for number in range(245)}  # type: ignore[index]
        assert len(given) == 245
        assert all(10 <= address[3] <= 254 for address in given)
        assert home.dhcp.answer(_discover(245)) is None
        home.dhcp.renumber()


def _discover(number: int) -> bytes:
    ask = BOOTP(chaddr=number.to_bytes(6, "big"), xid=7) / DHCP(options=[("message-type", "discover"), "end"])
    return bytes(ask)
