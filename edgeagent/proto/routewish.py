"""What the owner of a device wants of routes: which it offers, and which it uses. Kept on flash as CBOR."""

from __future__ import annotations

from typing import Any

from edgeagent.proto import prefixes
from edgeagent.proto.codec import decode, encode
from edgeagent.proto.control import ADVERTISED
from edgeagent.proto.names import is_host_name
from edgeagent.proto.prefixes import EXIT, ROUTES_MAX, Prefix
from edgeagent.proto.schema import Fields, Flag, Text, Uint

_FILE = Fields(
    {
        "v": Uint(1, 1),
        "ro": ADVERTISED,
        "sn": Flag(),
        "ex": Flag(),
        "ac": Flag(),
        "en": Text(63),
        "al": Flag(),
    }
)


class RouteWish:
    """`accept` is True where nothing was said: an operator approves each prefix, and what a device reaches by itself
    always comes first, so a fleet need not be told device by device."""

    __slots__ = ("accept", "advertise", "allow_lan", "exit_node", "offers_exit", "snat")

    def __init__(self) -> None:
        self.advertise: list[Prefix] = []
        self.offers_exit = False
        self.snat = True
        self.accept = True
        self.exit_node = ""  # host name, "" for none
        self.allow_lan = False

    @property
    def offered(self) -> list[Prefix]:
        """What the hub is told."""
        return [*self.advertise, *(EXIT if self.offers_exit else ())]

    def change(self, asked: dict[str, Any]) -> None:
        """What a request of the local API says, the rest stays. Raises ValueError that names the field."""
        changed = RouteWish()
        for name in self.__slots__:
            setattr(changed, name, getattr(self, name))
        for name, value in asked.items():
            if name == "advertise":
                changed.advertise = read_routes(value)
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
        return wish


def read_routes(value: Any) -> list[Prefix]:
    """A list of texts. Raises ValueError that names the prefix and what is wrong with it."""
    if not isinstance(value, list) or len(value) > ROUTES_MAX:
        raise ValueError(f"routes: want at most {ROUTES_MAX} prefixes")
    found = []
    for text in value:
        prefix = prefixes.parse(text if isinstance(text, str) else "")
        if why := prefixes.why_not(prefix):
            raise ValueError(f"{text}: {why}. Nobody can be a router to it")
        found.append(prefix)
    return list(dict.fromkeys(found))
