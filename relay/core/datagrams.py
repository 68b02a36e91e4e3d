"""The UDP carrier behind its shell.

Whoever has not shown that it receives at its address gets no answer larger than what it sent, and leaves nothing here.
"""

from __future__ import annotations

from edgeagent.proto.endpoint import Endpoint
from edgeagent.proto.ratelimiter import RateLimiter
from edgeagent.proto.relay_frames import (
    BIND,
    BIND_BODY,
    BOUND,
    CHALLENGE_SIZE,
    CHALLENGED,
    DATA,
    DATAGRAM_FIRST,
    DATAGRAM_HEAD,
    DATAGRAM_HEAD_SIZE,
    DATAGRAM_LAST,
    DENIED,
    ECHO_SIZE,
    HELLO,
    HELLO_BYTES,
    KEY_SIZE,
    KNOCKING,
    LOGGING_IN,
    LOGIN_BYTES_MAX,
    MEMBER_CONTROLS,
    OWN_CHANNEL,
    PACKET_BYTES_MAX,
    REBIND,
    REBOUND,
    Refusal,
    RelayError,
    echo_of,
    open_control,
)
from edgeagent.proto.seal import BOX_OVERHEAD_BYTES
from edgeagent.proto.stun import looks_like_stun
from relay.core.forwarding import Forwarder
from relay.core.knocks import Knocks
from relay.core.lobby import Lobby
from relay.core.members import Member, Session
from relay.core.reasons import RelayDrop
from relay.core.shared import Shared, Train
from relay.core.stun_server import StunServer

_LOGIN_AT = DATAGRAM_HEAD_SIZE + CHALLENGE_SIZE


