"""A second socket at a relay: how keepalive.py learns how long a NAT remembers, with a relay for its server.

```
second socket ──HELLO, STUN request──▶ relay ──CHALLENGED, mapped address──▶ second socket      an exchange
member        ──KNOCK: challenge, mapped address──▶ relay ──KNOCKED──▶ second socket            a knock
```

The challenge is a MAC over the time and the address that it was sent to. So a relay sends a knock only to where
somebody received before, and it remembers nothing for it. It takes challenges that are at most CHALLENGE_LIFE_S old.
"""

from __future__ import annotations

from enum import Enum

from edgeagent.proto.keys import Entropy
from edgeagent.proto.relay_frames import (
    CHALLENGED,
    DATAGRAM_HEAD_SIZE,
    ECHO_SIZE,
    KNOCK_TAIL_SIZE,
    KNOCKED,
    KNOCKED_BYTES,
    hello_datagram,
    read_challenged,
)
from edgeagent.proto.stun import TRANSACTION_SIZE, StunError, looks_like_stun, read_binding, write_request

CHALLENGE_LIFE_S = 1_200.0  # longer than the longest silence that is tried


class TrialHeard(Enum):
    """What a datagram at the second socket is."""

    HALF = "half"  # of an exchange whose other half is still to come
    EXCHANGED = "exchanged"  # now `challenge` and `mapped` are for RelayClient.knock
    KNOCKED = "knocked"
    STRANGE = "strange"  # nothing that this socket waits for


class RelayTrial:
    """One second socket. `ask` gives the datagrams of an exchange for the relay's UDP port, from that socket and no
    other; `handle` takes what comes to it.
    """

    __slots__ = ("_challenge", "_echo", "_mapped", "_transaction", "challenge", "mapped")

    def __init__(self) -> None:
        self._echo = b""
        self._transaction = b""
        self._challenge = b""
        self._mapped: tuple[bytes, int] | None = None
        self.challenge = b""
        self.mapped: tuple[bytes, int] | None = None  # where the relay sees this socket

    def ask(self, entropy: Entropy) -> list[bytes]:
        """An exchange; one that was under way is given up, and what it taught before stays until this one is done."""
        self._echo, self._transaction = entropy(ECHO_SIZE), entropy(TRANSACTION_SIZE)
        self._challenge, self._mapped = b"", None
        return [hello_datagram(self._echo), write_request(self._transaction)]

    def handle(self, datagram: bytes) -> TrialHeard:
        """One datagram from the relay's UDP address."""
        if looks_like_stun(datagram):
            return self._on_stun(datagram)
        if len(datagram) == KNOCKED_BYTES and datagram[0] == KNOCKED:
            tail = datagram[DATAGRAM_HEAD_SIZE:]
            known = bool(self.challenge) and tail == self.challenge[-KNOCK_TAIL_SIZE:]
            return TrialHeard.KNOCKED if known else TrialHeard.STRANGE
        challenged = read_challenged(datagram) if datagram[:1] == bytes((CHALLENGED,)) else None
        if challenged is None or not self._echo or challenged[0] != self._echo:
            return TrialHeard.STRANGE
        self._challenge = challenged[1]
        return self._finish()

    def _on_stun(self, datagram: bytes) -> TrialHeard:
        if not self._transaction:
            return TrialHeard.STRANGE
        try:
            self._mapped = read_binding(datagram, self._transaction).mapped
        except StunError:
            return TrialHeard.STRANGE
        return self._finish()

    def _finish(self) -> TrialHeard:
        if not self._challenge or self._mapped is None:
            return TrialHeard.HALF
        self.challenge, self.mapped = self._challenge, self._mapped
        self._echo = self._transaction = b""
        return TrialHeard.EXCHANGED
