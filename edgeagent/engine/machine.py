"""What an engine that moves established flows by itself drives: a Device, or the mesh node around one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from edgeagent.engine.pure import Machine

if TYPE_CHECKING:
    from edgeagent.proto.device import Device
    from edgeagent.proto.endpoint import Endpoint, Transmit
    from edgeagent.proto.established import Traffic
    from edgeagent.proto.peer import Peer
    from edgeagent.proto.records import UdpAddress


class FastMachine(Machine, Protocol):
    @property
    def device(self) -> Device: ...

    def handle_opened(self, now: float, batch: list[tuple[Peer, bytes, int]]) -> None:
        """Packets out of the tunnel for which no flow is known: (peer, packet, ECN field of the outer header)."""

    def handle_traffic(self, now: float, reports: list[Traffic]) -> None:
        """What was moved without it."""

    def carry_sealed(self, now: float, transmit: Transmit) -> None:
        """Sealed datagrams for an endpoint that is no UDP address."""

    def ways(self, peer: Peer) -> list[Endpoint]:
        """Where a peer's packets go, and then who gets copies; empty where nowhere."""

    def quiet_s(self, peer: Peer) -> float | None:
        """So long what goes to a peer may stay without an answer by its first way before that is to be reported at
        once; None: it is not."""

    def relay_sessions(self) -> list[tuple[Endpoint, int]]:
        """(UDP address, session) of the relays that carry by UDP."""

    def relay_way(self, endpoint: Endpoint) -> tuple[Endpoint, int, int] | None:
        """(UDP address, session, channel) by which a member of a relay is reached; None: not by UDP, or not yet."""

    def relay_source(self, address: UdpAddress, session: int, channel: int) -> Endpoint | None:
        """The member of a relay that a channel is bound to."""
