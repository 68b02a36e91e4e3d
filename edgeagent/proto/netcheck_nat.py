"""Mapping, filtering and hairpinning of the NATs on the way, one IP version (RFC 4787, RFC 5780).

Three sockets, because what one has sent decides what the next one may hear:

| socket    | asks                                                   | tells                                         |
|-----------|--------------------------------------------------------|-----------------------------------------------|
| MAPPING   | every server, at both its ports                        | latency, mapping: is it seen the same by all  |
| FILTERING | one server, then that one to answer from elsewhere     | filtering: does that come in                  |
| HAIRPIN   | one server; then it and MAPPING send to each other's mapped address | hairpinning: does either come back |

The third as two peers behind one NAT would: both send, so that a strict filter is no reason to fail.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from edgeagent.proto import stun
from edgeagent.proto.endpoint import Transmit
from edgeagent.proto.netcheck_facts import Filtering, Mapping, NatFacts, Way, classify
from edgeagent.proto.paths import from_endpoint, is_unicast, to_endpoint
from edgeagent.proto.stun import CHANGE_ADDRESS, CHANGE_PORT
from edgeagent.proto.stun_exchange import StunExchange

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgeagent.proto.endpoint import Endpoint
    from edgeagent.proto.records import UdpAddress
    from edgeagent.proto.stun_exchange import Answer

RTO_S = 0.4
REQUESTS_MAX = 4  # 0, 0.4, 1.2 and 2.8 s; given up after 4.4
CHANGE_REQUESTS_MAX = 3  # 0, 0.4 and 1.2 s; given up after 2
LAST_WAIT_RTOS = 4
LAST_CHANGE_WAIT_RTOS = 2
CHOOSE_AFTER_S = 0.3  # a server that can answer from another address is preferred for FILTERING
LATENCIES_MAX = 3  # of each server; the least counts
ANSWERS_MAX = 5  # to have them: what was sent twice has no latency
LATENCY_RTO_S = 1.5  # longer than any round trip that is to be measured
HAIRPIN_AT_S = (0.0, 0.25, 0.75)
HAIRPIN_WAIT_S = 0.75  # after the last


class Role(Enum):
    """Which socket."""

    MAPPING = "mapping"
    FILTERING = "filtering"
    HAIRPIN = "hairpin"
    MTU = "mtu"


class NatProbe:
    """Drive it: `add` each way as its address becomes known, `handle_datagram` for what comes in on its three sockets,
    `handle_timeout` at `poll_timeout()`; after any input drain transmits. `timed` gathers the ways whose
    latency has just become known; `facts` tells what is known so far, and all there is once nothing is `under_way`.

    `ports` are those that the sockets are bound to.
    """

    __slots__ = (
        "_answers",
        "_asked",
        "_choices",
        "_choose_at",
        "_exchanges",
        "_failed",
        "_filtering",
        "_hairpin",
        "_hairpin_at",
        "_hairpin_request",
        "_hairpinned",
        "_passed",
        "_ports",
        "_samples",
        "_transmits",
        "timed",
    )

    def __init__(self, entropy: Callable[[int], bytes], ports: dict[Role, int]) -> None:
        change = {"requests_max": CHANGE_REQUESTS_MAX, "last_wait_rtos": LAST_CHANGE_WAIT_RTOS}
        self._exchanges = {
            Role.MAPPING: StunExchange(entropy, rto_s=RTO_S, requests_max=REQUESTS_MAX, last_wait_rtos=LAST_WAIT_RTOS),
            Role.FILTERING: StunExchange(entropy, rto_s=RTO_S, **change),
            Role.HAIRPIN: StunExchange(entropy, rto_s=RTO_S, **change),
        }
        self._ports = ports
        self._asked: dict[UdpAddress, Way] = {}
        self._answers: dict[UdpAddress, int] = {}
        self._samples: dict[UdpAddress, UdpAddress] = {}
        self._transmits: list[tuple[Role, Transmit]] = []
        self._filtering: Way | None = None
        self._choices: list[Way] = []  # for FILTERING, until one is chosen
        self._choose_at: float | None = None
        self._passed: set[int] = set()
        self._failed: dict[int, bool] = {}  # change → whether the server refused it
        self._hairpin: Way | None = None
        self._hairpin_at: list[tuple[float, Role, Endpoint, bytes]] = []  # when what is to be sent
        self._hairpin_request = b""
        self._hairpinned: bool | None = None
        self.timed: list[Way] = []

    def add(self, now: float, way: Way) -> None:
        """Ask a server; its ports are those of UDP and, where it is known, the second one of STUN."""
        if way.udp_port:
            self._ask(now, way, way.udp_port)
            if way.stun_port:
                self._ask(now, way, way.stun_port)

    def handle_datagram(self, now: float, role: Role, datagram: bytes, source: Endpoint) -> None:
        if datagram == self._hairpin_request:
            self._hairpinned = True
            self._hairpin_at.clear()
            return
        answer = self._exchanges[role].handle(now, datagram, source)
        if answer is not None:
            {Role.MAPPING: self._mapped, Role.FILTERING: self._filtered, Role.HAIRPIN: self._mapped_too}[role](
                now, answer
            )
        self._take_failures()

    def handle_timeout(self, now: float) -> None:
        for exchange in self._exchanges.values():
            exchange.handle_timeout(now)
        self._take_failures()
        if self._choose_at is not None and now >= self._choose_at:
            self._choose(now)
        while self._hairpin_at and now >= self._hairpin_at[0][0]:
            _, role, endpoint, datagram = self._hairpin_at.pop(0)
            if datagram:
                self._transmits.append((role, Transmit(endpoint, [datagram])))
            else:  # the last wait is over
                self._hairpinned = False

    def poll_timeout(self) -> float | None:
        due = [exchange.poll_timeout() for exchange in self._exchanges.values()]
        due += [self._choose_at, self._hairpin_at[0][0] if self._hairpin_at else None]
        return min((at for at in due if at is not None), default=None)

    @property
    def under_way(self) -> bool:
        return self.poll_timeout() is not None

    def drain_transmits(self) -> list[tuple[Role, Transmit]]:
        transmits, self._transmits = self._transmits, []
        for role, exchange in self._exchanges.items():
            transmits += [(role, transmit) for transmit in exchange.drain_transmits()]
        return transmits

    def facts(self) -> NatFacts:
        facts = NatFacts()
        facts.unanswered = bool(self._asked) and not self._samples and not self.under_way
        facts.mapped = list(dict.fromkeys(self._samples.values()))
        locals_ = [way.local for way in self._asked.values() if way.local is not None and way.by_udp]
        if not facts.mapped or not locals_:
            return facts
        facts.local = (locals_[0], self._ports[Role.MAPPING])
        facts.mapping = classify(self._samples)
        if all(mapped == facts.local for mapped in facts.mapped):
            facts.mapping = Mapping.NO_NAT
        facts.port_kept = all(port == self._ports[Role.MAPPING] for _, port in facts.mapped)
        facts.hairpin = self._hairpinned
        facts.filtering = self._judge_filtering()
        return facts

    # Mapping

    def _ask(self, now: float, way: Way, port: int) -> None:
        at = (way.address, port)
        if at not in self._asked:  # two relays may share an address
            self._asked[at] = way
            self._exchanges[Role.MAPPING].begin(now, to_endpoint(at))

    def _mapped(self, now: float, answer: Answer) -> None:
        at = from_endpoint(answer.endpoint)
        way = self._asked[at]
        self._samples.setdefault(at, answer.binding.mapped)
        if at[1] != way.udp_port:
            way.second_mapped = answer.binding.mapped
        else:
            if way.mapped is None:
                way.mapped = answer.binding.mapped
            if answer.rtt_s is not None:
                way.latencies.append(answer.rtt_s)
                if len(way.latencies) == 1:
                    self.timed.append(way)
            self._answers[at] = self._answers.get(at, 0) + 1
            if len(way.latencies) < LATENCIES_MAX and self._answers[at] < ANSWERS_MAX:
                self._exchanges[Role.MAPPING].begin(now, answer.endpoint, rto_s=LATENCY_RTO_S)
            other = answer.binding.other
            way.other_address = other is not None and other[0] != way.address
            if not way.stun_port and other is not None and other[1] not in (0, way.udp_port):
                way.stun_port = other[1]  # at the address that we know: the server may be behind a NAT of its own
                self._ask(now, way, way.stun_port)
            self._begin_hairpin(now, way)
        if way.mapped is not None and way.second_mapped is not None and way not in self._choices:
            # Both its ports reach us when they are asked: what does not come in later was filtered
            self._choices.append(way)
            if self._filtering is None and self._choose_at is None:
                self._choose_at = now + CHOOSE_AFTER_S

    # Filtering

    def _choose(self, now: float) -> None:
        self._choose_at = None
        way = self._filtering = next((way for way in self._choices if way.other_address), self._choices[0])
        self._exchanges[Role.FILTERING].begin(now, to_endpoint((way.address, way.udp_port)))

    def _filtered(self, now: float, answer: Answer) -> None:
        if answer.change:
            self._passed.add(answer.change)
            return
        other = answer.binding.other
        way = self._filtering
        assert way is not None
        if other is None or other[1] == way.udp_port:
            return  # it cannot answer from elsewhere (RFC 5780, section 7.4)
        exchange = self._exchanges[Role.FILTERING]
        exchange.begin(now, answer.endpoint, change=CHANGE_PORT)
        if way.other_address:
            exchange.begin(now, answer.endpoint, change=CHANGE_PORT | CHANGE_ADDRESS)

    def _take_failures(self) -> None:
        for role, exchange in self._exchanges.items():
            for failure in exchange.drain_failures():
                if role is Role.FILTERING and failure.change:
                    self._failed[failure.change] = failure.refused

    def _judge_filtering(self) -> Filtering:
        if CHANGE_PORT | CHANGE_ADDRESS in self._passed:
            return Filtering.ENDPOINT_INDEPENDENT
        if CHANGE_PORT in self._passed:
            silent = self._failed.get(CHANGE_PORT | CHANGE_ADDRESS) is False
            return Filtering.ADDRESS_DEPENDENT if silent else Filtering.NOT_BY_PORT
        silent = self._failed.get(CHANGE_PORT) is False
        return Filtering.ADDRESS_AND_PORT_DEPENDENT if silent else Filtering.UNKNOWN

    # Hairpinning

    def _begin_hairpin(self, now: float, way: Way) -> None:
        if self._hairpin is None and way.mapped is not None and way.local is not None:
            if way.mapped == (way.local, self._ports[Role.MAPPING]):
                return  # nothing to come back from
            self._hairpin = way
            self._exchanges[Role.HAIRPIN].begin(now, to_endpoint((way.address, way.udp_port)))

    def _mapped_too(self, now: float, answer: Answer) -> None:
        way = self._hairpin
        assert way is not None and way.mapped is not None
        if not all(is_unicast(address) and port for address, port in (answer.binding.mapped, way.mapped)):
            return
        request = self._hairpin_request = stun.write_request(answer.transaction)
        to_each = ((Role.MAPPING, to_endpoint(answer.binding.mapped)), (Role.HAIRPIN, to_endpoint(way.mapped)))
        for after_s in HAIRPIN_AT_S:
            self._hairpin_at += [(now + after_s, role, endpoint, request) for role, endpoint in to_each]
        last = now + HAIRPIN_AT_S[-1] + HAIRPIN_WAIT_S
        self._hairpin_at.append((last, Role.HAIRPIN, to_each[0][1], b""))
