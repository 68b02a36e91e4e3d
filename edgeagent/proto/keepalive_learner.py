"""Keepalive intervals for all uplinks: what is known of the NAT behind each, and the search where nothing is."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from edgeagent.proto.errors import LimitReached, LocalProtocolError
from edgeagent.proto.keepalive import SILENCE_MAX_S, BindingSearch, Phase, Wish, interval_s
from edgeagent.proto.schema import Fields, List, Row, Text, Uint

if TYPE_CHECKING:
    from collections.abc import Callable

DEFAULT_INTERVAL_S = 25.0  # until something is known (wg(8), PersistentKeepalive)
UPLINKS_MAX = 8
NATS_MAX = 32
ID_BYTES_MAX = 64
DOUBT = 0.5  # of the silence after which a binding in use was lost

_SAVED = Fields(
    {
        "v": Uint(1, 1),
        # uplink, NAT, silence survived in s, whether the search has ended; the least recently used first
        "nats": List(Row(Text(ID_BYTES_MAX), Text(ID_BYTES_MAX), Uint(0, int(SILENCE_MAX_S)), Uint(0, 1)), NATS_MAX),
    }
)


def nat_id(gateway: bytes, mapped: bytes) -> str:
    """What a NAT is recognised by: our next hop (empty for none), and the network that servers see us in.

    Carriers have many addresses outside and move us among them, so the last byte of an IPv4 address does not count, nor
    what is behind the /48 of an IPv6 one.
    """
    bits = 24 if len(mapped) == 4 else 48
    outside = mapped[: bits // 8] + bytes(len(mapped) - bits // 8)
    return f"{ip_address(gateway) if gateway else 'link'} {ip_address(outside)}/{bits}"


class IntervalChanged:
    """On this uplink a keepalive is due each `interval_s` from now on."""

    __slots__ = ("interval_s", "uplink")

    def __init__(self, uplink: str, interval_s: float) -> None:
        self.uplink = uplink
        self.interval_s = interval_s


class KeepaliveLearner:
    """Drive it: `set_nat` when an uplink's NAT is recognised, `answered` and `knocked` with what comes in on second
    sockets, `binding_lost` when a binding in use was lost, `handle_timeout` at `poll_timeout()`; after any input drain
    wishes and events. `export` what is to be kept when `dirty`.

    A NAT is whatever is recognised again by the same id: `nat_id` makes one.
    """

    __slots__ = ("_events", "_jitter", "_nats", "_searches", "_trial", "_uplinks", "_wishes", "dirty")

    def __init__(self, jitter: Callable[[], float]) -> None:
        self._jitter = jitter
        self._uplinks: dict[str, str] = {}  # uplink → NAT behind it now
        self._nats: dict[tuple[str, str], tuple[int, bool]] = {}  # → silence survived, search ended
        self._searches: dict[str, BindingSearch] = {}
        self._trial = 0
        self._wishes: list[tuple[str, Wish]] = []
        self._events: list[IntervalChanged] = []
        self.dirty = False

    def set_nat(self, now: float, uplink: str, nat: str, *, learn: bool = True) -> None:
        """`learn` False: use what is known of it and open no second socket, as suits a metered uplink.

        Raises LimitReached beyond UPLINKS_MAX.
        """
        for value in (uplink, nat):
            if not value.isprintable() or not 1 <= len(value.encode()) <= ID_BYTES_MAX:
                raise LocalProtocolError(f"keepalive: an id is printable and has 1 to {ID_BYTES_MAX} bytes")
        if uplink not in self._uplinks and len(self._uplinks) >= UPLINKS_MAX:
            raise LimitReached(f"keepalive: at most {UPLINKS_MAX} uplinks")
        before = self.interval_s(uplink)
        if self._uplinks.get(uplink) != nat:
            self._end_search(uplink)
            self._uplinks[uplink] = nat
        known = self._nats.pop((uplink, nat), None)
        if known is not None:
            self._nats[uplink, nat] = known  # as the one used last
        if not learn:
            self._end_search(uplink)
        elif (known is None or not known[1]) and uplink not in self._searches:
            self._begin_search(now, uplink)
        self._tell(uplink, before)

    def remove_uplink(self, uplink: str) -> None:
        """The uplink went away; what is known of its NAT is kept."""
        self._end_search(uplink)
        self._uplinks.pop(uplink, None)

    def interval_s(self, uplink: str) -> float:
        """Between keepalives on this uplink."""
        known = self._nats.get((uplink, self._uplinks.get(uplink, "")))
        return DEFAULT_INTERVAL_S if known is None else interval_s(known[0])

    def is_learnt(self, uplink: str) -> bool:
        """Whether the interval is what a search has ended with."""
        known = self._nats.get(self._key(uplink))
        return known is not None and known[1]

    def binding_lost(self, now: float, uplink: str, silent_s: float) -> None:
        """A binding in use, learnt to live longer, was gone after `silent_s`: the NAT changed, and is learnt anew."""
        known = self._nats.get(self._key(uplink))
        if uplink in self._uplinks and silent_s < (SILENCE_MAX_S if known is None else known[0] + 1):
            self._know(uplink, int(silent_s * DOUBT), ended=False)
            self._end_search(uplink)
            self._begin_search(now, uplink)

    def answered(self, now: float, uplink: str, trial: int) -> None:
        search = self._searches.get(uplink)
        if search is not None:
            search.answered(now, trial)
            self._collect(uplink, search)

    def knocked(self, now: float, uplink: str, trial: int) -> None:
        search = self._searches.get(uplink)
        if search is not None:
            search.knocked(now, trial)
            self._collect(uplink, search)

    def handle_timeout(self, now: float) -> None:
        for uplink, search in list(self._searches.items()):
            search.handle_timeout(now)
            self._collect(uplink, search)

    def poll_timeout(self) -> float | None:
        timeouts = (search.poll_timeout() for search in self._searches.values())
        return min((at for at in timeouts if at is not None), default=None)

    def drain_wishes(self) -> list[tuple[str, Wish]]:
        """Each with its uplink."""
        wishes, self._wishes = self._wishes, []
        return wishes

    def drain_events(self) -> list[IntervalChanged]:
        events, self._events = self._events, []
        return events

    def export(self) -> dict[str, Any]:
        """What `load` takes; the caller makes it durable. `dirty` is False afterwards."""
        self.dirty = False
        return {"v": 1, "nats": [[*key, survived, int(ended)] for key, (survived, ended) in self._nats.items()]}

    def load(self, saved: Any) -> None:
        """Put back what `export` gave. Raises ControlError(BAD_FIELD) that names what is wrong, and changes nothing."""
        fields = _SAVED.check(saved, "keepalive")
        self._nats = {(uplink, nat): (survived, bool(ended)) for uplink, nat, survived, ended in fields["nats"]}

    def _begin_search(self, now: float, uplink: str) -> None:
        search = self._searches[uplink] = BindingSearch(now, self._jitter, self._trial)
        self._collect(uplink, search)

    def _end_search(self, uplink: str) -> None:
        search = self._searches.pop(uplink, None)
        if search is not None:
            search.stop()
            self._wishes += [(uplink, wish) for wish in search.drain_wishes()]
            self._trial = max(self._trial, search.trial + 1)  # late answers to it are nobody's

    def _collect(self, uplink: str, search: BindingSearch) -> None:
        self._wishes += [(uplink, wish) for wish in search.drain_wishes()]
        if search.phase is Phase.DONE:
            self._know(uplink, int(search.survived_s), ended=True)
            self._end_search(uplink)
        elif search.too_long_s is not None and interval_s(search.survived_s) < self.interval_s(uplink):
            self._know(uplink, int(search.survived_s), ended=False)  # the interval in use is too long

    def _know(self, uplink: str, survived_s: int, *, ended: bool) -> None:
        before = self.interval_s(uplink)
        key = self._key(uplink)
        self._nats.pop(key, None)
        self._nats[key] = (survived_s, ended)
        if len(self._nats) > NATS_MAX:
            del self._nats[next(iter(self._nats))]
        self.dirty = True
        self._tell(uplink, before)

    def _tell(self, uplink: str, before: float) -> None:
        after = self.interval_s(uplink)
        if after != before:
            self._events.append(IntervalChanged(uplink, after))

    def _key(self, uplink: str) -> tuple[str, str]:
        return uplink, self._uplinks.get(uplink, "")
