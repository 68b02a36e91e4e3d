"""What the agent's traffic costs: the ledger with its meter, what metered uplinks ask for, and jobs that can wait.

Nothing here wakes the device up but midnight and a ledger to be saved. The rest is done when it is awake anyway.
"""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from edgeagent.io.keystore import StateFile
from edgeagent.meter import Meter
from edgeagent.proto.budget import BudgetRules, Level
from edgeagent.proto.coalescer import TimerCoalescer
from edgeagent.proto.codec import decode, encode
from edgeagent.proto.ledger import Cause, Ledger
from edgeagent.proto.names import split_host_port
from edgeagent.proto.policies import Policies
from edgeagent.proto.refusals import ControlError
from edgeagent.uplinknames import UplinkNames

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from edgeagent.context import Context
    from edgeagent.proto.budget import Policy
    from edgeagent.proto.causes import Carried
    from edgeagent.proto.devicemap import DeviceMap
    from edgeagent.proto.policies import LevelChanged

    CarriedOf = Callable[[socket.socket], Carried | None]

log = logging.getLogger("edgeagent")
SAMPLE_S = 5.0  # between two looks at what TCP connections took
ASSESS_S = 60.0  # between two looks at the budgets
DAYLESS_S = 3_600.0  # the same at the latest, where nobody knows when midnight is
SAVE_SLACK_S = 900.0
SAVE_SHARE = 0.05  # of a day's budget, used and not yet saved: then a power cut would lose too much
SAVE_SOONEST_S = 600.0
_KIB_MAX = (1 << 31) - 1


class Streams(Protocol):
    """TCP connections that come and go: `MqttLink`, `RelayStreams`.

    `sockets` are those that are there or being made, `on_closing` is called with one just before it is closed.
    """

    on_closing: Callable[[socket.socket], None] | None

    def sockets(self) -> list[socket.socket]: ...


