"""How long a NAT remembers a silent UDP binding: learnt on a second socket, so that the one in use is never risked.

A trial opens a binding of its own, keeps silent for some time, and then has the server send a datagram to where it saw
the trial come from. It arrives, or the binding is gone (RFC 5780, section 4.6). One trial:

| phase    | asks for         | answered                                 | not answered                                |
|----------|------------------|------------------------------------------|---------------------------------------------|
| OPENING  | an exchange      | PROVING                                  | PAUSED: the server cannot be reached        |
| PROVING  | a knock at once  | WARMING: the last trial's miss is proven | PAUSED: no knock comes in                   |
| WARMING  | another exchange | SILENT                                   | PAUSED                                      |
| SILENT   | nothing          |                                          | KNOCKING, when the time is over             |
| KNOCKING | a knock          | OPENING: so long a silence was survived  | OPENING: a miss, to be proven by the next   |
| PAUSED   | nothing          |                                          | OPENING, with the same silence              |

The second exchange makes the binding one with traffic both ways, which many routers remember for longer.
The silence is doubled until it is too long, then halved in; the longest that was survived is tried once more.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from edgeagent.proto.backoff import Backoff

if TYPE_CHECKING:
    from collections.abc import Callable

INTERVAL_MIN_S, INTERVAL_MAX_S = 10.0, 900.0
SAFETY = 0.85  # of what was survived is used
SILENCE_FIRST_S = 30.0
SILENCE_MIN_S, SILENCE_MAX_S = INTERVAL_MIN_S / SAFETY, INTERVAL_MAX_S / SAFETY
PRECISION = 1.15  # between what was survived and what was not
WARM_AFTER_S = 3.0  # Linux takes a binding for a stream after two seconds
TRY_S = 1.0
TRIES_MAX = 3
PAUSE_MIN_S, PAUSE_MAX_S = 60.0, 21_600.0
VERDICTS_MAX = 40  # a NAT that contradicts itself for so long is taken at its worst


class Phase(Enum):
    OPENING = "opening"
    PROVING = "proving"
    WARMING = "warming"
    SILENT = "silent"
    KNOCKING = "knocking"
    PAUSED = "paused"
    DONE = "done"


class Exchange:
    """Ask the server from the socket of `trial`, a new one when there is none yet; report its answer."""

    __slots__ = ("trial",)

    def __init__(self, trial: int) -> None:
        self.trial = trial


class Knock:
    """By another way, have the server send a datagram to where it saw `trial`, from where it was asked; report it."""

    __slots__ = ("trial",)

    def __init__(self, trial: int) -> None:
        self.trial = trial


class Close:
    """The socket of `trial` has served."""

    __slots__ = ("trial",)

    def __init__(self, trial: int) -> None:
        self.trial = trial


Wish = Exchange | Knock | Close


class BindingSearch:
    """One NAT. Drive it: `answered` and `knocked` as they come, `handle_timeout` at `poll_timeout()`; then drain.

    `survived_s` and `too_long_s` close in on the lifetime. When `phase` is DONE, `survived_s` was survived twice, or is
    0: not even the shortest was. Trials are numbered from `first_trial` on.
    """

    __slots__ = (
        "_backoff",
        "_confirmed",
        "_deadline",
        "_missed_s",
        "_silence_s",
        "_tries",
        "_verdicts",
        "_wishes",
        "phase",
        "survived_s",
        "too_long_s",
        "trial",
    )

    def __init__(self, now: float, jitter: Callable[[], float], first_trial: int = 0) -> None:
        self._backoff = Backoff(jitter, PAUSE_MIN_S, PAUSE_MAX_S)
        self._wishes: list[Wish] = []
        self._verdicts = 0
        self._silence_s = SILENCE_FIRST_S
        self._missed_s = 0.0  # the silence that the last trial seems not to have survived
        self._confirmed = False
        self._deadline: float | None = None
        self._tries = 0
        self.phase = Phase.OPENING
        self.survived_s = 0.0
        self.too_long_s: float | None = None
        self.trial = first_trial
        self._enter(now, Phase.OPENING)

    def answered(self, now: float, trial: int) -> None:
        """The server's answer reached the second socket."""
        if trial != self.trial:
            return
        if self.phase is Phase.OPENING:
            self._enter(now, Phase.PROVING)
        elif self.phase is Phase.WARMING and self._tries:
            self.phase = Phase.SILENT
            self._deadline = now + self._silence_s

    def knocked(self, now: float, trial: int) -> None:
        """The datagram that was asked for by a Knock reached the second socket."""
        if trial != self.trial:
            return
        if self.phase is Phase.PROVING:
            self._backoff.reset()
            if self._missed_s and not self._believe(survived=False):
                return
            self.phase = Phase.WARMING
            self._tries = 0
            self._deadline = now + WARM_AFTER_S
        elif self.phase is Phase.KNOCKING and self._believe(survived=True):
            self._next_trial(now)

    def handle_timeout(self, now: float) -> None:
        if self._deadline is None or now < self._deadline:
            return
        if self.phase is Phase.SILENT:
            self._enter(now, Phase.KNOCKING)
        elif self.phase is Phase.PAUSED:
            self._next_trial(now)
        elif self._tries < TRIES_MAX:
            self._try(now)
        elif self.phase is Phase.KNOCKING:
            self._missed_s = self._silence_s
            self._next_trial(now)
        else:
            self._close()
            self._missed_s = 0.0  # that may have been the server's fault
            self.phase = Phase.PAUSED
            self._deadline = now + self._backoff.wait_s()

    def poll_timeout(self) -> float | None:
        return self._deadline

    def stop(self) -> None:
        """The NAT is another one now, or nobody wants to know: drain once more, to close the socket."""
        if self.phase not in (Phase.PAUSED, Phase.DONE):
            self._close()
        self._finish()

    def drain_wishes(self) -> list[Wish]:
        wishes, self._wishes = self._wishes, []
        return wishes

    def _enter(self, now: float, phase: Phase) -> None:
        self.phase = phase
        self._tries = 0
        self._try(now)

    def _try(self, now: float) -> None:
        self._tries += 1
        self._deadline = now + TRY_S
        asks = Knock if self.phase in (Phase.PROVING, Phase.KNOCKING) else Exchange
        self._wishes.append(asks(self.trial))

    def _next_trial(self, now: float) -> None:
        if self.phase is not Phase.PAUSED:
            self._close()
        self.trial += 1
        self._enter(now, Phase.OPENING)

    def _close(self) -> None:
        self._wishes.append(Close(self.trial))

    def _believe(self, *, survived: bool) -> bool:
        """Take in what a trial showed, and choose the next silence; False when there is nothing left to learn."""
        if survived:
            self._confirmed = self.survived_s >= self._silence_s
            self.survived_s = max(self.survived_s, self._silence_s)
        else:
            self.too_long_s = min(self._missed_s, self.too_long_s or self._missed_s)
            if self.survived_s >= self.too_long_s:  # it contradicts itself: what was survived before counts for nothing
                self.survived_s = 0.0
            self._confirmed = False
            self._missed_s = 0.0
        self._verdicts += 1
        silence_s = self._next_silence()
        if silence_s is not None and self._verdicts < VERDICTS_MAX:
            self._silence_s = silence_s
            return True
        if not self._confirmed:
            self.survived_s = 0.0
        self._close()
        self._finish()
        return False

    def _next_silence(self) -> float | None:
        low, high = self.survived_s, self.too_long_s
        if low == 0.0 and high is not None:
            return max(high / 2, SILENCE_MIN_S) if high > SILENCE_MIN_S else None
        if high is None and low < SILENCE_MAX_S:
            return min(2 * low, SILENCE_MAX_S)
        if high is None or high <= PRECISION * low:
            return None if self._confirmed else low
        return float((low * high) ** 0.5)

    def _finish(self) -> None:
        self.phase = Phase.DONE
        self._deadline = None


def interval_s(survived_s: float) -> float:
    """The keepalive interval for a binding that survived so long a silence."""
    return min(max(survived_s * SAFETY, INTERVAL_MIN_S), INTERVAL_MAX_S)
