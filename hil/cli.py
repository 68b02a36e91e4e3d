"""`python -m hil`: guests and suites."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from hil import report_cli
from hil.errors import HilError
from hil.guests.build import build
from hil.machines import BY_NAME, MACHINES, Machine
from hil.report import Report
from hil.rollouts import rollout
from hil.smoke import NAMES, smoke
from hil.throughput import throughput

STORE = Path("build/hil")
GUESTS = "arm64,mipsel"
MATRIX = "x86-64,arm64,armhf,mipsel"
OK, FAILED, USAGE = range(3)

_EPILOG = """\
examples:
  python -m hil                              the smoke suite on an arm64 and a mipsel guest
  python -m hil smoke --guests arm64         on one, whose peer is an agent on this machine
  python -m hil smoke --guests matrix        on one of each of four architectures
  python -m hil throughput --guests mipsel   what goes through the tunnel, by each engine of the agent
  python -m hil rollout                      a good and a broken version to three arm64 guests
  python -m hil build arm64 --fresh          a guest from Debian's packages of today
  python -m hil list                         which machines there are

The first run of a machine builds its guest from Debian's packages, which takes minutes; it is kept.
Nothing needs root; as another user, user namespaces have to be allowed.
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
        print(f"hil: {error.name}: {error}", file=sys.stderr)
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
        prog="python -m hil",
        description="The whole thing on emulated machines: flashed, booted, joined, unplugged.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("--store", metavar="DIR", type=Path, default=STORE, help=f"where guests are kept ({STORE})")
    verbs = made.add_subparsers(title="commands", metavar="COMMAND", required=True)
    run = verbs.add_parser("smoke", help="flash, boot, join, ping, power cut, rejoin")
    run.add_argument("--pcap", action="store_true", help="also what went over each guest's cable")
    run.set_defaults(run=_smoke)
    roll = verbs.add_parser("rollout", help="flash, boot, join; a good version comes to all, a broken one comes back")
    roll.set_defaults(run=_rollout)
    through = verbs.add_parser("throughput", help="flash, boot, join; what goes through the tunnel, by each engine")
    through.set_defaults(run=_throughput)
    for each, guests in ((run, GUESTS), (roll, "arm64,arm64,arm64"), (through, GUESTS)):
        text = f"machines, with commas, or `matrix`: {MATRIX} ({guests})"
        each.add_argument("--guests", metavar="LIST", default=guests, help=text)
        each.add_argument("--out", metavar="DIR", type=Path, help="report, logs and consoles (DIR/NAME)")
    make = verbs.add_parser("build", help="build guests, where they are not here")
    make.add_argument("machines", metavar="MACHINE", nargs="*", help=f"{MATRIX}, without")
    make.add_argument("--fresh", action="store_true", help="anew, from Debian's packages of today")
    make.set_defaults(run=_build)
    report_cli.add(verbs)
    listing = verbs.add_parser("list", help="machines")
    listing.set_defaults(run=_list)
    return made


def _machines(names: Sequence[str]) -> list[str]:
    if unknown := [name for name in names if name not in BY_NAME]:
        raise HilError(f"{unknown[0]!r}: no such machine; known are {', '.join(BY_NAME)}")
    return list(names)


def _smoke(options: argparse.Namespace) -> int:
    machines, out = _asked(options, "smoke")
    return _told(smoke(machines, options.store, out, print, pcap=options.pcap), out)


def _rollout(options: argparse.Namespace) -> int:
    machines, out = _asked(options, "rollout")
    return _told(rollout(machines, options.store, out, print), out)


def _throughput(options: argparse.Namespace) -> int:
    machines, out = _asked(options, "throughput")
    return _told(throughput(machines, options.store, out, print), out)


def _asked(options: argparse.Namespace, suite: str) -> tuple[list[Machine], Path]:
    names = _machines((MATRIX if options.guests == "matrix" else options.guests).split(","))
    if len(names) > len(NAMES):
        raise HilError(f"--guests: {len(names)} machines; at most {len(NAMES)} are wanted")
    out: Path = options.out or options.store / suite
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    print(f"{suite} suite on {', '.join(names)}", flush=True)
    return [BY_NAME[name] for name in names], out


def _told(report: Report, out: Path) -> int:
    print(f"\n{report.text()}\n{out / 'report.json'}")
    return OK if report.passed else FAILED


def _build(options: argparse.Namespace) -> int:
    for name in _machines(options.machines or MATRIX.split(",")):
        print(name)
        made = build(BY_NAME[name], options.store, lambda what: print(f"  {what}"), options.fresh)
        print(f"  {made.root}" + (f" ({made.seconds:.0f} s)" if made.seconds else " (kept)"))
    return OK


def _list(options: argparse.Namespace) -> int:
    for machine in MACHINES:
        found = shutil.which(machine.program) or f"not here: package {machine.needs}"
        print(f"{machine.name:<8} {machine.board:<14} {' '.join(machine.options):<48} {found}")
    return OK
