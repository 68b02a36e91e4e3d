"""How often and how much was written to flash: since the start, and within the last day."""

from __future__ import annotations

BUCKET_S = 3_600.0
BUCKETS = 24  # a day, to the hour


class FlashMeter:
    """`writes` and `bytes` since the start. A write is a file made durable, whatever its size: flash erases whole
    blocks for it, and a file system writes as much again for its own sake."""

    __slots__ = ("_buckets", "bytes", "writes")

    def __init__(self) -> None:
        self.writes = 0
        self.bytes = 0
        self._buckets: list[tuple[int, int, int]] = []  # (hour since the clock's zero, writes, bytes), the oldest first

    def book(self, now: float, size: int) -> None:
        self.writes += 1
        self.bytes += size
        hour = int(now // BUCKET_S)
        last = self._buckets[-1] if self._buckets else None
        if last is not None and last[0] == hour:
            self._buckets[-1] = (hour, last[1] + 1, last[2] + size)
        else:
            self._buckets = [*self._recent(hour), (hour, 1, size)]

    def day(self, now: float) -> tuple[int, int]:
        """(writes, bytes) of the hour at hand and of the 23 before it."""
        recent = self._recent(int(now // BUCKET_S))
        return sum(bucket[1] for bucket in recent), sum(bucket[2] for bucket in recent)

    def _recent(self, hour: int) -> list[tuple[int, int, int]]:
        return [bucket for bucket in self._buckets if bucket[0] > hour - BUCKETS]
