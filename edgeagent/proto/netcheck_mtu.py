"""The largest packet that reaches a server: padded STUN requests, several sizes at once, closing in on the limit.

A request that is answered arrived whole. The answer is never longer than its request, so this is the way there.
Sizes are those of IP packets with all headers, and go in steps of four bytes, as STUN messages do (RFC 8489, 5).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeagent.proto.stun_exchange import StunExchange

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgeagent.proto.endpoint import Endpoint, Transmit

SIZE_MIN, SIZE_MAX = 576, 9_000
PROBES_MAX = 6  # at once
ROUNDS_MAX = 16
REQUESTS_MAX = 2
LAST_WAIT_RTOS = 2
RTO_MIN_S, RTO_MAX_S = 0.2, 1.0
STEP = 4
# Ethernet, PPPoE, tunnels and radio as they occur
_COMMON = (1_280, 1_340, 1_360, 1_380, 1_400, 1_412, 1_420, 1_440, 1_452, 1_460, 1_472, 1_480, 1_492, 1_500, 4_352)
_FIRST = (SIZE_MIN, 1_280, 1_400, 1_492, 1_500, SIZE_MAX)
_UDP_HEADER, _IPV4_HEADER, _IPV6_HEADER = 8, 20, 40


class MtuSearch:
    """Drive it: `handle` what comes in on its socket, `refused` for a request that the own system finds too long,
    `handle_timeout` at `poll_timeout()`; after any input drain transmits, none of which may be fragmented.

    `low` is the largest size that passed, 0 before the first; `high` the least above it that did not. When `done`,
    nothing between them is left to try, or it was given up.
    """

    __slots__ = ("_exchange", "_headers", "_rounds", "_server", "_sizes", "done", "high", "low")

    def __init__(
        self, now: float, server: Endpoint, entropy: Callable[[int], bytes], *, ipv6: bool, rtt_s: float
    ) -> None:
        self._server = server
        self._headers = _UDP_HEADER + (_IPV6_HEADER if ipv6 else _IPV4_HEADER)
        self._exchange = StunExchange(
            entropy,
            rto_s=min(max(RTO_MIN_S, 2 * rtt_s), RTO_MAX_S),
            requests_max=REQUESTS_MAX,
            last_wait_rtos=LAST_WAIT_RTOS,
        )
        self._sizes: dict[bytes, int] = {}  # transaction → size, of those under way
        self._rounds = 0
        self.low, self.high = 0, SIZE_MAX + STEP
        self.done = False
        self._next_round(now)

    @property
    def exact(self) -> bool:
        """Whether the limit is known to the step."""
        return self.low > 0 and self.high - self.low <= STEP

    def handle(self, now: float, datagram: bytes, source: Endpoint) -> bool:
        """Whether it was an answer to one of these requests."""
        answer = self._exchange.handle(now, datagram, source)
        if answer is None:
            return False
        self.low = max(self.low, self._sizes.pop(answer.transaction))
        for transaction in [transaction for transaction, size in self._sizes.items() if size < self.low]:
            self._forget(transaction)  # what is smaller passes too, or was lost by chance
        self._settle(now)
        return True

    def refused(self, now: float, transaction: bytes) -> None:
        """The own link does not take so long a packet."""
        size = self._sizes.get(transaction)
        if size is not None:
            self._forget(transaction)
            self._too_long(size)
            self._settle(now)

    def handle_timeout(self, now: float) -> None:
        self._exchange.handle_timeout(now)
        for failure in self._exchange.drain_failures():
            size = self._sizes.pop(failure.transaction, None)
            if size is not None:
                self._too_long(size)
        self._settle(now)

    def poll_timeout(self) -> float | None:
        return self._exchange.poll_timeout()

    def drain_transmits(self) -> list[Transmit]:
        return self._exchange.drain_transmits()

    def _too_long(self, size: int) -> None:
        if size > self.low:
            self.high = min(self.high, size)

    def _forget(self, transaction: bytes) -> None:
        del self._sizes[transaction]
        self._exchange.cancel(transaction)

    def _settle(self, now: float) -> None:
        if self.high <= self.low:  # it has grown meanwhile, or an answer came after it was given up
            self.high = self.low + STEP
        if not self._sizes and not self.done:
            self._next_round(now)

    def _next_round(self, now: float) -> None:
        sizes = self._choose()
        if not sizes or self._rounds == ROUNDS_MAX:
            self.done = True
            return
        self._rounds += 1
        for size in sizes:
            self._sizes[self._exchange.begin(now, self._server, size=size - self._headers)] = size

    def _choose(self) -> list[int]:
        if self._rounds == 0:
            return list(_FIRST)
        if self.low == 0:
            return []  # nothing came through: there is no limit to be found
        common = [size for size in _COMMON if self.low < size < self.high]
        return _spread(common or list(range(self.low + STEP, self.high, STEP)))


def _spread(sizes: list[int]) -> list[int]:
    """At most PROBES_MAX of them, evenly, the last one among them."""
    count = min(PROBES_MAX, len(sizes))
    return [sizes[(number + 1) * len(sizes) // count - 1] for number in range(count)]
