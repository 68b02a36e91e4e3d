"""`edgehub client`: plain WireGuard clients, phones for one, behind a gateway device."""

from __future__ import annotations

import sys
from base64 import b64encode
from typing import Annotated

import typer

from hub import operations
from hub.core import actions, clients
from hub.opening import doing, open_store
from hub.output import ago, print_error, print_json, print_table

app = typer.Typer(
    help="Plain WireGuard clients, reached through a gateway device: what runs no agent.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call it.")],
    gateway: Annotated[str, typer.Option(help="The device that it connects to: host name, address or id.")],
    endpoint: Annotated[str, typer.Option(help="HOST:PORT where the client finds the gateway's UDP port.")],
    public_key: Annotated[
        str, typer.Option(help="Of keys that the client made; without it they are made here, shown once and not kept.")
    ] = "",
    qr: Annotated[bool, typer.Option("--qr/--no-qr", help="A QR code after the configuration, on a terminal.")] = True,
    as_json: Json = False,
) -> None:
    """Give a plain WireGuard client an address, and print what its app reads: text on standard output, and a QR code.

    \b
    edgehub client add phone-anna --gateway gw-1 --endpoint vpn.example.org:51820
    edgehub client add printer --gateway gw-1 --endpoint 203.0.113.7:51820 --public-key "$(wg pubkey < key)"
    """
    key = clients.read_key(public_key) if public_key else None
    with doing() as do:
        found = actions.find_device(do.tx, gateway)
        added, text = operations.add_client(do, name=name, gateway=found, endpoint=endpoint, public_key=key)
    if as_json:
        print_json({"name": name, "gateway": found.name, "addresses": clients.addresses(added.client), "config": text})
        return
    sys.stdout.write(text)
    if qr and sys.stdout.isatty():
        _print_qr(text)


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List plain WireGuard clients by name.

    \b
    edgehub client list
    """
    with open_store() as store, store.read() as tx:
        found = [(client, tx.device(client.gateway)) for client in tx.clients()]
    if as_json:
        print_json(
            [
                {
                    "name": client.name,
                    "gateway": gateway.name if gateway else None,
                    "addresses": clients.addresses(client),
                    "public_key": b64encode(client.key).decode(),
                    "created": client.created_s,
                }
                for client, gateway in found
            ]
        )
        return
    print_table(
        ("NAME", "GATEWAY", "ADDRESS", "PUBLIC KEY", "MADE"),
        (
            (
                client.name,
                gateway.name or gateway.id if gateway else "-",
                clients.addresses(client)[0],
                b64encode(client.key).decode(),
                ago(client.created_s),
            )
            for client, gateway in found
        ),
        empty="there are no plain clients. `edgehub client add NAME --gateway DEVICE --endpoint HOST:PORT` makes one",
    )


@app.command()
def remove(name: Annotated[str, typer.Argument(metavar="NAME", help="As `edgehub client list` shows it.")]) -> None:
    """Cut a plain client off: its gateway forgets its key.

    \b
    edgehub client remove phone-anna
    """
    with doing() as do:
        operations.remove_client(do, name)
    print_error(f"{name} is removed. Its configuration is of no use any more")


def _print_qr(text: str) -> None:
    try:
        import segno
    except ModuleNotFoundError:
        print_error("no QR code: segno is not installed. Run: pip install 'edgemesh[hub]'")
        return
    segno.make(text, error="l").terminal(compact=True)
