"""What the owner of a device wants of routes: which it offers, and which it uses. Kept on flash as CBOR."""

from __future__ import annotations

from typing import Any

from edgeagent.proto import prefixes
from edgeagent.proto.codec import decode, encode
from edgeagent.proto.control import ADVERTISED
from edgeagent.proto.names import is_host_name
from edgeagent.proto.prefixes import EXIT, ROUTES_MAX, Prefix
from edgeagent.proto.schema import Fields, Flag, List, Row, Text, Uint
from edgeagent.proto.schema import Prefix as PrefixSchema

PREFIX = PrefixSchema(4, 16)
_FILE = Fields(
    {
        "v": Uint(1, 1),
        "ro": ADVERTISED,
        "sn": Flag(),
        "ex": Flag(),
        "ac": Flag(),
        "en": Text(63),
        "al": Flag(),
        "mp": List(Row(PREFIX, PREFIX), ROUTES_MAX),
    }
)


class RouteWish:
    """`accept` is True where nothing was said: an operator approves each prefix, and what a device reaches by itself
    always comes first, so a fleet need not be told device by device. `real` has the prefixes that the network knows
    under others, because several sites have the same: offered → as it is at the site. Either both are of one IP version
    and length, or the offered one is IPv6 and holds the other, IPv4 (4via6).
    """

    __slots__ = ("accept", "advertise", "allow_lan", "exit_node", "offers_exit", "real", "snat")

    def __init__(self) -> None:
        self.advertise: list[Prefix] = []
        self.real: dict[Prefix, Prefix] = {}
        self.offers_exit = False
        self.snat = True
        self.accept = True
        self.exit_node = ""  # host name, "" for none
        self.allow_lan = False

    @property
    def offered(self) -> list[Prefix]:
        """What the hub is told."""
        return [*self.advertise, *(EXIT if self.offers_exit else ())]

    @property
    def translated(self) -> dict[Prefix, Prefix]:
        """Of `real` those that are IPv6 outside and IPv4 inside; all have the first 96 bits in common."""
        return {shown: inside for shown, inside in self.real.items() if len(shown[0]) != len(inside[0])}

    def change(self, asked: dict[str, Any]) -> None:
        """What a request of the local API says, the rest stays. Raises ValueError that names the field."""
        changed = RouteWish()
        for name in self.__slots__:
            setattr(changed, name, getattr(self, name))
        for name, value in asked.items():
            if name == "advertise":
                changed.advertise, changed.real = read_routes(value)
            elif name == "exit_node":
                if not isinstance(value, str) or (value and not is_host_name(value)):
                    raise ValueError("exit node: want the host name of a device of this network")
                changed.exit_node = value
            elif name in ("snat", "offers_exit", "accept", "allow_lan") and isinstance(value, bool):
                setattr(changed, name, value)
            else:
                raise ValueError(f"routes.{str(name)[:40]}: no such setting, or not true or false")
        if changed.exit_node and changed.offers_exit:
            raise ValueError("a device that is an exit node cannot use another one: turn one of them off")
        for name in self.__slots__:
            setattr(self, name, getattr(changed, name))

    def encode(self) -> bytes:
        return encode(
            {
                "v": 1,
                "ro": [list(prefix) for prefix in self.advertise],
                "sn": self.snat,
                "ex": self.offers_exit,
                "ac": self.accept,
                "en": self.exit_node,
                "al": self.allow_lan,
                "mp": [[list(offered), list(real)] for offered, real in self.real.items()],
            }
        )

    @classmethod
    def decode(cls, data: bytes) -> RouteWish:
        """Raises ControlError."""
        fields = _FILE.check(decode(data), "routes")
        wish = cls()
        wish.advertise = [(address, length) for address, length in fields["ro"]]
        wish.snat, wish.offers_exit, wish.accept = fields["sn"], fields["ex"], fields["ac"]
        wish.exit_node, wish.allow_lan = fields["en"], fields["al"]
        wish.real = {(offered[0], offered[1]): (real[0], real[1]) for offered, real in fields["mp"]}
        return wish


def read_routes(value: Any) -> tuple[list[Prefix], dict[Prefix, Prefix]]:
    """Of a list of texts, "192.168.7.0/24", "10.77.1.0/24=192.168.7.0/24" or "192.168.7.0/24@7" (4via6): what is
    offered, and what of it is another prefix at the site. Raises ValueError that names the prefix and what is wrong."""
    if not isinstance(value, list) or len(value) > ROUTES_MAX:
        raise ValueError(f"routes: want at most {ROUTES_MAX} prefixes")
    found: list[Prefix] = []
    real: dict[Prefix, Prefix] = {}
    for text in value:
        prefix, mapped = _read_route(text if isinstance(text, str) else "")
        if mapped is not None:
            translated = len(prefix[0]) != len(mapped[0])
            for at, other in real.items():
                if (len(at[0]), len(other[0])) != (len(prefix[0]), len(mapped[0])):
                    continue
                if translated and at[0][:12] != prefix[0][:12]:
                    raise ValueError(f"{text}: a device has one number of a site, for all that it translates")
                if not translated and at != prefix and prefixes.overlap(mapped, other):
                    raise ValueError(f"{text}: {prefixes.to_text(mapped)} is offered under two prefixes")
                if not translated and at != prefix and prefixes.overlap(prefix, at):
                    # nftables take no such map
                    raise ValueError(f"{text}: {prefixes.to_text(at)} is another prefix at the site, and overlaps")
            real[prefix] = mapped
        found.append(prefix)
    return list(dict.fromkeys(found)), real


def _read_route(text: str) -> tuple[Prefix, Prefix | None]:
    """(offered, as it is at the site where that is another). Raises ValueError."""
    shown, equals, inside = text.partition("=")
    if not equals and ":" not in shown and not ("@" in shown or "via" in shown):
        return _allowed(shown, prefixes.parse(shown)), None
    from edgeagent.proto import via  # few devices have an IPv6 prefix

    prefix = via.read(shown)
    if why := via.why_not(prefix):
        raise ValueError(f"{shown}: {why}. Nobody can be a router to it")
    _allowed(shown, prefix)
    site = via.split(prefix)
    if not equals:
        return prefix, None if site is None else site[1]
    mapped = _allowed(inside, prefixes.parse(inside))
    if len(mapped[0]) < len(prefix[0]):
        if not via.holds(prefix, mapped):
            raise ValueError(
                f"{text}: want an IPv6 prefix with {inside} in its last 32 bits, {via.BITS} bits longer than that, its "
                "bits 64 to 71 zero (RFC 6052). Shorter: " + inside + "@SITE, with a site's number"
            )
    elif site is not None or len(mapped[0]) != len(prefix[0]) or mapped[1] != prefix[1]:
        raise ValueError(f"{text}: want two prefixes of one IP version and one length, or an IPv4 one in an IPv6 one")
    return prefix, mapped


def _allowed(text: str, prefix: Prefix) -> Prefix:
    """Raises ValueError."""
    if why := prefixes.why_not(prefix):
        raise ValueError(f"{text}: {why}. Nobody can be a router to it")
    return prefix
