"""What stands for the UDP source of a datagram that came by a relay."""

from __future__ import annotations

from edgeagent.proto.endpoint import Endpoint


class RelayEndpoint(Endpoint):
    """A peer as reached through a relay: the relay's id and the node key that the relay admitted.

    `addr` is (relay id, 0) and is for showing only: such an endpoint is never given to a socket. In a cookie it stands
    for the source, so that a cookie got through one relay, or by one member, is worth nothing through or for another.
    In the rate limiter each member behind a relay counts by itself, because a relay admits a sender only under a key
    that it proved; a relay that lies can use up no more than the handshake queue, which is bounded for all sources.
    """

    __slots__ = ("node_key", "relay")

    def __init__(self, relay: str, node_key: bytes) -> None:
        super().__init__((relay, 0))
        self.relay = relay
        self.node_key = node_key

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RelayEndpoint) and self.node_key == other.node_key and self.relay == other.relay

    def __hash__(self) -> int:
        return hash(self.node_key)

    def __str__(self) -> str:
        return f"relay:{self.relay}"

    def ip_bytes(self) -> bytes:
        """What stands for the address in rate limits: 16 B, of which the first 8 count, as of an IPv6 address."""
        return self.node_key[:16]

    def source_bytes(self) -> bytes:
        """What stands for address and port in a cookie (WireGuard paper 5.4.7)."""
        return b"relay" + self.relay.encode() + self.node_key

    def unpinned(self) -> RelayEndpoint:
        return self

    @property
    def is_relay(self) -> bool:
        return True
