"""The `fast` engine: the C pump moves established flows, and Python is asked about all else. See fast.h."""

from __future__ import annotations

import errno
import socket
from collections import deque
from selectors import EVENT_READ
from typing import TYPE_CHECKING

from edgeagent.engine.fast import records as r
from edgeagent.engine.fast.binding import DROPS, RING_NET, RING_REPORT, RING_TUN, Pump, PumpDrop, Socket
from edgeagent.engine.offload import split
from edgeagent.proto.causes import Direction
from edgeagent.proto.endpoint import Endpoint, Transmit, UplinkEndpoint
from edgeagent.proto.errors import DropReason
from edgeagent.proto.established import FLOWS_MAX, Traffic

if TYPE_CHECKING:
    import ctypes
    from collections.abc import Sequence
    from selectors import BaseSelector
    from typing import Any

    from edgeagent.engine.machine import FastMachine
    from edgeagent.engine.pure import Meter, TunPort, UdpPort
    from edgeagent.proto.conntrack import Flow
    from edgeagent.proto.peer import Peer
    from edgeagent.proto.session import Keypair

PULLS_MAX = 4  # of each ring at one wake-up
WAITING_MAX = 4096  # records that must not be lost and found no room
RETRY_S = 0.002
SYNC_MS = 200
ENDPOINTS_MAX = 4096
CARRIERS_MAX = 1024  # endpoints that are no UDP address: members of relays by a connection
REPORT_MS = 100


_LOST = {
    RING_NET: (PumpDrop.UPCALLS_FULL, PumpDrop.UPCALL_SHARE),
    RING_TUN: (PumpDrop.NEW_FLOWS_FULL, PumpDrop.NEW_FLOWS_RATE),
}


def _ring(peak: int, ceiling: int, lost: int) -> dict[str, int | str]:
    return {"peak": int(peak), "ceiling": int(ceiling), "gave_way": int(lost), "unit": "bytes"}


