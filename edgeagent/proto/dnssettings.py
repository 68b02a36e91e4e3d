"""What a map says of names (docs/protocol.md, `dn`), as a table that checks it: the same forms at hub and device."""

from __future__ import annotations

import re

from edgeagent.proto.ip import ip_to_bytes
from edgeagent.proto.names import DOMAIN_BYTES_MAX, is_domain
from edgeagent.proto.refusals import ControlDrop, ControlError
from edgeagent.proto.schema import Fields, List, Raw, Row, Text, Uint, Word

TYPE_CHECKING = False  # what the typing module would say, and 5 ms
if TYPE_CHECKING:
    from typing import Any

SEARCH_MAX = 6  # what every libc takes (resolv.conf(5))
SPLIT_MAX = 32  # domains
RESOLVERS_MAX = 4  # of one of them
RECORDS_MAX = 128
VALUE_BYTES_MAX = 255
ALIASES_MAX = 4  # that are followed from one name
NAMES_BYTES_MAX = 4_096  # encoded: a map has 16 KiB for all that it says
RECORD_KINDS = ("A", "AAAA", "CNAME", "TXT")

# Below the network's domain. Services begin with an underscore (RFC 8552); no wildcards.
_LABEL = "(?=[^.]{1,63}(?:\\.|$))_?[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_RELATIVE = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_RELATIVE_BYTES_MAX = 120
_TEXT = re.compile("[ -~]{1,255}")


def is_record_name(text: object) -> bool:
    """Labels before the network's domain; empty for the domain itself."""
    if not isinstance(text, str) or len(text) > _RELATIVE_BYTES_MAX:
        return False
    return not text or _RELATIVE.fullmatch(text) is not None


def is_record_value(kind: str, value: object) -> bool:
    """An address in text, a name before the network's domain, or printable ASCII."""
    if not isinstance(value, str):
        return False
    if kind == "TXT":
        return _TEXT.fullmatch(value) is not None
    if kind == "CNAME":
        return value != "" and is_record_name(value)
    try:
        return len(ip_to_bytes(value)) == (4 if kind == "A" else 16)
    except ValueError:
        return False


class _Record(Row):
    """[name before the network's domain, type, value], the value being of the type's form."""

    __slots__ = ()

    def __init__(self) -> None:
        name = Text(_RELATIVE_BYTES_MAX, "name before the network's domain, or empty", is_record_name)
        super().__init__(name, Word(*RECORD_KINDS), Text(VALUE_BYTES_MAX))

    def check(self, value: Any, path: str) -> Any:
        name, kind, data = super().check(value, path)
        if not is_record_value(kind, data):
            raise ControlError(ControlDrop.BAD_FIELD, f"{path}[2]: not of the form of {kind}")
        return [name, kind, data]


_DOMAIN = Text(DOMAIN_BYTES_MAX, "domain name", is_domain)
_RESOLVERS = List(Row(Raw(4, 16), Uint(1, 65_535)), RESOLVERS_MAX, 1)

# sd: search domains · sp: [domain, its resolvers] · gl: resolvers of all the rest · rr: records of the operator's
NAMES = Fields(
    {},
    {
        "sd": List(_DOMAIN, SEARCH_MAX),
        "sp": List(Row(_DOMAIN, _RESOLVERS), SPLIT_MAX),
        "gl": _RESOLVERS,
        "rr": List(_Record(), RECORDS_MAX),
    },
    grows=True,
)
