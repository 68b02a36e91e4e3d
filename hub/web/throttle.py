"""Token buckets that the threads of the web process share."""

from __future__ import annotations

import threading
from ipaddress import IPv6Address, ip_address

from hub.core.ratelimit import TokenBuckets

KEYS_MAX = 4_096


def source(address: str) -> str:
    """Who is counted for an address: of IPv6 the /64, which any home and any server has whole."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if not isinstance(parsed, IPv6Address):
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(IPv6Address(int(parsed) >> 64 << 64))


class LockedBuckets:
    """See TokenBuckets."""

    def __init__(self, rate_per_s: float, burst: int) -> None:
        self._buckets = TokenBuckets(rate_per_s, burst, KEYS_MAX)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._buckets)

    def allow(self, now: float, key: str) -> bool:
        with self._lock:
            return self._buckets.allow(now, key)
