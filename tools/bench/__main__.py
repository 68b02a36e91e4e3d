"""`./dev bench [NAME …] [OPTION …]`: runs benches, shows their figures, ends with 1 when one passes its limit."""

from __future__ import annotations

import argparse
import gc
import sys
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.status import Status

from tests.netlab import LabError
from tools.bench import (
    agent,
    chart,
    cluster,
    crowd,
    dashboard,
    datapath,
    flash,
    fleet,
    flows,
    hub,
    imports,
    paths,
    peers,
)
from tools.bench.figures import BENCHES, Figure, Options, Row, show, write

__all__ = ["agent", "cluster", "crowd", "dashboard", "datapath", "flash", "fleet", "flows", "hub", "imports", "paths"]

COUNT_MAX = 100


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev bench", description=__doc__)
    parser.add_argument("names", metavar="NAME", nargs="*", help=f"which: {', '.join(BENCHES)} (all)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures there too")
    path = parser.add_argument_group("datapath and flows")
    path.add_argument("--rounds", metavar="N", type=_count, help="how often everybody takes a turn")
    path.add_argument("--seconds", metavar="S", type=_count, help="how long one measurement takes")
    path.add_argument("--only", metavar="WHO,…", type=_keys, default=(), help=f"of {', '.join(peers.KEYS)}")
    path.add_argument("--peers", choices=("ready", "all"), default="ready", help="all: build what takes minutes too")
    path.add_argument("--no-nic-gso", action="store_true", help="cut UDP trains before the wire, in all of datapath")
    path.add_argument("--svg", metavar="FILE", type=Path, help="draw datapath's ratios there")
    options = parser.parse_args()
    how = Options(options.rounds, options.seconds, options.only, options.peers == "all", not options.no_nic_gso)
    names = options.names or list(BENCHES)
    if unknown := [name for name in names if name not in BENCHES]:
        parser.error(f"no bench {', '.join(unknown)}; there are {', '.join(BENCHES)}")
    console = Console(stderr=True)
    results: dict[str, list[Row]] = {}
    for name in names:
        gc.collect()
        gc.freeze()  # else what an earlier bench has left is looked through again and again while another one measures
        with console.status(f"{name} …") as status:
            try:
                results[name] = list(BENCHES[name](partial(tell, status, name), how))
            except LabError as error:
                console.print(f"[bold red]{name}:[/] {error}", highlight=False)
                return 1
    show(Console(width=None if sys.stdout.isatty() else 120), results)
    if options.json:
        write(options.json, results)
    listed = [row for rows in results.values() for row in rows if isinstance(row, Figure)]
    if options.svg and "datapath" in results:
        options.svg.write_text(chart.draw(results["datapath"]), encoding="utf-8")
    return 0 if all(figure.holds for figure in listed) else 1


def tell(status: Status, name: str, text: str) -> None:
    status.update(f"{name}: {text} …")


def _count(text: str) -> int:
    value = int(text)
    if not 1 <= value <= COUNT_MAX:
        raise argparse.ArgumentTypeError(f"1 to {COUNT_MAX}")
    return value


def _keys(text: str) -> tuple[str, ...]:
    keys = tuple(text.split(","))
    if unknown := [key for key in keys if key not in peers.KEYS]:
        raise argparse.ArgumentTypeError(f"no {', '.join(unknown)}; there are {', '.join(peers.KEYS)}")
    return keys


if __name__ == "__main__":
    sys.exit(main())
