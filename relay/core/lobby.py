"""From a login that holds to a member, and out again: the same for both carriers."""

from __future__ import annotations

from collections import OrderedDict

from edgeagent.proto.endpoint import Endpoint
from edgeagent.proto.relay_frames import BYE, WELCOME, WELCOMED, WELCOMED_BODY, Refusal, RelayError, frame
from edgeagent.proto.relay_login import SILENCE_MAX_S, Login, Role, write_welcome
from edgeagent.proto.relay_pass import Pass
from relay.core.admission import Guest
from relay.core.buckets import TokenBucket
from relay.core.members import Member, Session, Stream, StreamState
from relay.core.shared import Shared
from relay.core.siblings import Siblings

SILENCE_MIN_S = 60
INTERVALS_OF_SILENCE = 3  # signs of life that may be lost
REPLACED_LINGER_S = 5.0  # how long an older login of a key may still send
REPLACED_MAX = 1_024  # that linger at once, beside the members
BUCKETS_KEPT_MAX = 4_096  # of logins that ended; one that was empty is full again within a second


class Lobby:
    def __init__(self, shared: Shared, siblings: Siblings) -> None:
        self._shared = shared
        self._siblings = siblings
        self._buckets: OrderedDict[tuple[str, bytes], TokenBucket] = (
            OrderedDict()
        )  # (network, key), who left first first

    def admit(self, now: float, login: Login) -> Guest:
        """Raises RelayError with the reason."""
        if self._shared.draining:
            raise RelayError(Refusal.DRAINING, "login: this relay is about to stop")
        return self._shared.admission.admit(self._shared.wall_at(now), login)

    def seat_stream(self, now: float, stream: Stream, guest: Guest) -> None:
        """The member behind a stream. Raises RelayError(FULL)."""
        member = self._make(now, guest, stream)
        stream.state = StreamState.MEMBER
        stream.member = member
        limits = self._shared.limits
        welcome = write_welcome(self._shared.crypto, guest.login.keys, 0, member.silence_s, limits.channels)
        self._shared.write_control(stream, frame(WELCOME, welcome))
        self._enter(now, member)

    def welcome_sibling(self, stream: Stream, guest: Guest) -> None:
        welcome = write_welcome(self._shared.crypto, guest.login.keys, 0, SILENCE_MIN_S, 1)
        self._shared.write_control(stream, frame(WELCOME, welcome))

    def seat_session(self, now: float, endpoint: Endpoint, guest: Guest) -> None:
        """The member behind a UDP session. Raises RelayError: FULL, or BAD_LOGIN for a sibling."""
        login = guest.login
        session = Session(self._new_session_id(), endpoint, login.keys, login.nonce, login.key)
        member = self._make(now, guest, session)
        self._enter(now, member)
        self.welcome_session(member)

    def welcome_session(self, member: Member) -> None:
        self._shared.send_control(member, WELCOMED, WELCOMED_BODY.pack(member.silence_s, self._shared.limits.channels))

    def dismiss(self, member: Member, reason: Refusal) -> None:
        """End a login and say why."""
        if member.stream is not None:
            self._shared.refuse(member.stream, reason)
            member.stream.member = None
        else:
            self._shared.refusals[reason] += 1
            self._shared.send_control(member, BYE, bytes((reason.value,)))
        self.forget(member)

    def forget(self, member: Member) -> None:
        """The member has gone, and knows it."""
        who = (member.network.id, member.key)
        self._buckets[who] = member.bucket
        self._buckets.move_to_end(who)
        if len(self._buckets) > BUCKETS_KEPT_MAX:
            self._buckets.popitem(last=False)
        if self._shared.roster.remove(member):
            self._siblings.announce(member, here=False)

    def _make(self, now: float, guest: Guest, via: Stream | Session) -> Member:
        shared, pass_ = self._shared, guest.pass_
        if pass_ is None or guest.login.role is not Role.MEMBER:
            raise RelayError(Refusal.BAD_LOGIN, "login: a sibling comes by stream")
        network = shared.network(now, pass_.network)
        before = shared.roster.by_key.get(pass_.node_key)
        # One that is here already takes no more room: it may have lost its connection without our hearing of it
        if before is None and (
            len(shared.roster.by_key) >= shared.limits.members or network.members >= shared.limits.members_per_network
        ):
            raise RelayError(Refusal.FULL, "login: no room for one more member")
        silence_s = min(SILENCE_MAX_S, max(SILENCE_MIN_S, INTERVALS_OF_SILENCE * guest.login.interval_s))
        return Member(now, pass_, network, self._bucket(now, pass_, before), silence_s, via)

    def _bucket(self, now: float, pass_: Pass, before: Member | None) -> TokenBucket:
        """What the key has left of its rate: a new login is no new burst."""
        rate = self._shared.rate_of(pass_.rate_class)
        kept = self._buckets.pop((pass_.network, pass_.node_key), None)
        if before is not None and before.network.id == pass_.network:
            kept = before.bucket
        return kept if kept is not None and kept.rate is rate else TokenBucket(now, rate)

    def _enter(self, now: float, member: Member) -> None:
        older = self._shared.roster.older(member.key)
        if older is not None:
            self.dismiss(older, Refusal.REPLACED)
        if self._shared.roster.replaced >= REPLACED_MAX:
            self.dismiss(self._shared.roster.longest_replaced(), Refusal.REPLACED)
        if self._shared.roster.add(now, member) is None:
            self._siblings.announce(member, here=True)

    def _new_session_id(self) -> int:
        while True:
            session = int.from_bytes(self._shared.entropy(4), "big")
            if session and session not in self._shared.roster.by_session:
                return session
