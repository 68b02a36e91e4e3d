"""The signatures of updates renewed before they end, by the leading hub: in a process of its own, since python-tuf and
its crypto take long to load and memory to keep.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import time

from hub import published
from hub.state import State

LOOK_S = 3_600.0
SLOW_S = 300.0  # after which the process is ended
HALF_LIFE_S = {
    "targets": 182 * 86_400,
    "snapshot": 15 * 86_400,
    "timestamp": 84 * 3_600,
}  # of what hub/updates.py gives

log = logging.getLogger("edgehub")


class Renewal:
    """Call `tick` now and then, and `close` at the end."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._look_at = 0.0
        self._child: subprocess.Popen[bytes] | None = None
        self._end_at = 0.0

    def tick(self, now: float) -> None:
        if self._child is not None:
            self._reap(now)
        elif now >= self._look_at:
            self._look_at = now + LOOK_S
            if self.is_due(int(time.time())):
                self._begin(now)

    def is_due(self, wall_s: int) -> bool:
        roles = published.read(self._state.updates).roles
        return any(role.expires_s - wall_s < HALF_LIFE_S.get(role.name, 0) for role in roles)

    def close(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child = None

    def _begin(self, now: float) -> None:
        command = [sys.executable, "-m", "hub", "--state-dir", str(self._state.directory), "update", "refresh"]
        self._child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        self._end_at = now + SLOW_S

    def _reap(self, now: float) -> None:
        assert self._child is not None
        code = self._child.poll()
        if code is None and now < self._end_at:
            return
        self.close()
        if code != 0:
            log.error("updates: their signatures were not renewed; `edgehub update refresh` says why. Next try in 1 h")
