"""What the kernel around a tunnel says: whether packets are routed on, and which source addresses still work."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgeagent.io.netlink import Netlink
    from edgeagent.proto.device import Device
    from edgeagent.proto.endpoint import Endpoint

LOOKS_MAX = 256  # at once: each is a question to the kernel, of some 20 µs


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
    device.sources_changed()
    for peer in device.peers.values():
        if peer.endpoint is not None and _is_stale(peer.endpoint, netlink, mark):
            device.transmit_failed(now, peer.endpoint)


class NewSources:
    """Looks at source addresses that are new: what was on its way when the routes changed, or comes from a peer that
    does not know of it, pins the old one again, and no change would come after that. (Linux looks at each datagram.)"""

    def __init__(self) -> None:
        self._fine: dict[bytes, Endpoint] = {}  # by public key: as they were found at the last look

    def check(self, now: float, device: Device, netlink: Netlink, mark: int, *, anew: bool) -> None:
        """Those that are not known to be fine, or all of them `anew`; at most LOOKS_MAX, and the rest with the next."""
        before, self._fine, looks = {} if anew else self._fine, {}, 0
        if anew:
            device.sources_changed()
        for key, peer in device.peers.items():
            endpoint = peer.endpoint
            if endpoint is None or endpoint.local is None:
                continue
            if before.get(key) != endpoint:
                looks += 1
                if looks > LOOKS_MAX:
                    continue
                if _is_stale(endpoint, netlink, mark):
                    device.transmit_failed(now, endpoint)
                    continue
            self._fine[key] = endpoint


def _is_stale(endpoint: Endpoint, netlink: Netlink, mark: int) -> bool:
    if endpoint.local is None or (len(endpoint.addr) == 4 and endpoint.addr[3]):
        return False
    if endpoint.uplink:
        return False  # not the routes decide by which interface it goes
    source, interface = endpoint.local
    try:
        return netlink.route_to(endpoint.ip_bytes(), source, mark).index != interface
    except OSError:
        return True
