"""`edgehub nats`: a cluster of NATS servers in the place of the broker (docs/scale.md)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeagent import crypto as providers
from edgeagent.proto.names import is_host_port
from hub.core.model import HubError
from hub.core.nats import ACCOUNT_BYTES_MAX, Authority
from hub.opening import open_store
from hub.output import print_json
from hub.store.meta import load_site

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


@app.command()
def certificate(
    names: Annotated[list[str], typer.Argument(help="Host names and addresses of one server.")],
    out: Annotated[Path, typer.Option(help="A directory that is there; nothing in it is overwritten.")],
) -> None:
    """Make a server's key and certificate, for devices and for the other servers: server.key, server.pem and ca.pem.

    \b
    edgehub nats certificate n1.example.org --out n1
    """
    from hub.io import pki

    with open_store() as store, store.read() as tx:
        network, site = tx.network(), load_site(tx.connection)
    if not network.nats or not site.ca_key_pem:
        raise HubError("this network's CA is not here: whoever made the file of --broker-ca makes certificates")
    for name in names:
        if not is_host_port(f"{name}:1"):
            raise HubError(f"name {name!r}: a host name, an IPv4 or an [IPv6] address expected")
    key, chain = pki.make_server(site.ca_key_pem, network.ca_der, tuple(name.strip("[]") for name in names), peer=True)
    for file, content in (("server.key", key), ("server.pem", chain), ("ca.pem", pki.der_to_pem(network.ca_der))):
        try:
            descriptor = os.open(out / file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        except FileExistsError:
            raise HubError(
                f"{out / file}: it exists, and nothing is overwritten. Take it away, or choose another --out"
            ) from None
        with open(descriptor, "w", encoding="utf-8") as target:
            target.write(content)
    typer.echo(f"{out / 'server.key'}: a secret of this server's alone")


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


def external(
    nats: list[str], brokers: list[str], ca: Path | None, user: str, password_file: Path | None, listen: str
) -> External | None:
    """What `edgehub init` was told of brokers; None where it runs one itself. "" and [] are what was not said.

    Raises HubError, also for what would have no effect: whoever says it takes something for true that is not.
    """
    from hub.setup import External

    if nats and not brokers:
        raise HubError("--nats: where devices connect is needed too. Add --external-broker HOST:PORT for each server")
    login = {"--broker-user": user, "--broker-password-file": password_file}
    if nats:
        _refuse(login, "the hub has no account at a NATS server, it signs itself what it may do. Leave it out")
    if brokers:
        here = {"--listen": listen}
        _refuse(here, "no broker is started here. Leave it out; ports belong into --external-broker and --address")
    else:
        there = {"--broker-ca": ca, **login}
        _refuse(there, "it is about a broker that somebody else runs. Add --external-broker HOST:PORT, or leave it out")
    if not brokers:
        return None
    if nats:
        return External(tuple(brokers), ca, nats=tuple(nats))
    if ca is None or password_file is None or len(brokers) > 1:
        raise HubError(
            "--external-broker: its certificate and the hub's password are needed too, and but for NATS it is one. "
            "Add --broker-ca FILE --broker-password-file FILE"
        )
    return External((brokers[0],), ca, user or "hub", password_file)


def _refuse(options: Mapping[str, object], why: str) -> None:
    said = [option for option, value in options.items() if value]
    if said:
        raise HubError(f"{', '.join(said)}: {why}")