class Accounts:
    """Drive it: `watch` what has connections, `on_wake` after any input and at `poll_timeout()`, `close` at the end.

    `meter` is for the engine. `policies` tells how to behave on an uplink. `reconnect_wanted` becomes True when the
    control connection is to be made anew, with the longer keepalive that its uplink asks for now; its owner resets it.
    `level_changes` grows when a budget is used up to another level.
    `defer` runs somebody else's job when the device is awake anyway.
    """

    def __init__(self, now: float, context: Context) -> None:
        self._context = context
        self.ledger = Ledger()
        self.names = UplinkNames()
        self.meter = Meter(self.ledger, self.names)
        self.policies = Policies(self.ledger, BudgetRules(context.settings.metered, context.settings.budget))
        self.reconnect_wanted = False
        self.level_changes = 0
        self._watched: list[tuple[Streams, Cause, CarriedOf]] = []
        self._jobs = TimerCoalescer()
        self._actions: dict[str, Callable[[float], None]] = {}
        self._begins = now  # of the first job that may be done
        self._deadline: float | None = None
        self._save_at: float | None = None
        self._saved_at = now
        self._saved_day: dict[str, int] = {}  # bytes of the day that are saved, by uplink
        self._wall_anchor_s: float | None = None
        self._load(now)
        self._sample(now)
        self._assess(now)

    @property
    def policy(self) -> Policy:
        """Of the uplink that the routes prefer."""
        return self.policies.of(self.names.default())

    def watch(self, streams: Streams, cause: Cause, carried_of: CarriedOf = lambda sock: None) -> None:
        """Book to `cause` what its connections take, but for what `carried_of` says that they carried for others."""
        self._watched.append((streams, cause, carried_of))
        streams.on_closing = lambda sock: self.meter.tcp(monotonic(), sock, cause, carried_of(sock), closing=True)

    def unwatch(self, streams: Streams) -> None:
        """After its connections were closed."""
        self._watched = [row for row in self._watched if row[0] is not streams]

    def defer(self, key: str, action: Callable[[float], None], at: float, slack_s: float) -> None:
        """Call `action(now)` at `at` at the latest, or up to `slack_s` earlier at a wake-up; once. Replaces `key`."""
        self._actions[key] = action
        self._jobs.arm(key, at, slack_s)
        self._plan()

    def undefer(self, key: str) -> None:
        """Harmless when it is not to be called."""
        self._jobs.disarm(key)
        self._actions.pop(key, None)
        self._plan()

    def poll_timeout(self) -> float | None:
        if self._save_at != self.ledger.save_at:
            self._save_at = self.ledger.save_at
            if self._save_at is not None:
                self.defer("save", self.save, self._save_at, SAVE_SLACK_S)
        return self._deadline

    def on_wake(self, now: float) -> None:
        if now < self._begins:
            return
        for key in self._jobs.take(now):
            self._actions[str(key)](now)
        self._plan()

    def interfaces_changed(self) -> None:
        """Links, addresses or routes are others now."""
        self.names.forget()

    def set_hub_budget(self, now: float, device_map: DeviceMap) -> None:
        """What the hub's settings give to metered uplinks without a budget of their own."""
        daily, monthly = (device_map.setting(f"metered_{name}_kib", 0, 0, _KIB_MAX) for name in ("daily", "monthly"))
        self.policies.set_defaults(now, daily * 1024, monthly * 1024)
        self._follow_levels()

    def set_modems(self, now: float, modems: dict[str, bool]) -> None:
        """The uplinks that belong to modems, and whether each roams."""
        self.policies.set_modems(now, modems)
        self._follow_levels()
        self.level_changes += 1  # also where only a price came to be known

    def control_policy(self, hosts: Sequence[str]) -> Policy:
        """Of the uplink that a connection to the first of `hosts` ("host:port") would take."""
        host = split_host_port(hosts[0])[0] if hosts else ""
        return self.policies.of(self.names.of_host(host))

    def save(self, now: float) -> None:
        self.look_at_connections(now)
        self._context.save(StateFile.LEDGER, encode(self.ledger.export(now)))
        self._saved_at = now
        self._note_saved(now)

    def close(self, now: float) -> None:
        self.save(now)
        self.names.close()

    def describe(self, now: float) -> dict[str, Any]:
        """For `edgeagent ledger`: as of now."""
        self._set_wall(now)
        self._assess(now)
        uplinks: dict[str, dict[str, Any]] = {}
        for line in self.ledger.lines(now):
            uplink = uplinks.setdefault(line.uplink, self.describe_uplink(now, line.uplink) | {"causes": []})
            periods = {"since_start": line.since_start, "day": line.day, "month": line.month}
            uplink["causes"].append(
                {"cause": line.cause.name.lower()}
                | {period: {"sent": sent, "received": received} for period, (sent, received) in periods.items()}
            )
        return {
            "date_known": self._wall_anchor_s is not None,
            "since_s": round(now - self._context.started_at),
            "uplinks": list(uplinks.values()),
        }

    def describe_uplink(self, now: float, uplink: str) -> dict[str, Any]:
        budget, (day, month) = self.policies.budget(uplink), self.policies.used(now, uplink)
        policy = self.policies.of(uplink)
        return {
            "uplink": uplink,
            "metered": budget.metered,
            "level": self.policies.level(uplink).name.lower(),
            "on_demand": policy.on_demand,
            "telemetry_factor": policy.telemetry_factor,
            "defer_bulk": policy.defer_bulk,
            "budget": {"daily_bytes": budget.daily_bytes, "monthly_bytes": budget.monthly_bytes},
            "used_percent": {
                "day": None if day is None else round(100 * day, 1),
                "month": None if month is None else round(100 * month, 1),
            },
        }

    def describe_metered(self, now: float) -> list[dict[str, Any]]:
        """For `edgeagent status`."""
        self.look_at_connections(now)
        metered = [uplink for uplink in self.ledger.uplinks if self.policies.budget(uplink).metered]
        return [self.describe_uplink(now, uplink) for uplink in metered]

    # Jobs

    def _sample(self, now: float) -> None:
        self._set_wall(now)
        self.look_at_connections(now)
        self._again("sample", self._sample, now, SAMPLE_S)

    def _assess(self, now: float) -> None:
        self.look_at_connections(now)
        self.policies.assess(now)
        self._follow_levels()
        if now - self._saved_at >= SAVE_SOONEST_S and self._much_is_unsaved(now):
            self.save(now)
        self._again("assess", self._assess, now, ASSESS_S)

    def _again(self, key: str, action: Callable[[float], None], now: float, after_s: float) -> None:
        """At midnight at the latest, when a day's budget begins anew, and from `after_s` on whenever we are awake."""
        midnight = self.ledger.next_day_at(now)
        at = max(now + DAYLESS_S if midnight is None else midnight, now + after_s)
        self.defer(key, action, at, at - now - after_s)

    def _plan(self) -> None:
        self._begins = self._jobs.first_begin() or 0.0
        self._deadline = self._jobs.poll_timeout()

    def look_at_connections(self, now: float) -> None:
        """Book what TCP connections have carried up to this moment."""
        for streams, cause, carried_of in self._watched:
            for sock in streams.sockets():
                self.meter.tcp(now, sock, cause, carried_of(sock))

    def _set_wall(self, now: float) -> None:
        wall = self._context.wall
        if wall.known and wall.at(0.0) != self._wall_anchor_s:
            self._wall_anchor_s = wall.at(0.0)
            self.ledger.set_wall(now, wall.at(now))

    def _follow_levels(self) -> None:
        for event in self.policies.drain_events():
            self.level_changes += 1
            log.warning("%s", _sentence(event))
            if event.level is Level.EMERGENCY and event.uplink in self._control_uplinks():
                self.reconnect_wanted = True

    def _control_uplinks(self) -> list[str]:
        control = [streams for streams, cause, _ in self._watched if cause is Cause.CONTROL]
        return [self.names.of_socket(sock) for streams in control for sock in streams.sockets()]

    def _much_is_unsaved(self, now: float) -> bool:
        for uplink in self.ledger.uplinks:
            limit = SAVE_SHARE * self.policies.budget(uplink).daily_bytes
            if limit and abs(self.ledger.used(now, uplink)[0] - self._saved_day.get(uplink, 0)) >= limit:
                return True
        return False

    def _note_saved(self, now: float) -> None:
        self._saved_day = {uplink: self.ledger.used(now, uplink)[0] for uplink in self.ledger.uplinks}

    def _load(self, now: float) -> None:
        data = self._context.load_or_none(StateFile.LEDGER)
        if data is None:
            return
        try:
            self.ledger.load(decode(data, max_bytes=StateFile.LEDGER.bytes_max))
        except ControlError as error:
            self._context.damaged_files += 1
            log.warning("%s: %s; counting begins anew", self._context.keystore.path(StateFile.LEDGER), error)
        self._note_saved(now)


def _sentence(event: LevelChanged) -> str:
    used = [
        f"{100 * share:.0f} % of the {period}'s budget"
        for period, share in (("day", event.day), ("month", event.month))
        if share is not None
    ]
    what = f"{event.uplink}: {event.level.name.lower()}, was {event.before.name.lower()}"
    return f"{what}: {' and '.join(used)} used" if used else what
