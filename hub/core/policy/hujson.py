"""HuJSON: JSON (RFC 8259) with // and /* */ comments and trailing commas, read so that every key and value knows its
line and column. Bounded: 256 KiB, 32 levels. A key that stands twice in an object is refused: which one counts would be
a matter of the reader."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NoReturn

from hub.core.policy.problems import PolicyError, Problem

BYTES_MAX = 262_144
DEPTH_MAX = 32
_NUMBER_CHARS_MAX = 32  # converting a number takes the square of its length

Scalar = str | int | float | bool | None

# All that is skipped between tokens, comments included, in one match; unclosed ones are found afterwards.
_SPACE = re.compile(r"(?:[ \t\r\n]+|//[^\n]*|/\*.*?\*/)*", re.DOTALL)
_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HEX = re.compile(r"[0-9A-Fa-f]{4}")
_ESCAPES = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_WORDS: dict[str, bool | None] = {"true": True, "false": False, "null": None}


@dataclass(slots=True, frozen=True)
class Node:
    """A value and where it begins. An object's value is a dict of its keys to (key, value); an array's a list."""

    value: Scalar | list[Node] | dict[str, tuple[Node, Node]]
    line: int
    column: int

    @property
    def kind(self) -> str:
        """What it is, for error texts."""
        if self.value is None:
            return "null"
        names = {bool: "true or false", str: "text", list: "an array", dict: "an object"}
        return names.get(type(self.value), "a number")

    def problem(self, text: str) -> Problem:
        return Problem(self.line, self.column, text)


def to_text(data: bytes) -> str:
    """A file's content as text. Raises PolicyError."""
    if len(data) > BYTES_MAX:
        raise PolicyError([_too_long(len(data))])
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        column = len(before.rpartition(b"\n")[2].decode("utf-8")) + 1
        raise PolicyError(
            [Problem(before.count(b"\n") + 1, column, f"byte 0x{data[error.start]:02x} is no UTF-8. Save it as UTF-8")]
        ) from None


def parse(text: str) -> Node:
    """The one value that `text` holds. Raises PolicyError with the first thing that is wrong."""
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise PolicyError([_Reader(text).problem(error.start, "half of a surrogate pair is no character")]) from None
    if size > BYTES_MAX:
        raise PolicyError([_too_long(size)])
    reader = _Reader(text)
    reader.skip()
    if reader.at == len(text):
        reader.refuse(reader.at, "there is nothing here. A policy is an object: { … }")
    node = reader.value(1)
    reader.skip()
    if reader.at < len(text):
        reader.refuse(reader.at, "something follows the end of the policy. Remove it, or mend the brackets before it")
    return node


