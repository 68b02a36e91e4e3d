"""`edgehub relays`: who passes packets on where no direct path is."""

from __future__ import annotations

import sys
from base64 import b64encode
from typing import Annotated, Any

import typer

from edgeagent import crypto as providers
from hub import operations
from hub.core import actions, relays
from hub.core.model import Device, HubError
from hub.opening import doing, open_store, wait_for_broker
from hub.output import ago, parse_duration, print_error, print_json, print_pairs, print_table

app = typer.Typer(
    help="Relays: invite, list, remove. Devices learn of them from their maps.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Name = Annotated[str, typer.Argument(metavar="ID", help="As `edgehub relays list` shows it.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def invite(
    region: Annotated[
        str, typer.Option(help="Where it is, one word: relays of one region forward to each other's members.")
    ],
    uses: Annotated[int, typer.Option(min=0, help="How many relays may join with it; 0 = any number.")] = 1,
    expires: Annotated[str, typer.Option(help="How long it works: 30m, 24h, 7d, 2w, or never.")] = "24h",
    as_json: Json = False,
) -> None:
    """Make a join token for relays and print it, alone, on standard output. It is shown once.

    \b
    edgehub relays invite --region fra > relay.token
    edgerelay serve --join-file relay.token        (on the relay)
    """
    try:
        seconds = 0 if expires == "never" else parse_duration(expires)
    except ValueError as error:
        raise HubError(f"--expires {error}, or never") from error
    with doing() as do:
        not_after = do.wall_s + seconds if seconds else 0
        token = operations.invite_relay(do, region=region, uses=uses, not_after=not_after)
    wait_for_broker(token.claim)
    text = token.encode(providers.load())
    if as_json:
        print_json({"token": text, "id": token.claim, "region": region, "uses": uses, "not_after": not_after})
    else:
        sys.stdout.write(text + "\n")


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List relays by region. MEMBERS is what a relay said last.

    \b
    edgehub relays list
    edgehub relays list --json
    """
    with open_store() as store, store.read() as tx:
        found = tx.relays()
    found.sort(key=lambda relay: (relays.region_of(relay), relay.name or ""))
    if as_json:
        print_json([_as_json(relay) for relay in found])
        return
    print_table(
        ("ID", "REGION", "STATE", "ADDRESS", "UDP", "MEMBERS", "VERSION", "SEEN"),
        (
            (
                relay.name or "-",
                relays.region_of(relay),
                _state(relay),
                " ".join(relays.fields_of(relay).get("h", ())) or "-",
                str(relays.fields_of(relay).get("u", 0) or "-"),
                str(relay.members) if relay.relay else "-",
                relay.version or "-",
                ago(relay.last_seen_s),
            )
            for relay in found
        ),
        empty="there are no relays. `edgehub relays invite --region REGION` prints what a relay needs to join",
    )


@app.command()
def show(relay: Name, as_json: Json = False) -> None:
    """Show all about one relay.

    \b
    edgehub relays show fra-1
    """
    with open_store() as store, store.read() as tx:
        found = actions.find_relay(tx, relay)
    if as_json:
        print_json(_as_json(found))
        return
    fields = relays.fields_of(found)
    pairs = [
        ("id", found.name or "-"),
        ("device id", found.id),
        ("region", relays.region_of(found)),
        ("state", _state(found)),
        ("seen", ago(found.last_seen_s)),
        ("joined", f"{ago(found.created_s)}, with {found.claim}"),
        ("version", found.version or "-"),
    ]
    if fields:
        pairs += [
            ("address", ", ".join(fields["h"])),
            ("UDP port", str(fields["u"] or "none")),
            ("STUN port", str(fields["s"] or "none")),
            ("relay key", _base64(fields["k"])),
            ("certificate", f"SHA-256 {fields['pin'].hex()}"),
            ("members", str(found.members)),
        ]
    pairs += sorted(found.facts.items())
    print_pairs(pairs)


@app.command()
def remove(relay: Name, yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False) -> None:
    """Take a relay out: maps name it no longer, its session with the hub ends, and it is told to let its members go.

    \b
    edgehub relays remove fra-1
    """
    if not yes and sys.stdin.isatty() and not typer.confirm(f"Remove {relay}?", err=True):
        raise typer.Exit(1)
    with doing() as do:
        found = actions.find_relay(do.tx, relay)
        operations.remove(do, found)
    wait_for_broker(found.id)
    print_error(f"{found.name or found.id} is removed. It comes back only with a new token")


def _state(relay: Device) -> str:
    if not relay.relay:
        return "never"
    return "online" if relay.online else "offline"


def _as_json(relay: Device) -> dict[str, Any]:
    fields = relays.fields_of(relay)
    return {
        "id": relay.name,
        "device_id": relay.id,
        "region": relays.region_of(relay),
        "state": _state(relay),
        "addresses": fields.get("h", []),
        "udp_port": fields.get("u", 0),
        "stun_port": fields.get("s", 0),
        "key": _base64(fields["k"]) if fields else None,
        "certificate_sha256": fields["pin"].hex() if fields else None,
        "members": relay.members,
        "version": relay.version,
        "last_seen": relay.last_seen_s,
        "created": relay.created_s,
        "claim": relay.claim,
        "facts": relay.facts,
    }


def _base64(key: bytes) -> str:
    return b64encode(key).decode()
