"""`./dev bench [NAME …] [--json FILE]`: runs benches, shows their figures, ends with 1 when one passes its limit."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.status import Status

from tests.netlab import LabError
from tools.bench import agent, datapath, fleet, imports, paths
from tools.bench.figures import BENCHES, Figure, show, write

__all__ = ["agent", "datapath", "fleet", "imports", "paths"]


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev bench", description=__doc__)
    parser.add_argument("names", metavar="NAME", nargs="*", help=f"which: {', '.join(BENCHES)} (all)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures there too")
    options = parser.parse_args()
    names = options.names or list(BENCHES)
    if unknown := [name for name in names if name not in BENCHES]:
        parser.error(f"no bench {', '.join(unknown)}; there are {', '.join(BENCHES)}")
    console = Console(stderr=True)
    results: dict[str, list[Figure]] = {}
    for name in names:
        with console.status(f"{name} …") as status:
            try:
                results[name] = list(BENCHES[name](partial(tell, status, name)))
            except LabError as error:
                console.print(f"[bold red]{name}:[/] {error}", highlight=False)
                return 1
    show(Console(width=None if sys.stdout.isatty() else 120), results)
    if options.json:
        write(options.json, results)
    return 0 if all(figure.holds for figures in results.values() for figure in figures) else 1


def tell(status: Status, name: str, text: str) -> None:
    status.update(f"{name}: {text} …")


if __name__ == "__main__":
    sys.exit(main())