class FastEngine:
    """Drives a machine as PureEngine does, with the same methods; the pump has a thread of its own from `bind` on.

    `machine` must not have begun a handshake yet. Raises LibraryUnusable or OSError when there can be no pump.
    """

    def __init__(
        self,
        machine: FastMachine,
        tun: TunPort,
        udp: UdpPort,
        selector: BaseSelector,
        library: ctypes.CDLL,
        *,
        slots: int,
        flows: int,
        connections: int = 2048,
        ring_bytes: int = 1 << 18,
        new_flows_per_s: int = 2000,
        aead: tuple[str, str] = ("lanes", "lanes"),
        threaded: bool = True,
    ) -> None:
        self._machine = machine
        self._device = machine.device
        self._tun = tun
        self._udp = udp
        self._selector = selector
        self._meter: Meter | None = None
        self._threaded = threaded
        self._new_flows_per_s = new_flows_per_s
        self.aead = aead
        self.is_router = True
        self.pump = Pump(
            library, peers=slots, flows=flows, down_bytes=ring_bytes, up_bytes=ring_bytes, small=aead[0],
            large=aead[1], entries=connections,
        )  # fmt: skip
        self._established = self._device.establish(slots, self.pump)
        self._firewall: object = None  # whose flows the pump knows
        self._generations = [0] * slots
        self._totals: dict[int, tuple[int, int]] = {}
        self._told: dict[int, tuple[object, ...]] = {}  # what the pump knows of each slot's ways
        self._endpoints: dict[bytes, Endpoint] = {}
        self._carriers: dict[Endpoint, int] = {}
        self._config: tuple[object, ...] = ()
        self._relays: object = None
        self._moves = self._device.allowed_ips.moves
        self._waiting: deque[tuple[int, bytes, bytes]] = deque()
        self._retry_at = 0.0
        self._more = False
        self._lost = 0  # records for which there was no room
        self.pump.set_tun(tun.fd, tun.udp_offload)
        selector.register(self.pump.fd, EVENT_READ, self.readable)
        self._configure()
        if threaded:
            self.pump.start()

    # As PureEngine

    def count_with(self, meter: Meter) -> None:
        self._meter = meter

    @property
    def drops(self) -> dict[PumpDrop, int]:
        """What the pump dropped."""
        drops = dict(zip(DROPS, map(int, self.pump.figures().drops), strict=True))
        drops[PumpDrop.RECORD] += self._lost
        return drops

    @property
    def mapped_kib(self) -> int:
        """Of the pump's memory; what of it was never used is not resident."""
        return int(self.pump.figures().mapped_kib)

    def tables(self) -> dict[str, dict[str, int | str]]:
        """As those of Node.status; `unit` where it is not items."""
        figures, established = self.pump.figures(), self._established
        drops = figures.drops
        full = {each: int(drops[i]) for i, each in enumerate(DROPS)}
        slots = len(established.peers)
        lost = {ring: sum(full[each] for each in reasons) for ring, reasons in _LOST.items()}
        return {
            "pump_peers": {"used": int(figures.peers_used), "ceiling": slots},
            "pump_flows": {
                "used": int(figures.flows_used), "ceiling": int(figures.flows_max),
                "gave_way": int(figures.flows_evicted),
            },
            "pump_down": _ring(figures.down_peak, figures.down_max, self._lost),
            "pump_net": _ring(figures.net_peak, figures.net_max, lost[RING_NET]),
            "pump_tun": _ring(figures.tun_peak, figures.tun_max, lost[RING_TUN]),
            "pump_waiting": {"used": len(self._waiting), "ceiling": WAITING_MAX},
            "new_flows": {"used": len(established.flows), "ceiling": FLOWS_MAX, "gave_way": established.flows_lost},
            "endpoints": {"used": len(self._endpoints), "ceiling": ENDPOINTS_MAX},
            "carriers": {"used": len(self._carriers), "ceiling": CARRIERS_MAX},
        }  # fmt: skip

    def bind(self, port: int) -> int:
        """(Re)open the UDP port, 0 for any, and return it. Raises OSError, and then the port is closed."""
        self.unbind()
        bound = self._udp.open(port)
        self._use_sockets()
        return bound

    def unbind(self) -> None:
        self.pump.halt()
        self.pump.set_sockets([])
        self._udp.close()
        self._resume()

    def set_uplinks(self, uplinks: list[tuple[str, int]]) -> list[str]:
        """(name, interface index) of those with sockets of their own. Returns the names of those not to be bound."""
        self.pump.halt()
        self.pump.set_sockets([])
        refused = self._udp.set_uplinks(uplinks)
        self._endpoints.clear()  # the same source is another Endpoint by the socket of its uplink
        self._use_sockets()
        return refused

    def close(self) -> None:
        """Let go of the selector, the port and the pump; the TUN is its owner's to close."""
        self.unbind()
        self._selector.unregister(self.pump.fd)
        self.pump.close()

    def poll_timeout(self) -> float | None:
        if self._more:
            return 0.0
        return self._retry_at if self._waiting else None

    def readable(self, now: float, fd: int) -> None:
        """Take in what came up, up to a bound."""
        self.pump.rest()
        self._more = False
        for ring, take in ((RING_REPORT, self._take_reports), (RING_NET, self._take_net), (RING_TUN, self._take_tun)):
            for _ in range(PULLS_MAX):
                data = self.pump.pull(ring)
                if not data:
                    break
                take(now, data)
            else:
                self._more = True
        if self.pump.figures().tun_gone:
            self._tun.read()  # raises what says so

    def flush(self, now: float) -> None:
        """Tell the pump what the machine has decided, and hand on what it has for the TUN and for the UDP port."""
        if self._more:
            self.readable(now, self.pump.fd)
        packets, transmits = self._machine.drain_packets(), self._machine.drain_transmits()
        while self._waiting and self.pump.push(*self._waiting[0]):
            self._waiting.popleft()
        self._configure()
        self._tell_keys()
        self._tell_relays()
        self._tell_ways()
        established = self._established
        if self._moves != self._device.allowed_ips.moves or self._firewall is not established.firewall:
            self._moves, self._firewall = self._device.allowed_ips.moves, established.firewall
            # the flows of addresses that are somebody else's now, or of another kind, those not yet told too
            established.flows.clear()
            self._push(r.UNFLOW, b"")
        if established.to_seal:
            to_seal, established.to_seal = established.to_seal, []
            for keypair, plain in to_seal:
                self._seal(keypair, plain)
        if established.flows:
            flows, established.flows = established.flows, []
            self._tell_flows(flows)
        if established.to_open:
            to_open, established.to_open = established.to_open, []
            for datagram, source, ecn in to_open:
                way = self._way_of(source)
                for count, body in r.split_packets([datagram]):
                    self._push(r.OPEN, r.write_send(way, count, ecn=ecn), body)
        for count, body in r.split_packets(packets):
            self._push(r.TUN, r.SLOT.pack(0, 0, 0, count), body)
        self._send(now, transmits)
        self._retry_at = now + RETRY_S
        if not self._threaded:
            self.pump.turn(0)

    def sync(self, now: float) -> None:
        """Let the machine know of all traffic up to this moment, as far as a moment's wait can do that."""
        self.pump.sync(SYNC_MS)
        self.readable(now, self.pump.fd)

    # To the pump

    def _push(self, kind: int, head: bytes, body: bytes = b"") -> None:
        if not self._waiting and self.pump.push(kind, head, body):
            return
        if kind in (r.SEAL, r.SEND, r.TUN, r.OPEN, r.FLOW) or len(self._waiting) >= WAITING_MAX:
            self._lost += 1
        else:
            self._waiting.append((kind, head, body))

    def _configure(self) -> None:
        exact = self._established.firewall is not None
        config = (self._device.mtu, self.is_router, self._established.is_full, exact)
        if config != self._config:
            self._config = config
            record = r.write_config(
                mtu=self._device.mtu,
                router=self.is_router,
                unknown_up=self._established.is_full,  # then there are peers whose keypairs the device keeps
                report_ms=REPORT_MS,
                new_flows_per_s=self._new_flows_per_s,
                exact=exact,
            )
            self._push(r.CONFIG, record)

    def _tell_keys(self) -> None:
        established = self._established
        if not established.keys:
            return
        changes, established.keys = established.keys, []
        for begins, slot, position, keypair in changes:
            if keypair is None:
                self._generations[slot] += 1
                self._totals.pop(slot, None)
                self._told.pop(slot, None)
                self._push(r.PEER, *r.write_peer(slot, r.PEER_NEW if begins else r.PEER_GONE, (), None, 0))
            elif not begins:
                self._push(r.FORGET, r.SLOT.pack(slot, position, 0, 0))
            elif keypair.position is not None:
                record = r.write_keypair(slot, position, keypair, unconfirmed=not keypair.is_initiator)
                self._push(r.KEYPAIR, record)

    def _tell_relays(self) -> None:
        sessions = self._machine.relay_sessions()
        if sessions != self._relays:
            self._relays = sessions
            ways = [self._udp_way(r.WAY_RELAY, udp, session=session) for udp, session in sessions]
            self._push(r.RELAYS, r.SLOT.pack(len(ways), 0, 0, 0), b"".join(ways))

    def _tell_ways(self) -> None:
        machine, told = self._machine, self._told
        for slot, peer in enumerate(self._established.peers):
            if peer is None:
                continue
            endpoints = machine.ways(peer)
            current = peer.keypairs.current
            position = current.position if current is not None and current.may_send else None
            relayed = [machine.relay_way(each) for each in endpoints if each.is_relay]
            quiet_s = machine.quiet_s(peer)
            quiet_ms = 0 if quiet_s is None else max(1, round(quiet_s * 1e3))
            what = (endpoints, relayed, position, peer.mtu, peer.fragment, quiet_ms)
            if told.get(slot) != what:
                told[slot] = what
                ways = [self._way_of(each, peer.fragment or i > 0) for i, each in enumerate(endpoints)]
                self._push(r.PEER, *r.write_peer(slot, 0, ways, position, peer.mtu, quiet_ms))

    def _tell_flows(self, flows: list[tuple[Peer, bytes, bool, Flow | None]]) -> None:
        told = set()
        for peer, packet, inbound, flow in flows:
            head = packet[: r.PACKET_HEAD]
            what = flow or (head[12:20] if head[0] >> 4 == 4 else head[8:40])
            name = (peer.slot, inbound, what)
            if peer.slot is not None and name not in told:
                told.add(name)
                entry, generation = (flow.number, flow.generation) if flow is not None else (None, 0)
                record = r.write_flow(peer.slot, inbound=inbound, entry=entry, generation=generation)
                self._push(r.FLOW, record, head)

    def _seal(self, keypair: Keypair, packets: list[bytes]) -> None:
        slot = keypair.peer.slot
        if slot is None or keypair.position is None:
            self._device.drops[DropReason.NO_ENDPOINT] += len(packets)
            return
        for count, body in r.split_packets(packets):
            self._push(r.SEAL, r.SLOT.pack(slot, keypair.position, 0, count), body)

    def _send(self, now: float, transmits: list[Transmit]) -> None:
        sent = []
        for transmit in transmits:
            way = self._way_of(transmit.endpoint, transmit.fragment)
            for count, body in r.split_packets(transmit.datagrams):
                self._push(r.SEND, r.write_send(way, count, ecn=transmit.ecn, ttl=transmit.ttl or 0), body)
            sent.append((transmit.endpoint, transmit.datagrams))
        if sent and self._meter is not None:
            self._meter.sent(now, sent)

    # From the pump

    def _take_reports(self, now: float, data: bytes) -> None:
        reports = []
        for _, at, _ in r.read_records(data):
            report = r.Report(data, at)
            peer = self._established.peers[report.slot]
            if peer is None or report.generation != self._generations[report.slot]:
                continue  # of a peer that had the slot before
            before = self._totals.get(report.slot, (0, 0))
            self._totals[report.slot] = (report.tx_bytes, report.rx_bytes)
            traffic = Traffic(peer)
            traffic.tx_bytes = report.tx_bytes - before[0]
            traffic.rx_bytes = report.rx_bytes - before[1]
            traffic.confirmed = report.confirmed
            traffic.largest, traffic.send_counter = report.largest, report.send_counter
            traffic.count = report.sent[0]
            traffic.unanswered_since = report.unanswered_since
            (
                traffic.first_data_sent_at, traffic.last_data_sent_at, traffic.last_sent_at,
                traffic.first_data_received_at, traffic.last_data_received_at, traffic.last_received_at,
            ) = report.times  # fmt: skip
            heard = [(self._endpoint_of(way), *rest) for way, *rest in report.heard]
            traffic.heard = [each[0] for each in heard if each[0] is not None]
            if self._meter is not None:
                self._book(now, peer, report, heard)
            reports.append(traffic)
        if reports:
            self._machine.handle_traffic(now, reports)

    def _book(self, now: float, peer: Peer, report: r.Report, heard: Sequence[Sequence[Any]]) -> None:
        meter = self._meter
        assert meter is not None
        endpoints: Sequence[Endpoint] = self._told.get(report.slot, ((),))[0]  # type: ignore[assignment]
        for i, endpoint in enumerate(endpoints):
            if report.sent[i]:
                self._book_one(
                    now,
                    Direction.SENT,
                    endpoint,
                    report.sent_bytes[i],
                    report.sent[i],
                    report.sent_empty if i == 0 else 0,
                )
        for endpoint, _, size, count, empty in heard:
            if endpoint is not None:
                self._book_one(now, Direction.RECEIVED, endpoint, size, count, empty)

    def _book_one(
        self, now: float, direction: Direction, endpoint: Endpoint, size: int, count: int, empty: int
    ) -> None:
        assert self._meter is not None
        if endpoint.is_relay:
            way = self._machine.relay_way(endpoint)
            if way is not None:  # else it goes by a connection, which has its own meter
                self._meter.carried(now, direction, way[0], size, count, empty, relayed=True)
        else:
            self._meter.carried(now, direction, endpoint, size, count, empty, relayed=False)

    def _take_net(self, now: float, data: bytes) -> None:
        batch = []
        for kind, at, end in r.read_records(data):
            way, ecn, number, count = r.read_send(data, at)
            if kind == r.UP_UNSENT:
                way = bytes((r.WAY_UDP,)) + way[1:]  # of a relay's the address: that is where nothing went
            endpoint = self._endpoint_of(way)
            if endpoint is None:
                continue
            if kind == r.UP_DATAGRAM:
                batch.append((data[at + r.SEND_BYTES : end], endpoint, ecn))
            elif number == errno.EMSGSIZE:
                self._machine.transmit_too_long(now, endpoint, count)
            else:
                self._machine.transmit_failed(now, endpoint)
        if batch:
            if self._meter is not None:
                self._meter.received(now, batch)
            self._machine.handle_datagrams(now, batch)

    def _take_tun(self, now: float, data: bytes) -> None:
        packets: list[bytes] = []
        opened: list[tuple[Peer, bytes, int]] = []
        for kind, at, end in r.read_records(data):
            slot, position, _, count = r.SLOT.unpack_from(data, at)
            body = data[at + r.SLOT.size : end]
            if kind == r.UP_FRAME:
                packets += split(body) or []
                continue
            peer = self._established.peers[slot]
            if peer is None or self._generations[slot] & 0x3FFFFFFF != count >> 2:
                continue
            if kind == r.UP_PACKET:
                opened.append((peer, body, count & 3))
            else:
                endpoints = self._machine.ways(peer)
                if position < len(endpoints):
                    self._machine.carry_sealed(now, Transmit(endpoints[position], [body], count & 3))
        if packets:
            self._machine.handle_packets(now, packets)
        if opened:
            self._machine.handle_opened(now, opened)

    # Ways and endpoints

    def _way_of(self, endpoint: Endpoint, fragment: bool = True) -> bytes:
        if not endpoint.is_relay:
            return self._udp_way(r.WAY_UDP, endpoint, fragment=fragment)
        relay = self._machine.relay_way(endpoint)
        if relay is not None:
            udp, session, channel = relay
            return self._udp_way(r.WAY_RELAY, udp, session=session, channel=channel)
        if len(self._carriers) >= CARRIERS_MAX:
            self._carriers.clear()
            self._told.clear()
        number = self._carriers.setdefault(endpoint, len(self._carriers) + 1)
        return r.write_way(r.WAY_UP, session=number)

    def _udp_way(
        self, kind: int, endpoint: Endpoint, *, fragment: bool = True, session: int = 0, channel: int = 0
    ) -> bytes:
        local, interface = endpoint.local or (b"", 0)
        if endpoint.uplink and not any(local):
            local = b""  # the socket is the pin
        addr = endpoint.addr
        scope = addr[3] if len(addr) == 4 else 0
        return r.write_way(
            kind, endpoint.ip_bytes(), addr[1], fragment=fragment, local=local, interface=interface, scope=scope,
            session=session, channel=channel,
        )  # fmt: skip

    def _endpoint_of(self, raw: bytes) -> Endpoint | None:
        """The one endpoint that stands for a way; None for one that is no more."""
        endpoint = self._endpoints.get(raw)
        if endpoint is not None:
            return endpoint
        way = r.Way(raw)
        if way.kind == r.WAY_UP:
            return next((each for each, number in self._carriers.items() if number == way.session), None)
        if way.kind == r.WAY_RELAY:
            return self._machine.relay_source((way.address, way.port), way.session, way.channel)
        if len(way.address) == 4:
            host = socket.inet_ntop(socket.AF_INET, way.address)
            addr: Any = (host, way.port)
        else:
            host = socket.inet_ntop(socket.AF_INET6, way.address)
            addr = (host, way.port, 0, way.scope)
        by_uplink = any(interface == way.interface for _, interface, _, _ in self._udp.sockets if interface)
        local = (way.local or bytes(len(way.address)), way.interface) if way.local or by_uplink else None
        if len(self._endpoints) >= ENDPOINTS_MAX:
            self._endpoints.clear()
        endpoint = self._endpoints[raw] = (UplinkEndpoint if by_uplink and local else Endpoint)(addr, local)
        return endpoint

    # Sockets

    def _use_sockets(self) -> None:
        by_kernel = self._udp.mtu_by_kernel
        self.pump.set_sockets(
            [
                Socket(fd, interface, family, segments, by_kernel, 0)
                for fd, interface, family, segments in self._udp.sockets
            ]
        )
        self._told.clear()
        self._resume()

    def _resume(self) -> None:
        if self._threaded:
            self.pump.start()
