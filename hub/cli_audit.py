"""`edgehub audit`: who did what."""

from __future__ import annotations

import json
import sys
import time
from typing import Annotated, Any

import typer

from hub.core import audit
from hub.core.audit import START, Entry
from hub.core.model import HubError
from hub.opening import open_store
from hub.output import print_error, print_table
from hub.store import audits

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
            _print_line(entry)
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
        while page := tx.audit_rows(after=after, limit=PAGE):
            for entry in page:
                _print_line(entry)
            after = page[-1].id


@app.command()
def verify() -> None:
    """Follow the chain of hashes from the first row to the last. Ends with code 1 where it is broken.

    \b
    edgehub audit verify
    """
    before, next_id, after = START, 1, 0
    with open_store() as store, store.read() as tx:
        while page := tx.audit_rows(after=after, limit=PAGE):
            broken, before, next_id = audit.first_break(before, next_id, page)
            if broken is not None:
                raise HubError(
                    f"audit log: broken at row {broken}: it, or what stood before it, was changed or taken out. "
                    "Compare with an export that was kept elsewhere"
                )
            after = page[-1].id
    print_error(f"audit log: {after} rows, unbroken; the last hash is {before.hex()}")


def _print_line(entry: Entry) -> None:
    row: dict[str, Any] = {
        "id": entry.id,
        "time": entry.wall_s,
        "actor": entry.actor,
        "verb": entry.verb,
        "object": entry.object,
        "detail": json.loads(entry.detail),
        "hash": entry.hash.hex(),
    }
    sys.stdout.write(json.dumps(row, ensure_ascii=False) + "\n")
