"""Where the UDP ports of relays are: by the addresses in the map, by what names say, and by what has answered."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeagent.proto.ip import ip_to_bytes
from edgeagent.proto.paths import to_endpoint

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgeagent.proto.endpoint import Endpoint
    from edgeagent.proto.path import PathKey
    from edgeagent.proto.records import UdpAddress
    from edgeagent.proto.relaymap import RelayInfo

ADDRESSES_MAX = 8  # of one relay


class RelayAddresses:
    """Drive it by the set methods and `answered`; `of` has a relay's endpoints in the families that we have, the best
    first. `is_usable` tells of an address (4 or 16 B) whether a relay can have it: one inside the mesh would be a
    tunnel in itself.
    """

    __slots__ = ("_answered", "_endpoints", "_families", "_is_usable", "_relays")

    def __init__(self, is_usable: Callable[[bytes], bool]) -> None:
        self._is_usable = is_usable
        self._relays: dict[str, RelayInfo] = {}
        self._endpoints: dict[str, list[Endpoint]] = {}
        self._answered: dict[str, dict[PathKey, None]] = {}  # those of them that have, on this network
        self._families: dict[int, None] = {4: None}  # sizes of addresses that we have ourselves

    @property
    def any_answered(self) -> bool:
        """Whether UDP passes here, as far as is known."""
        return bool(self._answered)

    def set_relays(self, relays: dict[str, RelayInfo]) -> None:
        """Those of the map; what is known of one that is as before stays."""
        for relay in [relay for relay in self._relays if self._relays[relay] != relays.get(relay)]:
            del self._endpoints[relay]
            self._answered.pop(relay, None)
        self._relays = relays
        for relay, info in relays.items():
            if relay not in self._endpoints:
                self._endpoints[relay] = self._literal(info)

    def set_families(self, sizes: list[int]) -> None:
        """4 for IPv4, 16 for IPv6."""
        self._families = dict.fromkeys(sizes)

    def set_resolved(self, relay: str, addresses: list[UdpAddress]) -> None:
        """What a relay's host names say now."""
        if relay not in self._relays:
            return
        found = [to_endpoint(address) for address in addresses if self._is_usable(address[0])]
        found = list(dict.fromkeys([*self._literal(self._relays[relay]), *found]))
        kept = [endpoint for endpoint in self._endpoints[relay] if endpoint in found]
        self._endpoints[relay] = (kept + [endpoint for endpoint in found if endpoint not in kept])[:ADDRESSES_MAX]

    def answered(self, relay: str, endpoint: Endpoint) -> None:
        """Something came back from there."""
        known = self._endpoints.get(relay, [])
        if any(each.addr == endpoint.addr for each in known):
            answered = self._answered.setdefault(relay, {})
            answered[endpoint.addr[:2]] = None
            # One that answers too is not left for another: they would take turns
            if known[0].addr[:2] not in answered:
                known.sort(key=lambda each: each.addr != endpoint.addr)

    def forget_answers(self) -> None:
        """We are on another network."""
        self._answered.clear()

    def of(self, relay: str) -> list[Endpoint]:
        return [each for each in self._endpoints.get(relay, []) if each.size in self._families]

    def first_of(self, relay: str, sizes: tuple[int, ...] | None) -> Endpoint | None:
        """The best one that an uplink leads to which takes addresses of those sizes; None for all."""
        return next((each for each in self.of(relay) if sizes is None or each.size in sizes), None)

    def names_to_resolve(self) -> list[tuple[str, str, int]]:
        """(relay, host name, UDP port) of relays whose hosts are no addresses."""
        return [
            (relay.id, host.rpartition(":")[0], relay.udp_port)
            for relay in self._relays.values()
            if relay.udp_port
            for host in relay.hosts
            if _literal(host) is None
        ]

    def _literal(self, relay: RelayInfo) -> list[Endpoint]:
        """Of hosts that are addresses."""
        found = [address for host in relay.hosts if (address := _literal(host)) is not None]
        port = relay.udp_port
        return [to_endpoint((address, port)) for address in found if self._is_usable(address)] if port else []


def _literal(host_port: str) -> bytes | None:
    """The address in "host:port", None for a name."""
    try:
        return ip_to_bytes(host_port.rpartition(":")[0].strip("[]"))
    except ValueError:
        return None
