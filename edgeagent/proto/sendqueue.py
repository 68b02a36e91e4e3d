"""What waits for a stream that takes less than it is offered."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

PACKETS_MAX = 32
CONTROLS_MAX = 64


class SendQueue:
    """Frames on their way into a stream: control frames first, then packets, of which the oldest give way.

    An old packet is worth less than a new one: whoever sent it has most likely given it up (RFC 8033, section 1 has
    the longer argument). While the stream takes what it is offered `blocked` is False and only bytes are counted,
    so that one large read may leave in one large write.
    """

    __slots__ = ("_controls", "_packets", "blocked", "bytes", "bytes_max", "controls_max", "dropped", "packets_max")

    def __init__(self, bytes_max: int, packets_max: int = PACKETS_MAX, controls_max: int = CONTROLS_MAX) -> None:
        self._controls: deque[bytes] = deque()
        self._packets: deque[bytes] = deque()
        self.blocked = False
        self.bytes = 0  # of the packets
        self.bytes_max = bytes_max
        self.packets_max = packets_max
        self.controls_max = controls_max
        self.dropped = 0

    def __bool__(self) -> bool:
        return bool(self._packets or self._controls)

    def __len__(self) -> int:
        return len(self._packets)

    @property
    def packets(self) -> Iterable[bytes]:
        """The frames of packets that wait, the oldest first."""
        return self._packets

    def push_control(self, frame: bytes) -> bool:
        """False, and the frame is not taken, when the other side has read none of the last `controls_max`."""
        if len(self._controls) >= self.controls_max:
            return False
        self._controls.append(frame)
        return True

    def push_packet(self, frame: bytes) -> int:
        """Returns how many older packets gave way."""
        packets = self._packets
        packets.append(frame)
        self.bytes += len(frame)
        dropped = 0
        while self.bytes > self.bytes_max or (self.blocked and len(packets) > self.packets_max):
            self.bytes -= len(packets.popleft())
            dropped += 1
        self.dropped += dropped
        return dropped

    def take(self, bytes_max: int | None = None) -> bytes:
        """All that waits, in one piece; or whole frames of at most `bytes_max`, and one at least."""
        if bytes_max is not None:
            return self._take_some(bytes_max)
        taken = b"".join((*self._controls, *self._packets))
        self._controls.clear()
        self._packets.clear()
        self.bytes = 0
        return taken

    def _take_some(self, bytes_max: int) -> bytes:
        taken: list[bytes] = []
        size = 0
        while self._controls or self._packets:
            queue = self._controls or self._packets
            size += len(queue[0])
            if taken and size > bytes_max:
                break
            taken.append(queue.popleft())
            if queue is self._packets:
                self.bytes -= len(taken[-1])
        return b"".join(taken)
