"""A device with several WANs, each behind a router of its own.

homes = Homes(seed)
a = add_wan_device(homes, [("eth0", homes.home("w1", nat.PORT)), ("wwan0", homes.home("w2", nat.CARRIER))])
a.pull("eth0")
"""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from edgeagent.proto.uplink import UplinkFacts, settings_of
from edgeagent.proto.uplinks import Uplinks
from tests.sim.device import SimDevice
from tests.sim.homes import Homes
from tests.sim.net import Interface, Segment

NETLINK_S = 0.001  # from a pulled cable until the agent knows
_DEFAULT = ip_network("0.0.0.0/0")


class WanDevice(SimDevice):
    """Its WANs by interface name, in the order of their routes' metric, and those that cost by the byte."""

    names: list[str]
    metered: list[str]

    def interface(self, name: str) -> Interface:
        return self.host.interfaces[self.names.index(name)]

    def pull(self, name: str) -> None:
        """Link down."""
        self.host.set_link(self.interface(name), False)
        self.world.after(NETLINK_S, self.tell_addresses)

    def plug(self, name: str) -> None:
        self.host.set_link(self.interface(name), True)
        self.world.after(NETLINK_S, self.tell_addresses)

    def renumber(self, name: str, address: str) -> None:
        """The router gives it another address."""
        self.host.set_address(self.interface(name), address)
        self.world.after(NETLINK_S, self.tell_addresses)

    def tell_addresses(self) -> None:
        node, now = self.node, self.now
        if node is not None:
            uplinks = node.reach.uplinks or Uplinks(settings_of([], self.metered))
            uplinks.handle_links(now, [self._facts(name) for name in self.names])
            self._guarded(lambda: node.handle_uplinks(now, uplinks))
            self.host.uplinks = [index for _, index in uplinks.bound]
        super().tell_addresses()

    def _facts(self, name: str) -> UplinkFacts:
        interface = self.interface(name)
        gateways = [
            ip_address(gateway).packed
            for prefix, gateway, by in self.host.routes
            if prefix == _DEFAULT and by is interface and gateway is not None
        ]
        assert interface.address is not None
        return UplinkFacts(
            name,
            interface.index,
            addresses=[ip_address(interface.address).packed],
            gateways=dict.fromkeys([4], gateways[0]),
            is_up=interface.up,
        )


def add_wan_device(homes: Homes, wans: list[tuple[str, Segment]], *, metered: tuple[str, ...] = ()) -> WanDevice:
    """Its WANs by interface name, in the order of their routes' metric."""
    number = len(homes.devices) + 1
    host = homes.net.host(f"d{number}")
    for _, segment in wans:
        gateway = "192.168.1.1" if segment.name.startswith("home-") else "100.64.0.1"
        host.attach(segment, gateway[:-1] + str(100 + number), gateway=gateway)
    device = WanDevice(homes.world, homes.traffic, host, homes.broker, homes.hub.create_token(), limits=homes.limits)
    device.names, device.metered = [name for name, _ in wans], list(metered)
    device.relays = {relay.name: relay for relay in homes.relays}
    homes.devices[device.name] = device
    device.power_on()
    return device
