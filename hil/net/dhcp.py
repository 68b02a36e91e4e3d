"""A DHCP server (RFC 2131) that knows one network: what it answers to a packet."""

from __future__ import annotations

from ipaddress import IPv4Network

DISCOVER, OFFER, REQUEST, ACK, NAK = 1, 2, 3, 5, 6
_MAGIC = b"\x63\x82\x53\x63"
_FIRST_HOST = 10
LEASE_S = 3600


class Dhcp:
    """Leases of `network`, whose first address is the router's; an address for each MAC, from .10 on."""

    def __init__(self, network: IPv4Network, resolver: bytes) -> None:
        self._network = network
        self._router = (network.network_address + 1).packed
        self._resolver = resolver
        self._leases: dict[bytes, bytes] = {}
        self._next = _FIRST_HOST

    def renumber(self) -> None:
        """Whoever asks from now on gets another address than before."""
        self._leases.clear()

    def answer(self, message: bytes) -> bytes | None:
        """The answer's payload, for the same kind of port; None for what needs none."""
        if len(message) < 241 or message[0] != 1 or message[236:240] != _MAGIC:
            return None
        options = _options(message[240:])
        asked, mac = options.get(53, b"\0")[0], message[28:34]
        if asked not in (DISCOVER, REQUEST):
            return None
        if mac not in self._leases:
            if len(self._leases) >= self._network.num_addresses - 1 - _FIRST_HOST:
                return None
            self._leases[mac] = self._free()
        lease = self._leases[mac]
        wish = options.get(50, message[12:16])
        kind = OFFER if asked == DISCOVER else ACK if wish in (lease, b"\0\0\0\0") else NAK
        found = [(53, bytes((kind,))), (54, self._router)]
        if kind != NAK:
            found += [(51, LEASE_S.to_bytes(4, "big")), (1, self._network.netmask.packed)]
            found += [(3, self._router), (6, self._resolver)]
        body = b"".join(bytes((number, len(value))) + value for number, value in found) + b"\xff"
        yours = lease if kind != NAK else b"\0" * 4
        head = b"\x02" + message[1:3] + b"\0" + message[4:8] + b"\0\0" + message[10:12]
        return head + b"\0" * 4 + yours + b"\0" * 8 + message[28:44] + b"\0" * 192 + _MAGIC + body

    def _free(self) -> bytes:
        taken = set(self._leases.values())
        while True:
            address = (self._network.network_address + self._next).packed
            self._next = self._next + 1 if self._next + 2 < self._network.num_addresses else _FIRST_HOST
            if address not in taken:
                return address


def _options(data: bytes) -> dict[int, bytes]:
    found = {}
    at = 0
    while at < len(data) and data[at] != 255:
        if data[at] == 0:
            at += 1
            continue
        if at + 2 > len(data):
            break
        value = data[at + 2 : at + 2 + data[at + 1]]
        if value:
            found[data[at]] = value
        at += 2 + data[at + 1]
    return found
