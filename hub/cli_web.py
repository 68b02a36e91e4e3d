"""`edgehub web`: where the dashboard and the API listen."""

from __future__ import annotations

from dataclasses import asdict, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated

import typer

from hub.core import audit, web
from hub.core.model import HubError
from hub.opening import actor, change, current_state, open_store
from hub.output import print_error, print_json, print_pairs
from hub.store import websettings

PROXIES_MAX = 8

app = typer.Typer(help="The dashboard and API: where they listen.", no_args_is_help=True, rich_markup_mode=None)


@app.command("set")
def set_(
    listen: Annotated[str | None, typer.Option(help="ADDRESS:PORT to listen on.")] = None,
    url: Annotated[str | None, typer.Option(help="Address in browsers, as https://hub.example.org.")] = None,
    cert: Annotated[str | None, typer.Option(help="Certificate chain (PEM) to speak TLS with; '' for none.")] = None,
    key: Annotated[str | None, typer.Option(help="Its private key (PEM); '' for none.")] = None,
    proxy: Annotated[
        list[str] | None,
        typer.Option(help="Address of a reverse proxy whose X-Forwarded-For is believed; '' for none. Repeatable."),
    ] = None,
    private_hooks: Annotated[
        bool | None,
        typer.Option("--private-hooks/--no-private-hooks", help="Whether web hooks may go to private addresses."),
    ] = None,
) -> None:
    """Change what is given, leave the rest. The running dashboard is started anew with it.

    \b
    edgehub web set --url https://hub.example.org --proxy 127.0.0.1       (behind a reverse proxy here)
    edgehub web set --listen 0.0.0.0:443 --url https://hub.example.org --cert chain.pem --key key.pem
    """
    changes: dict[str, object] = {}
    if listen is not None:
        changes["listen"] = web.check_listen(listen)
    if url is not None:
        changes["url"] = web.check_url(url) if url else ""
    if cert is not None:
        changes["cert"] = _file(cert)
    if key is not None:
        changes["key"] = _file(key)
    if proxy is not None:
        changes["proxies"] = _addresses(proxy)
    if private_hooks is not None:
        changes["private_hooks"] = private_hooks
    if not changes:
        raise HubError("nothing to change: give at least one option. `edgehub web show` shows what there is")
    with change() as (tx, _, wall_s):
        new = replace(websettings.load(tx.connection), **changes)  # type: ignore[arg-type]
        if bool(new.cert) is not bool(new.key):
            raise HubError("--cert and --key: both are needed for TLS, or none")
        websettings.save(tx.connection, new)
        said = {name: value if isinstance(value, str) else str(value) for name, value in changes.items()}
        audit.record(tx, wall_s, actor(), "settings.web", "", said)
        tx.note("settings")
    if not new.url and not new.listen.startswith(("127.", "[::1]", "localhost:")):
        print_error("it answers only as localhost until it knows its address. Set --url https://HOST")


@app.command()
def show(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show where it listens, and whether it runs.

    \b
    edgehub web show
    """
    with open_store() as store, store.read() as tx:
        found = websettings.load(tx.connection)
    said = current_state().read_status() if current_state().is_running() else {}
    if as_json:
        print_json({**asdict(found), "pid": said.get("web_pid")})
        return
    print_pairs(
        [
            ("listen", found.listen),
            ("address", found.url or f"http://{found.listen}"),
            ("TLS", f"{found.cert}, {found.key}" if found.cert else "none: for localhost or a reverse proxy"),
            ("proxies", ", ".join(found.proxies) or "none"),
            ("web hooks", "also to private addresses" if found.private_hooks else "not to private addresses"),
            ("process", str(said.get("web_pid") or "none")),
        ]
    )


def _file(text: str) -> str:
    if not text:
        return ""
    path = Path(text).absolute()
    if not path.is_file():
        raise HubError(f"{path}: there is no such file")
    return str(path)


def _addresses(texts: list[str]) -> tuple[str, ...]:
    addresses = [text for text in texts if text]
    for text in addresses:
        try:
            ip_address(text)
        except ValueError:
            raise HubError(f"--proxy {text}: an IP address expected, as 127.0.0.1") from None
    if len(addresses) > PROXIES_MAX:
        raise HubError(f"{len(addresses)} proxies: at most {PROXIES_MAX} expected")
    return tuple(addresses)
