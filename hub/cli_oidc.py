"""`edgehub oidc`: single sign-on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from hub import operations
from hub.core.model import HubError
from hub.core.oidc import Oidc, keep_secret
from hub.opening import doing, open_store
from hub.output import print_error, print_json, print_pairs
from hub.store import oidcsettings, websettings

app = typer.Typer(help="Single sign-on by OpenID Connect.", no_args_is_help=True, rich_markup_mode=None)


@app.command("set")
def set_(
    issuer: Annotated[
        str | None, typer.Option(help="The provider, as it names itself: https://id.example.org.")
    ] = None,
    client_id: Annotated[str | None, typer.Option(help="What the provider knows this hub as.")] = None,
    client_secret_file: Annotated[Path | None, typer.Option(help="A file with the client's secret.")] = None,
    label: Annotated[str | None, typer.Option(help="What the button says.")] = None,
    domain: Annotated[
        list[str] | None, typer.Option(help="Only verified addresses of this domain; '' for all. Repeatable.")
    ] = None,
    groups_claim: Annotated[str | None, typer.Option(help="The claim that lists a user's groups.")] = None,
    group: Annotated[
        list[str] | None,
        typer.Option(help="GROUP=ROLE: what members of a group are here; '' for no groups. Repeatable."),
    ] = None,
    default_role: Annotated[
        str | None, typer.Option(help="What those in no such group are; '' lets them in only when they are users.")
    ] = None,
) -> None:
    """Change what is given, leave the rest. The provider must know this hub's redirect address, which this prints.

    \b
    edgehub oidc set --issuer https://id.example.org --client-id edgehub --client-secret-file secret
    edgehub oidc set --domain example.org --group fleet-admins=admin --group fleet=operator --default-role viewer
    """
    changes: dict[str, object] = {}
    if issuer is not None:
        changes["issuer"] = issuer
    if client_id is not None:
        changes["client_id"] = client_id
    if client_secret_file is not None:
        try:
            changes["client_secret"] = client_secret_file.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise HubError(f"{client_secret_file}: cannot be read ({error.strerror})") from error
    if label is not None:
        changes["label"] = label[:40]
    if domain is not None:
        changes["domains"] = tuple(text.lower() for text in domain if text)
    if groups_claim is not None:
        changes["groups_claim"] = groups_claim
    if group is not None:
        changes["roles"] = dict(_pair(text) for text in group if text)
    if default_role is not None:
        changes["default_role"] = default_role
    if not changes:
        raise HubError("nothing to change: give at least one option. `edgehub oidc show` shows what there is")
    with doing() as do:
        found = oidcsettings.load(do.tx.connection)
        new: Oidc = replace(found, **{"client_secret": "", **changes})  # type: ignore[arg-type]
        new = keep_secret(new, found)
        operations.set_oidc(do, new)
        url = websettings.load(do.tx.connection).url or f"http://{websettings.DEFAULT_LISTEN}"
    print_error(f"redirect address for the provider: {url}/login/oidc/callback")


@app.command()
def off() -> None:
    """Let nobody sign in this way any more. Users stay; sessions too: `edgehub users disable` ends them.

    \b
    edgehub oidc off
    """
    with doing() as do:
        operations.set_oidc(do, Oidc())


@app.command()
def show(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show the settings, without the secret.

    \b
    edgehub oidc show
    """
    with open_store() as store, store.read() as tx:
        found = oidcsettings.load(tx.connection)
    if as_json:
        print_json(
            {
                "issuer": found.issuer,
                "client_id": found.client_id,
                "label": found.label,
                "domains": list(found.domains),
                "groups_claim": found.groups_claim,
                "roles": found.roles,
                "default_role": found.default_role,
            }
        )
        return
    print_pairs(
        [
            ("issuer", found.issuer or "off"),
            ("client", found.client_id or "-"),
            ("button", found.label),
            ("domains", " ".join(found.domains) or "all"),
            ("groups", ", ".join(f"{group} is {role}" for group, role in found.roles.items()) or "none"),
            ("others", found.default_role or "only those who are users already"),
        ]
    )


def _pair(text: str) -> tuple[str, str]:
    group, equals, role = text.rpartition("=")
    if not equals or not group:
        raise HubError(f"--group {text}: GROUP=ROLE expected, as fleet-admins=admin")
    return group, role
