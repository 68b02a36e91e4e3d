"""A device as it is now, while somebody looks, and what it is told to do."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request, Response

from hub.core import actions, audit, commands
from hub.core.model import Command, Device, HubError
from hub.core.roles import Principal
from hub.store.sql import SqlTx
from hub.web.auth import CurrentBackend, allowed
from hub.web.errors import Problem
from hub.web.views.common import back, page

router = APIRouter(include_in_schema=False)

COMMANDS_SHOWN = 10
FRESH_S = 30  # how old a sample may be to stand for "now"
WATCH_EVERY_S = 2
NETCHECK_S, LOG_LINES, RUN_S = 6, 200, 60
TABLES_SHOWN = 8
OUTPUT_SHOWN = 64 << 10

Reader = Annotated[Principal, allowed("devices:read")]
CommandReader = Annotated[Principal, allowed("commands:read")]
Runner = Annotated[Principal, allowed("commands:run")]
Text = Annotated[str, Form(max_length=1_000)]


def panels(tx: SqlTx, device: Device, who: Principal) -> dict[str, Any]:
    """What the device's page shows besides what lasts."""
    sample = commands.telemetry(tx, device.id)
    found: dict[str, Any] = {"device": device, "sample": sample, "point": "", "commands": []}
    if sample is not None:
        found["fresh"] = sample["received"] > time.time() - FRESH_S
        found["tables"] = sorted(sample["tables"], key=lambda table: -table["used"] / max(1, table["ceiling"]))[
            :TABLES_SHOWN
        ]
        found["point"] = json.dumps(
            {
                "at": sample["received"],
                "rx": sum(peer["rx_bytes_per_s"] for peer in sample["peers"]),
                "tx": sum(peer["tx_bytes_per_s"] for peer in sample["peers"]),
            }
        )
    if who.may("commands:read"):
        shown = [command for command in tx.commands(device.id, limit=COMMANDS_SHOWN + 2) if command.verb != "watch"]
        found["commands"] = [(command, words(command)) for command in shown[:COMMANDS_SHOWN]]
    return found


def words(command: Command) -> str:
    """As somebody would type it."""
    if command.verb == "run":
        return " ".join(["run", command.args["s"], *command.args["a"]])
    return command.verb


@router.get("/devices/{device_id}/now")
def now(request: Request, who: Reader, backend: CurrentBackend, device_id: str) -> Response:
    with backend.read() as tx:
        context = panels(tx, _find(tx, device_id), who)
    return page(request, "device_now.html", context)


@router.get("/devices/{device_id}/commands")
def command_list(request: Request, who: CommandReader, backend: CurrentBackend, device_id: str) -> Response:
    with backend.read() as tx:
        context = panels(tx, _find(tx, device_id), who)
    return page(request, "device_commands.html", context)


@router.get("/devices/{device_id}/commands/{command_id}")
def output(request: Request, who: CommandReader, backend: CurrentBackend, device_id: str, command_id: str) -> Response:
    with backend.read() as tx:
        device = _find(tx, device_id)
        command = tx.command(command_id)
        if command is None or command.device != device.id:
            raise Problem(404, "no-command", "There is no such command any more.")
        data, whole = commands.output(tx, command)
    context = {
        "device": device,
        "command": command,
        "words": words(command),
        "output": data[:OUTPUT_SHOWN].decode("utf-8", "replace"),
        "whole": whole and len(data) <= OUTPUT_SHOWN,
    }
    return page(request, "command.html", context)


@router.post("/devices/{device_id}/watch")
def watch(who: Runner, backend: CurrentBackend, device_id: str, on: Annotated[str, Form(max_length=3)]) -> Response:
    """The page says so again while somebody looks, and once when they leave; the first of it is audited."""
    with backend.write() as (tx, scribe, wall_s):
        device = _find(tx, device_id)
        if on == "no":
            commands.unwatch(scribe, tx, device, wall_s, actor=who.actor)
        else:
            known = {command.id for command in tx.open_commands(device.id) if command.verb == "watch"}
            made = commands.watch(scribe, tx, device, wall_s, actor=who.actor, every_s=WATCH_EVERY_S)
            if not known:
                audit.record(tx, wall_s, who.actor, "command.watch", f"device:{device.id}", {"command": made.id})
    return Response(status_code=204)


@router.post("/devices/{device_id}/commands")
def give(
    who: Runner, backend: CurrentBackend, device_id: str, verb: Text, script: Text = "", arguments: Text = ""
) -> Response:
    known: dict[str, dict[str, Any]] = {
        "netcheck": {"t": NETCHECK_S},
        "collect-logs": {"n": LOG_LINES},
        "run": {"s": script.strip(), "a": arguments.split(), "t": RUN_S},
    }
    args = known.get(verb, {})
    if verb == "run" and not script.strip():
        raise HubError("command run: the name of a script expected, as the device's owner has it in its directory")
    with backend.write() as (tx, scribe, wall_s):
        device = _find(tx, device_id)
        made = commands.create(scribe, tx, device, verb, args, wall_s, actor=who.actor)
        detail: dict[str, str | int] = {"command": made.id, "name": device.name or ""}
        if verb == "run":
            detail["script"] = script.strip()
        audit.record(tx, wall_s, who.actor, f"command.{verb}", f"device:{device.id}", detail)
    return back(f"/devices/{device.id}", "asked")


def _find(tx: SqlTx, device_id: str) -> Device:
    try:
        return actions.find_device(tx, device_id)
    except HubError as error:
        raise Problem(404, "no-device", "There is no such device. It may have been removed.") from error
