"""Every ceiling of the agent in one place, with its unit last in its name. A profile sets them all; an operator, and
later a board's profile, may set each."""

from __future__ import annotations

TYPE_CHECKING = False  # what the typing module would say, and 5 ms
if TYPE_CHECKING:
    from typing import ClassVar

PROFILE_NAMES = ("small", "normal", "large")  # for devices of 32, 64 and 128 MiB

# limit: (lowest, highest), (small, normal, large), what it bounds
TABLE: dict[str, tuple[tuple[int, int], tuple[int, int, int], str]] = {
    "peers": ((1, 1 << 20), (16, 64, 256), "WireGuard peers with a session or an endpoint"),
    "allowed_ips": ((1, 1 << 24), (4_096, 100_000, 200_000), "prefixes over all peers"),
    "flows": (
        (1, 1 << 22),
        (1_024, 4_096, 16_384),
        "pairs of addresses, or of ports where policy asks for them, that the C library knows a way for",
    ),
    "connections": (
        (16, 1 << 20),
        (512, 2_048, 8_192),
        "flows that a policy has let through, remembered so that their answers come in, too",
    ),
    "new_flows_per_s": (
        (1, 1 << 20),
        (500, 2_000, 4_000),
        "packets of unknown flows that the C library asks Python about in a second",
    ),
    "pump_ring_bytes": (
        (1 << 18, 1 << 26),
        (1 << 18, 1 << 18, 1 << 20),
        "each of the three rings between the C library and Python, a power of two",
    ),
    "staged_packets": ((1, 1 << 16), (32, 128, 128), "packets that wait for a handshake, per peer"),
    "handshake_queue": ((8, 1 << 16), (64, 128, 256), "handshake messages that wait for their turn"),
    "handshakes_per_call": (
        (1, 1 << 10),
        (8, 16, 16),
        "of those, how many one call answers, so that data is not starved",
    ),
    "rate_sources": ((1, 1 << 20), (256, 1_024, 4_096), "source addresses in the handshake rate limiter"),
    "events": ((64, 1 << 20), (256, 1_024, 1_024), "events that nobody drained yet; the oldest give way"),
    "records": ((1, 1 << 20), (64, 256, 1_024), "peer records in memory"),
    "feeds": ((1, 1 << 16), (16, 64, 256), "feeds subscribed to"),
    "unresolved_destinations": ((1, 1 << 16), (32, 64, 128), "destinations that wait for the hub's answer"),
    "unresolved_packets": ((1, 1 << 12), (8, 16, 16), "packets per such destination"),
    "asks": ((1, 1 << 16), (32, 64, 128), "questions to the hub under way"),
    "negatives": ((1, 1 << 20), (64, 256, 1_024), "refusals remembered"),
    "tombstones": ((1, 1 << 20), (64, 256, 1_024), "removals remembered"),
    "unknown_initiations": ((1, 1 << 12), (8, 16, 32), "initiations of strangers that wait for the hub's answer"),
    "message_bytes": ((61_440, 65_536), (65_536, 65_536, 65_536), "one control message"),
    "log_lines": ((1, 1 << 16), (64, 256, 512), "lines in the log ring"),
}
FRAGMENTS_MAX = 256  # datagrams in pieces whose first one a policy has judged
# MiB of resident memory that the process is kept below, where `memory-ceiling` says no other.
CEILING_MIB = dict(zip(PROFILE_NAMES, (30, 40, 64), strict=True))


class Limits:
    """Ceilings of all tables and queues; memory is O(these), never O(fleet).

    Given as keywords over a profile; unknown names and values out of range are refused.
    """

    DEFAULTS: ClassVar[dict[str, int]] = {name: profiles[1] for name, (_, profiles, _) in TABLE.items()}

    __slots__ = tuple(TABLE)

    peers: int
    allowed_ips: int
    flows: int
    connections: int
    new_flows_per_s: int
    pump_ring_bytes: int
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

    def __init__(self, profile: str = "normal", /, **overrides: int) -> None:
        for name in overrides:
            if name not in TABLE:
                raise ValueError(f"limits.{name}: no such limit; known are {', '.join(sorted(TABLE))}")
        column = PROFILE_NAMES.index(profile)
        for name, (_, profiles, _) in TABLE.items():
            value = overrides.get(name, profiles[column])
            if value < 1:
                raise ValueError(f"limits.{name}: at least 1, got {value}")
            setattr(self, name, value)


def read_limits(text: str) -> dict[str, int]:
    """Of `peers=32,flows=1024`. Raises ValueError with what would be right. A test or a benchmark may go below what an
    operator may: below some of the lowest values nothing breaks, but nothing works well either."""
    found: dict[str, int] = {}
    for part in text.split(",") if text else []:
        name, equals, value = (word.strip() for word in part.partition("="))
        if not equals:
            raise ValueError("NAME=VALUE, with ',' between several")
        if name not in TABLE:
            raise ValueError(f"limits that there are, not {name[:40]!r}: {', '.join(sorted(TABLE))}")
        if name in found:
            raise ValueError(f"{name} once")
        low, high = TABLE[name][0]
        if not value.isascii() or not value.isdecimal() or len(value) > 9 or not low <= int(value) <= high:
            raise ValueError(f"{name} to be a whole number from {low} to {high}")
        found[name] = int(value)
        if name == "pump_ring_bytes" and found[name] & (found[name] - 1):
            raise ValueError(f"{name} to be a power of two from {low} to {high}")
    return found


def rows() -> list[tuple[str, ...]]:
    """The table as text, for people and for the documentation, a head first."""
    table: list[tuple[str, ...]] = [("limit", *PROFILE_NAMES, "at least", "at most", "bounds")]
    for name, ((low, high), profiles, meaning) in TABLE.items():
        table.append((name, *(f"{value:,}" for value in profiles), f"{low:,}", f"{high:,}", meaning))
    return table
