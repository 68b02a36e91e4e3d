"""Every ceiling of the relay in one place, with its unit last in its name. The configuration overrides them."""

from __future__ import annotations

from typing import ClassVar


class RelayLimits:
    """Given as keywords; unknown names and values below 1 are refused."""

    DEFAULTS: ClassVar[dict[str, int]] = {
        "members": 20_000,  # logged in at once, over all networks
        "members_per_network": 15_000,  # so that one network does not fill the relay
        "doorway": 1_024,  # connections that have not logged in yet
        "doorway_per_source": 64,  # of those, from one IPv4 address or IPv6 /64
        "login_timeout_s": 15,  # from connecting to being logged in
        "logins_per_source_per_s": 50,  # a whole fleet may be behind one address
        "channels": 256,  # that one session binds, its own among them
        "queue_packets": 32,  # that wait for one member that reads slowly
        "queue_bytes": 131_072,  # of those, and the most that one write holds
        "queues_bytes": 67_108_864,  # that wait for all members, unsent rests of writes among them
        "fair_share_bytes": 1_048_576,  # that wait of one network while the relay's own rate is used up
        "siblings": 16,  # other relays of the region
        "sibling_members": 200_000,  # members that siblings announced; each sibling has as many as any other
        "logins_remembered": 65_536,  # so that none of them is used twice
    }

    __slots__ = tuple(DEFAULTS)

    members: int
    members_per_network: int
    doorway: int
    doorway_per_source: int
    login_timeout_s: int
    logins_per_source_per_s: int
    channels: int
    queue_packets: int
    queue_bytes: int
    queues_bytes: int
    fair_share_bytes: int
    siblings: int
    sibling_members: int
    logins_remembered: int

    def __init__(self, **overrides: int) -> None:
        for name in overrides:
            if name not in self.DEFAULTS:
                raise ValueError(f"limits.{name}: no such limit; known are {', '.join(sorted(self.DEFAULTS))}")
        for name, default in self.DEFAULTS.items():
            value = overrides.get(name, default)
            if value < 1:
                raise ValueError(f"limits.{name}: at least 1, got {value}")
            setattr(self, name, value)


class Rate:
    """What a member or a network may send, in bytes and in packets a second. Bursts last `burst_s`."""

    __slots__ = ("burst_s", "bytes_per_s", "packets_per_s")

    def __init__(self, bytes_per_s: int, packets_per_s: int, burst_s: float = 0.25) -> None:
        if bytes_per_s < 1 or packets_per_s < 1:
            raise ValueError("rate: at least 1 byte and 1 packet a second")
        self.bytes_per_s = bytes_per_s
        self.packets_per_s = packets_per_s
        self.burst_s = burst_s


MEMBER_RATE = Rate(12_500_000, 20_000)  # 100 Mbit/s
NETWORK_RATE = Rate(125_000_000, 200_000)  # 1 Gbit/s
