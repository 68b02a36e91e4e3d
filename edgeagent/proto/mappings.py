"""Where servers see our UDP port (STUN, RFC 8489): asked of relays when it may have changed, and never just so.

Two answers tell how the NAT maps (RFC 4787, section 4.1), and two ports of one relay are two destinations. The binding
that the answers show is the one that others are to use, so the requests leave by the port that carries the tunnel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeagent.proto.endpoint import Endpoint, UplinkEndpoint
from edgeagent.proto.stun_exchange import StunExchange

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgeagent.proto.endpoint import Transmit
    from edgeagent.proto.keys import Entropy
    from edgeagent.proto.path import PathKey
    from edgeagent.proto.records import UdpAddress
    from edgeagent.proto.stun import StunDrop

RTO_S, TRIES_MAX = 0.3, 4  # 0.3, 0.9 and 2.1 s after the first: whoever waits for this has a packet to send
FRESH_S = 20.0  # an answer is not asked for again within this time, unless it is in doubt
SPACING_S = 1.0  # between the beginnings of two rounds on one network, however much is in doubt
PATIENCE_S = 0.7  # how long a round waits for the last answers once there is one
ROUND_S = 4.0  # and how long for the first
TARGETS_MAX = 3  # servers asked in one round, of one address family
SURVEY_MAX = 16  # relays whose distance is measured in one round


class Measured:
    """Relay `relay` answered from `endpoint` after `round_trip_s`."""

    __slots__ = ("endpoint", "relay", "round_trip_s")

    def __init__(self, relay: str, endpoint: Endpoint, round_trip_s: float) -> None:
        self.relay = relay
        self.endpoint = endpoint
        self.round_trip_s = round_trip_s


class Mappings:
    """Drive it: `want` when a mapping is about to be used, `doubt` when it may be another, `handle_datagram` with every
    STUN datagram, `handle_timeout` at `poll_timeout()`; then drain transmits and measurements. `servers` is asked for
    relays as Relays.udp_servers has them. `take_news` has the list of mappings when it is another than before.
    """

    def __init__(self, entropy: Entropy, servers: Callable[[], list[tuple[str, list[Endpoint], int]]]) -> None:
        self._exchange = StunExchange(entropy, rto_s=RTO_S, requests_max=TRIES_MAX, last_wait_rtos=TRIES_MAX)
        self._servers = servers
        self._asked: dict[bytes, tuple[str, int]] = {}  # transaction → relay, place in the round
        self._second_ports: dict[str, int] = {}
        self._seen: dict[int, tuple[PathKey, UdpAddress]] = {}  # place in the round → server, where it saw us
        self._known: dict[PathKey, UdpAddress] = {}  # the same of the round that told something new
        self._began_at: float | None = None  # the round under way
        self._answered_at: float | None = None  # its first answer
        self._last_at: float | None = None  # when the last round on this network began
        self._wanted = False  # another round
        self._surveys = False  # this round measures all relays
        self._measured: list[Measured] = []
        self._news = False
        self.via: int | None = None  # the interface index of the uplink to ask through
        self.sizes: tuple[int, ...] | None = None  # of addresses that it leads to; None for all
        self.mapped: list[UdpAddress] = []  # in the order the servers were asked

    @property
    def drops(self) -> dict[StunDrop, int]:
        """Of answers, by reason."""
        return self._exchange.drops

    def want(self, now: float) -> None:
        """Somebody is about to be told where we are."""
        if self._last_at is None or now - self._last_at >= FRESH_S:
            self.doubt(now)

    def doubt(self, now: float, *, survey: bool = False) -> None:
        """What is known may no longer hold: ask soon. `survey`: measure the way to every relay as well."""
        self._surveys |= survey
        self._wanted = True
        self._begin_if_due(now)

    def forget(self, now: float) -> None:
        """We are on another network: nothing that was seen counts any more."""
        self._wanted = False
        self._end(now, heard=False)
        self._last_at = None
        self._known = {}
        if self.mapped:
            self.mapped = []
            self._news = True

    def handle_datagram(self, now: float, datagram: bytes, source: Endpoint) -> None:
        answer = self._exchange.handle(now, datagram, source)
        if answer is None:
            return
        relay, place = self._asked.pop(answer.transaction, ("", -1))
        if place < 0:
            return
        if answer.rtt_s is not None and answer.endpoint.addr[1] != self._second_ports.get(relay):
            self._measured.append(Measured(relay, answer.endpoint, answer.rtt_s))
        if place < 2 * TARGETS_MAX:
            self._seen[place] = (answer.endpoint.addr[:2], answer.binding.mapped)
        if self._answered_at is None:
            self._answered_at = now
        if not self._waits():
            self._end(now, heard=True)

    def handle_timeout(self, now: float) -> None:
        self._exchange.handle_timeout(now)
        for failure in self._exchange.drain_failures():
            self._asked.pop(failure.transaction, None)
        due = self._round_ends_at()
        if due is not None and due <= now:
            self._end(now, heard=bool(self._seen))
        self._begin_if_due(now)

    def poll_timeout(self) -> float | None:
        times = (self._exchange.poll_timeout(), self._round_ends_at(), self._next_begins_at())
        return min((at for at in times if at is not None), default=None)

    def drain_transmits(self) -> list[Transmit]:
        return self._exchange.drain_transmits()

    def drain_measured(self) -> list[Measured]:
        measured, self._measured = self._measured, []
        return measured

    def take_news(self) -> list[UdpAddress] | None:
        """The mappings, if they are others than before."""
        news, self._news = self._news, False
        return self.mapped if news else None

    def _next_begins_at(self) -> float | None:
        if not self._wanted or self._began_at is not None:
            return None
        return 0.0 if self._last_at is None else self._last_at + SPACING_S

    def _begin_if_due(self, now: float) -> None:
        at = self._next_begins_at()
        if at is not None and at <= now:
            self._wanted = False
            self._begin(now)

    def _begin(self, now: float) -> None:
        servers = self._reachable(self._servers())
        if not servers:
            return
        self._last_at = self._began_at = now
        self._answered_at = None
        self._seen = {}
        for transaction in self._asked:
            self._exchange.cancel(transaction)
        self._asked = {}
        self._second_ports = {relay: port for relay, _, port in servers}
        place = 0
        for size in (2, 4):  # of a socket address: IPv4, IPv6
            for relay, endpoint in self._targets(servers, size):
                self._ask(now, relay, endpoint, place)
                place += 1
        if self._surveys:
            self._surveys = False
            asked = {relay for relay, _ in self._asked.values()}
            for relay, endpoints, _ in servers[:SURVEY_MAX]:
                if relay not in asked:
                    self._ask(now, relay, endpoints[0], 2 * TARGETS_MAX)

    def _reachable(self, servers: list[tuple[str, list[Endpoint], int]]) -> list[tuple[str, list[Endpoint], int]]:
        """Those that the uplink leads to, with the addresses by which it does."""
        if (sizes := self.sizes) is None:
            return servers
        found = ((relay, [each for each in at if each.size in sizes], second) for relay, at, second in servers)
        return [each for each in found if each[1]]

    def _targets(self, servers: list[tuple[str, list[Endpoint], int]], size: int) -> list[tuple[str, Endpoint]]:
        """The two nearest relays and the second port of the first: three destinations tell NATs apart."""
        targets: list[tuple[str, Endpoint]] = []
        for relay, endpoints, second_port in servers:
            endpoint = next((each for each in endpoints if len(each.addr) == size), None)
            if endpoint is None:
                continue
            targets.append((relay, endpoint))
            if second_port and len(targets) == 1:
                targets.append((relay, _with_port(endpoint, second_port)))
            if len(targets) >= TARGETS_MAX:
                break
        return targets[:TARGETS_MAX]

    def _ask(self, now: float, relay: str, endpoint: Endpoint, place: int) -> None:
        through = endpoint if self.via is None else UplinkEndpoint.by(self.via, endpoint)
        self._asked[self._exchange.begin(now, through)] = (relay, place)

    def _waits(self) -> bool:
        return any(place < 2 * TARGETS_MAX for _, place in self._asked.values())

    def _round_ends_at(self) -> float | None:
        if self._began_at is None:
            return None
        return self._began_at + ROUND_S if self._answered_at is None else self._answered_at + PATIENCE_S

    def _end(self, now: float, *, heard: bool) -> None:
        if self._began_at is None:
            return
        self._began_at = None
        for transaction, (_, place) in list(self._asked.items()):
            if place < 2 * TARGETS_MAX:  # nobody waits for it any more; those of a survey take their time
                self._exchange.cancel(transaction)
                del self._asked[transaction]
        if heard:
            self._take_seen()
        self._begin_if_due(now)

    def _take_seen(self) -> None:
        """What this round saw replaces what was known, unless it is a part of it: answers get lost."""
        seen = dict(self._seen[place] for place in sorted(self._seen))
        if any(self._known.get(server) != mapped for server, mapped in seen.items()):
            self._known = seen
            mapped = list(seen.values())
            self._news |= mapped != self.mapped
            self.mapped = mapped


def _with_port(endpoint: Endpoint, port: int) -> Endpoint:
    host = endpoint.addr[0]
    return Endpoint((host, port)) if len(endpoint.addr) == 2 else Endpoint((host, port, 0, 0))
