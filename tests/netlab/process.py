"""A program running in a lab host: its log, waiting for what it does, and its end."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

LOG_BYTES_MAX = 1 << 20  # per file, and two files per process: a chatty program cannot fill the disk
POLL_S, POLL_MAX_S = 0.02, 0.5
POLL_REST = 3  # times as long as the answer took
STOP_GRACE_S = 3.0
TAIL_LINES = 30

T = TypeVar("T")


class LabError(AssertionError):
    """Something in the lab did not do what was asked of it."""


class LabTimeout(LabError):
    """Something in the lab did not happen before its deadline."""


def until(predicate: Callable[[], T], timeout_s: float, what: str) -> T:
    """The first truthy value of `predicate`; LabTimeout says `what` did not come in `timeout_s`.

    It is asked every 20 ms, or three times as long after an answer as that has taken: those that are asked leave time
    to those that are waited for.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        asked = time.monotonic()
        value = predicate()
        if value:
            return value
        now = time.monotonic()
        if now >= deadline:
            raise LabTimeout(f"{what}: not within {timeout_s:g} s")
        time.sleep(min(max(POLL_S, POLL_REST * (now - asked)), POLL_MAX_S))


def rss_kib(pid: int) -> int:
    """What a process has in memory."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


class Process:
    """A running program. Its standard output and error go to `log`, of which the last 1 to 2 MiB are kept.

    It leads a process group of its own: `stop` and `signal` reach whatever it has started in that group.
    """

    def __init__(
        self, name: str, command: Sequence[str], log: Path, env: Mapping[str, str], fds: Sequence[int] = ()
    ) -> None:
        self.name = name
        self.log = log
        self._seen = 0
        self._written = threading.Condition()
        self._popen = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=env,
            start_new_session=True,
            pass_fds=fds,
        )
        self.pid = self._popen.pid
        self._pump = threading.Thread(target=self._copy_output, name=f"log of {name}", daemon=True)
        self._pump.start()

    @property
    def running(self) -> bool:
        return self._popen.poll() is None

    def text(self) -> str:
        """All of the log that is kept."""
        older = self.log.with_suffix(".old")
        with self._written:
            kept = (older.read_bytes() if older.exists() else b"") + (
                self.log.read_bytes() if self.log.exists() else b""
            )
        return kept.decode(errors="replace")

    def tail(self, lines: int = TAIL_LINES) -> str:
        return "\n".join(self.text().splitlines()[-lines:])

    def expect(self, pattern: str, timeout_s: float = 30.0) -> re.Match[str]:
        """The first match of `pattern` in the log behind the match before. Fails at once when the program ends."""
        deadline = time.monotonic() + timeout_s
        while True:
            running = self.running or self._pump.is_alive()
            if match := re.compile(pattern, re.MULTILINE).search(self.text(), self._seen):
                self._seen = match.end()
                return match
            if not running:
                raise LabError(f"{self.name} ended with {self._popen.returncode} before {pattern!r}:\n{self.tail()}")
            left = deadline - time.monotonic()
            if left <= 0:
                raise LabTimeout(f"{self.name}: no {pattern!r} within {timeout_s:g} s:\n{self.tail()}")
            with self._written:
                self._written.wait(min(left, 0.1))

    def wait(self, timeout_s: float = 30.0) -> int:
        """The exit code (negative: the signal that ended it)."""
        try:
            return self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise LabTimeout(f"{self.name} still runs after {timeout_s:g} s:\n{self.tail()}") from None

    def signal(self, number: int) -> None:
        """Send a signal to the whole process group; nothing happens when it is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def stop(self, grace_s: float = STOP_GRACE_S) -> int:
        """SIGTERM, after `grace_s` SIGKILL; the exit code. A program that has ended already is no error."""
        self.signal(signal.SIGTERM)
        return self.reap(grace_s)

    def kill(self) -> int:
        """SIGKILL, as a power cut would."""
        self.signal(signal.SIGKILL)
        return self.reap(STOP_GRACE_S)

    def reap(self, grace_s: float) -> int:
        """Wait `grace_s` for the end, then SIGKILL; the exit code."""
        try:
            code = self._popen.wait(grace_s)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
            code = self._popen.wait(STOP_GRACE_S)
        self._pump.join(POLL_S)  # what is in the pipe; a child of the program may hold it open for longer
        return code

    def _copy_output(self) -> None:
        assert self._popen.stdout is not None
        size = 0
        with self._popen.stdout as pipe:
            log = self.log.open("wb")
            try:
                while data := os.read(pipe.fileno(), 65536):
                    with self._written:
                        if size + len(data) > LOG_BYTES_MAX:
                            log.close()
                            self.log.replace(self.log.with_suffix(".old"))
                            log = self.log.open("wb")
                            size = 0
                        log.write(data)
                        log.flush()
                        size += len(data)
                        self._written.notify_all()
            except FileNotFoundError:
                return  # the lab's directory has gone: nobody reads this log any more
            finally:
                log.close()
