"""The network as a machine without sockets: frames go in at ports, frames come out at ports, at their time.

    guest ── cable ── home (Ethernet, 192.168.N.0/24) ── router with NAT ── outside ── host (198.51.100.1)

Guests of one home share its Ethernet. The outside is plain routing among the routers' addresses (203.0.113.N) and the
host.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Iterator
from ipaddress import IPv4Network

from hil.net import dhcp, packet
from hil.net.link import Fault, Way
from hil.net.nat import KINDS, Nat
from hil.net.packet import ARP, BROADCAST, IPV4, UDP, Packet

HOST_ADDRESS = "198.51.100.1"
HOST_NETWORK = IPv4Network("198.51.100.0/24")
HOMES_MAX = 200
QUEUE_FRAMES_MAX = 20_000
NEIGHBOURS_MAX = 1_024
HOST = "host"  # the port of the host
_ROUTER_MAC = b"\x52\x54\x00\xff\xff\x01"


class Home:
    """One Ethernet with a router. `kind` is one of nat.KINDS."""

    def __init__(self, number: int, kind: str, chance: random.Random) -> None:
        self.number = number
        self.kind = kind
        self.network = IPv4Network(f"192.168.{number}.0/24")
        self.router = (self.network.network_address + 1).packed
        self.outside = bytes((203, 0, 113, number))
        self.nat = Nat(KINDS[kind], self.outside, chance)
        self.dhcp = dhcp.Dhcp(self.network, self.router)
        self.ports: list[str] = []
        self.behind: dict[bytes, str] = {}  # port by MAC
        self.macs: dict[bytes, bytes] = {}  # by IPv4 address


class World:
    """`receive` takes a frame in, `due` gives what comes out by now, `wait` says how long nothing will."""

    def __init__(self, seed: int = 1) -> None:
        self.lost = 0  # frames for which there was no room, no way or no reading
        self._chance = random.Random(seed)
        self._homes: list[Home] = []
        self._home_of: dict[str, Home] = {}
        self._by_outside: dict[bytes, Home] = {}
        self._ways: dict[tuple[str, bool], Way] = {(HOST, True): Way(self._chance), (HOST, False): Way(self._chance)}
        self._host_mac: bytes | None = None
        self._queue: list[tuple[float, int, bool, str, bytes]] = []
        self._order = itertools.count()

    def home(self, kind: str = "port") -> Home:
        """A new one."""
        if len(self._homes) >= HOMES_MAX:
            raise ValueError(f"more than {HOMES_MAX} homes")
        made = Home(len(self._homes) + 1, kind, self._chance)
        self._homes.append(made)
        self._by_outside[made.outside] = made
        return made

    def plug(self, port: str, home: Home) -> None:
        """A new port of a home's Ethernet."""
        home.ports.append(port)
        self._home_of[port] = home
        for up in (True, False):
            self._ways[port, up] = Way(self._chance)

    def rebind(self, port: str) -> None:
        """The router of that port's home forgets what it translates."""
        self._home_of[port].nat.rebind()

    def renumber(self, port: str) -> None:
        """The router of that port's home gives out other addresses from now on."""
        self._home_of[port].dhcp.renumber()

    def set_kind(self, port: str, kind: str) -> str:
        """The router of that port's home is replaced by one of another kind; returns the kind that it had."""
        home = self._home_of[port]
        before, home.kind = home.kind, kind
        home.nat.rebind()
        home.nat.kind = KINDS[kind]
        return before

    def set_fault(self, port: str, fault: Fault) -> None:
        """From now on, in both directions of the port's cable."""
        for up in (True, False):
            self._ways[port, up].fault = fault

    def counts(self, port: str) -> dict[str, int]:
        """Frames that passed and were dropped, up (from the guest) and down."""
        up, down = self._ways[port, True], self._ways[port, False]
        return {"up": up.passed, "up_dropped": up.dropped, "down": down.passed, "down_dropped": down.dropped}

    def receive(self, now: float, port: str, frame: bytes) -> None:
        """What the machine at `port` has sent."""
        for at in self._ways[port, True].pass_on(now, len(frame)):
            if at <= now:
                self._arrived(now, port, frame)
            else:
                self._later(at, True, port, frame)

    def due(self, now: float) -> Iterator[tuple[str, bytes]]:
        """What goes to machines by now: (port, frame)."""
        while self._queue and self._queue[0][0] <= now:
            _, _, up, port, frame = heapq.heappop(self._queue)
            if up:
                self._arrived(now, port, frame)
            else:
                yield port, frame

    def wait(self, now: float) -> float | None:
        """Seconds until something is due; None: nothing is."""
        return max(0.0, self._queue[0][0] - now) if self._queue else None

    def _later(self, at: float, up: bool, port: str, frame: bytes) -> None:
        if len(self._queue) >= QUEUE_FRAMES_MAX:
            self.lost += 1
            return
        heapq.heappush(self._queue, (at, next(self._order), up, port, frame))

    def _send(self, now: float, port: str, frame: bytes) -> None:
        for at in self._ways[port, False].pass_on(now, len(frame)):
            self._later(at, False, port, frame)

    def _arrived(self, now: float, port: str, frame: bytes) -> None:
        if port == HOST:
            self._from_host(now, frame)
            return
        home = self._home_of[port]
        destination, source = frame[:6], frame[6:12]
        if source not in home.behind and len(home.behind) >= NEIGHBOURS_MAX:
            self.lost += 1
            return
        home.behind[source] = port
        if destination in (_ROUTER_MAC, BROADCAST):
            self._to_router(now, home, port, frame)
        if destination[0] & 1:
            for other in home.ports:
                if other != port:
                    self._send(now, other, frame)
        elif (other := home.behind.get(destination, port)) != port:
            self._send(now, other, frame)

    def _to_router(self, now: float, home: Home, port: str, frame: bytes) -> None:
        if packet.kind_of(frame) == ARP:
            if (asked := packet.arp_asked(frame)) is not None:
                mac, address, wanted = asked
                home.macs[address] = mac
                if wanted == home.router:
                    self._send(now, port, packet.arp_answer(_ROUTER_MAC, wanted, mac, address))
            return
        if packet.kind_of(frame) != IPV4:
            return
        try:
            read = Packet(frame[14:])
        except ValueError:
            self.lost += 1
            return
        if read.protocol == UDP and read.ports() == (68, 67):
            answer = home.dhcp.answer(bytes(read.data[read.at + 8 :]))
            if answer is not None:
                made = packet.udp_packet((home.router, 67), (b"\xff" * 4, 68), answer)
                self._send(now, port, packet.ethernet(frame[6:12], _ROUTER_MAC, IPV4, made))
            return
        if frame[:6] != _ROUTER_MAC:
            return
        home.macs[read.source] = frame[6:12]
        hairpin = read.destination == home.outside
        if (hairpin and not home.nat.kind.hairpin) or not read.hop() or not home.nat.outward(now, read):
            self.lost += 1
            return
        self._outside(now, read)

    def _outside(self, now: float, read: Packet) -> None:
        """Routing by destination among what is outside."""
        home = self._by_outside.get(read.destination)
        if home is not None:
            if home.nat.inward(now, read) and (mac := home.macs.get(read.destination)) in home.behind:
                assert mac is not None
                self._send(now, home.behind[mac], packet.ethernet(mac, _ROUTER_MAC, IPV4, bytes(read.data)))
            else:
                self.lost += 1
        elif read.destination in _HOST_ADDRESSES and self._host_mac is not None:
            self._send(now, HOST, packet.ethernet(self._host_mac, _ROUTER_MAC, IPV4, bytes(read.data)))
        else:
            self.lost += 1

    def _from_host(self, now: float, frame: bytes) -> None:
        self._host_mac = frame[6:12]
        if (asked := packet.arp_asked(frame)) is not None:
            mac, address, wanted = asked
            if wanted not in _HOST_ADDRESSES:
                self._send(now, HOST, packet.arp_answer(_ROUTER_MAC, wanted, mac, address))
        elif packet.kind_of(frame) == IPV4 and frame[:6] == _ROUTER_MAC:
            try:
                read = Packet(frame[14:])
            except ValueError:
                self.lost += 1
                return
            if read.hop():
                self._outside(now, read)


_HOST_ADDRESSES = frozenset((HOST_NETWORK.network_address + number).packed for number in range(1, 5))
