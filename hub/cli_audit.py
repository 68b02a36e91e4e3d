"""`edgehub audit`: who did what."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from hub.auditfile import read_lines, write_line
from hub.core import audit, chain, retention
from hub.core.audit import Entry
from hub.core.chain import Accepts, Beginning, Walk
from hub.core.model import HubError
from hub.core.retention import Joined, Keep
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
                " ".join(f"{name}={value}" for name, value in entry.details().items()) or "-",
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

    Breaks that were accepted are said, and passed. Rows that were pruned are proven by an export of theirs.

    \b
    edgehub audit verify
    edgehub audit verify --export audit.jsonl
    """
    with open_store() as store, store.read() as tx:
        begin, accepts = chain.beginning(tx), Accepts(tx)
        walk, count = _walk(tx, begin, accepts)
        _say_accepted(walk, accepts, begin)
        if walk.broken is not None:
            number = walk.broken.row.id
            raise HubError(
                f"audit log: broken at row {number}: {walk.broken.words()}. Compare with an export that was kept "
                f"elsewhere; when it is known why: `edgehub audit accept {number}`"
            )
        joined = _join(export, begin, tx, accepts, walk) if export is not None else None
    but = f" but for {len(walk.accepted)} accepted" if walk.accepted else ""
    said = _rows(begin, count, walk.next_id - 1)
    print_error(f"audit log: {said}, unbroken{but}; the last hash is {walk.before.hex()}")
    if joined is not None:
        print_error(f"the export has rows {joined.first} to {joined.last} of the same chain")
        for number in joined.instead:
            print_error(f"row {number}: the export has what was there before the break")


@app.command()
def accept(
    row: Annotated[int, typer.Argument(min=1, help="At which `edgehub audit verify` says that the chain is broken.")],
    why: Annotated[str, typer.Option("--why", help="What was found out: up to 256 characters, for all who look.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Accept a break of the chain that was looked into: it is said from then on, and pruning goes on behind it.

    The first one that was not accepted yet. Compare with an export before: nothing here tells what had stood there.

    \b
    edgehub audit accept 1207 --why "restored by hand after the disk failed on 3 May"
    """
    reason = chain.check_reason(why)
    with open_store() as store, store.read() as tx:
        accepts = Accepts(tx)
        walk, _ = _walk(tx, chain.beginning(tx), accepts)
    broken = walk.broken
    if broken is None or broken.row.id != row:
        for known in walk.accepted:
            if known.broken.row.id == row:
                raise HubError(f"audit log: the break at row {_accepted(row, known.by)}")
        where = f"but at row {broken.row.id}: {broken.words()}" if broken is not None else "or anywhere else"
        raise HubError(f"audit log: it is not broken at row {row}, {where}")
    print_error(f"row {row}: {broken.words()}. It is {_line(broken.row)}")
    if not yes and sys.stdin.isatty() and not typer.confirm(f"Accept the break at row {row}?", err=True):
        raise typer.Exit(1)
    with change() as (tx, _, wall_s):
        entry = chain.accept(tx, wall_s, actor(), broken, reason)
    print_error(f"row {row}: accepted, by row {entry.id}. `edgehub audit verify` says whether there is another")


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
            kept, begin, last = Keep.decode(tx.audit_keep()), chain.beginning(tx), tx.last_audit()
            broken = retention.held_up_by(tx, int(time.time()))
        end = last.id if last is not None else 0
        pairs = [("kept", kept.words()), ("held", _rows(begin, end, end))]
        if broken is not None:
            pairs.append(("pruning", f"held up: the chain is broken at row {broken.row.id}: {broken.words()}"))
        print_pairs(pairs)
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


def _walk(tx: SqlTx, begin: Beginning, accepts: Accepts) -> tuple[Walk, int]:
    """To the end or the first break, and how many rows were read."""
    walk, count = Walk(begin, accepts), 0
    for page in _pages(tx, 0):
        count += len(page)
        if not walk.go(page):
            break
    return walk, count


def _say_accepted(walk: Walk, accepts: Accepts, begin: Beginning) -> None:
    for known in walk.accepted:
        print_error(f"row {_accepted(known.broken.row.id, known.by)}")
    used = {known.by.id for known in walk.accepted} | {known.broken.row.id for known in walk.accepted}
    end = walk.broken.row.id if walk.broken is not None else walk.next_id
    for entry in reversed(accepts.rows):
        number = chain.row_of(entry)
        if entry.id in used or entry.id >= end or number is None:
            continue
        if number < begin.id:
            print_error(f"row {_accepted(number, entry)} (pruned since)")
        else:
            print_error(f"row {entry.id} accepts a break at row {number} that is not there, or is another one now")


def _accepted(number: int, by: Entry) -> str:
    return f"{number}: accepted by {audit.cut(by.actor)} on {_day(by.wall_s)}: {chain.reason_of(by)}"


def _line(entry: Entry) -> str:
    said = " ".join(f"{name}={value}" for name, value in entry.details().items())
    shown = (_day(entry.wall_s), entry.actor, entry.verb, entry.object, said)
    return ", ".join(str(audit.cut(part)) for part in shown if part)


def _join(export: str, begin: Beginning, tx: SqlTx, accepts: Accepts, walk: Walk) -> Joined:
    living = (entry for page in _pages(tx, 0) for entry in page)
    accepted = {known.broken.row.id for known in walk.accepted}
    if export == "-":
        return retention.join(read_lines(sys.stdin.buffer), begin, living, accepts, accepted)
    try:
        with Path(export).open("rb") as source:
            return retention.join(read_lines(source), begin, living, accepts, accepted)
    except OSError as error:
        raise HubError(f"--export {export}: it cannot be read ({error.strerror})") from None


def _rows(begin: Beginning, count: int, last: int) -> str:
    if begin.by is None:
        return f"{count} rows"
    when = _day(begin.by.wall_s)
    return f"rows {begin.id} to {last} (those before were pruned, the last of them on {when}: row {begin.by.id})"


def _day(wall_s: int) -> str:
    try:
        return time.strftime("%Y-%m-%d", time.gmtime(wall_s))
    except (OverflowError, OSError, ValueError):  # a row that somebody changed may have any number there
        return str(wall_s)
