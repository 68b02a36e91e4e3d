"""The relays that this device talks to now: a client for each, their datagrams on our UDP port, their connections.

Everything that goes by a relay is in here; what came by one leaves with a RelayEndpoint as its source.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from edgeagent.proto.endpoint import Endpoint, Transmit, UplinkEndpoint
from edgeagent.proto.errors import LocalProtocolError
from edgeagent.proto.relay_client import RelayClient
from edgeagent.proto.relay_endpoint import RelayEndpoint
from edgeagent.proto.relay_events import Carrier, CloseStream, OpenStream, RelayClientDrop, RelayEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from edgeagent.proto.causes import Carried
    from edgeagent.proto.crypto import Crypto
    from edgeagent.proto.keys import Entropy
    from edgeagent.proto.path import PathKey
    from edgeagent.proto.records import UdpAddress
    from edgeagent.proto.relaymap import RelayInfo

SESSIONS_MAX = 6  # relays at once: ours, the one before it, and those of peers
IDLE_S = 60.0  # a session that is not our home's and carried nothing for so long is ended
ENDPOINTS_MAX = 256  # senders by relay that are remembered, so that what comes from one has one endpoint

Batch = list[tuple[bytes, Endpoint, int]]


class StreamWish:
    """`open` True: connect to one of `relay.hosts` and upgrade, as stream `number`, which no earlier one had; False:
    close that one."""

    __slots__ = ("number", "open", "relay")

    def __init__(self, number: int, relay: RelayInfo, *, open: bool) -> None:
        self.number = number
        self.relay = relay
        self.open = open


class Session:
    """One client. `stream` is the number of its connection, `udp` where its datagrams go, each None where there is
    none; `used_at` is when it last carried something of ours or for us, `down_at` since when it has not served."""

    __slots__ = ("client", "down_at", "node_key", "relay", "stream", "udp", "used_at")

    def __init__(
        self, now: float, relay: RelayInfo, client: RelayClient, node_key: bytes, udp: Endpoint | None
    ) -> None:
        self.relay = relay
        self.client = client
        self.node_key = node_key
        self.stream: int | None = None
        self.udp = udp
        self.used_at = now
        self.down_at: float | None = now


class RelaySessions:
    """Drive it: `begin`, `end`, `send`; `handle_datagram` and the stream methods with what comes; `handle_timeout` at
    `poll_timeout()`. After any input drain transmits, packets, wishes and stream writes; `drain_events` has what the
    owner decides by, each with its session.
    """

    def __init__(self, crypto: Crypto, entropy: Entropy, jitter: Callable[[], float]) -> None:
        self._crypto = crypto
        self._entropy = entropy
        self._jitter = jitter
        self._sessions: list[Session] = []
        self._by_source: dict[PathKey, list[Session]] = {}
        self._by_stream: dict[int, Session] = {}
        self._last_stream = 0
        self._endpoints: OrderedDict[tuple[str, bytes], RelayEndpoint] = OrderedDict()
        self._wishes: list[StreamWish] = []
        self._events: list[tuple[Session, RelayEvent]] = []
        self._ended_drops: dict[RelayClientDrop, int] = dict.fromkeys(RelayClientDrop, 0)
        self._transmits: list[Transmit] = []  # last words of sessions that ended
        self.via = 0  # the interface index of the uplink by which relays are reached; 0: the routes decide
        self.idle_s = 25.0  # between signs of life on a session that carries nothing

    @property
    def all(self) -> list[Session]:
        return list(self._sessions)

    @property
    def is_full(self) -> bool:
        return len(self._sessions) >= SESSIONS_MAX

    def find(self, relay: str, node_key: bytes) -> Session | None:
        for session in self._sessions:
            if session.relay.id == relay and session.node_key == node_key:
                return session
        return None

    @property
    def drops(self) -> dict[RelayClientDrop, int]:
        """Of all sessions so far."""
        total = dict(self._ended_drops)
        for session in self._sessions:
            for reason, count in session.client.drops.items():
                total[reason] += count
        return total

    def drop(self, reason: RelayClientDrop, count: int) -> None:
        self._ended_drops[reason] += count

    # Beginning and ending

    def begin(self, now: float, relay: RelayInfo, private: bytes, pass_object: bytes, udp: Endpoint | None) -> Session:
        """A session under the node key `private`. There is none yet, and it is not full."""
        node_key = self._crypto.x25519_base(private)
        if self.is_full or self.find(relay.id, node_key) is not None:
            raise LocalProtocolError("relay sessions: full, or it is there already")
        client = RelayClient(
            crypto=self._crypto,
            entropy=self._entropy,
            jitter=self._jitter,
            relay=relay.id,
            relay_key=relay.key,
            private=private,
            pass_object=pass_object,
            carriers=(Carrier.DATAGRAM, Carrier.STREAM) if udp is not None else (Carrier.STREAM,),
            idle_s=self.idle_s,
        )
        session = Session(now, relay, client, node_key, udp)
        self._sessions.append(session)
        self._listen(session)
        client.start(now)
        self._collect(session)
        return session

    def end(self, now: float, session: Session) -> None:
        """Take leave of a relay."""
        session.client.stop(now)
        self._collect(session)
        self._transmits += self._to_transmits(session)
        self._sessions.remove(session)
        self._deafen(session)
        for reason, count in session.client.drops.items():
            self._ended_drops[reason] += count
        self._events = [event for event in self._events if event[0] is not session]

    def set_idle_interval(self, now: float, idle_s: float) -> None:
        """How often a session that carries nothing shows that it is there."""
        self.idle_s = idle_s
        for session in self._sessions:
            session.client.set_idle_interval(idle_s)

    def set_pass(self, now: float, session: Session, pass_object: bytes) -> None:
        """A newer pass for its node key."""
        session.client.set_pass(now, pass_object)
        self._collect(session)

    def set_udp(self, now: float, session: Session, udp: Endpoint) -> None:
        """The relay's UDP port is there, and not where it was or seemed to be."""
        self._transmits += self._to_transmits(session)
        self._deafen(session)
        session.udp = udp
        self._listen(session)
        session.client.datagrams_anew(now)
        self._collect(session)

    def uplink_changed(self, now: float, via: int, kept: Collection[int] = ()) -> None:
        """Another uplink leads to the relays: show every one of them where we are now. The streams `kept` leave as
        before."""
        self.via = via
        for session in self._sessions:
            session.client.uplink_changed(now, keeps_stream=session.stream in kept)
            self._collect(session)

    def hurry(self, now: float, session: Session) -> None:
        """It is wanted now, and not when its time to try again has come."""
        session.client.hurry(now)
        self._collect(session)

    # Out

    def knock(self, now: float, relay: str, challenge: bytes, address: tuple[bytes, int]) -> bool:
        """Have the relay send to another socket of ours: RelayClient.knock. False where no session carries that."""
        alive = (each for each in self._sessions if each.relay.id == relay and each.client.alive)
        session = next(alive, None)
        return session is not None and session.client.knock(now, challenge, address)

    def send(self, now: float, session: Session, node_key: bytes, datagrams: list[bytes], ecn: int) -> None:
        """Packets for the member `node_key`."""
        session.used_at = now
        session.client.send(now, node_key, datagrams, ecn)
        self._collect(session)

    # Past us: what an engine puts behind a relay's header, and takes from behind it, by itself

    def by_datagrams(self) -> list[tuple[Endpoint, int]]:
        """(the relay's UDP address, session) of all that carry by UDP."""
        found = ((self._leaves_by(each.udp), each.client.session) for each in self._sessions if each.udp is not None)
        return [(udp, session) for udp, session in found if session is not None]

    def way_to(self, session: Session, node_key: bytes) -> tuple[Endpoint, int, int] | None:
        """(the relay's UDP address, session, channel) to the member `node_key`; None: not by UDP, or not yet."""
        channel = session.client.channel_of(node_key)
        return None if session.udp is None or channel is None else (self._leaves_by(session.udp), *channel)

    def source_of(self, address: UdpAddress, session: int, channel: int) -> RelayEndpoint | None:
        """Who is meant by that header in a datagram from that address."""
        for each in self._sessions:
            if each.udp is not None and (each.udp.ip_bytes(), each.udp.addr[1]) == address:
                key = each.client.source_of(session, channel)
                if key is not None:
                    return self._endpoint(each.relay.id, key)
        return None

    def passed(self, now: float, session: Session) -> None:
        """Packets of ours went by it."""
        session.used_at = now
        session.client.carried(now)

    # In

    def handle_datagram(self, now: float, datagram: bytes, source: Endpoint, ecn: int) -> None:
        """A datagram of the relay carrier, by its first byte."""
        sessions = self._by_source.get(source.addr[:2])
        if sessions is None:
            self._ended_drops[RelayClientDrop.STRANGER] += 1
            return
        session = sessions[0]
        if len(sessions) > 1:  # during a renewal of the node key there are two at one relay
            session = next((each for each in sessions if each.client.takes(datagram)), session)
        session.client.handle_datagrams(now, [(datagram, ecn)])
        self._collect(session)

    def stream_opened(self, now: float, number: int) -> None:
        session = self._by_stream.get(number)
        if session is not None:
            session.client.stream_opened(now)
            self._collect(session)

    def handle_stream(self, now: float, number: int, data: bytes) -> None:
        session = self._by_stream.get(number)
        if session is not None:
            session.client.handle_stream(now, data)
            self._collect(session)

    def stream_blocked(self, number: int, *, blocked: bool) -> None:
        """A write did not take all, or the connection takes more again."""
        session = self._by_stream.get(number)
        if session is not None and blocked:
            session.client.stream_blocked()
        elif session is not None:
            session.client.stream_writable()

    def carried(self, number: int) -> Carried | None:
        """What of a stream was members' packets, for whoever counts it."""
        session = self._by_stream.get(number)
        return None if session is None else session.client.stream_carried

    def stream_closed(self, now: float, number: int) -> None:
        session = self._by_stream.pop(number, None)
        if session is not None:
            session.stream = None
            session.client.stream_closed(now)
            self._collect(session)

    # Time

    def handle_timeout(self, now: float) -> None:
        for session in self.all:
            due = session.client.poll_timeout()
            if due is not None and due <= now:
                session.client.handle_timeout(now)
                self._collect(session)

    def poll_timeout(self) -> float | None:
        times = (session.client.poll_timeout() for session in self._sessions)
        return min((at for at in times if at is not None), default=None)

    # Outputs

    def drain_transmits(self) -> list[Transmit]:
        transmits, self._transmits = self._transmits, []
        for session in self._sessions:
            transmits += self._to_transmits(session)
        return transmits

    def drain_packets(self, now: float) -> Batch:
        """What members sent us: (packet, the sender as a RelayEndpoint, ECN field)."""
        batch: Batch = []
        for session in self._sessions:
            packets = session.client.drain_packets()
            if packets:
                session.used_at = now
                relay = session.relay.id
                ours = [each.node_key for each in self._sessions]
                for key, packet, ecn in packets:
                    if key in ours:  # an answer would go to ourselves
                        self._ended_drops[RelayClientDrop.OURSELVES] += 1
                    else:
                        batch.append((packet, self._endpoint(relay, key), ecn))
        return batch

    def drain_stream_wishes(self) -> list[StreamWish]:
        wishes, self._wishes = self._wishes, []
        return wishes

    def drain_stream_writes(self) -> list[tuple[int, bytes]]:
        """(stream, what to write to it)."""
        writes = []
        for session in self._sessions:
            if session.stream is not None and (data := session.client.drain_stream()):
                writes.append((session.stream, data))
        return writes

    def drain_events(self) -> list[tuple[Session, RelayEvent]]:
        events, self._events = self._events, []
        return events

    def _collect(self, session: Session) -> None:
        for event in session.client.drain_events():
            if isinstance(event, OpenStream):
                self._close_stream(session)
                # Never a number twice: what an earlier connection still has to say is not taken for this one's
                session.stream = self._last_stream = self._last_stream + 1
                self._by_stream[session.stream] = session
                self._wishes.append(StreamWish(session.stream, session.relay, open=True))
            elif isinstance(event, CloseStream):
                self._close_stream(session)
            else:
                self._events.append((session, event))

    def _close_stream(self, session: Session) -> None:
        if session.stream is not None:
            del self._by_stream[session.stream]
            self._wishes.append(StreamWish(session.stream, session.relay, open=False))
            session.stream = None

    def _listen(self, session: Session) -> None:
        if session.udp is not None:
            self._by_source.setdefault(session.udp.addr[:2], []).append(session)

    def _deafen(self, session: Session) -> None:
        if session.udp is not None:
            mine = self._by_source[session.udp.addr[:2]]
            mine.remove(session)
            if not mine:
                del self._by_source[session.udp.addr[:2]]

    def _to_transmits(self, session: Session) -> list[Transmit]:
        """Datagrams with one ECN field go together. They may be cut up: a relay is what is left when all else fails."""
        datagrams = session.client.drain_datagrams()
        if not datagrams or session.udp is None:
            return []
        udp = self._leaves_by(session.udp)
        transmits: list[Transmit] = []
        for datagram, ecn in datagrams:
            if transmits and transmits[-1].ecn == ecn:
                transmits[-1].datagrams.append(datagram)
            else:
                transmits.append(Transmit(udp, [datagram], ecn, fragment=True))
        return transmits

    def _leaves_by(self, udp: Endpoint) -> Endpoint:
        return UplinkEndpoint.by(self.via, udp) if self.via else udp

    def _endpoint(self, relay: str, key: bytes) -> RelayEndpoint:
        known = self._endpoints.get((relay, key))
        if known is None:
            if len(self._endpoints) >= ENDPOINTS_MAX:
                self._endpoints.popitem(last=False)
            known = self._endpoints[relay, key] = RelayEndpoint(relay, key)
        else:
            self._endpoints.move_to_end((relay, key))
        return known
