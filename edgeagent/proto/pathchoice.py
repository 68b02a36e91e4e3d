"""Which path to a peer is the best, and what goes along while that is in doubt: by the paths as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeagent.proto.path import LIVE, State

if TYPE_CHECKING:
    from edgeagent.proto.endpoint import Endpoint
    from edgeagent.proto.path import Path
    from edgeagent.proto.prober import Prober

ROAM_TRUST_S = 3.0  # how long WireGuard's word counts for a path that is not proven
COPIES_MAX = 2


def best_path(now: float, prober: Prober, current: Path | None) -> Path | None:
    """Where traffic goes that goes by `current` so far: a proven path that is not much better does not take over."""
    relay = prober.relay
    if current is not None and current is not relay and prober.direct.get(current.key) is not current:
        current = None
    direct = list(prober.direct.values())
    proven = [path for path in direct if path.state is State.PROVEN]
    best = min(proven, key=lambda path: path.score_ms, default=None)
    if best is not None and current in proven and current is not None and not best.is_better_than(current):
        best = current
    roamed = max((path for path in direct if _roams(path, now)), key=lambda path: path.roamed_at or 0.0, default=None)
    if roamed is not None and (current is None or not current.is_relay):
        since = roamed.roamed_at or 0.0
        if best is None or best.heard_at is None or best.heard_at < since:
            return roamed
    if best is not None:
        return best
    if current in direct and current is not None and current.state in (State.DOUBTFUL, State.ANSWERED):
        return current
    if relay is not None and relay.state is not State.DEAD:
        return relay
    live = min((path for path in direct if path.state in LIVE), key=lambda path: path.score_ms, default=None)
    return live or relay


def other_ways(prober: Prober, current: Path | None, suspected: Path | None, followed: Path | None) -> list[Endpoint]:
    """Where copies go of what `current` carries, at most COPIES_MAX; none while it is sure. `suspected` is one that has
    not answered a doubt; `followed` the one that the peer has gone over to."""
    relay = prober.relay
    if current is None or (current.state is State.PROVEN and suspected is not current):
        return [] if followed is None else [followed.endpoint]
    if current.is_relay and current.state not in (State.DOUBTFUL, State.DEAD):
        return []
    found = [] if relay is None or relay is current else [relay.endpoint]
    others = [path for path in prober.direct.values() if path is not current and path.state in LIVE]
    others.sort(key=lambda path: path.score_ms)
    return found + [path.endpoint for path in others[: COPIES_MAX - len(found)]]


def _roams(path: Path, now: float) -> bool:
    recent = path.roamed_at is not None and now - path.roamed_at < ROAM_TRUST_S
    return recent and path.state in (State.ONE_WAY, State.ANSWERED)
