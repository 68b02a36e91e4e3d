"""Looks at all ways to one peer while there is traffic: whether what is proven still works, and the rest works again.

With several uplinks those that stand by are looked at more often, with small probes, so that what takes over is known
to work; every so many looks (RECHECKS) are one at all paths.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeagent.proto.disco import PING_BYTES
from edgeagent.proto.path import IN_DOUBT, State

if TYPE_CHECKING:
    from edgeagent.proto.path import Path
    from edgeagent.proto.prober import DiscoShared, Prober

RECHECK_S = 60.0  # between two looks at all live paths, while there is traffic
STANDBY_S = 15.0  # the same by the uplinks that stand by, with small probes: before the peer stops to trust them
RECHECKS = 4  # of those, every which one is a look at all


class Rechecks:
    """`begin` with traffic where `next_at` is None, `handle_timeout` when that has come."""

    __slots__ = ("_prober", "_shared", "looks", "next_at")

    def __init__(self, shared: DiscoShared, prober: Prober) -> None:
        self._shared = shared
        self._prober = prober
        self.next_at: float | None = None
        self.looks = 0

    def begin(self, now: float) -> None:
        self.next_at = now + self._shared.sparing * (STANDBY_S if self._shared.ways.several else RECHECK_S)

    def handle_timeout(self, now: float, current: Path | None, *, wanted: bool) -> None:
        """Where no traffic is `wanted` any more, this was no look, and there is no next one."""
        self.next_at = None
        if not wanted:
            return
        prober, several = self._prober, self._shared.ways.several
        self.begin(now)
        self.looks += 1
        of_all = not several or self.looks % RECHECKS == 0
        for path in prober:
            stands_by = path is not current
            if path.next_probe_at is not None:
                continue
            if path.state is State.PROVEN and stands_by and path.is_dear:
                if of_all and (path.heard_at is None or now - path.heard_at > RECHECK_S / 2):  # or the peer asks
                    prober.begin(now, path)
            elif path.state is State.PROVEN:
                if of_all or (several and stands_by):
                    prober.begin(now, path, full=of_all and stands_by)  # the path in use has its own search
            elif of_all and path.state in IN_DOUBT:
                prober.begin(now, path)
            elif of_all and path.is_relay and not stands_by:
                prober.begin(now, path, full=True)
        if several:
            self._try_standbys(now)

    def _try_standbys(self, now: float) -> None:
        """By uplinks without a path: the search has ended with the one that was found by another. A row of probes opens
        NATs; in between, one shows whether what was swallowed passes again."""
        prober = self._prober
        served = {path.endpoint.uplink for path in prober.direct.values() if path.state is State.PROVEN}
        for path in list(prober.direct.values()):
            if path.endpoint.uplink in served or not self._shared.ways.is_open(path.endpoint):
                continue
            is_dead, spacing = path.state is State.DEAD, RECHECKS * RECHECKS if path.is_dear else RECHECKS
            if path.state in IN_DOUBT and path.next_probe_at is None:
                prober.begin(now, path)
            elif path.state is State.UNTRIED or (is_dead and self.looks % spacing == 0):
                prober.begin(now, path, punch=True)
            elif is_dead and not path.is_dear:
                prober.ping(now, path.endpoint, PING_BYTES)
