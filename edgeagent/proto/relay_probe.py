"""Whether a relay forwards: probes that cross it, from a member to itself, by the way that packets take."""

from __future__ import annotations

from edgeagent.proto.keys import Entropy
from edgeagent.proto.relay_frames import PROBE, PROBE_SIZE

RETRY_MIN_S, RETRY_MAX_S = 0.5, 5.0  # three times the latency, within these
FIRST_LATENCY_S = 0.5  # until it is known
SUSPECT_AFTER = 2
LOST_MAX = 4  # probes in a row without an answer; then the carrier is dead
ACTIVE_FOR_S = 5.0  # how long after a packet of ours we want to know soon
_LATENCY_WEIGHT = 0.25
_REMEMBERED = LOST_MAX + 1


class Liveness:
    """One carrier of one relay. `due` says when to call `next_probe`; `is_probe_answer` takes what came from ourselves.

    What others send through the relay counts for nothing here: the way up may be dead while the way down is not. With
    packets of ours under way a probe goes out every `active_s`, otherwise every `idle_s`, which also keeps the NAT
    binding or the connection alive.
    """

    __slots__ = ("_entropy", "_lost", "_sent", "active_s", "answered_at", "idle_s", "latency_s", "sent_data_at")

    def __init__(self, now: float, entropy: Entropy, *, active_s: float, idle_s: float) -> None:
        self._entropy = entropy
        self.active_s = active_s
        self.idle_s = idle_s
        self.answered_at = now
        self.sent_data_at = now - ACTIVE_FOR_S
        self.latency_s: float | None = None  # there and back, smoothed
        self._sent: dict[bytes, float] = {}  # the last probes without an answer
        self._lost = 0

    @property
    def dead(self) -> bool:
        return self._lost >= LOST_MAX

    @property
    def suspect(self) -> bool:
        """More probes in a row were lost than chance explains."""
        return self._lost >= SUSPECT_AFTER

    @property
    def proven(self) -> bool:
        """A probe has crossed the relay."""
        return self.latency_s is not None

    def due(self) -> float:
        """When the next probe is to be sent, or the last one is to be counted as lost."""
        if self._sent:
            return max(self._sent.values()) + self._retry_s()
        wait_s = self.active_s if self.sent_data_at + ACTIVE_FOR_S > self.answered_at else self.idle_s
        return self.answered_at + wait_s

    def next_probe(self, now: float) -> bytes | None:
        """The packet to send to ourselves, or None when it is not due or the carrier is dead."""
        if now < self.due():
            return None
        if self._sent:
            self._lost += 1
        return None if self.dead else self.probe(now)

    def probe(self, now: float) -> bytes:
        """One now, due or not."""
        probe = bytes((PROBE,)) + self._entropy(PROBE_SIZE - 1)
        while len(self._sent) >= _REMEMBERED:
            del self._sent[next(iter(self._sent))]
        self._sent[probe] = now
        return probe

    def is_probe_answer(self, now: float, packet: bytes) -> bool:
        """Whether it is a probe of ours that came back."""
        sent_at = self._sent.get(packet)
        if sent_at is None:
            return False
        took_s = now - sent_at
        self.latency_s = (
            took_s if self.latency_s is None else self.latency_s + _LATENCY_WEIGHT * (took_s - self.latency_s)
        )
        self._sent.clear()
        self._lost = 0
        self.answered_at = now
        return True

    def _retry_s(self) -> float:
        latency_s = FIRST_LATENCY_S if self.latency_s is None else self.latency_s
        return min(RETRY_MAX_S, max(RETRY_MIN_S, 3.0 * latency_s))
