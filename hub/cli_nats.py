"""`edgehub nats`: a cluster of NATS servers in the place of the broker (docs/scale.md)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeagent import crypto as providers
from hub.core.model import HubError
from hub.core.nats import ACCOUNT_BYTES_MAX, Authority
from hub.opening import open_store
from hub.output import print_json

if TYPE_CHECKING:
    from hub.setup import External

Nodes = Annotated[
    list[str] | None,
    typer.Option(
        "--nats",
        help="The external brokers are NATS servers: HOST[:4222] of one's port for clients. Repeatable.",
    ),
]

app = typer.Typer(help="NATS servers as brokers: what their configuration needs.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Commands about NATS."""


@app.command()
def config(
    accounts: Annotated[
        Path, typer.Option("--accounts", help="Where the node keeps accounts; it must be able to write there.")
    ] = Path("/var/lib/nats/accounts"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print what each NATS server is to include in its configuration. It is the same for all, lasts, and is no secret.

    \b
    edgehub nats config >/etc/nats/edgehub.conf      and in nats-server.conf: include edgehub.conf
    """
    with open_store() as store, store.read() as tx:
        network = tx.network()
    if not network.nats:
        raise HubError("this network's broker is no NATS server. `edgehub init --nats` makes one whose brokers are")
    authority = Authority(providers.load(), network)
    if as_json:
        print_json(
            {
                "operator": authority.operator_claims(),
                "system_account": authority.system,
                "resolver": {"type": "full", "dir": str(accounts), "allow_delete": False, "interval": "10s"},
                "resolver_preload": {
                    authority.system: authority.system_claims(),
                    authority.account: authority.account_claims(),
                },
                "max_payload": ACCOUNT_BYTES_MAX,
            }
        )
        return
    typer.echo(text(authority, accounts))


def text(authority: Authority, accounts: Path) -> str:
    """NATS' own form."""
    return f"""\
# Of `edgehub nats config`. Whom the hub of this network admits, this server admits.
operator: "{authority.operator_claims()}"
system_account: "{authority.system}"
resolver {{ type: full, dir: "{accounts}", allow_delete: false, interval: "10s" }}
resolver_preload {{
  {authority.system}: "{authority.system_claims()}"
  {authority.account}: "{authority.account_claims()}"
}}
max_payload: {ACCOUNT_BYTES_MAX}"""


def nodes(nats: list[str], brokers: list[str] | None, ca: Path | None) -> External:
    """What `edgehub init` was told. Raises HubError."""
    from hub.setup import External

    if not brokers or ca is None:
        raise HubError(
            "--nats: where devices connect, and by which CA's certificates, is needed too. "
            "Add --external-broker HOST:PORT for each server, and --broker-ca FILE"
        )
    return External(tuple(brokers), ca, nats=tuple(nats))
