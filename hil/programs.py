"""Programs that run here beside the guests: each with its log, a bounded end, and no trace left of it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, TypeVar

from hil.errors import CommandFailed, HilError, MissingProgram

STOP_GRACE_S = 5.0
KILL_GRACE_S = 5.0
POLL_S = 0.1

T = TypeVar("T")


class Program:
    """Runs from its making on. Output goes to `log`. Leads a process group, which is what `stop` ends."""

    _all: ClassVar[list[Program]] = []  # that run, as far as it is known: a report tells what they cost

    def __init__(self, name: str, words: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.log = log
        with log.open("ab") as file:
            try:
                self._popen = subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env=None if env is None else dict(env),
                    start_new_session=True,
                )
            except FileNotFoundError:
                raise MissingProgram(f"{words[0]} is not here: `./dev hil` installs what is needed, as root") from None
        self.pid = self._popen.pid
        Program._all = [*Program.running(), self]

    @classmethod
    def running(cls) -> list[Program]:
        """Those of this process that have not ended."""
        return [program for program in cls._all if program.code is None]

    @property
    def code(self) -> int | None:
        """The exit code, None while it runs, negative: the signal that ended it."""
        return self._popen.poll()

    def tail(self, lines: int = 30) -> str:
        """The end of its output."""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])

    def stop(self) -> None:
        """SIGTERM, and SIGKILL where that is not enough. One that has ended is no error."""
        self._signal(signal.SIGTERM)
        try:
            self._popen.wait(STOP_GRACE_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """SIGKILL: nothing of it is written or said any more, as when the power fails."""
        self._signal(signal.SIGKILL)
        self._popen.wait(KILL_GRACE_S)

    def _signal(self, number: int) -> None:
        if self._popen.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)


def until(predicate: Callable[[], T], timeout_s: float, error: Callable[[], HilError], every_s: float = POLL_S) -> T:
    """The first truthy value of `predicate`; raises what `error` makes when there was none in `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not (value := predicate()):
        if time.monotonic() >= deadline:
            raise error()
        time.sleep(every_s)
    return value


def run(words: Sequence[str], timeout_s: float, env: Mapping[str, str] | None = None, *, name: str = "") -> str:
    """Standard output of a command of this host, called `name` in errors. Raises CommandFailed with what it said."""
    name = name or " ".join(words[:3])
    try:
        done = subprocess.run(
            words,
            env=None if env is None else dict(env),
            capture_output=True,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError:
        raise MissingProgram(f"{words[0]} is not here: `./dev hil` installs what is needed, as root") from None
    except subprocess.TimeoutExpired:
        raise CommandFailed(f"{name}: not done within {timeout_s:g} s") from None
    if done.returncode:
        said = (done.stdout + done.stderr).decode(errors="replace").strip()[-1500:]
        raise CommandFailed(f"{name} ended with {done.returncode}: {said}")
    return done.stdout.decode(errors="replace")
