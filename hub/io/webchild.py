"""The dashboard's process as the hub's child: started, started again when it ends, and ended with the hub.

It is a process of its own, so that nothing that a browser sends can hold up the hub's loop or take its memory.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

RESTART_FIRST_S, RESTART_LAST_S = 1.0, 60.0
STEADY_S = 60.0  # one that ran this long has not failed at its start
STOP_TIMEOUT_S = 8.0

log = logging.getLogger("edgehub.web")


class WebChild:
    """Poll `fileno()`: readable means that it has ended, then call `handle_end`; call `tick` when `next_at` came."""

    def __init__(self, directory: Path, listening: int | None = None) -> None:
        """`listening`: a socket that was handed over, in the place of the address in the settings."""
        self._directory = directory
        self._listening = listening
        self._child: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._started_at = 0.0
        self._backoff_s = RESTART_FIRST_S
        self.next_at: float | None = None
        self.restarts = 0

    @property
    def pid(self) -> int:
        """0 = none runs."""
        return self._child.pid if self._child is not None else 0

    def start(self, now: float) -> None:
        """It says by itself what is wrong, on our stderr. Its standard input is a pipe that ends when we do.

        Nothing happens when one runs, or is about to.
        """
        if self._child is not None or self.next_at is not None:
            return
        handed = [] if self._listening is None else [self._listening]
        self._child = subprocess.Popen(
            [sys.executable, "-m", "hub.web", str(self._directory), *map(str, handed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=handed,
            env={**os.environ, "MALLOC_ARENA_MAX": "2"},  # its threads would each keep a heap
            start_new_session=True,  # Ctrl-C at the hub's terminal is for the hub
        )
        self._pidfd = os.pidfd_open(self._child.pid)
        self._started_at = now
        log.info("web: started, process %d", self._child.pid)

    def fileno(self) -> int:
        """A pidfd; -1 when none runs."""
        return self._pidfd

    def handle_end(self, now: float) -> None:
        """It has ended by itself: it is started again, at first soon. With code 0 it wants new settings."""
        code = self._forget()
        if code == 0:
            self.next_at = now
            return
        if now - self._started_at >= STEADY_S:
            self._backoff_s = RESTART_FIRST_S
        self.next_at = now + self._backoff_s
        log.warning("web: ended (exit code %d), starts again in %.0f s", code, self._backoff_s)
        self._backoff_s = min(2 * self._backoff_s, RESTART_LAST_S)

    def tick(self, now: float) -> None:
        if self.next_at is not None and self.next_at <= now:
            self.next_at = None
            self.restarts += 1
            self.start(now)

    def stop(self) -> None:
        """End it, by force if it takes too long."""
        self.next_at = None
        if self._pidfd < 0:
            return
        for how in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, how)
            poll = select.poll()
            poll.register(self._pidfd, select.POLLIN)
            if poll.poll(STOP_TIMEOUT_S * 1000):
                break
        self._forget()

    def _forget(self) -> int:
        os.close(self._pidfd)
        self._pidfd = -1
        child, self._child = self._child, None
        if child is None:
            return 0
        if child.stdin is not None:
            child.stdin.close()
        return child.wait()
