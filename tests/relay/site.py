"""Several real relay cores and members' Relays, on wires of any length that a test cuts as it likes."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from heapq import heappop, heappush

from edgeagent.proto.endpoint import Endpoint
from edgeagent.proto.relay_endpoint import RelayEndpoint
from edgeagent.proto.relay_frames import DATA, RECV
from edgeagent.proto.relaymap import RelayInfo
from edgeagent.proto.relays import Relays
from relay.core.relay import RelayCore
from relay.core.shared import Train
from tests.relay import kit

Action = Callable[[], None]
UDP_PORT = 3478
MESH = bytes((100, 64))  # addresses that begin so are inside the mesh
OUTPUTS_MAX = 2_000  # of one moment: more is a machine that talks to itself


class SiteRelay:
    """`kill` and `start`; `udp`, `tls` and `forwards` False cut a part of it off, `delay_s` is the way to it."""

    def __init__(self, site: Site, number: int, hosts: list[str] | None = None) -> None:
        self.site = site
        self.id = f"r{number}"
        self.address = f"198.51.100.{number}"
        self.private = kit.CRYPTO.blake2s(self.id.encode())
        self.hosts = [f"{self.address}:443"] if hosts is None else hosts
        self.udp = self.tls = self.forwards = True
        self.delay_s = 0.01
        self.conns: dict[int, tuple[SiteMember, int]] = {}
        self.core: RelayCore | None = None
        self.start()

    @property
    def info(self) -> RelayInfo:
        key = kit.CRYPTO.x25519_base(self.private)
        return RelayInfo(
            {"id": self.id, "rg": "r", "k": key, "h": self.hosts, "u": UDP_PORT, "s": 3479, "pin": bytes(32)}
        )

    def start(self) -> None:
        """Anew, if it runs: connections do not outlive it."""
        self.kill()
        self.core = kit.make_core(relay=self.id, private=self.private, seed=self.site.random.getrandbits(30))

    def kill(self) -> None:
        self.core = None
        for member, number in self.conns.values():
            self.site.later(self.delay_s, partial(member.stream_closed, number))
        self.conns.clear()

    def members(self) -> int:
        """Logged in."""
        assert self.core is not None
        return len(self.core.shared.roster)


class SiteMember:
    """One device's Relays, what came to it, and how often it was woken."""

    def __init__(self, site: Site, number: int, *, families: list[int] | None = None) -> None:
        self.site = site
        self.number = number
        self.keys = [number]  # the numbers of its node keys; the last one is in use
        self.endpoint = Endpoint((f"192.0.2.{number}", 40_000))
        self.packets: list[tuple[bytes, RelayEndpoint]] = []
        self.gone: list[bytes] = []
        self.streams: dict[int, tuple[SiteRelay, int]] = {}
        self.opened: list[tuple[str, int]] = []  # (relay, number) of every connection asked for
        self.homes: list[str | None] = []  # each that it had, in order
        self.wakes = 0
        rng = random.Random(number)
        self.relays = Relays(
            site.now,
            crypto=kit.CRYPTO,
            entropy=rng.randbytes,
            jitter=rng.random,
            private=kit.private_key(number),
            is_usable=lambda address: not address.startswith(MESH),
        )
        self.relays.broker_reachable = True
        if families is not None:
            self.relays.set_families(families)

    @property
    def key(self) -> bytes:
        return kit.public_key(self.keys[-1])

    def renew(self, number: int) -> None:
        """The node key of `number` from now on; the hub has known of it."""
        self.keys.append(number)
        self.use()
        self.relays.set_node_key(self.site.now, kit.private_key(number))

    def use(self, *relays: SiteRelay, passes: list[bytes] | None = None) -> None:
        """The hub's map comes."""
        passes = passes if passes is not None else [kit.make_pass(number, regions=[kit.REGION]) for number in self.keys]
        self.relays.set_map(self.site.now, [relay.info for relay in relays or self.site.relays], passes)

    def send(self, relay: SiteRelay | str, other: SiteMember | bytes, packet: bytes = b"packet") -> bool:
        key = other.key if isinstance(other, SiteMember) else other
        name = relay if isinstance(relay, str) else relay.id
        return self.relays.send(self.site.now, RelayEndpoint(name, key), [packet], 0)

    def datagram(self, datagram: bytes, source: Endpoint) -> None:
        self.relays.handle_datagram(self.site.now, datagram, source, 0)
        self.relays.settle(self.site.now)

    def carriers(self) -> dict[str, str | None]:
        """By relay, of the sessions under the present key."""
        sessions = [each for each in self.relays.sessions.all if each.node_key == self.key]
        return {each.relay.id: each.client.carrier and each.client.carrier.value for each in sessions}

    def drops(self) -> dict[str, int]:
        return {reason.value: count for reason, count in self.relays.sessions.drops.items() if count}

    # What connections do

    def stream_opened(self, number: int) -> None:
        self.relays.stream_opened(self.site.now, number)

    def stream_data(self, number: int, data: bytes) -> None:
        self.relays.handle_stream(self.site.now, number, data)

    def stream_closed(self, number: int) -> None:
        self.streams.pop(number, None)
        self.relays.stream_closed(self.site.now, number)


