"""What the parts of the relay's core share: its roster, its outputs and its counters."""

from __future__ import annotations

from enum import Enum

from edgeagent.proto.crypto import Crypto
from edgeagent.proto.endpoint import Endpoint
from edgeagent.proto.keys import Entropy
from edgeagent.proto.relay_frames import (
    DATA,
    DATAGRAM_HEAD,
    REFUSED,
    Refusal,
    control_datagram,
    frame,
)
from relay.core.admission import Admission
from relay.core.limits import Rate, RelayLimits
from relay.core.members import COUNTER_MAX, Member, Network, Roster, Stream, StreamState
from relay.core.reasons import RelayDrop

SEGMENTS_MAX = 64  # datagrams of one train: UDP_MAX_SEGMENTS of Linux before 6.9
TRAIN_BYTES_MAX = 65_000


class Train:
    """Datagrams of one flow in one buffer, each `segment` bytes long, the last at most that: what GRO and GSO speak.

    `from_second_port` is of answers to STUN requests that ask for them from there.
    """

    __slots__ = ("data", "ecn", "endpoint", "from_second_port", "segment")

    def __init__(
        self, endpoint: Endpoint, data: bytes | bytearray, segment: int, ecn: int = 0, from_second_port: bool = False
    ) -> None:
        self.endpoint = endpoint
        self.data = data
        self.segment = segment
        self.ecn = ecn
        self.from_second_port = from_second_port

    def __len__(self) -> int:
        """Datagrams in it."""
        return max(1, -(-len(self.data) // self.segment)) if self.segment else 1

    def datagrams(self) -> list[bytes]:
        data, segment = bytes(self.data), self.segment
        if not 0 < segment < len(data):
            return [data]
        return [data[at : at + segment] for at in range(0, len(data), segment)]


class Traffic:
    """Packets that were forwarded, of one carrier, as they came in and as they went out; bytes without framing."""

    __slots__ = ("bytes_in", "bytes_out", "packets_in", "packets_out")

    def __init__(self) -> None:
        self.packets_in = 0
        self.bytes_in = 0
        self.packets_out = 0
        self.bytes_out = 0


class Happening(Enum):
    """What an operator wants to read in a log."""

    SIBLING_UP = "sibling up"
    SIBLING_DOWN = "sibling down"
    DRAINING = "draining"
    DRAINED = "drained"


class Shared:
    def __init__(
        self,
        now: float,
        *,
        wall_s: float,
        crypto: Crypto,
        entropy: Entropy,
        limits: RelayLimits,
        admission: Admission,
        network_rate: Rate,
        member_rates: dict[int, Rate],
    ) -> None:
        self._wall_offset_s = wall_s - now
        self.crypto = crypto
        self.entropy = entropy
        self.limits = limits
        self.admission = admission
        self.network_rate = network_rate
        self.member_rates = member_rates
        self.roster = Roster()
        self.draining = False
        self.links: dict[bytes, Stream] = {}  # siblings that are up, by relay key
        self.drops: dict[RelayDrop, int] = dict.fromkeys(RelayDrop, 0)
        self.refusals: dict[Refusal, int] = dict.fromkeys(Refusal, 0)
        self.by_stream, self.by_datagram, self.by_sibling = Traffic(), Traffic(), Traffic()
        self.queued_bytes = 0  # that wait for blocked streams, here or in the shell
        self.streams: dict[int, Stream] = {}
        self.dirty: dict[int, Stream] = {}  # streams with something to be written
        self.closes: list[int] = []  # connections to be closed when all is written
        self.brakes: dict[int, float] = {}  # connections that are not to be read until then
        self.trains: list[Train] = []
        self._open_trains: dict[int, Train] = {}  # by session: may still be appended to
        self.happenings: list[tuple[Happening, str]] = []

    def set_wall(self, now: float, wall_s: float) -> None:
        self._wall_offset_s = wall_s - now

    def wall_at(self, now: float) -> float:
        """Seconds since 1970: for the dates of passes, and for nothing else."""
        return now + self._wall_offset_s

    def drop(self, reason: RelayDrop, count: int = 1) -> None:
        self.drops[reason] += count

    def network(self, now: float, network: str) -> Network:
        found = self.roster.networks.get(network)
        if found is None:  # one for each network key in the settings, no more
            found = self.roster.networks[network] = Network(now, network, self.network_rate)
        return found

    def rate_of(self, rate_class: int) -> Rate:
        """A class that the settings do not know is the lowest."""
        return self.member_rates.get(rate_class, self.member_rates[0])

    # Streams

    def write_control(self, stream: Stream, data: bytes) -> None:
        if stream.queue.push_control(data):
            self.dirty[stream.conn] = stream
        elif stream.state is not StreamState.CLOSED:
            self.drop(RelayDrop.NEVER_READS)
            self.abandon(stream)

    def write_packet(self, stream: Stream, data: bytes) -> bool:
        """False when it was dropped at once; older ones may have given way."""
        queue = stream.queue
        if queue.blocked:
            if self.queued_bytes + len(data) > self.limits.queues_bytes:
                self.drop(RelayDrop.QUEUES_FULL)
                return False
            before = queue.bytes
            dropped = queue.push_packet(data)
            self.queued_bytes += queue.bytes - before
        else:
            dropped = queue.push_packet(data)
            self.dirty[stream.conn] = stream
        if dropped:
            self.drop(RelayDrop.QUEUE_FULL, dropped)
        return True

    def block(self, stream: Stream, unsent_bytes: int) -> None:
        if not stream.queue.blocked:
            stream.queue.blocked = True
            self.queued_bytes += stream.queue.bytes
        self.queued_bytes += unsent_bytes - stream.unsent_bytes
        stream.unsent_bytes = unsent_bytes

    def unblock(self, stream: Stream) -> None:
        if stream.queue.blocked:
            stream.queue.blocked = False
            self.queued_bytes -= stream.queue.bytes + stream.unsent_bytes
            stream.unsent_bytes = 0
            if stream.queue:
                self.dirty[stream.conn] = stream

    def refuse(self, stream: Stream, reason: Refusal) -> None:
        """Say why, then close."""
        self.refusals[reason] += 1
        stream.queue.push_control(frame(REFUSED, bytes((reason.value,))))
        self.dirty[stream.conn] = stream
        self.abandon(stream)

    def abandon(self, stream: Stream) -> None:
        """Close when what waits is written; nothing more is taken from it."""
        if stream.state is not StreamState.CLOSED:
            stream.state = StreamState.CLOSED
            self.closes.append(stream.conn)

    # Datagrams

    def send(self, endpoint: Endpoint, datagram: bytes) -> None:
        self.trains.append(Train(endpoint, datagram, len(datagram)))

    def send_train(self, train: Train, session: int) -> None:
        """A train for a session that is ready to go; later packets go behind it."""
        self._open_trains.pop(session, None)
        self.trains.append(train)

    def send_packet(self, member: Member, source: bytes, packet: bytes | bytearray, ecn: int) -> None:
        """Data for a member on UDP, joined with what goes there already as far as the kernel can take it apart."""
        session = member.session
        assert session is not None
        channel = session.numbers.get(source, 0)
        head = DATAGRAM_HEAD.pack(DATA, 0, channel, session.id)
        datagram = head + packet if channel else head + source + packet
        size = len(datagram)
        train = self._open_trains.get(session.id)
        if train is not None and train.ecn == ecn and size <= train.segment and len(train.data) + size <= _room(train):
            assert isinstance(train.data, bytearray)
            train.data += datagram
            if size < train.segment:
                del self._open_trains[session.id]
            return
        train = Train(session.endpoint, bytearray(datagram), size, ecn)
        self._open_trains[session.id] = train
        self.trains.append(train)

    def send_control(self, member: Member, kind: int, body: bytes = b"", channel: int = 0) -> None:
        session = member.session
        assert session is not None
        if session.down_counter >= COUNTER_MAX:
            return  # it is about to be ended
        session.down_counter += 1
        datagram = control_datagram(
            self.crypto, session.keys.down, kind, session.id, session.down_counter, body, channel
        )
        self.send(session.endpoint, datagram)

    def drain_trains(self) -> list[Train]:
        trains, self.trains = self.trains, []
        self._open_trains.clear()
        return trains


def _room(train: Train) -> int:
    return min(TRAIN_BYTES_MAX, SEGMENTS_MAX * train.segment)
