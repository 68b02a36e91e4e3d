"""WireGuard's sessions in somebody else's hands: the kernel's, which tells of its peers what it counts.

Such an engine makes handshakes, keeps keys and carries packets by itself. The device keeps peers, their prefixes and
their endpoints; what it would have sent, sealed or begun it hands over, and what became of it it learns by `tell`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeagent.proto.constants import (
    HANDSHAKE_ATTEMPTS_MAX,
    INITIATION_REPEATED_S,
    REJECT_AFTER_TIME_S,
    REKEY_TIMEOUT_S,
)
from edgeagent.proto.errors import DropReason
from edgeagent.proto.established import Traffic
from edgeagent.proto.events import HandshakeCompleted, HandshakeFailed
from edgeagent.proto.messages import INITIATION_SIZE, RESPONSE_SIZE, TRANSPORT_SIZE_MIN
from edgeagent.proto.peer import Peer

if TYPE_CHECKING:
    from edgeagent.proto import noise
    from edgeagent.proto.endpoint import Endpoint
    from edgeagent.proto.peer import Shared

PACKETS_MAX = 1024  # for the engine, not yet drained
DATAGRAMS_MAX = 1024  # the same
GIVE_UP_S = HANDSHAKE_ATTEMPTS_MAX * REKEY_TIMEOUT_S  # 90 s, as WireGuard itself does


class Outsourced:
    """The device writes, the engine drains after any input: `asked`, then `packets`, then `to_open`."""

    __slots__ = ("asked", "lost", "packets", "stirred", "to_open")

    def __init__(self) -> None:
        self.asked: dict[OutsourcedPeer, bool] = {}  # who is to be shaken hands with; True: though there is a session
        self.packets: list[bytes] = []  # for peers that the engine has
        self.to_open: list[tuple[bytes, Endpoint]] = []  # WireGuard messages that came by a relay
        self.lost = 0  # messages that came by a relay, of which the engine drained too few
        self.stirred = False  # somebody has begun a handshake: there may be something to `tell` soon

    def peer(self, shared: Shared, public_key: bytes) -> OutsourcedPeer:
        return OutsourcedPeer(shared, public_key, self)

    def take(self, datagram: bytes, endpoint: Endpoint) -> None:
        """A message of WireGuard's that came by another way than the engine's own port."""
        if len(self.to_open) < DATAGRAMS_MAX:
            self.to_open.append((datagram, endpoint))
        else:
            self.lost += 1

    def judges(self, peer: Peer) -> bool:
        """Whether the engine does, for it knows what the peer has begun: its answers are no beginning of ours."""
        return isinstance(peer, OutsourcedPeer) and peer.installed

    def drain_asked(self) -> dict[OutsourcedPeer, bool]:
        asked, self.asked = self.asked, {}
        return asked

    def drain_packets(self) -> list[bytes]:
        packets, self.packets = self.packets, []
        return packets

    def drain_to_open(self) -> list[tuple[bytes, Endpoint]]:
        to_open, self.to_open = self.to_open, []
        return to_open


class OutsourcedPeer(Peer):
    """A peer whose keypairs are nobody's here. `installed` is the engine's: whether it has the peer by now."""

    __slots__ = ("_anew_at", "_handshake_s", "_out", "_rx", "_silent_since", "_told_at", "_tx", "_waiting_since",
                 "installed")  # fmt: skip

    def __init__(self, shared: Shared, public_key: bytes, out: Outsourced) -> None:
        super().__init__(shared, public_key)
        self.installed = False
        self._out = out
        self._anew_at = float("-inf")  # when the engine last had to begin as with a new peer
        self._handshake_s = 0.0  # the engine's time of the last one, which only says whether there was another
        self._rx = self._tx = 0  # as the engine counted them last
        self._told_at: float | None = None
        self._silent_since: float | None = None  # what went out since has no answer
        self._waiting_since: float | None = None  # for keys

    @property
    def is_up(self) -> bool:
        """Whether the engine has had keys with it."""
        return self._handshake_s > 0.0

    @property
    def waits(self) -> bool:
        """For keys."""
        return self._waiting_since is not None

    # What others would do themselves

    def send(self, now: float, packets: list[bytes]) -> None:
        """Without keys they are staged here, as ever: an engine that is to begin anew forgets what it has."""
        self.last_traffic_at = now
        if not self.is_up:
            for packet in packets:
                self.stage(packet)
            if self.endpoint is not None and self._waiting_since is None:
                self.begin_handshake(now)
            return
        room = PACKETS_MAX - len(self._out.packets)
        self._out.packets += packets[:room]
        if len(packets) > room:
            self._drop(DropReason.STAGED_FULL, len(packets) - room)

    def send_keepalive(self, now: float) -> None:
        if self.endpoint is not None:
            self._await_keys(now)
            self._out.asked.setdefault(self, False)

    def begin_handshake(self, now: float, *, again: bool = False, anew: bool = False) -> bool:
        """`anew`: a new endpoint, or the other side is known to have lost its keys. The engine spaces its attempts, and
        one that it begins with a peer that is new to it goes out at once; but not more often than each second."""
        if self.endpoint is None or self._shared.static_private is None:
            return False
        anew = anew and self.installed and now - self._anew_at >= INITIATION_REPEATED_S
        if anew:
            self._anew_at = now
        self._out.asked[self] = self._out.asked.get(self, False) or anew
        if self._waiting_since is None:
            self._waiting_since = now
        return True

    def consume_initiation(self, now: float, opened: noise.OpenedInitiation, size: int, endpoint: Endpoint) -> bool:
        """The engine had it before us, and answered if it had the peer. If not, what came by a relay is given to it
        again, and to an address we begin ourselves."""
        if opened.timestamp <= self.latest_timestamp:
            self._drop(DropReason.INITIATION_REPLAYED)
            return False
        self.remember(opened.timestamp)
        if self.installed:
            return False
        if self.endpoint is None:
            self.roam(endpoint)
        if not endpoint.is_relay:
            self.begin_handshake(now)
        return True

    def handle_timeout(self, now: float) -> None:
        self.timers.due(now)  # which the engine has too, and acts by

    def expire_keys(self, now: float) -> None:
        """The engine does that when it gets the new key."""

    # What the engine tells

    def forgotten(self) -> None:
        """The engine has let go of the peer: when it has it again, it counts anew."""
        self.installed = False
        self._rx = self._tx = 0
        self._handshake_s = 0.0
        self._told_at = None

    def tell(self, now: float, handshake_s: float, rx: int, tx: int, endpoint: Endpoint | None) -> Traffic | None:
        """What it counts by now; None where that is what it was. HandshakeCompleted and HandshakeFailed are among the
        device's events."""
        since, self._told_at = self._told_at, now
        received, sent = max(0, rx - self._rx), max(0, tx - self._tx)
        self._rx, self._tx = rx, tx
        renewed = handshake_s > 0.0 and handshake_s != self._handshake_s
        if renewed:
            self._handshake_s = handshake_s
            self._waiting_since = None
            self.last_handshake_at = now
            self.last_handshake_wall_s = handshake_s
            self.timers.handshake_completed()
            self._shared.events.append(HandshakeCompleted(self))
            self.send_staged(now)
        elif self._waiting_since is not None and now - self._waiting_since >= GIVE_UP_S:
            self._waiting_since = None
            self._drop(DropReason.STAGED_EXPIRED, len(self.staged))
            self.staged.clear()
            self._shared.events.append(HandshakeFailed(self))
        if not received and not sent:
            return None
        # Of bytes nothing says what they were: a handshake's are known, a keepalive is the shortest message
        keys = (INITIATION_SIZE + RESPONSE_SIZE) if renewed else 0
        traffic = Traffic(self)
        traffic.rx_bytes, traffic.tx_bytes = received, sent
        traffic.count = 1
        about = now if since is None else since
        if received:
            traffic.last_received_at = now
            if endpoint is not None:
                traffic.heard = [endpoint]
            if received > keys + TRANSPORT_SIZE_MIN:
                traffic.first_data_received_at = traffic.last_data_received_at = now
            self._silent_since = None
        if sent:
            traffic.last_sent_at = now
            if not self._has_keys(now):
                self._await_keys(now)  # initiations, of which nobody told us
            elif sent > keys + TRANSPORT_SIZE_MIN:
                traffic.first_data_sent_at, traffic.last_data_sent_at = about, now
                if not received and self._silent_since is None:
                    self._silent_since = about
        traffic.unanswered_since = self._silent_since
        return traffic

    def _await_keys(self, now: float) -> None:
        if self._waiting_since is None and not self._has_keys(now):
            self._waiting_since = now

    def _has_keys(self, now: float) -> bool:
        return self.last_handshake_at is not None and now - self.last_handshake_at < REJECT_AFTER_TIME_S
