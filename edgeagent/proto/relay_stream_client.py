"""The TLS carrier, the member's side: from the answered HTTP upgrade on."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from edgeagent.proto.causes import Carried, Direction
from edgeagent.proto.relay_events import Inbox, Login, RelayClientDrop, RelayDraining, RelayPeerGone
from edgeagent.proto.relay_frames import (
    CHALLENGE,
    DRAIN,
    FRAME_HEAD,
    FRAME_HEAD_SIZE,
    KEY_SIZE,
    KNOCK,
    LOGIN,
    PEER_GONE,
    PONG,
    RECV,
    REFUSED,
    SECONDS,
    SEND,
    WELCOME,
    FrameSplitter,
    Refusal,
    RelayError,
    frame,
    to_gone,
    to_refusal,
    write_knock,
)
from edgeagent.proto.relay_login import Role, SessionKeys, open_welcome, write_login
from edgeagent.proto.relay_probe import Liveness
from edgeagent.proto.sendqueue import SendQueue

CONNECT_TIMEOUT_S = 10.0
STREAM_IDLE_MIN_S = 240.0  # routers remember connections for longer than they do UDP (RFC 5382, REQ-5: two hours)
QUEUE_BYTES_MAX = 131_072
_PACKET_AT = FRAME_HEAD_SIZE + KEY_SIZE  # in a frame


class StreamState(Enum):
    IDLE = "idle"
    CONNECTING = "connecting"  # the shell connects
    CHALLENGE = "challenge"  # connected; the relay's challenge is to come
    LOGIN = "login"  # login is out
    UP = "up"


class StreamClient:
    """`start` (then the shell connects), `opened`, bytes in by `handle`, out by `drain`; then see `state`, `failed`.

    `carried` says what of the stream was other members' packets.
    """

    def __init__(self, login: Login, inbox: Inbox, *, active_s: float) -> None:
        self._login = login
        self._inbox = inbox
        self._active_s = active_s
        self.state = StreamState.IDLE
        self.failed = False
        self.failure: Refusal | None = None
        self.liveness: Liveness | None = None
        self.pass_used = b""  # of the last login
        self.carried = Carried()
        # What may come in which state; anything else ends the connection
        self._inputs: dict[tuple[StreamState, int], Callable[[float, bytes], None]] = {
            (StreamState.CHALLENGE, CHALLENGE): self._on_challenge,
            (StreamState.CHALLENGE, REFUSED): self._on_refused,
            (StreamState.LOGIN, WELCOME): self._on_welcome,
            (StreamState.LOGIN, REFUSED): self._on_refused,
            (StreamState.UP, RECV): self._on_recv,
            (StreamState.UP, PEER_GONE): self._on_peer_gone,
            (StreamState.UP, DRAIN): self._on_drain,
            (StreamState.UP, PONG): self._on_pong,
            (StreamState.UP, REFUSED): self._on_refused,
        }
        self._begin()

    def _begin(self) -> None:
        self._splitter = FrameSplitter()
        self._queue = SendQueue(QUEUE_BYTES_MAX)
        self._keys: SessionKeys | None = None
        self._deadline: float | None = None
        self.liveness = None

    def start(self, now: float) -> None:
        self._begin()
        self.failed, self.failure = False, None
        self.state = StreamState.CONNECTING
        self._deadline = now + CONNECT_TIMEOUT_S

    def stop(self) -> None:
        self.state = StreamState.IDLE
        self._begin()

    def opened(self) -> None:
        if self.state is StreamState.CONNECTING:
            self.state = StreamState.CHALLENGE

    def closed(self) -> None:
        """The connection broke, or could not be made."""
        if self.state is not StreamState.IDLE:
            self._fail(None)

    def blocked(self, is_blocked: bool) -> None:
        """Whether the connection takes no more for now: then only the newest packets wait for it."""
        self._queue.blocked = is_blocked

    def nudge(self, now: float) -> None:
        """Find out whether the connection still leads there: seconds without an answer are its end."""
        if self.liveness is not None:
            self._send_probe(self.liveness.probe(now))

    def set_idle_interval(self, idle_s: float) -> None:
        if self.liveness is not None:
            self.liveness.set_idle(max(idle_s, STREAM_IDLE_MIN_S))

    def send(self, now: float, key: bytes, packets: list[bytes]) -> None:
        """While `state` is UP."""
        assert self.liveness is not None
        for packet in packets:
            dropped = self._queue.push_packet(FRAME_HEAD.pack(SEND, KEY_SIZE + len(packet)) + key + packet)
            if dropped:
                self._inbox.drop(RelayClientDrop.QUEUE_FULL, dropped)
        self.liveness.sent_data_at = now

    def knock(self, challenge: bytes, address: tuple[bytes, int]) -> None:
        """While `state` is UP. One that finds too much waiting is lost, as a datagram is."""
        self._queue.push_control(frame(KNOCK, write_knock(challenge, address)))

    def handle(self, now: float, data: bytes) -> None:
        try:
            for kind, payload in self._splitter.feed(data):
                if self.state is StreamState.IDLE:
                    return
                function = self._inputs.get((self.state, kind))
                if function is None:
                    self._inbox.drop(RelayClientDrop.UNEXPECTED)
                    self._fail(None)
                    return
                function(now, payload)
        except RelayError:
            self._inbox.drop(RelayClientDrop.MALFORMED)
            self._fail(None)

    def handle_timeout(self, now: float) -> None:
        if self._deadline is not None and now >= self._deadline:
            self._fail(None)
        elif self.liveness is not None:
            probe = self.liveness.next_probe(now)
            if probe is not None:
                self._send_probe(probe)
            elif self.liveness.is_dead(now):
                self._fail(None)

    def poll_timeout(self) -> float | None:
        return self._deadline if self.liveness is None else self.liveness.due()

    def drain(self) -> bytes:
        """What to write, or nothing while the connection is blocked."""
        if self._queue.blocked:
            return b""
        for each in self._queue.packets:
            if not each.startswith(self._login.node_key, FRAME_HEAD_SIZE):  # a probe of our own
                self.carried.add(Direction.SENT, each, _PACKET_AT)
        return self._queue.take()

    def _on_challenge(self, now: float, payload: bytes) -> None:
        login = self._login
        self.pass_used = login.pass_object
        sealed, self._keys = write_login(
            login.crypto,
            login.entropy,
            relay=login.relay,
            relay_key=login.relay_key,
            challenge=payload,
            private=login.private,
            role=Role.MEMBER,
            interval_s=login.told_s,
            pass_object=login.pass_object,
        )
        self._queue.push_control(frame(LOGIN, sealed))
        self.state = StreamState.LOGIN

    def _on_welcome(self, now: float, payload: bytes) -> None:
        assert self._keys is not None
        _, silence_s, _ = open_welcome(self._login.crypto, self._keys, payload)
        self.state = StreamState.UP
        self._deadline = None
        self.liveness = Liveness(
            now,
            self._login.entropy,
            active_s=self._active_s,
            idle_s=max(self._login.idle_s, STREAM_IDLE_MIN_S),
            silence_s=silence_s,
        )
        self._send_probe(self.liveness.probe(now))

    def _on_refused(self, now: float, payload: bytes) -> None:
        self._fail(to_refusal(payload[0]))

    def _on_recv(self, now: float, payload: bytes) -> None:
        key, packet = payload[:KEY_SIZE], payload[KEY_SIZE:]
        if key != self._login.node_key:
            self._inbox.packets.append((key, packet, 0))
            self.carried.add(Direction.RECEIVED, packet)
        elif self.liveness is None or not self.liveness.is_probe_answer(now, packet):
            self._inbox.drop(RelayClientDrop.STRANGE_PROBE)

    def _on_peer_gone(self, now: float, payload: bytes) -> None:
        self._inbox.events.append(RelayPeerGone(payload[:KEY_SIZE], to_gone(payload[KEY_SIZE])))

    def _on_drain(self, now: float, payload: bytes) -> None:
        self._inbox.events.append(RelayDraining(SECONDS.unpack(payload)[0]))

    def _on_pong(self, now: float, payload: bytes) -> None:
        """Nothing of ours waits for it: probes go the way of packets."""

    def _send_probe(self, probe: bytes) -> None:
        """Among the packets, not before them: it is to meet what they meet."""
        self._queue.push_packet(FRAME_HEAD.pack(SEND, KEY_SIZE + len(probe)) + self._login.node_key + probe)

    def _fail(self, refusal: Refusal | None) -> None:
        self.state = StreamState.IDLE
        self.failed, self.failure = True, refusal
        self._begin()
