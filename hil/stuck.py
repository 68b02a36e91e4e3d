"""Whether a guest hangs: it says nothing, and its processor either rests or spins, while somebody waits for it.

Emulated machines are slow in ways that time does not tell: on a busy host a boot may take ten times as long. So what a
silent guest has spent is counted in processor seconds, and only one that spends next to none is judged by time.
"""

from __future__ import annotations

IDLE_S = 120.0  # without a word, the processor resting
IDLE_SHARE = 0.03  # of a processor: what an idle kernel's ticks cost by TCG is below it
BUSY_PROCESSOR_S = 240.0  # without a word, the processor spinning: the slowest machine's whole boot takes a half of it
BOOT_RETRIES_MAX = 2  # a boot that hangs is tried again so often


class Stillness:
    """One wait's look at one guest. Drive it by `look`, once a second or so, from the wait's beginning."""

    def __init__(self) -> None:
        self._said = -1
        self._since = 0.0
        self._spent_s = 0.0

    def look(self, now: float, said_bytes: int, processor_s: float) -> str:
        """What is wrong with it, empty for nothing. `said_bytes`: on its console, in all; `processor_s`: QEMU's."""
        if said_bytes != self._said or processor_s < self._spent_s:  # a word, or another power-on
            self._said, self._since, self._spent_s = said_bytes, now, processor_s
            return ""
        silent_s, spent_s = now - self._since, processor_s - self._spent_s
        if silent_s >= IDLE_S and spent_s < IDLE_SHARE * silent_s:
            return f"it has said nothing for {silent_s:.0f} s and its processor rests"
        if spent_s >= BUSY_PROCESSOR_S:
            return f"it has said nothing for {silent_s:.0f} s, in which it used {spent_s:.0f} s of processor"
        return ""
