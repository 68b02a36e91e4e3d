"""Token buckets, and the fair sharing of a rate that is too small for all."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Generic, TypeVar

from edgeagent.proto.relay_frames import PACKET_BYTES_MAX
from relay.core.limits import Rate

Item = TypeVar("Item")

QUANTUM_BYTES = 16_384
_ROUNDING_S = 1e-4  # floats: a wake-up must not come a hair before there is enough


class TokenBucket:
    """Bytes and packets; both must suffice. Full at the start."""

    __slots__ = ("_at", "_bytes", "_bytes_max", "_packets", "_packets_max", "rate")

    def __init__(self, now: float, rate: Rate) -> None:
        self.rate = rate
        # A burst holds at least one packet of the greatest length, or such a packet would never pass
        self._bytes_max = max(rate.bytes_per_s * rate.burst_s, float(2 * PACKET_BYTES_MAX))
        self._packets_max = max(rate.packets_per_s * rate.burst_s, 2.0)
        self._bytes = self._bytes_max
        self._packets = self._packets_max
        self._at = now

    def take(self, now: float, size: int, packets: int) -> bool:
        """True, and taken, when there is enough of both."""
        passed = now - self._at
        if passed > 0:
            rate = self.rate
            self._bytes = min(self._bytes_max, self._bytes + passed * rate.bytes_per_s)
            self._packets = min(self._packets_max, self._packets + passed * rate.packets_per_s)
            self._at = now
        if self._bytes < size or self._packets < packets:
            return False
        self._bytes -= size
        self._packets -= packets
        return True

    def give_back(self, size: int, packets: int) -> None:
        """What was taken was not used."""
        self._bytes += size
        self._packets += packets

    def ready_at(self, size: int) -> float:
        """When there will be `size` bytes."""
        return self._at + max(0.0, size - self._bytes) / self.rate.bytes_per_s + _ROUNDING_S


class FairShare(Generic[Item]):
    """One rate for all, shared between networks by deficit round robin (Shreedhar and Varghese, 1995).

    `offer` says whether an item may go at once; if not it waits in its network's queue, whose oldest give way. When
    `ready_at` has come, `release` gives what may go now: of each network that waits as many bytes as of any other.
    """

    def __init__(self, now: float, bytes_per_s: int, queue_bytes_max: int) -> None:
        self._bucket = TokenBucket(now, Rate(bytes_per_s, 1 << 40, burst_s=0.02))
        self._queue_bytes_max = queue_bytes_max
        self._queues: OrderedDict[str, deque[tuple[int, Item]]] = OrderedDict()  # who has its turn next is first
        self._bytes: dict[str, int] = {}
        self._deficit: dict[str, int] = {}

    def offer(self, now: float, network: str, size: int, item: Item) -> tuple[bool, int]:
        """(may go at once, how many older items gave way)."""
        if not self._queues and self._bucket.take(now, size, 0):
            return True, 0
        queue = self._queues.get(network)
        if queue is None:
            queue = self._queues[network] = deque()
            self._bytes[network] = self._deficit[network] = 0
        queue.append((size, item))
        self._bytes[network] += size
        dropped = 0
        while self._bytes[network] > self._queue_bytes_max:
            self._bytes[network] -= queue.popleft()[0]
            dropped += 1
        if not queue:
            self._forget(network)
        return False, dropped

    def release(self, now: float) -> list[Item]:
        """What may go now, in the order in which it should."""
        released: list[Item] = []
        while self._queues:
            network, queue = next(iter(self._queues.items()))
            size = queue[0][0]
            if self._deficit[network] < size:
                self._deficit[network] += QUANTUM_BYTES
                self._queues.move_to_end(network)
                continue
            if not self._bucket.take(now, size, 0):
                break
            self._deficit[network] -= size
            self._bytes[network] -= size
            released.append(queue.popleft()[1])
            if not queue:
                self._forget(network)
        return released

    def ready_at(self) -> float | None:
        """When `release` will have something, or None while nothing waits."""
        for queue in self._queues.values():
            return self._bucket.ready_at(queue[0][0])
        return None

    def _forget(self, network: str) -> None:
        del self._queues[network], self._bytes[network], self._deficit[network]
