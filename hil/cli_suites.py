"""The suites of `edgehil` that bring their own guests: what each takes, and how it is run."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hil.engines import engines
from hil.errors import HilError
from hil.faults.disks import disks
from hil.faults.outages import outages
from hil.faults.powercut import powercut
from hil.faults.soak import MINUTES, soak
from hil.interop.suite import interop
from hil.machines import BY_NAME, Machine
from hil.report import Report
from hil.rollouts import rollout
from hil.smoke import NAMES, smoke
from hil.throughput import throughput

GUESTS = "arm64,mipsel"
PAIR = "arm64,arm64"
MATRIX = "x86-64,arm64,armhf,mipsel"
MINUTES_MAX = 1_440


class Suite(NamedTuple):
    """`run` gets machines, the store of guests, a folder for its report, and what says each step; `most` machines."""

    run: Callable[..., Report]
    help: str
    guests: str = PAIR
    most: int = len(NAMES)


SUITES = {
    "smoke": Suite(smoke, "flash, boot, join, ping, power cut, rejoin", GUESTS),
    "rollout": Suite(rollout, "a good version comes to all, a broken one comes back", "arm64,arm64,arm64"),
    "throughput": Suite(throughput, "flash, boot, join; what goes through the tunnel, by each engine", GUESTS),
    "interop": Suite(interop, "the kernel's WireGuard in a guest and edge-wireguard on the host", "arm64", 1),
    "engines": Suite(engines, "each engine in turn on two guests, and what it carries", "arm64", 1),
    "powercut": Suite(powercut, "power that fails at each write of a join and of an update", "arm64", 1),
    # Three: the first and the last have no direct path, so a relay that is not found again is noticed.
    "outages": Suite(outages, "servers, cables, clocks and cards that fail", "arm64,arm64,arm64"),
    "disks": Suite(disks, "a disk that is full, and one that refuses writes"),
    "soak": Suite(soak, "what a day brings, in minutes, and nothing that grows"),
}


def add(verbs: Any) -> None:
    """A verb for each suite."""
    for name, suite in SUITES.items():
        verb = verbs.add_parser(name, help=suite.help, description=suite.help)
        options(verb, suite.guests)
        if name == "smoke":
            verb.add_argument("--pcap", action="store_true", help="also what went over each guest's cable")
        if name == "soak":
            verb.add_argument("--minutes", metavar="N", type=float, default=MINUTES, help=f"of events ({MINUTES:g})")
        if name in ("interop", "engines"):
            text = "of edge-wireguard (fast,pure)" if name == "interop" else "which (pure,fast,kernel,auto)"
            verb.add_argument("--engines", metavar="LIST", help=text)
        verb.set_defaults(run=run, suite=name)


def options(verb: argparse.ArgumentParser, guests: str) -> None:
    """What all suites on guests take."""
    text = f"machines, with commas, or `matrix`: {MATRIX} ({guests})"
    verb.add_argument("--guests", metavar="LIST", default=guests, help=text)
    verb.add_argument("--out", metavar="DIR", type=Path, help="report, logs and consoles (DIR/NAME)")


def run(options: argparse.Namespace) -> int:
    """The suite that `options.suite` names; 0 where it passed."""
    suite = SUITES[options.suite]
    machines = asked(options.guests, suite.most)
    more: dict[str, Any] = {}
    if getattr(options, "pcap", False):
        more["pcap"] = True
    if minutes := getattr(options, "minutes", None):
        if not 1 <= minutes <= MINUTES_MAX:
            raise HilError(f"--minutes: {minutes:g}; from 1 to {MINUTES_MAX:,} are wanted")
        more["minutes"] = minutes
    if chosen := getattr(options, "engines", None):
        more["engines" if options.suite == "interop" else "which"] = chosen.split(",")
    out: Path = options.out or options.store / options.suite
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    print(f"{options.suite} suite on {', '.join(machine.name for machine in machines)}", flush=True)
    report = suite.run(machines[0] if suite.most == 1 else machines, options.store, out, print, **more)
    print(f"\n{report.text()}\n{out / 'report.html'}")
    return 0 if report.passed else 1


def asked(text: str, most: int) -> list[Machine]:
    """The machines of a list with commas. Raises HilError."""
    names = known((MATRIX if text == "matrix" else text).split(","))
    if len(names) > most:
        raise HilError(f"--guests: {len(names)} machines; at most {most} {'is' if most == 1 else 'are'} wanted")
    return [BY_NAME[name] for name in names]


def known(names: Sequence[str]) -> list[str]:
    """Raises HilError for a name that no machine has."""
    if unknown := [name for name in names if name not in BY_NAME]:
        raise HilError(f"{unknown[0]!r}: no such machine; known are {', '.join(BY_NAME)}")
    return list(names)
