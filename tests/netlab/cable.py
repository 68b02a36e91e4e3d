"""An Ethernet cable that is long: frames arrive so many milliseconds later. This kernel has no netem.

`Host.attach(net, delay_ms=…)` lays one. Run as a file this is the cable itself: a TAP interface at each end, and a
queue in between. Only the standard library is imported, so that it starts in some 20 ms.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import struct
import sys
import time
from collections import deque

FRAMES_MAX = 2_000  # under way in each direction; then the newest are lost, as in a router
FRAME_BYTES_MAX = 65_536
READS_PER_TURN_MAX = 64
READY = "laid"

_IFF_TAP, _IFF_NO_PI = 0x0002, 0x1000
_TUNSETIFF = 0x400454CA
_CLONE_NEWNET = 0x40000000


class End:
    """A TAP interface in a namespace, and what is under way to it."""

    def __init__(self, namespace: str, ifname: str) -> None:
        _enter(namespace)
        self.fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        fcntl.ioctl(self.fd, _TUNSETIFF, struct.pack("16sH22x", ifname.encode(), _IFF_TAP | _IFF_NO_PI))
        self.coming: deque[tuple[float, bytes]] = deque()

    def read(self) -> list[bytes]:
        frames: list[bytes] = []
        try:
            while len(frames) < READS_PER_TURN_MAX:
                frames.append(os.read(self.fd, FRAME_BYTES_MAX))
        except OSError:
            pass  # no more, or the interface is down
        return frames

    def deliver(self, now: float) -> None:
        while self.coming and self.coming[0][0] <= now:
            _, frame = self.coming.popleft()
            try:
                os.write(self.fd, frame)
            except OSError:
                continue  # the interface is down, or its queue is full


def carry(ends: tuple[End, End], delay_s: float) -> None:
    """For ever."""
    while True:
        now = time.monotonic()
        due = min((end.coming[0][0] for end in ends if end.coming), default=None)
        wait_s = None if due is None else max(0.0, due - now)
        # select and not epoll, which knows no fractions of a millisecond
        readable = select.select([end.fd for end in ends], (), (), wait_s)[0]
        now = time.monotonic()
        for end, other in (ends, ends[::-1]):
            if end.fd in readable:
                for frame in end.read():
                    if len(other.coming) < FRAMES_MAX:
                        other.coming.append((now + delay_s, frame))
            other.deliver(now)


def _enter(namespace: str) -> None:
    descriptor = os.open(f"/run/netns/{namespace}", os.O_RDONLY | os.O_CLOEXEC)
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")
    os.close(descriptor)


def main() -> None:
    """`cable.py DELAY_MS NAMESPACE INTERFACE NAMESPACE INTERFACE`; it stays in the second one, to be swept with it."""
    delay_ms, *names = sys.argv[1:]
    ends = (End(*names[:2]), End(*names[2:]))
    print(READY, flush=True)
    carry(ends, float(delay_ms) / 1e3)


if __name__ == "__main__":
    main()
