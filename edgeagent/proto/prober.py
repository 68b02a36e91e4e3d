"""The probes to one peer: rows of pings along each path, and the pongs that move its state."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING

from edgeagent.proto.candidates import kind_of
from edgeagent.proto.disco import (
    PING_BYTES,
    TRANSACTION_SIZE,
    Correspondent,
    DiscoDrop,
    DiscoKeys,
    Pong,
    UdpAddress,
    write_ping,
)
from edgeagent.proto.endpoint import Endpoint, Transmit
from edgeagent.proto.path import (
    LADDER_MTUS,
    MTU_MAX,
    TRANSPORT_OVERHEAD,
    Input,
    Path,
    PathKey,
    PathKind,
    State,
    key_of,
)
from edgeagent.proto.punch import EDM, EIM, SPRAYED_MAX, SPRAYED_PER_S, Budget, guess_next, mapping_behaviour
from edgeagent.proto.relay_endpoint import RelayEndpoint
from edgeagent.proto.ways import Ways

if TYPE_CHECKING:
    from edgeagent.proto.devicemap import DeviceMap
    from edgeagent.proto.keys import Entropy
    from edgeagent.proto.path_search import PathSearch

PATHS_MAX = 24  # per peer, the one by relay not counted
PROBES_MAX = 512  # per peer that may still be answered
PROBE_LIFE_S = 10.0
PUNCH_TTL = 4  # leaves our NATs, and does not reach one that is five hops away or more
PUNCH_LEAD_S = 0.25  # from that to the first probe that does
ROW_S = (0.3, 0.3, 0.4, 0.5, 0.7, 1.0, 1.0)  # waits after each probe of a row: 4.2 s in all
ROW_FULL_S = (0.3, 0.3, 0.4, 0.5, 0.7)  # the same for probes of payload size
FULL_BEFORE_LADDER = 2  # of those, how many have full size before shorter ones go along
ROW_HASTY_S = (0.1, 0.1, 0.1, *ROW_S[1:])  # the same where traffic fell silent: quick ones instead of the first,
HASTY = 3  # so many, and only after them the path is doubtful: on links that lose a lot one says little
HEARD_S = 1.0  # a path that the peer's traffic still comes by gets so many rows before it is given up: where a third
HEARD_ROWS = 2  # of everything is lost, half of the probes stay without an answer
WAIT_PER_LATENCY = 2.5
WAIT_MAX_S = 2.0


class DiscoShared:
    """What the paths of all peers have in common: our keys, what is known of ourselves, and the outputs."""

    __slots__ = (
        "device_map", "drops", "entropy", "heard_by", "keys", "mapped_by", "mapping_doubted", "mtu", "node_key",
        "opened", "own", "seeking", "signals", "sparing", "sprayed", "transmits", "ways",
    )  # fmt: skip

    def __init__(self, now: float, keys: DiscoKeys, entropy: Entropy, device_map: DeviceMap, node_key: bytes) -> None:
        self.keys = keys
        self.entropy = entropy
        self.device_map = device_map
        self.node_key = node_key
        self.mtu = 0  # of the TUN
        self.own: list[UdpAddress] = []  # our interfaces' addresses
        self.opened: list[UdpAddress] = []  # outside addresses and ports that routers have opened for us on request
        self.ways = Ways([], several=False)
        # By uplink (0 while there is but one): as servers saw us by it, in the order they were asked
        self.mapped_by: dict[int, list[UdpAddress]] = {}
        self.heard_by: dict[int, None] = {}  # uplinks by which a pong came, not yet taken note of
        self.mapping_doubted = False  # a direct path died that had worked: our NAT may have forgotten us
        self.sparing = 1  # so many times rarer than usual are probes that repeat: the uplink's bytes cost money
        self.seeking = False  # somebody is told where we are: it should be true
        self.sprayed = Budget(now, SPRAYED_MAX, SPRAYED_PER_S)
        self.transmits: list[Transmit] = []
        self.signals: list[tuple[str, bytes]] = []  # (device, frame) for its inbox
        self.drops: dict[DiscoDrop, int] = dict.fromkeys(DiscoDrop, 0)

    @property
    def full_bytes(self) -> int:
        """Of the longest datagram that a packet from the TUN makes, padding included."""
        return self.mtu + TRANSPORT_OVERHEAD

    @property
    def nat(self) -> str | None:
        """Our own NAT's mapping behaviour; of the best uplink, where there are several."""
        found = [mapping_behaviour(mapped) for mapped in self.mapped_by.values()]
        return EIM if EIM in found else EDM if EDM in found else None

    @property
    def mapped(self) -> list[UdpAddress]:
        """Where servers saw us, each address once: the newest of each uplink, then those before."""
        newest_first = [mapped[::-1] for mapped in self.mapped_by.values()]
        longest = max(map(len, newest_first), default=0)
        return list(dict.fromkeys(mapped[at] for at in range(longest) for mapped in newest_first if at < len(mapped)))

    def endpoints(self) -> list[UdpAddress]:
        """Where we may be reached, for a call-me: interfaces, opened ports, mappings, and where the next may be."""
        guesses = [guess for mapped in self.mapped_by.values() for guess in guess_next(mapped)]
        return list(dict.fromkeys([*self.own, *self.opened, *self.mapped, *guesses]))

    def drop(self, reason: DiscoDrop, count: int = 1) -> None:
        self.drops[reason] += count


