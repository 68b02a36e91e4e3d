"""`edgehub token`: what devices join with."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any

import typer

from edgeagent import crypto as providers
from hub import operations
from hub.core.model import HubError, Token
from hub.opening import doing, open_store, wait_for_broker
from hub.output import ago, parse_duration, print_error, print_json, print_table

app = typer.Typer(
    help="Join tokens: one line that takes a device into the network.", no_args_is_help=True, rich_markup_mode=None
)


@app.command()
def create(
    uses: Annotated[int, typer.Option(min=0, help="How many devices may join with it; 0 = any number.")] = 1,
    expires: Annotated[str, typer.Option(help="How long it works: 30m, 24h, 7d, 2w, or never.")] = "24h",
    tag: Annotated[list[str] | None, typer.Option(help="A tag for the devices, as tag:camera. Repeatable.")] = None,
    needs_approval: Annotated[bool, typer.Option("--needs-approval", help="A person must let each device in.")] = False,
    user: Annotated[str, typer.Option(help="Whose the devices are, for the policy: a login.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make a token and print it, alone, on standard output. It is shown once: the hub keeps only a hash.

    \b
    edgehub token create
    edgehub token create --uses 50 --expires 7d --tag tag:camera > cameras.token
    edgehub token create --needs-approval --uses 0 --expires never
    edgehub token create --user ada@example.org
    """
    with doing() as do:
        not_after = 0 if expires == "never" else do.wall_s + _seconds(expires)
        token = operations.create_token(
            do, uses=uses, not_after=not_after, tags=tuple(tag or ()), needs_approval=needs_approval, user=user
        )
    wait_for_broker(token.claim)
    text = token.encode(providers.load())
    if as_json:
        print_json({"token": text, "id": token.claim, "uses": uses, "not_after": not_after, "tags": token.tags})
    else:
        sys.stdout.write(text + "\n")


@app.command("list")
def list_(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List tokens, the newest first. Secrets are not shown: nobody knows them any more.

    \b
    edgehub token list
    """
    found: list[Token] = []
    with open_store() as store, store.read() as tx:
        while page := tx.tokens(after=found[-1].claim if found else "", limit=500):
            found += page
    found.sort(key=lambda token: -token.created_seq)
    if as_json:
        print_json([_as_json(token) for token in found])
        return
    print_table(
        ("ID", "STATE", "USED", "EXPIRES", "MADE", "APPROVAL", "FOR", "TAGS"),
        (
            (
                token.claim,
                token.refusal(int(time.time())) or "good",
                f"{token.used} of {token.uses or 'any'}",
                ago(token.not_after),
                ago(token.created_s),
                "needed" if token.needs_approval else "-",
                token.kind.value,
                " ".join(token.tags) or "-",
            )
            for token in found
        ),
        empty="there are no tokens. `edgehub token create` makes one",
    )


@app.command()
def revoke(token_id: Annotated[str, typer.Argument(metavar="ID", help="As `edgehub token list` shows it.")]) -> None:
    """Stop a token: nobody new can join with it. Devices that did, stay.

    \b
    edgehub token revoke c-abcdefghijklmnop
    """
    with doing() as do:
        token = operations.revoke_token(do, token_id)
    print_error(f"token {token.claim} revoked; {token.used} devices joined with it and stay")


def _seconds(text: str) -> int:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise HubError(f"--expires {error}, or never") from error


def _as_json(token: Token) -> dict[str, Any]:
    return {
        "id": token.claim,
        "for": token.kind.value,
        "state": token.refusal(int(time.time())) or "good",
        "uses": token.uses,
        "used": token.used,
        "not_after": token.not_after,
        "created": token.created_s,
        "needs_approval": token.needs_approval,
        "tags": list(token.tags),
        "user": token.user,
    }
