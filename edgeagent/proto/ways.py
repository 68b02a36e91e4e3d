"""Ways out of this device: with several uplinks a path is a remote address by one of them, and is tried by each.

With a single one the kernel's routes decide, and none of this shows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeagent.proto.candidates import kind_of
from edgeagent.proto.endpoint import Endpoint, UplinkEndpoint
from edgeagent.proto.path import Path, PathKind, State
from edgeagent.proto.paths import from_endpoint, to_endpoint

if TYPE_CHECKING:
    from edgeagent.proto.prober import DiscoShared, Prober
    from edgeagent.proto.records import UdpAddress


class WayOut:
    """One that paths may use at present. `addresses` are its own (4 or 16 B), `routed` the sizes of those that it has
    a default route for, `cost_ms` what it adds to the latency of whatever goes by it."""

    __slots__ = ("addresses", "cost_ms", "index", "name", "routed")

    def __init__(
        self, name: str, index: int, addresses: list[bytes], routed: tuple[int, ...], cost_ms: float = 0.0
    ) -> None:
        self.name = name
        self.index = index
        self.addresses = addresses
        self.routed = routed
        self.cost_ms = cost_ms

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WayOut) and self.is_where(other) and self._price() == other._price()

    def _price(self) -> tuple[int, float]:
        return self.index, self.cost_ms

    def is_where(self, other: WayOut) -> bool:
        """Whether the network at its other end is the same."""
        return (self.name, self.addresses, self.routed) == (other.name, other.addresses, other.routed)


class Ways:
    """The uplinks in use by interface index, the best first. `several` says whether sockets are bound to each of them,
    and so whether the uplink is a part of an endpoint: also when only one of them is usable."""

    __slots__ = ("several", "uplinks")

    def __init__(self, uplinks: list[WayOut], *, several: bool) -> None:
        self.uplinks = {uplink.index: uplink for uplink in uplinks}
        self.several = several

    def to(self, remote: UdpAddress, shared: DiscoShared) -> list[tuple[Endpoint, PathKind]]:
        """The endpoints that stand for `remote`, and where it lies from there; none where no uplink leads there."""
        plain = to_endpoint(remote)
        found: list[tuple[Endpoint, PathKind]] = []
        if self.several:
            for uplink in self.uplinks.values():
                kind = kind_of(remote[0], [(own, 0) for own in uplink.addresses], shared.device_map)
                if kind is PathKind.LAN or (kind is not None and len(remote[0]) in uplink.routed):
                    found.append((UplinkEndpoint.by(uplink.index, plain), kind))
        if not found:
            kind = kind_of(remote[0], shared.own, shared.device_map) or PathKind.PRIVATE
            # What is not the internet may be behind another interface, to which there is but one way
            if not self.several or kind in (PathKind.LAN, PathKind.PRIVATE):
                found.append((plain, kind))
        return found

    def is_open(self, endpoint: Endpoint) -> bool:
        """False by an uplink that is down, or where none has a socket of its own."""
        return endpoint.uplink == 0 or (self.several and endpoint.uplink in self.uplinks)

    def cost_ms(self, endpoint: Endpoint) -> float:
        uplink = self.uplinks.get(endpoint.uplink)
        return 0.0 if uplink is None else uplink.cost_ms


def migrate(prober: Prober, shared: DiscoShared) -> None:
    """Fit the paths of one peer to `shared.ways`, which are others than before: what went by an uplink that is down is
    dead at once, what goes on is still the same path, and each address is there by each uplink."""
    ways = shared.ways
    for path in list(prober.direct.values()):
        uplink = path.endpoint.uplink
        if ways.several and not uplink:
            _bind(prober, path, shared)
        elif uplink and uplink not in ways.uplinks:
            path.lose()
        if uplink and not ways.several:
            local = path.endpoint.local
            is_known = local is not None and any(local[0]) and path.state is not State.DEAD
            prober.rekey(path, Endpoint(path.endpoint.addr, local if is_known else None))
        path.cost_ms = ways.cost_ms(path.endpoint)
    if not ways.several:
        return
    remotes = list(dict.fromkeys(from_endpoint(path.endpoint) for path in prober.direct.values()))
    for remote in remotes:
        for endpoint, kind in ways.to(remote, shared):
            prober.add(endpoint, kind)
    reached = {from_endpoint(path.endpoint) for path in prober.direct.values() if ways.is_open(path.endpoint)}
    for path in list(prober.direct.values()):
        if not ways.is_open(path.endpoint) and from_endpoint(path.endpoint) in reached:
            del prober.direct[path.key]  # all others stay, dead, for their address


def _bind(prober: Prober, path: Path, shared: DiscoShared) -> None:
    """A path that the kernel routed so far: it goes on by the uplink that it went by."""
    targets = [each for each, _ in shared.ways.to(from_endpoint(path.endpoint), shared) if each.uplink]
    if not targets:
        return
    local = path.endpoint.local
    for target in targets:
        if local is None or local[1] == target.uplink:
            prober.rekey(path, target if local is None else UplinkEndpoint(path.endpoint.addr, local))
            return
    path.lose()
    prober.rekey(path, targets[0])
