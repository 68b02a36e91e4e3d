"""For whom packets of peers may be: what a device takes out of the tunnel at all, whatever its kernel would forward."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeagent.proto.ip import holds

if TYPE_CHECKING:
    from edgeagent.proto.devicemap import DeviceMap

_KNOWN_MAX = 1_024


class Targets:
    """Of one map, beside the device's own addresses: its plain clients, and what it routes with the hub's leave.

    An exit node with that leave takes what is for the internet, and nothing that is for its own neighbours: those are
    prefixes to be approved as such. Plain clients send through us whatever a device may send.
    """

    __slots__ = ("_behind", "_exits", "_known", "_network")

    def __init__(self, device_map: DeviceMap) -> None:
        clients = [(address, 8 * len(address)) for _, *both in device_map.clients for address in both]
        self._behind = [*clients, *(prefix for prefix in device_map.approved if prefix[1])]
        self._exits = any(not length for _, length in device_map.approved)
        self._network = (device_map.v4, device_map.v6, *(device_map.routes or ())) if clients else ()
        self._known: dict[tuple[bytes, bool], bool] = {}

    def hold(self, address: bytes, is_client: bool) -> bool:
        """Whether a packet for `address` (4 or 16 B) is taken; `is_client`: from a plain client of ours."""
        key = address, is_client
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= _KNOWN_MAX:
                self._known.clear()
            known = self._known[key] = self._look(address, is_client)
        return known

    def _look(self, address: bytes, is_client: bool) -> bool:
        if any(holds(prefix, address) for prefix in self._behind):
            return True
        if is_client and any(holds(prefix, address) for prefix in self._network):
            return True
        if not self._exits:
            return False
        from edgeagent.proto.policy import NOT_INTERNET  # only an exit node pays for it

        return not any(holds(prefix, address) for prefix in NOT_INTERNET if len(prefix[0]) == len(address))
