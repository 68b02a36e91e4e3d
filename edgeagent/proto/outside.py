"""How this device looks from outside, by each of its uplinks; and whether anything comes back by one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeagent.proto.endpoint import UplinkEndpoint
from edgeagent.proto.mappings import Mappings
from edgeagent.proto.stun_exchange import StunExchange

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgeagent.proto.endpoint import Endpoint, Transmit
    from edgeagent.proto.keys import Entropy
    from edgeagent.proto.mappings import Measured
    from edgeagent.proto.records import UdpAddress
    from edgeagent.proto.stun import StunDrop

PROBE_RTO_S, PROBE_TRIES = 0.25, 2  # 0.75 s in all: whoever waits for this may be sending into a black hole
_TRANSACTION = slice(8, 20)


class Outside:
    """Mappings for each uplink, 0 standing for the only one.

    Drive it as one of them; `set_uplinks` when there are others, `probe` one of them to see whether it works.
    `drain_news` has what is new by uplink, `drain_verdicts` what became of probes.
    """

    def __init__(self, entropy: Entropy, servers: Callable[[], list[tuple[str, list[Endpoint], int]]]) -> None:
        self._entropy = entropy
        self._servers = servers
        self._by_uplink: dict[int, Mappings] = {0: Mappings(entropy, servers)}
        self._probes = StunExchange(entropy, rto_s=PROBE_RTO_S, requests_max=PROBE_TRIES, last_wait_rtos=PROBE_TRIES)
        self._probing: dict[bytes, int] = {}  # transaction → uplink
        self._verdicts: list[tuple[int, bool]] = []
        self._ended_drops: dict[StunDrop, int] = {}

    @property
    def drops(self) -> dict[StunDrop, int]:
        """Of answers, by reason."""
        total = dict(self._ended_drops)
        _add(total, self._probes.drops)
        for each in self._by_uplink.values():
            _add(total, each.drops)
        return total

    @property
    def mapped(self) -> list[UdpAddress]:
        """Where we are seen by whatever uplink."""
        return list(dict.fromkeys(address for each in self._by_uplink.values() for address in each.mapped))

    def mapped_by(self, uplink: int) -> list[UdpAddress]:
        """Where we are seen by the uplink of that interface index; 0 is the kernel's choice, as is any where it is."""
        each = self._by_uplink.get(uplink) or self._by_uplink.get(0)
        return [] if each is None else each.mapped

    def set_uplinks(self, now: float, routed: dict[int, tuple[int, ...]]) -> None:
        """The sizes of addresses (4, 16) that each leads to, by interface index, the best first; with none it is left
        to the kernel by which to ask."""
        wanted = list(routed) or [0]
        kept = {index: self._by_uplink[index] for index in wanted if index in self._by_uplink}
        for index, each in self._by_uplink.items():
            if index not in kept:
                _add(self._ended_drops, each.drops)
        self._by_uplink = {}
        for index in wanted:
            mappings = kept.get(index)
            if mappings is None:
                mappings = Mappings(self._entropy, self._servers)
                mappings.via = index or None
                mappings.sizes = routed.get(index)
                mappings.doubt(now)
            elif mappings.sizes != routed.get(index):
                mappings.sizes = routed.get(index)
                mappings.doubt(now)
            self._by_uplink[index] = mappings

    def want(self, now: float) -> None:
        for each in self._by_uplink.values():
            each.want(now)

    def doubt(self, now: float, *, survey: bool = False) -> None:
        """Relays are surveyed by the best uplink only."""
        for place, each in enumerate(self._by_uplink.values()):
            each.doubt(now, survey=survey and place == 0)

    def forget(self, now: float) -> None:
        for each in self._by_uplink.values():
            each.forget(now)

    def probe(self, now: float, uplink: int, routed: tuple[int, ...]) -> None:
        """Ask the nearest server that the uplink leads to, by addresses of those sizes; nothing, and no verdict, where
        there is none: that an IPv4 modem carries no IPv6 says nothing of the modem."""
        if uplink in self._probing.values():
            return
        for _, endpoints, _ in self._servers():
            endpoint = next((each for each in endpoints if each.size in routed), None)
            if endpoint is not None:
                transaction = self._probes.begin(now, UplinkEndpoint.by(uplink, endpoint))
                self._probing[transaction] = uplink
                return

    def handle_datagram(self, now: float, datagram: bytes, source: Endpoint) -> None:
        if datagram[_TRANSACTION] in self._probing:
            answer = self._probes.handle(now, datagram, source)
            if answer is not None:
                self._verdicts.append((self._probing.pop(answer.transaction), True))
            return
        index = source.uplink if source.uplink in self._by_uplink else next(iter(self._by_uplink))
        self._by_uplink[index].handle_datagram(now, datagram, source)

    def handle_timeout(self, now: float) -> None:
        self._probes.handle_timeout(now)
        for failure in self._probes.drain_failures():
            uplink = self._probing.pop(failure.transaction, None)
            if uplink is not None:
                self._verdicts.append((uplink, False))
        for each in self._by_uplink.values():
            each.handle_timeout(now)

    def poll_timeout(self) -> float | None:
        times = [self._probes.poll_timeout(), *(each.poll_timeout() for each in self._by_uplink.values())]
        return min((at for at in times if at is not None), default=None)

    def drain_transmits(self) -> list[Transmit]:
        transmits = self._probes.drain_transmits()
        for each in self._by_uplink.values():
            transmits += each.drain_transmits()
        return transmits

    def drain_verdicts(self) -> list[tuple[int, bool]]:
        """(uplink, whether its probe was answered)."""
        verdicts, self._verdicts = self._verdicts, []
        return verdicts

    def drain_measured(self) -> list[Measured]:
        return [measured for each in self._by_uplink.values() for measured in each.drain_measured()]

    def drain_news(self) -> list[tuple[int, list[UdpAddress]]]:
        """(uplink, where we are seen by it)."""
        news = ((index, each.take_news()) for index, each in self._by_uplink.items())
        return [(index, mapped) for index, mapped in news if mapped is not None]


def _add(total: dict[StunDrop, int], drops: dict[StunDrop, int]) -> None:
    for reason, count in drops.items():
        total[reason] = total.get(reason, 0) + count
