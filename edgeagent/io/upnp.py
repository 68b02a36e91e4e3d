"""UPnP IGD by the package `miniupnpc`, where it is installed: each job is a process (upnpjob.py), one at a time."""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
from contextlib import suppress
from importlib.machinery import PathFinder
from time import monotonic
from typing import TYPE_CHECKING

from edgeagent import zipped
from edgeagent.proto.portmap_upnp import LEASE_S, Done, Outcome, UpnpFailure

if TYPE_CHECKING:
    from edgeagent.proto.portmap_upnp import Job

JOB_TIMEOUT_S = 30.0  # also of an interpreter that starts on the slowest board
_OUTCOME_BYTES = 64


class UpnpWorker:
    """`start` a job; when `wake` becomes readable, `result()` is what came of it. No other job before that.

    What answers may be anybody, and miniupnpc reads as much as it is told: a process is confined, and ended in time.
    """

    def __init__(self) -> None:
        self.wake, self._signal = socket.socketpair()
        for end in (self.wake, self._signal):
            end.setblocking(False)
        self._thread: threading.Thread | None = None
        self._outcome: Outcome = UpnpFailure.REFUSED
        script = os.path.join(os.path.dirname(__file__), "upnpjob.py")
        self._command = [sys.executable, "-I", "-X", "utf8", *zipped.script(script)]

    def start(self, job: Job) -> None:
        self._thread = threading.Thread(target=self._run, args=(job,), name="upnp", daemon=True)
        self._thread.start()

    def result(self) -> Outcome | None:
        """None while the job is not done."""
        try:
            self.wake.recv(1)
        except BlockingIOError:
            return None
        self._thread = None
        return self._outcome

    def wait(self, timeout_s: float) -> bool:
        """For the end, where nothing else is to be done: whether the job was done in time."""
        if self._thread is not None:
            self._thread.join(timeout_s)
            return not self._thread.is_alive()
        return True

    def close(self) -> None:
        """A job that still runs is left to itself: its process ends in time on its own."""
        self.wake.close()
        self._signal.close()

    def _run(self, job: Job) -> None:
        try:
            self._outcome = self._do(job)
        except OSError:  # no process, or no descriptor, is left
            self._outcome = UpnpFailure.REFUSED
        with suppress(OSError):  # closed meanwhile
            self._signal.send(b"\0")

    def _do(self, job: Job) -> Outcome:
        if PathFinder.find_spec("miniupnpc") is None:
            return UpnpFailure.NOT_INSTALLED
        addresses = [socket.inet_ntoa(job.gateway), socket.inet_ntoa(job.own)]
        numbers = [str(number) for number in (job.port, job.outside_port, LEASE_S)]
        reader, writer = os.pipe()
        try:
            actions = [
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0),
                (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_RDWR, 0),
                (os.POSIX_SPAWN_DUP2, writer, 1),
            ]
            words = [*self._command, job.want.value, *addresses, *numbers]
            process = os.posix_spawn(words[0], words, {"MALLOC_ARENA_MAX": "1"}, file_actions=actions)
        except OSError:
            os.close(reader)
            raise
        finally:
            os.close(writer)
        try:
            return read_outcome(_read(reader, monotonic() + JOB_TIMEOUT_S))
        finally:
            os.close(reader)
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)


def _read(fd: int, deadline: float) -> bytes:
    """What it says to its end; what it has said by the deadline."""
    data, poll = b"", select.poll()
    poll.register(fd, select.POLLIN)
    while len(data) < _OUTCOME_BYTES and (left_s := deadline - monotonic()) > 0:
        if poll.poll(1_000 * left_s):
            more = os.read(fd, _OUTCOME_BYTES)
            if not more:
                break
            data += more
    return data


def read_outcome(said: bytes) -> Outcome:
    """What a job that has said so has come to."""
    word, _, address = said.decode("ascii", "replace").partition(" ")
    try:
        return Done(socket.inet_aton(address)) if word == "done" else UpnpFailure(word)
    except (OSError, ValueError):  # it was ended, or there is no such address
        return UpnpFailure.REFUSED
