"""Files of updates for devices, a part at a time: `<hub state>/updates/metadata` and `updates/targets`, as TUF names them.

Metadata comes first: it is small, and says whether there is anything to fetch. Of targets only so many devices are served at
a time, and so many bytes a second together; the others are told when to come again. A part goes straight to the broker,
not by the outbox: nobody wants one that is late, and the device asks again.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from edgeagent.proto import topics
from edgeagent.proto.control import FILE_BYTES_MAX
from edgeagent.proto.envelope import write_down
from hub.core.ratelimit import TokenBuckets

if TYPE_CHECKING:
    from pathlib import Path

    from edgeagent.proto.crypto import Crypto
    from edgeagent.proto.keys import Entropy
    from hub.core.model import Device, Network

FETCHERS_MAX = 64  # of targets, at a time
FETCHER_IDLE_S = 20.0  # without a question, after which another may have its place
TARGET_BYTES_PER_S, TARGET_BYTES_AT_ONCE = 4 << 20, 8 << 20
UNKNOWN_S, BUSY_S = 300, 20
_ALL = "all"


class Fetching:
    """`answer` each question that the coordinator let through, and publish what it returns."""

    def __init__(self, crypto: Crypto, entropy: Entropy, network: Network, updates: Path) -> None:
        self._crypto = crypto
        self._entropy = entropy
        self._network = network
        self._directory = updates
        self._fetchers: OrderedDict[str, float] = OrderedDict()  # device: when it asked last
        self._bytes = TokenBuckets(TARGET_BYTES_PER_S, TARGET_BYTES_AT_ONCE, keys_max=1)
        self._seq = 0

    @property
    def fetchers(self) -> int:
        return len(self._fetchers)

    def answer(self, now: float, wall_s: int, device: Device, body: dict[str, Any]) -> tuple[str, bytes]:
        """(topic, message) for `fetch`, whose form is checked: no name leads out of the directory."""
        name, offset, count = body["f"], body["o"], body["n"]
        found = self._read(name, offset, count) if self._may(now, device.id, name, count) else BUSY_S
        if isinstance(found, int):
            part: dict[str, Any] = {"f": name, "no": "busy" if found == BUSY_S else "unknown", "s": found}
        else:
            part = {"f": name, "o": offset, "l": found[0], "d": found[1]}
        topic = topics.down(self._network.id, device.id, "part")
        self._seq = max(self._seq + 1, int(now * 1_000_000))
        data = write_down(
            self._crypto,
            self._entropy,
            self._network.seed,
            device.box_key,
            topic,
            kind="part",
            network=self._network.id,
            device=device.id,
            epoch=self._network.epoch,
            seq=self._seq,
            wall_s=wall_s,
            body=part,
        )
        return topic, data

    def _may(self, now: float, device: str, name: str, count: int) -> bool:
        if name.startswith("metadata/"):
            return True
        while self._fetchers and next(iter(self._fetchers.values())) < now - FETCHER_IDLE_S:
            self._fetchers.popitem(last=False)
        if device not in self._fetchers and len(self._fetchers) >= FETCHERS_MAX:
            return False
        if not self._bytes.allow(now, _ALL, count):
            return False
        self._fetchers[device] = now
        self._fetchers.move_to_end(device)
        return True

    def _read(self, name: str, offset: int, count: int) -> tuple[int, bytes] | int:
        """(length of the file, bytes); UNKNOWN_S: there is none, or nothing at that offset."""
        try:
            fd = os.open(self._directory / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return UNKNOWN_S
        try:
            length = os.fstat(fd).st_size
            if not offset < length <= FILE_BYTES_MAX:
                return UNKNOWN_S
            data = os.pread(fd, count, offset)
            return (length, data) if data else UNKNOWN_S
        except OSError:
            return UNKNOWN_S
        finally:
            os.close(fd)
