"""Watchdogs: somebody who starts the board, or the agent, anew unless it hears of us every so often.

The board's own (/dev/watchdog, Linux Documentation/watchdog/watchdog-api.rst) is fed with a byte and let go with a `V`;
systemd's (sd_notify(3)) hears datagrams on the socket that NOTIFY_SOCKET names. Both are fed from the main loop alone, and only
while the pump answers: what hangs is not kept alive by a thread that does not.
"""

from __future__ import annotations

import array
import fcntl
import logging
import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

log = logging.getLogger("edgeagent")
SET_TIMEOUT = 0xC0045706  # WDIOC_SETTIMEOUT; the same number on every architecture that Linux has
TIMEOUT_S = 60  # that is asked for, where the board bears it
SHORTEST_S = 5


class Watchdog:
    """Call `turned` after each turn of the loop and at `poll_timeout()`; `close` at an orderly end.

    `setting` is "off" or "/dev/watchdogN[,SECONDS]". `fault` says why the board's one is not fed although it was named.
    """

    def __init__(
        self,
        now: float,
        setting: str,
        environ: Mapping[str, str] = os.environ,
        ioctl: Callable[[int, int, array.array[int]], int] = fcntl.ioctl,
    ) -> None:
        self.device = ""
        self.timeout_s = 0
        self.fault = ""
        self.starved = False
        self._fd = -1
        self._notify: socket.socket | None = None
        intervals: list[float] = []
        if setting != "off":
            device, _, seconds = setting.partition(",")
            try:
                self._open(device, int(seconds or TIMEOUT_S), ioctl)
                intervals.append(self.timeout_s / 3)
            except OSError as error:
                self.fault = f"{device}: {error.strerror}"
                log.warning("watchdog: %s; going on without it", self.fault)
        if address := environ.get("NOTIFY_SOCKET", ""):
            self._notify = _connect(address)
            self.say("READY=1")
            usec = environ.get("WATCHDOG_USEC", "")
            if usec.isdecimal() and environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid()):
                intervals.append(int(usec) / 3e6)
        self._interval_s = min(intervals, default=0.0)
        self._feed_at = now

    @property
    def is_needed(self) -> bool:
        """Whether anybody is to be fed."""
        return self._interval_s > 0

    def poll_timeout(self) -> float | None:
        return self._feed_at if self.is_needed and not self.starved else None

    def turned(self, now: float, answers: Callable[[], bool]) -> None:
        """The loop has turned. `answers` tells whether the pump does, too; asked only when somebody is to be fed."""
        if not self.is_needed or now < self._feed_at or self.starved:
            return
        if not answers():
            self.starved = True
            log.error("watchdog: the pump does not answer; nobody is fed any more")
            return
        self._feed_at = now + self._interval_s
        if self._fd >= 0:
            with suppress(OSError):
                os.write(self._fd, b"\n")
        self.say("WATCHDOG=1")

    def say(self, word: str) -> None:
        if self._notify is not None:
            with suppress(OSError):
                self._notify.send(word.encode())

    def close(self) -> None:
        """Nobody is to wait for us any more; but where the pump hangs, whoever waits goes on waiting."""
        if self._fd >= 0:
            if not self.starved:
                with suppress(OSError):
                    os.write(self._fd, b"V")  # magic close
            os.close(self._fd)
            self._fd = -1
        if self._notify is not None:
            self._notify.close()
            self._notify = None

    def _open(self, device: str, wanted_s: int, ioctl: Callable[[int, int, array.array[int]], int]) -> None:
        self._fd = os.open(device, os.O_WRONLY | os.O_CLOEXEC)
        self.device = device
        seconds = array.array("i", [max(SHORTEST_S, wanted_s)])
        try:
            ioctl(self._fd, SET_TIMEOUT, seconds)
        except OSError as error:  # one whose time is fixed; none is known to be shorter
            log.info("watchdog: %s keeps its own time (%s)", device, error.strerror)
            seconds[0] = 2 * SHORTEST_S
        self.timeout_s = max(1, seconds[0])  # what the driver has made of it
        log.info("watchdog: %s is fed, and starts the board anew after %d s without us", device, self.timeout_s)


def _connect(address: str) -> socket.socket | None:
    """A socket of systemd's, in the abstract name space where it begins with @."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.setblocking(False)
    try:
        sock.connect("\0" + address[1:] if address.startswith("@") else address)
    except OSError:
        sock.close()
        return None
    return sock
