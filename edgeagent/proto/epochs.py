"""Stamps of what a device writes: (epoch, seq), never twice, without a flash write for each connection."""

from __future__ import annotations

RESERVE = 64


class Epochs:
    """Epochs are reserved in blocks: a start goes on behind the block that was saved last, used up or not.

    `reserved` is what an earlier life saved, 0 for none.
    """

    __slots__ = ("epoch", "reserved", "seq")

    def __init__(self, reserved: int) -> None:
        self.reserved = reserved
        self.epoch = reserved
        self.seq = 0

    def begin(self) -> bool:
        """A new session. True when `reserved` grew: it must be saved before anything is signed."""
        self.epoch += 1
        self.seq = 0
        if self.epoch <= self.reserved:
            return False
        self.reserved = self.epoch + RESERVE
        return True

    def next(self) -> tuple[int, int]:
        """The stamp of the next message."""
        self.seq += 1
        return self.epoch, self.seq

    def behind(self, epoch: int) -> bool:
        """The hub has seen `epoch`. True when ours is not beyond it: then the next session will be."""
        if epoch < self.epoch:
            return False
        self.epoch = epoch
        return True
