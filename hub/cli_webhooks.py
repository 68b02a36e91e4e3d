"""`edgehub webhooks`: who is told what happens."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from hub import webhooks
from hub.core.events import EVENTS, Webhook
from hub.core.model import HubError
from hub.core.web import URL_MAX
from hub.opening import doing, open_store
from hub.output import ago, print_error, print_json, print_table
from hub.store import hooks
from hub.store.sql import SqlTx

app = typer.Typer(
    help="Web hooks: servers that are told by HTTPS what happens here.", no_args_is_help=True, rich_markup_mode=None
)

HookId = Annotated[str, typer.Argument(metavar="ID", help="As `edgehub webhooks list` shows it.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List web hooks, the oldest first: which host is told what, and what came of the last time.

    \b
    edgehub webhooks list
    """
    with open_store() as store, store.read() as tx:
        found = hooks.all_(tx.connection)
    if as_json:
        print_json(
            [
                {
                    "id": hook.id,
                    "host": webhooks.host(hook),
                    "events": list(hook.events),
                    "created": hook.created_s,
                    "last": hook.last_s,
                    "last_result": hook.last_result,
                }
                for hook in found
            ]
        )
        return
    print_table(
        ("ID", "HOST", "LAST", "RESULT", "EVENTS"),
        (
            (hook.id, webhooks.host(hook), ago(hook.last_s), hook.last_result or "-", " ".join(hook.events))
            for hook in found
        ),
        empty="there are no web hooks. `edgehub webhooks add URL --event device.joined` makes one",
    )


@app.command()
def add(
    url: Annotated[
        str, typer.Argument(help="https://host/path; - reads it from standard input: a path may be a secret.")
    ],
    event: Annotated[list[str], typer.Option(help=f"What it is told of; repeatable. {', '.join(EVENTS)}.")],
    as_json: Json = False,
) -> None:
    """Make a web hook, and print the secret that signs what it is told. It is shown once.

    \b
    edgehub webhooks add https://hooks.example.org/edge --event device.joined --event device.removed
    edgehub webhooks add - --event device.joined <url
    """
    with doing() as do:
        hook = webhooks.add(do, sys.stdin.readline(URL_MAX + 2).strip() if url == "-" else url, tuple(event))
    if as_json:
        print_json({"id": hook.id, "events": list(hook.events), "secret": hook.secret})
        return
    print_error(f"web hook {hook.id}: {webhooks.host(hook)} is told while a dashboard runs; its secret is")
    typer.echo(hook.secret)


@app.command()
def test(hook_id: HookId) -> None:
    """Tell a web hook the event `test`; what came of it is in `edgehub webhooks list` soon.

    \b
    edgehub webhooks test h-abcdefghijklmnop
    """
    with doing() as do:
        webhooks.test(do, _find(do.tx, hook_id), do.actor)
    print_error(f"web hook {hook_id}: it is told within seconds, if a dashboard runs")


@app.command()
def remove(hook_id: HookId) -> None:
    """End a web hook; what it has not been told yet, it is not told.

    \b
    edgehub webhooks remove h-abcdefghijklmnop
    """
    with doing() as do:
        webhooks.remove(do, _find(do.tx, hook_id))
    print_error(f"web hook {hook_id} removed")


def _find(tx: SqlTx, hook_id: str) -> Webhook:
    hook = hooks.by_id(tx.connection, hook_id)
    if hook is None:
        raise HubError(f"web hook {hook_id}: there is none of this id. `edgehub webhooks list` shows them")
    return hook
