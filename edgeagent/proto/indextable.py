"""Session indices: 32-bit numbers that name our keypairs and handshakes to the other side (paper, section 5.4.2)."""

from __future__ import annotations

from typing import Generic, TypeVar

from edgeagent.proto.errors import LocalProtocolError
from edgeagent.proto.keys import Entropy

E = TypeVar("E")
_TRIES_MAX = 64


class IndexTable(Generic[E]):
    """Random indices and what they stand for. Users bound it: a peer has one handshake and three keypairs at most."""

    def __init__(self, entropy: Entropy) -> None:
        self._entropy = entropy
        self.entries: dict[int, E] = {}

    def __len__(self) -> int:
        return len(self.entries)

    def insert(self, entry: E) -> int:
        """A fresh random index for `entry`."""
        for _ in range(_TRIES_MAX):
            index = int.from_bytes(self._entropy(4), "little")
            if index not in self.entries:
                self.entries[index] = entry
                return index
        raise LocalProtocolError(f"entropy: {_TRIES_MAX} session indices in a row were taken")

    def replace(self, index: int, entry: E) -> None:
        """Let an index in use stand for something else, as a handshake becomes a keypair."""
        if index not in self.entries:
            raise LocalProtocolError(f"session index {index:#010x} is not in use")
        self.entries[index] = entry

    def get(self, index: int) -> E | None:
        return self.entries.get(index)

    def remove(self, index: int) -> None:
        self.entries.pop(index, None)
