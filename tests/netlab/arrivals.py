"""What of TCP streams arrives at an interface: when nothing did, and what came late. A program and its reader.

    watch = Arrivals(host, "edge0", 5201)   # segments to that port, as the kernel stamps them
    …
    watch.stop()
    watch.longest_gap_s(since, until)

Sequence numbers are those of RFC 9293; a segment below the highest that was seen is `late`: sent again, or overtaken.
"""

from __future__ import annotations

import json
import signal
import socket
import struct
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.netlab.host import Host
    from tests.netlab.process import Process

GAP_S = 0.03  # shorter ones are not written down
READY = "watching"
_HEAD = 128  # bytes of a packet that are looked at
_OUTGOING = 4  # PACKET_OUTGOING of packet(7)
_ALL, _IP = 3, 0x0800
_STAMPS = 35  # SO_TIMESTAMPNS
_BUFFER = 4 << 20
_STREAMS_MAX = 64
_WHOLE = (1 << 32) - 1


class Arrivals:
    """Times are of time.time(). All else is there after `stop`; a segment may be one that the kernel joined."""

    def __init__(self, host: Host, interface: str, port: int) -> None:
        words = (sys.executable, "-I", "-S", __file__, interface, str(port))
        self._process: Process = host.start(*words, name="arrivals")
        self._process.expect(READY)
        self.gaps: list[tuple[float, float]] = []  # (when it ended, how long)
        self.late = self.segments = self.bytes = 0
        self.lates: list[tuple[float, int]] = []  # (second, so many in it)

    def stop(self) -> None:
        self._process.signal(signal.SIGTERM)
        self._process.wait()
        for line in self._process.text().splitlines():
            if line.startswith("{"):
                said = json.loads(line)
                if "gap" in said:
                    self.gaps.append((said["at"], said["gap"]))
                elif "lates" in said:
                    self.lates.append((said["at"], said["lates"]))
                else:
                    self.late, self.segments, self.bytes = said["late"], said["segments"], said["bytes"]

    def longest_gap_s(self, since: float, until: float) -> float:
        """Of those that ended in that time; 0 where none was longer than GAP_S."""
        return max((gap for at, gap in self.gaps if since <= at <= until), default=0.0)

    def late_between(self, since: float, until: float) -> int:
        return sum(count for at, count in self.lates if since <= at <= until)


def main(interface: str, port: int) -> None:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ALL))
    sock.bind((interface, _ALL))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
    sock.setsockopt(socket.SOL_SOCKET, _STAMPS, 1)
    ended = False

    def end(*_: object) -> None:
        nonlocal ended
        ended = True

    signal.signal(signal.SIGTERM, end)
    sock.settimeout(0.5)
    print(READY, flush=True)
    last = second = 0.0
    late = lates = segments = size = 0
    highs: dict[int, int] = {}  # by source port: iperf3 speaks of the test by another connection
    while not ended:
        try:
            data, ancillary, _, address = sock.recvmsg(_HEAD, 64)
        except (TimeoutError, InterruptedError):
            continue
        if address[2] == _OUTGOING or len(data) < 40 or data[0] >> 4 != 4 or data[9] != 6:
            continue
        at = (data[0] & 15) * 4
        source, to, seq = struct.unpack_from(">HHI", data, at)
        length = int.from_bytes(data[2:4], "big") - at - (data[at + 12] >> 4) * 4
        if to != port or length <= 0:
            continue
        stamp = next((struct.unpack("qq", data) for _, kind, data in ancillary if kind == _STAMPS), (0, 0))
        now = stamp[0] + stamp[1] / 1e9
        if last and now - last > GAP_S:
            print(json.dumps({"at": now, "gap": now - last}), flush=True)
        last = now
        segments += 1
        size += length
        high = highs.get(source, seq)
        if (seq - high) & _WHOLE > _WHOLE // 2:
            late += 1
            lates += 1
        elif source in highs or len(highs) < _STREAMS_MAX:
            highs[source] = (seq + length) & _WHOLE
        if now - second >= 1.0:
            if lates:
                print(json.dumps({"at": second, "lates": lates}), flush=True)
            second, lates = now, 0
    print(json.dumps({"late": late, "segments": segments, "bytes": size}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
