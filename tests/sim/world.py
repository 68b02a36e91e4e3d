"""Virtual time, one heap of what is to happen, one seed. Nothing here reads a clock or the system's entropy.

Every source of chance is a stream that the seed and a name determine, so one more device leaves the dice of all others
as they fall. A run is a function of its seed: `World.digest()` is equal for two runs of the same scenario.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from hashlib import blake2s
from heapq import heappop, heappush

START_S = 1_000.0  # monotonic clock at the beginning; no machine may take 0 for "never"
WALL_AT_START_S = 1_800_000_000.0  # true wall time at the beginning
TRACE_LINES = 200
STEPS_MAX = 20_000_000
CHECK_GAP_S = 10.0  # between two checks, when runs are short

Action = Callable[[], None]


class SimFailure(AssertionError):
    """An invariant or an expectation did not hold; the text has the seed and the end of the trace."""


class Ticket:
    """Something that is to happen at `when`, unless it is cancelled."""

    __slots__ = ("action", "when")

    def __init__(self, when: float, action: Action) -> None:
        self.when = when
        self.action: Action | None = action

    def cancel(self) -> None:
        self.action = None


class World:
    """Drive it by `run_for`, `run_until` and `wait_for`. Machines put what they want into `at` and `after`.

    `checks` are called at quiet points: each `check_every_s` of virtual time, and at the end of runs.
    """

    def __init__(self, seed: int, *, check_every_s: float = 60.0) -> None:
        self.seed = seed
        self.now = START_S
        self.steps = 0
        self.checks: list[Callable[[], None]] = []
        self._check_every_s = check_every_s
        self._next_check_at = START_S + check_every_s
        self._checked_at = START_S
        self._heap: list[tuple[float, int, Ticket]] = []
        self._tickets = 0
        self._trace: deque[str] = deque(maxlen=TRACE_LINES)
        self._hash = blake2s()

    def stream(self, name: str) -> random.Random:
        """A source of chance of its own."""
        return random.Random(f"{self.seed}/{name}")

    @property
    def wall_s(self) -> float:
        """True wall time, seconds since 1970."""
        return WALL_AT_START_S + self.now - START_S

    @property
    def elapsed_s(self) -> float:
        return self.now - START_S

    # What is to happen

    def at(self, when: float, action: Action) -> Ticket:
        """Call `action` at `when`, or now if that has passed; those of one moment in the order they were asked for."""
        ticket = Ticket(max(when, self.now), action)
        self._tickets += 1
        heappush(self._heap, (ticket.when, self._tickets, ticket))
        return ticket

    def after(self, seconds: float, action: Action) -> Ticket:
        return self.at(self.now + seconds, action)

    # Time

    def run_for(self, seconds: float) -> None:
        self.run_until(self.now + seconds)

    def run_until(self, when: float) -> None:
        """Let everything happen that is due by `when`, then check."""
        while self._step(when):
            pass
        self.now = when
        if when - self._checked_at >= CHECK_GAP_S:
            self.check()

    def wait_for(self, holds: Callable[[], bool], within_s: float, what: str) -> float:
        """Run until `holds()`; returns the virtual seconds it took. Fails after `within_s`."""
        began = self.now
        while not holds():
            if not self._step(began + within_s):
                self.now = began + within_s
                if holds():
                    break
                self.fail(f"not within {within_s:g} s: {what}")
        return self.now - began

    def check(self) -> None:
        self._checked_at = self.now
        for check in self.checks:
            check()

    def _step(self, until: float) -> bool:
        """The next action, if it is due by `until`."""
        heap = self._heap
        while heap and heap[0][2].action is None:
            heappop(heap)
        due = heap[0][0] if heap else float("inf")
        if self._next_check_at <= min(due, until):
            self.now = self._next_check_at
            self._next_check_at += self._check_every_s
            self.check()
            return True
        if due > until:
            return False
        self.steps += 1
        if self.steps > STEPS_MAX:
            self.fail(f"more than {STEPS_MAX} steps")
        _, _, ticket = heappop(heap)
        self.now = ticket.when
        action, ticket.action = ticket.action, None
        assert action is not None
        try:
            action()
        except SimFailure:
            raise
        except BaseException as error:
            error.add_note(f"seed {self.seed}, at {self.elapsed_s:.3f} s")
            raise
        return True

    # What happened

    def note(self, text: str) -> None:
        """A line of the trace, which is also what tells two runs apart."""
        line = f"{self.elapsed_s:12.3f}  {text}"
        self._trace.append(line)
        self._hash.update(line.encode())

    def digest(self) -> str:
        """Of everything noted so far, and of the number of steps."""
        return f"{self._hash.hexdigest()}/{self.steps}"

    def fail(self, why: str) -> None:
        """Raises SimFailure."""
        trace = "\n".join(self._trace)
        raise SimFailure(f"seed {self.seed}, at {self.elapsed_s:.3f} s: {why}\n{trace}\nseed {self.seed}: {why}")
