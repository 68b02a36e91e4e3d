"""All that a device has to do with relays: which one is its home, sessions there and at those of its peers.

```
map, passes ──set_map──────────▶ ┌────────┐ ──drain_transmits, drain_stream_…──▶ UDP port, connections
datagrams, streams ─────────────▶ │ Relays │ ──drain_packets────▶ what members sent us
packets for peers ──send────────▶ └────────┘ ──home, gone────────▶ the node
```

At home a session is kept, so that others reach us there. On a metered uplink it is not, nor, after a while of silence,
behind a NAT that forgets so soon that keeping it would cost too much: home is only told then, and the session begins
when somebody has called us through the broker, or when we send.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeagent.proto.endpoint import Endpoint, Transmit
from edgeagent.proto.keys import has_small_order
from edgeagent.proto.relay_addresses import RelayAddresses
from edgeagent.proto.relay_events import (
    Carrier,
    PassRefused,
    RelayClientDrop,
    RelayDown,
    RelayDraining,
    RelayPeerGone,
    RelaySawUsMove,
    RelayServes,
    RelaySuspect,
)
from edgeagent.proto.relay_home import HomeChoice
from edgeagent.proto.relay_pass import peek_node_key
from edgeagent.proto.relay_sessions import IDLE_S, RelaySessions

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from edgeagent.proto.crypto import Crypto
    from edgeagent.proto.keys import Entropy
    from edgeagent.proto.records import UdpAddress
    from edgeagent.proto.relay_endpoint import RelayEndpoint
    from edgeagent.proto.relay_sessions import Batch, Session, StreamWish
    from edgeagent.proto.relaymap import RelayInfo

GIVE_UP_S = 12.0  # a session that does not come up for so long makes room for the next relay's
YIELD_S = 5.0  # a session that carried nothing for so long may give way to another
AWAKE_S = 60.0  # on a metered uplink: how long a session is kept after it was last of use
AWAKE_FREE_S = 600.0  # on another one, where it is not kept for good
KEPT_FROM_S = 45.0  # it is kept for good where a probe is due no more often: that costs 173 KB a day
DOWN_TOLD_AFTER_S = 5.0  # a home that is away for less is not taken back from the feed
SURVEY_AFTER_S = 1.5  # from the start; until then STUN has said which relays are near, or UDP does not pass
SURVEY_RELAYS = 3  # of which the nearest becomes home, where only connections pass
GONE_MAX = 64  # members that were not found, until they are drained
REFUSED_SHUN_S = 300.0
DRAIN_SLACK_S = 60.0


class Relays:
    """Drive it by the handle and set methods; after any input drain everything, then look at `home` and `moved`, and
    sleep until `poll_timeout()`. `home` is the relay that others may send to, or None; `moved` is True once a relay
    has seen us behind another mapping.
    """

    def __init__(
        self,
        now: float,
        *,
        crypto: Crypto,
        entropy: Entropy,
        jitter: Callable[[], float],
        private: bytes,
        is_usable: Callable[[bytes], bool],
    ) -> None:
        self._crypto = crypto
        self._private = private
        self._key = crypto.x25519_base(private)
        self._relays: dict[str, RelayInfo] = {}
        self._passes: dict[bytes, bytes] = {}  # by node key
        self._addresses = RelayAddresses(is_usable)
        self._choice = HomeChoice()
        self._began_at = now
        self._surveyed = False
        self._down_at: float | None = None  # since when home does not serve
        self._awake_until = now + AWAKE_S
        self._best: str | None = None  # where home should be
        self._check_at: float | None = None
        self._gone: list[bytes] = []
        self.sessions = RelaySessions(crypto, entropy, jitter)
        self.on_demand = False  # because it would cost too much to be kept
        self._metered = self._is_short = False
        self._routed: tuple[int, ...] | None = None  # sizes of addresses that the uplink leads to; None for all
        self.broker_reachable = False
        self.home: str | None = None
        self.moved = False
        self.moves = 0  # how often that was so

    # What comes to be known

    def set_map(self, now: float, relays: list[RelayInfo], passes: list[bytes]) -> bool:
        """The relays that the hub's map names, and a pass for each of our node keys. False for relays as before."""
        before = self._relays
        self._relays = {}
        for relay in relays:
            if not has_small_order(relay.key):  # which no login could be sealed for
                self._relays.setdefault(relay.id, relay)
        self._choice.set_relays(list(self._relays.values()))
        found = ((peek_node_key(each), each) for each in passes)
        self._passes = {key: each for key, each in found if key is not None}
        for session in self.sessions.all:
            if self._relays.get(session.relay.id) != session.relay:
                self.sessions.end(now, session)
            elif session.node_key in self._passes:
                self.sessions.set_pass(now, session, self._passes[session.node_key])
        self._addresses.set_relays(self._relays)
        self._step(now)
        return before != self._relays

    def set_node_key(self, now: float, private: bytes) -> None:
        """Another node key is in use; who still sends to the old one is heard for a while."""
        self._private = private
        self._key = self._crypto.x25519_base(private)
        self._step(now)

    def set_addresses(self, now: float, relay: str, addresses: list[UdpAddress]) -> None:
        """Where a relay's UDP port is: (address of 4 or 16 B, port), as its host names say now."""
        self._addresses.set_resolved(relay, addresses)
        self._step(now)

    def set_families(self, families: list[int]) -> None:
        """Sizes (4, 16) of the addresses that this host itself has."""
        self._addresses.set_families(families)

    def measured(self, now: float, relay: str, endpoint: Endpoint, round_trip_s: float) -> None:
        """Its UDP port answered from `endpoint`."""
        self._choice.measured(relay, round_trip_s)
        self._addresses.answered(relay, endpoint)
        self._step(now)

    def network_changed(self, now: float, kept: Collection[int] = ()) -> None:
        """We are somewhere else, or have another address beside: distances are measured anew, and what did not work
        may. The streams `kept` leave as before."""
        self._addresses.forget_answers()
        self._began_at, self._surveyed = now, False
        self._begin_anew(now, self.sessions.via, kept)

    def uplink_changed(self, now: float, index: int, routed: tuple[int, ...] | None = None) -> None:
        """Relays are reached by another uplink, given by its interface index, that leads to addresses of those sizes
        (4, 16); 0 and None: as the routes decide."""
        if index != self.sessions.via:
            self._routed = routed
            self._begin_anew(now, index)
        elif routed != self._routed:
            self._routed = routed
            self._step(now)

    def _begin_anew(self, now: float, via: int, kept: Collection[int] = ()) -> None:
        self._choice.forget()
        self._down_at = None
        self.sessions.uplink_changed(now, via, kept)
        self._after(now, judge=False)  # that a connection was closed just now is no relay's fault
        self._step(now)

    def set_on_demand(self, now: float, metered: bool) -> None:
        """Whether the uplink is one on which sessions are only kept while they are of use."""
        self._metered = metered
        self._weigh(now)

    def keep_bindings(self, now: float, interval_s: float, learnt: bool) -> None:
        """How often a binding of our NAT wants to carry something; `learnt`: it was tried, and is not a guess."""
        self.sessions.set_idle_interval(now, interval_s)
        self._is_short = learnt and interval_s < KEPT_FROM_S
        self._weigh(now)

    def _weigh(self, now: float) -> None:
        on_demand = self._metered or self._is_short
        if on_demand != self.on_demand:
            self.on_demand = on_demand
            self.wake(now)

    def hurry(self, now: float, relay: str) -> None:
        """Traffic is about to go there: a session that failed before does not wait any longer."""
        session = self.sessions.find(relay, self._key)
        if session is not None and not session.client.alive:
            self.sessions.hurry(now, session)

    def wake(self, now: float) -> None:
        """Somebody is about to reach us by our home."""
        self.stay_awake(now)
        self._step(now)

    def udp_servers(self) -> list[tuple[str, list[Endpoint], int]]:
        """(relay, where its UDP port is, the second port of STUN or 0), those nearest first: STUN is served there."""
        order = sorted(self._relays.values(), key=lambda each: (each.id != self.home, self._choice.distance_s(each.id)))
        found = ((relay, self._addresses.of(relay.id)) for relay in order)
        return [(relay.id, endpoints, relay.stun_port) for relay, endpoints in found if endpoints]

    def names_to_resolve(self) -> list[tuple[str, str, int]]:
        """(relay, host name, UDP port) of relays whose hosts are no addresses."""
        return self._addresses.names_to_resolve()

    def close(self, now: float) -> None:
        """Take leave of all relays; `drain_transmits` has the last words."""
        for session in self.sessions.all:
            self.sessions.end(now, session)
        self._check_at = None

    def stay_awake(self, now: float) -> None:
        """Something went by a relay, or came by one and was authentic: a session there is of use."""
        self._awake_until = now + (AWAKE_S if self._metered else AWAKE_FREE_S)

    # Packets

    def send(self, now: float, endpoint: RelayEndpoint, datagrams: list[bytes], ecn: int) -> bool:
        """Packets for a member of `endpoint.relay`. False where there is no such relay for us, or no room."""
        if endpoint.node_key == self._key:
            self.sessions.drop(RelayClientDrop.OURSELVES, len(datagrams))
            return False
        session = self._session(now, endpoint.relay)
        if session is None:
            named = endpoint.relay in self._relays and self._key in self._passes
            self.sessions.drop(RelayClientDrop.NOT_UP if named else RelayClientDrop.NO_RELAY, len(datagrams))
            return False
        if self.on_demand:
            self.stay_awake(now)
            if self.home is not None and endpoint.relay != self.home:
                self._session(now, self.home)  # the answer comes there
        self.sessions.send(now, session, endpoint.node_key, datagrams, ecn)
        self._after(now)
        return True

    def way_to(self, endpoint: RelayEndpoint) -> tuple[Endpoint, int, int] | None:
        """How an engine reaches it by itself: (the relay's UDP address, session, channel); None: only `send` does."""
        session = self.sessions.find(endpoint.relay, self._key)
        if session is None or endpoint.node_key == self._key:
            return None
        return self.sessions.way_to(session, endpoint.node_key)

    def carried(self, now: float, endpoint: RelayEndpoint) -> None:
        """An engine sent packets there by itself."""
        session = self.sessions.find(endpoint.relay, self._key)
        if session is not None:
            self.sessions.passed(now, session)
        if self.on_demand:
            self.stay_awake(now)
            if self.home is not None and endpoint.relay != self.home:
                self._session(now, self.home)  # the answer comes there

    def handle_datagram(self, now: float, datagram: bytes, source: Endpoint, ecn: int) -> None:
        self.sessions.handle_datagram(now, datagram, source, ecn)

    def stream_opened(self, now: float, number: int) -> None:
        self.sessions.stream_opened(now, number)
        self._after(now)

    def handle_stream(self, now: float, number: int, data: bytes) -> None:
        self.sessions.handle_stream(now, number, data)
        self._after(now)

    def stream_closed(self, now: float, number: int) -> None:
        self.sessions.stream_closed(now, number)
        self._after(now)

    # Time

    def handle_timeout(self, now: float) -> None:
        self.sessions.handle_timeout(now)
        self._step(now)

    def poll_timeout(self) -> float | None:
        times = (self.sessions.poll_timeout(), self._check_at)
        return min((at for at in times if at is not None), default=None)

    # Outputs

    def settle(self, now: float) -> None:
        """After datagrams were handed in: see to what they led to."""
        self._after(now)

    def drain_transmits(self) -> list[Transmit]:
        return self.sessions.drain_transmits()

    def drain_packets(self, now: float) -> Batch:
        return self.sessions.drain_packets(now)

    def drain_stream_wishes(self) -> list[StreamWish]:
        return self.sessions.drain_stream_wishes()

    def drain_stream_writes(self) -> list[tuple[int, bytes]]:
        return self.sessions.drain_stream_writes()

    def drain_gone(self) -> list[bytes]:
        """Node keys of members that our packets did not find."""
        gone, self._gone = self._gone, []
        return gone

    # Sessions

    def _session(self, now: float, relay: str) -> Session | None:
        """The session under our node key, begun if there is none."""
        known = self.sessions.find(relay, self._key)
        if known is not None:
            return known
        info, pass_object = self._relays.get(relay), self._passes.get(self._key)
        if info is None or pass_object is None or not self._make_room(now, relay):
            return None
        udp = self._addresses.first_of(relay, self._routed)
        return self.sessions.begin(now, info, self._private, pass_object, udp)

    def _make_room(self, now: float, relay: str) -> bool:
        """For a session at `relay`: our home's never gives way, and of the others only one that is idle, so that no
        two push each other out packet by packet."""
        if not self.sessions.is_full:
            return True
        least = min((each for each in self.sessions.all if not self._is_kept(each)), key=lambda each: each.used_at)
        if relay not in (self.home, self._best) and now - least.used_at < YIELD_S:
            return False
        self.sessions.end(now, least)
        return True

    def _is_kept(self, session: Session) -> bool:
        """Whether it is our home's, or is to be."""
        return session.relay.id in (self.home, self._best) and session.node_key == self._key

    def serves(self, relay: str) -> bool:
        """Whether packets for its members get there at once."""
        session = self.sessions.find(relay, self._key)
        return session is not None and session.client.alive

    def _follow_addresses(self, now: float) -> None:
        """A session that UDP does not carry tries it where it is thought to be now; one that it carries stays, unless
        our uplink does not lead there."""
        for session in self.sessions.all:
            udp = self._addresses.first_of(session.relay.id, self._routed)
            if udp is None or session.udp == udp:
                continue
            is_led = session.udp is not None and (self._routed is None or session.udp.size in self._routed)
            if session.client.carrier is not Carrier.DATAGRAM or not is_led:
                self.sessions.set_udp(now, session, udp)

    def _after(self, now: float, *, judge: bool = True) -> None:
        """Take note of what the clients had to tell; `judge`: of relays that fail as well."""
        events = self.sessions.drain_events()
        for session, event in events:
            relay = session.relay.id
            if isinstance(event, (RelaySuspect, RelayDown, RelayServes, PassRefused)):
                if session.node_key == self._key:  # an old key may have lost its pass
                    self._take_verdict(now, relay, event, judge)
            elif isinstance(event, RelayDraining):
                self._choice.failed(now, relay, event.seconds + DRAIN_SLACK_S)
            elif isinstance(event, RelayPeerGone):
                if len(self._gone) < GONE_MAX and event.key not in self._gone:
                    self._gone.append(event.key)
            elif isinstance(event, RelaySawUsMove):
                self.moved = True
                self.moves += 1
        if events:
            self._step(now)

    def _take_verdict(
        self, now: float, relay: str, event: RelaySuspect | RelayDown | RelayServes | PassRefused, judge: bool
    ) -> None:
        if isinstance(event, PassRefused):
            self._choice.failed(now, relay, REFUSED_SHUN_S)
        elif isinstance(event, RelayServes):
            if relay == self.home:
                self._choice.false_alarm(relay)
        elif judge:
            self._choice.failed(now, relay)

    # Home

    def _step(self, now: float) -> None:
        """Begin and end sessions as home, traffic and the uplink's price want it."""
        asleep = self.on_demand and now >= self._awake_until
        self._follow_addresses(now)
        for session in self.sessions.all:
            self._judge(now, session)
        best = self._choice.best(now, self.home)
        if best != self.home and self.home in self._relays and not self._may_leave():
            best = self.home
        if best is not None and best != self._best and not asleep:
            self.hurry(now, best)
        self._best = best
        if best is None or asleep:
            self.home = best
        else:
            self._seek_home(now, best)
        for session in self.sessions.all:
            if (asleep or not self._is_kept(session)) and now >= session.used_at + IDLE_S:
                self.sessions.end(now, session)
        self._schedule(now, asleep)

    def _judge(self, now: float, session: Session) -> None:
        """How far away its relay is, and whether it has been tried for long enough."""
        client, relay = session.client, session.relay.id
        if client.alive:
            session.down_at = None
            if client.latency_s is not None and self._choice.latency_s(relay) is None:
                self._choice.measured(relay, client.latency_s)
        elif session.down_at is None:
            session.down_at = now
        elif now >= session.down_at + GIVE_UP_S:
            session.down_at = now
            if session.node_key == self._key:
                self._choice.failed(now, relay)

    def _seek_home(self, now: float, best: str) -> None:
        session = self._session(now, best)
        self._survey(now)
        if session is not None and session.client.alive:
            self._down_at = None
            self.home = best
            return
        alive = [each for each in self.sessions.all if each.client.alive and each.node_key == self._key]
        at_home = next((each for each in alive if each.relay.id == self.home), None)
        if at_home is not None:
            self._down_at = None
        elif alive and (self.home not in self._relays or self._choice.is_shunned(now, self.home)):
            # Otherwise it only was not there yet, as after a new key, or when we have been asleep
            self._down_at = None
            self.home = min((each.relay.id for each in alive), key=self._choice.distance_s)
        elif self.home is not None:
            if self._down_at is None:
                self._down_at = now
            elif now >= self._down_at + DOWN_TOLD_AFTER_S and not self.on_demand:
                self.home = None

    def _survey(self, now: float) -> None:
        """Once in each network: where UDP does not pass, connections say how far relays are."""
        if self._surveyed or now < self._began_at + SURVEY_AFTER_S:
            return
        self._surveyed = True
        carriers = [each.client.carrier for each in self.sessions.all if each.client.alive]
        if self._addresses.any_answered or Carrier.DATAGRAM in carriers or (self.on_demand and carriers):
            return
        for relay in [relay for relay in self._relays if self._choice.latency_s(relay) is None][:SURVEY_RELAYS]:
            self._session(now, relay)

    def _may_leave(self) -> bool:
        """A home that serves is left only while peers can be told of it."""
        session = None if self.home is None else self.sessions.find(self.home, self._key)
        return self.broker_reachable or session is None or not session.client.alive

    def _schedule(self, now: float, asleep: bool) -> None:
        """When time alone may change something of what `_step` does."""
        times = [self._choice.next_change(now)]
        if self.on_demand and not asleep:
            times.append(self._awake_until)
        if not (asleep or self._surveyed or self._best is None):
            times.append(self._began_at + SURVEY_AFTER_S)
        if self._down_at is not None and self.home is not None and not self.on_demand:
            times.append(self._down_at + DOWN_TOLD_AFTER_S)
        for session in self.sessions.all:
            if asleep or not self._is_kept(session):
                times.append(session.used_at + IDLE_S)
            if session.down_at is not None:
                times.append(session.down_at + GIVE_UP_S)
        # What is past already waits for something else than time
        self._check_at = min((at for at in times if at is not None and at > now), default=None)
