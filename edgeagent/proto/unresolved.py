"""What waits for the hub's answer: packets to unknown destinations, and initiations of unknown keys."""

from __future__ import annotations

from collections import OrderedDict, deque

from edgeagent.proto.endpoint import Endpoint


class Waiting:
    """Packets to one destination, the oldest first."""

    __slots__ = ("expires_at", "packets")

    def __init__(self, expires_at: float, packets_max: int) -> None:
        self.expires_at = expires_at
        self.packets: deque[bytes] = deque(maxlen=packets_max)


class Unresolved:
    """At most `packets_max` packets for each of `destinations_max` destinations; the oldest give way."""

    def __init__(self, destinations_max: int, packets_max: int) -> None:
        self._destinations_max = destinations_max
        self._packets_max = packets_max
        self.gave_way = 0  # destinations forgotten because others needed the room
        self._waiting: OrderedDict[bytes, Waiting] = OrderedDict()

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, destination: bytes) -> bool:
        return destination in self._waiting

    def add(self, destination: bytes, packet: bytes, expires_at: float) -> int:
        """Keep a packet; the first of a destination sets when all expire. Returns how many gave way."""
        dropped = 0
        waiting = self._waiting.get(destination)
        if waiting is None:
            if len(self._waiting) >= self._destinations_max:
                _, oldest = self._waiting.popitem(last=False)
                dropped += len(oldest.packets)
                self.gave_way += 1
            waiting = self._waiting[destination] = Waiting(expires_at, self._packets_max)
        elif len(waiting.packets) == self._packets_max:
            dropped += 1
        waiting.packets.append(packet)
        return dropped

    def longest(self) -> int:
        """Packets of the destination that most wait for."""
        return max((len(waiting.packets) for waiting in self._waiting.values()), default=0)

    def take(self, destination: bytes) -> list[bytes]:
        """The packets of a destination, which waits no more."""
        waiting = self._waiting.pop(destination, None)
        return [] if waiting is None else list(waiting.packets)

    def destinations(self) -> list[bytes]:
        return list(self._waiting)

    def expired(self, now: float) -> list[bytes]:
        """Destinations whose time is up."""
        return [destination for destination, waiting in self._waiting.items() if waiting.expires_at <= now]

    def poll_timeout(self) -> float | None:
        return min((waiting.expires_at for waiting in self._waiting.values()), default=None)


class Strangers:
    """The last initiation of each of at most `initiations_max` unknown static keys."""

    def __init__(self, initiations_max: int) -> None:
        self._initiations_max = initiations_max
        self.gave_way = 0  # of keys that others needed the room of
        self._last: OrderedDict[bytes, tuple[bytes, Endpoint]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._last)

    def add(self, static_public: bytes, datagram: bytes, endpoint: Endpoint) -> bytes | None:
        """Keep an initiation, in place of an older one of the same key. Returns the key that gave way, if any."""
        self._last[static_public] = (datagram, endpoint)
        if len(self._last) <= self._initiations_max:
            return None
        self.gave_way += 1
        return self._last.popitem(last=False)[0]

    def take(self, static_public: bytes) -> tuple[bytes, Endpoint] | None:
        return self._last.pop(static_public, None)
