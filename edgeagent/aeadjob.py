"""Which AEAD the C library is to use: what was measured on this device before; measured in the background where nothing
was, for the next start."""

from __future__ import annotations

import logging
from selectors import EVENT_READ
from typing import TYPE_CHECKING

from edgeagent.engine import bakeoff
from edgeagent.io.keystore import StateFile

if TYPE_CHECKING:
    from edgeagent.context import Context

log = logging.getLogger("edgeagent")
BEGIN_AFTER_S = 20.0  # by then the device has joined, and what began with it is over


def recall(context: Context, library: str) -> tuple[str, str] | None:
    """The names for small and for large messages, None where they are still to be measured."""
    stored = context.load_or_none(StateFile.AEAD)
    return None if stored is None else bakeoff.recall(library, stored)


class AeadJob:
    """Measures once, in a process of its own, and keeps the result. Drive it: `on_timeout` at `poll_timeout()`."""

    def __init__(self, now: float, context: Context, library: str) -> None:
        self._context = context
        self._library = library
        self._begin_at: float | None = now + BEGIN_AFTER_S
        self._measuring: bakeoff.Measuring | None = None
        self._watched = -1

    def poll_timeout(self) -> float | None:
        return self._begin_at if self._measuring is None else self._measuring.poll_timeout()

    def on_timeout(self, now: float) -> None:
        if self._begin_at is not None and self._begin_at <= now:
            self._begin_at = None
            self._measuring = bakeoff.Measuring(now, self._library)
            self._follow()
        elif self._measuring is not None and self._measuring.poll_timeout() <= now:
            self._unwatch()
            self._measuring.on_timeout(now)
            self._follow()

    def close(self) -> None:
        self._unwatch()
        self._begin_at = None
        if self._measuring is not None:
            self._measuring.close()
            self._measuring = None

    def _readable(self, now: float, _fd: int) -> None:
        if self._measuring is not None:
            self._unwatch()  # its end closes the descriptor
            self._measuring.readable(now)
            self._follow()

    def _follow(self) -> None:
        measuring = self._measuring
        assert measuring is not None
        if measuring.fd >= 0:
            self._watched = measuring.fd
            self._context.selector.register(self._watched, EVENT_READ, self._readable)
            return
        self._measuring = None
        rows = measuring.rows
        if not any(row.ps for row in rows):
            log.warning("AEADs could not be measured: %s", rows[0].why if rows else "nothing to measure")
            return
        self._context.save(StateFile.AEAD, bakeoff.dump(rows, bakeoff.fingerprint(self._library)))
        small, large = (bakeoff.fastest(rows, size) for size in bakeoff.SIZES)
        log.info("from the next start on: %s seals small messages, %s large ones", small, large)

    def _unwatch(self) -> None:
        if self._watched >= 0:
            self._context.selector.unregister(self._watched)
            self._watched = -1
