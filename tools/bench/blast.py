"""UDP through `blast.c`: the highest rate that loses less than one per cent, and what it cost.

Sizes are of IPv4 packets inside the tunnel, headers included.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.netlab import Host, LabError, Process

ROOT = Path(__file__).parents[2]
SOURCE = Path(__file__).with_name("blast.c")
BUILT = ROOT / "build" / "bench"
LOSS_MAX = 0.01
PROBES_MAX = 12
CLOSE_ENOUGH = 1.06  # between the best rate that passed and the least that failed
FASTER, SLOWER = 1.5, 0.7
BEHIND = 0.93  # a sender that reaches less than this of its rate has met its own limit
PORT = 5301
LIFE_S = 3600  # of a receiver, at most
_FLAGS = ("-O2", "-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra")
_runs = itertools.count(1)


class Probe(NamedTuple):
    """One run at one rate."""

    asked_pps: float
    sent: int
    received: int
    seconds: float
    cpu_s: float = 0.0

    @property
    def pps(self) -> float:
        """Packets that arrived, per second of sending."""
        return self.received / self.seconds

    @property
    def passes(self) -> bool:
        return self.sent > 0 and self.received > (1 - LOSS_MAX) * self.sent

    @property
    def at_senders_limit(self) -> bool:
        return self.sent / self.seconds < BEHIND * self.asked_pps


def highest(probe: Callable[[float], Probe], start_pps: float, probes_max: int = PROBES_MAX) -> Probe | None:
    """The best that passes, by going up from `start_pps` (or down) and then halving; None when nothing passes.

    A rate that fails is tried once more when none above it has: one stall of a shared machine is not the limit.
    """
    best: Probe | None = None
    failed_pps: float | None = None
    rate = start_pps
    forgiven = False
    for _ in range(probes_max):
        found = probe(rate)
        if found.passes:
            forgiven = False
            gained = best is None or found.pps > best.pps * CLOSE_ENOUGH
            best = found if best is None or found.pps > best.pps else best
            if found.at_senders_limit and not gained:
                break
        elif best is not None and failed_pps is None and not forgiven:
            forgiven = True
            continue
        else:
            failed_pps = rate
        if best is None:
            # What got through a flooded tunnel is near to what it can, but a flood costs it too
            rate = max(rate * SLOWER / 2, min(rate * SLOWER, found.pps * 0.9))
        elif failed_pps is None:
            rate = max(rate, best.asked_pps) * FASTER
        elif failed_pps / best.asked_pps <= CLOSE_ENOUGH:
            break
        else:
            rate = (best.asked_pps * failed_pps) ** 0.5
    return best


def program() -> Path:
    """`blast`, compiled unless it is newer than its source."""
    built = BUILT / "blast"
    if built.exists() and built.stat().st_mtime >= SOURCE.stat().st_mtime:
        return built
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise LabError("no C compiler for tools/bench/blast.c: apt-get install build-essential")
    BUILT.mkdir(parents=True, exist_ok=True)
    command = [compiler, *_FLAGS, "-o", str(built), str(SOURCE)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if result.returncode != 0:
        raise LabError(f"{' '.join(command)}:\n{result.stderr[-2000:]}")
    return built


class Range:
    """A sender and a receiver that stays, between two hosts."""

    def __init__(self, sender: Host, receiver: Host, address: str, cpu_s: Callable[[], float] = lambda: 0.0) -> None:
        self._sender = sender
        self._address = address
        self._cpu_s = cpu_s
        self._receiver: Process = receiver.start(program(), "recv", address, str(PORT), str(LIFE_S), name="blast")
        self._receiver.expect("ready")

    def probe(self, packet_bytes: int, pps: float, seconds: float) -> Probe:
        run = next(_runs)
        before = self._cpu_s()
        words = (packet_bytes, f"{pps:.0f}", f"{seconds:g}", run)
        text = self._sender.run(
            program(), "send", self._address, str(PORT), *map(str, words), timeout_s=seconds + 20
        ).stdout
        sent, took_s = parse_sent(text)
        received = int(self._receiver.expect(rf"^run {run} received (\d+)$", 5.0)[1])
        return Probe(pps, sent, received, took_s, self._cpu_s() - before)

    def close(self) -> None:
        self._receiver.stop()


def parse_sent(text: str) -> tuple[int, float]:
    """Packets and seconds, of `sent PACKETS failed PACKETS us MICROSECONDS`."""
    found = re.search(r"^sent (\d+) failed \d+ us (\d+)$", text, re.MULTILINE)
    if found is None:
        raise LabError(f"blast said {text.strip()!r}")
    return int(found[1]), int(found[2]) / 1e6
