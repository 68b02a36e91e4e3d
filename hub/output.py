"""What the command line prints: tables for people, JSON for programs, one line for what went wrong."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

OK, FAILED, USAGE, NOT_RUNNING = 0, 1, 2, 3


def print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, empty: str) -> None:
    """Aligned columns; framed, coloured and folded on a terminal only. `empty` is said when there are no rows."""
    lines = [list(row) for row in rows]
    if not lines:
        print_error(empty)
    elif sys.stdout.isatty():
        _print_framed(columns, lines)
    else:
        _print_plain([list(columns), *lines])


def print_pairs(pairs: Iterable[tuple[str, str]]) -> None:
    """Names and values, one a line."""
    _print_plain([list(pair) for pair in pairs])


def _print_framed(columns: Sequence[str], rows: list[list[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # Text: what a device says of itself is no markup
    Console(highlight=False).print(table)


def _print_plain(rows: list[list[str]]) -> None:
    """A line a row, however long, and nothing behind its end."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        sys.stdout.write("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n")


def print_error(text: str) -> None:
    """On stderr: what, why, what next."""
    sys.stderr.write(f"edgehub: {text}\n")


def ago(then_s: int) -> str:
    """`3 min ago`, `in 2 h`, or `never` for 0."""
    if not then_s:
        return "never"
    seconds = int(time.time()) - then_s
    text = duration(abs(seconds))
    return f"{text} ago" if seconds >= 0 else f"in {text}"


def duration(seconds: int) -> str:
    for unit, name in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{(seconds + unit // 2) // unit} {name}"
    return f"{seconds} s"


def parse_duration(text: str) -> int:
    """Seconds of `30m`, `24h`, `7d`, `2w`; ValueError otherwise."""
    units = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
    number, unit = text[:-1], text[-1:]
    if not number.isdecimal() or unit not in units or not 0 < int(number) * units[unit] <= 100 * 365 * 86_400:
        raise ValueError(f"{text!r}: a time like 30m, 24h, 7d or 2w expected")
    return int(number) * units[unit]
