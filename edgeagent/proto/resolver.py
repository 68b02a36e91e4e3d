"""From an address or a key without a WireGuard peer to the peer: packets and initiations wait here for the hub."""

from __future__ import annotations

from edgeagent.proto import icmp
from edgeagent.proto.control_client import Answer, ControlClient
from edgeagent.proto.device import Device, Unsent
from edgeagent.proto.endpoint import Endpoint
from edgeagent.proto.errors import DropReason
from edgeagent.proto.events import UnknownPeer
from edgeagent.proto.limits import Limits
from edgeagent.proto.paths import is_unicast
from edgeagent.proto.peering import Peering
from edgeagent.proto.records import Entry, Query
from edgeagent.proto.refusals import ControlDrop
from edgeagent.proto.unresolved import Strangers, Unresolved

UNRESOLVED_S = 10.0  # how long packets wait for the hub and for the peer's feed
UNRESOLVED_OFFLINE_S = 1.0  # and how long while there is nobody to ask


class Resolver:
    """Drive it: `unsent` and `stranger` put something in, `answered` and `ready` let it go, `handle_timeout` gives up.

    What has no way is refused: counted, and told to our own host by an ICMP error among `drain_packets`.
    """

    def __init__(self, *, client: ControlClient, peering: Peering, device: Device, limits: Limits) -> None:
        self._client = client
        self._peering = peering
        self._device = device
        self._strangers_max = limits.unknown_initiations
        self._packets: list[bytes] = []
        self.unresolved = Unresolved(limits.unresolved_destinations, limits.unresolved_packets)
        self.strangers = Strangers(limits.unknown_initiations)

    # Packets

    def unsent(self, now: float, unsent: Unsent) -> None:
        """A packet that the device could not take: its destination has no peer, or the peer no endpoint."""
        packet = unsent.packet
        if unsent.reason is DropReason.NOT_IP:
            self._device.refuse(unsent)
            return
        destination = packet[16:20] if packet[0] >> 4 == 4 else packet[24:40]
        if not is_unicast(destination):
            self._device.refuse(unsent)
            return
        routers = self._peering.routers
        if routers is None:
            found = self._client.lookup(now, ("a", destination))
        else:
            found = routers.lookup(now, destination)
        if found is Answer.NO:
            self._refuse([packet], ControlDrop.UNREACHABLE)
            return
        wait_s = UNRESOLVED_S if self._client.reachable else UNRESOLVED_OFFLINE_S
        dropped = self.unresolved.add(destination, packet, now + wait_s)
        self._client.count(ControlDrop.UNRESOLVED_FULL, dropped)
        if isinstance(found, Entry):
            self._peering.connect(now, found)
            self.ready(now, found)

    def ready(self, now: float, entry: Entry) -> None:
        """A record or a feed came: send what waited for its device, if that has an endpoint now."""
        waiting = [at for at in self.unresolved.destinations() if self._goes_to(entry, at)]
        if not waiting or self._peering.connect(now, entry).peer.endpoint is None:
            return
        for destination in waiting:
            for unsent in self._device.handle_packets(now, self.unresolved.take(destination)):
                self._device.refuse(unsent)

    def _goes_to(self, entry: Entry, destination: bytes) -> bool:
        """Of several devices that route a destination, one gets what is for it."""
        routers = self._peering.routers
        return entry.record.cover_length(destination) >= 0 if routers is None else routers.carries(entry, destination)

    # Initiations

    def stranger(self, now: float, event: UnknownPeer) -> None:
        """A handshake under a static key that no peer has."""
        query: Query = ("k", event.static_public)
        if not self._may_ask(now, query):
            self._client.count(ControlDrop.STRANGER_FULL)
            return
        found = self._client.lookup(now, query)
        if isinstance(found, Entry):
            self._admit(now, found, event.static_public, event.datagram, event.endpoint)
        elif found is Answer.NO:
            self._client.count(ControlDrop.STRANGER_REFUSED)
        elif self.strangers.add(event.static_public, event.datagram, event.endpoint) is not None:
            self._client.count(ControlDrop.STRANGER_FULL)

    def _may_ask(self, now: float, query: Query) -> bool:
        """Whoever knows our key can make strangers, so they get only a share of the questions."""
        return (
            self._client.is_known(now, query)
            or self._client.questions.pending(query)
            or self._client.questions.count("k") < self._strangers_max
        )

    def _admit(self, now: float, entry: Entry, static_public: bytes, datagram: bytes, endpoint: Endpoint) -> None:
        if self._peering.accept(now, entry, static_public) is None:
            self._client.count(ControlDrop.STRANGER_REFUSED)
            return
        self._device.handle_datagrams(now, [(datagram, endpoint, 0)])

    # Answers

    def answered(self, now: float, query: Query, entry: Entry | None) -> None:
        """The end of a question, whoever asked it."""
        form, value = query
        if isinstance(value, str):
            return
        if form == "k":
            waiting = self.strangers.take(value)
            if waiting is not None and entry is not None:
                self._admit(now, entry, value, *waiting)
            elif waiting is not None:
                self._client.count(ControlDrop.STRANGER_REFUSED)
        elif entry is None:
            self._refuse(self.unresolved.take(value), ControlDrop.UNREACHABLE)
        else:
            self.ready(now, entry)

    def refuse_all(self) -> None:
        """There is no network any more."""
        for destination in self.unresolved.destinations():
            self._refuse(self.unresolved.take(destination), ControlDrop.UNREACHABLE)

    def handle_timeout(self, now: float) -> None:
        for destination in self.unresolved.expired(now):
            self._refuse(self.unresolved.take(destination), ControlDrop.UNRESOLVED_EXPIRED)

    def poll_timeout(self) -> float | None:
        return self.unresolved.poll_timeout()

    def drain_packets(self) -> list[bytes]:
        """ICMP errors for our own host."""
        packets, self._packets = self._packets, []
        return packets

    def _refuse(self, packets: list[bytes], reason: ControlDrop) -> None:
        """Count packets, and tell our own host by the last of them that there is no way."""
        if not packets:
            return
        self._client.count(reason, len(packets))
        answer = icmp.unreachable(packets[-1])
        if answer is not None:
            self._packets.append(answer)
