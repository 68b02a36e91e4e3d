"""`edgehub devices`: who is in the network."""

from __future__ import annotations

import sys
import time
from base64 import b64encode
from collections.abc import Iterator
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address
from typing import Annotated, Any

import typer

from edgeagent import crypto
from hub import operations
from hub.core import actions, commands, lock, routes
from hub.core.model import Device, DeviceState, HubError, Kind
from hub.core.people import check_login
from hub.opening import doing, open_store, wait_for_broker
from hub.output import ago, parse_duration, print_error, print_json, print_pairs, print_table
from hub.store.sql import SqlTx

app = typer.Typer(help="Devices: list, approve, rename, expire, remove.", no_args_is_help=True, rich_markup_mode=None)

Name = Annotated[str, typer.Argument(metavar="DEVICE", help="Host name, address or id.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class Shown(StrEnum):
    """Which devices `list` shows."""

    PENDING = "pending"
    ACTIVE = "active"
    EXPIRED = "expired"
    REMOVED = "removed"


@app.command("list")
def list_(
    state: Annotated[Shown | None, typer.Option(help="Only those.")] = None,
    tag: Annotated[str, typer.Option(help="Only those with this tag.")] = "",
    as_json: Json = False,
) -> None:
    """List devices by name. Removed ones are shown only when asked for.

    \b
    edgehub devices list
    edgehub devices list --state pending
    edgehub devices list --tag tag:camera --json
    """
    wanted = DeviceState(state.value) if state is not None else None
    with open_store() as store, store.read() as tx:
        found = [
            device
            for device in _all(tx, wanted)
            if device.kind is Kind.DEVICE
            and (wanted or device.state is not DeviceState.REMOVED)
            and (not tag or tag in device.tags)
        ]
        unsigned = lock.unsigned(lock.LockView(crypto.load(), tx.network().id), tx, found, int(time.time()))
    found.sort(key=lambda device: (device.name or "", device.id))
    if as_json:
        print_json([{**_as_json(device), "unsigned": device.id in unsigned} for device in found])
        return
    print_table(
        ("NAME", "STATE", "ADDRESS", "SEEN", "VERSION", "TAGS", "ID"),
        (
            (
                device.name or "-",
                device.state.value
                + (" CLONED" if device.cloned_s else "")
                + (" UNSIGNED" if device.id in unsigned else ""),
                _v4(device) or "-",
                "online" if device.online else ago(device.last_seen_s),
                device.version or "-",
                " ".join(device.tags) or "-",
                device.id,
            )
            for device in found
        ),
        empty="there are no such devices. `edgehub token create` prints what a device needs to join",
    )


@app.command()
def show(device: Name, as_json: Json = False) -> None:
    """Show all about one device.

    \b
    edgehub devices show cam-3
    edgehub devices show 100.64.12.7 --json
    """
    with open_store() as store, store.read() as tx:
        found = actions.find_device(tx, device)
        keys = tx.node_keys(found.id)
        known = tx.acquaintances(found.id, limit=1_000)
        routed = routes.of_device(tx, found)
        sample = commands.telemetry(tx, found.id)
    modems = [] if sample is None else sample["modems"]
    if as_json:
        node_keys = [{"key": _base64(key.key), "not_after": key.not_after} for key in keys]
        print_json({**_as_json(found), "node_keys": node_keys, "known_by": known, "modems": modems})
        return
    pairs = [
        ("name", found.name or "-"),
        ("id", found.id),
        ("state", found.state.value),
        ("address", ", ".join(filter(None, (_v4(found), _v6(found)))) or "-"),
        ("tags", " ".join(found.tags) or "-"),
        ("seen", "online" if found.online else ago(found.last_seen_s)),
        ("joined", f"{ago(found.created_s)}, with {found.claim}"),
        ("admission", f"ends {ago(found.not_after)}"),
        ("version", found.version or "-"),
        *(("node key", f"{_base64(key.key)} until {ago(key.not_after)}") for key in keys),
        ("known by", f"{len(known)}{' or more' if len(known) == 1_000 else ''} devices"),
        *(("route", f"{each.prefix}, {each.state}") for each in routed),
        *((f"{name}", value) for name, value in sorted(found.facts.items())),
        *(
            (f"signal of {modem['uplink']}", f"{_signal(modem)}, {ago(sample['received'])}")
            for modem in modems
            if sample
        ),
    ]
    if found.cloned_s:
        pairs.append(("WARNING", f"two boards run under this identity (seen {ago(found.cloned_s)}): a copied card?"))
    print_pairs(pairs)


@app.command()
def approve(device: Name) -> None:
    """Let a waiting device in.

    \b
    edgehub devices list --state pending
    edgehub devices approve cam-3
    """
    with doing() as do:
        found = actions.find_device(do.tx, device)
        operations.approve(do, found)
    wait_for_broker(found.id)
    print_error(f"{found.name} is in, with address {_v4(found)}")


@app.command()
def rename(
    device: Name, name: Annotated[str, typer.Argument(metavar="NAME", help="The new host name: one label.")]
) -> None:
    """Give a device another host name. All who know it are told.

    \b
    edgehub devices rename cam-3 front-door
    """
    with doing() as do:
        found = actions.find_device(do.tx, device)
        old = found.name
        operations.rename(do, found, name)
    print_error(f"{old} is now {name}")


@app.command("tag")
def tag_(
    device: Name,
    tags: Annotated[
        list[str] | None, typer.Argument(metavar="TAG…", help="All its tags from now on; none: none.")
    ] = None,
) -> None:
    """Give a device other tags. All who know it are told.

    \b
    edgehub devices tag cam-3 tag:camera tag:outside
    """
    with doing() as do:
        found = actions.find_device(do.tx, device)
        operations.tag(do, found, tuple(tags or ()))
    print_error(f"{found.name or found.id}: {' '.join(found.tags) or 'no tags'}")


@app.command()
def assign(
    device: Name, login: Annotated[str, typer.Argument(metavar="LOGIN", help="Whose it is; '' for nobody's.")]
) -> None:
    """Say whose device it is: policy looks at that where it has no tags, and its user may rename and remove it.

    \b
    edgehub devices assign ada-laptop ada@example.org
    """
    with doing() as do:
        found = actions.find_device(do.tx, device)
        operations.assign(do, found, check_login(login) if login else "")
    print_error(f"{found.name or found.id} is {login or 'nobody'}'s")


@app.command()
def expire(
    device: Name,
    after: Annotated[str, typer.Option("--in", help="When: 30m, 24h, 7d, 2w; without it, now.")] = "",
    never: Annotated[bool, typer.Option("--never", help="Renew: it does not end.")] = False,
) -> None:
    """End a device's admission, now or later, or renew it. An expired device can join again with a token.

    \b
    edgehub devices expire loaner-7 --in 14d
    edgehub devices expire cam-3 --never
    """
    if after and never:
        raise HubError("--in and --never: only one of them can be. Choose")
    try:
        seconds = parse_duration(after) if after else 0
    except ValueError as error:
        raise HubError(f"--in {error}") from error
    with doing() as do:
        found = actions.find_device(do.tx, device)
        operations.expire(do, found, 0 if never else do.wall_s + seconds)
    print_error(f"{found.name}: admission ends {ago(found.not_after) if seconds or never else 'now'}")


@app.command()
def remove(device: Name, yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False) -> None:
    """Cut a device off for good: its session ends, all who know it are told, keys it knew are changed.

    \b
    edgehub devices remove cam-3
    """
    if not yes and sys.stdin.isatty() and not typer.confirm(f"Remove {device}?", err=True):
        raise typer.Exit(1)
    with doing() as do:
        found = actions.find_device(do.tx, device)
        operations.remove(do, found)
    wait_for_broker(found.id)
    print_error(f"{found.name or found.id} is removed. It comes back only with a new token")


def _all(tx: SqlTx, state: DeviceState | None) -> Iterator[Device]:
    after = ""
    while page := tx.devices(after=after, limit=500, state=state):
        yield from page
        after = page[-1].id


def _as_json(device: Device) -> dict[str, Any]:
    return {
        "id": device.id,
        "name": device.name,
        "state": device.state.value,
        "addresses": [address for address in (_v4(device), _v6(device)) if address],
        "tags": list(device.tags),
        "online": device.online,
        "last_seen": device.last_seen_s,
        "created": device.created_s,
        "not_after": device.not_after,
        "version": device.version,
        "cloned": device.cloned_s,
        "claim": device.claim,
        "facts": device.facts,
    }


def _signal(modem: dict[str, Any]) -> str:
    """As somebody who looked saw it last."""
    parts = [
        f"{name} {modem[key]} {unit}"
        for name, key, unit in (("RSRP", "rsrp_dbm", "dBm"), ("RSRQ", "rsrq_db", "dB"), ("SINR", "sinr_db", "dB"))
        if modem[key] is not None
    ]
    bars = "bars unknown" if modem["bars"] is None else f"{modem['bars']} of 4 bars"
    return ", ".join([bars, *parts])


def _v4(device: Device) -> str:
    return "" if device.v4 is None else str(IPv4Address(device.v4))


def _v6(device: Device) -> str:
    return "" if device.v6 is None else str(IPv6Address(device.v6))


def _base64(key: bytes) -> str:
    return b64encode(key).decode()
