"""All ways to one peer: which are tried, which one carries the traffic, and what goes along while that is in doubt.

Traffic goes by the peer's relay at once. A direct path takes over when it is proven; when it falls silent the relay
carries a copy, and when it is dead, everything. What arrives twice, WireGuard's replay window drops.

A path that carried packets both ways and falls silent under traffic is suspected within a few round trips: a row of
quick probes begins, and until one is answered what is sent goes by other ways too. That is no state of the path: one
probe that is lost moves nothing.

Where another direct path is proven (an uplink that stands by, at either end), it is kept so while there is traffic, and
takes over as soon as the current one leaves a probe unanswered, or at once when its uplink goes down. The other end
hears that from where the packets come: until it knows whether its own way there still works, a copy goes there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeagent.proto.candidates import sort_candidates
from edgeagent.proto.disco import PING_BYTES, CallMe, Correspondent, DiscoDrop, Ping, Pong, write_call_me, write_pong
from edgeagent.proto.endpoint import Transmit
from edgeagent.proto.path import IN_DOUBT, LIVE, MTU_MIN, UNPROVEN, Input, Path, PathKind, State
from edgeagent.proto.pathchoice import best_path, other_ways
from edgeagent.proto.paths import from_endpoint
from edgeagent.proto.prober import DiscoShared, Prober
from edgeagent.proto.punch import EDM, SPRAY_PORTS, SPRAYS_PER_PEER_MAX, Budget, Spray
from edgeagent.proto.rechecks import Rechecks
from edgeagent.proto.relay_endpoint import RelayEndpoint
from edgeagent.proto.ways import migrate

if TYPE_CHECKING:
    from edgeagent.proto.endpoint import Endpoint
    from edgeagent.proto.path import PathKey
    from edgeagent.proto.records import UdpAddress

WANTED_S = 30.0  # after traffic, or an introduction: so long a direct path is looked for
SEEK_AGAIN_S = (2.5, 2.5, 3.0, 7.0, 15.0, 30.0, 60.0, 120.0, 300.0)  # between two searches that find none
SEEKS_QUICK = 3  # so many follow each other as quickly on uplinks whose bytes cost money
CALL_BURST, CALL_PER_S = 4, 0.5  # of call-me, either way
PING_BURST, PING_PER_S = 80, 20.0  # pings of one peer that are answered
SILENCE_S = 1.0  # traffic without an answer for so long asks for a probe,
VERIFY_SPACING_S = 3.0  # unless the last one was answered less long ago: one-way traffic is nobody's fault
TRUST_S = 20.0  # a path not heard from for longer is in doubt when traffic begins again: NATs forget
SPARE_SILENCE_S = 0.4  # the same where another proven path could take over: a wrong guess costs nothing there,
SPARE_SPACING_S = 0.5
FOLLOW_SPACING_S = 0.5  # between two looks at a proven path because the peer uses another way
ROUNDING_S = 0.005  # of times that engines tell
TAIL_AFTER_S = 0.004  # what is not answered for so long is no part of a stream that runs
TAILS_MAX = 32
PROVED_MAX = 4  # dead paths that get a ping when somebody has to know whether the peer is there
SMALL_BYTES = MTU_MIN - 57  # a frame so short passes everywhere


class PeerPaths:
    """Drive it by what comes to be known; after each input `choose`, and `handle_timeout` at `deadline()`.

    `current` is where traffic goes, None where only WireGuard knows; `copies` where it goes besides. The MTU of the
    current path alone is searched, and only while there is traffic; of others it is what they were proven with.
    """

    __slots__ = (
        "_absences", "_absent_until", "_answers", "_calls_in", "_calls_out", "_followed", "_followed_at", "_has_spare",
        "_heard_key", "_is_watched", "_rechecks", "_seeks", "_shared", "_silent_since", "_spray",
        "_sprays", "_suspected", "_tail", "_used_at", "copies", "current", "device", "introduced_at", "nat",
        "next_seek_at", "node_keys", "prober", "rx_bytes", "them", "told_bytes", "wakes",
    )  # fmt: skip

    def __init__(self, now: float, shared: DiscoShared, device: str, them: Correspondent) -> None:
        self._shared = shared
        self._answers = Budget(now, PING_BURST, PING_PER_S)
        self._calls_in = Budget(now, CALL_BURST, CALL_PER_S)
        self._calls_out = Budget(now, CALL_BURST, CALL_PER_S)
        self.wakes: Budget | None = None  # what it may still wake us up for; its traffic refills that
        self._used_at: float | None = None
        self._seeks = 0
        self._absences = 0  # so often it was asked for because its relay did not have it, since it was last heard,
        self._absent_until = now  # and will not be again before that
        self._spray: Spray | None = None
        self._sprays = 0
        self._has_spare = False  # another direct path than the current one is proven
        self._heard_key: PathKey | None = None  # the proven path that the peer's traffic came by last
        self._followed: Path | None = None  # gets copies, until the current path has answered
        self._followed_at: float | None = None
        self._suspected: Path | None = None  # the current path, as long as it has not answered a doubt
        # Since when it answers quick doubts and nothing else: what is longer than their pings may be lost all the same
        self._silent_since: float | None = None
        self._tail: list[tuple[bytes, int]] = []  # datagrams that went into a silence, with their ECN fields
        self._is_watched = False  # an engine looks for its silence, and knows better when it was heard last
        self.device = device
        self.them = them
        self.nat: str | None = None  # as its feed says
        self.node_keys: list[bytes] = []
        self.prober = Prober(shared, them)
        self._rechecks = Rechecks(shared, self.prober)
        self.current: Path | None = None
        self.copies: list[Endpoint] = []
        self.next_seek_at: float | None = None
        self.introduced_at: float | None = None  # when the hub, or its call-me, spoke of it
        self.rx_bytes = 0  # of its WireGuard peer, when it was last looked at
        self.told_bytes = 0  # `frame_bytes` of the current path, as its WireGuard peer knows it

    # What comes to be known

    def offer(self, now: float, endpoints: list[UdpAddress]) -> None:
        """Where the peer says it is."""
        found, refused = sort_candidates(endpoints, self._shared.own, self._shared.device_map)
        self._shared.drop(DiscoDrop.CANDIDATE, refused)
        for endpoint, _ in found:
            for way, kind in self._shared.ways.to(endpoint, self._shared):
                path = self.prober.add(way, kind, self.current)
                if path is not None and path.state is State.UNTRIED and self.is_wanted(now):
                    self.prober.begin(now, path, punch=True)

    def set_relay(self, endpoint: RelayEndpoint | None) -> None:
        """The peer's home relay, as far as it is known."""
        relay = self.prober.relay
        if endpoint is None:
            self.prober.relay = None
        elif relay is None or relay.endpoint != endpoint:
            self.prober.relay = Path(endpoint, PathKind.RELAY)

    def anew(self, now: float, *, ours: bool = False) -> None:
        """The peer has moved, or we have (`ours`): what failed before may succeed, and what worked may not."""
        self._seeks = self._sprays = 0
        for path in self.prober:
            if not (ours and path.endpoint.uplink):
                self._doubt_anew(now, path)
        self.next_seek_at = now if self.is_wanted(now) else None

    def handle_uplinks(self, now: float, moved: list[int], offered: list[UdpAddress]) -> None:
        """Our uplinks are others: those of `moved` are back, or lead somewhere else now; `offered` is where the peer
        says it is, if that is to be tried by any of them."""
        migrate(self.prober, self._shared)
        self.offer(now, offered)
        wanted = self.is_wanted(now)
        for path in list(self.prober.direct.values()):
            if path.endpoint.uplink in moved:
                self._doubt_anew(now, path)
            if wanted and path.state is State.UNTRIED and path.next_probe_at is None:
                self.prober.begin(now, path, punch=True)
        if wanted and offered and self._shared.ways.several:
            self._call(now)

    def _doubt_anew(self, now: float, path: Path) -> None:
        path.endpoint = path.endpoint.unpinned()  # the source address may be gone
        path.search = None
        if path.state is State.DEAD:
            path.take(Input.RETRY)
        elif path.state in (State.PROVEN, State.ANSWERED):
            path.take(Input.SILENCE)
            if self.is_wanted(now):
                self.prober.begin(now, path)

    def introduce(self, now: float) -> None:
        """Somebody says that there will be traffic."""
        self.introduced_at = now
        if not self.is_direct and self.next_seek_at is None:
            self.next_seek_at = now

    def prove(self, now: float) -> None:
        """Somebody has to know whether it is there: probe every way that may work, also its relay's."""
        self.introduce(now)
        dead = []
        for path in self.prober:
            if path.next_probe_at is not None:
                continue
            if path.is_relay or path.state in LIVE:
                self.prober.begin(now, path)
            elif path.state is State.DEAD and self._shared.ways.is_open(path.endpoint):
                dead.append(path)
        dead.sort(key=lambda path: path.latency_ms is None)  # those that once worked are the likeliest to do so again
        for path in dead[:PROVED_MAX]:
            self.prober.ping(now, path.endpoint, PING_BYTES)

    # Frames of the peer, opened

    def handle_ping(self, now: float, ping: Ping, source: Endpoint, frame_bytes: int) -> None:
        shared = self._shared
        if ping.node_key not in self.node_keys:
            shared.drop(DiscoDrop.NODE_KEY)
            return
        if not self._answers.take(now):
            shared.drop(DiscoDrop.FLOOD)
            return
        by_relay = isinstance(source, RelayEndpoint)
        observed = None if by_relay else from_endpoint(source)
        frame = shared.keys.seal(self.them, write_pong(ping.transaction, observed, frame_bytes))
        shared.transmits.append(Transmit(source, [frame]))
        if by_relay:
            self._wonder(now)
            return
        path = self._path_from(source)
        if path is None:
            return
        path.remote_cost_ms = ping.cost_ms
        if path.state in (State.UNTRIED, State.PROBING, State.DEAD):
            path.take(Input.HEARD)
            self.prober.hurry(now, path)
            return
        if path.state in IN_DOUBT and path.next_probe_at is None:
            self.prober.begin(now, path)
        if path is not self.current:
            path.heard_at = now  # the other end keeps it up

    def handle_pong(self, now: float, pong: Pong, source: Endpoint, frame_bytes: int) -> bool:
        """False for a pong that counts for nothing."""
        since = None if self.current is None else self.current.unanswered_since
        path = self.prober.handle_pong(now, pong, source, frame_bytes)
        if path is not None:
            self._is_there(now)
        if path is self.current:
            self._followed = None
            self._refute(now, since)
        if path is not None and path.state is State.PROVEN and not path.is_relay:
            self._seeks = 0
            self._spray = None
            self.next_seek_at = None
        return path is not None

    def not_at_relay(self, now: float) -> None:
        """The peer's relay does not have it: it may be asleep, or about to tell of another relay. The relay says so for
        each packet, and a peer that is off is asked more and more rarely."""
        relay = self.prober.relay
        if relay is None or now < self._absent_until or not self.is_wanted(now):
            return
        self._absent_until = now + self._again_s(self._absences)
        self._absences += 1
        if relay.next_probe_at is None:
            self.prober.begin(now, relay)
            self._call(now)

    def _is_there(self, now: float) -> None:
        """It answers, calls or talks: it is no longer one that is off."""
        self._absences, self._absent_until = 0, now

    def handle_call_me(self, now: float, call: CallMe) -> None:
        """Ping where the peer asks for it: it does the same."""
        if not self._calls_in.take(now):
            self._shared.drop(DiscoDrop.FLOOD)
            return
        self._is_there(now)
        self.introduced_at = now
        self.offer(now, call.endpoints)
        for path in self.prober:
            if path.is_relay or path.state in (State.PROVEN, State.ANSWERED):
                continue
            if path.next_probe_at is None:
                self.prober.begin(now, path, punch=path.state is not State.DOUBTFUL)
            elif path.state is not State.DOUBTFUL:  # whose row both sides have begun, and which is to end
                path.attempts = min(path.attempts, 1)

    # Traffic of WireGuard

    def sent(self, now: float, largest: int, count: int) -> list[Endpoint]:
        """Data went to `current`, in `count` datagrams of up to `largest` bytes. Returns where copies go."""
        path = self.current
        self._use(now)
        if path is None:
            return self.copies
        if path.unanswered_since is None:
            path.unanswered_since = now
        if path.next_probe_at is None and not path.is_relay:
            forgotten = path.heard_at is None or now - path.heard_at > TRUST_S
            if path.state is State.PROVEN and forgotten:
                path.take(Input.SILENCE)
            if path.state is State.DOUBTFUL:
                self.prober.begin(now, path)
                self._call(now)
                self._choose_copies()
        if path.is_sure:
            self._size_sent(now, path, largest, count)
        return self.copies

    def refused(self, now: float, endpoint: Endpoint, frame_bytes: int) -> None:
        """The system would not send so long a frame to `endpoint`."""
        path = self.prober.find(endpoint)
        if path is not None:
            self.prober.refused(now, path, frame_bytes)

    def heard(self, now: float, source: Endpoint, *, is_data: bool = False) -> None:
        """Authentic traffic came from `source`; `is_data`: not only a keepalive."""
        self._use(now)
        self._is_there(now)
        if self.wakes is not None:
            self.wakes.refill()
        path = self.prober.find(source)
        if path is not None:
            path.heard_at = now
            path.unanswered_since = None
            self._heard_key = path.key
            if path is self.current:
                self._tail.clear()
                self._silent_since = None
            if is_data and path is self.current and not path.is_relay:
                self._be_patient(now, path)

    def roamed(self, now: float, source: Endpoint) -> None:
        """WireGuard heard its peer where it did not expect it."""
        if isinstance(source, RelayEndpoint):
            relay = self.prober.relay
            if relay is None or relay.state is State.DEAD:
                self.set_relay(source)
            elif self.current is not None and self._heard_key == self.current.key:
                self._wonder(now)
            self.heard(now, source)
            return
        path = self._path_from(source)
        if path is None:
            self.heard(now, source)
            return
        if path.state in (State.UNTRIED, State.PROBING, State.ONE_WAY, State.DEAD):
            if path.state is not State.ONE_WAY:
                path.take(Input.HEARD)
            path.endpoint = source
            path.roamed_at = path.roamed_at or now
            if path.next_probe_at is None or path.attempts > 1:
                self.prober.hurry(now, path)
            old = self.current
            if old is not None and old is not path and old.state is State.PROVEN and old.next_probe_at is None:
                old.take(Input.SILENCE)
                self.prober.begin(now, old)
        else:
            if path.state is State.DOUBTFUL and path.next_probe_at is None:
                self.prober.begin(now, path)
            worked = path.state in (State.PROVEN, State.DOUBTFUL)
            if worked and path is not self.current and path.key != self._heard_key:
                self._follow(now, path)
        self.heard(now, source)

    def _follow(self, now: float, path: Path) -> None:
        """The peer has gone over to another path that worked, perhaps because ours is dead: that is to be found out."""
        current = self.current
        if current is not None and current.state is State.PROVEN and current.next_probe_at is None:
            self._followed, self._followed_at = path, now
            self.prober.begin(now, current, hasty=True)
            self._choose_copies()
            self._repeat()

    def _wonder(self, now: float) -> None:
        """The peer says something by the relay in the midst of traffic by the current path: it does not hear us there,
        or is not sure of that. Packets that are late after a move look the same, so it is asked only now and then."""
        current, relay = self.current, self.prober.relay
        if current is None or relay is None or current.is_relay or current.patience is None or self._suspected:
            return
        asked = (self._followed_at, current.ponged_at)
        if current.patience.is_fresh(now) and all(at is None or now - at >= FOLLOW_SPACING_S for at in asked):
            self._follow(now, relay)

    # Silence under traffic

    def unanswered(self, now: float, since: float | None, sent_at: float | None) -> None:
        """An engine that moves packets by itself says since when what goes by the current path is not answered. It
        knows nothing of pongs; `sent_at`: when the last data went out, if any did since it told of that before."""
        self._is_watched = True
        path = self.current
        if path is None:
            return
        if since is not None and path.ponged_at is not None and since < path.ponged_at:
            since = path.ponged_at if sent_at is not None and sent_at > path.ponged_at else None
        path.unanswered_since = since
        if _is_due(self._doubt_at(), now + ROUNDING_S):
            self._suspect(now)

    @property
    def quiet_s(self) -> float | None:
        """So long traffic by the current path may stay without an answer before that is a reason to doubt; None where
        it is not to be looked for: nobody knows of another way, or the path's own pauses are longer."""
        path, relay = self.current, self.prober.relay
        if path is None or path.patience is None or path.is_relay or path.state is not State.PROVEN:
            return None
        has_other = self._has_spare or (relay is not None and relay.state is not State.DEAD)
        return path.patience.quiet_s(path.latency_ms) if has_other else None

    def _doubt_at(self) -> float | None:
        path = self.current
        if path is None or path.unanswered_since is None or self._suspected is not None or self.quiet_s is None:
            return None
        assert path.patience is not None
        return path.patience.doubts_at(path.unanswered_since, path.latency_ms)

    def _suspect(self, now: float) -> None:
        """Find out whether the current path works, and let other ways carry copies meanwhile."""
        path, relay = self.current, self.prober.relay
        assert path is not None
        if path.next_probe_at is None:
            self.prober.begin(now, path, hasty=True)
        if path.next_probe_at is None:
            path.patience = None  # nothing goes by its uplink
            return
        self._suspected = path
        if relay is not None and self._shared.sparing == 1:
            # It may be our packets that arrive and the peer's that do not: this tells it so. A session at a relay that
            # is there on demand only is not opened for that: what the peer sends will do it
            self.prober.ping(now, relay.endpoint, PING_BYTES)
        self.prober.handle_timeout(now)
        self._choose_copies()
        self._repeat()

    def keep(self, now: float, datagrams: list[bytes], ecn: int) -> None:
        """These went to the current path, and if they go into a silence its copies are to carry them too: the other end
        may have got none of it, and a receiver of TCP says at the sight of one what all it lacks."""
        path = self.current
        if path is None or path.unanswered_since is None or now - path.unanswered_since < TAIL_AFTER_S:
            return
        if not self.copies and self._doubt_at() is not None:
            self._tail = [*self._tail, *((each, ecn) for each in datagrams)][-TAILS_MAX:]

    def _repeat(self) -> None:
        tail, self._tail = self._tail, []
        for datagram, ecn in tail:
            for endpoint in self.copies:
                self._shared.transmits.append(Transmit(endpoint, [datagram], ecn, fragment=True))

    def _refute(self, now: float, since: float | None) -> None:
        """The current path has answered a probe."""
        self._tail.clear()
        suspected, self._suspected = self._suspected, None
        if suspected is not None and suspected.patience is not None:
            suspected.patience.refuted(now)
            self._silent_since = since if self._silent_since is None else self._silent_since
        else:
            self._silent_since = None

    def _be_patient(self, now: float, path: Path) -> None:
        if path.patience is None:
            from edgeagent.proto.patience import Patience  # only where there is traffic past a relay

            path.patience = Patience(now)
        path.patience.heard(now, self._shared.sparing)

    # Time

    def handle_timeout(self, now: float) -> None:
        prober, current = self.prober, self.current
        if not self._is_watched and _is_due(self._doubt_at(), now):
            self._suspect(now)
        prober.handle_timeout(now)
        if current is not None and _is_due(self._verify_at(), now):
            prober.begin(now, current)
            prober.handle_timeout(now)
            if current.search is not None:
                current.search.unanswered(now)
        if current is not None and current.search is not None and current.is_sure:
            current.search.handle_timeout(now)
            prober.search(now, current)
        if _is_due(self.next_seek_at, now):
            self._seek(now)
        if _is_due(self._rechecks.next_at, now):
            self._rechecks.handle_timeout(now, self.current, wanted=self.is_wanted(now))
        spray = self._spray
        if spray is not None and _is_due(spray.next_at, now):
            for endpoint in spray.take_due(now):
                for way, _ in self._shared.ways.to(endpoint, self._shared)[:1]:
                    prober.ping(now, way, 0)

    def deadline(self) -> float | None:
        times = [self.prober.deadline(), self._verify_at(), self.next_seek_at, self._rechecks.next_at]
        if not self._is_watched:
            times.append(self._doubt_at())
        if self._spray is not None:
            times.append(self._spray.next_at)
        if self.current is not None and self.current.search is not None and self.current.is_sure:
            times.append(self.current.search.poll_timeout())
        return min((at for at in times if at is not None), default=None)

    def is_wanted(self, now: float) -> bool:
        """Whether there was traffic lately, or is said to be soon."""
        return any(at is not None and now - at < WANTED_S for at in (self._used_at, self.introduced_at))

    @property
    def is_direct(self) -> bool:
        """Whether traffic goes, or could go, past the relay."""
        return any(path.state is State.PROVEN for path in self.prober.direct.values())

    def _verify_at(self) -> float | None:
        path = self.current
        if path is None or path.next_probe_at is not None or not path.is_sure:
            return None
        if self._silent_since is not None and (path.unanswered_since is not None or path.search is not None):
            return self._silent_since + (SPARE_SILENCE_S if self._has_spare else SILENCE_S)
        if path.unanswered_since is None:
            return None
        verified_at = path.unanswered_since if path.ponged_at is None else path.ponged_at
        if self._has_spare:
            return max(path.unanswered_since + SPARE_SILENCE_S, verified_at + SPARE_SPACING_S)
        return max(path.unanswered_since + SILENCE_S, verified_at + VERIFY_SPACING_S)

    def _use(self, now: float) -> None:
        self._used_at = now
        if not self.is_direct and self.next_seek_at is None:
            self.next_seek_at = now
        if self._rechecks.next_at is None:
            self._rechecks.begin(now)

    def _size_sent(self, now: float, path: Path, size: int, count: int) -> None:
        if size <= SMALL_BYTES:
            return
        if path.search is None:
            path.search = self.prober.search_of(path)
        path.search.sent(now, size, count)
        self.prober.search(now, path)

    # Search

    def _seek(self, now: float) -> None:
        """Probe everything that is not known to work, and ask the peer to do the same."""
        self.next_seek_at = None
        if self.is_direct or not self.is_wanted(now):
            return
        for path in self.prober:
            if path.state in UNPROVEN and path.next_probe_at is None:
                self.prober.begin(now, path, punch=path.state is not State.DOUBTFUL)
        self._call(now)
        self._begin_spray(now)
        self.prober.handle_timeout(now)
        self.next_seek_at = now + self._again_s(self._seeks)
        self._seeks += 1

    def _again_s(self, tries: int) -> float:
        """How long to wait after so many that came to nothing, and one more."""
        wait_s = SEEK_AGAIN_S[min(tries, len(SEEK_AGAIN_S) - 1)]
        return wait_s * (self._shared.sparing if tries >= SEEKS_QUICK else 1)

    def _call(self, now: float) -> None:
        shared, relay = self._shared, self.prober.relay
        if not self._calls_out.take(now):
            return
        shared.seeking = True
        message = write_call_me(shared.endpoints())
        if relay is not None:
            shared.transmits.append(Transmit(relay.endpoint, [shared.keys.seal(self.them, message)]))
        shared.signals.append((self.device, shared.keys.seal(self.them, message)))

    def _begin_spray(self, now: float) -> None:
        """Only the second search and later ones, and only where guessing is all that is left."""
        shared = self._shared
        if (
            self._seeks == 0
            or shared.sparing > 1
            or self.nat != EDM
            or shared.nat == EDM
            or self._sprays >= SPRAYS_PER_PEER_MAX
        ):
            return
        public = [path for path in self.prober.direct.values() if path.kind is PathKind.IPV4]
        if public and shared.sprayed.take(now, SPRAY_PORTS):
            self._sprays += 1
            self._spray = Spray(now, public[0].endpoint.ip_bytes(), shared.entropy)

    def _path_from(self, source: Endpoint) -> Path | None:
        """The path to where something authentic came from; None by an uplink that is not to be used."""
        if not self._shared.ways.is_open(source):
            return None
        path = self.prober.find(source)
        if path is not None:
            return path
        kind = self.prober.kind(source)
        if kind is None:
            self._shared.drop(DiscoDrop.CANDIDATE)
            return None
        return self.prober.add(source, kind, self.current)

    # Choice

    def choose(self, now: float) -> bool:
        """Settle where traffic goes; True where that is another way than before."""
        before, self.current = self.current, best_path(now, self.prober, self.current)
        if self.current is not before or self._followed is self.current:
            self._followed = None
        if self.current is not before:
            self._suspected = self._silent_since = None
        self._has_spare = any(
            path.state is State.PROVEN and path is not self.current for path in self.prober.direct.values()
        )
        self._choose_copies()
        return self.current is not before

    def _choose_copies(self) -> None:
        self.copies = other_ways(self.prober, self.current, self._suspected, self._followed)


def _is_due(at: float | None, now: float) -> bool:
    return at is not None and at <= now
