"""Why a datagram went over the line, told by its first bytes; and whole batches of them, booked at once.

| begins with                     | is                             | cause                                            |
|---------------------------------|--------------------------------|--------------------------------------------------|
| 4, longer than 32 B             | transport data                 | PAYLOAD                                          |
| 4 and three zeros, 32 B         | transport data of nothing      | KEEPALIVE                                        |
| 1, 2, 3 and three zeros         | a handshake or a cookie        | REKEY                                            |
| disco's magic; a header of STUN | the search for a way           | PROBE                                            |
| 0xE5, to or from another key    | a packet as a relay carries it | that of the packet; RELAY for the head before it |
| 0xE0 to 0xEF otherwise          | a word with a relay            | RELAY                                            |
| anything else                   | nothing of ours                | PAYLOAD: somebody else wanted to send it         |
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from edgeagent.proto.disco import Kind, classify
from edgeagent.proto.ledger import CAUSES, IPV4_UDP, IPV6_UDP, Cause
from edgeagent.proto.messages import TRANSPORT, TRANSPORT_SIZE_MIN
from edgeagent.proto.relay_frames import DATA, DATAGRAM_HEAD_SIZE, KEY_SIZE, OWN_CHANNEL
from edgeagent.proto.stun import HEADER_SIZE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgeagent.proto.ledger import Ledger

_CAUSES = tuple(Cause)
_OF_KIND = {Kind.DISCO: Cause.PROBE, Kind.STUN: Cause.PROBE, Kind.RELAY: Cause.RELAY, Kind.UNKNOWN: Cause.PAYLOAD}


class Direction(Enum):
    SENT = "sent"
    RECEIVED = "received"


class Carried:
    """What a stream to a relay carried for other causes since it was last taken: it comes off the stream's own bill.

    The relay's client calls `add` for each packet of SEND and RECV frames; whoever counts the stream calls `take`.
    """

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts = {direction: [0] * CAUSES for direction in Direction}

    def add(self, direction: Direction, packet: bytes, at: int = 0) -> None:
        """What begins at `at`."""
        self._counts[direction][cause_of(packet, at)] += len(packet) - at

    def book(self, direction: Direction, cause: Cause, size: int) -> None:
        """Bytes whose cause their writer knows."""
        self._counts[direction][cause] += size

    def take(self, direction: Direction) -> list[int]:
        """Bytes by cause."""
        counts, self._counts[direction] = self._counts[direction], [0] * CAUSES
        return counts


def cause_of(datagram: bytes, at: int = 0) -> Cause:
    """Of what begins at `at`, a relay's head left aside."""
    size = len(datagram) - at
    if size > TRANSPORT_SIZE_MIN and datagram[at] == TRANSPORT:
        return Cause.PAYLOAD
    kind = classify(datagram[at : at + HEADER_SIZE])
    if kind is not Kind.WIREGUARD:
        return _OF_KIND[kind]
    return Cause.KEEPALIVE if datagram[at] == TRANSPORT else Cause.REKEY


def book_batch(
    ledger: Ledger, now: float, uplink: str, direction: Direction, datagrams: Sequence[bytes], *, ipv6: bool
) -> None:
    """Each with its IP and UDP header. A cause is booked once: a batch of one flow costs one booking."""
    headers = IPV6_UDP if ipv6 else IPV4_UDP
    payload = 0
    counts = [0] * CAUSES
    for datagram in datagrams:
        size = len(datagram)
        if size > TRANSPORT_SIZE_MIN and datagram[0] == TRANSPORT:  # most of them: no call, no look-up
            payload += size + headers
            continue
        head = _relay_head(datagram)
        counts[Cause.RELAY] += head
        counts[cause_of(datagram, head)] += size - head + headers
    counts[Cause.PAYLOAD] += payload
    book(ledger, now, uplink, direction, counts)


def book(ledger: Ledger, now: float, uplink: str, direction: Direction, counts: Sequence[int]) -> None:
    """Bytes by cause."""
    sent = direction is Direction.SENT
    for cause, size in zip(_CAUSES, counts, strict=True):
        if size:
            ledger.book(now, uplink, cause, size if sent else 0, 0 if sent else size)


def _relay_head(datagram: bytes) -> int:
    """Bytes before the packet in a datagram of a relay; 0 for all that is not a packet of or for another key."""
    if len(datagram) <= DATAGRAM_HEAD_SIZE or datagram[0] != DATA:
        return 0
    channel = datagram[2] << 8 | datagram[3]
    if channel == OWN_CHANNEL:
        return 0
    head = DATAGRAM_HEAD_SIZE if channel else DATAGRAM_HEAD_SIZE + KEY_SIZE
    return head if len(datagram) > head else 0
