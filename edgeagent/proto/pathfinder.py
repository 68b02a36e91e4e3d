"""Disco for all peers: frames from the UDP port, the relays and the broker in, probes and choices of paths out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgeagent.proto.constants import MTU_MAX
from edgeagent.proto.disco import CallMe, DiscoDrop, DiscoKeys, Ping, UdpAddress, peek_sender
from edgeagent.proto.path import INNER_MTU_UNKNOWN, TRANSPORT_OVERHEAD, Path, PathKey, key_of
from edgeagent.proto.pathtable import PeerPaths
from edgeagent.proto.prober import DiscoShared
from edgeagent.proto.punch import EDM, Budget, mapping_behaviour
from edgeagent.proto.relay_endpoint import RelayEndpoint
from edgeagent.proto.ways import Ways

if TYPE_CHECKING:
    from edgeagent.proto.crypto import Crypto
    from edgeagent.proto.devicemap import DeviceMap
    from edgeagent.proto.endpoint import Endpoint, Transmit
    from edgeagent.proto.keys import Entropy
    from edgeagent.proto.records import Entry
    from edgeagent.proto.ways import WayOut

INTRODUCED_MAX = 32  # peers without a link that are met because the hub told us of them
INTRODUCED_S = 30.0
WAKE_BURST, WAKE_PER_S = 40, 1 / 300  # call-me of one peer that wake us up although no traffic ever follows
CLAIMS_MAX = 4  # devices that name one disco key
WAKES_MAX = 64  # peers of which that is remembered


class Pathfinder:
    """Drive it by the handle methods; then `drain_transmits`, `drain_signals` and `drain_changed`, and sleep until
    `poll_timeout()`. `peers` has the paths of each device whose feed names a disco key.
    """

    def __init__(
        self,
        now: float,
        *,
        crypto: Crypto,
        entropy: Entropy,
        device_map: DeviceMap,
        node_key: bytes,
        mtu: int,
    ) -> None:
        self.keys = DiscoKeys(crypto, entropy)
        self.shared = DiscoShared(now, self.keys, entropy, device_map, node_key)
        self.shared.mtu = mtu
        self.peers: dict[str, PeerPaths] = {}
        self.home_relay: str | None = None  # ours; None: relays cannot be used at present
        self.called = False  # somebody has called us since the owner last looked
        self._wakes: dict[str, Budget] = {}
        self._strangers = Budget(now, WAKE_BURST, WAKE_PER_S)
        # Nobody proves that the key in its feed is its own, so several may name one: none of them is to lose by that
        self._by_key_id: dict[bytes, list[PeerPaths]] = {}
        self._by_path: dict[PathKey, list[PeerPaths]] = {}  # those whose current way it is
        self._keys: dict[str, PathKey] = {}  # the same by device
        self.pathless: dict[str, PeerPaths] = {}  # those without one: WireGuard sends as it sees fit
        # Devices whose current path is another (True), or takes other sizes; not yet drained
        self._changed: dict[str, bool] = {}
        self._answered: dict[str, None] = {}  # devices that answered a ping by their current path, not yet drained
        self._offered: dict[str, list[UdpAddress]] = {}  # what each feed said last
        self._deadlines: dict[str, float] = {}  # by device; may be too early, never too late

    @property
    def public_key(self) -> bytes:
        """What the feed says as `dk`."""
        return self.keys.public

    @property
    def drops(self) -> dict[DiscoDrop, int]:
        return self.shared.drops

    # Ourselves

    def handle_own(self, now: float, own: list[UdpAddress]) -> None:
        """Our interfaces' addresses are others: nothing is certain any more but what goes by an uplink, of which
        `handle_uplinks` tells."""
        if own == self.shared.own:
            return
        self.shared.own = own
        for paths in self._each():
            paths.anew(now, ours=True)
            self._settle(now, paths)

    def handle_mappings(self, now: float, mapped: list[UdpAddress], uplink: int) -> None:
        """What servers see of us by `uplink`; 0 while there is but one."""
        uplink = uplink if self.shared.ways.several else 0
        before = self.shared.mapped_by.get(uplink, [])
        if mapped == before:
            return
        self.shared.mapped_by[uplink] = mapped
        moved = _places(mapped, mapping_behaviour(mapped)) != _places(before, mapping_behaviour(mapped))
        for paths in self._each():
            if moved and not paths.is_direct and paths.is_wanted(now):
                paths.next_seek_at = now
            self._settle(now, paths)

    def handle_uplinks(self, now: float, uplinks: list[WayOut], *, several: bool) -> None:
        """Those that are usable now, the best first; `several`: a socket is bound to each, at least two in all."""
        shared, before = self.shared, self.shared.ways
        ways = shared.ways = Ways(uplinks, several=several)
        new = [index for index in ways.uplinks if index not in before.uplinks]
        # Before there were several, running paths went by one of those that are new now
        moved = list(new) if before.several else []
        for index, uplink in ways.uplinks.items():
            if index in before.uplinks and not uplink.is_where(before.uplinks[index]):
                moved.append(index)
        alone = next(iter(before.uplinks), 0) if several else next(iter(ways.uplinks), 0)
        if before.several != several:
            kept = shared.mapped_by.get(0 if several else alone)
            shared.mapped_by = {} if kept is None else {alone if several else 0: kept}
        if several:
            shared.mapped_by = {index: seen for index, seen in shared.mapped_by.items() if index in ways.uplinks}
        for paths in self._each():
            paths.handle_uplinks(now, moved, self._offered.get(paths.device, []) if new or moved else [])
            self._settle(now, paths)

    # Peers

    def know(self, now: float, entry: Entry) -> None:
        """What the feed of `entry` says now: its disco key, endpoints, home relay and NAT."""
        device, public = entry.record.device, entry.disco_key
        paths = self.peers.get(device)
        if paths is not None and paths.them.public != public:
            self.forget(device)
            self._changed[device] = False  # what was known of the way no longer holds
            paths = None
        if public is None:
            return
        if paths is None:
            them = self.keys.meet(public)
            claims = [] if them is None else self._by_key_id.setdefault(them.key_id, [])
            if them is None or len(claims) >= CLAIMS_MAX or any(each.them.public != public for each in claims):
                self.shared.drop(DiscoDrop.UNKNOWN_SENDER)
                return
            # One window for replays, whoever it is
            paths = self.peers[device] = PeerPaths(now, self.shared, device, claims[0].them if claims else them)
            claims.append(paths)
            self.pathless[device] = paths
        paths.node_keys = [key for key, _ in entry.record.node_keys]
        paths.nat = entry.nat
        if self.home_relay is not None and entry.home_relay is not None:
            paths.set_relay(RelayEndpoint(entry.home_relay, entry.node_key()))
        else:
            paths.set_relay(None)
        paths.offer(now, entry.endpoints)
        if _places(self._offered.get(device, entry.endpoints), entry.nat) != _places(entry.endpoints, entry.nat):
            paths.anew(now)
        self._offered[device] = entry.endpoints
        self._settle(now, paths)

    def introduce(self, now: float, device: str) -> None:
        """There will be traffic with a device that is known: look for a direct path."""
        paths = self.peers.get(device)
        if paths is not None:
            paths.introduce(now)
            self._settle(now, paths)

    def prove(self, now: float, device: str) -> None:
        """Probe all ways to a device, if its disco key is known."""
        paths = self.peers.get(device)
        if paths is not None:
            paths.prove(now)
            self._settle(now, paths)

    def heard_at(self, device: str) -> float:
        """When it was last heard, by whatever way; before all time where it was not."""
        paths = self.peers.get(device)
        heard = [] if paths is None else [path.heard_at for path in paths.prober if path.heard_at is not None]
        return max(heard, default=float("-inf"))

    def forget(self, device: str) -> None:
        paths = self.peers.pop(device, None)
        if paths is not None:
            _leave(self._by_key_id, paths.them.key_id, paths)
            _leave(self._by_path, self._keys.pop(device, None), paths)
            self.pathless.pop(device, None)
            self._changed.pop(device, None)
            self._answered.pop(device, None)
            self._deadlines.pop(device, None)
            self._offered.pop(device, None)

    def unpin(self, now: float, endpoint: Endpoint) -> None:
        """The kernel would not send from `endpoint.local`; where that is only an uplink, nothing goes by it."""
        refused = endpoint.uplink != 0 and endpoint == endpoint.unpinned()
        for paths in self._each():
            for path in paths.prober.direct.values():
                if path.endpoint == endpoint:
                    path.endpoint = endpoint.unpinned()
                    if refused:
                        path.lose()
            if refused:
                self._settle(now, paths)

    def knows(self, sender: bytes) -> bool:
        """Whether a frame that names this key id can be opened."""
        return sender in self._by_key_id

    def current(self, device: str) -> Path | None:
        """Where traffic for `device` goes; None where WireGuard alone decides."""
        paths = self.peers.get(device)
        return None if paths is None else paths.current

    def ways_to(self, remote: UdpAddress) -> list[Endpoint]:
        """The endpoints that stand for an address, one for each uplink that leads there."""
        return [endpoint for endpoint, _ in self.shared.ways.to(remote, self.shared)]

    def is_open(self, endpoint: Endpoint) -> bool:
        """False for one that is bound to an uplink which is down, or to one at all where there is but one."""
        return self.shared.ways.is_open(endpoint)

    def inner_mtu(self, device: str) -> tuple[int, bool]:
        """The longest packet that its path takes, and whether the datagrams around such may be fragmented outside."""
        path = self.current(device)
        if path is None:
            return MTU_MAX, True  # as WireGuard has it
        if not path.frame_bytes:
            return INNER_MTU_UNKNOWN, True
        return path.frame_bytes - TRANSPORT_OVERHEAD, False

    # Frames

    def handle_frame(self, now: float, frame: bytes, source: Endpoint | None) -> None:
        """A datagram of disco from the UDP port or a relay, or (without a source) a signal from the broker."""
        sender = peek_sender(frame)
        if sender is None:
            self.shared.drop(DiscoDrop.MALFORMED)
            return
        claims = self._by_key_id.get(sender, [])
        message = self.keys.open(claims[0].them, frame) if claims else DiscoDrop.UNKNOWN_SENDER
        if isinstance(message, DiscoDrop):
            self.shared.drop(message)
            if source is None:
                # Whoever knows the inbox may wake us, also one whose keys we have forgotten: he will come by our relay
                self.called = self._strangers.take(now) or self.called
        elif isinstance(message, CallMe):
            for paths in list(claims):
                self.called = self._may_wake(now, paths) or self.called
                paths.handle_call_me(now, message)
                self._settle(now, paths)
        elif source is None:
            self.shared.drop(DiscoDrop.BY_SIGNAL)
        elif isinstance(message, Ping):
            paths = next((each for each in claims if message.node_key in each.node_keys), claims[0])
            paths.handle_ping(now, message, source, len(frame))
            self._settle(now, paths)
        else:
            paths = next((each for each in claims if each.prober.awaits(message)), claims[0])
            if paths.handle_pong(now, message, source, len(frame)) and paths in self.owners(source):
                self._answered[paths.device] = None
            self._settle(now, paths)

    def _may_wake(self, now: float, paths: PeerPaths) -> bool:
        """Whoever calls and never has anything to say does not keep us awake; also not after it was forgotten."""
        if paths.wakes is None:
            paths.wakes = self._wakes.pop(paths.device, None) or Budget(now, WAKE_BURST, WAKE_PER_S)
            self._wakes[paths.device] = paths.wakes
            if len(self._wakes) > WAKES_MAX:
                del self._wakes[next(iter(self._wakes))]
        return paths.wakes.take(now)

    def not_at_relay(self, now: float, node_key: bytes) -> None:
        """A relay knows no member of that key: whose it is may sleep, and is woken through the broker."""
        for paths in self._each():
            if node_key in paths.node_keys:
                paths.not_at_relay(now)
                self._settle(now, paths)

    # Traffic

    def owners(self, endpoint: Endpoint) -> list[PeerPaths]:
        """Whose current path goes there: one peer's, but for those who lie."""
        return self._by_path.get(key_of(endpoint), [])

    def sent(self, now: float, paths: PeerPaths, largest: int, count: int) -> list[Endpoint]:
        """Data went to the peer's current endpoint, in `count` datagrams of up to `largest` bytes. Returns where copies
        of it go."""
        copies = paths.sent(now, largest, count)
        self._note(paths)
        return copies

    def unanswered(self, now: float, paths: PeerPaths, since: float | None, sent_at: float | None) -> None:
        """What an engine sent by itself to the peer's current endpoint, lately at `sent_at`, is not answered since
        then; None: it is."""
        paths.unanswered(now, since, sent_at)
        self._settle(now, paths)

    def refused(self, now: float, endpoint: Endpoint, frame_bytes: int) -> None:
        """The system would not send so long a datagram to `endpoint`."""
        for paths in self._each():
            if paths.prober.find(endpoint) is not None:
                paths.refused(now, endpoint, frame_bytes)
                self._settle(now, paths)

    def heard(self, now: float, paths: PeerPaths, source: Endpoint, *, is_data: bool) -> None:
        """Authentic data, or a keepalive, came from there."""
        paths.heard(now, source, is_data=is_data)
        self._strangers.refill()
        self._note(paths)

    def roamed(self, now: float, device: str, source: Endpoint) -> None:
        """WireGuard heard its peer where it did not expect it."""
        paths = self.peers.get(device)
        if paths is not None:
            paths.roamed(now, source)
            self._settle(now, paths)

    # Time

    def handle_timeout(self, now: float) -> None:
        for device, at in list(self._deadlines.items()):
            if at <= now:
                paths = self.peers[device]
                paths.handle_timeout(now)
                self._settle(now, paths)

    def poll_timeout(self) -> float | None:
        return min(self._deadlines.values(), default=None)

    # Outputs

    def drain_transmits(self) -> list[Transmit]:
        transmits, self.shared.transmits = self.shared.transmits, []
        return transmits

    def drain_signals(self) -> list[tuple[str, bytes]]:
        """(device, frame) for its inbox at the broker."""
        signals, self.shared.signals = self.shared.signals, []
        return signals

    def drain_answered(self) -> list[str]:
        """Devices that have answered a ping by their current path since the last call."""
        answered, self._answered = self._answered, {}
        return list(answered)

    def drain_changed(self) -> list[tuple[str, bool]]:
        """Devices whose current path is another than before (True), or takes other sizes."""
        changed, self._changed = self._changed, {}
        return list(changed.items())

    def _each(self) -> list[PeerPaths]:
        return list(self.peers.values())

    def _settle(self, now: float, paths: PeerPaths) -> None:
        before = self._keys.get(paths.device)
        changed = paths.choose(now)
        key = None if paths.current is None else paths.current.key
        if changed or key != before:
            _leave(self._by_path, self._keys.pop(paths.device, None), paths)
            if key is None:
                self.pathless[paths.device] = paths
            else:
                self.pathless.pop(paths.device, None)
                self._by_path.setdefault(key, []).append(paths)
                self._keys[paths.device] = key
            self._changed[paths.device] = True
        frame_bytes = 0 if paths.current is None else paths.current.frame_bytes
        if frame_bytes != paths.told_bytes:
            paths.told_bytes = frame_bytes
            self._changed.setdefault(paths.device, False)
        self._note(paths)

    def _note(self, paths: PeerPaths) -> None:
        """When it next wants to be called."""
        at = paths.deadline()
        if at is None:
            self._deadlines.pop(paths.device, None)
        else:
            self._deadlines[paths.device] = at


def _leave(table: dict[Any, list[PeerPaths]], key: object, paths: PeerPaths) -> None:
    """Take it out of the list that `key` has, which need not be there."""
    found = table.get(key, [])
    if paths in found:
        found.remove(paths)
        if not found:
            del table[key]


def _places(endpoints: list[UdpAddress], nat: str | None) -> list[UdpAddress]:
    """What has to change before a search is worth beginning anew. Where a NAT takes another port for each destination,
    one port more says nothing."""
    return [(address, 0) for address in sorted({address for address, _ in endpoints})] if nat == EDM else endpoints
