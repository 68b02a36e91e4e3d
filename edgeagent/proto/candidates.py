"""Which endpoints are worth a probe, and where they lie: nothing is sent where no peer of ours can be."""

from __future__ import annotations

from edgeagent.proto.devicemap import DeviceMap
from edgeagent.proto.path import PathKind
from edgeagent.proto.paths import is_usable
from edgeagent.proto.records import UdpAddress

_LAN_BITS = {4: 24, 16: 64}


def sort_candidates(
    offered: list[UdpAddress], own: list[UdpAddress], device_map: DeviceMap
) -> tuple[list[tuple[UdpAddress, PathKind]], int]:
    """(endpoints with their kind, those nearest first; how many were refused).

    Refused are loopback, link-local, multicast and unspecified addresses, addresses inside the mesh, our own, and
    private ones in whose block we have no address: they are somebody else's machine.
    """
    found: dict[UdpAddress, PathKind] = {}
    refused = 0
    for endpoint in offered:
        kind = kind_of(endpoint[0], own, device_map)
        if kind is None or endpoint in own:
            refused += 1
        else:
            found[endpoint] = kind
    order = list(PathKind)
    return sorted(found.items(), key=lambda item: order.index(item[1])), refused


def kind_of(address: bytes, own: list[UdpAddress], device_map: DeviceMap) -> PathKind | None:
    """None for an address (4 or 16 B) that is not to be probed."""
    if not is_usable(address, device_map) or _is_link_local(address):
        return None
    same_size = [mine for mine, _ in own if len(mine) == len(address)]
    if any(_share(address, mine, _LAN_BITS[len(address)]) for mine in same_size):
        return PathKind.LAN
    block = private_block(address)
    if block is not None:
        return PathKind.PRIVATE if any(private_block(mine) == block for mine in same_size) else None
    return PathKind.IPV4 if len(address) == 4 else PathKind.IPV6


def private_block(address: bytes) -> int | None:
    """A number for each block that is not routed on the internet (RFC 1918, RFC 6598, RFC 4193); None outside."""
    if len(address) == 16:
        return 5 if address[0] & 0xFE == 0xFC else None
    first, second = address[0], address[1]
    if first == 10:
        return 1
    if first == 172 and second & 0xF0 == 16:
        return 2
    if first == 192 and second == 168:
        return 3
    return 4 if first == 100 and second & 0xC0 == 64 else None


def _is_link_local(address: bytes) -> bool:
    return len(address) == 4 and address[0] == 169 and address[1] == 254


def _share(a: bytes, b: bytes, bits: int) -> bool:
    shift = 8 * len(a) - bits
    return int.from_bytes(a, "big") >> shift == int.from_bytes(b, "big") >> shift
