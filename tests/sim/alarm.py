"""A machine's timer on the world's heap."""

from __future__ import annotations

from collections.abc import Callable

from tests.sim.world import Ticket, World

SPINS_MAX = 200


class Alarm:
    """Calls `ring` when the time that `set` was last given has come. A timer that stands still is a failure."""

    __slots__ = ("_last_rang_at", "_name", "_ring", "_spins", "_ticket", "_world")

    def __init__(self, world: World, name: str, ring: Callable[[], None]) -> None:
        self._world = world
        self._name = name
        self._ring = ring
        self._ticket: Ticket | None = None
        self._last_rang_at = -1.0
        self._spins = 0

    def set(self, when: float | None) -> None:
        """An earlier alarm stays as it is: waking up early is harmless, and cheaper than to change the heap."""
        if when is None:
            return
        ticket = self._ticket
        if ticket is not None and ticket.action is not None:
            if ticket.when <= max(when, self._world.now):
                return
            ticket.cancel()
        self._ticket = self._world.at(when, self._fire)

    def stop(self) -> None:
        if self._ticket is not None:
            self._ticket.cancel()
            self._ticket = None

    def _fire(self) -> None:
        if self._last_rang_at == self._world.now:
            self._spins += 1
            if self._spins > SPINS_MAX:
                self._world.fail(f"{self._name}: its timer rings again and again at one moment")
        else:
            self._last_rang_at = self._world.now
            self._spins = 0
        self._ticket = None
        self._ring()
