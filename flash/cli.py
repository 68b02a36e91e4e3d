"""The command line `edgeflash`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import metadata

from boards.schema import BoardError
from edgeagent.proto.errors import EdgeError
from flash import cli_batch, cli_boards, cli_image, cli_write
from flash.errors import FlashError

OK, FAILED, USAGE = range(3)

_EPILOG = """\
examples:
  edgeflash boards list                 the boards that are known
  edgeflash boards show rpi-4b          all that is known of one
  edgeflash image raspios.img.xz -o cam.img --board rpi-4b --agent edgeagent.deb --token-file cam.token
  edgeflash write cam.img /dev/sdb      onto a card, verified

exit status: 0 ok, 1 failed, 2 usage
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    options = parser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except (FlashError, BoardError, EdgeError) as error:
        print(f"edgeflash: {error}", file=sys.stderr)
        return FAILED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        return 130
    return status


def parser() -> argparse.ArgumentParser:
    """Each command is a module `flash/cli_….py` with `add(verbs)`; what a command needs is imported when it runs."""
    made = argparse.ArgumentParser(
        prog="edgeflash",
        description="Makes cards and images that come up as members of a fleet. Needs no root.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("--version", action="version", version=f"edgeflash {_version()}", help="print the version")
    verbs = made.add_subparsers(title="commands", metavar="COMMAND", required=True)
    cli_boards.add(verbs)
    cli_image.add(verbs)
    cli_write.add(verbs)
    cli_batch.add(verbs)
    return made


def _version() -> str:
    try:
        return metadata.version("edgemesh")
    except metadata.PackageNotFoundError:
        return "unknown"
