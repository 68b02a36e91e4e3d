"""`edgehub audit`: who did what."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from hub.auditfile import read_lines, write_line
from hub.core import audit, retention
from hub.core.audit import Entry
from hub.core.model import HubError
from hub.core.retention import Beginning, Joined, Keep
from hub.opening import actor, change, open_store
from hub.output import print_error, print_pairs, print_table
from hub.store import audits
from hub.store.sql import SqlTx

PAGE = 1_000

app = typer.Typer(
    help="The audit log: who did what, each row bound to the one before.", no_args_is_help=True, rich_markup_mode=None
)


@app.command("list")
def list_(
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many, the newest.")] = 50,
    actor: Annotated[str, typer.Option(help="Only by this one, as user:ada or cli:root.")] = "",
    verb: Annotated[str, typer.Option(help="Only this, or what begins so, as device.")] = "",
    object: Annotated[str, typer.Option(help="Only about this, as device:d-…")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one row a line.")] = False,
) -> None:
    """List rows, the newest first.

    \b
    edgehub audit list
    edgehub audit list --verb signin --limit 10
    """
    with open_store() as store, store.read() as tx:
        found = audits.newest(tx.connection, limit=limit, actor=actor, verb=verb, object_=object)
    if as_json:
        for entry in found:
            sys.stdout.write(write_line(entry))
        return
    print_table(
        ("ID", "TIME", "ACTOR", "VERB", "OBJECT", "DETAIL"),
        (
            (
                str(entry.id),
                time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(entry.wall_s)),
                entry.actor,
                entry.verb,
                entry.object or "-",
                " ".join(f"{name}={value}" for name, value in json.loads(entry.detail).items()) or "-",
            )
            for entry in found
        ),
        empty="there are no such rows",
    )


@app.command()
def export(
    after: Annotated[int, typer.Option(min=0, help="Only rows behind this id.")] = 0,
) -> None:
    """Write all rows, the oldest first, as JSON, one a line: to keep elsewhere, so that a chain made anew is noticed.

    \b
    edgehub audit export > audit.jsonl
    edgehub audit export --after 1200 >> audit.jsonl
    """
    with open_store() as store, store.read() as tx:
        for page in _pages(tx, after):
            for entry in page:
                sys.stdout.write(write_line(entry))


@app.command()
def verify(
    export: Annotated[
        str | None,
        typer.Option(help="What `edgehub audit export` wrote: must join the database; - for standard input."),
    ] = None,
) -> None:
    """Follow the chain of hashes from the first row to the last. Ends with code 1 where it is broken.

    Rows that were pruned are proven by an export of theirs.

    \b
    edgehub audit verify
    edgehub audit verify --export audit.jsonl
    """
    with open_store() as store, store.read() as tx:
        begin = retention.beginning(tx)
        before, next_id = begin.before, begin.id
        for page in _pages(tx, 0):
            broken, before, next_id = audit.first_break(before, next_id, page)
            if broken is not None:
                raise HubError(
                    f"audit log: broken at row {broken}: it, or what stood before it, was changed or taken out. "
                    "Compare with an export that was kept elsewhere"
                )
        joined = _join(export, begin, tx) if export is not None else None
    print_error(f"audit log: {_rows(begin, next_id - 1)}, unbroken; the last hash is {before.hex()}")
    if joined is not None:
        print_error(f"the export has rows {joined.first} to {joined.last} of the same chain")


@app.command()
def keep(
    days: Annotated[int | None, typer.Option(help="Rows that are older are pruned; 0: whatever their age.")] = None,
    rows: Annotated[int | None, typer.Option(help="At most about so many are kept; 0: any number.")] = None,
) -> None:
    """Say how long rows are kept, or show it. The running hub prunes the oldest; export them before.

    \b
    edgehub audit keep
    edgehub audit keep --days 400 --rows 1000000
    edgehub audit keep --days 0 --rows 0               nothing is pruned
    """
    if days is None and rows is None:
        with open_store() as store, store.read() as tx:
            kept, begin, last = Keep.decode(tx.audit_keep()), retention.beginning(tx), tx.last_audit()
        print_pairs([("kept", kept.words()), ("held", _rows(begin, last.id if last is not None else 0))])
        return
    with change() as (tx, _, wall_s):
        before = Keep.decode(tx.audit_keep())
        new = Keep(before.days if days is None else days, before.rows if rows is None else rows).check()
        tx.save_audit_keep(new.encode())
        audit.record(tx, wall_s, actor(), retention.KEPT, "", {"days": new.days, "rows": new.rows})
    print_error(f"kept: {new.words()}")


def _pages(tx: SqlTx, after: int) -> Iterator[list[Entry]]:
    while page := tx.audit_rows(after=after, limit=PAGE):
        yield page
        after = page[-1].id


def _join(export: str, begin: Beginning, tx: SqlTx) -> Joined:
    living = (entry for page in _pages(tx, 0) for entry in page)
    if export == "-":
        return retention.join(read_lines(sys.stdin.buffer), begin, living)
    try:
        with Path(export).open("rb") as source:
            return retention.join(read_lines(source), begin, living)
    except OSError as error:
        raise HubError(f"--export {export}: it cannot be read ({error.strerror})") from None


def _rows(begin: Beginning, last: int) -> str:
    if begin.by is None:
        return f"{last} rows"
    when = time.strftime("%Y-%m-%d", time.gmtime(begin.by.wall_s))
    return f"rows {begin.id} to {last} (those before were pruned, the last of them on {when}: row {begin.by.id})"
