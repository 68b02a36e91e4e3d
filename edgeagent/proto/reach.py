"""How this device is reached, and reaches out: its uplinks, where servers see it, its relays; and what each tells the
others. The node drives it; the paths to single peers are the Pathfinder's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeagent.proto.node_events import ActiveUplinkChanged, RelayNamesChanged
from edgeagent.proto.outside import Outside
from edgeagent.proto.paths import is_usable
from edgeagent.proto.relay_endpoint import RelayEndpoint
from edgeagent.proto.relays import Relays

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from edgeagent.proto.crypto import Crypto
    from edgeagent.proto.devicemap import DeviceMap
    from edgeagent.proto.endpoint import Transmit
    from edgeagent.proto.keys import Entropy
    from edgeagent.proto.linkpaths import LinkPaths
    from edgeagent.proto.node_events import NodeEvent
    from edgeagent.proto.pathfinder import Pathfinder
    from edgeagent.proto.records import UdpAddress
    from edgeagent.proto.uplinks import Uplinks
    from edgeagent.proto.whereabouts import Whereabouts


class Reach:
    """`join` it with the paths, then drive it by the handle methods; `follow` after any input to the node, `send` what
    is to go out; drain events and transmits.

    `uplinks` is None as long as there was never more than one.
    """

    def __init__(
        self, now: float, *, crypto: Crypto, entropy: Entropy, jitter: Callable[[], float], private: bytes
    ) -> None:
        self.relays = Relays(
            now, crypto=crypto, entropy=entropy, jitter=jitter, private=private, is_usable=self._is_usable
        )
        self.outside = Outside(entropy, self.relays.udp_servers)
        self.uplinks: Uplinks | None = None
        self._finder: Pathfinder
        self._paths: LinkPaths
        self._whereabouts: Whereabouts
        self._transmits: list[Transmit] = []
        self._events: list[NodeEvent] = []

    def join(self, finder: Pathfinder, paths: LinkPaths, whereabouts: Whereabouts) -> None:
        """Whom it tells."""
        self._finder = finder
        self._paths = paths
        self._whereabouts = whereabouts

    # Inputs

    def use_map(self, now: float, device_map: DeviceMap) -> None:
        """Another map is in use."""
        if self.relays.set_map(now, device_map.relays, device_map.passes):
            self._look_up_relays()
            self.outside.doubt(now, survey=True)

    def handle_addresses(self, now: float, endpoints: list[UdpAddress], kept: Collection[int] = ()) -> None:
        """`kept` are streams to relays that leave by the way that they were made by."""
        self.relays.set_families(list(dict.fromkeys(len(address) for address, _ in endpoints)))
        if self._whereabouts.handle_addresses(now, endpoints):
            if not self._finder.shared.ways.several:  # else the uplinks have told which of them moved
                self.outside.forget(now)
            self.relays.network_changed(now, kept)
            self._look_up_relays()
            self.outside.doubt(now, survey=True)

    def handle_relay_addresses(self, now: float, relay: str, addresses: list[UdpAddress]) -> None:
        self.relays.set_addresses(now, relay, addresses)
        self.outside.doubt(now, survey=True)

    def handle_uplinks(self, now: float, uplinks: Uplinks) -> None:
        self.uplinks = uplinks
        self._settle_uplinks(now, uplinks)

    def used(self, now: float) -> None:
        """There are packets to be sent."""
        if self.uplinks is not None:
            self.uplinks.used(now)

    # Time

    def handle_timeout(self, now: float) -> None:
        self.relays.handle_timeout(now)
        self.outside.handle_timeout(now)
        if self.uplinks is not None:
            self.uplinks.handle_timeout(now)
            self._settle_uplinks(now, self.uplinks)

    def poll_timeout(self) -> float | None:
        times = [self.relays.poll_timeout(), self.outside.poll_timeout()]
        if self.uplinks is not None:
            times.append(self.uplinks.poll_timeout())
        return min((at for at in times if at is not None), default=None)

    # Outputs

    def send(self, now: float, transmits: list[Transmit]) -> None:
        """What is for a member of a relay goes there, all else as it is."""
        for transmit in transmits:
            if isinstance(transmit.endpoint, RelayEndpoint):
                self.relays.send(now, transmit.endpoint, transmit.datagrams, transmit.ecn)
            else:
                self._transmits.append(transmit)

    def drain_transmits(self) -> list[Transmit]:
        transmits, self._transmits = self._transmits, []
        return transmits

    def drain_events(self) -> list[NodeEvent]:
        events, self._events = self._events, []
        return events

    def close(self, now: float) -> None:
        """Take leave of all relays."""
        self.relays.close(now)
        self._transmits += self.relays.drain_transmits()

    # What the parts tell each other

    def follow(self, now: float) -> bool:
        """See to what came in. True where paths may be others now: then they are to be followed, and this again."""
        finder, relays, outside = self._finder, self.relays, self.outside
        if finder.called:
            finder.called = False
            relays.wake(now)
        if finder.shared.mapping_doubted:
            finder.shared.mapping_doubted = False
            outside.doubt(now)
        if finder.shared.seeking:
            finder.shared.seeking = False
            outside.want(now)
        relays.settle(now)
        if relays.moved:
            relays.moved = False
            outside.doubt(now)
        for measured in outside.drain_measured():
            relays.measured(now, measured.relay, measured.endpoint, measured.round_trip_s)
        news = outside.drain_news()
        for uplink, mapped in news:
            self._whereabouts.handle_mappings(now, self._seen_outside(mapped), uplink)
        if self.uplinks is not None:
            self._follow_uplinks(now, self.uplinks)
        moves = relays.home != finder.home_relay
        if moves:
            self._whereabouts.handle_home_relay(now, relays.home)
        gone = relays.drain_gone()
        for key in gone:
            self._paths.not_at_relay(now, key)
        self.send(now, finder.drain_transmits())
        self._transmits += relays.drain_transmits()
        self._transmits += outside.drain_transmits()
        return moves or bool(news or gone)

    def _is_usable(self, address: bytes) -> bool:
        """Whether a relay can be there: one inside the mesh would be a tunnel in itself."""
        return is_usable(address, self._finder.shared.device_map)

    def _seen_outside(self, mapped: list[UdpAddress]) -> list[UdpAddress]:
        """Of what servers saw of us, what others can use. One beside us sees no NAT, and tells nothing of it."""
        usable = [each for each in mapped if self._is_usable(each[0])]
        return [each for each in usable if each not in self._finder.shared.own] or usable

    def _look_up_relays(self) -> None:
        if self.relays.names_to_resolve():
            self._events.append(RelayNamesChanged())

    def _follow_uplinks(self, now: float, uplinks: Uplinks) -> None:
        """By which uplinks somebody has answered, or nobody."""
        heard_by, self._finder.shared.heard_by = self._finder.shared.heard_by, {}
        verdicts = self.outside.drain_verdicts()
        for index in heard_by:
            uplinks.answered(now, index)
        for index, answered in verdicts:
            if answered:
                uplinks.answered(now, index)
            else:
                uplinks.unanswered(now, index)
        if heard_by or verdicts:
            self._settle_uplinks(now, uplinks)

    def _settle_uplinks(self, now: float, uplinks: Uplinks) -> None:
        """Paths go by the uplinks that are usable now, and relays by the one that is active."""
        ways = self._finder.shared.ways
        usable, several = uplinks.ways(now), bool(uplinks.bound)
        if usable != list(ways.uplinks.values()) or several != ways.several:
            self.outside.set_uplinks(now, {way.index: way.routed for way in usable} if several else {})
            self._events.extend(self._paths.handle_uplinks(now, usable, several=several))
            self._whereabouts.tell_mappings(now)
        for event in uplinks.drain_events():
            self._events.append(event)
            if isinstance(event, ActiveUplinkChanged):
                self.relays.uplink_changed(now, event.index if several else 0, _routed(uplinks) if several else None)
                self.outside.doubt(now, survey=True)  # how far they are by this one
        active = uplinks.active
        if active is not None and active.index == self.relays.sessions.via:
            self.relays.uplink_changed(now, active.index, _routed(uplinks))
        routed = {uplink.index: uplink.facts.routed for uplink in uplinks}
        for index in uplinks.drain_probes():
            self.outside.probe(now, index, routed.get(index, ()))


def _routed(uplinks: Uplinks) -> tuple[int, ...] | None:
    """The sizes of addresses that the active uplink leads to; None where that is not known."""
    return None if uplinks.active is None else uplinks.active.facts.routed or None
