"""`edgehil`, which is `python -m hil`: guests and suites; rigs are in hil/cli_rigs.py."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from hil import cli_list, cli_rigs, report_cli
from hil.errors import HilError
from hil.faults.disks import disks
from hil.faults.outages import outages
from hil.faults.powercut import powercut
from hil.faults.soak import MINUTES, soak
from hil.guests.build import build
from hil.machines import BY_NAME, Machine
from hil.report import Report
from hil.rollouts import rollout
from hil.smoke import NAMES, smoke

STORE = Path("build/hil")
GUESTS = "arm64,arm64,arm64"
OK, FAILED, USAGE = range(3)

_EPILOG = """\
examples:
  edgehil                              the smoke suite on three arm64 guests
  edgehil smoke --guests arm64,mipsel  on one of each
  edgehil rollout                      a good and a broken version to three arm64 guests
  edgehil build arm64 --fresh          a guest from Debian's packages of today
  edgehil list                         which machines, suites and rigs there are
  edgehil list --strategy board        how a board comes from off to its agent
  edgehil doctor --rig bench           what is missing for the rig of rigs/bench.yaml
  edgehil run smoke --rig bench        the essential steps on it
  edgehil run mine.py --rig bench      a suite of your own, with pytest
  edgehil console --rig bench --target pump

The first run of a machine builds its guest from Debian's packages, which takes minutes; it is kept.
Nothing needs root; as another user, user namespaces have to be allowed. Rig files: docs/rigs.md.
exit status: 0 ok, 1 failed, 2 usage
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = parser().parse_args(words or ["smoke"])
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)  # else guests would outlive this
    try:
        status: int = options.run(options)
    except HilError as error:
        print(f"edgehil: {error.name}: {error}", file=sys.stderr)
        return FAILED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        return 130
    return status


def _end(number: int, _: object) -> None:
    sys.exit(128 + number)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="edgehil",
        description="The whole thing on emulated and real machines: flashed, booted, joined, unplugged.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("--store", metavar="DIR", type=Path, default=STORE, help=f"where guests are kept ({STORE})")
    verbs = made.add_subparsers(title="commands", metavar="COMMAND", required=True)
    cli_list.add(verbs)
    cli_rigs.add(verbs)
    suite = verbs.add_parser("run", help="a suite on a rig, or on guests", description="a suite on a rig, or on guests")
    suite.add_argument("suite", metavar="SUITE", help="smoke, rollout, or a file of pytest's")
    suite.add_argument("--pcap", action="store_true", help="also what went over each cable")
    suite.add_argument("--rigs", metavar="DIR", type=Path, help="where rig files are")
    cli_rigs.add_rig(suite)
    suite.set_defaults(run=_run)
    run = verbs.add_parser(
        "smoke",
        help="flash, boot, join, ping, power cut, rejoin",
        description="flash, boot, join, ping, power cut, rejoin",
    )
    run.add_argument("--pcap", action="store_true", help="also what went over each guest's cable")
    run.set_defaults(run=_smoke)
    roll = verbs.add_parser(
        "rollout",
        help="flash, boot, join; a good version comes to all, a broken one comes back",
        description="flash, boot, join; a good version comes to all, a broken one comes back",
    )
    roll.set_defaults(run=_rollout)
    cut = verbs.add_parser("powercut", help="power that fails at each write of a join and of an update (one guest)")
    cut.set_defaults(run=_powercut)
    out = verbs.add_parser("outages", help="servers, cables, clocks and cards that fail")
    out.set_defaults(run=_outages)
    disk = verbs.add_parser("disks", help="a disk that is full, and one that refuses writes")
    disk.set_defaults(run=_disks)
    day = verbs.add_parser("soak", help="what a day brings, in minutes, and nothing that grows")
    day.add_argument("--minutes", metavar="N", type=float, default=MINUTES, help=f"of events ({MINUTES:g})")
    day.set_defaults(run=_soak)
    for each in (suite, run, roll, cut, out, disk, day):
        each.add_argument("--guests", metavar="LIST", default=GUESTS, help=f"machines, with commas ({GUESTS})")
        each.add_argument("--out", metavar="DIR", type=Path, help="report, logs and consoles (DIR/NAME)")
    make = verbs.add_parser(
        "build", help="build guests, where they are not here", description="build guests, where they are not here"
    )
    make.add_argument("machines", metavar="MACHINE", nargs="*", help="all, without")
    make.add_argument("--fresh", action="store_true", help="anew, from Debian's packages of today")
    make.set_defaults(run=_build)
    report_cli.add(verbs)
    meet = verbs.add_parser("interop", help="the kernel's WireGuard in a guest and edge-wireguard on the host")
    meet.add_argument("--guest", metavar="MACHINE", default="arm64", help="the machine (arm64)")
    meet.add_argument("--engines", metavar="LIST", default="fast,pure", help="of edge-wireguard (fast,pure)")
    meet.add_argument("--out", metavar="DIR", type=Path, help="report, logs and consoles (DIR/NAME)")
    meet.set_defaults(run=_interop)
    turns = verbs.add_parser("engines", help="each engine in turn on two guests, and what it carries")
    turns.add_argument("--guest", metavar="MACHINE", default="arm64", help="the machine (arm64)")
    turns.add_argument("--engines", metavar="LIST", default="pure,fast,kernel", help="which (pure,fast,kernel)")
    turns.add_argument("--out", metavar="DIR", type=Path, help="report, logs and consoles (DIR/NAME)")
    turns.set_defaults(run=_engines)
    return made


