"""What an engine that moves established flows itself has to know of a device, and what it tells of them.

Such an engine owns a keypair from the moment that it exists: it counts, seals, opens and holds the window against
replays, and the device hands over what it would have sealed. Peers beyond its table stay the device's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgeagent.proto.conntrack import Flow
    from edgeagent.proto.endpoint import Endpoint
    from edgeagent.proto.firewall import Firewall, Marks
    from edgeagent.proto.peer import Peer
    from edgeagent.proto.session import Keypair

POSITIONS = 4  # keypairs of one peer: previous, current, next, and one that is on its way out
FLOWS_MAX = 1024  # not yet drained


class Traffic:
    """What the packets of `peer` did since the last report. Times are on the clock of `now`, None for never."""

    __slots__ = (
        "confirmed",
        "count",
        "first_data_received_at",
        "first_data_sent_at",
        "heard",
        "largest",
        "last_data_received_at",
        "last_data_sent_at",
        "last_received_at",
        "last_sent_at",
        "peer",
        "rx_bytes",
        "send_counter",
        "tx_bytes",
        "unanswered_since",
    )

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.confirmed: int | None = None  # local index of a responder's keypair whose first message has come
        self.heard: list[Endpoint] = []  # where from, the latest last
        self.count = 0  # datagrams sealed
        self.largest = 0  # bytes of the longest of them
        self.tx_bytes = 0
        self.rx_bytes = 0
        self.send_counter = 0  # of the current keypair
        self.first_data_sent_at: float | None = None
        self.last_data_sent_at: float | None = None
        self.last_sent_at: float | None = None
        self.unanswered_since: float | None = None  # first data sent since the first of the peer's ways was heard
        self.first_data_received_at: float | None = None
        self.last_data_received_at: float | None = None
        self.last_received_at: float | None = None


class Established:
    """The device writes, the engine drains after any input, in this order: `keys`, then the ways of all peers, then
    `to_seal`, `to_open`, `flows`.

    `peers` are those with a slot, by slot. With a `firewall` flows are exact, and each has one of its numbers; `marks`
    is by which the engine hears of those that are void, and tells of those that it has carried.
    """

    __slots__ = ("_free", "firewall", "flows", "flows_lost", "keys", "marks", "peers", "to_open", "to_seal")

    def __init__(self, slots: int, marks: Marks | None) -> None:
        self.firewall: Firewall | None = None
        self.marks = marks
        self.peers: list[Peer | None] = [None] * slots
        self._free = list(range(slots - 1, -1, -1))
        # (begins, slot, position, keypair) in order; without a keypair it is the peer that begins or ends
        self.keys: list[tuple[bool, int, int, Keypair | None]] = []
        self.to_seal: list[tuple[Keypair, list[bytes]]] = []
        self.to_open: list[tuple[bytes, Endpoint, int]] = []
        # (peer, a packet of the flow, whether out of the tunnel, the firewall's flow)
        self.flows: list[tuple[Peer, bytes, bool, Flow | None]] = []
        self.flows_lost = 0  # beyond FLOWS_MAX; their next packet comes up again

    @property
    def is_full(self) -> bool:
        return not self._free

    def adopt(self, keypair: Keypair) -> None:
        """A new keypair; it stays the device's own where there is no slot for its peer."""
        peer = keypair.peer
        if peer.slot is None:
            if not self._free:
                return
            peer.slot = self._free.pop()
            self.peers[peer.slot] = peer
            self.keys.append((True, peer.slot, 0, None))
        pairs = (peer.keypairs.previous, peer.keypairs.current, peer.keypairs.next)
        used = [pair.position for pair in pairs if pair is not None and pair is not keypair]
        keypair.position = next(position for position in range(POSITIONS) if position not in used)
        self.keys.append((True, peer.slot, keypair.position, keypair))

    def forget(self, keypair: Keypair) -> None:
        if keypair.position is not None and keypair.peer.slot is not None:
            self.keys.append((False, keypair.peer.slot, keypair.position, keypair))

    def leave(self, peer: Peer) -> None:
        """The peer is gone, its keypairs with it."""
        if peer.slot is not None:
            self.keys.append((False, peer.slot, 0, None))
            self.peers[peer.slot] = None
            self._free.append(peer.slot)
            peer.slot = None

    def add_flow(self, now: float, peer: Peer, packet: bytes, *, inbound: bool) -> None:
        if peer.slot is None:
            return
        flow = None
        if self.firewall is not None:
            flow = self.firewall.carried(now, peer, packet, inbound=inbound)
            if flow is None:
                return  # one for which each packet is to be judged
        if len(self.flows) < FLOWS_MAX:
            self.flows.append((peer, packet, inbound, flow))
        else:
            self.flows_lost += 1
