"""`edgehub export | import | attach`: a hub's database elsewhere."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from hub.core.model import HubError
from hub.database import read_url
from hub.opening import current_state
from hub.output import print_error

DatabaseFile = Annotated[
    Path | None,
    typer.Option(help="A file with the URL of a PostgreSQL database: postgresql://USER:PASSWORD@HOST/NAME."),
]


def export(file: Annotated[str, typer.Argument(help="A new file, or - for standard output.")]) -> None:
    """Write everything the hub knows as lines of JSON, for another database. The hub may run.

    \b
    edgehub export hub.jsonl
    edgehub import hub.jsonl --state-dir /var/lib/edgehub-new --database-file url
    """
    from hub import moving  # migrations take long to load

    if file == "-":
        if sys.stdout.isatty():
            raise HubError("export -: standard output is a terminal. Send it to a file or a program")
        moving.export(current_state(), sys.stdout.buffer)
        return
    path = Path(file)
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        raise HubError(f"{path}: it exists, and an export overwrites nothing. Choose another name") from None
    try:
        with open(descriptor, "wb") as out:
            rows = moving.export(current_state(), out)
            out.flush()
            os.fsync(out.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    print_error(f"{rows} rows written to {path}. They hold the network's keys: whoever has them is the hub")


def import_(
    file: Annotated[str, typer.Argument(help="What `edgehub export` wrote, or - for standard input.")],
    database_file: DatabaseFile = None,
) -> None:
    """Make a hub here of what another has exported; no device joins again. The old one must not run any more.

    \b
    edgehub import hub.jsonl --state-dir ./hub                        into a file, as `init` makes it
    edgehub import hub.jsonl --state-dir ./hub --database-file url    into PostgreSQL
    """
    from hub import moving

    url = read_url(database_file) if database_file is not None else ""
    if file == "-":
        rows, epoch = moving.take_over(current_state(), sys.stdin.buffer, url)
    else:
        with Path(file).open("rb") as source:
            rows, epoch = moving.take_over(current_state(), source, url)
    print_error(f"{rows} rows, epoch {epoch}. Start it with `edgehub serve`; devices get new maps and feed keys")


def attach(
    database_file: Annotated[Path, typer.Option(help="A file with the URL of the network's PostgreSQL database.")],
) -> None:
    """Use a network's database from this machine as well, for one more hub beside those that run.

    \b
    edgehub attach --database-file url
    edgehub serve
    """
    from hub import moving

    network = moving.attach(current_state(), read_url(database_file))
    print_error(f"attached to network {network}. Start it with `edgehub serve`")
