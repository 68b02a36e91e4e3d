"""One uplink as a table of states: what it takes until it may carry something, and what makes it doubtful again.

| state | means |
|---|---|
| DOWN | no link, no address or no default route |
| UNTESTED | up; nothing that was sent by it has been answered yet |
| ALIVE | what was sent by it last was answered |
| DOUBTFUL | it was not |
| FAILED | several times in a row it was not, while another uplink was answered |
"""

from __future__ import annotations

from enum import Enum

from edgeagent.proto.budget import is_modem
from edgeagent.proto.errors import LocalProtocolError
from edgeagent.proto.ways import WayOut

MOBILE_COST_MS = 100.0  # what is added to the latency where nothing is set: a modem,
RADIO_COST_MS = 10.0  # or Wi-Fi
ORDER_COST_MS = 600.0  # for each uplink that was named before: its order is to count more than the latency
METERED_COST_MS = 5_000.0
RANK_COST_MS = 50.0  # for paths, for each uplink that is preferred to it: by its cost, or by the metric of its route
HELD_COST_MS = 500.0  # while it has come back only just now
HOLD_MIN_S, HOLD_MAX_S = 10.0, 300.0  # until one that came back is preferred again; doubled each time it is lost
CALM_S = 600.0  # so long without a loss, and the past is forgotten
_RADIO = ("wl", "ath", "ra")


class State(Enum):
    DOWN = "down"
    UNTESTED = "untested"
    ALIVE = "alive"
    DOUBTFUL = "doubtful"
    FAILED = "failed"


class Input(Enum):
    UP = "up"  # link, address and default route are there
    DOWN = "down"  # one of them is not
    MOVED = "moved"  # they are others than before
    ANSWERED = "answered"  # something came back by it
    UNANSWERED = "unanswered"  # a probe stayed without an answer
    GAVE_UP = "gave-up"  # so many did that it cannot be chance, or the other end's fault


class Reason(Enum):
    """Why an uplink came into its state, or carries what it did not; the value is its name in logs."""

    LINK = "link"  # as link, addresses and routes are now
    GONE = "gone"  # there is no such interface any more
    MOVED = "moved"  # it leads somewhere else now
    ANSWERED = "answered"
    UNANSWERED = "unanswered"
    LOST = "lost"  # the one before can carry nothing
    BETTER = "better"  # the one before can, at a higher cost
    FIRST = "first"  # there was none before


_S, _I = State, Input

TABLE: dict[tuple[State, Input], State] = {
    (_S.DOWN, _I.UP): _S.UNTESTED,
    (_S.DOWN, _I.DOWN): _S.DOWN,
    (_S.UNTESTED, _I.DOWN): _S.DOWN,
    (_S.UNTESTED, _I.MOVED): _S.UNTESTED,
    (_S.UNTESTED, _I.ANSWERED): _S.ALIVE,
    (_S.UNTESTED, _I.UNANSWERED): _S.DOUBTFUL,
    (_S.ALIVE, _I.DOWN): _S.DOWN,
    (_S.ALIVE, _I.MOVED): _S.UNTESTED,
    (_S.ALIVE, _I.ANSWERED): _S.ALIVE,
    (_S.ALIVE, _I.UNANSWERED): _S.DOUBTFUL,
    (_S.DOUBTFUL, _I.DOWN): _S.DOWN,
    (_S.DOUBTFUL, _I.MOVED): _S.UNTESTED,
    (_S.DOUBTFUL, _I.ANSWERED): _S.ALIVE,
    (_S.DOUBTFUL, _I.UNANSWERED): _S.DOUBTFUL,
    (_S.DOUBTFUL, _I.GAVE_UP): _S.FAILED,
    (_S.FAILED, _I.DOWN): _S.DOWN,
    (_S.FAILED, _I.MOVED): _S.UNTESTED,
    (_S.FAILED, _I.ANSWERED): _S.ALIVE,
    (_S.FAILED, _I.UNANSWERED): _S.FAILED,
}


def print_table() -> str:
    """States x inputs as text; a dot is what cannot happen."""
    width = max(len(each.value) for each in (*State, *Input)) + 1
    lines = ["".ljust(width) + "".join(put.value.ljust(width) for put in Input)]
    for state in State:
        cells = [TABLE[state, put].value if (state, put) in TABLE else "." for put in Input]
        lines.append(state.value.ljust(width) + "".join(cell.ljust(width) for cell in cells))
    return "\n".join(line.rstrip() for line in lines)


