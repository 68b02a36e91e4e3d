"""What the kernel has refused, peer by peer, and when each is tried again."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection
    from logging import Logger

FIRST_S, LONGEST_S = 5.0, 60.0  # each wait is twice the one before; so one peer alone is refused four times a minute
SOON_S = 1.0  # between attempts to take something away
OUR_KEY, READING = b"our key", b"to be read"  # what is no peer's


class Troubles:
    """By public key, or OUR_KEY or READING; at most one of each that `keep` is told of."""

    __slots__ = ("_by_key", "_log", "count")

    def __init__(self, log: Logger) -> None:
        self.count = 0
        self._log = log
        self._by_key: dict[bytes, tuple[float, float, str]] = {}  # (until, wait, why)

    def __len__(self) -> int:
        return len(self._by_key)

    def may_try(self, now: float, key: bytes) -> bool:
        return key not in self._by_key or now >= self._by_key[key][0]

    def failed(self, now: float, key: bytes, why: str, *, soon: bool = False) -> None:
        """It is told to the log where it is something else than the last time."""
        self.count += 1
        _, last_s, said = self._by_key.get(key, (0.0, 0.0, ""))
        wait_s = SOON_S if soon else min(LONGEST_S, 2 * last_s or FIRST_S)
        self._by_key[key] = now + wait_s, wait_s, why
        if why != said:
            what = key.decode() if key in (OUR_KEY, READING) else f"peer {key.hex()[:16]}"
            self._log.warning("the kernel's WireGuard refuses %s: %s; it is tried again", what, why)

    def over(self, key: bytes) -> None:
        if self._by_key:
            self._by_key.pop(key, None)

    def keep(self, keys: Collection[bytes]) -> None:
        """Forget all others."""
        for key in [key for key in self._by_key if key not in (OUR_KEY, READING) and key not in keys]:
            del self._by_key[key]
