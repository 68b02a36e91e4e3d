"""What a simulated device's traffic costs: the production ledger, fed with all that the network carries for it.

Datagrams are booked as the agent books them. MQTT and connections to relays are simulated by message, so what TLS and
TCP add is estimated: a record a message, and what a connection's beginning took in the laboratory.
"""

from __future__ import annotations

from edgeagent.proto.causes import Direction, book_batch
from edgeagent.proto.endpoint import Endpoint, Transmit
from edgeagent.proto.ledger import Cause, Ledger, tls_bytes

UPLINK = "wan0"
TLS_BEGINS = (1_750, 3_300)  # sent and received by TCP, TLS 1.3 with a P-256 chain of two, and what an end takes
MQTT_LOGIN = (350, 4)  # CONNECT with a Last Will, CONNACK
PING = 2  # PINGREQ, PINGRESP
PUBACK = 4
SUBACK = 5
_PUBLISH_HEAD = 4  # type, length, length of the topic; and two for an id with QoS 1


class Bill:
    """Drive it by what a SimDevice does; `by_cause` at the end. `keepalive_s` is that of the MQTT connection now."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self._keepalive_s: float | None = None
        self._said_at = 0.0

    def received(self, now: float, batch: list[tuple[bytes, Endpoint, int]]) -> None:
        for datagram, source, _ in batch:
            book_batch(self.ledger, now, UPLINK, Direction.RECEIVED, [datagram], ipv6=len(source.addr) == 4)

    def sent(self, now: float, transmits: list[Transmit]) -> None:
        for transmit in transmits:
            ipv6 = len(transmit.endpoint.addr) == 4
            book_batch(self.ledger, now, UPLINK, Direction.SENT, transmit.datagrams, ipv6=ipv6)

    def connected(self, now: float, keepalive_s: float) -> None:
        """To the broker."""
        self._ping_until(now)
        self._keepalive_s = keepalive_s
        self._begins(now, Cause.CONTROL)
        self._exchange(now, Direction.SENT, *MQTT_LOGIN)

    def goes_on(self, now: float, keepalive_s: float) -> None:
        """A connection that was there before the bill."""
        self._keepalive_s, self._said_at = keepalive_s, now

    def disconnected(self, now: float) -> None:
        self._ping_until(now)
        self._keepalive_s = None

    def published(self, now: float, direction: Direction, topic: str, payload: bytes, *, acknowledged: bool) -> None:
        self._ping_until(now)
        size = _PUBLISH_HEAD + 2 * acknowledged + len(topic) + len(payload)
        if acknowledged:
            self._exchange(now, direction, size, PUBACK)
        else:
            self._record(now, Cause.CONTROL, direction, size)

    def subscribed(self, now: float, topic: str) -> None:
        """SUBSCRIBE or UNSUBSCRIBE, and its acknowledgement."""
        self._ping_until(now)
        self._exchange(now, Direction.SENT, 7 + len(topic), SUBACK)

    def stream_opened(self, now: float) -> None:
        self._begins(now, Cause.RELAY)

    def streamed(self, now: float, direction: Direction, data: bytes) -> None:
        """By a connection to a relay; packets inside are not told apart."""
        self._record(now, Cause.RELAY, direction, len(data))

    def by_cause(self, now: float) -> dict[Cause, tuple[int, int]]:
        """(sent, received) since the beginning."""
        self._ping_until(now)
        return {line.cause: line.since_start for line in self.ledger.lines(now)}

    def _begins(self, now: float, cause: Cause) -> None:
        sent, received = TLS_BEGINS
        self.ledger.book(now, UPLINK, cause, sent, received)

    def _record(self, now: float, cause: Cause, direction: Direction, size: int) -> None:
        there, back = tls_bytes(size)
        sent, received = (there, back) if direction is Direction.SENT else (back, there)
        self.ledger.book(now, UPLINK, cause, sent, received)

    def _exchange(self, now: float, direction: Direction, size: int, answer: int) -> None:
        """A record and its answer, which acknowledges it on the way; the answer's own acknowledgement is a segment."""
        there, ack = tls_bytes(size)
        back, _ = tls_bytes(answer)
        there += ack
        sent, received = (there, back) if direction is Direction.SENT else (back, there)
        self.ledger.book(now, UPLINK, Cause.CONTROL, sent, received)

    def _ping_until(self, now: float) -> None:
        """The pings that paho has sent since something was said last."""
        if self._keepalive_s is not None:
            for number in range(1, int((now - self._said_at) / self._keepalive_s) + 1):
                self._exchange(self._said_at + number * self._keepalive_s, Direction.SENT, PING, PING)
        self._said_at = now
