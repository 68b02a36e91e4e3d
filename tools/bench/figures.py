"""What a figure is, the registry of benches, and how figures are shown and written."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypedDict

from rich.console import Console
from rich.table import Table


class Peer(TypedDict):
    """Who or what a figure is compared with, measured in the same run."""

    name: str
    value: float


class Limit(TypedDict):
    """What the figure must not pass: `most` or `least`."""

    kind: str
    value: float


class Figure:
    """One measured number. `peer` is None only with a reason in `no_peer`."""

    __slots__ = ("limit", "name", "no_peer", "peer", "unit", "value")

    def __init__(
        self,
        name: str,
        value: float,
        unit: str,
        *,
        peer: tuple[str, float] | str,
        at_most: float | None = None,
        at_least: float | None = None,
    ) -> None:
        self.name = name
        self.value = value
        self.unit = unit
        self.peer: Peer | None = None if isinstance(peer, str) else {"name": peer[0], "value": peer[1]}
        self.no_peer = peer if isinstance(peer, str) else None
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


Bench = Callable[[Callable[[str], None]], Iterator[Figure]]
BENCHES: dict[str, Bench] = {}


def bench(run: Bench) -> Bench:
    """Register a bench under its function's name. It gets a function that says what goes on, and yields figures."""
    BENCHES[run.__name__.removesuffix("_")] = run
    return run


def show(console: Console, results: dict[str, list[Figure]]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold", title_justify="left")
    for heading, justify in (("figure", "left"), ("value", "right"), ("unit", "left"), ("limit", "right")):
        table.add_column(heading, justify="right" if justify == "right" else "left", no_wrap=heading != "figure")
    table.add_column("peer, same run", justify="left")
    for name, figures in results.items():
        table.add_section()
        table.add_row(f"[bold cyan]{name}[/]")
        for figure in figures:
            style = "" if figure.limit is None else "[green]" if figure.holds else "[bold red]"
            table.add_row(
                f"  {figure.name}", f"{style}{_number(figure.value)}", figure.unit, _limit(figure), _peer(figure)
            )
    console.print(table)


def write(path: Path, results: dict[str, list[Figure]]) -> None:
    """All figures as JSON, with the machine that they were measured on."""
    machine = {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
    }
    figures = [
        {
            "bench": name,
            "name": figure.name,
            "value": round(figure.value, 6),
            "unit": figure.unit,
            "peer": figure.peer,
            "no_peer": figure.no_peer,
            "limit": figure.limit,
            "holds": figure.holds,
        }
        for name, listed in results.items()
        for figure in listed
    ]
    path.write_text(json.dumps({"machine": machine, "figures": figures}, indent=2) + "\n", encoding="utf-8")


def _number(value: float) -> str:
    if value == int(value) and abs(value) >= 100:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"


def _limit(figure: Figure) -> str:
    if figure.limit is None:
        return ""
    return ("≤ " if figure.limit["kind"] == "most" else "≥ ") + _number(figure.limit["value"])


def _peer(figure: Figure) -> str:
    if figure.peer is None:
        return f"[dim]none: {figure.no_peer}[/]"
    return f"{_number(figure.peer['value'])}  [dim]{figure.peer['name']}[/]"


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
