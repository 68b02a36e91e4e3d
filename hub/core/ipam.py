"""Addresses: 100.64.0.0/10 (RFC 6598) and a unique local /48 (RFC 4193) that the network id gives.

An address follows from the device id, so a device that comes back gets the one it had; a clash moves on by one.
"""

from __future__ import annotations

from base64 import b32decode
from collections.abc import Callable

from hub.core.model import HubError
from hub.core.store import Tx

V4_NETWORK = 0x64400000  # 100.64.0.0
V4_PREFIX = 10
V4_LAST = 0x647FFFFF
V6_PREFIX = 48
PROBES_MAX = 4_096

# Never given out: the network and broadcast addresses, and those that others use in this range by convention.
_RESERVED = (
    (V4_NETWORK, V4_NETWORK),
    (0x64646400, 0x646464FF),  # 100.100.100.0/24: the resolver on every device is 100.100.100.100
    (0x64735C00, 0x64735DFF),  # 100.115.92.0/23: ChromeOS containers
    (V4_LAST, V4_LAST),
)


def is_reserved(address: int) -> bool:
    return any(first <= address <= last for first, last in _RESERVED)


def choose_v4(device_id: str, taken: Callable[[int], bool]) -> int:
    """A free address as an integer. `taken` looks one up; raises HubError when none is found nearby."""
    size = V4_LAST - V4_NETWORK + 1
    start = int.from_bytes(_raw(device_id)[:4], "big") % size
    for step in range(PROBES_MAX):
        address = V4_NETWORK + (start + step) % size
        if not is_reserved(address) and not taken(address):
            return address
    raise HubError("no free IPv4 address near this device's own: remove devices that are gone")


def ula_network(network_id: str) -> bytes:
    """The /48 of a network, 16 B: fd ‖ the first 40 bits of the network id."""
    return b"\xfd" + _raw(network_id)[:5] + bytes(10)


def choose_v6(network_id: str, device_id: str, taken: Callable[[bytes], bool]) -> bytes:
    """A free address, 16 B, in the first /64 of the network."""
    start = int.from_bytes(_raw(device_id)[4:12], "big")
    for step in range(PROBES_MAX):
        interface = (start + step) % (1 << 64)
        address = ula_network(network_id)[:8] + interface.to_bytes(8, "big")
        if interface and not taken(address):
            return address
    raise HubError("no free IPv6 address near this device's own: remove devices that are gone")


def is_taken_v4(tx: Tx, address: int) -> bool:
    return tx.device_by_v4(address) is not None or tx.client_by_v4(address) is not None


def is_taken_v6(tx: Tx, address: bytes) -> bool:
    return tx.device_by_v6(address) is not None or tx.client_by_v6(address) is not None


def _raw(name: str) -> bytes:
    return b32decode(name.upper() + "=" * (-len(name) % 8))
