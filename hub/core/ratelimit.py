"""Token buckets, one a key, in a table with a ceiling."""

from __future__ import annotations

from collections import OrderedDict


class TokenBuckets:
    """`allow` takes `cost` tokens from a key's bucket. The key not seen for longest gives way in a full table."""

    __slots__ = ("_buckets", "_burst", "_keys_max", "_rate_per_s")

    def __init__(self, rate_per_s: float, burst: int, keys_max: int = 16_384) -> None:
        self._rate_per_s = rate_per_s
        self._burst = float(burst)
        self._keys_max = keys_max
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # key: (tokens, when counted)

    def __len__(self) -> int:
        return len(self._buckets)

    def allow(self, now: float, key: str, cost: float = 1.0) -> bool:
        tokens, counted_at = self._buckets.get(key, (self._burst, now))
        tokens = min(self._burst, tokens + (now - counted_at) * self._rate_per_s)
        allowed = tokens >= cost
        self._buckets[key] = (tokens - cost if allowed else tokens, now)
        self._buckets.move_to_end(key)
        if len(self._buckets) > self._keys_max:
            self._buckets.popitem(last=False)
        return allowed
