"""Several uplinks: which of them carries what is bound to none, which stand by, and when each is to be tried."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgeagent.proto.node_events import ActiveUplinkChanged, UplinkChanged
from edgeagent.proto.uplink import Input, Reason, State, Uplink, UplinkSetting

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgeagent.proto.uplink import UplinkFacts
    from edgeagent.proto.ways import WayOut

UPLINKS_MAX = 8
FORGET_S = 600.0  # one that is down for so long has no socket any more
SETTLE_S = 10.0  # one that nobody could try is taken for good after so long
FAILURES_MAX = 3
BUSY_S = 30.0  # after the last packet there is traffic for so long
# Between two probes, while one is answered:
ACTIVE_S, STANDBY_S = 5.0, 30.0  # with traffic
IDLE_S = 300.0  # without; an exchange of 120 B: 35 KB a day,
METERED_FACTOR = 4  # and on a metered uplink 9
# and while it is not:
RETRY_S = 1.0  # until it has failed
FAILED_MIN_S, FAILED_MAX_S = 10.0, 300.0  # then, doubled each time


class Uplinks:
    """Drive it: `handle_links` with all interfaces that have, or had, a default route; `answered` and `unanswered` for
    what was sent by one, `used` when there is traffic, `handle_timeout` at `poll_timeout()`. After any input drain
    probes (interface indexes: one small exchange with a server is to be tried by each) and events.

    `active` carries what is bound to none. `ways(now)` are those that paths may use, `bound` those that want sockets of
    their own: with one uplink alone there are none, and nothing is probed. With `only_named` those without a setting
    are not used.
    """

    def __init__(self, settings: dict[str, UplinkSetting], *, only_named: bool = False) -> None:
        self._settings = settings
        self._only_named = only_named
        self._uplinks: dict[str, Uplink] = {}
        self._used_at: float | None = None
        self._chosen_at = float("-inf")
        self._shunned = False  # somebody has a default route who is not to be used
        self._probes: list[int] = []
        self._events: list[UplinkChanged | ActiveUplinkChanged] = []
        self.active: Uplink | None = None
        self.ignored = 0  # interfaces for which there was no room

    # What comes to be known

    def handle_links(self, now: float, facts: list[UplinkFacts]) -> None:
        """All of them as they are now; one that is missing is gone."""
        found = {each.name: each for each in facts}
        self._shunned = False
        for name, uplink in self._uplinks.items():
            if name not in found and uplink.take(now, Input.DOWN):
                self._changed(now, uplink, Reason.GONE)
        for name, each in found.items():
            setting = self._settings.get(name, UplinkSetting(is_disabled=self._only_named))
            if setting.is_disabled:
                self._shunned |= each.is_up and bool(each.gateways)
                continue
            known = self._uplinks.get(name)
            if known is None:
                known = self._make(now, each, setting)
            else:
                known.setting = setting  # a modem may have been found behind it since
            if known is not None:
                self._look(now, known, each)
        self._choose(now)

    def answered(self, now: float, index: int) -> None:
        """Something came back by the uplink, whether it was asked for by `drain_probes` or not."""
        uplink = self._by_index(index)
        if uplink is None or uplink.state is State.DOWN:
            return
        uplink.failures = 0
        uplink.answered_at = now
        if uplink.take(now, Input.ANSWERED):
            self._changed(now, uplink, Reason.ANSWERED)
            self._choose(now)
        uplink.next_probe_at = now + self._interval_s(now, uplink)

    def unanswered(self, now: float, index: int) -> None:
        """A probe by the uplink stayed without an answer."""
        uplink = self._by_index(index)
        if uplink is None or uplink.state is State.DOWN:
            return
        uplink.failures += 1
        changed = uplink.take(now, Input.UNANSWERED)
        if uplink.failures == 1:
            uplink.failing_since = now
            for other in self._several_up():  # to compare with: if none is answered, it is the server that is silent
                other.next_probe_at = now
        if uplink.state is State.DOUBTFUL and uplink.failures >= FAILURES_MAX and self._another_answers(uplink):
            changed = uplink.take(now, Input.GAVE_UP)
        if changed:
            self._changed(now, uplink, Reason.UNANSWERED)
            self._choose(now)
        uplink.next_probe_at = now + self._interval_s(now, uplink)

    def used(self, now: float) -> None:
        """There is traffic."""
        was_busy = self._is_busy(now)
        self._used_at = now
        if not was_busy:
            for uplink in self._uplinks.values():
                if uplink.next_probe_at is not None:
                    uplink.next_probe_at = min(uplink.next_probe_at, now + self._interval_s(now, uplink))

    # Time

    def handle_timeout(self, now: float) -> None:
        for uplink in self._several_up():
            if uplink.next_probe_at is not None and uplink.next_probe_at <= now:
                uplink.next_probe_at = now + self._interval_s(now, uplink)
                self._probes.append(uplink.index)
        for name, uplink in list(self._uplinks.items()):
            if uplink.state is State.DOWN and now >= uplink.since + FORGET_S:
                del self._uplinks[name]
        self._choose(now)

    def poll_timeout(self) -> float | None:
        times = [uplink.next_probe_at for uplink in self._several_up()]
        for uplink in self._uplinks.values():
            if uplink.state is State.DOWN:
                times.append(uplink.since + FORGET_S)
            else:
                times += [at for at in (uplink.held_until, uplink.since + SETTLE_S) if at > self._chosen_at]
        return min((at for at in times if at is not None), default=None)

    # What is known

    def __len__(self) -> int:
        return len(self._uplinks)

    def __iter__(self) -> Iterator[Uplink]:
        return iter(list(self._uplinks.values()))

    @property
    def bound(self) -> list[tuple[str, int]]:
        """(name, interface index) of those that want a socket of their own, also those that are down at present: all of
        several, and a single one beside others that are not to be used."""
        known = [(uplink.name, uplink.index) for uplink in self._uplinks.values()]
        return known if len(known) > 1 or self._shunned else []

    def ways(self, now: float) -> list[WayOut]:
        """The best first."""
        usable = [uplink for uplink in self._uplinks.values() if uplink.is_usable]
        return [uplink.way_out(now, rank) for rank, uplink in enumerate(sorted(usable, key=_rank))]

    def drain_probes(self) -> list[int]:
        probes, self._probes = self._probes, []
        return probes

    def drain_events(self) -> list[UplinkChanged | ActiveUplinkChanged]:
        events, self._events = self._events, []
        return events

    def rows(self, now: float) -> list[dict[str, Any]]:
        """For people, the best first."""
        return [
            {
                "name": uplink.name,
                "state": uplink.state.value,
                "active": uplink is self.active,
                "metered": uplink.setting.is_metered,
                "cost_ms": uplink.cost_ms,
                "mtu": uplink.facts.mtu,
                "held_s": max(0.0, uplink.held_until - now),
                "answered_age_s": None if uplink.answered_at is None else now - uplink.answered_at,
            }
            for uplink in sorted(self._uplinks.values(), key=_rank)
        ]

    # Changes

    def _make(self, now: float, facts: UplinkFacts, setting: UplinkSetting) -> Uplink | None:
        if not facts.gateways:
            return None
        if len(self._uplinks) >= UPLINKS_MAX:
            down = [uplink for uplink in self._uplinks.values() if uplink.state is State.DOWN]
            if not down:
                self.ignored += 1
                return None
            del self._uplinks[min(down, key=lambda uplink: uplink.since).name]
        made = self._uplinks[facts.name] = Uplink(now, facts, setting)
        return made

    def _look(self, now: float, uplink: Uplink, facts: UplinkFacts) -> None:
        before, uplink.facts = uplink.facts, facts
        moved = not facts.is_where(before)
        if not facts.is_up or not facts.routed:
            if uplink.take(now, Input.DOWN):
                self._changed(now, uplink, Reason.LINK)
        elif uplink.state is State.DOWN:
            uplink.take(now, Input.UP)
            self._changed(now, uplink, Reason.LINK)
        elif moved:
            uplink.failures = 0
            uplink.next_probe_at = now
            if uplink.take(now, Input.MOVED):
                self._changed(now, uplink, Reason.MOVED)

    def _changed(self, now: float, uplink: Uplink, reason: Reason) -> None:
        self._events.append(UplinkChanged(uplink.name, uplink.index, uplink.state, reason))
        if uplink.state is State.DOWN:
            uplink.failures = 0
            uplink.answered_at = uplink.next_probe_at = None
        elif uplink.state is State.UNTESTED:
            uplink.next_probe_at = now

    def _choose(self, now: float) -> None:
        self._chosen_at = now
        active = self.active
        if active is not None and self._uplinks.get(active.name) is not active:
            active = None
        best, reason = active, Reason.LOST
        if active is None or not active.is_usable:
            up = [uplink for uplink in self._uplinks.values() if uplink.state is not State.DOWN]
            best = min(up, key=lambda uplink: _standing(now, uplink), default=None)
            # One that does not answer is better than none, and as good as another one that does not
            if active is not None and active.state is State.FAILED and (best is None or not best.is_usable):
                best = active
        else:
            good = [uplink for uplink in self._uplinks.values() if _is_proven(now, uplink)]
            other = min(good, key=_rank, default=active)
            if _rank(other) < _rank(active):
                best, reason = other, Reason.BETTER
        if best is not self.active:
            before, name, index = self.active, None, 0
            self.active = best
            if best is not None:
                name, index = best.name, best.index
            if before is None:
                reason = Reason.FIRST
            self._events.append(ActiveUplinkChanged(name, index, reason))

    # When

    def _interval_s(self, now: float, uplink: Uplink) -> float:
        factor = METERED_FACTOR if uplink.setting.is_metered else 1
        if uplink.failures:
            over = uplink.failures - FAILURES_MAX
            if over < 0:
                return RETRY_S
            return factor * min(FAILED_MIN_S * (1 << min(over, 10)), FAILED_MAX_S)
        if not self._is_busy(now):
            return factor * IDLE_S
        return ACTIVE_S if uplink is self.active else factor * STANDBY_S

    def _is_busy(self, now: float) -> bool:
        return self._used_at is not None and now - self._used_at < BUSY_S

    def _several_up(self) -> list[Uplink]:
        """Those worth a probe: none where there is nothing to choose from."""
        up = [uplink for uplink in self._uplinks.values() if uplink.state is not State.DOWN]
        return up if len(up) > 1 else []

    def _another_answers(self, failing: Uplink) -> bool:
        """Since that one does not."""
        return any(
            uplink.state is State.ALIVE and (uplink.answered_at or 0.0) >= failing.failing_since
            for uplink in self._uplinks.values()
        )

    def _by_index(self, index: int) -> Uplink | None:
        return next((uplink for uplink in self._uplinks.values() if uplink.index == index), None)


def _rank(uplink: Uplink) -> tuple[float, int, int]:
    """By what it costs, then as the routes have it."""
    return uplink.cost_ms, uplink.facts.metric, uplink.index


def _standing(now: float, uplink: Uplink) -> tuple[int, tuple[float, int, int]]:
    """Among those that are up, when one is needed at once."""
    if uplink.state is State.FAILED:
        return 3, _rank(uplink)
    if uplink.state is State.DOUBTFUL:
        return 2, _rank(uplink)
    return int(uplink.is_held(now)), _rank(uplink)


def _is_proven(now: float, uplink: Uplink) -> bool:
    """Whether it may take over from one that works."""
    if uplink.is_held(now):
        return False
    return uplink.state is State.ALIVE or (uplink.state is State.UNTESTED and now >= uplink.since + SETTLE_S)
