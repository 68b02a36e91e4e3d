"""One WireGuard peer: its keypairs, timers, staged packets and endpoint (paper, sections 2.1, 5.4 and 6)."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from edgeagent.proto import noise
from edgeagent.proto.boundedqueue import BoundedQueue
from edgeagent.proto.constants import (
    HANDSHAKE_ATTEMPTS_MAX,
    INITIATION_REPEATED_S,
    INITIATION_SPACING_MIN_S,
    KEY_SIZE,
    MTU_MAX,
    PADDING_MULTIPLE,
    PERSISTENT_KEEPALIVE_MAX_S,
    REKEY_AFTER_MESSAGES,
    REKEY_AFTER_TIME_S,
    REKEY_ON_RECEIVE_AFTER_S,
    REKEY_TIMEOUT_S,
)
from edgeagent.proto.cookie import CookieGenerator
from edgeagent.proto.crypto import Crypto
from edgeagent.proto.ecn import inner_ecn
from edgeagent.proto.endpoint import Endpoint, Transmit
from edgeagent.proto.errors import DropReason, LocalProtocolError
from edgeagent.proto.events import EndpointRoamed, Event, HandshakeCompleted, HandshakeFailed
from edgeagent.proto.indextable import IndexTable
from edgeagent.proto.keys import Entropy, fingerprint
from edgeagent.proto.limits import Limits
from edgeagent.proto.messages import TRANSPORT, TRANSPORT_HEADER, Response
from edgeagent.proto.session import Keypair, Keypairs
from edgeagent.proto.tai64n import Tai64nClock
from edgeagent.proto.timers import Jitter, Timer, Timers

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgeagent.proto.established import Established, Traffic
    from edgeagent.proto.narrow import NarrowPaths
    from edgeagent.proto.outsourced import Outsourced
    from edgeagent.proto.records import Record

_TIMESTAMP_NONE = bytes(12)
PSK_NONE = bytes(KEY_SIZE)


class Shared:
    """What all peers of a device have in common: providers, tables, our own keys, and the outputs."""

    __slots__ = (
        "behind",
        "crypto",
        "drops",
        "entropy",
        "established",
        "events",
        "indices",
        "is_inside",
        "jitter",
        "kept",
        "limits",
        "mtu",
        "narrow",
        "outsourced",
        "own",
        "packets",
        "static_private",
        "static_public",
        "tai64n",
        "transmits",
    )

    def __init__(
        self, crypto: Crypto, entropy: Entropy, jitter: Jitter, tai64n: Tai64nClock, limits: Limits, mtu: int
    ) -> None:
        self.crypto = crypto
        self.entropy = entropy
        self.jitter = jitter
        self.tai64n = tai64n
        self.limits = limits
        self.mtu = mtu
        self.static_private: bytes | None = None
        self.static_public = b""
        self.indices: IndexTable[Peer | Keypair] = IndexTable(entropy)
        self.transmits: list[Transmit] = []
        self.packets: list[bytes] = []  # for the TUN
        # Of an endpoint, whether it is reached through the tunnel: what is sent there comes back to be sent
        self.is_inside: Callable[[Endpoint], bool] = lambda endpoint: False
        # Whom packets of peers may be for: our addresses (None: anybody), and others by word of `behind`
        self.own: frozenset[bytes] | None = None
        self.behind: Callable[[bytes, bool], bool] | None = None
        self.kept = b""  # an IPv4 address of this host that no peer may send to
        self.established: Established | None = None  # with an engine that moves established flows itself
        self.outsourced: Outsourced | None = None  # with an engine that makes sessions itself
        self.narrow: NarrowPaths | None = None  # made when the first path turns out to take less than the TUN
        self.events: BoundedQueue[Event] = BoundedQueue(limits.events)
        self.drops: dict[DropReason, int] = dict.fromkeys(DropReason, 0)

    def narrow_paths(self, now: float) -> NarrowPaths:
        if self.narrow is None:
            from edgeagent.proto.narrow import NarrowPaths  # most devices never need it

            self.narrow = NarrowPaths(now, self)
        return self.narrow


class Peer:
    """Made by `Device.add_peer`. Configuration by its setters, traffic by the device, figures as attributes.

    `rx_bytes` and `tx_bytes` count whole datagrams, as `wg show` does.
    """

    __slots__ = (
        "_cookies",
        "_handshake",
        "_initiated_at",
        "_initiation",
        "_initiation_consumed_at",
        "_initiation_said_at",
        "_lastminute_handshake",
        "_latest_timestamp",
        "_shared",
        "chosen",
        "endpoint",
        "fragment",
        "keypairs",
        "last_handshake_at",
        "last_handshake_wall_s",
        "last_traffic_at",
        "path_mtu",
        "preshared_key",
        "public_key",
        "record",
        "relay",
        "rx_bytes",
        "scheduled_at",
        "slot",
        "sources",
        "staged",
        "stale",
        "timers",
        "tx_bytes",
    )

    def __init__(self, shared: Shared, public_key: bytes) -> None:
        self._shared = shared
        self.public_key = public_key
        self.preshared_key = PSK_NONE
        self.endpoint: Endpoint | None = None
        self.stale: Endpoint | None = None  # whose source address was let go: what comes in there does not pin it again
        self.chosen = False  # whether somebody has proven the way: then what comes by a relay does not change it
        self.relay: Endpoint | None = None  # by which to answer what comes by any relay; None: by that one
        self.path_mtu = MTU_MAX  # of packets inside the tunnel, as far as the way to the peer is known
        self.fragment = True  # whether what carries them may be cut up on the way
        self.keypairs = Keypairs()
        self.timers = Timers()
        self.staged: deque[bytes] = deque()
        self.last_handshake_at: float | None = None
        self.last_handshake_wall_s = 0.0
        self.last_traffic_at: float | None = None  # when a data packet last went out or came in
        self.rx_bytes = 0
        self.tx_bytes = 0
        self.slot: int | None = None  # in an engine's table
        self.record: Record | None = None  # who it is, as the hub has signed it; it is what a policy goes by
        self.sources: list[tuple[bytes, int]] = []  # prefixes of others' that packets may come from through it, too
        self.scheduled_at: float | None = None  # the device's own note of when it will look at the timers
        self._cookies = CookieGenerator(shared.crypto, public_key)
        self._handshake: noise.Handshake | None = None
        self._initiated_at: float | None = None
        self._initiation = b""  # without its MACs, while its answer is awaited
        self._initiation_said_at = 0.0
        self._initiation_consumed_at: float | None = None
        self._latest_timestamp = _TIMESTAMP_NONE
        self._lastminute_handshake = False

    def __repr__(self) -> str:
        return f"Peer({fingerprint(self.public_key)})"

    # Configuration

    def set_preshared_key(self, key: bytes) -> None:
        """32 B; all zero for none. Takes effect at the next handshake."""
        if len(key) != KEY_SIZE:
            raise LocalProtocolError(f"preshared key: {KEY_SIZE} bytes, got {len(key)}")
        self.preshared_key = key

    def set_endpoint(self, endpoint: Endpoint | None) -> None:
        self.endpoint = endpoint

    def set_path_mtu(self, mtu: int, *, fragment: bool) -> None:
        """The longest packet that the way to the peer takes; `fragment` lets routers cut up the datagrams around it."""
        self.path_mtu = mtu
        self.fragment = fragment

    @property
    def mtu(self) -> int:
        """The longest packet that is sealed for it."""
        return min(self.path_mtu, self._shared.mtu)

    def set_persistent_keepalive(self, now: float, interval_s: int) -> None:
        """0 switches it off. Switching it on sends one at once, as `wg` users expect of it."""
        if not 0 <= interval_s <= PERSISTENT_KEEPALIVE_MAX_S:
            raise LocalProtocolError(f"persistent keepalive: 0 to {PERSISTENT_KEEPALIVE_MAX_S} s, got {interval_s}")
        switched_on = interval_s and not self.timers.persistent_keepalive_s
        self.timers.set_persistent_keepalive(now, interval_s)
        if switched_on:
            self.send_keepalive(now)

    @property
    def persistent_keepalive_s(self) -> int:
        return self.timers.persistent_keepalive_s

    @property
    def latest_timestamp(self) -> bytes:
        """The TAI64N of its newest initiation, 12 B: none that is older counts (paper, section 5.1)."""
        return self._latest_timestamp

    def remember(self, timestamp: bytes) -> None:
        """What it was when there was a peer of this key before: a captured initiation stays worthless."""
        self._latest_timestamp = max(self._latest_timestamp, timestamp)

    # Packets out

    def send(self, now: float, packets: list[bytes]) -> None:
        """Seal IP packets and send them; without usable keys stage them and begin a handshake."""
        if self.path_mtu < self._shared.mtu:
            packets = self._shared.narrow_paths(now).fit(now, packets, self.path_mtu)
            if not packets:
                return
        keypair = self._sending_keypair(now, len(packets))
        if keypair is None:
            for packet in packets:
                self.stage(packet)
            self.begin_handshake(now)
            return
        self._seal(now, keypair, packets)
        if keypair.position is not None and self._shared.established is not None:
            for packet in packets:
                self._shared.established.add_flow(now, self, packet, inbound=False)
        self.timers.data_sent(now, self._shared.jitter())
        self.last_traffic_at = now
        self._keep_key_fresh_on_send(now, keypair)

    def stage(self, packet: bytes) -> None:
        """Keep an IP packet until there are keys; the oldest gives way."""
        if len(self.staged) >= self._shared.limits.staged_packets:
            self.staged.popleft()
            self._drop(DropReason.STAGED_FULL)
        self.staged.append(packet)

    def send_keepalive(self, now: float) -> None:
        """Send an empty packet, or what is staged; without keys begin a handshake, which says as much."""
        if self.endpoint is None:
            return
        if self.staged:
            self.send_staged(now)
            return
        keypair = self._sending_keypair(now, 1)
        if keypair is None:
            self.begin_handshake(now)
        else:
            self._seal(now, keypair, [b""])
            self._keep_key_fresh_on_send(now, keypair)

    def send_staged(self, now: float) -> None:
        packets = list(self.staged)
        self.staged.clear()
        if packets:
            self.send(now, packets)

    def _sending_keypair(self, now: float, packets: int) -> Keypair | None:
        keypair = self.keypairs.current
        return keypair if keypair is not None and keypair.can_send(now, packets) else None

    def _seal(self, now: float, keypair: Keypair, packets: list[bytes]) -> None:
        endpoint = self.endpoint
        if endpoint is None:
            self._drop(DropReason.NO_ENDPOINT, len(packets))
            return
        shared, mtu = self._shared, self.path_mtu
        if keypair.position is not None and shared.established is not None:
            shared.established.to_seal.append((keypair, packets))
            keypair.send_counter += len(packets)  # about: the engine tells
            self.timers.authenticated_sent(now)
            return
        if mtu > shared.mtu:
            mtu = shared.mtu
        seal = shared.crypto.seal_transport
        pack = TRANSPORT_HEADER.pack
        key, index, counter = keypair.send_key, keypair.remote_index, keypair.send_counter
        by_ecn: dict[int, list[bytes]] = {}
        size_total = 0
        for packet in packets:
            ecn = 0
            size = len(packet)
            if size:
                ecn = inner_ecn(packet)
                padding = -size % PADDING_MULTIPLE
                if padding and size + padding > mtu:  # never past the MTU (paper 5.4.6)
                    padding = max(0, mtu - size)
                if padding:
                    packet += bytes(padding)
            datagram = seal(key, pack(TRANSPORT, index, counter), counter, packet)
            counter += 1
            size_total += len(datagram)
            try:
                by_ecn[ecn].append(datagram)
            except KeyError:
                by_ecn[ecn] = [datagram]
        keypair.send_counter = counter
        self.tx_bytes += size_total
        for ecn, datagrams in by_ecn.items():
            shared.transmits.append(Transmit(endpoint, datagrams, ecn, None, self.fragment))
        self.timers.authenticated_sent(now)

    def _keep_key_fresh_on_send(self, now: float, keypair: Keypair) -> None:
        # Paper 6.2: only the initiator renews by age, or both would at once
        too_old = keypair.is_initiator and now - keypair.created_at >= REKEY_AFTER_TIME_S
        if too_old or keypair.send_counter > REKEY_AFTER_MESSAGES:
            self.begin_handshake(now)

    # Packets in: the device has authenticated what it reports here

    def roam(self, endpoint: Endpoint) -> None:
        """An authenticated datagram came from `endpoint`: answer there (paper, section 2.1)."""
        before = self.endpoint
        if self.relay is not None and endpoint.is_relay:
            endpoint = self.relay
        elif endpoint == self.stale:
            endpoint = endpoint.unpinned()
        if before is endpoint or before == endpoint:
            return
        if not endpoint.is_relay and (not endpoint.addr[1] or self._shared.is_inside(endpoint)):
            self._drop(DropReason.ENDPOINT_UNUSABLE)
            return
        if self.chosen and endpoint.is_relay and before is not None and not before.is_relay:
            self._shared.events.append(EndpointRoamed(self, endpoint))
            return
        self.endpoint = endpoint
        if before is None or before.addr != endpoint.addr or before.uplink != endpoint.uplink:
            self._shared.events.append(EndpointRoamed(self, endpoint))

    def received(self, now: float, keypair: Keypair, *, data: bool) -> None:
        """One batch of transport messages was authenticated under `keypair`; `data`: not only keepalives."""
        self._confirm(now, keypair)
        self.timers.authenticated_received(now)
        if data:
            self.timers.data_received(now)
            self.last_traffic_at = now
        self._keep_key_fresh_on_receive(now)

    def carried(self, now: float, traffic: Traffic) -> None:
        """An engine moved packets of this peer: what sending and receiving them here would have led to."""
        self.tx_bytes += traffic.tx_bytes
        self.rx_bytes += traffic.rx_bytes
        for endpoint in traffic.heard:
            if endpoint is not self.endpoint:
                self.roam(endpoint)
        keypairs = self.keypairs
        if (
            keypairs.next is not None
            and keypairs.next.position is not None
            and keypairs.next.local_index == traffic.confirmed
        ):
            self._confirm(now, keypairs.next)
        if keypairs.current is not None and keypairs.current.position is not None:
            keypairs.current.send_counter = max(keypairs.current.send_counter, traffic.send_counter)
        self.timers.carried(traffic, self._shared.jitter())
        for at in (traffic.last_data_sent_at, traffic.last_data_received_at):
            if at is not None and (self.last_traffic_at is None or at > self.last_traffic_at):
                self.last_traffic_at = at
        if traffic.last_received_at is not None:
            self._keep_key_fresh_on_receive(now)
        if traffic.last_sent_at is not None and keypairs.current is not None:
            self._keep_key_fresh_on_send(now, keypairs.current)

    def _confirm(self, now: float, keypair: Keypair) -> None:
        """A message under `keypair` was authenticated: if the pair is new, the initiator has it too."""
        if keypair is self.keypairs.next:
            self._forget(self.keypairs.confirm_next())
            self._handshake_completed(now)
            self.send_staged(now)

    def _keep_key_fresh_on_receive(self, now: float) -> None:
        current = self.keypairs.current
        if (
            current is not None
            and current.is_initiator
            and not self._lastminute_handshake
            and now - current.created_at >= REKEY_ON_RECEIVE_AFTER_S
        ):
            self._lastminute_handshake = True
            self.begin_handshake(now)

    # Handshakes

    def begin_handshake(self, now: float, *, again: bool = False, anew: bool = False) -> bool:
        """Send an initiation, unless one went out less than Rekey-Timeout ago (paper 6.1). True if it was sent.

        `again` continues a row of attempts, when its time has come; `anew` is for an endpoint that only now became
        known: the spacing of 5 s protects a peer that was asked, and this one was not. But it may have been, by another
        way, and its answer be coming: a young initiation is said again as it is, because another one would end the
        handshake which that answer belongs to. To a peer that has read it, it is a replay.
        """
        shared = self._shared
        if (
            not again and not self.timers.is_asking
        ):  # else a peer that is away would be asked as long as there is traffic
            self.timers.attempts = 0
        if self.endpoint is None or shared.static_private is None:
            return False
        if self._initiated_at is not None and not again:
            age_s = now - self._initiated_at
            if anew and self._initiation and age_s < INITIATION_REPEATED_S:
                self.timers.hurry(self._initiated_at + INITIATION_REPEATED_S)
                return self._repeat_initiation(now)
            # A row of attempts under way goes on by its timer, which counts them
            if age_s < (INITIATION_SPACING_MIN_S if anew else REKEY_TIMEOUT_S) or (self.timers.is_asking and not anew):
                return False
        self._abandon_handshake()
        index = shared.indices.insert(self)
        created = noise.create_initiation(
            shared.crypto,
            shared.entropy,
            shared.static_private,
            shared.static_public,
            self.public_key,
            shared.tai64n.stamp(now),
            index,
        )
        if created is None:
            shared.indices.remove(index)
            return False
        self._handshake, initiation = created
        self._initiated_at = now
        self._initiation = initiation.body()
        self._say_initiation(now)
        self.timers.initiated(now, shared.jitter())
        return True

    def _repeat_initiation(self, now: float) -> bool:
        if now - self._initiation_said_at < INITIATION_SPACING_MIN_S:
            return False
        self._say_initiation(now)
        return True

    def _say_initiation(self, now: float) -> None:
        self._initiation_said_at = now
        self._transmit(self._cookies.add_macs(now, self._initiation))

    def consume_initiation(self, now: float, opened: noise.OpenedInitiation, size: int, endpoint: Endpoint) -> bool:
        """Answer an initiation of this peer (`size` in bytes, from `endpoint`). False where it was dropped."""
        shared = self._shared
        if opened.timestamp <= self._latest_timestamp:
            self._drop(DropReason.INITIATION_REPLAYED)
            return False
        last = self._initiation_consumed_at
        if last is not None and now - last < INITIATION_SPACING_MIN_S:
            self._drop(DropReason.INITIATION_FLOOD)
            return False
        self._latest_timestamp = opened.timestamp
        self._initiation_consumed_at = now
        index = shared.indices.insert(self)
        created = noise.create_response(
            shared.crypto, shared.entropy, opened.handshake, self.public_key, self.preshared_key, index
        )
        noise.wipe(shared.crypto, opened.handshake)
        if created is None:
            shared.indices.remove(index)
            self._drop(DropReason.INITIATION_INVALID)
            return False
        response, keys = created
        self.rx_bytes += size
        self.roam(endpoint)
        self.timers.authenticated_received(now)
        self._add_keypair(now, Keypair(now, self, keys, is_initiator=False))
        self._transmit(self._cookies.add_macs(now, response.body()))
        self.timers.authenticated_sent(now)
        return True

    def consume_response(self, now: float, message: Response, size: int, endpoint: Endpoint) -> bool:
        """The answer to our initiation. False where it was dropped; a forged one does not end the handshake."""
        shared = self._shared
        handshake = self._handshake
        if handshake is None or handshake.local_index != message.receiver_index or shared.static_private is None:
            self._drop(DropReason.RESPONSE_UNEXPECTED)
            return False
        keys = noise.open_response(shared.crypto, shared.static_private, self.preshared_key, handshake, message)
        if keys is None:
            self._drop(DropReason.RESPONSE_INVALID)
            return False
        noise.wipe(shared.crypto, handshake)
        self._handshake, self._initiation = None, b""
        self.rx_bytes += size
        self.roam(endpoint)
        keypair = Keypair(now, self, keys, is_initiator=True)
        self._add_keypair(now, keypair)
        self.timers.authenticated_received(now)
        self._handshake_completed(now)
        self.send_staged(now)
        if keypair.send_counter == 0:
            self.send_keepalive(now)  # confirms the keys to the responder (paper 5.4.6)
        return True

    @property
    def cookies(self) -> CookieGenerator:
        return self._cookies

    # Timers and ends

    def handle_timeout(self, now: float) -> None:
        kept_alive = False
        for timer in self.timers.due(now):
            if timer is Timer.RETRANSMIT:
                self._retransmit(now)
            elif timer is Timer.NEW_HANDSHAKE:
                self._unpin_source()
                self.begin_handshake(now)
            elif timer is Timer.ZERO_KEYS:
                self.wipe()
            elif not kept_alive:
                self.send_keepalive(now)
                kept_alive = True

    def expire_keys(self, now: float) -> None:
        """Our own key changed: what runs may still come in, but nothing more goes out under it."""
        self._abandon_handshake()
        self._initiated_at = None
        for keypair in (self.keypairs.current, self.keypairs.next):
            if keypair is not None:
                keypair.may_send = False

    def wipe(self) -> None:
        """Forget all key material (paper 6.3: after 3 x Reject-After-Time; also on removal)."""
        self._abandon_handshake()
        self._forget(self.keypairs.clear())

    def stop(self) -> None:
        """The peer is being removed."""
        self.wipe()
        if self._shared.established is not None:
            self._shared.established.leave(self)
        self.timers.stop()
        self.staged.clear()

    def _retransmit(self, now: float) -> None:
        if self.timers.attempts >= HANDSHAKE_ATTEMPTS_MAX:
            self._drop(DropReason.STAGED_EXPIRED, len(self.staged))
            self.staged.clear()
            self.timers.gave_up(now)
            self._shared.events.append(HandshakeFailed(self))
            return
        self.timers.attempts += 1
        self._unpin_source()
        self.begin_handshake(now, again=True)

    def _unpin_source(self) -> None:
        # The source address that worked once may be why nothing comes back now
        if self.endpoint is not None and self.endpoint.local is not None:
            self.endpoint = self.endpoint.unpinned()

    def _handshake_completed(self, now: float) -> None:
        self.timers.handshake_completed()
        self._lastminute_handshake = False
        self.last_handshake_at = now
        self.last_handshake_wall_s = self._shared.tai64n.wall(now)
        self._shared.events.append(HandshakeCompleted(self))

    def _add_keypair(self, now: float, keypair: Keypair) -> None:
        self._shared.indices.replace(keypair.local_index, keypair)
        self._forget(self.keypairs.add(keypair))
        if self._shared.established is not None:
            self._shared.established.adopt(keypair)
        self.timers.session_derived(now)

    def _forget(self, keypairs: list[Keypair]) -> None:
        for keypair in keypairs:
            self._shared.indices.remove(keypair.local_index)
            if self._shared.established is not None:
                self._shared.established.forget(keypair)
            keypair.wipe(self._shared.crypto)

    def _abandon_handshake(self) -> None:
        if self._handshake is not None:
            self._shared.indices.remove(self._handshake.local_index)
            noise.wipe(self._shared.crypto, self._handshake)
            self._handshake, self._initiation = None, b""

    def _transmit(self, datagram: bytes) -> None:
        if self.endpoint is not None:
            self.tx_bytes += len(datagram)
            self._shared.transmits.append(Transmit(self.endpoint, [datagram]))

    def _drop(self, reason: DropReason, count: int = 1) -> None:
        self._shared.drops[reason] += count
