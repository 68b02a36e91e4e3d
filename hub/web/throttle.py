"""Token buckets that the threads of the web process share."""

from __future__ import annotations

import threading

from hub.core.ratelimit import TokenBuckets

KEYS_MAX = 4_096


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
