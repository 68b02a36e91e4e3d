"""Which uplink a datagram or a connection takes, by the name of its interface."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from edgeagent.io.netlink import Netlink
from edgeagent.proto.ledger import OTHER

if TYPE_CHECKING:
    from edgeagent.proto.endpoint import Endpoint

HOSTS_MAX = 256  # remote addresses whose way is remembered
_SO_BINDTODEVICE = 25
_INTERFACE_BYTES = 16
_ANYWHERE = (bytes((192, 0, 2, 1)), b"\x20\x01\x0d\xb8" + bytes(12))  # for documentation: never on a link of ours


class UplinkNames:
    """Asks the kernel once for each interface and remote address; `forget` when links, addresses or routes changed.

    What no interface can be found for is `other`.
    """

    __slots__ = ("_by_address", "_by_host", "_by_index", "_default", "_netlink")

    def __init__(self) -> None:
        self._netlink: Netlink | None = None
        self._by_index: dict[int, str] = {}
        self._by_host: dict[str, str] = {}
        self._by_address: dict[str, str] = {}
        self._default = ""

    def close(self) -> None:
        if self._netlink is not None:
            self._netlink.close()
            self._netlink = None

    def forget(self) -> None:
        self._by_index.clear()
        self._by_host.clear()
        self._by_address.clear()
        self._default = ""

    def of_endpoint(self, endpoint: Endpoint) -> str:
        """By the interface that it is pinned to, else by the kernel's route to it."""
        index = endpoint.local[1] if endpoint.local is not None else 0
        if not index and len(endpoint.addr) == 4:
            index = endpoint.addr[3]  # the scope of a link-local address
        if index:
            return self._by_index.get(index) or self.of_index(index)
        host = endpoint.addr[0]
        return self._by_host.get(host) or self._route(host, endpoint.ip_bytes())

    def of_socket(self, sock: socket.socket) -> str:
        """By the device that it is bound to, else by its own address."""
        try:
            device = sock.getsockopt(socket.SOL_SOCKET, _SO_BINDTODEVICE, _INTERFACE_BYTES)
            host = str(sock.getsockname()[0]).partition("%")[0]
        except OSError:
            return OTHER
        if device.strip(b"\0"):
            return _printable(device.strip(b"\0").decode("ascii", "replace"))
        if host not in self._by_address:
            self._look_at_addresses()
        return self._by_address.get(host) or self.default()

    def of_host(self, host: str) -> str:
        """By the kernel's route to an address; a name is taken to be somewhere in the Internet."""
        for family in (socket.AF_INET, socket.AF_INET6):
            try:
                return self._by_host.get(host) or self._route(host, socket.inet_pton(family, host))
            except OSError:
                continue
        return self.default()

    def gateway_to(self, address: bytes) -> bytes:
        """The next hop to it; empty where there is none."""
        try:
            return self._kernel().route_to(address).gateway
        except OSError:
            return b""

    def of_index(self, index: int) -> str:
        name = self._by_index.get(index)
        if name is None:
            try:
                name = _printable(socket.if_indextoname(index))
            except OSError:
                name = OTHER
            self._by_index[index] = name
        return name

    def default(self) -> str:
        """Where the default route leads."""
        if not self._default:
            names = (self._way(address) for address in _ANYWHERE)
            self._default = next((name for name in names if name), OTHER)
        return self._default

    def _route(self, host: str, address: bytes) -> str:
        if len(self._by_host) >= HOSTS_MAX:
            self._by_host.clear()
        name = self._by_host[host] = self._way(address) or OTHER
        return name

    def _way(self, address: bytes) -> str:
        try:
            return self.of_index(self._kernel().route_to(address).index)
        except OSError:
            return ""

    def _look_at_addresses(self) -> None:
        try:
            addresses = self._kernel().addresses()
        except OSError:
            return
        for each in addresses:
            family = socket.AF_INET if len(each.address) == 4 else socket.AF_INET6
            self._by_address[socket.inet_ntop(family, each.address)] = self.of_index(each.index)

    def _kernel(self) -> Netlink:
        if self._netlink is None:
            self._netlink = Netlink()
        return self._netlink


def _printable(name: str) -> str:
    """An interface may be called nearly anything."""
    return "".join(c if c.isprintable() else "?" for c in name) or OTHER
