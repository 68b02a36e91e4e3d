"""Sliding window against replayed counters (RFC 6479)."""

from __future__ import annotations

from edgeagent.proto.constants import REPLAY_WINDOW, REPLAY_WORD_BITS, REPLAY_WORDS

_SHIFT = REPLAY_WORD_BITS.bit_length() - 1
_BIT_MASK = REPLAY_WORD_BITS - 1
_WORD_MASK = REPLAY_WORDS - 1


class ReplayWindow:
    """Says of each counter whether it is new. Call `accept` only for counters that were authenticated."""

    __slots__ = ("_highest", "_words")

    def __init__(self) -> None:
        self._highest = -1
        self._words = [0] * REPLAY_WORDS

    def accept(self, counter: int) -> bool:
        """True once for each counter within REPLAY_WINDOW of the highest one; marks it as seen."""
        word = counter >> _SHIFT
        highest = self._highest
        if counter > highest:
            passed = word - (highest >> _SHIFT)
            if passed > 0:
                words = self._words
                if passed >= REPLAY_WORDS:
                    self._words = [0] * REPLAY_WORDS
                else:
                    for step in range(word - passed + 1, word + 1):
                        words[step & _WORD_MASK] = 0
            self._highest = counter
        elif counter + REPLAY_WINDOW <= highest:
            return False
        bit = 1 << (counter & _BIT_MASK)
        index = word & _WORD_MASK
        seen = self._words[index]
        if seen & bit:
            return False
        self._words[index] = seen | bit
        return True
