"""Ports that routers open on request: PCP first, NAT-PMP where that is not spoken, one gateway for each uplink."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeagent.proto import natpmp, pcp
from edgeagent.proto.errors import LimitReached, LocalProtocolError
from edgeagent.proto.natpmp import SERVER_PORT, PortMapDrop, PortMapError
from edgeagent.proto.portmap_gateway import Gateway, Mapping

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgeagent.proto.records import UdpAddress

GATEWAYS_MAX = 8
UPLINK_BYTES_MAX = 64


class MappingGained:
    """Datagrams to `address` (4 or 16 B), `port` now reach the port asked for, through `gateway` of `uplink`.

    Where the gateway is itself behind a NAT the address is a private one: reachable from there, not from everywhere.
    """

    __slots__ = ("address", "gateway", "port", "protocol", "uplink")

    def __init__(self, uplink: str, gateway: bytes, address: bytes, port: int, protocol: str) -> None:
        self.uplink = uplink
        self.gateway = gateway
        self.address = address
        self.port = port
        self.protocol = protocol  # "pcp", "nat-pmp"


class MappingLost:
    """What MappingGained said of this address and port no longer holds."""

    __slots__ = ("address", "gateway", "port", "uplink")

    def __init__(self, uplink: str, gateway: bytes, address: bytes, port: int) -> None:
        self.uplink = uplink
        self.gateway = gateway
        self.address = address
        self.port = port


class Ask:
    """A datagram to port 5351 of `gateway`, sent on `uplink` from the address that `set_gateway` was given."""

    __slots__ = ("datagram", "gateway", "uplink")

    def __init__(self, uplink: str, gateway: bytes, datagram: bytes) -> None:
        self.uplink = uplink
        self.gateway = gateway
        self.datagram = datagram


class PortMapper:
    """Drive it: `set_gateway` for each uplink and address family worth asking on, `handle_datagram` with what comes
    from port 5351 and with multicasts to port 5350, `handle_timeout` at `poll_timeout()`; after any input drain asks
    and events. `check` when a mapping is in doubt, `close` at the end.

    A gateway that grants says so in at most a second; one that knows neither protocol is asked less and less often.
    """

    def __init__(self, entropy: Callable[[int], bytes], jitter: Callable[[], float]) -> None:
        self._entropy = entropy
        self._jitter = jitter
        self._gateways: dict[tuple[str, int], Gateway] = {}
        self._asks: list[Ask] = []
        self._events: list[MappingGained | MappingLost] = []
        self.drops: dict[PortMapDrop, int] = {}

    def set_gateway(self, now: float, uplink: str, gateway: bytes, own: bytes, port: int) -> None:
        """Ask `gateway` to open a way to `own`, `port`. The same again changes nothing, anything else starts anew.

        `gateway` and `own` are of one family. Raises LimitReached beyond GATEWAYS_MAX.
        """
        key = (uplink, len(own))
        if len(gateway) != len(own) or len(own) not in (4, 16) or not 1 <= port <= 65_535:
            raise LocalProtocolError("portmap: two addresses of 4 or of 16 bytes, and a port")
        if not 1 <= len(uplink.encode()) <= UPLINK_BYTES_MAX:
            raise LocalProtocolError(f"portmap: an uplink's id has 1 to {UPLINK_BYTES_MAX} bytes")
        known = self._gateways.get(key)
        if known is not None:
            if (known.address, known.own, known.port) == (gateway, own, port):
                return
            self._forget(now, key)
        elif len(self._gateways) >= GATEWAYS_MAX:
            raise LimitReached(f"portmap: at most {GATEWAYS_MAX} gateways")
        made = Gateway(gateway, own, port, nonce=self._entropy(pcp.NONCE_SIZE), jitter=self._jitter)
        self._gateways[key] = made
        made.begin(now)
        self._collect(uplink, made)

    def remove_uplink(self, now: float, uplink: str) -> None:
        """The uplink went away or is not worth asking on any more. Mappings are given back where they still can be."""
        for key in [key for key in self._gateways if key[0] == uplink]:
            self._forget(now, key)

    def remove_gateway(self, now: float, uplink: str, own: bytes) -> None:
        """The same for one address family of it, that of `own`. Harmless where there is none."""
        if (uplink, len(own)) in self._gateways:
            self._forget(now, (uplink, len(own)))

    def close(self, now: float) -> None:
        """Give back all mappings: the asks to drain are the last."""
        for key in list(self._gateways):
            self._forget(now, key)

    def check(self, now: float, uplink: str) -> None:
        """A mapping is in doubt: ask the gateway whether it started anew."""
        for (name, _), gateway in self._gateways.items():
            if name == uplink:
                gateway.check(now)
                self._collect(name, gateway)

    def handle_datagram(self, now: float, uplink: str, source: UdpAddress, datagram: bytes) -> None:
        """What came in on `uplink` from `source`, to the port asked from or to the port of announcements."""
        address, port = source
        gateway = self._gateways.get((uplink, len(address)))
        try:
            if gateway is None or gateway.address != address or port != SERVER_PORT:
                raise PortMapError(PortMapDrop.STRANGER, "portmap: not from the gateway")
            if datagram[:1] == bytes((natpmp.VERSION,)):
                gateway.read_natpmp(now, natpmp.read(datagram))
            else:
                gateway.read_pcp(now, pcp.read(datagram))
        except PortMapError as error:
            self.drops[error.reason] = self.drops.get(error.reason, 0) + 1
        if gateway is not None:
            self._collect(uplink, gateway)

    def handle_timeout(self, now: float) -> None:
        for (uplink, _), gateway in self._gateways.items():
            gateway.handle_timeout(now)
            self._collect(uplink, gateway)

    def poll_timeout(self) -> float | None:
        return min((gateway.poll_timeout() for gateway in self._gateways.values()), default=None)

    def mappings(self) -> list[tuple[str, Mapping]]:
        """All that hold, with their uplinks."""
        return [(key[0], gateway.mapping) for key, gateway in self._gateways.items() if gateway.mapping is not None]

    def silent(self) -> list[tuple[str, bytes, bytes, int]]:
        """(uplink, gateway, own address, port) where both protocols were tried over IPv4 and no answer ever came."""
        return [
            (key[0], gateway.address, gateway.own, gateway.port)
            for key, gateway in self._gateways.items()
            if gateway.silent and len(gateway.own) == 4
        ]

    def drain_asks(self) -> list[Ask]:
        asks, self._asks = self._asks, []
        return asks

    def drain_events(self) -> list[MappingGained | MappingLost]:
        events, self._events = self._events, []
        return events

    def _forget(self, now: float, key: tuple[str, int]) -> None:
        gateway = self._gateways.pop(key)
        gateway.release(now)
        self._collect(key[0], gateway)

    def _collect(self, uplink: str, gateway: Gateway) -> None:
        self._asks += [Ask(uplink, gateway.address, datagram) for datagram in gateway.drain_datagrams()]
        was, gateway.told = gateway.told, gateway.mapping
        new = gateway.mapping
        if was is not None and (new is None or new.where != was.where):
            self._events.append(MappingLost(uplink, gateway.address, *was.where))
        if new is not None and (was is None or new.where != was.where):
            self._events.append(MappingGained(uplink, gateway.address, *new.where, new.protocol))
