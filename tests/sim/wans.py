"""A device with several WANs, each behind a router of its own.

homes = Homes(seed)
a = add_wan_device(homes, [("eth0", homes.home("w1", nat.PORT)), ("wwan0", homes.home("w2", nat.CARRIER))])
a.pull("eth0")
"""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from edgeagent.proto import stun
from edgeagent.proto.endpoint import Endpoint, Transmit, UplinkEndpoint
from edgeagent.proto.node import Node
from edgeagent.proto.node_events import MappingDoubted, NodeEvent, UplinkProbeWanted
from edgeagent.proto.records import UdpAddress
from edgeagent.proto.uplink import UplinkFacts, settings_of
from edgeagent.proto.uplinks import Uplinks
from tests.sim.device import UDP_PORT
from tests.sim.homes import STUN_PORT, STUN_SERVERS, Homes, NatDevice, RelayedHost
from tests.sim.net import Batch, Interface, Segment

NETLINK_S = 0.001  # from a pulled cable until the agent knows
PROBE_TIMEOUT_S = 1.0
_DEFAULT = ip_network("0.0.0.0/0")


class WanDevice(NatDevice):
    """It asks STUN servers by each of its uplinks, and carries out the probes that the node wants."""

    names: list[str]
    metered: list[str]
    asked: dict[bytes, tuple[int, str]]  # requests under way: (uplink, server)
    seen: dict[tuple[int, str], UdpAddress]

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
            uplinks = node.uplinks or Uplinks(settings_of([], self.metered))
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

    def _node_said(self, node: Node, event: NodeEvent) -> bool:
        if isinstance(event, UplinkProbeWanted):
            self.world.after(0.0, lambda: self._probe(event.index))
        elif isinstance(event, MappingDoubted):
            self.world.after(0.0, self._ask_stun)
        return super()._node_said(node, event)

    def _ask_stun(self) -> None:
        """By each uplink."""
        for index in self.host.uplinks:
            for server in STUN_SERVERS:
                self._ask(index, server)

    def _probe(self, index: int) -> None:
        asked = self._ask(index, STUN_SERVERS[0])
        boot = self._boot

        def look() -> None:
            node = self.node
            if node is not None and boot == self._boot and self.asked.pop(asked, None) is not None:
                self._guarded(lambda: node.uplink_unanswered(self.now, index))

        self.world.after(PROBE_TIMEOUT_S, look)

    def _ask(self, index: int, server: str) -> bytes:
        transaction = self._entropy(12)
        self.asked[transaction] = (index, server)
        endpoint = UplinkEndpoint.by(index, Endpoint((server, STUN_PORT)))
        self.host.transmit(UDP_PORT, [Transmit(endpoint, [stun.write_request(transaction)])])
        return transaction

    def _from_udp(self, batch: Batch) -> None:
        rest = []
        for item in batch:
            transaction = item[0][8:20] if stun.looks_like_stun(item[0]) else b""
            asked = self.asked.pop(transaction, None)
            if asked is None:
                rest.append(item)
            else:
                self.seen[asked] = stun.read_binding(item[0], transaction).mapped
                self._tell_seen(asked[0])
        if rest:
            super()._from_udp(rest)

    def _tell_seen(self, index: int) -> None:
        node, now = self.node, self.now
        if node is None:
            return
        self._guarded(lambda: node.uplink_answered(now, index))
        if all((index, server) in self.seen for server in STUN_SERVERS):
            mapped = [self.seen[index, server] for server in STUN_SERVERS]
            self._guarded(lambda: node.handle_mappings(now, mapped, index))


def add_wan_device(
    homes: Homes, wans: list[tuple[str, Segment]], *, metered: tuple[str, ...] = (), relay: bool = False
) -> WanDevice:
    """Its WANs by interface name, in the order of their routes' metric."""
    number = len(homes.devices) + 1
    host = RelayedHost(homes.net, f"d{number}")
    for _, segment in wans:
        gateway = "192.168.1.1" if segment.name.startswith("home-") else "100.64.0.1"
        host.attach(segment, gateway[:-1] + str(100 + number), gateway=gateway)
    device = WanDevice(homes.world, homes.traffic, host, homes.broker, homes.hub.create_token(), limits=homes.limits)
    device.names, device.metered = [name for name, _ in wans], list(metered)
    device.asked, device.seen = {}, {}
    device.relay, device.has_relay = homes.relay, relay
    host.device = device
    homes.relay.members.append(device)
    homes.devices[device.name] = device
    device.power_on()
    return device