class UplinkFacts:
    """What the kernel says of an interface. `addresses` are its own that last (4 or 16 B); `gateways` has the size of
    an address for each IP version with a default route: its gateway, empty where that needs none (a modem)."""

    __slots__ = ("addresses", "gateways", "index", "is_up", "metric", "mtu", "name")

    def __init__(
        self,
        name: str,
        index: int,
        *,
        addresses: list[bytes],
        gateways: dict[int, bytes],
        metric: int = 0,
        mtu: int = 1_500,
        is_up: bool = True,
    ) -> None:
        self.name = name
        self.index = index
        self.addresses = addresses
        self.gateways = gateways
        self.metric = metric
        self.mtu = mtu
        self.is_up = is_up

    @property
    def routed(self) -> tuple[int, ...]:
        """The sizes of addresses that it leads to."""
        sizes = {len(address) for address in self.addresses}
        return tuple(size for size in sorted(self.gateways) if size in sizes)

    def is_where(self, other: UplinkFacts) -> bool:
        """Whether the network at its other end is the same."""
        mine, theirs = (self.index, self.addresses, self.gateways), (other.index, other.addresses, other.gateways)
        return mine == theirs


class UplinkSetting:
    """What somebody has set for an uplink; `cost_ms` None goes by the interface's name."""

    __slots__ = ("cost_ms", "is_disabled", "is_metered")

    def __init__(self, *, cost_ms: float | None = None, is_metered: bool = False, is_disabled: bool = False) -> None:
        self.cost_ms = cost_ms
        self.is_metered = is_metered
        self.is_disabled = is_disabled


def settings_of(order: list[str], metered: list[str]) -> dict[str, UplinkSetting]:
    """For uplinks that were named in an order, the best first, and for those that are metered. The order counts more
    than what a metered one costs."""
    settings, least_ms = {}, 0.0
    for name in dict.fromkeys(order):
        surcharge_ms = METERED_COST_MS if name in metered else 0.0
        cost_ms = max(0.0, least_ms - surcharge_ms)
        settings[name] = UplinkSetting(cost_ms=cost_ms, is_metered=name in metered)
        least_ms = cost_ms + surcharge_ms + ORDER_COST_MS
    for name in metered:
        settings.setdefault(name, UplinkSetting(is_metered=True))
    return settings


def cost_by_name(name: str) -> float:
    if is_modem(name):
        return MOBILE_COST_MS
    return RADIO_COST_MS if name.startswith(_RADIO) else 0.0


class Uplink:
    """`take` moves its state. Times are monotonic seconds."""

    __slots__ = (
        "answered_at", "facts", "failing_since", "failures", "held_until", "losses", "lost_at", "next_probe_at",
        "setting", "since", "state",
    )  # fmt: skip

    def __init__(self, now: float, facts: UplinkFacts, setting: UplinkSetting) -> None:
        self.facts = facts
        self.setting = setting
        self.state = State.DOWN
        self.since = now  # when it came into its state
        self.failures = 0  # probes without an answer, in a row,
        self.failing_since = now  # the first of them
        self.answered_at: float | None = None
        self.losses = 0  # how often it was lost, without a calm time between
        self.lost_at: float | None = None
        self.held_until = now  # it has come back, and is to show that it stays
        self.next_probe_at: float | None = None

    def take(self, now: float, put: Input) -> bool:
        """Move by the table; True where that is another state. Raises LocalProtocolError for what cannot happen."""
        before = self.state
        try:
            self.state = TABLE[before, put]
        except KeyError:
            raise LocalProtocolError(f"uplink: {put.value} in state {before.value}") from None
        if self.state is before:
            return False
        was_usable, self.since = before not in (State.DOWN, State.FAILED), now
        if was_usable and not self.is_usable:
            calm = self.lost_at is None or now - self.lost_at > CALM_S
            self.losses = 1 if calm else self.losses + 1
            self.lost_at = now
        elif self.is_usable and not was_usable and self.losses:
            self.held_until = now + min(HOLD_MIN_S * (1 << min(self.losses - 1, 10)), HOLD_MAX_S)
        return True

    @property
    def name(self) -> str:
        return self.facts.name

    @property
    def index(self) -> int:
        return self.facts.index

    @property
    def is_usable(self) -> bool:
        """Whether anything may be sent by it."""
        return self.state not in (State.DOWN, State.FAILED)

    @property
    def cost_ms(self) -> float:
        """What it adds to the latency, whatever state it is in."""
        setting = self.setting
        cost_ms = cost_by_name(self.name) if setting.cost_ms is None else setting.cost_ms
        return cost_ms + METERED_COST_MS if setting.is_metered else cost_ms

    def is_held(self, now: float) -> bool:
        return now < self.held_until

    def way_out(self, now: float, rank: int) -> WayOut:
        """As paths see it; `rank` is how many are preferred to it."""
        cost_ms = self.cost_ms + rank * RANK_COST_MS + (HELD_COST_MS if self.is_held(now) else 0.0)
        return WayOut(self.name, self.index, self.facts.addresses, self.facts.routed, cost_ms)

    def __repr__(self) -> str:
        return f"Uplink({self.name}, {self.state.value})"
