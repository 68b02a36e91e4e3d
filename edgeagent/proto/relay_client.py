"""A device at one relay, over whichever carrier gets through: UDP first, TLS where UDP does not.

UDP is tried at once and TLS soon after, so a network without UDP costs a moment and not a time-out. Whichever is up
carries; when both are, UDP, and TLS is closed. A carrier counts as alive only while probes cross the relay itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from edgeagent.proto.backoff import Backoff
from edgeagent.proto.causes import Carried
from edgeagent.proto.crypto import Crypto
from edgeagent.proto.errors import LocalProtocolError
from edgeagent.proto.keys import Entropy
from edgeagent.proto.relay_datagram_client import DatagramClient, DatagramState
from edgeagent.proto.relay_events import (
    Carrier,
    CloseStream,
    Inbox,
    Login,
    OpenStream,
    PassRefused,
    Received,
    RelayClientDrop,
    RelayDown,
    RelayEvent,
    RelayServes,
    RelaySuspect,
    RelayUp,
)
from edgeagent.proto.relay_frames import PACKET_BYTES_MAX, Refusal
from edgeagent.proto.relay_probe import Liveness
from edgeagent.proto.relay_stream_client import StreamClient, StreamState

STREAM_DELAY_S = 0.4  # how long UDP may take before TLS is tried beside it
STREAM_LINGER_S = 1.0  # how long TLS stays when UDP has taken over, for what is under way
DATAGRAM_RETRY_BASE_S, DATAGRAM_RETRY_CAP_S = 5.0, 600.0
STREAM_RETRY_BASE_S, STREAM_RETRY_CAP_S = 1.0, 60.0
DOWN_RETRY_CAP_S = 15.0  # for either, while neither is up: somebody may be waiting
REFUSED_RETRY_S = 300.0  # with a pass that the relay refused
WAITING_PACKETS_MAX = 32  # that wait for a carrier to come up; the oldest give way
WAITING_S = 5.0

PASS_REFUSALS = frozenset(
    (
        Refusal.BAD_PASS,
        Refusal.WRONG_NETWORK,
        Refusal.WRONG_RELAY,
        Refusal.WRONG_KEY,
        Refusal.EXPIRED,
        Refusal.NOT_YET,
        Refusal.REVOKED,
    )
)


class RelayClient:
    """One relay of the signed relay map, for one node key.

    Inputs: `start`, `stop`; `handle_datagrams` from the relay's UDP address; `stream_opened` (the HTTP upgrade was
    answered), then `handle_stream`, `stream_blocked` / `stream_writable`, `stream_closed` (also when it could not be
    opened); `send`; `knock`; `set_pass`; `handle_timeout`.
    After any input drain `drain_events`, `drain_datagrams`, `drain_stream`, `drain_packets`, then wait until
    `poll_timeout`.

    `carriers` are those that may be used, `idle_s` how often an idle client shows that it is there, `active_s` the
    same while packets go.
    """

    def __init__(
        self,
        *,
        crypto: Crypto,
        entropy: Entropy,
        jitter: Callable[[], float],
        relay: str,
        relay_key: bytes,
        private: bytes,
        pass_object: bytes,
        carriers: tuple[Carrier, ...] = (Carrier.DATAGRAM, Carrier.STREAM),
        idle_s: float = 25.0,
        active_s: float = 1.0,
    ) -> None:
        if not carriers:
            raise LocalProtocolError("relay client: no carrier")
        self.relay = relay
        self._login = Login(
            crypto=crypto,
            entropy=entropy,
            relay=relay,
            relay_key=relay_key,
            private=private,
            pass_object=pass_object,
            idle_s=idle_s,
        )
        self._inbox = Inbox()
        self._datagram = DatagramClient(self._login, self._inbox, active_s=active_s)
        self._stream = StreamClient(self._login, self._inbox, active_s=active_s)
        self._carriers = carriers
        self._datagram_backoff = Backoff(jitter, DATAGRAM_RETRY_BASE_S, DATAGRAM_RETRY_CAP_S)
        self._stream_backoff = Backoff(jitter, STREAM_RETRY_BASE_S, STREAM_RETRY_CAP_S)
        self._running = False
        self._datagram_at: float | None = None  # when to try it (again)
        self._stream_at: float | None = None
        self._close_stream_at: float | None = None
        self._waiting: deque[tuple[float, bytes, bytes, int]] = deque(maxlen=WAITING_PACKETS_MAX)
        self._refusal: Refusal | None = None
        self._suspected = False
        self._served = False
        self.carrier: Carrier | None = None

    @property
    def alive(self) -> bool:
        """Probes cross the relay: one has, and since then not several in a row went without an answer."""
        liveness = self._liveness(self.carrier)
        return liveness is not None and liveness.proven and not liveness.suspect

    @property
    def latency_s(self) -> float | None:
        """There and back through the relay, smoothed; None before the first answer."""
        liveness = self._liveness(self.carrier)
        return liveness.latency_s if liveness is not None else None

    @property
    def stream_carried(self) -> Carried:
        """What of the connection was members' packets, for whoever counts it."""
        return self._stream.carried

    @property
    def drops(self) -> dict[RelayClientDrop, int]:
        return self._inbox.drops

    # Inputs

    def start(self, now: float) -> None:
        if self._running:
            return
        self._running = True
        self._begin(now)
        self._step(now)

    def stop(self, now: float) -> None:
        """Take leave; packets that wait are dropped."""
        if not self._running:
            return
        self._running = False
        self._datagram.stop()
        self._close_stream()
        self._datagram_at = self._stream_at = self._close_stream_at = None
        self._inbox.drop(RelayClientDrop.NOT_UP, len(self._waiting))
        self._waiting.clear()
        self.carrier = None

    def set_pass(self, now: float, pass_object: bytes) -> None:
        """A newer pass, for the next login; at once if the last one was refused."""
        if pass_object == self._login.pass_object:
            return
        self._login.pass_object = pass_object
        if self._running and self._refusal in PASS_REFUSALS:
            self._refusal = None
            self._begin(now)
            self._step(now)

    def set_idle_interval(self, idle_s: float) -> None:
        """How often an idle client shows that it is there, from now on."""
        self._login.idle_s = idle_s
        self._datagram.set_idle_interval(idle_s)
        self._stream.set_idle_interval(idle_s)

    def uplink_changed(self, now: float, *, keeps_stream: bool = False) -> None:
        """Our packets leave by another way: a session on UDP shows itself there, a connection is made anew unless it
        goes on as before, and what did not work before is tried at once."""
        if not self._running:
            return
        self._datagram.nudge(now)
        if keeps_stream and self._stream.state is StreamState.UP:
            self._stream.nudge(now)
        elif self._stream.state is not StreamState.IDLE:
            self._close_stream()
            self._open_stream(now)
        if self._refusal not in PASS_REFUSALS:
            self._datagram_backoff.reset()
            self._stream_backoff.reset()
            self._begin(now)
        self._step(now)

    def hurry(self, now: float) -> None:
        """It is wanted now: whatever waits for its time to try again does so at once, if no carrier is up."""
        if not self._running or self.alive or self._refusal in PASS_REFUSALS:
            return
        self._datagram_backoff.reset()
        self._stream_backoff.reset()
        self._begin(now)
        self._step(now)

    def datagrams_anew(self, now: float) -> None:
        """The relay's UDP port is known now, or is another: UDP may be used, and is tried there."""
        if Carrier.DATAGRAM not in self._carriers:
            self._carriers = (Carrier.DATAGRAM, *self._carriers)
        self._datagram.stop()
        if self._running and self._refusal not in PASS_REFUSALS:
            self._datagram_backoff.reset()
            self._datagram_at = None
            self._datagram.start(now)
            self._step(now)

    def takes(self, datagram: bytes) -> bool:
        """Whether a datagram from the relay is for this client, and not for another at the same relay."""
        return self._datagram.takes(datagram)

    def send(self, now: float, key: bytes, packets: list[bytes], ecn: int = 0) -> None:
        """Packets for the member `key`. Before a carrier is up a few of them wait."""
        if key == self._login.node_key:
            raise LocalProtocolError("relay client: a packet to ourselves")
        fitting = [packet for packet in packets if 0 < len(packet) <= PACKET_BYTES_MAX]
        if len(fitting) < len(packets):
            self._inbox.drop(RelayClientDrop.TOO_LONG, len(packets) - len(fitting))
        if self.carrier is Carrier.DATAGRAM:
            self._datagram.send(now, key, fitting, ecn)
        elif self.carrier is Carrier.STREAM:
            self._stream.send(now, key, fitting)
        else:
            lost = max(0, len(self._waiting) + len(fitting) - WAITING_PACKETS_MAX)
            self._inbox.drop(RelayClientDrop.NOT_UP, lost if self._running else len(fitting))
            if self._running:
                self._waiting.extend((now, key, packet, ecn) for packet in fitting)

    @property
    def session(self) -> int | None:
        """Of the datagrams; None while they do not carry."""
        return self._datagram.session

    def channel_of(self, key: bytes) -> tuple[int, int] | None:
        """(session, channel): packets for the member `key` may go behind that header, past this client."""
        return self._datagram.channel_of(key) if self.carrier is Carrier.DATAGRAM else None

    def source_of(self, session: int, channel: int) -> bytes | None:
        """Whose packets come behind that header."""
        return self._datagram.source_of(session, channel)

    def carried(self, now: float) -> None:
        """Packets of ours went past this client."""
        liveness = self._liveness(self.carrier)
        if liveness is not None:
            liveness.sent_data_at = now

    def knock(self, now: float, challenge: bytes, address: tuple[bytes, int]) -> bool:
        """Have the relay send a small datagram to another socket of ours (relay_trial.py), which got `challenge` at
        `address` (4 or 16 B, port). False while no carrier is up; whether it arrives is for that socket to see.
        """
        if self.carrier is None:
            return False
        if self.carrier is Carrier.DATAGRAM:
            self._datagram.knock(challenge, address)
        else:
            self._stream.knock(challenge, address)
        return True

    def handle_datagrams(self, now: float, batch: list[tuple[bytes, int]]) -> None:
        """(datagram, ECN field) as they came from the relay's UDP address."""
        for datagram, ecn in batch:
            self._datagram.handle(now, datagram, ecn)
        self._step(now)

    def stream_opened(self, now: float) -> None:
        self._stream.opened()

    def handle_stream(self, now: float, data: bytes) -> None:
        self._stream.handle(now, data)
        self._step(now)

    def stream_blocked(self) -> None:
        """A write did not take all."""
        self._stream.blocked(True)

    def stream_writable(self) -> None:
        """It does again."""
        self._stream.blocked(False)

    def stream_closed(self, now: float) -> None:
        self._stream.closed()
        self._step(now)

    def handle_timeout(self, now: float) -> None:
        if not self._running:
            return
        if self._datagram_at is not None and now >= self._datagram_at:
            self._datagram_at = None
            if self._datagram.state is DatagramState.IDLE:
                self._datagram.start(now)
        if self._stream_at is not None and now >= self._stream_at:
            self._open_stream(now)
        if self._close_stream_at is not None and now >= self._close_stream_at:
            self._close_stream()
        self._datagram.handle_timeout(now)
        self._stream.handle_timeout(now)
        self._step(now)

    def poll_timeout(self) -> float | None:
        if not self._running:
            return None
        due = [
            at
            for at in (
                self._datagram_at,
                self._stream_at,
                self._close_stream_at,
                self._datagram.poll_timeout(),
                self._stream.poll_timeout(),
            )
            if at is not None
        ]
        return min(due) if due else None

    # Outputs

    def drain_events(self) -> list[RelayEvent]:
        events, self._inbox.events = self._inbox.events, []
        return events

    def drain_datagrams(self) -> list[tuple[bytes, int]]:
        """(datagram, ECN field) for the relay's UDP address."""
        return self._datagram.drain()

    def drain_stream(self) -> bytes:
        """What to write to the stream."""
        return self._stream.drain()

    def drain_packets(self) -> list[Received]:
        """(source node key, packet, ECN field)"""
        packets, self._inbox.packets = self._inbox.packets, []
        return packets

    # The plan

    def _begin(self, now: float) -> None:
        """Try whatever may be used and is not up or under way."""
        if Carrier.DATAGRAM in self._carriers and self._datagram.state is DatagramState.IDLE:
            self._datagram_at = None
            self._datagram.start(now)
        if Carrier.STREAM in self._carriers and self._stream.state is StreamState.IDLE:
            self._stream_at = now + (STREAM_DELAY_S if Carrier.DATAGRAM in self._carriers else 0.0)
            if self._stream_at <= now:
                self._open_stream(now)

    def _step(self, now: float) -> None:
        """Take note of what ended, choose the carrier, and have the other one wait or come."""
        if not self._running:
            return
        if self._datagram.failed:
            self._datagram.failed = False
            self._datagram_failed(now, self._datagram.failure)
        if self._stream.failed:
            self._stream.failed = False
            self._stream_failed(now, self._stream.failure)
        self._choose(now)
        served, self._served = self._served, self.alive
        if self._served and not served:
            self._inbox.events.append(RelayServes())
        self._match_stream(now)

    def _datagram_failed(self, now: float, refusal: Refusal | None) -> None:
        lost = self.carrier is Carrier.DATAGRAM
        if self._refused(now, refusal, self._datagram.pass_used):
            return
        if lost and refusal in (None, Refusal.EXPIRED):
            self._datagram.start(now)
        else:
            self._datagram_at = now + self._capped(self._datagram_backoff)
        if Carrier.STREAM in self._carriers and self._stream.state is StreamState.IDLE and lost:
            self._open_stream(now)

    def _stream_failed(self, now: float, refusal: Refusal | None) -> None:
        self._inbox.events.append(CloseStream())
        self._close_stream_at = None
        if self._refused(now, refusal, self._stream.pass_used):
            return
        if self.carrier is Carrier.STREAM:
            self._stream_backoff.reset()
        self._stream_at = now + self._capped(self._stream_backoff)
        if self._datagram.liveness is not None and self._datagram.liveness.suspect:
            self._datagram.give_up()
            self._datagram.failed = False
            self._datagram_failed(now, None)

    def _capped(self, backoff: Backoff) -> float:
        wait_s = backoff.wait_s()
        up = self._datagram.state is DatagramState.UP or self._stream.state is StreamState.UP
        return wait_s if up else min(wait_s, DOWN_RETRY_CAP_S)

    def _refused(self, now: float, refusal: Refusal | None, pass_used: bytes) -> bool:
        """True when no other try makes sense until there is another pass."""
        self._refusal = refusal
        if refusal is None or pass_used != self._login.pass_object:
            return False
        if refusal in PASS_REFUSALS or refusal is Refusal.REPLAYED:
            self._inbox.events.append(PassRefused(refusal))
        if refusal not in PASS_REFUSALS and refusal is not Refusal.BAD_LOGIN:
            return False
        again_at = now + REFUSED_RETRY_S
        if Carrier.DATAGRAM in self._carriers:
            self._datagram_at = again_at
        if Carrier.STREAM in self._carriers:
            self._close_stream()
            self._stream_at = again_at
        return True

    def _choose(self, now: float) -> None:
        datagram = self._datagram.liveness if self._datagram.state is DatagramState.UP else None
        stream = self._stream.liveness if self._stream.state is StreamState.UP else None
        chosen: Carrier | None = None
        if datagram is not None and datagram.proven and not datagram.suspect:
            chosen = Carrier.DATAGRAM
        elif stream is not None and stream.proven and not stream.suspect:
            chosen = Carrier.STREAM
        elif datagram is not None:
            chosen = Carrier.DATAGRAM
        elif stream is not None:
            chosen = Carrier.STREAM
        liveness = self._liveness(chosen)
        suspected, self._suspected = self._suspected, liveness is not None and liveness.suspect
        if self._suspected and not suspected:
            self._inbox.events.append(RelaySuspect())
        if chosen is self.carrier:
            return
        self.carrier = chosen
        if chosen is None:
            self._inbox.events.append(RelayDown(self._refusal))
            return
        self._refusal = None
        self._inbox.events.append(RelayUp(chosen))
        waiting, self._waiting = self._waiting, deque(maxlen=WAITING_PACKETS_MAX)
        for at, key, packet, ecn in waiting:
            if now - at <= WAITING_S:
                self.send(now, key, [packet], ecn)
            else:
                self._inbox.drop(RelayClientDrop.NOT_UP)

    def _match_stream(self, now: float) -> None:
        """TLS is there for when UDP is not."""
        if Carrier.DATAGRAM not in self._carriers or Carrier.STREAM not in self._carriers:
            return
        datagram = self._datagram.liveness if self._datagram.state is DatagramState.UP else None
        if datagram is None:
            self._close_stream_at = None
        elif datagram.suspect:
            self._close_stream_at = None
            if self._stream.state is StreamState.IDLE and self._stream_at is None:
                self._open_stream(now)
        elif datagram.proven:
            self._datagram_backoff.reset()
            self._stream_at = None
            if self._stream.state is not StreamState.IDLE and self._close_stream_at is None:
                self._close_stream_at = now + STREAM_LINGER_S

    def _open_stream(self, now: float) -> None:
        self._stream_at = None
        if self._stream.state is StreamState.IDLE:
            self._stream.start(now)
            self._inbox.events.append(OpenStream())

    def _close_stream(self) -> None:
        self._close_stream_at = None
        if self._stream.state is not StreamState.IDLE:
            self._stream.stop()
            self._inbox.events.append(CloseStream())

    def _liveness(self, carrier: Carrier | None) -> Liveness | None:
        if carrier is None:
            return None
        return self._datagram.liveness if carrier is Carrier.DATAGRAM else self._stream.liveness
