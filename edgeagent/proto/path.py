"""One way to a peer, as a table of states: what it takes until traffic may go there, and what makes it doubtful again.

| state | means |
|---|---|
| UNTRIED | somebody named the endpoint |
| PROBING | small probes are under way |
| ONE_WAY | the peer was heard from there; whether it hears us is open |
| ANSWERED | a small probe was answered; whether whole packets pass is open |
| PROVEN | a probe as long as a full packet was answered as long: both directions carry traffic |
| DOUBTFUL | traffic or a probe stayed without an answer: other ways carry a copy until that is settled |
| DEAD | a whole row of probes stayed without an answer, or its uplink went down; tried again later |
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from edgeagent.proto.constants import TAG_SIZE
from edgeagent.proto.errors import LocalProtocolError
from edgeagent.proto.messages import TRANSPORT_HEADER
from edgeagent.proto.relay_endpoint import RelayEndpoint

if TYPE_CHECKING:
    from edgeagent.proto.endpoint import Endpoint
    from edgeagent.proto.path_search import PathSearch
    from edgeagent.proto.patience import Patience


class State(Enum):
    UNTRIED = "untried"
    PROBING = "probing"
    ONE_WAY = "one-way"
    ANSWERED = "answered"
    PROVEN = "proven"
    DOUBTFUL = "doubtful"
    DEAD = "dead"


class Input(Enum):
    PROBE = "probe"  # we begin a row of probes
    HEARD = "heard"  # something authentic came from there
    PONG = "pong"  # a small probe was answered
    FULL_PONG = "full-pong"  # a probe of payload size was answered in its own size
    SILENCE = "silence"  # traffic, or one probe to a proven path, stayed without an answer
    GAVE_UP = "gave-up"  # the whole row of probes stayed without an answer
    RETRY = "retry"  # its time has come again
    GONE = "gone"  # the uplink that it goes by is down


LIVE = (State.PROVEN, State.ANSWERED, State.DOUBTFUL)
# Nothing but a row of probes leads out of these, and they may be without one: where nobody wanted it yet, or the uplink
# was down. DEAD and UNTRIED wait for a search; the others are in doubt, and are asked as soon as there is a reason
IN_DOUBT = (State.DOUBTFUL, State.ONE_WAY)
UNPROVEN = (State.UNTRIED, State.DEAD, *IN_DOUBT)

_S, _I = State, Input

TABLE: dict[tuple[State, Input], State] = {
    (_S.UNTRIED, _I.PROBE): _S.PROBING,
    (_S.UNTRIED, _I.HEARD): _S.ONE_WAY,
    (_S.PROBING, _I.PROBE): _S.PROBING,
    (_S.PROBING, _I.HEARD): _S.ONE_WAY,
    (_S.PROBING, _I.PONG): _S.ANSWERED,
    (_S.PROBING, _I.FULL_PONG): _S.PROVEN,
    (_S.PROBING, _I.GAVE_UP): _S.DEAD,
    (_S.ONE_WAY, _I.PROBE): _S.ONE_WAY,
    (_S.ONE_WAY, _I.HEARD): _S.ONE_WAY,
    (_S.ONE_WAY, _I.PONG): _S.ANSWERED,
    (_S.ONE_WAY, _I.FULL_PONG): _S.PROVEN,
    (_S.ONE_WAY, _I.GAVE_UP): _S.DEAD,
    (_S.ANSWERED, _I.PROBE): _S.ANSWERED,
    (_S.ANSWERED, _I.HEARD): _S.ANSWERED,
    (_S.ANSWERED, _I.PONG): _S.ANSWERED,
    (_S.ANSWERED, _I.FULL_PONG): _S.PROVEN,
    (_S.ANSWERED, _I.SILENCE): _S.DOUBTFUL,
    (_S.ANSWERED, _I.GAVE_UP): _S.DEAD,
    (_S.PROVEN, _I.PROBE): _S.PROVEN,
    (_S.PROVEN, _I.HEARD): _S.PROVEN,
    (_S.PROVEN, _I.PONG): _S.PROVEN,
    (_S.PROVEN, _I.FULL_PONG): _S.PROVEN,
    (_S.PROVEN, _I.SILENCE): _S.DOUBTFUL,
    (_S.DOUBTFUL, _I.PROBE): _S.DOUBTFUL,
    (_S.DOUBTFUL, _I.HEARD): _S.DOUBTFUL,
    (_S.DOUBTFUL, _I.PONG): _S.ANSWERED,
    (_S.DOUBTFUL, _I.FULL_PONG): _S.PROVEN,
    (_S.DOUBTFUL, _I.SILENCE): _S.DOUBTFUL,
    (_S.DOUBTFUL, _I.GAVE_UP): _S.DEAD,
    (_S.DEAD, _I.HEARD): _S.ONE_WAY,
    (_S.DEAD, _I.PONG): _S.ANSWERED,
    (_S.DEAD, _I.FULL_PONG): _S.PROVEN,
    (_S.DEAD, _I.RETRY): _S.UNTRIED,
    **{(state, _I.GONE): _S.DEAD for state in State},
}


class PathKind(Enum):
    """Where an endpoint lies; the value is its name in `status`."""

    LAN = "lan"  # in a subnet of ours
    PRIVATE = "private"  # private, and we have an address in the same private block
    IPV6 = "ipv6"
    IPV4 = "ipv4"
    RELAY = "relay"


# What is added to the latency, in ms, before two ways are compared: the same LAN always, then private, and IPv6 where
# it is as good; what knows a shorter way than a NAT needs no binding to be kept.
PENALTY_MS = {
    PathKind.LAN: -10_000.0,
    PathKind.PRIVATE: -20.0,
    PathKind.IPV6: -10.0,
    PathKind.IPV4: 0.0,
    PathKind.RELAY: 10_000.0,
}
LATENCY_UNKNOWN_MS = 500.0
LATENCY_WEIGHT = 0.25  # of the newest measurement; what is shorter than before was not held up by a queue, or by an
LATENCY_WEIGHT_SHORTER = 0.75  # address that had to be resolved first, and says more
DEAR_MS = 1_000.0  # a path that costs so much is probed seldom while another one carries the traffic
HYSTERESIS_MS = 5.0  # a way must be better by so much,
HYSTERESIS_SHARE = 0.2  # and by this share of the latency, before traffic moves to it

TRANSPORT_OVERHEAD = TRANSPORT_HEADER.size + TAG_SIZE  # WireGuard around a packet
INNER_MTU_UNKNOWN = 1_280  # of packets on a path that nothing is known of: what IPv6 wants of any link
LADDER_MTUS = (1_460, 1_420, 1_360, 1_280, 1_200, 1_000, 576)  # of packets that pass where longer ones do not
MTU_MIN, MTU_MAX = 576, 9_000  # of a path, headers included: what every IPv4 host takes in (RFC 791), and jumbo frames
_OVERHEAD_V4, _OVERHEAD_V6 = 20 + 8, 40 + 8  # IP and UDP around a frame,
_OVERHEAD_RELAY = 40 + 8 + 8  # and at most so much on the way to a relay: its channel header besides


def print_table() -> str:
    """States x inputs as text; a dot is what cannot happen."""
    width = max(len(each.value) for each in (*State, *Input)) + 1
    lines = ["".ljust(width) + "".join(put.value.ljust(width) for put in Input)]
    for state in State:
        cells = [TABLE[state, put].value if (state, put) in TABLE else "." for put in Input]
        lines.append(state.value.ljust(width) + "".join(cell.ljust(width) for cell in cells))
    return "\n".join(line.rstrip() for line in lines)


PathKey = tuple[object, ...]


def key_of(endpoint: Endpoint) -> PathKey:
    """What two endpoints share that are one way: the remote address, whatever the source, and where there are several
    uplinks that which it goes by; by relay the member."""
    if isinstance(endpoint, RelayEndpoint):
        return ("relay", endpoint.node_key)
    uplink = endpoint.uplink
    return (*endpoint.addr[:2], uplink) if uplink else endpoint.addr[:2]


class Path:
    """`take` moves its state. Times are monotonic seconds; `frame_bytes` is the longest UDP payload proven on it, 0 as
    long as that is not known, and `overhead` what its packets have around it."""

    __slots__ = (
        "attempts",
        "cost_ms",
        "endpoint",
        "frame_bytes",
        "full",
        "hasty",
        "heard_at",
        "key",
        "kind",
        "latency_ms",
        "next_probe_at",
        "overhead",
        "patience",
        "ponged_at",
        "remote_cost_ms",
        "roamed_at",
        "search",
        "state",
        "unanswered_since",
    )

    def __init__(self, endpoint: Endpoint, kind: PathKind) -> None:
        self.endpoint = endpoint
        self.key = key_of(endpoint)
        self.kind = kind
        self.state = State.UNTRIED
        self.latency_ms: float | None = None
        self.cost_ms = 0.0  # of the uplink, set by its owner
        self.remote_cost_ms = 0  # of the uplink at the other end, as the peer says
        self.frame_bytes = 0
        self.overhead = _overhead(endpoint)
        self.search: PathSearch | None = None  # for a longer frame, or whether this one still passes
        self.heard_at: float | None = None  # last pong, or traffic, from there
        self.ponged_at: float | None = None  # last pong
        self.roamed_at: float | None = None  # when WireGuard first heard its peer there, while it is not proven
        self.unanswered_since: float | None = None  # first traffic sent since it was heard
        self.next_probe_at: float | None = None
        self.attempts = 0  # probes of the row under way
        self.full = False  # whether a row along a proven path is to be of full size
        self.hasty = False  # whether it begins with quick ones: traffic waits for what comes out
        self.patience: Patience | None = None  # with its silence, once it has carried traffic to us

    def take(self, put: Input) -> State:
        """Move by the table. Raises LocalProtocolError for what cannot happen."""
        try:
            self.state = TABLE[self.state, put]
        except KeyError:
            raise LocalProtocolError(f"path: {put.value} in state {self.state.value}") from None
        return self.state

    def lose(self) -> None:
        """Its uplink went down: nothing more comes of what is under way."""
        self.take(Input.GONE)
        self.next_probe_at = self.roamed_at = self.unanswered_since = self.patience = None

    def measured(self, latency_ms: float) -> None:
        """One more round trip, in ms."""
        before = latency_ms if self.latency_ms is None else self.latency_ms
        weight = LATENCY_WEIGHT if latency_ms > before else LATENCY_WEIGHT_SHORTER
        self.latency_ms = before + weight * (latency_ms - before)

    @property
    def score_ms(self) -> float:
        """Lower is better."""
        latency_ms = LATENCY_UNKNOWN_MS if self.latency_ms is None else self.latency_ms
        return latency_ms + PENALTY_MS[self.kind] + self.cost_ms + self.remote_cost_ms

    @property
    def is_dear(self) -> bool:
        """Whether probes on it are to be few."""
        return self.cost_ms + self.remote_cost_ms >= DEAR_MS

    def is_better_than(self, other: Path) -> bool:
        """By so much that traffic should move."""
        margin_ms = max(HYSTERESIS_MS, HYSTERESIS_SHARE * (other.latency_ms or 0.0))
        return self.score_ms + margin_ms < other.score_ms

    @property
    def is_sure(self) -> bool:
        """Whether what is lost on it tells of its size."""
        return self.state is State.PROVEN or (self.is_relay and self.state is State.ANSWERED)

    @property
    def is_relay(self) -> bool:
        return self.kind is PathKind.RELAY

    def __repr__(self) -> str:
        return f"Path({self.endpoint}, {self.kind.value}, {self.state.value})"


def _overhead(endpoint: Endpoint) -> int:
    if isinstance(endpoint, RelayEndpoint):
        return _OVERHEAD_RELAY
    return _OVERHEAD_V6 if ":" in endpoint.addr[0] else _OVERHEAD_V4
