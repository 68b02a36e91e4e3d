"""Packets that go all the while from one host to another and back, and the longest time in which none came."""

from __future__ import annotations

import re
import signal
import time
from types import TracebackType

from tests.netlab.host import Host
from tests.netlab.process import Process, until

# iputils: "[1795660886.123456] 64 bytes from 100.64.0.2: icmp_seq=3 ttl=64 time=0.512 ms"
_ANSWER = re.compile(r"^\[([\d.]+)\] \d+ bytes from .*icmp_seq=(\d+) .*time=([\d.]+) ms", re.MULTILINE)


class Flow:
    """Echo requests from `host` to `address` while the block runs. Times are of time.time(), as ping writes them."""

    def __init__(self, host: Host, address: str, interval_s: float = 0.1, size: int = 56) -> None:
        self._command = ("ping", "-n", "-D", "-i", f"{interval_s:g}", "-s", str(size), address)
        self._host = host
        self.interval_s = interval_s
        self.process: Process | None = None

    def __enter__(self) -> Flow:
        self.process = self._host.start(*self._command, name="flow")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.process is not None
        self.process.signal(signal.SIGINT)
        self.process.wait()

    def answers(self) -> list[tuple[float, int, float]]:
        """(when it came, number of the request, round trip in ms), in the order in which they came."""
        assert self.process is not None
        return [(float(at), int(number), float(ms)) for at, number, ms in _ANSWER.findall(self.process.text())]

    def until_answered(self, timeout_s: float, count: int = 1) -> None:
        """So many more answers come."""
        self.until_answers(timeout_s, len(self.answers()) + count)

    def until_answers(self, timeout_s: float, count: int) -> None:
        """So many have come since the beginning."""
        until(lambda: len(self.answers()) >= count, timeout_s, f"{count} answers from {self._command[-1]}")

    def longest_gap_s(self, since: float) -> float:
        """The longest time without an answer from then until now."""
        longest, last = 0.0, since
        for at in [at for at, _, _ in self.answers() if at > since] + [time.time()]:
            longest, last = max(longest, at - last), at
        return longest