class Site:
    def __init__(self, relays: int = 2, seed: int = 1) -> None:
        self.now = kit.NOW
        self.random = random.Random(seed)
        self.relays = [SiteRelay(self, number) for number in range(1, relays + 1)]
        self.members: list[SiteMember] = []
        self._flights: list[tuple[float, int, Action]] = []
        self._sent = 0
        self._last_conn = 0

    def add(self, number: int, *relays: SiteRelay, families: list[int] | None = None) -> SiteMember:
        """A device that has its map, and answers to STUN from the relays where UDP passes."""
        member = SiteMember(self, number, families=families)
        self.members.append(member)
        member.use(*relays)
        for relay, endpoints, _ in member.relays.udp_servers():
            reached = next(each for each in self.relays if each.id == relay)
            for endpoint in endpoints:
                if reached.udp and endpoint.addr[0] == reached.address:
                    member.relays.measured(self.now, relay, endpoint, 2 * reached.delay_s)
        self.crank()
        return member

    def later(self, delay_s: float, action: Action) -> None:
        self._sent += 1
        heappush(self._flights, (self.now + delay_s, self._sent, action))

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        self.crank()
        while True:
            due = [at for member in self.members if (at := member.relays.poll_timeout()) is not None]
            due += [relay.core.poll_timeout() for relay in self.relays if relay.core is not None]
            due += [self._flights[0][0]] if self._flights else []
            at = min(due, default=end + 1.0)
            if at > end:
                break
            self.now = max(self.now, at)
            self._turn()
        self.now = end

    def _turn(self) -> None:
        while self._flights and self._flights[0][0] <= self.now:
            heappop(self._flights)[2]()
            self.crank()
        for member in self.members:
            due = member.relays.poll_timeout()
            if due is not None and due <= self.now:
                member.wakes += 1
                member.relays.handle_timeout(self.now)
                member.relays.settle(self.now)
        for relay in self.relays:
            if relay.core is not None:
                relay.core.handle_timeout(self.now)
        self.crank()

    def crank(self) -> None:
        """Put on the wires what machines have to say now; nothing arrives yet."""
        for _ in range(OUTPUTS_MAX):
            moved = [self._from_member(member) for member in self.members]
            moved += [self._from_relay(relay) for relay in self.relays if relay.core is not None]
            if not any(moved):
                return
        raise AssertionError("never quiet")

    def _from_member(self, member: SiteMember) -> bool:
        relays, moved = member.relays, False
        for transmit in relays.drain_transmits():
            relay = next((each for each in self.relays if each.address == transmit.endpoint.addr[0]), None)
            for datagram in transmit.datagrams:
                moved = True
                if relay is not None and relay.udp:
                    self.later(relay.delay_s, partial(self._to_relay, relay, member, datagram))
        for wish in relays.drain_stream_wishes():
            moved = True
            relay = next(each for each in self.relays if each.id == wish.relay.id)
            if wish.open:
                assert wish.number not in [number for _, number in member.opened]
                member.opened.append((relay.id, wish.number))
                self.later(4 * relay.delay_s, partial(self._open, relay, member, wish.number))
            else:
                self._close(member, wish.number)
        for number, data in relays.drain_stream_writes():
            moved = True
            if number in member.streams:
                relay, conn = member.streams[number]
                if relay.tls:
                    self.later(relay.delay_s, partial(self._stream_to_relay, relay, conn, data))
        for packet, source, _ in relays.drain_packets(self.now):
            assert isinstance(source, RelayEndpoint)
            member.packets.append((packet, source))
        member.gone += relays.drain_gone()
        if not member.homes or member.homes[-1] != relays.home:
            member.homes.append(relays.home)
        return moved

    def _from_relay(self, relay: SiteRelay) -> bool:
        core, moved = relay.core, False
        assert core is not None
        for train in core.drain_trains():
            member = next((each for each in self.members if each.endpoint.addr == train.endpoint.addr), None)
            for datagram in train.datagrams():
                moved = True
                if member is not None and relay.udp and (relay.forwards or datagram[0] != DATA):
                    source = Endpoint((relay.address, UDP_PORT), train.endpoint.local)
                    self.later(relay.delay_s, partial(member.datagram, bytes(datagram), source))
        for conn, data in core.drain_writes():
            if conn in relay.conns and relay.tls and (relay.forwards or data[0] != RECV):
                moved = True
                member, number = relay.conns[conn]
                self.later(relay.delay_s, partial(member.stream_data, number, data))
        for conn in core.drain_closes():
            moved = True
            core.stream_closed(conn)
            if conn in relay.conns:
                member, number = relay.conns.pop(conn)
                self.later(relay.delay_s, partial(member.stream_closed, number))
        return moved

    def _to_relay(self, relay: SiteRelay, member: SiteMember, datagram: bytes) -> None:
        if relay.core is not None:
            relay.core.handle_trains(self.now, [Train(member.endpoint, datagram, len(datagram))])

    def _stream_to_relay(self, relay: SiteRelay, conn: int, data: bytes) -> None:
        if relay.core is not None and conn in relay.conns:
            relay.core.stream_received(self.now, conn, data)

    def _open(self, relay: SiteRelay, member: SiteMember, number: int) -> None:
        if not any(each.stream == number for each in member.relays.sessions.all) or not relay.tls:
            return  # nobody waits for it any more, or nobody hears
        if relay.core is None:
            member.stream_closed(number)
            return
        self._last_conn += 1
        relay.conns[self._last_conn] = member, number
        member.streams[number] = relay, self._last_conn
        member.stream_opened(number)
        relay.core.stream_opened(self.now, self._last_conn, bytes((192, 0, 2, member.number)))

    def _close(self, member: SiteMember, number: int) -> None:
        if number in member.streams:
            relay, conn = member.streams.pop(number)
            if relay.conns.pop(conn, None) is not None and relay.core is not None:
                relay.core.stream_closed(conn)