def _too_long(size: int) -> Problem:
    return Problem(1, 1, f"{size} bytes: a policy has at most {BYTES_MAX}. Shorten it")


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 1 if text.startswith("\ufeff") else 0
        self._counted = 0  # how far lines are counted: positions are asked for in order
        self._line = 1
        self._line_start = 0

    def position(self, at: int) -> tuple[int, int]:
        """Line and column of an offset; cheap when none before it was asked for after it."""
        if at < self._counted:
            return self.text.count("\n", 0, at) + 1, at - self.text.rfind("\n", 0, at)
        count = self.text.count("\n", self._counted, at)
        if count:
            self._line += count
            self._line_start = self.text.rindex("\n", 0, at) + 1
        self._counted = at
        return self._line, at - self._line_start + 1

    def problem(self, at: int, text: str) -> Problem:
        return Problem(*self.position(at), text)

    def refuse(self, at: int, text: str) -> NoReturn:
        raise PolicyError([self.problem(at, text)])

    def skip(self) -> None:
        found = _SPACE.match(self.text, self.at)
        assert found is not None
        self.at = found.end()
        if self.text.startswith("/*", self.at):
            self.refuse(self.at, "this comment has no end. Close it with */")

    def value(self, depth: int) -> Node:
        start = self.at
        line, column = self.position(start)
        char = self.text[start : start + 1]
        if char in ("{", "[") and depth > DEPTH_MAX:
            self.refuse(start, f"more than {DEPTH_MAX} levels. A policy needs four")
        if char == "{":
            return Node(self._object(depth), line, column)
        if char == "[":
            return Node(self._array(depth), line, column)
        if char == '"':
            return Node(self._string(), line, column)
        if char == "-" or (char.isascii() and char.isdigit()):
            return Node(self._number(), line, column)
        return Node(self._word(), line, column)

    def _object(self, depth: int) -> dict[str, tuple[Node, Node]]:
        start = self.at
        members: dict[str, tuple[Node, Node]] = {}
        self.at += 1
        while True:
            self.skip()
            if self.text.startswith("}", self.at):
                self.at += 1
                return members
            if not self.text.startswith('"', self.at):
                self._end_of(start, "{", "}")
                self.refuse(self.at, f"a key in quotation marks or }} expected, found {self._found()}")
            key_at = self.at
            line, column = self.position(key_at)
            key = self._string()
            if key in members:
                self.refuse(key_at, f"the key {key!r} stands here a second time. Put the two together")
            self.skip()
            if not self.text.startswith(":", self.at):
                self._end_of(start, "{", "}")
                self.refuse(self.at, f"a colon expected after the key {key!r}, found {self._found()}")
            self.at += 1
            self.skip()
            self._end_of(start, "{", "}")
            members[key] = Node(key, line, column), self.value(depth + 1)
            self._separator(start, "{", "}")

    def _array(self, depth: int) -> list[Node]:
        start = self.at
        items: list[Node] = []
        self.at += 1
        while True:
            self.skip()
            if self.text.startswith("]", self.at):
                self.at += 1
                return items
            self._end_of(start, "[", "]")
            items.append(self.value(depth + 1))
            self._separator(start, "[", "]")

    def _separator(self, start: int, opening: str, closing: str) -> None:
        """A comma, or the end that the caller takes."""
        self.skip()
        if self.text.startswith(",", self.at):
            self.at += 1
        elif not self.text.startswith(closing, self.at):
            self._end_of(start, opening, closing)
            self.refuse(self.at, f"a comma or {closing} expected, found {self._found()}")

    def _end_of(self, start: int, opening: str, closing: str) -> None:
        if self.at == len(self.text):
            self.refuse(start, f"this {opening} is not closed. Add {closing}")

    def _string(self) -> str:
        start = self.at
        self.at += 1
        parts: list[str] = []
        while True:
            plain = _PLAIN.match(self.text, self.at)
            assert plain is not None
            parts.append(plain.group())
            self.at = plain.end()
            char = self.text[self.at : self.at + 1]
            if char == '"':
                self.at += 1
                return "".join(parts)
            if char == "\\":
                parts.append(self._escape())
            elif char in ("", "\n", "\r"):
                self.refuse(start, "this text has no closing quotation mark on its line")
            else:
                self.refuse(self.at, f"control character {ord(char):#04x} within text. Write \\u{ord(char):04x}")

    def _escape(self) -> str:
        start = self.at
        kind = self.text[start + 1 : start + 2]
        if kind in _ESCAPES and kind:
            self.at += 2
            return _ESCAPES[kind]
        code = self._hex(start)
        if 0xD800 <= code < 0xDC00 and self.text.startswith("\\u", self.at):
            low = self._hex(self.at)
            if 0xDC00 <= low < 0xE000:
                return chr(0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00))
            code = low
        if 0xD800 <= code < 0xE000:
            self.refuse(start, "half of a surrogate pair is no character")
        return chr(code)

    def _hex(self, at: int) -> int:
        digits = _HEX.match(self.text, at + 2) if self.text.startswith("\\u", at) else None
        if digits is None:
            self.refuse(
                at, 'unknown escape in text. Known are \\" \\\\ \\/ \\b \\f \\n \\r \\t and \\u with 4 hex digits'
            )
        self.at = digits.end()
        return int(digits.group(), 16)

    def _number(self) -> int | float:
        start = self.at
        found = _NUMBER.match(self.text, start)
        if found is None or _WORD.match(self.text, found.end()) or self.text[found.end() : found.end() + 1].isdigit():
            self.refuse(start, "no number as JSON has it. Text needs quotation marks")
        if len(found.group()) > _NUMBER_CHARS_MAX:
            self.refuse(start, f"a number of {len(found.group())} characters. No number in a policy is that long")
        self.at = found.end()
        if found.group(1) is None and found.group(2) is None:
            return int(found.group())
        return float(found.group())

    def _word(self) -> bool | None:
        start = self.at
        found = _WORD.match(self.text, start)
        if found is None or found.group() not in _WORDS:
            self.refuse(start, f"a value expected, found {self._found()}")
        self.at = found.end()
        return _WORDS[found.group()]

    def _found(self) -> str:
        """What is at `at`, as an error shows it."""
        if self.at >= len(self.text):
            return "the end"
        word = _WORD.match(self.text, self.at)
        if word is not None:
            return f"{word.group()[:20]} (text needs quotation marks)"
        char = self.text[self.at]
        return char if char.isprintable() else f"U+{ord(char):04X}"
