"""Where a peer may be reached: which of the addresses in its feed make sense to this device, the nearest first."""

from __future__ import annotations

from edgeagent.proto.devicemap import DeviceMap
from edgeagent.proto.endpoint import Endpoint
from edgeagent.proto.ip import ip_to_text
from edgeagent.proto.records import UdpAddress

CANDIDATES_MAX = 4  # endpoints that one initiation is sent to
_SAME_SUBNET_BITS = {4: 24, 16: 64}


def candidates(
    offered: list[UdpAddress], last: UdpAddress | None, own: list[UdpAddress], device_map: DeviceMap
) -> list[UdpAddress]:
    """At most four: where the peer was last heard, then what shares a subnet with us, then the rest as offered.

    Addresses of a family that we have none of come last; addresses inside the mesh never: a tunnel in itself.
    """
    families = {len(address) for address, _ in own}
    near, far, foreign = [], [], []
    for endpoint in offered:
        if endpoint == last or not is_usable(endpoint[0], device_map):
            continue
        bits = max((_common_bits(endpoint[0], address) for address, _ in own), default=0)
        if bits >= _SAME_SUBNET_BITS[len(endpoint[0])]:
            near.append(endpoint)
        elif not families or len(endpoint[0]) in families:
            far.append(endpoint)
        else:
            foreign.append(endpoint)
    heard = [last] if last is not None and is_usable(last[0], device_map) else []
    return (heard + near + far + foreign)[:CANDIDATES_MAX]


def is_usable(address: bytes, device_map: DeviceMap) -> bool:
    """Whether an address (4 or 16 B) is one that a datagram to another machine can have, outside the mesh."""
    if device_map.holds(address) or not any(address):
        return False
    if len(address) == 4:
        return address[0] not in (0, 127) and address[0] < 224
    # Link-local addresses mean nothing without the reader's own interface
    link_local = address[0] == 0xFE and address[1] & 0xC0 == 0x80
    loopback = not any(address[:15]) and address[15] == 1
    return address[0] != 0xFF and not link_local and not loopback


def is_unicast(address: bytes) -> bool:
    """Whether a packet to `address` (4 or 16 B) can have one peer behind it."""
    if len(address) == 4:
        return address[0] not in (0, 127) and address[0] < 224
    return address[0] != 0xFF and not (address[0] == 0xFE and address[1] & 0xC0 == 0x80) and any(address[:15])


def to_endpoint(udp: UdpAddress) -> Endpoint:
    """For the socket module; an Endpoint of its own for each call."""
    address, port = udp
    host = ip_to_text(address)
    return Endpoint((host, port)) if len(address) == 4 else Endpoint((host, port, 0, 0))


def from_endpoint(endpoint: Endpoint) -> UdpAddress:
    return endpoint.ip_bytes(), endpoint.addr[1]


def _common_bits(a: bytes, b: bytes) -> int:
    if len(a) != len(b):
        return 0
    return 8 * len(a) - (int.from_bytes(a, "big") ^ int.from_bytes(b, "big")).bit_length()
