"""What the kernel has of a peer."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgeagent.engine.kernel.ports import Prefix, SocketAddress
    from edgeagent.proto.endpoint import Endpoint
    from edgeagent.proto.outsourced import OutsourcedPeer


class Told:
    __slots__ = ("address", "at", "begun_at", "begun_to", "endpoint", "peer", "prefixes", "routed")

    def __init__(
        self, peer: OutsourcedPeer, address: SocketAddress, prefixes: list[Prefix], at: tuple[int, int]
    ) -> None:
        self.peer = peer
        self.address = address
        self.prefixes = prefixes
        self.at = at  # state of the device's allowed IPs that `prefixes` are of
        self.endpoint: Endpoint | None = None  # the peer's that `address` is; None: to be looked at
        self.routed = False  # whether packets to it go past Python
        self.begun_to: SocketAddress | None = None  # where it was asked for keys last
        self.begun_at: float | None = None

    def is_up_to_date(self, at: tuple[int, int]) -> bool:
        return (
            self.endpoint is not None
            and self.endpoint is self.peer.endpoint
            and self.at == at
            and (self.routed or not self.peer.is_up)
        )
