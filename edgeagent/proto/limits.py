"""Every ceiling of the agent in one place, with its unit last in its name. A board profile overrides them."""

from __future__ import annotations

from typing import ClassVar


class Limits:
    """Ceilings of all tables and queues; memory is O(these), never O(fleet).

    Given as keywords; unknown names and values below 1 are refused.
    """

    DEFAULTS: ClassVar[dict[str, int]] = {
        "peers": 64,  # WireGuard peers with a session or an endpoint
        "allowed_ips": 100_000,  # prefixes over all peers
        "flows": 4096,  # pairs of addresses, or of ports where policy asks for them, that the C library knows a way for
        "staged_packets": 128,  # packets that wait for a handshake, per peer
        "handshake_queue": 128,  # handshake messages that wait for their turn
        "handshakes_per_call": 16,  # of those, how many one call answers, so that data is not starved
        "rate_sources": 1024,  # source addresses in the handshake rate limiter
        "events": 1024,  # events that nobody drained yet; the oldest give way
        "records": 256,  # peer records in memory
        "feeds": 64,  # feeds subscribed to
        "unresolved_destinations": 64,  # destinations that wait for the hub's answer
        "unresolved_packets": 16,  # packets per such destination
        "asks": 64,  # questions to the hub under way
        "negatives": 256,  # refusals remembered
        "tombstones": 256,  # removals remembered
        "unknown_initiations": 16,  # initiations of strangers that wait for the hub's answer
        "message_bytes": 65_536,  # one control message
        "log_lines": 256,  # lines in the log ring
    }

    __slots__ = tuple(DEFAULTS)

    peers: int
    allowed_ips: int
    flows: int
    staged_packets: int
    handshake_queue: int
    handshakes_per_call: int
    rate_sources: int
    events: int
    records: int
    feeds: int
    unresolved_destinations: int
    unresolved_packets: int
    asks: int
    negatives: int
    tombstones: int
    unknown_initiations: int
    message_bytes: int
    log_lines: int

    def __init__(self, **overrides: int) -> None:
        for name in overrides:
            if name not in self.DEFAULTS:
                raise ValueError(f"limits.{name}: no such limit; known are {', '.join(sorted(self.DEFAULTS))}")
        for name, default in self.DEFAULTS.items():
            value = overrides.get(name, default)
            if value < 1:
                raise ValueError(f"limits.{name}: at least 1, got {value}")
            setattr(self, name, value)
