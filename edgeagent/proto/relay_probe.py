"""Whether a relay forwards: probes that cross it, from a member to itself, by the way that packets take."""

from __future__ import annotations

from edgeagent.proto.keys import Entropy
from edgeagent.proto.relay_frames import LONG_PROBE_SIZE, PROBE, PROBE_SIZE

RETRY_MIN_S, RETRY_MAX_S = 0.5, 5.0  # three times the latency, within these
FIRST_LATENCY_S = 0.5  # until it is known
SUSPECT_AFTER = 2  # probes in a row without an answer in time: more than chance explains
PATIENT_RETRY_S = 2.0  # between probes from the next one on
DEAD_AFTER_S = 10.0  # without an answer, however late: full buffers on the way can hold one up for seconds
ACTIVE_FOR_S = 5.0  # how long after a packet of ours we want to know soon
_LATENCY_WEIGHT = 0.25


class Liveness:
    """One carrier of one relay. `due` says when to call `next_probe`; `is_probe_answer` takes what came from ourselves.

    What others send through the relay counts for nothing here: the way up may be dead while the way down is not. With
    packets of ours under way a probe goes out every `active_s`, otherwise every `idle_s`, which also keeps the NAT
    binding or the connection alive; the relay forgets who was silent for `silence_s`. `suspect` is the time to have
    something else ready, `is_dead` the time to give up.
    """

    __slots__ = (
        "_entropy",
        "_lost",
        "_sent",
        "_silence_s",
        "active_s",
        "answered_at",
        "idle_s",
        "latency_s",
        "sent_data_at",
    )

    def __init__(self, now: float, entropy: Entropy, *, active_s: float, idle_s: float, silence_s: float) -> None:
        self._entropy = entropy
        self.active_s = active_s
        self._silence_s = silence_s
        self.set_idle(idle_s)
        self.answered_at = now
        self.sent_data_at = now - ACTIVE_FOR_S
        self.latency_s: float | None = None  # there and back, smoothed
        self._sent: dict[bytes, float] = {}  # probes without an answer; within DEAD_AFTER_S there are only so many
        self._lost = 0

    def set_idle(self, idle_s: float) -> None:
        """Between probes while no packets of ours go. A relay that bears no silence does not make us shout."""
        self.idle_s = max(self.active_s, min(idle_s, self._silence_s / 2))

    @property
    def suspect(self) -> bool:
        return self._lost >= SUSPECT_AFTER

    @property
    def proven(self) -> bool:
        """A probe has crossed the relay."""
        return self.latency_s is not None

    def is_dead(self, now: float) -> bool:
        return now >= self._dead_at()

    def due(self) -> float:
        """When the next probe is to be sent, or the carrier is to be given up."""
        if self._sent:
            return min(max(self._sent.values()) + self._retry_s(), self._dead_at())
        wait_s = self.active_s if self.sent_data_at + ACTIVE_FOR_S > self.answered_at else self.idle_s
        return self.answered_at + wait_s

    def next_probe(self, now: float) -> bytes | None:
        """The packet to send to ourselves, or None when it is not due or the carrier is dead."""
        if now < self.due() or self.is_dead(now):
            return None
        again = bool(self._sent)
        if again:
            self._lost += 1
        return self.probe(now, long=again)

    def probe(self, now: float, *, long: bool = False) -> bytes:
        """One now, due or not. A `long` one is worth an answer to a relay that does not know where it comes from."""
        probe = bytes((PROBE,)) + self._entropy((LONG_PROBE_SIZE if long else PROBE_SIZE) - 1)
        self._sent[probe] = now
        return probe

    def is_probe_answer(self, now: float, packet: bytes) -> bool:
        """Whether it is a probe of ours that came back."""
        sent_at = self._sent.get(packet)
        if sent_at is None:
            return False
        took_s = now - sent_at
        if self.latency_s is None:
            self.latency_s = took_s
        else:
            self.latency_s += _LATENCY_WEIGHT * (took_s - self.latency_s)
        self._sent.clear()
        self._lost = 0
        self.answered_at = now
        return True

    def _dead_at(self) -> float:
        """DEAD_AFTER_S from the first probe that has no answer."""
        for sent_at in self._sent.values():
            return sent_at + DEAD_AFTER_S
        return float("inf")

    def _retry_s(self) -> float:
        latency_s = FIRST_LATENCY_S if self.latency_s is None else self.latency_s
        retry_s = min(RETRY_MAX_S, max(RETRY_MIN_S, 3.0 * latency_s))
        return retry_s if self._lost <= SUSPECT_AFTER else max(retry_s, PATIENT_RETRY_S)
