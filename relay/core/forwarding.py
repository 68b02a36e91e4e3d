"""The way of a packet through the relay: rate → destination → network → fair share → the destination's carrier.

One function a kind of source holds that order. A packet goes to an admitted key or nowhere; between relays one hop.
"""

from __future__ import annotations

from edgeagent.proto.relay_frames import (
    DATA,
    DATAGRAM_HEAD,
    DATAGRAM_HEAD_SIZE,
    FORWARD,
    FRAME_HEAD,
    GONE,
    KEY_SIZE,
    LONG_PROBE_SIZE,
    PEER_GONE,
    PROBE,
    RECV,
    Gone,
    frame,
)
from relay.core.buckets import FairShare
from relay.core.members import Member, Network, Stream
from relay.core.reasons import RelayDrop
from relay.core.shared import Shared, Train

GONE_SPACING_S = 0.1  # between two PEER_GONE to one member
BRAKE_S = 0.05  # how long a stream that sends too much is not read

_PROBE = bytes((PROBE,))

# Who sent it (a member, or a sibling by its relay key), source key, destination key, packet, ECN
Waiting = tuple[Member | bytes, bytes, bytes, bytes, int]


class Forwarder:
    """`total_bytes_per_s` is what the relay may send in all, shared fairly between networks; None for no such limit."""

    def __init__(self, now: float, shared: Shared, total_bytes_per_s: int | None) -> None:
        self._shared = shared
        self._fair: FairShare[Waiting] | None = None
        if total_bytes_per_s is not None:
            self._fair = FairShare(now, total_bytes_per_s, shared.limits.fair_share_bytes)

    def forward(self, now: float, source: Member, key: bytes, packets: list[bytes], ecn: int) -> None:
        """Packets of one member to one key."""
        size = sum(map(len, packets))
        beyond = self._take(now, source, size, len(packets))
        if beyond is None:
            self._pass_on(now, source, key, packets, size, ecn)
        elif len(packets) > 1:
            for packet in packets:
                self.forward(now, source, key, [packet], ecn)
        else:
            self._refuse_rate(now, source, beyond)

    def forward_train(self, now: float, source: Member, key: bytes, train: Train) -> None:
        """Data of one member on UDP, all on the one channel that means `key`: rewritten in place where that will do."""
        count = len(train)
        destination = self._shared.roster.by_key.get(key) if key != source.key else source
        session = destination.session if destination is not None else None
        channel = session.numbers.get(source.key, 0) if session is not None else 0
        size = len(train.data) - count * DATAGRAM_HEAD_SIZE
        if (
            self._fair is not None
            or destination is None
            or session is None
            or not channel
            or destination.network is not source.network
            or self._take(now, source, size, count) is not None
        ):
            packets = [datagram[DATAGRAM_HEAD_SIZE:] for datagram in train.datagrams()]
            self.forward(now, source, key, packets, train.ecn)
            return
        if count == 1:
            self._shared.send_packet(destination, source.key, train.data[DATAGRAM_HEAD_SIZE:], train.ecn)
        else:
            head = DATAGRAM_HEAD.pack(DATA, 0, channel, session.id)
            data = bytearray(train.data)
            for at in range(0, len(data), train.segment):
                data[at : at + DATAGRAM_HEAD_SIZE] = head
            self._shared.send_train(Train(session.endpoint, data, train.segment, train.ecn), session.id)
        self._count_in(source, count, size)
        self._count_out(destination, count, size)

    def from_sibling(self, now: float, sibling: bytes, source: bytes, destination: bytes, packet: bytes) -> None:
        """A packet that another relay forwarded: for a member here, or for nobody."""
        shared = self._shared
        member = self._here_for(sibling, destination)
        if member is None:
            return
        shared.by_sibling.packets_in += 1
        shared.by_sibling.bytes_in += len(packet)
        # The other relay has its own idea of what the network may send
        if not member.network.bucket.take(now, len(packet), 1):
            shared.drop(RelayDrop.TENANT_RATE)
            member.network.dropped += 1
        elif self._has_share(now, member.network, (sibling, source, destination, packet, 0)):
            self._deliver(member, source, [packet], len(packet), 0)

    def _here_for(self, sibling: bytes, destination: bytes) -> Member | None:
        """The member that a sibling forwards to; None, and counted, when it is not one of its networks and here."""
        shared = self._shared
        member = shared.roster.by_key.get(destination)
        if member is None:
            shared.drop(RelayDrop.SECOND_HOP)
        elif not shared.admission.shares(sibling, member.network.id):
            shared.drop(RelayDrop.SIBLING_FOREIGN)
            return None
        return member

    def release(self, now: float) -> None:
        """Send on what waited for its share."""
        if self._fair is not None:
            for origin, source, key, packet, ecn in self._fair.release(now):
                if isinstance(origin, Member):
                    self._route(now, origin, key, [packet], len(packet), ecn)
                elif (member := self._here_for(origin, key)) is not None:
                    self._deliver(member, source, [packet], len(packet), ecn)

    def ready_at(self) -> float | None:
        return self._fair.ready_at() if self._fair is not None else None

    def _take(self, now: float, source: Member, size: int, count: int) -> RelayDrop | None:
        """Take from both buckets, or from neither and say which was short."""
        if not source.bucket.take(now, size, count):
            return RelayDrop.MEMBER_RATE
        if not source.network.bucket.take(now, size, count):
            source.bucket.give_back(size, count)
            return RelayDrop.TENANT_RATE
        return None

    def _refuse_rate(self, now: float, source: Member, beyond: RelayDrop) -> None:
        self._shared.drop(beyond)
        source.network.dropped += 1
        if source.stream is not None:
            self._shared.brakes[source.stream.conn] = now + BRAKE_S

    def _pass_on(self, now: float, source: Member, key: bytes, packets: list[bytes], size: int, ecn: int) -> None:
        self._count_in(source, len(packets), size)
        if self._fair is None:
            self._route(now, source, key, packets, size, ecn)
            return
        for packet in packets:
            # A probe that waited for its share would say that the relay is dead
            is_probe = key == source.key and packet.startswith(_PROBE) and len(packet) <= LONG_PROBE_SIZE
            if is_probe or self._has_share(now, source.network, (source, source.key, key, packet, ecn)):
                self._route(now, source, key, [packet], len(packet), ecn)

    def _has_share(self, now: float, network: Network, waiting: Waiting) -> bool:
        """Whether a packet may go at once; if not it waits, and the oldest of its network give way."""
        if self._fair is None:
            return True
        at_once, dropped = self._fair.offer(now, network.id, len(waiting[3]), waiting)
        if dropped:
            self._shared.drop(RelayDrop.FAIR_SHARE, dropped)
            network.dropped += dropped
        return at_once

    def _route(self, now: float, source: Member, key: bytes, packets: list[bytes], size: int, ecn: int) -> None:
        shared = self._shared
        # What a member sends to itself comes back the way it came: it asks whether this login is alive
        destination = source if key == source.key else shared.roster.by_key.get(key)
        if destination is None:
            link = shared.roster.find_away(key, source.network.id)
            if link is None:
                shared.drop(RelayDrop.NOT_HERE, len(packets))
                self._tell_gone(now, source, key)
            else:
                self._forward_to(link, source.key, key, packets, size)
        elif destination.network is not source.network:
            shared.drop(RelayDrop.OTHER_TENANT, len(packets))
            self._tell_gone(now, source, key)
        else:
            self._deliver(destination, source.key, packets, size, ecn)

    def _deliver(self, member: Member, source: bytes, packets: list[bytes], size: int, ecn: int) -> None:
        shared = self._shared
        stream = member.stream
        if stream is None:
            for packet in packets:
                shared.send_packet(member, source, packet, ecn)
        else:
            for packet in packets:
                shared.write_packet(stream, FRAME_HEAD.pack(RECV, KEY_SIZE + len(packet)) + source + packet)
        self._count_out(member, len(packets), size)

    def _forward_to(self, link: Stream, source: bytes, key: bytes, packets: list[bytes], size: int) -> None:
        shared = self._shared
        for packet in packets:
            shared.write_packet(link, FRAME_HEAD.pack(FORWARD, 2 * KEY_SIZE + len(packet)) + source + key + packet)
        shared.by_sibling.packets_out += len(packets)
        shared.by_sibling.bytes_out += size

    def _tell_gone(self, now: float, source: Member, key: bytes) -> None:
        if now - source.gone_at < GONE_SPACING_S:
            return
        source.gone_at = now
        said = key + bytes((Gone.NOT_HERE.value,))
        if source.stream is not None:
            self._shared.write_control(source.stream, frame(PEER_GONE, said))
        else:
            self._shared.send_control(source, GONE, said)

    def _count_in(self, source: Member, packets: int, size: int) -> None:
        traffic = self._shared.by_datagram if source.stream is None else self._shared.by_stream
        traffic.packets_in += packets
        traffic.bytes_in += size
        source.network.packets += packets
        source.network.bytes += size

    def _count_out(self, member: Member, packets: int, size: int) -> None:
        traffic = self._shared.by_datagram if member.stream is None else self._shared.by_stream
        traffic.packets_out += packets
        traffic.bytes_out += size
