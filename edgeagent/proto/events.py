"""What the WireGuard machine tells its owner, besides packets and datagrams."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeagent.proto.endpoint import Endpoint

if TYPE_CHECKING:
    from edgeagent.proto.peer import Peer


class Event:
    __slots__ = ()


class HandshakeCompleted(Event):
    """New keys with `peer` work in both directions."""

    __slots__ = ("peer",)

    def __init__(self, peer: Peer) -> None:
        self.peer = peer


class HandshakeFailed(Event):
    """`peer` did not answer for 90 s; what waited for it is gone."""

    __slots__ = ("peer",)

    def __init__(self, peer: Peer) -> None:
        self.peer = peer


class EndpointRoamed(Event):
    """`peer` was heard, authenticated, from another endpoint than before."""

    __slots__ = ("endpoint", "peer")

    def __init__(self, peer: Peer, endpoint: Endpoint) -> None:
        self.peer = peer
        self.endpoint = endpoint


class UnknownPeer(Event):
    """A well-formed initiation under a static key that is no peer's. After `add_peer`, hand `datagram` in again."""

    __slots__ = ("datagram", "endpoint", "static_public")

    def __init__(self, static_public: bytes, datagram: bytes, endpoint: Endpoint) -> None:
        self.static_public = static_public
        self.datagram = datagram
        self.endpoint = endpoint
