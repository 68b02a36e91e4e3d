"""What the network's names are, as far as the hub's map says: its domain, its reverse zones, the operator's records.

Hosts are not listed anywhere on a device: whether one is there is the hub's to say, and asked when it is wanted.
"""

from __future__ import annotations

from edgeagent.proto import dnsmessage as dm
from edgeagent.proto import via
from edgeagent.proto.constants import NAME_SERVER
from edgeagent.proto.ip import holds, ip_to_bytes

TYPE_CHECKING = False  # what the typing module would say, and 5 ms
if TYPE_CHECKING:
    from typing import Any

    from edgeagent.proto.devicemap import DeviceMap
    from edgeagent.proto.dnsmessage import Name, Resource

    Server = tuple[bytes, int]  # address of 4 or 16 B, port

HOST_TTL_S = 60
NEGATIVE_TTL_S = 10  # a device that joins is there soon
STRING_BYTES_MAX = 255  # of TXT
_IN_ADDR, _IP6 = (b"in-addr", b"arpa"), (b"ip6", b"arpa")
_HEX = {b"%x" % value: value for value in range(16)}
_SITES = [int(digit, 16) for digit in via.NETWORK[0].hex()[: via.NETWORK[1] // 4]]

# Names that never were public, whatever answers for them: RFC 6761, 6762, 8375, what routers give out, and what people
# took. An answer about one of them may hold a private address.
PRIVATE_DOMAINS = tuple(
    dm.to_name(text)
    for text in (
        "local", "localhost", "test", "home.arpa", "internal", "intranet", "private", "corp", "home", "lan",
        "localdomain", "in-addr.arpa", "ip6.arpa",
    )
)  # fmt: skip

# Address blocks that nothing public is in: RFC 6890 and its successors. 100.64.0.0/10 is the network's and carriers'.
_PRIVATE_V4 = tuple(
    (int.from_bytes(ip_to_bytes(address), "big") >> 32 - length, 32 - length)
    for address, length in (
        ("0.0.0.0", 8), ("10.0.0.0", 8), ("100.64.0.0", 10), ("127.0.0.0", 8), ("169.254.0.0", 16),
        ("172.16.0.0", 12), ("192.168.0.0", 16),
    )
)  # fmt: skip
_MAPPED, _TRANSLATED = bytes(10) + b"\xff\xff", bytes.fromhex("0064ff9b") + bytes(8)  # RFC 4291, 6052


class Zone:
    """Of one map. `records` are the operator's by name: (type, data), data being a name for CNAME. `split` are the
    domains that others answer for, `servers` who answers for all the rest, empty for who the host has found.

    `refused` counts records that were left out because they contradict the map or one another.
    """

    def __init__(self, device_map: DeviceMap) -> None:
        names: dict[str, Any] = device_map.names
        self.map = device_map
        self.domain = dm.to_name(device_map.domain)
        self.own = device_map.name.encode("ascii")
        self.search: list[str] = names.get("sd", [device_map.domain])
        self.bare = device_map.domain in self.search
        self.split: dict[Name, list[Server]] = {
            dm.to_name(domain): [(address, port) for address, port in servers]
            for domain, servers in names.get("sp", [])
        }
        self.servers: list[Server] = [(address, port) for address, port in names.get("gl", [])]
        self.records: dict[Name, list[tuple[int, bytes | Name]]] = {}
        self.refused = 0
        for name, kind, value in names.get("rr", []):
            self._add(dm.to_name(name), kind, value)
        self._between = {name[at:] for name in self.records for at in range(1, len(name))}

    # Whose a name is

    def within(self, name: Name) -> Name | None:
        """The part before the network's domain; None for a name elsewhere."""
        size = len(name) - len(self.domain)
        return name[:size] if size >= 0 and name[size:] == self.domain else None

    def is_between(self, relative: Name) -> bool:
        """Whether records have names below this one, so that it exists (RFC 8020)."""
        return relative in self._between

    def reverse(self, name: Name) -> tuple[Name, bytes | None] | None:
        """(zone, address) of a name within the network's reverse zones, or that of sites (4via6); no address for one
        that is not whole or has too many labels. None for a name elsewhere."""
        if name[-2:] == _IN_ADDR:
            prefix, length = self.map.v4
            digits = [_octet(label) for label in reversed(name[:-2])]
            known = (length + 7) // 8
            value = bytes(digit for digit in digits[:4] if digit is not None)
            size = 4
        elif name[-2:] == _IP6:
            prefix, length = self.map.v6
            digits = [_HEX.get(label) for label in reversed(name[:-2])]
            if digits[: len(_SITES)] == _SITES:
                prefix, length = via.NETWORK
            known = (length + 3) // 4
            nibbles = [digit for digit in digits[:32] if digit is not None]
            value = bytes(high << 4 | low for high, low in zip(nibbles[::2], nibbles[1::2], strict=False))
            size = 32
        else:
            return None
        if len(digits) < known or None in digits[:known]:
            return None
        start = value.ljust(len(prefix), b"\0")[: len(prefix)]
        if size == 32 and known % 2:  # the last nibble of the zone has no pair yet
            start = _with_nibble(start, known, digits[known - 1])
        if not holds((prefix, length), start):
            return None
        apex = name[len(name) - 2 - known :]
        return apex, value if len(digits) == size and None not in digits else None

    def reverse_domains(self) -> list[str]:
        """The reverse zones as others are to route them here: of IPv4 by whole bytes, of IPv6 by nibbles."""
        prefix, length = self.map.v4
        known = (length + 7) // 8
        first = int.from_bytes(prefix[:known], "big")
        found = []
        for value in range(first, first + (1 << 8 * known - length)):
            octets = value.to_bytes(known, "big")
            found.append(".".join([*(str(octet) for octet in reversed(octets)), "in-addr.arpa"]))
        for prefix, length in (self.map.v6, via.NETWORK):
            if length % 4 == 0:
                found.append(".".join([*reversed(prefix.hex()[: length // 4]), "ip6.arpa"]))
        return found

    def resolvers(self, name: Name) -> list[Server] | None:
        """Those of the narrowest split domain that a name is in; None where it is in none."""
        for at in range(len(name) + 1):
            if name[at:] in self.split:
                return self.split[name[at:]]
        return None

    def is_hidden(self, address: bytes, *, public: bool) -> bool:
        """Whether an answer from outside must not hold an address: one of the network or of this host ever, a private
        one where the name is public."""
        address = _inner(address)
        if self.map.holds(address) or holds(via.NETWORK, address) or address == NAME_SERVER:
            return True
        if len(address) == 16:
            if address[:-1] == bytes(15):  # unspecified, and loopback
                return True
            return public and (address[0] & 0xFE == 0xFC or (address[0] == 0xFE and address[1] & 0xC0 == 0x80))
        if address[0] in (0, 127):
            return True
        value = int.from_bytes(address, "big")
        return public and any(value >> shift == block for block, shift in _PRIVATE_V4)

    # What we say

    def start_of_authority(self, zone: Name) -> Resource:
        """The serial is that of the map: it goes up with each."""
        numbers = (self.map.stamp[1] & 0xFFFFFFFF, 3_600, 600, 86_400, NEGATIVE_TTL_S)
        data = dm.write_name(self.domain) + dm.write_name((b"hostmaster", *self.domain))
        return zone, dm.SOA, NEGATIVE_TTL_S, data + b"".join(number.to_bytes(4, "big") for number in numbers)

    def name_server(self, zone: Name) -> Resource:
        return zone, dm.NS, HOST_TTL_S, dm.write_name(self.domain)

    def _add(self, name: Name, kind: str, value: str) -> None:
        present = self.records.get(name, [])
        data: bytes | Name
        if kind == "TXT":
            text = value.encode("ascii")
            data = b"".join(
                bytes((len(part),)) + part
                for part in (text[at : at + STRING_BYTES_MAX] for at in range(0, len(text) or 1, STRING_BYTES_MAX))
            )
            type_ = dm.TXT
        elif kind == "CNAME":
            data, type_ = (*dm.to_name(value), *self.domain), dm.CNAME
        else:
            data = ip_to_bytes(value)
            type_ = dm.A if len(data) == 4 else dm.AAAA
        # RFC 1034, section 3.6.2: an alias is alone; and a device's name is the device's
        alone = dm.CNAME in (type_, *(each for each, _ in present)) and bool(present)
        too_long = len(dm.write_name((*name, *self.domain))) > dm.NAME_BYTES_MAX
        if too_long or alone or (type_, data) in present or name == (self.own,) or (kind == "CNAME" and not name):
            self.refused += 1
            return
        self.records.setdefault(name, []).append((type_, data))


def _octet(label: bytes) -> int | None:
    """0 to 255 without leading zeros."""
    if not 1 <= len(label) <= 3 or not label.isdigit() or (label[:1] == b"0" and len(label) > 1):
        return None
    value = int(label)
    return value if value < 256 else None


def _with_nibble(start: bytes, known: int, nibble: int | None) -> bytes:
    at = known // 2
    return start[:at] + bytes(((nibble or 0) << 4,)) + start[at + 1 :]


def _inner(address: bytes) -> bytes:
    """The IPv4 address that an IPv6 one stands for, if it does."""
    return address[12:] if address[:12] in (_MAPPED, _TRANSLATED) else address
