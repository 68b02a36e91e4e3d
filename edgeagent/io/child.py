"""A program run for somebody far away: in a process group of its own, with bounded time and output, under the caller's
selector. No `subprocess`: it would stay in the agent."""

from __future__ import annotations

import os
import resource
import signal
from contextlib import suppress
from selectors import EVENT_READ
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from selectors import BaseSelector

GRACE_S = 2.0  # between SIGTERM and SIGKILL
LOOK_S = 0.25  # whether it has ended, where the kernel has no pidfd (before Linux 5.3)
NICE = 10
OOM_SCORE = 500  # where memory is short, it goes before the agent does
READ_BYTES = 65_536
READS_PER_TURN_MAX = 4  # then the data path has its turn
_DEFAULTS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE)


class Child:
    """Drive it: `on_timeout` at `poll_timeout()`, until `ended`; then `code` is its exit status (negative: the signal
    that ended it), `output` what it wrote to standard output and error, and `why` is "time-limit" or "too-much-output"
    where it was stopped for that, else "". Raises OSError when it cannot be begun. Without `limit_s` it may run on.

    When its first process ends, all of its group is killed. `close` kills and forgets it at any time.
    """

    def __init__(
        self,
        now: float,
        selector: BaseSelector,
        words: list[str],
        environ: dict[str, str],
        *,
        limit_s: float | None,
        output_max: int,
        nice: int = NICE,
    ) -> None:
        self.ended = False
        self.code = 0
        self.output = bytearray()
        self.why = ""
        self._selector = selector
        self._output_max = output_max
        self._stop_at: float | None = None if limit_s is None else now + limit_s
        self._kill_at: float | None = None
        self._look_at: float | None = None
        self._fd, writing = os.pipe()
        try:
            actions = [
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, writing, 1),
                (os.POSIX_SPAWN_DUP2, writing, 2),
            ]
            self.pid = os.posix_spawn(
                words[0], words, environ, file_actions=actions, setpgroup=0, setsigmask=(), setsigdef=_DEFAULTS
            )
        except BaseException:
            os.close(self._fd)
            raise
        finally:
            os.close(writing)
        self._set_bounds(nice)
        os.set_blocking(self._fd, False)
        selector.register(self._fd, EVENT_READ, self._readable)
        try:
            self._pidfd = os.pidfd_open(self.pid)
            selector.register(self._pidfd, EVENT_READ, self._exited)
        except OSError:
            self._pidfd = -1
            self._look_at = now + LOOK_S

    def poll_timeout(self) -> float | None:
        times = (self._stop_at, self._kill_at, self._look_at)
        return None if self.ended else min((at for at in times if at is not None), default=None)

    def on_timeout(self, now: float) -> None:
        if self.ended:
            return
        if self._stop_at is not None and self._stop_at <= now:
            self._stop_at = None
            self._stop(now, "time-limit")
        if self._kill_at is not None and self._kill_at <= now:
            self._kill_at = None
            self._signal(signal.SIGKILL)
        if self._look_at is not None and self._look_at <= now:
            self._look_at = now + LOOK_S
            self._exited(now, -1)

    def close(self) -> None:
        if not self.ended:
            self._signal(signal.SIGKILL)
            self._finish(os.waitpid(self.pid, 0)[1])

    def _set_bounds(self, nice: int) -> None:
        """Before its first line runs, mostly: nothing of this is worth a process that waits to be told."""
        with suppress(OSError):
            os.setpriority(os.PRIO_PGRP, self.pid, nice)
        with suppress(OSError), open(f"/proc/{self.pid}/oom_score_adj", "w") as file:
            file.write(str(OOM_SCORE))
        with suppress(OSError):  # the agent's own ceiling is not its
            hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
            resource.prlimit(self.pid, resource.RLIMIT_DATA, (hard, hard))

    def _readable(self, now: float, _fd: int) -> None:
        if self._fd >= 0:  # else it ended in this very turn of the loop
            self._read(now, READS_PER_TURN_MAX)

    def _read(self, now: float, reads: int) -> None:
        for _ in range(reads):
            try:
                data = os.read(self._fd, READ_BYTES)
            except BlockingIOError:
                return
            if not data:
                self._close_pipe()
                return
            room = self._output_max - len(self.output)
            self.output += data[:room]
            if len(data) > room:
                self._close_pipe()  # what it writes from now on ends it
                self._stop(now, "too-much-output")
                return

    def _exited(self, now: float, _fd: int) -> None:
        if self.ended or os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return
        self._signal(signal.SIGKILL)  # whom it left behind: the number of the group is not free before it is reaped
        if self._fd >= 0:
            self._read(now, 1 + self._output_max // READ_BYTES)
        self._finish(os.waitpid(self.pid, 0)[1])

    def _stop(self, now: float, why: str) -> None:
        if not self.why:
            self.why = why
            self._signal(signal.SIGTERM)
            self._kill_at = now + GRACE_S

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def _finish(self, status: int) -> None:
        self.code = os.waitstatus_to_exitcode(status)
        self.ended = True
        self._close_pipe()
        if self._pidfd >= 0:
            self._selector.unregister(self._pidfd)
            os.close(self._pidfd)

    def _close_pipe(self) -> None:
        if self._fd >= 0:
            self._selector.unregister(self._fd)
            os.close(self._fd)
            self._fd = -1
