"""Prefixes behind devices: as text, what they hold, and which may be a route at all. (address 4 or 16 B, length)."""

from __future__ import annotations

from edgeagent.proto.ip import holds as holds
from edgeagent.proto.ip import ip_to_bytes, ip_to_text

ROUTES_MAX = 64  # of one device, as records have it
SHORTEST = {4: 8, 16: 16}  # shorter ones would be a default route in disguise
EXIT: tuple[tuple[bytes, int], ...] = ((bytes(4), 0), (bytes(16), 0))  # what an exit node routes

Prefix = tuple[bytes, int]

# What a packet to another network cannot have as its destination, and why
_NEVER = (
    (b"\x00", 8, "this host's own (RFC 1122)"),
    (b"\x7f", 8, "loopback"),
    (b"\xa9\xfe", 16, "link-local"),
    (b"\xe0", 4, "multicast"),
    (b"\xf0", 4, "reserved (RFC 1112)"),
)
_NEVER_6 = ((b"\xfe\x80", 10, "link-local"), (b"\xff", 8, "multicast"), (bytes(16), 127, "loopback"))


def parse(text: str) -> Prefix:
    """ "192.168.7.0/24" or an address alone. Raises ValueError that says what is wrong with it."""
    host, slash, size = text.strip().partition("/")
    try:
        address = ip_to_bytes(host)
    except ValueError:
        raise ValueError(f"{text[:60]!r}: want a prefix, as in 192.168.7.0/24 or fd00:7::/64") from None
    bits = 8 * len(address)
    if not slash:
        return address, bits
    if not size.isascii() or not size.isdecimal() or len(size) > 3 or int(size) > bits:
        raise ValueError(f"{text[:60]!r}: want a length from 0 to {bits} after the '/'")
    length = int(size)
    if mask(address, length) != address:
        raise ValueError(
            f"{text[:60]!r}: bits are set behind the prefix. Write {to_text((mask(address, length), length))}"
        )
    return address, length


def to_text(prefix: Prefix) -> str:
    return f"{ip_to_text(prefix[0])}/{prefix[1]}"


def mask(address: bytes, length: int) -> bytes:
    """The network of `address`."""
    behind = 8 * len(address) - length
    return (int.from_bytes(address, "big") >> behind << behind).to_bytes(len(address), "big")


def last(prefix: Prefix) -> bytes:
    """The last address in it."""
    behind = 8 * len(prefix[0]) - prefix[1]
    return (int.from_bytes(prefix[0], "big") | ((1 << behind) - 1)).to_bytes(len(prefix[0]), "big")


def covers(outer: Prefix, inner: Prefix) -> bool:
    """Whether all of `inner` is in `outer`."""
    return outer[1] <= inner[1] and holds(outer, inner[0])


def overlap(a: Prefix, b: Prefix) -> bool:
    return covers(a, b) or covers(b, a)


def why_not(prefix: Prefix) -> str | None:
    """Why nobody can be a router to this prefix; None where somebody can. Default routes are an exit node's."""
    address, length = prefix
    if prefix in EXIT:
        return "a default route: it is an exit node that has those"
    for head, bits, why in _NEVER if len(address) == 4 else _NEVER_6:
        if overlap((mask(head.ljust(len(address), b"\0"), bits), bits), prefix):
            return why
    if length < SHORTEST[len(address)]:
        return f"shorter than /{SHORTEST[len(address)]}"
    return None
