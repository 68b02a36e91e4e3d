"""`edgehub routes`: prefixes behind devices, and exit nodes."""

from __future__ import annotations

from typing import Annotated

import typer

from hub import operations
from hub.core import actions, routes
from hub.opening import doing, open_store
from hub.output import print_error, print_json, print_table

app = typer.Typer(
    help="Routes: what devices offer to route for others. It is used when it is approved.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Name = Annotated[str, typer.Argument(metavar="DEVICE", help="Host name, address or id.")]
Wanted = Annotated[
    list[str] | None,
    typer.Argument(metavar="[PREFIX]...", help="Prefixes, or `exit` for an exit node; without any: all."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_(
    device: Annotated[str, typer.Option(help="Only those of this device.")] = "",
    waiting: Annotated[bool, typer.Option("--waiting", help="Only those that wait for approval.")] = False,
    as_json: Json = False,
) -> None:
    """List what devices offer to route, by prefix. Several devices with one prefix stand in for each other.

    \b
    edgehub routes list
    edgehub routes list --waiting
    edgehub routes list --device gw-2 --json
    """
    with open_store() as store, store.read() as tx:
        rows = routes.of_device(tx, actions.find_device(tx, device)) if device else routes.table(tx)
    if waiting:
        rows = [row for row in rows if row.advertised and not row.approved]
    if as_json:
        print_json(
            [
                {
                    "prefix": row.prefix,
                    "via": row.via or None,
                    "exit": row.is_exit,
                    "device": row.device.name,
                    "device_id": row.device.id,
                    "online": row.device.online,
                    "advertised": row.advertised,
                    "approved": row.approved,
                    "snat": row.snat,
                    "state": row.state,
                }
                for row in rows
            ]
        )
        return
    print_table(
        ("PREFIX", "DEVICE", "STATE", "SNAT", "ONLINE"),
        (
            (
                _shown(row),
                row.device.name or row.device.id,
                row.state,
                "yes" if row.snat else "no",
                "yes" if row.device.online else "no",
            )
            for row in rows
        ),
        empty="no device offers routes. On a device: edgeagent up --advertise-routes 192.168.7.0/24",
    )


def _shown(row: routes.Row) -> str:
    note = "exit" if row.is_exit else row.via
    return f"{row.prefix} ({note})" if note else row.prefix


@app.command()
def approve(device: Name, prefix: Wanted = None) -> None:
    """Let the others use what a device offers.

    \b
    edgehub routes approve gw-2 192.168.7.0/24 fd00:7::/64
    edgehub routes approve gw-2 192.168.1.0/24@7
    edgehub routes approve gw-2 exit
    edgehub routes approve gw-2
    """
    with doing() as do:
        found = actions.find_device(do.tx, device)
        new = ", ".join(operations.approve_routes(do, found, prefix or []))
    print_error(f"{found.name}: {new or 'nothing that was not approved before'}" + (" approved" if new else ""))


@app.command()
def unapprove(device: Name, prefix: Wanted = None) -> None:
    """Take approval back: the others stop using it as soon as they are told.

    \b
    edgehub routes unapprove gw-2 192.168.7.0/24
    edgehub routes unapprove gw-2
    """
    with doing() as do:
        found = actions.find_device(do.tx, device)
        gone = ", ".join(operations.unapprove_routes(do, found, prefix or []))
    print_error(f"{found.name}: {gone or 'nothing'} is no longer approved")
