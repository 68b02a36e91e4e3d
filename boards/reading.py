"""Strict reading of tables into dataclasses: what a field may hold is said where it is declared, and all that is wrong
with a file is found at once."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, field, fields
from typing import Any, TypeVar

T = TypeVar("T")
ITEMS_MAX = 64
TEXT_MAX = 200

# (value, key, problems) -> what it is read as
Reader = Callable[[Any, str, list[str]], Any]


def read(kind: type[T], table: Any, key: str, problems: list[str]) -> T | None:
    """A `kind` of a table; None when something was wrong, which is then in `problems`: key, what, what is allowed."""
    if not isinstance(table, Mapping):
        problems.append(f"{key}: {_shown(table)}: a table expected")
        return None
    before = len(problems)
    known = {each.name: each for each in fields(kind)}  # type: ignore[arg-type]
    at = f"{key}." if key else ""
    for name in table:
        if name not in known:
            problems.append(f"{at}{name}: no such key. Known are {', '.join(known)}")
    values = {}
    for name, each in known.items():
        if name in table:
            values[name] = each.metadata["read"](table[name], at + name, problems)
        elif each.default is MISSING and each.default_factory is MISSING:
            problems.append(f"{at}{name}: missing. Expected is {each.metadata['want']}")
    return None if len(problems) > before else kind(**values)


def text(
    pattern: str = r"[^\x00-\x1f]{1,200}", want: str = f"a text of 1 to {TEXT_MAX} characters", **more: Any
) -> Any:
    def reader(value: Any, key: str, problems: list[str]) -> Any:
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            problems.append(f"{key}: {_shown(value)}: {want} expected")
        return value

    return _field(reader, want, more)


def word(*allowed: str, **more: Any) -> Any:
    """One of these."""
    want = f"one of {', '.join(allowed)}"

    def reader(value: Any, key: str, problems: list[str]) -> Any:
        if value not in allowed:
            problems.append(f"{key}: {_shown(value)}: {want} expected")
        return value

    return _field(reader, want, more)


def whole(low: int, high: int, **more: Any) -> Any:
    want = f"a whole number from {low} to {high}"

    def reader(value: Any, key: str, problems: list[str]) -> Any:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            problems.append(f"{key}: {_shown(value)}: {want} expected")
        return value

    return _field(reader, want, more)


def flag(**more: Any) -> Any:
    def reader(value: Any, key: str, problems: list[str]) -> Any:
        if not isinstance(value, bool):
            problems.append(f"{key}: {_shown(value)}: true or false expected")
        return value

    return _field(reader, "true or false", more)


def several(item: Any, **more: Any) -> Any:
    """A list of what `item` reads, as a tuple."""
    read_item, of = item.metadata["read"], item.metadata["want"]

    def reader(value: Any, key: str, problems: list[str]) -> Any:
        if not isinstance(value, list) or len(value) > ITEMS_MAX:
            problems.append(f"{key}: {_shown(value)}: a list of at most {ITEMS_MAX}, each {of}, expected")
            return ()
        found = tuple(read_item(each, f"{key}[{at}]", problems) for at, each in enumerate(value))
        if len({repr(each) for each in found}) != len(found):
            problems.append(f"{key}: one of them is there twice")
        return found

    return _field(reader, f"a list, each {of}", more)


def table(kind: type[Any], **more: Any) -> Any:
    def reader(value: Any, key: str, problems: list[str]) -> Any:
        return read(kind, value, key, problems)

    keys = ", ".join(each.name for each in fields(kind))
    return _field(reader, f"a table of {keys}", more)


def numbers(**more: Any) -> Any:
    """A table of name = whole number; the names are for somebody else to know."""

    def reader(value: Any, key: str, problems: list[str]) -> Any:
        if not isinstance(value, Mapping):
            problems.append(f"{key}: {_shown(value)}: a table of name = whole number expected")
            return {}
        for name, number in value.items():
            if not isinstance(number, int) or isinstance(number, bool) or number < 1:
                problems.append(f"{key}.{name}: {_shown(number)}: a whole number from 1 on expected")
        return dict(value)

    return _field(reader, "a table of name = whole number", more)


def _field(reader: Reader, want: str, more: dict[str, Any]) -> Any:
    return field(metadata={"read": reader, "want": want}, **more)


def _shown(value: Any) -> str:
    return repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:57]}…"
