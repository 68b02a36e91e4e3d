"""What a figure is, the registry of benches, and how figures are shown and written."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict

from rich.console import Console
from rich.markup import escape
from rich.table import Table


class Peer(TypedDict):
    """Who or what a figure is compared with, measured in the same run."""

    name: str
    value: float


class Other(TypedDict):
    """One more peer; `ratio` is its value by the (first) peer's, as for the figure itself."""

    name: str
    value: float
    ratio: float | None


class Limit(TypedDict):
    """What the figure must not pass: `most` or `least`."""

    kind: str
    value: float


class Figure:
    """One measured number. `peer` is None only with a reason in `no_peer`.

    `ratio` is the value by the peer's where rounds have been measured: the median of each round's own quotient.
    `others` are further peers of the same run. `better` says for a chart which way is good: `more` or `less`.
    """

    __slots__ = ("better", "limit", "name", "no_peer", "others", "peer", "ratio", "unit", "value")

    def __init__(
        self,
        name: str,
        value: float,
        unit: str,
        *,
        peer: tuple[str, float] | str,
        at_most: float | None = None,
        at_least: float | None = None,
        ratio: float | None = None,
        others: Sequence[tuple[str, float, float | None]] = (),
        better: str | None = None,
    ) -> None:
        self.name = name
        self.value = value
        self.unit = unit
        self.peer: Peer | None = None if isinstance(peer, str) else {"name": peer[0], "value": peer[1]}
        self.no_peer = peer if isinstance(peer, str) else None
        self.ratio = ratio
        self.others: list[Other] = [{"name": who, "value": its, "ratio": by} for who, its, by in others]
        self.better = better
        self.limit: Limit | None = None
        if at_most is not None:
            self.limit = {"kind": "most", "value": at_most}
        elif at_least is not None:
            self.limit = {"kind": "least", "value": at_least}

    @property
    def holds(self) -> bool:
        """Whether the figure is on the right side of its limit; one without a limit is."""
        if self.limit is None:
            return True
        if self.limit["kind"] == "most":
            return self.value <= self.limit["value"]
        return self.value >= self.limit["value"]


class Note(NamedTuple):
    """A row without a number: what was measured on, or what could not be and why."""

    name: str
    text: str


class Options(NamedTuple):
    """How long and with whom the data path is measured; None is the bench's own choice."""

    rounds: int | None = None
    seconds: int | None = None
    only: tuple[str, ...] = ()  # contenders' keys
    build_all: bool = False  # peers that take minutes to build too
    nic_gso: bool = True  # the wire takes UDP trains whole, as a veth does and few NICs do


Say = Callable[[str], None]
Row = Figure | Note
Bench = Callable[[Say, Options], Iterator[Row]]
BENCHES: dict[str, Bench] = {}


def bench(run: Callable[[Say], Iterator[Row]]) -> Callable[[Say], Iterator[Row]]:
    """Register a bench under its function's name. It gets a function that says what goes on, and yields rows."""
    BENCHES[run.__name__.removesuffix("_")] = lambda say, options: run(say)
    return run


def bench_by_options(run: Bench) -> Bench:
    """The same for one that takes the command's options."""
    BENCHES[run.__name__.removesuffix("_")] = run
    return run


def show(console: Console, results: dict[str, list[Row]]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold", title_justify="left")
    for heading, justify in (("figure", "left"), ("value", "right"), ("unit", "left"), ("limit", "right")):
        table.add_column(heading, justify="right" if justify == "right" else "left", no_wrap=heading != "figure")
    table.add_column("peer, same run", justify="left")
    for name, figures in results.items():
        table.add_section()
        table.add_row(f"[bold cyan]{name}[/]")
        for figure in figures:
            if isinstance(figure, Note):
                table.add_row(f"  [dim]{figure.name}[/]", "", "", "", f"[dim]{escape(figure.text)}[/]")
                continue
            style = "" if figure.limit is None else "[green]" if figure.holds else "[bold red]"
            table.add_row(
                f"  {figure.name}", f"{style}{number(figure.value)}", figure.unit, _limit(figure), _peer(figure)
            )
    console.print(table)


def write(path: Path, results: dict[str, list[Row]]) -> None:
    """All figures as JSON, with the machine that they were measured on."""
    figures = [
        {
            "bench": name,
            "name": figure.name,
            "value": round(figure.value, 6),
            "unit": figure.unit,
            "peer": figure.peer,
            "no_peer": figure.no_peer,
            "ratio": figure.ratio,
            "others": figure.others,
            "better": figure.better,
            "limit": figure.limit,
            "holds": figure.holds,
        }
        for name, listed in results.items()
        for figure in listed
        if isinstance(figure, Figure)
    ]
    notes = [
        {"bench": name, "name": note.name, "text": note.text}
        for name, listed in results.items()
        for note in listed
        if isinstance(note, Note)
    ]
    what = {"machine": machine(), "figures": figures, "notes": notes}
    path.write_text(json.dumps(what, indent=2) + "\n", encoding="utf-8")


def machine() -> dict[str, str | int | None]:
    """What was measured on."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
    }


def number(value: float) -> str:
    if value == int(value) and abs(value) >= 100:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"


def _limit(figure: Figure) -> str:
    if figure.limit is None:
        return ""
    return ("≤ " if figure.limit["kind"] == "most" else "≥ ") + number(figure.limit["value"])


def _peer(figure: Figure) -> str:
    if figure.peer is None:
        return f"[dim]none: {figure.no_peer}[/]"
    its = "" if figure.ratio is None else f": [/]×{number(figure.ratio)}[dim] of it"
    lines = [f"{number(figure.peer['value'])}  [dim]{figure.peer['name']}{its}[/]"]
    for other in figure.others:
        by = "" if other["ratio"] is None else f": ×{number(other['ratio'])}"
        lines.append(f"[dim]{number(other['value'])}  {other['name']}{by}[/]")
    return "\n".join(lines)


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
