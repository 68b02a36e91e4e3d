"""The TLS carrier behind its shell: frames of strangers, members and siblings."""

from __future__ import annotations

from collections.abc import Callable

from edgeagent.proto.errors import LocalProtocolError
from edgeagent.proto.relay_frames import (
    ABSENT,
    CHALLENGE,
    CHALLENGE_SIZE,
    DRAIN,
    FORWARD,
    KEY_SIZE,
    KNOCK,
    LOGIN,
    PING,
    PONG,
    PRESENT,
    REFUSED,
    SEND,
    WELCOME,
    Refusal,
    RelayError,
    frame,
    to_refusal,
)
from edgeagent.proto.relay_login import Role, open_welcome, write_login
from edgeagent.proto.sendqueue import SendQueue
from relay.core.forwarding import Forwarder
from relay.core.knocks import Knocks
from relay.core.lobby import Lobby
from relay.core.members import Stream, StreamState
from relay.core.reasons import RelayDrop
from relay.core.shared import Shared
from relay.core.siblings import Siblings

SIBLING_PING_S = 5.0
SIBLING_SILENCE_S = 15.0


class Streams:
    """Connections by the number that the shell gives them."""

    def __init__(
        self,
        shared: Shared,
        forwarder: Forwarder,
        lobby: Lobby,
        siblings: Siblings,
        knocks: Knocks,
        private: bytes,
    ) -> None:
        self._shared = shared
        self._forwarder = forwarder
        self._lobby = lobby
        self._siblings = siblings
        self._knocks = knocks
        self._private = private
        self._ping_at = 0.0
        # What may come in which state; anything else ends the stream. Printed by `print_table`.
        self._inputs: dict[tuple[StreamState, int], Callable[[float, Stream, bytes], None]] = {
            (StreamState.STRANGER, LOGIN): self._on_login,
            (StreamState.MEMBER, PING): self._on_ping,
            (StreamState.MEMBER, KNOCK): self._on_knock,
            (StreamState.CALLED, CHALLENGE): self._on_challenge,
            (StreamState.CALLED, REFUSED): self._on_refused,
            (StreamState.ASKED, WELCOME): self._on_welcome,
            (StreamState.ASKED, REFUSED): self._on_refused,
            (StreamState.SIBLING, PRESENT): self._on_present,
            (StreamState.SIBLING, ABSENT): self._on_absent,
            (StreamState.SIBLING, FORWARD): self._on_forward,
            (StreamState.SIBLING, PING): self._on_ping,
            (StreamState.SIBLING, PONG): self._on_pong,
            (StreamState.SIBLING, DRAIN): self._on_pong,
            (StreamState.SIBLING, REFUSED): self._on_refused,
        }

    def opened(self, now: float, conn: int, source: bytes) -> None:
        stream = self._make(now, conn, source)
        stream.challenge = self._shared.entropy(CHALLENGE_SIZE)
        self._shared.write_control(stream, frame(CHALLENGE, stream.challenge))

    def called(self, now: float, conn: int, sibling: str, sibling_key: bytes) -> None:
        """A connection that the shell made to a sibling."""
        stream = self._make(now, conn, b"")
        stream.state = StreamState.CALLED
        stream.sibling, stream.sibling_key = sibling, sibling_key

    def received(self, now: float, conn: int, data: bytes) -> None:
        stream = self._shared.streams.get(conn)
        if stream is None or stream.state is StreamState.CLOSED:
            return
        stream.heard_at = now
        try:
            frames = stream.splitter.feed(data)
            if stream.state is StreamState.MEMBER:
                self._from_member(now, stream, frames)
            else:
                for kind, payload in frames:
                    self._input(now, stream, kind, payload)
        except RelayError as error:
            self._end(stream, error.reason)

    def closed(self, conn: int) -> None:
        """The connection is no more."""
        shared = self._shared
        stream = shared.streams.pop(conn, None)
        if stream is None:
            return
        shared.unblock(stream)
        shared.dirty.pop(conn, None)
        shared.brakes.pop(conn, None)
        stream.state = StreamState.CLOSED
        if stream.member is not None:
            self._lobby.forget(stream.member)
            stream.member = None
        self._siblings.link_down(stream)

    def sweep(self, now: float) -> None:
        """Ask siblings whether they are there, and end the silent ones."""
        if now < self._ping_at:
            return
        self._ping_at = now + SIBLING_PING_S
        for link in list(self._shared.links.values()):
            if now - link.heard_at > SIBLING_SILENCE_S:
                self._end(link, Refusal.IDLE)
            else:
                self._shared.write_control(link, frame(PING, int(now * 1000).to_bytes(8, "big")))

    def print_table(self) -> str:
        """State, frame and what is done about it, a line each."""
        return "\n".join(
            f"{state.value} 0x{kind:02x} {function.__name__.removeprefix('_on_')}"
            for (state, kind), function in self._inputs.items()
        )

    def _make(self, now: float, conn: int, source: bytes) -> Stream:
        limits = self._shared.limits
        stream = Stream(now, conn, source, SendQueue(limits.queue_bytes, limits.queue_packets))
        self._shared.streams[conn] = stream
        return stream

    def _from_member(self, now: float, stream: Stream, frames: list[tuple[int, bytes]]) -> None:
        """SEND frames to one key that follow each other are forwarded together."""
        member = stream.member
        assert member is not None
        member.heard_at = now
        key = b""
        packets: list[bytes] = []
        for kind, payload in frames:
            if kind != SEND:
                self._input(now, stream, kind, payload)
                continue
            if payload[:KEY_SIZE] != key:
                if packets:
                    self._forwarder.forward(now, member, key, packets, 0)
                    packets = []
                key = payload[:KEY_SIZE]
            packets.append(payload[KEY_SIZE:])
        if packets and stream.state is StreamState.MEMBER:
            self._forwarder.forward(now, member, key, packets, 0)

    def _input(self, now: float, stream: Stream, kind: int, payload: bytes) -> None:
        if stream.state is StreamState.CLOSED:
            return
        function = self._inputs.get((stream.state, kind))
        if function is None:
            raise RelayError(Refusal.BAD_FRAME, f"frame: type 0x{kind:02x} from a {stream.state.value}")
        function(now, stream, payload)

    def _on_login(self, now: float, stream: Stream, payload: bytes) -> None:
        admission = self._shared.admission
        if not admission.allow_attempt(now, stream.source):
            self._shared.drop(RelayDrop.LOGIN_RATE)
            raise RelayError(Refusal.TOO_OFTEN, "login: too many from this address")
        guest = self._lobby.admit(now, admission.open(stream.challenge, payload))
        stream.challenge = b""
        if guest.login.role is Role.MEMBER:
            self._lobby.seat_stream(now, stream, guest)
        else:
            self._siblings.check_login(now, guest.login.key)
            stream.sibling_key = guest.login.key
            self._lobby.welcome_sibling(stream, guest)
            self._siblings.link_up(stream, guest.sibling or "")

    def _on_knock(self, now: float, stream: Stream, payload: bytes) -> None:
        assert stream.member is not None
        self._knocks.handle(now, stream.member, payload)

    def _on_challenge(self, now: float, stream: Stream, payload: bytes) -> None:
        try:
            login, stream.keys = write_login(
                self._shared.crypto,
                self._shared.entropy,
                relay=stream.sibling,
                relay_key=stream.sibling_key,
                challenge=payload,
                private=self._private,
                role=Role.SIBLING,
                interval_s=int(SIBLING_PING_S),
                pass_object=b"",
            )
        except LocalProtocolError as error:  # its key came from somebody's map: not ours to vouch for
            raise RelayError(Refusal.BAD_LOGIN, str(error)) from None
        stream.state = StreamState.ASKED
        self._shared.write_control(stream, frame(LOGIN, login))

    def _on_welcome(self, now: float, stream: Stream, payload: bytes) -> None:
        assert stream.keys is not None
        open_welcome(self._shared.crypto, stream.keys, payload)
        self._siblings.link_up(stream, stream.sibling)

    def _on_refused(self, now: float, stream: Stream, payload: bytes) -> None:
        to_refusal(payload[0])
        self._siblings.link_down(stream)
        self._shared.abandon(stream)

    def _on_present(self, now: float, stream: Stream, payload: bytes) -> None:
        self._siblings.learn(stream, PRESENT, payload)

    def _on_absent(self, now: float, stream: Stream, payload: bytes) -> None:
        self._siblings.learn(stream, ABSENT, payload)

    def _on_forward(self, now: float, stream: Stream, payload: bytes) -> None:
        source, destination = payload[:KEY_SIZE], payload[KEY_SIZE : 2 * KEY_SIZE]
        self._forwarder.from_sibling(now, stream.sibling_key, source, destination, payload[2 * KEY_SIZE :])

    def _on_ping(self, now: float, stream: Stream, payload: bytes) -> None:
        self._shared.write_control(stream, frame(PONG, payload))

    def _on_pong(self, now: float, stream: Stream, payload: bytes) -> None:
        """That it came is all that counts."""

    def _end(self, stream: Stream, reason: Refusal) -> None:
        """Say why, forget whoever it was, close."""
        if stream.state is StreamState.CLOSED:
            return
        if stream.member is not None:
            self._lobby.dismiss(stream.member, reason)
            stream.member = None
        else:
            self._siblings.link_down(stream)
            self._shared.refuse(stream, reason)
