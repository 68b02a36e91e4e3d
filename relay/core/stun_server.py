"""STUN Binding for whoever asks (RFC 8489), and the second port of behaviour discovery (RFC 5780).

An answer is never longer than its request, so nobody is worth reflecting off. Requests without padding, which is what
other people's clients send, could not be answered at all then: a few a second are, with the least that will do.
"""

from __future__ import annotations

from edgeagent.proto import stun
from edgeagent.proto.endpoint import Endpoint
from edgeagent.proto.ratelimiter import RateLimiter
from edgeagent.proto.stun import StunError, StunMessage
from relay.core.reasons import RelayDrop
from relay.core.shared import Shared, Train

SHORT_PER_SOURCE_PER_S = 1.0
SHORT_PER_SOURCE_BURST = 6.0  # what one run of a client that discovers behaviours sends at once
SHORT_PER_S = 100  # over all sources: 3.2 kB/s is the most that a forger can have sent elsewhere
_SOURCES_MAX = 1_024
_KNOWN = (stun.CHANGE_REQUEST, stun.PADDING)


class StunServer:
    """`ports` are the primary and, when there is one, the second port, from which it can answer too."""

    def __init__(self, now: float, shared: Shared, ports: tuple[int, int | None]) -> None:
        self._shared = shared
        self._ports = ports
        self._sources = RateLimiter(_SOURCES_MAX, SHORT_PER_SOURCE_PER_S, SHORT_PER_SOURCE_BURST)
        self._all = RateLimiter(1, float(SHORT_PER_S), float(SHORT_PER_S))
        self.answered = 0

    def answer(self, now: float, datagram: bytes, endpoint: Endpoint, *, at_second_port: bool = False) -> Train | None:
        """The answer to what came from `endpoint` at the primary or the second port."""
        try:
            message = stun.parse(datagram)
            change = stun.read_change(message)
        except StunError:
            self._shared.drop(RelayDrop.STUN_MALFORMED)
            return None
        if message.kind != stun.BINDING_REQUEST:
            self._shared.drop(RelayDrop.STUN_UNEXPECTED)
            return None
        unknown = stun.unknown_attributes(message, _KNOWN)
        if change and (change & stun.CHANGE_ADDRESS or self._ports[1] is None):
            unknown.append(stun.CHANGE_REQUEST)  # RFC 5780, section 7.2
        from_second = at_second_port != bool(change & stun.CHANGE_PORT)
        if unknown:
            kind, parts, optional = stun.BINDING_ERROR, stun.unknown_attributes_error(unknown), []
            from_second = at_second_port
        else:
            source = (endpoint.ip_bytes(), endpoint.addr[1])
            kind, parts = stun.BINDING_SUCCESS, [stun.xor_mapped_address(message.transaction, source)]
            optional = self._addresses(endpoint, from_second)
        answer = _fit(message, kind, parts, optional, len(datagram))
        if len(answer) > len(datagram) and not self._spare(now, endpoint):
            self._shared.drop(RelayDrop.STUN_SHORT)
            return None
        self.answered += 1
        return Train(endpoint, answer, len(answer), from_second_port=from_second)

    def _addresses(self, endpoint: Endpoint, from_second: bool) -> list[tuple[int, bytes]]:
        """From where we answer, and could: at the address that was written to, only the port is another."""
        if endpoint.local is None or self._ports[1] is None:
            return []
        address = endpoint.local[0]
        origin = self._ports[from_second] or 0
        other = self._ports[not from_second] or 0
        return [
            stun.plain_address(stun.OTHER_ADDRESS, (address, other)),
            stun.plain_address(stun.RESPONSE_ORIGIN, (address, origin)),
        ]

    def _spare(self, now: float, endpoint: Endpoint) -> bool:
        return self._sources.allow(now, endpoint.ip_bytes()) and self._all.allow(now, bytes(4))


def _fit(
    message: StunMessage, kind: int, parts: list[tuple[int, bytes]], optional: list[tuple[int, bytes]], room: int
) -> bytes:
    """`parts`, and of a fingerprint (if the request had one) and `optional` what fits into `room` bytes."""
    least = stun.write(kind, message.transaction, parts, fingerprint=False)
    if not message.fingerprinted or len(least) + 8 > room:
        return least
    best = stun.write(kind, message.transaction, parts, fingerprint=True)
    for attribute in optional:
        parts = [*parts, attribute]
        longer = stun.write(kind, message.transaction, parts, fingerprint=True)
        if len(longer) > room:
            break
        best = longer
    return best
