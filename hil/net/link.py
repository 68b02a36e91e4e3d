"""A cable between a guest and the network: delay, jitter, loss, duplicates, rate, size, and pulled out."""

from __future__ import annotations

import random
from typing import NamedTuple

QUEUE_S = 0.3  # what a rate lets wait; longer is dropped, as tbf does


class Fault(NamedTuple):
    """In each direction. Delay and jitter in seconds, and jitter reorders; loss and copies are chances; 0: no limit."""

    delay_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    copies: float = 0.0
    bits_per_s: float = 0.0
    bytes_max: int = 0  # of Ethernet's payload; larger is dropped without a word
    down: bool = False


class Way:
    """One direction of a cable."""

    def __init__(self, chance: random.Random) -> None:
        self.fault = Fault()
        self.dropped = 0
        self.passed = 0
        self._chance = chance
        self._busy_until = 0.0

    def pass_on(self, now: float, size: int) -> list[float]:
        """When a frame of `size` bytes that goes in now comes out: not at all, once, twice."""
        fault = self.fault
        if fault.down or (fault.bytes_max and size - 14 > fault.bytes_max):
            self.dropped += 1
            return []
        if fault.loss and self._chance.random() < fault.loss:
            self.dropped += 1
            return []
        at = now
        if fault.bits_per_s:
            begin = max(now, self._busy_until)
            if begin - now > QUEUE_S:
                self.dropped += 1
                return []
            at = self._busy_until = begin + size * 8 / fault.bits_per_s
        times = 2 if fault.copies and self._chance.random() < fault.copies else 1
        self.passed += 1
        return [at + fault.delay_s + self._chance.uniform(0.0, fault.jitter_s) for _ in range(times)]
