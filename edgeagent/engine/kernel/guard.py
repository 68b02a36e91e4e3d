"""Sees to it that the filter in the kernel is what it should be, and names whom it must not have while it is not."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from edgeagent.engine.kernel.filter import Filter
from edgeagent.engine.kernel.ports import FilterError
from edgeagent.engine.kernel.ruleset import ALIVE_S

if TYPE_CHECKING:
    from logging import Logger

    from edgeagent.engine.kernel.filter import Change
    from edgeagent.engine.kernel.ports import KernelPort
    from edgeagent.proto.device import Device

RETRY_S = 5.0  # after nft refused something
PACE_S = 1.0  # between two calls of nft that only allow more; what takes something away is put in place at once
NAMED_MAX = 8  # public keys in one line of the log
RENEW_S = ALIVE_S / 3  # so the filter lets nobody through any more, at most ALIVE_S after the agent was killed


class Guard:
    """`begin` once, then `look` after whatever may have changed the device, and at `poll_timeout()`."""

    def __init__(self, interface: str, port: KernelPort, log: Logger) -> None:
        self.refused = 0
        self._interface = interface
        self._port = port
        self._log = log
        self._filter = Filter(interface)
        self._retry_at = self._whole_at = self._renew_at = float("-inf")
        self._again_at: float | None = None
        self._in_vain: Change | None = None  # that nft refused last
        self._waiting: frozenset[bytes] | None = frozenset()
        self._said = ""

    def begin(self, device: Device) -> None:
        """Raises FilterError where there can be none."""
        change = self._filter.look(device)
        if change is not None:
            self._put(float("-inf"), change)  # so it is renewed at the first look

    def broke(self) -> None:
        """Somebody removed it."""
        self._filter.broke()
        self._in_vain = None

    def waits(self, public: bytes) -> bool:
        """Whether a peer is not to be in the kernel yet, for its rights are not."""
        return self._waiting is None or public in self._waiting

    def look(self, now: float, device: Device) -> frozenset[bytes] | None:
        """Public keys of those who must not be in the kernel now, None for all: by what stands they may do more than
        they should, or nothing stands."""
        if self._filter.stands and now >= self._renew_at:
            self._renew(now)
        change = self._filter.look(device)
        self._again_at = self._renew_at if self._filter.stands else None
        self._waiting = frozenset()
        if change is None:
            return frozenset()
        if now < self._retry_at and (change is self._in_vain or not change.takes):
            self._wait(self._retry_at)
        elif change.script is not None and not change.takes and now < self._whole_at + PACE_S:
            self._wait(self._whole_at + PACE_S)
        else:
            try:
                self._put(now, change)
            except FilterError as error:
                self._fail(now, change, str(error))
            else:
                self._again_at = self._renew_at
                return frozenset()
        if change.lose is not None:
            self._waiting = None if change.wait is None else change.wait | change.lose
        else:
            self._waiting = None
        return change.lose

    def poll_timeout(self) -> float | None:
        return self._again_at

    def _put(self, now: float, change: Change) -> None:
        if change.script is None:
            try:
                self._port.change_filter(change.gone, change.new)
            except OSError as error:  # it is not as we left it
                self._log.info("the filter of %s is put anew: %s", self._interface, error.strerror or error)
                change.script = self._filter.whole(change)
        if change.script is not None:
            self._whole_at = now
            self._port.let_in(change.script)
            self._renew_at = now + RENEW_S
        self._filter.done(change)
        self._said, self._in_vain = "", None

    def _fail(self, now: float, change: Change, why: str) -> None:
        self.refused += 1
        self._retry_at = now + RETRY_S
        self._in_vain = change
        self._wait(self._retry_at)
        if why == self._said:
            return
        self._said = why
        if change.takes:
            who = "All peers" if change.lose is None else _named(change.lose)
            self._log.error(
                "the filter of %s: %s. %s may do less than it lets through, and are taken out of the kernel until it "
                "is in place",
                self._interface, why, who,
            )  # fmt: skip
        else:
            self._log.warning("the filter of %s: %s. The one before stands; tried again", self._interface, why)

    def _renew(self, now: float) -> None:
        try:
            self._port.renew_filter()
        except OSError as error:
            self.refused += 1
            self._renew_at = now + RETRY_S
            self._log.warning("the filter of %s could not be renewed: %s", self._interface, error.strerror or error)
            if error.errno == errno.ENOENT:
                self._filter.broke()
        else:
            self._renew_at = now + RENEW_S

    def _wait(self, until: float) -> None:
        self._again_at = until if self._again_at is None else min(until, self._again_at)


def _named(keys: frozenset[bytes]) -> str:
    named = ", ".join(key.hex()[:16] for key in sorted(keys)[:NAMED_MAX])
    return f"Peers {named}" if len(keys) <= NAMED_MAX else f"{len(keys)} peers ({named}, …)"
