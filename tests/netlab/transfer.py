"""One iperf3 from one device to another, watched in steps of a tenth of a second."""

from __future__ import annotations

import re

from tests.netlab.mesh import Device
from tests.netlab.process import Process

STEP_S = 0.1
# "[  5]   0.10-0.20   sec   245 KBytes  20.1 Mbits/sec"
_STEP = re.compile(r"^\[ *\d+\] +([\d.]+)-([\d.]+) +sec +\S+ +\w+ +([\d.]+) Mbits/sec *$", re.MULTILINE)


class Transfer:
    """TCP at `mbit` as long as the path lets it, for `seconds`; `wait` for its end."""

    def __init__(self, a: Device, b: Device, seconds: int, mbit: int) -> None:
        self.name = f"{a.name} → {b.name}"
        self.mbit = mbit
        self._server = b.host.start(
            "iperf3", "-s", "-1", "--forceflush", "-i", f"{STEP_S:g}", "-f", "m", "-B", b.address
        )
        self._server.expect("listening")
        self._seconds = seconds
        self._client: Process = a.host.start("iperf3", "-c", b.address, "-t", str(seconds), "-b", f"{mbit}M")

    def rates(self) -> list[float]:
        """Mbit/s that have arrived, step by step until now."""
        steps = [(float(to) - float(since), float(rate)) for since, to, rate in _STEP.findall(self._server.text())]
        return [rate for length, rate in steps if length < 2 * STEP_S]  # the last line is the whole

    def wait(self) -> list[float]:
        self._server.wait(self._seconds + 30.0)
        return self.rates()

    def standstill_s(self) -> float:
        """The longest time in which not a byte arrived."""
        longest = run = 0
        for rate in self.rates():
            run = run + 1 if rate == 0.0 else 0
            longest = max(longest, run)
        return longest * STEP_S
