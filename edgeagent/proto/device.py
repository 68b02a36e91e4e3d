"""A WireGuard interface without input or output: peers, cryptokey routing, transport data (paper, 2 and 5.4.6).

```
datagrams ──handle_datagrams──▶ ┌────────┐ ──drain_packets────▶ IP packets for the TUN
IP packets ──handle_packets───▶ │ Device │ ──drain_transmits──▶ datagrams for the UDP socket
time ───────handle_timeout────▶ └────────┘ ──drain_events─────▶ what the owner may want to know
```
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from typing import TYPE_CHECKING

from edgeagent.proto import ecn, icmp
from edgeagent.proto.allowedips import AllowedIPs
from edgeagent.proto.boundedqueue import BoundedQueue
from edgeagent.proto.constants import KEY_SIZE, MTU_DEFAULT, REJECT_AFTER_MESSAGES, REJECT_AFTER_TIME_S
from edgeagent.proto.crypto import Crypto
from edgeagent.proto.endpoint import Endpoint, Transmit
from edgeagent.proto.errors import DropReason, LimitReached, LocalProtocolError
from edgeagent.proto.established import Established, Traffic
from edgeagent.proto.events import Event
from edgeagent.proto.ip import holds
from edgeagent.proto.keys import Entropy, clamp
from edgeagent.proto.limits import Limits
from edgeagent.proto.messages import INITIATION, TRANSPORT, TRANSPORT_HEADER, TRANSPORT_SIZE_MIN, message_type
from edgeagent.proto.peer import Peer, Shared
from edgeagent.proto.responder import Responder
from edgeagent.proto.session import Keypair
from edgeagent.proto.tai64n import Tai64nClock
from edgeagent.proto.timers import Jitter

if TYPE_CHECKING:
    from edgeagent.proto.firewall import Firewall, Marks
    from edgeagent.proto.outsourced import Outsourced
    from edgeagent.proto.policy import Slice


class Unsent:
    """A packet from the TUN that the device could not take: its owner asks the hub for the peer, or calls `refuse`.

    `reason` is NO_PEER, NO_ENDPOINT or NOT_IP; `peer` is the one without an endpoint.
    """

    __slots__ = ("packet", "peer", "reason")

    def __init__(self, packet: bytes, reason: DropReason, peer: Peer | None = None) -> None:
        self.packet = packet
        self.reason = reason
        self.peer = peer


class Device:
    """Drive it by the handle methods, then drain transmits, packets and events, then sleep until `poll_timeout()`.

    `now` is any monotonic clock in seconds, the same for all calls. `entropy(n)` gives n secret random bytes,
    `jitter()` a float in [0, 1). `mtu` is the TUN's. `drops` counts what was thrown away, by reason.
    """

    def __init__(
        self,
        now: float,
        *,
        crypto: Crypto,
        entropy: Entropy,
        jitter: Jitter,
        tai64n: Tai64nClock,
        limits: Limits,
        mtu: int = MTU_DEFAULT,
    ) -> None:
        self._shared = Shared(crypto, entropy, jitter, tai64n, limits, mtu)
        self.responder = Responder(now, self._shared)
        self._deadlines: list[tuple[float, int, Peer]] = []  # a heap; stale entries are skipped when they come up
        self._tickets = count()
        self.peers: dict[bytes, Peer] = self.responder.peers
        self.allowed_ips: AllowedIPs[Peer] = AllowedIPs(limits.allowed_ips)
        self.firewall: Firewall | None = None  # while there is a policy

    # Configuration

    @property
    def private_key(self) -> bytes | None:
        return self._shared.static_private

    @property
    def public_key(self) -> bytes:
        """Ours, 32 B; empty without a private key."""
        return self._shared.static_public

    def establish(self, slots: int, marks: Marks | None = None) -> Established:
        """An engine is about to move established flows of up to `slots` peers by itself; before the first handshake.
        `marks` of flows are what a policy wants of it."""
        established = self._shared.established = Established(slots, marks)
        established.firewall = self.firewall
        if self.firewall is not None:
            self.firewall.carry(marks)
        return established

    def outsource(self) -> Outsourced:
        """An engine is about to make sessions by itself; before the first peer. Raises LocalProtocolError."""
        from edgeagent.proto.outsourced import Outsourced  # only with such an engine

        if self.peers:
            raise LocalProtocolError("outsource: there are peers already")
        outsourced = self._shared.outsourced = Outsourced()
        return outsourced

    def avoid(self, is_inside: Callable[[Endpoint], bool]) -> None:
        """Endpoints that are reached through the tunnel itself are never taken for a peer's."""
        self._shared.is_inside = is_inside

    def keep(self, address: bytes) -> None:
        """What peers send to this IPv4 address of our own host is dropped."""
        self._shared.kept = address

    @property
    def own(self) -> frozenset[bytes] | None:
        """Whom packets of peers may be for: our own addresses; None: anybody."""
        return self._shared.own

    def take_for(self, own: frozenset[bytes], behind: Callable[[bytes, bool], bool] | None) -> None:
        """From now on packets are taken for `own` addresses, and for those that `behind` says yes to (of an address,
        and whether a plain client sent it); those of flows that an engine carries are looked at again."""
        self._shared.own, self._shared.behind = own, behind
        self.allowed_ips.moves += 1

    def set_private_key(self, now: float, key: bytes | None) -> None:
        """32 B, or None to fall silent. Running sessions may still receive and are renewed under the new key."""
        shared = self._shared
        if key is not None and len(key) != KEY_SIZE:
            raise LocalProtocolError(f"private key: {KEY_SIZE} bytes, got {len(key)}")
        key = clamp(key) if key is not None else None
        if key == shared.static_private:
            return
        shared.static_private = key
        shared.static_public = shared.crypto.x25519_base(key) if key is not None else b""
        if shared.static_public in self.peers:
            self.remove_peer(now, shared.static_public)
        self.responder.private_key_changed()
        for peer in self.peers.values():
            peer.expire_keys(now)

    def set_policy(self, now: float, policy: Slice | None) -> None:
        """What may come in, and go out; None: everything. Flows that it does not allow end at once."""
        if policy is not None and self.firewall is not None:
            self.firewall.use(now, policy)
            return
        established = self._shared.established
        self.firewall = None
        if policy is not None:
            from edgeagent.proto.firewall import Firewall  # only who has a policy pays for it

            marks = established.marks if established is not None else None
            self.firewall = Firewall(now, policy, self._shared.limits.connections, marks)
        if established is not None:
            established.firewall = self.firewall

    def record_changed(self, now: float, peer: Peer) -> None:
        """After `peer.record` was set: who it is to the policy may be another now."""
        if self.firewall is not None:
            self.firewall.record_changed(now, peer)

    def forget_flows(self, device: str) -> None:
        """That device was removed from the network."""
        if self.firewall is not None:
            self.firewall.forget(device)

    @property
    def mtu(self) -> int:
        return self._shared.mtu

    @mtu.setter
    def mtu(self, mtu: int) -> None:
        self._shared.mtu = mtu

    @property
    def drops(self) -> dict[DropReason, int]:
        return self._shared.drops

    def add_peer(self, now: float, public_key: bytes) -> Peer:
        """The peer with this key, new or known. Raises LimitReached at `limits.peers`."""
        if len(public_key) != KEY_SIZE:
            raise LocalProtocolError(f"public key: {KEY_SIZE} bytes, got {len(public_key)}")
        if public_key == self._shared.static_public:
            raise LocalProtocolError("public key: it is this device's own")
        peer = self.peers.get(public_key)
        if peer is None:
            if len(self.peers) >= self._shared.limits.peers:
                raise LimitReached(f"limits.peers: {self._shared.limits.peers} peers are in use")
            out = self._shared.outsourced
            made = Peer(self._shared, public_key) if out is None else out.peer(self._shared, public_key)
            peer = self.peers[public_key] = made
        return peer

    def remove_peer(self, now: float, public_key: bytes) -> None:
        """Forget a peer and its keys at once; unknown keys are no error."""
        peer = self.peers.pop(public_key, None)
        if peer is not None:
            peer.stop()
            self.allowed_ips.remove_peer(peer)

    def remove_all_peers(self, now: float) -> None:
        for public_key in list(self.peers):
            self.remove_peer(now, public_key)

    def touched(self, peer: Peer) -> None:
        """To be called after a peer's own methods were used from outside: its timers may have moved."""
        deadline = peer.timers.next_deadline()
        if deadline is not None and (peer.scheduled_at is None or deadline < peer.scheduled_at):
            peer.scheduled_at = deadline
            heappush(self._deadlines, (deadline, next(self._tickets), peer))

    # Inputs

    def handle_datagrams(self, now: float, batch: list[tuple[bytes, Endpoint, int]]) -> None:
        """Datagrams from the UDP sockets: (datagram, source, ECN field of the outer header)."""
        shared = self._shared
        if shared.outsourced is not None:
            self._hand_over(now, shared.outsourced, batch)
            return
        heard: dict[Keypair, bool] = {}
        before = len(shared.packets)
        for datagram, endpoint, outer_ecn in batch:
            if len(datagram) >= TRANSPORT_SIZE_MIN and datagram[0] == TRANSPORT:
                self._receive(now, datagram, endpoint, outer_ecn, heard)
            else:
                self.responder.enqueue(now, datagram, endpoint)
        narrow = False
        for keypair, data in heard.items():
            peer = keypair.peer
            narrow |= peer.path_mtu < shared.mtu
            peer.received(now, keypair, data=data)
            self.touched(peer)
        if narrow:
            self._clamp_mss(now, before)
        for peer in self.responder.answer(now):
            self.touched(peer)

    def handle_packets(self, now: float, packets: list[bytes]) -> list[Unsent]:
        """IP packets from the TUN. Returns those that have nowhere to go; they are the caller's again."""
        lookup, firewall, outsourced = self.allowed_ips.lookup, self.firewall, self._shared.outsourced
        unsent: list[Unsent] = []
        by_peer: dict[Peer, list[bytes]] = {}
        for packet in packets:
            version = packet[0] >> 4 if len(packet) >= 20 else 0
            if version == 4:
                peer = lookup(packet[16:20])
            elif version == 6 and len(packet) >= 40:
                peer = lookup(packet[24:40])
            else:
                unsent.append(Unsent(packet, DropReason.NOT_IP))
                continue
            if peer is None:
                unsent.append(Unsent(packet, DropReason.NO_PEER))
            elif (
                firewall is not None
                and not firewall.outbound(now, peer, packet)
                and not (outsourced is not None and outsourced.judges(peer))
            ):
                self._prohibit(now, firewall, packet)
            elif peer.endpoint is None:
                unsent.append(Unsent(packet, DropReason.NO_ENDPOINT, peer))
            elif peer in by_peer:
                by_peer[peer].append(packet)
            else:
                by_peer[peer] = [packet]
        for peer, mine in by_peer.items():
            peer.send(now, mine)
            self.touched(peer)
        return unsent

    def handle_opened(self, now: float, batch: list[tuple[Peer, bytes, int]]) -> None:
        """Packets that an engine has opened and knows no flow for: (peer, packet, ECN field of the outer header)."""
        shared, established = self._shared, self._shared.established
        before = len(shared.packets)
        for peer, packet, outer_ecn in batch:
            if self._deliver(now, peer, packet, outer_ecn) and established is not None:
                established.add_flow(now, peer, packet, inbound=True)
        if any(peer.path_mtu < shared.mtu for peer, _, _ in batch):
            self._clamp_mss(now, before)

    def handle_traffic(self, now: float, reports: list[Traffic]) -> None:
        """What an engine moved by itself."""
        for traffic in reports:
            traffic.peer.carried(now, traffic)
            self.touched(traffic.peer)
        if self.firewall is not None:
            self.firewall.handle_traffic(now)

    def refuse(self, unsent: Unsent) -> None:
        """Drop what `handle_packets` returned, count it, and answer with an ICMP unreachable where one may be sent."""
        self._shared.drops[unsent.reason] += 1
        if unsent.reason is not DropReason.NOT_IP:
            answer = icmp.unreachable(unsent.packet)
            if answer is not None:
                self._shared.packets.append(answer)

    def handle_timeout(self, now: float) -> None:
        """To be called at `poll_timeout()`; calling it earlier or later is harmless."""
        while self._deadlines and self._deadlines[0][0] <= now:
            deadline, _, peer = heappop(self._deadlines)
            if peer.scheduled_at != deadline:
                continue
            peer.scheduled_at = None
            if self.peers.get(peer.public_key) is peer:
                peer.handle_timeout(now)
                self.touched(peer)
        for peer in self.responder.answer(now):
            self.touched(peer)
        if self.firewall is not None:
            self.firewall.handle_timeout(now)

    def transmit_failed(self, now: float, endpoint: Endpoint) -> None:
        """The kernel would not send from `endpoint.local` (EINVAL, ENETUNREACH, EADDRNOTAVAIL, ENODEV): let it go."""
        for peer in self.peers.values():
            if peer.endpoint == endpoint:
                peer.stale, peer.endpoint = endpoint, endpoint.unpinned()

    def sources_changed(self) -> None:
        """Routes or addresses are others than before: what had to be let go may do again."""
        for peer in self.peers.values():
            peer.stale = None

    # Outputs

    def poll_timeout(self) -> float | None:
        """When `handle_timeout` is next wanted, on the clock of `now`; None for never."""
        if self.responder.waiting:
            return 0.0
        while self._deadlines and self._deadlines[0][2].scheduled_at != self._deadlines[0][0]:
            heappop(self._deadlines)
        at = self._deadlines[0][0] if self._deadlines else None
        sweep_at = self.firewall.poll_timeout() if self.firewall is not None else None
        return sweep_at if at is None or (sweep_at is not None and sweep_at < at) else at

    def drain_transmits(self) -> list[Transmit]:
        transmits, self._shared.transmits = self._shared.transmits, []
        return transmits

    def drain_packets(self) -> list[bytes]:
        packets, self._shared.packets = self._shared.packets, []
        return packets

    @property
    def events(self) -> BoundedQueue[Event]:
        """That nobody has drained yet."""
        return self._shared.events

    def drain_events(self) -> list[Event]:
        events = list(self._shared.events)
        self._shared.events.clear()
        return events

    # Transport data

    def _hand_over(self, now: float, out: Outsourced, batch: list[tuple[bytes, Endpoint, int]]) -> None:
        """An engine that makes sessions has heard what came to its port; who strangers are, it does not know."""
        for datagram, endpoint, _ in batch:
            if endpoint.is_relay:
                out.take(datagram, endpoint)
            if message_type(datagram) == INITIATION:
                self.responder.enqueue(now, datagram, endpoint)
                out.stirred = True
        for peer in self.responder.answer(now):
            self.touched(peer)

    def _receive(
        self, now: float, datagram: bytes, endpoint: Endpoint, outer_ecn: int, heard: dict[Keypair, bool]
    ) -> None:
        """Paper 5.4.6, in this order: key → decrypt → replay window → roam → trim → allowed IPs → destination →
        policy → ECN → deliver."""
        shared = self._shared
        kind, index, counter = TRANSPORT_HEADER.unpack_from(datagram)
        if kind != TRANSPORT:
            shared.drops[DropReason.MALFORMED] += 1
            return
        keypair = shared.indices.entries.get(index)
        if keypair is None or keypair.__class__ is not Keypair:
            shared.drops[DropReason.UNKNOWN_INDEX] += 1
            return
        if keypair.position is not None and shared.established is not None:
            shared.established.to_open.append((datagram, endpoint, outer_ecn))
            return
        if now - keypair.created_at >= REJECT_AFTER_TIME_S or counter >= REJECT_AFTER_MESSAGES:
            shared.drops[DropReason.KEY_EXPIRED] += 1
            return
        packet = shared.crypto.open_transport(keypair.receive_key, counter, datagram)
        if packet is None:
            shared.drops[DropReason.AUTHENTICATION] += 1
            return
        if not keypair.replay.accept(counter):
            shared.drops[DropReason.REPLAYED] += 1
            return
        peer = keypair.peer
        if peer.endpoint is not endpoint:
            peer.roam(endpoint)
        peer.rx_bytes += len(datagram)
        if not packet:
            heard.setdefault(keypair, False)
            return
        heard[keypair] = True
        self._deliver(now, peer, packet, outer_ecn)

    def _deliver(self, now: float, peer: Peer, packet: bytes, outer_ecn: int) -> bool:
        """Of a packet that was opened: trim → allowed IPs → destination → policy → ECN → deliver. False where it is
        dropped, or comes through another router than the one that answers go to: no engine is to take such a flow for
        its own."""
        shared = self._shared
        version = packet[0] >> 4
        size = len(packet)
        if version == 4 and size >= 20:
            length = packet[2] << 8 | packet[3]
            source, target = packet[12:16], packet[16:20]
            sound = 20 <= length <= size
        elif version == 6 and size >= 40:
            length = (packet[4] << 8 | packet[5]) + 40
            source, target = packet[8:24], packet[24:40]
            sound = length <= size
        else:
            sound = False
        if not sound:
            shared.drops[DropReason.INNER_MALFORMED] += 1
            return False
        if length != size:
            packet = packet[:length]
        is_owner = self.allowed_ips.lookup(source) is peer
        if not is_owner and not any(holds(prefix, source) for prefix in peer.sources):
            shared.drops[DropReason.INNER_SOURCE] += 1
            return False
        own, behind = shared.own, shared.behind
        taken = own is None or target in own or (behind is not None and behind(target, peer.record is None))
        if not taken or target == shared.kept:
            shared.drops[DropReason.INNER_DESTINATION] += 1
            return False
        if self.firewall is not None:
            refused = self.firewall.inbound(now, peer, packet)
            if refused is not None:
                shared.drops[refused] += 1
                return False
        if outer_ecn:
            marked = ecn.decapsulate(packet, outer_ecn)
            if marked is None:
                shared.drops[DropReason.INNER_ECN] += 1
                return False
            packet = marked
        shared.packets.append(packet)
        return is_owner

    def _prohibit(self, now: float, firewall: Firewall, packet: bytes) -> None:
        """Tell its sender that the policy forbids it (ICMP type 3 code 13, ICMPv6 type 1 code 1)."""
        self._shared.drops[DropReason.PROHIBITED] += 1
        answer = icmp.unreachable(packet, prohibited=True) if firewall.may_answer(now) else None
        if answer is not None:
            self._shared.packets.append(answer)

    def _clamp_mss(self, now: float, since: int) -> None:
        """In what came out of the tunnel, from the packet at `since` on: that our host sends nothing larger back."""
        shared = self._shared
        paths = shared.narrow_paths(now)
        for at in range(since, len(shared.packets)):
            packet = shared.packets[at]
            peer = self.allowed_ips.lookup(packet[12:16] if packet[0] >> 4 == 4 else packet[8:24])
            if peer is not None and peer.path_mtu < shared.mtu:
                shared.packets[at] = paths.clamp(packet, peer.path_mtu)
