"""What the userspace API configures, without an interface."""

from __future__ import annotations

from edgeagent import crypto
from edgeagent.proto.device import Device
from edgeagent.proto.limits import Limits
from edgeagent.proto.tai64n import Tai64nClock


class Owner:
    """A Target whose sockets are numbers."""

    read_only = False

    def __init__(self, **limits: int) -> None:
        def entropy(size: int) -> bytes:
            return bytes(range(size))

        self.device = Device(
            0.0,
            crypto=crypto.load(),
            entropy=entropy,
            jitter=lambda: 0.0,
            tai64n=Tai64nClock(0.0, 1.7e9),
            limits=Limits(**limits),
        )
        self.listen_port = 0
        self.fwmark = 0
        self.is_up = True
        self.port_errno = 0
        self.refreshed_at: float | None = None

    def set_listen_port(self, now: float, port: int) -> int:
        if self.port_errno:
            return self.port_errno
        self.listen_port = port
        return 0

    def set_fwmark(self, now: float, mark: int) -> int:
        self.fwmark = mark
        return 0

    def refresh(self, now: float) -> None:
        self.refreshed_at = now

    def scope_index(self, name: str) -> int:
        return {"eth0": 2}.get(name, 0)
