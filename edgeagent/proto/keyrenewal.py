"""Renewal of the node key: made in time, reported, and put into use only when the hub has spread it.

| state | what it means | it ends |
|---|---|---|
| RESTING | one key, good for long enough | at two thirds of its life: make another, save it, report it |
| REPORTED | the hub was told, the map does not have it yet | when the map has it; until then it is reported again |
| SPREADING | the map has both keys, the hub is telling those that know us | after the grace: switch |
| LOST | the map does not have the key in use | report it, or switch when the map has the other |
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from edgeagent.proto.backoff import Backoff
from edgeagent.proto.devicemap import DeviceMap
from edgeagent.proto.identity import Identity

REPORT_BASE_S, REPORT_CAP_S = 30.0, 3600.0
LIFE_DEFAULT_S = 90 * 86_400
GRACE_DEFAULT_S = 60
LOOK_AGAIN_S = 86_400.0
HURRIED_GRACE_S = 10.0  # where somebody asked for another key: those that are connected know it by then


class Renewal(Enum):
    RESTING = "resting"
    REPORTED = "reported"
    SPREADING = "spreading"
    LOST = "lost"


class Step(Enum):
    """What is to be done now."""

    MAKE = "make a key, save it, and step again"
    REPORT_NEXT = "report the next key"
    REPORT_CURRENT = "report the key in use"
    SWITCH = "put the next key into use"


class KeyRenewal:
    """Drive it: `step` after each map, connection and timeout, do what it says, and sleep until `poll_timeout`."""

    __slots__ = (
        "_hurried",
        "_identity",
        "_report_at",
        "_report_backoff",
        "_spreading_since",
        "_switched_at",
        "_wake_at",
        "state",
    )

    def __init__(self, identity: Identity, jitter: Callable[[], float]) -> None:
        self._identity = identity
        self._report_backoff = Backoff(jitter, REPORT_BASE_S, REPORT_CAP_S)
        self._report_at: float | None = None
        self._spreading_since: float | None = None
        self._switched_at: float | None = None
        self._wake_at: float | None = None
        self._hurried = False
        self.state = Renewal.RESTING

    def hurry(self) -> None:
        """Another key is wanted, or the one that is coming sooner; `step` then."""
        self._hurried = True

    def step(self, now: float, wall_s: float, device_map: DeviceMap, *, reachable: bool) -> Step | None:
        """One step, or None when there is nothing to do before `poll_timeout`."""
        self._wake_at = None
        ends = dict(device_map.node_keys)
        next_key = self._identity.next_key
        if self._identity.node_key not in ends:
            self.state = Renewal.LOST
            if next_key is not None and next_key in ends:
                return self._switch(now)
            return self._report(now, Step.REPORT_CURRENT, reachable=reachable)
        if next_key is None:
            self.state = Renewal.RESTING
            self._report_at = None
            if self._hurried:
                return Step.MAKE
            return self._rest(now, wall_s, ends[self._identity.node_key], device_map)
        if next_key not in ends:
            self.state = Renewal.REPORTED
            return self._report(now, Step.REPORT_NEXT, reachable=reachable)
        self.state = Renewal.SPREADING
        if self._spreading_since is None:
            self._spreading_since = now
        grace_s = float(device_map.setting("node_key_grace_s", GRACE_DEFAULT_S, 0, 86_400))
        old_end = ends[self._identity.node_key]
        if self._hurried:
            grace_s = min(grace_s, HURRIED_GRACE_S)
        if old_end:
            grace_s = min(grace_s, (old_end - wall_s) / 2)  # well before the old key ends
        switch_at = self._spreading_since + grace_s
        if switch_at <= now:
            return self._switch(now)
        self._wake_at = switch_at
        return None

    def poll_timeout(self) -> float | None:
        return self._wake_at

    def _rest(self, now: float, wall_s: float, not_after: int, device_map: DeviceMap) -> Step | None:
        if not_after == 0:
            return None
        life_s = device_map.setting("node_key_life_s", LIFE_DEFAULT_S, 60, (1 << 31) - 1)
        left_s = not_after - life_s / 3 - wall_s
        if self._switched_at is not None:
            # A hub that gives keys a shorter life than it says must not make us renew without end
            left_s = max(left_s, self._switched_at + life_s / 3 - now)
        if left_s <= 0:
            return Step.MAKE
        # A device without a clock learns late how late it is, so it looks again at least once a day
        self._wake_at = now + min(left_s, LOOK_AGAIN_S)
        return None

    def _report(self, now: float, step: Step, *, reachable: bool) -> Step | None:
        if not reachable:
            self._report_at = None
            return None
        if self._report_at is not None and now < self._report_at:
            self._wake_at = self._report_at
            return None
        self._report_at = self._wake_at = now + self._report_backoff.wait_s()
        return step

    def _switch(self, now: float) -> Step:
        self._switched_at = now
        self._hurried = False
        self._spreading_since = None
        self._report_at = None
        self._report_backoff.reset()
        return Step.SWITCH
