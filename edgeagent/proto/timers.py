"""The five timers of a peer (WireGuard paper, section 6) as levels from which deadlines follow.

| timer | runs out | then |
|---|---|---|
| RETRANSMIT | Rekey-Timeout and jitter after an initiation without a response | send another, or give up after 90 s |
| KEEPALIVE | Keepalive-Timeout after data came in and nothing went out | send an empty packet |
| NEW_HANDSHAKE | Keepalive-Timeout + Rekey-Timeout after data went out and nothing came in | begin a handshake |
| PERSISTENT | the interval asked for, after the last authenticated packet in either direction | send an empty packet |
| ZERO_KEYS | 3 x Reject-After-Time after the last new keys | wipe them |

An engine that moves packets elsewhere reports only that data went out or came in up to a moment, once a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING

from edgeagent.proto.constants import (
    KEEPALIVE_TIMEOUT_S,
    NEW_HANDSHAKE_AFTER_S,
    REKEY_TIMEOUT_JITTER_S,
    REKEY_TIMEOUT_S,
    ZERO_KEYS_AFTER_S,
)

if TYPE_CHECKING:
    from edgeagent.proto.established import Traffic

Jitter = Callable[[], float]


class Timer(Enum):
    RETRANSMIT = "retransmit"
    KEEPALIVE = "keepalive"
    NEW_HANDSHAKE = "new-handshake"
    PERSISTENT = "persistent"
    ZERO_KEYS = "zero-keys"


class Timers:
    """Drive it by the past tense (`data_sent`, …); then `next_deadline()`, and `due(now)` when that has come.

    `due` disarms what it returns: the action taken arms it again by what it sends.
    """

    __slots__ = (
        "_again_at",
        "_data_received_at",
        "_initiated_at",
        "_persistent_since",
        "_session_at",
        "_unanswered_since",
        "attempts",
        "persistent_keepalive_s",
    )

    def __init__(self) -> None:
        self.persistent_keepalive_s = 0
        self.attempts = 0  # initiations sent again since the last one that was asked for
        self._unanswered_since: float | None = None  # first data sent since anything authentic came in
        self._data_received_at: float | None = None  # first data received since anything went out
        self._initiated_at: float | None = None
        self._persistent_since: float | None = None
        self._session_at: float | None = None
        self._again_at = 0.0

    def data_sent(self, now: float, jitter: float) -> None:
        if self._unanswered_since is None:
            self._unanswered_since = now + jitter * REKEY_TIMEOUT_JITTER_S

    def data_received(self, now: float) -> None:
        if self._data_received_at is None:
            self._data_received_at = now

    def authenticated_sent(self, now: float) -> None:
        self._data_received_at = None
        self._persistent_since = now

    def authenticated_received(self, now: float) -> None:
        self._unanswered_since = None
        self._persistent_since = now

    def carried(self, traffic: Traffic, jitter: float) -> None:
        """What an engine sent and received by itself since it was last asked, to within that time."""
        sent, received = traffic.last_sent_at, traffic.last_received_at
        if received is not None and self._unanswered_since is not None and self._unanswered_since <= received:
            self._unanswered_since = None
        if self._unanswered_since is None and traffic.last_data_sent_at is not None:
            since = _first_after(received, traffic.first_data_sent_at, traffic.last_data_sent_at)
            if since is not None:
                self._unanswered_since = since + jitter * REKEY_TIMEOUT_JITTER_S
        if sent is not None and self._data_received_at is not None and self._data_received_at <= sent:
            self._data_received_at = None
        if self._data_received_at is None and traffic.last_data_received_at is not None:
            self._data_received_at = _first_after(sent, traffic.first_data_received_at, traffic.last_data_received_at)
        for at in (sent, received):
            if at is not None and (self._persistent_since is None or at > self._persistent_since):
                self._persistent_since = at

    def initiated(self, now: float, jitter: float) -> None:
        """An initiation went out; `jitter` in [0, 1) spreads what follows (paper 6.1)."""
        self._initiated_at = now
        self._again_at = now + REKEY_TIMEOUT_S + jitter * REKEY_TIMEOUT_JITTER_S
        self.authenticated_sent(now)

    @property
    def unanswered_since(self) -> float | None:
        """When data was first sent since anything authentic came in; up to REKEY_TIMEOUT_JITTER_S later."""
        return self._unanswered_since

    @property
    def is_asking(self) -> bool:
        """Whether an answer to an initiation is awaited."""
        return self._initiated_at is not None

    def hurry(self, at: float) -> None:
        """If there is no answer by then, an initiation is to go out again."""
        if self._initiated_at is not None:
            self._again_at = min(self._again_at, at)

    def handshake_completed(self) -> None:
        self._initiated_at = None
        self.attempts = 0

    def session_derived(self, now: float) -> None:
        self._session_at = now

    def gave_up(self, now: float) -> None:
        """No response for 90 s: stop asking, and let the keys go in time even if none were ever derived."""
        self._initiated_at = None
        self._data_received_at = None
        if self._session_at is None:
            self._session_at = now

    def set_persistent_keepalive(self, now: float, interval_s: int) -> None:
        """0 switches it off."""
        self.persistent_keepalive_s = interval_s
        self._persistent_since = now

    def stop(self) -> None:
        """Disarm everything but the persistent keepalive's interval, which is configuration."""
        self._unanswered_since = self._data_received_at = self._initiated_at = None
        self._persistent_since = self._session_at = None
        self.attempts = 0

    def next_deadline(self) -> float | None:
        """When `due` next has something to say, or None."""
        return min((at for _, at in self._deadlines()), default=None)

    def due(self, now: float) -> list[Timer]:
        """Timers that have run out, each once."""
        timers = [timer for timer, at in self._deadlines() if at <= now]
        for timer in timers:
            if timer is Timer.RETRANSMIT:
                self._initiated_at = None
            elif timer is Timer.KEEPALIVE:
                self._data_received_at = None
            elif timer is Timer.NEW_HANDSHAKE:
                self._unanswered_since = None
            elif timer is Timer.PERSISTENT:
                self._persistent_since = now
            else:
                self._session_at = None
        return timers

    def _deadlines(self) -> list[tuple[Timer, float]]:
        found = []
        if self._initiated_at is not None:
            found.append((Timer.RETRANSMIT, self._again_at))
        if self._data_received_at is not None:
            found.append((Timer.KEEPALIVE, self._data_received_at + KEEPALIVE_TIMEOUT_S))
        if self._unanswered_since is not None:
            found.append((Timer.NEW_HANDSHAKE, self._unanswered_since + NEW_HANDSHAKE_AFTER_S))
        if self.persistent_keepalive_s and self._persistent_since is not None:
            found.append((Timer.PERSISTENT, self._persistent_since + self.persistent_keepalive_s))
        if self._session_at is not None:
            found.append((Timer.ZERO_KEYS, self._session_at + ZERO_KEYS_AFTER_S))
        return found


def _first_after(other: float | None, first: float | None, last: float) -> float | None:
    """When the first of several, from `first` to `last`, came after the latest `other`; about, for those between."""
    if other is None or (first is not None and first > other):
        return first
    return other if last > other else None
