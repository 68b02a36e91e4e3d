"""A small language for the shape of decoded messages: a table that checks, and that can be printed.

Every check names the field that is wrong ("rec.addrs[1]: 4 or 16 bytes, got 5") and never shows its value, because a
value may be a secret. A check is linear in the message; its depth is that of the table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgeagent.proto.refusals import ControlDrop, ControlError

UINT_MAX = (1 << 63) - 1  # what a database column and every language's signed integer hold


class Schema:
    """One node of the table. `check` raises ControlError(BAD_FIELD); `text` is how the table is printed."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text

    def check(self, value: Any, path: str) -> Any:
        """`value` as the reader should see it."""
        raise NotImplementedError

    def refuse(self, value: Any, path: str) -> ControlError:
        return ControlError(ControlDrop.BAD_FIELD, f"{path}: {self.text}, got {_describe(value)}")


class Uint(Schema):
    __slots__ = ("high", "low")

    def __init__(self, low: int = 0, high: int = UINT_MAX) -> None:
        super().__init__("unsigned integer" if (low, high) == (0, UINT_MAX) else f"integer from {low} to {high}")
        self.low = low
        self.high = high

    def check(self, value: Any, path: str) -> Any:
        if type(value) is not int:
            raise self.refuse(value, path)
        if not self.low <= value <= self.high:
            raise ControlError(ControlDrop.BAD_FIELD, f"{path}: {self.text}, got {_clip(value)}")
        return value


class Raw(Schema):
    """A byte string of one of the given lengths."""

    __slots__ = ("sizes",)

    def __init__(self, *sizes: int) -> None:
        super().__init__(" or ".join(str(size) for size in sizes) + " bytes")
        self.sizes = sizes

    def check(self, value: Any, path: str) -> Any:
        if type(value) is not bytes or len(value) not in self.sizes:
            raise self.refuse(value, path)
        return value


class Blob(Schema):
    """A byte string of 1 to `size_max` bytes."""

    __slots__ = ("size_max",)

    def __init__(self, size_max: int) -> None:
        super().__init__(f"1 to {size_max} bytes")
        self.size_max = size_max

    def check(self, value: Any, path: str) -> Any:
        if type(value) is not bytes or not 1 <= len(value) <= self.size_max:
            raise self.refuse(value, path)
        return value


class Text(Schema):
    """Text of at most `bytes_max` UTF-8 bytes without control characters, and of the form that `form` checks."""

    __slots__ = ("bytes_max", "form")

    def __init__(self, bytes_max: int, text: str = "", form: Callable[[object], bool] | None = None) -> None:
        super().__init__(text or f"printable text of at most {bytes_max} bytes")
        self.bytes_max = bytes_max
        self.form = form

    def check(self, value: Any, path: str) -> Any:
        if type(value) is not str or len(value) > self.bytes_max or len(value.encode()) > self.bytes_max:
            raise self.refuse(value, path)
        if not value.isprintable() or (self.form is not None and not self.form(value)):
            raise self.refuse(value, path)
        return value


class Word(Schema):
    """One of a few words."""

    __slots__ = ("words",)

    def __init__(self, *words: str) -> None:
        super().__init__("one of " + " | ".join(words))
        self.words = words

    def check(self, value: Any, path: str) -> Any:
        if type(value) is not str or value not in self.words:
            raise self.refuse(value, path)
        return value


class Flag(Schema):
    __slots__ = ("only",)

    def __init__(self, only: bool | None = None) -> None:
        super().__init__("true or false" if only is None else str(only).lower())
        self.only = only

    def check(self, value: Any, path: str) -> Any:
        if type(value) is not bool or self.only not in (None, value):
            raise self.refuse(value, path)
        return value