def _machines(names: Sequence[str]) -> list[str]:
    if unknown := [name for name in names if name not in BY_NAME]:
        raise HilError(f"{unknown[0]!r}: no such machine; known are {', '.join(BY_NAME)}")
    return list(names)


def _run(options: argparse.Namespace) -> int:
    if options.rig:
        return cli_rigs.run_suite(options)
    suites = {"smoke": _smoke, "rollout": _rollout}
    if options.suite not in suites:
        raise HilError(f"{options.suite!r}: no such suite for guests; known are {', '.join(suites)}. Others want --rig")
    return suites[options.suite](options)


def _smoke(options: argparse.Namespace) -> int:
    machines, out = _asked(options, "smoke")
    return _told(smoke(machines, options.store, out, print, pcap=options.pcap), out)


def _rollout(options: argparse.Namespace) -> int:
    machines, out = _asked(options, "rollout")
    return _told(rollout(machines, options.store, out, print), out)


def _powercut(options: argparse.Namespace) -> int:
    machines, out = _asked(options, "powercut")
    return _told(powercut(machines, options.store, out, print), out)


def _outages(options: argparse.Namespace) -> int:
    machines, out = _asked(options, "outages")
    return _told(outages(machines, options.store, out, print), out)


def _disks(options: argparse.Namespace) -> int:
    machines, out = _asked(options, "disks")
    return _told(disks(machines, options.store, out, print), out)


def _soak(options: argparse.Namespace) -> int:
    machines, out = _asked(options, "soak")
    if not 1 <= options.minutes <= 1_440:
        raise HilError(f"--minutes: {options.minutes:g}; from 1 to 1,440 are wanted")
    return _told(soak(machines, options.store, out, print, options.minutes), out)


def _interop(options: argparse.Namespace) -> int:
    from hil.interop.suite import interop

    machine, out = _asked_one(options, "interop")
    return _told(interop(machine, options.store, out, print, engines=options.engines.split(",")), out)


def _engines(options: argparse.Namespace) -> int:
    from hil.engines import engines

    machine, out = _asked_one(options, "engines")
    return _told(engines(machine, options.store, out, print, which=options.engines.split(",")), out)


def _asked_one(options: argparse.Namespace, suite: str) -> tuple[Machine, Path]:
    machine = BY_NAME[_machines([options.guest])[0]]
    out: Path = options.out or options.store / suite
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    print(f"{suite} suite on {machine.name}", flush=True)
    return machine, out


def _asked(options: argparse.Namespace, suite: str) -> tuple[list[Machine], Path]:
    names = _machines(options.guests.split(","))
    if not 1 <= len(names) <= len(NAMES):
        raise HilError(f"--guests: {len(names)} machines; from 1 to {len(NAMES)} are wanted")
    out: Path = options.out or options.store / suite
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    print(f"{suite} suite on {', '.join(names)}", flush=True)
    return [BY_NAME[name] for name in names], out


def _told(report: Report, out: Path) -> int:
    print(f"\n{report.text()}\n{out / 'report.json'}")
    return OK if report.passed else FAILED


def _build(options: argparse.Namespace) -> int:
    for name in _machines(options.machines or list(BY_NAME)):
        print(name)
        made = build(BY_NAME[name], options.store, lambda what: print(f"  {what}"), options.fresh)
        print(f"  {made.root}" + (f" ({made.seconds:.0f} s)" if made.seconds else " (kept)"))
    return OK
