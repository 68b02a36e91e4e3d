"""What loses power: a fuse that cuts at a chosen step, and a flash whose files are old or new, never torn."""

from __future__ import annotations


class PowerCut(Exception):
    """The power goes inside a step; only what was saved before stays."""


class Fuse:
    """With `left` at n, the n-th `step` from now raises PowerCut."""

    def __init__(self) -> None:
        self.left: int | None = None
        self.blown = 0

    def step(self) -> None:
        """A moment at which the power may go."""
        if self.left is not None:
            self.left -= 1
            if self.left <= 0:
                self.left = None
                self.blown += 1
                raise PowerCut


class Flash:
    """`save` is durable when it returns; before and after each write is a step of `fuse`."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.writes: dict[str, int] = {}
        self.fuse = Fuse()

    def load(self, name: str) -> bytes | None:
        return self.files.get(name)

    def save(self, name: str, body: bytes) -> None:
        if self.files.get(name) == body:
            return
        self.fuse.step()
        self.files[name] = body
        self.writes[name] = self.writes.get(name, 0) + 1
        self.fuse.step()

    def remove(self, name: str) -> None:
        self.files.pop(name, None)