class Probe:
    """A ping that may still be answered, from `key` and with `frame_bytes`; `serial` is its search's, or 0."""

    __slots__ = ("endpoint", "frame_bytes", "key", "sent_at", "serial")

    def __init__(self, sent_at: float, endpoint: Endpoint, frame_bytes: int, serial: int) -> None:
        self.sent_at = sent_at
        self.endpoint = endpoint
        self.key = key_of(endpoint)
        self.frame_bytes = frame_bytes
        self.serial = serial


class Prober:
    """Drive it: `add` paths, `begin` rows, `handle_pong`, and `handle_timeout` at `deadline()`.

    `direct` holds the paths by key, `relay` the one that is always there if the peer has a home relay.
    """

    __slots__ = ("_probes", "_shared", "_them", "direct", "relay")

    def __init__(self, shared: DiscoShared, them: Correspondent) -> None:
        self._shared = shared
        self._them = them
        self._probes: OrderedDict[bytes, Probe] = OrderedDict()
        self.direct: dict[PathKey, Path] = {}
        self.relay: Path | None = None

    def __iter__(self) -> Iterator[Path]:
        yield from list(self.direct.values())
        if self.relay is not None:
            yield self.relay

    def find(self, endpoint: Endpoint) -> Path | None:
        key = key_of(endpoint)
        return self.relay if self.relay is not None and self.relay.key == key else self.direct.get(key)

    def add(self, endpoint: Endpoint, kind: PathKind, keep: Path | None = None) -> Path | None:
        """The path to `endpoint`, new or known. When there is no room a dead one gives way, or one that nobody tried,
        but not `keep`; None where none can."""
        path = self.direct.get(key_of(endpoint))
        if path is not None:
            return path
        if len(self.direct) >= PATHS_MAX:
            poor = [old for old in self.direct.values() if old.state in (State.DEAD, State.UNTRIED) and old is not keep]
            if not poor:
                self._shared.drop(DiscoDrop.PATHS_FULL)
                return None
            del self.direct[min(poor, key=lambda old: old.state is State.UNTRIED).key]
        path = self.direct[key_of(endpoint)] = Path(endpoint.unpinned(), kind)
        path.cost_ms = self._shared.ways.cost_ms(endpoint)
        return path

    def rekey(self, path: Path, endpoint: Endpoint) -> None:
        """`path` goes by another uplink now, or as the kernel routes it. Where two become one, the one alive stays."""
        before, path.endpoint = path.key, endpoint
        del self.direct[before]
        path.key = key_of(endpoint)
        other = self.direct.get(path.key)
        if other is None or other.state is State.DEAD:
            self.direct[path.key] = path
        for probe in self._probes.values():
            if probe.key == before:
                probe.key = path.key

    def kind(self, endpoint: Endpoint) -> PathKind | None:
        """Of an endpoint that something authentic came from; None inside the mesh."""
        address, shared = endpoint.ip_bytes(), self._shared
        if shared.device_map.holds(address):
            return None
        uplink = shared.ways.uplinks.get(endpoint.uplink)
        own = shared.own if uplink is None else [(mine, 0) for mine in uplink.addresses]
        return kind_of(address, own, shared.device_map) or PathKind.PRIVATE

    # Rows

    def begin(self, now: float, path: Path, *, punch: bool = False, full: bool = False, hasty: bool = False) -> None:
        """A row of probes, the first of them now; `punch`: after one that opens our NAT and reaches nobody; `full`:
        along a proven path, whether whole packets still pass; `hasty`: the first ones quickly. None by an uplink that
        is down."""
        if not self._shared.ways.is_open(path.endpoint):
            return
        if path.state is State.DEAD:
            path.take(Input.RETRY)
        path.take(Input.PROBE)
        path.attempts = -1 if punch and path.kind in (PathKind.IPV4, PathKind.IPV6) else 0
        path.full = full
        path.hasty = hasty
        path.next_probe_at = now

    def hurry(self, now: float, path: Path) -> None:
        """Something came from there: what waited for its turn goes now."""
        if path.next_probe_at is None:
            self.begin(now, path)
        else:
            path.attempts = max(0, min(path.attempts, 2))
            path.next_probe_at = now

    def handle_timeout(self, now: float) -> None:
        for path in self:
            if path.next_probe_at is not None and path.next_probe_at <= now:
                self._next_probe(now, path)

    def deadline(self) -> float | None:
        return min((path.next_probe_at for path in self if path.next_probe_at is not None), default=None)

    def _next_probe(self, now: float, path: Path) -> None:
        full = path.state is State.ANSWERED and not path.is_relay
        row = ROW_FULL_S if full else ROW_HASTY_S if path.hasty else ROW_S
        if path.attempts < 0:
            path.attempts = 0
            path.next_probe_at = now + PUNCH_LEAD_S
            self.ping(now, path.endpoint, PING_BYTES, ttl=PUNCH_TTL)
            return
        is_heard = path.state is State.DOUBTFUL and not path.is_relay and now - (path.heard_at or 0.0) < HEARD_S
        if path.attempts >= len(row) * (HEARD_ROWS if is_heard else 1):
            self._shared.mapping_doubted |= path.state is State.DOUBTFUL and not path.is_relay
            path.take(Input.GAVE_UP)
            path.next_probe_at = path.roamed_at = None
            return
        sure = path.state is State.PROVEN or (path.is_relay and path.state is State.ANSWERED)
        if sure and path.attempts >= (HASTY if path.hasty else 1):
            path.take(Input.SILENCE)
        for size in self._sizes(path):
            self.ping(now, path.endpoint, size)
        wait_s = max(row[min(path.attempts, len(row) - 1)], WAIT_PER_LATENCY * (path.latency_ms or 0.0) / 1e3)
        path.attempts += 1
        path.next_probe_at = now + min(WAIT_MAX_S, wait_s)

    def _sizes(self, path: Path) -> list[int]:
        """What the next probe of the row tries."""
        full_bytes = self.full_bytes(path)
        if path.is_relay:
            return [PING_BYTES]
        if path.state is State.ANSWERED:
            ladder = LADDER_MTUS if path.attempts >= FULL_BEFORE_LADDER else ()
            return [full_bytes, *(mtu - path.overhead for mtu in ladder if mtu - path.overhead < full_bytes)]
        if (path.state is State.PROVEN and path.full) or (path.state is State.DOUBTFUL and path.attempts % 2 == 0):
            return [path.frame_bytes or full_bytes]
        return [PING_BYTES]

    def full_bytes(self, path: Path) -> int:
        """Of the longest frame that is of any use along it."""
        return min(self._shared.full_bytes, MTU_MAX - path.overhead)

    def ping(self, now: float, endpoint: Endpoint, frame_bytes: int, ttl: int | None = None, serial: int = 0) -> None:
        """One ping, which may be answered for PROBE_LIFE_S."""
        shared = self._shared
        while self._probes:
            oldest = next(iter(self._probes.values()))
            if len(self._probes) < PROBES_MAX and now - oldest.sent_at <= PROBE_LIFE_S:
                break
            self._probes.popitem(last=False)
        transaction = shared.entropy(TRANSACTION_SIZE)
        cost_ms = shared.ways.cost_ms(endpoint)
        frame = shared.keys.seal(self._them, write_ping(transaction, shared.node_key, frame_bytes, cost_ms))
        self._probes[transaction] = Probe(now, endpoint, len(frame), serial)
        shared.transmits.append(Transmit(endpoint, [frame], ttl=ttl))

    # Sizes

    def search(self, now: float, path: Path) -> None:
        """Send the pings that the path's search for its MTU wants; where nothing passes any more, prove it anew."""
        search = path.search
        if search is None:
            return
        for serial, frame_bytes in search.drain():
            self.ping(now, path.endpoint, frame_bytes, serial=serial)
        if search.failed and path.state is State.PROVEN:
            path.take(Input.SILENCE)
            self.begin(now, path)

    def refused(self, now: float, path: Path, frame_bytes: int) -> None:
        """The system would not send so long a frame: shorter ones need not wait."""
        if path.is_sure:
            path.search = path.search or self.search_of(path)
            path.search.refused(now, frame_bytes)
            self.search(now, path)
        elif path.state is State.ANSWERED and path.attempts < FULL_BEFORE_LADDER:
            path.attempts = FULL_BEFORE_LADDER
            path.next_probe_at = now

    def search_of(self, path: Path, lost_bytes: int = 0) -> PathSearch:
        """A new one; it begins with the next payload. `lost_bytes` is the length of a frame that did not pass."""
        from edgeagent.proto.path_search import PathSearch  # needed where there is large traffic, or a narrow path

        return PathSearch(path, self.full_bytes(path), lost_bytes, self._shared.sparing)

    # Answers

    def awaits(self, pong: Pong) -> bool:
        """Whether it answers a ping of ours."""
        return pong.transaction in self._probes

    def handle_pong(self, now: float, pong: Pong, source: Endpoint, frame_bytes: int) -> Path | None:
        """The path that was answered, or None for a pong that counts for nothing."""
        shared, probe = self._shared, self._probes.get(pong.transaction)
        if probe is None or now - probe.sent_at > PROBE_LIFE_S or frame_bytes != probe.frame_bytes:
            shared.drop(DiscoDrop.TRANSACTION)
            return None
        if probe.key != key_of(source):
            shared.drop(DiscoDrop.PONG_SOURCE)
            return None
        del self._probes[pong.transaction]
        if not shared.ways.is_open(source):
            # It was under way when the uplink went down: the path is dead, and nothing could be sent to prove it again
            shared.drop(DiscoDrop.UPLINK_DOWN)
            return None
        path = self.find(source)
        if path is None and not isinstance(source, RelayEndpoint):
            path = self._sprayed(source)
        if path is None:
            return None
        if path.state is State.UNTRIED:
            path.take(Input.PROBE)
        path.measured((now - probe.sent_at) * 1e3)
        path.heard_at = path.ponged_at = now
        path.unanswered_since = None
        if source.local is not None:
            path.endpoint = source
            if source.uplink:
                shared.heard_by[source.uplink] = None
        self._answered(now, path, probe)
        return path

    def _answered(self, now: float, path: Path, probe: Probe) -> None:
        before, was_sure, frame_bytes = path.state, path.is_sure, probe.frame_bytes
        path.take(Input.FULL_PONG if frame_bytes > PING_BYTES and not path.is_relay else Input.PONG)
        if was_sure:
            self._size_answered(now, path, probe)
        elif path.is_sure:
            # What the row had tried before it came to shorter ones did not pass
            by_ladder = before is State.ANSWERED and path.attempts > FULL_BEFORE_LADDER
            self._size_proven(now, path, 0 if path.is_relay else frame_bytes, by_ladder)
        path.attempts = 0
        path.next_probe_at = None
        if path.state is State.PROVEN:
            path.roamed_at = None
        elif not path.is_relay:
            path.next_probe_at = now  # and at once with full size

    def _size_answered(self, now: float, path: Path, probe: Probe) -> None:
        if path.search is not None:
            path.search.answered(now, probe.serial, probe.frame_bytes)
            self.search(now, path)
        elif not path.is_relay:
            path.frame_bytes = max(path.frame_bytes, probe.frame_bytes)

    def _size_proven(self, now: float, path: Path, frame_bytes: int, by_ladder: bool) -> None:
        full_bytes = self.full_bytes(path)
        lost_bytes = full_bytes if by_ladder and frame_bytes < full_bytes else 0
        if frame_bytes:
            path.frame_bytes = frame_bytes
        if path.search is not None:
            path.search.proven(now, frame_bytes, lost_bytes)
            self.search(now, path)
        elif 0 < frame_bytes < full_bytes:
            path.search = self.search_of(path, lost_bytes)

    def _sprayed(self, source: Endpoint) -> Path | None:
        kind = self.kind(source)
        return None if kind is None else self.add(source, kind)
