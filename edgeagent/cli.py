"""The command line `edgeagent`. What a verb needs is imported when the verb runs, so that `status` stays quick."""

from __future__ import annotations

import os
import sys

from edgeagent.cli_base import FAILED, CommandError
from edgeagent.cli_parser import parser

TYPE_CHECKING = False  # what the typing module would say, and 5 ms
if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    options = parser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except CommandError as error:
        print(f"edgeagent: {error}", file=sys.stderr)
        return error.status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        return 130
    return status