class Datagrams:
    def __init__(self, shared: Shared, forwarder: Forwarder, lobby: Lobby, stun: StunServer, knocks: Knocks) -> None:
        self._shared = shared
        self._forwarder = forwarder
        self._lobby = lobby
        self._stun = stun
        self._knocks = knocks
        limits = shared.limits
        # Hints to sessions whose address changed or that are gone; a lost one costs the member a probe's time
        self._hints = RateLimiter(limits.doorway, float(limits.logins_per_source_per_s), 8.0)

    def received(self, now: float, train: Train) -> None:
        data = train.data
        if not data:
            self._shared.drop(RelayDrop.NOT_OURS)
        elif data[0] == DATA:
            if 0 < train.segment < len(data) and not _is_uniform(data, train.segment):
                for datagram in train.datagrams():
                    self._on_data(now, Train(train.endpoint, datagram, len(datagram), train.ecn))
            else:
                self._on_data(now, train)
        else:
            for datagram in train.datagrams():
                self._on_other(now, datagram, train.endpoint)

    def _on_data(self, now: float, train: Train) -> None:
        """One or more datagrams with one header."""
        shared = self._shared
        data = train.data
        if len(data) <= DATAGRAM_HEAD_SIZE:
            shared.drop(RelayDrop.BAD_DATAGRAM)
            return
        _, zero, channel, session_id = DATAGRAM_HEAD.unpack_from(data)
        member = shared.roster.by_session.get(session_id)
        if member is None:
            shared.drop(RelayDrop.UNKNOWN_SESSION, len(train))
            self._hint(now, train.endpoint, train.datagrams()[0], session_id)
            return
        session = member.session
        assert session is not None
        if session.endpoint.addr != train.endpoint.addr:
            shared.drop(RelayDrop.WRONG_SOURCE, len(train))
            self._hint(now, train.endpoint, train.datagrams()[0], session_id)
            return
        member.heard_at = now
        if zero:
            shared.drop(RelayDrop.BAD_DATAGRAM, len(train))
        elif channel == 0:
            for datagram in train.datagrams():
                self._on_unbound(now, member, datagram, train.ecn)
        elif channel not in session.channels:
            shared.drop(RelayDrop.UNBOUND_CHANNEL, len(train))
        elif train.segment > DATAGRAM_HEAD_SIZE + PACKET_BYTES_MAX:
            shared.drop(RelayDrop.PACKET_TOO_LONG, len(train))
        else:
            self._forwarder.forward_train(now, member, session.channels[channel], train)

    def _on_unbound(self, now: float, member: Member, datagram: bytes, ecn: int) -> None:
        packet = datagram[DATAGRAM_HEAD_SIZE + KEY_SIZE :]
        if not packet:
            self._shared.drop(RelayDrop.BAD_DATAGRAM)
        elif len(packet) > PACKET_BYTES_MAX:
            self._shared.drop(RelayDrop.PACKET_TOO_LONG)
        else:
            key = datagram[DATAGRAM_HEAD_SIZE : DATAGRAM_HEAD_SIZE + KEY_SIZE]
            self._forwarder.forward(now, member, key, [packet], ecn)

    def _on_other(self, now: float, datagram: bytes, endpoint: Endpoint) -> None:
        shared = self._shared
        if looks_like_stun(datagram):
            answer = self._stun.answer(now, datagram, endpoint)
            if answer is not None:
                shared.trains.append(answer)
        elif not DATAGRAM_FIRST <= datagram[0] <= DATAGRAM_LAST:
            shared.drop(RelayDrop.NOT_OURS)
        elif len(datagram) < DATAGRAM_HEAD_SIZE or datagram[1]:
            shared.drop(RelayDrop.BAD_DATAGRAM)
        elif datagram[0] == HELLO:
            self._on_hello(now, datagram, endpoint)
        elif datagram[0] == LOGGING_IN:
            self._on_login(now, datagram, endpoint)
        elif datagram[0] in MEMBER_CONTROLS:
            self._on_control(now, datagram, endpoint)
        else:
            shared.drop(RelayDrop.BAD_DATAGRAM)

    # Before there is a session

    def _on_hello(self, now: float, datagram: bytes, endpoint: Endpoint) -> None:
        if len(datagram) < HELLO_BYTES:
            self._shared.drop(RelayDrop.SHORT_HELLO)
            return
        echo = datagram[DATAGRAM_HEAD_SIZE : DATAGRAM_HEAD_SIZE + ECHO_SIZE]
        self._challenge(now, endpoint, 0, echo)

    def _on_login(self, now: float, datagram: bytes, endpoint: Endpoint) -> None:
        shared = self._shared
        if not BOX_OVERHEAD_BYTES <= len(datagram) - _LOGIN_AT <= LOGIN_BYTES_MAX:
            shared.drop(RelayDrop.BAD_DATAGRAM)
            return
        admission = shared.admission
        challenge = datagram[DATAGRAM_HEAD_SIZE:_LOGIN_AT]
        if not admission.check_challenge(now, challenge, endpoint.source_bytes()):
            shared.drop(RelayDrop.STALE_CHALLENGE)
            self._challenge(now, endpoint, 0, echo_of(datagram))
            return
        try:
            if not admission.allow_attempt(now, endpoint.ip_bytes()):
                shared.drop(RelayDrop.LOGIN_RATE)
                raise RelayError(Refusal.TOO_OFTEN, "login: too many from this address")
            login = admission.open(challenge, datagram[_LOGIN_AT:])
            member = shared.roster.by_key.get(login.key)
            if member is not None and member.session is not None and member.session.nonce == login.nonce:
                self._lobby.welcome_session(member)  # the first welcome was lost
                return
            guest = self._lobby.admit(now, login)
            admission.use_challenge(login.key, challenge)
            self._lobby.seat_session(now, endpoint, guest)
        except RelayError as error:
            self._deny(endpoint, datagram, error.reason)

    def _challenge(self, now: float, endpoint: Endpoint, session_id: int, echo: bytes) -> None:
        challenge = self._shared.admission.create_challenge(now, endpoint.source_bytes())
        self._shared.send(endpoint, DATAGRAM_HEAD.pack(CHALLENGED, 0, 0, session_id) + echo + challenge)

    def _hint(self, now: float, endpoint: Endpoint, datagram: bytes, session_id: int) -> None:
        """A session that is unknown, or known from elsewhere: let its member show who and where it is."""
        if len(datagram) >= HELLO_BYTES and self._hints.allow(now, endpoint.ip_bytes()):
            self._challenge(now, endpoint, session_id, echo_of(datagram))

    def _deny(self, endpoint: Endpoint, datagram: bytes, reason: Refusal) -> None:
        self._shared.refusals[reason] += 1
        session_id = DATAGRAM_HEAD.unpack_from(datagram)[3]
        said = DATAGRAM_HEAD.pack(DENIED, 0, 0, session_id) + echo_of(datagram) + bytes((reason.value,))
        self._shared.send(endpoint, said)

    # Within a session

    def _on_control(self, now: float, datagram: bytes, endpoint: Endpoint) -> None:
        shared = self._shared
        kind, _, channel, session_id = DATAGRAM_HEAD.unpack_from(datagram)
        member = shared.roster.by_session.get(session_id)
        if member is None:
            shared.drop(RelayDrop.UNKNOWN_SESSION)
            if kind == REBIND and len(datagram) >= HELLO_BYTES and self._hints.allow(now, endpoint.ip_bytes()):
                self._deny(endpoint, datagram, Refusal.NO_SESSION)
            return
        session = member.session
        assert session is not None
        opened = open_control(shared.crypto, session.keys.up, datagram, session.up_counter)
        if opened is None:
            shared.drop(RelayDrop.BAD_MAC)
            return
        session.up_counter, body = opened
        if kind == REBIND:
            self._on_rebind(now, member, session, body, endpoint)
        elif session.endpoint.addr != endpoint.addr:
            shared.drop(RelayDrop.WRONG_SOURCE)
            self._hint(now, endpoint, datagram, session_id)
        elif kind == BIND:
            member.heard_at = now
            self._on_bind(member, session, channel, body)
        elif kind == KNOCKING:
            member.heard_at = now
            self._knocks.handle(now, member, body)
        else:
            shared.refusals[Refusal.LEAVING] += 1
            self._lobby.forget(member)

    def _on_rebind(self, now: float, member: Member, session: Session, body: bytes, endpoint: Endpoint) -> None:
        """Authenticated, and the member has shown that it receives there: only now does its session move."""
        if not self._shared.admission.check_challenge(now, body, endpoint.source_bytes()):
            self._shared.drop(RelayDrop.STALE_CHALLENGE)
            return
        session.endpoint = endpoint
        member.heard_at = now
        self._shared.send_control(member, REBOUND)

    def _on_bind(self, member: Member, session: Session, channel: int, body: bytes) -> None:
        if len(body) != BIND_BODY.size or channel <= OWN_CHANNEL:
            self._shared.drop(RelayDrop.BAD_DATAGRAM)
            return
        key, forget = BIND_BODY.unpack(body)
        if key == member.key:
            self._shared.drop(RelayDrop.BAD_DATAGRAM)
            return
        for old in (forget, channel, session.numbers.get(key, 0)):
            if old > OWN_CHANNEL and old in session.channels:
                del session.numbers[session.channels.pop(old)]
        if len(session.channels) >= self._shared.limits.channels:
            self._shared.drop(RelayDrop.CHANNELS_FULL)
            return
        session.channels[channel] = key
        session.numbers[key] = channel
        self._shared.send_control(member, BOUND, channel=channel)


def _is_uniform(data: bytes | bytearray, segment: int) -> bool:
    """Whether all datagrams of a train have one header, and the last more than that."""
    head = data[:DATAGRAM_HEAD_SIZE]
    size = len(data)
    if segment <= DATAGRAM_HEAD_SIZE or 0 < size % segment <= DATAGRAM_HEAD_SIZE:
        return False
    return all(data[at : at + DATAGRAM_HEAD_SIZE] == head for at in range(segment, size, segment))
