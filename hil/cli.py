"""`edgehil`, which is `python -m hil`: guests and suites; rigs are in hil/cli_rigs.py."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from hil import cli_list, cli_rigs, cli_suites, report_cli
from hil.errors import HilError
from hil.guests.build import build
from hil.machines import BY_NAME

STORE = Path("build/hil")
OK, FAILED, USAGE = range(3)

_EPILOG = """\
examples:
  edgehil                              the smoke suite on an arm64 and a mipsel guest
  edgehil smoke --guests arm64         on one, whose peer is an agent on this machine
  edgehil smoke --guests matrix        on one of each of four architectures
  edgehil powercut                     power that fails at each write of a join and of an update
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
        description="The whole thing on emulated machines and real boards: flashed, booted, joined, unplugged.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("--store", metavar="DIR", type=Path, default=STORE, help=f"where guests are kept ({STORE})")
    verbs = made.add_subparsers(title="commands", metavar="COMMAND", required=True)
    cli_list.add(verbs)
    cli_rigs.add(verbs)
    suite = verbs.add_parser("run", help="a suite on a rig, or on guests", description="a suite on a rig, or on guests")
    suite.add_argument("suite", metavar="SUITE", help="smoke, or a file of pytest's; without --rig, a suite for guests")
    suite.add_argument("--pcap", action="store_true", help="also what went over each cable")
    suite.add_argument("--rigs", metavar="DIR", type=Path, help="where rig files are")
    cli_rigs.add_rig(suite)
    cli_suites.options(suite, cli_suites.GUESTS)
    suite.set_defaults(run=_run)
    cli_suites.add(verbs)
    text = "build guests, where they are not here"
    make = verbs.add_parser("build", help=text, description=text)
    make.add_argument("machines", metavar="MACHINE", nargs="*", help=f"{cli_suites.MATRIX}, without")
    make.add_argument("--fresh", action="store_true", help="anew, from Debian's packages of today")
    make.set_defaults(run=_build)
    report_cli.add(verbs)
    return made


def _run(options: argparse.Namespace) -> int:
    if options.rig:
        return cli_rigs.run_suite(options)
    if options.suite not in cli_suites.SUITES:
        known = ", ".join(cli_suites.SUITES)
        raise HilError(f"{options.suite!r}: no such suite for guests; known are {known}. Others want --rig")
    return cli_suites.run(options)


def _build(options: argparse.Namespace) -> int:
    for name in cli_suites.known(options.machines or cli_suites.MATRIX.split(",")):
        print(name)
        made = build(BY_NAME[name], options.store, lambda what: print(f"  {what}"), options.fresh)
        print(f"  {made.root}" + (f" ({made.seconds:.0f} s)" if made.seconds else " (kept)"))
    return OK
