"""What a relay client tells its driver, and what it is made from."""

from __future__ import annotations

from enum import Enum

from edgeagent.proto.crypto import Crypto
from edgeagent.proto.keys import Entropy
from edgeagent.proto.relay_frames import Gone, Refusal


class Carrier(Enum):
    DATAGRAM = "udp"
    STREAM = "tls"


class RelayClientDrop(Enum):
    """Why the relay client dropped something; the value is its name in `status` and in metrics."""

    MALFORMED = "relay-malformed"  # from the relay's address, and nothing that a relay says
    UNEXPECTED = "relay-unexpected"  # what a relay says, but not now
    OTHER_SESSION = "relay-other-session"  # of a session that is not ours
    BAD_MAC = "relay-bad-mac"  # a control datagram that is forged or repeated
    UNKNOWN_CHANNEL = "relay-unknown-channel"  # data on a channel that we did not bind, or no longer
    STRANGE_PROBE = "relay-strange-probe"  # from ourselves, and no probe that we wait for
    NOT_UP = "relay-not-up"  # packets for a relay that is not there (yet)
    NO_RELAY = "relay-not-named"  # packets for a relay that our map does not name, or without a pass for it
    TOO_LONG = "relay-too-long"  # packets longer than a relay forwards
    OURSELVES = "relay-ourselves"  # packets to or from a node key of our own
    STRANGER = "relay-stranger"  # a relay's datagram from an address at which we have no relay
    QUEUE_FULL = "relay-queue-full"  # the oldest packets to a relay that takes them too slowly gave way


TOLD_INTERVAL_MIN_S = 300  # the relay bears three times of it in silence; we are not to be forgotten when we learn more


class Login:
    """Everything a login takes: both sides' keys and the pass.

    `idle_s` is how often an idle session shows that it is there; `told_s` what the relay is told of it.
    """

    __slots__ = ("crypto", "entropy", "idle_s", "node_key", "pass_object", "private", "relay", "relay_key")

    def __init__(
        self,
        *,
        crypto: Crypto,
        entropy: Entropy,
        relay: str,
        relay_key: bytes,
        private: bytes,
        pass_object: bytes,
        idle_s: float,
    ) -> None:
        self.crypto = crypto
        self.entropy = entropy
        self.relay = relay
        self.relay_key = relay_key
        self.private = private
        self.node_key = crypto.x25519_base(private)
        self.pass_object = pass_object
        self.idle_s = idle_s

    @property
    def told_s(self) -> int:
        return max(TOLD_INTERVAL_MIN_S, int(self.idle_s) + 1)


class OpenStream:
    """Connect to the relay's TCP port (through the proxy, if there is one), TLS, upgrade; then `stream_opened`."""

    __slots__ = ()


class CloseStream:
    """Close the connection; no `stream_closed` is wanted for it."""

    __slots__ = ()


class RelayUp:
    """Packets can go. Again when the carrier changes."""

    __slots__ = ("carrier",)

    def __init__(self, carrier: Carrier) -> None:
        self.carrier = carrier


class RelayDown:
    """No carrier is left; the client goes on trying. `refusal` is what the relay said, if it said something."""

    __slots__ = ("refusal",)

    def __init__(self, refusal: Refusal | None) -> None:
        self.refusal = refusal


class RelayServes:
    """A probe has crossed the relay: it can be relied on. Again after each time that it was suspect or down."""

    __slots__ = ()


class RelaySuspect:
    """Probes are not answered in time, and the relay has no other carrier that is better: have another relay ready.

    Once in each such time; packets still go out, and answers that are only late end it.
    """

    __slots__ = ()


class RelaySawUsMove:
    """The relay hears us from another address than before: a NAT on the way has given our port another mapping."""

    __slots__ = ()


class PassRefused:
    """The relay does not take this pass: give another by `set_pass`. Until then it is tried rarely."""

    __slots__ = ("refusal",)

    def __init__(self, refusal: Refusal) -> None:
        self.refusal = refusal


class RelayDraining:
    """The relay stops in `seconds`: have another one up by then."""

    __slots__ = ("seconds",)

    def __init__(self, seconds: int) -> None:
        self.seconds = seconds


class RelayPeerGone:
    """A packet to `key` could not be forwarded."""

    __slots__ = ("key", "reason")

    def __init__(self, key: bytes, reason: Gone) -> None:
        self.key = key
        self.reason = reason


RelayEvent = (
    OpenStream
    | CloseStream
    | RelayUp
    | RelayDown
    | RelayServes
    | RelaySuspect
    | RelaySawUsMove
    | PassRefused
    | RelayDraining
    | RelayPeerGone
)
Received = tuple[bytes, bytes, int]  # source node key, packet, ECN field


class Inbox:
    """What both carriers of one client fill: packets, events, and counts of what was dropped."""

    __slots__ = ("drops", "events", "packets")

    def __init__(self) -> None:
        self.packets: list[Received] = []
        self.events: list[RelayEvent] = []
        self.drops: dict[RelayClientDrop, int] = dict.fromkeys(RelayClientDrop, 0)

    def drop(self, reason: RelayClientDrop, count: int = 1) -> None:
        self.drops[reason] += count
