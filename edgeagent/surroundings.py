"""What the kernel around a tunnel says: whether packets are routed on, and which source addresses still work."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgeagent.io.netlink import Netlink
    from edgeagent.proto.device import Device


def forwards(interface: str) -> bool:
    """Whether packets that come in at the interface may be routed on; true where that cannot be told."""
    for version in ("ipv4", "ipv6"):
        try:
            with open(f"/proc/sys/net/{version}/conf/{interface}/forwarding", "rb") as setting:
                if setting.read(1) != b"0":
                    return True
        except OSError:
            if version == "ipv4":
                return True
    return False


def has_capability(number: int) -> bool | None:
    """Whether it is effective (capability.h has the numbers); None where that cannot be told."""
    try:
        with open("/proc/self/status", "rb") as status:
            for line in status:
                if line.startswith(b"CapEff:"):
                    return bool(int(line.split()[1], 16) >> number & 1)
    except (OSError, ValueError, IndexError):
        return None
    return None


def release_stale_sources(now: float, device: Device, netlink: Netlink, mark: int) -> None:
    """Let go of the source addresses from which a peer would now be reached another way, or not at all."""
    for peer in device.peers.values():
        endpoint = peer.endpoint
        if endpoint is None or endpoint.local is None or (len(endpoint.addr) == 4 and endpoint.addr[3]):
            continue
        if endpoint.uplink:
            continue  # not the routes decide by which interface it goes
        source, interface = endpoint.local
        try:
            route = netlink.route_to(endpoint.ip_bytes(), source, mark)
        except OSError:
            device.transmit_failed(now, endpoint)
            continue
        if route.index != interface:
            device.transmit_failed(now, endpoint)
