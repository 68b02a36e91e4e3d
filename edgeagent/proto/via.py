"""4via6: IPv4 hosts of a site under IPv6 addresses, so that sites with one IPv4 network are told apart by a number.

```
fd2e:966:3c02 : 0 : 0 : site : IPv4      48, 16, 16, 16 and 32 bits; the site is 1 to 65535
```
The address holds the IPv4 one as RFC 6052 has it for prefixes of 96 bits, its bits 64 to 71 are zero. The prefix is the
same in all networks, so that a device makes an address out of a name without being told anything: "fd" and the first 40
bits of the SHA-256 of "edgeagent 4via6", a unique local one of RFC 4193. Networks have others, by their ids.
"""

from __future__ import annotations

import re

from edgeagent.proto import prefixes
from edgeagent.proto.ip import ip_to_bytes, ip_to_text

TYPE_CHECKING = False  # what the typing module would say, and 5 ms
if TYPE_CHECKING:
    from edgeagent.proto.prefixes import Prefix

NETWORK: Prefix = (bytes.fromhex("fd2e09663c02") + bytes(10), 48)
BITS = 96  # before the IPv4 address
SITE_MAX = 65_535
_HEAD = NETWORK[0][:10]  # before the site
_WELL_KNOWN: Prefix = (bytes.fromhex("0064ff9b") + bytes(12), BITS)
_NUMBER = "[1-9][0-9]{0,4}"
_WRITTEN = re.compile(rf"([0-9./]{{7,18}})(?: *@ *| +via +)({_NUMBER})", re.ASCII)
_OCTET = "(0|[1-9][0-9]{0,2})"
_LABEL = re.compile(rf"{_OCTET}-{_OCTET}-{_OCTET}-{_OCTET}-via-({_NUMBER})", re.ASCII)


def read(text: str) -> Prefix:
    """ "192.168.1.0/24@7", "192.168.1.0/24 via 7", or any other prefix. Raises ValueError that says what is wrong."""
    if "@" not in text and "via" not in text:
        return prefixes.parse(text)
    found = _WRITTEN.fullmatch(text.strip())
    if found is None or int(found[2]) > SITE_MAX:
        raise ValueError(f"{text[:60]!r}: want an IPv4 prefix and a site from 1 to {SITE_MAX}, as in 192.168.1.0/24@7")
    return embed(int(found[2]), prefixes.parse(found[1]))


def embed(site: int, inside: Prefix) -> Prefix:
    """An IPv4 prefix of a site as IPv6 has it."""
    return _HEAD + site.to_bytes(2, "big") + inside[0], BITS + inside[1]


def split(prefix: Prefix) -> tuple[int, Prefix] | None:
    """(site, IPv4 prefix) of what `embed` gives; None for any other."""
    address, length = prefix
    if len(address) != 16 or length < BITS or not address.startswith(_HEAD) or address[10:12] == b"\0\0":
        return None
    return int.from_bytes(address[10:12], "big"), (address[12:], length - BITS)


def to_text(prefix: Prefix) -> str:
    """ "192.168.1.0/24 via 7"; "" for a prefix that is of no site."""
    found = split(prefix)
    return "" if found is None else f"{prefixes.to_text(found[1])} via {found[0]}"


def holds(shown: Prefix, inside: Prefix) -> bool:
    """Whether `shown`, IPv6, holds in its last 32 bits the addresses of `inside`, IPv4 (RFC 6052, section 2.2)."""
    return shown[1] == BITS + inside[1] and shown[0][12:] == inside[0] and shown[0][8] == 0


def why_not(prefix: Prefix) -> str | None:
    """Why nobody can be a router to an IPv6 prefix that is, or would be, a site's; None where somebody can."""
    if prefixes.overlap(prefix, _WELL_KNOWN):
        return "IPv4 of the internet, by everybody's translators (RFC 6052)"
    if not prefixes.overlap(prefix, NETWORK):
        return None
    found = split(prefix)
    if found is None:
        return f"in {prefixes.to_text(NETWORK)} only IPv4 prefixes of sites are, as 192.168.1.0/24@7"
    return prefixes.why_not(found[1])


def address_of(label: str) -> bytes | None:
    """16 B for "192-168-1-20-via-7", the name of a host behind a router; None for any other name."""
    found = _LABEL.fullmatch(label)
    if found is None or int(found[5]) > SITE_MAX:
        return None
    try:
        inside = ip_to_bytes(".".join(found.groups()[:4]))
    except ValueError:
        return None
    return embed(int(found[5]), (inside, 32))[0]


def label_of(address: bytes) -> str | None:
    """The name that `address_of` reads; None for an address that is no site's."""
    found = split((address, 128))
    return None if found is None else f"{ip_to_text(found[1][0]).replace('.', '-')}-via-{found[0]}"
