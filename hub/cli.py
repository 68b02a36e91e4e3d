"""`edgehub`: the operator's command line. Reads options, calls what does the work, prints."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tempfile
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Annotated

try:
    import typer
    from sqlalchemy.exc import SQLAlchemyError
except ModuleNotFoundError as missing:
    raise SystemExit(f"edgehub: {missing.name} is not installed. Run: pip install 'edgemesh[hub]'") from None

from edgeagent.crypto import CryptoUnavailable
from hub import (
    cli_audit,
    cli_clients,
    cli_commands,
    cli_database,
    cli_devices,
    cli_dns,
    cli_lock_files,
    cli_nats,
    cli_oidc,
    cli_policy,
    cli_relays,
    cli_rollouts,
    cli_routes,
    cli_tokens,
    cli_updates,
    cli_users,
    cli_web,
    cli_webhooks,
)
from hub.core.model import DeviceState, HubError
from hub.core.people import check_login
from hub.database import demand_none, read_url
from hub.opening import current_state, open_store, use_state
from hub.output import FAILED, NOT_RUNNING, OK, ago, print_error, print_json, print_pairs
from hub.state import DEFAULT, VARIABLE, State
from hub.store import lead, websettings
from hub.store.lead import Member
from hub.store.postgres import PostgresStore

app = typer.Typer(
    help="The hub of a private WireGuard network: admits devices, names them, and tells them about each other.",
    epilog="Begin with:  edgehub init --address hub.example.org,  edgehub serve,  edgehub token create",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
)
app.add_typer(cli_tokens.app, name="token")
app.add_typer(cli_devices.app, name="devices")
app.add_typer(cli_relays.app, name="relays")
app.add_typer(cli_users.app, name="users")
app.add_typer(cli_oidc.app, name="oidc")
app.add_typer(cli_audit.app, name="audit")
app.add_typer(cli_web.app, name="web")
app.add_typer(cli_policy.app, name="policy")
app.add_typer(cli_dns.app, name="dns")
app.command()(cli_commands.command)
app.add_typer(cli_commands.app, name="commands")
app.command()(cli_commands.logs)
app.command()(cli_commands.watch)
app.add_typer(cli_routes.app, name="routes")
app.add_typer(cli_clients.app, name="client")
app.add_typer(cli_lock_files.app, name="lock")
app.add_typer(cli_updates.app, name="update")
app.add_typer(cli_rollouts.app, name="rollout")
app.add_typer(cli_nats.app, name="nats")
app.add_typer(cli_webhooks.app, name="webhooks")

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def main() -> None:
    """Entry point of `edgehub`. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not running."""
    try:
        app(args=_hoist(sys.argv[1:]), prog_name="edgehub")
    except (HubError, CryptoUnavailable) as error:
        print_error(str(error))
    except SQLAlchemyError as error:
        print_error(
            f"database: {getattr(error, 'orig', None) or error}. Is the disk full, or the file somebody else's?"
        )
    except PermissionError as error:
        print_error(f"{error.filename}: {error.strerror}. Run as the owner of the state directory")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read us has gone: say no more
    except OSError as error:
        print_error(f"{error.filename or 'system'}: {error.strerror}")
    raise SystemExit(FAILED)


@app.callback()
def options(
    state_dir: Annotated[
        Path, typer.Option("--state-dir", envvar=VARIABLE, help="Where the hub keeps everything.", show_default=True)
    ] = DEFAULT,
) -> None:
    use_state(State(state_dir))


@app.command()
def init(
    address: Annotated[
        list[str] | None,
        typer.Option(help="Name or IP at which devices reach the broker, `:port` if it differs. Repeatable."),
    ] = None,
    name: Annotated[str, typer.Option(help="Domain of the network: devices are HOST.NAME.")] = "mesh.internal",
    listen: Annotated[
        str, typer.Option(help="Where the broker listens: PORT, or ADDRESS:PORT. Without it 8883.", show_default=False)
    ] = "",
    external_broker: Annotated[
        list[str] | None,
        typer.Option(
            help="HOST:PORT of a broker that somebody else runs; none is started then. Repeatable with --nats."
        ),
    ] = None,
    nats: cli_nats.Nodes = None,
    broker_ca: Annotated[Path | None, typer.Option(help="Its CA certificate (PEM).")] = None,
    broker_user: Annotated[str, typer.Option(help="The hub's user there. Without it hub.", show_default=False)] = "",
    broker_password_file: Annotated[Path | None, typer.Option(help="A file with that user's password.")] = None,
    admin: Annotated[str, typer.Option(help="Login of the first owner, who signs in to the dashboard.")] = "admin",
    admin_password_file: Annotated[
        Path | None, typer.Option(help="A file with the owner's password; - is standard input.")
    ] = None,
    database_file: cli_database.DatabaseFile = None,
) -> None:
    """Make a new network here: keys, certificates, database, and the first owner. Nothing that exists is changed.

    The owner's password is asked for on a terminal; else one is made and printed, once.

    \b
    edgehub init --address hub.example.org
    edgehub init --name fleet.internal --listen 443 --address 203.0.113.7 --address hub.example.org
    edgehub init --address hub.example.org --database-file url     in PostgreSQL, instead of a file here
    """
    from hub import setup  # certificates and migrations take long to load

    external = cli_nats.external(
        nats or [], external_broker or [], broker_ca, broker_user, broker_password_file, listen
    )
    state = current_state()
    demand_none(state)  # before anybody thinks of a password
    url = read_url(database_file) if database_file is not None else ""
    password, made = cli_users.choose_password(check_login(admin), admin_password_file)
    owner = setup.Owner(admin, password)
    network = setup.initialise(
        state,
        domain=name,
        listen=listen or "8883",
        addresses=address or [],
        external=external,
        owner=owner,
        database_url=url,
    )
    print_pairs(
        [
            ("network", network.id),
            ("domain", network.domain),
            ("broker", ", ".join(network.hosts)),
            ("owner", admin),
            *([("password", f"{password}   (shown this once)")] if made else []),
            ("dashboard", f"http://{websettings.DEFAULT_LISTEN}  (`edgehub web set` changes where)"),
            ("state", str(state.directory)),
            ("next", "edgehub serve          (or: systemctl enable --now edgehub)"),
            ("then", "edgehub token create   (prints what a device needs to join)"),
        ]
    )


@app.command()
def serve(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more.")] = False,
    no_web: Annotated[bool, typer.Option("--no-web", help="Without dashboard, API and metrics.")] = False,
) -> None:
    """Run the hub, its broker and its dashboard until Ctrl-C or SIGTERM.

    \b
    edgehub serve
    edgehub --state-dir ./hub serve
    """
    from hub.serve import serve as run  # the broker's client is not loaded for the other commands

    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr
    )
    logging.getLogger("alembic").setLevel(logging.WARNING)
    run(current_state(), web=not no_web)


@app.command()
def status(as_json: Json = False) -> None:
    """Show how the hub is. Ends with code 3 when it does not run.

    \b
    edgehub status
    edgehub status --json
    """
    state = current_state()
    with open_store() as store, store.read() as tx:
        network, counts, online = tx.network(), tx.device_counts(), tx.online_count()
        waiting, jobs, tokens = tx.outgoing_depth(), tx.job_count(), tx.token_count()
        relays, policy = tx.relays(), tx.policy_version()
        members = lead.members(tx.connection) if isinstance(store, PostgresStore) else []
    running = state.is_running()
    said = state.read_status() if running else {}
    if as_json:
        print_json(
            {
                "network": network.id,
                "domain": network.domain,
                "hosts": list(network.hosts),
                "epoch": network.epoch,
                "running": running,
                "devices": {kind.value: counts.get(kind, 0) for kind in DeviceState},
                "online": online,
                "relays": {"joined": len(relays), "online": sum(relay.online for relay in relays)},
                "tokens": tokens,
                "policy": policy,
                "waiting": {"outgoing": waiting, "jobs": jobs},
                "process": said,
                "hubs": [asdict(member) for member in members],
            }
        )
    else:
        devices = ", ".join(f"{counts[kind]} {kind.value}" for kind in DeviceState if counts.get(kind))
        link = "connected" if said.get("connected") else "not connected"
        broker = f"{said.get('broker')}, {link}, process {said.get('broker_pid') or '-'}" if running else "-"
        if said.get("role") == "standby":
            broker = "the leader's"
        pairs = [
            ("network", f"{network.id} ({network.domain})"),
            ("address", ", ".join(network.hosts)),
            ("hub", f"process {said.get('pid')}, since {ago(said.get('since', 0))}" if running else "not running"),
            *((("leads" if member.leads else "waits"), _member_line(member)) for member in members),
            ("broker", broker),
            ("devices", f"{devices or 'none'}; {online} online"),
            ("relays", f"{len(relays)}; {sum(relay.online for relay in relays)} online"),
            ("tokens", str(tokens)),
            ("policy", f"version {policy}" if policy else "none: every device may reach every other"),
            ("waiting", f"{waiting} messages to the broker, {jobs} jobs"),
        ]
        drops = said.get("drops", {})
        if drops:
            pairs.append(("dropped", ", ".join(f"{reason} {count}" for reason, count in drops.items())))
        print_pairs(pairs)
        if not running:
            print_error("the hub is not running. Start it with `edgehub serve`, or `systemctl start edgehub`")
    raise typer.Exit(OK if running else NOT_RUNNING)


def _member_line(member: Member) -> str:
    host, _, pid = member.name.rpartition(" ")
    return f"{host}, process {pid}, since {ago(member.since_s)}"


@app.command()
def backup(file: Annotated[str, typer.Argument(help="A new file, or - for standard output.")]) -> None:
    """Write everything the hub knows into one file, its keys too: keep it as safe as the hub. The hub may run.

    \b
    edgehub backup /mnt/safe/hub-monday.db
    edgehub backup - | age -r age1… > hub.age
    """
    from hub import setup

    if file != "-":
        setup.backup(current_state(), Path(file))
        print_error(f"backup written to {file}. It holds the network's keys: whoever has it is the hub")
        return
    if sys.stdout.isatty():
        raise HubError("backup -: standard output is a terminal. Send it to a file or a program")
    with tempfile.TemporaryDirectory(dir=current_state().directory) as directory:
        copy = Path(directory, "backup")
        setup.backup(current_state(), copy)
        with copy.open("rb") as source:
            shutil.copyfileobj(source, sys.stdout.buffer)


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(help="What `edgehub backup` wrote.")],
    force: Annotated[bool, typer.Option("--force", help="Replace the hub that is here.")] = False,
) -> None:
    """Bring a hub back from a backup. Devices that joined after it was made must join again.

    \b
    edgehub restore /mnt/safe/hub-monday.db
    systemctl start edgehub
    """
    from hub import setup

    epoch = setup.restore(current_state(), file, force=force)
    print_error(f"restored, epoch {epoch}. Start it with `edgehub serve`; devices get new maps and feed keys")


app.command()(cli_database.export)
app.command("import")(cli_database.import_)
app.command()(cli_database.attach)


@app.command()
def version() -> None:
    """Print the version."""
    try:
        sys.stdout.write(f"edgehub {package_version('edgemesh')}\n")
    except PackageNotFoundError:
        sys.stdout.write("edgehub (not installed)\n")


def _hoist(arguments: list[str]) -> list[str]:
    """--state-dir may stand anywhere: put it first, where its command wants it."""
    for index, argument in enumerate(arguments):
        if argument == "--":
            break
        if argument == "--state-dir":
            return [*arguments[index : index + 2], *arguments[:index], *arguments[index + 2 :]]
        if argument.startswith("--state-dir="):
            return [argument, *arguments[:index], *arguments[index + 1 :]]
    return arguments
