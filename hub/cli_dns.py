"""`edgehub dns`: what devices' name servers say beside hosts."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from hub import operations
from hub.core import naming
from hub.core.model import HubError
from hub.opening import doing, open_store
from hub.output import print_error, print_json, print_pairs, print_table

app = typer.Typer(
    help="Names: search domains, split domains, resolvers, records. Each device answers for them itself.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
record = typer.Typer(
    help="Records of the network's domain beside its devices: A, AAAA, CNAME, TXT.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(record, name="record")

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="As in db or db.site-1; @ is the domain itself.")]


@app.command()
def show(as_json: Json = False) -> None:
    """Show all settings of names.

    \b
    edgehub dns show
    edgehub dns show --json
    """
    with open_store() as store, store.read() as tx:
        found = naming.as_json(tx)
    if as_json:
        print_json(found)
        return
    print_pairs(
        [
            ("domain", found["domain"]),
            ("search", " ".join(found["search"]) or "none"),
            *((f"split {domain}", " ".join(to)) for domain, to in found["split"].items()),
            ("other names", " ".join(found["resolvers"]) or "the resolvers that each device's host has"),
            ("records", str(len(found["records"]))),
        ]
    )
    if found["records"]:
        sys.stdout.write("\n")
        rows = [(each["name"], each["type"], each["value"]) for each in found["records"]]
        print_table(("NAME", "TYPE", "VALUE"), rows, empty="")


@app.command("set-split")
def set_split(
    domain: Annotated[str, typer.Argument(help="Names of it, and below it.")],
    resolvers: Annotated[list[str], typer.Argument(metavar="RESOLVER…", help="IP, or IP:PORT, in order.")],
) -> None:
    """Have names of a domain answered by resolvers of its own. They may be in the mesh, or behind a device that routes.

    \b
    edgehub dns set-split corp.example 10.20.0.53 10.20.1.53
    edgehub dns set-split 20.10.in-addr.arpa 10.20.0.53
    edgehub dns set-split plant.example [fd00:20::53]:5353
    """
    with doing() as do:
        operations.set_split(do, domain, resolvers)
    _told()


@app.command("unset-split")
def unset_split(domain: Annotated[str, typer.Argument(help="As `edgehub dns show` shows it.")]) -> None:
    """Take back what `set-split` did for a domain.

    \b
    edgehub dns unset-split corp.example
    """
    with doing() as do:
        operations.unset_split(do, domain)
    _told()


@app.command()
def search(
    domains: Annotated[list[str] | None, typer.Argument(metavar="[DOMAIN…]", help="In order.")] = None,
    none: Annotated[bool, typer.Option("--none", help="No search domain: hosts only by their full names.")] = False,
    default: Annotated[bool, typer.Option("--default", help="The network's own domain alone, as at first.")] = False,
) -> None:
    """Set the domains that are tried behind a name without dots, or print them.

    \b
    edgehub dns search
    edgehub dns search mesh.internal corp.example
    edgehub dns search --default
    """
    if bool(domains) + none + default > 1:
        raise HubError("search: give domains, --none or --default. Use one of them")
    if not (domains or none or default):
        with open_store() as store, store.read() as tx:
            sys.stdout.write("".join(f"{domain}\n" for domain in naming.as_json(tx)["search"]))
        return
    with doing() as do:
        operations.set_search(do, None if default else domains or [])
    _told()


@app.command()
def resolvers(
    addresses: Annotated[list[str] | None, typer.Argument(metavar="[RESOLVER…]", help="IP, or IP:PORT.")] = None,
    none: Annotated[bool, typer.Option("--none", help="Leave other names to what each device's host has.")] = False,
) -> None:
    """Set who answers, on all devices, for all names that nothing else is set for; or print it.

    \b
    edgehub dns resolvers 9.9.9.9 149.112.112.112
    edgehub dns resolvers --none
    """
    if addresses and none:
        raise HubError("resolvers: give addresses or --none. Use one of them")
    if not addresses and not none:
        with open_store() as store, store.read() as tx:
            sys.stdout.write("".join(f"{each}\n" for each in naming.as_json(tx)["resolvers"]))
        return
    with doing() as do:
        operations.set_resolvers(do, addresses or [])
    _told()


@record.command("add")
def record_add(
    name: Name,
    kind: Annotated[str, typer.Argument(metavar="TYPE", help="A, AAAA, CNAME or TXT.")],
    value: Annotated[str, typer.Argument(help="An address, a name of this network, or text.")],
) -> None:
    """Add a record. Its name must be no device's.

    \b
    edgehub dns record add printer A 192.168.7.20
    edgehub dns record add db CNAME db-2
    edgehub dns record add @ TXT 'run by plant IT'
    """
    with doing() as do:
        made = operations.add_record(do, name, kind, value)
        domain = do.tx.network().domain
    print_error(f"{naming.full_name(made.name, domain)} {made.kind} {naming.shown_value(made, domain)}: added")
    _told()


@record.command("remove")
def record_remove(
    name: Name,
    kind: Annotated[str, typer.Argument(metavar="[TYPE]", help="Only records of this type.")] = "",
    value: Annotated[str, typer.Argument(metavar="[VALUE]", help="Only the one with this value.")] = "",
) -> None:
    """Remove the records of a name.

    \b
    edgehub dns record remove printer
    edgehub dns record remove printer A 192.168.7.20
    """
    with doing() as do:
        gone = operations.remove_record(do, name, kind, value)
    print_error(f"{len(gone)} record{'s' * (len(gone) != 1)} removed")
    _told()


def _told() -> None:
    print_error("devices hear of it with their next maps, which are being written")