class Anything(Schema):
    """A map whose content another table checks."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__("map")

    def check(self, value: Any, path: str) -> Any:
        if type(value) is not dict:
            raise self.refuse(value, path)
        return value


class Nullable(Schema):
    __slots__ = ("inner",)

    def __init__(self, inner: Schema) -> None:
        super().__init__(f"{inner.text}, or null")
        self.inner = inner

    def check(self, value: Any, path: str) -> Any:
        return None if value is None else self.inner.check(value, path)


class Either(Schema):
    """Text, or an array: two forms that their types tell apart."""

    __slots__ = ("array", "word")

    def __init__(self, word: Text, array: Row) -> None:
        super().__init__(f"{word.text} or {array.text}")
        self.word = word
        self.array = array

    def check(self, value: Any, path: str) -> Any:
        return (self.word if type(value) is str else self.array).check(value, path)


class Row(Schema):
    """An array of exactly these items."""

    __slots__ = ("items",)

    def __init__(self, *items: Schema) -> None:
        super().__init__("[" + ", ".join(item.text for item in items) + "]")
        self.items = items

    def check(self, value: Any, path: str) -> Any:
        if type(value) is not list or len(value) != len(self.items):
            raise self.refuse(value, path)
        return [item.check(value[i], f"{path}[{i}]") for i, item in enumerate(self.items)]


class Prefix(Row):
    """[address of 4 or 16 bytes, prefix length], without host bits."""

    __slots__ = ()

    def __init__(self, *sizes: int) -> None:
        super().__init__(Raw(*sizes), Uint(0, 8 * max(sizes)))

    def check(self, value: Any, path: str) -> Any:
        address, length = super().check(value, path)
        bits = 8 * len(address)
        if length > bits:
            raise ControlError(ControlDrop.BAD_FIELD, f"{path}[1]: integer from 0 to {bits}, got {length}")
        if int.from_bytes(address, "big") & ((1 << (bits - length)) - 1):
            raise ControlError(ControlDrop.BAD_FIELD, f"{path}[0]: no bits set behind the prefix of {length}")
        return [address, length]


class List(Schema):
    __slots__ = ("inner", "items_max", "items_min")

    def __init__(self, inner: Schema, items_max: int, items_min: int = 0) -> None:
        super().__init__(f"array of {items_min} to {items_max} × {inner.text}")
        self.inner = inner
        self.items_max = items_max
        self.items_min = items_min

    def check(self, value: Any, path: str) -> Any:
        if type(value) is not list or not self.items_min <= len(value) <= self.items_max:
            raise self.refuse(value, path)
        return [self.inner.check(item, f"{path}[{i}]") for i, item in enumerate(value)]


class Table(Schema):
    """A map of text to one kind of value, at most `items_max`."""

    __slots__ = ("inner", "items_max")

    def __init__(self, inner: Schema, items_max: int) -> None:
        super().__init__(f"map of at most {items_max} × text → {inner.text}")
        self.inner = inner
        self.items_max = items_max

    def check(self, value: Any, path: str) -> Any:
        if type(value) is not dict or len(value) > self.items_max:
            raise self.refuse(value, path)
        for key in value:
            if type(key) is not str or not key.isprintable():
                raise ControlError(ControlDrop.BAD_FIELD, f"{path}: keys are printable text")
        return {key: self.inner.check(item, f"{path}.{key}") for key, item in value.items()}


class Fields(Schema):
    """A map with named fields. Unknown ones are refused, or, with `grows`, left out of what the reader sees."""

    __slots__ = ("grows", "optional", "required")

    def __init__(
        self, required: dict[str, Schema], optional: dict[str, Schema] | None = None, *, grows: bool = False
    ) -> None:
        super().__init__("map of " + (", ".join([*required, *(f"{key}?" for key in optional or {})]) or "nothing"))
        self.required = required
        self.optional = optional or {}
        self.grows = grows

    def check(self, value: Any, path: str) -> Any:
        if type(value) is not dict:
            raise self.refuse(value, path)
        if not self.grows:
            for key in value:
                if key not in self.required and key not in self.optional:
                    raise ControlError(ControlDrop.BAD_FIELD, f"{path}: unknown field {_key(key)}")
        checked = {}
        for key, schema in self.required.items():
            if key not in value:
                raise ControlError(ControlDrop.BAD_FIELD, f"{path}.{key}: missing")
            checked[key] = schema.check(value[key], f"{path}.{key}")
        for key, schema in self.optional.items():
            if key in value:
                checked[key] = schema.check(value[key], f"{path}.{key}")
        return checked


class Choice(Schema):
    """One of several maps, told apart by the one field that each alone has."""

    __slots__ = ("variants",)

    def __init__(self, variants: dict[str, Fields]) -> None:
        super().__init__("map with exactly one of " + ", ".join(variants))
        self.variants = variants

    def check(self, value: Any, path: str) -> Any:
        present = [key for key in self.variants if key in value] if type(value) is dict else []
        if len(present) != 1:
            raise self.refuse(value, path)
        return self.variants[present[0]].check(value, path)


def describe(schema: Schema, name: str, indent: str = "") -> list[str]:
    """The table as lines of text."""
    lines = [f"{indent}{name}: {schema.text}"]
    inner = indent + "  "
    if isinstance(schema, Fields):
        lines = [f"{indent}{name}:" + (" (unknown fields are ignored)" if schema.grows else "")]
        for key, child in schema.required.items():
            lines += describe(child, key, inner)
        for key, child in schema.optional.items():
            lines += describe(child, f"{key}?", inner)
    elif isinstance(schema, Choice):
        for variant in schema.variants.values():
            lines += describe(variant, "either", inner)
    return lines


def _describe(value: Any) -> str:
    """What kind of thing `value` is, without showing it."""
    if type(value) is bytes:
        return f"{len(value)} bytes"
    if type(value) is str:
        return f"text of {len(value)} characters"
    if type(value) is list:
        return f"an array of {len(value)}"
    if type(value) is dict:
        return f"a map of {len(value)}"
    if value is None or type(value) is bool:
        return {None: "null", True: "true", False: "false"}[value]
    return "an integer" if type(value) is int else "no value of the protocol"


def _clip(value: int) -> str:
    return str(value) if -(1 << 64) < value < 1 << 64 else "a larger one"


def _key(key: Any) -> str:
    text = str(key)[:23]
    return text if text.isprintable() else "that cannot be printed"
