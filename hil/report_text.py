"""Text of guests and programs, made safe to show: they write to a serial line whatever they like."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

LINE_MAX = 500  # characters
READ_BYTES_MAX = 16 << 20  # of a transcript, from its beginning
# CSI, OSC (ended by BEL or ST), charsets, and other two-character sequences: ECMA-48, sections 5.4 and 5.6
ESCAPES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[()][0-9A-B]|\x1b[@-Z\\^_=>78]|\r"
)
_STAMP = re.compile(r" {0,8}(\d{1,9}\.\d{3})  (.*)", re.DOTALL)


class Line(NamedTuple):
    """`at_s`: since that power-on; negative where the log says none. `boot` counts from 0."""

    boot: int
    at_s: float
    text: str


def clean(text: str, limit: int = 0) -> str:
    """Without escape sequences; controls, and what turns the direction of text, as �. At most `limit` characters."""
    text = ESCAPES.sub("", text[: 8 * limit] if limit else text)
    text = "".join(char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text)
    return text if not limit or len(text) <= limit else text[: limit - 1] + "…"


def transcript(path: Path) -> Iterator[Line]:
    """Lines of a console's log (`hil.console`): its times begin anew with each power-on."""
    boot, last_s = 0, 0.0
    with path.open("rb") as file:
        text = file.read(READ_BYTES_MAX).decode(errors="replace")
    for raw in text.split("\n"):
        match = _STAMP.fullmatch(raw)
        if match is None:
            if raw.strip():
                yield Line(boot, -1.0, clean(raw, LINE_MAX))
            continue
        at_s = float(match[1])
        if at_s < last_s:
            boot += 1
        last_s = at_s
        yield Line(boot, at_s, clean(match[2], LINE_MAX))


def bounded(lines: list[Line], limit: int) -> tuple[list[Line], int, list[Line]]:
    """(the first, how many are left out, the last): a quarter of `limit` from the beginning, the rest from the end."""
    if len(lines) <= limit:
        return lines, 0, []
    first = limit // 4
    return lines[:first], len(lines) - limit, lines[first - limit :]
