"""Handshake messages as they arrive: queued, judged by their macs, answered a few at a time (paper, section 5.3).

A public-key operation costs as much as hundreds of data packets, and anybody can ask for one. So handshakes wait
in a bounded queue, a call answers only so many, and when the queue fills, senders must first show by
a cookie that they receive at their source address, and then keep to a rate. Whoever does not know our public key is
never answered at all.
"""

from __future__ import annotations

from edgeagent.proto import noise
from edgeagent.proto.boundedqueue import BoundedQueue
from edgeagent.proto.constants import UNDER_LOAD_FOR_S
from edgeagent.proto.cookie import CookieChecker, MacState
from edgeagent.proto.endpoint import Endpoint, Transmit
from edgeagent.proto.errors import DropReason
from edgeagent.proto.events import UnknownPeer
from edgeagent.proto.messages import (
    COOKIE_REPLY,
    INITIATION,
    TRANSPORT,
    CookieReply,
    Initiation,
    Response,
    message_type,
    sender_index,
)
from edgeagent.proto.peer import Peer, Shared
from edgeagent.proto.ratelimiter import RateLimiter
from edgeagent.proto.session import Keypair


class Responder:
    """Give it datagrams with `enqueue`, then call `answer`; while `waiting`, call `answer` again soon."""

    def __init__(self, now: float, shared: Shared) -> None:
        self._shared = shared
        self.queue: BoundedQueue[tuple[int, bytes, Endpoint]] = BoundedQueue(shared.limits.handshake_queue)
        self._under_load_until = now
        self.limiter = RateLimiter(shared.limits.rate_sources)
        self._checker: CookieChecker | None = None
        self.peers: dict[bytes, Peer] = {}

    @property
    def waiting(self) -> bool:
        return bool(self.queue)

    def under_load(self, now: float) -> bool:
        return now < self._under_load_until

    def private_key_changed(self) -> None:
        public = self._shared.static_public
        self._checker = CookieChecker(self._shared.crypto, public) if public else None

    def enqueue(self, now: float, datagram: bytes, endpoint: Endpoint) -> None:
        kind = message_type(datagram)
        if kind is None or kind == TRANSPORT:
            self._drop(DropReason.MALFORMED)
            return
        if self._checker is None:
            self._drop(DropReason.NO_PRIVATE_KEY)
            return
        limits = self._shared.limits
        # What no owner of our key made is to take no room, and is not to be load: only who makes the sessions hands out
        # cookies to everybody
        if self._shared.outsourced is not None and (
            self._checker.check(now, datagram, endpoint.source_bytes()) is MacState.INVALID
        ):
            self._drop(DropReason.MAC1_INVALID)
            return
        if (
            len(self.queue) >= limits.handshake_queue
        ):  # the oldest gives way: who sent it has waited longest for nothing
            self._drop(DropReason.HANDSHAKE_QUEUE_FULL)
        self.queue.append((kind, datagram, endpoint))
        if len(self.queue) * 8 >= limits.handshake_queue:
            self._under_load_until = now + UNDER_LOAD_FOR_S

    def answer(self, now: float) -> list[Peer]:
        """Work off at most `limits.handshakes_per_call`; returns the peers it concerned."""
        concerned: list[Peer] = []
        for _ in range(min(len(self.queue), self._shared.limits.handshakes_per_call)):
            kind, datagram, endpoint = self.queue.popleft()
            if kind == COOKIE_REPLY:
                peer = self._consume_cookie_reply(now, datagram)
            elif not self._admit(now, datagram, endpoint):
                continue
            elif kind == INITIATION:
                peer = self._consume_initiation(now, datagram, endpoint)
            else:
                peer = self._consume_response(now, datagram, endpoint)
            if peer is not None:
                concerned.append(peer)
        return concerned

    def _admit(self, now: float, datagram: bytes, endpoint: Endpoint) -> bool:
        if self._checker is None:
            self._drop(DropReason.NO_PRIVATE_KEY)
            return False
        source = endpoint.source_bytes()
        state = self._checker.check(now, datagram, source)
        if state is MacState.INVALID:
            self._drop(DropReason.MAC1_INVALID)
            return False
        if not self.under_load(now):
            return True
        if state is MacState.MAC1:
            self._drop(DropReason.COOKIE_DEMANDED)
            if self._shared.outsourced is not None and any(
                peer.endpoint is not None and peer.endpoint.addr == endpoint.addr for peer in self.peers.values()
            ):
                return False  # whoever makes the sessions knows it, and has cookies of its own for it
            reply = self._checker.create_reply(now, self._shared.entropy, datagram, source, sender_index(datagram))
            self._shared.transmits.append(Transmit(endpoint, [reply.encode()]))
            return False
        if not self.limiter.allow(now, endpoint.ip_bytes()):
            self._drop(DropReason.HANDSHAKE_RATE)
            return False
        return True

    def _consume_initiation(self, now: float, datagram: bytes, endpoint: Endpoint) -> Peer | None:
        shared = self._shared
        if shared.static_private is None:
            self._drop(DropReason.NO_PRIVATE_KEY)
            return None
        opened = noise.open_initiation(
            shared.crypto, shared.static_private, shared.static_public, Initiation.parse(datagram)
        )
        if opened is None:
            self._drop(DropReason.INITIATION_INVALID)
            return None
        peer = self.peers.get(opened.static_public)
        if peer is None:
            self._drop(DropReason.UNKNOWN_PEER)
            noise.wipe(shared.crypto, opened.handshake)
            if opened.static_public != shared.static_public:
                shared.events.append(UnknownPeer(opened.static_public, datagram, endpoint))
            return None
        return peer if peer.consume_initiation(now, opened, len(datagram), endpoint) else None

    def _consume_response(self, now: float, datagram: bytes, endpoint: Endpoint) -> Peer | None:
        message = Response.parse(datagram)
        entry = self._shared.indices.get(message.receiver_index)
        if not isinstance(entry, Peer):
            self._drop(DropReason.RESPONSE_UNEXPECTED)
            return None
        return entry if entry.consume_response(now, message, len(datagram), endpoint) else None

    def _consume_cookie_reply(self, now: float, datagram: bytes) -> Peer | None:
        reply = CookieReply.parse(datagram)
        entry = self._shared.indices.get(reply.receiver_index)
        peer = entry.peer if isinstance(entry, Keypair) else entry
        if peer is None or not peer.cookies.expects_reply:
            self._drop(DropReason.COOKIE_REPLY_UNEXPECTED)
            return None
        if not peer.cookies.consume_reply(now, reply):
            self._drop(DropReason.COOKIE_REPLY_INVALID)
            return None
        return peer

    def _drop(self, reason: DropReason) -> None:
        self._shared.drops[reason] += 1
