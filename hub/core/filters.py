"""The filter language of device lists, the same in the dashboard and the API.

    tag:camera online:no version:<0.2 name~gate -user:ada seen:>7d "front door"

Terms are separated by spaces and must all hold; `-` before one turns it round; commas within one mean "or". A word
alone is looked for in names, users, addresses and ids. `:` compares whole values (`*` for any characters), `~` looks
for a part, and `<` `<=` `>` `>=` behind the colon compare versions, and times as durations: `seen:<1h` is "within the
last hour".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_network

from edgeagent.proto.names import is_tag
from hub.core.model import DeviceState, HubError

TEXT_MAX = 512
TERMS_MAX = 16
VALUES_MAX = 16
FIELDS = (
    "name",
    "tag",
    "user",
    "state",
    "online",
    "cloned",
    "version",
    "address",
    "seen",
    "joined",
    "expires",
    "fact",
    "board",
    "id",
)
_TIMES = ("seen", "joined", "expires")
_PARTS = ("name", "user", "version", "fact", "board", "id")  # where `~` has a meaning

_TERM = re.compile(r'(-?)(?:([a-z]+)(:|~))?((?:"[^"]*"|[^\s"])*)')
_VALUE = re.compile(r'"([^"]*)"|([^,"]+)')
_OPERATOR = re.compile(r"(<=|>=|<|>|=)(.*)", re.DOTALL)
_UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}


@dataclass(slots=True, frozen=True)
class Term:
    """One condition. `field` "" is a word alone. `op`: "=", "~", "<", "<=", ">", ">="; any of `values` will do."""

    field: str
    op: str
    values: tuple[str, ...]
    negated: bool = False


def parse(text: str) -> tuple[Term, ...]:
    """Raises HubError, which says at which term."""
    if len(text) > TEXT_MAX:
        raise HubError(f"filter: {len(text)} characters; at most {TEXT_MAX} expected. Use a shorter one")
    terms: list[Term] = []
    rest = text.strip()
    while rest:
        found = _TERM.match(rest)
        if found is None or not found[0]:
            raise HubError(f"filter: {rest[:32]!r} cannot be read. Is a quotation mark missing?")
        terms.append(_term(found[0], bool(found[1]), found[2] or "", found[3] or "", found[4]))
        rest = rest[found.end() :]
        if rest and not rest[0].isspace():
            raise HubError(f"filter: {rest[:32]!r} cannot be read. Is a quotation mark missing?")
        rest = rest.lstrip()
    if len(terms) > TERMS_MAX:
        raise HubError(f"filter: {len(terms)} terms; at most {TERMS_MAX} expected. Use fewer")
    return tuple(terms)


def seconds(text: str) -> int:
    """Of `30m`, `1h`, `7d`. Raises ValueError."""
    if not text[:-1].isdecimal() or len(text) > 9 or text[-1:] not in _UNITS_S:
        raise ValueError(text)
    return int(text[:-1]) * _UNITS_S[text[-1]]


def version_key(text: str) -> tuple[int, ...]:
    """What versions are compared by: their numbers; 0.10 is newer than 0.9."""
    return tuple(int(number[:9]) for number in re.findall(r"\d+", text)[:6])


def _term(whole: str, negated: bool, field: str, mark: str, raw: str) -> Term:
    op = "~" if mark == "~" or not field else "="
    if field and field not in FIELDS:
        raise HubError(f"filter: {field}{mark} is no field. Known are {', '.join(FIELDS)}")
    if op == "=" and (found := _OPERATOR.fullmatch(raw)) is not None:
        op, raw = found[1], found[2]
    values = tuple(quoted or plain for quoted, plain in _VALUE.findall(raw))
    if not values or len(values) > VALUES_MAX:
        raise HubError(f"filter: {whole!r} needs a value, and has at most {VALUES_MAX}. Write for example tag:camera")
    if op == "~" and field and field not in _PARTS:
        raise HubError(f"filter: {field}~ has no meaning. Write {field}:{values[0]}")
    if op not in ("=", "~") and field not in (*_TIMES, "version"):
        raise HubError(f"filter: {field}:{op} has no meaning. Only versions and times can be compared")
    return Term(field, op, tuple(_value(field, op, value) for value in values), negated)


def _value(field: str, op: str, value: str) -> str:
    """Checked, and in the form that the store compares with."""
    if field == "tag":
        tag = value if value.startswith("tag:") else f"tag:{value}"
        if not is_tag(tag):
            raise HubError(f"filter: {value!r} is no tag. A tag has a-z, 0-9 and -, as in tag:camera")
        return tag
    if field in ("online", "cloned"):
        if value not in ("yes", "no"):
            raise HubError(f"filter: {field}:{value}: yes or no expected")
    elif field == "state":
        if value not in {state.value for state in DeviceState}:
            raise HubError(f"filter: state:{value}: one of {', '.join(state.value for state in DeviceState)} expected")
    elif field == "address":
        try:
            return str(ip_network(value, strict=False))
        except ValueError:
            raise HubError(f"filter: address:{value}: an address or a prefix expected, as in 100.64.1.0/24") from None
    elif field in _TIMES and value != "never":
        if op == "=":
            raise HubError(f"filter: {field}:{value}: write {field}:<{value} or {field}:>{value}, or {field}:never")
        try:
            seconds(value)
        except ValueError:
            raise HubError(f"filter: {field}:{op}{value}: a time like 30m, 24h, 7d or 2w expected") from None
    elif field == "version" and op not in ("=", "~") and not version_key(value):
        raise HubError(f"filter: version:{op}{value}: a version like 0.2 expected")
    return value.lower() if field in ("", "name", "user", "id") else value
