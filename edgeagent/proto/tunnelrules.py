"""What the map asks of the tunnel: whom packets may be for, who may reach whom, and which plain clients are peers.

A map comes whenever anything in it changes, and most of it is as before. What says the same again is not told again:
that would end flows of engines, and have every connection judged anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeagent.proto.errors import LimitReached
from edgeagent.proto.refusals import ControlDrop

if TYPE_CHECKING:
    from edgeagent.proto.control_client import ControlClient
    from edgeagent.proto.device import Device


class TunnelRules:
    """`follow` and `meet_clients` after each map."""

    __slots__ = ("_client", "_clients", "_device", "_policy_said", "_taken_for")

    def __init__(self, device: Device, client: ControlClient) -> None:
        self._device = device
        self._client = client
        self._clients: dict[bytes, tuple[bytes, bytes]] = {}  # plain clients that are peers: key, and its addresses
        self._taken_for: object = None  # what the device's targets were made from
        self._policy_said: object = None  # what the device's policy was made from

    def follow(self, now: float) -> None:
        self._take_for()
        self._use_policy(now)

    def meet_clients(self, now: float) -> None:
        """Plain WireGuard clients are peers for as long as the map names them."""
        device = self._device
        wanted = {key: (v4, v6) for key, v4, v6 in self._client.map.clients}
        for key, before in list(self._clients.items()):
            if key not in wanted:
                del self._clients[key]
                device.remove_peer(now, key)
            elif wanted[key] != before and (peer := device.peers.get(key)) is not None:
                for address in before:  # it was removed and made anew, and no map in between has come
                    device.allowed_ips.remove(address, 8 * len(address), peer)
        for key, addresses in wanted.items():
            is_ours = key in self._clients
            if self._clients.get(key) == addresses or (not is_ours and key in device.peers) or key == device.public_key:
                continue
            try:
                peer = device.add_peer(now, key)
                for address in addresses:
                    device.allowed_ips.insert(address, 8 * len(address), peer)
            except LimitReached:
                self._clients.pop(key, None)
                device.remove_peer(now, key)  # one that has only some of its addresses would never get the others
                self._client.count(ControlDrop.TABLE_FULL)
                return
            self._clients[key] = addresses

    def _take_for(self) -> None:
        """Whom packets of peers may be for. A map that says the same as before ends no engine's flows."""
        about = self._client.map
        said = (about.addresses, about.approved, about.clients, about.routes if about.clients else None)
        if said != self._taken_for:
            self._taken_for = said
            behind = None
            if about.approved or about.clients:
                from edgeagent.proto.targets import Targets  # most devices route nothing

                behind = Targets(about).hold
            self._device.take_for(frozenset(about.addresses), behind)

    def _use_policy(self, now: float) -> None:
        """What the map says of who may reach whom. A map that says the same as before judges nothing again."""
        about = self._client.map
        clients = [address for _, v4, v6 in about.clients for address in (v4, v6)]
        elsewhere = about.elsewhere() if clients else []
        who = (about.tags, about.addresses, (about.v4, about.v6), clients, elsewhere)
        said = (about.policy, *who) if about.policy is not None else None
        if said == self._policy_said:
            return
        self._policy_said = said
        if about.policy is None:
            self._device.set_policy(now, None)
            return
        from edgeagent.proto.policy import Slice  # only who has a policy pays for it

        self._device.set_policy(now, Slice(about.policy, *who))
