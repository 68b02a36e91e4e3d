"""Commands to devices, and what watched devices say of themselves: docs/commands.md has the verbs, states and codes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, Field

from edgeagent.proto.commands import WATCH_EVERY_S_MAX, WATCH_S_MAX
from hub import commanding
from hub.core import actions, commands
from hub.core.model import Device, HubError
from hub.core.roles import Principal
from hub.store.sql import SqlTx
from hub.web.api.common import PAGE_MAX
from hub.web.auth import CurrentBackend, allowed
from hub.web.errors import Problem

Reader = Annotated[Principal, allowed("commands:read")]
Runner = Annotated[Principal, allowed("commands:run")]

router = APIRouter(tags=["commands"])


class NewCommand(BaseModel, extra="forbid"):
    """`args` by verb: collect-logs `lines`, `level`; netcheck `seconds`; run `script`, `arguments`, `seconds`."""

    verb: Literal["reboot-agent", "collect-logs", "netcheck", "rekey", "run"]
    args: dict[str, str | int | list[str]] = {}
    expires_in: Annotated[
        int, Field(ge=commands.EXPIRES_MIN_S, le=commands.EXPIRES_MAX_S, description="Seconds that it waits.")
    ] = commands.EXPIRES_S

    model_config = {
        "json_schema_extra": {"examples": [{"verb": "run", "args": {"script": "clean", "arguments": ["--all"]}}]}
    }


class Look(BaseModel, extra="forbid"):
    seconds: Annotated[int, Field(ge=1, le=WATCH_S_MAX)] = WATCH_S_MAX
    every: Annotated[int, Field(ge=1, le=WATCH_EVERY_S_MAX)] = 2


class CommandOut(BaseModel):
    """Times in seconds since 1970."""

    id: str
    device: str
    verb: str
    args: dict[str, Any]
    actor: str
    created: int
    expires: int
    state: Literal["queued", "accepted", "running", "done", "failed", "refused", "expired"]
    changed: int
    finished: int | None
    code: str = Field(description="Why, for programs; empty for no reason.")
    text: str = Field(description="Why, for people.")


class CommandWithOutput(CommandOut):
    output: str = Field(description="What it has put out so far; JSON in text where it is netcheck's.")
    output_complete: bool


class CommandList(BaseModel):
    commands: list[CommandOut] = Field(description="The newest first.")


@router.post("/devices/{device_id}/commands", status_code=201)
def give(backend: CurrentBackend, who: Runner, device_id: str, body: NewCommand) -> CommandOut:
    """It waits for a device that is offline until it expires. Look at it by its id until it is `finished`."""
    with backend.doing(who) as do:
        device = _find(do.tx, device_id)
        made = commanding.give(do, device, body.verb, body.args, expires_in_s=body.expires_in)
        return CommandOut(**commanding.describe(do.tx, made))


@router.get("/devices/{device_id}/commands")
def list_commands(
    backend: CurrentBackend, who: Reader, device_id: str, limit: Annotated[int, Query(ge=1, le=PAGE_MAX)] = 100
) -> CommandList:
    with backend.read() as tx:
        found = tx.commands(_find(tx, device_id).id, limit=limit)
        return CommandList(commands=[CommandOut(**commanding.describe(tx, each)) for each in found])


@router.get("/commands/{command_id}")
def get_command(backend: CurrentBackend, who: Reader, command_id: str) -> CommandWithOutput:
    with backend.read() as tx:
        found = tx.command(command_id)
        if found is None:
            raise Problem(404, "no-command", "There is no such command; the last hundred of a device are kept.")
        return CommandWithOutput(**commanding.describe(tx, found, with_output=True))


@router.get("/devices/{device_id}/telemetry")
def telemetry(
    backend: CurrentBackend, who: Annotated[Principal, allowed("devices:read")], device_id: str
) -> dict[str, Any]:
    """The last sample of a device that was watched, and when it was `received`."""
    with backend.read() as tx:
        found = commands.telemetry(tx, _find(tx, device_id).id)
    if found is None:
        raise Problem(404, "no-telemetry", "Nobody has looked at this device yet: POST to its watch first.")
    return found


@router.post("/devices/{device_id}/watch")
def watch(backend: CurrentBackend, who: Runner, device_id: str, body: Look) -> CommandOut:
    """Say so again while you look, before its seconds are over; one watch serves all who look."""
    with backend.doing(who) as do:
        made = commanding.watch(do, _find(do.tx, device_id), seconds=body.seconds, every_s=body.every)
        return CommandOut(**commanding.describe(do.tx, made))


@router.delete("/devices/{device_id}/watch", status_code=204)
def unwatch(backend: CurrentBackend, who: Runner, device_id: str) -> Response:
    """Nobody looks any more: the device sends nothing from now on."""
    with backend.doing(who) as do:
        commanding.unwatch(do, _find(do.tx, device_id))
    return Response(status_code=204)


def _find(tx: SqlTx, device_id: str) -> Device:
    try:
        return actions.find_device(tx, device_id)
    except HubError as error:
        raise Problem(404, "no-device", str(error)) from error
