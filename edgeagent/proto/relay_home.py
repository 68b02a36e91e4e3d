"""Which relay is our home: the one that is nearest, unless something speaks against it for a while."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgeagent.proto.relaymap import RelayInfo

LATENCY_WEIGHT = 0.25  # of the newest measurement
MARGIN_S, MARGIN_SHARE = 0.010, 0.2  # another relay must be nearer by so much, and by this share, to become home
SHUN_S, SHUN_MAX_S = 30.0, 600.0  # a relay that failed is passed over: twice as long each time
FORGIVEN_S = 600.0  # that follows the last one within this time
LATENCY_UNKNOWN_S = 10.0


class HomeChoice:
    """`set_relays`, `measured`, `failed`, `false_alarm`; then `best`. Round trips in seconds.

    Where no relay is known to be near, the order of the map decides: the hub's first comes first. A relay that failed
    and serves again is still passed over for a while: one that comes and goes is not followed to and fro.
    """

    __slots__ = ("_latency_s", "_relays", "_shun_s", "_shunned")

    def __init__(self) -> None:
        self._relays: list[str] = []
        self._latency_s: dict[str, float] = {}
        self._shunned: dict[str, float] = {}  # until when
        self._shun_s: dict[str, float] = {}  # for how long the next time

    def set_relays(self, relays: list[RelayInfo]) -> None:
        """Those of the map, in its order."""
        self._relays = [relay.id for relay in relays]
        for table in (self._latency_s, self._shunned, self._shun_s):
            for gone in [relay for relay in table if relay not in self._relays]:
                del table[gone]

    def measured(self, relay: str, round_trip_s: float) -> None:
        """One more round trip to it, by whatever carrier; of a relay that the map does not name it counts nothing."""
        if relay in self._relays:
            before = self._latency_s.get(relay)
            new = round_trip_s if before is None else before + LATENCY_WEIGHT * (round_trip_s - before)
            self._latency_s[relay] = new

    def forget(self) -> None:
        """We are on another network: what was near may be far, and what failed may work."""
        for table in (self._latency_s, self._shunned, self._shun_s):
            table.clear()

    def failed(self, now: float, relay: str, at_least_s: float = 0.0) -> None:
        """It does not answer, or said that it will not."""
        if relay not in self._relays:
            return
        until = self._shunned.get(relay)
        shun_s = self._shun_s.get(relay, SHUN_S)
        if until is None or now - until >= FORGIVEN_S:
            shun_s = SHUN_S
        elif until <= now:  # otherwise it is the same failure still
            shun_s = min(2 * shun_s, SHUN_MAX_S)
        self._shun_s[relay] = shun_s
        self._shunned[relay] = max(until or now, now + min(max(shun_s, at_least_s), SHUN_MAX_S))

    def false_alarm(self, relay: str) -> None:
        """It did answer, before anything was done about it."""
        self._shunned.pop(relay, None)
        self._shun_s.pop(relay, None)

    def latency_s(self, relay: str) -> float | None:
        return self._latency_s.get(relay)

    def distance_s(self, relay: str) -> float:
        """The same for sorting by: one that is not known is far."""
        return self._latency_s.get(relay, LATENCY_UNKNOWN_S)

    def is_shunned(self, now: float, relay: str) -> bool:
        return self._shunned.get(relay, now) > now

    def best(self, now: float, home: str | None) -> str | None:
        """Which relay to be at, with `home` the present one; None where the map has none.

        When all have failed it is the one whose time comes first.
        """
        if not self._relays:
            return None
        good = [relay for relay in self._relays if not self.is_shunned(now, relay)]
        if not good:
            return min(self._relays, key=lambda relay: self._shunned[relay])
        nearest = min(good, key=self.distance_s)
        if home not in good or home is None:
            return nearest
        here, there = self._latency_s.get(home), self._latency_s.get(nearest)
        if here is None or there is None:
            return home
        return nearest if there + max(MARGIN_S, MARGIN_SHARE * here) < here else home

    def next_change(self, now: float) -> float | None:
        """When a relay that is passed over may be chosen again."""
        return min((until for until in self._shunned.values() if until > now), default=None)
