"""One gateway that is asked for one port.

| state   | input                           | then                                                    |
|---------|---------------------------------|---------------------------------------------------------|
| ASKING  | granted                         | HELD                                                    |
| ASKING  | refused                         | WAITING; version unknown: ASKING by the other protocol  |
| ASKING  | no answer to the last request   | ASKING by the other protocol when none is known, or WAITING |
| HELD    | half of the lifetime is over    | ASKING, with the mapping still counted on               |
| HELD    | the gateway started anew        | ASKING                                                  |
| WAITING | the wait is over, or a gateway announces itself | ASKING                                  |
| any     | the lifetime is over            | no mapping                                              |
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from edgeagent.proto import natpmp, pcp
from edgeagent.proto.backoff import Backoff
from edgeagent.proto.natpmp import PortMapDrop, PortMapError

if TYPE_CHECKING:
    from collections.abc import Callable

LIFETIME_S = 7_200  # RFC 6886, section 3.3
LIFETIME_MIN_S = 60  # a grant of less would have us ask all day
LIFETIME_MAX_S = 86_400
FIRST_RETRY_S = 0.25  # RFC 6886, section 3.1, for both: PCP's three seconds would hold up the fallback
TRIES_MAX = 4  # 3.75 s in all
RENEW_RETRY_MIN_S = 4.0
WAIT_MIN_S, WAIT_MAX_S = 120.0, 86_400.0
ANNOUNCED_SPREAD_S = 5.0  # RFC 6887, section 14.1.3
ANNOUNCED_SPACING_S = 30.0  # whoever forges announcements makes us ask no more often


PCP, NAT_PMP = "pcp", "nat-pmp"


class State(Enum):
    ASKING = "asking"
    HELD = "held"
    WAITING = "waiting"


class Mapping:
    """An outside address and port that lead to ours, until `ends_at`."""

    __slots__ = ("ends_at", "protocol", "where")

    def __init__(self, address: bytes, port: int, protocol: str, ends_at: float) -> None:
        self.where = (address, port)
        self.protocol = protocol
        self.ends_at = ends_at


class Gateway:
    """Drive it by `begin`, `check`, the readers and `handle_timeout`; then drain datagrams and look at `mapping`."""

    __slots__ = (
        "_address",
        "_announced_at",
        "_backoff",
        "_by_pcp",
        "_datagrams",
        "_deadline",
        "_grant",
        "_heard",
        "_jitter",
        "_natpmp_epoch",
        "_nonce",
        "_pcp_epoch",
        "_tries",
        "address",
        "mapping",
        "own",
        "port",
        "protocol",
        "silent",
        "state",
        "told",
    )

    def __init__(self, address: bytes, own: bytes, port: int, *, nonce: bytes, jitter: Callable[[], float]) -> None:
        self.address = address
        self.own = own
        self.port = port
        self.state = State.WAITING
        self.protocol: str | None = None  # by which the mapping was granted; None without one
        self.mapping: Mapping | None = None
        self.told: Mapping | None = None  # the mapping that the owner has made known
        self.silent = False  # it was asked by all that we speak, and has answered none of it the last time
        self._nonce = nonce
        self._jitter = jitter
        self._backoff = Backoff(jitter, WAIT_MIN_S, WAIT_MAX_S)
        self._pcp_epoch = pcp.Epoch()
        self._natpmp_epoch = natpmp.Epoch()
        self._announced_at: float | None = None
        self._deadline = 0.0
        self._by_pcp = True
        self._tries = 0
        self._heard = False  # since `begin`, something that answers what we asked
        # NAT-PMP answers in two halves, in either order
        self._address: bytes | None = None
        self._grant: tuple[int, int] | None = None  # port, lifetime in s
        self._datagrams: list[bytes] = []

    def begin(self, now: float) -> None:
        """Ask, by the protocol that is known, else by PCP."""
        self._heard = False
        self._ask(now, by_pcp=self.protocol != NAT_PMP)

    def check(self, now: float) -> None:
        """Ask a gateway that has granted only for its clock. An answer that never comes changes nothing."""
        if self.state is State.HELD and self.protocol == PCP:
            self._datagrams.append(pcp.write_announce_request(self.own))
        elif self.state is State.HELD:
            self._datagrams.append(natpmp.write_address_request())

    def release(self, now: float) -> None:
        """Give the mapping back; whether the gateway hears it does not matter, it would end anyway."""
        if self.mapping is not None and now < self.mapping.ends_at:
            if self.protocol == PCP:
                self._datagrams.append(pcp.write_map_request(self.own, self._nonce, self.port, self.mapping.where, 0))
            else:
                self._datagrams.append(natpmp.write_map_request(self.port, 0, 0))
        self.mapping = None

    def read_pcp(self, now: float, answer: pcp.Answer) -> None:
        """Raises PortMapError: UNEXPECTED or USELESS. Only an answer to what was asked shows that it speaks such a
        protocol: anybody can forge one, and then UPnP would not be tried."""
        if answer.result == pcp.UNSUPPORTED_VERSION:
            self._version_refused(now)
        elif isinstance(answer, pcp.MapAnswer):
            if not self._asks_by(PCP) or not answer.answers(self._nonce, self.port):
                raise PortMapError(PortMapDrop.UNEXPECTED, "pcp: an answer to no request of ours")
            self._answered()
            self._pcp_epoch.lost(now, answer.epoch_s)  # asked anew already
            if answer.result == pcp.SUCCESS:
                self._granted(now, answer.address, answer.external_port, answer.lifetime_s, PCP)
            else:
                self._wait(now, answer.lifetime_s)
        elif answer.result == pcp.SUCCESS:
            lost = self._pcp_epoch.lost(now, answer.epoch_s)
            if lost or self.state is State.WAITING:
                self._started_anew(now)

    def read_natpmp(self, now: float, answer: natpmp.AddressAnswer | natpmp.MapAnswer | natpmp.Refusal) -> None:
        """Raises PortMapError: UNEXPECTED or USELESS."""
        if isinstance(answer, natpmp.Refusal):
            if answer.result == natpmp.UNSUPPORTED_VERSION:
                self._version_refused(now)
            elif self._asks_by(NAT_PMP):
                self._answered()
                self._wait(now, 0)
            else:
                raise PortMapError(PortMapDrop.UNEXPECTED, "nat-pmp: a refusal of no request of ours")
        elif isinstance(answer, natpmp.MapAnswer):
            if not self._asks_by(NAT_PMP) or answer.internal_port != self.port:
                raise PortMapError(PortMapDrop.UNEXPECTED, "nat-pmp: an answer to no request of ours")
            self._answered()
            self._natpmp_epoch.lost(now, answer.epoch_s)
            self._grant = (answer.external_port, answer.lifetime_s)
            self._join_halves(now)
        else:
            lost = self._natpmp_epoch.lost(now, answer.epoch_s)
            if self._asks_by(NAT_PMP):
                self._answered()
                self._address = answer.address
                self._join_halves(now)
            elif lost or self.mapping is None or self.mapping.where[0] != answer.address:
                self._started_anew(now)

    def handle_timeout(self, now: float) -> None:
        if self.mapping is not None and now >= self.mapping.ends_at:
            self.mapping = self.protocol = None
        if now < self._deadline:
            return
        if self.state is not State.ASKING:
            self.begin(now)
        elif self._tries < TRIES_MAX:
            self._send(now)
        elif self._by_pcp and self.protocol is None and len(self.own) == 4:
            self._ask(now, by_pcp=False)
        else:
            self.silent = not self._heard
            self._wait(now, 0)

    def poll_timeout(self) -> float:
        return self._deadline if self.mapping is None else min(self._deadline, self.mapping.ends_at)

    def drain_datagrams(self) -> list[bytes]:
        datagrams, self._datagrams = self._datagrams, []
        return datagrams

    def _answered(self) -> None:
        self._heard = True
        self.silent = False

    def _asks_by(self, protocol: str) -> bool:
        return self.state is State.ASKING and self._by_pcp == (protocol == PCP)

    def _ask(self, now: float, *, by_pcp: bool) -> None:
        self.state = State.ASKING
        self._by_pcp = by_pcp
        self._tries = 0
        self._address = self._grant = None
        self._send(now)

    def _send(self, now: float) -> None:
        wish = self.mapping.where if self.mapping is not None else None
        if self._by_pcp:
            self._datagrams.append(pcp.write_map_request(self.own, self._nonce, self.port, wish, LIFETIME_S))
        else:
            if self._address is None:
                self._datagrams.append(natpmp.write_address_request())
            if self._grant is None:
                port = wish[1] if wish is not None else self.port
                self._datagrams.append(natpmp.write_map_request(self.port, port, LIFETIME_S))
        self._deadline = now + FIRST_RETRY_S * (1 << self._tries)
        self._tries += 1

    def _join_halves(self, now: float) -> None:
        if self._address is not None and self._grant is not None:
            self._granted(now, self._address, *self._grant, NAT_PMP)

    def _granted(self, now: float, address: bytes, port: int, lifetime_s: int, protocol: str) -> None:
        if not is_usable_outside(address) or port == 0 or lifetime_s < LIFETIME_MIN_S:
            self._wait(now, 0)
            raise PortMapError(PortMapDrop.USELESS, "portmap: an address, a port or a lifetime that is of no use")
        lifetime_s = min(lifetime_s, LIFETIME_MAX_S)
        self.state = State.HELD
        self.protocol = protocol
        self.mapping = Mapping(address, port, protocol, now + lifetime_s)
        self._backoff.reset()
        self._deadline = now + lifetime_s * (0.5 + self._jitter() / 8)  # RFC 6887, section 11.2.1

    def _version_refused(self, now: float) -> None:
        if not self._asks_by(PCP):  # the second of two refusals, or a forged one
            raise PortMapError(PortMapDrop.UNEXPECTED, "portmap: a refusal of no request of ours")
        self._answered()
        if len(self.own) == 4:
            self._ask(now, by_pcp=False)
        else:
            self._wait(now, 0)

    def _wait(self, now: float, at_least_s: int) -> None:
        self.state = State.WAITING
        if self.mapping is not None:  # RFC 6887, section 11.2.1: again when half of the rest is over
            self._deadline = now + max(RENEW_RETRY_MIN_S, (self.mapping.ends_at - now) / 2)
        else:
            self._deadline = now + max(self._backoff.wait_s(), min(at_least_s, WAIT_MAX_S))

    def _started_anew(self, now: float) -> None:
        if self.state is State.ASKING:
            return
        if self._announced_at is not None and now < self._announced_at + ANNOUNCED_SPACING_S:
            return
        self._announced_at = now
        self._deadline = min(self._deadline, now + self._jitter() * ANNOUNCED_SPREAD_S)


def is_usable_outside(address: bytes) -> bool:
    """No zeros, loopback, link-local or multicast: nobody could send there."""
    if len(address) == 4:
        return address[0] not in (0, 127) and address[0] < 224 and address[:2] != b"\xa9\xfe"
    link_local = address[0] == 0xFE and address[1] & 0xC0 == 0x80
    return any(address[:15]) and address[0] != 0xFF and not link_local
