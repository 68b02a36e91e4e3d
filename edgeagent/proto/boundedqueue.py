"""A queue that forgets its oldest item when it is full, and counts that."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


class BoundedQueue(deque[T]):
    """At most `ceiling` items; `peak` is the most that it ever held, `gave_way` how many were forgotten."""

    __slots__ = ("ceiling", "gave_way", "peak")

    def __init__(self, ceiling: int) -> None:
        super().__init__(maxlen=ceiling)
        self.ceiling = ceiling
        self.gave_way = 0
        self.peak = 0

    def append(self, item: T) -> None:
        if len(self) == self.ceiling:
            self.gave_way += 1
        super().append(item)
        if len(self) > self.peak:
            self.peak = len(self)

    def extend(self, items: Iterable[T]) -> None:
        for item in items:
            self.append(item)
