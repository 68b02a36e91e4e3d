"""STUN requests under way over UDP: sent again until answered, each answer matched to its request (RFC 8489, 6.2.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeagent.proto import stun
from edgeagent.proto.endpoint import Endpoint, Transmit
from edgeagent.proto.errors import LimitReached, LocalProtocolError
from edgeagent.proto.stun import StunDrop, StunError

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgeagent.proto.stun import Binding, StunMessage

RTO_S = 0.5  # until the first retransmission; each later one waits twice as long
REQUESTS_MAX = 7  # Rc
LAST_WAIT_RTOS = 16  # Rm: so long after the last request its answer is still waited for
UNDER_WAY_MAX = 64


class Answer:
    """The answer to the request `transaction`, which was sent to `endpoint`, and came from `source`.

    `rtt_s` is None where the request was sent more than once: nobody can tell which of them was answered.
    """

    __slots__ = ("binding", "change", "endpoint", "rtt_s", "source", "transaction")

    def __init__(self, request: _Request, binding: Binding, source: Endpoint, rtt_s: float | None) -> None:
        self.transaction = request.transaction
        self.endpoint = request.endpoint
        self.change = request.change
        self.binding = binding
        self.source = source
        self.rtt_s = rtt_s


class Failure:
    """No answer to the request `transaction`, or, when `refused`, one that says no: `code` is its error code, or 0."""

    __slots__ = ("change", "code", "endpoint", "refused", "transaction")

    def __init__(self, request: _Request, *, refused: bool, code: int = 0) -> None:
        self.transaction = request.transaction
        self.endpoint = request.endpoint
        self.change = request.change
        self.refused = refused
        self.code = code


class _Request:
    __slots__ = ("change", "datagram", "deadline", "endpoint", "rto_s", "sent", "sent_at", "transaction")

    def __init__(self, transaction: bytes, endpoint: Endpoint, change: int, rto_s: float, datagram: bytes) -> None:
        self.transaction = transaction
        self.endpoint = endpoint
        self.change = change
        self.rto_s = rto_s
        self.datagram = datagram
        self.sent = 0
        self.sent_at = self.deadline = 0.0


class StunExchange:
    """The requests of one socket. Drive it: `begin`, `handle` for every datagram that looks like STUN, `handle_timeout`
    at `poll_timeout()`; after any input drain transmits and failures. Every request ends as an Answer, as a Failure, or
    by `cancel`.

    An answer has to come from where it was asked for: the endpoint itself, or, after a request for a change, from
    its other port or address. What does not is counted in `drops`, as is every datagram that is no answer.
    """

    __slots__ = (
        "_entropy",
        "_failures",
        "_last_wait_rtos",
        "_requests_max",
        "_rto_s",
        "_transmits",
        "_under_way",
        "drops",
    )

    def __init__(
        self,
        entropy: Callable[[int], bytes],
        *,
        rto_s: float = RTO_S,
        requests_max: int = REQUESTS_MAX,
        last_wait_rtos: int = LAST_WAIT_RTOS,
    ) -> None:
        if rto_s <= 0 or requests_max < 1 or last_wait_rtos < 1:
            raise LocalProtocolError("stun: at least one request and some time for its answer")
        self._entropy = entropy
        self._rto_s = rto_s
        self._requests_max = requests_max
        self._last_wait_rtos = last_wait_rtos
        self._under_way: dict[bytes, _Request] = {}
        self._transmits: list[Transmit] = []
        self._failures: list[Failure] = []
        self.drops: dict[StunDrop, int] = {}

    def __len__(self) -> int:
        return len(self._under_way)

    def begin(
        self,
        now: float,
        endpoint: Endpoint,
        *,
        change: int = 0,
        size: int = stun.REQUEST_BYTES,
        rto_s: float | None = None,
    ) -> bytes:
        """Ask for a Binding, in a request of `size` bytes; returns its transaction. Raises LimitReached.

        `change` is CHANGE_PORT | CHANGE_ADDRESS: from where the server is to answer. `rto_s` is for a server whose
        round trips are known to be others than those that this exchange was made for.
        """
        if len(self._under_way) >= UNDER_WAY_MAX:
            raise LimitReached(f"stun: at most {UNDER_WAY_MAX} requests under way")
        transaction = self._entropy(stun.TRANSACTION_SIZE)
        datagram = stun.write_request(transaction, size=size, change=change)
        request = _Request(transaction, endpoint, change, self._rto_s if rto_s is None else rto_s, datagram)
        self._under_way[transaction] = request
        self._send(now, request)
        return transaction

    def cancel(self, transaction: bytes) -> None:
        """Nobody waits for it any more. Harmless when it has ended."""
        self._under_way.pop(transaction, None)

    def handle(self, now: float, datagram: bytes, source: Endpoint) -> Answer | None:
        """The answer that this is, None when it is none: a refusal is a Failure, all else a counted drop."""
        request = None
        try:
            message = stun.parse(datagram)
            request = self._under_way.get(message.transaction)
            if request is None:
                raise StunError(StunDrop.TRANSACTION, "stun: no request of ours has this transaction")
            _check_source(request, message, source)
            binding = stun.read_binding(datagram, request.transaction)
        except StunError as error:
            self.drops[error.reason] = self.drops.get(error.reason, 0) + 1
            if request is not None and error.reason is StunDrop.REFUSED:  # RFC 8489, 6.3.3 and 6.3.4: it has failed
                del self._under_way[request.transaction]
                self._failures.append(Failure(request, refused=True, code=stun.read_error_code(message)))
            return None
        del self._under_way[request.transaction]
        return Answer(request, binding, source, now - request.sent_at if request.sent == 1 else None)

    def handle_timeout(self, now: float) -> None:
        for request in list(self._under_way.values()):
            if now < request.deadline:
                continue
            if request.sent < self._requests_max:
                self._send(now, request)
            else:
                del self._under_way[request.transaction]
                self._failures.append(Failure(request, refused=False))

    def poll_timeout(self) -> float | None:
        return min((request.deadline for request in self._under_way.values()), default=None)

    def drain_transmits(self) -> list[Transmit]:
        transmits, self._transmits = self._transmits, []
        return transmits

    def drain_failures(self) -> list[Failure]:
        failures, self._failures = self._failures, []
        return failures

    def _send(self, now: float, request: _Request) -> None:
        rtos = self._last_wait_rtos if request.sent + 1 == self._requests_max else 1 << request.sent
        request.sent += 1
        request.sent_at = now
        request.deadline = now + rtos * request.rto_s
        self._transmits.append(Transmit(request.endpoint, [request.datagram]))


def _check_source(request: _Request, message: StunMessage, source: Endpoint) -> None:
    """Raises StunError: SOURCE. A server that does not know of changes answers from where it was asked."""
    change = 0 if message.kind == stun.BINDING_ERROR else request.change
    other_address = source.ip_bytes() != request.endpoint.ip_bytes()
    other_port = source.addr[1] != request.endpoint.addr[1]
    if other_address != bool(change & stun.CHANGE_ADDRESS) or other_port != bool(change & stun.CHANGE_PORT):
        raise StunError(StunDrop.SOURCE, "stun: an answer from elsewhere than it was asked for")
